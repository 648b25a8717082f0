//! One optimiser step of supervised fine-tuning over micro-batches, and the measurement on held-out ones. Works on token ids; knows
//! nothing of phases, budgets or where checkpoints go.

use crate::{
    models::{causal::CausalModel, config::DecoderConfig, decoder::Decoder, weights::Weights},
    train::{
        batch::MicroBatch,
        loss,
        optim::{AdamW, AdamWOptions, FlatParameters, accumulated, clip_factor, norm},
        recompute,
        transfer::{download, upload},
    },
};
use anyhow::{bail, ensure};
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
        let grad = accumulated(before, views.leaf.grad());
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
        loss::answer_loss(
            &states,
            self.model.output_weight(),
            &batch.targets,
            scale,
            loss::chunk_rows(self.parameters.master.device()),
        )
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
            let (loss, right) = loss::answer_loss_value(
                &states,
                output,
                &batch.targets,
                loss::chunk_rows(self.parameters.master.device()),
            );
            sums.extend([loss, right]);
        }
        *self.model.weights_mut() = Weights { tensors: BTreeMap::new() };
        let found = download(&sums.iter().collect::<Vec<_>>());
        let answers = batches.iter().map(|batch| batch.targets.len()).sum::<usize>().max(1) as f64;
        let of = |first: usize| found.iter().skip(first).step_by(2).sum::<f64>() / answers;
        (of(0), of(1))
    }

    fn upload(&self, batches: &[MicroBatch]) -> Vec<OnDevice> {
        let lists: Vec<&[i64]> = batches.iter().flat_map(|b| [b.tokens.as_slice(), &b.positions, &b.targets]).collect();
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
