//! BERTScore (arXiv 1904.09675; reference section 2.2): precision is the weighted mean, over the candidate's tokens, of the largest
//! cosine between that token's vector and a vector of the reference; recall the same the other way round; F1 their harmonic mean. Pure:
//! the cosines come from an encoder. Also which layer of a model the reference package takes, and inverse document frequencies.
//!
//! As in the package: special tokens weigh nothing but can be matched; a text without tokens gives 0 for all three; an F1 that is no number
//! is 0. Departure: with IDF, a text all of whose tokens weigh nothing gives 0 for its mean, where the package gives NaN.

use std::collections::{HashMap, HashSet};

/// The three numbers, raw or rescaled.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// How much of the candidate is in the reference.
    pub precision: f32,
    /// How much of the reference is in the candidate.
    pub recall: f32,
    /// Harmonic mean.
    pub f1: f32,
}

/// One text's tokens: the best cosine of each, and its weight; None: all weigh the same.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Best cosine of each token, special tokens left out.
    pub best: &'a [f32],
    /// As many weights.
    pub weights: Option<&'a [f32]>,
}

/// What random pairs of sentences score with a model and layer; rescaled scores are 0 there and still 1 at the top.
pub type Baseline = Score;

/// Raw scores of a pair.
pub fn bertscore(candidate: Side<'_>, reference: Side<'_>) -> Score {
    if candidate.best.is_empty() || reference.best.is_empty() {
        return Score::default();
    }
    let (precision, recall) = (mean(candidate), mean(reference));
    let f1 = 2.0 * precision * recall / (precision + recall);
    Score { precision, recall, f1: if f1.is_nan() { 0.0 } else { f1 } }
}

/// `Σ w · best / Σ w`
fn mean(side: Side<'_>) -> f32 {
    let weight = |i: usize| side.weights.map_or(1.0, |w| f64::from(w[i]));
    let total: f64 = (0..side.best.len()).map(weight).sum();
    if total == 0.0 {
        return 0.0;
    }
    let sum: f64 = side.best.iter().enumerate().map(|(i, &best)| weight(i) * f64::from(best)).sum();
    (sum / total) as f32
}

/// `(score - baseline) / (1 - baseline)`, each of the three.
pub fn rescale(score: Score, baseline: Baseline) -> Score {
    let one = |x: f32, b: f32| (x - b) / (1.0 - b);
    Score {
        precision: one(score.precision, baseline.precision),
        recall: one(score.recall, baseline.recall),
        f1: one(score.f1, baseline.f1),
    }
}

/// Inverse document frequencies over a set of references: `ln((N + 1) / (n + 1))` for a token in n of N texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Idf {
    weights: HashMap<u32, f32>,
    unseen: f32,
}

impl Idf {
    /// Counts each token once a text.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut counts: HashMap<u32, u64> = HashMap::new();
        let mut total = 0u64;
        for text in texts {
            total += 1;
            for id in text.iter().collect::<HashSet<_>>() {
                *counts.entry(*id).or_default() += 1;
            }
        }
        let weight = |n: u64| (((total + 1) as f64) / ((n + 1) as f64)).ln() as f32;
        Self { weights: counts.into_iter().map(|(id, n)| (id, weight(n))).collect(), unseen: weight(0) }
    }

    /// The weight of each token.
    pub fn of(&self, tokens: &[u32]) -> Vec<f32> {
        tokens.iter().map(|id| self.weights.get(id).copied().unwrap_or(self.unseen)).collect()
    }
}

/// Layers that the reference package (bert-score 0.3.13) takes: those that agree best with human judgement of translations (WMT16).
const LAYERS: &[(&str, usize)] = &[
    ("bert-base-uncased", 9),
    ("bert-large-uncased", 18),
    ("bert-base-cased-finetuned-mrpc", 9),
    ("bert-base-multilingual-cased", 9),
    ("bert-base-chinese", 8),
    ("roberta-base", 10),
    ("roberta-large", 17),
    ("roberta-large-mnli", 19),
    ("roberta-base-openai-detector", 7),
    ("roberta-large-openai-detector", 15),
    ("scibert_scivocab_uncased", 8),
    ("scibert_scivocab_cased", 9),
    ("distilroberta-base", 5),
    ("xlm-roberta-base", 9),
    ("xlm-roberta-large", 17),
    ("deberta-base", 9),
    ("deberta-base-mnli", 9),
    ("deberta-large", 16),
    ("deberta-large-mnli", 18),
    ("deberta-xlarge", 18),
    ("deberta-xlarge-mnli", 40),
    ("spanbert-base-cased", 8),
    ("spanbert-large-cased", 17),
    ("finbert", 10),
    ("bert-base-turkish-cased", 10),
    ("unsup-simcse-bert-base-uncased", 10),
    ("unsup-simcse-bert-large-uncased", 18),
    ("unsup-simcse-roberta-base", 8),
    ("unsup-simcse-roberta-large", 13),
    ("sup-simcse-bert-base-uncased", 10),
    ("sup-simcse-bert-large-uncased", 18),
    ("sup-simcse-roberta-base", 10),
    ("sup-simcse-roberta-large", 16),
];

/// The layer for a model: the package's where one of the names (organisation left out, case ignored) is in its table and the model has
/// that many, else three quarters of the depth, rounded up, which is about where the table's lie.
pub fn default_layer(names: &[&str], layers: usize) -> usize {
    let known = names.iter().find_map(|name| {
        let name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
        LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
    });
    known.filter(|layer| *layer <= layers).unwrap_or((3 * layers).div_ceil(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(best: &[f32]) -> Side<'_> {
        Side { best, weights: None }
    }

    #[test]
    fn means_and_their_harmonic_mean() {
        // P = (1 + 0.5) / 2, R = (1 + 0.5 + 0.3) / 3, F1 = 2 · 0.75 · 0.6 / 1.35
        let score = bertscore(side(&[1.0, 0.5]), side(&[1.0, 0.5, 0.3]));
        assert!((score.precision - 0.75).abs() < 1e-6 && (score.recall - 0.6).abs() < 1e-6);
        assert!((score.f1 - 0.666_666_7).abs() < 1e-6);
    }

    #[test]
    fn weights_move_the_mean() {
        // P = (3 · 1 + 1 · 0.2) / 4
        let candidate = Side { best: &[1.0, 0.2], weights: Some(&[3.0, 1.0]) };
        assert!((bertscore(candidate, side(&[1.0])).precision - 0.8).abs() < 1e-6);
        let weightless = Side { best: &[1.0], weights: Some(&[0.0]) };
        assert_eq!(bertscore(weightless, side(&[1.0])), Score { precision: 0.0, recall: 1.0, f1: 0.0 });
    }

    #[test]
    fn a_text_without_tokens_scores_nothing() {
        assert_eq!(bertscore(side(&[]), side(&[1.0])), Score::default());
        assert_eq!(bertscore(side(&[1.0]), side(&[])), Score::default());
        assert_eq!(bertscore(side(&[]), side(&[])), Score::default());
        assert_eq!(bertscore(side(&[0.5]), side(&[-0.5])).f1, f32::NEG_INFINITY);
        assert_eq!(bertscore(side(&[0.0]), side(&[0.0])).f1, 0.0, "0 / 0");
    }

    #[test]
    fn the_baseline_becomes_zero() {
        // The reference's own example: 0.65 raw is 0.3617 with layer 18 of deberta-large-mnli.
        let baseline = Score { precision: 0.453_582_4, recall: 0.453_625_1, f1: 0.451_730_2 };
        let scaled = rescale(Score { precision: 1.0, recall: 0.453_625_1, f1: 0.65 }, baseline);
        assert!((scaled.precision - 1.0).abs() < 1e-6 && scaled.recall.abs() < 1e-6);
        assert!((scaled.f1 - 0.3617).abs() < 1e-4);
    }

    #[test]
    fn rare_tokens_weigh_more() {
        let idf = Idf::new([&[1u32, 2, 2][..], &[1, 3], &[1]]);
        let weights = idf.of(&[1, 2, 3, 9]);
        let expected = [(4.0f32 / 4.0).ln(), (4.0f32 / 2.0).ln(), (4.0f32 / 2.0).ln(), 4.0f32.ln()];
        assert!(weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{weights:?}");
    }

    #[test]
    fn layers_are_the_packages_or_three_quarters() {
        assert_eq!(default_layer(&["microsoft/deberta-large-mnli"], 24), 18);
        assert_eq!(default_layer(&["mine", "FacebookAI/roberta-large"], 24), 17);
        assert_eq!(default_layer(&["bert-base-uncased"], 12), 9);
        assert_eq!(default_layer(&["nreimers/MiniLM-L6-H384-uncased"], 6), 5);
        assert_eq!(default_layer(&["roberta-large"], 4), 3, "a name alone does not make it that model");
        assert_eq!(default_layer(&[], 12), 9);
    }
}
