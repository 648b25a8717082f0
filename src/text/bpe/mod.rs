//! A fast byte-pair encoder for vocabularies over bytes with the split of GPT-2 (GPT-2, GPT-NeoX, OLMo, tokenizers made here). Gives the ids that
//! tiktoken gives for a rank file ([`ranks`]) and that the tokenizers crate gives for a `tokenizer.json` of this kind ([`json`]), and says
//! where it cannot. Knows nothing of files and control tokens.
//!
//! What makes it fast: no regular expression, one probe of a table for a word that is a token, and a small cache per thread for the words that
//! take several. A word of any length costs n log n at most.

pub mod classes;
pub mod json;
mod merge;
pub mod ranks;
pub mod split;
mod table;

use merge::{Merger, Pairs};
use split::Pieces;
use std::collections::HashMap;
use table::{Cache as Words, SHORT, Short, key};

/// No token.
pub(super) const NONE: u32 = u32::MAX;

/// A vocabulary, ready to encode. Shared between threads; each has its own [`Cache`].
#[derive(Debug)]
pub struct ByteBpe {
    /// Words of up to [`SHORT`] bytes that are a token.
    short: Short,
    /// Longer ones.
    long: HashMap<Box<[u8]>, u32>,
    merger: Merger,
}

/// What one thread remembers of the words that it has seen. Bounded.
#[derive(Debug)]
pub struct Cache {
    words: Words,
    scratch: merge::Scratch,
    tokens: Vec<u32>,
}

impl Default for Cache {
    fn default() -> Self {
        Self { words: Words::new(), scratch: merge::Scratch::default(), tokens: Vec::new() }
    }
}

/// Which words are a token without merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// Every word that is in the vocabulary (tiktoken; `ignore_merges` of tokenizer.json).
    InVocabulary,
    /// Only those that merging gives (tokenizer.json otherwise).
    ByMerging,
}

/// One merge: the tokens left and right, how early it is done (lower first, equal ones from the left), and what it gives.
#[derive(Debug, Clone, Copy)]
pub struct Merge {
    /// Left token.
    pub left: u32,
    /// Right token.
    pub right: u32,
    /// Order among the merges.
    pub rank: u32,
    /// The token that both give.
    pub token: u32,
}

impl ByteBpe {
    /// From a vocabulary of byte strings and its merges. None where a byte that can occur in UTF-8 is no token.
    pub fn new(vocabulary: &HashMap<Box<[u8]>, u32>, merges: &[Merge], whole: Whole) -> Option<Self> {
        let mut bytes = [NONE; 256];
        for byte in 0..=255u8 {
            match vocabulary.get(&[byte][..]) {
                Some(id) => bytes[usize::from(byte)] = *id,
                None if matches!(byte, 0xc0 | 0xc1 | 0xf5..) => {}
                None => return None,
            }
        }
        let merger = Merger { bytes, pairs: Pairs::new(merges) };
        let mut scratch = merge::Scratch::default();
        let mut tokens = Vec::new();
        let mut direct = |word: &[u8], id: u32| {
            if whole == Whole::InVocabulary {
                return true;
            }
            tokens.clear();
            merger.encode(word, &mut scratch, &mut tokens);
            tokens == [id]
        };
        let chosen: Vec<(&[u8], u32)> = vocabulary
            .iter()
            .map(|(word, id)| (&**word, *id))
            .filter(|(word, id)| !word.is_empty() && direct(word, *id))
            .collect();
        let (short, long): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|(word, _)| word.len() <= SHORT);
        Some(Self {
            short: Short::new(&short),
            long: long.into_iter().map(|(word, id)| (word.into(), id)).collect(),
            merger,
        })
    }

    /// Appends the ids of a text.
    pub fn encode(&self, text: &str, cache: &mut Cache, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        for piece in Pieces::new(text) {
            if piece.len() > SHORT {
                let word = &bytes[piece];
                match self.long.get(word) {
                    Some(id) => out.push(*id),
                    None => self.merger.encode(word, &mut cache.scratch, out),
                }
                continue;
            }
            let key = key(bytes, piece.clone());
            match self.short.get(key) {
                NONE => self.several(&bytes[piece], key, cache, out),
                id => out.push(id),
            }
        }
    }

    /// A short word of several tokens, from the cache or merged.
    fn several(&self, word: &[u8], key: u128, cache: &mut Cache, out: &mut Vec<u32>) {
        if let Some(ids) = cache.words.get(key) {
            out.extend_from_slice(ids);
            return;
        }
        cache.tokens.clear();
        self.merger.encode(word, &mut cache.scratch, &mut cache.tokens);
        cache.words.put(key, &cache.tokens);
        out.extend_from_slice(&cache.tokens);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn toy(whole: Whole) -> ByteBpe {
        let mut vocabulary: HashMap<Box<[u8]>, u32> = (0..=255u8).map(|b| (vec![b].into(), u32::from(b))).collect();
        for (i, word) in ["ab", "bc", "abc", "xyz"].iter().enumerate() {
            vocabulary.insert(word.as_bytes().into(), 256 + i as u32);
        }
        let pair = |left: &str, right: &str, rank, token| Merge {
            left: vocabulary[left.as_bytes()],
            right: vocabulary[right.as_bytes()],
            rank,
            token,
        };
        let merges = [pair("b", "c", 0, 257), pair("a", "b", 1, 256), pair("a", "bc", 2, 258)];
        ByteBpe::new(&vocabulary, &merges, whole).unwrap()
    }

    fn ids(bpe: &ByteBpe, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        let mut cache = Cache::default();
        bpe.encode(text, &mut cache, &mut out);
        let once = out.clone();
        bpe.encode(text, &mut cache, &mut out);
        assert_eq!(out, [&once[..], &once[..]].concat(), "the cache gives the same");
        once
    }

    #[test]
    fn merges_by_rank_then_from_the_left() {
        let bpe = toy(Whole::ByMerging);
        assert_eq!(ids(&bpe, "abc"), [258]);
        assert_eq!(ids(&bpe, "abab"), [256, 256]);
        assert_eq!(ids(&bpe, "abbc"), [256, 257]);
        // no merge makes `xyz`
        assert_eq!(ids(&bpe, "xyz"), [120, 121, 122]);
        assert_eq!(ids(&toy(Whole::InVocabulary), "xyz"), [259]);
    }

    #[test]
    fn long_words_take_the_other_way() {
        let bpe = toy(Whole::ByMerging);
        let long = "abc".repeat(5_000);
        assert_eq!(ids(&bpe, &long), vec![258; 5_000]);
        let few = "ab".repeat(30);
        assert_eq!(ids(&bpe, &few), vec![256; 30]);
    }

    #[test]
    fn a_vocabulary_without_all_bytes_is_refused() {
        let vocabulary = HashMap::from([(Box::from(&b"a"[..]), 0)]);
        assert!(ByteBpe::new(&vocabulary, &[], Whole::ByMerging).is_none());
    }
}
