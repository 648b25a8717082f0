//! `gpu-score`: BERTScore on a GPU, from token ids to matches: pairs per second of two published shapes with random parameters, in bf16 and
//! f32, 512 tokens a text and lengths of 64 to 512. Without a GPU it is skipped; with --smoke it runs tiny ones wherever it is.

use crate::Options;
use anyhow::Context;
use repro::{
    engine::{
        DeviceSpec, Precision,
        encoder::{Encoder, EncoderOptions, Tokens},
    },
    models::encoder::config::EncoderConfig,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Time that a case is repeated for.
const MEASURED: Duration = Duration::from_millis(2500);

/// One model, one precision, one choice of lengths.
struct Case {
    name: &'static str,
    config: Value,
    layer: usize,
    precision: Precision,
    /// Pairs of a call.
    pairs: usize,
    /// Tokens of a text at least and at most, those around it included.
    tokens: (usize, usize),
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let device = if DeviceSpec::Auto.resolve()?.is_cuda() { DeviceSpec::Cuda(0) } else { DeviceSpec::Cpu };
    if device == DeviceSpec::Cpu && !options.smoke {
        println!("  skipped: no GPU");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let began = Instant::now();
    for case in cases(options.smoke) {
        let Case { name, precision, .. } = case;
        let name = format!("{name}, {precision:?}, {} to {} tokens", case.tokens.0, case.tokens.1).to_lowercase();
        if !name.contains(&options.case) {
            continue;
        }
        runtime.block_on(measure(&name, case, device, options.smoke)).with_context(|| name.clone())?;
    }
    println!("  all: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn cases(smoke: bool) -> Vec<Case> {
    if smoke {
        let case = |name, config, precision| Case { name, config, layer: 1, precision, pairs: 3, tokens: (8, 32) };
        return vec![
            case("tiny deberta", deberta(64, 2, 2, 128), Precision::F32),
            case("tiny bert", bert(64, 2, 2, 128), Precision::Bf16),
        ];
    }
    let (large, mini) = (|| deberta(1024, 24, 16, 4096), || bert(384, 6, 12, 1536));
    let deberta = |precision, pairs, tokens| {
        let name = "deberta-large-mnli, layer 18";
        Case { name, config: large(), layer: 18, precision, pairs, tokens }
    };
    let mini = |precision, pairs, tokens| {
        let name = "minilm-l6, layer 5";
        Case { name, config: mini(), layer: 5, precision, pairs, tokens }
    };
    vec![
        deberta(Precision::Bf16, 256, (512, 512)),
        deberta(Precision::Bf16, 512, (64, 512)),
        deberta(Precision::F32, 64, (512, 512)),
        mini(Precision::Bf16, 1024, (512, 512)),
        mini(Precision::Bf16, 2048, (64, 512)),
        mini(Precision::F32, 512, (512, 512)),
    ]
}

/// As microsoft/deberta-large-mnli's config.json, but for the sizes.
fn deberta(hidden: usize, layers: usize, heads: usize, ffn: usize) -> Value {
    json!({
        "model_type": "deberta", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": ffn, "vocab_size": 50265, "hidden_act": "gelu", "layer_norm_eps": 1e-7,
        "max_position_embeddings": 512, "relative_attention": true, "max_relative_positions": -1,
        "pos_att_type": "c2p|p2c", "position_biased_input": false, "type_vocab_size": 0,
    })
}

/// As sentence-transformers/all-MiniLM-L6-v2's config.json, but for the sizes.
fn bert(hidden: usize, layers: usize, heads: usize, ffn: usize) -> Value {
    json!({
        "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": ffn, "vocab_size": 30522, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
    })
}

/// Pairs of different texts, the same each time.
fn pairs(case: &Case) -> Vec<(Tokens, Tokens)> {
    let mut state = 1u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut text = || -> Tokens {
        let (least, most) = case.tokens;
        let tokens = least + next((most - least + 1) as u64) as usize - 2;
        (0..tokens).map(|_| 1000 + next(29_000) as u32).collect()
    };
    (0..case.pairs).map(|_| (text(), text())).collect()
}

async fn measure(name: &str, case: Case, device: DeviceSpec, smoke: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let config = EncoderConfig::from_json(case.config.as_object().context("a config is an object")?)?;
    let (hidden, ffn) = (config.hidden as f64, config.ffn as f64);
    let options = EncoderOptions {
        device,
        precision: case.precision,
        layer: case.layer,
        before: vec![1],
        after: vec![2],
        window: 512,
        rows: EncoderOptions::ROWS,
        threads: 0,
    };
    let encoder = Encoder::random(config, &options)?;
    let pairs = pairs(&case);
    let once = async || encoder.matches(pairs.clone()).await.into_iter().collect::<Result<Vec<_>, _>>();
    // The same shapes again, so that nothing is compiled while it is measured.
    let first = once().await?;
    let all = first.iter().flat_map(|m| m.first.iter().chain(&m.second));
    let (count, sum) = all.fold((0usize, 0f64), |(n, sum), &cosine| (n + 1, sum + f64::from(cosine)));
    anyhow::ensure!(sum.is_finite(), "the cosines are not numbers");
    let started = began.elapsed().as_secs_f64();
    let (before, began, mut times) = (encoder.tokens(), Instant::now(), 0);
    while times == 0 || !smoke && began.elapsed() < MEASURED {
        once().await?;
        times += 1;
    }
    let seconds = began.elapsed().as_secs_f64();
    let tokens = (encoder.tokens() - before) as f64;
    let rate = (times * pairs.len()) as f64 / seconds;
    // Products of one block: queries, keys, values, out (4 h²) and feed-forward (2 h f); attention comes on top.
    let work = 2.0 * tokens * case.layer as f64 * (4.0 * hidden * hidden + 2.0 * hidden * ffn);
    println!(
        "  {name}: {rate:.1} pairs/s, {:.0} tok/s; weight products at {:.1} TFLOP/s; {times} × {} pairs in {seconds:.2} s after {started:.1} s; mean cosine {:.4}",
        tokens / seconds,
        work / seconds / 1e12,
        pairs.len(),
        sum / count as f64
    );
    Ok(())
}
