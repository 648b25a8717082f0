//! Character classes of the GPT-2 split: letters (`\p{L}`), numbers (`\p{N}`), white space (`\s`), all else. From the tables of
//! regex-syntax, the same that a regular expression would use.

use regex_syntax::hir::{Class as HirClass, HirKind};
use std::sync::LazyLock;

/// Class of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Neither of the others.
    Other = 0,
    /// `\p{L}`
    Letter = 1,
    /// `\p{N}`
    Number = 2,
    /// `\s`
    Space = 3,
}

/// Class numbers of ASCII; [`MULTIBYTE`] from 0x80 on, where a character has several bytes.
pub const ASCII: [u8; 256] = ascii();
/// No class: look the character up in [`of`].
pub const MULTIBYTE: u8 = 4;

const fn ascii() -> [u8; 256] {
    let mut table = [Class::Other as u8; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b >= 0x80 {
            table[byte] = MULTIBYTE;
        } else if b.is_ascii_alphabetic() {
            table[byte] = Class::Letter as u8;
        } else if b.is_ascii_digit() {
            table[byte] = Class::Number as u8;
        } else if b == b' ' || (b >= 0x09 && b <= 0x0d) {
            table[byte] = Class::Space as u8;
        }
        byte += 1;
    }
    table
}

/// Two bits a code point.
static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut table = vec![0u8; 0x11_0000 / 4];
    for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
        for (from, to) in ranges(pattern) {
            for code in from..=to {
                table[(code >> 2) as usize] |= (class as u8) << ((code & 3) * 2);
            }
        }
    }
    table
});

fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    let hir = regex_syntax::parse(pattern).expect("a constant pattern");
    match hir.kind() {
        HirKind::Class(HirClass::Unicode(class)) => {
            class.ranges().iter().map(|r| (r.start() as u32, r.end() as u32)).collect()
        }
        _ => Vec::new(),
    }
}

/// The table for [`of`].
pub fn table() -> &'static [u8] {
    &TABLE
}

/// Class number of any code point.
#[inline]
pub fn of(table: &[u8], code: u32) -> u8 {
    table.get((code >> 2) as usize).map_or(0, |byte| (byte >> ((code & 3) * 2)) & 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_the_regular_expression() {
        let one = |pattern: &str| regex::Regex::new(&format!("^{pattern}$")).expect("a constant pattern");
        let (letter, number, space) = (one(r"\p{L}"), one(r"\p{N}"), one(r"\s"));
        let mut buffer = [0; 4];
        for code in (0..0x11_0000).filter_map(char::from_u32) {
            let text: &str = code.encode_utf8(&mut buffer);
            let expected = match () {
                () if letter.is_match(text) => Class::Letter,
                () if number.is_match(text) => Class::Number,
                () if space.is_match(text) => Class::Space,
                () => Class::Other,
            };
            assert_eq!(of(table(), code as u32), expected as u8, "{code:?}");
            if code.is_ascii() {
                assert_eq!(ASCII[code as usize], expected as u8, "{code:?}");
            }
        }
    }
}
