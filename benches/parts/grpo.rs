//! `grpo`: one step of GRPO (rollouts, update, new weights into the engine) on a random 29 M-parameter Qwen3 (hidden 512, 8 layers, ffn
//! 1536, heads 8/4 of 64, vocab 8192): 8 prompts of 128 tokens x 8 completions of 128 tokens, bf16 with f32 masters, reference with
//! beta 0.005; and the process's peak memory. The reward costs nothing. The same with TRL: benches/peers/grpo_trl.py.

use super::generate::shape;
use crate::Options;
use repro::{
    engine::{Precision, Sampling, cpu::isa::Isa},
    models::decoder::Decoder,
    storage::commit::peak_memory,
    text::tokenizer::Tokenizer,
    train::{
        bpe,
        grpo::{
            batch::Example,
            loss::{LossType, Objective},
            policy::{Activations, Policy, UpdateOptions},
            rollout::{Drawing, Prompt, draw},
        },
        optim::AdamWOptions,
        setup,
    },
};
use std::time::Instant;
use tch::{Device, Kind};

/// Prompts, completions a prompt, tokens of each.
struct Work {
    prompts: usize,
    samples: usize,
    prompt: usize,
    new: usize,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let smoke = options.smoke;
    let (config, work) = match smoke {
        true => (shape(64, 2, 128, 300), Work { prompts: 2, samples: 2, prompt: 8, new: 4 }),
        false => (shape(512, 8, 1536, 8192), Work { prompts: 8, samples: 8, prompt: 128, new: 128 }),
    };
    setup::set_threads(0);
    // What each takes of itself, as the stage's `precision: auto`.
    let auto = Isa::detect().libtorch_kind(Device::Cpu);
    for (name, kind, precision, activations) in [
        ("auto", auto, Precision::Auto, Activations::Keep),
        ("bf16", Kind::BFloat16, Precision::Bf16, Activations::Keep),
        ("bf16, gradient checkpointing", Kind::BFloat16, Precision::Bf16, Activations::Recompute),
        ("f32", Kind::Float, Precision::F32, Activations::Keep),
        ("f32, gradient checkpointing", Kind::Float, Precision::F32, Activations::Recompute),
    ] {
        if !options.case.is_empty() && name != options.case {
            continue;
        }
        let decoder = Decoder::random(config.clone(), 0.02, 1, Device::Cpu, Kind::Float)?;
        let adamw = AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let mut policy = Policy::new(decoder, adamw, kind, true);
        let mut steps = Vec::new();
        let engine = policy.engine(64, 0, work.prompt + work.new, precision, &update_options(&work, activations))?;
        for step in 0..if smoke { 1 } else { 5 } {
            steps.push(once(&mut policy, &engine, &work, activations, step)?);
        }
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (all, rollout, update) = steps[steps.len() / 2];
        println!(
            "  {name}: {all:.2} s a step (median of {}; {:.2} to {:.2}): rollouts {rollout:.2} s, update {update:.2} s; peak memory {} MiB",
            steps.len(),
            steps[0].0,
            steps[steps.len() - 1].0,
            peak_memory() >> 20
        );
    }
    Ok(())
}

/// Seconds of the step, of its rollouts, of its update.
fn once(
    policy: &mut Policy,
    engine: &repro::engine::Engine,
    work: &Work,
    activations: Activations,
    step: u64,
) -> anyhow::Result<(f64, f64, f64)> {
    let files = bpe::train(&["a b c".to_owned()], 280, 1, &bpe::Controls::default(), &[])?;
    let tokenizer = Tokenizer::from_bytes(files.tokenizer.as_bytes())?;
    let vocab = policy.config().vocab_size as u32;
    let prompts: Vec<Prompt> = (0..work.prompts as u32)
        .map(|i| Prompt {
            id: i.to_string(),
            tokens: (0..work.prompt as u32).map(|t| (i * 7919 + t * 104_729 + step as u32 * 31) % vocab).collect(),
            text: "".into(),
            script: None,
        })
        .collect();
    let drawing = Drawing {
        samples: work.samples,
        sampling: Sampling { temperature: 1.0, top_p: 0.9, top_k: 0 },
        longest: work.new,
        stop: Vec::new().into(),
        marker: String::new(),
        between: None,
    };
    let update = update_options(work, activations);
    let begin = Instant::now();
    let refs: Vec<&Prompt> = prompts.iter().collect();
    let rollouts = draw(engine, &tokenizer, &refs, &drawing, (1, step))?;
    let drawn = begin.elapsed().as_secs_f64();
    let examples: Vec<Example> = rollouts
        .into_iter()
        .enumerate()
        .map(|(i, r)| Example {
            prompt: r.prompt,
            advantage: if i % 2 == 0 { 1.0 } else { -1.0 },
            batch: i / work.samples,
            drawn: None,
            masked: false,
            tokens: r.tokens,
        })
        .collect();
    let tokens: Vec<&[u32]> = prompts.iter().map(|p| p.tokens.as_slice()).collect();
    engine.unload()?;
    let report = policy.update(&tokens, &examples, &update, 1e-6)?;
    engine.set_weights(policy.weights())?;
    Ok((begin.elapsed().as_secs_f64(), drawn, report.seconds))
}

fn update_options(work: &Work, activations: Activations) -> UpdateOptions {
    UpdateOptions {
        objective: Objective { epsilon: 0.2, epsilon_high: 0.2, beta: 0.005, temperature: 1.0 },
        loss_type: LossType::Bnpo,
        batches: work.prompts,
        longest: work.new,
        iterations: 1,
        rows: 2048,
        activations,
        clip: 1.0,
        between: None,
    }
}
