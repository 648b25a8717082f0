//! What each line of a text is: prose, list item, heading, code, table row, JSON, quote, label, or just a short line. Pure.
//! [`structure`](super::structure) compares two texts by this; it knows nothing of pairs. Linear in the text's length.

mod code;
mod marks;
mod tables;

use code::mark_code;
use marks::{mark_fences, mark_headings, mark_json, mark_labels, mark_signs};
use tables::mark_tables;

/// The form in which something is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// A sentence of running text.
    Prose,
    /// A short line that is no sentence: a title, a menu entry, a line of verse, an ingredient.
    Line,
    /// An item of a bullet list or a numbered list.
    List,
    /// A Markdown heading.
    Heading,
    /// A line between code fences.
    Fenced,
    /// A line of code without fences.
    Code,
    /// A row of a table.
    Table,
    /// A line of JSON.
    Json,
    /// A line marked as quoted with `>`.
    Quote,
    /// One of several lines `Name: value`: data sheets, interviews, questions and answers.
    Label,
}

impl Form {
    /// Number of forms.
    pub const COUNT: usize = Self::Label as usize + 1;
    /// All forms.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Prose,
        Self::Line,
        Self::List,
        Self::Heading,
        Self::Fenced,
        Self::Code,
        Self::Table,
        Self::Json,
        Self::Quote,
        Self::Label,
    ];
}

/// A piece of text with one form: a sentence of prose, else a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit<'a> {
    /// Its form.
    pub form: Form,
    /// Its text, with its marks.
    pub text: &'a str,
    /// Units of one paragraph share this number.
    pub paragraph: usize,
}

/// A line longer than this is prose even without a full stop.
const SHORT_LINE: usize = 100;

/// Cuts a text into units, in order. Blank lines and the fences themselves give none.
pub fn units(text: &str) -> Vec<Unit<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut forms = vec![None; lines.len()];
    mark_fences(&lines, &mut forms);
    mark_json(text, &lines, &mut forms);
    mark_tables(&lines, &mut forms);
    mark_headings(&lines, &mut forms);
    mark_signs(&lines, &mut forms);
    mark_code(&lines, &mut forms);
    mark_labels(&lines, &mut forms);
    collect(text, &lines, &forms)
}

/// What a line has been found to be; `Some(None)` is a line that belongs to something but says nothing (a fence, a table's rule).
type Mark = Option<Option<Form>>;

fn open(line: &str, mark: Mark) -> bool {
    mark.is_none() && !line.trim().is_empty()
}

fn is_short(line: &str) -> bool {
    let line = line.trim();
    let ended =
        line.trim_end_matches(['"', '\'', ')', '”', '’', '*', '_']).ends_with(['.', '!', '?', '…', '。', '！', '？']);
    !ended && line.len() < 4 * SHORT_LINE && line.chars().count() < SHORT_LINE
}

/// Turns marks into units: marked lines as they are, the rest as short lines or as sentences of paragraphs.
fn collect<'a>(text: &'a str, lines: &[&'a str], marks: &[Mark]) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    let mut paragraph = 0;
    let mut at = 0;
    while at < lines.len() {
        if !open(lines[at], marks[at]) {
            if let Some(Some(form)) = marks[at]
                && !lines[at].trim().is_empty()
            {
                units.push(Unit { form, text: lines[at].trim(), paragraph });
            }
            paragraph += 1;
            at += 1;
            continue;
        }
        let mut end = at + 1;
        while end < lines.len() && open(lines[end], marks[end]) {
            end += 1;
        }
        if is_wrapped(&lines[at..end]) {
            let offset = |line: &str| line.as_ptr() as usize - text.as_ptr() as usize;
            let whole = &text[offset(lines[at])..offset(lines[end - 1]) + lines[end - 1].len()];
            units.extend(sentences(whole).map(|text| Unit { form: Form::Prose, text, paragraph }));
            paragraph += 1;
        } else {
            for line in &lines[at..end] {
                if is_short(line) {
                    units.push(Unit { form: Form::Line, text: line.trim(), paragraph });
                } else {
                    units.extend(sentences(line).map(|text| Unit { form: Form::Prose, text, paragraph }));
                }
                paragraph += 1;
            }
        }
        at = end;
    }
    units
}

/// Whether the lines are one paragraph broken at a fixed width: about equally long, most of them ending in mid-sentence.
fn is_wrapped(lines: &[&str]) -> bool {
    let Some((_, body)) = lines.split_last().filter(|(_, body)| !body.is_empty()) else { return false };
    let widest = lines.iter().map(|line| line.trim().len()).max().unwrap_or(0);
    let full = body.iter().filter(|line| line.trim().len() * 5 >= widest * 3).count();
    let broken = body.iter().filter(|line| !line.trim_end().ends_with(['.', '!', '?', ':', ',', ';'])).count();
    (60..=140).contains(&widest) && full * 5 >= body.len() * 4 && broken * 2 >= body.len()
}

/// Splits at full stops, question and exclamation marks that white space follows.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.trim();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let ends = |(at, sign): &(usize, &str)| {
            let after = &rest[at + sign.len()..];
            after.starts_with(char::is_whitespace) || sign.len() > 1
        };
        let end = rest
            .match_indices(['.', '!', '?', '。', '！', '？'])
            .find(ends)
            .map_or(rest.len(), |(at, sign)| at + sign.len());
        let (sentence, tail) = rest.split_at(end);
        rest = tail.trim_start();
        Some(sentence.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[Form]) {
        let found: Vec<Form> = units(text).iter().map(|unit| unit.form).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn tells_forms_apart() {
        use Form::*;
        check("", &[]);
        check("One sentence. Another one!\n\nA title\n", &[Prose, Prose, Line]);
        check("- a thing\n* a thing\n• thing\n  - nested thing", &[List; 4]);
        check("1. one\n2) two\n(3) three\nStep 4: four", &[List; 4]);
        check("1. One alone is no list.", &[Prose, Prose]);
        check("# A\n\nB\n===\ntext.", &[Heading, Heading, Prose]);
        check("```\nx\n\ny = 1\n```\nEnd.", &[Fenced, Fenced, Prose]);
        check("| a | b |\n|---|---|\n| 1 | 2 |", &[Table, Table]);
        check("a\tb\nc\td", &[Table, Table]);
        check("Home | News | Sport", &[Line]);
        check("{\n \"a\": 1,\n \"b\": [2]\n}\nText here.", &[Json, Json, Json, Json, Prose]);
        check("[1] A note.\n[edit]", &[Prose, Line]);
        check("> said\n> he", &[Quote, Quote]);
        check("Q: One?\n\nA: Two.\nQ: Three?", &[Label; 3]);
        check("Note: one label is a sentence.", &[Prose]);
        check("x = 1\nif x:\n    y()\n", &[Code; 3]);
        check("-----\n* * *\n", &[]);
    }

    #[test]
    fn wrapped_lines_are_one_paragraph() {
        let text = "The mill was first named in a letter of 1342, when the abbey sold\nit to a miller from the next valley. A flood took the wheel in the\nyear 1610.";
        let found = units(text);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|unit| unit.form == Form::Prose && unit.paragraph == found[0].paragraph));
        assert_eq!(units("roses are red,\nviolets are blue").len(), 2);
    }

    #[test]
    fn odd_input_is_read() {
        for text in ["\0", "{", "[[[[", "|", "```", "\u{feff}", "-", "#", "1.", "((", "=", "<", "：", "\r\n\r\n"] {
            let _ = units(text);
        }
    }
}
