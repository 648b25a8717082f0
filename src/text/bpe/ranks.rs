//! tiktoken's rank files: a line per token, its bytes in base64 and its rank, which is also its id. Any two neighbours are merged whose bytes
//! together are a token, the lowest rank first.

use super::{ByteBpe, Merge, Whole, json};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Longest token whose usual merge is looked for, which takes the square of its length.
const LONGEST: usize = 1024;

/// A rank file.
#[derive(Debug)]
pub struct Ranks {
    ranks: HashMap<Box<[u8]>, u32>,
}

impl Ranks {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// A line that is not `base64 rank`, a token or rank that is there twice, no line at all. Errors name the line.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(bytes).context("is not a tiktoken rank file: it is not text")?;
        let mut ranks = HashMap::new();
        let mut seen = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let number = number + 1;
            let (token, rank) = parse_line(line).with_context(|| format!("line {number}: not `base64 rank`"))?;
            if let Some(other) = seen.insert(rank, number) {
                bail!("line {number}: the rank {rank} is in line {other} already");
            }
            ensure!(ranks.insert(token, rank).is_none(), "line {number}: the token is there already");
        }
        ensure!(!ranks.is_empty(), "is not a tiktoken rank file: it holds no token");
        Ok(Self { ranks })
    }

    /// The encoder.
    ///
    /// # Errors
    /// A byte that can occur in text has no rank.
    pub fn encoder(&self) -> anyhow::Result<ByteBpe> {
        let mut merges = Vec::new();
        for (word, token) in &self.ranks {
            for cut in 1..word.len() {
                if let (Some(left), Some(right)) = (self.ranks.get(&word[..cut]), self.ranks.get(&word[cut..])) {
                    merges.push(Merge { left: *left, right: *right, rank: *token, token: *token });
                }
            }
        }
        ByteBpe::new(&self.ranks, &merges, Whole::InVocabulary)
            .context("the rank file has no token for some byte that occurs in UTF-8 text")
    }

    /// The same vocabulary as a `tokenizer.json`, for transformers and for model directories. Tokens of the shape `<|…|>` are marked special. A
    /// token gets a merge for every pair of tokens that it can be cut into, first the one by which it is usually made: tiktoken merges them all.
    ///
    /// # Errors
    /// As [`Ranks::encoder`].
    pub fn to_tokenizer_json(&self) -> anyhow::Result<Vec<u8>> {
        let mut tokens: Vec<(&[u8], u32)> = self.ranks.iter().map(|(word, rank)| (&**word, *rank)).collect();
        tokens.sort_by_key(|(_, rank)| *rank);
        let spelled = |word: &[u8]| json::spell(word);
        let vocab: serde_json::Map<String, Value> = tokens.iter().map(|(w, id)| (spelled(w), (*id).into())).collect();
        let mut merges = Vec::new();
        for (word, rank) in &tokens {
            let usual = if word.len() <= LONGEST { self.last_merge(word, *rank) } else { None };
            let others = (1..word.len()).filter(|cut| Some(*cut) != usual);
            let pair = |cut: &usize| self.ranks.contains_key(&word[..*cut]) && self.ranks.contains_key(&word[*cut..]);
            let cuts = usual.into_iter().chain(others).filter(pair);
            merges.extend(cuts.map(|cut| json!([spelled(&word[..cut]), spelled(&word[cut..])])));
        }
        let added: Vec<Value> = tokens.iter().filter_map(|(word, id)| special(word, *id)).collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": level,
            "post_processor": level,
            "decoder": level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": true, "vocab": vocab, "merges": merges,
            },
        });
        Ok(serde_json::to_vec(&file)?)
    }

    /// Where the two parts meet that are left of the word when only merges of lower rank than its own are done.
    fn last_merge(&self, word: &[u8], rank: u32) -> Option<usize> {
        // starts of the parts
        let mut starts: Vec<usize> = (0..word.len()).collect();
        while starts.len() > 2 {
            let end = |at: usize| starts.get(at + 2).copied().unwrap_or(word.len());
            let ranked = (0..starts.len() - 1).filter_map(|at| {
                let found = self.ranks.get(&word[starts[at]..end(at)]).filter(|r| **r < rank)?;
                Some((*found, at))
            });
            let (_, at) = ranked.min()?;
            starts.remove(at + 1);
        }
        starts.get(1).copied()
    }
}

fn special(word: &[u8], id: u32) -> Option<Value> {
    let text = std::str::from_utf8(word).ok().filter(|t| t.len() > 4 && t.starts_with("<|") && t.ends_with("|>"))?;
    Some(json!({
        "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
    }))
}

fn parse_line(line: &str) -> Option<(Box<[u8]>, u32)> {
    let (token, rank) = line.trim().split_once(' ')?;
    Some((base64(token)?.into(), rank.trim().parse().ok().filter(|rank| *rank < 1 << 30)?))
}

/// Standard alphabet with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => Some(u32::from(c - b'A')),
        b'a'..=b'z' => Some(u32::from(c - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(c - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let body = text.trim_end_matches('=');
    if body.is_empty() || !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(body.len() * 3 / 4);
    for group in body.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for c in group {
            bits = bits << 6 | value(*c)?;
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(out)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn reads_base64() {
        for (text, bytes) in [("IQ==", "!"), ("aGk=", "hi"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba")] {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        for bad in ["", "=", "IQ=", "I===", "I!==", "Zm9vYmE"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn faulty_files_are_refused_with_the_line() {
        let fails = |text: &str| format!("{:#}", Ranks::parse(text.as_bytes()).unwrap_err());
        assert!(fails("").contains("holds no token"));
        assert!(fails("IQ== 0\n{\"a\": 1}\n").contains("line 2: not `base64 rank`"));
        assert!(fails("IQ== 0\naGk= 0\n").contains("line 2: the rank 0 is in line 1 already"));
        assert!(fails("IQ== 0\nIQ== 1\n").contains("line 2: the token is there already"));
        assert!(fails("IQ== -1\n").contains("line 1"));
        let few = Ranks::parse(b"IQ== 0\n").unwrap();
        assert!(few.encoder().unwrap_err().to_string().contains("no token for some byte"));
    }
}
