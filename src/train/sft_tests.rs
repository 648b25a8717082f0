//! Tests of the training loop on a tiny model: learning, exact resume, divergence, a checkpoint of another model.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::{
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
    },
    train::{checkpoint, optim::AdamWOptions},
};
use tch::{Device, Kind};

fn tiny(hidden: usize) -> Decoder {
    let config = DecoderConfig {
        arch: Arch::Qwen3,
        vocab_size: 40,
        hidden,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 32,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 128,
        tied_embeddings: true,
        eos: vec![1],
    };
    Decoder::random(config, 0.1, 7, Device::Cpu, Kind::Float).unwrap()
}

fn trainer(hidden: usize) -> Trainer {
    tch::set_num_threads(1);
    let adamw = AdamWOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01 };
    Trainer::new(tiny(hidden), adamw, Kind::Float, 1.0)
}

fn frame() -> Frame {
    Frame { before: vec![3], after: vec![4], end: 1 }
}

/// Answers that say which of two tokens the prompt held.
fn pairs() -> Vec<Pair> {
    (0..64u32).map(|i| frame().pair(&[6 + i % 2, 10 + i % 23, 10 + i % 7], &[6 + i % 2, 6 + i % 2])).collect()
}

fn plan(steps: u64) -> Plan {
    Plan {
        copy: Some(CopyPhase {
            start_length: 1,
            longest: 2,
            threshold: 3.6,
            schedule: Schedule::constant(0.01, 2),
            max_steps: 60,
            ordinary: (6..12).collect(),
            frame: frame(),
        }),
        pairs: Some(PairPhase {
            pairs: pairs(),
            held_out: pairs()[..8].to_vec(),
            schedule: Schedule { peak: 0.01, floor: 0.001, warmup_steps: 3 },
            budget: Budget { steps: Some(steps), ..Budget::default() },
        }),
        batch_tokens: 128,
        grouping: Grouping { micro_tokens: 64, window: 32 },
        seed: 5,
        log_every: 5,
        checkpoint_every: 10,
        evaluate_every: 20,
    }
}

/// Keeps checkpoints; interrupts at a step.
#[derive(Default)]
struct Record {
    stop_at: Option<u64>,
    step: u64,
    checkpoints: Vec<bytes::Bytes>,
    losses: Vec<f64>,
}

impl Hooks for Record {
    fn interrupted(&self) -> bool {
        self.stop_at == Some(self.step)
    }
    fn stepped(&mut self, report: &StepReport, state: &State, _: f64) {
        self.step = state.used.steps;
        self.losses.push(report.loss);
    }
    fn checkpoint(&mut self, trainer: &Trainer, state: &State) -> anyhow::Result<()> {
        self.checkpoints.push(checkpoint::to_bytes(&trainer.parameters, &trainer.adamw, state)?);
        Ok(())
    }
}

fn masters(trainer: &Trainer) -> Vec<u32> {
    Vec::<f32>::try_from(&trainer.parameters.master).unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn learns_and_writes_figures() {
    let (mut trainer, mut state, mut hooks) = (trainer(16), State::default(), Record::default());
    run(&mut trainer, &mut state, &plan(120), &mut hooks).unwrap();
    assert!(state.curriculum.unwrap().finished);
    assert_eq!(state.used.steps - state.pairs_from.unwrap().steps, 120);
    assert!(state.metrics.last("held_out_accuracy").unwrap() > 0.95, "{:?}", state.metrics.last("held_out_loss"));
    assert!(hooks.losses.last().unwrap() < &0.1);
    assert!(state.metrics.last("copy_length").is_some());
}

/// Interrupted in the copy phase and again among the pairs, off the checkpoint rhythm: bit for bit the same weights.
#[test]
fn a_resumed_run_equals_an_undisturbed_one() {
    let plan = plan(45);
    let (mut whole, mut state) = (trainer(16), State::default());
    run(&mut whole, &mut state, &plan, &mut Record::default()).unwrap();
    let copy_steps = state.pairs_from.unwrap().steps;
    assert!(copy_steps >= 2, "the copy phase ended after {copy_steps} steps");

    let mut saved: Option<bytes::Bytes> = None;
    for stop in [Some(1), Some(copy_steps + 13), None] {
        let (mut resumed, mut state) = (trainer(16), State::default());
        if let Some(bytes) = &saved {
            state = checkpoint::restore(bytes, "x", &mut resumed.parameters, &mut resumed.adamw).unwrap();
        }
        let mut hooks = Record { stop_at: stop, ..Record::default() };
        let result = run(&mut resumed, &mut state, &plan, &mut hooks);
        saved = hooks.checkpoints.pop().or(saved);
        match stop {
            Some(_) => assert!(result.unwrap_err().to_string().contains("interrupted")),
            None => {
                result.unwrap();
                assert_eq!(masters(&resumed), masters(&whole));
            }
        }
    }
}

#[test]
fn divergence_stops_and_keeps_the_weights() {
    let mut trainer = trainer(16);
    let _ = trainer.parameters.master.narrow(0, 0, 1).fill_(f64::NAN);
    let before = masters(&trainer);
    let mut all = pairs();
    all.push(Pair { prompt: vec![0], answer: vec![0, 1] });
    let error = trainer.step(&[MicroBatch::new(&all)], 0.01).unwrap_err().to_string();
    assert!(error.contains("diverged") && error.contains("learning_rate"), "{error}");
    assert_eq!(masters(&trainer), before);
}

#[test]
fn no_pairs_is_an_error() {
    let mut empty = plan(5);
    empty.copy = None;
    empty.pairs.as_mut().unwrap().pairs.clear();
    let error = run(&mut trainer(16), &mut State::default(), &empty, &mut Record::default()).unwrap_err();
    assert!(error.to_string().contains("no pairs"), "{error}");
}

#[test]
fn a_model_that_does_not_copy_is_given_up() {
    let mut hopeless = plan(5);
    let copy = hopeless.copy.as_mut().unwrap();
    (copy.threshold, copy.max_steps) = (1e-9, 4);
    let error = run(&mut trainer(16), &mut State::default(), &hopeless, &mut Record::default()).unwrap_err();
    assert!(error.to_string().contains("not learned to copy 1 tokens in 4 steps"), "{error}");
}

#[test]
fn checkpoints_of_other_models_and_broken_ones_are_refused() {
    let small = trainer(16);
    let bytes = checkpoint::to_bytes(&small.parameters, &small.adamw, &State::default()).unwrap();
    let check = |bytes: &[u8], expected: &str| {
        let mut other = trainer(if expected.contains("another model") { 24 } else { 16 });
        let before = masters(&other);
        let error =
            checkpoint::restore::<State>(bytes, "runs/x/1", &mut other.parameters, &mut other.adamw).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(expected) && error.contains("runs/x/1"), "{error}");
        assert_eq!(masters(&other), before);
    };
    check(&bytes, "another model: it has `model.embed_tokens.weight [40, 16]` where this model has");
    check(&bytes[..bytes.len() / 2], "may be cut off");
    check(b"PK", "not a whole safetensors file");
}

#[test]
fn budgets() {
    let used = Used { steps: 50, tokens: 1000, seconds: 30.0 };
    let check = |budget: Budget, expected: f64| assert!((budget.done(used) - expected).abs() < 1e-12);
    check(Budget { steps: Some(200), ..Budget::default() }, 0.25);
    check(Budget { steps: Some(200), tokens: Some(2000), seconds: None }, 0.5);
    check(Budget { steps: Some(200), tokens: Some(2000), seconds: Some(20.0) }, 1.5);
    check(Budget { steps: Some(0), ..Budget::default() }, 1.0);
    check(Budget::default(), 0.0);
}
