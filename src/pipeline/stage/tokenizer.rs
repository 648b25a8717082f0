//! The `tokenizer` stage: trains a byte-level BPE tokenizer on a table's texts. Yields a model directory with `tokenizer.json` and
//! `tokenizer_config.json` (chat template included) that `sft` can name. The training itself is in [`crate::train::bpe`].

use super::{StageContext, artifact};
use crate::{
    storage::manifest::{Cost, ModelManifest, Rows},
    train::bpe::{self, Controls},
};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Instant};

/// Settings of a `tokenizer` stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Table whose texts are learned from.
    pub table: String,
    /// Its text column.
    #[serde(default = "text_column")]
    pub column: String,
    /// Tokens in all: 5 control tokens, `special_tokens`, 256 bytes, and merges. Small models want few: the embedding takes
    /// vocab_size x hidden parameters.
    pub vocab_size: usize,
    /// A pair of tokens must occur this often to be merged.
    #[serde(default = "two")]
    pub min_frequency: u64,
    /// Further tokens that only a trusted text (a prompt template) can contain. `<|pad|>`, `<|end|>`, `<|system|>`, `<|user|>`
    /// and `<|assistant|>` are always there, with ids 0 to 4.
    #[serde(default)]
    pub special_tokens: Vec<String>,
    /// Characters read at most, from the table's start; bounds memory and time.
    #[serde(default = "characters")]
    pub max_characters: u64,
}

fn text_column() -> String {
    "text".to_owned()
}
fn two() -> u64 {
    2
}
fn characters() -> u64 {
    200_000_000
}

impl Config {
    /// Tables that the stage reads.
    pub fn tables(&self) -> Vec<&str> {
        vec![&self.table]
    }
}

/// Trains and publishes the tokenizer.
///
/// # Errors
/// The table is not there or has no text; the vocabulary is too small.
pub async fn run(config: &Config, cx: &StageContext) -> anyhow::Result<ModelManifest> {
    if let Some(manifest) = artifact::finished(cx).await? {
        return Ok(manifest);
    }
    let begin = Instant::now();
    cx.progress.begin(&cx.output, None, 0, "rows");
    let (mut texts, mut characters) = (Vec::new(), 0u64);
    let rows = artifact::read_columns(cx, &config.table, &[&config.column], |row| {
        if let Some(text) = row[0].filter(|text| !text.is_empty() && characters < config.max_characters) {
            characters += text.chars().count() as u64;
            texts.push(text.to_owned());
        }
        Ok(())
    })
    .await?;
    cx.progress.advance(&cx.output, rows, "");
    let kept = texts.len() as u64;
    let settings = config.clone();
    let files = tokio::task::spawn_blocking(move || {
        bpe::train(&texts, settings.vocab_size, settings.min_frequency, &Controls::default(), &settings.special_tokens)
    })
    .await
    .context("the tokenizer task ended early")?
    .with_context(|| format!("table `{}`, column `{}`", config.table, config.column))?;
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    std::fs::write(directory.path().join("tokenizer.json"), &files.tokenizer)?;
    std::fs::write(directory.path().join("tokenizer_config.json"), &files.config)?;
    let wall_seconds = begin.elapsed().as_secs_f64();
    let summary = artifact::Summary {
        kind: "tokenizer",
        rows: Rows { input: rows, kept, dropped: rows - kept, ..Rows::default() },
        figures: BTreeMap::from([
            ("vocab_size".to_owned(), files.vocab_size as f64),
            ("characters".to_owned(), characters as f64),
        ]),
        cost: Cost { wall_seconds, rows_per_second: rows as f64 / wall_seconds.max(1e-9), ..Cost::default() },
    };
    let manifest = artifact::publish(cx, directory.path(), summary).await?;
    cx.progress.end(&cx.output, None);
    Ok(manifest)
}
