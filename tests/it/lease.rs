//! Two runs at one location: one makes a stage, the other is told or finds it finished; what a dead run left is taken over.

use super::s3::{Faults, Server};
use repro::{
    pipeline::{
        plan::Plan,
        run::{Report, Scheduled, Selection, run, schedule},
        stage::{Progress, Silent},
    },
    storage::{
        lease::{LEASE, Lease, Terms},
        location::Location,
    },
    udf::models::Models,
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const SHORT: Terms =
    Terms { beat: Duration::from_millis(60), life: Duration::from_millis(400), patience: Duration::from_millis(200) };

async fn take(location: &Location) -> anyhow::Result<Lease> {
    Lease::take(location, SHORT, &CancellationToken::new()).await
}

/// What the lease file says, with `change` made to it.
async fn rewrite(location: &Location, change: &[(&str, serde_json::Value)]) {
    let bytes = location.read(LEASE).await.unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    for (key, value) in change {
        record[key] = value.clone();
    }
    location.write(LEASE, serde_json::to_vec(&record).unwrap().into()).await.unwrap();
}

/// What holds on a local disk and on S3.
async fn one_at_a_time(location: &Location) {
    let held = take(location).await.unwrap();
    let error = take(location).await.unwrap_err().to_string();
    let process = format!("process {} on ", std::process::id());
    for part in [&format!("another run is making {location}: "), &process, "since 20", "run the same command again"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(held.release().await, None);
    assert!(location.read(LEASE).await.unwrap().is_none(), "a lease given back leaves nothing");

    let racing = futures::future::join_all((0..4).map(|_| take(location))).await;
    let mut won: Vec<Lease> = racing.into_iter().filter_map(Result::ok).collect();
    assert_eq!(won.len(), 1, "of several that begin together one wins");
    tokio::time::sleep(SHORT.beat * 3).await;
    assert_eq!(won.remove(0).release().await, None, "it is held over renewals");
}

/// A holder on another machine: alive as long as the object changes.
async fn elsewhere(location: &Location) {
    let held = take(location).await.unwrap();
    let kept = location.read(LEASE).await.unwrap().unwrap();
    assert_eq!(held.release().await, None);
    location.write(LEASE, kept).await.unwrap();
    let there = ("machine", serde_json::json!("another"));
    rewrite(location, &[there.clone(), ("host", "far".into())]).await;
    let begun = Instant::now();
    let taken = take(location).await.unwrap();
    assert!(begun.elapsed() >= SHORT.life, "taken over after {:?}", begun.elapsed());
    assert_eq!(taken.release().await, None);

    let held = take(location).await.unwrap();
    let kept = location.read(LEASE).await.unwrap().unwrap();
    assert_eq!(held.release().await, None);
    location.write(LEASE, kept).await.unwrap();
    rewrite(location, &[there, ("host", "far".into())]).await;
    let living = location.clone();
    let renewing = tokio::spawn(async move {
        for n in 0.. {
            tokio::time::sleep(SHORT.beat).await;
            rewrite(&living, &[("renewed", n.into())]).await;
        }
    });
    let error = take(location).await.unwrap_err().to_string();
    assert!(error.contains("on far"), "{error}");
    renewing.abort();
    location.delete(LEASE).await.unwrap();
}

/// A holder that was cut off learns that another took over, and stops.
async fn lost(location: &Location) {
    let stop = CancellationToken::new();
    let held = Lease::take(location, SHORT, &stop).await.unwrap();
    // The test's S3 server checks and writes in two steps: a renewal between them wins, so the other takes over again until it is noticed.
    let taken = async {
        loop {
            rewrite(location, &[("owner", "another".into()), ("host", "far".into())]).await;
            if tokio::time::timeout(SHORT.beat * 3, stop.cancelled()).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(SHORT.life * 20, taken).await.unwrap();
    let reason = held.release().await.unwrap();
    assert!(reason.contains("another run took over") && reason.contains("on far"), "{reason}");
    assert!(location.read(LEASE).await.unwrap().is_some(), "the other's lease stays");
    location.delete(LEASE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_lease_is_held_by_one() {
    let home = tempfile::tempdir().unwrap();
    let location = Location::parse(home.path().join("out/t").to_str().unwrap()).unwrap();
    one_at_a_time(&location).await;
    elsewhere(&location).await;
    lost(&location).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_on_s3_is_held_by_one() {
    let server = Server::start(Faults::default()).await;
    server.bucket("lease");
    let location = Location::parse("s3://lease/out/t").unwrap();
    one_at_a_time(&location).await;
    elsewhere(&location).await;
    lost(&location).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_process_holds_nothing() {
    let home = tempfile::tempdir().unwrap();
    let location = Location::parse(home.path().to_str().unwrap()).unwrap();
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    for change in [("process", dead.id().into()), ("started", serde_json::json!(1))] {
        let held = take(&location).await.unwrap();
        let kept = location.read(LEASE).await.unwrap().unwrap();
        assert_eq!(held.release().await, None);
        location.write(LEASE, kept).await.unwrap();
        rewrite(&location, &[change]).await;
        let begun = Instant::now();
        let taken = take(&location).await.unwrap();
        assert!(begun.elapsed() < SHORT.life, "taken over after {:?}", begun.elapsed());
        assert_eq!(taken.release().await, None);
    }
    // A file that says nothing blocks for a life and no longer.
    fs::create_dir_all(home.path()).unwrap();
    fs::write(home.path().join(LEASE), "").unwrap();
    let begun = Instant::now();
    let taken = take(&location).await.unwrap();
    assert!(begun.elapsed() >= SHORT.life);
    drop(taken);
    assert!(!home.path().join(LEASE).exists(), "dropped, it is given back");
}

/// A pipeline without models whose last stage makes one.
const PIPELINE: &str = "\
params: { low: 2 }
stages:
  - table: organic
    ingest: raw
  - table: long
    sql: { query: \"SELECT id, text, CASE WHEN id < '8' THEN 'good' ELSE 'bad' END AS label FROM organic WHERE character_length(text) >= $low\" }
  - model: classifier
    fasttext: { table: long, dim: 4, epoch: 1, bucket: 100 }
";

async fn planned(home: &Path, location: &str, set: &[&str]) -> (Plan, Vec<Scheduled>, Arc<Models>) {
    let lines: String = (0..200).map(|n| format!("{{\"text\": \"{} word{n} and more\"}}\n", "x".repeat(n))).collect();
    fs::create_dir_all(home.join("data")).unwrap();
    if !home.join("data/a.jsonl").exists() {
        fs::write(home.join("data/a.jsonl"), lines).unwrap();
    }
    let yaml = format!("location: {location}\nsources: {{ raw: {}/data }}\n{PIPELINE}", home.display());
    fs::write(home.join("p.yaml"), yaml).unwrap();
    let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
    let plan = Plan::load(&home.join("p.yaml"), &set).await.unwrap();
    let models = Models::new(plan.models.clone(), plan.seed);
    let scheduled = schedule(&plan, &models, &Selection::default()).await.unwrap();
    (plan, scheduled, models)
}

async fn go((plan, scheduled, models): &(Plan, Vec<Scheduled>, Arc<Models>)) -> Report {
    let progress: Arc<dyn Progress> = Arc::new(Silent);
    run(plan, scheduled, models, &progress, &CancellationToken::new()).await
}

fn skipped(report: &Report) -> Vec<(&str, bool)> {
    report.stages.iter().map(|stage| (stage.name.as_str(), stage.skipped)).collect()
}

async fn a_second_run_finds_what_the_first_made(location: &str) {
    let home = tempfile::tempdir().unwrap();
    let (first, second) = (planned(home.path(), location, &[]).await, planned(home.path(), location, &[]).await);
    let report = go(&first).await;
    assert!(report.failure.is_none(), "{:?}", report.failure);
    assert_eq!(skipped(&report), [("organic", false), ("long", false), ("classifier", false)]);
    let report = go(&second).await;
    assert!(report.failure.is_none(), "{:?}", report.failure);
    assert_eq!(skipped(&report), [("organic", true), ("long", true), ("classifier", true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_another_run_finished_meanwhile_is_not_made_again() {
    let home = tempfile::tempdir().unwrap();
    a_second_run_finds_what_the_first_made(home.path().to_str().unwrap()).await;
    let server = Server::start(Faults::default()).await;
    server.bucket("meanwhile");
    a_second_run_finds_what_the_first_made("s3://meanwhile/out").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_another_run_made_anew_are_not_taken_for_the_old_ones() {
    let home = tempfile::tempdir().unwrap();
    let location = home.path().join("out").display().to_string();
    assert!(go(&planned(home.path(), &location, &[]).await).await.failure.is_none());
    fs::remove_file(home.path().join("out/models/classifier/_manifest.json")).unwrap();
    let here = planned(home.path(), &location, &[]).await;
    let mut other = planned(home.path(), &location, &["low=100"]).await;
    other.1.truncate(2);
    assert!(go(&other).await.failure.is_none());
    let report = go(&here).await;
    let error = format!("{:#}", report.failure.unwrap());
    assert!(error.contains("stage `classifier`") && error.contains("`long` was made anew by another run"), "{error}");
    assert!(!home.path().join("out/models/classifier/_manifest.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_being_made_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let location = home.path().join("out").display().to_string();
    let model = Location::parse(&location).unwrap().join("models/classifier");
    let held = take(&model).await.unwrap();
    fs::write(home.path().join("out/models/classifier/metrics.parquet"), "the other's").unwrap();
    let report = go(&planned(home.path(), &location, &[]).await).await;
    let error = format!("{:#}", report.failure.unwrap());
    assert!(error.contains("stage `classifier`: another run is making"), "{error}");
    assert!(!report.stopped && report.stages.len() == 2);
    assert!(home.path().join("out/models/classifier/metrics.parquet").exists());
    assert_eq!(held.release().await, None);
    assert!(go(&planned(home.path(), &location, &[]).await).await.failure.is_none());
    assert!(!home.path().join("out/models/classifier").join(LEASE).exists());
}

/// Kills a run in the middle of a stage and runs again: nothing has to be waited for.
#[test]
fn a_killed_run_does_not_block_the_next() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("data")).unwrap();
    fs::write(home.path().join("data/a.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    let yaml = |n: u64| {
        format!(
            "location: out\nsources: {{ raw: data }}\nstages:\n  - table: organic\n    ingest: raw\n  - table: slow\n    sql: {{ query: \"SELECT count(*) AS n FROM organic, generate_series(1, {n}) AS s(i)\" }}\n"
        )
    };
    let repro = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
        command.current_dir(home.path()).args(["run", "p.yaml"]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    fs::write(home.path().join("p.yaml"), yaml(1_000_000_000_000)).unwrap();
    let mut first = repro().spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !home.path().join("out/slow").join(LEASE).exists() {
        assert!(Instant::now() < deadline && first.try_wait().unwrap().is_none(), "the second stage never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = repro().output().unwrap();
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    let holder = format!("stage `slow`: another run is making out/slow: process {} on ", first.id());
    assert!(stderr.contains(&holder), "{stderr}");
    first.kill().unwrap();
    first.wait().unwrap();
    fs::write(home.path().join("p.yaml"), yaml(10)).unwrap();
    let begun = Instant::now();
    let third = repro().output().unwrap();
    assert!(third.status.success(), "{}", String::from_utf8_lossy(&third.stderr));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
