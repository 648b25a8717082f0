//! Optimiser steps of an OpenLM of about 30 M parameters: 8 contexts of 512 tokens, bf16, z-loss, clipping, AdamW. Measured: a whole
//! step on random tokens, forward to updated weights. Not measured: reading data, checkpoints. Peer: benches/peers/pretrain_torch.py,
//! the same model and step in eager PyTorch. Cases: `wide` (vocabulary 8,192) and `vocab` (50,432), each by hand and by libtorch.

use crate::Options;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use repro::{
    models::openlm::{OpenLm, OpenLmConfig},
    train::{
        optim::AdamWOptions,
        pretrain::{Backward, Contexts, Options as StepOptions, Pretrainer},
        setup::set_threads,
    },
};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

struct Work {
    rows: usize,
    length: usize,
    steps: usize,
}

/// Runs the cases.
pub fn run(options: &Options) -> anyhow::Result<()> {
    set_threads(0);
    let mut work = Work { rows: 8, length: 512, steps: 6 };
    if let [rows, length, steps] = options.work[..] {
        work = Work { rows, length, steps };
    } else if options.smoke {
        work = Work { rows: 1, length: 64, steps: 1 };
    }
    let peak = matmul_gflops(if options.smoke { 256 } else { 2048 });
    println!("  bf16 matmul {peak:.0} GFLOP/s");
    for (shape, [hidden, layers, heads, ffn, vocab_size]) in
        [("wide", [512, 6, 8, 1536, 8192]), ("vocab", [256, 6, 4, 768, 50_432])]
    {
        for (method, backward) in [("hand", Backward::ByHand), ("libtorch", Backward::Autograd)] {
            let name = format!("{shape}-{method}");
            if name.contains(&options.case) {
                let config = OpenLmConfig { vocab_size, hidden, layers, heads, ffn, max_positions: 2048, eos: vec![0] };
                case(&name, config, backward, &work, peak)?;
            }
        }
    }
    Ok(())
}

fn case(name: &str, config: OpenLmConfig, backward: Backward, work: &Work, peak: f64) -> anyhow::Result<()> {
    let parameters = config.parameters();
    // 6 per weight and token in matrices; attention as the peer counts it, half of it masked
    let matrices = parameters - config.vocab_size * config.hidden;
    let attention = 6 * config.layers * config.hidden * work.length;
    let vocab = config.vocab_size as u32;
    let model = OpenLm::random(config, 1, Device::Cpu, Kind::Float)?;
    let adamw = AdamWOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.033 };
    let step = StepOptions { kind: Kind::BFloat16, clip: 1.0, z_loss: 1e-4, backward };
    let mut trainer = Pretrainer::new(model.into(), adamw, step);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut seconds = Vec::new();
    let mut loss = 0.0;
    for _ in 0..work.steps + 2 {
        let ids = (0..work.rows * (work.length + 1)).map(|_| rng.random_range(0..vocab)).collect();
        let begin = Instant::now();
        loss = trainer.step(&[Contexts { rows: work.rows, ids }], 3e-3)?.loss;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let mut warm = seconds.split_off(2.min(seconds.len() - 1));
    warm.sort_by(f64::total_cmp);
    let median = warm[warm.len() / 2];
    let tokens = (work.rows * work.length) as f64;
    let gflops = 6.0 * (matrices + attention / 6) as f64 * tokens / median / 1e9;
    println!(
        "  {name}: {:.1} M parameters, {:.0} tok/s, {median:.3} s a step, {gflops:.0} GFLOP/s ({:.0} % of the matmul), loss {loss:.3}",
        parameters as f64 / 1e6,
        tokens / median,
        100.0 * gflops / peak
    );
    Ok(())
}

/// The best of a few large bf16 products.
fn matmul_gflops(n: i64) -> f64 {
    let matrix = || Tensor::randn([n, n], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let (a, b) = (matrix(), matrix());
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let begin = Instant::now();
        let _ = a.matmul(&b);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * (n as f64).powi(3) / best / 1e9
}
