//! `kind: encoder`: a model that gives each token of a text a vector, and the BERTScore made of them. Owns the settings, where texts are
//! cut, and the way from text to score; the vectors are the engine's, the formula is [`crate::rewards::bertscore`].
//!
//! Departures from the reference package: a document that spells out `[SEP]` gets letters, not the control token; one that is longer
//! than the model's positions can be read in windows (`max_tokens` above `window`) where the package cuts it.

use super::models::{blocking, hash_files, model_files, precision};
use crate::{
    engine::encoder::{EncodeError, Encoder, EncoderOptions, Info, Matches, Tokens},
    rewards::bertscore::{Baseline, Idf, Score, Side, bertscore, default_layer, rescale},
    text::tokenizer::{Special, Tokenizer},
};
use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Tokens of a text where neither the tokenizer nor the model sets a bound (DeBERTa), and the most of a decoder's: about twice what the
/// paper's longest chunk of 7,000 characters has.
const UNBOUNDED: usize = 4096;

/// Pairs that are tokenised and asked for together: the model begins with the first while the next are tokenised.
const CHUNK: usize = 16;

/// Chunks that are tokenised at the same time.
const TOKENIZING: usize = 2;

/// Chunks of a call that are with the engine at the same time: more than it takes at once.
const WAITING: usize = 64;

/// Hugging Face writes about 1e30 where a tokenizer has no bound.
const NO_BOUND: f64 = 1e9;

/// A model that gives vectors: BERT, MiniLM, RoBERTa, XLM-RoBERTa or DeBERTa v1 in Hugging Face layout. A decoder directory (Qwen3, Qwen2,
/// Llama, Mistral) serves too: its vectors are the hidden states of a block, which know only what stands before a token, so its scores lie
/// on another scale and need thresholds of their own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSpec {
    /// Local directory, `hf://org/name[@rev]` or `s3://…`.
    pub path: String,
    /// Blocks to run; the vectors are the hidden states after that many. Default: what bert-score takes for a model of this name (18 for
    /// deberta-large-mnli, 17 for roberta-large, 9 for bert-base-uncased), else three quarters of the depth, rounded up.
    pub layer: Option<usize>,
    /// Tokens of a text that are scored at most, special tokens included; the rest is cut, as bert-score cuts it. Default: the tokenizer's
    /// `model_max_length`, else the model's positions, else (DeBERTa) 4096; a decoder at most 4096. More than `window`: long texts are read in
    /// overlapping windows.
    pub max_tokens: Option<usize>,
    /// Tokens that the model sees at once. Default and most: the model's positions; without such a bound `max_tokens`.
    pub window: Option<usize>,
    /// Text file, one reference a line (or .jsonl with `text`), for inverse document frequencies. Default: all tokens weigh the same.
    pub idf: Option<PathBuf>,
    /// Precision, recall and F1 that become 0 (`[0.4536, 0.4536, 0.4517]` for layer 18 of deberta-large-mnli). Default: raw scores.
    pub baseline: Option<[f32; 3]>,
    /// `auto` (default: the first GPU, else the CPU), `cpu` or `cuda:N`.
    pub device: Option<String>,
    /// `auto` (default: bf16 on a GPU and where the processor multiplies it faster), `f32` or `bf16`.
    pub precision: Option<String>,
}

/// An encoder's settings with nothing left open.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EncoderSettings {
    /// Blocks that run.
    pub layer: usize,
    /// Tokens of a text at most, special tokens included.
    pub max_tokens: usize,
    /// Tokens that the model sees at once.
    pub window: usize,
    /// What becomes 0.
    pub baseline: Option<[f32; 3]>,
}

/// An encoder ready to score: engine, tokenizer, weights of tokens.
pub struct TextEncoder {
    engine: Encoder,
    tokenizer: Tokenizer,
    settings: EncoderSettings,
    /// RoBERTa was trained on words that follow a space.
    space_first: bool,
    idf: Option<Idf>,
    /// As [`super::models::Models::hash`].
    pub hash: String,
    cut: AtomicU64,
}

impl TextEncoder {
    /// Loads a directory.
    ///
    /// # Errors
    /// What is wrong with the directory or the settings, by name.
    pub fn load(dir: &Path, spec: &EncoderSpec, hash: String) -> Result<Self> {
        let info = Encoder::info_of(dir)?;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let (tokens, vocab) = (tokenizer.vocab_size(), info.vocab);
        ensure!(
            tokens <= vocab,
            "{}: the tokenizer has {tokens} tokens but the model's vocabulary is {vocab}; the tokenizer does not fit the model",
            dir.display()
        );
        let settings = EncoderSettings::resolve(dir, spec, &info)?;
        let (before, after) = tokenizer.affixes();
        let around = before.len() + after.len();
        ensure!(
            settings.window.min(settings.max_tokens) > around,
            "window and max_tokens must be above {around}, the special tokens of this model"
        );
        let options = EncoderOptions {
            device: spec.device.as_deref().unwrap_or("auto").parse()?,
            precision: precision(spec.precision.as_deref())?,
            layer: settings.layer,
            before: before.to_vec(),
            after: after.to_vec(),
            window: settings.window,
            rows: EncoderOptions::ROWS,
            threads: 0,
        };
        let space_first = info.family == "roberta";
        let engine = Encoder::start(dir, &options)?;
        let cut = AtomicU64::new(0);
        let mut encoder = Self { engine, tokenizer, settings, space_first, idf: None, hash, cut };
        if let Some(path) = &spec.idf {
            encoder.idf = Some(encoder.frequencies(path).with_context(|| format!("idf {}", path.display()))?);
        }
        Ok(encoder)
    }

    /// Scores of (candidate, reference) pairs, in order; texts of all callers that wait are computed together, equal ones once.
    ///
    /// # Errors
    /// Why a pair has no score; the others have theirs.
    pub async fn score(self: &Arc<Self>, pairs: Vec<(String, String)>) -> Vec<Result<Score, String>> {
        let mut chunks = Vec::with_capacity(pairs.len().div_ceil(CHUNK));
        let mut pairs = pairs.into_iter();
        while !pairs.as_slice().is_empty() {
            chunks.push(pairs.by_ref().take(CHUNK).collect::<Vec<_>>());
        }
        let tokens = stream::iter(chunks).map(|chunk| {
            let (own, count) = (Arc::clone(self), chunk.len());
            async move {
                let tokens = tokio::task::spawn_blocking(move || own.tokens(&chunk)).await;
                tokens.unwrap_or_else(|_| vec![Err("the tokenizing thread panicked".to_owned()); count])
            }
        });
        let scores = tokens.buffered(TOKENIZING).map(|tokens| self.matched(tokens)).buffered(WAITING);
        scores.collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// Scores of pairs of tokens.
    async fn matched(&self, tokens: Vec<Result<(Tokens, Tokens), String>>) -> Vec<Result<Score, String>> {
        let asked = tokens.iter().filter_map(|pair| pair.as_ref().ok().cloned()).collect();
        let mut matched = self.engine.matches(asked).await.into_iter();
        tokens
            .into_iter()
            .map(|pair| {
                let (candidate, reference) = pair?;
                let matches = matched.next().unwrap_or_else(|| Err(EncodeError::Stopped("no answer".to_owned())));
                Ok(self.formula(&candidate, &reference, &matches.map_err(|e| e.to_string())?))
            })
            .collect()
    }

    /// What the settings came to.
    pub fn settings(&self) -> &EncoderSettings {
        &self.settings
    }

    /// What the model is.
    pub fn info(&self) -> &Info {
        self.engine.info()
    }

    /// Tokens computed so far.
    pub fn tokens_computed(&self) -> u64 {
        self.engine.tokens()
    }

    fn formula(&self, candidate: &[u32], reference: &[u32], matches: &Matches) -> Score {
        let weights = [candidate, reference].map(|tokens| self.idf.as_ref().map(|idf| idf.of(tokens)));
        let [first, second] = &weights;
        let raw = bertscore(
            Side { best: &matches.first, weights: first.as_deref() },
            Side { best: &matches.second, weights: second.as_deref() },
        );
        match self.settings.baseline {
            Some([precision, recall, f1]) => rescale(raw, Baseline { precision, recall, f1 }),
            None => raw,
        }
    }

    fn tokens(&self, pairs: &[(String, String)]) -> Vec<Result<(Tokens, Tokens), String>> {
        pairs.iter().map(|(a, b)| Ok((self.encode(a)?, self.encode(b)?))).collect()
    }

    /// Token ids of a text without the special ones, cut to the settings' length.
    fn encode(&self, text: &str) -> Result<Tokens, String> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Tokens::default());
        }
        let spaced = self.space_first.then(|| format!(" {text}"));
        let text = spaced.as_deref().unwrap_or(text);
        let mut ids = self.tokenizer.encode(text, Special::Plain).map_err(|e| format!("{e:#}"))?;
        let (before, after) = self.tokenizer.affixes();
        let room = self.settings.max_tokens - before.len() - after.len();
        if ids.len() > room {
            if self.cut.fetch_add(1, Ordering::Relaxed) == 0 {
                let (n, most) = (ids.len(), self.settings.max_tokens);
                tracing::warn!(
                    "bertscore: a text of {n} tokens was cut to max_tokens: {most}, as others of that length will be; raise max_tokens to score all of it"
                );
            }
            ids.truncate(room);
        }
        Ok(ids.into())
    }

    fn frequencies(&self, path: &Path) -> Result<Idf> {
        let content = std::fs::read_to_string(path)?;
        let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let json = path.extension().is_some_and(|end| end == "jsonl");
        let text = |(number, line): (usize, &str)| -> Result<Vec<u32>> {
            let found = match json {
                false => self.encode(line),
                true => {
                    let value: serde_json::Value =
                        serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
                    let text = value.get("text").and_then(|text| text.as_str());
                    self.encode(text.with_context(|| format!("line {}: no `text`", number + 1))?)
                }
            };
            found.map(|ids| ids.to_vec()).map_err(|e| anyhow::anyhow!("line {}: {e}", number + 1))
        };
        let texts = lines.map(text).collect::<Result<Vec<_>>>()?;
        ensure!(!texts.is_empty(), "no text in it");
        Ok(Idf::new(texts.iter().map(Vec::as_slice)))
    }
}

impl EncoderSettings {
    fn resolve(dir: &Path, spec: &EncoderSpec, info: &Info) -> Result<Self> {
        let names = names(dir, &spec.path);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let layer = spec.layer.unwrap_or_else(|| default_layer(&names, info.layers));
        let lowest = usize::from(info.causal);
        if !(lowest..=info.layers).contains(&layer) {
            bail!(
                "layer {layer} was asked for, but the model has {0} layers; give one of {lowest} to {0}",
                info.layers
            );
        }
        let usual = match (tokenizer_bound(dir)?, info.limit) {
            (Some(bound), Some(limit)) => bound.min(limit),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => UNBOUNDED,
        };
        let usual = if info.causal { usual.min(UNBOUNDED) } else { usual };
        let max_tokens = spec.max_tokens.unwrap_or_else(|| spec.window.map_or(usual, |window| window.min(usual)));
        let window = spec.window.unwrap_or_else(|| max_tokens.min(info.limit.unwrap_or(max_tokens)));
        if let Some(limit) = info.limit {
            ensure!(window <= limit, "window: {window} was asked for, but the model has positions for {limit} tokens");
        }
        ensure!(max_tokens > 0 && window > 0, "window and max_tokens must be at least 1");
        if let Some(baseline) = spec.baseline {
            let good = baseline.iter().all(|b| b.is_finite() && *b < 1.0);
            ensure!(good, "baseline must be three numbers below 1: precision, recall, f1; found {baseline:?}");
        }
        Ok(Self { layer, max_tokens, window: window.min(max_tokens), baseline: spec.baseline })
    }
}

/// Names under which the package may know the model: the path's last part and what config.json says.
fn names(dir: &Path, path: &str) -> Vec<String> {
    let path = path.trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or(path);
    let mut names = vec![last.split('@').next().unwrap_or(last).to_owned()];
    let config = std::fs::read(dir.join("config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    names.extend(config.and_then(|json| Some(json.get("_name_or_path")?.as_str()?.to_owned())));
    names
}

/// `model_max_length` of tokenizer_config.json, if it is a bound.
fn tokenizer_bound(dir: &Path) -> Result<Option<usize>> {
    let path = dir.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let context = || path.display().to_string();
    let bytes = std::fs::read(&path).with_context(context)?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).with_context(context)?;
    let bound = json.get("model_max_length").and_then(serde_json::Value::as_f64);
    Ok(bound.filter(|bound| (1.0..NO_BOUND).contains(bound)).map(|bound| bound as usize))
}

/// Loads in a thread that may block.
pub(super) async fn load(dir: PathBuf, spec: EncoderSpec, hash: String) -> Result<Arc<TextEncoder>> {
    blocking(move || TextEncoder::load(&dir, &spec, hash).map(Arc::new)).await
}

/// Files and settings that decide the scores.
pub(super) fn hash_encoder(dir: &Path, spec: &EncoderSpec) -> Result<String> {
    let mut settings = spec.clone();
    // Where the files are changes no score; the name may decide the layer.
    settings.layer = match Encoder::info_of(dir) {
        Ok(info) => EncoderSettings::resolve(dir, spec, &info).map(|s| s.layer).ok().or(spec.layer),
        Err(_) => spec.layer,
    };
    (settings.path, settings.device, settings.idf) = (String::new(), None, None);
    let mut files = model_files(dir)?;
    files.extend(spec.idf.clone());
    hash_files(&files, &serde_json::to_string(&settings)?)
}
