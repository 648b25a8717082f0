//! The `pack` stage: the reference's token stream and contexts, the same table whatever the memory and the interruptions, bad input, S3, and
//! the export read back with Python.

use crate::s3::{Faults, Server};
use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int32Type, Int64Type, Schema, UInt16Type},
};
use md5::{Digest, Md5};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use repro::{
    pipeline::stage::{StageContext, pack, sql::InputTable},
    storage::{
        commit::TableCommit,
        location::Location,
        manifest::{Manifest, Rows},
    },
    text::{
        pack::Facts,
        tokenizer::{Special, Tokenizer},
    },
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const POCKET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pocket-rephraser");

/// Data that is not part of the project; None, with a line, where it is not here.
fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let data = std::env::var_os("REPRO_SHARED").map_or(beside, PathBuf::from).join("data");
    if !data.is_dir() {
        eprintln!("skipped: ../shared/data (or REPRO_SHARED) is not here");
        return None;
    }
    Some(data)
}

/// A finished table of texts with ids `d0`, `d1`, …, in files of `per_file` rows.
async fn table(location: &Location, name: &str, texts: &[Option<String>], per_file: usize) {
    let field = |name: &str| Field::new(name, DataType::Utf8, true);
    let schema = Arc::new(Schema::new(vec![field("id"), field("text")]));
    let commit = TableCommit::begin(location, name, "key").await.unwrap();
    let mut row = 0;
    for (file, part) in texts.chunks(per_file).enumerate() {
        let mut writer = commit.fragment(&format!("{file:03}"), schema.clone()).await.unwrap();
        let ids: StringArray = (row..row + part.len()).map(|n| Some(format!("d{n}"))).collect();
        let texts: StringArray = part.iter().map(Option::as_deref).collect();
        let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(texts)];
        writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).await.unwrap();
        writer.finish(part.len() as u64).await.unwrap();
        row += part.len();
    }
    commit.publish(Manifest::describe(&context(location, name))).await.unwrap();
}

fn context(location: &Location, output: &str) -> StageContext {
    StageContext { inputs: BTreeMap::new(), ..crate::train::context(location, output) }
}

fn config(changes: Value) -> pack::Config {
    let mut config = json!({"tables": "texts", "tokenizer": POCKET, "context": 17});
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

async fn run(location: &Location, output: &str, config: &pack::Config) -> anyhow::Result<Manifest> {
    let texts = InputTable::Managed { location: location.clone(), table: "texts".to_owned() };
    pack::run(config, &[("texts".to_owned(), texts)], &context(location, output)).await
}

/// A context: tokens, tokens that are not padding, spans of (id, start, offset, length).
type Row = (Vec<u16>, i32, Vec<(String, i64, i32, i32)>);

fn rows(directory: &Path, manifest: &Manifest) -> Vec<Row> {
    let mut rows = Vec::new();
    for file in &manifest.files {
        let file = fs::File::open(directory.join(&file.path)).unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let (tokens, spans) = (batch.column(0).as_fixed_size_list(), batch.column(2).as_list::<i32>());
            let lengths = batch.column(1).as_primitive::<Int32Type>();
            for i in 0..batch.num_rows() {
                let span = spans.value(i);
                let span = span.as_struct();
                let (ids, starts) = (span.column(0).as_string::<i32>(), span.column(1).as_primitive::<Int64Type>());
                let (offsets, sizes) =
                    (span.column(2).as_primitive::<Int32Type>(), span.column(3).as_primitive::<Int32Type>());
                let spans = (0..span.len())
                    .map(|s| (ids.value(s).to_owned(), starts.value(s), offsets.value(s), sizes.value(s)))
                    .collect();
                rows.push((tokens.value(i).as_primitive::<UInt16Type>().values().to_vec(), lengths.value(i), spans));
            }
        }
    }
    rows
}

fn facts(manifest: &Manifest) -> Facts {
    serde_json::from_value(json!(manifest.params)).unwrap()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

/// Texts of many lengths, some empty, some missing.
fn many(count: usize) -> Vec<Option<String>> {
    let word = |n: usize| ["rain", " on the", " plain", "\n", " 42", "!", "  ", "é"][n % 8];
    let text = |i: usize| (0..(i * 7919) % 61).map(|n| word(n * 31 + i)).collect::<String>();
    (0..count).map(|i| (i % 97 != 5).then(|| text(i))).collect()
}

struct Case {
    home: tempfile::TempDir,
    location: Location,
}

impl Case {
    async fn new(texts: &[Option<String>], per_file: usize) -> Self {
        let home = tempfile::tempdir().unwrap();
        let location = Location::parse(home.path().to_str().unwrap()).unwrap();
        table(&location, "texts", texts, per_file).await;
        Self { home, location }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
    async fn rows(&self, output: &str, changes: Value) -> Vec<Row> {
        let manifest = run(&self.location, output, &config(changes)).await.unwrap();
        rows(&self.path(output), &manifest)
    }
}

#[tokio::test]
async fn contexts_spans_and_facts_by_hand() {
    let case = Case::new(&[Some("rain".into()), None, Some(String::new()), Some("rain rain".into())], 10).await;
    let tokenizer = Tokenizer::from_dir(Path::new(POCKET)).unwrap();
    let ids = |text| tokenizer.encode(text, Special::Plain).unwrap().into_iter().map(|t| t as u16).collect::<Vec<_>>();
    let (end, pad) = (tokenizer.id("<|end|>").unwrap() as u16, tokenizer.id("<|pad|>").unwrap() as u16);
    let stream = [ids("rain"), vec![end, end], ids("rain rain"), vec![end]].concat();
    assert!(stream.len() > 6 && stream.len() < 17);
    let first = ids("rain").len() as i32 + 1;
    let manifest = run(&case.location, "packed", &config(json!({"shuffle": false}))).await.unwrap();
    let mut tokens = stream.clone();
    tokens.resize(17, pad);
    let last = stream.len() as i32 - first - 1;
    let spans = vec![("d0".into(), 0, 0, first), ("d2".into(), 0, first, 1), ("d3".into(), 0, first + 1, last)];
    assert_eq!(rows(&case.path("packed"), &manifest), [(tokens, stream.len() as i32, spans)]);
    assert_eq!(manifest.rows, Rows { input: 4, kept: 1, dropped: 3, ..Rows::default() });
    let found = facts(&manifest);
    let file = fs::read(format!("{POCKET}/tokenizer.json")).unwrap();
    assert_eq!(found.tokenizer_hash, blake3::hash(&file).to_hex().to_string());
    assert_eq!((found.documents, found.without_text, found.contexts, found.units), (3, 1, 1, 1));
    assert_eq!((found.tokens, found.padding), (stream.len() as u64, 17 - stream.len() as u64));
    assert_eq!((found.eot, found.pad, found.context), (u32::from(end), u32::from(pad), 17));
    assert_eq!(fs::read(case.path("packed/_tokenizer.json")).unwrap(), file);
    assert!(!case.path("packed/_spill").exists(), "the runs are gone");
}

#[tokio::test]
async fn the_shuffle_moves_contexts_and_changes_none() {
    let case = Case::new(&many(3000), 400).await;
    let plain = case.rows("plain", json!({"shuffle": false})).await;
    let shuffled = case.rows("shuffled", json!({})).await;
    assert!(plain.len() > 1000 && plain != shuffled);
    let sorted = |mut rows: Vec<Row>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(plain.clone()), sorted(shuffled.clone()));
    let other = case.rows("other", json!({"seed": 12})).await;
    assert!(other != shuffled);
    assert_eq!(sorted(other), sorted(plain));
    assert_eq!(case.rows("same", json!({"seed": 11})).await, shuffled);
}

#[tokio::test]
async fn memory_and_interruptions_change_nothing() {
    let case = Case::new(&many(6000), 1000).await;
    let whole = case.rows("whole", json!({"unit_rows": 300})).await;
    let config = config(json!({"unit_rows": 300, "memory_mib": 256}));
    // Stopped after more and more rows until it comes through.
    struct StopAfter(std::sync::atomic::AtomicI64, CancellationToken);
    impl repro::pipeline::stage::Progress for StopAfter {
        fn begin(&self, _: &str, _: Option<u64>, _: u64, _: &'static str) {}
        fn advance(&self, _: &str, n: u64, _: &str) {
            if self.0.fetch_sub(n as i64, std::sync::atomic::Ordering::Relaxed) < 0 {
                self.1.cancel();
            }
        }
        fn end(&self, _: &str, _: Option<&Manifest>) {}
    }
    let mut stopped = 0;
    let manifest = loop {
        let mut cx = context(&case.location, "packed");
        cx.progress = Arc::new(StopAfter((700 * (stopped + 1)).into(), cx.cancel.clone()));
        let texts = InputTable::Managed { location: case.location.clone(), table: "texts".to_owned() };
        match pack::run(&config, &[("texts".to_owned(), texts)], &cx).await {
            Ok(manifest) => break manifest,
            Err(error) => assert!(format!("{error:#}").contains("stopped"), "{error:#}"),
        }
        stopped += 1;
    };
    assert!(stopped >= 2, "stopped {stopped} times");
    assert_eq!(rows(&case.path("packed"), &manifest), whole);
    assert_eq!(facts(&manifest).units, 24);
}

#[tokio::test]
async fn the_reference_token_stream_and_contexts() {
    let Some(data) = shared() else { return };
    let golden: Value = serde_json::from_str(include_str!("../golden/pack.json")).unwrap();
    let texts = reference_documents(&data);
    let hash = |bytes: &[u8]| format!("{:x}", Md5::digest(bytes));
    assert_eq!(hash(texts.join("\0").as_bytes()), golden["documents_md5"], "the documents are others");
    let texts: Vec<Option<String>> = texts.into_iter().map(Some).collect();
    let case = Case::new(&texts, 3000).await;
    let ranks = data.join("tokenizer/gpt_neox_20b.tiktoken");
    let common = json!({"tokenizer": ranks, "context": 2049, "unit_rows": 1000, "eot": 0, "pad": 50256});
    let with = |more: Value| {
        let mut all = common.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let bytes = |row: &Row| row.0.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>();
    let plain = case.rows("plain", with(json!({"shuffle": false}))).await;
    let mut at = 0;
    for unit in golden["units"].as_array().unwrap() {
        let count = unit["contexts"].as_u64().unwrap() as usize;
        let rows = &plain[at..at + count];
        assert_eq!(rows.iter().map(|r| r.1 as u64).sum::<u64>(), unit["tokens"].as_u64().unwrap());
        assert_eq!(
            hash(&rows.iter().flat_map(bytes).collect::<Vec<u8>>()),
            unit["md5"],
            "contexts {at} to {}",
            at + count
        );
        at += count;
    }
    assert_eq!(at, plain.len());
    let mut shuffled: Vec<Vec<u8>> = case.rows("packed", with(json!({}))).await.iter().map(bytes).collect();
    assert!(shuffled != plain.iter().map(bytes).collect::<Vec<_>>());
    shuffled.sort();
    assert_eq!(hash(&shuffled.concat()), golden["sorted_contexts_md5"]);
}

/// As tests/golden/pack.py reads them.
fn reference_documents(data: &Path) -> Vec<String> {
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let mut texts: Vec<String> = vec![
        String::new(),
        " ".into(),
        "<|endoftext|>".into(),
        "a".repeat(5000),
        format!("{}x{}", " ".repeat(1030), "\n".repeat(77)),
        "日本語 \u{1f600}\u{200d} \u{a0}\u{3000}x".into(),
        "''s 'll'".into(),
        "\r\n\t \u{2028}end ".into(),
    ];
    for name in ["dclm/low_score_500.jsonl", "prose/pubmed.jsonl"] {
        let text = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
        texts.extend(read(&data.join(name)).lines().map(text));
    }
    let mut core: Vec<PathBuf> = fs::read_dir(data.join("core")).unwrap().map(|e| e.unwrap().path()).collect();
    core.sort();
    let lines = |path: &Path, most: usize| -> Vec<String> {
        read(path).split('\n').filter(|l| !l.trim().is_empty()).take(most).map(str::to_owned).collect()
    };
    texts.extend(lines(&data.join("prose/wikitext2_a.txt"), 1500));
    texts.extend(core.iter().flat_map(|path| lines(path, 160)));
    texts.truncate(5008);
    texts
}

#[test]
fn ids_are_those_of_tiktoken_and_of_the_tokenizers_crate() {
    let Some(data) = shared() else { return };
    let golden: Value = serde_json::from_str(include_str!("../golden/pack.json")).unwrap();
    let ranks = Tokenizer::from_dir(&data.join("tokenizer/gpt_neox_20b.tiktoken")).unwrap();
    assert!(ranks.is_fast());
    let mut encoder = ranks.encoder();
    for case in golden["awkward"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let mut ids = Vec::new();
        encoder.encode(text, &mut ids).unwrap();
        assert_eq!(ids, expected, "{text:?}");
        assert_eq!(ranks.encode(text, Special::Plain).unwrap(), expected, "tokenizer.json of the ranks: {text:?}");
    }
    for text in reference_documents(&data).iter().filter(|t| t.len() < 4000).step_by(3) {
        let mut ids = Vec::new();
        encoder.encode(text, &mut ids).unwrap();
        assert_eq!(ids, ranks.encode(text, Special::Plain).unwrap(), "tokenizer.json of the ranks: {text:?}");
    }
}

#[tokio::test]
async fn very_long_and_empty_documents() {
    // About five million tokens in one document without a space, and many without any.
    let mut texts = vec![Some("ab1".repeat(2_600_000))];
    texts.extend(vec![Some(String::new()); 300]);
    let case = Case::new(&texts, 1000).await;
    let manifest = run(&case.location, "packed", &config(json!({"context": 2049}))).await.unwrap();
    let found = facts(&manifest);
    assert!(found.tokens > 5_000_000, "{}", found.tokens);
    let rows = rows(&case.path("packed"), &manifest);
    let ends: usize = rows.iter().flat_map(|r| &r.0).filter(|t| u32::from(**t) == found.eot).count();
    assert_eq!(ends, 301);
    let mut long: Vec<(i64, i32)> =
        rows.iter().flat_map(|r| &r.2).filter(|s| s.0 == "d0").map(|s| (s.1, s.3)).collect();
    long.sort_unstable();
    let end = long.iter().fold(0, |at, (start, length)| {
        assert_eq!(*start, at, "parts of the long document follow each other");
        at + i64::from(*length)
    });
    assert_eq!(end as u64, found.tokens - 300);
}

#[tokio::test]
async fn no_documents_make_an_empty_table() {
    let case = Case::new(&[], 10).await;
    let manifest = run(&case.location, "packed", &config(json!({"export": "webdataset"}))).await.unwrap();
    assert_eq!((manifest.rows.input, manifest.rows.kept), (0, 0));
    assert_eq!(manifest.schema[0].name, "tokens");
}

#[tokio::test]
async fn bad_settings_are_refused() {
    let case = Case::new(&some(&["a"]), 10).await;
    let wide = case.path("wide.tiktoken");
    fs::write(&wide, "IQ== 0\nIg== 1\n").unwrap();
    let empty = case.path("empty");
    fs::create_dir(&empty).unwrap();
    for (changes, expected) in [
        (json!({"column": "body"}), "there is no column `body`; the table has id, text"),
        (json!({"id": "url"}), "there is no column `url`"),
        (json!({"eot": "<|none|>"}), "`eot: <|none|>`: the tokenizer"),
        (json!({"pad": 70_000}), "`pad: 70000` is not a token: the tokenizer's ids are 0 to 4095"),
        (json!({"tokenizer": wide}), "no token for some byte"),
        (json!({"tokenizer": empty}), "tokenizer.json: missing"),
        (json!({"tokenizer": case.path("no.tiktoken")}), "no such file"),
        (json!({"context": 1}), "context 1 is not in 2..="),
        (json!({"memory_mib": 1}), "memory_mib 1 is too little"),
        (json!({"unit_rows": 0}), "unit_rows is 0"),
    ] {
        let error = run(&case.location, "packed", &config(changes.clone())).await.unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{changes}: {error:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_table_on_s3() {
    let case = Case::new(&many(2000), 300).await;
    let local = case.rows("packed", json!({"export": "webdataset", "shard_contexts": 500})).await;
    let server = Server::start(Faults { error: 11, stall: 0, cut: 7 }).await;
    server.bucket("pack");
    let location = Location::parse("s3://pack/out").unwrap();
    table(&location, "texts", &many(2000), 300).await;
    let manifest =
        run(&location, "packed", &config(json!({"export": "webdataset", "shard_contexts": 500}))).await.unwrap();
    let directory = server.root.path().join("pack/out/packed");
    assert_eq!(rows(&directory, &manifest), local);
    let read = |name: &str| fs::read(directory.join("webdataset").join(name)).unwrap();
    for name in ["manifest.jsonl", "shard_00000000.tar", "shard_00000001.tar"] {
        assert_eq!(read(name), fs::read(case.path("packed/webdataset").join(name)).unwrap(), "{name}");
    }
    assert!(location.join("packed/_spill").list().await.unwrap().is_empty());
}

#[tokio::test]
async fn python_reads_every_exported_context() {
    let case = Case::new(&many(2000), 300).await;
    let expected = case.rows("packed", json!({"export": "webdataset", "shard_contexts": 500})).await;
    // The manifest is read as open_lm reads it: cut at line feeds, the last part thrown away.
    let code = "
import gzip, json, sys, tarfile
at = sys.argv[1] + '/'
shards = [json.loads(line) for line in open(at + 'manifest.jsonl').read().split('\\n')[:-1]]
contexts = []
for shard in shards:
    with tarfile.open(at + shard['shard'] + '.tar') as tar:
        members = [m for m in tar if m.name.endswith('.json.gz')]
        assert len(members) == shard['num_sequences']
        contexts += [json.loads(gzip.decompress(tar.extractfile(m).read())) for m in members]
print(members[0].name, file=sys.stderr)
print(json.dumps([len(shards), contexts]))
";
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let Ok(out) = Command::new(&python).args(["-c", code]).arg(case.path("packed/webdataset")).output() else {
        eprintln!("skipped: there is no {python} (REPRO_PYTHON names another)");
        return;
    };
    let shown = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{shown}");
    let (shards, contexts): (usize, Vec<Vec<u16>>) = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(shards, expected.len().div_ceil(500));
    assert_eq!(contexts, expected.into_iter().map(|row| row.0).collect::<Vec<_>>());
    let name = regex::Regex::new(
        r"^0{8}[0-9]_?[0-9]*_[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}\.json\.gz",
    )
    .unwrap();
    assert!(shown.starts_with(&format!("{:08}_00000000_", shards - 1)) || name.is_match(&shown), "{shown}");
}

/// `REPRO_KILLS` sets the number of kills.
#[test]
fn a_killed_pack_continues_to_the_same_contexts() {
    let kills: u32 = std::env::var("REPRO_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let home = tempfile::tempdir().unwrap();
    let lines: String = many(4000).iter().flatten().map(|text| format!("{}\n", json!({"text": text}))).collect();
    fs::write(home.path().join("texts.jsonl"), lines).unwrap();
    let pipeline = format!(
        "location: out\nsources: {{ raw: {{ path: texts.jsonl }} }}\nstages:\n  - table: texts\n    ingest: {{ source: raw, fragment_rows: 500 }}\n  \
         - table: packed\n    pack: {{ tables: texts, tokenizer: {POCKET}, context: 33, unit_rows: 400, export: webdataset, shard_contexts: 300 }}\n"
    );
    fs::write(home.path().join("p.yaml"), pipeline).unwrap();
    let command = |location: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
        command.current_dir(home.path()).args(["run", "p.yaml", "--set", &format!("location={location}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let finish = |location: &str| {
        let out = command(location).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let directory = home.path().join(location).join("packed");
        let manifest: Manifest = serde_json::from_slice(&fs::read(directory.join("_manifest.json")).unwrap()).unwrap();
        assert!(!directory.join("_spill").exists());
        let mut tars: Vec<(String, Vec<u8>)> = fs::read_dir(directory.join("webdataset"))
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).unwrap()))
            .filter(|(name, _)| name != "_key")
            .collect();
        tars.sort();
        (rows(&directory, &manifest), facts(&manifest), tars)
    };
    let begin = Instant::now();
    let expected = finish("undisturbed");
    let whole = begin.elapsed();
    for kill in 0..kills {
        let location = format!("killed-{kill}");
        for again in 0..=kill % 2 {
            let mut child = command(&location).spawn().unwrap();
            let share = (f64::from(kill + again * kills) * 0.618_034 + 0.3).fract();
            std::thread::sleep(whole.mul_f64(share).max(Duration::from_millis(5)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(finish(&location) == expected, "kill {kill}");
    }
}
