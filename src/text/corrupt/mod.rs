//! Dirty web pages from clean text: training pairs for a small rephraser that learns to copy text and drop clutter.
//!
//! ```text
//! Sources ──layout──▶ clean lines ─┐
//! lists ───clutter──▶ blocks ──────┴─place, glue, repeat─▶ pieces ──noise──▶ (clean, dirty)
//! ```
//!
//! A pair is one chunk of a page, as inference cuts it: 20 to about 900 characters, from anywhere in the page. Rules of the
//! clean side: content lines in their order, white space put right (leading space stays in code), at most one empty
//! line between two lines, adjacent repetitions said once. Clutter is what its form alone gives away; in doubt a line is content.
//! Everything follows from the seed. Does not know tokens, models or tables.

mod chance;
mod clutter;
mod layout;
mod lexicon;
pub mod measure;
mod noise;
mod novel;
mod prose;
mod records;
mod sources;
mod spice;
mod template;

pub use clutter::Kind;
pub use layout::Layout;
pub use noise::tidy;
pub use sources::Sources;

use chance::{Rng, between, chance, seeded, weighted};
use clutter::{Block, Place};
use layout::Line;
use noise::Piece;
use template::Fill;

/// Longest dirty side of a composed pair, in characters.
pub const MAX_CHARS: usize = 920;

/// One training pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What a rephraser should answer.
    pub clean: String,
    /// What it is given.
    pub dirty: String,
    /// The clutter that was put in: whole lines, pieces glued to content, repeated lines. White space put right.
    pub inserted: Vec<String>,
    /// Kinds of the inserted blocks.
    pub kinds: Vec<Kind>,
    /// Layouts of the content; empty where the text was given.
    pub layouts: Vec<Layout>,
}

/// How much clutter a page gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    Untouched,
    OneLine,
    Light,
    Heavy,
    Glued,
    MostlyClutter,
    OnlyClutter,
}

const PROFILES: [(Profile, u32); 7] = [
    (Profile::Untouched, 24),
    (Profile::OneLine, 22),
    (Profile::Light, 24),
    (Profile::Heavy, 16),
    (Profile::Glued, 7),
    (Profile::MostlyClutter, 5),
    (Profile::OnlyClutter, 2),
];

/// A pair composed of the sources and the embedded lists.
pub fn page(sources: &Sources, seed: u64) -> Page {
    let mut rng = seeded(seed);
    let mut last = compose(sources, &mut rng);
    for _ in 0..20 {
        let length = last.dirty.chars().count();
        if (20..=MAX_CHARS).contains(&length) {
            break;
        }
        last = compose(sources, &mut rng);
    }
    last
}

/// A pair composed of one text.
pub fn page_of(text: &str, seed: u64) -> Page {
    page(&sources_of(text), seed)
}

/// One text as sources: its paragraphs, sentences and short lines; with four lines or more it is also a page with its own layout.
pub fn sources_of(text: &str) -> Sources {
    let sources = Sources::from_texts([text]);
    if text.lines().filter(|l| !l.trim().is_empty()).count() >= 4 { sources.with_pages([text]) } else { sources }
}

/// The text with clutter and broken white space; its own lines stay in their order. Any length.
pub fn corrupt(clean: &str, seed: u64) -> String {
    corrupt_page(clean, seed).dirty
}

/// Like [`corrupt`], with the clean side as a rephraser should answer it and what was put in.
pub fn corrupt_page(clean: &str, seed: u64) -> Page {
    let mut rng = seeded(seed);
    let sources = Sources::default();
    let mut fill = Fill::new(&mut rng, &sources);
    let lines: Vec<Line> = clean
        .lines()
        .map(|line| Line { text: line.to_owned(), code: line.starts_with("    ") || line.starts_with('\t') })
        .collect();
    let profile = weighted(fill.rng, &PROFILES[..5]);
    let times = (clean.chars().count() / 900).min(8);
    let mut blocks = blocks(&mut fill, profile);
    if profile != Profile::Untouched && profile != Profile::OneLine {
        for _ in 0..times {
            blocks.push(clutter::draw(&mut fill, false));
        }
    }
    assemble(&mut fill, lines, blocks, profile, Vec::new())
}

fn compose(sources: &Sources, rng: &mut Rng) -> Page {
    let mut fill = Fill::new(rng, sources);
    let profile = weighted(fill.rng, &PROFILES);
    let wanted = match fill.between(0, 99) {
        0..=54 => fill.between(450, 730),
        55..=79 => fill.between(160, 450),
        _ => fill.between(25, 160),
    };
    let mut blocks = blocks(&mut fill, profile);
    let size = |blocks: &[Block]| blocks.iter().flat_map(|b| &b.lines).map(|l| l.chars().count() + 1).sum::<usize>();
    while size(&blocks) > 420 && blocks.len() > 1 {
        blocks.pop();
    }
    let budget = match profile {
        Profile::MostlyClutter => fill.between(15, 110),
        _ => wanted.saturating_sub(size(&blocks)).max(30),
    };
    let (lines, layouts) =
        if profile == Profile::OnlyClutter { (Vec::new(), Vec::new()) } else { layout::compose(&mut fill, budget) };
    assemble(&mut fill, lines, blocks, profile, layouts)
}

fn blocks(fill: &mut Fill, profile: Profile) -> Vec<Block> {
    let (n, single) = match profile {
        Profile::Untouched => (0, true),
        Profile::OneLine => (1, true),
        Profile::Light => (fill.between(2, 3), false),
        Profile::Heavy => (fill.between(3, 7), false),
        Profile::Glued => (fill.between(0, 1), true),
        Profile::MostlyClutter => (fill.between(3, 8), false),
        Profile::OnlyClutter => (fill.between(1, 6), false),
    };
    (0..n)
        .map(|_| {
            let single = single || fill.chance(0.4);
            clutter::draw(fill, single)
        })
        .collect()
}

fn assemble(fill: &mut Fill, lines: Vec<Line>, blocks: Vec<Block>, profile: Profile, layouts: Vec<Layout>) -> Page {
    let mut pieces: Vec<Piece> = lines
        .into_iter()
        .map(|l| if l.text.trim().is_empty() { Piece::blank() } else { Piece::content(l.text, l.code) })
        .collect();
    say_once(&mut pieces);
    let kinds = blocks.iter().map(|b| b.kind).collect();
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
                new.push(Piece::blank());
            }
            new.push(Piece::clutter(line));
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
    let anywhere = fill.between(0, end);
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
