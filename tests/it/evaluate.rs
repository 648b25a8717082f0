//! The `evaluate` stage on the golden task files and model of tests/golden/eval.py: predictions, losses and centered means are those of
//! the rules in Python; both tables, Core in SQL, items that changed, resume, limits, bad input. With the harness's own task files at
//! `REPRO_TASKS` (a directory) and Python with transformers, also those (skipped with a line otherwise). On the device that
//! `REPRO_TEST_DEVICE` names, but for what the program itself is asked to do.

use super::device::device;
use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{Float32Type, Float64Type, Int32Type, Int64Type},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use repro::{
    pipeline::stage::{Silent, StageContext, evaluate},
    storage::{commit::TableCommit, location::Location, manifest::Manifest},
    udf::models::Models,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval")
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden().join("expected.json")).unwrap()).unwrap()
}

/// A home for the tables, and the golden files.
struct Bench {
    home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn location(&self) -> Location {
        Location::parse(&self.home.path().join("run").to_string_lossy()).unwrap()
    }

    fn context(&self, key: &str) -> StageContext {
        StageContext {
            external: BTreeMap::new(),
            location: self.location(),
            output: "evals".to_owned(),
            key: key.to_owned(),
            seed: 1,
            params: BTreeMap::new(),
            models: Models::new(BTreeMap::new(), 1),
            progress: Arc::new(Silent),
            cancel: CancellationToken::new(),
            inputs: BTreeMap::new(),
            model_hashes: BTreeMap::new(),
            code_version: "1".to_owned(),
        }
    }

    /// Settings over the golden files; `more` wins.
    fn config(&self, more: Value) -> evaluate::Config {
        let (model, tasks) = (golden().join("model"), golden().join("local_data"));
        let mut json = json!({ "model": model, "tasks": tasks, "device": device() });
        for (key, value) in more.as_object().unwrap() {
            json[key] = value.clone();
        }
        serde_json::from_value(json).unwrap()
    }

    async fn run(&self, key: &str, more: Value) -> anyhow::Result<Manifest> {
        evaluate::run(&self.config(more), &self.context(key)).await
    }

    async fn fails(&self, more: Value) -> String {
        format!("{:#}", self.run("bad", more).await.unwrap_err())
    }

    /// The rows of a finished table.
    async fn rows(&self, table: &str) -> Vec<RecordBatch> {
        let manifest = TableCommit::manifest(&self.location(), table).await.unwrap().unwrap();
        let directory = self.home.path().join("run").join(table);
        let open = |file: &str| std::fs::File::open(directory.join(file)).unwrap();
        let read = |file: &str| ParquetRecordBatchReaderBuilder::try_new(open(file)).unwrap().build().unwrap();
        manifest.files.iter().flat_map(|f| read(&f.path).map(Result::unwrap)).collect()
    }

    /// A data directory of one's own.
    fn data(&self, files: &[(&str, &[u8])]) -> PathBuf {
        let directory = self.home.path().join("data");
        for (name, bytes) in files {
            let path = directory.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        directory
    }
}

/// One row of the items: prediction, correct, losses.
type Item = (Option<i32>, bool, Vec<f32>);

fn items(batches: &[RecordBatch]) -> BTreeMap<(String, i64), Item> {
    let mut found = BTreeMap::new();
    for batch in batches {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let (task, item) = (column("task").as_string::<i32>(), column("item").as_primitive::<Int64Type>());
        let prediction = column("prediction").as_primitive::<Int32Type>();
        let (correct, losses) = (column("correct").as_boolean(), column("losses").as_list::<i32>());
        for i in 0..batch.num_rows() {
            let values = losses.value(i).as_primitive::<Float32Type>().values().to_vec();
            let row = (prediction.is_valid(i).then(|| prediction.value(i)), correct.value(i), values);
            assert!(found.insert((task.value(i).to_owned(), item.value(i)), row).is_none(), "an item twice");
        }
    }
    found
}

/// Task → (status, n, accuracy, centered).
fn scores(batches: &[RecordBatch]) -> BTreeMap<String, (String, i64, Option<f64>, Option<f64>)> {
    let mut found = BTreeMap::new();
    for batch in batches {
        let column = |name: &str| batch.column_by_name(name).unwrap();
        let text = |name: &str, i: usize| column(name).as_string::<i32>().value(i).to_owned();
        let number = |name: &str, i: usize| {
            let values = column(name).as_primitive::<Float64Type>();
            values.is_valid(i).then(|| values.value(i))
        };
        for i in 0..batch.num_rows() {
            let n = column("n").as_primitive::<Int64Type>().value(i);
            let row = (text("status", i), n, number("accuracy", i), number("centered", i));
            found.insert(text("task", i), row);
        }
    }
    found
}

/// Compares both tables with the Python scores of the same files.
async fn compare(bench: &Bench, expected: &Value, centered: &str) {
    let items = items(&bench.rows("evals_items").await);
    let scores = scores(&bench.rows("evals").await);
    let mut compared = 0;
    for (label, task) in expected.as_object().unwrap() {
        for item in task["items"].as_array().unwrap() {
            let (prediction, correct, losses) = &items[&(label.clone(), item["item"].as_i64().unwrap())];
            assert_eq!(prediction.map(i64::from), item["prediction"].as_i64(), "{label} {item}");
            assert_eq!(*correct, item["correct"].as_bool().unwrap(), "{label} {item}");
            for (ours, theirs) in losses.iter().zip(item["losses"].as_array().unwrap()) {
                assert!((f64::from(*ours) - theirs.as_f64().unwrap()).abs() < 1e-4, "{label} {item}: {losses:?}");
            }
            compared += 1;
        }
        let (status, n, accuracy, value) = &scores[label];
        assert_eq!((status.as_str(), *n), ("scored", task["n"].as_i64().unwrap()), "{label}");
        assert!((accuracy.unwrap() - task["accuracy"].as_f64().unwrap()).abs() < 1e-6, "{label}");
        assert!((value.unwrap() - task[centered].as_f64().unwrap()).abs() < 1e-6, "{label}");
    }
    assert_eq!(compared, items.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_tables_are_those_of_the_rules_in_python() {
    let bench = Bench::new();
    let manifest = bench.run("a", json!({})).await.unwrap();
    compare(&bench, &expected(), "centered_v1").await;
    assert_eq!((manifest.rows.input, manifest.rows.kept), (22, 22));
    let scores = scores(&bench.rows("evals").await);
    assert_eq!(scores.values().filter(|s| s.0 == "missing").count(), 11);
    assert_eq!(scores["squad"], ("missing".to_owned(), 0, None, None));
    let items = TableCommit::manifest(&bench.location(), "evals_items").await.unwrap().unwrap();
    assert_eq!((items.rows.input, items.rows.kept, items.rows.failed), (165, 165, 0));
    // The other baselines, found by file name alone.
    let flat = Bench::new();
    let name = "agi_eval_lsat_ar.jsonl";
    let bytes = std::fs::read(golden().join("local_data/symbolic_problem_solving").join(name)).unwrap();
    let data = flat.data(&[(name, &bytes)]);
    flat.run("a", json!({ "tasks": data, "include": ["agi_eval_lsat_ar"], "baselines": "v2" })).await.unwrap();
    let only = json!({ "agi_eval_lsat_ar": expected()["agi_eval_lsat_ar"] });
    compare(&flat, &only, "centered_v2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_drops_items_and_changes_no_other() {
    let bench = Bench::new();
    bench.run("a", json!({ "limit": 3, "include": ["piqa", "jeopardy"] })).await.unwrap();
    let manifest = TableCommit::manifest(&bench.location(), "evals_items").await.unwrap().unwrap();
    // 3 of 30, and one of each of three categories of 21.
    assert_eq!((manifest.rows.input, manifest.rows.kept, manifest.rows.dropped), (51, 6, 45));
    let items = items(&bench.rows("evals_items").await);
    for ((label, item), (prediction, correct, _)) in items {
        let all = &expected()[&label]["items"];
        let wanted = all.as_array().unwrap().iter().find(|i| i["item"].as_i64() == Some(item)).unwrap();
        assert_eq!((prediction.map(i64::from), correct), (wanted["prediction"].as_i64(), wanted["correct"] == true));
    }
}

/// What a killed run left: the items of some tasks, no manifest.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_evaluation_goes_on_where_it_was() {
    let bench = Bench::new();
    bench.run("a", json!({})).await.unwrap();
    let before = items(&bench.rows("evals_items").await);
    let run = bench.home.path().join("run");
    let record = |id: &str| run.join("evals_items/_fragments").join(format!("{id}.json"));
    for table in ["evals", "evals_items"] {
        std::fs::remove_file(run.join(table).join("_manifest.json")).unwrap();
    }
    std::fs::remove_file(run.join("evals/_fragments/00000.json")).unwrap();
    std::fs::remove_file(record("01-piqa-000")).unwrap();
    let time = |id: &str| std::fs::metadata(record(id)).unwrap().modified().unwrap();
    let untouched = time("00-copa-000");
    bench.run("a", json!({})).await.unwrap();
    assert_eq!(items(&bench.rows("evals_items").await), before);
    compare(&bench, &expected(), "centered_v1").await;
    assert_eq!(time("00-copa-000"), untouched, "a finished task is not scored again");
    assert!(record("01-piqa-000").exists());
    // Another key: everything anew.
    bench.run("b", json!({ "include": ["copa"] })).await.unwrap();
    assert_eq!(items(&bench.rows("evals_items").await).len(), 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_stops_and_keeps_what_is_done() {
    let bench = Bench::new();
    let cx = bench.context("a");
    cx.cancel.cancel();
    let error = evaluate::run(&bench.config(json!({})), &cx).await.unwrap_err();
    assert!(format!("{error:#}").contains("stopped; run the same command again"), "{error:#}");
    assert!(TableCommit::manifest(&bench.location(), "evals").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_cannot_be_asked_are_failed_rows() {
    let bench = Bench::new();
    let long = format!("{{\"context\": \"a\", \"continuation\": \"{}\"}}\n", "z!".repeat(60));
    let text = format!("{{\"context\": \"Ada saw a\", \"continuation\": \"kite\"}}\n{long}");
    let data = bench.data(&[("lambada_openai.jsonl", text.as_bytes())]);
    let more = json!({ "tasks": data, "include": ["lambada_openai"], "max_length": 40 });
    bench.run("a", more).await.unwrap();
    let manifest = TableCommit::manifest(&bench.location(), "evals_items").await.unwrap().unwrap();
    assert_eq!((manifest.rows.input, manifest.rows.kept, manifest.rows.failed), (2, 1, 1));
    let file = bench.home.path().join("run/failed").join(&manifest.failed_files[0].path);
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(text("row_id"), "lambada_openai:1");
    assert!(text("error").contains("lambada_openai.jsonl: the continuation alone has"), "{}", text("error"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_and_files_are_refused_before_anything_runs() {
    let bench = Bench::new();
    let check = async |more: Value, expected: &str| {
        let error = bench.fails(more).await;
        assert!(error.contains(expected), "{error}");
    };
    check(json!({ "include": ["hellaswagg"] }), "there is no task `hellaswagg`; the tasks are copa, piqa").await;
    check(json!({ "limit": 0 }), "limit is 0").await;
    check(json!({ "max_length": 401 }), "max_length 401 is more than the model's 400 positions").await;
    check(json!({ "max_length": 1 }), "max_length 1 leaves no room").await;
    check(json!({ "batch_tokens": 0 }), "batch_tokens is 0").await;
    check(json!({ "tasks": null }), "nothing to evaluate on: give `tasks` or `held_out`").await;
    check(json!({ "tasks": null, "include": ["copa"] }), "give their directory in `tasks`").await;
    check(
        json!({ "tasks": bench.home.path() }),
        "holds no file of the tasks; expected are commonsense_reasoning/copa.jsonl",
    )
    .await;
    check(json!({ "held_out": "nowhere" }), "the table `nowhere` is not finished").await;
    check(json!({ "model": bench.home.path() }), "no model.safetensors").await;
    let data = bench.data(&[
        ("copa.jsonl", b"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 7}\n"),
        ("world_knowledge/jeopardy_all.jsonl", b"{\"context\": \"q\", \"continuation\": \"a\"}\n"),
        ("squad.jsonl", b""),
        ("coqa.jsonl", b"\xff\xfe"),
    ]);
    let error = bench.fails(json!({ "tasks": data })).await;
    for expected in [
        "copa.jsonl:1: `gold` is 7; with 2 `choices` it must be 0 to 1",
        "jeopardy_all.jsonl:1: the field `category` is missing",
        "squad.jsonl: holds no item",
        "coqa.jsonl:1: not UTF-8",
    ] {
        assert!(error.contains(expected), "{expected} is not in:\n{error}");
    }
}

fn repro(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The shipped pipelines: Core by SQL, items that changed between two models, nothing to do on a second run.
#[test]
fn the_pipelines_make_core_and_changed_items() {
    let home = tempfile::tempdir().unwrap();
    let set = |key: &str, value: &dyn std::fmt::Display| format!("{key}={value}");
    let location = set("location", &home.path().display());
    let tasks = set("tasks", &golden().join("local_data").display());
    let model = set("model", &golden().join("model").display());
    let arguments = ["run", "pipelines/evaluate.yaml", "--set", &location, "--set", &tasks, "--set", &model];
    repro(&arguments);
    let query = |text: &str, table: &str| {
        let table = format!("t={}", home.path().join(table).display());
        let lines = repro(&["sql", "--format", "json", "--table", &table, text]);
        lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let rows = query("SELECT * FROM t", "core");
    let centered = |labels: &[&str]| {
        let all: Vec<f64> = labels.iter().map(|l| expected()[l]["centered_v1"].as_f64().unwrap()).collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let of = |name: &str| rows.iter().find(|r| r["name"] == name).unwrap().clone();
    let all: Vec<String> = expected().as_object().unwrap().keys().cloned().collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for (name, labels, size) in [("core", all.as_slice(), 22), ("commonsense", &["copa", "piqa"], 3)] {
        let row = of(name);
        assert!((row["centered"].as_f64().unwrap() - centered(labels)).abs() < 1e-6, "{row}");
        assert_eq!((&row["tasks"], &row["of"]), (&json!(labels.len()), &json!(size)), "{row}");
    }
    assert_eq!(of("commonsense")["missing"], "openbook_qa");
    assert!(repro(&arguments).contains("unchanged"));
    // Two models: the golden one, and one whose last block is gone.
    let other = home.path().join("other");
    shorter_model(&other);
    let (base, other) = (set("base", &golden().join("model").display()), set("other", &other.display()));
    repro(&[
        "run",
        "pipelines/changed_items.yaml",
        "--set",
        &location,
        "--set",
        &tasks,
        "--set",
        &base,
        "--set",
        &other,
    ]);
    let changed = query("SELECT change, count(*) AS n FROM t GROUP BY change ORDER BY change", "changed_items");
    assert_eq!(changed.len(), 2, "some gained, some lost: {changed:?}");
}

/// The golden model with one layer less.
fn shorter_model(to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(golden().join("model")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(1);
    std::fs::write(path, config.to_string()).unwrap();
    let path = to.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept: Vec<_> = all.tensors().into_iter().filter(|(name, _)| !name.contains("layers.1.")).collect();
    std::fs::write(path, safetensors::serialize(kept, None).unwrap()).unwrap();
}

/// The harness's own files: the first items of each, against the rules in Python.
#[tokio::test(flavor = "multi_thread")]
async fn the_harness_s_own_files_score_as_in_python() {
    let Ok(data) = std::env::var("REPRO_TASKS") else {
        eprintln!("skipped: REPRO_TASKS names no directory of task files");
        return;
    };
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import transformers"]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: {python} has no transformers (REPRO_PYTHON names another)");
        return;
    }
    let bench = Bench::new();
    let out = bench.home.path().join("python.json");
    let limit = std::env::var("REPRO_TASK_ITEMS").unwrap_or_else(|_| "6".to_owned());
    let mut command = Command::new(&python);
    command.env("OMP_NUM_THREADS", "1").arg(golden().join("../eval.py")).arg("score").arg(golden().join("model"));
    command.arg(&data).arg(&out).args(["--limit", &limit, "--max-length", "400"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let limit: usize = limit.parse().unwrap();
    bench.run("a", json!({ "tasks": data, "limit": limit, "threads": 1 })).await.unwrap();
    let python: Value = serde_json::from_str(&std::fs::read_to_string(out).unwrap()).unwrap();
    assert!(python.as_object().unwrap().len() >= 10, "{data} holds few tasks");
    compare(&bench, &python, "centered_v1").await;
}
