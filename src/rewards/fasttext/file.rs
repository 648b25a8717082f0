//! A model file mapped into memory: settings, dictionary and matrices (layout: reference section 5), and the steps of prediction.

use super::{
    cache::Words,
    matrix::{Matrix, Reader},
    output::Loss,
    pruned::Pruned,
    words::{self, Line, Table},
};
use anyhow::{Context, bail};
use std::{
    fs::File,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

const MAGIC: i32 = 793_712_314;
const VERSION: i32 = 12;
/// The token that fastText's own reader puts at the end of a line.
const EOS: &[u8] = b"</s>";
const LABEL: &[u8] = b"__label__";
/// Columns beyond this are no classifier's. Published models have 16 to 300.
const MAX_DIM: i32 = 1 << 16;

static MODELS: AtomicU32 = AtomicU32::new(0);

/// An open classifier.
pub(super) struct Model {
    /// tells the models of a process apart
    number: u32,
    file: memmap2::Mmap,
    settings: Settings,
    dictionary: Dictionary,
    input: Matrix,
    output: Matrix,
    loss: Loss,
}

/// What prediction needs of the training settings.
#[derive(Debug, Clone, Copy)]
struct Settings {
    dim: i32,
    word_ngrams: i32,
    loss: i32,
    bucket: u32,
    /// shortest and longest character n-gram; longest 0: none
    minn: i32,
    maxn: i32,
}

struct Dictionary {
    /// bytes of every word, then of every label, in the file
    entries: Vec<Range<usize>>,
    words: usize,
    label_counts: Vec<i64>,
    table: Table,
    pruned: Pruned,
}

impl Model {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).context("cannot open")?;
        if !file.metadata().context("cannot open")?.is_file() {
            bail!("not a file; a fastText model is one .bin or .ftz file");
        }
        // SAFETY: the map is read-only, and model files are replaced by renaming, not written in place. Whoever truncates the file
        // while it is in use gets the signal that any program with mapped files gets.
        let file = unsafe { memmap2::Mmap::map(&file) }.context("cannot map into memory")?;
        Self::parse(file)
    }

    fn parse(file: memmap2::Mmap) -> anyhow::Result<Self> {
        let mut reader = Reader::new(&file);
        let version = check_magic(&mut reader)?;
        let settings = Settings::read(&mut reader, version)?;
        let dictionary = Dictionary::read(&mut reader, settings.bucket)?;
        let quantised = reader.flag("the mark of compression")?;
        let read = if quantised { Matrix::quantised } else { Matrix::dense };
        let input = read(&mut reader, "the input matrix")?;
        let read = if reader.flag("the output's mark of compression")? && quantised {
            Matrix::quantised
        } else {
            Matrix::dense
        };
        let output = read(&mut reader, "the output matrix")?;
        let loss = match settings.loss {
            1 => Loss::tree(&dictionary.label_counts),
            2 | 4 => Loss::sigmoid(),
            3 => Loss::Softmax,
            other => bail!("damaged: loss {other} is not known"),
        };
        let model =
            Self { number: MODELS.fetch_add(1, Ordering::Relaxed), settings, dictionary, input, output, loss, file };
        model.check()?;
        Ok(model)
    }

    /// Whether the parts fit each other, so that no later look-up can leave a matrix.
    fn check(&self) -> anyhow::Result<()> {
        let (labels, dim) = (self.labels(), self.settings.dim as usize);
        let buckets = if self.settings.hashes() { self.settings.bucket as usize } else { 0 };
        let ngrams = self.dictionary.pruned.rows(buckets);
        if self.settings.hashes() && self.settings.bucket == 0 {
            bail!("damaged: n-grams without buckets");
        }
        let least = self.dictionary.words + ngrams;
        if self.input.rows() < least
            || self.input.cols() != dim
            || self.output.rows() < labels
            || self.output.cols() != dim
        {
            bail!(
                "damaged: matrices of {}×{} and {}×{} do not fit {least} inputs, {labels} labels and dimension {dim}",
                self.input.rows(),
                self.input.cols(),
                self.output.rows(),
                self.output.cols()
            );
        }
        Ok(())
    }

    pub(super) fn labels(&self) -> usize {
        self.dictionary.label_counts.len()
    }

    pub(super) fn label(&self, at: usize) -> &str {
        let bytes = &self.file[self.dictionary.entries[self.dictionary.words + at].clone()];
        std::str::from_utf8(bytes).expect("checked when the dictionary was read")
    }

    /// Fills `line` with the rows for a text, in fastText's order: per word its row and character n-grams, then the word n-grams.
    /// A text ends at the first token `</s>`, as in fastText, where that token marks the end of a line.
    /// `seen` are the words of earlier texts of this thread.
    pub(super) fn read(&self, text: &str, line: &mut Line, seen: &mut Words) {
        line.rows.clear();
        line.hashes.clear();
        for token in words::split(text).chain([EOS]) {
            let hash = words::hash(token);
            if let Some(rows) = seen.find(self.number, token, hash) {
                line.rows.extend_from_slice(rows);
                line.hashes.push(hash);
                continue;
            }
            let id = self.dictionary.find(&self.file, token, hash);
            let is_label = id.map_or(token.starts_with(LABEL), |id| id as usize >= self.dictionary.words);
            if !is_label {
                let from = line.rows.len();
                self.add_word(token, id, line);
                line.hashes.push(hash);
                if self.settings.maxn > 0 && token != EOS {
                    seen.keep(self.number, token, hash, &line.rows[from..]);
                }
            }
            if token == EOS {
                break;
            }
        }
        self.add_word_ngrams(line);
    }

    fn add_word(&self, token: &[u8], id: Option<u32>, line: &mut Line) {
        line.rows.extend(id);
        if self.settings.maxn <= 0 || token == EOS {
            return;
        }
        line.char_ngrams(token, self.settings.minn as usize, self.settings.maxn as usize);
        let buckets = line.ngrams.iter().map(|hash| hash % self.settings.bucket);
        self.dictionary.pruned.add(buckets, self.dictionary.words as u32, &mut line.rows);
    }

    fn add_word_ngrams(&self, line: &mut Line) {
        let Line { rows, hashes, .. } = line;
        let signed = |hash: u32| hash as i32 as u64; // fastText keeps word hashes as signed numbers
        for at in 0..hashes.len() {
            let mut hash = signed(hashes[at]);
            let after = hashes[at + 1..].iter().take((self.settings.word_ngrams - 1).max(0) as usize);
            let buckets = after.map(|next| {
                hash = hash.wrapping_mul(116_049_371).wrapping_add(signed(*next));
                (hash % u64::from(self.settings.bucket)) as u32
            });
            self.dictionary.pruned.add(buckets, self.dictionary.words as u32, rows);
        }
    }

    /// The mean of the rows.
    pub(super) fn hidden(&self, rows: &[u32], hidden: &mut Vec<f32>) {
        hidden.clear();
        hidden.resize(self.settings.dim as usize, 0.0);
        for row in rows {
            self.input.add_row(&self.file, *row as usize, hidden);
        }
        let share = 1.0 / rows.len() as f32;
        hidden.iter_mut().for_each(|value| *value *= share);
    }

    /// Log probabilities of all labels.
    pub(super) fn output(&self, hidden: &[f32], output: &mut Vec<f32>) {
        self.loss.log_probabilities(self.labels(), |row| self.output.dot(&self.file, row, hidden), output);
    }
}

fn check_magic(reader: &mut Reader<'_>) -> anyhow::Result<i32> {
    let start = reader.bytes;
    if start.len() < 8 || start[..4] != MAGIC.to_le_bytes() {
        let hint = match start {
            [] => "the file is empty",
            [0x1f, 0x8b, ..] => "it is compressed; unpack it first",
            [0x80, 2..=5, ..] | [b'P', b'K', ..] => "it looks like a pickle or zip file, which is never opened",
            _ if start.starts_with(b"version https://git-lfs") => {
                "it is a git-lfs pointer; fetch the file with `git lfs pull`"
            }
            _ => "its first bytes are not fastText's",
        };
        bail!("not a fastText model (.bin or .ftz): {hint}");
    }
    reader.i32("the magic number")?;
    let version = reader.i32("the version")?;
    if !(1..=VERSION).contains(&version) {
        bail!("fastText file version {version}; this program reads versions up to {VERSION}");
    }
    Ok(version)
}

impl Settings {
    fn read(reader: &mut Reader<'_>, version: i32) -> anyhow::Result<Self> {
        let mut next = || reader.i32("the settings");
        let [dim, _ws, _epoch, _min_count, _neg, word_ngrams] = [next()?, next()?, next()?, next()?, next()?, next()?];
        let [loss, model, bucket, minn, maxn, _lr_update] = [next()?, next()?, next()?, next()?, next()?, next()?];
        reader.f64("the settings")?;
        if model != 3 {
            bail!("holds word vectors, not a classifier (model kind {model}; a classifier is 3)");
        }
        // as the reference program does: old classifiers have no character n-grams
        let maxn = if version == 11 { 0 } else { maxn };
        if !(1..=MAX_DIM).contains(&dim) || bucket < 0 || maxn < 0 || minn < 0 || word_ngrams < 0 {
            bail!(
                "damaged: dimension {dim}, {bucket} buckets, n-grams of {word_ngrams} words and {minn} to {maxn} characters"
            );
        }
        Ok(Self { dim, word_ngrams, loss, bucket: bucket as u32, minn, maxn })
    }

    /// Whether anything is hashed into buckets.
    fn hashes(&self) -> bool {
        self.maxn > 0 || self.word_ngrams > 1
    }
}

impl Dictionary {
    fn read(reader: &mut Reader<'_>, buckets: u32) -> anyhow::Result<Self> {
        let [size, words, labels] =
            [reader.i32("the dictionary")?, reader.i32("the dictionary")?, reader.i32("the dictionary")?];
        reader.i64("the dictionary")?;
        let pruned = reader.i64("the dictionary")?;
        let left = reader.bytes.len() - reader.at;
        if words < 0
            || labels < 0
            || i64::from(words) + i64::from(labels) != i64::from(size)
            || size as usize > left / 10
        {
            bail!(
                "cut off or damaged: a dictionary of {size} entries, {words} words and {labels} labels, in {left} bytes"
            );
        }
        if labels == 0 {
            bail!("has no labels: not a classifier");
        }
        let mut dictionary = Self {
            entries: Vec::with_capacity(size as usize),
            words: words as usize,
            label_counts: Vec::with_capacity(labels as usize),
            table: Table::with_capacity(size as usize),
            pruned: Pruned::All,
        };
        for at in 0..size {
            dictionary.read_entry(reader, at, at >= words)?;
        }
        dictionary.pruned = Pruned::read(reader, pruned, buckets)?;
        Ok(dictionary)
    }

    fn read_entry(&mut self, reader: &mut Reader<'_>, at: i32, is_label: bool) -> anyhow::Result<()> {
        let range = reader.text("a dictionary entry")?;
        let count = reader.i64("a dictionary entry")?;
        let kind = reader.range(1, 1, "a dictionary entry")?.start;
        if reader.bytes[kind] != u8::from(is_label) {
            bail!("damaged: entry {at} of the dictionary is of kind {}", reader.bytes[kind]);
        }
        let text = &reader.bytes[range.clone()];
        if is_label {
            std::str::from_utf8(text).with_context(|| format!("label {at} is not UTF-8"))?;
            self.label_counts.push(count);
        }
        self.table.insert(words::hash(text), at as u32);
        self.entries.push(range);
        Ok(())
    }

    fn find(&self, file: &[u8], token: &[u8], hash: u32) -> Option<u32> {
        self.table.find(hash, |at| file[self.entries[at as usize].clone()] == *token)
    }
}
