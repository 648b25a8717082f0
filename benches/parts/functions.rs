//! `functions`: rows per second of each SQL function over real documents, one plan a function, models of the repository's assets. Documents:
//! the JSONL files that REPRO_DOCUMENTS names (such as shared/data/dclm/low_score_500.jsonl), by default the sample corpus. A pair of texts
//! is a document and the same without every fifth word. A slow function is given the first documents only; models are loaded before the
//! clock starts, as a first call does that.

use crate::Options;
use anyhow::{Context, ensure};
use arrow::{
    array::{Array, AsArray},
    datatypes::Int64Type,
};
use repro::{
    catalog::session::{Failures, Session, SessionOptions, TableSource},
    rewards::repro_reward::RewardConfig,
    udf::models::{ModelSpec, Models},
};
use serde_json::json;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

/// Name, call, rows at most, what works there and how.
type Case = (&'static str, &'static str, usize, &'static str);

const CASES: [Case; 14] = [
    ("length_ratio", "length_ratio(text, changed)", usize::MAX, "counts characters"),
    ("chunk", "chunk(text, 7000)", usize::MAX, "cuts and copies"),
    ("structure_preserved", "structure_preserved(text, changed)", usize::MAX, "rules over lines, no model"),
    ("token_count", "token_count(text, 'tokens')", usize::MAX, "byte-level BPE"),
    ("fasttext_score", "fasttext_score(text)", usize::MAX, "looks rows up"),
    ("fasttext_label", "fasttext_label(text)", usize::MAX, "looks rows up"),
    ("bertscore, 2,000 characters", "bertscore(left(changed, 2000), left(text, 2000))", 200, "pocket encoder, layer 3"),
    ("bertscore", "bertscore(changed, text)", 100, "pocket encoder, layer 3"),
    ("dataman", "dataman(text)", 200, "pocket scorer, 15 choices a text"),
    ("repro_reward", "repro_reward(text, changed)", 100, "dataman twice, bertscore, structure, length"),
    ("perplexity", "perplexity(text)", 100, "pocket rephraser, 3 M parameters"),
    ("rephrase", "rephrase(text)", 100, "pocket editor, edits"),
    ("generate", "generate(left(text, 200), 'base')", 20, "pocket rephraser, 64 new tokens at most"),
    ("rephrase_detail", "rephrase_detail(text)", 100, "pocket editor, edits"),
];

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = || root.join("assets/corpus/*.jsonl").display().to_string();
    let files = std::env::var("REPRO_DOCUMENTS").unwrap_or_else(|_| corpus());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()?;
    runtime.block_on(all(options, &files, root))
}

fn models(root: &Path) -> anyhow::Result<Arc<Models>> {
    let path = |name: &str| root.join("assets").join(name).display().to_string();
    let specs = json!({
        "rephraser": { "kind": "causal_lm", "path": path("pocket-editor") },
        "base": { "kind": "causal_lm", "path": path("pocket-rephraser"), "max_new_tokens": 64 },
        "hq": { "kind": "fasttext", "path": path("pocket-hq.bin") },
        "dataman": { "kind": "causal_lm", "path": path("pocket-dataman") },
        "bertscore": { "kind": "encoder", "path": path("pocket-encoder"), "layer": 3 },
        "tokens": { "kind": "tokenizer", "path": path("pocket-rephraser") },
    });
    let specs: BTreeMap<String, ModelSpec> = serde_json::from_value(specs)?;
    Ok(Models::with_rewards(specs, 42, RewardConfig::default()))
}

async fn all(options: &Options, files: &str, root: &Path) -> anyhow::Result<()> {
    println!("  | function | rows | rows/s | MB/s | NULL | |\n  |---|---|---|---|---|---|");
    for (name, call, most, what) in CASES {
        if !name.contains(&options.case) {
            continue;
        }
        let most = if options.smoke { 2 } else { most };
        measure(name, call, most, what, files, root).await.with_context(|| name.to_owned())?;
    }
    Ok(())
}

async fn measure(name: &str, call: &str, most: usize, what: &str, files: &str, root: &Path) -> anyhow::Result<()> {
    let options = SessionOptions {
        models: models(root)?,
        params: BTreeMap::new(),
        failures: Failures::Null(Arc::new(|_, _| ())),
        partitions: 0,
    };
    let session = Session::new(options)?;
    session.register("files", TableSource::Files(files.to_owned())).await?;
    let changed = r"regexp_replace(text, '(\S+\s+\S+\s+\S+\s+\S+\s+)\S+\s*', '\1', 'g')";
    let limit = if most == usize::MAX { String::new() } else { format!(" LIMIT {most}") };
    // In memory, so that neither reading nor making the second text is measured.
    let documents = session.sql(&format!("SELECT text, {changed} AS changed FROM files{limit}")).await?;
    let documents = documents.cache().await?;
    session.context().register_table("documents", documents.clone().into_view())?;
    let sum = session.sql("SELECT CAST(sum(octet_length(text)) AS BIGINT) FROM documents").await?.collect().await?;
    let bytes = sum.first().context("no sum")?.column(0).as_primitive::<Int64Type>().value(0);
    // One short row loads the models.
    let warm = format!(
        "SELECT {call} FROM (SELECT left(text, 100) AS text, left(changed, 100) AS changed FROM documents LIMIT 1)"
    );
    session.sql(&warm).await?.collect().await?;
    let query = format!("SELECT {call} AS found FROM documents");
    let began = Instant::now();
    let batches = session.sql(&query).await?.collect().await?;
    let seconds = began.elapsed().as_secs_f64();
    let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    let nulls: usize = batches.iter().map(|batch| batch.column(0).null_count()).sum();
    ensure!(rows > 0, "{files} holds no row");
    println!(
        "  | {name} | {rows} | {:.1} | {:.3} | {nulls} | {what} |",
        rows as f64 / seconds,
        bytes as f64 / seconds / 1e6
    );
    Ok(())
}
