//! Rephrasing by edits: a small model reads a text cut into numbered segments and writes, for each of them, whether it stays. What
//! stays is taken from the source, so no word can be invented or misspelt. Pure; knows nothing of models or tokens.
//!
//! ```text
//! source   Home | Login⏎⏎The cat sat.  It ran.⏎Share this
//! request  Home ① | Login ②⏎⏎The cat sat. ③ It ran. ④⏎Share this ⑤
//! answer    ①D ②D ③K ④K ⑤D
//! text     The cat sat. It ran.
//! ```
//!
//! ①, ② … stand for characters of Unicode's private use area, so that no document holds them and each can be one token. `K` keeps
//! a segment, `D` drops it. A segment that the answer does not speak of stays: a broken answer loses nothing. Of a long segment the
//! request shows both ends only. ProX (arXiv 2409.17115) lets a model write line numbers to delete; here the answer names every
//! segment, so each decision has its own token to learn from, and cuts may fall inside a line.

mod label;
mod segment;

pub use label::answer;

use super::{
    corrupt::tidy,
    lines::{Form, units},
};
use segment::{Segment, segments};

/// Segments of a request at most; the last one takes what is left.
pub const MOST: usize = 96;
/// The first segment's mark; the others follow it.
const FIRST_MARK: u32 = 0xE100;
const KEEP: char = 'K';
const DROP: char = 'D';
/// A segment of more characters is shown by its first [`HEAD`] and last [`TAIL`].
const SHOWN: usize = 150;
const HEAD: usize = 90;
const TAIL: usize = 45;

/// A text cut into segments.
#[derive(Debug)]
pub struct Edits<'a> {
    segments: Vec<Segment<'a>>,
    /// Per segment: its white space means something.
    code: Vec<bool>,
}

impl<'a> Edits<'a> {
    /// Cuts the text: at line ends, at sentence ends, and at the few separators that pages glue things together with.
    pub fn new(text: &'a str) -> Self {
        let verbatim: Vec<&str> =
            units(text).iter().filter(|u| matches!(u.form, Form::Code | Form::Fenced)).map(|u| u.text).collect();
        let segments = segments(text, &verbatim, MOST);
        let inside = |part: &str| verbatim.iter().any(|line| overlap(line, part));
        let code = segments.iter().map(|s| inside(s.text)).collect();
        Self { segments, code }
    }

    /// What the model reads.
    pub fn request(&self) -> String {
        let mut out = String::new();
        for (i, segment) in self.segments.iter().enumerate() {
            if i > 0 {
                out.push_str(match breaks(segment.gap) {
                    0 => " ",
                    1 => "\n",
                    _ => "\n\n",
                });
                let sign = tidy(segment.gap);
                if !sign.is_empty() {
                    out.push_str(&sign);
                    out.push(' ');
                }
            }
            out.push_str(&shown(&tidy(segment.text)));
            out.push(' ');
            out.push(mark(i));
        }
        out
    }

    /// The segments that `answer` keeps, white space put right: one space between words (code apart), at most one empty line.
    pub fn apply(&self, answer: &str) -> String {
        let dropped = self.dropped(answer);
        let mut out = String::new();
        let mut last = None;
        for (i, segment) in self.segments.iter().enumerate().filter(|(i, _)| !dropped[*i]) {
            if let Some(last) = last {
                out.push_str(&self.seam(last, i));
            }
            if self.code[i] {
                out.push_str(indentation(segment.gap));
                out.push_str(segment.text.trim_end());
            } else {
                out.push_str(&tidy(segment.text));
            }
            last = Some(i);
        }
        out
    }

    /// Reads the answer; what it does not say, or says of a segment that is not there, counts for nothing.
    fn dropped(&self, answer: &str) -> Vec<bool> {
        let mut dropped = vec![false; self.segments.len()];
        let mut at = None;
        for c in answer.chars() {
            match (at, c) {
                (Some(i), KEEP | DROP) if i < dropped.len() => dropped[i] = c == DROP,
                _ => {}
            }
            at = number(c);
        }
        dropped
    }

    /// What stands between two kept segments.
    fn seam(&self, last: usize, next: usize) -> String {
        let gaps = || self.segments[last + 1..=next].iter().map(|s| s.gap);
        let lines = gaps().map(breaks).max().unwrap_or(0);
        match lines {
            0 if next == last + 1 => {
                let gap = self.segments[next].gap;
                let sign = tidy(gap);
                match (gap.is_empty(), sign.is_empty()) {
                    (true, _) => String::new(),
                    (_, true) => " ".to_owned(),
                    _ => format!(" {sign} "),
                }
            }
            0 => " ".to_owned(),
            1 => "\n".to_owned(),
            _ => "\n\n".to_owned(),
        }
    }
}

/// The decision on a segment as an answer writes it.
fn decision(i: usize, keep: bool) -> String {
    format!(" {}{}", mark(i), if keep { KEEP } else { DROP })
}

fn mark(i: usize) -> char {
    char::from_u32(FIRST_MARK + i as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The segment that a mark stands for.
fn number(c: char) -> Option<usize> {
    (c as u32).checked_sub(FIRST_MARK).map(|n| n as usize).filter(|n| *n < MOST)
}

/// Line ends in a gap.
fn breaks(gap: &str) -> usize {
    gap.matches('\n').count()
}

/// The white space of a line before its first character.
fn indentation(gap: &str) -> &str {
    gap.rfind('\n').map_or(gap, |at| &gap[at + 1..])
}

/// Both ends of a long text; marks that a document holds become other characters.
fn shown(text: &str) -> String {
    let count = text.chars().count();
    let safe = |c: char| if number(c).is_some() { char::REPLACEMENT_CHARACTER } else { c };
    if count <= SHOWN {
        return text.chars().map(safe).collect();
    }
    let head: String = text.chars().take(HEAD).map(safe).collect();
    let tail: String = text.chars().skip(count - TAIL).map(safe).collect();
    let head = head.rsplit_once(' ').map_or(head.as_str(), |(words, _)| words);
    let tail = tail.split_once(' ').map_or(tail.as_str(), |(_, words)| words);
    format!("{head} … {tail}")
}

/// Whether two parts of one text share a byte.
fn overlap(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes().as_ptr_range(), b.as_bytes().as_ptr_range());
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "Home | Login\n\nThe cat sat.  It ran away.\nShare this";

    fn marks(text: &str) -> String {
        text.chars()
            .map(|c| match c as u32 {
                n @ 0xE100..0xE160 => format!("<{}>", n - 0xE100),
                _ => c.to_string(),
            })
            .collect()
    }

    #[test]
    fn request_by_hand() {
        let request = Edits::new(SOURCE).request();
        assert_eq!(marks(&request), "Home <0> | Login <1>\n\nThe cat sat. <2> It ran away. <3>\nShare this <4>");
        let long = format!("{} {}.", "word".repeat(5), "many words follow here ".repeat(12));
        let request = Edits::new(&long).request();
        assert!(request.chars().count() < 150 && request.contains(" … ") && request.starts_with("wordword"));
    }

    #[test]
    fn apply_by_hand() {
        let edits = Edits::new(SOURCE);
        let say = |kept: &[bool]| kept.iter().enumerate().map(|(i, k)| decision(i, *k)).collect::<String>();
        assert_eq!(edits.apply(&say(&[false, false, true, true, false])), "The cat sat. It ran away.");
        assert_eq!(edits.apply(&say(&[true, true, true, true, true])), "Home | Login\n\nThe cat sat. It ran away.\nShare this");
        assert_eq!(edits.apply(&say(&[true, false, false, false, true])), "Home\n\nShare this");
        // Nonsense, an unfinished answer, a mark beyond the last: nothing is lost.
        let all = "Home | Login\n\nThe cat sat. It ran away.\nShare this";
        for answer in ["", "KDKD", "\u{e100}", "\u{e150}D", "\u{e100}X\u{e101}", "D\u{e100}"] {
            assert_eq!(edits.apply(answer), all, "{answer}");
        }
    }

    #[test]
    fn white_space_is_put_right_and_code_is_left_alone() {
        let edits = Edits::new("  One\u{a0}\u{a0}two.\n\n\n\n   Three \n");
        assert_eq!(edits.apply(""), "One two.\n\nThree");
        let code = "```\nfn main() {\n    let x  = 1;\n}\n```";
        let kept = Edits::new(code).apply("");
        assert!(kept.contains("\n    let x  = 1;\n"), "{kept}");
    }

    #[test]
    fn odd_texts() {
        for text in ["", " \n ", "a", "\u{e100}", "🙂 🙂", "مرحبا بالعالم. أهلا", &"x\n".repeat(500), &"word. ".repeat(3000)] {
            let edits = Edits::new(text);
            let solid = |t: &str| tidy(t).replace(' ', "");
            assert_eq!(solid(&edits.apply("")), solid(text));
            assert!(edits.request().chars().filter(|c| (0xE100..0xE160).contains(&(*c as u32))).count() <= MOST);
        }
        let request = Edits::new("a \u{e105} b").request();
        assert!(!request.contains('\u{e105}'), "a document cannot speak as a mark");
    }
}
