//! The split of GPT-2 without a regular expression engine: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
//! Knows nothing of tokens.

use super::classes::{self, ASCII, Class, MULTIBYTE};
use std::ops::Range;

/// The pieces of a text, in order, without gaps.
pub struct Pieces<'a> {
    bytes: &'a [u8],
    at: usize,
    table: &'static [u8],
}

impl<'a> Pieces<'a> {
    /// Cuts `text`.
    pub fn new(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), at: 0, table: classes::table() }
    }

    /// Class and length in bytes of the character at `at`.
    #[inline]
    fn class(&self, at: usize) -> (u8, usize) {
        match ASCII[usize::from(self.bytes[at])] {
            MULTIBYTE => {
                let (code, width) = decode(&self.bytes[at..]);
                (classes::of(self.table, code), width)
            }
            class => (class, 1),
        }
    }

    /// End of the run of characters of one class that goes on at `at`.
    #[inline]
    fn run(&self, mut at: usize, class: u8) -> usize {
        while at < self.bytes.len() {
            let found = ASCII[usize::from(self.bytes[at])];
            if found == class {
                at += 1;
            } else if found == MULTIBYTE {
                let (code, width) = decode(&self.bytes[at..]);
                if classes::of(self.table, code) != class {
                    break;
                }
                at += width;
            } else {
                break;
            }
        }
        at
    }

    /// End of the piece of white space that begins at `start`: the whole run at the end of the text, else all but its last character,
    /// which goes with what follows; a single character stands alone.
    fn white(&self, start: usize) -> usize {
        let (mut at, mut last) = (start, start);
        while at < self.bytes.len() {
            let (class, width) = self.class(at);
            if class != Class::Space as u8 {
                return if last > start { last } else { at };
            }
            last = at;
            at += width;
        }
        at
    }
}

impl Iterator for Pieces<'_> {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let first = *self.bytes.get(start)?;
        let end = match contraction(&self.bytes[start..]) {
            0 => {
                let word = start + usize::from(first == b' ' && start + 1 < self.bytes.len());
                match self.class(word) {
                    (class, _) if class == Class::Space as u8 => self.white(start),
                    (class, width) => self.run(word + width, class),
                }
            }
            length => start + length,
        };
        self.at = end;
        Some(start..end)
    }
}

/// Length of an English contraction at the beginning; 0 for none.
#[inline]
fn contraction(bytes: &[u8]) -> usize {
    match bytes {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => 2,
        [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => 3,
        _ => 0,
    }
}

/// Code point and length of the first character; the bytes are valid UTF-8 and the character is not ASCII.
#[inline]
fn decode(bytes: &[u8]) -> (u32, usize) {
    let low = |at: usize| u32::from(bytes.get(at).copied().unwrap_or_default() & 0x3f);
    match bytes[0] {
        b @ 0..=0xdf => (u32::from(b & 0x1f) << 6 | low(1), 2),
        b @ 0xe0..=0xef => (u32::from(b & 0x0f) << 12 | low(1) << 6 | low(2), 3),
        b => (u32::from(b & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3), 4),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(in crate::text) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// The same with a regular expression; the look-ahead, which the engine lacks, is done by hand.
    fn reference(text: &str) -> Vec<&str> {
        static PATTERN: LazyLock<regex::Regex> = LazyLock::new(|| {
            regex::Regex::new(r"^(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)").unwrap()
        });
        static WHITE: LazyLock<regex::Regex> = LazyLock::new(|| regex::Regex::new(r"^\s+").unwrap());
        let (mut pieces, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let end = match PATTERN.find(rest) {
                Some(found) => found.end(),
                None => {
                    let run = WHITE.find(rest).unwrap();
                    let last = run.as_str().char_indices().next_back().unwrap().0;
                    if run.end() < rest.len() && last > 0 { last } else { run.end() }
                }
            };
            pieces.push(&rest[..end]);
            rest = &rest[end..];
        }
        pieces
    }

    fn check(text: &str) {
        let ours: Vec<&str> = Pieces::new(text).map(|range| &text[range]).collect();
        assert_eq!(ours, reference(text), "{text:?}");
    }

    /// Characters that the split treats differently, and neighbours of theirs.
    pub fn awkward() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "[a-z]{1,8}",
            prop::sample::select(vec![
                " ",
                "  ",
                "\n",
                "\r\n",
                "\t",
                "'",
                "'s",
                "'ll",
                "'l",
                "'re",
                "'v",
                "''",
                "\u{a0}",
                "\u{2003}",
                "\u{85}",
                "\u{3000}",
                "\u{200b}",
                "1",
                "12",
                "\u{bd}",
                "\u{2167}",
                "\u{e9}",
                "\u{65e5}\u{672c}",
                "\u{301}",
                "\u{1f600}",
                "\u{0}",
                "--",
                "!?",
                "<|endoftext|>",
                "\u{1d7d8}",
                "\u{10ffff}",
                "_",
                "\u{f4}",
            ])
            .prop_map(str::to_owned),
            any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    #[test]
    fn pieces_by_hand() {
        let pieces = |text| Pieces::new(text).map(|range| &text[range]).collect::<Vec<&str>>();
        assert_eq!(pieces("Hello  world's 42!\n\n x "), ["Hello", " ", " world", "'s", " 42", "!", "\n\n", " x", " "]);
        assert_eq!(pieces("''ll 'll"), ["''", "ll", " '", "ll"]);
        assert_eq!(pieces(""), Vec::<&str>::new());
        assert_eq!(pieces(" \n"), [" \n"]);
        assert_eq!(pieces("a\tb"), ["a", "\t", "b"]);
    }

    proptest! {
        #[test]
        fn pieces_are_those_of_the_regular_expression(text in awkward()) {
            check(&text);
        }
    }
}
