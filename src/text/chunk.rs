//! Cutting documents into chunks and joining the answers (paper section "inference"; reference/run_infer). Departures: see below.

/// Where a cut may fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// Exactly every `max_chars` characters, as the paper does; answers are joined with one space.
    Char,
    /// At the last line break (else sentence end, else space) within `max_chars`; answers are joined with what stood between.
    Line,
}

/// Consecutive pieces of a text; joining `text` with `separator` (which follows the piece) gives back the source for `Line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk<'a> {
    pub text: &'a str,
    pub separator: &'a str,
}

/// Cuts `text` into chunks of at most `max_chars` characters (Unicode scalar values). Empty text gives no chunk.
pub fn chunk(text: &str, max_chars: usize, boundary: Boundary) -> Vec<Chunk<'_>> {
    let _ = (text, max_chars, boundary);
    todo!()
}

/// Keeps the first and last half of `budget` tokens where there are more, "... " between, as the reference does.
/// Returns the ids and whether anything was cut.
pub fn truncate_middle(tokens: &[u32], budget: usize, ellipsis: &[u32]) -> (Vec<u32>, bool) {
    let _ = (tokens, budget, ellipsis);
    todo!()
}
