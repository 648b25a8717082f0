//! Cuts a text into segments: lines, and inside a line sentences and what stands between separators. Joining gaps and texts gives
//! back the source, its white ends apart. Knows nothing of marks or answers.

/// A part of the text that stays or goes as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// What stands between it and the segment before it.
    pub gap: &'a str,
    /// Begins and ends with something that is not white space.
    pub text: &'a str,
}

/// More separators than this in a line are its own form (a menu, a table), not a seam.
const FEW: usize = 3;

/// The segments of a text, `most` at most. Lines that overlap with `verbatim` are not cut.
pub(super) fn segments<'a>(text: &'a str, verbatim: &[&str], most: usize) -> Vec<Segment<'a>> {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for line in text.split('\n') {
        let start = line.as_ptr() as usize - text.as_ptr() as usize;
        let trimmed = line.trim();
        if trimmed.is_empty() {
            continue;
        }
        let mut from = start + (line.len() - line.trim_start().len());
        let end = from + trimmed.len();
        if !verbatim.iter().any(|v| super::overlap(v, trimmed)) {
            let base = from;
            for (a, b) in seams(trimmed) {
                spans.push((from, base + a));
                from = base + b;
            }
        }
        spans.push((from, end));
    }
    if spans.len() > most {
        let end = spans.last().map_or(0, |span| span.1);
        spans.truncate(most);
        if let Some(last) = spans.last_mut() {
            last.1 = end;
        }
    }
    let mut out = Vec::with_capacity(spans.len());
    let mut before = 0;
    for (from, to) in spans {
        out.push(Segment { gap: &text[before..from], text: &text[from..to] });
        before = to;
    }
    out
}

/// Byte ranges of the gaps at which a line is cut.
fn seams(line: &str) -> Vec<(usize, usize)> {
    let chars: Vec<(usize, char)> = line.char_indices().collect();
    let (mut sentence, mut weak) = (Vec::new(), Vec::new());
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i].1;
        if c.is_whitespace() {
            let (end, sign) = gap(&chars, i);
            if end < chars.len() {
                if ends_sentence(&chars, i) {
                    sentence.push((i, end));
                } else if sign || end - i > 1 {
                    weak.push((i, end));
                }
            }
            i = end.max(i + 1);
        } else {
            if i > 0 && opens(&chars, i) && glued(&chars, i) {
                sentence.push((i, i));
            }
            i += 1;
        }
    }
    if weak.len() <= FEW {
        sentence.append(&mut weak);
        sentence.sort_unstable();
    }
    let at = |i: usize| chars.get(i).map_or(line.len(), |c| c.0);
    let mut from = 0;
    let mut out = Vec::new();
    for (a, b) in sentence {
        let has_words = |part: &str| part.chars().any(char::is_alphanumeric);
        // A bullet or a number at the beginning belongs to what follows it.
        if has_words(&line[from..at(a)]) && has_words(&line[at(b)..]) && !is_number(&line[from..at(a)]) {
            out.push((at(a), at(b)));
            from = at(b);
        }
    }
    out
}

/// The end of the white space that begins at `i`, with a separator and the white space behind it; whether there was a separator.
fn gap(chars: &[(usize, char)], i: usize) -> (usize, bool) {
    let skip = |mut i: usize| {
        while i < chars.len() && chars[i].1.is_whitespace() {
            i += 1;
        }
        i
    };
    let end = skip(i);
    let is_sign = |c: char| matches!(c, '|' | '»' | '•' | '·' | '–' | '—' | '-' | '›');
    match chars.get(end) {
        Some((_, c)) if is_sign(*c) && chars.get(end + 1).is_some_and(|(_, c)| c.is_whitespace()) => {
            (skip(end + 1), true)
        }
        _ => (end, false),
    }
}

/// Whether a sentence ends right before `i`: a stop, perhaps with closing quotes, behind a word that is no abbreviation.
fn ends_sentence(chars: &[(usize, char)], i: usize) -> bool {
    let mut at = i;
    while at > 0 && matches!(chars[at - 1].1, '"' | '”' | '’' | '\'' | ')' | ']') {
        at -= 1;
    }
    if at == 0 {
        return false;
    }
    match chars[at - 1].1 {
        '!' | '?' | '…' | '。' => true,
        '.' => {
            let word = chars[..at - 1].iter().rev().take_while(|(_, c)| !c.is_whitespace()).count();
            let plain = chars[..at - 1].iter().rev().take(word).all(|(_, c)| *c != '.') || word > 8;
            word > 1 && plain || at > 1 && chars[at - 2].1 == '.'
        }
        _ => false,
    }
}

/// Something that begins a new piece stands at `i`: a capital with a small letter behind it, or an opening sign.
fn opens(chars: &[(usize, char)], i: usize) -> bool {
    match chars[i].1 {
        '[' | '©' | '«' | '“' => true,
        c => c.is_uppercase() && chars.get(i + 1).is_some_and(|(_, c)| c.is_lowercase()),
    }
}

/// A sentence's end without white space behind it: `word.Next`.
fn glued(chars: &[(usize, char)], i: usize) -> bool {
    matches!(chars[i - 1].1, '.' | '!' | '?' | '…' | '”' | ')')
        && i > 1
        && (chars[i - 2].1.is_lowercase() || matches!(chars[i - 2].1, '.' | '!' | '?'))
        && ends_sentence(chars, i)
}

/// `12.`, `(3)`, `iv)`: what a numbered line begins with.
fn is_number(part: &str) -> bool {
    part.chars().filter(|c| c.is_alphanumeric()).count() <= 3 && !part.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let found = segments(text, &[], 96);
        assert_eq!(found.iter().map(|s| s.text).collect::<Vec<_>>(), expected, "{text}");
        let joined: String = found.iter().map(|s| [s.gap, s.text].concat()).collect();
        assert_eq!(joined, text.trim_end());
    }

    #[test]
    fn cuts_by_hand() {
        check("One line.\n\n Two \u{a0}\nthree", &["One line.", "Two", "three"]);
        check("The cat sat here. It ran off. (Read more)", &["The cat sat here.", "It ran off.", "(Read more)"]);
        check("It was late. Reply", &["It was late.", "Reply"]);
        check("It was late.Read more", &["It was late.", "Read more"]);
        check("He said \"stop!\" Then it rained.", &["He said \"stop!\"", "Then it rained."]);
        check("The U.S. Army and J. Who, e.g. him, 3.5 percent", &["The U.S. Army and J. Who, e.g. him, 3.5 percent"]);
        check("Some title | Site name", &["Some title", "Site name"]);
        check("Home | About | Shop | Blog | Help", &["Home | About | Shop | Blog | Help"]);
        check("•  An item", &["•  An item"]);
        check("12.  An item", &["12.  An item"]);
        check("node.js and README.md stay", &["node.js and README.md stay"]);
        check("and so on... Read more »", &["and so on...", "Read more »"]);
    }

    #[test]
    fn the_last_segment_takes_the_rest() {
        let text = "a b\n".repeat(10);
        let found = segments(&text, &[], 4);
        assert_eq!(found.len(), 4);
        assert_eq!(found[3].text, "a b\n".repeat(7).trim_end());
    }

    #[test]
    fn verbatim_lines_are_whole() {
        let text = "x = 1  # one. Two";
        assert_eq!(segments(text, &[text], 96).len(), 1);
    }
}
