//! The ingest stage: what it keeps, what it fails and why, damage, resume, and what other programs read of it.

use crate::s3::{Faults, Server};
use arrow::{
    array::{
        ArrayRef, AsArray, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, RecordBatch,
        StringArray,
    },
    datatypes::{Int32Type, Int64Type},
    util::pretty::pretty_format_batches,
};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use repro::{
    pipeline::stage::{
        Progress, Silent, StageContext,
        ingest::{self, ColumnType, Config, OnBadFile, SourceSpec},
    },
    storage::{location::Location, manifest::Manifest},
    udf::models::Models,
};
use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// A directory with input files and the table made of them.
struct Case {
    dir: tempfile::TempDir,
    config: Config,
    location: String,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("out").display().to_string();
        Self { dir, config: Config::default(), location }
    }

    fn with(file: &str, bytes: &[u8]) -> Self {
        let case = Self::new();
        case.put(file, bytes);
        case
    }

    fn put(&self, file: &str, bytes: &[u8]) {
        let path = self.dir.path().join("in").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn source(&self) -> SourceSpec {
        self.dir.path().join("in").to_str().unwrap().into()
    }

    async fn try_run(&self) -> anyhow::Result<Manifest> {
        ingest::run(&self.config, &self.source(), &context(&self.location, Arc::new(Silent))).await
    }

    async fn run(&self) -> Table {
        let manifest = self.try_run().await.unwrap();
        assert!(manifest.rows.adds_up());
        Table::read(Path::new(&self.location), &manifest)
    }

    /// Removes the table. A stopped run may still be closing files.
    fn clear(&self) {
        while Path::new(&self.location).exists() && std::fs::remove_dir_all(&self.location).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    async fn error(&self) -> String {
        format!("{:#}", self.try_run().await.unwrap_err())
    }
}

fn context(location: &str, progress: Arc<dyn Progress>) -> StageContext {
    StageContext {
        external: BTreeMap::new(),
        location: Location::parse(location).unwrap(),
        output: "organic".to_owned(),
        key: "key".to_owned(),
        seed: 0,
        params: BTreeMap::new(),
        models: Models::new(BTreeMap::new(), 0),
        progress,
        cancel: CancellationToken::new(),
        inputs: BTreeMap::new(),
        model_hashes: BTreeMap::new(),
        code_version: "test".to_owned(),
    }
}

/// All that a finished table holds.
struct Table {
    manifest: Manifest,
    rows: RecordBatch,
    /// (row id without the directory, error)
    failed: Vec<(String, String)>,
}

impl Table {
    fn read(location: &Path, manifest: &Manifest) -> Self {
        let read = |path: PathBuf| -> RecordBatch {
            let reader =
                ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
            let schema = arrow::array::RecordBatchReader::schema(&reader);
            let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
            arrow::compute::concat_batches(&schema, &batches).unwrap()
        };
        let files: Vec<RecordBatch> =
            manifest.files.iter().map(|f| read(location.join("organic").join(&f.path))).collect();
        let rows = arrow::compute::concat_batches(&files[0].schema(), &files).unwrap();
        let mut failed = Vec::new();
        for file in &manifest.failed_files {
            let batch = read(location.join("failed").join(&file.path));
            let text = |column: usize, row: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
            for row in 0..batch.num_rows() {
                assert_eq!(text(0, row), "organic");
                failed.push((text(1, row).rsplit('/').next().unwrap().to_owned(), text(2, row)));
            }
        }
        assert_eq!((rows.num_rows() as u64, failed.len() as u64), (manifest.rows.kept, manifest.rows.failed));
        Self { manifest: manifest.clone(), rows, failed }
    }

    fn texts(&self, column: &str) -> Vec<&str> {
        self.rows.column_by_name(column).unwrap().as_string::<i32>().iter().map(Option::unwrap_or_default).collect()
    }

    fn numbers(&self, column: &str) -> Vec<i64> {
        self.rows.column_by_name(column).unwrap().as_primitive::<Int64Type>().values().to_vec()
    }

    fn schema(&self) -> String {
        let show = |f: &Arc<arrow::datatypes::Field>| format!("{} {}", f.name(), f.data_type());
        self.rows.schema().fields().iter().map(show).collect::<Vec<_>>().join(", ")
    }

    /// The source's own columns as text, for comparing.
    fn shown(&self, columns: &[&str]) -> String {
        let at: Vec<usize> = columns.iter().map(|c| self.rows.schema().index_of(c).unwrap()).collect();
        pretty_format_batches(&[self.rows.project(&at).unwrap()]).unwrap().to_string()
    }
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn gzip_of(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn documents(range: std::ops::Range<u64>) -> Vec<u8> {
    let line = |n: u64| {
        format!("{{\"text\": \"document {n} {}\", \"n\": {n}}}\n", blake3::hash(&n.to_le_bytes()).to_hex().repeat(8))
    };
    range.map(line).collect::<String>().into_bytes()
}

const STANDARD: &str = "id Utf8, text Utf8, source_uri Utf8, source_row Int64";

#[tokio::test]
async fn rows_keep_their_place_and_columns() {
    let case = Case::with(
        "a.jsonl",
        b"{\"url\":\"u0\",\"text\":\"first\",\"score\":1}\n\n{\"text\":\"second \\u00e9\",\"tags\":[\"x\",\"y\"],\"meta\":{\"lang\":\"en\"}}\r\n{\"text\":\"third\",\"score\":2.5}",
    );
    let table = case.run().await;
    assert_eq!(
        table.schema(),
        format!("{STANDARD}, url Utf8, score Float64, tags List(Utf8), meta Struct(\"lang\": Utf8)")
    );
    assert_eq!(table.texts("text"), ["first", "second é", "third"]);
    assert_eq!(table.numbers("source_row"), [0, 1, 2]);
    let uri = case.dir.path().join("in/a.jsonl").display().to_string();
    assert_eq!(table.texts("source_uri"), [uri.as_str(); 3]);
    assert!(table.texts("id").iter().all(|id| id.len() == 32));
    let shown = table.shown(&["url", "score", "tags", "meta"]);
    assert!(
        shown.contains("| u0  | 1.0   |        |            |")
            && shown.contains("|     |       | [x, y] | {lang: en} |"),
        "{shown}"
    );
    let columns: Vec<&str> = table.manifest.schema.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(columns, ["id", "text", "source_uri", "source_row", "url", "score", "tags", "meta"]);
    assert_eq!(table.manifest.inputs.keys().collect::<Vec<_>>(), [&uri]);
}

#[tokio::test]
async fn ids_are_of_content_and_place() {
    let case = Case::with("a.jsonl", b"{\"text\":\"same\"}\n{\"text\":\"same\"}\n{\"text\":\"other\"}");
    let first = case.run().await;
    let ids = first.texts("id");
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    case.clear();
    assert_eq!(case.run().await.texts("id"), ids, "the same input has the same ids");
}

/// Failed rows of one JSONL file, between two good ones.
async fn check_failed(config: Config, line: &[u8], error: &str) {
    let bytes = [b"{\"text\":\"before\"}\n", line, b"\n{\"text\":\"after\"}\n"].concat();
    let case = Case { config, ..Case::with("a.jsonl", &bytes) };
    let table = case.run().await;
    assert_eq!(table.texts("text"), ["before", "after"], "{error}");
    assert_eq!(table.numbers("source_row"), [0, 2]);
    let [(row, text)] = table.failed.as_slice() else { panic!("{:?}", table.failed) };
    assert_eq!(row, "a.jsonl#1");
    assert!(text.contains(error), "{text}, expected {error}");
    assert_eq!((table.manifest.rows.input, table.manifest.rows.kept, table.manifest.rows.failed), (3, 2, 1));
}

#[tokio::test]
async fn bad_rows_are_failed_with_the_reason() {
    let of = Config::default;
    check_failed(of(), b"not json", "not JSON: expected ident at column 2").await;
    check_failed(of(), b"{\"text\":\"x\"", "not JSON: EOF").await;
    check_failed(of(), b"{\"text\":\"x\"} trailing", "not JSON: trailing characters").await;
    check_failed(of(), b"[\"text\"]", "an array, not an object").await;
    check_failed(of(), b"3", "a number, not an object").await;
    check_failed(of(), b"{\"body\":\"x\"}", "no field `text`").await;
    check_failed(of(), b"{\"text\":null}", "`text` is null, not text").await;
    check_failed(of(), b"{\"text\":12}", "`text` is a number, not text").await;
    check_failed(of(), b"{\"text\":{\"a\":1}}", "`text` is an object, not text").await;
    check_failed(of(), b"{\"text\":\"\"}", "the text is empty").await;
    check_failed(of(), b"{\"text\":\" \\n\\t\"}", "the text is empty").await;
    check_failed(of(), b"{\"text\":\"a\xff\"}", "not valid UTF-8 at byte 10 of the line").await;
    check_failed(of(), b"{\"text\":\"\\ud800\"}", "not JSON: ").await;
    check_failed(
        of(),
        &[b"{\"text\":".repeat(200), b"1".to_vec(), b"}".repeat(200)].concat(),
        "not JSON: recursion limit",
    )
    .await;
    let long = format!("{{\"text\":\"{}\"}}", "x".repeat(20_000_000));
    check_failed(of(), long.as_bytes(), "the text has 20000000 bytes, more than max_text_bytes (16777216)").await;
    let small = Config { max_line_bytes: 100, ..of() };
    check_failed(small, long.as_bytes(), "the line has 20000012 bytes, more than max_line_bytes (100)").await;
    let id = Config { id_column: Some("n".to_owned()), ..of() };
    let bytes = b"{\"n\":7,\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"n\":\"x\",\"text\":\"c\"}";
    let table = Case { config: id, ..Case::with("a.jsonl", bytes) }.run().await;
    assert_eq!((table.texts("id"), table.schema().as_str()), (vec!["7", "x"], STANDARD));
    assert_eq!(table.failed, [("a.jsonl#1".to_owned(), "the id `n` is missing or empty".to_owned())]);
}

#[tokio::test]
async fn nul_characters_are_kept() {
    let case = Case::with("a.jsonl", b"{\"text\":\"a\\u0000b\"}");
    assert_eq!(case.run().await.texts("text"), ["a\0b"]);
}

#[tokio::test]
async fn names_that_are_ours_are_moved() {
    let line = b"{\"id\":\"i\",\"text\":\"t\",\"source_uri\":\"s\",\"Source_Row\":1,\"source_id\":2,\"x\":3}";
    let table = Case::with("a.jsonl", line).run().await;
    let expected = "source_source_id Utf8, source_source_uri Utf8, source_Source_Row Int64, source_id Int64, x Int64";
    assert_eq!(table.schema(), format!("{STANDARD}, {expected}"));
    let config = Config { text_column: "body".to_owned(), ..Config::default() };
    let table = Case { config, ..Case::with("a.jsonl", b"{\"text\":\"t\",\"body\":\"b\"}") }.run().await;
    assert_eq!(table.schema(), format!("{STANDARD}, source_text Utf8"));
    assert_eq!((table.texts("text"), table.texts("source_text")), (vec!["b"], vec!["t"]));
}

#[tokio::test]
async fn no_file_decides_the_types_alone() {
    let case = Case::with("a.jsonl", b"{\"text\":\"a\",\"x\":null,\"y\":1,\"z\":\"s\"}\n");
    case.put("b.jsonl", b"{\"text\":\"b\",\"x\":true,\"y\":2.5,\"z\":[\"l\"]}\n{\"text\":\"c\",\"new\":{\"k\":[1]}}\n");
    let table = case.run().await;
    let expected = "x Boolean, y Float64, z List(Utf8), new Struct(\"k\": List(Int64))";
    assert_eq!(table.schema(), format!("{STANDARD}, {expected}"));
    let shown = table.shown(&["x", "y", "z", "new"]);
    assert!(
        shown.contains("|      | 1.0 | [s] |          |") && shown.contains("| true | 2.5 | [l] |          |"),
        "{shown}"
    );
    assert!(table.failed.is_empty());
}

#[tokio::test]
async fn a_value_that_does_not_fit_later_fails_its_row() {
    let head = "{\"text\":\"a\",\"n\":1}\n".repeat(10);
    let bytes = format!("{head}{{\"text\":\"b\",\"n\":1.5}}\n{{\"text\":\"c\",\"m\":1}}\n{{\"text\":\"d\",\"n\":2}}\n");
    let config = Config { infer_bytes: 50, ..Config::default() };
    let table = Case { config: config.clone(), ..Case::with("a.jsonl", bytes.as_bytes()) }.run().await;
    assert_eq!(table.rows.num_rows(), 11);
    assert_eq!(table.failed.iter().map(|(row, _)| row.as_str()).collect::<Vec<_>>(), ["a.jsonl#10", "a.jsonl#11"]);
    assert!(
        table.failed[0].1.starts_with("column `n`: 1.5 is not a whole number (Int64); column types are learnt"),
        "{:?}",
        table.failed
    );
    assert!(table.failed[1].1.starts_with("column `m` is new"), "{:?}", table.failed);
    let columns = [("n".to_owned(), ColumnType::Float64), ("m".to_owned(), ColumnType::Utf8)].into();
    let table = Case { config: Config { columns, ..config }, ..Case::with("a.jsonl", bytes.as_bytes()) }.run().await;
    assert_eq!((table.schema(), table.rows.num_rows()), (format!("{STANDARD}, n Float64, m Utf8"), 13));
}

#[tokio::test]
async fn compressed_files_of_many_frames() {
    let case = Case::new();
    let (a, b) = (documents(0..50), documents(50..120));
    case.put("1.jsonl.zst", &[zstd_of(&a), zstd_of(&b)].concat());
    case.put("2.jsonl.gz", &[gzip_of(&a), gzip_of(&b)].concat());
    case.put("3.json", &[b"\xef\xbb\xbf".to_vec(), a.clone(), b.clone()].concat());
    case.put("4.jsonl.zstd", &[b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec(), zstd_of(&a), zstd_of(&b)].concat());
    let table = case.run().await;
    let texts = table.texts("text");
    assert_eq!(texts.len(), 480);
    assert!(table.failed.is_empty());
    assert!((0..3).all(|n| texts[n * 120..(n + 1) * 120] == texts[360..]));
    assert_eq!(table.numbers("n"), (0..120).cycle().take(480).collect::<Vec<i64>>());
}

#[tokio::test]
async fn damaged_files_fail_or_keep_what_stands_before() {
    let all = documents(0..2000);
    let (zst, gz) = (zstd_of(&all), gzip_of(&all));
    for (name, bytes) in [("a.jsonl.zst", &zst), ("a.jsonl.gz", &gz)] {
        let case = Case {
            config: Config { fragment_rows: 300, ..Config::default() },
            ..Case::with(name, &bytes[..bytes.len() * 2 / 3])
        };
        case.put("b.jsonl", &documents(0..5));
        let error = case.error().await;
        assert!(
            error.contains(name) && error.contains("is damaged at row ") && error.contains("on_bad_file: skip"),
            "{error}"
        );
        case.clear();
        let case = Case { config: Config { on_bad_file: OnBadFile::Skip, ..case.config.clone() }, ..case };
        let table = case.run().await;
        let [(row, error)] = table.failed.as_slice() else { panic!("{:?}", table.failed) };
        let kept: i64 = row.strip_prefix(&format!("{name}#")).unwrap().parse().unwrap();
        assert!(kept > 500 && error.starts_with("the file is damaged from here on: "), "{row} {error}");
        assert_eq!(table.numbers("n"), (0..kept).chain(0..5).collect::<Vec<_>>());
        assert_eq!(table.manifest.rows.input as i64, kept + 1 + 5);
    }
}

fn parquet_of(batch: &RecordBatch) -> Vec<u8> {
    let mut out = Vec::new();
    let properties = parquet::file::properties::WriterProperties::builder()
        .set_max_row_group_row_count(Some(700))
        .set_data_page_row_count_limit(100)
        .set_write_batch_size(50)
        .build();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    out
}

fn parquet_documents(rows: i64) -> RecordBatch {
    let text = (0..rows).map(|n| format!("document {n} {}", blake3::hash(&n.to_le_bytes()).to_hex()));
    let kind: DictionaryArray<Int32Type> = (0..rows).map(|n| if n % 2 == 0 { "even" } else { "odd" }).collect();
    RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef),
        ("text", Arc::new(LargeStringArray::from_iter_values(text)) as ArrayRef),
        ("kind", Arc::new(kind) as ArrayRef),
    ])
    .unwrap()
}

#[tokio::test]
async fn parquet_rows_and_their_types() {
    let case = Case {
        config: Config { fragment_rows: 300, ..Config::default() },
        ..Case::with("a.parquet", &parquet_of(&parquet_documents(2000)))
    };
    let bad = RecordBatch::try_from_iter([
        ("text", Arc::new(StringArray::from(vec![Some("x"), None, Some(""), Some("y")])) as ArrayRef),
        ("n", Arc::new(Int32Array::from(vec![1, 2, 3, 4])) as ArrayRef),
        ("score", Arc::new(Float64Array::from(vec![0.5, 0.5, 0.5, 0.5])) as ArrayRef),
    ]);
    case.put("b.parquet", &parquet_of(&bad.unwrap()));
    case.put("c.jsonl", b"{\"text\":\"z\",\"n\":9,\"kind\":\"none\"}");
    let table = case.run().await;
    assert_eq!(table.schema(), format!("{STANDARD}, n Int64, kind Utf8, score Float64"));
    assert_eq!(table.numbers("n"), (0..2000).chain([1, 4, 9]).collect::<Vec<_>>());
    assert_eq!(table.numbers("source_row"), (0..2000).chain([0, 3, 0]).collect::<Vec<_>>());
    assert_eq!(table.texts("kind")[1999..], ["odd", "", "", "none"]);
    let failed: Vec<(&str, &str)> = table.failed.iter().map(|(r, e)| (r.as_str(), e.as_str())).collect();
    assert_eq!(failed, [("b.parquet#1", "`text` is null, not text"), ("b.parquet#2", "the text is empty")]);
    let ids: std::collections::HashSet<&str> = table.texts("id").into_iter().collect();
    assert_eq!(ids.len(), 2003);
}

#[tokio::test]
async fn parquet_that_is_cut_or_is_none() {
    let whole = parquet_of(&parquet_documents(2000));
    let case = Case::with("a.parquet", &whole[..whole.len() / 2]);
    case.put("b.jsonl", b"{\"text\":\"x\"}");
    let error = case.error().await;
    assert!(error.contains("a.parquet is not a Parquet file, or is cut off"), "{error}");
    let case = Case { config: Config { on_bad_file: OnBadFile::Skip, ..Config::default() }, ..case };
    let table = case.run().await;
    assert_eq!((table.texts("text"), table.failed.len()), (vec!["x"], 1));
    assert_eq!(table.failed[0].0, "a.parquet#0");
    // Damage inside: some page in the second row group.
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xff);
    let case = Case {
        config: Config { on_bad_file: OnBadFile::Skip, ..Config::default() },
        ..Case::with("a.parquet", &bytes)
    };
    let rows = case.try_run().await;
    if let Ok(manifest) = rows {
        let table = Table::read(Path::new(&case.location), &manifest);
        assert!(table.rows.num_rows() >= 600, "{}", table.rows.num_rows());
    } else {
        panic!("{rows:?}");
    }
    let error = Case::with("a.parquet", &parquet_of(&parquet_documents(1).project(&[0, 2]).unwrap())).error().await;
    assert!(error.contains("has no column `text`; set `text_column` to one of: n, kind"), "{error}");
    let config = Config { text_column: "n".to_owned(), ..Config::default() };
    let error = Case { config, ..Case::with("a.parquet", &whole) }.error().await;
    assert!(error.contains("the text column `n` is Int64 and not text"), "{error}");
}

#[tokio::test]
async fn nothing_in_nothing_out() {
    let case = Case::with("empty.jsonl", b"");
    case.put("empty.parquet", b"");
    case.put("empty.jsonl.zst", &zstd_of(b""));
    case.put("blank.jsonl.gz", &gzip_of(b"\n\n"));
    let table = case.run().await;
    assert_eq!((table.schema().as_str(), table.rows.num_rows(), table.manifest.rows.input), (STANDARD, 0, 0));
    let missing = SourceSpec::from("/no/such/dir/*.jsonl");
    let error = ingest::run(&case.config, &missing, &context(&case.location, Arc::new(Silent))).await.unwrap_err();
    assert!(format!("{error:#}").contains("no file matches `/no/such/dir/*.jsonl`"), "{error:#}");
}

#[tokio::test]
async fn an_object_beside_a_scalar_is_text_as_the_last_resort() {
    let case = Case::with(
        "a.jsonl",
        b"{\"text\":\"a\",\"x\":{\"k\":1}}\n{\"text\":\"b\",\"x\":5}\n{\"text\":\"c\",\"x\":\"s\"}",
    );
    assert_eq!(case.run().await.texts("x"), ["{\"k\":1}", "5", "s"]);
}

#[tokio::test]
async fn fingerprints_follow_the_files() {
    let case = Case::with("a.jsonl", b"{}");
    let before = ingest::fingerprint(&case.source()).await.unwrap();
    assert_eq!(ingest::fingerprint(&case.source()).await.unwrap(), before);
    case.put("a.jsonl", b"{} ");
    assert_ne!(ingest::fingerprint(&case.source()).await.unwrap(), before);
}

/// The input of the resume tests: several files, several fragments each, some rows failing.
fn resume_case() -> Case {
    let case = Case { config: Config { fragment_rows: 170, ..Config::default() }, ..Case::new() };
    case.put("a.jsonl.zst", &zstd_of(&[documents(0..3000), b"broken\n".to_vec(), documents(3000..3400)].concat()));
    case.put("b.jsonl.gz", &gzip_of(&documents(0..850)));
    case.put("c.parquet", &parquet_of(&parquet_documents(2000)));
    case
}

fn same(a: &Table, b: &Table) {
    assert_eq!(a.rows, b.rows);
    assert_eq!(a.failed, b.failed);
    assert_eq!(a.manifest.rows, b.manifest.rows);
    assert_eq!(a.manifest.files, b.manifest.files);
}

/// Rows come in any order of tasks; the files and their content do not depend on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_run_goes_on_where_it_was() {
    let case = resume_case();
    let whole = case.run().await;
    for wait in (1..40).step_by(3) {
        case.clear();
        let mut rounds = 0;
        let manifest = loop {
            rounds += 1;
            let patience = Duration::from_millis(if rounds > 40 { 60_000 } else { wait * rounds });
            if let Ok(done) = tokio::time::timeout(patience, case.try_run()).await {
                break done.unwrap();
            }
        };
        same(&Table::read(Path::new(&case.location), &manifest), &whole);
    }
}

/// Cancels the stage at its n-th report.
struct CancelAt {
    token: CancellationToken,
    left: std::sync::atomic::AtomicI64,
}

impl Progress for CancelAt {
    fn begin(&self, _: &str, _: Option<u64>, _: u64, _: &'static str) {}
    fn advance(&self, _: &str, _: u64, _: &str) {
        if self.left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            self.token.cancel();
        }
    }
    fn end(&self, _: &str, _: Option<&Manifest>) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_says_so_and_goes_on_later() {
    let case = resume_case();
    let token = CancellationToken::new();
    let progress = CancelAt { token: token.clone(), left: 1.into() };
    let cx = StageContext { cancel: token, ..context(&case.location, Arc::new(progress)) };
    let stopped = ingest::run(&case.config, &case.source(), &cx).await;
    let error = stopped.unwrap_err().to_string();
    assert!(error.contains("stopped; run the same command again"), "{error}");
    let resumed = case.run().await;
    case.clear();
    same(&resumed, &case.run().await);
}

/// Not a test: the process that `killed_processes_go_on` starts and kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn child_ingest() {
    let (Ok(input), Ok(output)) = (std::env::var("REPRO_TEST_INPUT"), std::env::var("REPRO_TEST_OUTPUT")) else {
        return;
    };
    let fragment_rows = std::env::var("REPRO_TEST_FRAGMENT").map_or(10_000, |rows| rows.parse().unwrap());
    let config = Config { fragment_rows, ..Config::default() };
    let manifest = ingest::run(&config, &input.as_str().into(), &context(&output, Arc::new(Silent))).await.unwrap();
    eprintln!("{:?} {:?}", manifest.rows, manifest.cost);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_processes_go_on() {
    let case = resume_case();
    let whole = case.run().await;
    let child = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ingest::child_ingest", "--ignored", "--quiet"])
            .env("REPRO_TEST_INPUT", case.dir.path().join("in"))
            .env("REPRO_TEST_OUTPUT", &case.location)
            .env("REPRO_TEST_FRAGMENT", "170")
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    case.clear();
    let begun = std::time::Instant::now();
    assert!(child().wait().unwrap().success());
    let full = begun.elapsed();
    let mut killed = 0;
    for n in 0..25_u32 {
        if n % 5 == 0 {
            case.clear();
        }
        let mut process = child();
        // Spread over the whole run; later rounds have less to do.
        tokio::time::sleep(full * (n * 7 % 25 + 1) / 26).await;
        process.kill().unwrap();
        killed += u32::from(!process.wait().unwrap().success());
        if n % 5 == 4 {
            assert!(child().wait().unwrap().success());
            let bytes = std::fs::read(Path::new(&case.location).join("organic/_manifest.json")).unwrap();
            same(&Table::read(Path::new(&case.location), &serde_json::from_slice(&bytes).unwrap()), &whole);
            let strays = std::fs::read_dir(Path::new(&case.location).join("organic"))
                .unwrap()
                .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp"));
            assert_eq!(strays.count(), 0);
        }
    }
    assert!(killed > 5, "only {killed} processes were killed before they ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_from_s3_to_s3_with_faults() {
    let case = resume_case();
    let local = case.run().await;
    let server = Server::start(Faults { error: 7, stall: 41, cut: 4 }).await;
    server.bucket("ingest");
    for name in ["a.jsonl.zst", "b.jsonl.gz", "c.parquet"] {
        server.put(&format!("ingest/in/{name}"), &std::fs::read(case.dir.path().join("in").join(name)).unwrap());
    }
    let cx = context("s3://ingest/out", Arc::new(Silent));
    let source = "s3://ingest/in/*.{jsonl.zst,jsonl.gz,parquet}".into();
    let stopped = tokio::time::timeout(Duration::from_millis(1500), ingest::run(&case.config, &source, &cx)).await;
    drop(stopped);
    let manifest = ingest::run(&case.config, &source, &cx).await.unwrap();
    let table = Table::read(&server.root.path().join("ingest/out"), &manifest);
    assert_eq!(table.texts("text"), local.texts("text"));
    assert_eq!(table.failed, local.failed);
    assert_eq!(table.texts("source_uri")[0], "s3://ingest/in/a.jsonl.zst");
    assert!(manifest.inputs.keys().all(|uri| uri.starts_with("s3://ingest/in/")));
}

/// Python with pyarrow and duckdb: `REPRO_PYTHON`, else `python3`.
fn python(code: &str, argument: &str) -> Option<String> {
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = std::process::Command::new(&python).args(["-c", "import pyarrow.parquet, duckdb"]).output();
    if !has.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: {python} has no pyarrow or no duckdb (REPRO_PYTHON names another)");
        return None;
    }
    let out = std::process::Command::new(&python).args(["-c", code, argument]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}

#[tokio::test]
async fn duckdb_and_pyarrow_read_the_tables() {
    let case = Case::with(
        "a.jsonl",
        b"{\"text\":\"a\\u0000b \xc3\xa9\",\"tags\":[\"x\"],\"meta\":{\"k\":1.5},\"n\":18446744073709551615}\nbroken\n",
    );
    let wide = (0..300).map(|n| format!("{{\"text\":\"t\",\"map\":{{\"k{n}\":{n}}}}}\n")).collect::<String>();
    case.put("b.jsonl", wide.as_bytes());
    case.run().await;
    let code = "
import sys, duckdb, pyarrow.parquet as pq, pyarrow.dataset as ds
at = sys.argv[1]
first = pq.read_table(at + '/organic/part-00000-000000.parquet').to_pylist()[0]
print(repr(first['text']), first['tags'], first['meta'], first['n'], first['source_row'])
print(ds.dataset(at + '/organic').count_rows(), ds.dataset(at + '/failed').to_table().to_pylist()[0]['error'][:8])
q = lambda sql: duckdb.sql(sql.replace('T', \"'\" + at + \"/organic/*.parquet'\")).fetchall()
print(q('select text, tags, meta.k, n from T where source_row = 0 and len(tags) = 1'))
print(q('select count(*), count(distinct id) from T'), q('select map from T where map is not null limit 1'))
print(duckdb.sql(\"select stage, attempts from '\" + at + \"/failed/*.parquet'\").fetchall())
";
    let Some(out) = python(code, &case.location) else { return };
    let expected = "'a\\x00b é' ['x'] {'k': 1.5} 18446744073709551615 0\n301 not JSON\n[('a\\x00b é', ['x'], 1.5, 18446744073709551615)]\n[(301, 301)] [({'k0': 0},)]\n[('organic', 1)]\n";
    assert_eq!(out, expected);
}
