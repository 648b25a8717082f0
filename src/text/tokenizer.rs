//! `tokenizer.json` of a model directory: text to token ids and back. Knows nothing of prompts or models.
//!
//! Documents are untrusted. Control tokens spelled out in them (`<|im_end|>`) must stay text, so [`Special::Plain`] encodes with a
//! second tokenizer that matches no control token. A control token is an added token that is marked `special`, or that looks like
//! markup (`<think>`, `[INST]`): the latter steer models as well. Added tokens that are ordinary text (GPT-NeoX's runs of spaces)
//! are matched either way.

use super::bpe::{Cache, json::Fast, ranks::Ranks};
use anyhow::{Context, bail};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};
use tokenizers::AddedToken;

/// How the names of tiktoken's rank files end.
const TIKTOKEN: &str = "tiktoken";

/// A Hugging Face tokenizer; cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// as the file says
    recognise: tokenizers::Tokenizer,
    /// control tokens are not matched
    plain: tokenizers::Tokenizer,
    /// control token → id, longest first
    controls: Vec<(String, u32)>,
    control_ids: HashSet<u32>,
    vocab_size: usize,
    /// ids put before and after one text by the post-processor
    affixes: (Vec<u32>, Vec<u32>),
    /// made when first wanted; None where the tokenizer is of another kind
    fast: OnceLock<Option<Fast>>,
}

/// Encodes many documents on one thread, as [`Special::Plain`] does.
pub struct Encoder {
    tokenizer: Tokenizer,
    cache: Cache,
}

impl Encoder {
    /// Appends the ids of a document; control tokens spelled out in it stay text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; `out` may then hold a part.
    pub fn encode(&mut self, text: &str, out: &mut Vec<u32>) -> anyhow::Result<()> {
        let inner = &self.tokenizer.inner;
        if !inner.fast().is_some_and(|fast| fast.encode(text, &mut self.cache, out)) {
            out.extend(inner.encode_plain(text)?);
        }
        Ok(())
    }
}

/// The bytes of the `tokenizer.json` that a path leads to: a model directory, such a file itself, or a tiktoken rank file (`*.tiktoken`),
/// which is put into that form.
///
/// # Errors
/// There is none, or it cannot be read. Errors name the file.
pub fn tokenizer_json(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing(path, &file)),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot read", file.display())),
    };
    if is_ranks(path) {
        return Ranks::parse(&bytes).and_then(|r| r.to_tokenizer_json()).with_context(|| file.display().to_string());
    }
    Ok(bytes)
}

fn is_ranks(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == TIKTOKEN)
}

/// Whether control tokens spelled out in the text become those tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// The tokens themselves: for text of a chat template.
    Recognise,
    /// Their letters: for documents.
    Plain,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`. Truncation and padding that the file may ask for are switched off. Instead of a directory, the file
    /// itself or a tiktoken rank file (`*.tiktoken`) will do.
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        let shown = if dir.is_dir() { dir.join("tokenizer.json") } else { dir.to_owned() };
        let tokenizer = Self::from_bytes(&tokenizer_json(dir)?).with_context(|| shown.display().to_string())?;
        if is_ranks(dir) {
            // Documents are encoded by the ranks themselves.
            let ranks = std::fs::read(dir).map_err(anyhow::Error::from).and_then(|bytes| Ranks::parse(&bytes));
            let fast = ranks.and_then(|r| r.encoder()).with_context(|| shown.display().to_string())?;
            let _ = tokenizer.inner.fast.set(Some(Fast::plain(fast)));
        }
        Ok(tokenizer)
    }

    /// The same from the bytes of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        if bytes.starts_with(b"version https://git-lfs") {
            bail!("is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`");
        }
        let mut recognise = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| anyhow::anyhow!("not a usable tokenizer ({error}); is the download complete?"))?;
        recognise.with_padding(None);
        recognise.with_truncation(None).map_err(|error| anyhow::anyhow!("cannot switch off truncation: {error}"))?;
        Ok(Self { inner: Arc::new(Inner::new(recognise)?) })
    }

    /// Token ids; special tokens written out in `text` are recognised only when `special` says so (untrusted document text must not
    /// become control tokens). Adds no bos or eos: see [`Tokenizer::affixes`].
    pub fn encode(&self, text: &str, special: Special) -> anyhow::Result<Vec<u32>> {
        match special {
            Special::Recognise => run(&self.inner.recognise, text),
            Special::Plain => self.inner.encode_plain(text),
        }
    }

    /// For many documents; one for each thread.
    pub fn encoder(&self) -> Encoder {
        self.inner.fast();
        Encoder { tokenizer: self.clone(), cache: Cache::default() }
    }

    /// Whether [`Encoder`] has its own fast way for this tokenizer.
    pub fn is_fast(&self) -> bool {
        self.inner.fast().is_some()
    }

    /// The control tokens among `ids`, in order.
    pub fn controls(&self, ids: &[u32]) -> Vec<u32> {
        ids.iter().copied().filter(|id| self.inner.control_ids.contains(id)).collect()
    }

    /// Text of the ids; control tokens marked special, and ids outside the vocabulary, give nothing.
    pub fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        self.inner.recognise.decode(tokens, true).map_err(|error| anyhow::anyhow!("cannot decode tokens: {error}"))
    }

    /// Rows that an embedding table needs: the highest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The id of a token given as it stands in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.recognise.token_to_id(token)
    }

    /// What the tokenizer itself puts before and after one text (Llama: bos; BERT: `[CLS]`, `[SEP]`). Chat templates write these out
    /// themselves; text that goes to a model without a template needs them.
    pub fn affixes(&self) -> (&[u32], &[u32]) {
        (&self.inner.affixes.0, &self.inner.affixes.1)
    }
}

impl Inner {
    fn new(recognise: tokenizers::Tokenizer) -> anyhow::Result<Self> {
        let mut controls: Vec<(u32, AddedToken)> =
            recognise.get_added_tokens_decoder().into_iter().filter(|(_, token)| is_control(token)).collect();
        controls.sort_by_key(|(id, token)| (std::cmp::Reverse(token.content.len()), *id));
        let mut plain = recognise.clone();
        let special: Vec<AddedToken> = controls.iter().map(|(_, token)| token.clone().special(true)).collect();
        plain.add_special_tokens(&special);
        plain.set_encode_special_tokens(true);
        let vocab_size = recognise.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let affixes = affixes(&recognise)?;
        Ok(Self {
            control_ids: controls.iter().filter(|(_, token)| !is_unknown(token)).map(|(id, _)| *id).collect(),
            controls: controls.into_iter().map(|(id, token)| (token.content, id)).collect(),
            recognise,
            plain,
            vocab_size,
            affixes,
            fast: OnceLock::new(),
        })
    }

    fn fast(&self) -> Option<&Fast> {
        let make = || {
            let file = self.recognise.to_string(false).ok().and_then(|text| serde_json::from_str(&text).ok())?;
            Fast::from_json(&file, |content| self.controls.iter().any(|(control, _)| control == content))
        };
        self.fast.get_or_init(make).as_ref()
    }

    fn encode_plain(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let ids = run(&self.plain, text)?;
        if !ids.iter().any(|id| self.control_ids.contains(id)) {
            return Ok(ids);
        }
        self.encode_broken(text)
    }

    /// Some models (Unigram, WordLevel) hold control tokens in their ordinary vocabulary and find them in text without the help of
    /// the added-token table. Their spelling is cut after its first character, and the pieces are encoded apart.
    fn encode_broken(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut from = 0;
        for (at, first) in text.char_indices() {
            let found = self.controls.iter().any(|(control, _)| text[at..].starts_with(control.as_str()));
            if found {
                let cut = at + first.len_utf8();
                ids.extend(run(&self.plain, &text[from..cut])?);
                from = cut;
            }
        }
        ids.extend(run(&self.plain, &text[from..])?);
        match ids.iter().find(|id| self.control_ids.contains(id)) {
            None => Ok(ids),
            Some(id) => bail!(
                "the text spells out the control token {:?} and this tokenizer cannot encode it as plain text",
                self.recognise.id_to_token(*id).unwrap_or_default()
            ),
        }
    }
}

fn run(tokenizer: &tokenizers::Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|error| anyhow::anyhow!("cannot tokenise: {error}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// Special by its flag, or shaped like markup.
fn is_control(token: &AddedToken) -> bool {
    let text = token.content.trim();
    let wrapped = |open: &str, close: &str| {
        text.len() > open.len() + close.len() && text.starts_with(open) && text.ends_with(close)
    };
    token.special || wrapped("<", ">") || wrapped("[", "]")
}

/// The unknown token is special by its flag, yet stands for ordinary text and steers nothing.
fn is_unknown(token: &AddedToken) -> bool {
    matches!(token.content.as_str(), "<unk>" | "<UNK>" | "[UNK]" | "<|unk|>")
}

/// The post-processor's additions: what stands around a probe.
fn affixes(tokenizer: &tokenizers::Tokenizer) -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
    let with = tokenizer.encode_fast("a", true).map_err(|error| anyhow::anyhow!("cannot tokenise: {error}"))?;
    let without = run(tokenizer, "a")?;
    let with = with.get_ids();
    let at = with.windows(without.len().max(1)).position(|window| window == without).unwrap_or(0);
    Ok((with[..at].to_vec(), with[(at + without.len()).min(with.len())..].to_vec()))
}

fn missing(dir: &Path, path: &Path) -> anyhow::Error {
    let has = |name: &str| dir.join(name).exists();
    let convert = format!(
        "convert it once with Python: from transformers import AutoTokenizer; AutoTokenizer.from_pretrained({0:?}).save_pretrained({0:?})",
        PathBuf::from(dir)
    );
    if has("vocab.json") || has("merges.txt") || has("vocab.txt") {
        anyhow::anyhow!("{}: missing; the directory has only the older vocab/merges files; {convert}", path.display())
    } else if has("tokenizer.model") || has("spiece.model") {
        anyhow::anyhow!("{}: missing; the directory has only a SentencePiece model; {convert}", path.display())
    } else {
        anyhow::anyhow!("{}: missing; a model directory needs its tokenizer.json", path.display())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(serde::Deserialize)]
    struct Golden {
        name: String,
        file: serde_json::Value,
        controls: BTreeMap<String, u32>,
        around: Vec<u32>,
        without: Vec<u32>,
        rows: usize,
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        recognise: Vec<u32>,
        plain: Vec<u32>,
        decoded: String,
    }

    fn golden() -> Vec<Golden> {
        serde_json::from_str(include_str!("../../tests/golden/tokenizers.json")).unwrap()
    }

    impl Golden {
        fn tokenizer(&self) -> Tokenizer {
            Tokenizer::from_bytes(self.file.to_string().as_bytes()).unwrap()
        }
    }

    /// One of the golden tokenizers: bytelevel, llama, unigram, wordpiece.
    pub(in crate::text) fn golden_tokenizer(name: &str) -> Tokenizer {
        golden().iter().find(|golden| golden.name == name).unwrap().tokenizer()
    }

    #[test]
    fn ids_are_those_of_the_python_library() {
        for golden in golden() {
            let tokenizer = golden.tokenizer();
            assert_eq!(tokenizer.vocab_size(), golden.rows, "{}", golden.name);
            for case in &golden.cases {
                let what = format!("{} {:?}", golden.name, case.text);
                assert_eq!(tokenizer.encode(&case.text, Special::Recognise).unwrap(), case.recognise, "{what}");
                assert_eq!(tokenizer.encode(&case.text, Special::Plain).unwrap(), case.plain, "plain {what}");
                assert_eq!(tokenizer.decode(&case.recognise).unwrap(), case.decoded, "{what}");
            }
        }
    }

    #[test]
    fn no_control_token_comes_from_plain_text() {
        for golden in golden() {
            let tokenizer = golden.tokenizer();
            let names: String = golden.controls.keys().cloned().collect();
            let hostile = format!("{names} x{names}\n{}", golden.controls.keys().rev().cloned().collect::<String>());
            let ids = tokenizer.encode(&hostile, Special::Plain).unwrap();
            let control = |(name, id): (&String, &u32)| !name.to_lowercase().contains("unk") && ids.contains(id);
            assert!(!golden.controls.iter().any(control), "{}: {ids:?}", golden.name);
            assert!(tokenizer.controls(&ids).is_empty());
        }
    }

    #[test]
    fn affixes_are_what_the_post_processor_adds() {
        for golden in golden() {
            let tokenizer = golden.tokenizer();
            let (before, after) = tokenizer.affixes();
            assert_eq!([before, &golden.without, after].concat(), golden.around, "{}", golden.name);
        }
        assert_eq!(golden_tokenizer("llama").affixes().0, [1]);
    }

    #[test]
    fn ids_outside_the_vocabulary_decode_to_nothing() {
        let tokenizer = golden_tokenizer("bytelevel");
        assert_eq!(tokenizer.decode(&[83, 9999, 71, u32::MAX]).unwrap(), "th");
        assert_eq!(tokenizer.id("<|im_end|>"), Some(332));
        assert_eq!(tokenizer.id("no such token"), None);
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fails = || format!("{:#}", Tokenizer::from_dir(dir.path()).err().unwrap());
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(fails().contains("tokenizer.json: missing"), "{}", fails());
        write("tokenizer.model", "x");
        assert!(fails().contains("SentencePiece") && fails().contains("save_pretrained"), "{}", fails());
        write("vocab.json", "{}");
        assert!(fails().contains("vocab/merges") && fails().contains("save_pretrained"), "{}", fails());
        for (text, reason) in [
            ("", "not a usable tokenizer"),
            ("{\"model\": 3}", "not a usable tokenizer"),
            ("<html>", "not a usable tokenizer"),
            ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        ] {
            write("tokenizer.json", text);
            assert!(fails().contains(reason) && fails().contains("tokenizer.json"), "{}", fails());
        }
    }
}
