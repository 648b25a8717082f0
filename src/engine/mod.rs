//! Generation: token ids in, token ids out. One OS thread owns a device and its model; requests join and leave a
//! continuous batch at any step. Knows nothing of text, SQL or Arrow.

pub use crate::models::device::DeviceSpec;
use std::{path::Path, sync::Arc};

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 means greedy.
    pub temperature: f32,
    /// Nucleus mass in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: usize,
}

/// One sequence to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// Tokens that many requests start with (the prompt template); computed once a process, keyed by content. May be empty.
    pub prefix: Arc<[u32]>,
    /// The rest of the prompt.
    pub prompt: Vec<u32>,
    /// Upper bound on generated tokens, the stop token included.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Token ids that end the sequence (not part of the result).
    pub stop: Arc<[u32]>,
    /// Seed of this sequence's own random stream: the result depends on nothing else in the batch.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
}

#[derive(Debug, Clone)]
pub struct Completion {
    pub tokens: Vec<u32>,
    pub finish: FinishReason,
}

/// A fault of one request; the others go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    #[error("the prompt has {prompt} tokens and {new} new ones were asked, but the model holds {limit} positions")]
    TooLong { prompt: usize, new: usize, limit: usize },
    #[error("token id {id} is outside the vocabulary of {vocab}; the tokenizer does not fit the model")]
    TokenOutOfRange { id: u32, vocab: usize },
    #[error("the model produced logits that are not numbers at token {0}")]
    NotANumber(usize),
    #[error("the engine stopped: {0}")]
    Stopped(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Auto,
    F32,
    Bf16,
}

#[derive(Debug, Clone)]
pub struct EngineOptions {
    pub device: DeviceSpec,
    pub precision: Precision,
    /// Sequences generated at the same time.
    pub slots: usize,
    /// CPU threads of this device thread; 0 means all cores.
    pub threads: usize,
}

/// Counters since start, for progress and manifests.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStats {
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub completed: u64,
    pub running: usize,
    pub waiting: usize,
}

/// A handle to a running engine; clones share it. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Engine {
    _p: (),
}

impl Engine {
    /// Loads a Hugging Face directory and starts the device thread.
    ///
    /// # Errors
    /// Everything that can be known before work starts: files, architecture, memory.
    pub fn start(dir: &Path, options: EngineOptions) -> anyhow::Result<Self> {
        let _ = (dir, options);
        todo!()
    }
    /// Queues a request; dropping the future cancels it (its slot is freed at the next step).
    pub async fn generate(&self, request: Request) -> Result<Completion, RequestError> {
        let _ = request;
        todo!()
    }
    /// Vocabulary size and positions of the loaded model, its own end tokens.
    pub fn config(&self) -> &crate::models::config::DecoderConfig {
        todo!()
    }
    pub fn stats(&self) -> EngineStats {
        todo!()
    }
}
