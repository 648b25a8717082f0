//! Cutting documents into chunks and joining the answers (reference section 4). Pure, linear in the text's length.
//!
//! [`Boundary::Char`] is the paper's way: slices of 7,000 characters, whatever stands there, answers joined with one space. As in
//! the paper it may cut words, CRLF pairs and letters from their combining marks.
//! [`Boundary::Line`] is ours: it cuts where the text has a seam and remembers what stood there, so that joining gives the source.

/// Where a cut may fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// Exactly every `max_chars` characters, as the paper does; answers are joined with one space.
    Char,
    /// At the last paragraph break (else line break, sentence end, space) within `max_chars`, if that leaves the chunk at least half
    /// full; answers are joined with what stood between.
    Line,
}

/// Consecutive pieces of a text; joining `text` with `separator` (which follows the piece) gives back the source for `Line`.
/// For `Char` the texts alone do, and the separator is one space, empty after the last piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The piece.
    pub text: &'a str,
    /// What joins it to the next.
    pub separator: &'a str,
}

/// Cuts `text` into chunks of at most `max_chars` characters (Unicode scalar values). Empty text gives no chunk, and no chunk is
/// empty. `max_chars` below 1 (Char) or 2 (Line: a CRLF pair stays together) is read as that.
pub fn chunk(text: &str, max_chars: usize, boundary: Boundary) -> Vec<Chunk<'_>> {
    match boundary {
        Boundary::Char => by_characters(text, max_chars.max(1)),
        Boundary::Line => by_lines(text, max_chars.max(2)),
    }
}

/// Joins answers, each with the separator of its chunk. Empty answers vanish with their separators, so that the result neither
/// begins nor ends with one that lost its neighbour.
pub fn join<'a>(parts: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut joined = String::new();
    let mut pending = "";
    let mut ends_here = false;
    for (answer, separator) in parts {
        ends_here = !answer.is_empty();
        if ends_here {
            joined.push_str(pending);
            joined.push_str(answer);
            pending = separator;
        }
    }
    if ends_here {
        joined.push_str(pending);
    }
    joined
}

/// Keeps the first and last half of `budget` tokens where there are more, "... " between, as the reference does.
/// Returns the ids and whether anything was cut. The ellipsis comes on top of the budget, as in the reference.
pub fn truncate_middle(tokens: &[u32], budget: usize, ellipsis: &[u32]) -> (Vec<u32>, bool) {
    if tokens.len() <= budget {
        return (tokens.to_vec(), false);
    }
    let half = budget / 2;
    ([&tokens[..half], ellipsis, &tokens[tokens.len() - half..]].concat(), true)
}

/// Byte offset of the `count`-th character, or the end.
fn offset(text: &str, count: usize) -> usize {
    text.char_indices().nth(count).map_or(text.len(), |(at, _)| at)
}

fn by_characters(text: &str, max_chars: usize) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(offset(rest, max_chars));
        chunks.push(Chunk { text: head, separator: if tail.is_empty() { "" } else { " " } });
        rest = tail;
    }
    chunks
}

fn by_lines(text: &str, max_chars: usize) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = offset(rest, max_chars);
        if end == rest.len() {
            chunks.push(Chunk { text: rest, separator: "" });
            break;
        }
        let cut = find_cut(rest, end, max_chars);
        let (head, tail) = rest.split_at(cut);
        // A white-space head has no text to hang a separator on: it is a chunk of its own.
        let gap = if head.trim().is_empty() { 0 } else { tail.len() - tail.trim_start().len() };
        let (separator, tail) = tail.split_at(gap);
        chunks.push(Chunk { text: head, separator });
        rest = tail;
    }
    chunks
}

/// How good a seam is. Later is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seam {
    Space,
    Sentence,
    Line,
    Paragraph,
}

/// The byte offset at which `rest` is cut: after the last character before a seam, within the first `end` bytes (`max_chars`
/// characters). The white space that makes the seam may reach beyond `end`. Never 0.
fn find_cut(rest: &str, end: usize, max_chars: usize) -> usize {
    let half = offset(&rest[..end], max_chars / 2);
    let mut late = [None; 4]; // last seam of each kind in the second half
    let mut early = [None; 4];
    for (at, seam) in seams(rest, end) {
        let found = if at >= half { &mut late } else { &mut early };
        found[seam as usize] = Some(at);
    }
    let best = |found: [Option<usize>; 4]| found.into_iter().rev().flatten().next();
    best(late).or(best(early)).unwrap_or_else(|| hard_cut(rest, end))
}

/// Bytes of white space that are read past the end of a window to tell what kind of seam it is.
const LOOK_AHEAD: usize = 256;

/// All seams of `rest` at offsets 1..=end, in order.
fn seams(rest: &str, end: usize) -> impl Iterator<Item = (usize, Seam)> {
    let mut chars = rest.char_indices().peekable();
    let mut sentence = false; // the last character ends a sentence, or closes one that has ended
    std::iter::from_fn(move || {
        loop {
            let (at, c) = chars.next()?;
            if at > end {
                return None;
            }
            if !c.is_whitespace() {
                let ended = sentence;
                sentence = ends_sentence(c) || (ended && closes(c));
                // full-width stops need no space after them
                if ended && !closes(c) && !ends_sentence(c) && rest[..at].chars().next_back().is_some_and(is_wide_stop)
                {
                    return Some((at, Seam::Sentence));
                }
                continue;
            }
            let mut breaks = line_break(c, chars.peek().map(|(_, next)| *next));
            // A run that goes on far past the end is known well enough by its beginning; reading it all each time would be quadratic.
            while let Some((_, next)) = chars.next_if(|(at, next)| next.is_whitespace() && *at < end + LOOK_AHEAD) {
                breaks += line_break(next, chars.peek().map(|(_, after)| *after));
            }
            let seam = match breaks {
                0 if sentence => Seam::Sentence,
                0 => Seam::Space,
                1 => Seam::Line,
                _ => Seam::Paragraph,
            };
            sentence = false;
            if at > 0 {
                return Some((at, seam));
            }
        }
    })
}

/// 1 for a line break; a CRLF pair counts once, at its second half.
fn line_break(c: char, next: Option<char>) -> usize {
    match c {
        '\r' if next == Some('\n') => 0,
        '\n' | '\r' | '\u{2028}' | '\u{85}' => 1,
        '\u{2029}' => 2,
        _ => 0,
    }
}

fn ends_sentence(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…') || is_wide_stop(c)
}

fn is_wide_stop(c: char) -> bool {
    matches!(c, '。' | '！' | '？' | '｡')
}

fn closes(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）')
}

/// No seam: cut at `end`, but not inside a CRLF pair.
fn hard_cut(rest: &str, end: usize) -> usize {
    let bytes = rest.as_bytes();
    if end > 1 && bytes[end - 1] == b'\r' && bytes.get(end) == Some(&b'\n') { end - 1 } else { end }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, max_chars: usize, expected: &[(&str, &str)]) {
        let chunks = chunk(text, max_chars, Boundary::Line);
        let found: Vec<_> = chunks.iter().map(|chunk| (chunk.text, chunk.separator)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn char_cuts_as_the_paper_does() {
        let text = "ab\r\ncdéf 日本";
        let found: Vec<_> = chunk(text, 3, Boundary::Char).iter().map(|chunk| (chunk.text, chunk.separator)).collect();
        assert_eq!(found, [("ab\r", " "), ("\ncd", " "), ("éf ", " "), ("日本", "")]);
        assert_eq!(chunk("abc", 3, Boundary::Char).len(), 1);
        assert!(chunk("", 3, Boundary::Char).is_empty());
        assert!(chunk("", 3, Boundary::Line).is_empty());
    }

    #[test]
    fn line_takes_the_best_seam_in_the_second_half() {
        check("one two\n\nthree\nfive", 14, &[("one two", "\n\n"), ("three\nfive", "")]);
        check("Ok.\n\nThree four five. Six seven", 24, &[("Ok.\n\nThree four five.", " "), ("Six seven", "")]);
        check("one two three\nfour five", 16, &[("one two three", "\n"), ("four five", "")]);
        check("One two. Three four", 14, &[("One two.", " "), ("Three four", "")]);
        check("He said \"no!\" Then left us", 20, &[("He said \"no!\"", " "), ("Then left us", "")]);
        check("one two three", 9, &[("one two", " "), ("three", "")]);
        check("abcdefghij", 4, &[("abcd", ""), ("efgh", ""), ("ij", "")]);
        check("今日は晴れ。明日は雨。", 8, &[("今日は晴れ。", ""), ("明日は雨。", "")]);
    }

    #[test]
    fn line_uses_an_early_seam_rather_than_cut_a_word() {
        check("a bcdefghijk", 9, &[("a", " "), ("bcdefghij", ""), ("k", "")]);
    }

    #[test]
    fn a_seam_may_stand_right_at_the_limit() {
        check("abcd\n\nefgh", 4, &[("abcd", "\n\n"), ("efgh", "")]);
        check("abcd\n\n\n   \n\nefgh", 4, &[("abcd", "\n\n\n   \n\n"), ("efgh", "")]);
    }

    #[test]
    fn crlf_stays_together() {
        check("ab\r\ncd", 3, &[("ab", "\r\n"), ("cd", "")]);
        check("\r\n\r\nab", 3, &[("\r\n", ""), ("\r\na", ""), ("b", "")]);
        check("\r\nab", 1, &[("\r\n", ""), ("ab", "")]);
        check("ab\r\n\r\ncd ef", 8, &[("ab\r\n\r\ncd", " "), ("ef", "")]);
        check("abcd\r\n\r\ncd ef", 9, &[("abcd", "\r\n\r\n"), ("cd ef", "")]);
    }

    #[test]
    fn joining_skips_empty_answers() {
        assert_eq!(join([("a", "\n\n"), ("b", "\n"), ("c", "")]), "a\n\nb\nc");
        assert_eq!(join([("a", "\n\n"), ("", "\n"), ("c", "")]), "a\n\nc");
        assert_eq!(join([("", "\n\n"), ("b", "\n"), ("", "")]), "b");
        assert_eq!(join([("", " ")]), "");
    }

    #[test]
    fn truncation_keeps_both_ends() {
        let tokens: Vec<u32> = (0..10).collect();
        assert_eq!(truncate_middle(&tokens, 10, &[99]), (tokens.clone(), false));
        assert_eq!(truncate_middle(&tokens, 5, &[99]), (vec![0, 1, 99, 8, 9], true));
        assert_eq!(truncate_middle(&tokens, 4, &[]), (vec![0, 1, 8, 9], true));
        assert_eq!(truncate_middle(&tokens, 0, &[99]), (vec![99], true));
        assert_eq!(truncate_middle(&[], 0, &[99]), (vec![], false));
    }

    #[test]
    fn twenty_megabytes_are_cut_in_one_pass() {
        for unit in ["word ", "\n", " ", "a", "日本語。", "line of text.\r\n"] {
            let text = unit.repeat(20_000_000 / unit.len());
            let chunks = chunk(&text, 7000, Boundary::Line);
            assert_eq!(chunks.iter().map(|chunk| chunk.text.len() + chunk.separator.len()).sum::<usize>(), text.len());
        }
    }

    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-z]{1,12}",
            Just(" ".to_owned()),
            Just("\r\n".to_owned()),
            Just("\n".to_owned()),
            Just("\n\n".to_owned()),
            Just(". ".to_owned()),
            Just("\r".to_owned()),
            Just("。".to_owned()),
            "\\PC{0,5}",
            any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn line_chunks_join_to_the_source(text in any_text(), max in 2_usize..40) {
            let chunks = chunk(&text, max, Boundary::Line);
            let whole: String = chunks.iter().flat_map(|chunk| [chunk.text, chunk.separator]).collect();
            prop_assert_eq!(&whole, &text);
            prop_assert!(chunks.iter().all(|chunk| !chunk.text.is_empty() && chunk.text.chars().count() <= max));
            prop_assert!(chunks.iter().all(|chunk| chunk.separator.trim().is_empty()));
            for pair in chunks.windows(2) {
                let left = [pair[0].text, pair[0].separator].concat();
                prop_assert!(!(left.ends_with('\r') && pair[1].text.starts_with('\n')));
                prop_assert!(!(pair[0].text.ends_with('\r') && pair[0].separator.starts_with('\n')));
            }
            prop_assert_eq!(join(chunks.iter().map(|chunk| (chunk.text, chunk.separator))), text);
        }

        #[test]
        fn char_chunks_are_the_source_in_equal_slices(text in any_text(), max in 1_usize..40) {
            let chunks = chunk(&text, max, Boundary::Char);
            let characters: Vec<char> = text.chars().collect();
            let expected: Vec<String> = characters.chunks(max).map(|slice| slice.iter().collect()).collect();
            prop_assert_eq!(chunks.iter().map(|chunk| chunk.text).collect::<Vec<_>>(), expected);
            let last = chunks.len().saturating_sub(1);
            for (i, chunk) in chunks.iter().enumerate() {
                prop_assert_eq!(chunk.separator, if i == last { "" } else { " " });
            }
        }
    }

    #[test]
    fn settings_spell_boundaries_in_lower_case() {
        assert_eq!(serde_json::to_string(&Boundary::Line).unwrap(), "\"line\"");
    }
}
