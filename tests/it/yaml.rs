//! Faulty pipeline files: every fault at once, each with file, line, column and what to do; exit code 2, and nothing runs.

use std::{fs, path::Path, process::Command};

/// Runs `repro run p.yaml --dry-run` in a directory with these files; gives the exit code and stderr.
fn run(files: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_repro"))
        .current_dir(home.path())
        .args(["run", "p.yaml", "--dry-run"])
        .args(args)
        .output()
        .unwrap();
    assert!(!home.path().join("out").exists(), "a faulty pipeline writes nothing");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// The faults that a pipeline with these stages (from line 8 on) and this `head` gives.
fn check(yaml: &str, expected: &[&str]) {
    check_with(yaml, &[], &[], expected);
}

fn check_with(yaml: &str, files: &[(&str, &str)], args: &[&str], expected: &[&str]) {
    let mut all = vec![("p.yaml", yaml), ("data/a.jsonl", "{\"text\": \"x\"}\n")];
    all.extend(files);
    let (code, stderr) = run(&all, args);
    let n = expected.len();
    let summary = format!("{n} problem{}; nothing was run\n", if n == 1 { "" } else { "s" });
    assert_eq!(stderr, format!("{}\n{summary}", expected.join("\n")));
    assert_eq!(code, 2);
}

/// A correct beginning of three lines; stages follow from line 4 on.
const HEAD: &str = "location: out\nsources: { raw: { path: data/*.jsonl } }\nstages:\n";

fn stages(text: &str) -> String {
    format!("{HEAD}{text}")
}

#[test]
fn unknown_and_missing_keys() {
    check(
        "nmae: x\nsources: { raw: { path: a, formt: jsonl } }\nstages:\n  - table: organic\n    ingest: { source: raw, fragment_row: 5 }\n    when: now\n",
        &[
            "p.yaml:1:1: the key `location` is missing; add it, e.g. `location: runs/mine`",
            "p.yaml:1:1: unknown key `nmae`; did you mean `name`?",
            "p.yaml:2:28: unknown key `formt`; did you mean `format`?",
            "p.yaml:5:28: unknown key `fragment_row`; did you mean `fragment_rows`?",
            "p.yaml:6:5: unknown key `when`; known: `table`, `model`, `for_each`, `ingest`, `sql`, `union`, `pack`, `figure`, `evaluate`, `pretrain`, `sft`, `grpo`, `tokenizer`, `fasttext`",
        ],
    );
    check("location: out\n", &["p.yaml:1:1: the key `stages` is missing; add the list of stages"]);
    check("location: out\nstages: []\n", &["p.yaml:2:9: `stages` must be a list of at least one stage, found a list"]);
}

#[test]
fn wrong_types() {
    check(
        "location: [a]\nseed: -1\nparams: { a: [1], B: 1, seed: 3 }\nmodels:\n  m: { kind: causal_lm, path: x, temperature: hot, slots: 1.5 }\n  n: { path: x }\n  o: { kind: causallm, path: x }\n  p: hello\nsources: { raw: { path: 5 } }\nstages:\n  - table: organic\n    ingest: { source: raw, fragment_rows: many }\n  - hello\n",
        &[
            "p.yaml:1:11: `location` must be a text, found a list",
            "p.yaml:2:7: `seed` must be a whole number, 0 or more, found the number `-1`",
            "p.yaml:3:14: the parameter `a` must be a number, a text or `true`/`false`",
            "p.yaml:3:19: `B` is not a plain parameter name; use lower-case letters, digits and `_`, not beginning with a digit",
            "p.yaml:3:25: `seed` is a key of the pipeline itself; give the parameter another name",
            "p.yaml:5:47: expected a number, found the text `hot`",
            "p.yaml:5:59: expected a whole number, 0 or more, found the number `1.5`",
            "p.yaml:6:6: the key `kind` is missing; add it, one of `causal_lm`, `encoder`, `fasttext`, `remote`, `tokenizer`",
            "p.yaml:7:14: `causallm` is no kind of model; did you mean `causal_lm`?",
            "p.yaml:8:6: the model `p` must be a mapping, e.g. { kind: causal_lm, path: … }",
            "p.yaml:9:25: the number `5` does not fit here; see the documentation of this key",
            "p.yaml:12:43: expected a whole number, 0 or more, found the text `many`",
            "p.yaml:13:5: a stage is a mapping with `table` or `model` and what makes it; this is the text `hello`",
        ],
    );
}

#[test]
fn stages_that_are_no_stages() {
    check(
        &stages(
            "  - ingest: raw\n  - table: a\n    model: b\n    ingest: raw\n  - table: c\n  - table: d\n    ingest: raw\n    sql: { query: SELECT 1 }\n  - table: e\n    tokenizer: { table: d, vocab_size: 300 }\n  - model: f\n    sql: { query: SELECT 1 }\n  - table: failed\n    ingest: raw\n  - table: Big-Name\n    ingest: raw\n  - table: g\n    sql: {}\n  - table: h\n    sql: { file: a.sql, query: SELECT 1 }\n",
        ),
        &[
            "p.yaml:4:5: the stage has no name; add `table: NAME` or `model: NAME`",
            "p.yaml:6:5: a stage yields one thing: give `table` or `model`, not both",
            "p.yaml:8:12: nothing says how to make `c`; add one of `ingest`, `sql`, `union`, `pack`, `figure`, `evaluate`",
            "p.yaml:9:12: `d` has `ingest`, `sql`; a stage does one thing, split it",
            "p.yaml:13:5: `tokenizer` yields a model; write `model: e`",
            "p.yaml:15:5: `sql` yields a table; write `table: f`",
            "p.yaml:16:12: `failed` is the name of a directory beside the tables; choose another name",
            "p.yaml:18:12: `Big-Name` is not a plain table name; use lower-case letters, digits and `_`, not beginning with a digit",
            "p.yaml:21:10: no SQL; give `file: NAME.sql` or `query: SELECT …`",
            "p.yaml:23:10: give `file` or `query`, not both",
        ],
    );
}

#[test]
fn a_cycle_is_named_in_full() {
    check(
        &stages(
            "  - table: a\n    sql: { query: SELECT * FROM c }\n  - table: b\n    sql: { query: SELECT * FROM a }\n  - table: c\n    sql: { query: SELECT * FROM b }\n  - table: d\n    sql: { query: SELECT * FROM d }\n",
        ),
        &[
            "p.yaml:4:12: the stages go in a circle: `a` needs `c`, `c` needs `b`, `b` needs `a`; break it at one of them",
            "p.yaml:10:12: the stages go in a circle: `d` needs `d`; break it at one of them",
        ],
    );
}

#[test]
fn duplicate_names() {
    check(
        &stages(
            "  - table: organic\n    ingest: raw\n  - table: organic\n    ingest: raw\n    ingest: raw\ntables: { organic: x, organic: y }\n",
        ),
        &[
            "p.yaml:6:12: `organic` is already made by the stage in line 4; choose another name",
            "p.yaml:8:5: `ingest` is given twice (first in line 7); remove one",
            "p.yaml:9:11: `organic` is also made by the stage in line 4; rename one",
            "p.yaml:9:23: `organic` is given twice (first in line 9); remove one",
        ],
    );
}

#[test]
fn unknown_names() {
    check_with(
        &stages(
            "  - table: organic\n    ingest: rwa\n  - table: good\n    sql: sql/good.sql\n  - table: other\n    sql: { query: \"SELECT generate(text, 'nobody') FROM organic\" }\n  - model: tok\n    tokenizer: { table: organik, vocab_size: 300 }\nmodels: { rephraser: { kind: causal_lm, path: m } }\n",
        ),
        &[(
            "sql/good.sql",
            "-- comment\nSELECT rephrase(text, 'rephrasr'),\n  fasttext_score(text)\nFROM organc\nWHERE x > $low AND y = $seed\n",
        )],
        &[],
        &[
            "p.yaml:5:13: no source `rwa`; did you mean `raw`?; add it under `sources:`",
            "p.yaml:9:19: no model `nobody`; known: `rephraser`, `tok`; add it under `models:` or a stage `model: nobody`",
            "p.yaml:11:25: no stage makes the table `organik`; did you mean `organic`?; no table of that name is at out either",
            "sql/good.sql:2:23: no model `rephrasr`; did you mean `rephraser`?; add it under `models:` or a stage `model: rephrasr`",
            "sql/good.sql:3:3: no model `hq`; known: `rephraser`, `tok`; add it under `models:` or a stage `model: hq`",
            "sql/good.sql:4:6: no stage makes the table `organc`; did you mean `organic`?; no table of that name is at out either",
            "sql/good.sql:5:11: no parameter `low`; known: `seed`; give it with --set low=VALUE or under `params`",
        ],
    );
}

#[test]
fn parameters_without_a_value() {
    let yaml = "location: out\nparams:\n  input:\n  low:\nsources: { raw: { path: \"${input}\" } }\nstages:\n  - table: organic\n    ingest: raw\n  - table: good\n    sql: { query: SELECT * FROM organic WHERE x > $low }\n  - table: more\n    sql: { query: \"SELECT '${low}'\" }\n";
    check(
        yaml,
        &[
            "p.yaml:5:25: the parameter `input` has no value; give it with --set input=VALUE or under `params`",
            "p.yaml:10:19: the parameter `low` has no value; give it with --set low=VALUE or under `params`",
            "p.yaml:12:19: `${name}` in a query; write $name, which binds the value",
        ],
    );
    check(
        "location: ${a}\nparams: { a: \"${b}\", b: \"x${a}\", c: \"${d}\" }\nstages:\n  - table: t\n    sql: { query: SELECT 1 }\n",
        &[
            "p.yaml:2:14: the parameter `a` uses itself, directly or through another",
            "p.yaml:2:25: the parameter `b` uses itself, directly or through another",
            "p.yaml:2:37: no parameter `d`; there are none; give it with --set d=VALUE",
        ],
    );
}

#[test]
fn sql_that_is_no_query() {
    check_with(
        &stages(
            "  - table: organic\n    ingest: raw\n  - table: a\n    sql: a.sql\n  - table: b\n    sql: b.sql\n  - table: c\n    sql: { query: DROP TABLE organic }\n  - table: d\n    sql: sql/missing.sql\n  - table: e\n    sql: e.sql\n",
        ),
        &[
            ("a.sql", "SELECT *\nFROM organic\nWHERE )\n"),
            ("b.sql", "SELECT 1; SELECT 2"),
            ("e.sql", "SELECT 'open\nFROM organic"),
        ],
        &[],
        &[
            "a.sql:3:7: SQL syntax: expected: an expression, found: )",
            "b.sql:1:1: 2 statements, where one SELECT is expected; split them into stages",
            "e.sql:1:8: SQL syntax: unterminated string literal",
            "p.yaml:11:19: not a query; write one SELECT",
            "p.yaml:13:10: cannot read `sql/missing.sql`: there is no such file; looked in the current directory, beside the YAML file and in the directory above it",
        ],
    );
}

#[test]
fn settings_from_outside() {
    let yaml = stages(
        "  - table: organic\n    ingest: raw\nparams: { low: 0.5 }\nmodels: { rephraser: { kind: causal_lm, path: x } }\n",
    );
    check_with(
        &yaml,
        &[],
        &[
            "--set",
            "lwo=1",
            "--set",
            "nothing",
            "--set",
            "models.rephrasr.path=x",
            "--set",
            "sources.raw.pth=x",
            "--set",
            "stages.organik.ingest=raw",
            "--set",
            "seed=x",
        ],
        &[
            "--set lwo=1: nothing in the pipeline uses the parameter `lwo`; did you mean `low`?",
            "--set models.rephrasr.path=x: the key `kind` is missing; add it, one of `causal_lm`, `encoder`, `fasttext`, `remote`, `tokenizer`; or is `rephrasr` a slip, did you mean `rephraser`?",
            "--set nothing: no `=` in it; write --set key=value",
            "--set seed=x: `seed` must be a whole number, 0 or more, found the text `x`",
            "--set sources.raw.pth=x: unknown key `pth`; did you mean `path`?",
            "--set stages.organik.ingest=raw: `stages` has no element `organik`; did you mean `organic`?",
        ],
    );
}

#[test]
fn files_that_are_no_pipelines() {
    check(
        "- a\n- b\n",
        &[
            "p.yaml:1:1: a pipeline is a mapping with `name`, `location`, `seed`, `params`, `models`, `rewards`, `sources`, `tables`, `stages`; this is a list",
        ],
    );
    let (code, stderr) = run(&[("p.yaml", "location: [out\nstages: 1\n")], &[]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("p.yaml:2:") && stderr.contains("not valid YAML: "), "{stderr}");
    let (code, stderr) = run(&[("q.yaml", "")], &[]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("p.yaml: cannot read the pipeline: "), "{stderr}");
    assert!(!Path::new("out").exists());
}
