//! Bad input that no other file here covers: models and tokenizers that do not fit, odd texts in every scoring function, places that cannot be
//! written to, a full disk under a whole run, Ctrl-C under a query, errors in SQL that say what to write instead.

use super::operator::fake::cells;
use repro::{
    catalog::session::{Failures, Session, SessionOptions},
    udf::{
        encoder::EncoderSpec,
        models::{CausalLmSpec, FastTextSpec, ModelSpec, Models},
    },
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn causal(path: &Path) -> ModelSpec {
    let path = path.display().to_string();
    ModelSpec::CausalLm(CausalLmSpec {
        path,
        precision: Some("f32".into()),
        max_new_tokens: Some(29),
        ..CausalLmSpec::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(root("tests/golden/decoders/qwen3").join(name), dir.path().join(name)).unwrap();
    }
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(root("assets/pocket-rephraser").join(name), dir.path().join(name)).unwrap();
    }
    let models = Models::new(BTreeMap::from([("rephraser".to_owned(), causal(dir.path()))]), 42);
    let error = models.language_model("rephraser").await.err().map(|e| format!("{e:#}")).unwrap();
    for part in ["model `rephraser`", "4096 tokens", "vocabulary is 96", "does not fit the model"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// A session with small models of every kind, and a table of odd texts.
fn session(home: &Path) -> Session {
    for name in ["config.json", "model.safetensors"] {
        fs::copy(root("tests/golden/encoders/bert").join(name), home.join(name)).unwrap();
    }
    let all: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(root("tests/golden/tokenizers.json")).unwrap()).unwrap();
    let words = &all.iter().find(|t| t["name"] == "wordpiece").unwrap()["file"];
    fs::write(home.join("tokenizer.json"), words.to_string()).unwrap();
    let encoder = EncoderSpec {
        path: home.display().to_string(),
        precision: Some("f32".into()),
        max_tokens: Some(72),
        ..EncoderSpec::default()
    };
    let classifier = root("tests/golden/fasttext/softmax_words.bin").display().to_string();
    let models = BTreeMap::from([
        ("dataman".to_owned(), causal(&root("tests/golden/dataman"))),
        ("bertscore".to_owned(), ModelSpec::Encoder(encoder)),
        ("hq".to_owned(), ModelSpec::Fasttext(FastTextSpec { path: classifier })),
    ]);
    let options = SessionOptions {
        models: Models::new(models, 42),
        params: BTreeMap::new(),
        failures: Failures::Null(Arc::new(|id, error| panic!("row {id} failed: {error}"))),
        partitions: 1,
    };
    Session::new(options).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_texts_have_every_score() {
    let home = tempfile::tempdir().unwrap();
    let session = session(home.path());
    let odd = [
        "''",
        "' '",
        "chr(10) || chr(9) || chr(160)",
        "'house'",
        "repeat('the house ', 50000)",
        "'😀😀🎉'",
        "'مرحبا بالعالم'",
        "chr(1) || 'a' || chr(7) || chr(27) || '[0m' || chr(8238) || chr(65279)",
    ];
    for text in odd {
        let query = format!(
            "SELECT dataman(t).overall BETWEEN 1 AND 5 AS a, (bertscore(t, t)).f1 BETWEEN -1e-6 AND 1 + 1e-6 AS b, \
             (bertscore(t, 'the house')).f1 <= 1 AS c, structure_preserved(t, t) AS d, \
             fasttext_score(t) BETWEEN 0 AND 1 AS e, fasttext_label(t) IS NOT NULL AS f, \
             (repro_reward(t, t)).total IS NOT NULL AS g, (repro_reward('the house', t)).total IS NOT NULL AS h, \
             length_ratio('the house', t) >= 0 AS i, \
             (length_ratio(t, t) = 1) = (t <> '') OR (t = '' AND length_ratio(t, t) IS NULL) AS j \
             FROM (SELECT {text} AS t)"
        );
        let batches = session.sql(&query).await.unwrap().collect().await.unwrap();
        let rows: Vec<_> = batches.iter().flat_map(cells).collect();
        assert_eq!(rows, [vec!["true".to_owned(); 10]], "{text}");
    }
    let query = "SELECT dataman(t) IS NULL AS a, bertscore(t, 'x') IS NULL AS b, bertscore('x', t) IS NULL AS c, \
                 structure_preserved(t, 'x') IS NULL AS d, fasttext_score(t) IS NULL AS e, fasttext_label(t) IS NULL AS f, \
                 repro_reward(t, 'x') IS NULL AS g, repro_reward('x', t) IS NULL AS h, length_ratio(t, 'x') IS NULL AS i, \
                 chunk(t, 3) IS NULL AS j FROM (SELECT CAST(NULL AS VARCHAR) AS t)";
    let batches = session.sql(query).await.unwrap().collect().await.unwrap();
    let rows: Vec<_> = batches.iter().flat_map(cells).collect();
    assert_eq!(rows, [vec!["true".to_owned(); 10]], "NULL in, NULL out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_struct_where_a_number_is_needed_names_its_fields() {
    let home = tempfile::tempdir().unwrap();
    let session = session(home.path());
    let refused = async |query: &str| match session.sql(query).await {
        Err(error) => format!("{error:#}"),
        Ok(_) => panic!("{query} was planned"),
    };
    let texts = "FROM (VALUES ('the house')) AS x(t)";
    for (call, function) in [("avg", "avg"), ("sum", "sum"), ("stddev", "stddev"), ("round", "round")] {
        let error = refused(&format!("SELECT {call}(bertscore(t, t)) {texts}")).await;
        for part in [function, "a struct", "precision, recall, f1", &format!("{function}((…).precision)")] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("coerc") && !error.contains("Internal"), "{error}");
    }
    let error = refused(&format!("SELECT t {texts} WHERE bertscore(t, t) > 0.5")).await;
    assert!(error.contains("a struct") && error.contains("(…).precision"), "{error}");
    let batches = session.sql(&format!("SELECT avg(bertscore(t, t).f1) > 0.9 AS x {texts}")).await.unwrap();
    assert_eq!(batches.collect().await.unwrap().iter().flat_map(cells).collect::<Vec<_>>(), [["true"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_in_sql_are_those_of_rephrase() {
    let home = tempfile::tempdir().unwrap();
    let session = session(home.path());
    let one = async |query: &str| {
        let batches = session.sql(query).await.unwrap().collect().await.unwrap();
        batches.iter().flat_map(cells).flatten().collect::<Vec<_>>().join("|")
    };
    let text = "'One two.' || chr(10) || chr(10) || 'Three four five'";
    assert_eq!(one(&format!("SELECT chunk({text}, 12)")).await, "[One two.\n\nTh, ree four fiv, e]");
    assert_eq!(one(&format!("SELECT chunk({text}, 12, 'char')")).await, "[One two.\n\nTh, ree four fiv, e]");
    assert_eq!(one(&format!("SELECT chunk({text}, 12, 'line')")).await, "[One two., Three four, five]");
    let refused = match session.sql("SELECT chunk('a', 3, 'word')").await {
        Err(error) => format!("{error:#}"),
        Ok(frame) => format!("{:#}", frame.collect().await.unwrap_err()),
    };
    assert!(refused.contains("the boundary must be 'char' or 'line', not 'word'"), "{refused}");
}

/// A directory with a pipeline of one table of many rows and a selection from it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir(home.path("data")).unwrap();
        let lines: String = (0..4000)
            .map(|n| format!("{{\"text\": \"{n} {}\"}}\n", blake3::hash(&[n as u8, (n >> 8) as u8]).to_hex()))
            .collect();
        fs::write(home.path("data/a.jsonl"), lines).unwrap();
        let stages = "stages:\n  - table: organic\n    ingest: raw\n  - table: twice\n    sql: { query: \"SELECT id, text, md5(text) AS m FROM organic\" }\n";
        fs::write(home.path("p.yaml"), format!("location: out\nsources: {{ raw: data }}\n{stages}")).unwrap();
        home
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// `repro` with these arguments, under a shell that first runs `before`.
    fn under(&self, before: &str, args: &str) -> Output {
        let script = format!("{before} exec {} {args}", env!("CARGO_BIN_EXE_repro"));
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(self.0.path()).stdin(Stdio::null()).output().unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A limit on file sizes stands for the full disk.
#[test]
fn a_disk_that_fills_under_a_run_loses_nothing() {
    let home = Home::new();
    let output = home.under("trap '' XFSZ; ulimit -f 100;", "run p.yaml");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("stage `organic`") && said.contains("cannot write") && said.contains("out/organic"),
        "{said}"
    );
    assert!(said.contains("what is done is kept"), "{said}");
    assert!(!home.path("out/organic/_manifest.json").exists());
    let output = home.under("", "run p.yaml");
    assert!(output.status.success(), "{}", stderr(&output));
    let output = home.under("", "sql --pipeline p.yaml --format csv 'SELECT count(DISTINCT id) AS n FROM twice'");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "n\n4000\n");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let home = Home::new();
    let output = home.under("", "run p.yaml --set location=data/a.jsonl/out");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("data/a.jsonl/out/organic") && said.contains("Not a directory"), "{said}");
    let output = home.under("", "run p.yaml --set location=/proc/out");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/proc/out/organic"), "{said}");
}

#[test]
fn a_missing_table_is_named_with_its_path() {
    let home = Home::new();
    let yaml = "location: out\ntables: { old: nowhere/old }\nstages:\n  - table: t\n    sql: { query: \"SELECT * FROM old\" }\n";
    fs::write(home.path("q.yaml"), yaml).unwrap();
    let said = stderr(&home.under("", "run q.yaml"));
    for part in ["the table `old`", "no file matches `nowhere/old`", "stage `t`"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_dry_run_of_a_stage_that_reads_many_tables_stays_narrow() {
    let home = Home::new();
    let many: String =
        (0..30).map(|n| format!("  - table: evals_{n:02}\n    sql: {{ query: \"SELECT {n} AS n\" }}\n")).collect();
    let yaml = format!("location: out\nstages:\n{many}  - table: all\n    union: evals_*\n");
    fs::write(home.path("q.yaml"), yaml).unwrap();
    let output = home.under("", "run q.yaml --dry-run");
    let shown = String::from_utf8(output.stdout).unwrap();
    let widest = shown.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 120 && shown.contains("evals_00 evals_01 evals_02 evals_03 +26"), "{widest}: {shown}");
}

#[test]
fn ctrl_c_ends_a_query() {
    let home = Home::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
    let query = "SELECT count(*) FROM generate_series(1, 1000000000000) AS a(i)";
    let mut child = command.args(["sql", query]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(child.try_wait().unwrap().is_none(), "the query runs");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let begun = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(1), "error: stopped\n"));
    assert!(begun.elapsed() < Duration::from_secs(5) && output.stdout.is_empty());
    drop(home);
}
