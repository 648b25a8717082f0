//! The combined reward of a rephrasing (reference section 2): 3 · DataMan difference + BERTScore ≥ 0.65 + structure + length ≤ 1.25 + format.
//! Pure: what was measured goes in, the parts and their total come out. How each part is measured is not known here.
//!
//! A rephrasing that failed is an empty text. As the published code has it ([`EmptyRule::Score`]) it goes through all scorers: the length is
//! within the limit (1), BERTScore is 0, DataMan and the structure judge say what they say of an empty text, the format is missing (0). So
//! a model may learn to answer with nothing where that scores better than a poor rephrasing; [`EmptyRule::Lowest`] gives it the lowest
//! value of every part instead, which no text falls below.
//!
//! Departures from the paper: it speaks of four parts, its code has the fifth (format); see [`FormatRule`] for how that is judged here.

use serde::{Deserialize, Serialize};

/// The lowest DataMan score.
const LOWEST_SCORE: f64 = 1.0;

/// The section `rewards:` of a pipeline. Defaults are the paper's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardConfig {
    /// Quality: the overall DataMan score (1 to 5) of the rephrasing less that of the original.
    pub dataman: DatamanPart,
    /// Meaning: whether BERTScore's F1 reaches a threshold.
    pub bertscore: BertscorePart,
    /// Whether the structure was kept.
    pub structure: StructurePart,
    /// Whether the rephrasing is not much longer than the original.
    pub length: LengthPart,
    /// Whether the answer has the form that was asked for.
    pub format: FormatPart,
    /// What an empty rephrasing is worth.
    pub empty: EmptyRule,
}

/// Quality.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatamanPart {
    /// Whether it is measured at all. Off: the part is NULL and no model is needed.
    pub enabled: bool,
    /// Factor in the total; with 0 it is measured and not counted. Paper: 3.
    pub weight: f64,
    /// Entry of `models:` that speaks the DataMan protocol.
    pub model: String,
}

/// Meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BertscorePart {
    /// Whether it is measured at all.
    pub enabled: bool,
    /// Factor in the total; with 0 it is measured and not counted. Paper: 1.
    pub weight: f64,
    /// Entry of `models:` of kind `encoder`.
    pub model: String,
    /// Least F1 that counts as the same meaning. Paper: 0.65 with deberta-large-mnli; another encoder needs its own.
    pub threshold: f64,
}

/// Structure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StructurePart {
    /// Whether it is measured at all.
    pub enabled: bool,
    /// Factor in the total; with 0 it is measured and not counted. Paper: 1.
    pub weight: f64,
    /// Entry of `models:` that judges. Not given: the entry `structure` where there is one, else the model-free form.
    pub model: Option<String>,
}

/// Length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LengthPart {
    /// Whether it is measured at all.
    pub enabled: bool,
    /// Factor in the total; with 0 it is measured and not counted. Paper: 1.
    pub weight: f64,
    /// Characters of the rephrasing per character of the original at most. Paper: 1.25.
    pub max_ratio: f64,
}

/// Form of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FormatPart {
    /// Whether it is measured at all.
    pub enabled: bool,
    /// Factor in the total; with 0 it is measured and not counted. Published code: 1; the paper does not name it.
    pub weight: f64,
    /// What counts as the right form.
    pub rule: FormatRule,
}

/// What counts as the right form of an answer. A text without its answer (a table's column) is taken for a rightly formed one if it is not
/// empty: it was extracted from one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatRule {
    /// The answer begins with the marker, a think block before it aside, and holds it once. With an empty marker: the answer is not empty.
    #[default]
    Marker,
    /// As the published code: `<think>` on a line of its own at the start, later `</think>`, an empty line and the marker. Models that do not
    /// think, and models whose chat template closes the think block beforehand (as this program asks for), never fulfil it.
    ThinkBlock,
}

/// What an empty rephrasing is worth; see the top of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyRule {
    /// Whatever the scorers say of an empty text (the published code).
    #[default]
    Score,
    /// The lowest value of every part.
    Lowest,
}

impl Default for DatamanPart {
    fn default() -> Self {
        Self { enabled: true, weight: 3.0, model: "dataman".to_owned() }
    }
}
impl Default for BertscorePart {
    fn default() -> Self {
        Self { enabled: true, weight: 1.0, model: "bertscore".to_owned(), threshold: 0.65 }
    }
}
impl Default for StructurePart {
    fn default() -> Self {
        Self { enabled: true, weight: 1.0, model: None }
    }
}
impl Default for LengthPart {
    fn default() -> Self {
        Self { enabled: true, weight: 1.0, max_ratio: 1.25 }
    }
}
impl Default for FormatPart {
    fn default() -> Self {
        Self { enabled: true, weight: 1.0, rule: FormatRule::default() }
    }
}

/// A model that a part of the reward uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartModel {
    /// The part.
    pub part: &'static str,
    /// Entry of `models:`.
    pub name: String,
    /// The part can do without it.
    pub optional: bool,
}

/// What was measured on a pair; None where the part is off.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measures {
    /// Overall DataMan score of the original, 1 to 5.
    pub original_dataman: Option<f64>,
    /// Overall DataMan score of the rephrasing, 1 to 5.
    pub rephrased_dataman: Option<f64>,
    /// BERTScore's F1.
    pub f1: Option<f64>,
    /// Whether the structure was kept.
    pub structure: Option<bool>,
    /// Whether the answer has the right form.
    pub format: Option<bool>,
    /// Characters of the original.
    pub original_chars: usize,
    /// Characters of the rephrasing; 0 makes it an empty one.
    pub rephrased_chars: usize,
}

/// The parts before their weights, None where one is off, and the weighted total.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parts {
    /// DataMan difference, −4 to 4.
    pub dataman: Option<f64>,
    /// 0 or 1.
    pub bertscore: Option<f64>,
    /// 0 or 1.
    pub structure: Option<f64>,
    /// 0 or 1.
    pub length: Option<f64>,
    /// 0 or 1.
    pub format: Option<f64>,
    /// Σ weight · part over the parts that are on.
    pub total: f64,
}

impl RewardConfig {
    /// The parts and the total of what was measured. A part that is off is left out whatever was measured.
    pub fn combine(&self, m: &Measures) -> Parts {
        let lowest = m.rephrased_chars == 0 && self.empty == EmptyRule::Lowest;
        let flag = |value: bool| if value && !lowest { 1.0 } else { 0.0 };
        let rephrased = if lowest { Some(LOWEST_SCORE) } else { m.rephrased_dataman };
        let difference = rephrased.zip(m.original_dataman).map(|(after, before)| after - before);
        let fits = m.rephrased_chars as f64 <= self.length.max_ratio * m.original_chars as f64;
        let mut parts = Parts {
            dataman: difference.filter(|_| self.dataman.enabled),
            bertscore: self.bertscore.enabled.then(|| flag(m.f1.is_some_and(|f1| f1 >= self.bertscore.threshold))),
            structure: self.structure.enabled.then(|| flag(m.structure == Some(true))),
            length: self.length.enabled.then(|| flag(fits)),
            format: self.format.enabled.then(|| flag(m.format == Some(true))),
            total: 0.0,
        };
        parts.total = [
            (parts.dataman, self.dataman.weight),
            (parts.bertscore, self.bertscore.weight),
            (parts.structure, self.structure.weight),
            (parts.length, self.length.weight),
            (parts.format, self.format.weight),
        ]
        .into_iter()
        .map(|(part, weight)| part.unwrap_or(0.0) * weight)
        .sum();
        parts
    }

    /// The models that the parts that are on use.
    pub fn models(&self) -> Vec<PartModel> {
        let mut models = Vec::new();
        if self.dataman.enabled {
            models.push(PartModel { part: "dataman", name: self.dataman.model.clone(), optional: false });
        }
        if self.bertscore.enabled {
            models.push(PartModel { part: "bertscore", name: self.bertscore.model.clone(), optional: false });
        }
        if self.structure.enabled {
            let name = self.structure.model.clone().unwrap_or_else(|| "structure".to_owned());
            models.push(PartModel { part: "structure", name, optional: self.structure.model.is_none() });
        }
        models
    }

    /// Whether the scorers need to see a rephrasing of that many characters.
    pub fn scores(&self, rephrased_chars: usize) -> bool {
        rephrased_chars > 0 || self.empty == EmptyRule::Score
    }

    /// Faults of the numbers, for whoever reads the section.
    pub fn faults(&self) -> Vec<String> {
        let weights = [
            ("dataman", self.dataman.weight),
            ("bertscore", self.bertscore.weight),
            ("structure", self.structure.weight),
            ("length", self.length.weight),
            ("format", self.format.weight),
        ];
        let weights = weights.into_iter().filter(|(_, weight)| !weight.is_finite() || *weight < 0.0);
        let mut faults: Vec<String> =
            weights.map(|(part, weight)| format!("`{part}.weight` must be 0 or more, not {weight}")).collect();
        if !(-1.0..=1.0).contains(&self.bertscore.threshold) {
            faults.push(format!("`bertscore.threshold` must be from -1 to 1, not {}", self.bertscore.threshold));
        }
        if !self.length.max_ratio.is_finite() || self.length.max_ratio <= 0.0 {
            faults.push(format!("`length.max_ratio` must be above 0, not {}", self.length.max_ratio));
        }
        faults
    }
}

/// Whether a raw answer has the form that was asked for.
pub fn well_formed(answer: &str, marker: &str, rule: FormatRule) -> bool {
    match rule {
        FormatRule::ThinkBlock => {
            let Some(rest) = answer.strip_prefix("<think>\n") else { return false };
            rest.contains(&format!("\n</think>\n\n{marker}"))
                // The block may be empty: its two line ends are then one.
                || rest.starts_with(&format!("</think>\n\n{marker}"))
        }
        FormatRule::Marker => {
            let spoken = answer.rsplit_once("</think>").map_or(answer, |(_, after)| after).trim();
            if marker.is_empty() {
                return !spoken.is_empty();
            }
            spoken.starts_with(marker) && spoken.matches(marker).count() == 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Measures {
        Measures {
            original_dataman: Some(3.0),
            rephrased_dataman: Some(5.0),
            f1: Some(0.65),
            structure: Some(true),
            format: Some(true),
            original_chars: 100,
            rephrased_chars: 125,
        }
    }

    #[test]
    fn weights_and_thresholds_are_the_papers() {
        let config = RewardConfig::default();
        let parts = config.combine(&good());
        assert_eq!(parts.dataman, Some(2.0));
        assert_eq!([parts.bertscore, parts.structure, parts.length, parts.format], [Some(1.0); 4]);
        assert!((parts.total - 10.0).abs() < 1e-12, "3 · 2 + 1 + 1 + 1 + 1");
        let poor = Measures {
            rephrased_dataman: Some(2.0),
            f1: Some(0.649_999),
            structure: Some(false),
            format: Some(false),
            rephrased_chars: 126,
            ..good()
        };
        let parts = config.combine(&poor);
        assert_eq!([parts.bertscore, parts.structure, parts.length, parts.format], [Some(0.0); 4]);
        assert!((parts.total + 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_part_that_is_off_is_absent_and_one_of_weight_0_is_seen_but_not_counted() {
        let mut config = RewardConfig::default();
        config.dataman.enabled = false;
        config.structure.weight = 0.0;
        let parts = config.combine(&good());
        assert_eq!((parts.dataman, parts.structure), (None, Some(1.0)));
        assert!((parts.total - 3.0).abs() < 1e-12);
    }

    #[test]
    fn an_empty_rephrasing_is_scored_or_lowest() {
        let empty = Measures {
            rephrased_dataman: Some(2.0),
            f1: Some(0.0),
            structure: Some(false),
            format: Some(false),
            rephrased_chars: 0,
            ..good()
        };
        let mut config = RewardConfig::default();
        let parts = config.combine(&empty);
        assert_eq!((parts.dataman, parts.length), (Some(-1.0), Some(1.0)));
        assert!((parts.total + 2.0).abs() < 1e-12, "3 · (2 − 3) + length");
        config.empty = EmptyRule::Lowest;
        let parts = config.combine(&Measures { rephrased_dataman: None, ..empty });
        assert_eq!((parts.dataman, parts.length), (Some(-2.0), Some(0.0)));
        assert!((parts.total + 6.0).abs() < 1e-12, "3 · (1 − 3)");
        assert!(!config.scores(0) && config.scores(1));
    }

    #[test]
    fn an_empty_original_allows_only_an_empty_rephrasing() {
        let config = RewardConfig::default();
        let of = |original_chars, rephrased_chars| {
            config.combine(&Measures { original_chars, rephrased_chars, ..good() }).length
        };
        assert_eq!((of(0, 0), of(0, 1)), (Some(1.0), Some(0.0)));
    }

    #[test]
    fn forms_of_answers() {
        const M: &str = "Here is a paraphrased version:";
        let check = |answer: &str, marker: bool, think: bool| {
            let answer = answer.replace("MARK", M);
            assert_eq!(well_formed(&answer, M, FormatRule::Marker), marker, "{answer:?}");
            assert_eq!(well_formed(&answer, M, FormatRule::ThinkBlock), think, "{answer:?}");
        };
        check("MARK a page", true, false);
        check("<think>\n\n</think>\n\nMARK a page", true, true);
        check("<think>\nI see.\n</think>\n\nMARK a page", true, true);
        check("<think>\nI see.\n</think>\n\nSo: MARK a page", false, false);
        check("Sure! MARK a page", false, false);
        check("MARK a page MARK again", false, false);
        check("a page", false, false);
        check("", false, false);
        assert!(well_formed("x", "", FormatRule::Marker) && !well_formed(" ", "", FormatRule::Marker));
    }

    #[test]
    fn faults_name_their_key() {
        let mut config = RewardConfig::default();
        assert!(config.faults().is_empty());
        config.dataman.weight = f64::NAN;
        config.length.max_ratio = 0.0;
        config.bertscore.threshold = 65.0;
        let faults = config.faults().join("\n");
        for key in ["dataman.weight", "length.max_ratio", "bertscore.threshold"] {
            assert!(faults.contains(key), "{faults}");
        }
    }
}
