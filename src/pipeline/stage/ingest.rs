//! The `ingest` stage: JSONL (plain, gzip, zstd) and Parquet files, local or on S3, become a table with stable ids.
//!
//! Columns: `id`, `text`, `source_uri`, `source_row`, then the source's other columns as they came; one of theirs with a
//! name of ours becomes `source_<name>`. A row that cannot be kept goes to `failed` under `<source uri>#<row>` with the
//! reason: not JSON, not UTF-8, no text, empty text, too long, a value that does not fit its column. NUL characters in a
//! text are kept: DuckDB and pyarrow read them. A blank line is no row.
//!
//! Files are read as streams and cut into fragments of `fragment_rows`; a killed run goes on inside a file. It knows the
//! commit protocol, not SQL; how rows are read, typed and shaped is in the files below this one.

mod column;
mod file;
mod kind;
mod lines;
mod pages;
mod plan;
mod shape;
mod types;

use super::StageContext;
use crate::storage::{
    commit::TableCommit,
    manifest::{Cost, Manifest, Rows},
};
use anyhow::{Context, bail};
use file::{InputFile, Job};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use tokio::task::JoinSet;

/// Files read at the same time, whatever the number of cores.
const MOST_FILES: usize = 16;

/// Settings of an `ingest` stage. `ingest: name` alone is short for `ingest: { source: name }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of an entry of `sources:`.
    pub source: String,
    /// Source column that becomes `text`. Default `text`.
    pub text_column: String,
    /// Source column that becomes `id` (text or a whole number, not empty; the source answers for it being unique). Default: none,
    /// ids are a hash of text, source uri and row.
    pub id_column: Option<String>,
    /// Rows of a fragment, the unit of commit and resume. A smaller number loses less work in a crash and makes more files.
    /// Default 10,000.
    pub fragment_rows: u64,
    /// Bytes of the longest text that is kept; a longer one fails its row. Default 16 MiB.
    pub max_text_bytes: u64,
    /// Bytes of the longest JSONL line that is read; a longer one fails its row unread, which bounds memory. Default 64 MiB.
    pub max_line_bytes: u64,
    /// Decompressed bytes at the head of every JSONL file from which column types are learnt. Files up to this size are looked at
    /// in full. Default 64 MiB.
    pub infer_bytes: u64,
    /// Types of source columns that are not to be learnt: `Boolean`, `Int64`, `Float64` or `Utf8`.
    pub columns: BTreeMap<String, ColumnType>,
    /// What to do with a file that is cut off or damaged. Default `fail`.
    pub on_bad_file: OnBadFile,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            source: String::new(),
            text_column: "text".to_owned(),
            id_column: None,
            fragment_rows: 10_000,
            max_text_bytes: 16 << 20,
            max_line_bytes: 64 << 20,
            infer_bytes: 64 << 20,
            columns: BTreeMap::new(),
            on_bad_file: OnBadFile::Fail,
        }
    }
}

/// A column type that a user can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnType {
    /// true or false.
    Boolean,
    /// Whole numbers of 64 bits.
    Int64,
    /// Numbers with a fraction.
    Float64,
    /// Text; numbers and booleans are written out.
    Utf8,
}

/// What happens to a damaged file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadFile {
    /// The stage fails and names file and row; what is committed stays.
    #[default]
    Fail,
    /// The rows before the damage are kept, and the file is noted once in `failed`, as the row that could not be read.
    Skip,
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// Files, directories or patterns (`*`, `?`, `**`, `[a-z]`, `{a,b}`), local or `s3://`: one or a list.
    pub path: Paths,
    /// Format of all files. Default `auto`: Parquet where the name ends in `.parquet` or `.pq`, else JSONL. Compression of JSONL is
    /// known by the first bytes.
    #[serde(default)]
    pub format: Format,
}

impl From<&str> for SourceSpec {
    fn from(path: &str) -> Self {
        Self { path: Paths::One(path.to_owned()), format: Format::Auto }
    }
}

/// One pattern or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Paths {
    /// A single pattern.
    One(String),
    /// Patterns in the order in which their rows come.
    Many(Vec<String>),
}

impl Paths {
    /// All patterns.
    pub fn list(&self) -> &[String] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

/// Format of source files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// By file name.
    #[default]
    Auto,
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

/// Version of every file of a source: size and time of change locally, size and entity tag on S3. Contents are not hashed, as
/// that would take a full read of the input before each run; a file changed within its time stamp and with the same size is missed.
pub async fn fingerprint(source: &SourceSpec) -> anyhow::Result<BTreeMap<String, String>> {
    Ok(plan::files(source).await?.iter().map(|f| (f.uri(), f.fingerprint())).collect())
}

/// Reads the source and commits its rows.
///
/// # Errors
/// No such files, a damaged file (unless skipped), types that cannot be one column, storage trouble, cancellation. Committed fragments stay.
pub async fn run(config: &Config, source: &SourceSpec, cx: &StageContext) -> anyhow::Result<Manifest> {
    if config.fragment_rows == 0 {
        bail!("fragment_rows must be at least 1");
    }
    let files = plan::files(source).await?;
    let inputs = files.iter().map(|f| (f.uri(), f.fingerprint())).collect();
    let commit = TableCommit::begin(&cx.location, &cx.output, &cx.key).await?;
    let layout = Arc::new(plan::layout(config, source, &files).await?);
    let number = |(number, file)| Arc::new(InputFile { number, format: plan::format(&file, source.format), file });
    let all: Vec<Arc<InputFile>> = files.into_iter().enumerate().map(number).collect();
    let total = all.iter().map(|f| f.file.meta.size).sum();
    let (done, open): (Vec<_>, Vec<_>) = all.into_iter().partition(|f| f.is_done(&commit));
    cx.progress.begin(&cx.output, Some(total), done.iter().map(|f| f.file.meta.size).sum(), "bytes");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = cores.min(MOST_FILES).min(open.len()).max(1);
    let parallel = (cores / at_once).max(2);
    let config = Arc::new(config.clone());
    let job = Arc::new(Job {
        config: config.clone(),
        layout: layout.clone(),
        commit: commit.clone(),
        cx: cx.clone(),
        parallel,
    });
    ingest_all(&job, open, at_once).await?;
    let rows = commit.totals();
    if rows.dropped + rows.created > 0 {
        bail!(
            "table `{}`: {} rows were lost and {} came from nowhere; this is a fault of the program",
            cx.output,
            rows.dropped,
            rows.created
        );
    }
    let mut manifest = describe(&config, cx)?;
    manifest.inputs = inputs;
    manifest.schema = Manifest::columns(&layout.schema);
    commit.publish(manifest).await
}

/// Runs the files, `at_once` at a time. When one fails, or this is dropped, the others stop.
async fn ingest_all(job: &Arc<Job>, files: Vec<Arc<InputFile>>, at_once: usize) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    let mut waiting = files.into_iter();
    for file in waiting.by_ref().take(at_once) {
        running.spawn(file::run(job.clone(), file));
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended.context("a file task broke off").flatten() {
            running.shutdown().await;
            return Err(error);
        }
        if let Some(file) = waiting.next() {
            running.spawn(file::run(job.clone(), file));
        }
    }
    Ok(())
}

fn describe(config: &Config, cx: &StageContext) -> anyhow::Result<Manifest> {
    let settings = match serde_json::to_value(config)? {
        serde_json::Value::Object(settings) => settings.into_iter().collect(),
        _ => BTreeMap::new(),
    };
    Ok(Manifest {
        table: cx.output.clone(),
        key: cx.key.clone(),
        code_version: cx.code_version.clone(),
        schema: Vec::new(),
        rows: Rows::default(),
        files: Vec::new(),
        failed_files: Vec::new(),
        inputs: BTreeMap::new(),
        params: settings,
        models: BTreeMap::new(),
        cost: Cost::default(),
    })
}
