//! Locations and the commit protocol, on local directories and on S3 over HTTP.

use crate::s3::{Faults, KEY, SECRET, Server};
use arrow::{
    array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use repro::storage::{
    commit::{FailedRow, TableCommit, check_name},
    location::Location,
    manifest::{Cost, Manifest, Rows},
};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("text", DataType::Utf8, false)]))
}

/// Rows `range` with texts of `width` bytes that do not compress.
fn batch(range: std::ops::Range<i64>, width: usize) -> RecordBatch {
    let noise = |n: i64| {
        let mut text = String::new();
        while text.len() < width {
            text.push_str(&blake3_hex(n, text.len()));
        }
        text
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(range.clone())),
        Arc::new(StringArray::from_iter_values(range.map(noise))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn blake3_hex(n: i64, at: usize) -> String {
    blake3::hash(format!("{n} {at}").as_bytes()).to_hex().to_string()
}

fn facts() -> Manifest {
    Manifest {
        table: String::new(),
        key: String::new(),
        code_version: "test".to_owned(),
        schema: Vec::new(),
        rows: Rows::default(),
        files: Vec::new(),
        failed_files: Vec::new(),
        inputs: BTreeMap::new(),
        params: BTreeMap::new(),
        models: BTreeMap::new(),
        cost: Cost::default(),
    }
}

async fn fragment(commit: &TableCommit, id: &str, rows: std::ops::Range<i64>, failed: u64) {
    let mut writer = commit.fragment(id, schema()).await.unwrap();
    let input = (rows.end - rows.start) as u64 + failed;
    writer.write(&batch(rows, 20)).await.unwrap();
    for n in 0..failed {
        writer.fail(FailedRow { row_id: format!("{id}#{n}"), error: "no".to_owned(), attempts: 2 });
    }
    writer.finish(input).await.unwrap();
}

/// The numbers in the files that a manifest lists, in order.
fn numbers(dir: &Path, manifest: &Manifest) -> Vec<i64> {
    let mut out = Vec::new();
    for file in &manifest.files {
        let opened = std::fs::File::open(dir.join(&file.path)).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(opened).unwrap().build().unwrap() {
            out.extend(batch.unwrap().column(0).as_primitive::<Int64Type>().values());
        }
    }
    out
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_table_is_its_fragments_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let commit = TableCommit::begin(&location, "t", "key").await.unwrap();
    assert!(TableCommit::manifest(&location, "t").await.unwrap().is_none());
    tokio::join!(
        fragment(&commit, "01", 10..20, 3),
        fragment(&commit, "00", 0..10, 0),
        fragment(&commit, "02", 20..20, 0)
    );
    assert!(TableCommit::manifest(&location, "t").await.unwrap().is_none(), "not visible before it is published");
    let manifest = commit.publish(facts()).await.unwrap();
    assert_eq!(manifest.rows, Rows { input: 23, kept: 20, failed: 3, ..Rows::default() });
    assert_eq!(
        manifest.schema.iter().map(|c| (c.name.as_str(), c.kind.as_str())).collect::<Vec<_>>(),
        [("n", "Int64"), ("text", "Utf8")]
    );
    assert_eq!(numbers(&dir.path().join("t"), &manifest), (0..20).collect::<Vec<_>>());
    assert_eq!(
        names(&dir.path().join("t")),
        ["_fragments", "_lock", "_manifest.json", "part-00.parquet", "part-01.parquet"]
    );
    assert_eq!(names(&dir.path().join("failed")), ["t-01.parquet"]);
    let read = TableCommit::manifest(&location, "t").await.unwrap().unwrap();
    assert_eq!((read.key.as_str(), read.files, read.rows), ("key", manifest.files, manifest.rows));
    assert!(read.cost.peak_memory_bytes > 1 << 20);
}

#[tokio::test]
async fn failed_rows_are_plain_columns() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let commit = TableCommit::begin(&location, "t", "key").await.unwrap();
    fragment(&commit, "00", 0..1, 2).await;
    let opened = std::fs::File::open(dir.path().join("failed/t-00.parquet")).unwrap();
    let rows = ParquetRecordBatchReaderBuilder::try_new(opened).unwrap().build().unwrap().next().unwrap().unwrap();
    let kinds: Vec<String> = rows.schema().fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    assert_eq!(kinds, ["stage Utf8", "row_id Utf8", "error Utf8", "attempts Int32"]);
    assert_eq!(rows.column(1).as_string::<i32>().value(1), "00#1");
}

#[tokio::test]
async fn the_same_key_continues_and_strays_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let commit = TableCommit::begin(&location, "t", "key").await.unwrap();
    fragment(&commit, "00", 0..10, 1).await;
    fragment(&commit, "01", 10..20, 1).await;
    let mut half = commit.fragment("02", schema()).await.unwrap();
    half.write(&batch(20..25, 20)).await.unwrap();
    // As a kill leaves it: no destructor runs.
    std::mem::forget(half);
    drop(commit);
    let table = dir.path().join("t");
    // A data file whose record was never written, one that was cut after its record, and a record that was cut.
    std::fs::write(table.join("part-03.parquet"), b"PAR1").unwrap();
    std::fs::write(table.join("part-01.parquet"), b"PAR1").unwrap();
    std::fs::write(table.join("_fragments/.05.json.1-1.tmp"), b"{").unwrap();
    std::fs::write(table.join("_fragments/04.json"), b"{").unwrap();
    std::fs::write(dir.path().join("failed/other-00.parquet"), b"").unwrap();
    // The forgotten writer still holds the lock in this process, so free it as the death of the process would.
    std::fs::remove_file(table.join("_lock")).unwrap();
    let commit = TableCommit::begin(&location, "t", "key").await.unwrap();
    assert!(commit.done("00").is_some());
    assert!(
        commit.done("01").is_none()
            && commit.done("02").is_none()
            && commit.done("03").is_none()
            && commit.done("04").is_none()
    );
    assert_eq!(names(&table), ["_fragments", "_lock", "part-00.parquet"]);
    assert_eq!(names(&table.join("_fragments")), ["00.json", "_begun.json"]);
    assert_eq!(names(&dir.path().join("failed")), ["other-00.parquet", "t-00.parquet"]);
    fragment(&commit, "01", 10..20, 1).await;
    fragment(&commit, "02", 20..25, 0).await;
    let manifest = commit.publish(facts()).await.unwrap();
    assert_eq!(numbers(&table, &manifest), (0..25).collect::<Vec<_>>());
    assert_eq!(manifest.rows, Rows { input: 27, kept: 25, failed: 2, ..Rows::default() });
}

#[tokio::test]
async fn another_key_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let commit = TableCommit::begin(&location, "t", "old").await.unwrap();
    fragment(&commit, "00", 0..10, 1).await;
    commit.publish(facts()).await.unwrap();
    let commit = TableCommit::begin(&location, "t", "new").await.unwrap();
    assert!(commit.done("00").is_none());
    assert_eq!(names(&dir.path().join("t")), ["_fragments", "_lock"]);
    assert!(names(&dir.path().join("failed")).is_empty());
    fragment(&commit, "00", 0..5, 0).await;
    let manifest = commit.publish(facts()).await.unwrap();
    assert_eq!((manifest.key.as_str(), manifest.rows.kept), ("new", 5));
    TableCommit::remove(&location, "t").await.unwrap();
    assert!(TableCommit::begin(&location, "t", "new").await.unwrap().done("00").is_none());
}

#[tokio::test]
async fn an_empty_table_shows_its_columns() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let commit = TableCommit::begin(&location, "t", "key").await.unwrap();
    fragment(&commit, "00", 0..0, 0).await;
    fragment(&commit, "01", 0..0, 2).await;
    let manifest = commit.publish(facts()).await.unwrap();
    assert_eq!(manifest.files.iter().map(|f| (f.path.as_str(), f.rows)).collect::<Vec<_>>(), [("part-00.parquet", 0)]);
    assert_eq!(numbers(&dir.path().join("t"), &manifest), [0; 0]);
}

#[tokio::test]
async fn rows_that_do_not_add_up_are_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let commit = TableCommit::begin(&location, "t", "key").await.unwrap();
    fragment(&commit, "00", 0..10, 0).await;
    let given = Manifest { rows: Rows { dropped: 1, ..Rows::default() }, ..facts() };
    let error = commit.publish(given).await.unwrap_err().to_string();
    assert!(error.contains("do not add up: input 10 + created 0 is not kept 10 + dropped 1 + failed 0"), "{error}");
    assert!(TableCommit::manifest(&location, "t").await.unwrap().is_none());
}

#[tokio::test]
async fn a_second_writer_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let first = TableCommit::begin(&location, "t", "key").await.unwrap();
    let error = TableCommit::begin(&location, "t", "key").await.unwrap_err().to_string();
    assert!(error.contains(&format!("another run (process {}) is writing", std::process::id())), "{error}");
    drop(first);
    TableCommit::begin(&location, "t", "key").await.unwrap();
}

#[tokio::test]
async fn files_of_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("t")).unwrap();
    std::fs::write(dir.path().join("t/part-00.parquet"), b"precious").unwrap();
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let error = TableCommit::begin(&location, "t", "key").await.unwrap_err().to_string();
    assert!(error.contains("part-00.parquet"), "{error}");
    assert_eq!(std::fs::read(dir.path().join("t/part-00.parquet")).unwrap(), b"precious");
}

#[tokio::test]
async fn names_stay_inside_the_location() {
    for bad in ["", "..", "a/b", "../x", "a-b", "_x", "1a", "failed", "models", "a b", "ä"] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
    check_name("Organic_hq2").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    let location = Location::parse(inside.to_str().unwrap()).unwrap();
    location.write("a/../../x", "y".into()).await.unwrap();
    assert!(inside.join("a").is_dir() && !dir.path().join("x").exists());
    assert_eq!(location.read("a/../../x").await.unwrap().unwrap(), "y");
    assert!(location.read("nothing").await.unwrap().is_none());
    location.delete("nothing").await.unwrap();
    for bad in ["", "http://x/y", "hf://x", "s3://", "s3://bad bucket/x"] {
        assert!(Location::parse(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn patterns_find_files_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    for name in
        ["b.jsonl", "a.jsonl", "sub/c.jsonl", "sub/_x.jsonl", ".hidden.jsonl", "odd {1}#%20.jsonl", "_manifest.json"]
    {
        std::fs::create_dir_all(Path::new(&at(name)).parent().unwrap()).unwrap();
        std::fs::write(at(name), name).unwrap();
    }
    let found = async |pattern: &str| -> Vec<String> {
        let files = Location::expand(&at(pattern)).await.unwrap();
        files.iter().map(|(l, m)| format!("{} {}", l.to_string().replace(&at(""), ""), m.size)).collect()
    };
    assert_eq!(found("*.jsonl").await, ["a.jsonl 7", "b.jsonl 7", "odd {1}#%20.jsonl 17"]);
    assert_eq!(found("").await, ["a.jsonl 7", "b.jsonl 7", "odd {1}#%20.jsonl 17", "sub/c.jsonl 11"]);
    assert_eq!(found("**/*.jsonl").await, ["a.jsonl 7", "b.jsonl 7", "odd {1}#%20.jsonl 17", "sub/c.jsonl 11"]);
    assert_eq!(found("{b,sub/c,a}.jsonl").await, ["a.jsonl 7", "b.jsonl 7", "sub/c.jsonl 11"]);
    assert_eq!(found("odd {1}#%20.jsonl").await, ["odd {1}#%20.jsonl 17"]);
    let (location, _) = Location::expand(&at("odd*")).await.unwrap().remove(0);
    assert_eq!(std::fs::read_to_string(location.local().unwrap()).unwrap(), "odd {1}#%20.jsonl");
    let error = format!("{:#}", Location::expand(&at("*.parquet")).await.unwrap_err());
    assert!(error.contains("no file matches") && error.contains("*.parquet"), "{error}");
}

/// A small file system of its own, or None where that needs rights that the test has not.
fn small_disk(dir: &Path, bytes: u64) -> Option<()> {
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
        .arg(dir)
        .output();
    mount.ok().filter(|out| out.status.success()).map(drop)
}

#[tokio::test]
async fn a_full_disk_is_named_and_leaves_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    let Some(()) = small_disk(dir.path(), 2 << 20) else {
        eprintln!("skipped: this process may not mount a small file system");
        return;
    };
    let location = Location::parse(dir.path().to_str().unwrap()).unwrap();
    let commit = TableCommit::begin(&location, "t", "key").await.unwrap();
    fragment(&commit, "00", 0..10, 0).await;
    let mut writer = commit.fragment("01", schema()).await.unwrap();
    let mut failure = None;
    for n in 0..10 {
        if let Err(e) = writer.write(&batch(n * 500..(n + 1) * 500, 2000)).await {
            failure = Some(e);
            break;
        }
    }
    let error = match failure {
        Some(e) => e,
        None => writer.finish(5000).await.unwrap_err(),
    };
    let error = format!("{error:#}");
    let left = names(&dir.path().join("t"));
    drop(commit);
    let again = TableCommit::begin(&location, "t", "key").await;
    let kept = again.as_ref().is_ok_and(|c| c.done("00").is_some() && c.done("01").is_none());
    drop(again);
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(
        error.contains("part-01.parquet") && error.contains("No space left") && error.contains("free some space"),
        "{error}"
    );
    assert!(!left.iter().any(|n| n == "part-01.parquet"), "{left:?}");
    assert!(kept);
}

async fn commit_on_s3(location: &Location, stop_after: usize) -> Option<Manifest> {
    let commit = TableCommit::begin(location, "t", "key").await.unwrap();
    let mut made = 0;
    for n in 0..3 {
        let id = format!("{n:02}");
        if commit.done(&id).is_some() {
            continue;
        }
        if made == stop_after {
            return None;
        }
        let mut writer = commit.fragment(&id, schema()).await.unwrap();
        // Together more than two parts of an upload; the texts do not compress.
        for part in 0..5 {
            let from = n * 1000 + part * 200;
            writer.write(&batch(from..from + 200, 40_000)).await.unwrap();
        }
        writer.fail(FailedRow { row_id: format!("{n}"), error: "no".to_owned(), attempts: 1 });
        writer.finish(1001).await.unwrap();
        made += 1;
    }
    Some(commit.publish(facts()).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_tables_commit_and_resume() {
    let server = Server::start(Faults::default()).await;
    server.bucket("commit");
    let location = Location::parse("s3://commit/some/prefix").unwrap();
    assert!(commit_on_s3(&location, 1).await.is_none());
    server.put("commit/some/prefix/t/part-01.parquet", b"without a record");
    let manifest = commit_on_s3(&location, 9).await.unwrap();
    let dir = server.root.path().join("commit/some/prefix/t");
    assert_eq!(numbers(&dir, &manifest), (0..3000).collect::<Vec<_>>());
    assert_eq!(manifest.rows, Rows { input: 3003, kept: 3000, failed: 3, ..Rows::default() });
    assert!(
        manifest
            .files
            .iter()
            .all(|f| std::fs::metadata(dir.join(&f.path)).unwrap().len() == f.bytes && f.bytes > 16 << 20)
    );
    let parts = Location::expand("s3://commit/some/*/t/part-*.parquet").await.unwrap();
    assert_eq!(
        parts.iter().map(|(l, _)| l.to_string()).collect::<Vec<_>>(),
        [0, 1, 2].map(|n| format!("s3://commit/some/prefix/t/part-0{n}.parquet"))
    );
    assert_eq!(Location::expand("s3://commit/some/prefix/t/").await.unwrap().len(), 3, "hidden files are left out");
    let commit = TableCommit::begin(&location, "t", "other").await.unwrap();
    assert!(commit.done("00").is_none());
    assert_eq!(names(&dir), ["_fragments"]);
    assert!(names(&server.root.path().join("commit/some/prefix/failed")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_faults_now_and_then_are_survived() {
    let server = Server::start(Faults { error: 5, stall: 17, cut: 3 }).await;
    server.bucket("faulty");
    let location = Location::parse("s3://faulty/x").unwrap();
    let manifest = commit_on_s3(&location, 9).await.unwrap();
    assert_eq!(numbers(&server.root.path().join("faulty/x/t"), &manifest), (0..3000).collect::<Vec<_>>());
    assert!(server.requests.load(std::sync::atomic::Ordering::Relaxed) > 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_trouble_is_explained() {
    let server = Server::start(Faults::default()).await;
    let error = async |place: &str| -> String {
        let error = TableCommit::begin(&Location::parse(place).unwrap(), "t", "key").await.unwrap_err();
        let text = format!("{error:#}");
        assert!(!text.contains(SECRET), "{text}");
        text
    };
    server.reach("nowhere", KEY, SECRET);
    let text = error("s3://nowhere/x").await;
    assert!(
        text.contains("s3://nowhere") && text.contains(&server.endpoint) && text.contains("the bucket does not exist"),
        "{text}"
    );
    let text = format!("{:#}", Location::expand("s3://nowhere/*.jsonl").await.unwrap_err());
    assert!(text.contains("the bucket does not exist"), "{text}");
    server.bucket("closed");
    server.reach("closed", KEY, "wrong");
    let text = error("s3://closed/x").await;
    assert!(
        text.contains("s3://closed")
            && text.contains("refused the credentials")
            && text.contains("AWS_SECRET_ACCESS_KEY"),
        "{text}"
    );
    server.reach("closed", "nobody", SECRET);
    let text = error("s3://closed/x").await;
    assert!(text.contains("refused the credentials"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_s3_server_fails_in_bounded_time() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let settings = [("endpoint", endpoint.as_str()), ("access_key_id", "k"), ("secret_access_key", "s")];
    repro::storage::s3::configure("dead", &settings).unwrap();
    let begun = Instant::now();
    let error = TableCommit::begin(&Location::parse("s3://dead/x").unwrap(), "t", "key").await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("s3://dead") && text.contains(&endpoint), "{text}");
    assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
}
