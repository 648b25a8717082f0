//! One optimiser step of pretraining, by hand or by libtorch, and the measurement on held-out contexts. Knows nothing of plans or of
//! where checkpoints go.

use super::{Backward, Contexts, Options, Source};
use crate::{
    models::{
        causal::{CausalConfig, CausalModel},
        weights::Weights,
    },
    train::{
        fused::Fused,
        loss::{self, Terms},
        optim::{AdamW, AdamWOptions, FlatParameters, accumulated, clip_factor, norm},
        recompute,
        transfer::{download, upload},
    },
};
use anyhow::{bail, ensure};
use std::time::Instant;
use tch::{Kind, Tensor};

/// Inputs [rows, context - 1] and targets [rows · (context - 1)] of each batch, i64, in one transfer.
pub(super) fn tensors(batches: &[Contexts], device: tch::Device) -> Vec<(Tensor, Tensor)> {
    let ids: Vec<Vec<i64>> = batches.iter().map(|b| b.ids.iter().map(|&id| i64::from(id)).collect()).collect();
    let lists: Vec<&[i64]> = ids.iter().map(Vec::as_slice).collect();
    let split = |(all, batch): (Tensor, &Contexts)| {
        let all = all.view([batch.rows as i64, -1]);
        let part = |from| all.narrow(1, from, all.size()[1] - 1).contiguous();
        (part(0), part(1).view([-1]))
    };
    upload(&lists, device).into_iter().zip(batches).map(split).collect()
}

/// A model under training.
#[derive(Debug)]
pub struct Pretrainer {
    model: CausalModel,
    /// f32 masters.
    pub parameters: FlatParameters,
    /// Their moments.
    pub adamw: AdamW,
    options: Options,
    fused: Option<Fused>,
}

/// What one optimiser step saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean -log p, z-loss not included.
    pub loss: f64,
    /// Mean logsumexp².
    pub z: f64,
    /// Part of the tokens that had the highest logit.
    pub accuracy: f64,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub rate: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// Wall time of the step.
    pub seconds: f64,
    /// Wall time that the step waited for its data.
    pub waited: f64,
}

/// Sums over some positions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Of -log p.
    pub loss: f64,
    /// Of logsumexp².
    pub z: f64,
    /// Targets that had the highest logit.
    pub correct: i64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.z += other.z;
        self.correct += other.correct;
    }
}

impl Pretrainer {
    /// Takes over a model's parameters.
    pub fn new(mut model: CausalModel, adamw: AdamWOptions, options: Options) -> Self {
        let parameters = FlatParameters::new(model.weights()).decay_all();
        *model.weights_mut() = Weights { tensors: Default::default() };
        let adamw = AdamW::new(&parameters, adamw);
        let fused = match options.backward {
            Backward::Auto | Backward::ByHand => Fused::new(&model.config(), &parameters, options.kind),
            Backward::Autograd | Backward::Recompute => None,
        };
        Self { model, parameters, adamw, options, fused }
    }

    /// The model's description.
    pub fn config(&self) -> CausalConfig {
        self.model.config()
    }

    /// How the backward pass is really made, for people.
    pub fn method(&self) -> &'static str {
        match (self.options.backward, &self.fused) {
            (_, Some(_)) => "by hand",
            (Backward::Recompute, None) => "libtorch, block by block",
            _ => "libtorch",
        }
    }

    /// One optimiser step over the micro-batches together: every token weighs the same.
    ///
    /// # Errors
    /// A token id that the model does not have; the loss or the gradient is not a number. The weights are then those before
    /// the step.
    pub fn step(&mut self, batches: &[Contexts], rate: f64) -> anyhow::Result<StepReport> {
        let begin = Instant::now();
        let targets: usize = batches.iter().map(Contexts::targets).sum();
        ensure!(targets > 0, "the batch holds no tokens");
        batches.iter().try_for_each(|b| self.check_ids(b))?;
        let terms = Terms { scale: 1.0 / targets as f64, z_loss: self.options.z_loss };
        let (sums, grad) = self.raw_gradient(batches, terms);
        let (sums, grad_norm) = sums.read(&norm(&grad));
        let factor = clip_factor(grad_norm, self.options.clip);
        let loss = sums.loss / targets as f64;
        if !loss.is_finite() || !grad_norm.is_finite() {
            bail!(
                "training diverged at learning rate {rate:.2e}: loss {loss}, gradient norm {grad_norm}; \
                 lower learning_rate or gradient_clip, or lengthen warmup_steps"
            );
        }
        self.adamw.step(&mut self.parameters, &grad, factor, rate);
        Ok(StepReport {
            loss,
            z: sums.z / targets as f64,
            accuracy: sums.correct as f64 / targets as f64,
            grad_norm,
            rate,
            tokens: targets as u64,
            seconds: begin.elapsed().as_secs_f64(),
            waited: 0.0,
        })
    }

    /// Sums of the loss and its gradient [N] f32, over the micro-batches, at the present weights.
    pub fn gradient(&mut self, batches: &[Contexts], terms: Terms) -> (Sums, Tensor) {
        let (sums, grad) = self.raw_gradient(batches, terms);
        (sums.read(&Tensor::zeros([], (Kind::Double, grad.device()))).0, grad)
    }

    fn raw_gradient(&mut self, batches: &[Contexts], terms: Terms) -> (Raw, Tensor) {
        if let Some(fused) = &mut self.fused {
            let (sums, grad) = fused.gradient(&self.parameters, batches, terms);
            return (Raw { passes: Vec::new(), known: sums }, grad);
        }
        let compute = self.parameters.compute(self.options.kind);
        let mut passes = Vec::with_capacity(batches.len());
        let mut grad: Option<Tensor> = None;
        for (tokens, targets) in tensors(batches, compute.device()) {
            let before = grad.take();
            let (sums, sum) = match self.options.backward {
                Backward::Recompute => self.recomputed(&compute, (&tokens, &targets), terms, before),
                Backward::Auto | Backward::ByHand | Backward::Autograd => {
                    self.autograd(&compute, (&tokens, &targets), terms, before)
                }
            };
            passes.push(sums);
            grad = Some(sum);
        }
        *self.model.weights_mut() = Weights { tensors: Default::default() };
        (Raw { passes, known: Sums::default() }, grad.expect("there is at least one micro-batch"))
    }

    /// One pass that keeps all activations; its gradient is added to `before`.
    fn autograd(
        &mut self,
        compute: &Tensor,
        (tokens, targets): (&Tensor, &Tensor),
        terms: Terms,
        before: Option<Tensor>,
    ) -> ([Tensor; 3], Tensor) {
        let views = self.parameters.views(compute);
        *self.model.weights_mut() = views.weights;
        let hidden = self.model.hidden(tokens, self.options.kind);
        let loss = self.loss(&hidden, targets, terms);
        loss.surrogate.backward();
        let grad = accumulated(before, views.leaf.grad());
        ([loss.sum, loss.z_sum, loss.correct], grad)
    }

    /// The same with each block computed twice.
    fn recomputed(
        &mut self,
        compute: &Tensor,
        (tokens, targets): (&Tensor, &Tensor),
        terms: Terms,
        before: Option<Tensor>,
    ) -> ([Tensor; 3], Tensor) {
        *self.model.weights_mut() = self.parameters.leaves(compute);
        let mut sums = None;
        recompute::backward(&self.model, tokens, self.options.kind, |hidden| {
            let loss = self.loss(hidden, targets, terms);
            sums = Some([loss.sum, loss.z_sum, loss.correct]);
            loss.surrogate
        });
        let grad = before.unwrap_or_else(|| self.parameters.master.zeros_like());
        self.parameters.collect(self.model.weights_mut(), "", &grad);
        (sums.expect("the surrogate was asked for"), grad)
    }

    fn loss(&self, hidden: &Tensor, targets: &Tensor, terms: Terms) -> loss::AnswerLoss {
        let flat = hidden.reshape([-1, hidden.size()[2]]);
        loss::answer_loss_z(
            &flat,
            self.model.output_weight(),
            targets,
            terms,
            loss::chunk_rows(self.parameters.master.device()),
        )
    }

    /// Mean -log p over all contexts of `source` (`rows` of them, `at_once` at a time), without training.
    ///
    /// # Errors
    /// The contexts cannot be read, or hold ids that the model does not have.
    pub fn evaluate(&mut self, source: &mut dyn Source, rows: usize, at_once: usize) -> anyhow::Result<f64> {
        let _guard = tch::no_grad_guard();
        let device = self.parameters.master.device();
        *self.model.weights_mut() = self.parameters.weights(self.options.kind);
        let (mut sums, mut count, mut left) = (Vec::new(), 0, rows);
        while left > 0 {
            let batch = source.take(left.min(at_once.max(1)))?;
            self.check_ids(&batch)?;
            left -= batch.rows;
            count += batch.targets();
            for (tokens, targets) in tensors(&[batch], device) {
                let hidden = self.model.hidden(&tokens, self.options.kind);
                let flat = hidden.reshape([-1, hidden.size()[2]]);
                sums.push(
                    loss::answer_loss_value(
                        &flat,
                        self.model.output_weight(),
                        &targets,
                        loss::chunk_rows(self.parameters.master.device()),
                    )
                    .0,
                );
            }
        }
        *self.model.weights_mut() = Weights { tensors: Default::default() };
        Ok(download(&sums.iter().collect::<Vec<_>>()).iter().sum::<f64>() / count.max(1) as f64)
    }

    fn check_ids(&self, batch: &Contexts) -> anyhow::Result<()> {
        let vocab = self.model.config().vocab_size();
        if let Some(id) = batch.ids.iter().find(|&&id| id as usize >= vocab) {
            bail!(
                "the pack holds the token id {id}, the model's vocabulary ends at {}; \
                   the pack was made with another tokenizer, or `vocabulary` is too small",
                vocab - 1
            );
        }
        Ok(())
    }
}

/// Sums that may still be on the device.
struct Raw {
    /// Of each pass: -log p, logsumexp², targets that had the highest logit.
    passes: Vec<[Tensor; 3]>,
    /// Of passes that gave numbers at once.
    known: Sums,
}

impl Raw {
    /// The sums, and one scalar more, in one transfer.
    fn read(self, extra: &Tensor) -> (Sums, f64) {
        let wanted: Vec<&Tensor> = self.passes.iter().flatten().chain([extra]).collect();
        let values = download(&wanted);
        let mut total = self.known;
        for pass in values[..values.len() - 1].chunks(3) {
            total += Sums { loss: pass[0], z: pass[1], correct: pass[2] as i64 };
        }
        (total, values[values.len() - 1])
    }
}
