//! The kinds of clutter: how often each is drawn, where it stands, which template list it has, which kinds go together.
//! Does not make any text.

use super::{lexicon, template::Fill};

/// The kinds of clutter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Menu in one line.
    NavBar,
    /// Menu, one entry a line.
    NavMenu,
    /// `Home > News > …`.
    Breadcrumb,
    /// Skip links, menu buttons, text size.
    Skip,
    /// Log in, register, welcome guest.
    Login,
    /// Search boxes and letters of the alphabet.
    Search,
    /// Share, like, tweet, permalink.
    Share,
    /// Follow us.
    Social,
    /// Cookie and privacy notices.
    Cookie,
    /// Newsletter boxes and feeds.
    Newsletter,
    /// A header of other pages, mostly with their headlines.
    Related,
    /// Read more, see also, source.
    ReadMore,
    /// Advertisement marks, offers, calls to buy or give.
    Ad,
    /// Views, votes, ratings.
    Count,
    /// Byline with date: posted, published, updated.
    Posted,
    /// A date alone.
    Date,
    /// Tags, categories, labels.
    Tags,
    /// Comment counters, forms and rules.
    Comment,
    /// Head of one comment.
    CommentHead,
    /// Buttons, permissions and marks of forums and question sites.
    Forum,
    /// Head of one forum post, of several parts.
    PostHeader,
    /// A rule and a member's motto.
    Signature,
    /// Pages, next and previous, sort and filter, back to top.
    Pagination,
    /// Copyright, powered by, terms, generation time.
    Copyright,
    /// Print, e-mail, save, edit.
    Print,
    /// Cart, quantity, reviews, directions.
    Shop,
    /// JavaScript notices, players, apps.
    Script,
    /// Months with counts.
    Archive,
    /// Short clutter of several kinds in one line.
    Mixed,
}

/// Where on a page a kind mostly stands; chunks begin anywhere, so it is a leaning, not a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before the content.
    Top,
    /// Between its lines.
    Middle,
    /// Behind it.
    Bottom,
    /// Anywhere.
    Any,
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
    pub(crate) fn list(self) -> Option<&'static lexicon::List> {
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
    pub(crate) fn run(self) -> usize {
        match self {
            Self::Comment | Self::Forum | Self::Shop | Self::Copyright => 6,
            Self::Login | Self::Share | Self::Newsletter | Self::Ad | Self::Pagination | Self::Social => 4,
            Self::Posted | Self::Date | Self::ReadMore | Self::CommentHead | Self::Tags => 1,
            _ => 2,
        }
    }
}

/// Kinds that stand together on one sort of site: forum, blog, shop, newspaper, home page.
pub(crate) fn theme(fill: &mut Fill) -> &'static [(Kind, u32)] {
    use Kind::*;
    const FORUM: &[(Kind, u32)] = &[
        (PostHeader, 5),
        (Forum, 5),
        (Signature, 2),
        (CommentHead, 4),
        (Pagination, 2),
        (Login, 2),
        (Count, 1),
        (Breadcrumb, 1),
    ];
    const BLOG: &[(Kind, u32)] = &[
        (Posted, 4),
        (Date, 3),
        (Tags, 4),
        (Comment, 5),
        (CommentHead, 3),
        (Archive, 1),
        (Related, 2),
        (Share, 3),
        (Social, 2),
        (Newsletter, 2),
    ];
    const SHOP: &[(Kind, u32)] = &[
        (Shop, 8),
        (Count, 2),
        (Breadcrumb, 2),
        (NavBar, 2),
        (Search, 1),
        (Ad, 2),
        (Related, 2),
        (Login, 1),
        (Mixed, 1),
    ];
    const NEWS: &[(Kind, u32)] = &[
        (Posted, 4),
        (Share, 3),
        (ReadMore, 3),
        (Ad, 4),
        (Related, 3),
        (Copyright, 2),
        (Print, 3),
        (Newsletter, 2),
        (Script, 2),
        (Cookie, 1),
        (NavBar, 1),
    ];
    const HOME: &[(Kind, u32)] = &[
        (NavBar, 4),
        (NavMenu, 3),
        (Skip, 2),
        (Copyright, 4),
        (Cookie, 2),
        (Social, 2),
        (Search, 2),
        (Mixed, 2),
        (Login, 2),
        (Newsletter, 1),
    ];
    [FORUM, BLOG, SHOP, NEWS, HOME][fill.between(0, 4)]
}
