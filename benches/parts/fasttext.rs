//! Documents a second of fastText prediction (top-3 labels) with lid.176.ftz on real texts, on one thread and on two; the same work as
//! benches/peers/fasttext.py. Needs the shared data; without it, the small model of the tests.

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
    let (model, texts) = if file.exists() && !options.smoke {
        (FastText::load(&file)?, texts(&shared)?)
    } else {
        let small = root.join("tests/golden/fasttext/softmax_words.bin");
        (FastText::load(&small)?, vec!["batire mosu ing".to_owned(); 100])
    };
    let bytes: usize = texts.iter().map(String::len).sum();
    println!("  {} texts, {:.1} kB each on average", texts.len(), bytes as f64 / texts.len() as f64 / 1000.0);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let mut rates: Vec<f64> =
            (0..if options.smoke { 1 } else { 5 }).map(|_| pool.install(|| rate(&model, &texts))).collect();
        rates.sort_by(f64::total_cmp);
        let rate = rates[rates.len() / 2];
        let megabytes = rate * bytes as f64 / texts.len() as f64 / 1e6;
        println!("  {threads} threads: {rate:.0} documents/s, {megabytes:.1} MB/s");
    }
    Ok(())
}

/// Passes over the texts in one rate: a pass takes some 60 ms, of which threads that wait for the last text would be a visible part.
const PASSES: usize = 8;

fn rate(model: &FastText, texts: &[String]) -> f64 {
    let start = Instant::now();
    let all = (0..PASSES * texts.len()).into_par_iter().map(|at| &texts[at % texts.len()]);
    let labels: usize = all.map(|text| model.top(text, 3).map_or(0, |top| top.len())).sum();
    std::hint::black_box(labels);
    (PASSES * texts.len()) as f64 / start.elapsed().as_secs_f64()
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
