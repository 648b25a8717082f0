//! Tables with words of up to 15 bytes as keys of 16: a probe reads one or two lines of memory and follows no pointer.

use super::NONE;
use std::ops::Range;

/// Bytes of a word that fit a key.
pub const SHORT: usize = 15;
/// Words of several tokens that a thread remembers.
const REMEMBERED: usize = 1 << 15;
/// Tokens of such a word at most.
const TOKENS: usize = 7;

/// The bytes of `text[range]`, at most [`SHORT`], with their number in the highest byte. Never 0 for a word.
#[inline]
pub fn key(text: &[u8], range: Range<usize>) -> u128 {
    let length = range.len();
    let mut bytes = [0; 16];
    match text.get(range.start..range.start + 16) {
        Some(window) => bytes.copy_from_slice(window),
        None => bytes[..length].copy_from_slice(&text[range]),
    }
    let mask = (1u128 << (8 * length)) - 1;
    (u128::from_le_bytes(bytes) & mask) | (length as u128) << 120
}

/// Folded multiplication of both halves.
#[inline]
fn hash(key: u128) -> usize {
    let (low, high) = (key as u64 ^ 0x9e37_79b9_7f4a_7c15, (key >> 64) as u64 ^ 0xd6e8_feb8_6659_fd93);
    let product = u128::from(low) * u128::from(high);
    (product as u64 ^ (product >> 64) as u64) as usize
}

/// Word → token; filled once, probed in line.
#[derive(Debug)]
pub struct Short {
    slots: Vec<(u128, u32)>,
    mask: usize,
}

impl Short {
    /// Every word once.
    pub fn new(words: &[(&[u8], u32)]) -> Self {
        let size = (words.len() * 2).next_power_of_two().max(16);
        let (mut slots, mask) = (vec![(0u128, NONE); size], size - 1);
        for (word, id) in words {
            let key = key(word, 0..word.len());
            let mut at = hash(key) & mask;
            while slots[at].0 != 0 {
                at = (at + 1) & mask;
            }
            slots[at] = (key, *id);
        }
        Self { slots, mask }
    }

    /// The token, or [`NONE`].
    #[inline]
    pub fn get(&self, key: u128) -> u32 {
        let mut at = hash(key) & self.mask;
        loop {
            let (found, id) = self.slots[at];
            if found == key || found == 0 {
                return id;
            }
            at = (at + 1) & self.mask;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: u128,
    count: u32,
    ids: [u32; TOKENS],
}

/// Word → several tokens; a newer word takes an older one's place.
#[derive(Debug)]
pub struct Cache {
    entries: Vec<Entry>,
}

impl Cache {
    pub fn new() -> Self {
        Self { entries: vec![Entry { key: 0, count: 0, ids: [0; TOKENS] }; REMEMBERED] }
    }

    #[inline]
    pub fn get(&self, key: u128) -> Option<&[u32]> {
        let entry = &self.entries[hash(key) & (REMEMBERED - 1)];
        (entry.key == key).then(|| &entry.ids[..entry.count as usize])
    }

    /// Words of too many tokens are not kept.
    pub fn put(&mut self, key: u128, ids: &[u32]) {
        if ids.len() <= TOKENS {
            let entry = &mut self.entries[hash(key) & (REMEMBERED - 1)];
            (entry.key, entry.count) = (key, ids.len() as u32);
            entry.ids[..ids.len()].copy_from_slice(ids);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hold_the_word_and_nothing_of_its_neighbours() {
        let text = b"one two three four five six";
        assert_eq!(key(text, 4..7), key(b"two", 0..3));
        assert_ne!(key(text, 4..7), key(b"two\0", 0..4));
        assert_eq!(key(text, 24..27), key(b"six", 0..3));
        assert_eq!(key(b"\0", 0..1) >> 120, 1);
    }
}
