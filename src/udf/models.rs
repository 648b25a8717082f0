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

/// A generating language model in Hugging Face layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CausalLmSpec {
    /// Local directory, `hf://org/name[@rev]` or `s3://…`.
    pub path: String,
    /// Template file with a `{TEXT}` mark; the embedded rephrasing prompt when absent.
    pub prompt: Option<PathBuf>,
    /// 0 is greedy. Paper: 1.0.
    pub temperature: f32,
    /// Paper: 0.9.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// Tokens generated per chunk at most. Paper: 2048.
    pub max_new_tokens: usize,
    /// Tokens of a whole prompt at most; longer chunks lose their middle and are marked truncated. Paper: 4096 (Qwen 8192).
    pub max_prompt_tokens: usize,
    /// Characters of a chunk. Paper: 7000.
    pub chunk_chars: usize,
    /// Where cuts may fall. Paper: `char`.
    pub chunk_boundary: Boundary,
    /// Marker before the rephrased text; empty: the whole answer is the text.
    pub marker: String,
    /// Sequences generated at the same time.
    pub slots: usize,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// `auto`, `f32` or `bf16`.
    pub precision: String,
}

/// A fastText classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastTextSpec {
    pub path: String,
}

impl Default for CausalLmSpec {
    fn default() -> Self {
        todo!()
    }
}

/// A language model ready to use: engine, tokenizer, template, prompt, settings.
pub struct LanguageModel {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub chat: Option<ChatTemplate>,
    pub prompt: Prompt,
    pub spec: CausalLmSpec,
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
