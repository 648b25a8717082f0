//! Invented strings that no model has seen: words, names, codes, numbers, addresses, other scripts. They teach a small
//! decoder to copy any string. Knows nothing of pages.

use super::{
    chance::{Rng, between, chance, pick, pick_char},
    lexicon,
};

const ONSETS: &[&str] = &[
    "b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gl", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "qu",
    "r", "s", "sh", "sk", "st", "t", "th", "tr", "v", "w", "y", "z", "",
];
const VOWELS: &[&str] = &["a", "e", "i", "o", "u", "ai", "ea", "oo", "ou", "ie", "y", "a", "e", "o"];
const CODAS: &[&str] =
    &["", "", "", "n", "r", "l", "s", "t", "m", "ck", "nd", "st", "x", "ng", "rt", "ll", "ss", "v", "sh", "p"];
const ACCENTED: &str = "áàâäãåçéèêëíîïñóôöøõúùûüýžšćčłńőűğşıæœß";
const SCRIPTS: &[&str] = &[
    "αβγδεζηθικλμνξοπρσςτυφχψω",
    "абвгдежзийклмнопрстуфхцчшщыьэюя",
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年",
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほ",
    "アイウエオカキクケコサシスセソタチツテトナニヌネノ",
    "가나다라마바사아자차카타파하거너더러머버서어저",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "अआइईउऊएऐओऔकखगघचछजझटठडढतथदधनपफबभमयरलवशषसह",
];
const SYMBOLS: &[&str] = &[
    ":)", ":-)", ";)", ":D", ":P", "<3", "xD", "^^", ":(", "♥", "★", "☺", "😀", "😂", "👍", "🎉", "❤️", "→", "←", "»",
    "«", "™", "®", "°", "½", "¼", "±", "×", "÷", "≤", "≥", "≈", "µ", "§", "¶", "†", "‡", "…", "–", "—", "•", "·", "¥",
    "€", "£", "¢", "¿", "¡", "%", "&", "@", "#", "*", "~", "^", "+", "=", "/", "\\", "|", "<", ">", "[", "]", "{", "}",
    "_", "`", "$",
];

/// A pronounceable lower-case word that is (almost certainly) in no dictionary.
pub(crate) fn word(rng: &mut Rng) -> String {
    let mut out = String::new();
    for _ in 0..between(rng, 1, 3) {
        out.push_str(pick(rng, ONSETS));
        out.push_str(pick(rng, VOWELS));
        out.push_str(pick(rng, CODAS));
    }
    if chance(rng, 0.06) {
        out.push(pick_char(rng, ACCENTED));
    }
    if out.len() < 3 {
        out.push_str("ron");
    }
    out
}

/// First letter in upper case.
pub(crate) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Every word's first letter in upper case.
pub(crate) fn title_case(text: &str) -> String {
    text.split(' ').map(capital).collect::<Vec<_>>().join(" ")
}

/// Letters in no order at all.
pub(crate) fn gibberish(rng: &mut Rng) -> String {
    let alphabet = pick(
        rng,
        &[
            "abcdefghijklmnopqrstuvwxyz",
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
        ],
    );
    (0..between(rng, 3, 11)).map(|_| pick_char(rng, alphabet)).collect()
}

/// A product code or serial number.
pub(crate) fn code(rng: &mut Rng) -> String {
    let pattern = pick(
        rng,
        &[
            "AA-999",
            "A99",
            "AAA9999",
            "99A-9999",
            "AA9A9",
            "A-9",
            "9999A",
            "aa99",
            "AAAA-99A",
            "A9/99",
            "AA 999",
            "9.9.9",
            "99-99999",
            "#9999",
            "A999-A9-99",
        ],
    );
    pattern.chars().map(|c| pattern_char(rng, c)).collect()
}

fn pattern_char(rng: &mut Rng, c: char) -> char {
    match c {
        'A' => pick_char(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        'a' => pick_char(rng, "abcdefghijklmnopqrstuvwxyz"),
        '9' => pick_char(rng, "0123456789"),
        other => other,
    }
}

/// A number as pages write them.
pub(crate) fn number(rng: &mut Rng) -> String {
    let pattern = pick(
        rng,
        &[
            "9",
            "99",
            "999",
            "9999",
            "9,999",
            "99,999",
            "9,999,999",
            "9.9",
            "99.99",
            "0.999",
            ".999",
            "99%",
            "9.9%",
            "$99",
            "$9.99",
            "£99",
            "€9,99",
            "9-9",
            "99-99",
            "9:99",
            "99.99.9999",
            "99/99/9999",
            "1999",
            "2099",
            "9th",
            "9x",
            "9/9",
            "999-9999",
            "(999) 999-9999",
            "+99 999 999 999",
            "99999999",
            "9e-9",
            "-99",
            "9999-9999",
            "99°",
            "9'9\"",
            "99mm",
            "99kg",
            "9k",
            "US$ 99.99",
            "9,999.99",
            "99 999",
            "1.9 million",
            "p < 0.09",
            "n = 99",
        ],
    );
    pattern.chars().map(|c| pattern_char(rng, c)).collect()
}

/// Hexadecimal digits.
pub(crate) fn hex(rng: &mut Rng) -> String {
    (0..between(rng, 4, 16)).map(|_| pick_char(rng, "0123456789abcdef")).collect()
}

/// Letters of one script that is not ours, or a Latin word with accents.
pub(crate) fn other_script(rng: &mut Rng) -> String {
    if chance(rng, 0.3) {
        let mut out = word(rng);
        out.insert(0, pick_char(rng, ACCENTED));
        out.push(pick_char(rng, ACCENTED));
        return out;
    }
    let script = pick(rng, SCRIPTS);
    (0..between(rng, 1, 6)).map(|_| pick_char(rng, script)).collect()
}

/// A sign: emoticon, currency, arrow, bracket.
pub(crate) fn symbol(rng: &mut Rng) -> String {
    pick(rng, SYMBOLS).to_owned()
}

/// A mark of HTML, Markdown or a wiki that an extractor left behind.
fn markup(rng: &mut Rng) -> String {
    const MARKS: &[&str] = &[
        "<p>",
        "</p>",
        "<br>",
        "<br />",
        "<BR>",
        "<b>",
        "</b>",
        "<strong>",
        "</span>",
        "</div>",
        "&nbsp;",
        "&amp;",
        "&quot;",
        "&#8217;",
        "<em>",
        "</a>",
        "[/b]",
        "[b]",
        "[1]",
        "[citation needed]",
        "**",
        "__",
        "``",
        "{{",
        "}}",
        "[[",
        "]]",
        "%s",
        "%20",
        "\\n",
        "<li>",
        "==",
        "~~",
        "//",
        "--",
        "<a href=\"/",
        "style=\"color:",
        "\">",
    ];
    pick(rng, MARKS).to_owned()
}

/// The name of a member of a forum.
pub(crate) fn user(rng: &mut Rng) -> String {
    let first = pick(rng, &lexicon::FIRST).to_lowercase().replace(' ', "");
    let thing = pick(rng, &lexicon::THING).replace([' ', '\''], "");
    let adj = pick(rng, &lexicon::ADJ).replace(['-', ' '], "");
    match between(rng, 0, 11) {
        0 => format!("{first}{}", between(rng, 1, 99)),
        1 => format!("{adj}{thing}"),
        2 => format!("{}{}", capital(&adj), capital(&thing)),
        3 => format!("{first}_{}", word(rng)),
        4 => word(rng),
        5 => capital(&word(rng)),
        6 => format!("{thing}{}", between(rng, 1, 9999)),
        7 => format!("The{}", capital(&thing)),
        8 => format!("{}.{}", first.chars().next().unwrap_or('x'), word(rng)),
        9 => format!("{}_{}_{}", adj, thing, between(rng, 1, 99)),
        10 => gibberish(rng),
        _ => capital(&first),
    }
}

/// A host name.
pub(crate) fn domain(rng: &mut Rng) -> String {
    let name = match between(rng, 0, 2) {
        0 => format!("{}{}", word(rng), word(rng)),
        1 => format!("{}-{}", pick(rng, &lexicon::THING).replace(' ', ""), word(rng)),
        _ => format!("{}{}", pick(rng, &lexicon::ADJ).replace('-', ""), pick(rng, &lexicon::THING).replace(' ', "")),
    };
    format!(
        "{name}.{}",
        pick(rng, &["com", "com", "com", "org", "net", "co.uk", "de", "info", "edu", "gov", "io", "ca", "com.au"])
    )
}

/// A word of any of the kinds above, as content may hold it.
pub(crate) fn any(rng: &mut Rng) -> String {
    match between(rng, 0, 16) {
        0..=2 => word(rng),
        3..=4 => capital(&word(rng)),
        5 => gibberish(rng),
        6 => code(rng),
        7..=9 => number(rng),
        10 => other_script(rng),
        11 => symbol(rng),
        12 => user(rng),
        13 => domain(rng),
        14 => format!("{}-{}", word(rng), word(rng)),
        15 => markup(rng),
        _ => word(rng).to_uppercase(),
    }
}
