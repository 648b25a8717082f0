//! Composes the clean side of a page: one to three blocks of content, each in one of many layouts, about as long as asked.
//! Knows nothing of clutter.

use super::{
    chance::{between, weighted},
    lexicon, prose, records,
    spice::{Style, spice},
    template::Fill,
};

/// One line of content; an empty text is an empty line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub text: String,
    /// Leading white space belongs to it (code).
    pub code: bool,
}

impl Line {
    pub fn text(text: String) -> Self {
        Self { text, code: false }
    }
    pub fn code(text: String) -> Self {
        Self { text, code: true }
    }
    pub fn blank() -> Self {
        Self::text(String::new())
    }
}

/// The layouts of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// Paragraphs, perhaps with subheadings.
    Article,
    /// One paragraph that fills the chunk.
    OneParagraph,
    /// A single line.
    OneLine,
    /// Bulleted list.
    Bullets,
    /// Numbered list or steps.
    Numbered,
    /// Headlines with or without a line of text.
    Headlines,
    /// Short lines of any sort.
    ShortLines,
    /// Short lines of one form.
    Rows,
    /// Speakers and what they say.
    Dialogue,
    /// Nicknames and what they write.
    Chat,
    /// Posts and comments.
    Posts,
    /// A mail with quoted, wrapped lines.
    Mail,
    /// Running text with hard line breaks.
    Wrapped,
    /// Verse.
    Poem,
    /// Other languages and scripts.
    Foreign,
    /// Cells in a row, or one below the other.
    Table,
    /// `Name: value` lines.
    KeyValues,
    /// Name, price, text, features.
    Product,
    /// Ingredients and steps.
    Recipe,
    /// Addresses, telephone numbers, hours.
    Address,
    /// Dates and times with what happens.
    Schedule,
    /// Words and meanings.
    Dictionary,
    /// Questions with answers or choices.
    Questions,
    /// Code, shell, configuration.
    Code,
    /// Books and papers.
    References,
    /// Invented words.
    Noise,
    /// People and places.
    Names,
    /// A stretch of a whole clean page.
    SourcePage,
}

impl Layout {
    /// All layouts with how often they are drawn.
    pub const ALL: [(Self, u32); 28] = [
        (Self::Article, 34),
        (Self::OneParagraph, 9),
        (Self::OneLine, 3),
        (Self::Bullets, 8),
        (Self::Numbered, 5),
        (Self::Headlines, 4),
        (Self::ShortLines, 8),
        (Self::Rows, 4),
        (Self::Dialogue, 3),
        (Self::Chat, 2),
        (Self::Posts, 9),
        (Self::Mail, 3),
        (Self::Wrapped, 3),
        (Self::Poem, 3),
        (Self::Foreign, 2),
        (Self::Table, 4),
        (Self::KeyValues, 4),
        (Self::Product, 4),
        (Self::Recipe, 3),
        (Self::Address, 2),
        (Self::Schedule, 3),
        (Self::Dictionary, 2),
        (Self::Questions, 3),
        (Self::Code, 3),
        (Self::References, 2),
        (Self::Noise, 3),
        (Self::Names, 3),
        (Self::SourcePage, 6),
    ];
}

/// Makes paragraphs until the budget of characters is full; always at least one. A text with line breaks becomes several lines.
pub(crate) fn fit(budget: usize, gaps: bool, mut make: impl FnMut() -> Line) -> Vec<Line> {
    let mut out: Vec<Line> = Vec::new();
    let mut used = 0;
    for _ in 0..80 {
        let next = make();
        let length = next.text.chars().count() + 1;
        if !out.is_empty() && used + length > budget {
            break;
        }
        used += length;
        if gaps && !out.is_empty() {
            out.push(Line::blank());
        }
        let code = next.code;
        out.extend(next.text.split('\n').map(|text| Line { text: text.to_owned(), code }));
        if used >= budget {
            break;
        }
    }
    out
}

/// One block of a layout.
pub(crate) fn block(fill: &mut Fill, layout: Layout, style: &Style, budget: usize) -> Vec<Line> {
    match layout {
        Layout::Article => prose::article(fill, style, budget),
        Layout::OneParagraph => prose::one_paragraph(fill, style, budget),
        Layout::OneLine => prose::one_line(fill, style),
        Layout::Bullets => records::bullets(fill, style, budget),
        Layout::Numbered => records::numbered(fill, style, budget),
        Layout::Headlines => records::headlines(fill, style, budget),
        Layout::ShortLines => records::short_lines(fill, style, budget),
        Layout::Rows => records::rows(fill, budget),
        Layout::Dialogue => prose::dialogue(fill, style, budget),
        Layout::Chat => prose::chat(fill, style, budget),
        Layout::Posts => prose::posts(fill, style, budget),
        Layout::Mail => prose::mail(fill, style, budget),
        Layout::Wrapped => prose::wrapped(fill, style, budget),
        Layout::Poem => prose::poem(fill, style, budget),
        Layout::Foreign => prose::foreign(fill, budget),
        Layout::Table => records::table(fill, budget),
        Layout::KeyValues => records::key_values(fill, style, budget),
        Layout::Product => records::product(fill, style, budget),
        Layout::Recipe => records::recipe(fill, style, budget),
        Layout::Address => records::address(fill, budget),
        Layout::Schedule => records::schedule(fill, style, budget),
        Layout::Dictionary => records::dictionary(fill, style, budget),
        Layout::Questions => records::questions(fill, style, budget),
        Layout::Code => records::code(fill, budget),
        Layout::References => records::references(fill, style, budget),
        Layout::Noise => records::noise(fill, budget),
        Layout::Names => records::names(fill, budget),
        Layout::SourcePage => source_page(fill, style, budget),
    }
}

/// A stretch of a whole clean page with its own layout; an article where there are no pages.
fn source_page(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    if fill.sources.pages.is_empty() {
        return prose::article(fill, style, budget);
    }
    let at = between(fill.rng, 0, fill.sources.pages.len() - 1);
    let lines: Vec<String> = fill.sources.pages[at].lines().map(str::to_owned).collect();
    let start = if fill.chance(0.4) { 0 } else { between(fill.rng, 0, lines.len() - 1) };
    let mut rest = lines[start..].iter();
    fit(budget, false, || match rest.next() {
        Some(line) if line.starts_with("    ") || line.starts_with('\t') => Line::code(line.replace('\t', "    ")),
        Some(line) => Line::text(spice(fill.rng, line, style)),
        None => Line::blank(),
    })
}

/// The content of a chunk: about `budget` characters, never empty. Also says which layouts it has.
pub(crate) fn compose(fill: &mut Fill, budget: usize) -> (Vec<Line>, Vec<Layout>) {
    let style = Style::draw(fill.rng);
    let blocks = if budget < 150 || fill.chance(0.45) { 1 } else { fill.between(2, 3) };
    let mut lines: Vec<Line> = Vec::new();
    let mut layouts = Vec::new();
    if budget > 120 && fill.chance(0.35) {
        lines.push(Line::text(title_line(fill)));
        if style.gaps {
            lines.push(Line::blank());
        }
    }
    for _ in 0..blocks {
        let used: usize = lines.iter().map(|l| l.text.chars().count() + 1).sum();
        let left = budget.saturating_sub(used);
        if left < 30 && !layouts.is_empty() {
            break;
        }
        let layout = weighted(fill.rng, &Layout::ALL);
        let share = if layouts.len() + 1 == blocks { left } else { left / 2 };
        let next = block(fill, layout, &style, share.max(20));
        if !lines.is_empty() && !layouts.is_empty() && (style.gaps || fill.chance(0.5)) {
            lines.push(Line::blank());
        }
        lines.extend(next);
        layouts.push(layout);
    }
    (trim(lines, budget), layouts)
}

fn title_line(fill: &mut Fill) -> String {
    let form = fill.pick(&[
        "{title}",
        "{title}",
        "{title}",
        "{TITLE}",
        "# {title}",
        "{title} - {Word}",
        "{title} | {Word}",
        "{line}",
    ]);
    if form == "{line}" { fill.from(&lexicon::LINE) } else { fill.expand(form) }
}

/// Cuts at line ends so that the whole is not much longer than the budget; drops what white space or repetition would hide.
fn trim(lines: Vec<Line>, budget: usize) -> Vec<Line> {
    let mut out: Vec<Line> = Vec::new();
    let mut used = 0;
    for mut line in lines {
        line.text = if line.code { line.text.trim_end().to_owned() } else { line.text.trim().to_owned() };
        let blank = line.text.is_empty();
        if blank && out.last().is_none_or(|last| last.text.is_empty()) {
            continue;
        }
        let same =
            out.iter().rev().find(|l| !l.text.is_empty()).is_some_and(|last| last.text.trim() == line.text.trim());
        if !blank && same {
            continue;
        }
        let length = line.text.chars().count() + 1;
        if used + length > budget + budget / 4 && out.iter().any(|l| !l.text.is_empty()) {
            break;
        }
        used += length;
        out.push(line);
    }
    while out.last().is_some_and(|last| last.text.is_empty()) {
        out.pop();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{
        super::{chance::seeded, sources::Sources},
        *,
    };

    #[test]
    fn every_layout_makes_lines() {
        let sources = Sources::default();
        for (layout, _) in Layout::ALL {
            for seed in 0..30 {
                let mut rng = seeded(seed);
                let style = Style::draw(&mut rng);
                let mut fill = Fill::new(&mut rng, &sources);
                let lines = block(&mut fill, layout, &style, 300);
                assert!(lines.iter().any(|l| !l.text.trim().is_empty()), "{layout:?} {seed}");
                assert!(lines.iter().all(|l| !l.text.contains('\n')), "{layout:?} {seed}");
            }
        }
    }

    #[test]
    fn composed_pages_are_about_as_long_as_asked() {
        let sources = Sources::default();
        for seed in 0..200 {
            let mut rng = seeded(seed);
            let mut fill = Fill::new(&mut rng, &sources);
            let (lines, layouts) = compose(&mut fill, 600);
            let length: usize = lines.iter().map(|l| l.text.chars().count() + 1).sum();
            assert!(!layouts.is_empty() && length > 0 && length <= 1000, "seed {seed}: {length}");
        }
    }
}
