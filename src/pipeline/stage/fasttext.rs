//! The `fasttext` stage: trains a supervised fastText classifier on a table. Yields a model directory with `model.bin`. The training
//! itself is in [`crate::train::classifier`].

use super::{StageContext, artifact};
use crate::{
    storage::manifest::{Cost, ModelManifest, Rows},
    train::classifier::{self, Examples, Options},
};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Instant};

/// File of the classifier in its model directory.
pub const FILE: &str = "model.bin";

/// Settings of a `fasttext` stage; names and meaning as in the original program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Table of examples.
    pub table: String,
    /// Its text column.
    #[serde(default = "text_column")]
    pub column: String,
    /// Its label column: one word each, with or without `__label__`.
    #[serde(default = "label_column")]
    pub label: String,
    /// Learning rate at the start; falls to 0.
    #[serde(default = "lr")]
    pub lr: f64,
    /// Width of word vectors. With `bucket` it decides the file's size: (words + bucket) x dim x 4 bytes.
    #[serde(default = "dim")]
    pub dim: u32,
    /// Passes over the examples.
    #[serde(default = "epoch")]
    pub epoch: u32,
    /// Longest run of words that is a feature of its own; 1 for single words only.
    #[serde(default = "word_ngrams")]
    pub word_ngrams: u32,
    /// Hash buckets for runs of words. The original default is 2,000,000, which makes files of hundreds of megabytes.
    #[serde(default = "bucket")]
    pub bucket: u32,
    /// Words that occur less often are left out.
    #[serde(default = "min_count")]
    pub min_count: u32,
    /// Threads. One makes the same file every time; more are faster and do not.
    #[serde(default = "one")]
    pub threads: u32,
}

fn text_column() -> String {
    "text".to_owned()
}
fn label_column() -> String {
    "label".to_owned()
}
fn lr() -> f64 {
    0.1
}
fn dim() -> u32 {
    16
}
fn epoch() -> u32 {
    5
}
fn word_ngrams() -> u32 {
    2
}
fn bucket() -> u32 {
    50_000
}
fn min_count() -> u32 {
    2
}
fn one() -> u32 {
    1
}

impl Config {
    /// Tables that the stage reads.
    pub fn tables(&self) -> Vec<&str> {
        vec![&self.table]
    }
}

/// Trains and publishes the classifier.
///
/// # Errors
/// The table is not there, is empty, or has fewer than two labels.
pub async fn run(config: &Config, cx: &StageContext) -> anyhow::Result<ModelManifest> {
    if let Some(manifest) = artifact::finished(cx).await? {
        return Ok(manifest);
    }
    let begin = Instant::now();
    cx.progress.begin(&cx.output, None, 0, "rows");
    let mut examples = Examples::default();
    let rows = artifact::read_columns(cx, &config.table, &[&config.column, &config.label], |row| {
        if let [Some(text), Some(label)] = row {
            examples.push(text, label)?;
        }
        Ok(())
    })
    .await?;
    cx.progress.advance(&cx.output, rows, "");
    let (kept, labels) = (examples.len() as u64, examples.labels.len());
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let path = directory.path().join(FILE);
    let options = options(config, cx.seed);
    let accuracy = tokio::task::spawn_blocking(move || classifier::train(&examples, options, &path))
        .await
        .context("the classifier task ended early")?
        .with_context(|| format!("table `{}`", config.table))?;
    let wall_seconds = begin.elapsed().as_secs_f64();
    let summary = artifact::Summary {
        kind: "fasttext",
        rows: Rows { input: rows, kept, dropped: rows - kept, ..Rows::default() },
        figures: BTreeMap::from([("labels".to_owned(), labels as f64), ("training_accuracy".to_owned(), accuracy)]),
        cost: Cost { wall_seconds, rows_per_second: rows as f64 / wall_seconds.max(1e-9), ..Cost::default() },
    };
    let manifest = artifact::publish(cx, directory.path(), summary).await?;
    cx.progress.end(&cx.output, None);
    Ok(manifest)
}

fn options(config: &Config, seed: u64) -> Options {
    let Config { lr, dim, epoch, word_ngrams, bucket, min_count, threads, .. } = *config;
    Options { lr, dim, epoch, word_ngrams, bucket, min_count, threads, seed }
}
