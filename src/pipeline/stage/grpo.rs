//! The `grpo` stage: trains a rephraser by reinforcement on the repository's own rewards. Reads a table of documents; yields a
//! model directory in Hugging Face layout and, beside the pipeline's tables, `<model>_rollouts` and `<model>_metrics`. The loop is in
//! [`crate::train::grpo`]; turning settings, tables and models into its plan is in [`prepare`], the rewards are in [`reward`],
//! tables, checkpoints and the live view in [`report`].
//!
//! A model with `answer: edits` is trained on its choices alone ([`crate::train::grpo::edits`]); `completion` and `text` of its rollouts are
//! what they keep.
//!
//! Both tables are written a fragment a step and can be read while the run goes on; their manifests come at its end. A run that
//! is continued writes the steps after its checkpoint again, under the same names.
//!
//! Memory: 16 bytes a parameter (f32 masters, two moments, gradient), 2 more for the bf16 copy that computes, 2 for the engine's
//! copy (4 and 4 in f32), and as many again as the computing copy for the reference where beta is not 0. A 4B model so
//! takes 88 GB without activations; with `gradient_checkpointing` a pass of 4,096 rows adds about 2 GB, one of 16,384 about 10 GB on a
//! GPU (benches/parts/gpu_grpo.rs has the table). `device: cuda:N` puts the model, its engine and its reference on that GPU.
//! There, sums are made in any order: a continued run goes on from the same weights, but its next bits are its own.

use super::{StageContext, artifact};
use crate::{
    rewards::repro_reward::RewardConfig,
    storage::manifest::{Cost, ModelManifest, Rows},
    train::{
        adapters::Lora,
        checkpoint::{self, Store},
        export,
        grpo::{
            advantage::ScaleRewards,
            loss::LossType,
            rollout::Reward,
            run::{self, Actors, State},
        },
        setup::{self, Precision, Stored},
    },
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path, time::Instant};
use tokio::runtime::Handle;

mod prepare;
mod report;
mod reward;

use prepare::Prepared;
use report::StageHooks;

/// Suffixes of the tables that the stage leaves beside its model.
pub const TABLES: [&str; 2] = ["_rollouts", "_metrics"];

/// Settings of a `grpo` stage. Names are TRL's where it has them; defaults are the paper's (Qwen3-4B).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model to start from: a name of this pipeline, or a path.
    pub init: String,
    /// Table of documents to rephrase, with the text columns `id` and `text`.
    pub prompts: String,
    /// Table of documents that are never trained on; one completion each is measured every `eval_steps`.
    #[serde(default)]
    pub held_out: Option<String>,
    /// What a rephrasing is worth. Not given: the section `rewards:` of the pipeline.
    #[serde(default)]
    pub rewards: Option<RewardConfig>,
    /// One more part of the reward: the fastText score of the rephrasing less that of the document.
    #[serde(default)]
    pub fasttext: Option<FasttextPart>,
    /// Steps. Each draws a set of completions and makes `num_iterations` optimiser steps on them.
    #[serde(default = "steps")]
    pub steps: u64,
    /// Documents of a step.
    #[serde(default = "prompts_per_step")]
    pub prompts_per_step: usize,
    /// Completions of a document in a step: the group that rewards are compared in. At least 2.
    #[serde(default = "num_generations")]
    pub num_generations: usize,
    /// Sampling temperature; log-probabilities are taken at the same.
    #[serde(default = "one_f32")]
    pub temperature: f32,
    /// Nucleus mass; not reflected in log-probabilities. Below 1 a model with `answer: edits` never tries a choice less likely than the rest.
    #[serde(default = "top_p")]
    pub top_p: f32,
    /// Likeliest tokens to draw from; 0 keeps all.
    #[serde(default)]
    pub top_k: usize,
    /// Tokens of a whole prompt, template included; longer ones are left out and counted.
    #[serde(default = "two_thousand")]
    pub max_prompt_length: usize,
    /// Tokens of a completion, end token included. Of a model with `answer: edits` a document whose script is longer is left out.
    #[serde(default = "two_thousand")]
    pub max_completion_length: usize,
    /// Characters of a document; the rest is cut off, for prompt and rewards alike. Not given: what the model is asked to
    /// rephrase at once (its `chunk_chars`; paper: 7,000).
    #[serde(default)]
    pub max_prompt_chars: Option<usize>,
    /// Weight of the divergence (k3) from the starting model; 0: no reference is loaded.
    #[serde(default = "beta")]
    pub beta: f64,
    /// How far below 1 the ratio of probabilities may fall before it is clipped.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// How far above 1. Not given: as `epsilon`.
    #[serde(default)]
    pub epsilon_high: Option<f64>,
    /// `bnpo`, `grpo`, `dr_grpo` or `dapo`: how token losses are averaged.
    #[serde(default)]
    pub loss_type: LossType,
    /// `group` (or true), `batch`, `none` (or false): what differences of reward are divided by.
    #[serde(default)]
    pub scale_rewards: ScaleRewards,
    /// Optimiser steps on the same completions.
    #[serde(default = "one_usize")]
    pub num_iterations: usize,
    /// Loss batches of a step, whose losses are averaged: in TRL, accumulation steps times ranks. Not given: as many as
    /// `prompts_per_step`, so 8 completions each with the paper's numbers. Memory is bounded by `micro_batch_tokens`, not by this.
    #[serde(default)]
    pub gradient_accumulation_steps: Option<usize>,
    /// Tokens of one forward and backward pass, about; 16,384 keep a large GPU busy.
    #[serde(default = "micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Keep each block's input only and compute the rest again: less memory, a third more work.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// `{ rank: 32, alpha: 64 }`: the model's matrices stay as they are and small adapters of them are trained (LoRA), merged into the
    /// exported model. A twentieth of the memory for masters, moments and gradient; wants a learning rate about 10 to 50 times as high.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// Highest learning rate.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine, as a part of the highest.
    #[serde(default = "tenth")]
    pub min_lr_ratio: f64,
    /// Part of the steps over which the learning rate rises.
    #[serde(default = "tenth")]
    pub warmup_ratio: f64,
    /// Decoupled weight decay of matrices.
    #[serde(default)]
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    #[serde(default = "beta1")]
    pub adam_beta1: f64,
    /// AdamW's decay of the second moment.
    #[serde(default = "beta2")]
    pub adam_beta2: f64,
    /// Largest gradient norm; 0 for no bound.
    #[serde(default = "one_f64")]
    pub max_grad_norm: f64,
    /// Leave completions that were cut off out of the loss.
    #[serde(default)]
    pub mask_truncated_completions: bool,
    /// What samples and orders are drawn from. Not given: the pipeline's seed.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Steps between checkpoints; 0: none but at an interruption and at the end.
    #[serde(default = "save_steps")]
    pub save_steps: u64,
    /// Steps between measurements on `held_out`; it is always measured before the first step and after the last.
    #[serde(default = "eval_steps")]
    pub eval_steps: u64,
    /// The run ends with an error after that many steps in a row in which every completion was empty or the same, or in which no
    /// group had any spread of rewards; 0: never.
    #[serde(default = "patience")]
    pub patience: u64,
    /// Completions drawn at the same time; on a GPU best all of a step (prompts_per_step x num_generations).
    #[serde(default = "slots")]
    pub slots: usize,
    /// What matmuls run in, of training and of the engine, each of which takes under `auto` what it is fastest in; masters and moments are
    /// always f32. Where training is in f32, a continued run makes the same weights as an undisturbed one, bit for bit.
    #[serde(default)]
    pub precision: Precision,
    /// What the exported weights are stored in.
    #[serde(default)]
    pub export: Stored,
    /// `auto`, `cpu` or `cuda:N`; training and the engine that draws completions are on the same device.
    #[serde(default = "cpu")]
    pub device: String,
    /// CPU threads; 0 for all cores. Another number changes the last bits of the result.
    #[serde(default)]
    pub threads: usize,
}

/// A fastText classifier as a part of the reward (the paper tried that of DCLM: it saturates and is gamed).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FasttextPart {
    /// Entry of `models:` of kind `fasttext`.
    #[serde(default = "hq")]
    pub model: String,
    /// The label whose probability counts. Not given: as `fasttext_score` has it.
    #[serde(default)]
    pub label: Option<String>,
    /// Factor in the total; 0: measured only.
    #[serde(default = "one_f64")]
    pub weight: f64,
}

fn steps() -> u64 {
    2000
}
fn prompts_per_step() -> usize {
    24
}
fn num_generations() -> usize {
    8
}
fn one_f32() -> f32 {
    1.0
}
fn one_f64() -> f64 {
    1.0
}
fn one_usize() -> usize {
    1
}
fn top_p() -> f32 {
    0.9
}
fn two_thousand() -> usize {
    2048
}
fn beta() -> f64 {
    0.005
}
fn epsilon() -> f64 {
    0.2
}
fn micro_batch_tokens() -> usize {
    4096
}
fn learning_rate() -> f64 {
    1e-6
}
fn tenth() -> f64 {
    0.1
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn save_steps() -> u64 {
    60
}
fn eval_steps() -> u64 {
    30
}
fn patience() -> u64 {
    20
}
fn slots() -> usize {
    64
}
fn cpu() -> String {
    "cpu".to_owned()
}
fn hq() -> String {
    "hq".to_owned()
}

impl Config {
    /// Tables that the stage reads.
    pub fn tables(&self) -> Vec<&str> {
        std::iter::once(&self.prompts).chain(&self.held_out).map(String::as_str).collect()
    }

    /// Models that the settings name, those of the rewards aside.
    pub fn models(&self) -> Vec<&str> {
        std::iter::once(&self.init).chain(self.fasttext.iter().map(|f| &f.model)).map(String::as_str).collect()
    }
}

/// Trains and publishes the model and its tables; continues from its last checkpoint.
///
/// # Errors
/// Settings, tables or models that do not fit; divergence, collapse, rewards without spread; an interruption.
pub async fn run(config: &Config, cx: &StageContext) -> anyhow::Result<ModelManifest> {
    if let Some(manifest) = artifact::finished(cx).await? {
        return Ok(manifest);
    }
    prepare::check(config)?;
    let prepared = prepare::prepare(config, cx).await?;
    let store = Store::new(&cx.location, &cx.output, &cx.key);
    let latest = store.latest().await?;
    let tables = report::Tables::begin(cx, latest.is_some()).await?;
    let job =
        Job { prepared, config: config.clone(), cx: cx.clone(), store: store.clone(), runtime: Handle::current() };
    let ((summary, tables), directory) = artifact::on_thread(move |target| job.train(latest, tables, target)).await?;
    tables.publish(cx, summary.cost).await?;
    artifact::finish(cx, &store, directory.path(), summary).await
}

/// Everything that the training thread needs.
struct Job {
    prepared: Prepared,
    config: Config,
    cx: StageContext,
    store: Store,
    runtime: Handle,
}

impl Job {
    fn train(
        self,
        latest: Option<(String, bytes::Bytes)>,
        tables: report::Tables,
        target: &Path,
    ) -> anyhow::Result<(artifact::Summary, report::Tables)> {
        setup::set_threads(self.config.threads);
        let begin = Instant::now();
        let Prepared { compute, model_dir, plan, tokenizer, reward, .. } = &self.prepared;
        let adamw = prepare::adamw(&self.config);
        let lora = self.config.lora.map(|lora| (lora, plan.seed));
        let mut policy = compute.policy(model_dir, adamw, self.config.beta != 0.0, lora)?;
        let parameters = policy.config().parameters();
        let mut state = State::default();
        if let Some((name, bytes)) = latest {
            state = checkpoint::restore(&bytes, &name, &mut policy.parameters, &mut policy.adamw)?;
            tracing::info!("{}: continuing after step {} from {name}", self.cx.output, state.step);
        }
        let positions = self.config.max_prompt_length + self.config.max_completion_length;
        let engine = policy.engine(
            self.config.slots,
            self.config.threads,
            positions,
            self.config.precision.into(),
            &plan.update,
        )?;
        tracing::debug!("{}: ready after {:.1} s", self.cx.output, begin.elapsed().as_secs_f64());
        let mut hooks =
            StageHooks::new(&self.cx, &self.store, self.runtime.clone(), tables, reward.parts(), (&state, plan.steps));
        let mut actors = Actors { policy: &mut policy, engine: &engine, tokenizer, reward };
        run::run(&mut actors, &mut state, plan, &mut hooks)?;
        let model = policy.config().clone().into();
        let weights = policy.weights_in(self.config.export.kind());
        export::write_model(target, &model, &weights, self.config.export, model_dir)?;
        self.prepared.write_settings(target)?;
        let mut figures = hooks.figures();
        figures.insert("steps".to_owned(), state.step as f64);
        figures.insert("parameters".to_owned(), parameters as f64);
        let cost = Cost {
            wall_seconds: state.seconds,
            output_tokens: state.tokens,
            tokens_per_second: state.tokens as f64 / state.seconds.max(1e-9),
            peak_memory_bytes: crate::storage::commit::peak_memory(),
            ..Cost::default()
        };
        let rows: Rows = self.prepared.rows;
        let summary = artifact::Summary { kind: "causal_lm", rows, figures: BTreeMap::from_iter(figures), cost };
        Ok((summary, hooks.into_tables()))
    }
}
