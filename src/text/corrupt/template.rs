//! Templates: `{slot}`, `{a|b|c}`, `{?maybe}`, nested. A brace that opens none of these stands for itself (code).
//! Knows the slots; does not know which template is clutter and which is content.

use super::{
    chance::{Rng, between, chance, pick},
    lexicon, novel,
    sources::Sources,
};

/// Fills templates from one random stream. `site` and `domain` stay the same within a page.
pub(crate) struct Fill<'a> {
    pub rng: &'a mut Rng,
    pub sources: &'a Sources,
    pub site: String,
    pub domain: String,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl<'a> Fill<'a> {
    pub fn new(rng: &'a mut Rng, sources: &'a Sources) -> Self {
        let domain = novel::domain(rng);
        let mut fill = Self { rng, sources, site: String::new(), domain };
        fill.site = fill.site_name();
        fill
    }

    fn site_name(&mut self) -> String {
        let form = pick(
            self.rng,
            &[
                "{Word}",
                "{Word} {Genre}",
                "The {place} {Herald|Times|Post|Star|News|Gazette|Courier|Observer}",
                "{Thing} {World|Central|Forum|Review|Daily|Hub|Online}",
                "{Word}{thing}.com",
                "{first}'s {Adj} {Thing}s",
                "{place} {Genre}",
                "The {Adj} {Thing}",
                "{Word} {Inc.|Ltd|LLC|Media|Group|Network}",
                "{Topic} Today",
                "{Word}.com",
                "University of {place}",
                "City of {place}",
                "{Genre} Forums",
            ],
        );
        self.expand(form)
    }

    pub fn pick(&mut self, items: &[&'static str]) -> &'static str {
        pick(self.rng, items)
    }

    pub fn chance(&mut self, p: f64) -> bool {
        chance(self.rng, p)
    }

    pub fn between(&mut self, low: usize, high: usize) -> usize {
        between(self.rng, low, high)
    }

    /// One filled template of a list.
    pub fn from(&mut self, list: &[&'static str]) -> String {
        let template = pick(self.rng, list);
        self.expand(template)
    }

    /// Fills a template. ` \n` becomes a line break.
    pub fn expand(&mut self, template: &str) -> String {
        let mut out = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            out.push_str(&rest[..open]);
            let filled =
                closing(&rest[open..]).and_then(|close| Some((self.brace(&rest[open + 1..open + close])?, close)));
            if let Some((text, close)) = filled {
                out.push_str(&text);
                rest = &rest[open + close + 1..];
            } else {
                out.push('{');
                rest = &rest[open + 1..];
            }
        }
        out.push_str(rest);
        out.replace(" \\n", "\n")
    }

    fn brace(&mut self, inner: &str) -> Option<String> {
        if let Some(maybe) = inner.strip_prefix('?') {
            return Some(if self.chance(0.5) { self.expand(maybe) } else { String::new() });
        }
        let options = split_top(inner);
        if options.len() > 1 {
            let at = self.between(0, options.len() - 1);
            return Some(self.expand(options[at]));
        }
        self.slot(inner).or_else(|| self.small_slot(inner))
    }

    fn slot(&mut self, name: &str) -> Option<String> {
        Some(match name {
            "first" => pick(self.rng, &lexicon::FIRST).to_owned(),
            "last" => self.surname(),
            "name" => self.name(),
            "user" => novel::user(self.rng),
            "place" => pick(self.rng, &lexicon::PLACE).to_owned(),
            "topic" => pick(self.rng, &lexicon::TOPIC).to_owned(),
            "Topic" => novel::title_case(pick(self.rng, &lexicon::TOPIC)),
            "thing" => pick(self.rng, &lexicon::THING).to_owned(),
            "Thing" => novel::title_case(pick(self.rng, &lexicon::THING)),
            "adj" => pick(self.rng, &lexicon::ADJ).to_owned(),
            "Adj" => novel::title_case(pick(self.rng, &lexicon::ADJ)),
            "verb" => pick(self.rng, &lexicon::VERB).to_owned(),
            "Verb" => novel::capital(pick(self.rng, &lexicon::VERB)),
            "food" => pick(self.rng, &lexicon::FOOD).to_owned(),
            "Food" => novel::title_case(pick(self.rng, &lexicon::FOOD)),
            "FOOD" => pick(self.rng, &lexicon::FOOD).to_uppercase(),
            "genre" => pick(self.rng, &lexicon::GENRE).to_owned(),
            "Genre" => pick(self.rng, &lexicon::GENRE).to_owned(),
            "word" => self.word(),
            "Word" => novel::capital(&self.word()),
            "CODE" => novel::code(self.rng),
            "hex" => novel::hex(self.rng),
            "site" => self.site.clone(),
            "SITE" => self.site.to_uppercase(),
            "domain" => self.domain_or_new(),
            "email" => format!("{}@{}", novel::user(self.rng).to_lowercase(), self.domain_or_new()),
            "url" => self.url(),
            "title" => self.title(),
            "TITLE" => self.title().to_uppercase(),
            _ => return None,
        })
    }

    fn small_slot(&mut self, name: &str) -> Option<String> {
        Some(match name {
            "n" => self.between(1, 30).to_string(),
            "nn" => self.between(10, 99).to_string(),
            "N" => self.big(),
            "K" => format!("{}.{}{}", self.between(1, 99), self.between(0, 9), self.pick(&["K", "k", "M"])),
            "CODE_" => novel::code(self.rng),
            "date" => self.date(),
            "time" => self.time(),
            "ago" => self.ago(),
            "year" => self.between(1995, 2025).to_string(),
            "month" => self.month(),
            "season" => self
                .pick(&["spring", "summer", "autumn", "winter", "fall", "Easter", "Christmas", "Halloween"])
                .to_owned(),
            "price" => self.price(),
            _ => return None,
        })
    }

    fn surname(&mut self) -> String {
        if self.chance(0.25) {
            novel::capital(&novel::word(self.rng))
        } else {
            pick(self.rng, &lexicon::LAST).to_owned()
        }
    }

    fn name(&mut self) -> String {
        let (first, last) = (pick(self.rng, &lexicon::FIRST), self.surname());
        match self.between(0, 9) {
            0 => format!("{first} {}. {last}", novel::capital(&novel::word(self.rng)).chars().next().unwrap_or('Q')),
            1 => format!("{first} {}-{last}", pick(self.rng, &lexicon::LAST)),
            _ => format!("{first} {last}"),
        }
    }

    fn word(&mut self) -> String {
        match self.between(0, 3) {
            0 => pick(self.rng, &lexicon::THING).to_owned(),
            1 => pick(self.rng, &lexicon::ADJ).to_owned(),
            _ => novel::word(self.rng),
        }
    }

    fn domain_or_new(&mut self) -> String {
        if self.chance(0.5) { self.domain.clone() } else { novel::domain(self.rng) }
    }

    fn url(&mut self) -> String {
        let host = self.domain_or_new();
        let mut url = format!("{}{host}", self.pick(&["http://", "http://www.", "https://", "https://www.", "www."]));
        for _ in 0..self.between(0, 3) {
            url.push('/');
            url.push_str(&self.word().replace(' ', "-"));
        }
        url.push_str(self.pick(&["", "", "/", ".html", "?id=7", ".php", "#top"]));
        url
    }

    fn big(&mut self) -> String {
        let top = self.between(2, 6) as u32;
        let n = self.between(10_usize.pow(top - 1), 10_usize.pow(top) - 1);
        if n >= 1000 && self.chance(0.6) { thousands(n) } else { n.to_string() }
    }

    fn price(&mut self) -> String {
        let sign = self.pick(&["$", "$", "$", "£", "€", "US$", "Rs. ", "¥"]);
        let n = self.between(1, 1500);
        if self.chance(0.7) {
            format!("{sign}{}.{:02}", thousands(n), self.between(0, 99))
        } else {
            format!("{sign}{}", thousands(n))
        }
    }

    fn month(&mut self) -> String {
        let month = self.pick(&MONTHS);
        if self.chance(0.5) { month[..3].to_owned() } else { month.to_owned() }
    }

    /// A date in one of the many ways that pages write it.
    pub fn date(&mut self) -> String {
        let (d, m, y) = (self.between(1, 28), self.between(1, 12), self.between(1999, 2025));
        let long = MONTHS[m - 1];
        let short = &long[..3];
        let day = self.pick(&DAYS);
        match self.between(0, 19) {
            0 | 1 => format!("{long} {d}, {y}"),
            2 => format!("{short} {d}, {y}"),
            3 => format!("{short}. {d}, {y}"),
            4 => format!("{d} {long} {y}"),
            5 => format!("{d} {short} {y}"),
            6 => format!("{day}, {long} {d}, {y}"),
            7 => format!("{day}, {d} {long} {y}"),
            8 => format!("{}, {d} {short} {y}", &day[..3]),
            9 => format!("{y}-{m:02}-{d:02}"),
            10 => format!("{m:02}/{d:02}/{y}"),
            11 => format!("{m}/{d}/{:02}", y % 100),
            12 => format!("{d:02}.{m:02}.{y}"),
            13 => format!("{d:02}/{m:02}/{y}"),
            14 => format!("{m:02}-{d:02}-{y}"),
            15 => format!("{d:02}-{short}-{y}"),
            16 => format!("{long} {d}{}, {y}", ordinal(d)),
            17 => format!("{short} {d}, '{:02}", y % 100),
            18 => format!("{} {short} {d}, {y}", &day[..3]),
            _ => format!("{y}/{m:02}/{d:02}"),
        }
    }

    fn time(&mut self) -> String {
        let (h, m) = (self.between(1, 12), self.between(0, 59));
        match self.between(0, 6) {
            0 => format!("{h}:{m:02} {}", self.pick(&["am", "pm"])),
            1 => format!("{h}:{m:02} {}", self.pick(&["AM", "PM"])),
            2 => format!("{h:02}:{m:02} {}", self.pick(&["AM", "PM"])),
            3 => format!("{h}:{m:02}{}", self.pick(&["am", "pm"])),
            4 => format!("{h}:{m:02} {}", self.pick(&["a.m.", "p.m."])),
            5 => format!("{:02}:{m:02}", self.between(0, 23)),
            _ => format!("{:02}:{m:02}:{:02}", self.between(0, 23), self.between(0, 59)),
        }
    }

    fn ago(&mut self) -> String {
        let n = self.between(1, 23);
        match self.between(0, 9) {
            0 => "yesterday".to_owned(),
            1 => "just now".to_owned(),
            2 => format!("{n}h"),
            3 => format!("{n}h ago"),
            4 => format!("{n} min ago"),
            _ => format!(
                "{n} {} ago",
                self.pick(&["hours", "days", "weeks", "months", "years", "minutes", "hrs", "days"])
            ),
        }
    }

    /// A headline: from a template, or the beginning of a sentence of the sources.
    pub fn title(&mut self) -> String {
        if self.sources.sentences.is_empty() || self.chance(0.55) {
            return self.from(&lexicon::TITLE);
        }
        let sentence = &self.sources.sentences[between(self.rng, 0, self.sources.sentences.len() - 1)];
        let take = between(self.rng, 2, 9);
        let words: Vec<&str> = sentence.split(' ').filter(|w| !w.contains("<unk>")).collect();
        let skip = between(self.rng, 0, words.len().saturating_sub(take));
        let part = words.iter().skip(skip).take(take).copied().collect::<Vec<_>>().join(" ");
        let part = part.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
        if part.chars().count() < 3 {
            return self.from(&lexicon::TITLE);
        }
        if self.chance(0.5) { novel::title_case(&part) } else { novel::capital(&part) }
    }
}

fn ordinal(day: usize) -> &'static str {
    match (day, day % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    }
}

fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Where the brace that opens `text` closes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

/// The options of a choice: cut at `|` outside inner braces.
fn split_top(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0_i32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            '|' if depth == 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

#[cfg(test)]
mod tests {
    use super::{super::chance::seeded, *};

    fn fill(template: &str, seed: u64) -> String {
        let (mut rng, sources) = (seeded(seed), Sources::default());
        Fill::new(&mut rng, &sources).expand(template)
    }

    #[test]
    fn braces_that_are_no_slots_stand() {
        assert_eq!(fill("if (a) {", 1), "if (a) {");
        assert_eq!(fill("}", 1), "}");
        assert_eq!(fill("{ x: [1] }", 1), "{ x: [1] }");
        assert_eq!(fill("a \\nb", 1), "a\nb");
    }

    #[test]
    fn choices_give_every_option() {
        let all: std::collections::BTreeSet<String> = (0..60).map(|seed| fill("{a|b|{c|d}}", seed)).collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        let maybe: std::collections::BTreeSet<String> = (0..30).map(|seed| fill("x{? y}", seed)).collect();
        assert_eq!(maybe.into_iter().collect::<Vec<_>>(), ["x", "x y"]);
    }

    #[test]
    fn every_template_of_every_list_is_filled() {
        for (name, list) in lexicon::all() {
            for (i, template) in list.iter().enumerate() {
                let text = fill(template, i as u64);
                let code = name == "t_code";
                assert!(code || !text.contains(['{', '}']), "{name}: {template} → {text}");
                assert!(!text.trim().is_empty(), "{name}: {template}");
            }
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            (thousands(7), thousands(1234), thousands(1234567)),
            ("7".into(), "1,234".into(), "1,234,567".into())
        );
        assert_eq!((ordinal(1), ordinal(12), ordinal(23)), ("st", "th", "rd"));
    }
}
