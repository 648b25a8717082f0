//! White-space noise and the two sides of a pair. A page under construction is a list of [`Piece`]s; here they get their
//! broken white space, and the clean side is read off them: content lines with white space put right, an empty line
//! between two of them where at least one stood there. Does not know kinds of clutter or layouts.

use super::chance::{Rng, between, chance, pick, pick_char};

/// One line of a dirty page.
#[derive(Debug, Clone, Default)]
pub(crate) struct Piece {
    /// As the dirty side shows it.
    pub text: String,
    /// What the clean side keeps of it.
    pub content: Option<String>,
    /// What was added to it, or the line itself where all of it was added.
    pub inserted: Option<String>,
    /// Inner and leading white space belongs to the line.
    pub code: bool,
    /// Belongs to the line before it: nothing is put between them.
    pub tied: bool,
}

impl Piece {
    pub fn blank() -> Self {
        Self::default()
    }
    pub fn clutter(text: String) -> Self {
        Self { inserted: Some(text.clone()), text, ..Self::default() }
    }
    pub fn content(text: String, code: bool) -> Self {
        Self { content: Some(text.clone()), text, code, ..Self::default() }
    }
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }
}

/// White space put right: every kind of space becomes one plain space, invisible marks go, the ends are trimmed.
pub fn tidy(line: &str) -> String {
    let visible: String = line.chars().filter(|c| !invisible(*c)).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Marks without width: zero-width spaces and joiners, byte-order mark, soft hyphen.
pub(crate) fn invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200d}' | '\u{feff}' | '\u{ad}' | '\u{2060}')
}

/// The clean side.
pub(crate) fn clean_side(pieces: &[Piece]) -> String {
    let mut out = String::new();
    let mut gap = false;
    for piece in pieces {
        if piece.is_blank() {
            gap = true;
            continue;
        }
        let Some(content) = &piece.content else { continue };
        let line = if piece.code { content.trim_end().to_owned() } else { tidy(content) };
        if line.is_empty() {
            continue;
        }
        if !out.is_empty() {
            out.push_str(if gap { "\n\n" } else { "\n" });
        }
        gap = false;
        out.push_str(&line);
    }
    out
}

/// The dirty side as it stands.
pub(crate) fn dirty_side(pieces: &[Piece]) -> String {
    let lines: Vec<&str> = pieces.iter().map(|p| p.text.as_str()).collect();
    lines.join("\n")
}

/// Breaks the white space of a page in some of the usual ways.
pub(crate) fn dress(rng: &mut Rng, pieces: &mut Vec<Piece>) {
    indent_bullets(rng, pieces);
    if chance(rng, 0.45) {
        return;
    }
    if chance(rng, 0.35) {
        let p = [0.01, 0.05, 0.3, 1.0][between(rng, 0, 3)];
        each(rng, pieces, 0.7, |rng, text| swap_spaces(rng, text, '\u{a0}', p));
    }
    if chance(rng, 0.25) {
        let p = [0.03, 0.15, 0.6][between(rng, 0, 2)];
        each(rng, pieces, 0.8, |rng, text| widen(rng, text, p));
    }
    if chance(rng, 0.3) {
        let tail = pick(rng, &[" ", "  ", "\u{a0}", "\t", "    ", " \u{a0}"]);
        each(rng, pieces, 0.5, |_, text| text + tail);
    }
    if chance(rng, 0.35) {
        indent(rng, pieces);
    }
    if chance(rng, 0.1) {
        each(rng, pieces, 0.5, |rng, text| swap_spaces(rng, text, '\t', 0.1));
    }
    if chance(rng, 0.06) {
        each(rng, pieces, 0.6, hide_mark);
    }
    if chance(rng, 0.4) {
        more_gaps(rng, pieces);
    }
}

/// Lists mostly stand indented in extracted pages.
fn indent_bullets(rng: &mut Rng, pieces: &mut [Piece]) {
    let (front, p) = (pick(rng, &["  ", "  ", "  ", "    ", " ", "      "]), [0.0, 1.0, 1.0, 0.9][between(rng, 0, 3)]);
    let numbers = chance(rng, 0.5);
    for piece in pieces {
        let bullet = piece.text.starts_with("• ") || (numbers && starts_numbered(&piece.text));
        if bullet && !piece.code && chance(rng, p) {
            piece.text.insert_str(0, front);
        }
    }
}

fn starts_numbered(text: &str) -> bool {
    text.split_once(". ").is_some_and(|(n, _)| !n.is_empty() && n.len() < 3 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Changes the text of a share of the lines; code is left alone.
fn each(rng: &mut Rng, pieces: &mut [Piece], p: f64, mut change: impl FnMut(&mut Rng, String) -> String) {
    for piece in pieces.iter_mut().filter(|p| !p.code && !p.text.is_empty()) {
        if chance(rng, p) {
            piece.text = change(rng, std::mem::take(&mut piece.text));
        }
    }
}

fn swap_spaces(rng: &mut Rng, text: String, with: char, p: f64) -> String {
    text.chars().map(|c| if c == ' ' && chance(rng, p) { with } else { c }).collect()
}

fn widen(rng: &mut Rng, text: String, p: f64) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        out.push(c);
        if c == ' ' && chance(rng, p) {
            out.push_str(pick(rng, &[" ", " ", "  ", "\u{a0}", "     "]));
        }
    }
    out
}

fn hide_mark(rng: &mut Rng, text: String) -> String {
    let mark = pick_char(rng, "\u{200b}\u{feff}\u{ad}\u{200d}");
    let at = between(rng, 0, text.chars().count());
    let mut chars: Vec<char> = text.chars().collect();
    chars.insert(at, mark);
    chars.into_iter().collect()
}

/// Leading spaces: all lines, or runs of lines ever deeper, as answers in threads have it.
fn indent(rng: &mut Rng, pieces: &mut [Piece]) {
    let deep = chance(rng, 0.3);
    let mut depth = between(rng, 1, 8);
    let p = [0.3, 0.7, 1.0][between(rng, 0, 2)];
    let tabs = chance(rng, 0.1);
    for piece in pieces.iter_mut().filter(|p| !p.code && !p.text.is_empty()) {
        if deep && chance(rng, 0.3) {
            depth = between(rng, 0, 50);
        }
        if chance(rng, p) {
            let front = if tabs { "\t".repeat(depth % 4 + 1) } else { " ".repeat(depth) };
            piece.text.insert_str(0, &front);
        }
    }
}

/// Empty lines where there were none, several where there was one, and empty lines that hold spaces.
fn more_gaps(rng: &mut Rng, pieces: &mut Vec<Piece>) {
    let (p_more, p_new) = [(0.3, 0.0), (0.8, 0.0), (0.2, 0.15), (0.5, 0.5), (0.1, 1.0)][between(rng, 0, 4)];
    let filler = pick(rng, &["", "", "", " ", "\u{a0}", "    "]);
    let code = pieces.iter().any(|p| p.code);
    let mut out = Vec::with_capacity(pieces.len() * 2);
    for piece in std::mem::take(pieces) {
        let blank = piece.is_blank();
        let p = if blank { p_more } else { p_new };
        let more = if !code && chance(rng, p) { if blank { between(rng, 1, 4) } else { 1 } } else { 0 };
        out.push(piece);
        out.extend((0..more).map(|_| Piece { text: filler.to_owned(), ..Piece::default() }));
    }
    *pieces = out;
}

#[cfg(test)]
mod tests {
    use super::{super::chance::seeded, *};

    #[test]
    fn tidy_by_hand() {
        assert_eq!(tidy("  a\u{a0}\u{a0}b\tc \u{200b}d\u{feff} "), "a b c d");
        assert_eq!(tidy("\u{a0} "), "");
    }

    #[test]
    fn clean_side_by_hand() {
        let line = |t: &str| Piece::content(t.to_owned(), false);
        let pieces = [
            Piece::blank(),
            line("A  b"),
            Piece::clutter("Menu".into()),
            line("c"),
            Piece::blank(),
            Piece::clutter("Share".into()),
            Piece::blank(),
            line(" d "),
            Piece::blank(),
        ];
        assert_eq!(clean_side(&pieces), "A b\nc\n\nd");
        assert_eq!(dirty_side(&pieces), "\nA  b\nMenu\nc\n\nShare\n\n d \n");
        let code = [Piece::content("if x:".into(), true), Piece::content("    y  ".into(), true)];
        assert_eq!(clean_side(&code), "if x:\n    y");
    }

    #[test]
    fn noise_changes_white_space_only() {
        let solid = |s: &str| tidy(s).replace(' ', "");
        for seed in 0..300 {
            let mut pieces: Vec<Piece> = ["One line here.", "• two words", "", "3. three, and so on"]
                .iter()
                .map(|t| Piece::content((*t).to_owned(), false))
                .collect();
            let before: Vec<String> = pieces.iter().map(|p| solid(&p.text)).filter(|t| !t.is_empty()).collect();
            dress(&mut seeded(seed), &mut pieces);
            let after: Vec<String> = pieces.iter().map(|p| solid(&p.text)).filter(|t| !t.is_empty()).collect();
            assert_eq!(before, after, "seed {seed}");
            assert_eq!(clean_side(&pieces).replace("\n\n", "\n"), "One line here.\n• two words\n3. three, and so on");
        }
    }
}
