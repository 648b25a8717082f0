//! The stage: what it leaves, that it can be stopped and continued, and what it refuses.

use crate::device::{device, exact};
use crate::s3::{Faults, Server};
use crate::train::{CancelAt, context, prepared, read, sft_config, some, table, transformers_agrees};
use arrow::array::{Array, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use repro::{
    models::weights::Weights,
    pipeline::stage::{StageContext, grpo, sft, sql::InputTable},
    storage::{commit::TableCommit, location::Location, manifest::Rows},
};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

/// A model that has learned a little, and documents to rephrase.
async fn ready(home: &Path) -> Location {
    let location = prepared(home).await;
    let plain = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/prompts/plain.txt");
    let settings = json!({"temperature": 0.0, "marker": "", "chunk_chars": 300});
    let config = sft_config(&[("steps", json!(60)), ("prompt", json!(plain)), ("settings", settings)]);
    sft::run(&config, &context(&location, "small")).await.unwrap();
    let document =
        |i: usize| vec![some(&format!("d{i}")), some(&format!("Home | Login\nThe mill is by the river {i}."))];
    let mut rows: Vec<_> = (0..12).map(document).collect();
    rows[3][1] = None;
    rows[4][1] = some(" \n");
    rows[5][1] = some(&"a long page. ".repeat(60));
    table(&location, "documents", &["id", "text"], &rows).await;
    table(&location, "others", &["id", "text"], &(20..24).map(document).collect::<Vec<_>>()).await;
    location
}

pub fn config(changes: &[(&str, Value)]) -> grpo::Config {
    let mut config = json!({
        "init": "small", "prompts": "documents", "held_out": "others", "steps": 6, "prompts_per_step": 3,
        "num_generations": 4, "max_prompt_length": 64, "max_completion_length": 24, "max_prompt_chars": 600,
        "learning_rate": 0.001, "precision": "f32", "export": "f32", "threads": 1, "slots": 8, "save_steps": 2, "eval_steps": 3,
        "device": device(),
        "rewards": {"dataman": {"enabled": false}, "bertscore": {"enabled": false}, "length": {"max_ratio": 0.8}}
    });
    for (key, value) in changes {
        config[key] = value.clone();
    }
    serde_json::from_value(config).unwrap()
}

/// All rows of a finished table, in the manifest's order.
async fn rows(location: &Location, name: &str) -> RecordBatch {
    let manifest = TableCommit::manifest(location, name).await.unwrap().unwrap();
    let mut batches = Vec::new();
    for file in &manifest.files {
        let bytes = location.join(name).read(&file.path).await.unwrap().unwrap();
        batches.extend(ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap().map(Result::unwrap));
    }
    arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn floats<'a>(batch: &'a RecordBatch, name: &str) -> &'a Float64Array {
    batch.column_by_name(name).unwrap().as_any().downcast_ref().unwrap()
}

fn texts<'a>(batch: &'a RecordBatch, name: &str) -> &'a StringArray {
    batch.column_by_name(name).unwrap().as_any().downcast_ref().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_and_two_tables() {
    let home = tempfile::tempdir().unwrap();
    let location = ready(home.path()).await;
    let cx = context(&location, "better");
    let manifest = grpo::run(&config(&[]), &cx).await.unwrap();
    // NULL, white space, too long
    assert_eq!(manifest.rows, Rows { input: 12, kept: 9, dropped: 3, ..Rows::default() });
    assert_eq!(manifest.figures["steps"], 6.0);
    assert!(
        manifest.figures.contains_key("held_out_before/reward") && manifest.figures.contains_key("held_out/reward")
    );
    assert_ne!(read(home.path(), "better", "model.safetensors"), read(home.path(), "small", "model.safetensors"));
    for carried in ["tokenizer.json", "tokenizer_config.json", "repro.json", "prompt.txt"] {
        assert_eq!(read(home.path(), "better", carried), read(home.path(), "small", carried));
    }
    transformers_agrees(&home.path().join("models/better"));

    let rollouts = rows(&location, "better_rollouts").await;
    let names: Vec<String> = rollouts.schema().fields().iter().map(|f| f.name().clone()).collect();
    let wanted = "step split prompt_id sample completion text structure length format length_ratio total advantage n_tokens kl clipped \
                  entropy finish_reason error";
    assert_eq!(names.join(" "), wanted);
    // 6 steps of 3 x 4, and 4 held-out documents before, after 3, after 6
    assert_eq!(rollouts.num_rows(), 6 * 12 + 3 * 4);
    let steps: &Int64Array = rollouts.column(0).as_any().downcast_ref().unwrap();
    let (kl, advantage, total) = (floats(&rollouts, "kl"), floats(&rollouts, "advantage"), floats(&rollouts, "total"));
    for i in 0..rollouts.num_rows() {
        let train = texts(&rollouts, "split").value(i) == "train";
        assert_eq!((advantage.is_valid(i), kl.is_valid(i)), (train, train));
        let sum: f64 = ["structure", "length", "format"].iter().map(|part| floats(&rollouts, part).value(i)).sum();
        assert!((total.value(i) - sum).abs() < 1e-12, "weights are 1");
        assert!(!train || steps.value(i) > 1 || kl.value(i).abs() < 1e-6, "the first step is on the reference");
    }
    let metrics = rows(&location, "better_metrics").await;
    let of = |name: &str| (0..metrics.num_rows()).filter(|&i| texts(&metrics, "name").value(i) == name).count();
    assert_eq!((of("reward"), of("reward/length"), of("held_out/reward"), of("kl")), (6, 6, 3, 6));
    // finished: nothing to do again, nothing left over
    let again = grpo::run(&config(&[]), &cx).await.unwrap();
    assert!((again.cost.wall_seconds - manifest.cost.wall_seconds).abs() < 1e-9, "the manifest of the first run");
    assert_eq!(std::fs::read_dir(home.path().join("_checkpoints/better")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_continues_to_the_same_weights_and_rollouts() {
    let home = tempfile::tempdir().unwrap();
    let location = ready(home.path()).await;
    let config =
        config(&[("beta", json!(0.0)), ("num_iterations", json!(2)), ("mask_truncated_completions", json!(true))]);
    grpo::run(&config, &context(&location, "whole")).await.unwrap();
    for at in [1, 3] {
        let mut cx = context(&location, "stopped");
        cx.progress = Arc::new(CancelAt { steps: AtomicU64::new(0), at, cancel: cx.cancel.clone() });
        let error = grpo::run(&config, &cx).await.unwrap_err().to_string();
        assert!(error.contains("interrupted after step"), "{error}");
        assert!(!home.path().join("models/stopped").exists());
        // half a table, and readable: complete files only
        let parts = std::fs::read_dir(home.path().join("stopped_rollouts")).unwrap();
        let parts = parts.filter(|p| p.as_ref().unwrap().path().extension().is_some_and(|e| e == "parquet"));
        assert!(parts.count() >= at as usize);
    }
    grpo::run(&config, &context(&location, "stopped")).await.unwrap();
    if exact() {
        assert_eq!(read(home.path(), "stopped", "model.safetensors"), read(home.path(), "whole", "model.safetensors"));
        assert_eq!(rows(&location, "stopped_rollouts").await, rows(&location, "whole_rollouts").await);
    }
    let rollouts = rows(&location, "whole_rollouts").await;
    assert_eq!(floats(&rollouts, "kl").null_count(), rollouts.num_rows(), "no reference, no divergence");
}

/// The embedded rephraser writes no text: its choices are trained, and what it keeps is judged.
#[tokio::test(flavor = "multi_thread")]
async fn a_rephraser_by_edits_is_trained() {
    let home = tempfile::tempdir().unwrap();
    let location = Location::parse(home.path().to_str().unwrap()).unwrap();
    let editor = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/pocket-editor");
    let text = |i: usize| {
        format!("Home | Login\nThe mill is by the river {i}.\nShare on Facebook\nIt has turned since 18{i}.")
    };
    let document = |i: usize| vec![some(&format!("d{i}")), some(&text(i))];
    let mut documents: Vec<_> = (10..16).map(document).collect();
    documents[5][1] = some(&"Words that go on. ".repeat(30));
    table(&location, "documents", &["id", "text"], &documents).await;
    table(&location, "others", &["id", "text"], &(20..24).map(document).collect::<Vec<_>>()).await;
    let settings = [
        ("init", json!(editor)),
        ("max_prompt_length", json!(80)),
        ("max_completion_length", json!(120)),
        ("temperature", json!(2.0)),
        ("top_p", json!(1.0)),
    ];
    let config = config(&settings);
    let manifest = grpo::run(&config, &context(&location, "whole")).await.unwrap();
    assert_eq!(manifest.rows, Rows { input: 6, kept: 5, dropped: 1, ..Rows::default() });
    let rollouts = rows(&location, "whole_rollouts").await;
    let mut lengths = std::collections::HashSet::new();
    for i in 0..rollouts.num_rows() {
        let kept = texts(&rollouts, "text").value(i);
        let document = text(texts(&rollouts, "prompt_id").value(i)[1..].parse().unwrap());
        assert!(kept.split_whitespace().all(|word| document.contains(word)), "{kept}");
        assert_eq!(texts(&rollouts, "completion").value(i), kept);
        assert_eq!(texts(&rollouts, "finish_reason").value(i), "stop");
        lengths.insert(kept.len());
    }
    assert!(lengths.len() > 2, "choices are drawn: {lengths:?}");
    assert_eq!(read(home.path(), "whole", "repro.json"), std::fs::read(editor.join("repro.json")).unwrap());

    let mut cx = context(&location, "stopped");
    cx.progress = Arc::new(CancelAt { steps: AtomicU64::new(0), at: 3, cancel: cx.cancel.clone() });
    grpo::run(&config, &cx).await.unwrap_err();
    grpo::run(&config, &context(&location, "stopped")).await.unwrap();
    if exact() {
        assert_eq!(read(home.path(), "stopped", "model.safetensors"), read(home.path(), "whole", "model.safetensors"));
        assert_eq!(rows(&location, "stopped_rollouts").await, rollouts);
    }
    let short = [("init", json!(editor)), ("max_completion_length", json!(3))];
    let error = grpo::run(&self::config(&short), &context(&location, "none")).await.unwrap_err();
    assert!(format!("{error:#}").contains("max_completion_length 3"), "{error:#}");
}

/// Adapters: stopped and continued to the same merged model, whose embedding is that of the model it started from.
#[tokio::test(flavor = "multi_thread")]
async fn adapters_continue_and_are_merged() {
    let home = tempfile::tempdir().unwrap();
    let location = ready(home.path()).await;
    let config = config(&[("lora", json!({"rank": 4, "alpha": 8.0})), ("learning_rate", json!(0.01))]);
    grpo::run(&config, &context(&location, "whole")).await.unwrap();
    let mut cx = context(&location, "stopped");
    cx.progress = Arc::new(CancelAt { steps: AtomicU64::new(0), at: 3, cancel: cx.cancel.clone() });
    let error = grpo::run(&config, &cx).await.unwrap_err().to_string();
    assert!(error.contains("interrupted after step 3"), "{error}");
    grpo::run(&config, &context(&location, "stopped")).await.unwrap();
    assert!(
        !exact()
            || read(home.path(), "stopped", "model.safetensors") == read(home.path(), "whole", "model.safetensors")
    );
    let load = |model: &str| {
        Weights::load(&home.path().join("models").join(model), tch::Device::Cpu, tch::Kind::Float).unwrap().tensors
    };
    let (before, after) = (load("small"), load("whole"));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "an ordinary model");
    assert_eq!(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"]);
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_ne!(before[name], after[name]);
}

/// The model and every rollout are the same on a bucket whose server fails now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_holds_the_same() {
    let home = tempfile::tempdir().unwrap();
    let location = ready(home.path()).await;
    grpo::run(&config(&[]), &context(&location, "better")).await.unwrap();
    let server = Server::start(Faults { error: 9, ..Faults::default() }).await;
    server.bucket("grpo-bucket");
    let bucket = Location::parse("s3://grpo-bucket/run").unwrap();
    let base = Location::parse(home.path().to_str().unwrap()).unwrap();
    let external = ["documents", "others"].map(|name| {
        let managed = InputTable::Managed { location: base.clone(), table: name.to_owned() };
        (name.to_owned(), managed)
    });
    let init = home.path().join("models/small");
    let on_bucket = config(&[("init", json!(init))]);
    grpo::run(&on_bucket, &StageContext { external: external.into(), ..context(&bucket, "better") }).await.unwrap();
    let weights = |location: &Location| location.join("models/better");
    let of = async |location: &Location| weights(location).read("model.safetensors").await.unwrap().unwrap();
    if !exact() {
        return;
    }
    assert_eq!(of(&bucket).await, of(&location).await);
    for table in ["better_rollouts", "better_metrics"] {
        let (there, here) = (rows(&bucket, table).await, rows(&location, table).await);
        assert_eq!(there.num_rows(), here.num_rows());
        if table == "better_rollouts" {
            assert_eq!(there, here);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_trained_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let location = ready(home.path()).await;
    table(&location, "empty", &["id", "text"], &[]).await;
    table(&location, "nameless", &["text"], &[vec![some("x")]]).await;
    let check = async |changes: &[(&str, Value)], expected: &str| {
        let error = format!("{:#}", grpo::run(&config(changes), &context(&location, "x")).await.unwrap_err());
        assert!(error.contains(expected), "{expected}: {error}");
    };
    check(&[("num_generations", json!(1))], "num_generations is 1: rewards are compared inside a prompt's group").await;
    check(&[("prompts", json!("empty"))], "the table `empty` holds no prompt: of 0 rows").await;
    check(&[("prompts", json!("nameless"))], "there is no column `id`").await;
    check(&[("prompts", json!("nowhere"))], "the table `nowhere` is not finished").await;
    check(&[("max_prompt_length", json!(5))], "longer than max_prompt_length 5").await;
    check(&[("max_completion_length", json!(5000))], "more than the 4096 positions of the model `small`").await;
    check(&[("held_out", json!("documents"))], "held_out is the table that is trained on").await;
    check(&[("gradient_accumulation_steps", json!(5))], "does not divide the 12 completions").await;
    check(&[("lora", json!({"rank": 0, "alpha": 1.0}))], "lora: rank is 0").await;
    check(&[("temperature", json!(0.0))], "temperature 0 is not above 0").await;
    check(&[("device", json!("cuda:99"))], "device cuda:99: ").await;
    check(&[("rewards", json!({}))], "needs the model `dataman`; add it under `models:`").await;
    let off = json!({"enabled": false});
    let nothing = json!({"dataman": off, "bertscore": off, "structure": off, "length": off, "format": off});
    check(&[("rewards", nothing)], "no part with a weight").await;
    check(&[("init", json!("words"))], "config.json").await;
    check(&[("learning_rate", json!(1e30)), ("patience", json!(0))], "diverged").await;
}

#[test]
fn settings_are_named_as_in_trl() {
    let parse = |value: Value| serde_json::from_value::<grpo::Config>(value);
    let paper = parse(json!({"init": "a", "prompts": "p"})).unwrap();
    assert_eq!((paper.steps, paper.prompts_per_step, paper.num_generations), (2000, 24, 8));
    assert_eq!((paper.beta, paper.epsilon, paper.learning_rate, paper.warmup_ratio), (0.005, 0.2, 1e-6, 0.1));
    let error = parse(json!({"init": "a", "prompts": "p", "num_generation": 4})).unwrap_err().to_string();
    assert!(error.contains("num_generation"), "{error}");
    let scale = |value: Value| parse(json!({"init": "a", "prompts": "p", "scale_rewards": value}));
    assert_eq!(scale(json!(true)).unwrap().scale_rewards, scale(json!("group")).unwrap().scale_rewards);
    assert_eq!(scale(json!(false)).unwrap().scale_rewards, scale(json!("none")).unwrap().scale_rewards);
    assert!(scale(json!("batches")).unwrap_err().to_string().contains("group, batch, none"));
}
