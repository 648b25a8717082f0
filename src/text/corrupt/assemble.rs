//! Puts a page together: content lines, clutter blocks in the gaps between them, clutter glued to lines, heads of posts and
//! refrains that come again and again, repeated lines. Does not know templates or white space.

use super::{
    Kind, Layout, Page, Profile,
    chance::{Rng, between, chance},
    clutter::{self, Block},
    kind::Place,
    layout::Line,
    noise::{self, Piece, tidy},
    template::Fill,
};

/// The page of these lines and blocks.
pub(super) fn assemble(
    fill: &mut Fill,
    lines: Vec<Line>,
    blocks: Vec<Block>,
    profile: Profile,
    layouts: Vec<Layout>,
) -> Page {
    let mut pieces: Vec<Piece> = lines
        .into_iter()
        .map(|l| if l.text.trim().is_empty() { Piece::blank() } else { Piece::content(l.text, l.code) })
        .collect();
    say_once(&mut pieces);
    let mut kinds: Vec<Kind> = blocks.iter().map(|b| b.kind).collect();
    if profile == Profile::Thread {
        thread(fill, &mut pieces);
        kinds.push(Kind::CommentHead);
    }
    if profile == Profile::Glued || (profile != Profile::Untouched && fill.chance(0.1)) {
        glue(fill, &mut pieces);
    }
    if profile != Profile::Untouched && fill.chance(0.08) {
        repeat(fill.rng, &mut pieces);
    }
    place(fill, &mut pieces, blocks);
    if profile != Profile::Untouched || fill.chance(0.45) {
        noise::dress(fill.rng, &mut pieces);
    }
    Page {
        clean: noise::clean_side(&pieces),
        dirty: noise::dirty_side(&pieces),
        inserted: pieces.iter().filter_map(|p| p.inserted.as_deref().map(tidy)).collect(),
        kinds,
        layouts,
    }
}

/// A line that repeats the one before it is no content, wherever it comes from (code apart: closing braces).
fn say_once(pieces: &mut [Piece]) {
    let mut before = String::new();
    for piece in pieces.iter_mut().filter(|p| !p.is_blank()) {
        let line = tidy(&piece.text);
        if line == before && !piece.code {
            piece.content = None;
            piece.inserted = Some(line.clone());
        }
        before = line;
    }
}

/// Heads before paragraphs, or a refrain behind them, in one form for the page.
fn thread(fill: &mut Fill, pieces: &mut Vec<Piece>) {
    let (with_head, with_refrain) = [(true, false), (true, false), (false, true), (true, true)][fill.between(0, 3)];
    let form = clutter::head_form(fill);
    let refrain = clutter::refrain(fill);
    let gaps = pieces.iter().any(Piece::is_blank);
    let (blank_before, blank_after) = (fill.chance(0.5), fill.chance(0.5));
    let mut added = 0;
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len() * 2);
    for piece in std::mem::take(pieces) {
        let starts = !piece.is_blank()
            && !piece.code
            && if gaps { out.last().is_none_or(Piece::is_blank) } else { fill.chance(0.7) };
        if starts && with_refrain && !out.is_empty() && added < MOST_ADDED {
            added += refrain.chars().count() + 1;
            out.push(Piece::clutter(refrain.clone()));
            if blank_after {
                out.push(Piece::blank());
            }
        }
        if starts && with_head && added < MOST_ADDED {
            let head = clutter::head(fill, form);
            added += head.iter().map(|l| l.chars().count() + 1).sum::<usize>();
            if blank_before && !out.is_empty() {
                out.push(Piece::blank());
            }
            out.extend(head.into_iter().enumerate().map(|(i, l)| Piece { tied: i > 0, ..Piece::clutter(l) }));
            if blank_after {
                out.push(Piece::blank());
            }
        }
        out.push(piece);
    }
    *pieces = out;
}

/// Characters of heads and refrains on a page, about.
const MOST_ADDED: usize = 260;

/// Repeats one or two lines right behind themselves, as pages repeat their titles.
fn repeat(rng: &mut Rng, pieces: &mut Vec<Piece>) {
    let fit: Vec<usize> = (0..pieces.len())
        .filter(|&i| {
            pieces[i].inserted.is_none()
                && !pieces[i].code
                && pieces[i].text.chars().count() > 9
                && pieces[i].text.contains(' ')
        })
        .collect();
    if fit.is_empty() {
        return;
    }
    let at = if chance(rng, 0.4) { fit[0] } else { fit[between(rng, 0, fit.len() - 1)] };
    let copy = Piece::clutter(pieces[at].text.clone());
    pieces.insert(at + 1, copy);
    if chance(rng, 0.5) {
        pieces.insert(at + 1, Piece::blank());
    }
}

/// Glues clutter to the beginning or end of one to three content lines.
fn glue(fill: &mut Fill, pieces: &mut [Piece]) {
    for _ in 0..fill.between(1, 3) {
        let fit: Vec<usize> = (0..pieces.len())
            .filter(|&i| pieces[i].inserted.is_none() && !pieces[i].code && pieces[i].text.chars().count() > 14)
            .collect();
        if fit.is_empty() {
            return;
        }
        let at = fit[fill.between(0, fit.len() - 1)];
        let piece = &mut pieces[at];
        let fragment = clutter::fragment(fill);
        let closed = piece.text.ends_with(['.', '!', '?', '…', '"', '”', ')']);
        let capital = piece.text.starts_with(|c: char| c.is_uppercase() || c.is_ascii_digit());
        if capital && fill.chance(0.3) {
            let between = fill.pick(&[" ", " ", "  ", "", " | ", " - ", "\u{a0}"]);
            piece.text = format!("{fragment}{between}{}", piece.text);
        } else {
            let between = if closed {
                fill.pick(&[" ", " ", " ", "  ", "", " | ", "... ", "\u{a0}"])
            } else {
                fill.pick(&[" | ", " - ", " » ", " • ", "\u{a0}|\u{a0}"])
            };
            piece.text = format!("{}{between}{fragment}", piece.text);
        }
        piece.inserted = Some(fragment);
    }
}

/// Puts blocks into the gaps between lines. A block that is open (a list of headlines) goes where its end can be seen.
fn place(fill: &mut Fill, pieces: &mut Vec<Piece>, blocks: Vec<Block>) {
    for block in blocks {
        let at = gap(fill, pieces, &block);
        let mut new: Vec<Piece> = Vec::new();
        let loose = fill.chance(0.15);
        if at > 0 && fill.chance(0.55) {
            new.push(Piece::blank());
        }
        for (i, line) in block.lines.into_iter().enumerate() {
            if loose && i > 0 {
                new.push(Piece { tied: true, ..Piece::blank() });
            }
            new.push(Piece { tied: i > 0, ..Piece::clutter(line) });
        }
        if at < pieces.len() && fill.chance(0.55) {
            new.push(Piece::blank());
        }
        pieces.splice(at..at, new);
    }
}

fn gap(fill: &mut Fill, pieces: &[Piece], block: &Block) -> usize {
    let end = pieces.len();
    if block.open {
        let fit: Vec<usize> = (0..end).filter(|&i| ends_a_list(&pieces[i])).collect();
        return if fit.is_empty() || fill.chance(0.6) { end } else { fit[fill.between(0, fit.len() - 1)] };
    }
    let free: Vec<usize> = (0..=end).filter(|&i| i == end || !pieces[i].tied).collect();
    let anywhere = free[fill.between(0, free.len() - 1)];
    match (block.kind.place(), fill.between(0, 9)) {
        (Place::Top, 0..=5) => 0,
        (Place::Top, 6) => end,
        (Place::Bottom, 0..=5) => end,
        (Place::Bottom, 6) => 0,
        (Place::Any, 0..=2) => 0,
        (Place::Any, 3..=5) => end,
        _ => anywhere,
    }
}

/// A long line of prose: what stands before it, a list of headlines, is over.
fn ends_a_list(piece: &Piece) -> bool {
    piece.content.is_some()
        && piece.inserted.is_none()
        && piece.text.chars().count() > 110
        && piece.text.ends_with(['.', '!', '?', '"', '”'])
}
