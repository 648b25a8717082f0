//! DataMan, the structure judge and the combined reward with models in this process and behind an endpoint.

use super::{
    endpoint::{Endpoint, Reply},
    operator::fake::cells,
};
use repro::{
    catalog::session::{Failures, Session, SessionOptions},
    rewards::{
        cut::cut,
        dataman::{LIMITS, without_noise},
        repro_reward::{EmptyRule, RewardConfig},
    },
    text::tokenizer::Tokenizer,
    udf::{
        models::{CausalLmSpec, ModelSpec, Models},
        remote::RemoteSpec,
        repro_reward::{Answer, Pair, score},
    },
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The public data beside the project; None, with a line, where it is absent.
fn shared(name: &str) -> Option<PathBuf> {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(1);
    let found = above.map(|dir| dir.join("shared/data").join(name)).find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: shared/data/{name} is not here");
    }
    found
}

fn local(dir: &str) -> ModelSpec {
    let path = golden(dir).display().to_string();
    // A short answer leaves the room to the prompt.
    let max_new_tokens = Some(29);
    ModelSpec::CausalLm(CausalLmSpec { path, precision: Some("f32".into()), max_new_tokens, ..CausalLmSpec::default() })
}

fn remote(endpoint: &Endpoint) -> ModelSpec {
    let base_url = endpoint.base_url.clone();
    ModelSpec::Remote(RemoteSpec { base_url, model: "m".into(), retries: Some(0), ..RemoteSpec::default() })
}

type Failed = Arc<Mutex<Vec<(String, String)>>>;

fn session(models: Arc<Models>) -> (Session, Failed) {
    let failed: Failed = Arc::default();
    let sink = Arc::clone(&failed);
    let options = SessionOptions {
        models,
        params: BTreeMap::new(),
        failures: Failures::Null(Arc::new(move |id, error| sink.lock().unwrap().push((id, error)))),
        partitions: 1,
    };
    (Session::new(options).unwrap(), failed)
}

async fn rows(session: &Session, query: &str) -> Vec<String> {
    let batches = session.sql(query).await.unwrap().collect().await.unwrap();
    batches.iter().flat_map(cells).map(|row| row.join("|")).collect()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(String),
    Repeated { repeat: String, times: usize },
}

#[derive(Deserialize)]
struct Case {
    text: Text,
    reply: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dataman_values_are_those_of_transformers_under_the_same_constraints() {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(golden("dataman/replies.json")).unwrap()).unwrap();
    let texts: Vec<String> = cases
        .iter()
        .map(|case| match &case.text {
            Text::Whole(text) => text.clone(),
            Text::Repeated { repeat, times } => repeat.repeat(*times),
        })
        .collect();
    let models = Models::new(BTreeMap::from([("dataman".to_owned(), local("dataman"))]), 42);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let scored = repro::udf::dataman::score_all(&models, "dataman", &texts).await.unwrap();
    for ((case, scores), text) in cases.iter().zip(scored).zip(texts) {
        let scored = scores.unwrap();
        assert!(scored.expected.is_some_and(|mean| (1.0..=5.0).contains(&mean)), "{:?}", scored.expected);
        let scores = scored.scores;
        let letter = repro::rewards::dataman::DOMAINS.iter().position(|d| *d == scores.domain).unwrap();
        let values = scores.scores.iter().map(|score| score.to_string());
        let reply: String = [char::from(b'A' + letter as u8).to_string()].into_iter().chain(values).collect();
        let start: String = text.chars().take(30).collect();
        assert_eq!(reply, case.reply, "{start:?}");
    }
    // Choices only: newlines cost no pass.
    let lm = models.language_model("dataman").await.unwrap();
    assert_eq!(lm.engine.stats().output_tokens, 15 * cases.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dataman_in_sql() {
    let models = Models::new(BTreeMap::from([("dataman".to_owned(), local("dataman"))]), 42);
    let (session, failed) = session(models);
    let query = "select s['domain'], s['accuracy'], s['sensitivity'], s['overall'], s is null from \
                 (select dataman(text) as s from (values (1, 'x'), (2, ''), (3, cast(null as varchar))) t(n, text) order by n)";
    let expected = ["Coding|4|4|3|false", "Transportation|4|4|5|false", "NULL|NULL|NULL|NULL|true"];
    assert_eq!(rows(&session, query).await, expected);
    assert!(failed.lock().unwrap().is_empty());
    let plan =
        rows(&session, "explain select dataman(text)['overall'], dataman(text)['domain'] from (values ('x')) t(text)")
            .await;
    assert_eq!(plan.join("\n").matches("ModelExec: dataman(text) model=dataman").count(), 1, "{plan:?}");
}

#[tokio::test]
async fn a_model_that_cannot_speak_the_protocol_is_refused() {
    // This tokenizer has no single token for a newline between digits.
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(golden("dataman").join(file), dir.path().join(file)).unwrap();
    }
    let all: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(golden("tokenizers.json")).unwrap()).unwrap();
    let wordpiece = &all.iter().find(|t| t["name"] == "wordpiece").unwrap()["file"];
    std::fs::write(dir.path().join("tokenizer.json"), wordpiece.to_string()).unwrap();
    let spec = CausalLmSpec { path: dir.path().display().to_string(), ..CausalLmSpec::default() };
    let models = Models::new(BTreeMap::from([("dataman".to_owned(), ModelSpec::CausalLm(spec))]), 42);
    let error = format!("{:#}", repro::udf::dataman::score_all(&models, "dataman", &["x"]).await.unwrap_err());
    assert!(error.contains("model `dataman`") && error.contains("one token"), "{error}");
}

#[test]
fn five_hundred_real_documents_are_prepared_as_the_rules_say() {
    let Some(path) = shared("dclm/low_score_500.jsonl") else { return };
    let tokenizer = Tokenizer::from_dir(&golden("dataman")).unwrap();
    let fnv = |text: &str| {
        let step = |value: u64, byte| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
    };
    let texts = std::fs::read_to_string(path).unwrap();
    let found: Vec<String> = texts
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = cut(&without_noise(row["text"].as_str().unwrap()), LIMITS, Some(&tokenizer)).unwrap();
            format!("{:016x}", fnv(&text))
        })
        .collect();
    let expected = std::fs::read_to_string(golden("dataman/texts.txt")).unwrap();
    let expected: Vec<&str> = expected.lines().collect();
    assert_eq!((found.len(), expected.len()), (500, 500));
    let differ: Vec<usize> = (0..500).filter(|&i| found[i] != expected[i]).collect();
    assert!(differ.is_empty(), "documents {differ:?} differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn structure_is_judged_by_a_model_where_there_is_one() {
    let rule = "select structure_preserved('- a list of some words\n- a second item here', 'a list of some words, a second item here')";
    let (without, _) = session(Models::new(BTreeMap::new(), 42));
    assert_eq!(rows(&without, rule).await, ["false"]);
    let plan =
        rows(&without, "explain select structure_preserved(a, b) from (values ('x', 'y')) t(a, b)").await.join("\n");
    assert!(!plan.contains("ModelExec"), "{plan}");

    let endpoint = Endpoint::start(|asked, _| {
        Reply::Text(if asked.said().contains("second item") { "1" } else { "0" }.to_owned())
    });
    let entries = [("structure", remote(&endpoint)), ("tiny", local("dataman"))];
    let models = Models::new(entries.map(|(name, spec)| (name.to_owned(), spec)).into(), 42);
    let (with, failed) = session(models);
    assert_eq!(rows(&with, rule).await, ["true"]);
    assert_eq!(
        rows(&with, "select structure_preserved('x', 'y'), structure_preserved(null, 'y')").await,
        ["false|NULL"]
    );
    let said = endpoint.asked().pop().unwrap().said();
    assert!(said.ends_with("Original:\nx\nRephrasing:\ny\nAnswer:"), "{said}");
    // A model here chooses between the two digits and nothing else.
    let rows =
        rows(&with, "select structure_preserved(a, b, 'tiny') is null from (values ('x', 'y'), ('', '')) t(a, b)")
            .await;
    assert_eq!(rows, ["false", "false"]);
    assert!(failed.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_text_is_shown_to_the_judge_without_its_middle() {
    let endpoint = Endpoint::start(|_, _| Reply::Text("1".to_owned()));
    let models = Models::new(BTreeMap::from([("structure".to_owned(), remote(&endpoint))]), 42);
    let (session, _) = session(models);
    rows(&session, "select structure_preserved(concat('FIRST', repeat('x', 30000), 'LAST'), 'short')").await;
    let said = endpoint.asked().pop().unwrap().said();
    assert!(said.contains("\nFIRSTxxx") && said.contains("xxxLAST\nRephrasing:\nshort\n"));
    assert_eq!(said.matches('x').count(), endpoint_prompt_xs() + 10_000 - 9);
}

/// How often the letter x stands in the judge's own prompt.
fn endpoint_prompt_xs() -> usize {
    include_str!("../../assets/prompts/structure.txt").split_once("[user]").unwrap().1.matches('x').count()
}

/// An endpoint that plays DataMan: the overall score is the first digit in the text, else 1.
fn scorer() -> Endpoint {
    Endpoint::start(|asked, _| {
        let said = asked.said();
        let text = said.split_once("Text: ").unwrap().1.split_once("\nDomain:_").unwrap().0;
        if text.contains("poison") {
            return Reply::Text("no".to_owned());
        }
        let score = text.chars().find(char::is_ascii_digit).unwrap_or('1');
        Reply::Text(format!("A\n{}{score}", "3\n".repeat(13)))
    })
}

fn without_bertscore() -> RewardConfig {
    let mut config = RewardConfig::default();
    config.bertscore.enabled = false;
    config
}

fn pair(original: &str, answer: Answer) -> Pair {
    Pair { original: original.to_owned(), answer, original_dataman: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rewards_of_answers_and_of_what_is_no_answer() {
    const MARK: &str = "Here is a paraphrased version:";
    let endpoint = scorer();
    let config = without_bertscore();
    let models = Models::new(BTreeMap::from([("dataman".to_owned(), remote(&endpoint))]), 42);
    let raw = |text: &str| Answer::Raw { text: text.replace("MARK", MARK), marker: MARK.to_owned() };
    let pairs = [
        pair("quality 3 page of plain words", raw("MARK quality 5 page of plain words")),
        pair("quality 3 page of plain words", raw("no marker and quality 5")),
        pair(
            "quality 3 page of plain words",
            raw("So: MARK quality 2 page of plain words and of words that make it long"),
        ),
        pair("quality 3 page of plain words", raw("MARK poison")),
        Pair { original_dataman: Some(4.0), ..pair("unseen", Answer::Text("quality 5".into())) },
    ];
    let scored = score(&models, &config, &pairs).await.unwrap();
    let parts = |i: usize| {
        let p = scored[i].as_ref().unwrap().parts;
        (p.dataman.unwrap(), p.structure.unwrap(), p.length.unwrap(), p.format.unwrap(), p.total)
    };
    assert_eq!(parts(0), (2.0, 1.0, 1.0, 1.0, 9.0));
    // Nothing was extracted: DataMan scores the empty text (1), the structure is lost, the length is within its limit.
    assert_eq!(parts(1), (-2.0, 0.0, 1.0, 0.0, -5.0));
    assert_eq!(parts(2), (-1.0, 1.0, 0.0, 0.0, -2.0));
    assert!(scored[3].as_ref().unwrap_err().starts_with("dataman: the reply"), "{:?}", scored[3]);
    assert_eq!(scored[4].as_ref().unwrap().measures.original_dataman, Some(4.0));
    // The original once, five rephrasings; the original that was scored before not at all.
    assert_eq!(endpoint.count(), 6);
    let lowest = RewardConfig { empty: EmptyRule::Lowest, ..config };
    let asked = endpoint.count();
    let scored = score(&models, &lowest, &pairs[1..2]).await.unwrap();
    let p = scored[0].as_ref().unwrap().parts;
    assert_eq!((p.dataman, p.length, p.total), (Some(-2.0), Some(0.0), -6.0));
    assert_eq!(endpoint.count(), asked + 1, "only the original is scored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rewards_in_sql() {
    let endpoint = scorer();
    let entries = BTreeMap::from([("dataman".to_owned(), remote(&endpoint))]);
    let (session, failed) = session(Models::with_rewards(entries, 42, without_bertscore()));
    let query = "select r['dataman'], r['bertscore'], r['structure'], r['length'], r['format'], r['total'], r['original_dataman'], \
                 r['length_ratio'] from (select n, repro_reward(a, b) as r from (values (1, 'words 2', 'words 4'), (2, 'words 2', ''), \
                 (3, 'poison', 'words 4'), (4, cast(null as varchar), 'x')) t(n, a, b)) order by n";
    let expected = [
        "2.0|NULL|1.0|1.0|1.0|9.0|2.0|1.0",
        "-1.0|NULL|0.0|1.0|0.0|-2.0|2.0|0.0",
        "NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL",
        "NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL",
    ];
    assert_eq!(rows(&session, query).await, expected);
    assert_eq!(failed.lock().unwrap().len(), 1);
    let plan =
        rows(&session, "explain select repro_reward(a, b)['total'] from (values ('x', 'y')) t(a, b)").await.join("\n");
    assert!(plan.contains("ModelExec: repro_reward(a, b) model=rewards"), "{plan}");
}

#[tokio::test]
async fn a_part_without_its_model_is_refused_with_the_ways_out() {
    let (session, _) = session(Models::new(BTreeMap::new(), 42));
    let error = format!("{:#}", session.sql("select repro_reward('a', 'b')").await.err().unwrap());
    for part in ["no model `dataman`", "part `dataman`", "under `models:`", "enabled: false"] {
        assert!(error.contains(part), "{error}");
    }
}
