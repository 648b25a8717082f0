//! One file per stage: its config (every field documented: the fields are the manual), and its run.
//!
//! A stage yields a table at `<location>/<table>/` or a model at `<location>/models/<name>/`; some make further tables beside it
//! ([`StageConfig::side_tables`]).

use self::sql::InputTable;
use crate::{
    storage::{
        location::Location,
        manifest::{Cost, Manifest, Rows},
    },
    udf::models::Models,
};
use anyhow::bail;
use datafusion::common::ScalarValue;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

pub mod artifact;
pub mod evaluate;
pub mod fasttext;
pub mod figure;
pub mod grpo;
pub mod ingest;
pub mod pack;
pub mod pretrain;
pub mod sft;
pub mod sql;
pub mod tokenizer;
pub mod union;

/// The settings of a stage, as written. Variants are the keys that a stage may have in the YAML.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageConfig {
    /// `ingest`: files to a table.
    Ingest(ingest::Config),
    /// `sql`: a query to a table.
    Sql(sql::Config),
    /// `union`: tables one after the other.
    Union(union::Config),
    /// `figure`: a query to a table and a chart of it.
    Figure(Box<figure::Config>),
    /// `pack`: texts to contexts of token ids.
    Pack(Box<pack::Config>),
    /// `pretrain`: contexts to a new model.
    Pretrain(Box<pretrain::Config>),
    /// `sft`: pairs to a fine-tuned model.
    Sft(Box<sft::Config>),
    /// `grpo`: documents and rewards to a better rephraser.
    Grpo(Box<grpo::Config>),
    /// `tokenizer`: texts to a tokenizer.
    Tokenizer(tokenizer::Config),
    /// `fasttext`: labelled texts to a classifier.
    Fasttext(fasttext::Config),
    /// `evaluate`: a model to its scores.
    Evaluate(evaluate::Config),
}

impl StageConfig {
    /// The stage's key in the YAML.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ingest(_) => "ingest",
            Self::Sql(_) => "sql",
            Self::Union(_) => "union",
            Self::Figure(_) => "figure",
            Self::Pack(_) => "pack",
            Self::Pretrain(_) => "pretrain",
            Self::Sft(_) => "sft",
            Self::Grpo(_) => "grpo",
            Self::Tokenizer(_) => "tokenizer",
            Self::Fasttext(_) => "fasttext",
            Self::Evaluate(_) => "evaluate",
        }
    }
    /// Version of the code behind the stage. Raise it when the same input gives other output than before: finished tables are
    /// then made again.
    pub fn code_version(&self) -> u32 {
        match self {
            Self::Ingest(_)
            | Self::Sql(_)
            | Self::Union(_)
            | Self::Figure(_)
            | Self::Pack(_)
            | Self::Pretrain(_)
            | Self::Sft(_)
            | Self::Grpo(_)
            | Self::Tokenizer(_)
            | Self::Fasttext(_)
            | Self::Evaluate(_) => 1,
        }
    }
    /// Tables that the settings name (those of a query are in its text).
    pub fn tables(&self) -> Vec<&str> {
        match self {
            Self::Ingest(_) | Self::Sql(_) | Self::Union(_) | Self::Figure(_) => Vec::new(),
            Self::Pack(config) => config.tables(),
            Self::Pretrain(config) => config.tables(),
            Self::Sft(config) => config.tables(),
            Self::Grpo(config) => config.tables(),
            Self::Tokenizer(config) => config.tables(),
            Self::Fasttext(config) => config.tables(),
            Self::Evaluate(config) => config.tables(),
        }
    }
    /// Tables that a stage of this name makes besides what it yields. They are finished when the stage is, under the same key; other
    /// stages read them by name.
    pub fn side_tables(&self, name: &str) -> Vec<String> {
        match self {
            Self::Evaluate(_) => vec![evaluate::items_table(name)],
            Self::Grpo(_) => grpo::TABLES.iter().map(|suffix| format!("{name}{suffix}")).collect(),
            _ => Vec::new(),
        }
    }
    /// Models that the settings name; a trainer may name a path instead.
    pub fn models(&self) -> Vec<&str> {
        match self {
            Self::Pretrain(config) => config.models(),
            Self::Sft(config) => config.models(),
            Self::Grpo(config) => config.models(),
            Self::Pack(config) => config.models(),
            Self::Evaluate(config) => config.models(),
            _ => Vec::new(),
        }
    }
    /// Text files whose content the stage takes up.
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::Sft(config) => config.prompt.iter().map(PathBuf::as_path).collect(),
            _ => Vec::new(),
        }
    }
    /// Directories whose files the stage reads.
    pub fn directories(&self) -> Vec<&str> {
        match self {
            Self::Evaluate(config) => config.tasks.as_deref().into_iter().collect(),
            _ => Vec::new(),
        }
    }
    /// Replaces the paths in the settings; `model` tells whether a name is a model's and not a path.
    pub fn resolve(&mut self, model: impl Fn(&str) -> bool, path: impl Fn(&str) -> String) {
        let name = match self {
            Self::Sft(config) => {
                if let Some(prompt) = &mut config.prompt {
                    *prompt = PathBuf::from(path(&prompt.to_string_lossy()));
                }
                match &mut config.init {
                    sft::Init::Existing(name) => name,
                    sft::Init::New(new) => &mut new.tokenizer,
                }
            }
            Self::Evaluate(config) => {
                config.tasks = config.tasks.as_deref().map(&path);
                &mut config.model
            }
            Self::Pretrain(config) => match &mut config.tokenizer {
                Some(name) => name,
                None => return,
            },
            Self::Pack(config) => &mut config.tokenizer,
            Self::Grpo(config) => &mut config.init,
            _ => return,
        };
        if !model(name) {
            *name = path(name);
        }
    }
}

/// What every stage is given besides its own config.
#[derive(Clone)]
pub struct StageContext {
    /// The pipeline's location; the stage writes below it.
    pub location: Location,
    /// Tables made elsewhere, by the names that the pipeline gives them.
    pub external: BTreeMap<String, InputTable>,
    /// The table or model that the stage yields.
    pub output: String,
    /// Hash of everything that decides the output; names the unfinished work that may be continued.
    pub key: String,
    /// The pipeline's seed.
    pub seed: u64,
    /// Values of `$name` in SQL.
    pub params: BTreeMap<String, ScalarValue>,
    /// Models that SQL may call, trained ones of this pipeline included.
    pub models: Arc<Models>,
    /// Where progress goes.
    pub progress: Arc<dyn Progress>,
    /// Set by Ctrl-C: the stage stops at the next row or step, keeping what is committed.
    pub cancel: CancellationToken,
    /// Input table or source file → hash, for the manifest.
    pub inputs: BTreeMap<String, String>,
    /// Model → hash, for the manifest.
    pub model_hashes: BTreeMap<String, String>,
    /// Version of the program that takes part in keys.
    pub code_version: String,
}

impl StageContext {
    /// Where the table of that name is: a location and its name there.
    ///
    /// # Errors
    /// The name stands for files without a manifest.
    pub fn table(&self, name: &str) -> anyhow::Result<(Location, String)> {
        match self.external.get(name) {
            None => Ok((self.location.clone(), name.to_owned())),
            Some(InputTable::Managed { location, table }) => Ok((location.clone(), table.clone())),
            Some(InputTable::Files(path)) => {
                bail!("table `{name}`: {path} is no finished table (it has no manifest); `ingest` the files first")
            }
        }
    }
}

/// Progress of one stage. The terminal draws bars; logs and tests do as they like.
pub trait Progress: Send + Sync {
    /// `total` in `unit`s ("rows", "steps", "bytes"), None where unknown. `done` of them were made by a former run.
    fn begin(&self, stage: &str, total: Option<u64>, done: u64, unit: &'static str);
    /// `n` more units; `note` is a short live remark (e.g. "loss 1.23", "812 tok/s"), empty for none.
    fn advance(&self, stage: &str, n: u64, note: &str);
    /// The stage ended; tables hand over their manifest.
    fn end(&self, stage: &str, manifest: Option<&Manifest>);
}

/// No progress.
pub struct Silent;
impl Progress for Silent {
    fn begin(&self, _: &str, _: Option<u64>, _: u64, _: &'static str) {}
    fn advance(&self, _: &str, _: u64, _: &str) {}
    fn end(&self, _: &str, _: Option<&Manifest>) {}
}

impl Manifest {
    /// A manifest with everything that the context knows: name, key, inputs, parameters, models. Rows, files, schema and cost are for
    /// [`crate::storage::commit::TableCommit::publish`] to fill in.
    pub fn describe(cx: &StageContext) -> Self {
        Self {
            table: cx.output.clone(),
            key: cx.key.clone(),
            code_version: cx.code_version.clone(),
            schema: Vec::new(),
            rows: Rows::default(),
            files: Vec::new(),
            failed_files: Vec::new(),
            inputs: cx.inputs.clone(),
            params: cx.params.iter().map(|(name, value)| (name.clone(), json(value))).collect(),
            models: cx.model_hashes.clone(),
            cost: Cost::default(),
        }
    }
}

/// A parameter's value as JSON; what has no JSON type is shown as text.
pub fn json(value: &ScalarValue) -> serde_json::Value {
    match value {
        ScalarValue::Boolean(Some(b)) => (*b).into(),
        ScalarValue::Int64(Some(n)) => (*n).into(),
        ScalarValue::Float64(Some(n)) => (*n).into(),
        ScalarValue::Utf8(Some(text)) => text.clone().into(),
        other => other.to_string().into(),
    }
}
