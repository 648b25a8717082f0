//! Clutter: blocks of lines that a page carries around its content, one generator a kind. A block is recognisable from its
//! form alone. Does not know the page it will stand in.

use super::{kind::Kind, lexicon, template::Fill};

/// Lines of one kind. `open`: the end of the block is only seen where prose or the page's end follows (lists of headlines).
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub kind: Kind,
    pub lines: Vec<String>,
    pub open: bool,
}

/// The head of one post or comment, in a form that stays the same on a page: pass the form that [`head_form`] gave.
pub(crate) fn head(fill: &mut Fill, form: Option<&'static str>) -> Vec<String> {
    match form {
        Some(form) => fill.expand(form).lines().map(|l| l.trim().to_owned()).collect(),
        None => post_header(fill),
    }
}

/// A form of heads for one page; None stands for the many-line heads of forums.
pub(crate) fn head_form(fill: &mut Fill) -> Option<&'static str> {
    const WORDS: &[&str] =
        &["says", "said", "{date}", "{ago}", "by", "wrote", "re:", "picture", "posted", "Posted", "Avatar"];
    if fill.chance(0.25) {
        return None;
    }
    let forms: Vec<&'static str> =
        lexicon::COMMENT_HEAD.iter().copied().filter(|form| WORDS.iter().any(|w| form.contains(w))).collect();
    Some(fill.pick(&forms))
}

/// A short line that pages set under every item.
pub(crate) fn refrain(fill: &mut Fill) -> String {
    fill.from(&lexicon::REFRAIN)
}

/// A block of one kind.
pub(crate) fn block(fill: &mut Fill, kind: Kind, single: bool) -> Block {
    let (lines, open) = match kind {
        Kind::NavBar => (vec![nav_bar(fill)], false),
        Kind::NavMenu => (nav_menu(fill, single), false),
        Kind::Breadcrumb => (vec![breadcrumb(fill)], false),
        Kind::Related => related(fill, single),
        Kind::Archive => archive(fill),
        Kind::PostHeader => (post_header(fill), false),
        Kind::Signature => (signature(fill), true),
        Kind::Mixed => (vec![mixed_bar(fill)], false),
        _ => (run(fill, kind, single), false),
    };
    let lines = lines.into_iter().flat_map(|l| l.split('\n').map(|p| p.trim().to_owned()).collect::<Vec<_>>());
    let mut lines: Vec<String> = lines.filter(|l| !l.is_empty()).collect();
    restyle(fill, &mut lines);
    Block { kind, lines, open }
}

fn run(fill: &mut Fill, kind: Kind, single: bool) -> Vec<String> {
    let list = kind.list().expect("kinds without a list are handled before");
    let most = kind.run();
    let n = if single || most == 1 || fill.chance(0.5) { 1 } else { fill.between(2, most) };
    (0..n).map(|_| fill.from(list)).collect()
}

/// One piece of clutter that can be glued to a content line: unmistakable, without a headline in it.
pub(crate) fn fragment(fill: &mut Fill) -> String {
    fill.from(&lexicon::FRAGMENT)
}

const BARS: &[&str] = &[
    " | ",
    " | ",
    " | ",
    " · ",
    " / ",
    "  ",
    " ",
    " ",
    " • ",
    " - ",
    " » ",
    "|",
    " > ",
    ", ",
    " :: ",
    " ~ ",
    " – ",
    "\u{a0}|\u{a0}",
    "   ",
    " * ",
];

fn nav_bar(fill: &mut Fill) -> String {
    let sep = fill.pick(BARS);
    let bare = sep.trim().is_empty() || sep == ", ";
    let n = fill.between(if bare { 4 } else { 2 }, 9);
    let own = fill.pick(&[
        "{nav}",
        "{nav}",
        "{nav}",
        "{genre}",
        "{genre}",
        "{Topic}",
        "{Word}",
        "{Thing}s",
        "{place}",
        "{Adj} {Thing}s",
    ]);
    let mut items: Vec<String> = (0..n)
        .map(|i| if own != "{nav}" && i % 2 == 1 { fill.expand(own) } else { fill.from(&lexicon::NAV) })
        .collect();
    if fill.chance(0.35) {
        items[0] = "Home".to_owned();
    }
    items.dedup();
    let glued = fill.chance(0.05) && items.len() > 3;
    let mut line = items.join(if glued { "" } else { sep });
    if fill.chance(0.1) {
        let tail = fill.pick(&[" |", " »", " |  ", " More ▾", " ▼", " Search", " >"]);
        line.push_str(tail);
    }
    if fill.chance(0.06) {
        line = format!("| {line} |");
    }
    line
}

const BULLETS: &[&str] = &["• ", "• ", "• ", "* ", "- ", "» ", "· ", "› ", "▸ ", "+ ", "> ", "○ ", "– "];

/// A bullet, number or nothing for each line.
fn bulleted(fill: &mut Fill, lines: Vec<String>) -> Vec<String> {
    match fill.between(0, 9) {
        0..=3 => lines,
        4 => lines.into_iter().enumerate().map(|(i, l)| format!("{}. {l}", i + 1)).collect(),
        _ => {
            let bullet = fill.pick(BULLETS);
            lines.into_iter().map(|l| format!("{bullet}{l}")).collect()
        }
    }
}

fn nav_menu(fill: &mut Fill, single: bool) -> Vec<String> {
    let n = if single { 1 } else { fill.between(2, 9) };
    let genres = fill.chance(0.35);
    let plain: Vec<&'static str> = lexicon::NAV.iter().copied().filter(|item| unmistakable(item)).collect();
    let lines = (0..n)
        .map(|i| match i % 2 {
            0 => fill.from(&plain),
            _ if genres => fill.from(&lexicon::GENRE),
            _ => fill.from(&lexicon::NAV),
        })
        .collect();
    bulleted(fill, lines)
}

/// Menu entries that are no heading of content anywhere.
fn unmistakable(item: &str) -> bool {
    const WORDS: &[&str] = &[
        "Home",
        "Log",
        "Sign",
        "Register",
        "Contact",
        "Site",
        "Privacy",
        "Terms",
        "FAQ",
        "Account",
        "RSS",
        "Cart",
        "Search",
        "About Us",
        "Subscribe",
        "Skip",
        "Newsletter",
        "Help",
        "Forum",
        "Checkout",
        "Profile",
        "Wish",
        "Latest",
        "Popular",
        "Mark",
        "Posts",
        "Sitemap",
        "Advertise",
        "Join",
        "Submit",
        "Downloads",
        "Upload",
        "Customer",
    ];
    WORDS.iter().any(|word| item.contains(word))
}

fn breadcrumb(fill: &mut Fill) -> String {
    let sep = fill.pick(&[
        " > ",
        " > ",
        " » ",
        " / ",
        " › ",
        " → ",
        " :: ",
        ">",
        " >> ",
        " → ",
        " | ",
        " \\ ",
        "\u{a0}>\u{a0}",
        " ▸ ",
    ]);
    let mut parts = vec![fill.from(&[
        "Home",
        "Home",
        "Home",
        "{site}",
        "Index",
        "Main",
        "Forums",
        "Start",
        "Home Page",
        "{site} Home",
        "All {genre}",
        "Products",
        "Blog",
        "News",
    ])];
    for _ in 0..fill.between(1, 3) {
        let part = fill.from(&["{genre}", "{genre}", "{Topic}", "{place}", "{Adj} {Thing}s", "{year}", "{Word}"]);
        parts.push(part);
    }
    if fill.chance(0.5) {
        let title = fill.title();
        parts.push(title);
    }
    let lead = fill.pick(&[
        "",
        "",
        "",
        "",
        "You are here: ",
        "You are here:",
        "You Are Here: ",
        "Location: ",
        "Browse: ",
        "Go Back ",
        "Path: ",
    ]);
    let tail = if fill.chance(0.12) { sep.trim_end() } else { "" };
    format!("{lead}{}{tail}", parts.join(sep))
}

/// A header of other pages, mostly with their headlines below it.
fn related(fill: &mut Fill, single: bool) -> (Vec<String>, bool) {
    let header = {
        let text = fill.from(&lexicon::RELATED);
        let end = fill.pick(&["", "", "", "", ":", "...", " »", " ▾"]);
        if text.ends_with([':', '.']) { text } else { format!("{text}{end}") }
    };
    if single && fill.chance(0.5) || fill.chance(0.15) {
        return (vec![header], false);
    }
    let form = fill.pick(&lexicon::RELATED_LINE);
    let lines: Vec<String> = (0..fill.between(1, 7)).map(|_| fill.from(&[form])).collect();
    let mut out = vec![header];
    out.extend(bulleted(fill, lines));
    (out, true)
}

fn archive(fill: &mut Fill) -> (Vec<String>, bool) {
    let mut lines = vec![fill.from(&[
        "Archives",
        "Archive",
        "Blog Archive",
        "Monthly Archives",
        "Archives by month",
        "ARCHIVES",
        "Calendar",
    ])];
    let form = fill.pick(&[
        "{month} {year}",
        "{month} {year} ({n})",
        "► {year} ({nn})",
        "▼ {month} ({n})",
        "{year}",
        "« {month} {month} »",
        "► {month} ({n})",
    ]);
    for _ in 0..fill.between(1, 8) {
        let line = fill.expand(form);
        lines.push(line);
    }
    if fill.chance(0.25) {
        lines.push("M T W T F S S".to_owned());
        lines.push("« Jan   Mar »".to_owned());
    }
    (lines, false)
}

/// The head of a forum post: number, member, rank, dates, counts.
fn post_header(fill: &mut Fill) -> Vec<String> {
    let mut lines = Vec::new();
    if fill.chance(0.6) {
        let top = fill.from(&lexicon::POST_TOP);
        lines.push(top);
    }
    let user = fill.from(&["{user}", "{user}", "{user} is offline", "{user} wrote:", "{user}'s Avatar"]);
    lines.push(user);
    for _ in 0..fill.between(1, 5) {
        let part = fill.from(&lexicon::POST_PART);
        lines.push(part);
    }
    if fill.chance(0.25) {
        let tail = fill.from(&[
            "Re: {title}",
            "Default {title}",
            "Default Re: {title}",
            "Post subject: {title}",
            "Quote: \\nOriginally Posted by {user}",
            "Originally Posted by {user}",
        ]);
        lines.push(tail);
    }
    if fill.chance(0.2) { vec![lines.join(" ")] } else { lines }
}

fn signature(fill: &mut Fill) -> Vec<String> {
    let rule = fill.pick(&[
        "__________________",
        "_________________",
        "--",
        "--------------------",
        "_______",
        "- - - - -",
        "=====",
        "~~~~~~~~",
    ]);
    let mut lines = vec![rule.to_owned()];
    for _ in 0..fill.between(1, 2) {
        let line = fill.from(&lexicon::SIGNATURE);
        lines.push(line);
    }
    lines
}

/// Short clutter of several kinds in one line.
fn mixed_bar(fill: &mut Fill) -> String {
    let lists: [&lexicon::List; 8] = [
        &lexicon::NAV,
        &lexicon::SHARE,
        &lexicon::PRINT,
        &lexicon::LOGIN,
        &lexicon::SOCIAL,
        &lexicon::SHOP,
        &lexicon::SEARCH,
        &lexicon::COMMENT,
    ];
    let sep = fill.pick(BARS);
    let mut items = Vec::new();
    let wanted = fill.between(2, 6);
    while items.len() < wanted {
        let list = lists[fill.between(0, lists.len() - 1)];
        let item = fill.from(list);
        if item.len() < 28 && !item.contains('\n') {
            items.push(item);
        }
    }
    items.join(sep)
}

/// Capitals, small letters, a mark in front or behind: the same words in the many dresses of pages.
fn restyle(fill: &mut Fill, lines: &mut [String]) {
    if fill.chance(0.06) {
        for line in lines.iter_mut() {
            *line = line.to_uppercase();
        }
    } else if fill.chance(0.05) {
        for line in lines.iter_mut() {
            *line = line.to_lowercase();
        }
    }
    if fill.chance(0.1) && !lines.is_empty() {
        let (front, back) = match fill.between(0, 9) {
            0 => ("[", "]"),
            1 => ("» ", ""),
            2 => ("", " »"),
            3 => ("", " |"),
            4 => ("| ", " |"),
            5 => ("• ", ""),
            6 => ("(", ")"),
            7 => ("+ ", ""),
            8 => ("", "!"),
            _ => ("", "."),
        };
        for line in lines.iter_mut() {
            *line = format!("{front}{line}{back}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{chance::seeded, sources::Sources},
        *,
    };

    #[test]
    fn every_kind_makes_lines() {
        let sources = Sources::default();
        for (kind, _) in Kind::ALL {
            for seed in 0..40 {
                let mut rng = seeded(seed);
                let mut fill = Fill::new(&mut rng, &sources);
                let block = block(&mut fill, kind, seed % 2 == 0);
                assert!(!block.lines.is_empty(), "{kind:?}");
                assert!(
                    block.lines.iter().all(|l| !l.trim().is_empty() && !l.contains('\n')),
                    "{kind:?}: {:?}",
                    block.lines
                );
            }
        }
    }

    #[test]
    fn heads_and_refrains() {
        let sources = Sources::default();
        let mut many = 0;
        for seed in 0..200 {
            let mut rng = seeded(seed);
            let mut fill = Fill::new(&mut rng, &sources);
            let form = head_form(&mut fill);
            many += usize::from(form.is_none());
            assert!(!head(&mut fill, form).is_empty() && !refrain(&mut fill).is_empty());
        }
        assert!((20..80).contains(&many), "{many}");
    }
}
