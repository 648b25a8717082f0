//! Content layouts made of short lines: lists, tables, specifications, recipes, schedules, addresses, code, references.

use super::{
    layout::{Line, fit},
    lexicon, novel,
    prose::{paragraph, sentence},
    spice::{Style, spice},
    template::Fill,
};

const BULLETS: &[&str] =
    &["• ", "• ", "• ", "• ", "• ", "- ", "* ", "· ", "– ", "o ", "» ", "▪ ", "+ ", "□ ", "✓ ", "→ ", "•", "= "];

/// A list item: phrase, short line of the sources, name, product, sentence.
fn item(fill: &mut Fill, style: &Style) -> String {
    match fill.between(0, 9) {
        0 | 1 if !fill.sources.lines.is_empty() => {
            let at = fill.between(0, fill.sources.lines.len() - 1);
            let line = fill.sources.lines[at].clone();
            spice(fill.rng, &line, style)
        }
        0..=4 => fill.from(&lexicon::LINE),
        5 | 6 => fill.title(),
        7 => sentence(fill, style),
        8 => novel_line(fill),
        _ => fill.from(&["{adj} {thing}", "{thing}", "{topic}", "{food}", "{name}", "{place}", "{Word}", "{verb}"]),
    }
}

/// A line of invented words only.
fn novel_line(fill: &mut Fill) -> String {
    (0..fill.between(1, 7)).map(|_| novel::any(fill.rng)).collect::<Vec<_>>().join(" ")
}

/// Bulleted lines, perhaps under a heading.
pub(crate) fn bullets(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let bullet = fill.pick(BULLETS);
    let gaps = fill.chance(0.25);
    let sub = fill.chance(0.15);
    let alike = fill.chance(0.5).then(|| fill.pick(&lexicon::LINE));
    let mut out = heading(fill, 0.5, style);
    out.extend(fit(budget, gaps, || {
        let text = match alike {
            Some(form) => fill.expand(form),
            None => item(fill, style),
        };
        if sub && fill.chance(0.3) {
            return Line::text(format!("{bullet}{text}\n{}", sentence(fill, style)));
        }
        Line::text(format!("{bullet}{text}"))
    }));
    out
}

/// Numbered lines in one of the usual forms.
pub(crate) fn numbered(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let form = fill.pick(&[
        "{i}. ",
        "{i}. ",
        "{i}. ",
        "{i}) ",
        "({i}) ",
        "{a}) ",
        "{a}. ",
        "#{i} ",
        "{i} - ",
        "[{i}] ",
        "Step {i}: ",
        "{i}: ",
    ]);
    let mut i = if fill.chance(0.7) { 0 } else { fill.between(1, 40) };
    let (gaps, steps) = (fill.chance(0.3), fill.chance(0.4));
    let mut out = heading(fill, 0.4, style);
    out.extend(fit(budget, gaps, || {
        i += 1;
        let letter = char::from(b'a' + (i % 26) as u8).to_string();
        let text = if steps { fill.from(&lexicon::STEP) } else { item(fill, style) };
        Line::text(format!("{}{text}", form.replace("{i}", &i.to_string()).replace("{a}", &letter)))
    }));
    out
}

fn heading(fill: &mut Fill, p: f64, style: &Style) -> Vec<Line> {
    if !fill.chance(p) {
        return Vec::new();
    }
    let form = fill.pick(&[
        "{title}",
        "{title}:",
        "{Topic}",
        "{Genre}",
        "## {title}",
        "# {title}",
        "== {title} ==",
        "{TITLE}",
        "*{title}*",
        "{Adj} {Thing}s:",
        "{n} {adj} {thing}s",
    ]);
    let mut out = vec![Line::text(fill.expand(form))];
    if style.gaps {
        out.push(Line::blank());
    }
    out
}

/// Headlines, each perhaps with a line of text: a page that *is* a list of stories.
pub(crate) fn headlines(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let blurbs = fill.chance(0.6);
    fit(budget, style.gaps, || {
        let title = fill.title();
        if blurbs && fill.chance(0.7) {
            Line::text(format!("{title}\n{}", paragraph(fill, style, 200)))
        } else {
            Line::text(title)
        }
    })
}

/// Lines of the list of short content lines: anything that a page says in few words.
pub(crate) fn short_lines(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let gaps = fill.chance(0.3);
    fit(budget, gaps, || Line::text(item(fill, style)))
}

/// Rows that all have the same form: directory, results, price list.
pub(crate) fn rows(fill: &mut Fill, budget: usize) -> Vec<Line> {
    let form = fill.pick(&lexicon::LINE);
    let gaps = fill.chance(0.2);
    fit(budget, gaps, || Line::text(fill.expand(form)))
}

/// A table whose cells stand in one line, with tabs, bars or spaces between, or one cell a line.
pub(crate) fn table(fill: &mut Fill, budget: usize) -> Vec<Line> {
    const CELLS: &[&str] = &[
        "{n}", "{N}", "{n}.{n}", "{nn}%", "{name}", "{place}", "{Word}", "{adj}", "{price}", "{CODE}", "{thing}",
        "{year}", "-", "{n}-{n}", "Yes", "No", "{nn} mm", "{Topic}",
    ];
    let columns: Vec<&'static str> = (0..fill.between(2, 6)).map(|_| fill.pick(CELLS)).collect();
    let separator = fill.pick(&["\t", " | ", "  ", " ", " ", ", ", ";", "\t\t", "   ", " / ", "\n"]);
    let mut first = fill.chance(0.6);
    fit(budget, false, || {
        let cells: Vec<String> = columns
            .iter()
            .map(|cell| {
                if first {
                    fill.from(&[
                        "{Thing}",
                        "{Genre}",
                        "{Word}",
                        "{Adj} {Thing}",
                        "No.",
                        "Name",
                        "Total",
                        "Date",
                        "#",
                        "Price",
                    ])
                } else {
                    fill.expand(cell)
                }
            })
            .collect();
        first = false;
        Line::text(cells.join(separator))
    })
}

/// `Name: value` lines.
pub(crate) fn key_values(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let mut out = heading(fill, 0.5, style);
    let gaps = fill.chance(0.15);
    let two_lines = fill.chance(0.12);
    out.extend(fit(budget, gaps, || {
        let line = fill.from(&lexicon::SPEC);
        Line::text(if two_lines { line.replacen(": ", ":\n", 1) } else { line })
    }));
    out
}

/// A product: name, price, text, features, specifications.
pub(crate) fn product(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let mut out = vec![Line::text(fill.from(&[
        "{Word} {CODE} {Adj} {Thing}",
        "{Adj} {Thing} - {Word}",
        "{Word} {Adj} {Thing} ({Adj})",
        "{title}",
    ]))];
    let price = fill.from(&[
        "{price}",
        "Price: {price}",
        "List Price {price} \\nOur Price {price}",
        "was {price} now {price}",
        "{Word} {CODE}",
    ]);
    out.extend(price.lines().map(|l| Line::text(l.to_owned())));
    let text = paragraph(fill, style, budget / 2);
    out.push(Line::blank());
    out.push(Line::text(text));
    let bullet = fill.pick(&["• ", "- ", "", "* "]);
    out.extend(fit(budget / 2, false, || Line::text(format!("{bullet}{}", fill.from(&lexicon::SPEC)))));
    out
}

/// Ingredients and steps.
pub(crate) fn recipe(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let mut out = vec![Line::text(fill.from(&[
        "{Food} {Food} Soup",
        "{Adj} {Food} with {Food}",
        "{Food} {Pie|Cake|Muffins|Salad|Bread|Curry|Stew}",
        "Ingredients",
        "Ingredients:",
        "{first}'s {Adj} {Food}",
    ]))];
    if style.gaps {
        out.push(Line::blank());
    }
    let bullet = fill.pick(&["", "", "• ", "- ", "* "]);
    out.extend(fit(budget * 3 / 5, false, || Line::text(format!("{bullet}{}", fill.from(&lexicon::INGREDIENT)))));
    out.push(Line::blank());
    let mut i = 0;
    let number = fill.chance(0.5);
    let together = fill.chance(0.3);
    let steps = fit(budget * 2 / 5, style.gaps && !together, || {
        i += 1;
        let step = fill.from(&lexicon::STEP);
        Line::text(if number && !together { format!("{i}. {step}") } else { step })
    });
    if together {
        out.push(Line::text(steps.into_iter().map(|l| l.text).collect::<Vec<_>>().join(" ")));
    } else {
        out.extend(steps);
    }
    out
}

/// Addresses, telephone numbers, hours.
pub(crate) fn address(fill: &mut Fill, budget: usize) -> Vec<Line> {
    let gaps = fill.chance(0.2);
    fit(budget, gaps, || {
        Line::text(fill.from(&[
            "{name}",
            "{Word} {Thing}s",
            "{N} {Word} {Street|Ave.|Blvd|Road|Lane}",
            "{place}, {CA|TX|NY|OH|ON|VIC} {N}",
            "{place}",
            "Phone: ({nn}{n}) {nn}{n}-{nn}{nn}",
            "Tel. {nn} {nn} {nn} {nn}",
            "{email}",
            "www.{domain}",
            "Fax: {N}",
            "Mon - Fri: {n} am - {n} pm",
            "Sunday: closed",
            "PO Box {N}",
            "{name}, {Manager|Owner|Director}",
            "Suite {n}{n}",
            "Room {n}, {Word} Building",
            "{Word} {Thing}s \\n{N} {Word} Street \\n{place} {N}",
            "{n} miles {north|south} of {place}",
            "{adj} {thing}, {adj} {thing}",
            "Office hours: {n}:00 to {n}:30",
        ]))
    })
}

/// Times and dates with what happens then.
pub(crate) fn schedule(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let form = fill.pick(&[
        "{date} - {title}",
        "{date}: {title}",
        "{time} {title}",
        "{time} - {title}",
        "{n}:{nn} {Topic}",
        "{year}: {title}",
        "{date} {place} v {place}",
        "{title}, {date}, {place}",
        "{date} – {title} ({place})",
        "Week {n}: {title}",
        "{n} p.m. {name}: {title}",
        "{title} \\n{place}, {date}, {time}",
        "{year} - {sentence}",
        "On {date}, {sentence}",
    ]);
    let mut out = heading(fill, 0.4, style);
    out.extend(fit(budget, style.gaps && fill.chance(0.4), || {
        let text = form.replace("{sentence}", &sentence(fill, style));
        Line::text(fill.expand(&text))
    }));
    out
}

/// Words and what they mean.
pub(crate) fn dictionary(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    fit(budget, style.gaps, || {
        let form = fill.pick(&[
            "{word}",
            "[{word}-{word}] /{word}/",
            "{verb|noun|adjective|adverb}",
            "verb (used with object), {word}ed, {word}ing.",
            "{word}, n. {adj} {thing}",
            "{Word}: {adj} {thing} for {verb}ing",
            "{n}. to {verb}, {verb} or {verb}",
            "{word} ({adj}): {sentence}",
            "Origin: {nn}00s, from {Latin|French|Greek|Old Norse} {word}",
            "Related forms",
            "{word}ness, noun",
            "Synonyms: {adj}, {adj}, {adj}",
            "See {word}.",
            "{word} - {sentence}",
            "adj. {adj}; {adj}",
        ]);
        let text = form.replace("{sentence}", &sentence(fill, style));
        Line::text(fill.expand(&text))
    })
}

/// Questions with answers, or with choices.
pub(crate) fn questions(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let (q, a) = [("Q: ", "A: "), ("Q. ", "A. "), ("Question: ", "Answer: "), ("", ""), ("**", ""), ("Q", "A")]
        [fill.between(0, 5)];
    let choices = fill.chance(0.3);
    fit(budget, style.gaps, || {
        let ask = fill.from(&[
            "How do I {verb} a {adj} {thing}?",
            "Is {topic} {adj}?",
            "{title}?",
            "What does {CODE} mean?",
            "Who is {name}?",
            "Why does my {thing} {verb}?",
            "Which {thing} is {adj}?",
            "{n} + {nn} = ?",
        ]);
        if choices {
            let options: Vec<String> = ["A", "B", "C", "D"]
                .iter()
                .map(|l| format!("{l}. {}", fill.from(&["{adj} {thing}", "{Word}", "{n}", "{place}", "{topic}"])))
                .collect();
            return Line::text(format!("{q}{ask}\n{}", options.join("\n")));
        }
        Line::text(format!("{q}{ask}\n{a}{}", paragraph(fill, style, 250)))
    })
}

/// Code, shell, configuration. Leading white space stays.
pub(crate) fn code(fill: &mut Fill, budget: usize) -> Vec<Line> {
    fit(budget, false, || {
        if fill.chance(0.06) {
            return Line::blank();
        }
        let text = fill.from(&lexicon::CODE);
        let indent = if text.starts_with(' ') { 0 } else { [0, 0, 0, 0, 2, 4, 4, 8][fill.between(0, 7)] };
        Line::code(format!("{}{text}", " ".repeat(indent)))
    })
}

/// Books and papers.
pub(crate) fn references(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    fit(budget, style.gaps, || {
        Line::text(fill.from(&[
            "{last}, {first}. {title}. {place}: {Word} Press, {year}.",
            "{last}, {first} ({year}). \"{title}\". {Word} Journal of {Genre}. {n} ({n}): {nn}–{nn}{n}.",
            "[{n}] {name} and {name}. {title}. In {Word} {year}, pages {nn}-{nn}{n}.",
            "{n}. {last} {first}, {last} et al. {title}. J {Word} {year};{nn}({n}):{nn}{n}-{n}.",
            "^ {name} ({date}). \"{title}\". {Word} {Times|Post}.",
            "doi:10.{N}/{word}.{year}.{N}",
            "{name}, {title} ({place}, {year}), p. {nn}.",
            "ISBN {nn}{nn}{nn}{nn}{nn}",
            "Ibid., {nn}",
            "{url}",
        ]))
    })
}

/// Invented words and nothing else.
pub(crate) fn noise(fill: &mut Fill, budget: usize) -> Vec<Line> {
    let gaps = fill.chance(0.3);
    let budget = budget / 2;
    fit(budget, gaps, || Line::text(novel_line(fill)))
}

/// People, places, teams, with or without figures.
pub(crate) fn names(fill: &mut Fill, budget: usize) -> Vec<Line> {
    let form = fill.pick(&[
        "{name}",
        "{name}, {place}",
        "{place}",
        "{last}, {first}",
        "{first} {last} {n}",
        "{Word} {Word}",
        "{name}, {adj} {thing}",
        "{name} ({year}-{year})",
        "{place} {n}",
        "{name} {n} {n} {nn}",
        "{Word} {Academy|School|College} {place}",
        "{first}",
        "{user}",
        "{Word}",
        "{name} .{nn}{n} {n} {nn}",
    ]);
    let one_line = fill.chance(0.2);
    let lines = fit(budget, false, || Line::text(fill.expand(form)));
    if one_line {
        return vec![Line::text(lines.into_iter().map(|l| l.text).collect::<Vec<_>>().join(", "))];
    }
    lines
}
