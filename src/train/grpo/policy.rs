//! The model under GRPO training: f32 masters, one update over a step's completions, the reference. Forward and backward
//! run block by block: the gradient goes from block to block by hand, so that either all blocks' activations are kept, or none
//! but each block's input (gradient checkpointing). Knows token ids and advantages; nothing of text or rewards.

use super::{
    batch::{Example, Micro, micro_batches},
    loss::{self, Counted, LossType, Objective, Tokens},
};
use crate::{
    engine::{DeviceSpec, Engine, EngineOptions, Precision},
    models::{config::DecoderConfig, decoder::Decoder, packed::Packed, weights::Weights},
    train::optim::{AdamW, AdamWOptions, FlatParameters, clip_factor},
};
use anyhow::{bail, ensure};
use std::{collections::BTreeMap, time::Instant};
use tch::{Kind, Tensor};

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
    /// f32 masters.
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
            // In f32 the masters change in place, so that the copy must be one.
            weights: Weights {
                tensors: parameters.weights(kind).tensors.into_iter().map(|(n, t)| (n, t.copy())).collect(),
            },
        });
        decoder.weights = Weights { tensors: BTreeMap::new() };
        let adamw = AdamW::new(&parameters, adamw);
        Self { decoder, reference, parameters, adamw, kind }
    }

    /// The model's description.
    pub fn config(&self) -> &DecoderConfig {
        &self.decoder.config
    }

    /// An engine with the present parameters, for sequences of up to `positions` tokens. [`Engine::set_weights`] with
    /// [`Self::weights`] brings it up to date.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn engine(&self, slots: usize, threads: usize, positions: usize) -> anyhow::Result<Engine> {
        let mut config = self.decoder.config.clone();
        config.max_positions = config.max_positions.min(positions);
        let precision = if self.kind == Kind::BFloat16 { Precision::Bf16 } else { Precision::F32 };
        let options = EngineOptions { device: DeviceSpec::Cpu, precision, slots, threads };
        Engine::from_decoder(Decoder { config, weights: self.weights() }, options)
    }

    /// The present parameters in the compute type, for the engine. In f32 they share the masters' memory.
    pub fn weights(&self) -> Weights {
        self.parameters.weights(self.kind)
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
        let weights = token_weights(examples, options);
        let mut kept: Vec<Kept> = micros.iter().map(|_| Kept { old: None, reference: None }).collect();
        let mut report = UpdateReport {
            loss: 0.0,
            grad_norm: 0.0,
            examples: vec![ExampleReport::default(); examples.len()],
            rows: 0,
            seconds: 0.0,
        };
        for iteration in 0..options.iterations {
            let (loss, grad) = self.gradient(&micros, examples, &weights, options, (iteration, &mut kept), &mut report);
            let (norm, factor) = clip_factor(&grad, options.clip);
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
        let weights = token_weights(examples, options);
        let mut kept: Vec<Kept> = micros.iter().map(|_| Kept { old: None, reference: None }).collect();
        let examples_report = vec![ExampleReport::default(); examples.len()];
        let mut report = UpdateReport { loss: 0.0, grad_norm: 0.0, examples: examples_report, rows: 0, seconds: 0.0 };
        self.gradient(&micros, examples, &weights, options, (0, &mut kept), &mut report)
    }

    fn gradient(
        &mut self,
        micros: &[Micro],
        examples: &[Example],
        weights: &[f64],
        options: &UpdateOptions,
        (iteration, kept): (usize, &mut [Kept]),
        report: &mut UpdateReport,
    ) -> (f64, Tensor) {
        let compute = self.parameters.compute(self.kind);
        let grad = self.parameters.master.zeros_like();
        let mut loss = 0.0;
        for (micro, kept) in micros.iter().zip(kept) {
            self.decoder.weights = self.parameters.leaves(&compute);
            let tokens = self.tokens(micro, examples, weights, options, kept);
            let pass = self.forward_backward(micro, &tokens, options, &grad);
            loss += pass.loss.double_value(&[]);
            note(&mut report.examples, micro, &pass, (iteration, options.iterations));
            report.rows += micro.inputs.len() as u64;
            if kept.old.is_none() {
                kept.old = Some(pass.log_p);
            }
            kept.reference = tokens.reference;
        }
        self.decoder.weights = Weights { tensors: BTreeMap::new() };
        (loss, grad)
    }

    /// What is known of a pass's tokens before it; the reference's log-probabilities are computed once and kept.
    fn tokens(
        &self,
        micro: &Micro,
        examples: &[Example],
        weights: &[f64],
        options: &UpdateOptions,
        kept: &mut Kept,
    ) -> Tokens {
        let device = self.parameters.master.device();
        let spread = |value: &dyn Fn(usize) -> f64| {
            let all: Vec<f32> =
                micro.examples.iter().flat_map(|&(i, n)| std::iter::repeat_n(value(i) as f32, n)).collect();
            Tensor::from_slice(&all).to_device(device)
        };
        let targets = Tensor::from_slice(&micro.targets).to_device(device);
        let reference = kept.reference.take().or_else(|| {
            let reference = self.reference.as_ref().filter(|_| options.objective.beta != 0.0)?;
            Some(log_probs(reference, micro, &targets, options.objective.temperature, self.kind))
        });
        Tokens {
            advantages: spread(&|i| examples[i].advantage),
            weights: spread(&|i| weights[i]),
            old: kept.old.as_ref().map(Tensor::shallow_clone),
            reference,
            targets,
        }
    }

    /// One pass: its loss, and its gradient added to `grad` [N] f32.
    fn forward_backward(
        &mut self,
        micro: &Micro,
        tokens: &Tokens,
        options: &UpdateOptions,
        grad: &Tensor,
    ) -> loss::Pass {
        let device = self.parameters.master.device();
        let packed = Packed::new(&self.decoder.config, &micro.trees, device, self.kind);
        let embedded = self.decoder.embed(&Tensor::from_slice(&micro.inputs).to_device(device));
        let (passed, last) = self.forward(&embedded, &packed, options.activations);
        let (pass, mut upstream) = self.head(micro, tokens, options, &last, grad);
        drop(last);
        let parameters = &self.parameters;
        for (layer, passed) in passed.into_iter().enumerate().rev() {
            let block = |input: &Tensor| self.decoder.block(input, layer, self.kind, &packed);
            let output = passed.output.unwrap_or_else(|| block(&passed.input));
            back(&output, &upstream);
            drop(output);
            upstream = passed.input.grad();
            parameters.collect(&mut self.decoder.weights, &format!("model.layers.{layer}."), grad);
        }
        back(&embedded, &upstream);
        parameters.collect(&mut self.decoder.weights, "model.embed_tokens.weight", grad);
        pass
    }

    /// All blocks; each block's input is a leaf, so that the gradient stops there.
    fn forward(&self, embedded: &Tensor, packed: &Packed, activations: Activations) -> (Vec<Passed>, Tensor) {
        let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
        let mut x = leaf(embedded);
        let mut passed = Vec::with_capacity(self.decoder.config.layers);
        for layer in 0..self.decoder.config.layers {
            let block = || self.decoder.block(&x, layer, self.kind, packed);
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
        micro: &Micro,
        tokens: &Tokens,
        options: &UpdateOptions,
        last: &Tensor,
        grad: &Tensor,
    ) -> (loss::Pass, Tensor) {
        let positions = Tensor::from_slice(&micro.positions).to_device(last.device());
        let hidden = self.decoder.final_norm(&last.index_select(0, &positions), self.kind);
        let name = self.decoder.output_name();
        let output = self.decoder.weights.tensors.get(name).expect("a decoder has its output weight");
        let mut output_grad = self.parameters.part(grad, name).expect("a decoder has its output weight");
        let pass = loss::pass(&hidden.detach(), &output.detach(), tokens, &options.objective, &mut output_grad);
        back(&hidden, &pass.hidden_grad);
        self.parameters.collect(&mut self.decoder.weights, "model.norm.weight", grad);
        (pass, last.grad())
    }
}

/// Sends `upstream`, the gradient of the loss with respect to `output`, further back.
fn back(output: &Tensor, upstream: &Tensor) {
    (output * upstream.to_kind(output.kind())).sum(Kind::Float).backward();
}

/// Each example's normaliser.
fn token_weights(examples: &[Example], options: &UpdateOptions) -> Vec<f64> {
    let counted: Vec<Counted> = examples
        .iter()
        .map(|e| Counted { tokens: if e.masked { 0 } else { e.tokens.len() }, batch: e.batch })
        .collect();
    loss::normalisers(options.loss_type, &counted, options.batches, options.longest)
}

/// Log-probabilities of a pass's tokens under another model of the same shape.
fn log_probs(decoder: &Decoder, micro: &Micro, targets: &Tensor, temperature: f64, kind: Kind) -> Tensor {
    let _guard = tch::no_grad_guard();
    let device = targets.device();
    let packed = Packed::new(&decoder.config, &micro.trees, device, kind);
    let mut x = decoder.embed(&Tensor::from_slice(&micro.inputs).to_device(device));
    for layer in 0..decoder.config.layers {
        x = decoder.block(&x, layer, kind, &packed);
    }
    let rows = x.index_select(0, &Tensor::from_slice(&micro.positions).to_device(device));
    let hidden = decoder.final_norm(&rows, kind);
    let output = decoder.weights.tensors.get(decoder.output_name()).expect("a decoder has its output weight");
    loss::log_probs(&hidden, output, targets, temperature)
}

/// Means over each example's tokens, into the report.
fn note(reports: &mut [ExampleReport], micro: &Micro, pass: &loss::Pass, (iteration, iterations): (usize, usize)) {
    let floats = |tensor: &Tensor| -> Vec<f32> { Vec::try_from(tensor).unwrap_or_default() };
    let (kl, clipped, entropy) = (floats(&pass.kl), floats(&pass.clipped), floats(&pass.entropy));
    let mut start = 0;
    for &(index, tokens) in &micro.examples {
        let mean =
            |values: &[f32]| values[start..start + tokens].iter().map(|&v| f64::from(v)).sum::<f64>() / tokens as f64;
        reports[index].clipped += mean(&clipped) / iterations as f64;
        if iteration == 0 {
            (reports[index].kl, reports[index].entropy) = (mean(&kl), mean(&entropy));
        }
        start += tokens;
    }
}
