//! Trains a supervised fastText classifier with the `fasttext` crate. Knows lines and labels; not tables or places.
//!
//! The file is the format of the original C++ program, which the Python package reads.

use anyhow::{Context, anyhow, ensure};
use fasttext::{
    FastText,
    args::{Args, LossName, ModelName},
};
use std::{collections::BTreeMap, io::Write, path::Path};

/// What fastText calls a label.
const PREFIX: &str = "__label__";

/// Settings of the training, named as in the original program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Learning rate at the start; falls to 0.
    pub lr: f64,
    /// Width of word vectors.
    pub dim: u32,
    /// Passes over the examples.
    pub epoch: u32,
    /// Longest run of words that is a feature of its own; 1 for single words only.
    pub word_ngrams: u32,
    /// Hash buckets for runs of words.
    pub bucket: u32,
    /// Words that occur less often are left out.
    pub min_count: u32,
    /// One thread is deterministic; more are not.
    pub threads: u32,
    /// What the random numbers start from.
    pub seed: u64,
}

/// Examples as fastText reads them: one line each.
#[derive(Debug, Default)]
pub struct Examples {
    lines: Vec<String>,
    /// Label to number of examples.
    pub labels: BTreeMap<String, u64>,
}

impl Examples {
    /// Adds an example. White space of every kind becomes one space, as the scoring does with line breaks; a word that looks
    /// like a label loses the prefix, so that a document cannot label itself. False where the text holds no word.
    ///
    /// # Errors
    /// The label is empty or holds white space.
    pub fn push(&mut self, text: &str, label: &str) -> anyhow::Result<bool> {
        let label = label.strip_prefix(PREFIX).unwrap_or(label);
        ensure!(
            !label.is_empty() && !label.contains(char::is_whitespace),
            "the label `{label}` is not one word; fastText separates labels by white space"
        );
        let words: Vec<&str> = text
            .split(|c: char| c.is_whitespace() || c == '\0')
            .map(|word| word.trim_start_matches(PREFIX))
            .filter(|word| !word.is_empty())
            .collect();
        if words.is_empty() {
            return Ok(false);
        }
        self.lines.push(format!("{PREFIX}{label} {}", words.join(" ")));
        *self.labels.entry(label.to_owned()).or_default() += 1;
        Ok(true)
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Trains on the examples and writes the model to `path`. Returns the part of the training examples whose best label is right.
///
/// # Errors
/// No examples, fewer than two labels, a directory that cannot be written.
pub fn train(examples: &Examples, options: Options, path: &Path) -> anyhow::Result<f64> {
    ensure!(!examples.is_empty(), "there are no examples to train a classifier on");
    ensure!(
        examples.labels.len() >= 2,
        "all {} examples have the label `{}`; a classifier needs at least two labels",
        examples.len(),
        examples.labels.keys().next().map_or("", String::as_str)
    );
    let mut input = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    for line in &examples.lines {
        writeln!(input, "{line}").context("cannot write the training file")?;
    }
    input.flush().context("cannot write the training file")?;
    let model =
        FastText::train(arguments(options, input.path())).map_err(|e| anyhow!("fastText training failed: {e}"))?;
    model
        .save_model(path.to_str().context("the path is not UTF-8")?)
        .map_err(|e| anyhow!("cannot write {}: {e}", path.display()))?;
    let right = examples.lines.iter().filter(|line| {
        let (label, text) = line.split_once(' ').unwrap_or((line, ""));
        model.predict(text, 1, 0.0).first().is_some_and(|p| p.label == label)
    });
    Ok(right.count() as f64 / examples.len() as f64)
}

fn arguments(options: Options, input: &Path) -> Args {
    let mut args = Args { word_ngrams: options.word_ngrams as i32, ..Args::default() };
    args.apply_supervised_defaults();
    args.model = ModelName::Supervised;
    args.loss = LossName::Softmax;
    args.input = input.to_owned();
    args.lr = options.lr;
    args.dim = options.dim as i32;
    args.epoch = options.epoch as i32;
    args.min_count = options.min_count as i32;
    // Without word n-grams there is nothing to put into buckets.
    args.bucket = if options.word_ngrams > 1 { options.bucket as i32 } else { 0 };
    args.thread = options.threads.max(1) as i32;
    args.seed = (options.seed % i32::MAX as u64) as i32;
    args.verbose = 0;
    args
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { lr: 0.5, dim: 8, epoch: 20, word_ngrams: 2, bucket: 1000, min_count: 1, threads: 1, seed: 3 }
    }

    fn examples() -> Examples {
        let mut examples = Examples::default();
        for i in 0..60 {
            examples.push(&format!("the river runs to the sea {i}"), "hq").unwrap();
            examples.push(&format!("click here buy now\n\ncheap {i}"), "__label__cc").unwrap();
        }
        examples
    }

    #[test]
    fn learns_what_is_plain_to_see() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.bin");
        assert!(train(&examples(), options(), &path).unwrap() > 0.99);
        let model = FastText::load_model(path.to_str().unwrap()).unwrap();
        assert_eq!(model.predict("buy cheap now", 1, 0.0)[0].label, "__label__cc");
        assert_eq!(model.predict("a river to the sea", 1, 0.0)[0].label, "__label__hq");
    }

    #[test]
    fn the_same_bytes_again() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |name: &str| {
            let path = dir.path().join(name);
            train(&examples(), options(), &path).unwrap();
            std::fs::read(path).unwrap()
        };
        assert_eq!(bytes("a.bin"), bytes("b.bin"));
    }

    #[test]
    fn a_document_cannot_label_itself() {
        let mut examples = Examples::default();
        assert!(examples.push("good __label__hq\u{a0}__label____label__ text\0end", "cc").unwrap());
        assert_eq!(examples.lines, ["__label__cc good hq text end"]);
        assert!(!examples.push(" \n\t", "cc").unwrap());
        assert!(examples.push("x", "two words").unwrap_err().to_string().contains("not one word"));
    }

    #[test]
    fn one_label_is_refused() {
        let mut examples = Examples::default();
        assert!(train(&examples, options(), Path::new("x")).unwrap_err().to_string().contains("no examples"));
        examples.push("a b", "hq").unwrap();
        assert!(train(&examples, options(), Path::new("x")).unwrap_err().to_string().contains("at least two labels"));
    }
}
