//! Token pairs to micro-batches: the loss mask, the order of the data, and the grouping by length that keeps padding low.
//! Pure; knows nothing of text, tensors or files. The order is a function of (seed, epoch), so a cursor is all that a
//! checkpoint needs.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Set on an id of an answer that is fed in without loss. No vocabulary reaches it.
pub const GIVEN: u32 = 1 << 31;

/// One example as token ids; the loss is on `answer`, which includes its end token. Ids with [`GIVEN`] are read, not learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Token ids that are fed in without loss.
    pub prompt: Vec<u32>,
    /// Token ids to learn, the end token last.
    pub answer: Vec<u32>,
}

impl Pair {
    /// Tokens that are fed in: all but the last.
    pub fn width(&self) -> usize {
        (self.prompt.len() + self.answer.len()).saturating_sub(1)
    }
}

/// Rows padded on the right to one width.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Number of rows.
    pub rows: usize,
    /// Input tokens of the longest row, which all are padded to.
    pub width: usize,
    /// [rows * width] input ids; padding is 0, which no real position can see.
    pub tokens: Vec<i64>,
    /// Flat positions (row * width + column) whose next token belongs to an answer.
    pub positions: Vec<i64>,
    /// The token that follows each of them.
    pub targets: Vec<i64>,
    /// Input tokens without padding.
    pub real: usize,
}

impl MicroBatch {
    /// Lays pairs out as rows. An empty prompt's first answer token cannot be predicted and is not counted.
    pub fn new<'a>(pairs: impl IntoIterator<Item = &'a Pair>) -> Self {
        let pairs: Vec<&Pair> = pairs.into_iter().filter(|p| p.width() > 0).collect();
        let width = pairs.iter().map(|p| p.width()).max().unwrap_or(0);
        let mut batch = Self {
            rows: pairs.len(),
            width,
            tokens: vec![0; pairs.len() * width],
            positions: Vec::new(),
            targets: Vec::new(),
            real: 0,
        };
        for (row, pair) in pairs.into_iter().enumerate() {
            let all: Vec<i64> = pair.prompt.iter().chain(&pair.answer).map(|&id| i64::from(id & !GIVEN)).collect();
            let learnt = |at: usize| at < pair.prompt.len() || pair.answer[at - pair.prompt.len()] & GIVEN == 0;
            let start = row * width;
            batch.tokens[start..start + all.len() - 1].copy_from_slice(&all[..all.len() - 1]);
            batch.real += all.len() - 1;
            for (target, &id) in all.iter().enumerate().skip(pair.prompt.len().max(1)).filter(|(at, _)| learnt(*at)) {
                batch.positions.push((start + target - 1) as i64);
                batch.targets.push(id);
            }
        }
        batch
    }
}

/// Where a run stands in its data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Passes over the data that are done.
    pub epoch: u64,
    /// Micro-batches of this epoch that are done.
    pub done: usize,
}

/// How an epoch is cut into micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grouping {
    /// Padded tokens of a micro-batch at most (a longer single row stands alone).
    pub micro_tokens: usize,
    /// Examples that are sorted by length together; larger means less padding, smaller means more mixing.
    pub window: usize,
}

/// The micro-batches of one epoch as indices into the examples: every example once.
///
/// Examples are shuffled, cut into windows, sorted by length inside a window, cut into micro-batches, and the micro-batches
/// of a window are shuffled again, so that an optimiser step sees short and long ones.
pub fn epoch_order(widths: &[usize], seed: u64, epoch: u64, grouping: Grouping) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..widths.len()).filter(|&i| widths[i] > 0).collect();
    order.shuffle(&mut rng);
    let mut batches = Vec::new();
    for window in order.chunks_mut(grouping.window.max(1)) {
        window.sort_by_key(|&i| widths[i]);
        let mut of_window: Vec<Vec<usize>> = Vec::new();
        for &i in window.iter() {
            // sorted: the new example is the widest of its micro-batch
            match of_window.last_mut() {
                Some(last) if (last.len() + 1) * widths[i] <= grouping.micro_tokens => last.push(i),
                _ => of_window.push(vec![i]),
            }
        }
        of_window.shuffle(&mut rng);
        batches.append(&mut of_window);
    }
    batches
}

/// Endless micro-batches over a set of pairs, from a cursor on.
#[derive(Debug)]
pub struct Stream<'a> {
    pairs: &'a [Pair],
    widths: Vec<usize>,
    seed: u64,
    grouping: Grouping,
    order: Vec<Vec<usize>>,
    cursor: Cursor,
}

impl<'a> Stream<'a> {
    /// Continues at `cursor`. `pairs` must hold at least one example of two tokens or more.
    pub fn new(pairs: &'a [Pair], seed: u64, grouping: Grouping, cursor: Cursor) -> Self {
        let widths: Vec<usize> = pairs.iter().map(Pair::width).collect();
        let order = epoch_order(&widths, seed, cursor.epoch, grouping);
        Self { pairs, widths, seed, grouping, order, cursor }
    }

    /// Where the next micro-batch stands.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next micro-batch; a new epoch begins by itself. None when there is no data at all.
    pub fn next_batch(&mut self) -> Option<MicroBatch> {
        if self.cursor.done >= self.order.len() {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, done: 0 };
            self.order = epoch_order(&self.widths, self.seed, self.cursor.epoch, self.grouping);
        }
        let indices = self.order.get(self.cursor.done)?;
        self.cursor.done += 1;
        Some(MicroBatch::new(indices.iter().map(|&i| &self.pairs[i])))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn pair(prompt: &[u32], answer: &[u32]) -> Pair {
        Pair { prompt: prompt.to_vec(), answer: answer.to_vec() }
    }

    #[test]
    fn answers_only() {
        let batch = MicroBatch::new(&[pair(&[7, 8], &[9, 2]), pair(&[5], &[2])]);
        assert_eq!((batch.rows, batch.width, batch.real), (2, 3, 4));
        assert_eq!(batch.tokens, [7, 8, 9, 5, 0, 0]);
        // 8 predicts 9, 9 predicts 2; in the second row 5 predicts 2
        assert_eq!(batch.positions, [1, 2, 3]);
        assert_eq!(batch.targets, [9, 2, 2]);
    }

    #[test]
    fn given_tokens_are_read_without_loss() {
        let batch = MicroBatch::new(&[pair(&[7], &[8 | GIVEN, 9, 4 | GIVEN, 5, 2])]);
        assert_eq!(batch.tokens, [7, 8, 9, 4, 5]);
        assert_eq!((batch.positions, batch.targets), (vec![1, 3, 4], vec![9, 5, 2]));
    }

    #[test]
    fn empty_prompt_and_single_token() {
        let batch = MicroBatch::new(&[pair(&[], &[4, 2]), pair(&[], &[2])]);
        assert_eq!((batch.rows, batch.positions, batch.targets), (1, vec![0], vec![2]));
    }

    #[test]
    fn an_epoch_holds_every_example_once_and_little_padding() {
        let widths: Vec<usize> = (0..3000).map(|i| 20 + (i * 7919) % 230).collect();
        let grouping = Grouping { micro_tokens: 2048, window: 1024 };
        let order = epoch_order(&widths, 3, 0, grouping);
        let mut seen: Vec<usize> = order.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..3000).collect::<Vec<_>>());
        let padded: usize = order.iter().map(|b| b.len() * b.iter().map(|&i| widths[i]).max().unwrap()).sum();
        assert!(order.iter().all(|b| b.len() * b.iter().map(|&i| widths[i]).max().unwrap() <= 2048));
        let real: usize = widths.iter().sum();
        assert!((padded as f64) < real as f64 * 1.05, "{padded} padded for {real}");
        assert_ne!(order, epoch_order(&widths, 3, 1, grouping), "epochs differ");
        assert_ne!(order, epoch_order(&widths, 4, 0, grouping), "seeds differ");
    }

    #[test]
    fn a_cursor_continues_where_it_stood() {
        let pairs: Vec<Pair> = (1..40).map(|i| pair(&[1, i], &vec![i; (i as usize) % 5 + 1])).collect();
        let grouping = Grouping { micro_tokens: 12, window: 16 };
        let mut whole = Stream::new(&pairs, 1, grouping, Cursor::default());
        for _ in 0..31 {
            whole.next_batch().unwrap();
        }
        let mut continued = Stream::new(&pairs, 1, grouping, whole.cursor());
        for _ in 0..40 {
            assert_eq!(whole.next_batch().unwrap(), continued.next_batch().unwrap());
        }
        assert!(whole.cursor().epoch > 0);
        assert!(Stream::new(&[], 1, grouping, Cursor::default()).next_batch().is_none());
    }
}
