//! How well an answer keeps the content and drops the clutter of a dirty page. Pure counting; used by tests and by whoever
//! measures a rephraser. Knows nothing of how the page was made.

use std::collections::{BTreeMap, BTreeSet};

use super::noise::{invisible, tidy};

/// Counts of one or of many answers; [`Measure::add`] sums them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measure {
    /// Inserted clutter lines.
    pub inserted: usize,
    /// Those of them that the answer no longer has.
    pub gone: usize,
    /// Words of the clean side (with repetitions).
    pub clean_words: usize,
    /// Those of them that the answer has.
    pub kept: usize,
    /// Words of the answer with three letters or more.
    pub output_words: usize,
    /// Those of them that occur in the source.
    pub in_source: usize,
}

impl Measure {
    /// Adds the counts of another answer.
    pub fn add(&mut self, other: &Self) {
        self.inserted += other.inserted;
        self.gone += other.gone;
        self.clean_words += other.clean_words;
        self.kept += other.kept;
        self.output_words += other.output_words;
        self.in_source += other.in_source;
    }
    /// Share of inserted clutter lines that are gone; 1 where none was inserted.
    pub fn clutter_gone(&self) -> f64 {
        share(self.gone, self.inserted)
    }
    /// Share of clean words that the answer has; 1 where there are none.
    pub fn words_kept(&self) -> f64 {
        share(self.kept, self.clean_words)
    }
    /// Share of the answer's words that occur in the source; 1 where there are none.
    pub fn from_source(&self) -> f64 {
        share(self.in_source, self.output_words)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// Measures an answer; what was inserted is read off the two sides of the pair.
pub fn measure(dirty: &str, clean: &str, output: &str) -> Measure {
    measure_with(dirty, clean, &inserted_lines(dirty, clean), output)
}

/// Measures an answer where the inserted lines are known.
pub fn measure_with(dirty: &str, clean: &str, inserted: &[impl AsRef<str>], output: &str) -> Measure {
    let (clean_words, out_words) = (words(clean), words(output));
    let (want, have) = (counts(&clean_words), counts(&out_words));
    let source: BTreeSet<String> = words(dirty).into_iter().collect();
    let long: Vec<&String> =
        out_words.iter().filter(|w| w.chars().filter(|c| c.is_alphabetic()).count() >= 3).collect();
    let lines: Vec<Vec<String>> = inserted.iter().map(|line| words(line.as_ref())).filter(|w| !w.is_empty()).collect();
    Measure {
        inserted: lines.len(),
        gone: lines.iter().filter(|line| !remains(line, &clean_words, &out_words)).count(),
        clean_words: clean_words.len(),
        kept: want.iter().map(|(word, n)| (*n).min(have.get(word).copied().unwrap_or(0))).sum(),
        output_words: long.len(),
        in_source: long.iter().filter(|w| source.contains(w.as_str())).count(),
    }
}

/// Lower-cased runs of letters and digits; invisible marks inside a word do not cut it.
pub fn words(text: &str) -> Vec<String> {
    let text: String = text.chars().filter(|c| !invisible(*c)).collect();
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

fn counts(words: &[String]) -> BTreeMap<&str, usize> {
    let mut out = BTreeMap::new();
    for word in words {
        *out.entry(word.as_str()).or_insert(0) += 1;
    }
    out
}

/// A line remains where its words, or the first or second half of them (two words or more), stand in the answer more often
/// than in the clean text.
fn remains(line: &[String], clean: &[String], output: &[String]) -> bool {
    let half = line.len().div_ceil(2);
    let parts = if line.len() >= 4 { vec![&line[..half], &line[line.len() - half..]] } else { vec![line] };
    parts.iter().any(|part| times(part, output) > times(part, clean))
}

/// How often the words stand one behind the other.
fn times(part: &[String], text: &[String]) -> usize {
    text.windows(part.len()).filter(|window| *window == part).count()
}

/// The lines of the dirty side that are not on the clean side; of a line that holds a clean line, what is glued to it.
pub fn inserted_lines(dirty: &str, clean: &str) -> Vec<String> {
    let mut left: Vec<String> = clean.lines().map(tidy).filter(|l| !l.is_empty()).collect();
    let mut unmatched = Vec::new();
    for line in dirty.lines().map(tidy).filter(|l| !l.is_empty()) {
        match left.iter().position(|l| *l == line) {
            Some(at) => drop(left.remove(at)),
            None => unmatched.push(line),
        }
    }
    let mut out = Vec::new();
    for line in unmatched {
        let held = left.iter().position(|l| line.starts_with(l.as_str()) || line.ends_with(l.as_str()));
        let rest = match held {
            Some(at) => {
                let inner = left.remove(at);
                let glue = |c: char| c.is_whitespace() || matches!(c, '|' | '-' | '»' | '•');
                let behind = line.strip_prefix(inner.as_str()).map(|rest| rest.trim_start_matches(glue));
                let before = || line.strip_suffix(inner.as_str()).map_or("", |rest| rest.trim_end_matches(glue));
                behind.unwrap_or_else(before).to_owned()
            }
            None => line,
        };
        if !rest.is_empty() {
            out.push(rest);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRTY: &str = "Home | Login\n\nThe cat sat.  Read more »\nShare this\nThe dog ran home.\nShare this";
    const CLEAN: &str = "The cat sat.\nThe dog ran home.";

    #[test]
    fn inserted_lines_by_hand() {
        assert_eq!(inserted_lines(DIRTY, CLEAN), ["Home | Login", "Read more »", "Share this", "Share this"]);
        assert!(inserted_lines("a  b\n\nc", "a b\nc").is_empty());
        assert_eq!(inserted_lines("Title x\nTitle x", "Title x"), ["Title x"]);
    }

    #[test]
    fn perfect_answer() {
        let m = measure(DIRTY, CLEAN, CLEAN);
        assert_eq!(m, Measure { inserted: 4, gone: 4, clean_words: 7, kept: 7, output_words: 7, in_source: 7 });
    }

    #[test]
    fn untouched_answer_keeps_clutter() {
        let m = measure(DIRTY, CLEAN, DIRTY);
        assert_eq!((m.inserted, m.gone, m.kept), (4, 0, 7));
    }

    #[test]
    fn lost_and_invented_words() {
        // "dog" and the second "the" are lost; "zebra" is not in the source; "ran" stands once.
        let m = measure(DIRTY, CLEAN, "The cat sat. zebra ran home");
        assert_eq!((m.gone, m.clean_words, m.kept), (4, 7, 5));
        assert_eq!((m.output_words, m.in_source), (6, 5));
        assert!((m.from_source() - 5.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn half_a_clutter_line_remains() {
        let m = measure_with("a\nSkip to main content now", "a", &["Skip to main content now"], "a\nmain content now");
        assert_eq!((m.inserted, m.gone), (1, 0));
        let m = measure_with("a\nSkip to main content now", "a", &["Skip to main content now"], "a\nnow");
        assert_eq!((m.inserted, m.gone), (1, 1));
    }

    #[test]
    fn repeated_line_counts_against_the_clean_side() {
        let m = measure("One line\nOne line", "One line", "One line\nOne line");
        assert_eq!((m.inserted, m.gone), (1, 0));
        let m = measure("One line\nOne line", "One line", "One line");
        assert_eq!((m.inserted, m.gone), (1, 1));
    }

    #[test]
    fn nothing_inserted_and_empty_answer() {
        let m = measure("one two", "one two", "");
        assert_eq!((m.clutter_gone(), m.words_kept(), m.from_source()), (1.0, 0.0, 1.0));
        let mut sum = Measure::default();
        sum.add(&m);
        sum.add(&measure("three", "three", "three"));
        assert_eq!((sum.clean_words, sum.kept), (3, 1));
    }
}
