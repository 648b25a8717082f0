//! The `pack` stage: texts of one or more tables to a `packed` table of contexts for pretraining, in random order.
//!
//! Contexts are made as DCLM's tokshuf makes them ([`crate::text::pack`]). Where it packs each input file by itself, a unit here is a file of an
//! input table, or `unit_rows` rows of it where it has more. The shuffle is a sort by a keyed hash of each context's unit and number
//! ([`order`]): uniform, and the same whatever the number of threads, the memory or the interruptions. It works outside memory: sorted
//! runs are written below `<table>/_spill/` ([`spill`]), then merged a range of keys at a time ([`merge`]). What is committed there survives a
//! kill, locally and on S3 alike.
//!
//! Columns: `tokens` (FixedSizeList of UInt16, or UInt32 where ids need it), `length` (tokens that are not padding), `spans` (List of
//! Struct{id, start, offset, length}: which part of which document stands where; the end token counts as the document's last). The manifest's
//! `params` are [`Facts`]. `_tokenizer.json` beside the data is the tokenizer.

use super::{StageContext, artifact, sql::InputTable};
use crate::{
    storage::{commit::TableCommit, location::Location, manifest::Manifest},
    text::{
        pack::{Facts, Shape, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE},
        tokenizer::{Tokenizer, tokenizer_json},
    },
};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

mod encode;
mod merge;
mod order;
mod spill;
mod units;
mod webdataset;

use order::Order;
use spill::{JobRecord, Spill};

/// Settings of a `pack` stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The table whose texts are packed, or a list of them.
    pub tables: Tables,
    /// An entry of `models:`, a `tokenizer` stage, or a path: a directory with `tokenizer.json`, that file, or a tiktoken rank file.
    pub tokenizer: String,
    /// Tokens of a context; a model trains on one less. DCLM: 2049.
    #[serde(default = "context")]
    pub context: usize,
    /// Token that ends a document: its text or its id. Default: the tokenizer's own end token.
    #[serde(default)]
    pub eot: Option<Token>,
    /// Token that fills the last context of a unit: its text or its id. Default: the tokenizer's own padding token, else the end token.
    #[serde(default)]
    pub pad: Option<Token>,
    /// Text column of the tables.
    #[serde(default = "text_column")]
    pub column: String,
    /// Column that names a document in `spans`. Default: `id` where there is one, else `<table file>#<row>`.
    #[serde(default)]
    pub id: Option<String>,
    /// Whether the contexts are shuffled; else they stand in the order of the tables.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// What the shuffle starts from. Default: the pipeline's seed.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Rows of a table file that are one unit at most. A unit is what an interrupted run does again, and its last context is filled up.
    #[serde(default = "unit_rows")]
    pub unit_rows: u64,
    /// Memory that buffers may take, in MiB, at least 256. Changes nothing in the table.
    #[serde(default = "memory")]
    pub memory_mib: usize,
    /// `webdataset` writes the tars and the `manifest.jsonl` that open_lm reads, to `<table>/webdataset/`.
    #[serde(default)]
    pub export: Option<Export>,
    /// Contexts of a tar.
    #[serde(default = "shard_contexts")]
    pub shard_contexts: usize,
}

/// One table or several.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Tables {
    /// A single one.
    One(String),
    /// In this order.
    Many(Vec<String>),
}

impl Tables {
    /// All names.
    pub fn list(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// A token of the tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Token {
    /// Its id.
    Id(u32),
    /// As it stands in the vocabulary.
    Text(String),
}

/// A second form of the contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    /// Tars of gzipped JSON lists, and a manifest.
    Webdataset,
}

fn context() -> usize {
    2049
}
fn text_column() -> String {
    "text".to_owned()
}
fn yes() -> bool {
    true
}
fn unit_rows() -> u64 {
    200_000
}
fn memory() -> usize {
    1024
}
fn shard_contexts() -> usize {
    8192
}

impl<'de> Deserialize<'de> for Tables {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Tables;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a table or a list of names")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Tables, E> {
                Ok(Tables::One(name.to_owned()))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<Tables, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list)).map(Tables::Many)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Token;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a token: its text or its id")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Token, E> {
                Ok(Token::Text(text.to_owned()))
            }
            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Token, E> {
                u32::try_from(id).map(Token::Id).map_err(|_| E::custom(format!("{id} is too large for a token id")))
            }
            fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<Token, E> {
                u32::try_from(id).map(Token::Id).map_err(|_| E::custom(format!("{id} is not a token id")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Config {
    /// Tables that the stage reads.
    pub fn tables(&self) -> Vec<&str> {
        self.tables.list().iter().map(String::as_str).collect()
    }
    /// The tokenizer, by name or path.
    pub fn models(&self) -> Vec<&str> {
        vec![&self.tokenizer]
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.tables().is_empty(), "`tables` is empty; name at least one table");
        ensure!((2..=1 << 20).contains(&self.context), "context {} is not in 2..=1048576", self.context);
        ensure!(self.unit_rows > 0, "unit_rows is 0");
        ensure!(self.shard_contexts > 0, "shard_contexts is 0");
        ensure!(self.memory_mib >= 256, "memory_mib {} is too little; give at least 256", self.memory_mib);
        Ok(())
    }
}

/// What all parts of the work share.
struct Work {
    config: Config,
    cx: StageContext,
    tokenizer: Tokenizer,
    shape: Shape,
    /// Bytes of a stored id: 2 or 4.
    width: usize,
    seed: u64,
    /// The table's directory.
    directory: Location,
}

impl Work {
    fn stopped(&self) -> anyhow::Result<()> {
        match self.cx.cancel.is_cancelled() {
            true => bail!("stopped; run the same command again to continue"),
            false => Ok(()),
        }
    }
    fn memory(&self) -> usize {
        self.config.memory_mib << 20
    }
    /// What the shuffle starts from; None for none.
    fn shuffle(&self) -> Option<u64> {
        self.config.shuffle.then_some(self.seed)
    }
    fn order(&self, units: &[u32]) -> Order {
        Order::new(self.shuffle(), units, order::fragment_contexts(self.shape.context))
    }
}

/// Packs the tables and publishes the contexts.
///
/// # Errors
/// A table, column or token that is not there, a tokenizer that cannot be used, cancellation. Finished parts stay.
pub async fn run(config: &Config, tables: &[(String, InputTable)], cx: &StageContext) -> anyhow::Result<Manifest> {
    config.check()?;
    let files = tokenizer_files(config, cx).await?;
    let hash = blake3::hash(&files.tokenizer).to_hex().to_string();
    let Resolved { tokenizer, shape, vocab_size } = resolve(config, &files)?;
    let width = if vocab_size <= 1 << 16 { 2 } else { 4 };
    let directory = cx.location.join(&cx.output);
    let seed = config.seed.unwrap_or(cx.seed);
    let work = Work { config: config.clone(), cx: cx.clone(), tokenizer, shape, width, seed, directory };
    let work = Arc::new(work);
    let commit = TableCommit::begin(&cx.location, &cx.output, &cx.key).await?;
    let spill = Spill::open(&work.directory, &cx.key).await?;
    let total = contexts(&work, &spill, &commit, tables).await?;
    let facts = Facts {
        tokenizer_hash: hash,
        vocab_size,
        context: shape.context,
        eot: shape.eot,
        pad: shape.pad,
        documents: total.documents - total.without_text - total.failed.len() as u64,
        without_text: total.without_text,
        tokens: total.tokens,
        padding: total.contexts() * shape.context as u64 - total.tokens,
        contexts: total.contexts(),
        units: total.units.len() as u64,
        shuffled: config.shuffle,
        shuffle_seed: seed,
    };
    spill.clear(&total).await?;
    work.directory.write(TOKENIZER_FILE, files.tokenizer.into()).await?;
    match files.config {
        Some(bytes) => work.directory.write(TOKENIZER_CONFIG_FILE, bytes.into()).await?,
        None => work.directory.delete(TOKENIZER_CONFIG_FILE).await?,
    }
    if config.export == Some(Export::Webdataset) {
        webdataset::write(&work, merge::files(&work, &total)).await?;
    }
    publish(&work, commit, &facts).await
}

/// Everything up to the committed contexts; what a former run did is not done again.
async fn contexts(
    work: &Arc<Work>,
    spill: &Spill,
    commit: &TableCommit,
    tables: &[(String, InputTable)],
) -> anyhow::Result<JobRecord> {
    if let Some(total) = spill.total().await?
        && merge::is_done(work, &total, commit)
    {
        return Ok(total);
    }
    let jobs = units::plan(work, tables).await?;
    let records = encode::run_all(work, spill, jobs).await?;
    let total = JobRecord::sum(&records);
    spill.note(&total).await?;
    merge::run(work, spill, commit, &records, &total).await?;
    Ok(total)
}

async fn publish(work: &Arc<Work>, commit: TableCommit, facts: &Facts) -> anyhow::Result<Manifest> {
    let mut manifest = Manifest::describe(&work.cx);
    let totals = commit.totals();
    let out = totals.kept + totals.failed;
    // Documents do not stay rows: many share a context, and a long one fills several.
    manifest.rows.dropped = totals.input.saturating_sub(out);
    manifest.rows.created = out.saturating_sub(totals.input);
    if let serde_json::Value::Object(facts) = serde_json::to_value(facts)? {
        manifest.params.extend(facts);
    }
    manifest.cost.output_tokens = facts.tokens;
    commit.publish(manifest).await
}

/// The tokenizer as it is kept beside the contexts.
struct TokenizerFiles {
    /// `tokenizer.json`
    tokenizer: Vec<u8>,
    /// `tokenizer_config.json`
    config: Option<Vec<u8>>,
    /// Set up for encoding.
    ready: Tokenizer,
}

async fn tokenizer_files(config: &Config, cx: &StageContext) -> anyhow::Result<TokenizerFiles> {
    let path = artifact::tokenizer_directory(cx, &config.tokenizer).await?;
    let read = move || {
        let config = path.join("tokenizer_config.json");
        let config = config.is_file().then(|| std::fs::read(&config)).transpose()?;
        anyhow::Ok(TokenizerFiles { tokenizer: tokenizer_json(&path)?, config, ready: Tokenizer::from_dir(&path)? })
    };
    let files = tokio::task::spawn_blocking(read).await.context("reading the tokenizer ended early")?;
    files.with_context(|| format!("the tokenizer `{}`", config.tokenizer))
}

struct Resolved {
    tokenizer: Tokenizer,
    shape: Shape,
    vocab_size: usize,
}

/// End and padding token, and the range of ids.
fn resolve(config: &Config, files: &TokenizerFiles) -> anyhow::Result<Resolved> {
    let tokenizer = files.ready.clone();
    let settings: serde_json::Value = match &files.config {
        Some(bytes) => serde_json::from_slice(bytes).context("tokenizer_config.json is not JSON")?,
        None => serde_json::Value::Null,
    };
    let vocab_size = tokenizer.vocab_size();
    let find = |key: &str, token: &Token| match token {
        Token::Id(id) if (*id as usize) < vocab_size => Ok(*id),
        Token::Id(id) => bail!("`{key}: {id}` is not a token: the tokenizer's ids are 0 to {}", vocab_size.max(1) - 1),
        Token::Text(text) => tokenizer
            .id(text)
            .with_context(|| format!("`{key}: {text}`: the tokenizer `{}` has no such token", config.tokenizer)),
    };
    let own = |key: &str, usual: &[&str]| {
        let named = &settings[key];
        let named = named.as_str().or_else(|| named["content"].as_str());
        named.into_iter().chain(usual.iter().copied()).find_map(|text| tokenizer.id(text))
    };
    let eot = match &config.eot {
        Some(token) => find("eot", token)?,
        None => own("eos_token", &["<|endoftext|>", "</s>", "<|end|>"]).with_context(|| {
            format!(
                "the tokenizer `{}` names no end token; give `eot`, e.g. `eot: \"<|endoftext|>\"`",
                config.tokenizer
            )
        })?,
    };
    let pad = match &config.pad {
        Some(token) => find("pad", token)?,
        None => own("pad_token", &["<|padding|>", "<|pad|>", "<pad>"]).unwrap_or(eot),
    };
    Ok(Resolved { tokenizer, shape: Shape { context: config.context, eot, pad }, vocab_size })
}
