//! The word and template lists of assets/clutter, embedded. One place that knows file names; it does not know what the
//! lists are used for.

use std::sync::LazyLock;

/// A list: one entry a line, empty lines left out. Leading white space of an entry is kept (code).
pub(crate) type List = LazyLock<Vec<&'static str>>;

fn parse(text: &'static str) -> Vec<&'static str> {
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect()
}

macro_rules! lists {
    ($($name:ident = $file:literal;)*) => {
        $(pub(crate) static $name: List = LazyLock::new(|| {
            parse(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/clutter/", $file, ".txt")))
        });)*
        /// Every list with its file name, for tests.
        #[cfg(test)]
        pub(crate) fn all() -> Vec<(&'static str, &'static [&'static str])> {
            vec![$(($file, $name.as_slice())),*]
        }
    };
}

lists! {
    FIRST = "w_first";
    LAST = "w_last";
    PLACE = "w_place";
    TOPIC = "w_topic";
    THING = "w_thing";
    ADJ = "w_adj";
    VERB = "w_verb";
    FOOD = "w_food";
    NAV = "w_nav";
    GENRE = "w_genre";
    FOREIGN = "w_foreign";
    SKIP = "c_skip";
    LOGIN = "c_login";
    SHARE = "c_share";
    SOCIAL = "c_social";
    COOKIE = "c_cookie";
    NEWSLETTER = "c_newsletter";
    COMMENT = "c_comment";
    COMMENT_HEAD = "c_commenthead";
    POSTED = "c_posted";
    DATE = "c_date";
    TAGS = "c_tags";
    COUNT = "c_count";
    PAGINATION = "c_page";
    COPYRIGHT = "c_copyright";
    AD = "c_ad";
    SHOP = "c_shop";
    SEARCH = "c_search";
    PRINT = "c_print";
    SCRIPT = "c_script";
    READ_MORE = "c_readmore";
    RELATED = "c_related";
    FORUM = "c_forum";
    FRAGMENT = "c_fragment";
    REFRAIN = "c_refrain";
    RELATED_LINE = "c_relatedline";
    POST_PART = "c_postpart";
    POST_TOP = "c_posttop";
    SIGNATURE = "t_sig";
    TITLE = "t_title";
    SPEC = "t_spec";
    INGREDIENT = "t_food";
    STEP = "t_step";
    LINE = "t_line";
    NEAR = "t_near";
    USER_POST = "t_user";
    CODE = "t_code";
}

#[cfg(test)]
mod tests {
    /// The lists are there, and no entry of a word list holds a template mark by mistake.
    #[test]
    fn lists_are_sound() {
        for (name, list) in super::all() {
            assert!(list.len() >= 15, "{name} has {} entries", list.len());
            if name.starts_with("w_") {
                assert!(list.iter().all(|entry| !entry.contains('{') && entry.trim() == *entry), "{name}");
            }
        }
    }
}
