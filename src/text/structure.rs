//! Whether a rephrasing kept the structure of a text, without a model. Pure.
//!
//! The paper (reference section 2.3) asks a language model whether format, style and presentation are kept. Here each piece of one
//! text ([`lines`](super::lines)) is matched with the piece of the other that shares most words with it, and the forms of the two are
//! compared. So what was dropped (menus, footers) has no match and counts for nothing, while a list whose items turn up inside
//! sentences counts as lost. Looking from the rephrasing back to the original finds forms that were added.
//!
//! Departures from the paper: bullets and numbers are one form; emphasis inside a line is ignored; a text whose words were replaced so
//! thoroughly that nothing matches is judged by its prevailing form.

use super::lines::{Form, Unit, units};
use std::collections::{HashMap, HashSet};

/// A match shares at least this part of a piece's words.
const COVERED: f64 = 0.34;
/// A form counts as lost or added from this share of all matched words on.
const SHARE: f64 = 0.1;
/// Short lines that became prose, or the reverse, count from this share on: titles and menu entries share words with the text.
const LINE_SHARE: f64 = 0.25;
/// Words that stand in more pieces than this do not help to find one.
const COMMON: usize = 64;

/// Model-free `structure_preserved` (the paper asks a model; reference section 2.3).
pub fn preserved(original: &str, rephrased: &str) -> bool {
    let (before, after) = (Text::new(original), Text::new(rephrased));
    if before.pieces.is_empty() || after.pieces.is_empty() {
        return before.pieces.is_empty() && after.pieces.is_empty();
    }
    let (forward, backward) = (Flow::new(&before, &after), Flow::new(&after, &before));
    if backward.matched() * 5.0 < after.weight() {
        return before.prevailing() == after.prevailing();
    }
    !forward.any_lost()
        && !backward.any_lost()
        && !forward.merged_lines()
        && !backward.merged_lines()
        && same_paragraphs(&forward, &backward)
}

/// A text as pieces that have words.
struct Text<'a> {
    pieces: Vec<(Unit<'a>, Vec<u64>)>,
    /// word → pieces
    index: HashMap<u64, Vec<u32>>,
}

impl<'a> Text<'a> {
    fn new(text: &'a str) -> Self {
        let pieces: Vec<_> = units(text)
            .into_iter()
            .map(|unit| (unit, words(unit.text)))
            .filter(|(_, words)| !words.is_empty())
            .collect();
        let mut index: HashMap<u64, Vec<u32>> = HashMap::new();
        for (at, (_, words)) in pieces.iter().enumerate() {
            for word in words {
                index.entry(*word).or_default().push(at as u32);
            }
        }
        Self { pieces, index }
    }

    fn weight(&self) -> f64 {
        self.pieces.iter().map(|(_, words)| words.len() as f64).sum()
    }

    /// The form that holds most words.
    fn prevailing(&self) -> Option<Form> {
        let weight = |form: &Form| -> usize {
            self.pieces.iter().filter(|(unit, _)| unit.form == *form).map(|(_, words)| words.len()).sum()
        };
        Form::ALL.into_iter().max_by_key(weight)
    }

    /// The piece most like the given one: largest cosine of the word sets, the same form first among equals.
    fn best(&self, form: Form, words: &[u64]) -> Option<usize> {
        let mut shared: HashMap<u32, usize> = HashMap::new();
        for word in words {
            for at in self.index.get(word).filter(|found| found.len() <= COMMON).into_iter().flatten() {
                *shared.entry(*at).or_default() += 1;
            }
        }
        let covers = |count: usize| count as f64 >= COVERED * words.len() as f64 && (count >= 2 || words.len() == 1);
        let value = |at: u32, count: usize| {
            let (unit, other) = &self.pieces[at as usize];
            let bonus = if unit.form == form { 1.05 } else { 1.0 };
            bonus * count as f64 / (other.len() as f64).sqrt()
        };
        let candidates = shared.into_iter().filter(|(_, count)| covers(*count));
        candidates
            .map(|(at, count)| (value(at, count), at))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
            .map(|(_, at)| at as usize)
    }
}

/// Where the pieces of one text went in the other: words and pieces, by form here and form there.
struct Flow {
    words: [[f64; Form::COUNT]; Form::COUNT],
    pieces: [[usize; Form::COUNT]; Form::COUNT],
    /// paragraphs with matched prose
    paragraphs: HashSet<usize>,
}

impl Flow {
    fn new(from: &Text<'_>, to: &Text<'_>) -> Self {
        let mut flow = Self { words: Default::default(), pieces: Default::default(), paragraphs: HashSet::new() };
        for (unit, words) in &from.pieces {
            let Some(at) = to.best(unit.form, words) else { continue };
            let there = to.pieces[at].0.form;
            flow.words[unit.form as usize][there as usize] += words.len() as f64;
            flow.pieces[unit.form as usize][there as usize] += 1;
            if unit.form == Form::Prose && there == Form::Prose {
                flow.paragraphs.insert(unit.paragraph);
            }
        }
        flow
    }

    fn matched(&self) -> f64 {
        self.words.iter().flatten().sum()
    }

    /// Words and pieces of `form` whose match has a form that is not as good.
    fn lost(&self, form: Form) -> (f64, usize) {
        let others = Form::ALL.into_iter().filter(|there| !same(form, *there));
        others.fold((0.0, 0), |(words, pieces), there| {
            (words + self.words[form as usize][there as usize], pieces + self.pieces[form as usize][there as usize])
        })
    }

    /// Whether a marked-up form mostly became something else.
    fn any_lost(&self) -> bool {
        Form::ALL.into_iter().filter(|form| !matches!(form, Form::Prose | Form::Line)).any(|form| {
            let (words, pieces) = self.lost(form);
            let all: f64 = self.words[form as usize].iter().sum();
            let least = if matches!(form, Form::Json | Form::Code | Form::Fenced | Form::Table) { 1 } else { 2 };
            pieces >= least && words * 2.0 > all && words >= SHARE * self.matched()
        })
    }

    /// Whether short lines (verse, plain lists) mostly became sentences.
    fn merged_lines(&self) -> bool {
        let (line, prose) = (Form::Line as usize, Form::Prose as usize);
        let all: f64 = self.words[line].iter().sum();
        let (words, pieces) = (self.words[line][prose], self.pieces[line][prose]);
        pieces >= 4 && words >= 0.6 * all && words >= LINE_SHARE * self.matched()
    }
}

/// Whether a piece may pass from one form to the other: a short code line or label is taken for a plain one when it stands alone.
fn same(here: Form, there: Form) -> bool {
    here == there
        || matches!((here, there), (Form::Label | Form::Code, Form::Line) | (Form::Line, Form::Label | Form::Code))
}

/// Five paragraphs must not become one, or one five. Only prose found on both sides counts.
fn same_paragraphs(forward: &Flow, backward: &Flow) -> bool {
    let (before, after) = (forward.paragraphs.len(), backward.paragraphs.len());
    let prose = backward.words[Form::Prose as usize][Form::Prose as usize];
    prose * 2.0 < backward.matched() || (before < 5 * after.max(1) && after < 5 * before.max(1))
}

/// The distinct words of a piece: letters and digits in lower case, cut to five so that endings do not matter, without the commonest.
fn words(text: &str) -> Vec<u64> {
    let mut found: Vec<u64> = text.split(|c: char| !c.is_alphanumeric()).filter_map(word).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn word(text: &str) -> Option<u64> {
    let lower = text.to_lowercase();
    let digits = lower.starts_with(|c: char| c.is_ascii_digit());
    let long = lower.chars().count() >= 3;
    let wide = !lower.is_ascii() && !lower.is_empty(); // scripts without spaces and short foreign words
    if !(digits || wide || long && !STOP.contains(&lower.as_str())) {
        return None;
    }
    let stem: String = lower.chars().take(5).collect();
    let hash = blake3::hash(stem.as_bytes());
    Some(u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("32 bytes")))
}

/// Words too common to say which piece is which.
const STOP: [&str; 48] = [
    "the", "and", "that", "this", "with", "for", "are", "was", "were", "his", "her", "its", "our", "your", "their",
    "you", "they", "she", "has", "have", "had", "not", "but", "from", "which", "who", "will", "would", "can", "could",
    "there", "been", "than", "then", "when", "what", "all", "any", "also", "into", "one", "out", "more", "about",
    "some", "over", "only", "other",
];

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Pair {
        kind: String,
        original: String,
        rephrased: String,
        preserved: bool,
    }

    fn pairs() -> Vec<Pair> {
        include_str!("../../tests/golden/structure_pairs.jsonl")
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn agrees_with_the_labelled_pairs() {
        let pairs = pairs();
        let wrong: Vec<&Pair> =
            pairs.iter().filter(|pair| preserved(&pair.original, &pair.rephrased) != pair.preserved).collect();
        let names: Vec<String> = wrong.iter().map(|pair| format!("{} (label {})", pair.kind, pair.preserved)).collect();
        assert!(wrong.len() * 20 <= pairs.len(), "{} of {} wrong: {names:#?}", wrong.len(), pairs.len());
    }

    #[test]
    fn a_text_keeps_its_own_structure() {
        for pair in pairs() {
            assert!(preserved(&pair.original, &pair.original), "{}", pair.kind);
            assert!(preserved(&pair.rephrased, &pair.rephrased), "{}", pair.kind);
        }
    }
}
