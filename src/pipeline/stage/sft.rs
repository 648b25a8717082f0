//! The `sft` stage: supervised fine-tuning of a language model on a table of pairs, from a model directory or from random
//! parameters. Yields a model directory in Hugging Face layout, and `metrics.parquet` in it. The loop is in
//! [`crate::train::sft`]; turning settings, tables and tokenizers into its plan is in [`prepare`].

use super::{StageContext, artifact};
use crate::{
    storage::manifest::{Cost, ModelManifest, Rows},
    train::{
        checkpoint::{self, Store},
        export,
        setup::{self, Precision, Stored},
        sft::{self, Hooks, State, StepReport, Trainer},
    },
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};
use tokio::runtime::Handle;

mod prepare;

use prepare::Prepared;

/// Settings of an `sft` stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the parameters come from: the name of a model of this pipeline, a model path, or a new model.
    pub init: Init,
    /// Table with the text columns `prompt` and `completion`. The loss is on the completion only. Without it, the model
    /// only goes through `copy_warmup`.
    #[serde(default)]
    pub pairs: Option<String>,
    /// Completions mark spans with U+E0F0 and U+E0F1 that the model reads but does not learn, as `edit_example` writes them.
    #[serde(default)]
    pub given: bool,
    /// Table of pairs that are never trained on; `held_out_loss` and `held_out_accuracy` are measured on it.
    #[serde(default)]
    pub held_out: Option<String>,
    /// Sequences of random tokens to repeat, before the pairs. A small new model does not learn to copy without it.
    #[serde(default)]
    pub copy_warmup: Option<CopyWarmup>,
    /// Optimiser steps on the pairs. At least one of `steps`, `tokens`, `minutes` bounds the training on pairs; the first that is
    /// reached ends it, and the learning rate falls along.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Tokens to train on (padding not counted), prompts included.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Minutes to train. The result then depends on the machine; steps and tokens give the same weights again (in f32).
    #[serde(default)]
    pub minutes: Option<f64>,
    /// Highest learning rate.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine, as a part of the highest.
    #[serde(default = "tenth")]
    pub final_learning_rate: f64,
    /// Steps over which the learning rate rises, at the start of each phase.
    #[serde(default = "warmup_steps")]
    pub warmup_steps: u64,
    /// Tokens of an optimiser step.
    #[serde(default = "batch_tokens")]
    pub batch_tokens: usize,
    /// Tokens, padding included, of one forward and backward pass; gradients of a step's passes are added up. Smaller needs
    /// less memory; on a CPU about 2,000 keep the activations near the processor.
    #[serde(default = "micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Longest example in tokens; longer ones are dropped and counted.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// Examples sorted by length together, so that little is padded.
    #[serde(default = "length_window")]
    pub length_window: usize,
    /// Decoupled weight decay of matrices.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Largest gradient norm; 0 for no bound.
    #[serde(default = "one")]
    pub gradient_clip: f64,
    /// What matmuls run in; masters and moments are always f32.
    #[serde(default)]
    pub precision: Precision,
    /// Keep each block's input only and compute the rest again: less memory, a third more work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// What the exported weights are stored in.
    #[serde(default)]
    pub export: Stored,
    /// `auto`, `cpu` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
    /// CPU threads; 0 for all cores. Another number changes the last bits of the result.
    #[serde(default)]
    pub threads: usize,
    /// Steps between rows of the metrics.
    #[serde(default = "log_every")]
    pub log_every: u64,
    /// Steps between checkpoints; 0 for none but the one that an interruption makes.
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: u64,
    /// Steps between measurements on `held_out`; it is always measured at the end.
    #[serde(default = "evaluate_every")]
    pub evaluate_every: u64,
    /// Prompt template with a `{TEXT}` mark that the `prompt` column is put into; written to the model directory as `prompt.txt`.
    #[serde(default)]
    pub prompt: Option<PathBuf>,
    /// What the model's makers recommend for its use, with the keys of a `models:` entry (`temperature`, `chunk_chars`, …);
    /// written to the model directory as `repro.json`.
    #[serde(default)]
    pub settings: BTreeMap<String, serde_json::Value>,
}

/// Where the parameters come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Init {
    /// A model of this pipeline, or a path.
    Existing(String),
    /// Random parameters.
    New(NewModel),
}

impl<'de> Deserialize<'de> for Init {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Init;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name or path of a model, or the shape of a new one")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Init, E> {
                Ok(Init::Existing(name.to_owned()))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Init, A::Error> {
                NewModel::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Init::New)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The shape of a new model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewModel {
    /// Family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// A model or tokenizer of this pipeline, or a directory; its vocabulary decides the embedding's size.
    pub tokenizer: String,
    /// Standard deviation of the random matrices. Usual is 0.02; a small model that shall learn to copy wants about
    /// 1 / sqrt(hidden), measured.
    #[serde(default = "init_std")]
    pub init_std: f64,
    /// Whether the output projection is the embedding.
    #[serde(default = "yes")]
    pub tied_embeddings: bool,
    /// Positions that the model is declared to hold.
    #[serde(default = "max_positions")]
    pub max_positions: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
}

/// Families that can be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Norms on queries and keys.
    Qwen3,
    /// Biases on queries, keys and values.
    Qwen2,
    /// Neither.
    Llama,
}

/// The copy curriculum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyWarmup {
    /// Tokens of the longest sequence at the start.
    #[serde(default = "start_length")]
    pub start_length: usize,
    /// Tokens of the longest sequence at the end.
    #[serde(default = "longest")]
    pub longest: usize,
    /// The length doubles when the running loss is below this.
    #[serde(default = "threshold")]
    pub threshold: f32,
    /// Learning rate, constant after `warmup_steps`.
    #[serde(default = "copy_learning_rate")]
    pub learning_rate: f64,
    /// Steps after which a model that has not learned is given up.
    #[serde(default = "copy_max_steps")]
    pub max_steps: u64,
}

fn learning_rate() -> f64 {
    1e-3
}
fn tenth() -> f64 {
    0.1
}
fn warmup_steps() -> u64 {
    20
}
fn batch_tokens() -> usize {
    8192
}
fn micro_batch_tokens() -> usize {
    2048
}
fn max_length() -> usize {
    1024
}
fn length_window() -> usize {
    2048
}
fn weight_decay() -> f64 {
    0.01
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.95
}
fn one() -> f64 {
    1.0
}
fn cpu() -> String {
    "cpu".to_owned()
}
fn log_every() -> u64 {
    10
}
fn checkpoint_every() -> u64 {
    200
}
fn evaluate_every() -> u64 {
    100
}
fn init_std() -> f64 {
    0.02
}
fn yes() -> bool {
    true
}
fn max_positions() -> usize {
    4096
}
fn rope_theta() -> f64 {
    10_000.0
}
fn start_length() -> usize {
    24
}
fn longest() -> usize {
    200
}
fn threshold() -> f32 {
    0.3
}
fn copy_learning_rate() -> f64 {
    5e-3
}
fn copy_max_steps() -> u64 {
    3000
}

impl Config {
    /// Tables that the stage reads.
    pub fn tables(&self) -> Vec<&str> {
        self.pairs.iter().chain(&self.held_out).map(String::as_str).collect()
    }

    /// The model that the stage starts from or takes the tokenizer of: a name of this pipeline, or a path.
    pub fn models(&self) -> Vec<&str> {
        vec![match &self.init {
            Init::Existing(name) => name,
            Init::New(new) => &new.tokenizer,
        }]
    }
}

/// Trains and publishes the model; continues from its last checkpoint.
///
/// # Errors
/// Settings, tables, models or a tokenizer that do not fit; divergence; an interruption.
pub async fn run(config: &Config, cx: &StageContext) -> anyhow::Result<ModelManifest> {
    if let Some(manifest) = artifact::finished(cx).await? {
        return Ok(manifest);
    }
    prepare::check(config)?;
    let prepared = prepare::prepare(config, cx).await?;
    let store = Store::new(&cx.location, &cx.output, &cx.key);
    let latest = store.latest().await?;
    let job =
        Job { prepared, config: config.clone(), cx: cx.clone(), store: store.clone(), runtime: Handle::current() };
    let (summary, directory) = artifact::on_thread(move |target| job.train(latest, target)).await?;
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
        target: &std::path::Path,
    ) -> anyhow::Result<artifact::Summary> {
        setup::set_threads(self.config.threads);
        let adamw = prepare::adamw(&self.config);
        let Prepared { compute, source, .. } = &self.prepared;
        let mut trainer = compute.trainer(source, self.cx.seed, adamw, self.config.gradient_clip)?;
        trainer.recompute = self.config.gradient_checkpointing;
        let parameters = trainer.config().parameters();
        let mut state = State::default();
        if let Some((name, bytes)) = latest {
            state = checkpoint::restore(&bytes, &name, &mut trainer.parameters, &mut trainer.adamw)?;
            tracing::info!("{}: continuing after step {} from {name}", self.cx.output, state.used.steps);
        }
        let mut hooks = StageHooks::new(&self, &state);
        sft::run(&mut trainer, &mut state, &self.prepared.plan, &mut hooks)?;
        self.prepared.write(target, &trainer, &self.config)?;
        std::fs::write(target.join("metrics.parquet"), state.metrics.to_parquet()?)?;
        Ok(self.summary(&state, parameters))
    }

    fn summary(&self, state: &State, parameters: usize) -> artifact::Summary {
        let mut figures = BTreeMap::from([
            ("steps".to_owned(), state.used.steps as f64),
            ("parameters".to_owned(), parameters as f64),
        ]);
        for name in ["loss", "accuracy", "held_out_loss", "held_out_accuracy"] {
            if let Some(value) = state.metrics.last(name) {
                figures.insert(name.to_owned(), value);
            }
        }
        let Rows { input, .. } = self.prepared.rows;
        let seconds = state.used.seconds.max(1e-9);
        let cost = Cost {
            wall_seconds: state.used.seconds,
            rows_per_second: input as f64 / seconds,
            output_tokens: state.used.tokens,
            tokens_per_second: state.used.tokens as f64 / seconds,
            ..Cost::default()
        };
        artifact::Summary { kind: "causal_lm", rows: self.prepared.rows, figures, cost }
    }
}

/// Progress, Ctrl-C and checkpoints of a running stage.
struct StageHooks<'a> {
    job: &'a Job,
    /// Thousandths of the present phase that the bar shows; None before the first step of a run that continues, which tells where it is.
    shown: Option<u64>,
    in_pairs: bool,
}

impl<'a> StageHooks<'a> {
    fn new(job: &'a Job, state: &State) -> Self {
        let in_pairs = state.pairs_from.is_some();
        let mut hooks = Self { job, shown: None, in_pairs };
        if state.used.steps == 0 {
            hooks.begin(0);
        }
        hooks
    }

    fn begin(&mut self, at: u64) -> u64 {
        self.job.cx.progress.begin(&self.job.cx.output, Some(1000), at, "thousandths");
        self.shown = Some(at);
        at
    }
}

impl Hooks for StageHooks<'_> {
    fn interrupted(&self) -> bool {
        self.job.cx.cancel.is_cancelled()
    }

    fn stepped(&mut self, report: &StepReport, state: &State, done: f64) {
        let in_pairs = state.pairs_from.is_some();
        if in_pairs && !self.in_pairs {
            self.begin(0);
            self.in_pairs = true;
        }
        let now = ((done.min(1.0)) * 1000.0) as u64;
        let shown = self.shown.unwrap_or_else(|| self.begin(now));
        let phase =
            if in_pairs { String::new() } else { format!("copy {}, ", state.curriculum.map_or(0, |c| c.length)) };
        let note = format!(
            "{phase}step {}, loss {:.3}, accuracy {:.4}, {:.0} tok/s",
            state.used.steps,
            report.loss,
            report.accuracy,
            report.tokens as f64 / report.seconds.max(1e-9)
        );
        self.job.cx.progress.advance(&self.job.cx.output, now.saturating_sub(shown), &note);
        self.shown = Some(now.max(shown));
    }

    fn checkpoint(&mut self, trainer: &Trainer, state: &State) -> anyhow::Result<()> {
        let bytes = checkpoint::to_bytes(&trainer.parameters, &trainer.adamw, state)?;
        self.job.runtime.block_on(self.job.store.save(state.used.steps, bytes))
    }
}

impl Prepared {
    /// The finished model's directory.
    fn write(&self, target: &std::path::Path, trainer: &Trainer, config: &Config) -> anyhow::Result<()> {
        let model = trainer.config().clone().into();
        let weights = trainer.parameters.weights(config.export.kind());
        export::write_model(target, &model, &weights, config.export, &self.tokenizer_dir)?;
        if let Some(prompt) = &self.prompt {
            std::fs::write(target.join("prompt.txt"), prompt)?;
        }
        if !config.settings.is_empty() {
            std::fs::write(target.join("repro.json"), serde_json::to_vec_pretty(&config.settings)?)?;
        }
        Ok(())
    }
}
