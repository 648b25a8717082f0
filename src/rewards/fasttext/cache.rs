//! The rows of words that a thread has seen before. Text repeats its words (4,000 make up three quarters of a web corpus), and a word of
//! a model with character n-grams costs some fifteen hashes and look-ups. Each thread has its own, so that cores share no lines.

use super::words::spread;

/// A table of words by their hash; a new word takes the place of the old.
#[derive(Default)]
pub(super) struct Words {
    slots: Vec<Slot>,
}

/// Words of at most 22 bytes and 24 rows: two cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Slot {
    /// model and hash of the word
    key: u64,
    /// bytes of the word; 0: none is here
    length: u8,
    count: u8,
    word: [u8; LONGEST],
    rows: [u32; MOST],
}

const LONGEST: usize = 22;
const MOST: usize = 24;
const SLOTS: usize = 1 << 12;
const NONE: Slot = Slot { key: 0, length: 0, count: 0, word: [0; LONGEST], rows: [0; MOST] };

impl Words {
    /// The rows kept for a word of the model with this number; `hash` is the word's.
    pub(super) fn find(&self, model: u32, word: &[u8], hash: u32) -> Option<&[u32]> {
        let slot = self.slots.get(at(hash))?;
        let is_it = slot.key == key(model, hash) && slot.word.get(..usize::from(slot.length)) == Some(word);
        is_it.then(|| &slot.rows[..usize::from(slot.count)])
    }

    /// Keeps the rows of a word, if neither is long.
    pub(super) fn keep(&mut self, model: u32, word: &[u8], hash: u32, rows: &[u32]) {
        if word.is_empty() || word.len() > LONGEST || rows.len() > MOST {
            return;
        }
        if self.slots.is_empty() {
            self.slots = vec![NONE; SLOTS];
        }
        let slot = &mut self.slots[at(hash)];
        (slot.key, slot.length, slot.count) = (key(model, hash), word.len() as u8, rows.len() as u8);
        slot.word[..word.len()].copy_from_slice(word);
        slot.rows[..rows.len()].copy_from_slice(rows);
    }
}

fn at(hash: u32) -> usize {
    spread(hash) % SLOTS
}

fn key(model: u32, hash: u32) -> u64 {
    u64::from(model) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_for_its_model_until_another_takes_its_place() {
        let mut words = Words::default();
        assert_eq!(words.find(1, b"a", 5), None);
        words.keep(1, b"a", 5, &[7, 8]);
        words.keep(1, b"b", 6, &[]);
        assert_eq!(words.find(1, b"a", 5), Some(&[7, 8][..]));
        assert_eq!(words.find(1, b"b", 6), Some(&[][..]));
        assert_eq!((words.find(2, b"a", 5), words.find(1, b"ab", 5), words.find(1, b"", 5)), (None, None, None));
        words.keep(1, b"same hash", 5, &[9]);
        assert_eq!((words.find(1, b"a", 5), words.find(1, b"same hash", 5)), (None, Some(&[9][..])));
        words.keep(2, b"a", 5, &[1; MOST]);
        assert_eq!((words.find(1, b"same hash", 5), words.find(2, b"a", 5)), (None, Some(&[1; MOST][..])));
    }

    #[test]
    fn long_words_and_words_of_many_rows_are_not_kept() {
        let mut words = Words::default();
        words.keep(1, &[b'x'; LONGEST], 5, &[1; MOST]);
        words.keep(1, &[b'x'; LONGEST + 1], 6, &[1]);
        words.keep(1, b"x", 7, &[1; MOST + 1]);
        assert_eq!(words.find(1, &[b'x'; LONGEST], 5), Some(&[1; MOST][..]));
        assert_eq!((words.find(1, &[b'x'; LONGEST + 1], 6), words.find(1, b"x", 7)), (None, None));
    }
}
