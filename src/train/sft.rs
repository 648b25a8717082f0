//! The training loop of supervised fine-tuning: the two phases (copy curriculum, text pairs) that make steps ([`step`]). Works on token ids; knows nothing of text, tables or where checkpoints go ([`Hooks`]).
//!
//! Exact resume: order of the data, copy tasks and learning rate are functions of the [`State`]; with the masters, the moments and
//! the state of a checkpoint, a continued run in f32 makes the same weights as an undisturbed one on the same number of
//! threads. (A budget in time cannot promise that.)

use super::{
    batch::{Cursor, Grouping, MicroBatch, Pair, Stream},
    copy_task::{self, Curriculum, Frame},
    metrics::Metrics,
    schedule::Schedule,
};
use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

mod step;

pub use step::{StepReport, Trainer};

/// How much to train: whichever is reached first.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Budget {
    /// Optimiser steps; None for no bound.
    pub steps: Option<u64>,
    /// Input tokens, padding not counted; None for no bound.
    pub tokens: Option<u64>,
    /// Training time; None for no bound.
    pub seconds: Option<f64>,
}

impl Budget {
    /// Part of the budget that is used up, 1 or more when it is spent. Without any bound: 0, for ever.
    pub fn done(&self, used: Used) -> f64 {
        let part = |used: f64, of: Option<f64>| of.map_or(0.0, |of| if of > 0.0 { used / of } else { 1.0 });
        part(used.steps as f64, self.steps.map(|n| n as f64))
            .max(part(used.tokens as f64, self.tokens.map(|n| n as f64)))
            .max(part(used.seconds, self.seconds))
    }
}

/// What has been used since a phase began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// Optimiser steps.
    pub steps: u64,
    /// Input tokens, padding not counted.
    pub tokens: u64,
    /// Time spent in steps.
    pub seconds: f64,
}

impl Used {
    fn since(self, start: Self) -> Self {
        Self {
            steps: self.steps - start.steps,
            tokens: self.tokens - start.tokens,
            seconds: self.seconds - start.seconds,
        }
    }
}

/// Where a run stands; with masters and moments, all that a checkpoint needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Over both phases.
    pub used: Used,
    /// The copy curriculum, while it lasts and after.
    pub curriculum: Option<Curriculum>,
    /// What had been used when the pairs began; None before.
    pub pairs_from: Option<Used>,
    /// Place in the pairs.
    pub cursor: Cursor,
    /// Figures so far.
    pub metrics: Metrics,
}

/// The copy curriculum's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyPhase {
    /// Tokens of the longest sequence at the start.
    pub start_length: usize,
    /// Tokens of the longest sequence at the end.
    pub longest: usize,
    /// Running loss below which sequences grow.
    pub threshold: f32,
    /// Learning rate.
    pub schedule: Schedule,
    /// Steps after which a model that has not learned to copy is given up.
    pub max_steps: u64,
    /// Token ids that may be drawn.
    pub ordinary: Vec<u32>,
    /// Tokens around the text and its copy.
    pub frame: Frame,
}

/// The text pairs' settings.
#[derive(Debug, Clone, PartialEq)]
pub struct PairPhase {
    /// Examples to train on.
    pub pairs: Vec<Pair>,
    /// Examples that are only measured on; may be empty.
    pub held_out: Vec<Pair>,
    /// Learning rate over the budget.
    pub schedule: Schedule,
    /// When the phase ends.
    pub budget: Budget,
}

/// A run with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The first phase; None to leave it out.
    pub copy: Option<CopyPhase>,
    /// The second phase; None to leave it out.
    pub pairs: Option<PairPhase>,
    /// Tokens of an optimiser step, in micro-batches of `grouping.micro_tokens`.
    pub batch_tokens: usize,
    /// How the examples are cut into micro-batches.
    pub grouping: Grouping,
    /// Decides the order of the examples and the copy tasks.
    pub seed: u64,
    /// Steps between two log entries; 0: only the first step.
    pub log_every: u64,
    /// 0: only when the run is interrupted.
    pub checkpoint_every: u64,
    /// Steps between two measurements on the held-out pairs; 0: only at the end.
    pub evaluate_every: u64,
}

impl Plan {
    fn micro_batches(&self) -> usize {
        self.batch_tokens.div_ceil(self.grouping.micro_tokens.max(1)).max(1)
    }
}

/// What the loop tells its surroundings.
pub trait Hooks {
    /// Whether to stop now (after a checkpoint).
    fn interrupted(&self) -> bool;
    /// A step was made. `done` is the used part of the present phase's budget.
    fn stepped(&mut self, report: &StepReport, state: &State, done: f64);
    /// A checkpoint is due.
    ///
    /// # Errors
    /// It could not be written; the run ends.
    fn checkpoint(&mut self, trainer: &Trainer, state: &State) -> anyhow::Result<()>;
}

/// Trains from `state` to the end of the plan.
///
/// # Errors
/// Divergence, an unwritable checkpoint, an interruption (after its checkpoint), a model that does not learn to copy.
pub fn run(trainer: &mut Trainer, state: &mut State, plan: &Plan, hooks: &mut dyn Hooks) -> anyhow::Result<()> {
    if let Some(copy) = &plan.copy
        && state.pairs_from.is_none()
    {
        copy_phase(trainer, state, plan, copy, hooks)?;
    }
    if let Some(pairs) = &plan.pairs {
        pair_phase(trainer, state, plan, pairs, hooks)?;
    }
    Ok(())
}

fn copy_phase(
    trainer: &mut Trainer,
    state: &mut State,
    plan: &Plan,
    copy: &CopyPhase,
    hooks: &mut dyn Hooks,
) -> anyhow::Result<()> {
    let mut curriculum = state.curriculum.unwrap_or_else(|| Curriculum::new(copy.start_length));
    while !curriculum.finished {
        let step = state.used.steps;
        if step >= copy.max_steps {
            bail!(
                "the model has not learned to copy {} tokens in {step} steps (running loss {:.2}, wanted {}); \
                 see copy_warmup: a higher learning_rate or init_std, or more max_steps",
                curriculum.length,
                curriculum.running.unwrap_or(f32::NAN),
                copy.threshold
            );
        }
        let batches: Vec<MicroBatch> = (0..plan.micro_batches() as u64)
            .map(|micro| {
                let at = (plan.seed, step, micro);
                copy_task::micro_batch(&copy.ordinary, &copy.frame, &curriculum, plan.grouping.micro_tokens, at)
            })
            .collect();
        let report = trainer.step(&batches, copy.schedule.rate(step, 0.0))?;
        curriculum.observe(report.loss as f32, copy.threshold, copy.longest);
        state.curriculum = Some(curriculum);
        let at_length = ("copy_length", curriculum.length as f64);
        after_step(trainer, state, plan, hooks, &report, step as f64 / copy.max_steps as f64, Some(at_length))?;
    }
    Ok(())
}

fn pair_phase(
    trainer: &mut Trainer,
    state: &mut State,
    plan: &Plan,
    phase: &PairPhase,
    hooks: &mut dyn Hooks,
) -> anyhow::Result<()> {
    let start = *state.pairs_from.get_or_insert(state.used);
    let held_out = held_out_batches(&phase.held_out, plan.grouping);
    let mut stream = Stream::new(&phase.pairs, plan.seed, plan.grouping, state.cursor);
    loop {
        let used = state.used.since(start);
        let done = phase.budget.done(used);
        if done >= 1.0 {
            break;
        }
        let batches: Vec<MicroBatch> = (0..plan.micro_batches()).map_while(|_| stream.next_batch()).collect();
        ensure!(!batches.is_empty(), "there are no pairs to train on");
        state.cursor = stream.cursor();
        let report = trainer.step(&batches, phase.schedule.rate(used.steps, done))?;
        after_step(trainer, state, plan, hooks, &report, done, None)?;
        let last = phase.budget.done(state.used.since(start)) >= 1.0;
        if !held_out.is_empty() && (last || due(state.used.steps, plan.evaluate_every)) {
            let (loss, accuracy) = trainer.evaluate(&held_out);
            let at = state.used;
            state.metrics.push(at.steps, "held_out_loss", loss, at.seconds);
            state.metrics.push(at.steps, "held_out_accuracy", accuracy, at.seconds);
        }
    }
    Ok(())
}

fn after_step(
    trainer: &Trainer,
    state: &mut State,
    plan: &Plan,
    hooks: &mut dyn Hooks,
    report: &StepReport,
    done: f64,
    extra: Option<(&str, f64)>,
) -> anyhow::Result<()> {
    state.used.steps += 1;
    state.used.tokens += report.tokens;
    state.used.seconds += report.seconds;
    let at = state.used;
    if due(at.steps, plan.log_every) || at.steps == 1 {
        let figures = [
            ("loss", report.loss),
            ("accuracy", report.accuracy),
            ("gradient_norm", report.grad_norm),
            ("learning_rate", report.rate),
            ("tokens", at.tokens as f64),
            ("tokens_per_second", report.tokens as f64 / report.seconds.max(1e-9)),
        ];
        for (name, value) in figures.into_iter().chain(extra) {
            state.metrics.push(at.steps, name, value, at.seconds);
        }
    }
    hooks.stepped(report, state, done);
    let interrupted = hooks.interrupted();
    if interrupted || due(at.steps, plan.checkpoint_every) {
        hooks.checkpoint(trainer, state)?;
    }
    ensure!(!interrupted, "interrupted after step {}; the same command continues from there", at.steps);
    Ok(())
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn held_out_batches(pairs: &[Pair], grouping: Grouping) -> Vec<MicroBatch> {
    let widths: Vec<usize> = pairs.iter().map(Pair::width).collect();
    let order = super::batch::epoch_order(&widths, 0, 0, grouping);
    order.iter().map(|indices| MicroBatch::new(indices.iter().map(|&i| &pairs[i]))).collect()
}

#[cfg(test)]
#[path = "sft_tests.rs"]
mod tests;
