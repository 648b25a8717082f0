//! fastText classifiers: loading, prediction, and DCLM's scoring rule (reference section 5). The files are untrusted.
//!
//! Written here rather than taken from the `fasttext` crate (measured, see `benches`): the model stays in the file and is mapped into
//! memory, so DCLM's 2.4 GB load at once and are shared by all processes; a file that lies about its sizes is refused before anything
//! is allocated; and a row costs no allocation. Numbers are those of the reference C++ program: its probabilities are
//! p + 0.00001, because it reports exp(log(p + 1e-5)), and so are these.

mod cache;
mod file;
mod matrix;
mod output;
mod pruned;
mod words;

use anyhow::{Context, bail};
use std::{cell::RefCell, path::Path};

use cache::Words;
use file::Model;
use words::Line;

/// What stands before every label in the file.
const PREFIX: &str = "__label__";
/// DCLM's label of ordinary web text.
const COMMON_CRAWL: &str = "__label__cc";

/// Numbers that a thread keeps room for from one text to the next; more, after a huge text, is given back.
const KEPT: usize = 1 << 20;

/// A loaded classifier; prediction is thread-safe.
pub struct FastText {
    model: Model,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    line: Line,
    seen: Words,
    hidden: Vec<f32>,
    output: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl FastText {
    /// Loads `.bin` or `.ftz`; refuses other files before touching memory.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let model = Model::open(path).with_context(|| path.display().to_string())?;
        Ok(Self { model })
    }

    /// Probability of `label` (with or without `__label__`); without a label DCLM's rule: p of the top label, or 1 − p when it is
    /// `__label__cc`. The text is read as DCLM reads it: stripped, line breaks as spaces.
    /// Errors: a label that the model does not have; a text of which the model knows nothing.
    pub fn score(&self, text: &str, label: Option<&str>) -> anyhow::Result<f32> {
        let wanted = label.map(|label| self.position(label)).transpose()?;
        self.with_output(text, |output| {
            let Some(output) = output else { bail!("the classifier knows nothing in this text") };
            if let Some(at) = wanted {
                return Ok(output[at].exp());
            }
            let top = top(output)?;
            let p = output[top].exp();
            Ok(if self.model.label(top) == COMMON_CRAWL { 1.0 - p } else { p })
        })
    }

    /// The most probable label, without `__label__`. None where the model knows nothing in the text.
    pub fn label(&self, text: &str) -> anyhow::Result<Option<String>> {
        self.with_output(text, |output| match output {
            None => Ok(None),
            Some(output) => Ok(Some(short(self.model.label(top(output)?)).to_owned())),
        })
    }

    /// The `k` most probable labels, without `__label__`, each with its probability; the first of equals first.
    pub fn top(&self, text: &str, k: usize) -> anyhow::Result<Vec<(String, f32)>> {
        self.with_output(text, |output| {
            let Some(output) = output else { return Ok(Vec::new()) };
            let mut order: Vec<usize> = (0..output.len()).collect();
            order.sort_by(|a, b| output[*b].total_cmp(&output[*a]));
            let named = |at: &usize| (short(self.model.label(*at)).to_owned(), output[*at].exp());
            Ok(order.iter().take(k).map(named).collect())
        })
    }

    /// All labels in the file's order, without `__label__`.
    pub fn labels(&self) -> Vec<String> {
        (0..self.model.labels()).map(|at| short(self.model.label(at)).to_owned()).collect()
    }

    fn position(&self, label: &str) -> anyhow::Result<usize> {
        let found = (0..self.model.labels()).find(|at| short(self.model.label(*at)) == short(label));
        found.with_context(|| {
            let mut known = self.labels();
            let more = if known.len() > 8 { format!(" and {} more", known.len() - 8) } else { String::new() };
            known.truncate(8);
            format!("the classifier has no label {label:?}; it has {}{more}", known.join(", "))
        })
    }

    /// Gives `use_output` the log probabilities of all labels; None where no word of the text has a vector.
    fn with_output<T>(&self, text: &str, use_output: impl FnOnce(Option<&[f32]>) -> T) -> T {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { line, seen, hidden, output } = scratch;
            self.model.read(text, line, seen);
            let result = if line.rows.is_empty() {
                use_output(None)
            } else {
                self.model.hidden(&line.rows, hidden);
                self.model.output(hidden, output);
                use_output(Some(output))
            };
            if line.capacity() > KEPT {
                *line = Line::default();
            }
            result
        })
    }
}

impl std::fmt::Debug for FastText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FastText").field("labels", &self.model.labels()).finish()
    }
}

fn short(label: &str) -> &str {
    label.strip_prefix(PREFIX).unwrap_or(label)
}

/// The most probable label; the first of equals.
fn top(output: &[f32]) -> anyhow::Result<usize> {
    let mut best = 0;
    for (at, p) in output.iter().enumerate() {
        if p.is_nan() {
            bail!("the classifier's probabilities are not numbers: its weights are damaged");
        }
        if *p > output[best] {
            best = at;
        }
    }
    Ok(best)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[derive(serde::Deserialize)]
    struct Golden {
        file: String,
        labels: Vec<String>,
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        top: Vec<(String, f32)>,
    }

    fn golden() -> Vec<Golden> {
        serde_json::from_str(include_str!("../../tests/golden/fasttext.json")).unwrap()
    }

    fn path(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fasttext").join(name)
    }

    fn load(name: &str) -> FastText {
        FastText::load(&path(name)).unwrap()
    }

    /// What loading these bytes says.
    fn refusal(bytes: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let error = format!("{:#}", FastText::load(file.path()).unwrap_err());
        assert!(error.starts_with(&file.path().display().to_string()), "{error}");
        error
    }

    #[test]
    fn predicts_what_the_reference_program_predicts() {
        for golden in golden() {
            let model = load(&golden.file);
            let labels: Vec<String> = golden.labels.iter().map(|label| short(label).to_owned()).collect();
            let mut known = model.labels();
            known.sort();
            assert_eq!(
                known,
                {
                    let mut labels = labels;
                    labels.sort();
                    labels
                },
                "{}",
                golden.file
            );
            for case in &golden.cases {
                let found = model.top(&case.text, 3).unwrap();
                assert_eq!(found.len(), case.top.len(), "{} {:?}", golden.file, case.text);
                for ((label, p), (expected_label, expected)) in found.iter().zip(&case.top) {
                    assert!(
                        (p - expected).abs() < 1e-6,
                        "{} {:?}: {found:?}, expected {:?}",
                        golden.file,
                        case.text,
                        case.top
                    );
                    // equal probabilities may stand in any order
                    let equal = |(_, other): &&(String, f32)| (other - expected).abs() < 1e-6;
                    let tied = model.top(&case.text, usize::MAX).unwrap().iter().filter(equal).count() > 1;
                    assert!(tied || label == short(expected_label), "{} {:?}: {found:?}", golden.file, case.text);
                }
            }
        }
    }

    /// The texts of tests/golden/lid176.py, in its order; None where the shared data is absent.
    fn real_texts() -> Option<(PathBuf, Vec<String>)> {
        let given = std::env::var_os("REPRO_SHARED").map(PathBuf::from);
        let data = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared")).join("data");
        let rows = |file: &str, column: &str| -> Option<Vec<String>> {
            let lines = std::fs::read_to_string(data.join(file)).ok()?;
            let field = |line: &str| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()[column].as_str().unwrap().to_owned()
            };
            Some(lines.lines().take(500).map(field).collect())
        };
        let mut texts = rows("dclm/low_score_500.jsonl", "text")?;
        let sentence =
            |query: String| query.split_once("Sentence: ").unwrap().1.split_once("\nA. ").unwrap().0.to_owned();
        texts.extend(rows("core/bigbench_language_identification.jsonl", "query")?.into_iter().map(sentence));
        Some((data.join("fasttext/lid.176.ftz"), texts))
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "says that the data is missing")]
    fn language_identification_agrees_with_the_python_package_on_real_texts() {
        let Some((model, texts)) = real_texts() else {
            println!("skipped: ../shared/data (or REPRO_SHARED) is not here");
            return;
        };
        let model = FastText::load(&model).unwrap();
        let golden: Vec<Vec<(String, f32)>> =
            serde_json::from_str(include_str!("../../tests/golden/lid176.json")).unwrap();
        assert_eq!((texts.len(), golden.len()), (1000, 1000));
        for (text, expected) in texts.iter().zip(&golden) {
            let found = model.top(text, 3).unwrap();
            let same = found.iter().zip(expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5);
            assert!(same && found.len() == expected.len(), "{text:?}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn scores_by_the_rule_of_dclm() {
        let model = load("softmax_bigrams.bin");
        for case in golden().iter().find(|golden| golden.file == "softmax_bigrams.bin").unwrap().cases.iter() {
            let (label, p) = &case.top[0];
            let expected = if label == COMMON_CRAWL { 1.0 - p } else { *p };
            assert!((model.score(&case.text, None).unwrap() - expected).abs() < 1e-6);
            assert_eq!(model.label(&case.text).unwrap().as_deref(), Some(short(label)));
            for (label, p) in &case.top {
                assert!((model.score(&case.text, Some(label)).unwrap() - p).abs() < 1e-6);
                assert!((model.score(&case.text, Some(short(label))).unwrap() - p).abs() < 1e-6);
            }
        }
        let error = model.score("x", Some("good")).unwrap_err().to_string();
        assert!(error.contains("\"good\"") && error.contains("hq"), "{error}");
    }

    #[test]
    fn line_breaks_are_spaces() {
        let model = load("softmax_bigrams.bin");
        let flat = model.score("batire mosu ing", None).unwrap();
        assert_eq!(model.score("\n batire\r\nmosu\u{2028}ing \n", None).unwrap(), flat);
    }

    #[test]
    fn many_threads_get_the_same_answers() {
        let model = load("softmax_chars.bin");
        let golden = golden();
        let cases = &golden.iter().find(|golden| golden.file == "softmax_chars.bin").unwrap().cases;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for case in cases {
                        assert!((model.top(&case.text, 1).unwrap()[0].1 - case.top[0].1).abs() < 1e-6);
                    }
                });
            }
        });
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused() {
        for name in ["softmax_words.bin", "pruned.ftz", "output.ftz"] {
            let bytes = std::fs::read(path(name)).unwrap();
            for length in (0..bytes.len()).step_by(61).chain([bytes.len() - 1]) {
                refusal(&bytes[..length]);
            }
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let whole = std::fs::read(path("softmax_words.bin")).unwrap();
        let with = |at: usize, value: &[u8]| {
            let mut bytes = whole.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            refusal(&bytes)
        };
        let huge = i32::MAX.to_le_bytes();
        assert!(with(8, &huge).contains("dimension 2147483647"));
        assert!(with(8, &9_i32.to_le_bytes()).contains("do not fit"));
        assert!(with(36, &1_i32.to_le_bytes()).contains("word vectors"));
        assert!(with(4, &99_i32.to_le_bytes()).contains("version 99"));
        let dictionary = 8 + 12 * 4 + 8;
        assert!(with(dictionary, &huge).contains("dictionary of 2147483647"));
        assert!(with(dictionary + 20, &i64::MAX.to_le_bytes()).contains("cut off or damaged"));
        let mut none = whole[dictionary..].to_vec();
        none[..4].copy_from_slice(&whole[dictionary + 4..dictionary + 8]);
        none[8..12].copy_from_slice(&[0; 4]);
        assert!(refusal(&[&whole[..dictionary], &none].concat()).contains("no labels"));
    }

    #[test]
    fn every_flipped_byte_is_refused_or_harmless() {
        for name in ["chars_from_one.bin", "pruned.ftz"] {
            let whole = std::fs::read(path(name)).unwrap();
            for at in (0..whole.len()).step_by(if name.ends_with("bin") { 1 } else { 13 }) {
                let mut bytes = whole.clone();
                bytes[at] ^= 0xa5;
                let file = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(file.path(), &bytes).unwrap();
                if let Ok(model) = FastText::load(file.path()) {
                    let _ = model.top("batire 日本 mosu er", 3);
                    let _ = model.score("batire 日本 mosu er", None);
                }
            }
        }
    }

    #[test]
    fn other_files_are_named_for_what_they_are() {
        assert!(refusal(b"").contains("empty"));
        assert!(refusal(b"\x1f\x8b\x08aaaaaaaaaaaaaaaa").contains("compressed"));
        assert!(refusal(b"\x80\x02}q\x00aaaaaaaaaaaaa").contains("pickle"));
        assert!(refusal(b"word 0.1 0.2\n").contains("not fastText's"));
        let error = format!("{:#}", FastText::load(Path::new("/nowhere/model.bin")).unwrap_err());
        assert!(error.contains("/nowhere/model.bin: cannot open"), "{error}");
        assert!(format!("{:#}", FastText::load(Path::new(".")).unwrap_err()).contains("not a file"));
    }
}
