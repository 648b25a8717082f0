//! Rephrasing by edits: a small model reads a text segment by segment and writes behind each whether it stays. What stays is taken
//! from the source, so no word can be invented or misspelt. Pure; knows nothing of models or tokens.
//!
//! ```text
//! source   Home | Login⏎⏎The cat sat.  It ran.
//! script   Home ⋄ | Login ⋄ D⏎⏎The cat sat. ⋄ D It ran. ⋄ K ⋄ K
//! text     The cat sat. It ran.
//! ```
//!
//! The model is given the segments, each with the mark ⋄ (a character of Unicode's private use area) behind it, and chooses the letters:
//! `K` keeps, `D` drops. A choice stands one segment late, so that it can look at what follows. ProX (arXiv 2409.17115) lets a model write
//! the numbers of lines to delete; here every segment has a choice of its own to learn from, and cuts may fall inside a line. Of a long
//! segment the model sees both ends only.

mod label;
mod segment;

pub use label::{choices, example};

use super::{
    corrupt::tidy,
    lines::{Form, units},
};
use segment::{Segment, segments};

/// Segments of a text at most; the last one takes what is left.
pub const MOST: usize = 128;
/// Ends a segment.
const MARK: char = '\u{e100}';
/// Keeps a segment.
pub const KEEP: char = 'K';
/// Drops a segment.
pub const DROP: char = 'D';
/// In a training text: what stands between these two is read, not learnt.
pub const GIVEN: [char; 2] = ['\u{e0f0}', '\u{e0f1}'];
/// A segment of more characters is shown by its first [`HEAD`] and last [`TAIL`].
const SHOWN: usize = 110;
const HEAD: usize = 64;
const TAIL: usize = 34;

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

    /// What the model is given before each of its choices, one entry a segment: choice `i` is about segment `i` and comes behind entry `i`.
    pub fn script(&self) -> Vec<String> {
        let end = |text: String| format!("{text} {MARK}");
        let mut pieces = (0..self.segments.len()).map(|i| end(self.piece(i)));
        let first = pieces.next();
        let mut script: Vec<String> = pieces.chain(first.is_some().then(|| end(String::new()))).collect();
        if let (Some(first), Some(start)) = (first, script.first_mut()) {
            start.insert_str(0, &first);
        }
        script
    }

    /// A segment as the model sees it, with what stands before it.
    fn piece(&self, i: usize) -> String {
        let segment = &self.segments[i];
        let sign = tidy(segment.gap);
        let before = match breaks(segment.gap) {
            _ if i == 0 => "",
            0 => " ",
            1 => "\n",
            _ => "\n\n",
        };
        let space = if sign.is_empty() || i == 0 { "" } else { " " };
        let sign = if i == 0 { "" } else { &sign };
        [before, sign, space, &shown(&tidy(segment.text))].concat()
    }

    /// The choices in a script that a model went through: the letters right behind the marks.
    pub fn read(&self, answer: &str) -> Vec<bool> {
        let letters = answer.split(MARK).skip(1).filter_map(|part| part.chars().next());
        letters.filter(|c| matches!(*c, KEEP | DROP)).map(|c| c == KEEP).take(self.segments.len()).collect()
    }

    /// The segments that are kept, white space put right: one space between words (code apart), at most one empty line. A segment without
    /// a choice stays.
    pub fn apply(&self, keep: &[bool]) -> String {
        let mut out = String::new();
        let mut last = None;
        for (i, segment) in self.segments.iter().enumerate().filter(|(i, _)| keep.get(*i).copied().unwrap_or(true)) {
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
    let safe = |c: char| if c == MARK || GIVEN.contains(&c) { char::REPLACEMENT_CHARACTER } else { c };
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

    #[test]
    fn script_by_hand() {
        let script = |text: &str| Edits::new(text).script().join("#").replace(MARK, "*");
        assert_eq!(script(SOURCE), "Home * | Login *#\n\nThe cat sat. *# It ran away. *#\nShare this *# *");
        assert_eq!(script("one"), "one * *");
        assert_eq!(script(" \n"), "");
        let long = format!("{} {}.", "word".repeat(5), "many words follow here ".repeat(12));
        let shown = script(&long);
        assert!(shown.chars().count() < 115 && shown.contains(" … ") && shown.starts_with("wordword"));
    }

    #[test]
    fn reads_what_was_chosen() {
        let edits = Edits::new(SOURCE);
        let letters = ["D", "K", "D", "K", "K"];
        let text: String =
            edits.script().iter().zip(letters).map(|(given, letter)| format!("{given}{letter}")).collect();
        assert_eq!(edits.read(&text), [false, true, false, true, true]);
        assert_eq!(edits.read(""), [false; 0]);
    }

    #[test]
    fn apply_by_hand() {
        let edits = Edits::new(SOURCE);
        assert_eq!(edits.apply(&[false, false, true, true, false]), "The cat sat. It ran away.");
        assert_eq!(edits.apply(&[true; 5]), "Home | Login\n\nThe cat sat. It ran away.\nShare this");
        assert_eq!(edits.apply(&[true, false, false, false, true]), "Home\n\nShare this");
        assert_eq!(edits.apply(&[false]), "Login\n\nThe cat sat. It ran away.\nShare this");
    }

    #[test]
    fn white_space_is_put_right_and_code_is_left_alone() {
        let edits = Edits::new("  One\u{a0}\u{a0}two.\n\n\n\n   Three \n");
        assert_eq!(edits.apply(&[]), "One two.\n\nThree");
        let code = "```\nfn main() {\n    let x  = 1;\n}\n```";
        let kept = Edits::new(code).apply(&[]);
        assert!(kept.contains("\n    let x  = 1;\n"), "{kept}");
    }

    #[test]
    fn odd_texts() {
        for text in
            ["", " \n ", "a", "\u{e100}", "🙂 🙂", "مرحبا بالعالم. أهلا", &"x\n".repeat(500), &"word. ".repeat(3000)]
        {
            let edits = Edits::new(text);
            let solid = |t: &str| tidy(t).replace(' ', "");
            assert_eq!(solid(&edits.apply(&[])), solid(text));
            assert!(edits.script().len() <= MOST);
        }
        let script = Edits::new("a \u{e100} \u{e0f0} b").script().concat();
        assert_eq!(script.matches(MARK).count(), 2, "a document cannot speak as a mark");
        assert!(!script.contains(GIVEN));
    }
}
