//! Text to rows of the input matrix: words, character n-grams, word n-grams, by fastText's hashes. Knows no matrices.

/// A hash table from byte strings or numbers to 32-bit values: open addressing, at most half full, so that look-ups are short.
/// Holds no keys: the caller compares.
pub(super) struct Table {
    slots: Vec<(u32, u32)>,
}

const EMPTY: u32 = u32::MAX;

impl Table {
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self { slots: vec![(0, EMPTY); (entries * 2).next_power_of_two().max(2)] }
    }

    /// Adds a value (below `u32::MAX`); the table must have been made for at least as many.
    pub(super) fn insert(&mut self, hash: u32, value: u32) {
        let mask = self.slots.len() - 1;
        let mut at = spread(hash) & mask;
        while self.slots[at].1 != EMPTY {
            at = (at + 1) & mask;
        }
        self.slots[at] = (hash, value);
    }

    /// The first value under `hash` that `is_it` accepts.
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = spread(hash) & mask;
        loop {
            let (found, value) = self.slots[at];
            if value == EMPTY {
                return None;
            }
            if found == hash && is_it(value) {
                return Some(value);
            }
            at = (at + 1) & mask;
        }
    }
}

/// Mixes a hash, so that its low bits can be a place in a table.
pub(super) fn spread(hash: u32) -> usize {
    (hash.wrapping_mul(0x9e37_79b1) >> 7) as usize
}

/// FNV-1a over bytes that are sign-extended first, as fastText does.
pub(super) fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(NO_BYTES, |hash, byte| extend(hash, *byte))
}

/// The hash of nothing.
const NO_BYTES: u32 = 2_166_136_261;

fn extend(hash: u32, byte: u8) -> u32 {
    (hash ^ (byte as i8 as u32)).wrapping_mul(16_777_619)
}

/// One text as rows of the input matrix. Kept between texts for its memory.
#[derive(Default)]
pub(super) struct Line {
    /// rows to average, in the order in which fastText adds them
    pub(super) rows: Vec<u32>,
    /// hashes of all words, known or not
    pub(super) hashes: Vec<u32>,
    /// hashes of the character n-grams of one word
    pub(super) ngrams: Vec<u32>,
    /// that word between its marks
    marked: Vec<u8>,
}

impl Line {
    /// Numbers that the buffers have room for, the largest of them.
    pub(super) fn capacity(&self) -> usize {
        self.rows.capacity().max(self.hashes.capacity()).max(self.ngrams.capacity())
    }

    /// Fills `ngrams` for a word: all runs of `least` to `most` characters of `<word>`; a mark alone is none.
    pub(super) fn char_ngrams(&mut self, word: &[u8], least: usize, most: usize) {
        let Self { ngrams, marked, .. } = self;
        ngrams.clear();
        marked.clear();
        marked.push(b'<');
        marked.extend_from_slice(word);
        marked.extend_from_slice(b">\0");
        let last = marked.len() - 2;
        for start in (0..=last).filter(|at| !continues(marked[*at])) {
            let least = if start == 0 || start == last { least.max(2) } else { least };
            let (mut hash, mut length) = (NO_BYTES, 0);
            for pair in marked[start..].windows(2) {
                hash = extend(hash, pair[0]);
                if continues(pair[1]) {
                    continue;
                }
                length += 1;
                if length >= least {
                    ngrams.push(hash);
                }
                if length == most {
                    break;
                }
            }
        }
    }
}

/// Whether a byte of UTF-8 belongs to the character before it.
fn continues(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// The words of a text as DCLM passes it to fastText: stripped of white space, line breaks of any kind as spaces, and then fastText's
/// own separators. Equals `" ".join(text.strip().splitlines())` in Python, cut at ASCII white space and NUL.
pub(super) fn split(text: &str) -> impl Iterator<Item = &[u8]> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && separator(&bytes[at..]) > 0 {
            at += separator(&bytes[at..]);
        }
        let start = at;
        while at < bytes.len() && separator(&bytes[at..]) == 0 {
            at += 1;
        }
        (at > start).then(|| &bytes[start..at])
    })
}

/// Length of the separator that the bytes begin with, or 0. Line breaks outside ASCII: U+0085, U+2028, U+2029.
fn separator(bytes: &[u8]) -> usize {
    match bytes[0] {
        b' ' | b'\n' | b'\r' | b'\t' | 0x0b | 0x0c | 0 | 0x1c..=0x1e => 1,
        0xc2 if bytes.get(1) == Some(&0x85) => 2,
        0xe2 if bytes.get(1) == Some(&0x80) && matches!(bytes.get(2), Some(0xa8 | 0xa9)) => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_fnv_with_signed_bytes() {
        assert_eq!(hash(b""), 2_166_136_261);
        assert_eq!(hash(b"a"), 0xe40c_292c); // FNV-1a's published value; ASCII is not touched by the sign
        // worked by hand: (offset ^ 0xffffffc3) * prime, then ^ 0xffffffa9, * prime, modulo 2^32
        let step = |h: u64, byte: u64| ((h ^ byte) * 16_777_619) % (1 << 32);
        assert_eq!(u64::from(hash("é".as_bytes())), step(step(2_166_136_261, 0xffff_ffc3), 0xffff_ffa9));
    }

    #[test]
    fn character_ngrams_are_runs_of_whole_characters_between_marks() {
        let ngrams = |word: &str, least, most| {
            let mut line = Line::default();
            line.char_ngrams("another".as_bytes(), 1, 9);
            line.char_ngrams(word.as_bytes(), least, most);
            line.ngrams
        };
        let hashes = |runs: &[&str]| runs.iter().map(|run| hash(run.as_bytes())).collect::<Vec<_>>();
        assert_eq!(ngrams("aé語", 2, 3), hashes(&["<a", "<aé", "aé", "aé語", "é語", "é語>", "語>"]));
        assert_eq!(ngrams("é", 1, 2), hashes(&["<é", "é", "é>"]));
        assert_eq!(ngrams("é", 0, 9), hashes(&["<é", "<é>", "é", "é>"]));
        assert_eq!(ngrams("é", 4, 9), hashes(&[]));
        assert_eq!(ngrams("é", 3, 2), hashes(&[]));
    }

    #[test]
    fn words_are_cut_as_python_and_fasttext_do() {
        let words =
            |text: &'static str| split(text).map(|word| std::str::from_utf8(word).unwrap_or("?")).collect::<Vec<_>>();
        assert_eq!(
            words("  a\u{a0}b c\r\nd\u{2028}e\u{85}f\u{1c}g\0h\u{3000}"),
            ["a\u{a0}b", "c", "d", "e", "f", "g", "h"]
        );
        assert_eq!(words("\u{3000}\u{1f}x"), ["x"]);
        assert_eq!(words(" \n "), Vec::<&str>::new());
        assert_eq!(words("a\u{1f}b"), ["a\u{1f}b"]);
    }

    #[test]
    fn the_table_finds_what_was_put_in() {
        let mut table = Table::with_capacity(100);
        (0..100).for_each(|i| table.insert(i % 7, i));
        assert!((0..100).all(|i| table.find(i % 7, |value| value == i) == Some(i)));
        assert_eq!(table.find(3, |value| value == 100), None);
        assert_eq!(table.find(8, |_| true), None);
    }
}
