//! `tokenizer.json` of a model directory.

use std::path::Path;

/// A Hugging Face tokenizer; cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: std::sync::Arc<tokenizers::Tokenizer>,
}

impl Tokenizer {
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        let _ = dir;
        todo!()
    }
    /// Token ids; special tokens written out in `text` are recognised only when `special` says so (untrusted document text must not
    /// become control tokens).
    pub fn encode(&self, text: &str, special: Special) -> anyhow::Result<Vec<u32>> {
        let _ = (text, special, &self.inner);
        todo!()
    }
    pub fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        let _ = tokens;
        todo!()
    }
    pub fn vocab_size(&self) -> usize {
        todo!()
    }
    pub fn id(&self, token: &str) -> Option<u32> {
        let _ = token;
        todo!()
    }
}

/// Whether control tokens spelled out in the text become those tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Recognise,
    Plain,
}
