//! Sessions over real files: order, row ranges, file formats, and whether a query is row-local.

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    util::pretty::pretty_format_batches,
};
use repro::{
    catalog::session::{Failures, Session, SessionOptions, TableSource, row_local_table},
    storage::{
        commit::TableCommit,
        location::Location,
        manifest::{Cost, Manifest, Rows},
    },
    udf::models::Models,
};
use std::{collections::BTreeMap, io::Write, sync::Arc};

fn session(partitions: usize) -> Session {
    Session::new(SessionOptions {
        models: Models::new(BTreeMap::new(), 7),
        params: BTreeMap::new(),
        failures: Failures::Null(Arc::new(|_, _| {})),
        partitions,
    })
    .unwrap()
}

/// A finished table of three files with 3000, 0 and 2000 rows: n counts from 0, in file order.
async fn numbers(location: &Location) -> Manifest {
    let commit = TableCommit::begin(location, "numbers", "key").await.unwrap();
    let mut next = 0;
    for (fragment, rows) in [("00000", 3000), ("00001", 0), ("00002", 2000)] {
        let n: Int64Array = (next..next + rows).collect();
        let text: StringArray = (next..next + rows).map(|n| Some(format!("text {n}"))).collect();
        let columns: [(&str, ArrayRef); 2] = [("n", Arc::new(n)), ("text", Arc::new(text))];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer = commit.fragment(fragment, batch.schema()).await.unwrap();
        writer.write(&batch).await.unwrap();
        writer.finish(rows.try_into().unwrap()).await.unwrap();
        next += rows;
    }
    let manifest = Manifest {
        table: "numbers".into(),
        key: "key".into(),
        code_version: "1".into(),
        schema: vec![],
        rows: Rows { input: 5000, kept: 5000, ..Rows::default() },
        files: vec![],
        failed_files: vec![],
        inputs: BTreeMap::new(),
        params: BTreeMap::new(),
        models: BTreeMap::new(),
        cost: Cost::default(),
    };
    commit.publish(manifest).await.unwrap()
}

async fn column(session: &Session, query: &str) -> Vec<String> {
    let batches = session.sql(query).await.unwrap().collect().await.unwrap();
    let options = arrow::util::display::FormatOptions::default().with_null("NULL");
    let mut cells = Vec::new();
    for batch in &batches {
        let shown = arrow::util::display::ArrayFormatter::try_new(batch.column(0), &options).unwrap();
        cells.extend((0..batch.num_rows()).map(|row| shown.value(row).to_string()));
    }
    cells
}

fn range(rows: std::ops::Range<u64>) -> Vec<String> {
    rows.map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn a_managed_table_comes_in_the_order_of_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let manifest = numbers(&location).await;
    // A stray file in the directory is not part of the table.
    let stray = dir.path().join("numbers/stray.parquet");
    std::fs::copy(dir.path().join("numbers").join(&manifest.files[0].path), stray).unwrap();
    let one = session(1);
    one.register("t", TableSource::Managed { location: location.clone(), table: "numbers".into() }).await.unwrap();
    assert_eq!(column(&one, "SELECT n FROM t").await, range(0..5000));
    assert_eq!(
        column(&one, "SELECT n FROM t WHERE n % 1000 = 999 AND text LIKE 'text%'").await,
        ["999", "1999", "2999", "3999", "4999"]
    );
    assert_eq!(column(&one, "SELECT count(*) FROM t").await, ["5000"]);
    assert_eq!(column(&one, "SELECT n FROM t LIMIT 2 OFFSET 2999").await, ["2999", "3000"]);
    let four = session(4);
    four.register("t", TableSource::Managed { location: location.clone(), table: "numbers".into() }).await.unwrap();
    assert_eq!(column(&four, "SELECT n FROM t ORDER BY n").await, range(0..5000));
    assert_eq!(column(&four, "SELECT sum(n) FROM t").await, ["12497500"]);
    // The directory by its path is the same table.
    four.register("d", TableSource::Files(dir.path().join("numbers").to_str().unwrap().into())).await.unwrap();
    assert_eq!(column(&four, "SELECT count(*) FROM d").await, ["5000"]);
    let error = one.register("x", TableSource::Managed { location, table: "nothing".into() }).await.unwrap_err();
    assert!(format!("{error:#}").contains("not finished"), "{error:#}");
}

#[tokio::test]
async fn a_fragment_is_exactly_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let manifest = numbers(&location).await;
    let last = manifest.files.last().unwrap().clone();
    assert_eq!(last.rows, 2000);
    for partitions in [1, 4] {
        let session = session(partitions);
        for rows in [0..1, 0..2000, 3..4, 1000..1256, 1999..2000, 5..5] {
            let source = TableSource::Fragment {
                location: location.clone(),
                table: "numbers".into(),
                file: last.clone(),
                rows: rows.clone(),
            };
            session.register("t", source).await.unwrap();
            let expected = range(3000 + rows.start..3000 + rows.end);
            assert_eq!(column(&session, "SELECT n FROM t ORDER BY n").await, expected, "{rows:?}");
            if partitions == 1 {
                assert_eq!(column(&session, "SELECT n FROM t WHERE length(text) > 0").await, expected);
            }
            assert_eq!(column(&session, "SELECT count(*) FROM t").await, [expected.len().to_string()]);
            let many = expected.iter().filter(|n| n.parse::<u64>().unwrap() > 3500).count();
            assert_eq!(column(&session, "SELECT count(*) FROM t WHERE n > 3500").await, [many.to_string()]);
        }
    }
    let beyond = TableSource::Fragment { location, table: "numbers".into(), file: last, rows: 0..2001 };
    assert!(session(1).register("t", beyond).await.is_err());
}

#[tokio::test]
async fn text_files_plain_and_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let json = |from: usize, to: usize| -> Vec<u8> {
        (from..to)
            .flat_map(|n| format!("{{\"id\":\"j{n}\",\"n\":{n},\"nested\":{{\"a\":[{n}]}}}}\n").into_bytes())
            .collect()
    };
    std::fs::write(dir.path().join("a.jsonl"), json(0, 1500)).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&json(1500, 3000)).unwrap();
    std::fs::write(dir.path().join("b.jsonl.gz"), gz.finish().unwrap()).unwrap();
    std::fs::write(dir.path().join("c.jsonl.zst"), zstd::encode_all(&json(3000, 4000)[..], 1).unwrap()).unwrap();
    std::fs::write(dir.path().join("d.csv"), "id,n\nx,1\ny,2\n").unwrap();
    let at = |name: &str| TableSource::Files(dir.path().join(name).to_str().unwrap().into());
    for partitions in [1, 3] {
        let session = session(partitions);
        session.register("j", at("*.jsonl*")).await.unwrap();
        session.register("c", at("d.csv")).await.unwrap();
        let rows = column(&session, "SELECT n FROM j ORDER BY n").await;
        assert_eq!(rows, range(0..4000));
        if partitions == 1 {
            assert_eq!(column(&session, "SELECT n FROM j").await, rows);
        }
        assert_eq!(column(&session, "SELECT nested['a'][1] FROM j WHERE id = 'j3999'").await, ["3999"]);
        assert_eq!(column(&session, "SELECT count(*) FROM j").await, ["4000"]);
        assert_eq!(column(&session, "SELECT j.id FROM j JOIN c ON j.n = c.n ORDER BY 1").await, ["j1", "j2"]);
    }
}

#[tokio::test]
async fn bad_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("broken.jsonl", b"{\"id\":1}\nnot json\n");
    write("empty.jsonl", b"");
    write("cut.jsonl.zst", &zstd::encode_all(&b"{\"id\":1}\n".repeat(9999)[..], 1).unwrap()[..20]);
    write("half.parquet", b"PAR1");
    write("what.xyz", b"");
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let manifest = numbers(&location).await;
    let whole = std::fs::read(dir.path().join("numbers").join(&manifest.files[0].path)).unwrap();
    write("cut.parquet", &whole[..whole.len() / 2]);
    for (name, part) in [
        ("broken.jsonl", "broken.jsonl"),
        ("empty.jsonl", "no records"),
        ("cut.jsonl.zst", "cut.jsonl.zst"),
        ("half.parquet", "half.parquet"),
        ("cut.parquet", "cut.parquet"),
        ("what.xyz", "cannot tell the format"),
        ("*.nothing", "*.nothing"),
        ("missing.jsonl", "missing.jsonl"),
    ] {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        let session = session(1);
        let registered = session.register("t", TableSource::Files(path)).await;
        let error = match registered {
            Err(error) => format!("{error:#}"),
            Ok(()) => match session.sql("SELECT * FROM t").await.unwrap().collect().await {
                Err(error) => error.to_string(),
                Ok(rows) => panic!("{name} was read: {}", pretty_format_batches(&rows).unwrap()),
            },
        };
        assert!(error.contains(part), "{name}: {error}");
    }
}

#[tokio::test]
async fn row_local_queries_are_told_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    numbers(&location).await;
    let session = session(1);
    for name in ["t", "u"] {
        session
            .register(name, TableSource::Managed { location: location.clone(), table: "numbers".into() })
            .await
            .unwrap();
    }
    for (query, table) in [
        ("SELECT * FROM t", Some("t")),
        ("SELECT upper(text) AS x FROM t AS a WHERE n > 3", Some("t")),
        ("WITH c AS (SELECT n, text FROM u WHERE n < 9) SELECT length(text) FROM c WHERE n > 1", Some("u")),
        ("SELECT * FROM t LIMIT 3", None),
        ("SELECT * FROM t ORDER BY n", None),
        ("SELECT count(*) FROM t", None),
        ("SELECT DISTINCT n FROM t", None),
        ("SELECT t.n FROM t JOIN u ON t.n = u.n", None),
        ("SELECT n FROM t WHERE n IN (SELECT n FROM u)", None),
        ("SELECT n, (SELECT max(n) FROM t) FROM t", None),
        ("SELECT n FROM t UNION ALL SELECT n FROM t", None),
        ("SELECT row_number() OVER () FROM t", None),
        ("SELECT unnest(string_to_array(text, ' ')) FROM t", None),
        ("SELECT 1", None),
    ] {
        let frame = session.sql(query).await.unwrap();
        assert_eq!(row_local_table(frame.logical_plan()).as_deref(), table, "{query}");
        let optimized = session.context().state().optimize(frame.logical_plan()).unwrap();
        if table.is_some() {
            assert_eq!(row_local_table(&optimized).as_deref(), table, "{query}, optimized");
        }
    }
}

#[tokio::test]
async fn show_and_describe_work() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    numbers(&location).await;
    let session = session(1);
    session.register("t", TableSource::Managed { location, table: "numbers".into() }).await.unwrap();
    assert_eq!(session.tables(), ["t"]);
    assert_eq!(column(&session, "DESCRIBE t").await, ["n", "text"]);
    assert!(!column(&session, "SHOW TABLES").await.is_empty());
    assert_eq!(column(&session, "SELECT value FROM generate_series(1, 3)").await, ["1", "2", "3"]);
}
