//! Clutter: blocks of lines that a page carries around its content, one generator a kind. A block is recognisable from its
//! form alone. Does not know the page it will stand in.

use super::{chance::weighted, lexicon, template::Fill};

/// The kinds of clutter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    NavBar,
    NavMenu,
    Breadcrumb,
    Skip,
    Login,
    Search,
    Share,
    Social,
    Cookie,
    Newsletter,
    Related,
    ReadMore,
    Ad,
    Count,
    Posted,
    Date,
    Tags,
    Comment,
    CommentHead,
    Forum,
    PostHeader,
    Signature,
    Pagination,
    Copyright,
    Print,
    Shop,
    Script,
    Archive,
    Mixed,
}

/// Where on a page a kind mostly stands; chunks begin anywhere, so it is a leaning, not a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Top,
    Middle,
    Bottom,
    Any,
}

/// Lines of one kind. `open`: the end of the block is only seen where prose or the page's end follows (lists of headlines).
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub kind: Kind,
    pub lines: Vec<String>,
    pub open: bool,
}

impl Kind {
    /// All kinds with how often they are drawn.
    pub const ALL: [(Self, u32); 29] = [
        (Self::NavBar, 8),
        (Self::NavMenu, 4),
        (Self::Breadcrumb, 5),
        (Self::Skip, 3),
        (Self::Login, 5),
        (Self::Search, 3),
        (Self::Share, 7),
        (Self::Social, 4),
        (Self::Cookie, 4),
        (Self::Newsletter, 5),
        (Self::Related, 5),
        (Self::ReadMore, 6),
        (Self::Ad, 7),
        (Self::Count, 4),
        (Self::Posted, 9),
        (Self::Date, 4),
        (Self::Tags, 4),
        (Self::Comment, 7),
        (Self::CommentHead, 6),
        (Self::Forum, 4),
        (Self::PostHeader, 5),
        (Self::Signature, 2),
        (Self::Pagination, 5),
        (Self::Copyright, 7),
        (Self::Print, 4),
        (Self::Shop, 6),
        (Self::Script, 4),
        (Self::Archive, 1),
        (Self::Mixed, 6),
    ];

    /// Where it leans to.
    pub fn place(self) -> Place {
        match self {
            Self::NavBar
            | Self::NavMenu
            | Self::Breadcrumb
            | Self::Skip
            | Self::Login
            | Self::Search
            | Self::Cookie => Place::Top,
            Self::Posted | Self::Date => Place::Top,
            Self::Related | Self::Tags | Self::Comment | Self::Copyright | Self::Archive | Self::Social => {
                Place::Bottom
            }
            Self::CommentHead
            | Self::Forum
            | Self::PostHeader
            | Self::Signature
            | Self::ReadMore
            | Self::Ad
            | Self::Shop => Place::Middle,
            _ => Place::Any,
        }
    }

    /// The template list that single lines of the kind come from.
    fn list(self) -> Option<&'static lexicon::List> {
        Some(match self {
            Self::Skip => &lexicon::SKIP,
            Self::Login => &lexicon::LOGIN,
            Self::Search => &lexicon::SEARCH,
            Self::Share => &lexicon::SHARE,
            Self::Social => &lexicon::SOCIAL,
            Self::Cookie => &lexicon::COOKIE,
            Self::Newsletter => &lexicon::NEWSLETTER,
            Self::ReadMore => &lexicon::READ_MORE,
            Self::Ad => &lexicon::AD,
            Self::Count => &lexicon::COUNT,
            Self::Posted => &lexicon::POSTED,
            Self::Date => &lexicon::DATE,
            Self::Tags => &lexicon::TAGS,
            Self::Comment => &lexicon::COMMENT,
            Self::CommentHead => &lexicon::COMMENT_HEAD,
            Self::Forum => &lexicon::FORUM,
            Self::Pagination => &lexicon::PAGINATION,
            Self::Copyright => &lexicon::COPYRIGHT,
            Self::Print => &lexicon::PRINT,
            Self::Shop => &lexicon::SHOP,
            Self::Script => &lexicon::SCRIPT,
            _ => return None,
        })
    }

    /// Lines of a run of this kind at most: forms and footers come in heaps, bylines alone.
    fn run(self) -> usize {
        match self {
            Self::Comment | Self::Forum | Self::Shop | Self::Copyright => 6,
            Self::Login | Self::Share | Self::Newsletter | Self::Ad | Self::Pagination | Self::Social => 4,
            Self::Posted | Self::Date | Self::ReadMore | Self::CommentHead | Self::Tags => 1,
            _ => 2,
        }
    }
}

/// A block of a drawn kind; `single` asks for one line where the kind allows it.
pub(crate) fn draw(fill: &mut Fill, single: bool) -> Block {
    let kind = weighted(fill.rng, &Kind::ALL);
    block(fill, kind, single)
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
    const SUFFIX: &[&str] = &[
        "Read more",
        "Read More",
        "Read more »",
        "Read more...",
        "[Read more]",
        "Read More >",
        "Continue reading →",
        "Continue reading »",
        "(read more)",
        "Full story »",
        "[more]",
        "More »",
        "(more…)",
        "See more »",
        "Learn more »",
        "Share this:",
        "Share this article",
        "Share on Facebook",
        "Share Tweet Email",
        "Facebook Twitter Google+",
        "Print Email",
        "Print | Email",
        "Email this page",
        "{n} Comments",
        "{n} comments",
        "Comments ({n})",
        "({n} comments)",
        "Leave a comment",
        "Add Comment",
        "Post a Comment",
        "Reply",
        "Reply With Quote",
        "[Reply]",
        "Like · Reply",
        "Advertisement",
        "ADVERTISEMENT",
        "Sponsored",
        "Add to Cart",
        "Add to Wishlist",
        "Buy Now",
        "Quick View",
        "Back to top",
        "[edit]",
        "[Edit]",
        "View all »",
        "Click to enlarge",
        "Click here to {subscribe|enlarge|read more|print}",
        "Permalink",
        "Report abuse",
        "Posted {date}",
        "Posted by {user} on {date}",
        "Updated {date}",
        "{N} views",
        "Follow @{user}",
        "Tweet",
        "Pin It",
        "Log in to comment",
        "Sign up",
        "Subscribe now",
        "© {year} {site}",
        "All rights reserved.",
        "Skip to content",
        "Skip to main content",
        "Home | About | Contact",
        "Home > {genre} > {topic}",
        "Login | Register",
        "Search this site",
        "Menu",
        "Tags: {topic}, {topic}",
        "Filed under: {genre}",
        "Subscribe to our newsletter",
        "Page {n} of {nn}",
        "Next page »",
        "« Previous | Next »",
        "share|improve this answer",
        "Copyright {year} {site}",
        "We use cookies. Accept",
        "Get the app",
        "Watch video »",
        "View gallery",
        "via @{user}",
        "Follow us on Twitter",
    ];
    fill.from(SUFFIX)
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
    let genres = fill.chance(0.4);
    let mut items: Vec<String> = (0..n)
        .map(|i| if genres && i > 0 && i % 2 == 0 { fill.from(&lexicon::GENRE) } else { fill.from(&lexicon::NAV) })
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
    let lines = (0..n)
        .map(|i| if genres && i % 2 == 1 { fill.from(&lexicon::GENRE) } else { fill.from(&lexicon::NAV) })
        .collect();
    bulleted(fill, lines)
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
    let form = fill.pick(&[
        "{title}",
        "{title}",
        "{title}",
        "{title}",
        "{title} ({n})",
        "{title} - {date}",
        "{date} \\n{title}",
        "{title} \\n{date}",
        "{date} - {title}",
        "{title} »",
        "{topic}",
        "{Word}",
        "{Genre}",
        "{Genre} ({n})",
        "{user} on {title}",
        "{title} \\nRead more",
        "{title} \\n{n} comments",
        "{ago} \\n{title}",
        "{title} {price}",
        "{name}",
        "{domain}",
        "{title} by {user}",
        "{title} \\n{N} views",
        "{title} \\nBy {name}",
    ]);
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
    const PARTS: &[&str] = &[
        "{Senior|Junior|Full|New|Active|Super|Registered|Premium} Member",
        "{Member|Moderator|Administrator|Newbie|Veteran|Regular|Guest|Forum Regular|Site Admin}",
        "Join Date: {month} {year}",
        "Joined: {month} {year}",
        "Joined: {date}",
        "Registered: {date}",
        "Member since: {year}",
        "Location: {place}",
        "From: {place}",
        "Posts: {N}",
        "Posts: {n}",
        "Messages: {N}",
        "Post Count: {N}",
        "Thanks: {n}",
        "Likes Received: {n}",
        "Gender: {Male|Female}",
        "Age: {nn}",
        "Rep Power: {n}",
        "Status: {Offline|Online}",
        "Reputation: {n}",
        "Points: {N}",
        "{user} is offline",
        "{N} posts",
        "My Mood: {Happy|Cool|Bored|Tired}",
        "Trader Rating: {n}",
        "Buy-Sell-Trade Rating: (0)",
        "Thanked {n} times in {n} posts",
        "{user}'s Avatar",
    ];
    let mut lines = Vec::new();
    if fill.chance(0.6) {
        let top = fill.from(&[
            "#{n}",
            "{date}, {time}",
            "{date}, {time} #{n}",
            "Old {date}, {time}",
            "Post #{n}",
            "#{n} (permalink)",
            "Posted: {date} {time}",
            "{date} {time}",
            "« Reply #{n} on: {date}, {time} »",
            "  #{n} ({permalink|link})",
        ]);
        lines.push(top);
    }
    let user = fill.from(&["{user}", "{user}", "{user} is offline", "{user} wrote:", "{user}'s Avatar"]);
    lines.push(user);
    for _ in 0..fill.between(1, 5) {
        let part = fill.from(PARTS);
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
    use std::collections::BTreeMap;

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
    fn every_kind_is_drawn_in_proportion() {
        let sources = Sources::default();
        let mut seen: BTreeMap<Kind, u32> = BTreeMap::new();
        let mut rng = seeded(7);
        let mut fill = Fill::new(&mut rng, &sources);
        for _ in 0..6000 {
            *seen.entry(draw(&mut fill, true).kind).or_default() += 1;
        }
        let total: u32 = Kind::ALL.iter().map(|k| k.1).sum();
        for (kind, weight) in Kind::ALL {
            let expected = 6000 * weight / total;
            let n = seen.get(&kind).copied().unwrap_or(0);
            assert!(n > expected / 2 && n < expected * 2, "{kind:?}: {n} of {expected}");
        }
    }
}
