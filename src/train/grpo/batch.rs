//! Completions of a step to forward passes: which rows are fed, which predict what, and the grouping that computes a prompt
//! once for all its completions. Also the order of prompts and the seeds of samples. Pure; knows nothing of tensors.

use crate::models::packed::Tree;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// One completion to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Its prompt's index in the step; completions of a prompt stand behind one another.
    pub prompt: usize,
    /// Its tokens, the end token included; at least one.
    pub tokens: Vec<u32>,
    /// See [`super::advantage`].
    pub advantage: f64,
    /// The loss batch that it is in.
    pub batch: usize,
    /// Where its drawn tokens stand, if not all were: the others were given, and count for nothing.
    pub drawn: Option<Arc<[usize]>>,
    /// Left out of the loss (cut off, where that is asked for); still counted by the normaliser.
    pub masked: bool,
}

impl Example {
    /// Tokens that the loss is taken over.
    pub fn counted(&self) -> usize {
        self.drawn.as_ref().map_or(self.tokens.len(), |drawn| drawn.len())
    }
}

/// One forward and backward pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Micro {
    /// Input ids of all rows.
    pub inputs: Vec<i64>,
    /// How the rows hang together.
    pub trees: Vec<Tree>,
    /// Rows that predict a drawn token, completion by completion.
    pub positions: Vec<i64>,
    /// The tokens that they predict.
    pub targets: Vec<i64>,
    /// Which example each completion is, with its number of drawn tokens; in the order of `targets`.
    pub examples: Vec<(usize, usize)>,
}

impl Micro {
    fn add(&mut self, prompt: &[u32], examples: &[(usize, &Example)]) {
        let root = self.inputs.len();
        self.inputs.extend(prompt.iter().map(|&id| i64::from(id)));
        let mut branches = Vec::with_capacity(examples.len());
        for (index, example) in examples {
            let tokens = &example.tokens;
            // The first token is predicted by the prompt's last row, each further one by the token before it.
            let (last, own) = (root + prompt.len() - 1, self.inputs.len());
            let mut predict = |at: usize| {
                self.positions.push(if at == 0 { last } else { own + at - 1 } as i64);
                self.targets.push(i64::from(tokens[at]));
            };
            match &example.drawn {
                Some(drawn) => drawn.iter().for_each(|&at| predict(at)),
                None => (0..tokens.len()).for_each(predict),
            }
            self.inputs.extend(tokens[..tokens.len() - 1].iter().map(|&id| i64::from(id)));
            self.examples.push((*index, example.counted()));
            branches.push(tokens.len() - 1);
        }
        self.trees.push(Tree { prompt: prompt.len(), branches });
    }
}

/// Cuts the examples into passes of about `rows` rows at most (a longer single completion stands alone). A prompt is fed once
/// for those of its completions that are in the same pass, so they stay together where a pass holds them all. `prompts` are at least
/// one token long.
pub fn micro_batches(prompts: &[&[u32]], examples: &[Example], rows: usize) -> Vec<Micro> {
    let mut micros: Vec<Micro> = Vec::new();
    let mut current = Micro::default();
    let mut start = 0;
    while start < examples.len() {
        let prompt = prompts[examples[start].prompt];
        let room = rows.saturating_sub(current.inputs.len());
        let same = || examples[start..].iter().take_while(|e| e.prompt == examples[start].prompt);
        let all: usize = prompt.len() + same().map(|e| e.tokens.len() - 1).sum::<usize>();
        let apart = all > room && all <= rows;
        let mut taken = 0;
        let mut used = prompt.len();
        for example in same() {
            used += example.tokens.len() - 1;
            if apart || used > room && !(taken == 0 && current.inputs.is_empty()) {
                break;
            }
            taken += 1;
        }
        if taken == 0 {
            micros.push(std::mem::take(&mut current));
            continue;
        }
        let part: Vec<(usize, &Example)> = (start..start + taken).map(|i| (i, &examples[i])).collect();
        current.add(prompt, &part);
        start += taken;
    }
    if !current.inputs.is_empty() {
        micros.push(current);
    }
    micros
}

/// The prompts of step `step` (from 0) as indices below `prompts`, `count` of them: pass after pass over all prompts, each
/// pass in an order of its own. A function of the seed, so that nothing of it needs to be in a checkpoint.
pub fn prompts_of_step(prompts: usize, count: usize, seed: u64, step: u64) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(count);
    let mut order: Option<(u64, Vec<usize>)> = None;
    for place in step * count as u64..(step + 1) * count as u64 {
        let (epoch, at) = (place / prompts as u64, (place % prompts as u64) as usize);
        if order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            order = Some((epoch, shuffled(prompts, seed, epoch)));
        }
        chosen.extend(order.as_ref().map(|(_, order)| order[at]));
    }
    chosen
}

/// 0..n in an order that depends on seed and stream.
pub fn shuffled(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut rng);
    order
}

/// Which loss batch each of `n` completions is in: `batches` of equal size (where that divides), drawn by lot for each step.
pub fn loss_batches(n: usize, batches: usize, seed: u64, step: u64) -> Vec<usize> {
    let mut batch_of = vec![0; n];
    // A stream of its own: epochs of prompts count up from 0.
    for (place, index) in shuffled(n, seed, u64::MAX - step).into_iter().enumerate() {
        batch_of[index] = place * batches / n.max(1);
    }
    batch_of
}

/// Seed of one sample's random stream.
pub fn sample_seed(seed: u64, step: u64, prompt_id: &str, sample: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"grpo");
    for number in [seed, step, sample as u64] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(prompt_id.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(prompt: usize, tokens: &[u32]) -> Example {
        Example { prompt, tokens: tokens.to_vec(), advantage: 0.0, batch: 0, drawn: None, masked: false }
    }

    #[test]
    fn rows_and_what_they_predict() {
        let prompts: [&[u32]; 2] = [&[5, 6], &[7]];
        let examples = [example(0, &[8, 9, 1]), example(0, &[1]), example(1, &[4, 1])];
        let micros = micro_batches(&prompts, &examples, 100);
        assert_eq!(micros.len(), 1);
        let micro = &micros[0];
        assert_eq!(micro.inputs, [5, 6, 8, 9, 7, 4]);
        assert_eq!(micro.trees, [Tree { prompt: 2, branches: vec![2, 0] }, Tree { prompt: 1, branches: vec![1] }]);
        // 6 predicts 8, 8 predicts 9, 9 predicts 1; 6 predicts 1; 7 predicts 4, 4 predicts 1
        assert_eq!(micro.positions, [1, 2, 3, 1, 4, 5]);
        assert_eq!(micro.targets, [8, 9, 1, 1, 4, 1]);
        assert_eq!(micro.examples, [(0, 3), (1, 1), (2, 2)]);
    }

    #[test]
    fn what_was_given_predicts_nothing() {
        let given = Example { drawn: Some([0, 3].into()), ..example(0, &[8, 2, 2, 9]) };
        let micro = &micro_batches(&[&[5, 6]], &[example(0, &[4]), given], 100)[0];
        assert_eq!(micro.inputs, [5, 6, 8, 2, 2]);
        assert_eq!(micro.positions, [1, 1, 4]);
        assert_eq!(micro.targets, [4, 8, 9]);
        assert_eq!(micro.examples, [(0, 1), (1, 2)]);
    }

    #[test]
    fn passes_hold_every_completion_once() {
        let prompts: Vec<Vec<u32>> = (0..9).map(|i| vec![1; 3 + i]).collect();
        let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let examples: Vec<Example> = (0..36).map(|i| example(i / 4, &vec![2; 1 + (i * 7) % 11])).collect();
        for rows in [1, 10, 25, 60, 10_000] {
            let micros = micro_batches(&slices, &examples, rows);
            let seen: Vec<usize> = micros.iter().flat_map(|m| m.examples.iter().map(|e| e.0)).collect();
            assert_eq!(seen, (0..36).collect::<Vec<_>>(), "rows {rows}");
            assert!(micros.iter().all(|m| m.inputs.len() <= rows || m.examples.len() == 1), "rows {rows}");
            assert!(micros.iter().all(|m| m.inputs.len() == m.trees.iter().map(Tree::rows).sum::<usize>()));
        }
    }

    #[test]
    fn completions_of_a_prompt_stay_together_where_they_fit() {
        let prompts: [&[u32]; 3] = [&[5; 4], &[6; 4], &[7; 40]];
        let examples: Vec<Example> = (0..9).map(|i| example(i / 3, &[2; 5])).collect();
        let groups = |rows| -> Vec<Vec<usize>> {
            micro_batches(&prompts, &examples, rows).iter().map(|m| m.examples.iter().map(|e| e.0).collect()).collect()
        };
        // 16 rows each, and 52 for the last prompt's.
        assert_eq!(groups(31), [vec![0, 1, 2], vec![3, 4, 5], vec![6], vec![7], vec![8]]);
        assert_eq!(groups(32), [vec![0, 1, 2, 3, 4, 5], vec![6], vec![7], vec![8]]);
        assert_eq!(groups(48), [vec![0, 1, 2, 3, 4, 5], vec![6, 7], vec![8]]);
        assert_eq!(groups(84), [vec![0, 1, 2, 3, 4, 5, 6, 7, 8]]);
    }

    #[test]
    fn prompts_come_round_once_an_epoch() {
        let steps: Vec<usize> = (0..5).flat_map(|step| prompts_of_step(10, 4, 3, step)).collect();
        let sorted = |part: &[usize]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part
        };
        assert_eq!(sorted(&steps[..10]), (0..10).collect::<Vec<_>>());
        assert_eq!(sorted(&steps[10..]), (0..10).collect::<Vec<_>>());
        assert_ne!(steps[..10], steps[10..]);
        assert_eq!(prompts_of_step(1, 3, 3, 7), [0, 0, 0]);
    }

    #[test]
    fn loss_batches_are_equal_and_differ_by_step() {
        let one = loss_batches(24, 3, 5, 0);
        assert!((0..3).all(|b| one.iter().filter(|&&x| x == b).count() == 8));
        assert_ne!(one, loss_batches(24, 3, 5, 1));
        assert_eq!(one, loss_batches(24, 3, 5, 0));
        assert_eq!(loss_batches(3, 3, 5, 0).iter().sum::<usize>(), 3);
    }

    #[test]
    fn seeds_differ_by_everything() {
        let one = sample_seed(1, 2, "a", 3);
        let others = [
            sample_seed(2, 2, "a", 3),
            sample_seed(1, 3, "a", 3),
            sample_seed(1, 2, "b", 3),
            sample_seed(1, 2, "a", 4),
        ];
        assert!(!others.contains(&one));
        assert_eq!(one, sample_seed(1, 2, "a", 3));
    }
}
