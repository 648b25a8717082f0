//! Makes clean text odd in the ways that web text is odd: unknown words, typing errors, capitals, missing spaces, curly
//! quotes, damaged encodings. Both sides of a pair get the same oddities, so a model learns to copy them.

use super::{
    chance::{Rng, between, chance, pick, pick_char},
    novel,
};

/// How odd the text of one page is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// Share of words that become something invented.
    pub novelty: f64,
    /// Curly quotes and long dashes.
    pub curly: bool,
    /// All in small letters, as some people write.
    pub lower: bool,
    /// Empty lines between paragraphs.
    pub gaps: bool,
    /// Share of lines with a typing habit (no full stop, `!!!`, glued sentences).
    pub habits: f64,
}

impl Style {
    pub fn draw(rng: &mut Rng) -> Self {
        let novelty = match between(rng, 0, 19) {
            0..=8 => 0.0,
            9..=13 => 0.03,
            14..=16 => 0.08,
            17..=18 => 0.2,
            _ => 0.5,
        };
        Self {
            novelty,
            curly: chance(rng, 0.35),
            lower: chance(rng, 0.05),
            gaps: chance(rng, 0.62),
            habits: pick(rng, &[&0.0, &0.02, &0.05, &0.2]).to_owned(),
        }
    }
}

/// The text with the page's oddities. Marks of removed words (`<unk>`) become invented ones.
pub(crate) fn spice(rng: &mut Rng, text: &str, style: &Style) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    for word in &mut words {
        if word.contains("<unk>") {
            let new = if chance(rng, 0.8) { novel::capital(&novel::word(rng)) } else { novel::any(rng) };
            *word = word.replace("<unk>", &new);
        } else if style.novelty > 0.0 && chance(rng, style.novelty) {
            alter(rng, word);
        }
    }
    let mut out = words.join(" ");
    if style.curly {
        out = curly(&out);
    }
    if style.lower {
        out = out.to_lowercase();
    }
    if chance(rng, style.habits) {
        out = habit(rng, &out);
    }
    out
}

/// One word replaced, changed or followed by an invented one; punctuation at its end stays.
fn alter(rng: &mut Rng, word: &mut String) {
    let core = word.trim_end_matches(|c: char| !c.is_alphanumeric()).len();
    let tail = word.split_off(core);
    match between(rng, 0, 9) {
        0..=4 => *word = novel::any(rng),
        5 => *word = format!("{word} {}", novel::any(rng)),
        6 => *word = typo(rng, word),
        7 => *word = word.to_uppercase(),
        8 => *word = pick(rng, &["*", "_", "\"", "'", "(", "[", "**", "~"]).to_owned() + word,
        _ => {
            *word = format!(
                "{word}{}",
                pick(rng, &["'s", "-", "...", "/", "®", "™", ",", ";", ":", "?!", "�", "â€™s", "Â"])
            )
        }
    }
    word.push_str(&tail);
}

fn typo(rng: &mut Rng, word: &str) -> String {
    let mut chars: Vec<char> = word.chars().collect();
    if chars.len() < 3 {
        return word.to_owned();
    }
    let at = between(rng, 0, chars.len() - 2);
    match between(rng, 0, 3) {
        0 => chars.swap(at, at + 1),
        1 => drop(chars.remove(at)),
        2 => chars.insert(at, chars[at]),
        _ => chars[at] = pick_char(rng, "abcdefghijklmnopqrstuvwxyz"),
    }
    chars.into_iter().collect()
}

/// Straight quotes become curly, ` - ` a dash.
fn curly(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut before = ' ';
    for c in text.chars() {
        let opens = before == ' ' || before == '(';
        out.push(match (c, opens) {
            ('"', true) => '“',
            ('"', false) => '”',
            ('\'', true) => '‘',
            ('\'', false) => '’',
            _ => c,
        });
        before = c;
    }
    out.replace(" - ", " – ").replace("--", "—").replace("...", "…")
}

fn habit(rng: &mut Rng, text: &str) -> String {
    match between(rng, 0, 9) {
        0 => text.trim_end_matches('.').to_owned(),
        1 => format!("{}!!!", text.trim_end_matches('.')),
        2 => format!("{}...", text.trim_end_matches('.')),
        3 => text.replace(". ", "."),
        4 => text.to_uppercase(),
        5 => text.replace(", ", ","),
        6 => text.replace(". ", "...").replace(", ", ".."),
        7 => format!("{text} {}", novel::symbol(rng)),
        8 => text.replace('’', "â€™").replace('“', "â€œ").replace('”', "â€\u{9d}").replace('\'', "â€™"),
        _ => text.replace(". ", " . ").replace(", ", " , "),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::chance::seeded, *};

    #[test]
    fn plain_style_changes_only_removed_words() {
        let style = Style { novelty: 0.0, curly: false, lower: false, gaps: true, habits: 0.0 };
        let mut rng = seeded(1);
        assert_eq!(spice(&mut rng, "A plain line.", &style), "A plain line.");
        let filled = spice(&mut rng, "He met <unk>, twice.", &style);
        assert!(filled.starts_with("He met ") && filled.ends_with(", twice.") && !filled.contains('<'), "{filled}");
    }

    #[test]
    fn quotes_by_hand() {
        assert_eq!(curly("He said \"it's (\"odd\")\" - twice..."), "He said “it’s (“odd”)” – twice…");
    }
}
