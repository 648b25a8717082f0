//! The model under GRPO training: f32 masters, one update over a step's completions, the reference. Forward and backward
//! run block by block: the gradient goes from block to block by hand, so that either all blocks' activations are kept, or none
//! but each block's input (gradient checkpointing). Knows token ids and advantages; nothing of text or rewards.
//!
//! On a GPU the host waits for the device twice in an iteration: where a step's numbers go over ([`super::staged`]), and where the
//! loss, the norm and the figures come back in one piece, before the optimiser's step.

use super::{
    batch::{Example, Micro, micro_batches},
    edits::Between,
    found::Found,
    loss::{self, Counted, LossType, Objective, Output, Tokens},
    staged::{self, Staged},
};
use crate::{
    models::{
        config::DecoderConfig,
        decoder::{Decoder, Mixer, RopeTables},
        route,
        weights::Weights,
    },
    train::{
        adapters::{Adapters, Lora},
        heap,
        optim::{AdamW, AdamWOptions, FlatParameters, clip_factor},
    },
};
use anyhow::{bail, ensure};
use std::{collections::BTreeMap, time::Instant};
use tch::{Kind, Tensor};

const EMBEDDING: &str = "model.embed_tokens.weight";

/// What activations a pass keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// All: fastest.
    Keep,
    /// The input of each block; the rest is computed again in the backward pass, for a third more work.
    Recompute,
}

/// How an update is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateOptions {
    /// The objective.
    pub objective: Objective,
    /// Its normaliser.
    pub loss_type: LossType,
    /// Loss batches of a step, see [`loss::normalisers`].
    pub batches: usize,
    /// Longest allowed completion in tokens.
    pub longest: usize,
    /// Optimiser steps on the same completions.
    pub iterations: usize,
    /// Rows of a forward pass, about.
    pub rows: usize,
    /// Activations to keep.
    pub activations: Activations,
    /// Largest gradient norm; 0 for no bound.
    pub clip: f64,
    /// What drawn tokens were drawn from; None: the whole vocabulary.
    pub between: Option<Between>,
}

/// What one example's tokens gave in the first iteration, in means over its tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExampleReport {
    /// k3 against the reference; 0 without one.
    pub kl: f64,
    /// Part of the tokens whose gradient the clip took away, mean over the iterations.
    pub clipped: f64,
    /// Entropy in nats.
    pub entropy: f64,
}

/// What an update did.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateReport {
    /// The objective's value, first iteration.
    pub loss: f64,
    /// Norm of the gradient before clipping, first iteration.
    pub grad_norm: f64,
    /// By example.
    pub examples: Vec<ExampleReport>,
    /// Rows computed in all iterations.
    pub rows: u64,
    /// Wall time.
    pub seconds: f64,
}

/// The model under training.
#[derive(Debug)]
pub struct Policy {
    decoder: Decoder,
    reference: Option<Decoder>,
    adapters: Option<Adapters>,
    /// f32 masters: the model's parameters, or those of its adapters.
    pub parameters: FlatParameters,
    /// Their moments.
    pub adamw: AdamW,
    kind: Kind,
}

/// A block's input, and its output with the way back where activations are kept.
struct Passed {
    input: Tensor,
    output: Option<Tensor>,
}

/// An update's passes on the device.
struct Work<'a> {
    passes: Vec<(Staged<'a>, Kept)>,
    rope: RopeTables,
}

/// What the first iteration leaves for the others.
struct Kept {
    old: Option<Tensor>,
    reference: Option<Tensor>,
}

impl Policy {
    /// Takes over a model's parameters. `kind` is the compute type; the reference, where there is to be one, is a copy of
    /// the model in that type.
    pub fn new(mut decoder: Decoder, adamw: AdamWOptions, kind: Kind, with_reference: bool) -> Self {
        let parameters = FlatParameters::new(&decoder.weights);
        let reference = with_reference.then(|| Decoder {
            config: decoder.config.clone(),
            weights: match kind {
                // These are the masters themselves, which change in place.
                Kind::Float => Weights {
                    tensors: parameters.weights(kind).tensors.into_iter().map(|(n, t)| (n, t.copy())).collect(),
                },
                _ => parameters.weights(kind),
            },
        });
        decoder.weights = Weights { tensors: BTreeMap::new() };
        let adamw = AdamW::new(&parameters, adamw);
        Self { decoder, reference, adapters: None, parameters, adamw, kind }
    }

    /// The same with the model's parameters frozen, in the compute type, and adapters to train. The frozen parameters are the reference
    /// as well.
    pub fn with_adapters(
        mut decoder: Decoder,
        adamw: AdamWOptions,
        kind: Kind,
        with_reference: bool,
        (lora, seed): (Lora, u64),
    ) -> Self {
        let taken = std::mem::replace(&mut decoder.weights, Weights { tensors: BTreeMap::new() });
        let base = Weights { tensors: taken.tensors.into_iter().map(|(n, t)| (n, t.to_kind(kind))).collect() };
        let copies = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
        let reference = with_reference.then(|| Decoder {
            config: decoder.config.clone(),
            weights: Weights { tensors: base.tensors.iter().map(copies).collect() },
        });
        let (adapters, parameters) = Adapters::new(base, lora, seed);
        let adamw = AdamW::new(&parameters, adamw);
        Self { decoder, reference, adapters: Some(adapters), parameters, adamw, kind }
    }

    /// The model's description.
    pub fn config(&self) -> &DecoderConfig {
        &self.decoder.config
    }

    /// The type that matmuls run in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of the parameters that are computed with, in the compute type.
    pub(super) fn compute_bytes(&self) -> usize {
        self.decoder.config.parameters() * self.kind.elt_size_in_bytes()
    }

    /// The present parameters in the compute type, for the engine. In f32 they share the masters' memory.
    pub fn weights(&self) -> Weights {
        self.weights_in(self.kind)
    }

    /// The present parameters of the whole model, adapters merged into it.
    pub fn weights_in(&self, kind: Kind) -> Weights {
        match &self.adapters {
            Some(adapters) => adapters.merged(&self.parameters, kind),
            None => self.parameters.weights(kind),
        }
    }

    /// Leaves of one pass over `compute` ([`Self::weights`]).
    fn leaves(&self, compute: &Weights) -> Weights {
        let leaf = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.detach().set_requires_grad(true));
        match &self.adapters {
            Some(adapters) => adapters.leaves(compute),
            None => Weights { tensors: compute.tensors.iter().map(leaf).collect() },
        }
    }

    /// Adds the gradients of those leaves whose names begin with `prefix` to `grad` [N] f32, and frees them.
    fn collect(&mut self, prefix: &str, grad: &Tensor) {
        match &self.adapters {
            Some(adapters) => adapters.collect(&self.parameters, &mut self.decoder.weights, prefix, grad),
            None => self.parameters.collect(&mut self.decoder.weights, prefix, grad),
        }
    }

    /// The optimiser steps of one set of completions at learning rate `rate`.
    ///
    /// # Errors
    /// The loss or the gradient is not a number; the weights are then those before the failed step.
    pub fn update(
        &mut self,
        prompts: &[&[u32]],
        examples: &[Example],
        options: &UpdateOptions,
        rate: f64,
    ) -> anyhow::Result<UpdateReport> {
        ensure!(!examples.is_empty(), "there is nothing to learn from: no completion has a reward");
        let begin = Instant::now();
        let micros = micro_batches(prompts, examples, options.rows);
        let mut work = self.work(&micros, examples, options);
        let mut report = UpdateReport {
            loss: 0.0,
            grad_norm: 0.0,
            examples: vec![ExampleReport::default(); examples.len()],
            rows: 0,
            seconds: 0.0,
        };
        for iteration in 0..options.iterations {
            let (passes, grad) = self.gradient(&mut work, options);
            let found = Found::new(&passes, &grad);
            let (loss, norm) = (found.loss, found.norm);
            let factor = clip_factor(norm, options.clip);
            if !loss.is_finite() || !norm.is_finite() {
                bail!(
                    "training diverged: loss {loss}, gradient norm {norm}, learning rate {rate:.2e}; lower learning_rate \
                     or max_grad_norm, or raise warmup_ratio"
                );
            }
            if iteration == 0 {
                (report.loss, report.grad_norm) = (loss, norm);
            }
            self.adamw.step(&mut self.parameters, &grad, factor, rate);
            found.note(&mut report.examples, &micros, (iteration, options.iterations));
            report.rows += micros.iter().map(|micro| micro.inputs.len() as u64).sum::<u64>();
        }
        drop(work);
        if !self.parameters.master.device().is_cuda() {
            heap::give_back();
        }
        report.seconds = begin.elapsed().as_secs_f64();
        Ok(report)
    }

    /// The objective and its gradient [N] f32 at the present parameters, without changing them (tests).
    pub fn loss_and_gradient(
        &mut self,
        prompts: &[&[u32]],
        examples: &[Example],
        options: &UpdateOptions,
    ) -> (f64, Tensor) {
        let micros = micro_batches(prompts, examples, options.rows);
        let mut work = self.work(&micros, examples, options);
        let (passes, grad) = self.gradient(&mut work, options);
        (Found::new(&passes, &grad).loss, grad)
    }

    /// Brings a set of completions to the device.
    fn work<'a>(&self, micros: &'a [Micro], examples: &[Example], options: &UpdateOptions) -> Work<'a> {
        let device = self.parameters.master.device();
        let weights = token_weights(examples, options);
        let staged = staged::stage(micros, examples, &weights, device).into_iter();
        Work {
            rope: staged::rope(&self.decoder, micros, device, self.kind),
            passes: staged.map(|staged| (staged, Kept { old: None, reference: None })).collect(),
        }
    }

    /// All passes, and the gradient [N] f32 of their losses' sum.
    fn gradient(&mut self, work: &mut Work<'_>, options: &UpdateOptions) -> (Vec<loss::Pass>, Tensor) {
        let compute = self.weights();
        let grad = self.parameters.master.zeros_like();
        let mut passes = Vec::with_capacity(work.passes.len());
        for (staged, kept) in &mut work.passes {
            self.decoder.weights = self.leaves(&compute);
            let tokens = self.tokens(staged, &work.rope, options, kept);
            let mixer = staged.mixer(&self.decoder, &work.rope, self.kind);
            let pass = self.forward_backward(staged, &*mixer, &tokens, options, &grad);
            if kept.old.is_none() {
                kept.old = Some(pass.log_p.shallow_clone());
            }
            kept.reference = tokens.reference;
            passes.push(pass);
        }
        self.decoder.weights = Weights { tensors: BTreeMap::new() };
        (passes, grad)
    }

    /// What is known of a pass's tokens before it; the reference's log-probabilities are computed once and kept.
    fn tokens(&self, staged: &Staged<'_>, rope: &RopeTables, options: &UpdateOptions, kept: &mut Kept) -> Tokens {
        let reference = kept.reference.take().or_else(|| {
            let reference = self.reference.as_ref().filter(|_| options.objective.beta != 0.0)?;
            let mixer = staged.mixer(reference, rope, self.kind);
            Some(log_probs(reference, staged, &*mixer, options, self.kind))
        });
        Tokens {
            advantages: staged.advantages.shallow_clone(),
            weights: staged.weights.shallow_clone(),
            old: kept.old.as_ref().map(Tensor::shallow_clone),
            reference,
            targets: targets(staged, options.between),
        }
    }

    /// One pass; its gradient is added to `grad` [N] f32.
    fn forward_backward(
        &mut self,
        staged: &Staged<'_>,
        mixer: &dyn Mixer,
        tokens: &Tokens,
        options: &UpdateOptions,
        grad: &Tensor,
    ) -> loss::Pass {
        let embedded = self.decoder.embed(&staged.inputs);
        let (passed, last) = self.forward(&embedded, mixer, options.activations);
        let (pass, mut upstream) = self.head(staged, tokens, options, &last, grad);
        drop(last);
        for (layer, passed) in passed.into_iter().enumerate().rev() {
            let block = |input: &Tensor| self.decoder.block(input, layer, self.kind, mixer);
            let output = passed.output.unwrap_or_else(|| block(&passed.input));
            back(&output, &upstream);
            drop(output);
            upstream = passed.input.grad();
            self.collect(&format!("model.layers.{layer}."), grad);
        }
        if self.adapters.is_some() {
            return pass;
        }
        if route::gpu(grad.device()) {
            // Straight into the sum: no gradient as large as the vocabulary.
            let mut embedding = self.parameters.part(grad, EMBEDDING).expect("a decoder has its embedding");
            let _ = tch::no_grad(|| embedding.index_add_(0, &staged.inputs, &upstream.to_kind(Kind::Float)));
        } else {
            back(&embedded, &upstream);
            self.collect(EMBEDDING, grad);
        }
        pass
    }

    /// All blocks; each block's input is a leaf, so that the gradient stops there.
    fn forward(&self, embedded: &Tensor, mixer: &dyn Mixer, activations: Activations) -> (Vec<Passed>, Tensor) {
        let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
        let mut x = leaf(embedded);
        let mut passed = Vec::with_capacity(self.decoder.config.layers);
        for layer in 0..self.decoder.config.layers {
            let block = || self.decoder.block(&x, layer, self.kind, mixer);
            let (output, kept) = match activations {
                Activations::Keep => {
                    let output = block();
                    (output.shallow_clone(), Some(output))
                }
                Activations::Recompute => (tch::no_grad(block), None),
            };
            let next = leaf(&output);
            passed.push(Passed { input: std::mem::replace(&mut x, next), output: kept });
        }
        (passed, x)
    }

    /// Final norm, objective, and the gradient with respect to the last block's output.
    fn head(
        &mut self,
        staged: &Staged<'_>,
        tokens: &Tokens,
        options: &UpdateOptions,
        last: &Tensor,
        grad: &Tensor,
    ) -> (loss::Pass, Tensor) {
        let hidden = self.decoder.final_norm(&last.index_select(0, &staged.positions), self.kind);
        // None where the output projection is frozen.
        let whole = self.parameters.part(grad, self.decoder.output_name());
        let (output, ids) = output(&self.decoder, options.between);
        let own = match (&ids, &whole) {
            (Some(_), Some(whole)) => Some(Tensor::zeros(output.weight.size(), (Kind::Float, whole.device()))),
            _ => whole.as_ref().map(Tensor::shallow_clone),
        };
        let wanted = own.as_ref().map(Tensor::shallow_clone);
        let (pass, hidden_grad) = loss::pass(&hidden.detach(), &output, tokens, &options.objective, wanted);
        if let (Some(ids), Some(mut whole), Some(own)) = (ids, whole, own) {
            let _ = tch::no_grad(|| whole.index_add_(0, &ids, &own));
        }
        back(&hidden, &hidden_grad);
        self.collect("model.norm.weight", grad);
        (pass, last.grad())
    }
}

/// Sends `upstream`, the gradient of the loss with respect to `output`, further back.
fn back(output: &Tensor, upstream: &Tensor) {
    (output * upstream.to_kind(output.kind())).sum(Kind::Float).backward();
}

/// Each example's normaliser.
fn token_weights(examples: &[Example], options: &UpdateOptions) -> Vec<f64> {
    let counted: Vec<Counted> =
        examples.iter().map(|e| Counted { tokens: if e.masked { 0 } else { e.counted() }, batch: e.batch }).collect();
    loss::normalisers(options.loss_type, &counted, options.batches, options.longest)
}

/// Log-probabilities of a pass's tokens under another model of the same shape.
fn log_probs(decoder: &Decoder, staged: &Staged<'_>, mixer: &dyn Mixer, options: &UpdateOptions, kind: Kind) -> Tensor {
    let _guard = tch::no_grad_guard();
    let mut x = decoder.embed(&staged.inputs);
    for layer in 0..decoder.config.layers {
        x = decoder.block(&x, layer, kind, mixer);
    }
    let hidden = decoder.final_norm(&x.index_select(0, &staged.positions), kind);
    let output = output(decoder, options.between).0;
    loss::log_probs(&hidden, &output, &targets(staged, options.between), options.objective.temperature)
}

/// What logits come from, and the rows of the projection that were taken where they are not all.
fn output(decoder: &Decoder, between: Option<Between>) -> (Output, Option<Tensor>) {
    let weight = decoder.weights.tensors.get(decoder.output_name()).expect("a decoder has its output weight").detach();
    let Some(Between { ids, lean }) = between else { return (Output { weight, bias: None }, None) };
    let ids = Tensor::from_slice(&ids.map(i64::from)).to_device(weight.device());
    let bias = Tensor::from_slice(&[0.0, lean]).to_device(weight.device());
    (Output { weight: weight.index_select(0, &ids), bias: Some(bias) }, Some(ids))
}

/// The drawn tokens [N] as places in what they were drawn from.
fn targets(staged: &Staged<'_>, between: Option<Between>) -> Tensor {
    match between {
        Some(between) => staged.targets.eq(i64::from(between.ids[1])).to_kind(Kind::Int64),
        None => staged.targets.shallow_clone(),
    }
}
