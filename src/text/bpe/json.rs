//! Which `tokenizer.json` files [`ByteBpe`] can do, and how: BPE over bytes, the split of GPT-2, no normaliser or NFC. What it cannot do in exactly
//! the same way as the tokenizers crate is left to that: [`Fast::encode`] says so.

use super::{ByteBpe, Cache, Merge, Whole};
use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;
use std::collections::HashMap;

/// A `tokenizer.json` in its fast form.
#[derive(Debug)]
pub struct Fast {
    bpe: ByteBpe,
    /// Added tokens that are ordinary text (GPT-NeoX's runs of spaces): matched first, the longest from the left.
    added: Option<(AhoCorasick, Vec<u32>)>,
    /// Texts are brought to NFC first: only those that are known to be in it already are done here.
    nfc: bool,
}

impl Fast {
    /// A vocabulary without added tokens or normaliser.
    pub fn plain(bpe: ByteBpe) -> Self {
        Self { bpe, added: None, nfc: false }
    }

    /// From the file; `control` says which added tokens are not to be found in a text. None where the file is of another kind.
    pub fn from_json(file: &Value, control: impl Fn(&str) -> bool) -> Option<Self> {
        let nfc = match &file["normalizer"] {
            Value::Null => false,
            normalizer if normalizer["type"] == "NFC" => true,
            _ => return None,
        };
        if !gpt2_split(&file["pre_tokenizer"]) {
            return None;
        }
        Some(Self { bpe: bpe(&file["model"])?, added: added(&file["added_tokens"], control)?, nfc })
    }

    /// Appends the ids of a text as document text. False, and nothing appended, where that is not certain to be what the tokenizers crate gives.
    pub fn encode(&self, text: &str, cache: &mut Cache, out: &mut Vec<u32>) -> bool {
        if self.nfc && !text.is_ascii() && !text.chars().all(never_changed) {
            return false;
        }
        let Some((finder, ids)) = &self.added else {
            self.bpe.encode(text, cache, out);
            return true;
        };
        let mut from = 0;
        for found in finder.find_iter(text) {
            self.bpe.encode(&text[from..found.start()], cache, out);
            out.push(ids[found.pattern().as_usize()]);
            from = found.end();
        }
        self.bpe.encode(&text[from..], cache, out);
        true
    }
}

/// Characters that NFC leaves alone whatever stands beside them: Latin, general punctuation, currency, CJK, Hangul syllables. Not all there are.
fn never_changed(c: char) -> bool {
    matches!(u32::from(c), 0..0x300 | 0x2010..=0x2027 | 0x20a0..=0x20c0 | 0x3400..=0x9fff | 0xac00..=0xd7a3)
}

/// `ByteLevel` with GPT-2's pattern and no space put in front, alone or as the only step of a sequence.
fn gpt2_split(pre: &Value) -> bool {
    if pre["type"] == "Sequence" {
        return pre["pretokenizers"].as_array().is_some_and(|steps| steps.len() == 1 && gpt2_split(&steps[0]));
    }
    pre["type"] == "ByteLevel" && pre["add_prefix_space"] == false && pre["use_regex"] != false
}

fn bpe(model: &Value) -> Option<ByteBpe> {
    let unset = |key: &str| model[key].is_null() || model[key] == false || model[key] == "";
    let plain =
        ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"].iter().all(|k| unset(k));
    let typed = model["type"] == "BPE" || (model["type"].is_null() && model["merges"].is_array());
    if !plain || !typed {
        return None;
    }
    let alphabet = alphabet();
    let spelled: HashMap<char, u8> = (0..=255u8).map(|b| (alphabet[usize::from(b)], b)).collect();
    let mut vocabulary: HashMap<Box<[u8]>, u32> = HashMap::new();
    for (token, id) in model["vocab"].as_object()? {
        // Control tokens may be there under their own spelling; no text leads to them.
        if let Some(bytes) = token.chars().map(|c| spelled.get(&c).copied()).collect::<Option<Vec<u8>>>() {
            vocabulary.insert(bytes.into(), u32::try_from(id.as_u64()?).ok()?);
        }
    }
    let ids = model["vocab"].as_object()?;
    let id = |token: &str| ids.get(token).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let mut merges = Vec::new();
    for (rank, merge) in model["merges"].as_array()?.iter().enumerate() {
        let (left, right) = match merge {
            Value::String(pair) => pair.split_once(' ')?,
            pair => (pair[0].as_str()?, pair[1].as_str()?),
        };
        let token = id(&format!("{left}{right}"))?;
        merges.push(Merge { left: id(left)?, right: id(right)?, rank: u32::try_from(rank).ok()?, token });
    }
    let whole = if model["ignore_merges"] == true { Whole::InVocabulary } else { Whole::ByMerging };
    ByteBpe::new(&vocabulary, &merges, whole)
}

/// The outer None: a kind of added token that is not done here.
fn added(tokens: &Value, control: impl Fn(&str) -> bool) -> Option<Option<(AhoCorasick, Vec<u32>)>> {
    let (mut patterns, mut ids, mut normalized) = (Vec::new(), Vec::new(), Vec::new());
    for token in tokens.as_array().into_iter().flatten() {
        let content = token["content"].as_str()?;
        if control(content) {
            continue;
        }
        if ["lstrip", "rstrip", "single_word", "special"].iter().any(|key| token[key] == true) || content.is_empty() {
            return None;
        }
        patterns.push(content.to_owned());
        ids.push(u32::try_from(token["id"].as_u64()?).ok()?);
        normalized.push(token["normalized"] == true);
    }
    normalized.dedup();
    // Two kinds are matched one after the other.
    match normalized.len() {
        0 => Some(None),
        1 => {
            let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns).ok()?;
            Some(Some((finder, ids)))
        }
        _ => None,
    }
}

/// The character that stands for each byte in a vocabulary file.
fn alphabet() -> [char; 256] {
    let mut next = 0u32;
    std::array::from_fn(|byte| {
        let b = byte as u8;
        if matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(b);
        }
        next += 1;
        char::from_u32(255 + next).unwrap_or_default()
    })
}

/// A token's bytes as a vocabulary file spells them.
pub(super) fn spell(word: &[u8]) -> String {
    static ALPHABET: std::sync::LazyLock<[char; 256]> = std::sync::LazyLock::new(alphabet);
    word.iter().map(|b| ALPHABET[usize::from(*b)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelled_as_in_vocabulary_files() {
        // `Ġ` is a space, `Ċ` a line feed: any vocabulary of GPT-2's kind shows it.
        assert_eq!(spell(b" a\n!\xff\x00\x7f"), "\u{120}a\u{10a}!\u{ff}\u{100}\u{121}");
        let set: std::collections::HashSet<char> = alphabet().into_iter().collect();
        assert_eq!(set.len(), 256);
    }
}
