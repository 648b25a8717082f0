//! What the scheduler asks of a model on a device: one step over many sequences. Knows nothing of requests.

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
}

/// The most that a step may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens.
    pub rows: usize,
    /// Rows with logits.
    pub outputs: usize,
}

/// A model on a device with its KV cache.
pub trait Backend: Send {
    /// Runs the step: writes the new positions' keys and values, returns logits [outputs, stride]; the first `vocab`
    /// of each row count.
    ///
    /// # Errors
    /// The device fails, e.g. runs out of memory; the cache then still holds what it held before the step.
    fn step(&mut self, batch: &Batch) -> anyhow::Result<Logits<'_>>;

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

    /// Pages of the cache.
    fn pages(&self) -> usize;

    /// What a step may hold.
    fn limits(&self) -> Limits;
}

/// Logits of the wanted rows.
pub struct Logits<'a> {
    /// [outputs, stride].
    pub data: &'a [f32],
    /// Elements from row to row.
    pub stride: usize,
}
