//! The `pretrain` stage: a new decoder trained from scratch on a `packed` table, with DCLM's recipe by default. Yields a model directory
//! in Hugging Face layout, and `metrics.parquet` in it (there from the first checkpoint on). The loop is in [`crate::train::pretrain`];
//! turning settings and tables into its plan is in [`prepare`].

use super::{StageContext, artifact};
use crate::{
    models::openlm::Preset,
    storage::{
        manifest::{Cost, ModelManifest, Rows},
        packed::{ContextReader, Order, Packed},
    },
    train::{
        checkpoint::{self, Store},
        export,
        pretrain::{self, Contexts, Hooks, Pretrainer, Source, State, StepReport},
        setup::{self, Precision, Stored},
    },
};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};
use tokio::runtime::Handle;

mod prepare;

use prepare::Prepared;

/// Settings of a `pretrain` stage. Defaults are those of the paper (reference section 7.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The packed table to train on.
    pub packed: String,
    /// A packed table that is never trained on; `held_out_loss` is measured on it.
    #[serde(default)]
    pub held_out: Option<String>,
    /// Family of the new model.
    #[serde(default)]
    pub architecture: Architecture,
    /// A size of the paper: `400M`, `1.4B` or `2.8B`, of architecture `openlm`. Sets `tokens`, `sequences` and `warmup_steps` too where they
    /// are not given. Either `preset` or `size`.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// Sizes of your own.
    #[serde(default)]
    pub size: Option<Size>,
    /// Rows of the embedding. Default: 50,432 with a preset, else the tokenizer's vocabulary rounded up to 64.
    #[serde(default)]
    pub vocabulary: Option<usize>,
    /// The tokenizer that the model is meant for: a model of this pipeline or a path. The pack must have been made with it. Default: the
    /// pack's own. Its files go into the model directory.
    #[serde(default)]
    pub tokenizer: Option<String>,
    /// Tokens to train on. Default: the paper's with a preset, else all of the table, `passes` times.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// How often the table may be read; each pass in another order.
    #[serde(default = "one_pass")]
    pub passes: u64,
    /// Contexts of an optimiser step. Default: the paper's with a preset (512 or 256), else 256.
    #[serde(default)]
    pub sequences: Option<usize>,
    /// Forward and backward passes of an optimiser step. More need less memory. Default: as many as keep a pass below 8,192 tokens.
    #[serde(default)]
    pub accumulation: Option<usize>,
    /// Highest learning rate.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine, as a part of the highest.
    #[serde(default = "final_learning_rate")]
    pub final_learning_rate: f64,
    /// Steps over which the learning rate rises. Default: the paper's with a preset (2,000 or 5,000), else a tenth of the steps, at most
    /// 2,000.
    #[serde(default)]
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay, of all parameters.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Factor of the squared logsumexp in the loss.
    #[serde(default = "z_loss")]
    pub z_loss: f64,
    /// Largest gradient norm; 0 for no bound.
    #[serde(default = "one")]
    pub gradient_clip: f64,
    /// What matmuls run in; masters and moments are always f32. `auto` is bf16 wherever the step written by hand can compute
    /// ([`crate::train::fused`]); the log says which way the gradients are made.
    #[serde(default)]
    pub precision: Precision,
    /// Whether the inside of a block is computed again in the backward pass instead of kept: less memory, a third more work.
    #[serde(default)]
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
    /// What initial parameters and the order of the contexts start from. Default: the pipeline's seed.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Steps between rows of the metrics.
    #[serde(default = "log_every")]
    pub log_every: u64,
    /// Steps between checkpoints; 0 for none but the one that an interruption makes.
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: u64,
    /// Steps between measurements on `held_out`; it is always measured at the end.
    #[serde(default = "evaluate_every")]
    pub evaluate_every: u64,
}

/// Families that can be pretrained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// The paper's: layer norms without bias, query and key norms over the full width, an output matrix of its own.
    #[default]
    Openlm,
    /// RMS norms, grouped heads.
    Llama,
    /// The same with norms on queries and keys of each head.
    Qwen3,
}

/// Sizes of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, for `llama` and `qwen3`. Default: `heads`.
    #[serde(default)]
    pub kv_heads: Option<usize>,
    /// Width of a head, for `llama` and `qwen3`. Default: `hidden / heads`.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Width of the feed-forward layer. Default: 8/3 of `hidden`, rounded up to 256.
    #[serde(default)]
    pub ffn: Option<usize>,
    /// Whether the output matrix is the embedding, for `llama` and `qwen3`.
    #[serde(default)]
    pub tied_embeddings: bool,
}

fn one_pass() -> u64 {
    1
}
fn learning_rate() -> f64 {
    3e-3
}
fn final_learning_rate() -> f64 {
    0.01
}
fn weight_decay() -> f64 {
    0.033
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.95
}
fn z_loss() -> f64 {
    1e-4
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
    500
}

impl Config {
    /// Tables that the stage reads.
    pub fn tables(&self) -> Vec<&str> {
        std::iter::once(&self.packed).chain(&self.held_out).map(String::as_str).collect()
    }

    /// The model or tokenizer that the settings name.
    pub fn models(&self) -> Vec<&str> {
        self.tokenizer.iter().map(String::as_str).collect()
    }
}

/// Trains and publishes the model; continues from its last checkpoint.
///
/// # Errors
/// Settings, tables or a tokenizer that do not fit; divergence; an interruption.
pub async fn run(config: &Config, cx: &StageContext) -> anyhow::Result<ModelManifest> {
    if let Some(manifest) = artifact::finished(cx).await? {
        return Ok(manifest);
    }
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
    fn train(self, latest: Option<(String, bytes::Bytes)>, target: &Path) -> anyhow::Result<artifact::Summary> {
        setup::set_threads(self.config.threads);
        let p = &self.prepared;
        let mut trainer = p.compute.pretrainer(&p.model, p.seed, p.adamw, p.recipe)?;
        let mut state = State::default();
        if let Some((name, bytes)) = latest {
            state = checkpoint::restore(&bytes, &name, &mut trainer.parameters, &mut trainer.adamw)?;
            tracing::info!("{}: continuing after step {} from {name}", self.cx.output, state.steps);
        }
        let (name, count, steps) = (&self.cx.output, p.model.parameters(), p.plan.schedule.steps);
        tracing::info!("{name}: {count} parameters, {steps} steps, gradients by {}", trainer.method());
        self.cx.progress.begin(&self.cx.output, Some(p.plan.schedule.steps), state.steps, "steps");
        let mut data = Reader::new(&p.packed, Order::Shuffled(p.seed), state.contexts);
        let mut hooks = StageHooks { job: &self };
        pretrain::run(&mut trainer, &mut state, &p.plan, &mut data, &mut hooks)?;
        let weights = trainer.parameters.weights(self.config.export.kind());
        export::write_model(target, &trainer.config(), &weights, self.config.export, p.tokenizer.path())?;
        std::fs::write(target.join("metrics.parquet"), state.metrics.to_parquet()?)?;
        Ok(self.summary(&state))
    }

    fn summary(&self, state: &State) -> artifact::Summary {
        let mut figures = BTreeMap::from([
            ("steps".to_owned(), state.steps as f64),
            ("tokens".to_owned(), state.tokens as f64),
            ("parameters".to_owned(), self.prepared.model.parameters() as f64),
            ("passes".to_owned(), state.contexts as f64 / self.prepared.packed.contexts as f64),
        ]);
        for name in ["loss", "accuracy", "held_out_loss"] {
            if let Some(value) = state.metrics.last(name) {
                figures.insert(name.to_owned(), value);
            }
        }
        let seconds = state.seconds.max(1e-9);
        let cost = Cost {
            wall_seconds: state.seconds,
            rows_per_second: state.contexts as f64 / seconds,
            output_tokens: state.tokens,
            tokens_per_second: state.tokens as f64 / seconds,
            ..Cost::default()
        };
        // Contexts are rows; those that the budget did not reach are dropped.
        let input = self.prepared.packed.contexts;
        let kept = state.contexts.min(input);
        let rows = Rows { input, kept, dropped: input - kept, ..Rows::default() };
        artifact::Summary { kind: "causal_lm", rows, figures, cost }
    }
}

/// Contexts of a packed table for the loop.
struct Reader {
    contexts: ContextReader,
}

impl Reader {
    fn new(packed: &Packed, order: Order, from: u64) -> Self {
        Self { contexts: packed.read(order, from) }
    }
}

impl Source for Reader {
    fn take(&mut self, n: usize) -> anyhow::Result<Contexts> {
        Ok(Contexts { rows: n, ids: self.contexts.take(n)? })
    }
}

/// Progress, Ctrl-C and checkpoints of a running stage.
struct StageHooks<'a> {
    job: &'a Job,
}

impl Hooks for StageHooks<'_> {
    fn interrupted(&self) -> bool {
        self.job.cx.cancel.is_cancelled()
    }

    fn stepped(&mut self, report: &StepReport, state: &State) {
        let held_out = match state.metrics.last("held_out_loss") {
            Some(loss) => format!(", held out {loss:.3}"),
            None => String::new(),
        };
        let note = format!(
            "step {}, loss {:.3}{held_out}, gradient {:.2}, {:.0} tok/s",
            state.steps,
            report.loss,
            report.grad_norm,
            report.tokens as f64 / report.seconds.max(1e-9)
        );
        self.job.cx.progress.advance(&self.job.cx.output, 1, &note);
    }

    fn checkpoint(&mut self, trainer: &Pretrainer, state: &State) -> anyhow::Result<()> {
        let bytes = checkpoint::to_bytes(&trainer.parameters, &trainer.adamw, state)?;
        let metrics = state.metrics.to_parquet()?;
        let target = self.job.cx.location.join(&format!("models/{}", self.job.cx.output));
        self.job.runtime.block_on(async {
            self.job.store.save(state.steps, bytes).await?;
            target.write("metrics.parquet", metrics).await
        })
    }

    fn held_out(&mut self) -> anyhow::Result<Box<dyn Source>> {
        let held_out = self.job.prepared.held_out.as_ref().context("there is no held-out table")?;
        Ok(Box::new(Reader::new(held_out, Order::Stored, 0)))
    }
}
