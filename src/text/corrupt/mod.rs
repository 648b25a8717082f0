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

mod assemble;
mod chance;
mod clutter;
mod kind;
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

pub use kind::Kind;
pub use layout::Layout;
pub use noise::tidy;
pub use sources::Sources;

use assemble::assemble;
use chance::{Rng, seeded, weighted};
use clutter::Block;
use layout::Line;
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
    /// Heads of posts or a refrain (`Reply`, `Quick View`) that come again and again.
    Thread,
    MostlyClutter,
    OnlyClutter,
}

const PROFILES: [(Profile, u32); 8] = [
    (Profile::Untouched, 24),
    (Profile::OneLine, 20),
    (Profile::Light, 21),
    (Profile::Heavy, 14),
    (Profile::Glued, 7),
    (Profile::Thread, 8),
    (Profile::MostlyClutter, 4),
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
    let profile = weighted(fill.rng, &PROFILES[..6]);
    let times = (clean.chars().count() / 900).min(8);
    let mut blocks = blocks(&mut fill, profile);
    if profile != Profile::Untouched && profile != Profile::OneLine {
        for _ in 0..times {
            let kind = weighted(fill.rng, &Kind::ALL);
            blocks.push(clutter::block(&mut fill, kind, false));
        }
    }
    assemble(&mut fill, lines, blocks, profile, Vec::new())
}

fn compose(sources: &Sources, rng: &mut Rng) -> Page {
    let mut fill = Fill::new(rng, sources);
    let profile = weighted(fill.rng, &PROFILES);
    let wanted = match fill.between(0, 99) {
        0..=61 => fill.between(500, 790),
        62..=81 => fill.between(160, 500),
        _ => fill.between(25, 160),
    };
    let mut blocks = blocks(&mut fill, profile);
    let size = |blocks: &[Block]| blocks.iter().flat_map(|b| &b.lines).map(|l| l.chars().count() + 1).sum::<usize>();
    while size(&blocks) > 420 && blocks.len() > 1 {
        blocks.pop();
    }
    let budget = match profile {
        Profile::MostlyClutter => fill.between(15, 110),
        Profile::Thread => wanted * 2 / 3,
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
        Profile::Glued | Profile::Thread => (fill.between(0, 1), true),
        Profile::MostlyClutter => (fill.between(3, 8), false),
        Profile::OnlyClutter => (fill.between(1, 6), false),
    };
    let kinds: &[(Kind, u32)] = if fill.chance(0.35) { kind::theme(fill) } else { &Kind::ALL };
    (0..n)
        .map(|_| {
            let (kind, single) = (weighted(fill.rng, kinds), single || fill.chance(0.4));
            clutter::block(fill, kind, single)
        })
        .collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
