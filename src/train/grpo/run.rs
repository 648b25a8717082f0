//! The GRPO loop: rollouts, rewards, advantages, update, new weights into the engine; evaluation, checkpoints, and when to stop.
//! Works on a [`Plan`] with nothing left open; knows nothing of tables, models' places or where checkpoints go ([`Hooks`]).
//!
//! Exact resume: prompts, samples and loss batches are functions of (seed, step), so the masters, the moments and the [`State`]
//! are all that a checkpoint needs. In f32 on the CPU, with the same number of threads, a continued run makes the same
//! weights as an undisturbed one.

use super::{
    advantage::{self, ScaleRewards},
    batch::{Example, loss_batches, prompts_of_step},
    policy::{Policy, UpdateOptions, UpdateReport},
    rollout::{Drawing, Part, Prompt, Reward, Rollout, draw, score},
    table::{Metric, Row, Split},
};
use crate::{
    engine::{Engine, FinishReason},
    text::tokenizer::Tokenizer,
    train::schedule::Schedule,
};
use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Instant};

/// A run with nothing left open.
pub struct Plan {
    /// Documents to train on; at least one.
    pub prompts: Vec<Prompt>,
    /// Documents that are only measured on; may be empty.
    pub held_out: Vec<Prompt>,
    /// Steps: sets of completions.
    pub steps: u64,
    /// Prompts of a step.
    pub prompts_per_step: usize,
    /// How completions are drawn.
    pub drawing: Drawing,
    /// The update.
    pub update: UpdateOptions,
    /// What advantages are divided by.
    pub scale: ScaleRewards,
    /// Whether completions that were cut off are left out of the loss.
    pub mask_truncated: bool,
    /// Learning rate; warm-up is not part of the cosine.
    pub schedule: Schedule,
    /// What everything random starts from.
    pub seed: u64,
    /// Steps between checkpoints; 0: only where the run ends or is interrupted.
    pub save_every: u64,
    /// Steps between measurements on the held-out prompts; 0: only before the first step and after the last.
    pub eval_every: u64,
    /// Steps in a row after which a run without any spread of rewards, or with collapsed completions, is ended.
    pub patience: u64,
}

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps made.
    pub step: u64,
    /// Tokens drawn.
    pub tokens: u64,
    /// Time spent in steps, earlier runs included.
    pub seconds: f64,
    /// Last steps in a row in which no group had any spread of rewards.
    pub without_spread: u64,
    /// Last steps in a row in which all completions were empty or the same.
    pub collapsed: u64,
}

/// Completions of a step as they go to the table.
pub struct Rows<'a> {
    /// Steps made when they were drawn, and one more for those trained on.
    pub step: u64,
    /// Which prompts.
    pub split: Split,
    /// One a completion.
    pub rows: Vec<Row<'a>>,
}

/// What the loop tells its surroundings.
pub trait Hooks {
    /// Whether to stop now, after a checkpoint.
    fn interrupted(&self) -> bool;
    /// Completions with their rewards.
    ///
    /// # Errors
    /// They could not be written; the run ends.
    fn rollouts(&mut self, rows: &Rows<'_>) -> anyhow::Result<()>;
    /// The figures of a step. `state` is the one after it.
    ///
    /// # Errors
    /// They could not be written; the run ends.
    fn metrics(&mut self, metrics: &[Metric], state: &State) -> anyhow::Result<()>;
    /// A checkpoint is due.
    ///
    /// # Errors
    /// It could not be written; the run ends.
    fn checkpoint(&mut self, policy: &Policy, state: &State) -> anyhow::Result<()>;
}

/// Who takes part in a run.
pub struct Actors<'a> {
    /// The model under training.
    pub policy: &'a mut Policy,
    /// Draws completions with the policy's weights.
    pub engine: &'a Engine,
    /// Decodes them.
    pub tokenizer: &'a Tokenizer,
    /// Judges them.
    pub reward: &'a dyn Reward,
}

/// Trains from `state` to the end of the plan.
///
/// # Errors
/// Divergence, collapse, rewards without spread, a reward that fails for all, an unwritable table or checkpoint, an
/// interruption (after its checkpoint).
pub fn run(actors: &mut Actors<'_>, state: &mut State, plan: &Plan, hooks: &mut dyn Hooks) -> anyhow::Result<()> {
    ensure!(!plan.prompts.is_empty(), "there are no prompts to train on");
    actors.engine.set_weights(actors.policy.weights())?;
    if state.step == 0 && plan.steps > 0 {
        let metrics = evaluate(actors, plan, 0, hooks)?;
        hooks.metrics(&metrics, state)?;
    }
    while state.step < plan.steps {
        let before = Instant::now();
        let mut metrics = step(actors, state, plan, hooks)?;
        state.step += 1;
        state.seconds += before.elapsed().as_secs_f64();
        let last = state.step == plan.steps;
        if last || due(state.step, plan.eval_every) {
            metrics.extend(evaluate(actors, plan, state.step, hooks)?);
        }
        hooks.metrics(&metrics, state)?;
        let interrupted = hooks.interrupted();
        if interrupted || last || due(state.step, plan.save_every) {
            hooks.checkpoint(actors.policy, state)?;
        }
        ensure!(!interrupted, "interrupted after step {}; the same command continues from there", state.step);
        stop_if_pointless(state, plan)?;
    }
    Ok(())
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// One step, up to the new weights in the engine.
fn step(actors: &mut Actors<'_>, state: &mut State, plan: &Plan, hooks: &mut dyn Hooks) -> anyhow::Result<Vec<Metric>> {
    let chosen = prompts_of_step(plan.prompts.len(), plan.prompts_per_step, plan.seed, state.step);
    let prompts: Vec<&Prompt> = chosen.iter().map(|&i| &plan.prompts[i]).collect();
    let begin = Instant::now();
    let mut rollouts = draw(actors.engine, actors.tokenizer, &prompts, &plan.drawing, (plan.seed, state.step))?;
    let drawn = begin.elapsed().as_secs_f64();
    score(actors.reward, &prompts, &mut rollouts)?;
    let scored = begin.elapsed().as_secs_f64() - drawn;

    let totals: Vec<Option<f64>> = rollouts.iter().map(|r| r.total).collect();
    let (advantages, flat) = advantage::advantages(&totals, plan.drawing.samples, plan.scale);
    let (examples, of_rollout) = examples(&prompts, &rollouts, &advantages, plan, state.step);
    let tokens: Vec<&[u32]> = prompts.iter().map(|p| p.tokens.as_slice()).collect();
    let rate = rate(plan, state.step);
    // The next ones come from the update.
    actors.engine.unload()?;
    let update = actors.policy.update(&tokens, &examples, &plan.update, rate)?;
    actors.engine.set_weights(actors.policy.weights())?;

    let with_reference = plan.update.objective.beta != 0.0;
    let rows = rollouts.iter().zip(&advantages).zip(&of_rollout);
    let rows = rows.map(|((rollout, &advantage), example)| Row {
        rollout,
        advantage,
        report: example.map(|at| update.examples[at]),
        with_reference,
    });
    hooks.rollouts(&Rows { step: state.step + 1, split: Split::Train, rows: rows.collect() })?;
    state.tokens += rollouts.iter().map(|r| r.tokens.len() as u64).sum::<u64>();
    state.without_spread = if flat == prompts.len() { state.without_spread + 1 } else { 0 };
    state.collapsed = if collapsed(&rollouts) { state.collapsed + 1 } else { 0 };
    let all = begin.elapsed().as_secs_f64();
    let tokens_per_second = rollouts.iter().map(|r| r.tokens.len()).sum::<usize>() as f64 / all.max(1e-9);
    let seconds = [
        ("tokens_per_second", tokens_per_second),
        ("step_seconds", all),
        ("rollout_seconds", drawn),
        ("reward_seconds", scored),
        ("update_seconds", update.seconds),
    ];
    let groups_flat = flat as f64 / prompts.len() as f64;
    Ok(figures(actors.reward.parts(), &rollouts, &update, with_reference, rate)
        .into_iter()
        .chain([("flat_groups", groups_flat)].into_iter().chain(seconds).map(|(name, value)| metric(name, value)))
        .collect())
}

/// Warm-up first, then the cosine over the rest (the learning rate never starts at 0).
fn rate(plan: &Plan, step: u64) -> f64 {
    let rest = plan.steps.saturating_sub(plan.schedule.warmup_steps).max(1);
    plan.schedule.rate(step, step.saturating_sub(plan.schedule.warmup_steps) as f64 / rest as f64)
}

/// The rollouts that have a reward, as examples, and for each rollout which example it is.
fn examples(
    prompts: &[&Prompt],
    rollouts: &[Rollout],
    advantages: &[Option<f64>],
    plan: &Plan,
    step: u64,
) -> (Vec<Example>, Vec<Option<usize>>) {
    let known = advantages.iter().flatten().count();
    let batches = loss_batches(known, plan.update.batches, plan.seed, step);
    let mut examples = Vec::with_capacity(known);
    let mut of_rollout = Vec::with_capacity(rollouts.len());
    for (rollout, advantage) in rollouts.iter().zip(advantages) {
        of_rollout.push(advantage.map(|advantage| {
            let masked = plan.mask_truncated && rollout.finish == FinishReason::Length;
            let batch = batches[examples.len()];
            let (prompt, tokens) = (rollout.prompt, rollout.tokens.clone());
            let drawn = prompts[prompt].script.as_ref().map(|script| Arc::clone(&script.places));
            examples.push(Example { prompt, tokens, advantage, batch, drawn, masked });
            examples.len() - 1
        }));
    }
    (examples, of_rollout)
}

/// All completions empty, or all the same although their prompts differ.
fn collapsed(rollouts: &[Rollout]) -> bool {
    let empty = rollouts.iter().all(|r| r.text.trim().is_empty());
    let prompts = rollouts.iter().map(|r| &r.prompt_id).collect::<std::collections::HashSet<_>>().len();
    let same = prompts > 1 && rollouts.iter().all(|r| r.tokens == rollouts[0].tokens);
    empty || same
}

fn stop_if_pointless(state: &State, plan: &Plan) -> anyhow::Result<()> {
    if plan.patience == 0 {
        return Ok(());
    }
    if state.collapsed >= plan.patience {
        bail!(
            "the model has collapsed: for {} steps every completion was empty or the same; lower learning_rate or raise \
             beta, and look at the rollouts of steps {} to {}",
            state.collapsed,
            state.step + 1 - state.collapsed,
            state.step
        );
    }
    if state.without_spread >= plan.patience {
        bail!(
            "nothing can be learned: for {} steps all completions of a prompt had the same reward, in every group; raise \
             temperature or num_generations, choose harder prompts, or look at the rollouts of steps {} to {}",
            state.without_spread,
            state.step + 1 - state.without_spread,
            state.step
        );
    }
    Ok(())
}

/// Draws one completion for each held-out prompt, always with the same seeds, and scores them.
fn evaluate(actors: &Actors<'_>, plan: &Plan, step: u64, hooks: &mut dyn Hooks) -> anyhow::Result<Vec<Metric>> {
    if plan.held_out.is_empty() {
        return Ok(Vec::new());
    }
    let prompts: Vec<&Prompt> = plan.held_out.iter().collect();
    let drawing = Drawing { samples: 1, ..plan.drawing.clone() };
    // A step that no training step has: its samples are drawn from streams of their own.
    let mut rollouts = draw(actors.engine, actors.tokenizer, &prompts, &drawing, (plan.seed, u64::MAX))?;
    score(actors.reward, &prompts, &mut rollouts)?;
    let rows = rollouts.iter().map(|rollout| Row { rollout, advantage: None, report: None, with_reference: false });
    hooks.rollouts(&Rows { step, split: Split::HeldOut, rows: rows.collect() })?;
    let mut metrics = rewards(actors.reward.parts(), &rollouts);
    metrics.push(metric("completion_length", mean_of(&rollouts, |r| Some(r.tokens.len() as f64))));
    Ok(metrics.into_iter().map(|m| Metric { name: format!("held_out/{}", m.name), ..m }).collect())
}

fn metric(name: &str, value: f64) -> Metric {
    Metric { name: name.to_owned(), value }
}

fn mean_of(rollouts: &[Rollout], value: impl Fn(&Rollout) -> Option<f64>) -> f64 {
    advantage::mean(&rollouts.iter().filter_map(value).collect::<Vec<_>>())
}

/// Means of the total and of each part, over the completions that have it.
fn rewards(parts: &[Part], rollouts: &[Rollout]) -> Vec<Metric> {
    let part = |i: usize| move |r: &Rollout| r.scored.values[i].filter(|v| v.is_finite());
    let mut metrics = vec![metric("reward", mean_of(rollouts, |r| r.total))];
    metrics.extend(
        parts.iter().enumerate().map(|(i, p)| metric(&format!("reward/{}", p.name), mean_of(rollouts, part(i)))),
    );
    metrics
}

fn figures(
    parts: &[Part],
    rollouts: &[Rollout],
    update: &UpdateReport,
    with_reference: bool,
    rate: f64,
) -> Vec<Metric> {
    let of_examples = |value: fn(&super::policy::ExampleReport) -> f64| {
        advantage::mean(&update.examples.iter().map(value).collect::<Vec<_>>())
    };
    let share = |test: fn(&Rollout) -> bool| mean_of(rollouts, |r| Some(f64::from(u8::from(test(r)))));
    let totals: Vec<f64> = rollouts.iter().filter_map(|r| r.total).collect();
    let mut metrics = rewards(parts, rollouts);
    metrics.push(metric("reward_std", advantage::deviation(&totals)));
    metrics.push(metric("reward_missing", share(|r| r.total.is_none())));
    if with_reference {
        metrics.push(metric("kl", of_examples(|r| r.kl)));
    }
    metrics.push(metric("entropy", of_examples(|r| r.entropy)));
    metrics.push(metric("clipped", of_examples(|r| r.clipped)));
    metrics.push(metric("completion_length", mean_of(rollouts, |r| Some(r.tokens.len() as f64))));
    metrics.push(metric("truncated", share(|r| r.finish == FinishReason::Length)));
    metrics.push(metric("empty", share(|r| r.text.trim().is_empty())));
    metrics.push(metric("loss", update.loss));
    metrics.push(metric("gradient_norm", update.grad_norm));
    metrics.push(metric("learning_rate", rate));
    metrics.push(metric("update_rows", update.rows as f64));
    metrics
}
