//! The training loop of supervised fine-tuning: one optimiser step over micro-batches, and the two phases (copy curriculum,
//! text pairs) that use it. Works on token ids; knows nothing of text, tables or where checkpoints go ([`Hooks`]).
//!
//! Exact resume: order of the data, copy tasks and learning rate are functions of the [`State`]; with the masters, the moments and
//! the state of a checkpoint, a continued run in f32 makes the same weights as an undisturbed one on the same number of
//! threads. (A budget in time cannot promise that.)

use super::{
    batch::{Cursor, Grouping, MicroBatch, Pair, Stream},
    copy_task::{self, Curriculum, Frame},
    loss,
    metrics::Metrics,
    optim::{AdamW, AdamWOptions, FlatParameters, clip_factor, norm},
    recompute,
    schedule::Schedule,
    transfer::{download, upload},
};
use crate::models::{
    causal::CausalModel,
    config::DecoderConfig,
    decoder::Decoder,
    weights::Weights,
};
use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Instant};
use tch::{Kind, Tensor};

/// A model under training.
#[derive(Debug)]
pub struct Trainer {
    config: DecoderConfig,
    model: CausalModel,
    /// f32 masters.
    pub parameters: FlatParameters,
    /// Their moments.
    pub adamw: AdamW,
    /// Gradient checkpointing: keep each block's input only and compute the rest again.
    pub recompute: bool,
    kind: Kind,
    clip: f64,
}

/// A micro-batch on the device: tokens [B, T], flat positions [N] that predict an answer's token, and those tokens [N].
struct OnDevice {
    tokens: Tensor,
    positions: Tensor,
    targets: Tensor,
}

/// What one optimiser step saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean -log p of the answer tokens.
    pub loss: f64,
    /// Part of the answer tokens whose logit was the highest.
    pub accuracy: f64,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub rate: f64,
    /// Input tokens, padding not counted.
    pub tokens: u64,
    /// Wall time of the step.
    pub seconds: f64,
}

impl Trainer {
    /// Takes over a model's parameters. `kind` is the compute type; `clip` bounds the gradient's norm (0: not).
    pub fn new(mut decoder: Decoder, adamw: AdamWOptions, kind: Kind, clip: f64) -> Self {
        let parameters = FlatParameters::new(&decoder.weights);
        decoder.weights = Weights { tensors: BTreeMap::new() };
        let adamw = AdamW::new(&parameters, adamw);
        let config = decoder.config.clone();
        Self { config, model: decoder.into(), parameters, adamw, recompute: false, kind, clip }
    }

    /// The model's description.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// One optimiser step over the micro-batches together: every answer token weighs the same. The numbers of the step go to the
    /// device once, and its figures come back once.
    ///
    /// # Errors
    /// The loss or the gradient is not a number; the weights are then those before the step.
    pub fn step(&mut self, batches: &[MicroBatch], rate: f64) -> anyhow::Result<StepReport> {
        let begin = Instant::now();
        let answers: usize = batches.iter().map(|b| b.targets.len()).sum();
        ensure!(answers > 0, "the batch holds no answer tokens");
        let scale = 1.0 / answers as f64;
        let compute = self.parameters.compute(self.kind);
        let mut grad: Option<Tensor> = None;
        let mut sums = Vec::with_capacity(2 * batches.len());
        for batch in self.upload(batches) {
            let (loss, part) = match self.recompute {
                true => self.recomputed(&compute, &batch, scale, grad.take()),
                false => self.kept(&compute, &batch, scale, grad.take()),
            };
            sums.extend([loss.sum, loss.correct]);
            grad = Some(part);
        }
        *self.model.weights_mut() = Weights { tensors: BTreeMap::new() };
        let grad = grad.expect("answer tokens come from at least one micro-batch");
        sums.push(norm(&grad));
        let mut found = download(&sums.iter().collect::<Vec<_>>());
        let grad_norm = found.pop().expect("the norm was asked for");
        let loss = found.iter().step_by(2).sum::<f64>() / answers as f64;
        let correct = found.iter().skip(1).step_by(2).sum::<f64>();
        if !loss.is_finite() || !grad_norm.is_finite() {
            bail!(
                "training diverged: loss {loss}, gradient norm {grad_norm}, learning rate {rate:.2e}; \
                 lower learning_rate or gradient_clip, or lengthen warmup_steps"
            );
        }
        let factor = clip_factor(grad_norm, self.clip);
        self.adamw.step(&mut self.parameters, &grad, factor, rate);
        let tokens = batches.iter().map(|b| b.real as u64).sum();
        let accuracy = correct / answers as f64;
        Ok(StepReport { loss, accuracy, grad_norm, rate, tokens, seconds: begin.elapsed().as_secs_f64() })
    }

    /// One pass that keeps all activations; its gradient is added to `before`.
    fn kept(
        &mut self,
        compute: &Tensor,
        batch: &OnDevice,
        scale: f64,
        before: Option<Tensor>,
    ) -> (loss::AnswerLoss, Tensor) {
        let views = self.parameters.views(compute);
        *self.model.weights_mut() = views.weights;
        let hidden = self.model.hidden(&batch.tokens, self.kind);
        let loss = self.answer_loss(&hidden, batch, scale);
        loss.surrogate.backward();
        let part = views.leaf.grad();
        let grad = match before {
            Some(mut grad) => {
                grad += part;
                grad
            }
            None => part.to_kind(Kind::Float),
        };
        (loss, grad)
    }

    /// The same with each block computed twice.
    fn recomputed(
        &mut self,
        compute: &Tensor,
        batch: &OnDevice,
        scale: f64,
        before: Option<Tensor>,
    ) -> (loss::AnswerLoss, Tensor) {
        *self.model.weights_mut() = self.parameters.leaves(compute);
        let mut found = None;
        recompute::backward(&self.model, &batch.tokens, self.kind, |hidden| {
            let loss = self.answer_loss(hidden, batch, scale);
            let surrogate = loss.surrogate.shallow_clone();
            found = Some(loss);
            surrogate
        });
        let grad = before.unwrap_or_else(|| self.parameters.master.zeros_like());
        self.parameters.collect(self.model.weights_mut(), "", &grad);
        (found.expect("the surrogate was asked for"), grad)
    }

    fn answer_loss(&self, hidden: &Tensor, batch: &OnDevice, scale: f64) -> loss::AnswerLoss {
        let states = self.answer_states(hidden, batch);
        loss::answer_loss(&states, self.model.output_weight(), &batch.targets, scale, loss::CHUNK_ROWS)
    }

    /// Mean loss and accuracy on the answers of `batches`, without training.
    pub fn evaluate(&mut self, batches: &[MicroBatch]) -> (f64, f64) {
        let _guard = tch::no_grad_guard();
        *self.model.weights_mut() = self.parameters.weights(self.kind);
        let mut sums = Vec::with_capacity(2 * batches.len());
        for batch in self.upload(batches) {
            let hidden = self.model.hidden(&batch.tokens, self.kind);
            let states = self.answer_states(&hidden, &batch);
            let output = self.model.output_weight();
            let (loss, right) = loss::answer_loss_value(&states, output, &batch.targets, loss::CHUNK_ROWS);
            sums.extend([loss, right]);
        }
        *self.model.weights_mut() = Weights { tensors: BTreeMap::new() };
        let found = download(&sums.iter().collect::<Vec<_>>());
        let answers = batches.iter().map(|batch| batch.targets.len()).sum::<usize>().max(1) as f64;
        let of = |first: usize| found.iter().skip(first).step_by(2).sum::<f64>() / answers;
        (of(0), of(1))
    }

    fn upload(&self, batches: &[MicroBatch]) -> Vec<OnDevice> {
        let lists: Vec<&[i64]> =
            batches.iter().flat_map(|b| [b.tokens.as_slice(), &b.positions, &b.targets]).collect();
        let mut tensors = upload(&lists, self.parameters.master.device()).into_iter();
        let mut next = || tensors.next().expect("as many tensors as lists went over");
        let on_device = |batch: &MicroBatch| OnDevice {
            tokens: next().view([batch.rows as i64, batch.width as i64]),
            positions: next(),
            targets: next(),
        };
        batches.iter().map(on_device).collect()
    }

    /// The states [N, H] of `hidden` [B, T, H] that predict the answer tokens.
    fn answer_states(&self, hidden: &Tensor, batch: &OnDevice) -> Tensor {
        hidden.reshape([-1, self.config.hidden as i64]).index_select(0, &batch.positions)
    }
}

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
