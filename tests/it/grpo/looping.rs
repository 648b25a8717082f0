//! The loop on a tiny random model with rewards made for the purpose: learning, exact resume, missing and failing rewards,
//! collapse, rewards without spread.

use crate::device::{exact, tensor_device};
use bytes::Bytes;
use repro::{
    engine::{Engine, Precision, Sampling},
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
    },
    text::tokenizer::Tokenizer,
    train::{
        bpe, checkpoint,
        grpo::{
            advantage::ScaleRewards,
            loss::{LossType, Objective},
            policy::{Activations, Policy, UpdateOptions},
            rollout::{Drawing, Part, Prompt, Reward, Sample, Scored},
            run::{Actors, Hooks, Plan, Rows, State, run},
            table::{self, Metric, Split},
        },
        optim::AdamWOptions,
        schedule::Schedule,
    },
};
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::Kind;

const VOCAB: usize = 280;

fn tokenizer() -> Tokenizer {
    let texts = ["the rain is by the river".to_owned()];
    let files = bpe::train(&texts, VOCAB, 1, &bpe::Controls::default(), &[]).unwrap();
    Tokenizer::from_bytes(files.tokenizer.as_bytes()).unwrap()
}

fn policy(beta: f64) -> Policy {
    tch::set_num_threads(1);
    let config = DecoderConfig {
        arch: Arch::Qwen3,
        vocab_size: VOCAB,
        hidden: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 32,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 64,
        tied_embeddings: false,
        eos: vec![1],
    };
    let decoder = Decoder::random(config, 0.1, 7, tensor_device(), Kind::Float).unwrap();
    let adamw = AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    Policy::new(decoder, adamw, Kind::Float, beta != 0.0)
}

fn prompts(n: usize) -> Vec<Prompt> {
    (0..n)
        .map(|i| Prompt {
            id: format!("p{i}"),
            tokens: vec![3, 40 + i as u32, 60, 4],
            text: format!("text {i}").into(),
            script: None,
        })
        .collect()
}

fn plan(steps: u64) -> Plan {
    Plan {
        prompts: prompts(6),
        held_out: prompts(9)[6..].to_vec(),
        steps,
        prompts_per_step: 4,
        drawing: Drawing {
            samples: 4,
            sampling: Sampling { temperature: 1.0, top_p: 1.0, top_k: 0 },
            longest: 8,
            stop: vec![1].into(),
            marker: String::new(),
            between: None,
        },
        update: UpdateOptions {
            objective: Objective { epsilon: 0.2, epsilon_high: 0.2, beta: 0.01, temperature: 1.0 },
            loss_type: LossType::Bnpo,
            batches: 2,
            longest: 8,
            iterations: 1,
            rows: 64,
            activations: Activations::Keep,
            clip: 1.0,
            between: None,
        },
        scale: ScaleRewards::Group,
        mask_truncated: false,
        schedule: Schedule { peak: 0.01, floor: 0.001, warmup_steps: 2 },
        seed: 3,
        save_every: 4,
        eval_every: 5,
        patience: 3,
    }
}

/// A reward with one part, computed by a function.
struct Of<F> {
    parts: Vec<Part>,
    value: F,
}

impl<F: Fn(&Sample<'_>) -> Option<f64> + Send + Sync> Of<F> {
    fn new(value: F) -> Self {
        Self { parts: vec![Part { name: "fake".to_owned(), weight: 2.0 }], value }
    }
}

impl<F: Fn(&Sample<'_>) -> Option<f64> + Send + Sync> Reward for Of<F> {
    fn parts(&self) -> &[Part] {
        &self.parts
    }
    fn score(&self, samples: &[Sample<'_>]) -> anyhow::Result<Vec<Scored>> {
        let score = |sample: &Sample| {
            let value = (self.value)(sample);
            Scored { values: vec![value], error: value.is_none().then(|| "no value".to_owned()) }
        };
        Ok(samples.iter().map(score).collect())
    }
}

/// Longer answers are better, up to a bound that random answers do not reach by chance alone.
fn length() -> impl Reward {
    Of::new(|sample: &Sample<'_>| Some(sample.answer.chars().filter(char::is_ascii_lowercase).count() as f64))
}

/// Keeps everything; interrupts after a step.
#[derive(Default)]
struct Record {
    stop_at: Option<u64>,
    step: u64,
    checkpoints: Vec<Bytes>,
    rows: Vec<String>,
    metrics: Vec<(u64, String, f64)>,
}

impl Record {
    fn values(&self, name: &str) -> Vec<f64> {
        self.metrics.iter().filter(|m| m.1 == name).map(|m| m.2).collect()
    }
}

impl Hooks for Record {
    fn interrupted(&self) -> bool {
        self.stop_at == Some(self.step)
    }
    fn rollouts(&mut self, rows: &Rows<'_>) -> anyhow::Result<()> {
        let batch =
            table::rollout_batch(&[Part { name: "fake".to_owned(), weight: 2.0 }], rows.step, rows.split, &rows.rows)?;
        assert_eq!(batch.num_rows(), if rows.split == Split::Train { 16 } else { 3 });
        for row in &rows.rows {
            let r = row.rollout;
            let advantage = row.advantage.map(f64::to_bits);
            self.rows.push(format!(
                "{} {:?} {} {} {:?} {advantage:?}",
                rows.step, rows.split, r.prompt_id, r.sample, r.tokens
            ));
        }
        Ok(())
    }
    fn metrics(&mut self, metrics: &[Metric], state: &State) -> anyhow::Result<()> {
        self.step = state.step;
        self.metrics.extend(metrics.iter().map(|m| (state.step, m.name.clone(), m.value)));
        Ok(())
    }
    fn checkpoint(&mut self, policy: &Policy, state: &State) -> anyhow::Result<()> {
        self.checkpoints.push(checkpoint::to_bytes(&policy.parameters, &policy.adamw, state)?);
        Ok(())
    }
}

fn engine(policy: &Policy) -> Engine {
    policy.engine(8, 1, 64, Precision::F32, &plan(1).update).unwrap()
}

fn go(
    policy: &mut Policy,
    state: &mut State,
    plan: &Plan,
    reward: &dyn Reward,
    hooks: &mut Record,
) -> anyhow::Result<()> {
    let engine = engine(policy);
    let tokenizer = tokenizer();
    run(&mut Actors { policy, engine: &engine, tokenizer: &tokenizer, reward }, state, plan, hooks)
}

fn masters(policy: &Policy) -> Vec<u32> {
    Vec::<f32>::try_from(&policy.parameters.master).unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_reward_rises_on_prompts_never_trained_on() {
    let (mut policy, mut state, mut hooks) = (policy(0.01), State::default(), Record::default());
    go(&mut policy, &mut state, &plan(60), &length(), &mut hooks).unwrap();
    let reward = hooks.values("held_out/reward");
    assert_eq!(reward.len(), 13, "before the first step, then every fifth");
    let (before, after) = (reward[0], (reward[11] + reward[12]) / 2.0);
    assert!(after > before + 4.0, "{reward:?}");
    let kl = hooks.values("kl");
    assert!(kl[0].abs() < 1e-6 && *kl.last().unwrap() > 0.01, "starts at the reference and leaves it: {kl:?}");
    assert_eq!(state.step, 60);
}

/// Interrupted off the rhythm of checkpoints, twice: bit for bit the same weights, rollouts and figures of rewards.
#[test]
fn a_resumed_run_equals_an_undisturbed_one() {
    let plan = plan(11);
    let (mut whole, mut state, mut all) = (policy(0.01), State::default(), Record::default());
    go(&mut whole, &mut state, &plan, &length(), &mut all).unwrap();
    let mut saved: Option<Bytes> = None;
    let mut rows = Vec::new();
    for stop_at in [Some(1), Some(6), None] {
        let (mut resumed, mut state) = (policy(0.01), State::default());
        if let Some(bytes) = &saved {
            state = checkpoint::restore(bytes, "x", &mut resumed.parameters, &mut resumed.adamw).unwrap();
        }
        let mut hooks = Record { stop_at, ..Record::default() };
        let result = go(&mut resumed, &mut state, &plan, &length(), &mut hooks);
        rows.append(&mut hooks.rows);
        saved = hooks.checkpoints.pop().or(saved);
        match stop_at {
            Some(step) => {
                let error = result.unwrap_err().to_string();
                assert!(error.contains(&format!("interrupted after step {step}")), "{error}");
            }
            None => {
                result.unwrap();
                assert_eq!(state.step, 11);
                assert!(!exact() || masters(&resumed) == masters(&whole));
            }
        }
    }
    assert_eq!(rows.len(), all.rows.len());
    assert!(!exact() || rows == all.rows);
}

#[test]
fn one_prompt_is_enough() {
    let mut one = plan(2);
    one.prompts.truncate(1);
    let mut hooks = Record::default();
    go(&mut policy(0.0), &mut State::default(), &one, &length(), &mut hooks).unwrap();
    let distinct: std::collections::HashSet<&String> = hooks.rows.iter().collect();
    assert_eq!(distinct.len(), hooks.rows.len(), "each sample has a number and a stream of its own");
}

#[test]
fn rewards_that_are_missing_or_not_numbers_take_no_part() {
    let calls = AtomicUsize::new(0);
    let some = Of::new(|sample: &Sample<'_>| match calls.fetch_add(1, Ordering::Relaxed) % 3 {
        0 => None,
        1 => Some(f64::NAN),
        _ => Some(sample.answer.len() as f64),
    });
    let mut hooks = Record::default();
    let mut policy = policy(0.01);
    go(&mut policy, &mut State::default(), &plan(3), &some, &mut hooks).unwrap();
    let missing = hooks.rows.iter().filter(|row| row.contains("Train") && row.ends_with("None")).count();
    assert_eq!(
        missing,
        hooks.values("reward_missing").iter().map(|share| (share * 16.0).round() as usize).sum::<usize>()
    );
    assert!(missing >= 30, "{missing}");
    assert!(masters(&policy).iter().all(|bits| f32::from_bits(*bits).is_finite()));
    let none = Of::new(|_: &Sample<'_>| None);
    let error = go(&mut policy, &mut State::default(), &plan(3), &none, &mut Record::default()).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("failed for every completion") && error.contains("no value"), "{error}");
}

/// The checkpoint before the failure is there; with a reward that works again the run ends as if nothing had been.
#[test]
fn a_reward_model_that_fails_midway_costs_nothing_but_time() {
    struct Fails(std::sync::Mutex<usize>, Box<dyn Reward>);
    impl Reward for Fails {
        fn parts(&self) -> &[Part] {
            self.1.parts()
        }
        fn score(&self, samples: &[Sample<'_>]) -> anyhow::Result<Vec<Scored>> {
            let mut left = self.0.lock().unwrap();
            *left = left.checked_sub(1).ok_or_else(|| anyhow::anyhow!("the reward model is gone"))?;
            self.1.score(samples)
        }
    }
    let mut plan = plan(9);
    plan.held_out.clear();
    let (mut whole, mut hooks) = (policy(0.01), Record::default());
    go(&mut whole, &mut State::default(), &plan, &length(), &mut hooks).unwrap();
    let (mut failed, mut hooks) = (policy(0.01), Record::default());
    let reward = Fails(6.into(), Box::new(length()));
    let error = go(&mut failed, &mut State::default(), &plan, &reward, &mut hooks).unwrap_err();
    assert!(format!("{error:#}").contains("the reward model is gone"), "{error:#}");
    let mut resumed = policy(0.01);
    let bytes = hooks.checkpoints.pop().unwrap();
    let mut state: State = checkpoint::restore(&bytes, "x", &mut resumed.parameters, &mut resumed.adamw).unwrap();
    assert_eq!(state.step, 4);
    go(&mut resumed, &mut state, &plan, &length(), &mut Record::default()).unwrap();
    assert!(!exact() || masters(&resumed) == masters(&whole));
}

#[test]
fn a_run_that_cannot_learn_ends_early() {
    let same = Of::new(|_: &Sample<'_>| Some(1.0));
    let error = go(&mut policy(0.01), &mut State::default(), &plan(20), &same, &mut Record::default()).unwrap_err();
    assert!(error.to_string().contains("nothing can be learned: for 3 steps"), "{error}");
    assert!(error.to_string().contains("steps 1 to 3"), "{error}");
    // a marker that never comes: every text is empty
    let mut empty = plan(20);
    empty.drawing.marker = "never said".to_owned();
    let error = go(&mut policy(0.01), &mut State::default(), &empty, &length(), &mut Record::default()).unwrap_err();
    assert!(error.to_string().contains("collapsed: for 3 steps"), "{error}");
}

#[test]
fn a_step_that_is_not_a_number_changes_nothing() {
    let mut wild = plan(20);
    wild.schedule = Schedule::constant(1e30, 0);
    wild.patience = 0;
    let mut policy = policy(0.01);
    let error = go(&mut policy, &mut State::default(), &wild, &length(), &mut Record::default()).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("training diverged"), "{error}");
}
