//! The `pretrain` stage over a packed table: what the model directory holds, that an interrupted or killed run makes the same weights,
//! that data beyond memory or on S3 make no difference, that bad input is refused clearly, and that transformers computes the same logits
//! from the export (skipped with a line where it is absent).

use crate::device::{device, exact};
use crate::s3::{Faults, Server};
use arrow::{
    array::{FixedSizeListArray, RecordBatch, UInt16Array},
    datatypes::{DataType, Field, Schema},
};
use repro::{
    models::causal::CausalModel,
    pipeline::stage::{Progress, StageContext, pretrain},
    storage::{
        commit::TableCommit,
        location::Location,
        manifest::{Manifest, ModelManifest, Rows},
    },
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
use tch::{Device, Kind, Tensor};
use tokio_util::sync::CancellationToken;

const CONTEXT: usize = 17;

/// A packed table of counting contexts, in two files: predictable, so that a model learns something of it.
async fn packed(location: &Location, name: &str, contexts: usize, params: Value) {
    let item = Arc::new(Field::new("item", DataType::UInt16, false));
    let list = DataType::FixedSizeList(item.clone(), CONTEXT as i32);
    let schema = Arc::new(Schema::new(vec![Field::new("tokens", list, false)]));
    let commit = TableCommit::begin(location, name, "key").await.unwrap();
    for (file, range) in [0..contexts / 3, contexts / 3..contexts].into_iter().enumerate() {
        let ids: Vec<u16> =
            range.clone().flat_map(|c| (0..CONTEXT).map(move |i| ((c * 5 + i * (1 + c % 3)) % 50) as u16)).collect();
        let tokens = FixedSizeListArray::new(item.clone(), CONTEXT as i32, Arc::new(UInt16Array::from(ids)), None);
        let mut writer = commit.fragment(&format!("{file:03}"), schema.clone()).await.unwrap();
        writer.write(&RecordBatch::try_new(schema.clone(), vec![Arc::new(tokens)]).unwrap()).await.unwrap();
        writer.finish(range.len() as u64).await.unwrap();
    }
    let n = contexts as u64;
    let manifest = Manifest {
        table: name.to_owned(),
        key: "key".to_owned(),
        code_version: "1".to_owned(),
        schema: Vec::new(),
        rows: Rows { input: n, kept: n, ..Rows::default() },
        files: Vec::new(),
        failed_files: Vec::new(),
        inputs: BTreeMap::new(),
        params: serde_json::from_value(params).unwrap(),
        models: BTreeMap::new(),
        cost: Default::default(),
    };
    commit.publish(manifest).await.unwrap();
}

fn facts() -> Value {
    json!({"tokenizer_hash": "hash-of-one", "vocab_size": 50, "eot": 0})
}

async fn prepared(location: &Location) {
    packed(location, "packed", 48, facts()).await;
    packed(location, "other", 7, facts()).await;
}

fn context(location: &Location, output: &str) -> StageContext {
    StageContext {
        inputs: BTreeMap::from([("packed".to_owned(), "hash".to_owned())]),
        ..crate::train::context(location, output)
    }
}

fn config(changes: &[(&str, Value)]) -> pretrain::Config {
    let mut settings = json!({
        "packed": "packed", "held_out": "other", "precision": "f32", "export": "f32", "threads": 1,
        "device": device(), "size": {"hidden": 32, "layers": 2, "heads": 2, "ffn": 48}, "passes": 3, "sequences": 6, "accumulation": 2,
        "learning_rate": 0.01, "log_every": 4, "checkpoint_every": 5, "evaluate_every": 10,
    });
    for (key, value) in changes {
        settings[*key] = value.clone();
    }
    serde_json::from_value(settings).unwrap()
}

fn local(home: &Path) -> Location {
    Location::parse(&home.to_string_lossy()).unwrap()
}

async fn weights(location: &Location, model: &str) -> bytes::Bytes {
    location.join(&format!("models/{model}")).read("model.safetensors").await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_learns_and_that_transformers_loads() {
    let home = tempfile::tempdir().unwrap();
    let location = local(home.path());
    prepared(&location).await;
    let cx = context(&location, "base");
    let manifest = pretrain::run(&config(&[]), &cx).await.unwrap();
    // 48 contexts, three passes, six a step
    assert_eq!(manifest.figures["steps"], 24.0);
    assert_eq!(manifest.figures["tokens"], 24.0 * 6.0 * 16.0);
    assert_eq!(manifest.figures["passes"], 3.0);
    assert!(manifest.figures["held_out_loss"] < 3.0, "{:?} after a start at ln 64 = 4.2", manifest.figures);
    let directory = home.path().join("models/base");
    let files: Vec<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    let expected =
        ["config.json", "generation_config.json", "metrics.parquet", "model.safetensors", "modeling_openlm.py"];
    assert_eq!(files, expected);
    let model_config: Value = serde_json::from_slice(&std::fs::read(directory.join("config.json")).unwrap()).unwrap();
    // 50 ids rounded up to 64; 17 tokens make 16 positions
    assert_eq!((&model_config["vocab_size"], &model_config["max_position_embeddings"]), (&json!(64), &json!(16)));
    assert_eq!(model_config["eos_token_id"], 0);
    assert_eq!(std::fs::read_dir(home.path().join("_checkpoints/base")).unwrap().count(), 0);
    let again: ModelManifest = pretrain::run(&config(&[]), &cx).await.unwrap();
    assert!(
        (again.cost.wall_seconds - manifest.cost.wall_seconds).abs() < 1e-9,
        "the finished model is taken as it is"
    );
    transformers_agrees(&directory);
}

/// Logits of transformers through the exported modeling file, with and without its cache, against our own.
fn transformers_agrees(dir: &Path) {
    let code = "import sys, json, torch\n\
                from transformers import AutoModelForCausalLM\n\
                m = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, trust_remote_code=True)\n\
                ids = torch.tensor([[1, 6, 11, 16, 21, 3], [9, 8, 7, 6, 5, 4]])\n\
                with torch.no_grad():\n\
                \x20   whole = m(ids).logits\n\
                \x20   begun = m(ids[:, :3], use_cache=True)\n\
                \x20   rest = m(ids[:, 3:], past_key_values=begun.past_key_values, use_cache=True).logits\n\
                assert (whole[:, 3:] - rest).abs().max() < 1e-4\n\
                out = m.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=63, pad_token_id=63)\n\
                print(json.dumps({'logits': whole.flatten().tolist(), 'next': out[:, 6].tolist()}))";
    let Some(out) = python("import transformers, torch", code, dir) else { return };
    let out: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let model = CausalModel::from_dir(dir, Device::Cpu, Kind::Float).unwrap();
    let ids = Tensor::from_slice(&[1i64, 6, 11, 16, 21, 3, 9, 8, 7, 6, 5, 4]).view([2, 6]);
    let logits = model.logits(&model.hidden(&ids, Kind::Float));
    let theirs: Vec<f64> = serde_json::from_value(out["logits"].clone()).unwrap();
    let far = (logits.view([-1]) - Tensor::from_slice(&theirs)).abs().max().double_value(&[]);
    assert!(far < 1e-4, "logits are off by {far}");
    let next: Vec<i64> = serde_json::from_value(out["next"].clone()).unwrap();
    assert_eq!(Vec::<i64>::try_from(logits.select(1, 5).argmax(-1, false)).unwrap(), next);
}

/// Cancels after some steps.
struct CancelAt {
    steps: AtomicU64,
    at: u64,
    cancel: CancellationToken,
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

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_continues_to_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    let location = local(home.path());
    prepared(&location).await;
    let other = vec![("gradient_checkpointing", json!(true)), ("architecture", json!("qwen3"))];
    for (whole, stopped, changes) in [("whole", "stopped", vec![]), ("whole_qwen", "stopped_qwen", other)] {
        pretrain::run(&config(&changes), &context(&location, whole)).await.unwrap();
        for at in [2, 11, 9] {
            let mut cx = context(&location, stopped);
            cx.progress = Arc::new(CancelAt { steps: AtomicU64::new(0), at, cancel: cx.cancel.clone() });
            let error = pretrain::run(&config(&changes), &cx).await.unwrap_err().to_string();
            assert!(error.contains("interrupted after step") && error.contains("same command"), "{error}");
            let checkpoints = home.path().join("_checkpoints").join(stopped);
            assert_eq!(std::fs::read_dir(checkpoints).unwrap().count(), 1);
            // figures so far are there to be looked at, the model is not
            let model = home.path().join("models").join(stopped);
            assert!(model.join("metrics.parquet").exists() && !model.join("_manifest.json").exists());
        }
        let manifest = pretrain::run(&config(&changes), &context(&location, stopped)).await.unwrap();
        assert_eq!(manifest.figures["steps"], 24.0);
        assert!(!exact() || weights(&location, stopped).await == weights(&location, whole).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_gives_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    let location = local(home.path());
    prepared(&location).await;
    pretrain::run(&config(&[]), &context(&location, "base")).await.unwrap();
    let server = Server::start(Faults { error: 7, ..Faults::default() }).await;
    server.bucket("pretrain-bucket");
    let bucket = Location::parse("s3://pretrain-bucket/run").unwrap();
    prepared(&bucket).await;
    pretrain::run(&config(&[]), &context(&bucket, "base")).await.unwrap();
    assert!(!exact() || weights(&bucket, "base").await == weights(&location, "base").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pretrained_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let location = local(home.path());
    prepared(&location).await;
    packed(&location, "foreign", 6, json!({"tokenizer_hash": "hash-of-another", "vocab_size": 50, "eot": 0})).await;
    packed(&location, "unknown", 6, json!({})).await;
    let check = async |changes: &[(&str, Value)], expected: &[&str]| {
        let error = pretrain::run(&config(changes), &context(&location, "bad")).await.unwrap_err();
        let error = format!("{error:#}");
        expected.iter().for_each(|part| assert!(error.contains(part), "{changes:?}: {error}"));
    };
    let size = json!({"hidden": 32, "layers": 2, "heads": 2});
    // 10,000 tokens are 104 steps of 6 contexts of 16
    check(&[("tokens", json!(10_000)), ("passes", json!(1))], &["624 contexts", "holds 48, read once", "`passes: 13`"])
        .await;
    check(&[("tokens", json!(10))], &["more than there is to train on", "lower `sequences`"]).await;
    check(&[("sequences", json!(1000))], &["a step is 1000 contexts"]).await;
    check(&[("vocabulary", json!(40))], &["50 token ids", "vocabulary is 40", "raise `vocabulary`"]).await;
    check(&[("held_out", json!("foreign"))], &["`packed` and `foreign`", "different tokenizers"]).await;
    check(&[("tokenizer", json!("assets/pocket-rephraser"))], &["packed with another tokenizer", "Pack again"]).await;
    check(&[("packed", json!("unknown")), ("held_out", Value::Null)], &["give `vocabulary`"]).await;
    check(&[("packed", json!("nowhere"))], &["`nowhere` is not finished"]).await;
    check(&[("preset", json!("400M"))], &["one of the two"]).await;
    check(&[("size", Value::Null)], &["give `preset`"]).await;
    check(&[("warmup_steps", json!(25))], &["warmup_steps 25 is more than the 24 steps"]).await;
    check(&[("size", json!({"hidden": 32, "layers": 2, "heads": 5}))], &["32 cannot be split into 5 heads"]).await;
    check(&[("size", json!({"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1}))], &["for llama and qwen3"]).await;
    check(&[("passes", json!(0))], &["passes is 0"]).await;
    check(&[("size", size), ("device", json!("tpu"))], &["device `tpu`"]).await;
    let unknown = &[("packed", json!("unknown")), ("held_out", Value::Null), ("vocabulary", json!(20))];
    check(unknown, &["step 1", "the model's vocabulary ends at 19"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_explodes_stops_the_run_and_keeps_the_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let location = local(home.path());
    prepared(&location).await;
    let wild = config(&[
        ("learning_rate", json!(1e30)),
        ("gradient_clip", json!(0.0)),
        ("warmup_steps", json!(0)),
        ("checkpoint_every", json!(1)),
    ]);
    let error = pretrain::run(&wild, &context(&location, "wild")).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("step 2") && error.contains("diverged") && error.contains("learning_rate"), "{error}");
    assert_eq!(std::fs::read_dir(home.path().join("_checkpoints/wild")).unwrap().count(), 1);
}

#[test]
fn unknown_settings_are_named() {
    let error = serde_json::from_value::<pretrain::Config>(json!({"packed": "p", "preset": "3B"})).unwrap_err();
    assert!(error.to_string().contains("400M"), "{error}");
    let error = serde_json::from_value::<pretrain::Config>(json!({"packed": "p", "lr": 1})).unwrap_err();
    assert!(error.to_string().contains("unknown field `lr`"), "{error}");
}

/// Output of a Python program, or None (with a line) where Python has not what it needs. `REPRO_PYTHON` names the interpreter.
fn python(needs: &str, code: &str, argument: &Path) -> Option<String> {
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let cache = tempfile::tempdir().unwrap();
    let run = |code: &str| {
        let mut command = std::process::Command::new(&python);
        // the interpreter's torch brings its own libraries
        command.env_remove("LD_LIBRARY_PATH").env("OMP_NUM_THREADS", "1").env("HF_MODULES_CACHE", cache.path());
        command.arg("-c").arg(code).arg(argument).output()
    };
    if !run(needs).is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: {python} cannot `{needs}` (REPRO_PYTHON names another)");
        return None;
    }
    let out = run(code).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}

/// Kill -9 at other instants of a run, then again until it ends: the same weights, bit for bit. `REPRO_KILLS` sets the number of kills.
#[test]
fn a_killed_run_continues_to_the_same_weights() {
    let kills: u32 = std::env::var("REPRO_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let home = tempfile::tempdir().unwrap();
    let lines: String =
        (0..200).map(|i| format!("{}\n", json!({"text": format!("Ships of every size {i}. ").repeat(9)}))).collect();
    std::fs::write(home.path().join("texts.jsonl"), lines).unwrap();
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pocket-rephraser");
    let pipeline = format!(
        "location: out\nsources: {{ raw: {{ path: texts.jsonl }} }}\nstages:\n  - table: texts\n    ingest: raw\n  - table: packed\n    \
         pack: {{ tables: texts, tokenizer: {tokenizer}, context: 33 }}\n  - model: base\n    pretrain: {{ packed: packed, precision: f32, export: f32, \
         size: {{ hidden: 32, layers: 2, heads: 2, ffn: 64 }}, tokens: 20000, passes: 50, sequences: 8, threads: 1, checkpoint_every: 4 }}\n"
    );
    std::fs::write(home.path().join("p.yaml"), pipeline).unwrap();
    let command = |location: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_repro"));
        command.current_dir(home.path()).args(["run", "p.yaml", "--set", &format!("location={location}")]);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command
    };
    let finish = |location: &str| {
        let out = command(location).stderr(std::process::Stdio::piped()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read(home.path().join(location).join("models/base/model.safetensors")).unwrap()
    };
    let begin = std::time::Instant::now();
    let expected = finish("undisturbed");
    let whole = begin.elapsed();
    for kill in 0..kills {
        let location = format!("killed-{kill}");
        for again in 0..=kill % 2 {
            let mut child = command(&location).stderr(std::process::Stdio::null()).spawn().unwrap();
            let share = (f64::from(kill + again * kills) * 0.618_034 + 0.3).fract();
            std::thread::sleep(whole.mul_f64(share));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(finish(&location) == expected, "kill {kill}");
    }
}
