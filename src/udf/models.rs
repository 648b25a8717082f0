//! The models that SQL functions can name: their settings, loaded once on first use, shared by every query of the process.

use crate::{
    engine::Engine,
    rewards::fasttext::FastText,
    text::{chat::ChatTemplate, chunk::Boundary, prompt::Prompt, tokenizer::Tokenizer},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// One entry of `models:`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSpec {
    CausalLm(CausalLmSpec),
    Fasttext(FastTextSpec),
}

/// A generating language model in Hugging Face layout. What is not given comes from `repro.json` in the model directory (the settings its makers
/// recommend, same field names), else from the paper.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CausalLmSpec {
    /// Local directory, `hf://org/name[@rev]` or `s3://…`.
    pub path: String,
    /// Template file with a `{TEXT}` mark; else the model directory's `prompt.txt`, else the embedded rephrasing prompt.
    pub prompt: Option<PathBuf>,
    /// 0 is greedy. Paper: 1.0.
    pub temperature: Option<f32>,
    /// Paper: 0.9.
    pub top_p: Option<f32>,
    /// 0 keeps all (default).
    pub top_k: Option<usize>,
    /// Tokens generated per chunk at most. Paper: 2048.
    pub max_new_tokens: Option<usize>,
    /// Tokens of a whole prompt at most; longer chunks lose their middle and are marked truncated. Paper: 4096 (Qwen 8192).
    pub max_prompt_tokens: Option<usize>,
    /// Characters of a chunk. Paper: 7000.
    pub chunk_chars: Option<usize>,
    /// Where cuts may fall. Paper: `char`.
    pub chunk_boundary: Option<Boundary>,
    /// Marker before the rephrased text; empty: the whole answer is the text.
    pub marker: Option<String>,
    /// Sequences generated at the same time.
    pub slots: Option<usize>,
    /// `auto` (default), `cpu` or `cuda:N`.
    pub device: Option<String>,
    /// `auto` (default), `f32` or `bf16`.
    pub precision: Option<String>,
}

/// A causal model's settings with nothing left open.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LmSettings {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: usize,
    pub max_new_tokens: usize,
    pub max_prompt_tokens: usize,
    pub chunk_chars: usize,
    pub chunk_boundary: Boundary,
    pub marker: String,
}

/// A fastText classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastTextSpec {
    pub path: String,
}

/// A language model ready to use: engine, tokenizer, template, prompt, settings.
pub struct LanguageModel {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub chat: Option<ChatTemplate>,
    pub prompt: Prompt,
    pub settings: LmSettings,
}

/// The registry. Cheap to share; models load on first use.
pub struct Models {
    _p: (),
}

impl Models {
    /// `seed` is the pipeline's; sampling derives from it, the model, the text, the chunk and the sample, never from batch or order.
    pub fn new(specs: BTreeMap<String, ModelSpec>, seed: u64) -> Arc<Self> {
        let _ = (specs, seed);
        todo!()
    }
    pub fn spec(&self, name: &str) -> Option<&ModelSpec> {
        let _ = name;
        todo!()
    }
    pub fn names(&self) -> Vec<String> {
        todo!()
    }
    pub fn seed(&self) -> u64 {
        todo!()
    }
    /// Errors name the model, and list those that exist when there is none of that name.
    pub async fn language_model(&self, name: &str) -> anyhow::Result<Arc<LanguageModel>> {
        let _ = name;
        todo!()
    }
    pub async fn fasttext(&self, name: &str) -> anyhow::Result<Arc<FastText>> {
        let _ = name;
        todo!()
    }
    /// Hash of the model's files and of the settings that change its output (hex blake3), without loading it into an engine.
    pub async fn hash(&self, name: &str) -> anyhow::Result<String> {
        let _ = name;
        todo!()
    }
    /// Output tokens made so far by all engines of this registry (for progress and cost).
    pub fn output_tokens(&self) -> u64 {
        todo!()
    }
}
