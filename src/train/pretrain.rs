//! The training loop of pretraining: every position of a packed context predicts the next token, nothing is masked. Works on
//! token ids from a [`Source`]; knows nothing of tables or of where checkpoints go ([`Hooks`]).
//!
//! loss = mean over positions of (-log p(next) + z_loss · logsumexp²)          (reference section 7.2)
//! AdamW decays every parameter; the learning rate is [`WarmupCosine`].
//!
//! Exact resume: data order and learning rate are functions of the step; with masters, moments and the [`State`] of a checkpoint
//! a continued run in f32 makes the same weights as an undisturbed one on the same number of threads.

use super::{metrics::Metrics, schedule::WarmupCosine};
use anyhow::ensure;
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tch::Kind;

mod step;

pub use step::{Pretrainer, StepReport, Sums};

/// Contexts of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    /// Number of contexts.
    pub rows: usize,
    /// [rows · context] token ids.
    pub ids: Vec<u32>,
}

impl Contexts {
    /// Token ids of a context.
    pub fn context(&self) -> usize {
        self.ids.len() / self.rows.max(1)
    }

    /// Positions that predict a token.
    pub fn targets(&self) -> usize {
        self.ids.len() - self.rows
    }
}

/// Where contexts come from, in an order that depends on nothing but the position.
pub trait Source {
    /// The next `n` contexts.
    ///
    /// # Errors
    /// They cannot be read.
    fn take(&mut self, n: usize) -> anyhow::Result<Contexts>;
}

/// How a step is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// What matmuls run in; masters and moments are f32.
    pub kind: Kind,
    /// Largest gradient norm; 0 for no bound.
    pub clip: f64,
    /// Factor of the z-loss.
    pub z_loss: f64,
    /// How the backward pass is made.
    pub backward: Backward,
}

/// How the backward pass is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backward {
    /// The fastest.
    Auto,
    /// By hand where this program can (OpenLM on a CPU with AVX-512), else by libtorch.
    ByHand,
    /// By libtorch's automatic differentiation.
    Autograd,
    /// Block by block, each computed a second time: the least memory.
    Recompute,
}

/// A run with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Learning rate; holds the number of steps.
    pub schedule: WarmupCosine,
    /// Contexts of an optimiser step.
    pub sequences: usize,
    /// Contexts of one forward and backward pass at most.
    pub micro_sequences: usize,
    /// Contexts of the held-out table.
    pub held_out: usize,
    /// Steps between two log entries; 0: only the first step.
    pub log_every: u64,
    /// 0: only when the run is interrupted.
    pub checkpoint_every: u64,
    /// Steps between two measurements on the held-out contexts; 0: only at the end.
    pub evaluate_every: u64,
}

/// Where a run stands; with masters and moments, all that a checkpoint needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimiser steps made.
    pub steps: u64,
    /// Contexts used up, over all passes.
    pub contexts: u64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Time spent in steps.
    pub seconds: f64,
    /// Figures so far.
    pub metrics: Metrics,
}

/// What the loop asks of its surroundings.
pub trait Hooks {
    /// Whether to stop now (after a checkpoint).
    fn interrupted(&self) -> bool;
    /// A step was made.
    fn stepped(&mut self, report: &StepReport, state: &State);
    /// A checkpoint is due.
    ///
    /// # Errors
    /// It could not be written; the run ends.
    fn checkpoint(&mut self, trainer: &Pretrainer, state: &State) -> anyhow::Result<()>;
    /// The held-out contexts from their beginning.
    ///
    /// # Errors
    /// They cannot be read.
    fn held_out(&mut self) -> anyhow::Result<Box<dyn Source>>;
}

/// Trains from `state` to the end of the plan. `data` begins at context number `state.contexts`.
///
/// # Errors
/// Divergence, data that cannot be read, an unwritable checkpoint, an interruption (after its checkpoint).
pub fn run(
    trainer: &mut Pretrainer,
    state: &mut State,
    plan: &Plan,
    data: &mut dyn Source,
    hooks: &mut dyn Hooks,
) -> anyhow::Result<()> {
    while state.steps < plan.schedule.steps {
        let begin = Instant::now();
        let batches = micro_batches(plan, data)?;
        let waited = begin.elapsed().as_secs_f64();
        let step = trainer.step(&batches, plan.schedule.rate(state.steps));
        let step = step.map_err(|e| e.context(format!("step {}", state.steps + 1)))?;
        let report = StepReport { waited, seconds: step.seconds + waited, ..step };
        state.steps += 1;
        state.contexts += plan.sequences as u64;
        state.tokens += report.tokens;
        state.seconds += report.seconds;
        if due(state.steps, plan.log_every) || state.steps == 1 {
            log(state, &report);
        }
        let last = state.steps == plan.schedule.steps;
        if plan.held_out > 0 && (last || due(state.steps, plan.evaluate_every)) {
            let mut source = hooks.held_out()?;
            let loss = trainer.evaluate(source.as_mut(), plan.held_out, plan.micro_sequences)?;
            state.metrics.push(state.steps, "held_out_loss", loss, state.seconds);
        }
        hooks.stepped(&report, state);
        let interrupted = hooks.interrupted() && !last;
        if interrupted || due(state.steps, plan.checkpoint_every) {
            hooks.checkpoint(trainer, state)?;
        }
        ensure!(!interrupted, "interrupted after step {}; the same command continues from there", state.steps);
    }
    Ok(())
}

fn micro_batches(plan: &Plan, data: &mut dyn Source) -> anyhow::Result<Vec<Contexts>> {
    let mut left = plan.sequences;
    let mut batches = Vec::new();
    while left > 0 {
        let batch = data.take(left.min(plan.micro_sequences.max(1)))?;
        left -= batch.rows;
        batches.push(batch);
    }
    Ok(batches)
}

fn log(state: &mut State, report: &StepReport) {
    let figures = [
        ("loss", report.loss),
        ("z", report.z),
        ("accuracy", report.accuracy),
        ("gradient_norm", report.grad_norm),
        ("learning_rate", report.rate),
        ("tokens", state.tokens as f64),
        ("tokens_per_second", report.tokens as f64 / report.seconds.max(1e-9)),
        ("waited_for_data", report.waited),
    ];
    for (name, value) in figures {
        state.metrics.push(state.steps, name, value, state.seconds);
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

#[cfg(test)]
#[path = "pretrain_tests.rs"]
mod tests;
