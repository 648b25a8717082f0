//! `generate`: output tokens per second of a random 29 M-parameter Qwen3 (hidden 512, 8 layers, ffn 1536, heads 8/4 of 64,
//! vocab 8192), 64 requests of 256 prompt tokens and 128 new ones, and what the machine would allow. The same work with
//! transformers: benches/peers/generate.py.

use crate::Options;
use futures::future::join_all;
use repro::{
    engine::{DeviceSpec, Engine, EngineOptions, Precision, Request, Sampling},
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
    },
};
use std::{sync::Arc, time::Instant};
use tch::{Device, Kind};

/// Requests, prompt tokens, new tokens.
struct Work {
    requests: usize,
    prompt: usize,
    new: usize,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let (smoke, case) = (options.smoke, options.case.as_str());
    let (config, mut work) = if smoke {
        (shape(64, 2, 128, 256), Work { requests: 4, prompt: 16, new: 8 })
    } else {
        (shape(512, 8, 1536, 8192), Work { requests: 64, prompt: 256, new: 128 })
    };
    if let [requests, prompt, new] = options.work[..] {
        work = Work { requests, prompt, new };
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let repeats = if smoke { 1 } else { 3 };
    if case.is_empty() {
        limits(&config, &work, smoke);
    }
    let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0 };
    let drawn = Sampling { temperature: 1.0, top_p: 0.9, top_k: 0 };
    for (name, precision, slots, sampling) in [
        ("bf16, 64 slots, greedy", Precision::Auto, 64, greedy),
        ("bf16, 64 slots, temperature 1, top-p 0.9", Precision::Auto, 64, drawn),
        ("bf16, 16 slots, greedy", Precision::Auto, 16, greedy),
        ("bf16, 1 slot, greedy", Precision::Auto, 1, greedy),
        ("f32, 64 slots, greedy", Precision::F32, 64, greedy),
    ] {
        if !name.contains(case) {
            continue;
        }
        let options = EngineOptions { device: DeviceSpec::Cpu, precision, slots, threads: 0 };
        let decoder = Decoder::random(config.clone(), 0.02, 1, Device::Cpu, Kind::Float)?;
        let engine = Engine::from_decoder(decoder, options)?;
        let work = Work { requests: if slots == 1 { work.requests.div_ceil(8) } else { work.requests }, ..work };
        let mut rates: Vec<f64> = Vec::new();
        let cpu = cpu_seconds();
        for _ in 0..repeats {
            rates.push(runtime.block_on(once(&engine, &work, sampling))?);
        }
        // On a busy machine this says more than the wall clock does.
        let cpu = (cpu_seconds() - cpu) / (repeats * work.requests * work.new) as f64 * 1e6;
        rates.sort_by(f64::total_cmp);
        let (low, middle, high) = (rates[0], rates[repeats / 2], rates[repeats - 1]);
        println!(
            "  {name}: {middle:.0} tok/s (median of {repeats}; {low:.0} to {high:.0}), {cpu:.0} µs of CPU a token"
        );
    }
    Ok(())
}

fn shape(hidden: usize, layers: usize, ffn: usize, vocab: usize) -> DecoderConfig {
    DecoderConfig {
        arch: Arch::Qwen3,
        vocab_size: vocab,
        hidden,
        layers,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        ffn,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 1024,
        tied_embeddings: true,
        eos: Vec::new(),
    }
}

/// Output tokens per second of all requests at once, prompts included in the time.
async fn once(engine: &Engine, work: &Work, sampling: Sampling) -> anyhow::Result<f64> {
    let vocab = engine.config().vocab_size as u32;
    let requests = (0..work.requests as u32).map(|i| Request {
        prefix: Arc::from([]),
        prompt: (0..work.prompt as u32).map(|t| (t * 7919 + i * 104_729) % vocab).collect(),
        max_new_tokens: work.new,
        sampling,
        stop: Arc::from([]),
        seed: u64::from(i),
        format: None,
    });
    let start = Instant::now();
    let done = join_all(requests.map(|r| engine.generate(r))).await;
    let tokens: usize = done.into_iter().collect::<Result<Vec<_>, _>>()?.iter().map(|c| c.tokens.len()).sum();
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

/// What memory bandwidth and the fastest matrix product seen would allow, if nothing else took time.
fn limits(config: &DecoderConfig, work: &Work, smoke: bool) {
    let copy = copy_bandwidth(if smoke { 1 << 20 } else { 256 << 20 });
    let flops = matmul_rate(if smoke { 64 } else { 2048 });
    let (requests, new) = (work.requests as f64, work.new as f64);
    let prompt = work.prompt as f64;
    let head = (config.vocab_size * config.hidden) as f64;
    let body = config.parameters() as f64 - if config.tied_embeddings { head } else { 2.0 * head };
    // Every step reads all weights and every sequence's keys and values so far; 2 bytes a number.
    let weights = 2.0 * (body + head) * new;
    let per_position = (2 * config.layers * config.kv_heads * config.head_dim * 2) as f64;
    let cache = requests * new * (prompt + new / 2.0) * per_position;
    let memory = requests * new / ((weights + cache) / copy);
    let work = 2.0 * requests * (body * (prompt + new) + head * new);
    println!(
        "  copy {:.1} GB/s → at most {memory:.0} tok/s by memory (weights and cache read once a step)",
        copy / 1e9
    );
    println!(
        "  bf16 matmul {:.0} GFLOP/s → at most {:.0} tok/s by products",
        flops / 1e9,
        requests * new / (work / flops)
    );
}

/// Processor time of this process so far, all threads.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Bytes read and written per second by two threads copying arrays far larger than the caches.
fn copy_bandwidth(bytes: usize) -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let best = (0..3).map(|_| {
        let start = std::sync::Barrier::new(threads);
        let seconds = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let (from, mut to) = (vec![1u8; bytes], vec![0u8; bytes]);
                        start.wait();
                        let begin = Instant::now();
                        for _ in 0..4 {
                            std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
                        }
                        begin.elapsed().as_secs_f64()
                    })
                })
                .collect();
            workers.into_iter().map(|w| w.join().unwrap_or(f64::INFINITY)).fold(0.0, f64::max)
        });
        (threads * bytes * 2 * 4) as f64 / seconds
    });
    best.fold(0.0, f64::max)
}

/// Floating-point operations per second of libtorch's bf16 product of square matrices, the best of several.
fn matmul_rate(n: i64) -> f64 {
    let a = tch::Tensor::randn([n, n], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    let best = (0..10).map(|_| {
        let start = Instant::now();
        let _ = a.matmul(&a);
        2.0 * (n as f64).powi(3) / start.elapsed().as_secs_f64()
    });
    best.fold(0.0, f64::max)
}
