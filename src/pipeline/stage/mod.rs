//! One file per stage: its config (every field documented: the fields are the manual), and its run.
//!
//! A stage yields a table at `<location>/<table>/` or a model at `<location>/models/<name>/`.

pub mod ingest;

use crate::{
    storage::{location::Location, manifest::Manifest},
    udf::models::Models,
};
use datafusion::common::ScalarValue;
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::sync::CancellationToken;

/// What every stage is given besides its own config.
#[derive(Clone)]
pub struct StageContext {
    /// The pipeline's location; the stage writes below it.
    pub location: Location,
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
