//! Documents a second of fastText prediction (top-3 labels) with lid.176.ftz on real texts, on one thread and on two; the same work as
//! benches/peers/fasttext.py. Beside it two threads that share nothing: what a second core gives at all. Needs the shared data; without
//! it, the small model of the tests.

use crate::Options;
use anyhow::Context;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use repro::rewards::fasttext::FastText;
use std::{path::Path, time::Instant};

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("REPRO_SHARED").map_or_else(|| root.join("../shared"), Into::into).join("data");
    let file = shared.join("fasttext/lid.176.ftz");
    let (file, texts) = if file.exists() && !options.smoke {
        (file, texts(&shared)?)
    } else {
        (root.join("tests/golden/fasttext/softmax_words.bin"), vec!["batire mosu ing".to_owned(); 100])
    };
    let models = [FastText::load(&file)?, FastText::load(&file)?];
    let bytes: usize = texts.iter().map(String::len).sum();
    println!("  {} texts, {:.1} kB each on average", texts.len(), bytes as f64 / texts.len() as f64 / 1000.0);
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pools = [pool(1)?, pool(2)?];
    // in turn, so that a slow moment of the machine meets all alike
    let turns = if options.smoke { 1 } else { 15 };
    let [mut one, mut two, mut copies] = [const { Vec::new() }; 3];
    let first = pools[0].install(|| rate(&texts, 1, |_| &models[0]));
    for _ in 0..turns {
        one.push(pools[0].install(|| rate(&texts, PASSES, |_| &models[0])));
        two.push(pools[1].install(|| rate(&texts, PASSES, |_| &models[0])));
        copies.push(pools[1].install(|| rate(&texts, PASSES, |thread| &models[thread])));
    }
    let [one, two, copies] = [one, two, copies].map(median);
    let megabytes = |rate: f64| rate * bytes as f64 / texts.len() as f64 / 1e6;
    println!("  1 thread, no word seen before: {first:.0} documents/s");
    println!("  1 thread: {one:.0} documents/s, {:.1} MB/s", megabytes(one));
    println!("  2 threads: {two:.0} documents/s, {:.1} MB/s, {:.2} times one", megabytes(two), two / one);
    println!("  2 threads, a copy of the model each: {copies:.0} documents/s, {:.2} times one", copies / one);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Passes over the texts in one rate. A pass takes 35 ms on two threads and the longest text 3, for which one thread may wait at the end.
const PASSES: usize = 8;

/// Documents a second of so many passes over the texts; `model` names the model of a thread.
fn rate<'a>(texts: &[String], passes: usize, model: impl Fn(usize) -> &'a FastText + Sync) -> f64 {
    let start = Instant::now();
    let labels = |at: usize| {
        let thread = rayon::current_thread_index().unwrap_or(0);
        model(thread).top(&texts[at % texts.len()], 3).map_or(0, |top| top.len())
    };
    std::hint::black_box((0..passes * texts.len()).into_par_iter().map(labels).sum::<usize>());
    (passes * texts.len()) as f64 / start.elapsed().as_secs_f64()
}

/// The documents of shared/data/dclm and the first 500 sentences of the language task.
fn texts(shared: &Path) -> anyhow::Result<Vec<String>> {
    let mut out = Vec::new();
    for (file, column) in
        [("dclm/low_score_500.jsonl", "text"), ("core/bigbench_language_identification.jsonl", "query")]
    {
        let path = shared.join(file);
        let lines = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for line in lines.lines().take(500) {
            let row: serde_json::Value = serde_json::from_str(line)?;
            out.push(row[column].as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(out)
}
