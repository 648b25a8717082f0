//! `_manifest.json`: what a finished table holds, what it was made from, what it cost.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// File name of the manifest inside a table directory.
pub const MANIFEST: &str = "_manifest.json";

/// `input + created = kept + dropped + failed`; `created` is 0 unless a query makes rows (UNION, unnest, a fanning join).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Rows read.
    pub input: u64,
    /// Rows in the table.
    pub kept: u64,
    /// Rows that were left out on purpose.
    pub dropped: u64,
    /// Rows in `failed`, with their errors.
    pub failed: u64,
    /// Rows that came of no row of the input.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub created: u64,
}
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Rows {
    /// Whether input (+ created) = kept + dropped + failed.
    pub fn adds_up(&self) -> bool {
        self.input + self.created == self.kept + self.dropped + self.failed
    }
}

/// One data file of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Relative to the directory that the list belongs to.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

/// A finished table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name, also that of its directory.
    pub table: String,
    /// What decides whether the stage must run again: hash of inputs, SQL, params, models, code version.
    pub key: String,
    /// Version of the program that takes part in the key.
    pub code_version: String,
    /// Column name → Arrow type, in order.
    pub schema: Vec<Column>,
    /// Row arithmetic.
    pub rows: Rows,
    /// Relative to the table directory, in row order.
    pub files: Vec<DataFile>,
    /// Files of failed rows, relative to `<location>/failed/`.
    pub failed_files: Vec<DataFile>,
    /// Input table or file → hash.
    pub inputs: BTreeMap<String, String>,
    /// Values of `$name` in SQL, or the settings of the stage.
    pub params: BTreeMap<String, serde_json::Value>,
    /// Model name → hash.
    pub models: BTreeMap<String, String>,
    /// What it took to make.
    pub cost: Cost,
}

impl Manifest {
    /// The columns of a schema as the manifest lists them.
    pub fn columns(schema: &arrow::datatypes::Schema) -> Vec<Column> {
        let column = |f: &std::sync::Arc<arrow::datatypes::Field>| Column {
            name: f.name().clone(),
            kind: f.data_type().to_string(),
            nullable: f.is_nullable(),
        };
        schema.fields().iter().map(column).collect()
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// As SQL sees it.
    pub name: String,
    /// Arrow type, as Arrow writes it.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it may hold nulls.
    pub nullable: bool,
}

/// What the stage took. Rates are over the wall time of the runs that made the table.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds during which work was done, over all runs that took part.
    pub wall_seconds: f64,
    /// Input rows over wall time.
    pub rows_per_second: f64,
    /// Tokens that models made.
    pub output_tokens: u64,
    /// Output tokens over wall time.
    pub tokens_per_second: f64,
    /// Highest resident memory of the last process.
    pub peak_memory_bytes: u64,
}

/// A finished model: `_manifest.json` in its directory, written last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelManifest {
    /// Its name, also that of its directory.
    pub model: String,
    /// What decides whether the stage must run again, as for tables.
    pub key: String,
    /// Version of the program that takes part in the key.
    pub code_version: String,
    /// `causal_lm`, `tokenizer` or `fasttext`.
    pub kind: String,
    /// Relative to the model directory; `rows` is 0.
    pub files: Vec<DataFile>,
    /// Training examples: input = kept (used) + dropped (empty or too long) + failed (0).
    pub rows: Rows,
    /// Input table → hash.
    pub inputs: BTreeMap<String, String>,
    /// Model → hash.
    pub models: BTreeMap<String, String>,
    /// What the training measured at its end, e.g. `loss`, `held_out_accuracy`, `steps`, `parameters`.
    pub figures: BTreeMap<String, f64>,
    /// `output_tokens` counts tokens trained on.
    pub cost: Cost,
}
