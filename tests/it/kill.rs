//! Kill -9 at random instants, run again, compare: the finished tables equal an undisturbed run's.
//!
//! `REPRO_KILLS` sets the number of kills (default 4; the figure in the README is from 25).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const TABLES: &[&str] = &["organic", "organic_hq", "recycled", "scored", "recycled_hq", "mixture", "failed"];

fn repro() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command
}

/// The quickstart on a few pages, one of them broken, in f32.
fn pipeline_run(home: &Path, location: &Path) -> Command {
    let mut command = repro();
    command.args(["run", "pipelines/quickstart.yaml", "--set", "models.rephraser.precision=f32"]);
    command.args(["--set", &format!("location={}", location.display())]);
    command.args(["--set", &format!("sources.raw.path={}/pages*.jsonl", home.display())]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Every row of a table, ordered by id, as JSON lines.
fn rows(location: &Path, table: &str) -> String {
    let order = if table == "failed" { "row_id" } else { "id" };
    let path = location.join(table);
    if table == "failed" && !path.exists() {
        return String::new();
    }
    let mut command = repro();
    command.args(["sql", "--format", "json", "--table", &format!("t={}", path.display())]);
    let output = command.arg(format!("SELECT * FROM t ORDER BY {order}")).output().unwrap();
    assert!(output.status.success(), "{table}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn write_input(home: &Path) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/corpus/pages-0.jsonl");
    let pages = fs::read_to_string(corpus).unwrap();
    let mut lines: Vec<&str> = pages.lines().filter(|line| line.len() < 2_000).take(8).collect();
    lines.insert(3, r#"{"url": "no text here"}"#);
    fs::write(home.join("pages-a.jsonl"), lines[..5].join("\n")).unwrap();
    fs::write(home.join("pages-b.jsonl"), lines[5..].join("\n")).unwrap();
}

fn undisturbed(home: &Path) -> (PathBuf, Duration) {
    let location = home.join("undisturbed");
    let start = Instant::now();
    let output = pipeline_run(home, &location).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (location, start.elapsed())
}

#[test]
fn a_run_killed_at_any_instant_continues_to_the_same_tables() {
    let kills: u32 = std::env::var("REPRO_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let home = tempfile::tempdir().unwrap();
    write_input(home.path());
    let (expected, whole) = undisturbed(home.path());
    assert_eq!(rows(&expected, "failed").lines().count(), 1, "the page without text is in `failed`");
    for kill in 0..kills {
        let location = home.path().join(format!("killed-{kill}"));
        // Every third run is killed twice before it may finish.
        for again in 0..=u32::from(kill % 3 == 2) {
            let mut child = pipeline_run(home.path(), &location).spawn().unwrap();
            // Instants spread over the run by the golden ratio: no two alike, none favoured.
            let share = (f64::from(kill + again * kills) * 0.618_034 + 0.1).fract();
            std::thread::sleep(whole.mul_f64(share));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let output = pipeline_run(home.path(), &location).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for table in TABLES {
            assert_eq!(rows(&location, table), rows(&expected, table), "table {table} after kill {kill}");
        }
        fs::remove_dir_all(&location).unwrap();
    }
}
