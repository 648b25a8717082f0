//! `gpu-generate`: output tokens per second of Qwen3 shapes with random weights on one GPU, bf16, temperature 1, top-p 0.9,
//! over batch sizes, and what the GPU's memory bandwidth and products would allow. `--case=4B` takes one shape, `--work=R,P,N`
//! other lengths (R is ignored: there are three requests a slot). The same work with transformers: benches/peers/gpu_generate.py.
//! Skipped without a GPU.

use crate::Options;
use futures::future::join_all;
use repro::{
    engine::{DeviceSpec, Engine, EngineOptions, Precision, Request, Sampling},
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
        weights::Weights,
    },
};
use std::{sync::Arc, time::Instant};
use tch::{Cuda, Device, Kind, Tensor};

/// Name, hidden, layers, heads, ffn; all have 8 key/value heads of 128 and 151,936 tokens (config.json of Qwen/Qwen3-*).
const SHAPES: [(&str, usize, usize, usize, usize); 3] =
    [("Qwen3-0.6B", 1024, 28, 16, 3072), ("Qwen3-1.7B", 2048, 28, 16, 6144), ("Qwen3-4B", 2560, 36, 32, 9728)];

pub fn run(options: &Options) -> anyhow::Result<()> {
    let Ok(Device::Cuda(gpu)) = DeviceSpec::Auto.resolve() else {
        println!("  skipped: no GPU");
        return Ok(());
    };
    let (prompt, new) = match options.work[..] {
        [_, prompt, new] => (prompt, new),
        _ => (1024, 256),
    };
    let (copy, flops) = (copy_bandwidth(gpu), product_rate(gpu));
    println!(
        "  copy {:.2} TB/s, bf16 product {:.0} TFLOP/s; prompts of {prompt}, {new} new tokens",
        copy / 1e12,
        flops / 1e12
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for (name, hidden, layers, heads, ffn) in SHAPES {
        if !name.contains(&options.case) {
            continue;
        }
        let config = shape(hidden, layers, heads, ffn, prompt + new);
        for slots in [1usize, 16, 64, 256] {
            let begin = Instant::now();
            let decoder = Decoder::new(config.clone(), weights(&config)?)?;
            let engine = EngineOptions { device: DeviceSpec::Cuda(gpu), precision: Precision::Bf16, slots, threads: 0 };
            let engine = Engine::from_decoder(decoder, engine)?;
            let loaded = begin.elapsed().as_secs_f64();
            // The first requests pay for what cuBLAS loads.
            runtime.block_on(once(&engine, slots.min(4), prompt, 4))?;
            // One slot: fewer, it is the slowest. Else no queue, so that the figure is of a full batch.
            let new = if slots == 1 { new / 2 } else { new };
            let seconds = runtime.block_on(once(&engine, slots, prompt, new))?;
            let first = runtime.block_on(once(&engine, slots, prompt, 1))?;
            let (output, input) = ((slots * new) as f64, (slots * prompt) as f64);
            let limit = floor(&config, slots, (prompt, new), copy, flops);
            println!(
                "  {name}, {slots} slots: {:.0} tok/s out, {:.0} in and out; prompts alone {:.0} tok/s, then {:.2} ms a step; the GPU would \
                 allow {:.0} tok/s out ({:.0} %); start {loaded:.1} s",
                output / seconds,
                (output + input) / seconds,
                input / first,
                (seconds - first) / (new - 1) as f64 * 1e3,
                output / limit,
                100.0 * limit / seconds
            );
        }
    }
    Ok(())
}

fn shape(hidden: usize, layers: usize, heads: usize, ffn: usize, positions: usize) -> DecoderConfig {
    DecoderConfig {
        arch: Arch::Qwen3,
        vocab_size: 151_936,
        hidden,
        layers,
        heads,
        kv_heads: 8,
        head_dim: 128,
        ffn,
        rms_eps: 1e-6,
        rope_theta: 1e6,
        rope_scaling: RopeScaling::None,
        max_positions: positions,
        tied_embeddings: true,
        eos: Vec::new(),
    }
}

/// Random parameters, made fast: all matrices are windows of one list of random numbers. The last norm makes the logits spread
/// as a trained model's do (standard deviation about 5), so that a nucleus is a small part of the vocabulary.
fn weights(config: &DecoderConfig) -> anyhow::Result<Weights> {
    let sizes = config.tensors();
    let largest = sizes.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0);
    let numbers = (Tensor::randn([largest as i64 + 4096], (Kind::Float, Device::Cpu)) * 0.02).to_kind(Kind::BFloat16);
    let spread = 5.0 / (0.02 * (config.hidden as f64).sqrt());
    let tensors = sizes.into_iter().enumerate().map(|(index, (name, shape))| {
        let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let tensor = if name.ends_with("norm.weight") {
            let value = if name == "model.norm.weight" { spread } else { 1.0 };
            Tensor::f_full(&dims, value, (Kind::Float, Device::Cpu))?
        } else {
            let from = (index * 97 % 4096) as i64;
            numbers.f_narrow(0, from, dims.iter().product())?.f_reshape(&dims)?
        };
        Ok((name, tensor))
    });
    Ok(Weights { tensors: tensors.collect::<anyhow::Result<_>>()? })
}

/// Seconds that all requests at once take.
async fn once(engine: &Engine, requests: usize, prompt: usize, new: usize) -> anyhow::Result<f64> {
    let vocab = engine.config().vocab_size;
    let sampling = Sampling { temperature: 1.0, top_p: 0.9, top_k: 0 };
    let requests = (0..requests).map(|i| Request {
        prefix: Arc::from([]),
        prompt: (0..prompt).map(|t| ((t * 7919 + i * 104_729) % vocab) as u32).collect(),
        max_new_tokens: new,
        sampling,
        stop: Arc::from([]),
        seed: i as u64,
        format: None,
    });
    let begin = Instant::now();
    for done in join_all(requests.map(|r| engine.generate(r))).await {
        anyhow::ensure!(done?.tokens.len() == new, "a request ended early");
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Seconds that the products of the prompts, and each step's reading of weights and cache, take at the measured rates.
fn floor(config: &DecoderConfig, slots: usize, (prompt, new): (usize, usize), copy: f64, flops: f64) -> f64 {
    let head = (config.vocab_size * config.hidden) as f64;
    let body = config.parameters() as f64 - head;
    let prompts = 2.0 * body * (slots * prompt) as f64 / flops;
    let per_position = (2 * config.layers * config.kv_heads * config.head_dim * 2) as f64;
    let cache = (slots * new) as f64 * (prompt as f64 + new as f64 / 2.0) * per_position;
    prompts + (2.0 * (body + head) * new as f64 + cache) / copy
}

/// Bytes read and written per second by a copy of 2 GiB on the device.
fn copy_bandwidth(gpu: usize) -> f64 {
    let from = Tensor::zeros([1 << 29], (Kind::Float, Device::Cuda(gpu)));
    let mut to = from.zeros_like();
    let seconds = median(gpu, || to.copy_(&from));
    2.0 * (4u64 << 29) as f64 / seconds
}

/// Operations per second of a product of 8192 x 8192 random bf16 matrices.
fn product_rate(gpu: usize) -> f64 {
    let a = Tensor::randn([8192, 8192], (Kind::BFloat16, Device::Cuda(gpu)));
    let seconds = median(gpu, || drop(a.matmul(&a)));
    2.0 * 8192f64.powi(3) / seconds
}

/// Median seconds of seven calls, after three to warm up.
fn median(gpu: usize, mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..10)
        .map(|_| {
            Cuda::synchronize(gpu as i64);
            let begin = Instant::now();
            work();
            Cuda::synchronize(gpu as i64);
            begin.elapsed().as_secs_f64()
        })
        .skip(3)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
