//! Vectors for the tokens of whole texts: token ids in, vectors or best matches out. One OS thread owns a model; its arithmetic runs on
//! the process's shared threads. Requests that wait are taken together, equal texts are computed once, and texts lie end to end in a pass,
//! so nothing is padded; a GPU pads texts of like length ([`torch`]) and matches them itself, so that no vector leaves it. Knows nothing of
//! text, SQL or Arrow, nor what is made of the matches.
//!
//! Encoders are BERT, RoBERTa and DeBERTa v1 ([`packed`]), or the first blocks of a decoder ([`causal`]). Texts longer than the window
//! are read in overlapping windows ([`window`]).

mod causal;
mod heads;
mod load;
mod matching;
mod packed;
mod positions;
mod run;
mod sheet;
mod torch;
#[cfg(test)]
mod torch_tests;
mod window;

use super::{DeviceSpec, Precision};
use crate::models::encoder::config::EncoderConfig;
use anyhow::{Context, ensure};
use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

/// What config.json says of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// `bert`, `roberta`, `deberta`, `qwen3`, …
    pub family: String,
    /// Blocks.
    pub layers: usize,
    /// Width of a vector.
    pub hidden: usize,
    /// Token ids from 0 to below this are known.
    pub vocab: usize,
    /// Tokens of the longest sequence; None where positions are relative only.
    pub limit: Option<usize>,
    /// A decoder: a token's vector knows only what stands before it.
    pub causal: bool,
}

/// How an encoder runs.
#[derive(Debug, Clone)]
pub struct EncoderOptions {
    /// Where.
    pub device: DeviceSpec,
    /// In which number type.
    pub precision: Precision,
    /// Blocks to run: the vectors are the hidden states after that many. 0 (encoders only): the embeddings.
    pub layer: usize,
    /// Tokens before every window, such as `[CLS]`.
    pub before: Vec<u32>,
    /// Tokens after every window, such as `[SEP]`.
    pub after: Vec<u32>,
    /// Tokens that the model sees at once, those around the text included.
    pub window: usize,
    /// Tokens of one pass, unless a single window is longer.
    pub rows: usize,
    /// CPU threads; 0 means the process's shared ones.
    pub threads: usize,
}

impl EncoderOptions {
    /// Tokens of one pass that keep the matrix kernels busy and the activations in the caches.
    pub const ROWS: usize = 2048;
}

/// The tokens of a text, without those around it.
pub type Tokens = Arc<[u32]>;

/// For each token of a text, the largest cosine between its vector and a vector of the other text, the tokens around the texts being among
/// those it is compared with but not among those that have a result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Matches {
    /// One per token of the first text.
    pub first: Vec<f32>,
    /// One per token of the second text.
    pub second: Vec<f32>,
}

/// Vectors of a text: [before + tokens + after, width] of length one each; `width` is padded with zeros to a multiple of 32.
#[derive(Debug, Clone, Default)]
pub struct Vectors {
    /// Row-major.
    pub data: Vec<f32>,
    /// The length that each row had.
    pub lengths: Vec<f32>,
    /// Floats from row to row.
    pub width: usize,
}

/// A fault of one text or pair; the others go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EncodeError {
    /// A token that the model has no embedding for.
    #[error("token id {id} is outside the vocabulary of {vocab}; the tokenizer does not fit the model")]
    TokenOutOfRange {
        /// The token.
        id: u32,
        /// Ids from 0 to below this are known.
        vocab: usize,
    },
    /// NaN, infinite or zero vectors.
    #[error("the encoder produced vectors that are not numbers")]
    NotANumber,
    /// The device thread ended.
    #[error("the encoder stopped: {0}")]
    Stopped(String),
}

/// Something that computes hidden states.
pub(crate) trait Model: Send {
    /// Of the sequences, one after the other.
    fn states(&mut self, sequences: &[&[u32]]) -> anyhow::Result<States<'_>>;

    /// The model as one that matches its vectors where they are; None: they are matched on the CPU.
    fn resident(&mut self) -> Option<&mut dyn Resident> {
        None
    }
}

/// Best matches of every row that counts of two texts, the tokens around them included.
pub(crate) type Best = (Vec<f32>, Vec<f32>);

/// A model whose vectors stay on its device.
pub(crate) trait Resident {
    /// Tokens whose vectors are held at the same time; None: as many as on the CPU.
    fn held(&self) -> Option<usize>;

    /// For each pair of texts, numbered from 0 to below `texts`, the best matches; None where a vector is not made of numbers.
    fn matches(
        &mut self,
        pieces: &[Piece],
        texts: usize,
        pairs: &[(usize, usize)],
    ) -> anyhow::Result<Vec<Option<Best>>>;
}

/// One window of a text with the tokens around it, and which of its rows count.
#[derive(Debug)]
pub(crate) struct Piece {
    text: usize,
    ids: Vec<u32>,
    keeps: Range<usize>,
}

/// Hidden states [tokens, stride].
pub(crate) struct States<'a> {
    data: &'a [f32],
    stride: usize,
}

/// A handle to a running encoder; clones share it. The thread ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Encoder {
    queue: mpsc::Sender<run::Job>,
    shared: Arc<Shared>,
}

/// What handles and the thread share.
#[derive(Debug)]
struct Shared {
    info: Info,
    /// Tokens computed, windows overlapping and tokens around texts included.
    tokens: AtomicU64,
    /// Why the thread ended, once it has.
    stopped: Mutex<Option<String>>,
}

impl Shared {
    fn stopped(&self) -> EncodeError {
        let reason = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        EncodeError::Stopped(reason.clone().unwrap_or_else(|| "its thread ended".to_owned()))
    }
}

impl Encoder {
    /// What config.json says of a model directory.
    ///
    /// # Errors
    /// The file is missing or names a model that is not supported.
    pub fn info_of(dir: &Path) -> anyhow::Result<Info> {
        load::info(dir)
    }

    /// Loads a Hugging Face directory and starts the thread.
    ///
    /// # Errors
    /// Everything that can be known before work starts: files, architecture, layer, window, memory.
    pub fn start(dir: &Path, options: &EncoderOptions) -> anyhow::Result<Self> {
        Self::serve(load::load(dir, options)?, &dir.display().to_string(), options)
    }

    /// The same with random parameters, for measurements.
    ///
    /// # Errors
    /// As [`Encoder::start`].
    pub fn random(config: EncoderConfig, options: &EncoderOptions) -> anyhow::Result<Self> {
        Self::serve(load::random(config, options)?, "random encoder", options)
    }

    /// What a GPU runs, on the CPU.
    #[cfg(test)]
    pub(crate) fn start_torch(dir: &Path, options: &EncoderOptions) -> anyhow::Result<Self> {
        Self::serve(load::load_torch(dir, options)?, &dir.display().to_string(), options)
    }

    fn serve(loaded: load::Loaded, shown: &str, options: &EncoderOptions) -> anyhow::Result<Self> {
        let load::Loaded { model, info, pool } = loaded;
        let around = options.before.len() + options.after.len();
        ensure!(
            options.window > around,
            "{shown}: a window of {} tokens has no room for text beside {around} special tokens",
            options.window
        );
        if let Some(limit) = info.limit {
            ensure!(
                options.window <= limit,
                "{shown}: a window of {} tokens was asked for, but the model has positions for {limit}",
                options.window
            );
        }
        for &id in options.before.iter().chain(&options.after) {
            ensure!(
                (id as usize) < info.vocab,
                "{shown}: token id {id} is outside the vocabulary of {}; the tokenizer does not fit the model",
                info.vocab
            );
        }
        let shared = Arc::new(Shared { info, tokens: AtomicU64::new(0), stopped: Mutex::new(None) });
        let (queue, jobs) = mpsc::channel();
        let (of_thread, options) = (Arc::clone(&shared), options.clone());
        std::thread::Builder::new()
            .name("encoder".to_owned())
            .spawn(move || run::run(model, &options, &pool, &jobs, &of_thread))
            .context("cannot start the encoder thread")?;
        Ok(Self { queue, shared })
    }

    /// What the model is.
    pub fn info(&self) -> &Info {
        &self.shared.info
    }

    /// Tokens computed so far.
    pub fn tokens(&self) -> u64 {
        self.shared.tokens.load(Ordering::Relaxed)
    }

    /// Best matches of each pair, in order. Dropping the future cancels what has not begun.
    pub async fn matches(&self, pairs: Vec<(Tokens, Tokens)>) -> Vec<Result<Matches, EncodeError>> {
        let count = pairs.len();
        if count == 0 {
            return Vec::new();
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.ask(run::Job::Matches { pairs, reply }, answer, count).await
    }

    /// Vectors of each text, in order.
    pub async fn vectors(&self, texts: Vec<Tokens>) -> Vec<Result<Vectors, EncodeError>> {
        let count = texts.len();
        if count == 0 {
            return Vec::new();
        }
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.ask(run::Job::Vectors { texts, reply }, answer, count).await
    }

    async fn ask<T: Clone>(
        &self,
        job: run::Job,
        answer: tokio::sync::oneshot::Receiver<Vec<Result<T, EncodeError>>>,
        count: usize,
    ) -> Vec<Result<T, EncodeError>> {
        let answer = match self.queue.send(job) {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        answer.unwrap_or_else(|| vec![Err(self.shared.stopped()); count])
    }
}
