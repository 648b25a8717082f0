//! The copy curriculum: sequences of random tokens to repeat, longer as the model learns. A small decoder does not find out how
//! to copy from text alone in any reasonable time, and does in minutes from these; afterwards text pairs take a few steps.
//! Pure; every batch is a function of (seed, step, micro-batch), so there is no state to save but the [`Curriculum`].

use super::batch::{MicroBatch, Pair};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Tokens around a document and its answer, as the chat template puts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Before the prompt's text.
    pub before: Vec<u32>,
    /// Between the prompt's text and the answer.
    pub after: Vec<u32>,
    /// Ends the answer.
    pub end: u32,
}

impl Frame {
    /// Puts a prompt and an answer into the frame.
    pub fn pair(&self, prompt: &[u32], answer: &[u32]) -> Pair {
        let prompt = self.before.iter().chain(prompt).chain(&self.after).copied().collect();
        let answer = answer.iter().copied().chain([self.end]).collect();
        Pair { prompt, answer }
    }

    /// Tokens that the frame adds to an example.
    pub fn overhead(&self) -> usize {
        self.before.len() + self.after.len() + 1
    }
}

/// How long the sequences are, and when they grow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Curriculum {
    /// Longest sequence at present.
    pub length: usize,
    /// Running mean of the loss since the length last changed; None before the first step.
    pub running: Option<f32>,
    /// The last length has been learned.
    pub finished: bool,
}

/// Weight of the newest loss in the running mean.
const NEWEST: f32 = 0.1;

impl Curriculum {
    /// Begins with sequences of `length` tokens.
    pub fn new(length: usize) -> Self {
        Self { length, running: None, finished: false }
    }

    /// Takes in a step's mean loss: below `threshold` on average, the length doubles up to `longest`; below it there, the
    /// curriculum is finished.
    pub fn observe(&mut self, loss: f32, threshold: f32, longest: usize) {
        let running = self.running.map_or(loss, |mean| mean + NEWEST * (loss - mean));
        self.running = Some(running);
        if running >= threshold {
            return;
        }
        if self.length >= longest {
            self.finished = true;
        } else {
            self.length = (self.length * 2).min(longest);
            self.running = None;
        }
    }
}

/// One micro-batch of sequences of equal length (drawn between half the curriculum's length and the whole), about
/// `micro_tokens` in all. `ordinary` holds the ids that may be drawn: all but control tokens.
pub fn micro_batch(
    ordinary: &[u32],
    frame: &Frame,
    curriculum: &Curriculum,
    micro_tokens: usize,
    at: (u64, u64, u64),
) -> MicroBatch {
    let (seed, step, micro) = at;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step.wrapping_mul(4096).wrapping_add(micro));
    let length = rng.random_range((curriculum.length / 2).max(1)..=curriculum.length.max(1));
    let rows = (micro_tokens / (2 * length + frame.overhead())).max(1);
    let pairs: Vec<Pair> = (0..rows)
        .map(|_| {
            let tokens: Vec<u32> = (0..length).map(|_| ordinary[rng.random_range(0..ordinary.len())]).collect();
            frame.pair(&tokens, &tokens)
        })
        .collect();
    MicroBatch::new(&pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_below_the_threshold_only() {
        let mut curriculum = Curriculum::new(24);
        curriculum.observe(0.31, 0.3, 60);
        assert_eq!((curriculum.length, curriculum.finished), (24, false));
        // 0.31 + 0.1 * (0.2 - 0.31) = 0.299
        curriculum.observe(0.2, 0.3, 60);
        assert_eq!((curriculum.length, curriculum.running), (48, None));
        curriculum.observe(0.1, 0.3, 60);
        assert_eq!((curriculum.length, curriculum.finished), (60, false));
        curriculum.observe(0.1, 0.3, 60);
        assert_eq!((curriculum.length, curriculum.finished), (60, true));
    }

    #[test]
    fn batches_copy_ordinary_tokens() {
        let frame = Frame { before: vec![1], after: vec![2], end: 0 };
        let ordinary: Vec<u32> = (10..50).collect();
        let curriculum = Curriculum::new(24);
        let batch = micro_batch(&ordinary, &frame, &curriculum, 512, (7, 3, 1));
        let length = (batch.width - 2) / 2;
        assert!((12..=24).contains(&length));
        assert!(batch.rows * batch.width <= 512);
        for row in batch.tokens.chunks(batch.width) {
            assert_eq!((row[0], row[length + 1]), (1, 2));
            assert_eq!(row[1..=length], row[length + 2..]);
            assert!(row[1..=length].iter().all(|id| (10..50).contains(id)));
        }
        assert_eq!(batch.targets.len(), batch.rows * (length + 1));
        assert_eq!(batch, micro_batch(&ordinary, &frame, &curriculum, 512, (7, 3, 1)));
        assert_ne!(batch, micro_batch(&ordinary, &frame, &curriculum, 512, (7, 3, 2)));
    }
}
