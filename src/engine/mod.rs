//! Generation: token ids in, token ids out. One OS thread owns a device and its model; requests join and leave a
//! continuous batch at any step. Knows nothing of text, SQL or Arrow.
//!
//! [`scheduler`] decides what each step computes, a [`backend`] computes it, [`sampling`] draws. A request's result
//! depends on its tokens, sampling and seed only: not on slots, neighbours, or the order of arrival.

pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod encoder;
pub mod memory;
mod pages;
mod pool;
mod sampling;
mod scheduler;
pub mod score;
mod sequence;
mod start;

pub use crate::models::device::DeviceSpec;
use crate::models::{config::DecoderConfig, decoder::Decoder, weights::Weights};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
};

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
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Token ids that end the sequence (not part of the result).
    pub stop: Arc<[u32]>,
    /// Seed of this sequence's own random stream: the result depends on nothing else in the batch.
    pub seed: u64,
    /// The form of the answer, where it is known beforehand. The answer then has exactly these tokens: `max_new_tokens` and `stop` play
    /// no part, and it finishes with [`FinishReason::Stop`].
    pub format: Option<Arc<[FormatStep]>>,
}

/// One step of an answer whose form is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormatStep {
    /// These tokens come next. They cost no pass of their own: they run together with the choice before them.
    Forced(Arc<[u32]>),
    /// One of these tokens comes next, drawn as [`Request::sampling`] says from their logits alone; greedy takes the likeliest, of equals
    /// the first in this list. One pass.
    OneOf(Arc<[u32]>),
    /// As [`Self::OneOf`], with so many thousandths added to the logit of the last token: a choice that has been calibrated.
    Leaning(Arc<[u32]>, i32),
    /// As [`Self::OneOf`], and the completion tells how likely each token was ([`Completion::chances`]).
    Weighed(Arc<[u32]>),
}

impl FormatStep {
    /// The tokens that a step names.
    fn ids(&self) -> &Arc<[u32]> {
        let (Self::Forced(ids) | Self::OneOf(ids) | Self::Leaning(ids, _) | Self::Weighed(ids)) = self;
        ids
    }
    /// Tokens to choose from, and what is added to the last one's logit; None where nothing is to be chosen.
    fn choice(&self) -> Option<(&[u32], f32)> {
        match self {
            Self::Forced(_) => None,
            Self::OneOf(ids) | Self::Weighed(ids) => Some((ids, 0.0)),
            Self::Leaning(ids, thousandths) => Some((ids, *thousandths as f32 / 1000.0)),
        }
    }
}

/// Tokens of an answer of this form.
pub fn format_tokens(format: &[FormatStep]) -> usize {
    format.iter().map(|step| if let FormatStep::Forced(ids) = step { ids.len() } else { 1 }).sum()
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was drawn.
    Stop,
    /// `max_new_tokens` were drawn.
    Length,
}

/// A finished sequence.
#[derive(Debug, Clone)]
pub struct Completion {
    /// What was generated, without the stop token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// For each [`FormatStep::Weighed`] of the request, in order: the probabilities of its tokens among each other, at temperature 1.
    pub chances: Vec<Box<[f32]>>,
}

/// A fault of one request; the others go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// It could never fit.
    #[error("the prompt has {prompt} tokens and {new} new ones were asked, but the model holds {limit} positions")]
    TooLong {
        /// Tokens of prefix and prompt.
        prompt: usize,
        /// Tokens asked for.
        new: usize,
        /// Positions of the model, or of the cache if the memory holds fewer.
        limit: usize,
    },
    /// A prompt token that the model has no embedding for.
    #[error("token id {id} is outside the vocabulary of {vocab}; the tokenizer does not fit the model")]
    TokenOutOfRange {
        /// The token.
        id: u32,
        /// Ids from 0 to below this are known.
        vocab: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens")]
    Empty,
    /// A form of an answer that leaves nothing to choose, or a choice of no token.
    #[error("the form of the answer must hold at least one choice, and every choice at least one token")]
    NoChoice,
    /// NaN or infinite logits.
    #[error("the model produced logits that are not numbers at token {0}")]
    NotANumber(usize),
    /// The device thread ended.
    #[error("the engine stopped: {0}")]
    Stopped(String),
    /// Its weights were given back.
    #[error("the engine has no weights: they were given back, and no new ones came")]
    Unloaded,
}

/// Number type of weights, activations and cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// bf16 where the device multiplies it faster, else f32.
    Auto,
    /// f32.
    F32,
    /// bf16, also where it is slow.
    Bf16,
}

/// How an engine runs.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Where.
    pub device: DeviceSpec,
    /// In which number type.
    pub precision: Precision,
    /// Sequences generated at the same time.
    pub slots: usize,
    /// CPU threads of this device thread; 0 means all cores.
    pub threads: usize,
}

/// Counters since start, for progress and manifests.
#[derive(Debug, Clone, Copy, Default)]
pub struct EngineStats {
    /// Prompt tokens computed; a shared prefix counts once.
    pub prompt_tokens: u64,
    /// Tokens generated, stop tokens included.
    pub output_tokens: u64,
    /// Requests answered without an error.
    pub completed: u64,
    /// Sequences in slots.
    pub running: usize,
    /// Requests not yet in a slot.
    pub waiting: usize,
}

/// A handle to a running engine; clones share it. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Engine {
    queue: mpsc::Sender<sequence::Message>,
    shared: Arc<Shared>,
}

/// What handles and the device thread share.
#[derive(Debug)]
struct Shared {
    config: DecoderConfig,
    /// Longest sequence that fits model and cache.
    limit: usize,
    /// Type of the weights.
    kind: tch::Kind,
    counters: Counters,
    /// Why the thread ended, once it has.
    stopped: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Counters {
    prompt_tokens: AtomicU64,
    output_tokens: AtomicU64,
    completed: AtomicU64,
    running: AtomicUsize,
    waiting: AtomicUsize,
}

impl Engine {
    /// Loads a Hugging Face directory and starts the device thread.
    ///
    /// # Errors
    /// Everything that can be known before work starts: files, architecture, memory.
    pub fn start(dir: &Path, options: EngineOptions) -> anyhow::Result<Self> {
        start::from_dir(dir, &options)
    }

    /// As [`Engine::start`], for a decoder that is already in memory (benchmarks, training).
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn from_decoder(decoder: Decoder, options: EngineOptions) -> anyhow::Result<Self> {
        start::from_decoder(decoder, &options)
    }

    /// Queues a request; dropping the future cancels it (its slot is freed at the next step).
    ///
    /// # Errors
    /// The request cannot be served, see [`RequestError`]; other requests are not affected unless the engine stopped.
    pub async fn generate(&self, request: Request) -> Result<Completion, RequestError> {
        self.submit(request, sequence::StopToken::Dropped).await
    }

    /// As [`Engine::generate`], but the stop token stays at the end of the result: a trainer learns from it too.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub async fn rollout(&self, request: Request) -> Result<Completion, RequestError> {
        self.submit(request, sequence::StopToken::Kept).await
    }

    /// Takes new parameters of the same model, in place: no second copy of the model, nothing read from disk. Requests queued
    /// before are answered with the old parameters, those after with the new; what was cached of prompts is dropped. Blocks
    /// until done, so not for async code.
    ///
    /// # Errors
    /// A parameter is missing or of another shape (the engine then goes on with the old ones); the engine stopped.
    pub fn set_weights(&self, weights: Weights) -> anyhow::Result<()> {
        let mut decoder = Decoder::new(self.shared.config.clone(), weights)?;
        // Here rather than on the engine's thread, where libtorch would start threads of its own, which then wait for the caller's asleep.
        for tensor in decoder.weights.tensors.values_mut() {
            *tensor = tensor.f_to_kind(self.shared.kind)?;
        }
        let (done, answer) = mpsc::channel();
        self.queue.send(sequence::Message::Weights(decoder.weights, done)).map_err(|_| self.shared.stopped())?;
        answer.recv().unwrap_or_else(|_| Err(self.shared.stopped().into()))
    }

    /// Gives the cache's memory back to the system until the next request, on a CPU; a GPU keeps it. Waits until everything before is
    /// answered, and drops what was cached of prompts. For whoever needs memory between two batches of requests, as a trainer does.
    /// Blocks, so not for async code.
    ///
    /// # Errors
    /// The engine stopped.
    pub fn rest(&self) -> Result<(), RequestError> {
        self.give_back(backend::Rest::Cache)
    }

    /// As [`Self::rest`], and the weights' memory too: every request is refused until [`Self::set_weights`]. A trainer that makes new weights
    /// needs no old ones meanwhile.
    ///
    /// # Errors
    /// The engine stopped.
    pub fn unload(&self) -> Result<(), RequestError> {
        self.give_back(backend::Rest::Weights)
    }

    fn give_back(&self, rest: backend::Rest) -> Result<(), RequestError> {
        let (done, answer) = mpsc::channel();
        self.queue.send(sequence::Message::Rest(rest, done)).map_err(|_| self.shared.stopped())?;
        answer.recv().map_err(|_| self.shared.stopped())
    }

    async fn submit(&self, mut request: Request, stop: sequence::StopToken) -> Result<Completion, RequestError> {
        if let Some(format) = &request.format {
            request.max_new_tokens = format_tokens(format);
        }
        self.check(&request)?;
        if request.max_new_tokens == 0 {
            return Ok(Completion { tokens: Vec::new(), finish: FinishReason::Length, chances: Vec::new() });
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.shared.counters.waiting.fetch_add(1, Ordering::Relaxed);
        self.queue
            .send(sequence::Message::Request(sequence::Waiting { request, stop, reply }))
            .map_err(|_| self.shared.stopped())?;
        answer.await.unwrap_or_else(|_| Err(self.shared.stopped()))
    }

    /// Vocabulary size and positions of the loaded model, its own end tokens.
    pub fn config(&self) -> &DecoderConfig {
        &self.shared.config
    }

    /// Tokens of the longest sequence, prompt and answer: the model's positions, or fewer if the memory holds fewer.
    pub fn limit(&self) -> usize {
        self.shared.limit
    }

    /// Counters since start.
    pub fn stats(&self) -> EngineStats {
        let c = &self.shared.counters;
        EngineStats {
            prompt_tokens: c.prompt_tokens.load(Ordering::Relaxed),
            output_tokens: c.output_tokens.load(Ordering::Relaxed),
            completed: c.completed.load(Ordering::Relaxed),
            running: c.running.load(Ordering::Relaxed),
            waiting: c.waiting.load(Ordering::Relaxed),
        }
    }

    fn check(&self, request: &Request) -> Result<(), RequestError> {
        let (prompt, new) = (request.prefix.len() + request.prompt.len(), request.max_new_tokens);
        if prompt == 0 {
            return Err(RequestError::Empty);
        }
        if prompt.saturating_add(new) > self.shared.limit {
            return Err(RequestError::TooLong { prompt, new, limit: self.shared.limit });
        }
        let vocab = self.shared.config.vocab_size;
        let format = request.format.as_deref().unwrap_or_default();
        let mut choices = format.iter().filter_map(FormatStep::choice).peekable();
        if request.format.is_some() && choices.peek().is_none() || choices.any(|(ids, _)| ids.is_empty()) {
            return Err(RequestError::NoChoice);
        }
        let of_format = format.iter().flat_map(|step| step.ids().iter());
        match request.prefix.iter().chain(&request.prompt).chain(of_format).find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(RequestError::TokenOutOfRange { id, vocab }),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn stopped(&self) -> RequestError {
        let reason = self.stopped.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        RequestError::Stopped(reason.clone().unwrap_or_else(|| "its thread ended".to_owned()))
    }
}
