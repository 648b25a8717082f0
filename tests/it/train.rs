//! The stages that make models: `tokenizer`, `sft`, `fasttext`, over tables of a pipeline location. What a model directory holds, that
//! a killed training continues to the same weights, that bad input is refused with a clear message, and that transformers
//! and the Python fastText package read the results (skipped with a line where they are absent).

use crate::device::{device, exact};
use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use repro::{
    pipeline::stage::{Progress, Silent, StageContext, fasttext, sft, sql::InputTable, tokenizer},
    storage::{
        commit::TableCommit,
        location::Location,
        manifest::{Manifest, ModelManifest, Rows},
    },
    udf::models::Models,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

/// A finished table of text columns.
pub async fn table(location: &Location, name: &str, columns: &[&str], rows: &[Vec<Option<String>>]) {
    let fields: Vec<Field> = columns.iter().map(|c| Field::new(*c, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let commit = TableCommit::begin(location, name, "key").await.unwrap();
    // two files, so that a table is more than its first
    for (i, part) in rows.chunks(rows.len().div_ceil(2).max(1)).enumerate() {
        let mut writer = commit.fragment(&format!("{i:03}"), schema.clone()).await.unwrap();
        let arrays: Vec<ArrayRef> = (0..columns.len())
            .map(|c| Arc::new(part.iter().map(|row| row[c].as_deref()).collect::<StringArray>()) as ArrayRef)
            .collect();
        writer.write(&RecordBatch::try_new(schema.clone(), arrays).unwrap()).await.unwrap();
        writer.finish(part.len() as u64).await.unwrap();
    }
    let n = rows.len() as u64;
    let manifest = Manifest {
        table: name.to_owned(),
        key: "key".to_owned(),
        code_version: "1".to_owned(),
        schema: Vec::new(),
        rows: Rows { input: n, kept: n, ..Rows::default() },
        files: Vec::new(),
        failed_files: Vec::new(),
        inputs: BTreeMap::new(),
        params: BTreeMap::new(),
        models: BTreeMap::new(),
        cost: Default::default(),
    };
    commit.publish(manifest).await.unwrap();
}

pub fn context(location: &Location, output: &str) -> StageContext {
    StageContext {
        external: BTreeMap::new(),
        location: location.clone(),
        output: output.to_owned(),
        key: format!("key-of-{output}"),
        seed: 11,
        params: BTreeMap::new(),
        models: Models::new(BTreeMap::new(), 11),
        progress: Arc::new(Silent),
        cancel: CancellationToken::new(),
        inputs: BTreeMap::from([("pairs".to_owned(), "hash".to_owned())]),
        model_hashes: BTreeMap::new(),
        code_version: "1".to_owned(),
    }
}

pub fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Pages whose first line is clutter; two of them cannot be used.
fn pairs() -> Vec<Vec<Option<String>>> {
    let things = ["rain", "river", "plain", "harbour", "mill", "orchard"];
    let mut rows: Vec<_> = (0..90)
        .map(|i| {
            let clean = format!("The {} is by the {} {}.", things[i % 6], things[i / 6 % 6], i % 10);
            vec![some(&format!("Home | Login\n{clean}")), some(&clean)]
        })
        .collect();
    rows[4] = vec![some("no answer"), None];
    rows[60] = vec![some(&"long ".repeat(400)), some("long")];
    rows
}

/// A location with a table of pairs and a tokenizer trained on it.
pub async fn prepared(home: &Path) -> Location {
    let location = Location::parse(home.to_str().unwrap()).unwrap();
    let rows = pairs();
    table(&location, "pairs", &["prompt", "completion"], &rows).await;
    let texts: Vec<_> = rows.iter().map(|row| vec![row[0].clone()]).collect();
    table(&location, "texts", &["text"], &texts).await;
    let config: tokenizer::Config = serde_json::from_value(json!({"table": "texts", "vocab_size": 300})).unwrap();
    let manifest = tokenizer::run(&config, &context(&location, "words")).await.unwrap();
    assert_eq!(manifest.rows, Rows { input: 90, kept: 90, ..Rows::default() });
    assert_eq!(manifest.figures["vocab_size"], 300.0);
    location
}

pub fn sft_config(changes: &[(&str, Value)]) -> sft::Config {
    let mut config = json!({
        "init": {
            "architecture": "qwen3", "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64,
            "tokenizer": "words", "init_std": 0.1
        },
        "pairs": "pairs", "held_out": "pairs", "steps": 30, "learning_rate": 0.01, "warmup_steps": 3,
        "batch_tokens": 512, "micro_batch_tokens": 256, "max_length": 200, "precision": "f32", "export": "f32",
        "threads": 1, "checkpoint_every": 7, "log_every": 5, "device": device(),
        "copy_warmup": {"start_length": 2, "longest": 4, "threshold": 5.5},
        "settings": {"temperature": 0.0, "chunk_chars": 300}
    });
    for (key, value) in changes {
        config[key] = value.clone();
    }
    serde_json::from_value(config).unwrap()
}

pub fn read(home: &Path, model: &str, file: &str) -> Vec<u8> {
    std::fs::read(home.join("models").join(model).join(file)).unwrap()
}

#[tokio::test]
async fn a_new_model_in_hugging_face_layout() {
    let home = tempfile::tempdir().unwrap();
    let location = prepared(home.path()).await;
    let cx = context(&location, "small");
    let manifest = sft::run(&sft_config(&[]), &cx).await.unwrap();
    // one row without an answer, one too long
    assert_eq!(manifest.rows, Rows { input: 90, kept: 88, dropped: 2, ..Rows::default() });
    assert_eq!((manifest.kind.as_str(), manifest.key.as_str()), ("causal_lm", "key-of-small"));
    assert!(manifest.figures["held_out_loss"] < 4.0, "{:?}", manifest.figures);
    let names: Vec<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(
        names,
        [
            "config.json",
            "generation_config.json",
            "metrics.parquet",
            "model.safetensors",
            "repro.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let config: Value = serde_json::from_slice(&read(home.path(), "small", "config.json")).unwrap();
    assert_eq!(config["architectures"][0], "Qwen3ForCausalLM");
    assert_eq!((&config["vocab_size"], &config["eos_token_id"]), (&json!(300), &json!(1)));
    let settings: Value = serde_json::from_slice(&read(home.path(), "small", "repro.json")).unwrap();
    assert_eq!(settings, json!({"temperature": 0.0, "chunk_chars": 300}));
    // the checkpoints are gone, and a second run has nothing to do
    let checkpoints = home.path().join("_checkpoints/small");
    assert_eq!(std::fs::read_dir(checkpoints).unwrap().count(), 0);
    let again: ModelManifest = sft::run(&sft_config(&[]), &cx).await.unwrap();
    assert!(
        (again.cost.wall_seconds - manifest.cost.wall_seconds).abs() < 1e-9,
        "the finished model is taken as it is"
    );
    transformers_agrees(&home.path().join("models/small"));
}

/// Cancels after some steps.
pub struct CancelAt {
    pub steps: AtomicU64,
    pub at: u64,
    pub cancel: CancellationToken,
}

impl Progress for CancelAt {
    fn begin(&self, _: &str, _: Option<u64>, _: u64, _: &'static str) {}
    fn advance(&self, _: &str, _: u64, _: &str) {
        if self.steps.fetch_add(1, Ordering::Relaxed) + 1 == self.at {
            self.cancel.cancel();
        }
    }
    fn end(&self, _: &str, _: Option<&Manifest>) {}
}

#[tokio::test]
async fn a_cancelled_training_continues_to_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    let location = prepared(home.path()).await;
    sft::run(&sft_config(&[]), &context(&location, "whole")).await.unwrap();
    for at in [2, 11, 9] {
        let mut cx = context(&location, "stopped");
        cx.progress = Arc::new(CancelAt { steps: AtomicU64::new(0), at, cancel: cx.cancel.clone() });
        let error = sft::run(&sft_config(&[]), &cx).await.unwrap_err().to_string();
        assert!(error.contains("interrupted after step") && error.contains("same command"), "{error}");
        assert_eq!(std::fs::read_dir(home.path().join("_checkpoints/stopped")).unwrap().count(), 1);
        assert!(!home.path().join("models/stopped").exists());
    }
    let manifest = sft::run(&sft_config(&[]), &context(&location, "stopped")).await.unwrap();
    assert!(manifest.figures["held_out_loss"] < 4.0, "{:?}", manifest.figures);
    let weights = |model: &str| read(home.path(), model, "model.safetensors");
    assert!(!exact() || weights("stopped") == weights("whole"));
}

/// Gradient checkpointing is the same training within rounding: as good a model, with the figures of the other.
#[tokio::test]
async fn blocks_that_are_computed_again_learn_the_same() {
    let home = tempfile::tempdir().unwrap();
    let location = prepared(home.path()).await;
    let kept = sft::run(&sft_config(&[]), &context(&location, "kept")).await.unwrap();
    let again = sft_config(&[("gradient_checkpointing", json!(true))]);
    let again = sft::run(&again, &context(&location, "again")).await.unwrap();
    let loss = |manifest: &ModelManifest| manifest.figures["held_out_loss"];
    assert!((loss(&kept) - loss(&again)).abs() < 0.02, "{} and {}", loss(&kept), loss(&again));
}

#[tokio::test]
async fn training_goes_on_from_a_model() {
    let home = tempfile::tempdir().unwrap();
    let location = prepared(home.path()).await;
    let warm = sft_config(&[("pairs", Value::Null), ("held_out", Value::Null), ("steps", Value::Null)]);
    sft::run(&warm, &context(&location, "warm")).await.unwrap();
    let prompt = home.path().join("prompt.txt");
    std::fs::write(&prompt, "Clean this:\n{TEXT}\n").unwrap();
    let next = sft_config(&[
        ("init", json!("warm")),
        ("copy_warmup", Value::Null),
        ("steps", json!(3)),
        ("export", json!("bf16")),
        ("prompt", json!(prompt)),
    ]);
    sft::run(&next, &context(&location, "next")).await.unwrap();
    let (warm, next) = (read(home.path(), "warm", "model.safetensors"), read(home.path(), "next", "model.safetensors"));
    assert!(next.len() * 100 < warm.len() * 60, "bf16 is half as large: {} of {}", next.len(), warm.len());
    assert_eq!(read(home.path(), "next", "prompt.txt"), b"Clean this:\n{TEXT}\n");
    assert_eq!(read(home.path(), "next", "tokenizer.json"), read(home.path(), "words", "tokenizer.json"));
}

#[tokio::test]
async fn what_cannot_be_trained_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let location = prepared(home.path()).await;
    table(&location, "empty", &["prompt", "completion"], &[]).await;
    table(&location, "nulls", &["prompt", "completion"], &[vec![some("a"), None]]).await;
    let check = async |changes: &[(&str, Value)], expected: &str| {
        let error = format!("{:#}", sft::run(&sft_config(changes), &context(&location, "x")).await.unwrap_err());
        assert!(error.contains(expected), "{expected}: {error}");
    };
    check(&[("pairs", json!("empty"))], "table `empty` holds no pair").await;
    check(&[("pairs", json!("nulls"))], "table `nulls` holds no pair").await;
    check(&[("pairs", json!("texts"))], "no column `prompt`; the table has text").await;
    check(&[("pairs", json!("nowhere"))], "the table `nowhere` is not finished").await;
    check(&[("steps", Value::Null)], "give `steps`, `tokens` or `minutes`").await;
    check(&[("pairs", Value::Null), ("copy_warmup", Value::Null)], "nothing to train on").await;
    check(&[("max_length", json!(5000))], "more than the model's 4096 positions").await;
    check(&[("settings", json!({"temprature": 0}))], "temprature").await;
    check(&[("learning_rate", json!(1e30))], "training diverged").await;
    let small = json!({"table": "empty", "column": "prompt", "vocab_size": 300});
    let config: tokenizer::Config = serde_json::from_value(small).unwrap();
    let error = format!("{:#}", tokenizer::run(&config, &context(&location, "x")).await.unwrap_err());
    assert!(error.contains("table `empty`, column `prompt`") && error.contains("no text"), "{error}");
}

#[tokio::test]
async fn a_table_made_elsewhere_is_found() {
    let home = tempfile::tempdir().unwrap();
    let location = prepared(home.path()).await;
    let elsewhere = Location::parse(home.path().join("other").to_str().unwrap()).unwrap();
    let config: tokenizer::Config = serde_json::from_value(json!({"table": "ours", "vocab_size": 300})).unwrap();
    let managed = InputTable::Managed { location: location.clone(), table: "texts".to_owned() };
    let external = BTreeMap::from([("ours".to_owned(), managed)]);
    let cx = StageContext { external, ..context(&elsewhere, "words") };
    assert_eq!(tokenizer::run(&config, &cx).await.unwrap().rows.kept, 90);
    let made = |home: &Location| std::fs::read(home.local().unwrap().join("models/words/tokenizer.json")).unwrap();
    assert_eq!(made(&elsewhere), made(&location), "the same tokenizer of the same table");
    let files = BTreeMap::from([("ours".to_owned(), InputTable::Files("texts.parquet".to_owned()))]);
    let cx = StageContext { external: files, ..context(&elsewhere, "other") };
    let error = format!("{:#}", tokenizer::run(&config, &cx).await.unwrap_err());
    assert!(error.contains("`ours`") && error.contains("texts.parquet is no finished table"), "{error}");
}

#[test]
fn unknown_settings_are_named() {
    let error = serde_json::from_value::<sft::Config>(json!({"init": {"hiden": 3}})).unwrap_err().to_string();
    assert!(error.contains("hiden"), "{error}");
    let error = serde_json::from_value::<sft::Config>(json!({"init": "a", "step": 3})).unwrap_err().to_string();
    assert!(error.contains("step"), "{error}");
    let error = serde_json::from_value::<fasttext::Config>(json!({"table": "a", "ngrams": 3})).unwrap_err().to_string();
    assert!(error.contains("ngrams"), "{error}");
}

#[tokio::test]
async fn a_classifier_that_python_reads() {
    let home = tempfile::tempdir().unwrap();
    let location = Location::parse(home.path().to_str().unwrap()).unwrap();
    let rows: Vec<_> = (0..60)
        .flat_map(|i| {
            [
                vec![some(&format!("the river runs to the sea {i}\nand on")), some("hq")],
                vec![some(&format!("click here buy now cheap {i}")), some("cc")],
            ]
        })
        .chain([vec![None, some("hq")]])
        .collect();
    table(&location, "labelled", &["text", "label"], &rows).await;
    let settings = json!({"table": "labelled", "lr": 0.5, "dim": 8, "epoch": 20, "bucket": 2000, "min_count": 1});
    let config: fasttext::Config = serde_json::from_value(settings).unwrap();
    let manifest = fasttext::run(&config, &context(&location, "hq")).await.unwrap();
    assert_eq!(manifest.rows, Rows { input: 121, kept: 120, dropped: 1, ..Rows::default() });
    assert!(manifest.figures["training_accuracy"] > 0.99);
    assert!(manifest.files[0].bytes < 200_000);
    let code = "import sys, fasttext\n\
                m = fasttext.load_model(sys.argv[1])\n\
                print(m.f.predict('buy cheap now\\n', 1, 0.0, 'strict'), m.f.predict('the sea and the river\\n', 1, 0.0, 'strict'))";
    let Some(out) = python("import fasttext", code, &home.path().join("models/hq/model.bin")) else { return };
    let (cc, hq) = (out.find("__label__cc").unwrap(), out.find("__label__hq").unwrap());
    assert!(cc < hq, "{out}");
}

/// Logits of transformers for a fixed prompt, against those of our decoder.
pub fn transformers_agrees(dir: &Path) {
    let code = "import sys, json, torch\n\
                from transformers import AutoModelForCausalLM, AutoTokenizer\n\
                t = AutoTokenizer.from_pretrained(sys.argv[1])\n\
                m = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n\
                text = t.apply_chat_template([{'role': 'user', 'content': 'The rain is'}], add_generation_prompt=True, tokenize=False)\n\
                ids = t(text, add_special_tokens=False)['input_ids']\n\
                print(json.dumps({'text': text, 'ids': ids, 'logits': m(torch.tensor([ids])).logits[0, -1].tolist()}))";
    let Some(out) = python("import transformers, torch", code, dir) else { return };
    let out: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(out["text"], "<|user|>The rain is<|assistant|>");
    let ids: Vec<i64> = serde_json::from_value(out["ids"].clone()).unwrap();
    let decoder = repro::models::decoder::Decoder::from_dir(dir, tch::Device::Cpu, tch::Kind::Float).unwrap();
    let hidden = decoder.hidden(&tch::Tensor::from_slice(&ids).view([1, -1]), tch::Kind::Float);
    let logits = Vec::<f32>::try_from(decoder.logits(&hidden).get(0).get(-1)).unwrap();
    for (ours, theirs) in logits.iter().zip(out["logits"].as_array().unwrap()) {
        assert!((f64::from(*ours) - theirs.as_f64().unwrap()).abs() < 1e-4);
    }
}

/// Output of a Python program, or None (with a line) where Python has not what it needs. `REPRO_PYTHON` names the interpreter.
fn python(needs: &str, code: &str, argument: &Path) -> Option<String> {
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let run = |code: &str| {
        let mut command = std::process::Command::new(&python);
        // the interpreter's torch brings its own libraries
        command.env_remove("LD_LIBRARY_PATH").env("OMP_NUM_THREADS", "1").arg("-c").arg(code).arg(argument).output()
    };
    if !run(needs).is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: {python} cannot `{needs}` (REPRO_PYTHON names another)");
        return None;
    }
    let out = run(code).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}
