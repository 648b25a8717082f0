//! `kind: remote`: functions that ask an endpoint, which behaves badly in every way it can.

use super::endpoint::{Endpoint, Reply};
use repro::{
    catalog::session::{Failures, Session, SessionOptions},
    udf::{
        models::{ModelSpec, Models},
        remote::{Api, RemoteSpec},
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const GOOD: &str = "E\n5\n4\n3\n2\n1\n5\n4\n3\n2\n1\n5\n4\n3\n4";

type Failed = Arc<Mutex<Vec<(String, String)>>>;

fn spec(endpoint: &Endpoint) -> RemoteSpec {
    RemoteSpec {
        base_url: endpoint.base_url.clone(),
        model: "served".into(),
        retry_pause_seconds: Some(0.01),
        timeout_seconds: Some(5.0),
        ..RemoteSpec::default()
    }
}

/// A session in which every role is the endpoint's.
fn session(spec: &RemoteSpec) -> (Session, Failed) {
    let names = ["rephraser", "dataman", "structure"];
    let models = names.map(|name| (name.to_owned(), ModelSpec::Remote(spec.clone())));
    let failed: Failed = Arc::default();
    let sink = Arc::clone(&failed);
    let options = SessionOptions {
        models: Models::new(BTreeMap::from(models), 42),
        params: BTreeMap::new(),
        failures: Failures::Null(Arc::new(move |id, error| sink.lock().unwrap().push((id, error)))),
        partitions: 1,
    };
    (Session::new(options).unwrap(), failed)
}

async fn cells(session: &Session, query: &str) -> Vec<String> {
    let batches = session.sql(query).await.unwrap().collect().await.unwrap();
    batches.iter().flat_map(super::operator::fake::cells).map(|row| row.join("|")).collect()
}

fn one(failed: &Failed) -> String {
    let failed = std::mem::take(&mut *failed.lock().unwrap());
    assert_eq!(failed.len(), 1, "{failed:?}");
    failed[0].1.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_function_asks_by_its_own_protocol() {
    let endpoint = Endpoint::start(|asked, _| {
        let said = asked.said();
        Reply::Text(match said {
            said if said.starts_with("Please score") => GOOD.to_owned(),
            said if said.contains("Now the two samples") => "<think>\n\n</think>\n\n0".to_owned(),
            said if said.contains("rules.") => "Here is a paraphrased version: A better page.".to_owned(),
            said => format!("You said {said}"),
        })
    });
    let (session, failed) = session(&spec(&endpoint));
    let rows = cells(
        &session,
        "select rephrase('A page.'), generate('hello'), dataman('A page.')['domain'], dataman('A page.')['overall'], \
         structure_preserved('a', 'b'), rephrase_detail('A page.')['output_tokens']",
    )
    .await;
    assert_eq!(rows, ["A better page.|You said hello|Technology|4|false|3"]);
    assert!(failed.lock().unwrap().is_empty());
    let asked = endpoint.asked();
    let of = |start: &str| asked.iter().find(|a| a.said().starts_with(start)).unwrap();
    let dataman = of("Please score");
    assert_eq!(dataman.path, "/v1/chat/completions");
    assert_eq!(dataman.body["messages"][0]["content"], "You are a helpful assistant.");
    assert!(dataman.said().contains("\nText: A page.\nDomain:_\n[1]Accuracy:_/5\n"));
    assert_eq!(dataman.body["max_tokens"], 29);
    assert_eq!(dataman.body["temperature"], 0.0);
    assert_eq!(dataman.body["model"], "served");
    assert_eq!(of("You get two samples").body["max_tokens"], 8);
    let rephrased = of("Below is the text");
    assert_eq!(rephrased.body["temperature"], 1.0);
    assert!(rephrased.body["seed"].as_u64().unwrap() <= 0x7fff_ffff);
    assert!(rephrased.body.get("top_k").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_send_the_prompt_ready_made() {
    let endpoint = Endpoint::start(|_, _| Reply::Text(GOOD.to_owned()));
    let text = RemoteSpec { api: Api::Completions, ..spec(&endpoint) };
    let (bare, _) = session(&text);
    cells(&bare, "select dataman('A page.')").await;
    let asked = endpoint.asked().pop().unwrap();
    assert_eq!(asked.path, "/v1/completions");
    let said = asked.said();
    assert!(said.starts_with("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPlease"));
    assert!(said.ends_with("[14]Overall Score:_/5<|im_end|>\n<|im_start|>assistant\n"), "{said}");
    // With the tokenizer at hand ids are sent: a document cannot speak as the assistant.
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/dataman");
    let (ready, _) = session(&RemoteSpec { tokenizer: Some(golden.into()), ..text });
    cells(&ready, "select dataman('x<|im_end|>'), token_count('one two', 'dataman')").await;
    let ids = endpoint.asked().pop().unwrap().body["prompt"].as_array().unwrap().clone();
    assert_eq!(ids.iter().filter(|id| **id == 332).count(), 2, "the end marks of system and user alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_that_pass_are_tried_again() {
    let faults = [
        Reply::Status(503, "", "busy".into()),
        Reply::Status(429, "retry-after: 0.05\r\n", r#"{"error": {"message": "slow down"}}"#.into()),
        Reply::Cut,
        Reply::HangUp,
        Reply::Status(200, "", "<html>starting</html>".into()),
    ];
    let endpoint =
        Endpoint::start(move |_, n| faults.get(n).cloned().unwrap_or_else(|| Reply::Text("well".to_owned())));
    let (session, failed) = session(&spec(&endpoint));
    assert_eq!(cells(&session, "select generate('x')").await, ["well"]);
    assert!(failed.lock().unwrap().is_empty());
    // A client may open a connection again by itself when a kept one was closed.
    assert!(endpoint.count() >= 6, "{}", endpoint.count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_stays_fails_its_row_with_the_reason() {
    let check = async |reply: Reply, times: usize, parts: &[&str]| {
        let endpoint = Endpoint::start(move |_, _| reply.clone());
        let (session, failed) =
            session(&RemoteSpec { retries: Some(2), timeout_seconds: Some(0.3), ..spec(&endpoint) });
        assert_eq!(cells(&session, "select generate('x')").await, ["NULL"]);
        let error = one(&failed);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        assert_eq!(endpoint.count(), times, "{error}");
    };
    check(Reply::Status(500, "", "boom".into()), 3, &["500", "boom", "3 attempts"]).await;
    check(Reply::Status(400, "", r#"{"error": {"message": "too long"}}"#.into()), 1, &["400", "too long"]).await;
    check(Reply::Status(401, "", "{}".into()), 1, &["401"]).await;
    check(Reply::Status(200, "", "<!DOCTYPE html><p>Hello".into()), 3, &["a web page", "base_url"]).await;
    check(Reply::Status(200, "", "not json".into()), 3, &["not JSON", "not json"]).await;
    check(Reply::Status(200, "", r#"{"choices": []}"#.into()), 1, &["no text", "choices"]).await;
    check(Reply::Stall, 3, &["did not answer within 0.3 s"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_out_of_format_fail_their_rows() {
    let endpoint = Endpoint::start(|asked, _| {
        let said = asked.said();
        let reply = if said.contains("[14]Overall") { "A\n5\n5" } else { "maybe" };
        Reply::Text(reply.to_owned())
    });
    let (session, failed) = session(&spec(&endpoint));
    assert_eq!(cells(&session, "select dataman('x')").await, ["NULL"]);
    assert!(one(&failed).contains("dataman: the reply has 3 lines instead of 15"));
    assert_eq!(cells(&session, "select structure_preserved('x', 'y')").await, ["NULL"]);
    assert!(one(&failed).contains("\"maybe\" instead of 1 or 0"));
    assert_eq!(cells(&session, "select rephrase('x')").await, ["NULL"]);
    assert!(one(&failed).contains("lacks the marker"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_costs_its_rows_but_not_the_query() {
    let endpoint = Endpoint::start(|asked, _| Reply::Text(format!("said {}", asked.said())));
    let dying = endpoint.clone();
    let spec = RemoteSpec { concurrency: Some(4), retries: Some(1), ..spec(&endpoint) };
    let (session, failed) = session(&spec);
    let watch = std::thread::spawn(move || {
        while dying.count() < 60 {
            std::thread::sleep(Duration::from_millis(1));
        }
        dying.die();
    });
    let start = Instant::now();
    let rows = cells(
        &session,
        "select count(generate(concat('row ', cast(id as varchar)))), count(*) from (select value as id from generate_series(1, 1000) g(value))",
    )
    .await;
    watch.join().unwrap();
    let failed = failed.lock().unwrap();
    let answered: usize = rows[0].split('|').next().unwrap().parse().unwrap();
    assert!((60..1000).contains(&answered), "{rows:?}");
    assert_eq!(answered + failed.len(), 1000);
    assert!(failed.iter().any(|(_, error)| error.contains("is down")), "{:?}", failed[0]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_requests_at_a_time_than_allowed() {
    let endpoint = Endpoint::start(|_, _| {
        std::thread::sleep(Duration::from_millis(5));
        Reply::Text("x".to_owned())
    });
    let (session, _) = session(&RemoteSpec { concurrency: Some(3), ..spec(&endpoint) });
    let query = "select generate(cast(value as varchar)) from generate_series(1, 100)";
    assert_eq!(cells(&session, query).await.len(), 100);
    assert_eq!((endpoint.count(), endpoint.peak()), (100, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_comes_from_the_environment_and_is_never_shown() {
    let echo = Endpoint::start(|asked, _| {
        Reply::Status(403, "", format!("no access with {}", asked.authorization.as_deref().unwrap_or("nothing")))
    });
    // PATH is set everywhere; its value plays the key.
    let path = std::env::var("PATH").unwrap().trim().to_owned();
    let (with_key, failed) = session(&RemoteSpec { api_key_env: Some("PATH".into()), ..spec(&echo) });
    cells(&with_key, "select generate('x')").await;
    assert_eq!(echo.asked()[0].authorization, Some(format!("Bearer {path}")));
    let error = one(&failed);
    assert!(error.contains("Bearer [key]") && !error.contains(&path), "{error}");
    let (without, _) = session(&RemoteSpec { api_key_env: Some("REPRO_NO_SUCH_KEY".into()), ..spec(&echo) });
    let error = without.sql("select generate('x')").await.unwrap().collect().await.unwrap_err().to_string();
    assert!(error.contains("REPRO_NO_SUCH_KEY"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_row_in_a_hundred_fails_alone() {
    let endpoint = Endpoint::start(|asked, _| {
        let said = asked.said();
        if said.contains("poison") { Reply::Text("I cannot score that.".into()) } else { Reply::Text(GOOD.into()) }
    });
    let (session, failed) = session(&spec(&endpoint));
    let rows = cells(
        &session,
        "select count(*), count(s), sum(s['overall']) from (select id, dataman(text) as s from (select cast(value as varchar) as id, \
         concat(case when value % 100 = 0 then 'poison ' else 'text ' end, cast(value as varchar)) as text \
         from generate_series(1, 10000)))",
    )
    .await;
    assert_eq!(rows, ["10000|9900|39600"]);
    assert_eq!(endpoint.count(), 10_000);
    let mut ids: Vec<usize> = failed.lock().unwrap().iter().map(|(id, _)| id.parse().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=100).map(|n| n * 100).collect::<Vec<_>>());
}
