//! The model operator: which calls are made, where the operator stands in a plan, what happens to rows that fail, order, bounds,
//! cancellation.

pub mod fake;
mod slt;

use arrow::array::{ArrayRef, RecordBatch};
use datafusion::datasource::MemTable;
use fake::{Options, World, strings};
use futures::StreamExt;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

fn column(values: &[String]) -> ArrayRef {
    strings(&values.iter().map(|v| Some(v.as_str())).collect::<Vec<_>>())
}

/// Texts `t0`, `t1`, … in `rows` rows, of which `distinct` differ.
fn big(world: &World, rows: usize, distinct: usize) {
    let ids: Vec<String> = (0..rows).map(|i| format!("r{i:05}")).collect();
    let texts: Vec<String> = (0..rows).map(|i| format!("t{}", i % distinct)).collect();
    world.table("big", &[("id", column(&ids)), ("text", column(&texts))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_whatever_the_delays() {
    let world = World::with(Options { delay: 30, ..Options::default() });
    big(&world, 1000, 1000);
    let rows = world.rows("SELECT id, shout(text) FROM big").await.unwrap();
    let expected: Vec<String> = (0..1000).map(|i| format!("r{i:05}|T{i}")).collect();
    assert_eq!(rows, expected);
    assert_eq!(world.log.take().len(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_arguments_are_computed_once_over_all_partitions() {
    let world = World::with(Options { delay: 10, partitions: 4, ..Options::default() });
    big(&world, 3000, 7);
    let rows = world.rows("SELECT shout(text) AS s, count(*) FROM big GROUP BY shout(text) ORDER BY s").await.unwrap();
    assert_eq!(rows[0], "T0|429");
    assert_eq!(rows.len(), 7);
    assert_eq!(world.log.take().len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_are_bounded_over_all_partitions() {
    let world = World::with(Options { delay: 40, partitions: 4, slots: Some(1), ..Options::default() });
    big(&world, 2000, 2000);
    world.rows("SELECT shout(text) FROM big UNION ALL SELECT shout(concat(text, 'x')) FROM big").await.unwrap();
    assert_eq!(world.log.take().len(), 4000);
    let peak = world.log.peak.load(Ordering::SeqCst);
    assert!((128..=256).contains(&peak), "{peak} at once; 256 are allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_stream_cancels_the_calls() {
    let world = World::with(Options { delay: 2000, ..Options::default() });
    big(&world, 1000, 1000);
    let frame = world.session.sql("SELECT id, shout(text) FROM big").await.unwrap();
    let mut stream = frame.execute_stream().await.unwrap();
    let first = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(first.is_err(), "the first batch waits for its slowest row");
    drop(stream);
    let made = world.log.count();
    assert!(made > 64, "several batches had begun: {made}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.log.count(), made, "no call begins after the drop");
    let (finished, abandoned) = (world.log.finished.load(Ordering::SeqCst), world.log.abandoned.load(Ordering::SeqCst));
    assert_eq!(finished + abandoned, made, "every request ended with the stream");
    assert!(abandoned > made / 2, "{abandoned} of {made} were abandoned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_a_filter_stops_early() {
    let world = World::with(Options { delay: 5, ..Options::default() });
    big(&world, 20_000, 20_000);
    let rows = world.rows("SELECT id FROM big WHERE shout(text) LIKE 'T%' LIMIT 3").await.unwrap();
    assert_eq!(rows, ["r00000", "r00001", "r00002"]);
    let made = world.log.take().len();
    assert!(made < 5000, "{made} calls for 3 rows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_row_is_null_and_reported() {
    let world = World::new();
    let rows = world.rows("SELECT id, shout(text) FROM docs").await.unwrap();
    assert_eq!(rows, ["d1|ALPHA", "d2|BETA", "d3|GAMMA", "d4|ALPHA", "d5|NULL", "d6|NULL"]);
    assert_eq!(world.failures(), [("d6".into(), "shout: poison is poisoned".into())]);
    assert_eq!(world.log.take(), ["alpha", "beta", "gamma", "poison"].map(|t| format!("shout/rephraser({t})")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diverted_row_leaves_the_stream_once() {
    let world = World::with(Options { divert: true, ..Options::default() });
    let rows = world.rows("SELECT id, shout(text), facts(text)['length'] FROM docs").await.unwrap();
    assert_eq!(rows, ["d1|ALPHA|5", "d2|BETA|4", "d3|GAMMA|5", "d4|ALPHA|5", "d5|NULL|NULL"]);
    assert_eq!(
        world.failures(),
        [("d6".into(), "shout: poison is poisoned; facts: poison is poisoned".into())],
        "one report, although two calls failed"
    );
    // Through a stack of calls the row is reported by the first.
    let rows = world.rows("SELECT id FROM docs WHERE shout(shout(text)) <> 'BETA'").await.unwrap();
    assert_eq!(rows, ["d1", "d3", "d4"]);
    assert_eq!(world.failures(), [("d6".into(), "shout: poison is poisoned".into())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_carry_the_id_of_the_arguments_table() {
    let world = World::new();
    let join = "FROM labels JOIN docs ON labels.label <> docs.lang AND labels.id = 'd9' AND docs.n > 5";
    world.rows(&format!("SELECT shout(docs.text) {join}")).await.unwrap();
    assert_eq!(world.failures(), [("d6".into(), "shout: poison is poisoned".into())]);
    world.rows(&format!("SELECT shout(concat(labels.note, 'poison')) {join}")).await.unwrap();
    assert_eq!(world.failures(), [("d9".into(), "shout: ninepoison is poisoned".into())]);
    // A nested call reports its row; a table without an id reports none.
    world.rows("SELECT facts(concat(shout(d.text), 'poison')) FROM docs d WHERE d.id = 'd3'").await.unwrap();
    assert_eq!(world.failures(), [("d3".into(), "facts: GAMMApoison is poisoned".into())]);
    world.rows("SELECT shout(t) FROM (SELECT text AS t FROM docs) x").await.unwrap();
    assert_eq!(world.failures().len(), 1);
    // An id that the query itself does not read.
    world.rows("SELECT shout(text) FROM docs ORDER BY n DESC LIMIT 1").await.unwrap();
    assert_eq!(world.failures(), [("d6".into(), "shout: poison is poisoned".into())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rule_finds_nothing_in_its_own_plan() {
    let world = World::new();
    for query in [
        "SELECT id, shout(text) FROM docs WHERE shout(text) <> 'x' AND lang = 'en' ORDER BY facts(text)['length'] LIMIT 3",
        "SELECT d.id FROM docs d JOIN labels l ON d.id = l.id AND shout(d.text) = l.label",
        "SELECT id FROM docs d WHERE EXISTS (SELECT 1 FROM labels l WHERE l.id = d.id AND shout(l.note) = 'ONE')",
    ] {
        let frame = world.session.sql(query).await.unwrap();
        let state = world.session.context().state();
        let once = state.optimize(frame.logical_plan()).unwrap();
        let twice = state.optimize(&once).unwrap();
        assert_eq!(once.display_indent().to_string(), twice.display_indent().to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_have_the_names_that_the_query_gives_them() {
    let world = World::new();
    for (query, names) in [
        ("SELECT *, shout(text) FROM docs WHERE shout(text) <> 'x'", "id text lang n shout(docs.text)"),
        ("SELECT d.id, l.*, facts(d.text) f FROM docs d JOIN labels l ON d.id = l.id", "id id label note f"),
        (
            "SELECT * FROM (SELECT * FROM docs WHERE shout(text) = 'A') a CROSS JOIN labels",
            "id text lang n id label note",
        ),
        ("SELECT n AS text, shout(text) FROM docs ORDER BY n LIMIT 1", "text shout(docs.text)"),
        ("SELECT count(shout(text)) FROM docs", "count(shout(docs.text))"),
    ] {
        let frame = world.session.sql(query).await.unwrap();
        let planned: Vec<String> = frame.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(planned.join(" "), names);
        let stream = frame.execute_stream().await.unwrap();
        let executed: Vec<String> = stream.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(executed, planned);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_analyze_counts() {
    let world = World::new();
    let rows = world.rows("EXPLAIN ANALYZE SELECT shout(text) FROM docs").await.unwrap();
    let node = rows[0].lines().find(|line| line.contains("ModelExec")).unwrap().to_owned();
    for part in ["shout(text) model=rephraser", "output_rows=6", "calls=4", "failed_rows=1", "output_tokens=14"] {
        assert!(node.contains(part), "{part} in {node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_do_not_depend_on_partitions() {
    let mut results = Vec::new();
    for partitions in [1, 4] {
        let world = World::with(Options { partitions, delay: 5, ..Options::default() });
        big(&world, 500, 500);
        results
            .push(world.rows("SELECT id, shout(text) FROM big WHERE shout(text) <> 'T3' ORDER BY id").await.unwrap());
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0].len(), 499);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planning_errors_say_what_there_is() {
    let world = World::new();
    for (query, parts) in [
        ("SELECT shout(text, 'nope') FROM docs", &["no model `nope`", "hq, other, rephraser"][..]),
        ("EXPLAIN SELECT shout(text, 'nope') FROM docs", &["no model `nope`"]),
        ("SELECT shout(text, 'hq') FROM docs", &["`hq` is a fastText classifier"]),
        ("SELECT shout(text, lang) FROM docs", &["the model must be a constant"]),
        ("SELECT * FROM nope", &["no table `nope`", "docs, labels"]),
        ("SELECT shouted(text) FROM docs", &["shouted", "shout"]),
        ("SELECT txt FROM docs", &["line 1, column 8", "txt"]),
        ("SELEC 1", &["Line: 1"]),
        ("SELECT 1; SELECT 2", &["2 statements"]),
        ("", &["no statement"]),
        ("SELECT $nope", &["$nope is not set", "$wanted"]),
        ("SELECT shout(n) FROM docs", &["argument 1 of shout must be text, not Int64"]),
        ("SELECT shout() FROM docs", &["shout takes 1 to 2 arguments, not 0"]),
        ("CREATE TABLE x AS SELECT 1", &["only queries are allowed"]),
        ("DROP TABLE docs", &["only queries are allowed"]),
        ("INSERT INTO docs VALUES ('a','b','c',1)", &["only queries are allowed"]),
        ("COPY docs TO 'stolen.csv'", &["only queries are allowed"]),
        ("SET datafusion.execution.batch_size = 1", &["only queries are allowed"]),
        ("EXPLAIN DROP TABLE docs", &["only queries are allowed"]),
    ] {
        let error = match world.session.sql(query).await {
            Err(error) => format!("{error:#}"),
            Ok(_) => panic!("{query} was planned"),
        };
        for part in parts {
            assert!(error.contains(part), "{query}: {part:?} in {error}");
        }
    }
    assert_eq!(world.log.take(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_values_not_text() {
    let world = World::new();
    let rows = world.rows("SELECT id FROM docs WHERE shout(text) = $wanted ORDER BY id LIMIT $limit").await.unwrap();
    assert_eq!(rows, ["d1", "d4"]);
    assert_eq!(world.rows("SELECT $low - 1, $seed, '$wanted'").await.unwrap(), ["-2.5|42|$wanted"]);
    world.log.take();
    world.rows("SELECT shout(text, $model) FROM docs LIMIT 1").await.unwrap();
    assert_eq!(world.log.take(), ["shout/other(alpha)"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sort_beyond_the_memory_limit_spills() {
    let world = World::with(Options { memory: 24 << 20, ..Options::default() });
    let batches: Vec<RecordBatch> = (0..40)
        .map(|batch| {
            let ids: Vec<String> = (0..1000).map(|i| format!("{:05}", (batch * 1000 + i) * 7919 % 40_000)).collect();
            let texts: Vec<String> = ids.iter().map(|id| id.repeat(120)).collect();
            RecordBatch::try_from_iter([("id", column(&ids)), ("text", column(&texts))]).unwrap()
        })
        .collect();
    let wide = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
    world.session.context().register_table("wide", Arc::new(wide)).unwrap();
    let frame = world.session.sql("SELECT id, text FROM wide ORDER BY id").await.unwrap();
    let plan = frame.create_physical_plan().await.unwrap();
    let task = world.session.context().task_ctx();
    let batches = datafusion::physical_plan::collect(Arc::clone(&plan), task).await.unwrap();
    assert_eq!(batches.iter().map(|b| b.num_rows()).sum::<usize>(), 40_000);
    let spilled = plan.metrics().and_then(|m| m.spill_count()).unwrap_or(0);
    assert!(spilled > 0, "24 MB of texts were sorted in 24 MB");
}
