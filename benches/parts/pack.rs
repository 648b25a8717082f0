//! `pack`: text per second from a table of documents to shuffled contexts of 2,049 tokens, with the GPT-NeoX ranks, and the tokenizer's share of
//! it. The same work with tokenizers and numpy: benches/peers/pack.py, on the table that this leaves in `--keep=DIRECTORY`.

use crate::Options;
use anyhow::{Context, ensure};
use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use repro::{
    pipeline::stage::{Silent, StageContext, pack, sql::InputTable},
    storage::{commit::TableCommit, location::Location, manifest::Manifest},
    text::tokenizer::Tokenizer,
    udf::models::Models,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Documents of a table file.
const FILE_DOCUMENTS: usize = 20_000;

pub fn run(options: &Options) -> anyhow::Result<()> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let data = std::env::var_os("REPRO_SHARED").map_or(beside, PathBuf::from).join("data");
    let ranks = data.join("tokenizer/gpt_neox_20b.tiktoken");
    if !ranks.exists() {
        println!("  skipped: ../shared/data (or REPRO_SHARED) is not here");
        return Ok(());
    }
    let (copies, repeats) = if options.smoke { (1, 1) } else { (20, 3) };
    let texts = texts(&data, if options.smoke { 200 } else { usize::MAX })?;
    let temporary = tempfile::tempdir()?;
    let home = match options.keep.as_str() {
        "" => temporary.path().to_owned(),
        keep => PathBuf::from(keep),
    };
    let location = Location::parse(home.to_str().context("a UTF-8 path")?)?;
    let megabytes = copies as f64 * texts.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(write(&location, &texts, copies))?;
    let alone = tokenizer_alone(&ranks, &texts)?;
    let config = json!({"tables": "texts", "tokenizer": ranks, "eot": 0, "pad": 50256});
    let config: pack::Config = serde_json::from_value(config)?;
    let mut seconds = Vec::new();
    let (mut cpu, mut tokens) = (0.0, 0);
    for _ in 0..repeats {
        runtime.block_on(TableCommit::remove(&location, "packed"))?;
        let input = InputTable::Managed { location: location.clone(), table: "texts".to_owned() };
        let (begin, before) = (Instant::now(), cpu_seconds());
        let (inputs, cx) = ([("texts".to_owned(), input)], context(&location, "packed"));
        let manifest = runtime.block_on(pack::run(&config, &inputs, &cx))?;
        seconds.push(begin.elapsed().as_secs_f64());
        cpu += (cpu_seconds() - before) / repeats as f64;
        tokens = manifest.params["tokens"].as_u64().context("a count of tokens")?;
    }
    seconds.sort_by(f64::total_cmp);
    let (best, middle) = (seconds[0], seconds[repeats / 2]);
    println!(
        "  {megabytes:.0} MB of text, {tokens} tokens: {:.1} MB/s (median of {repeats}; best {:.1})",
        megabytes / middle,
        megabytes / best
    );
    let share = megabytes / alone / cpu * 100.0;
    println!(
        "  {cpu:.2} s of CPU, {:.0} MB/s a core; the tokenizer alone {alone:.0} MB/s a core, {share:.0} % of the CPU time",
        megabytes / cpu
    );
    Ok(())
}

/// Documents of several kinds: web pages, abstracts, articles, questions.
fn texts(data: &Path, most: usize) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    let field = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).ok().and_then(|v| Some(v["text"].as_str()?.to_owned()))
    };
    for name in ["dclm/low_score_500.jsonl", "prose/pubmed.jsonl"] {
        texts.extend(std::fs::read_to_string(data.join(name))?.lines().filter_map(field).take(most));
    }
    for name in ["prose/wikitext2_a.txt", "prose/wikitext2_b.txt"] {
        let all = std::fs::read_to_string(data.join(name))?;
        let lines: Vec<&str> = all.lines().filter(|line| !line.trim().is_empty()).take(most).collect();
        texts.extend(lines.chunks(8).map(|lines| lines.join("\n")));
    }
    ensure!(!texts.is_empty(), "there are no documents");
    Ok(texts)
}

async fn write(location: &Location, texts: &[String], copies: usize) -> anyhow::Result<()> {
    TableCommit::remove(location, "texts").await?;
    let schema =
        Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false), Field::new("text", DataType::Utf8, false)]));
    let commit = TableCommit::begin(location, "texts", "key").await?;
    let all: Vec<(usize, &String)> = (0..copies).flat_map(|_| texts).enumerate().collect();
    for (number, part) in all.chunks(FILE_DOCUMENTS).enumerate() {
        let mut writer = commit.fragment(&format!("{number:04}"), schema.clone()).await?;
        for rows in part.chunks(500) {
            let ids = StringArray::from_iter_values(
                rows.iter().map(|(n, _)| blake3::hash(&n.to_le_bytes()).to_hex()[..32].to_owned()),
            );
            let texts = StringArray::from_iter_values(rows.iter().map(|(_, text)| text));
            let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(texts)];
            writer.write(&RecordBatch::try_new(schema.clone(), columns)?).await?;
        }
        writer.finish(part.len() as u64).await?;
    }
    commit.publish(Manifest::describe(&context(location, "texts"))).await.map(drop)
}

/// Megabytes per second of one thread that only turns text into ids, its cache warm.
fn tokenizer_alone(ranks: &Path, texts: &[String]) -> anyhow::Result<f64> {
    let mut encoder = Tokenizer::from_dir(ranks)?.encoder();
    let mut ids = Vec::new();
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let begin = cpu_seconds();
        for text in texts {
            ids.clear();
            encoder.encode(text, &mut ids)?;
        }
        best = best.min(cpu_seconds() - begin);
    }
    Ok(texts.iter().map(String::len).sum::<usize>() as f64 / 1e6 / best)
}

fn context(location: &Location, output: &str) -> StageContext {
    StageContext {
        external: BTreeMap::new(),
        location: location.clone(),
        output: output.to_owned(),
        key: "bench".to_owned(),
        seed: 1234,
        params: BTreeMap::new(),
        models: Models::new(BTreeMap::new(), 1234),
        progress: Arc::new(Silent),
        cancel: CancellationToken::new(),
        inputs: BTreeMap::new(),
        model_hashes: BTreeMap::new(),
        code_version: "1".to_owned(),
    }
}

/// Processor time of this process so far, all threads.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
