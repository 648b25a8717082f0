//! `gpu-grpo`: one GRPO step of the paper's batch on a GPU, for the shapes of Qwen3-0.6B and Qwen3-4B with random weights: 24 documents x 8
//! completions, lengths as the paper's documents have them (characters log-normal, median 1,502, cut at 7,000; 4 to a token; a template
//! of 350 tokens; a completion as long as its document). bf16 with f32 masters, reference with beta 0.005, gradient checkpointing. The
//! reward is a hash of the tokens. Measured: rollouts, update, new weights into the engine, and the device's memory (nvidia-smi).
//!
//!   cargo bench --bench bench -- gpu-grpo [--case=0.6b|4b] [--work=DOCUMENTS,COMPLETIONS,ROWS[,LONGEST]]
//!
//! ROWS: tokens of a pass (16,384); LONGEST: most tokens of a completion. Environment: GPU_GRPO_DEVICE (cuda:0), GPU_GRPO_SLOTS (192),
//! GPU_GRPO_BETA (0.005; 0: no reference), GPU_GRPO_KEEP=1 (keep activations), GPU_GRPO_LORA=RANK (adapters only). `--smoke` is a tiny shape on the CPU.
//!
//! What it takes, in GB (10⁹), with N parameters of b = 2 bytes in bf16:
//!
//! | part | bytes | 0.6B (N = 0.60e9) | 4B (N = 4.02e9) |
//! |---|---|---|---|
//! | masters, two moments, f32 | 12 N | 7.2 | 48.3 |
//! | reference, bf16 (beta > 0) | 2 N | 1.2 | 8.0 |
//! | engine's weights, bf16 | 2 N | 1.2 | 8.0 |
//! | gradient f32, while updating | 4 N | 2.4 | 16.1 |
//! | bf16 copy that computes, while updating and while the engine takes new weights | 2 N | 1.2 | 8.0 |
//! | block inputs of a pass of 16,384 rows, checkpointing | 2 rows H L | 0.9 | 3.0 |
//! | one block's activations and gradients (upper bound) | see `Policy::room` | 3.5 | 7.2 |
//! | logits of a chunk, five times, and a gradient of the output matrix | | 3.3 | 4.2 |
//! | KV cache of all completions at once (prompts shared), 112 and 144 KB a token | | 16 | 21 |
//! | sum | | 37 | 124 |
//!
//! The 4B model so fits an H200 (141 GB) and not an 80 GB card: there masters and moments alone are 48 GB, and gradient, copies and
//! activations another 46. KV pages stand empty while the update runs and could be given back, which saves 21 GB; moments in the
//! host's memory would save 32. With adapters (GPU_GRPO_LORA) only these have masters, moments and gradients: the frozen model, which is
//! its own reference, 8; the engine 8; the merged copy 8; activations and logits 14; KV cache 21: 59 GB.

use crate::Options;
use futures::{executor::block_on, future::try_join_all};
use repro::{
    engine::{DeviceSpec, Engine, EngineStats, Precision, Request, Sampling},
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
        route,
        weights::Weights,
    },
    train::{
        adapters::Lora,
        grpo::{
            batch::Example,
            loss::{LossType, Objective},
            policy::{Activations, Policy, UpdateOptions},
        },
        optim::AdamWOptions,
        setup,
    },
};
use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tch::{Cuda, Device, Kind, Tensor};

/// What a step is made of.
#[derive(Clone, Copy)]
struct Work {
    prompts: usize,
    samples: usize,
    rows: usize,
    longest: usize,
    template: usize,
    slots: usize,
    beta: f64,
    activations: Activations,
    /// Of adapters; None trains the model.
    rank: Option<usize>,
}

/// Runs the cases.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let setting = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let named = setting("GPU_GRPO_DEVICE");
    let name = named.unwrap_or_else(|| if options.smoke { "cpu" } else { "cuda:0" }.to_owned());
    let device = match name.parse::<DeviceSpec>()?.resolve() {
        Ok(device) => device,
        Err(reason) => {
            println!("  skipped: {reason}");
            return Ok(());
        }
    };
    setup::set_threads(0);
    // The tiny shape goes the way of a GPU as well, so that what runs there has run before.
    let _gpu = options.smoke.then(route::AsOnGpu::begin);
    let mut work = Work {
        prompts: 24,
        samples: 8,
        rows: 16_384,
        longest: 2048,
        template: 350,
        slots: setting("GPU_GRPO_SLOTS").and_then(|n| n.parse().ok()).unwrap_or(192),
        beta: setting("GPU_GRPO_BETA").and_then(|n| n.parse().ok()).unwrap_or(0.005),
        rank: setting("GPU_GRPO_LORA").and_then(|n| n.parse().ok()),
        activations: if setting("GPU_GRPO_KEEP").is_some() { Activations::Keep } else { Activations::Recompute },
    };
    if options.smoke {
        work = Work { prompts: 3, samples: 2, rows: 64, longest: 6, template: 5, slots: 4, ..work };
    }
    if let [prompts, samples, rows, ref longest @ ..] = options.work[..] {
        work = Work { prompts, samples, rows, longest: longest.first().copied().unwrap_or(work.longest), ..work };
    }
    let shapes = match options.smoke {
        true => vec![("tiny", shape(64, 2, 4, 16, 128, 300))],
        false => {
            vec![("0.6b", shape(1024, 28, 16, 128, 3072, 151_936)), ("4b", shape(2560, 36, 32, 128, 9728, 151_936))]
        }
    };
    for (name, config) in shapes {
        if name.contains(&options.case) {
            case(name, config, device, &work)?;
        }
    }
    Ok(())
}

fn shape(hidden: usize, layers: usize, heads: usize, head_dim: usize, ffn: usize, vocab_size: usize) -> DecoderConfig {
    DecoderConfig {
        arch: Arch::Qwen3,
        vocab_size,
        hidden,
        layers,
        heads,
        kv_heads: heads.min(8),
        head_dim,
        ffn,
        rms_eps: 1e-6,
        rope_theta: 1_000_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 8192,
        tied_embeddings: true,
        eos: Vec::new(),
    }
}

fn case(name: &str, config: DecoderConfig, device: Device, work: &Work) -> anyhow::Result<()> {
    let memory = Memory::watch(device);
    let begin = Instant::now();
    let body = config.parameters() - config.vocab_size * config.hidden;
    let (parameters, head) = (config.parameters(), config.vocab_size * config.hidden);
    let vocab = config.vocab_size;
    let decoder = random(config, device)?;
    let adamw = AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let mut policy = match work.rank {
        Some(rank) => {
            let lora = (Lora { rank, alpha: 2.0 * rank as f64 }, 1);
            Policy::with_adapters(decoder, adamw, Kind::BFloat16, work.beta != 0.0, lora)
        }
        None => Policy::new(decoder, adamw, Kind::BFloat16, work.beta != 0.0),
    };
    wait(device);
    println!(
        "  {name}: {:.2} B parameters, made in {:.1} s; attention: {}",
        parameters as f64 / 1e9,
        begin.elapsed().as_secs_f64(),
        attention(policy.config(), device)
    );
    let lengths = lengths(work);
    let update = update_options(work);
    let begin = Instant::now();
    let positions = lengths.iter().map(|(prompt, new)| prompt + new).max().unwrap_or(1);
    let engine = policy.engine(work.slots, 0, positions, Precision::Auto, &update)?;
    wait(device);
    println!(
        "    engine of {} slots, {positions} positions: {:.1} s, {}",
        work.slots,
        begin.elapsed().as_secs_f64(),
        memory.now()
    );

    // One pass of each kind, so that libraries are loaded and memory is taken.
    let begin = Instant::now();
    let few = &lengths[..1];
    let drawn = rollouts(&engine, few, &Work { samples: 2, longest: 8, ..*work }, vocab)?;
    learn(&mut policy, few, drawn, work, vocab, &update)?;
    engine.set_weights(policy.weights())?;
    wait(device);
    println!("    warm-up: {:.1} s, {}", begin.elapsed().as_secs_f64(), memory.now());

    let before = engine.stats();
    let begin = Instant::now();
    let drawn = rollouts(&engine, &lengths, work, vocab)?;
    let rollout = begin.elapsed().as_secs_f64();
    let EngineStats { prompt_tokens, output_tokens, .. } = engine.stats();
    let (asked, new) = (prompt_tokens - before.prompt_tokens, output_tokens - before.output_tokens);
    println!(
        "    rollouts: {rollout:.2} s, {new} tokens behind {asked} of prompts, {:.0} tok/s, {}",
        new as f64 / rollout,
        memory.now()
    );
    let begin = Instant::now();
    let report = learn(&mut policy, &lengths, drawn, work, vocab, &update)?;
    wait(device);
    let seconds = begin.elapsed().as_secs_f64();
    let passes = 3.0 + f64::from(u8::from(work.activations == Activations::Recompute));
    let reference = f64::from(u8::from(work.beta != 0.0));
    let flops =
        2.0 * (body as f64 * report.rows as f64 * (passes + reference) + head as f64 * new as f64 * (3.0 + reference));
    println!(
        "    update: {seconds:.2} s, {:.0} tok/s of completions, {:.0} of all {} rows, {:.0} TFLOP/s in products, loss {:.4}, gradient {:.3}, {}",
        new as f64 / seconds,
        report.rows as f64 / seconds,
        report.rows,
        flops / seconds / 1e12,
        report.loss,
        report.grad_norm,
        memory.now()
    );
    let begin = Instant::now();
    engine.set_weights(policy.weights())?;
    wait(device);
    let weights = begin.elapsed().as_secs_f64();
    println!(
        "    new weights into the engine: {weights:.2} s; step: {:.1} s; peak {}",
        rollout + seconds + weights,
        memory.peak()
    );
    Ok(())
}

/// Made on the device: normal matrices, norms of one.
fn random(config: DecoderConfig, device: Device) -> anyhow::Result<Decoder> {
    let options = (Kind::BFloat16, device);
    let mut weights = Weights { tensors: Default::default() };
    for (name, shape) in config.tensors() {
        let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let tensor = match name.ends_with("norm.weight") {
            true => Tensor::f_ones(&dims, options)?,
            false => Tensor::f_empty(&dims, options)?.f_normal_(0.0, 0.02)?,
        };
        weights.tensors.insert(name, tensor);
    }
    Decoder::new(config, weights)
}

/// Tokens of each prompt and of its completions: quantiles of the paper's documents, in an order without a trend.
fn lengths(work: &Work) -> Vec<(usize, usize)> {
    let n = work.prompts;
    let of = |i: usize| {
        let place = (i * 7 % n) as f64 + 0.5;
        let chars = (1502.0 * (1.03 * quantile(place / n as f64)).exp()).min(7000.0);
        let tokens = ((chars / 4.0) as usize).clamp(1, work.longest);
        (work.template + tokens, tokens)
    };
    (0..n).map(of).collect()
}

/// Of the normal distribution: Tukey's lambda, near enough.
fn quantile(p: f64) -> f64 {
    (p.powf(0.135) - (1.0 - p).powf(0.135)) / 0.1975
}

fn prompt(index: usize, tokens: usize, vocab: usize) -> Vec<u32> {
    (0..tokens).map(|t| ((index * 7919 + t * 104_729) % vocab) as u32).collect()
}

/// All completions of a step, each of its full length.
fn rollouts(engine: &Engine, lengths: &[(usize, usize)], work: &Work, vocab: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut requests = Vec::new();
    for (index, &(tokens, new)) in lengths.iter().enumerate() {
        let mut head = prompt(index, tokens, vocab);
        let last = head.split_off(tokens - 1);
        let prefix: Arc<[u32]> = head.into();
        for sample in 0..work.samples {
            requests.push(engine.rollout(Request {
                prefix: Arc::clone(&prefix),
                prompt: last.clone(),
                max_new_tokens: new.min(work.longest),
                sampling: Sampling { temperature: 1.0, top_p: 0.9, top_k: 0 },
                stop: Arc::from([]),
                seed: (index * work.samples + sample) as u64,
                format: None,
            }));
        }
    }
    Ok(block_on(try_join_all(requests))?.into_iter().map(|done| done.tokens).collect())
}

fn update_options(work: &Work) -> UpdateOptions {
    UpdateOptions {
        objective: Objective { epsilon: 0.2, epsilon_high: 0.2, beta: work.beta, temperature: 1.0 },
        loss_type: LossType::Bnpo,
        batches: work.prompts,
        longest: work.longest,
        iterations: 1,
        rows: work.rows,
        activations: work.activations,
        clip: 1.0,
        between: None,
    }
}

fn learn(
    policy: &mut Policy,
    lengths: &[(usize, usize)],
    drawn: Vec<Vec<u32>>,
    work: &Work,
    vocab: usize,
    update: &UpdateOptions,
) -> anyhow::Result<repro::train::grpo::policy::UpdateReport> {
    let prompts: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(i, &(n, _))| prompt(i, n, vocab)).collect();
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let samples = drawn.len() / lengths.len();
    let example = |(i, tokens): (usize, Vec<u32>)| {
        let hash = tokens.iter().fold(i as u32, |hash, &id| hash.wrapping_mul(31).wrapping_add(id));
        let advantage = f64::from(hash % 1000) / 500.0 - 1.0;
        Example {
            prompt: i / samples,
            advantage,
            batch: i / samples % work.prompts,
            drawn: None,
            masked: false,
            tokens,
        }
    };
    policy.update(&slices, &drawn.into_iter().enumerate().map(example).collect::<Vec<_>>(), update, 1e-6)
}

/// Which kernel libtorch takes for the update's attention.
fn attention(config: &DecoderConfig, device: Device) -> &'static str {
    let heads = |n: usize| {
        Tensor::zeros([2, n as i64, 256, config.head_dim as i64], (Kind::BFloat16, device)).set_requires_grad(true)
    };
    let kv = heads(config.kv_heads);
    match route::backend(&heads(config.heads), &kv, &kv) {
        1 => "flash",
        2 => "memory-efficient",
        3 => "cuDNN",
        _ => "no fused kernel with shared keys",
    }
}

fn wait(device: Device) {
    if let Device::Cuda(n) = device {
        Cuda::synchronize(n as i64);
    }
}

/// The device's used memory, looked at ten times a second.
struct Memory {
    device: Device,
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Memory {
    fn watch(device: Device) -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (highest, end) = (Arc::clone(&peak), Arc::clone(&stop));
        if device.is_cuda() {
            std::thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    highest.fetch_max(used(device).unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        Self { device, peak, stop }
    }

    fn now(&self) -> String {
        let used = used(self.device).unwrap_or(0);
        self.peak.fetch_max(used, Ordering::Relaxed);
        format!("{:.1} GB used", used as f64 / 1e3)
    }

    fn peak(&self) -> String {
        format!("{:.1} GB", self.peak.load(Ordering::Relaxed) as f64 / 1e3)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// In 10⁶ bytes; None where nvidia-smi does not say.
fn used(device: Device) -> Option<u64> {
    let Device::Cuda(n) = device else { return None };
    let arguments = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i"];
    let output = Command::new("nvidia-smi").args(arguments).arg(n.to_string()).output().ok()?;
    let mib: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().ok()?;
    Some((mib << 20) / 1_000_000)
}
