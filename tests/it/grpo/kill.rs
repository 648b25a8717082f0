//! Kill -9 at random instants, run again: the same weights, bit for bit, and the same rollouts. Also a disk that fills up
//! while a checkpoint is written.
//!
//! `REPRO_KILLS` sets the number of kills (default 3).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const PIPELINE: &str = r#"
name: kill
location: LOCATION
rewards: { dataman: { enabled: false }, bertscore: { enabled: false }, length: { max_ratio: 0.8 } }
sources:
  pages: { path: HOME/pages.jsonl }
stages:
  - table: pages
    ingest: pages
  - table: pairs
    sql:
      query: "SELECT text AS prompt, split_part(text, '.', 1) AS completion FROM pages"
  - model: words
    tokenizer: { table: pages, vocab_size: 300 }
  - model: small
    sft:
      init: { architecture: qwen3, hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, ffn: 64, tokenizer: words, init_std: 0.1 }
      pairs: pairs
      steps: 30
      learning_rate: 0.01
      batch_tokens: 512
      max_length: 400
      precision: f32
      export: f32
      threads: 1
      prompt: assets/prompts/plain.txt
      settings: { marker: "", temperature: 0.0 }
  - model: better
    grpo:
      init: small
      prompts: pages
      steps: 12
      prompts_per_step: 4
      num_generations: 4
      max_prompt_length: 160
      max_completion_length: 32
      learning_rate: 0.001
      precision: f32
      export: f32
      threads: 1
      slots: 8
      save_steps: 3
      eval_steps: 0
"#;

fn write_input(home: &Path) {
    let things = ["rain", "river", "plain", "harbour", "mill", "orchard"];
    let page = |i: usize| {
        format!("{{\"text\": \"The {} is by the {} {i}. Home and login.\"}}", things[i % 6], things[i / 6 % 6])
    };
    fs::write(home.join("pages.jsonl"), (0..24).map(page).collect::<Vec<_>>().join("\n")).unwrap();
}

fn pipeline(home: &Path, location: &Path) -> PathBuf {
    let text = PIPELINE.replace("LOCATION", location.to_str().unwrap()).replace("HOME", home.to_str().unwrap());
    let file = location.with_extension("yaml");
    fs::write(&file, text).unwrap();
    file
}

fn run(home: &Path, location: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command.arg("run").arg(pipeline(home, location)).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn weights(location: &Path) -> Vec<u8> {
    fs::read(location.join("models/better/model.safetensors")).unwrap()
}

fn rollouts(location: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
    command.args(["sql", "--format", "json", "--table"]);
    command.arg(format!("r={}", location.join("better_rollouts").display()));
    let output = command.arg("SELECT * FROM r ORDER BY step, prompt_id, sample").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// A location where all that comes before the `grpo` stage is finished; and the whole run's, with the time the stage took.
fn prepare(home: &Path) -> (PathBuf, PathBuf, Duration) {
    write_input(home);
    let (before, whole) = (home.join("before"), home.join("whole"));
    for only in ["pages", "pairs", "words", "small"] {
        succeed(run(home, &before).args(["--only", only]));
    }
    copy(&before, &whole);
    let start = Instant::now();
    succeed(&mut run(home, &whole));
    (before, whole, start.elapsed())
}

#[test]
fn a_run_killed_at_any_instant_continues_to_the_same_weights() {
    let kills: u32 = std::env::var("REPRO_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let home = tempfile::tempdir().unwrap();
    let (before, whole, took) = prepare(home.path());
    let (expected, expected_rows) = (weights(&whole), rollouts(&whole));
    assert_eq!(expected_rows.lines().filter(|line| line.contains("\"step\"")).count(), 12 * 16);
    // The tables beside a model are known by the pipeline's name for them.
    let ask = |location: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
        command.args(["sql", "--format", "csv", "SELECT count(*) AS n FROM better_rollouts", "--pipeline"]);
        command.arg(pipeline(home.path(), location)).output().unwrap()
    };
    assert_eq!(String::from_utf8_lossy(&ask(&whole).stdout), "n\n192\n");
    let error = String::from_utf8_lossy(&ask(&before).stderr).into_owned();
    assert!(error.contains("the stage `better` has not been run yet"), "{error}");
    for kill in 0..kills {
        let location = home.path().join(format!("killed-{kill}"));
        copy(&before, &location);
        for again in 0..=u32::from(kill % 3 == 2) {
            let mut child = run(home.path(), &location).spawn().unwrap();
            let share = (f64::from(kill + again * kills) * 0.618_034 + 0.1).fract();
            std::thread::sleep(took.mul_f64(share));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        succeed(&mut run(home.path(), &location));
        assert!(weights(&location) == expected, "weights after kill {kill}");
        assert_eq!(rollouts(&location), expected_rows, "rollouts after kill {kill}");
        fs::remove_dir_all(&location).unwrap();
    }
}

/// Ctrl-C, which wrappers like `timeout` pass on twice: the step in flight ends, its checkpoint is there, and the run goes on from it.
#[cfg(unix)]
#[test]
fn an_interrupt_that_arrives_twice_leaves_a_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let (before, whole, _) = prepare(home.path());
    let location = home.path().join("stopped");
    copy(&before, &location);
    let child = run(home.path(), &location).spawn().unwrap();
    let steps = || fs::read_dir(location.join("better_rollouts")).map_or(0, Iterator::count);
    let begin = Instant::now();
    while steps() == 0 && begin.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    for _ in 0..2 {
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !error.contains("stopped at once"), "{error}");
    assert!(error.contains("interrupted after step") && error.contains("stopped; what is done is kept"), "{error}");
    assert_eq!(fs::read_dir(location.join("_checkpoints/better")).unwrap().count(), 1);
    succeed(&mut run(home.path(), &location));
    assert!(weights(&location) == weights(&whole));
}

/// A file size limit stands for a full disk: the checkpoint does not fit, the run says so, and goes on once it does.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_while_a_checkpoint_is_written() {
    let home = tempfile::tempdir().unwrap();
    let (before, whole, _) = prepare(home.path());
    let location = home.path().join("full");
    copy(&before, &location);
    let script = format!(
        "trap '' XFSZ; ulimit -f 200; exec {} run {}",
        env!("CARGO_BIN_EXE_repro"),
        pipeline(home.path(), &location).display()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("cannot write the checkpoint of step 3"), "{error}");
    assert!(!location.join("models/better").exists());
    let left = fs::read_dir(location.join("_checkpoints/better")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "no half checkpoint is left");
    succeed(&mut run(home.path(), &location));
    assert!(weights(&location) == weights(&whole));
}
