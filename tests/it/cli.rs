//! The command line from outside: what runs, what is skipped and why, what goes to stdout, exit codes.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A pipeline without models: 5 documents, one of them without text.
const PIPELINE: &str = "\
location: out
params: { low: 2 }
sources: { raw: { path: \"data/*.jsonl\" } }
stages:
  - table: organic
    ingest: raw
  - table: scored
    sql: { query: \"SELECT id, text, character_length(text) AS n FROM organic\" }
  - table: long
    sql: long.sql
  - table: total
    sql: { query: \"SELECT count(*) AS docs FROM organic\" }
";

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        home.write("p.yaml", PIPELINE);
        home.write("long.sql", "SELECT id, text FROM scored\nWHERE n >= $low\n");
        home.write("data/a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"bb\"}\n{\"text\": \"ccc\"}\n");
        home.write("data/b.jsonl", "{\"text\": \"dddd\"}\n{\"nothing\": 1}\n");
        home
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
        command.current_dir(self.0.path()).args(args).stdin(Stdio::null());
        command
    }
    /// Exit code, stdout, stderr.
    fn repro(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
    /// Stdout of a command that must succeed.
    fn good(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.repro(args);
        assert_eq!(code, 0, "{args:?}: {stderr}");
        stdout
    }
    /// Stderr of a command that must end with `code` and give no result.
    fn bad(&self, code: i32, args: &[&str]) -> String {
        let (ended, stdout, stderr) = self.repro(args);
        assert_eq!((ended, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
        stderr
    }
    /// What `run --dry-run` says of each stage.
    fn schedule(&self, args: &[&str]) -> Vec<String> {
        let all = [&["run", "p.yaml", "--dry-run"], args].concat();
        let stdout = self.good(&all);
        let lines = stdout.lines().skip(1).take_while(|line| !line.is_empty());
        lines
            .map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect::<Vec<_>>())
            .map(|c| format!("{} {}", c[0], c[c.len() - 1]))
            .collect()
    }
    fn rows(&self, table: &str, query: &str) -> String {
        self.good(&["sql", "--table", &format!("t=out/{table}"), "--format", "csv", query])
    }
    fn changed(&self, table: &str) -> std::time::SystemTime {
        fs::metadata(self.path(&format!("out/{table}/_manifest.json"))).unwrap().modified().unwrap()
    }
}

/// The cells of the line of a run's summary that begins with `stage`.
fn line<'a>(stdout: &'a str, stage: &str) -> Vec<&'a str> {
    let found = stdout.lines().find(|line| line.split_whitespace().next() == Some(stage));
    found.unwrap_or_else(|| panic!("no {stage} in {stdout}")).split_whitespace().collect()
}

const FRESH: &[&str] =
    &["organic run: not made yet", "scored run: not made yet", "long run: not made yet", "total run: not made yet"];
const DONE: &[&str] = &[
    "organic skip: finished, unchanged",
    "scored skip: finished, unchanged",
    "long skip: finished, unchanged",
    "total skip: finished, unchanged",
];

#[test]
fn a_run_makes_tables_and_a_second_run_makes_none() {
    let home = Home::new();
    assert_eq!(home.schedule(&[]), FRESH);
    assert!(!home.path("out").exists(), "a dry run writes nothing");
    let first = home.good(&["run", "p.yaml"]);
    assert_eq!(line(&first, "organic")[1..5], ["5", "4", "0", "1"], "{first}");
    assert_eq!(line(&first, "scored")[1..5], ["4", "4", "0", "0"], "{first}");
    assert_eq!(line(&first, "long")[1..5], ["4", "3", "1", "0"], "{first}");
    assert!(first.contains("tables: out/<table>/"), "{first}");
    assert!(first.contains("failed rows: out/failed/"), "{first}");
    assert_eq!(home.rows("long", "SELECT text FROM t ORDER BY text"), "text\nbb\nccc\ndddd\n");
    let before: Vec<_> = ["organic", "scored", "long", "total"].iter().map(|t| home.changed(t)).collect();
    assert_eq!(home.schedule(&[]), DONE);
    let second = home.good(&["run", "p.yaml"]);
    assert_eq!(second.matches("unchanged").count(), 4, "{second}");
    let after: Vec<_> = ["organic", "scored", "long", "total"].iter().map(|t| home.changed(t)).collect();
    assert_eq!(before, after);
}

#[test]
fn only_what_a_change_reaches_runs_again() {
    let home = Home::new();
    home.good(&["run", "p.yaml"]);
    let low = home.schedule(&["--set", "low=3"]);
    assert_eq!(low[2], "long run: changed: `low` from 2 to 3");
    assert_eq!([&low[..2], &low[3..]].concat(), [&DONE[..2], &DONE[3..]].concat());
    home.write("long.sql", "SELECT id FROM scored WHERE n >= $low");
    assert_eq!(home.schedule(&[])[2], "long run: changed: its settings or SQL");
    home.write("data/c.jsonl", "{\"text\": \"ee\"}\n");
    let more = home.schedule(&[]);
    assert!(more[0].starts_with("organic run: changed: the input `"), "{more:?}");
    assert!(more[0].ends_with("data/c.jsonl`"), "{more:?}");
    assert_eq!(more[1], "scored run: changed: the input `organic`");
    home.good(&["run", "p.yaml", "--set", "low=1"]);
    assert_eq!(home.rows("long", "SELECT count(*) AS n FROM t"), "n\n5\n");
    assert_eq!(home.rows("total", "SELECT docs FROM t"), "docs\n5\n");
}

#[test]
fn force_makes_a_stage_and_what_depends_on_it_again() {
    let home = Home::new();
    home.good(&["run", "p.yaml"]);
    let forced = home.schedule(&["--force", "scored"]);
    assert_eq!(forced, [DONE[0], "scored run: forced", "long run: depends on `scored`", DONE[3]]);
    let names = ["organic", "scored", "long", "total"];
    let before: Vec<_> = names.iter().map(|t| home.changed(t)).collect();
    std::thread::sleep(Duration::from_millis(20));
    home.good(&["run", "p.yaml", "--force", "scored"]);
    let again: Vec<bool> = names.iter().zip(before).map(|(t, then)| home.changed(t) > then).collect();
    assert_eq!(again, [false, true, true, false]);
}

#[test]
fn only_runs_one_stage_on_finished_inputs() {
    let home = Home::new();
    let stderr = home.bad(1, &["run", "p.yaml", "--only", "long"]);
    assert!(
        stderr.contains(
            "stage `long` reads `scored`, not finished at out; run without --only, or with --only scored first"
        ),
        "{stderr}"
    );
    home.good(&["run", "p.yaml", "--only", "organic"]);
    assert!(home.path("out/organic/_manifest.json").exists() && !home.path("out/scored").exists());
    home.good(&["run", "p.yaml", "--only", "total"]);
    assert_eq!(home.schedule(&[]), [DONE[0], FRESH[1], FRESH[2], DONE[3]]);
    assert_eq!(
        home.bad(2, &["run", "p.yaml", "--only", "lnog"]),
        "error: --only lnog: no such stage; did you mean `long`?\n"
    );
    assert!(home.bad(2, &["run", "p.yaml", "--force", "x"]).contains("--force x: no such stage; known: "));
}

#[test]
fn a_failing_stage_is_named_and_finished_tables_stay() {
    let home = Home::new();
    home.write("long.sql", "SELECT nothing FROM scored");
    let (code, stdout, stderr) = home.repro(&["run", "p.yaml"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("stage `long`") && stderr.contains("long.sql") && stderr.contains("nothing"), "{stderr}");
    assert!(stderr.contains("run the same command again to continue"), "{stderr}");
    assert_eq!(line(&stdout, "scored")[2], "4", "{stdout}");
    home.write("long.sql", "SELECT id FROM scored");
    assert_eq!(home.schedule(&[])[..2], DONE[..2]);
    home.good(&["run", "p.yaml"]);
}

#[test]
fn tables_of_earlier_runs_and_of_other_places_can_be_read() {
    let home = Home::new();
    home.good(&["run", "p.yaml"]);
    let yaml = "location: out\ntables: { other: out/scored, lines: data/b.jsonl }\nstages:\n  - table: joined\n    sql: { query: SELECT other.id FROM other JOIN organic ON other.id = organic.id }\n  - table: read\n    sql: { query: SELECT text FROM lines }\n";
    home.write("q.yaml", yaml);
    home.good(&["run", "q.yaml"]);
    assert_eq!(home.rows("joined", "SELECT count(*) AS n FROM t"), "n\n4\n");
    assert_eq!(home.rows("read", "SELECT count(*) AS n FROM t"), "n\n2\n");
    assert!(home.good(&["run", "q.yaml", "--dry-run"]).contains("0 of 2 stages would run"));
}

#[test]
fn queries_in_every_format_and_from_every_side() {
    let home = Home::new();
    home.good(&["run", "p.yaml"]);
    let query = "SELECT text, n, n = 1 AS one, NULL AS nothing FROM scored ORDER BY n LIMIT 2";
    let ask = |more: &[&str]| home.good(&[&["sql", "--pipeline", "p.yaml"], more].concat());
    assert_eq!(ask(&["--format", "csv", query]), "text,n,one,nothing\na,1,true,\nbb,2,false,\n");
    assert_eq!(
        ask(&["--format", "json", query]),
        "{\"text\":\"a\",\"n\":1,\"one\":true,\"nothing\":null}\n{\"text\":\"bb\",\"n\":2,\"one\":false,\"nothing\":null}\n"
    );
    let table = ask(&[query]);
    assert_eq!(table.lines().next(), Some("+------+---+-------+---------+"), "{table}");
    assert!(table.contains("| bb   | 2 | false | NULL    |"), "{table}");
    assert_eq!(ask(&["--format", "csv", "SELECT id FROM scored WHERE false"]), "id\n");
    assert_eq!(ask(&["--format", "csv", "SELECT $low + 1 AS x, $seed AS seed"]), "x,seed\n3,42\n");
    assert_eq!(ask(&["--format", "csv", "--set", "low=7", "SELECT $low AS x"]), "x\n7\n");
    home.write("q.sql", "-- a file\nSELECT count(*) AS n FROM failed;\n");
    assert_eq!(ask(&["--format", "csv", "--file", "q.sql"]), "n\n1\n");
    assert_eq!(home.good(&["sql", "--format", "csv", "--set", "x=abc", "SELECT $x AS x"]), "x\nabc\n");
    let glob =
        home.good(&["sql", "--format", "csv", "--table", "raw=data/*.jsonl", "SELECT count(text) AS n FROM raw"]);
    assert_eq!(glob, "n\n4\n");
    let long = "SELECT repeat('x', 300) AS long";
    assert!(home.good(&["sql", long]).contains(&"x".repeat(300)), "nothing is shortened off a terminal");
}

#[test]
fn a_query_may_come_from_standard_input() {
    let home = Home::new();
    let mut command = home.command(&["sql", "--format", "csv"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"SELECT 1 AS a\nUNION ALL SELECT 2\nORDER BY a;\n").unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((child.wait().unwrap().code(), text.as_str()), (Some(0), "a\n1\n2\n"));
}

#[test]
fn faulty_queries_say_what_is_there() {
    let home = Home::new();
    let stderr = home.bad(1, &["sql", "--pipeline", "p.yaml", "SELECT * FROM scored"]);
    assert_eq!(stderr, "error: the stage `scored` has not been run yet; `repro run` makes it\n");
    home.good(&["run", "p.yaml"]);
    let ask = |query| home.bad(1, &["sql", "--pipeline", "p.yaml", query]);
    let stderr = ask("SELECT * FROM scroed");
    assert!(stderr.contains("scroed") && stderr.contains("scored"), "{stderr}");
    let stderr = ask("SELECT *\nFROM scored WHERE WHERE");
    assert!(stderr.to_lowercase().contains("line 2, column 19"), "{stderr}");
    let stderr = ask("SELECT rephrase(text, 'nobody') FROM scored");
    assert!(stderr.contains("nobody"), "{stderr}");
    let stderr = ask("DROP TABLE scored");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(home.path("out/scored/_manifest.json").exists());
    let stderr = home.bad(1, &["sql", "--table", "x=none/*.parquet", "SELECT * FROM x"]);
    assert!(stderr.contains("the table `x`") && stderr.contains("none/*.parquet"), "{stderr}");
}

#[test]
fn bad_usage_names_the_flag() {
    let home = Home::new();
    for (args, parts) in [
        (&["sql", "--format", "xml", "SELECT 1"][..], &["--format", "xml", "table, csv, json"][..]),
        (&["sql", "--table", "x", "SELECT 1"], &["--table", "NAME=PATH"]),
        (&["sql", "--device", "gpu", "SELECT 1"], &["--device", "cuda:N"]),
        (&["sql", "--file", "none.sql"], &["--file none.sql: cannot read it"]),
        (&["sql", "--set", "a.b=1", "SELECT 1"], &["--set a.b=1: without --pipeline, write --set name=value"]),
        (&["run"], &["PIPELINE.yaml"]),
        (&["run", "p.yaml", "--onyl", "x"], &["--onyl", "--only"]),
        (&["runn", "p.yaml"], &["runn", "'run'"]),
    ] {
        let stderr = home.bad(2, args);
        for part in parts {
            assert!(stderr.contains(part), "{args:?}: {part}: {stderr}");
        }
    }
    assert!(home.good(&["--help"]).contains("inspect"));
    assert!(home.good(&["--version"]).starts_with("repro "));
}

#[test]
fn inspect_shows_tables_locations_and_files() {
    let home = Home::new();
    home.good(&["run", "p.yaml"]);
    let table = home.good(&["inspect", "out/organic"]);
    assert!(table.starts_with("table organic: 4 rows, "), "{table}");
    for part in [
        "rows: 5 input = 4 kept + 0 dropped + 1 failed",
        "source_row",
        "row 1",
        "failed rows by error:",
        "made by: ingest",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let long = home.good(&["inspect", "out/long/"]);
    for part in ["rows: 4 input = 3 kept + 1 dropped + 0 failed", "param: low = 2", "inputs: scored"] {
        assert!(long.contains(part), "{part}: {long}");
    }
    let location = home.good(&["inspect", "out"]);
    assert_eq!(line(&location, "organic")[1..5], ["5", "4", "0", "1"], "{location}");
    let file = fs::read_dir(home.path("out/long"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "parquet"));
    let file = home.good(&["inspect", file.unwrap().to_str().unwrap()]);
    assert!(file.contains("rows, 1 file, ") && file.contains("Utf8"), "{file}");
    assert!(home.good(&["inspect", "data/a.jsonl"]).contains("3 rows, 1 file"));
    assert_eq!(home.bad(1, &["inspect", "nothing"]), "error: nothing: there is no such file or directory\n");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let home = Home::new();
    let mut command = home.command(&["sql", "--format", "csv", "SELECT * FROM generate_series(1, 3000000)"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(0), String::new()));
}

/// A run whose second stage takes for ever.
fn endless(home: &Home) -> Child {
    home.write(
        "slow.yaml",
        "location: out\nsources: { raw: data }\nstages:\n  - table: organic\n    ingest: raw\n  - table: slow\n    sql: { query: \"SELECT count(*) AS n FROM organic, generate_series(1, 1000000000000) AS s(i)\" }\n",
    );
    let mut child = home.command(&["run", "slow.yaml"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !home.path("out/slow").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(Instant::now() < deadline, "the second stage never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    child
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn ctrl_c_keeps_what_is_done_and_says_how_to_go_on() {
    let home = Home::new();
    let child = endless(&home);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("stopping at the next safe point"), "{stderr}");
    assert!(stderr.contains("stopped; what is done is kept, `repro run slow.yaml` continues"), "{stderr}");
    assert!(Path::new(&home.path("out/organic/_manifest.json")).exists());
    assert!(!home.path("out/slow/_manifest.json").exists());
}

#[test]
fn ctrl_c_twice_ends_at_once() {
    let home = Home::new();
    let child = endless(&home);
    interrupt(&child);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn models_says_what_is_missing() {
    let home = Home::new();
    let stderr = home.bad(1, &["models"]);
    assert!(stderr.contains("no directory assets/ here"), "{stderr}");
    fs::create_dir(home.path("empty")).unwrap();
    assert!(home.bad(1, &["models", "empty"]).contains("empty: no model in it"));
    home.write("m/broken/config.json", "{}");
    let shown = home.good(&["models", "m"]);
    assert!(shown.contains("broken") && shown.contains("no: "), "{shown}");
}
