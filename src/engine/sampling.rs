//! Draws one token from a row of logits: temperature, then top-k, then nucleus, as transformers orders them, without
//! sorting the vocabulary. One random number a token, none when greedy.

use super::{
    Sampling,
    cpu::{isa::Vector, rows},
};
use rand::Rng;

/// The row holds something that is not a finite number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotANumber;

/// Scratch of one thread.
#[derive(Default)]
pub struct Sampler {
    /// exp((logit - max) / temperature), per token.
    weights: Vec<f32>,
    /// Candidates while a cut is searched.
    candidates: Vec<(f32, u32)>,
}

/// The kept tokens: those of a larger weight, and those of the same weight up to an id.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Cut {
    weight: f32,
    id: u32,
}

impl Cut {
    const ALL: Self = Self { weight: -1.0, id: 0 };

    fn keeps(self, weight: f32, id: usize) -> bool {
        weight > self.weight || weight == self.weight && id as u32 <= self.id
    }
}

impl Sampler {
    /// The next token. `rng` is advanced once if the temperature is above zero.
    ///
    /// # Errors
    /// A logit is NaN or infinite.
    pub fn draw(
        &mut self,
        vector: Vector,
        logits: &[f32],
        sampling: &Sampling,
        rng: &mut impl Rng,
    ) -> Result<u32, NotANumber> {
        // SAFETY: `vector` was detected on this processor.
        let high = unsafe { rows::peak(vector, logits) };
        if high.is_nan() {
            return Err(NotANumber);
        }
        if sampling.temperature <= 0.0 {
            let first = logits.iter().position(|&x| x == high).expect("the largest logit is one of them");
            return Ok(first as u32);
        }
        self.weights.resize(logits.len(), 0.0);
        // SAFETY: as above.
        unsafe { rows::exp(vector, logits, high, 1.0 / sampling.temperature, &mut self.weights) };
        let mut cut = Cut::ALL;
        if sampling.top_k > 0 && sampling.top_k < logits.len() {
            cut = self.top_k(sampling.top_k);
        }
        if sampling.top_p < 1.0 {
            cut = self.nucleus(sampling.top_p, cut);
        }
        Ok(self.pick(cut, rng.random::<f64>()))
    }

    /// The cut that keeps the `k` largest; ties go to the smaller id.
    fn top_k(&mut self, k: usize) -> Cut {
        self.candidates.clear();
        self.candidates.extend(self.weights.iter().zip(0..).map(|(&w, i)| (w, i)));
        let (_, &mut (weight, id), _) = self.candidates.select_nth_unstable_by(k - 1, descending);
        Cut { weight, id }
    }

    /// The cut that keeps the smallest set of largest weights whose mass reaches `top_p` of what `cut` keeps
    /// (arXiv 1904.09751), at least one token. Partitions around a pivot and goes on in the side where the mass is reached.
    fn nucleus(&mut self, top_p: f32, cut: Cut) -> Cut {
        let kept = self.weights.iter().enumerate().filter(|&(i, &w)| cut.keeps(w, i));
        let (total, count) = kept.fold((0f64, 0), |(sum, n), (_, &w)| (sum + f64::from(w), n + 1));
        let mut wanted = total * f64::from(top_p.max(0.0));
        // Tokens under this weight have together less than 1 - top_p of the mass: none of them is in the nucleus.
        let least = ((total - wanted) / count as f64) as f32 * 0.999;
        self.candidates.clear();
        let possible = self.weights.iter().enumerate().filter(|&(i, &w)| w >= least && cut.keeps(w, i));
        self.candidates.extend(possible.map(|(i, &w)| (w, i as u32)));
        let (mut from, mut to) = (0, self.candidates.len());
        while to - from > 32 {
            let middle = (to - from) / 2;
            let (left, _, _) = self.candidates[from..to].select_nth_unstable_by(middle, descending);
            let mass: f64 = left.iter().map(|&(w, _)| f64::from(w)).sum();
            if mass >= wanted {
                to = from + middle;
            } else {
                wanted -= mass;
                from += middle;
            }
        }
        let rest = &mut self.candidates[from..to];
        rest.sort_unstable_by(descending);
        for &(weight, id) in &*rest {
            wanted -= f64::from(weight);
            if wanted <= 0.0 {
                return Cut { weight, id };
            }
        }
        rest.last().map_or(Cut::ALL, |&(weight, id)| Cut { weight, id })
    }

    /// The token at share `u` in [0, 1) of the kept mass, in order of ids.
    fn pick(&self, cut: Cut, u: f64) -> u32 {
        let kept = || self.weights.iter().enumerate().filter(|&(i, &w)| w > 0.0 && cut.keeps(w, i));
        let mut left = u * kept().map(|(_, &w)| f64::from(w)).sum::<f64>();
        let mut last = 0;
        for (id, &weight) in kept() {
            last = id as u32;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// Larger weights first, then smaller ids: a total order, so every cut is unique.
fn descending(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn sampling(temperature: f32, top_p: f32, top_k: usize) -> Sampling {
        Sampling { temperature, top_p, top_k }
    }

    /// Shares of 20,000 draws.
    fn shares(logits: &[f32], how: &Sampling) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = vec![0f64; logits.len()];
        let mut sampler = Sampler::default();
        for _ in 0..20_000 {
            counts[sampler.draw(Vector::Portable, logits, how, &mut rng).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn close(found: &[f64], expected: &[f64]) {
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            // Five standard deviations of 20,000 draws at the most.
            assert!((f - e).abs() < 0.018, "token {i}: {f} instead of {e}");
            assert!(*e > 0.0 || *f == 0.0, "token {i} is cut off and was drawn");
        }
    }

    /// ln of the given probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln() + 3.0).collect()
    }

    #[test]
    fn greedy_takes_the_first_largest() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let found = Sampler::default().draw(Vector::Portable, &[0.0, 2.0, 2.0, -1.0], &sampling(0.0, 0.9, 5), &mut rng);
        assert_eq!(found, Ok(1));
    }

    #[test]
    fn temperature_reshapes() {
        // p ∝ (0.5, 0.3, 0.2)^(1/0.5) = (0.25, 0.09, 0.04) / 0.38
        let found = shares(&logits(&[0.5, 0.3, 0.2]), &sampling(0.5, 1.0, 0));
        close(&found, &[0.6579, 0.2368, 0.1053]);
    }

    #[test]
    fn top_k_then_nucleus() {
        let row = logits(&[0.1, 0.4, 0.05, 0.3, 0.15]);
        close(&shares(&row, &sampling(1.0, 1.0, 2)), &[0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7, 0.0]);
        // 0.4 + 0.3 < 0.8 ≤ 0.4 + 0.3 + 0.15: three tokens stay.
        close(&shares(&row, &sampling(1.0, 0.8, 0)), &[0.0, 0.4 / 0.85, 0.0, 0.3 / 0.85, 0.15 / 0.85]);
        // Of the two that top-k leaves, the first has 0.57 of the mass.
        close(&shares(&row, &sampling(1.0, 0.5, 2)), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn ties_at_the_cut_go_to_smaller_ids() {
        close(&shares(&[1.0; 4], &sampling(1.0, 1.0, 2)), &[0.5, 0.5, 0.0, 0.0]);
        close(&shares(&[1.0; 4], &sampling(1.0, 0.6, 0)), &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0]);
    }

    #[test]
    fn the_nucleus_of_a_large_row_is_that_of_a_full_sort() {
        use rand::Rng;
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for spread in [0.1f32, 1.0, 5.0, 20.0] {
            let row: Vec<f32> = (0..5000).map(|_| rng.random::<f32>() * spread).collect();
            for top_p in [0.01f32, 0.5, 0.9, 0.999] {
                let mut sampler =
                    Sampler { weights: row.iter().map(|x| (x - spread).exp()).collect(), candidates: vec![] };
                let cut = sampler.nucleus(top_p, Cut::ALL);
                let mut sorted: Vec<(f32, u32)> = sampler.weights.iter().zip(0..).map(|(&w, i)| (w, i)).collect();
                sorted.sort_by(descending);
                let total: f64 = sorted.iter().map(|x| f64::from(x.0)).sum();
                let mut mass = 0.0;
                let last = sorted.iter().position(|x| {
                    mass += f64::from(x.0);
                    mass >= total * f64::from(top_p)
                });
                let kept = sampler.weights.iter().enumerate().filter(|&(i, &w)| cut.keeps(w, i)).count();
                let expected = last.unwrap() + 1;
                assert!(kept.abs_diff(expected) <= 1, "spread {spread}, top_p {top_p}: {kept} instead of {expected}");
            }
        }
    }

    #[test]
    fn refuses_what_is_not_a_number() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = vec![0.0; 40];
            row[35] = bad;
            for temperature in [0.0, 1.0] {
                let found = Sampler::default().draw(Vector::Portable, &row, &sampling(temperature, 0.9, 0), &mut rng);
                assert_eq!(found, Err(NotANumber));
            }
        }
    }

    #[test]
    fn all_instruction_sets_draw_alike() {
        use rand::Rng;
        let vector = crate::engine::cpu::isa::Isa::detect().vector;
        let mut noise = ChaCha8Rng::seed_from_u64(3);
        let row: Vec<f32> = (0..777).map(|_| noise.random::<f32>() * 8.0).collect();
        for seed in 0..50 {
            let draw = |vector| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                Sampler::default().draw(vector, &row, &sampling(0.8, 0.9, 300), &mut rng).unwrap()
            };
            assert_eq!(draw(vector), draw(Vector::Portable));
        }
    }
}
