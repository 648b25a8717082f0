//! What the scheduler asks of a model on a device: one step over many sequences. Knows nothing of requests.

use super::Sampling;
use crate::models::weights::Weights;

/// New tokens of one sequence in a step. Their positions follow what the cache already holds.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    /// First row of the step's token list.
    pub first: usize,
    /// Number of tokens.
    pub rows: usize,
    /// Position of the first token: the number of cached positions before it.
    pub start: usize,
    /// The sequence's pages, enough for `start + rows` positions.
    pub pages: Vec<u32>,
}

/// One step.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// All new tokens, sequence after sequence.
    pub tokens: Vec<u32>,
    /// Which sequence each row belongs to.
    pub segments: Vec<Segment>,
    /// Rows whose logits are wanted, ascending.
    pub outputs: Vec<usize>,
    /// One an output: how its token is drawn on the device. None: the host draws, and wants the logits. All None where the
    /// backend does not draw ([`Backend::draws`]).
    pub draws: Vec<Option<Draw>>,
}

/// How one token is drawn from its row of logits.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// From which tokens.
    pub sampling: Sampling,
    /// The only source of chance. Plays no part at temperature 0.
    pub seed: u64,
}

/// The most that a step may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens.
    pub rows: usize,
    /// Rows with logits.
    pub outputs: usize,
}

/// What an engine can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The cache and a step's working space, until the next request.
    Cache,
    /// The weights as well, until new ones come.
    Weights,
}

/// A model on a device with its KV cache.
pub trait Backend: Send {
    /// Runs the step: writes the new positions' keys and values, draws what is to be drawn on the device, returns the logits of
    /// the other outputs.
    ///
    /// # Errors
    /// The device fails, e.g. runs out of memory; the cache then still holds what it held before the step.
    fn step(&mut self, batch: &Batch) -> anyhow::Result<Output<'_>>;

    /// Copies one page of all layers.
    ///
    /// # Errors
    /// The device fails.
    fn copy_page(&mut self, from: u32, to: u32) -> anyhow::Result<()>;

    /// Replaces the parameters. Names and shapes were checked. The cache holds what the old ones made.
    ///
    /// # Errors
    /// The device fails.
    fn set_weights(&mut self, weights: Weights) -> anyhow::Result<()>;

    /// Gives back memory that only steps need, where it can be had again at once. What the cache held is lost. With [`Rest::Weights`]
    /// [`Self::set_weights`] comes before the next step.
    fn rest(&mut self, _: Rest) {}

    /// Pages of the cache.
    fn pages(&self) -> usize;

    /// Type of the weights.
    fn kind(&self) -> tch::Kind;

    /// What a step may hold.
    fn limits(&self) -> Limits;

    /// Whether it draws tokens itself.
    fn draws(&self) -> bool {
        false
    }
}

/// What a step gives.
pub struct Output<'a> {
    /// Of the outputs that the host draws from, in order.
    pub logits: Logits<'a>,
    /// Of the others, in order. None: a logit is not a finite number.
    pub drawn: Vec<Option<u32>>,
}

/// Logits of some rows.
pub struct Logits<'a> {
    /// [rows, stride]; the first `vocab` of each row count.
    pub data: &'a [f32],
    /// Elements from row to row.
    pub stride: usize,
}
