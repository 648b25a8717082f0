//! Content layouts made of sentences: articles, dialogues, posts, letters, poems, wrapped text. Lists and records are in
//! [`super::records`].

use super::{
    chance::between,
    layout::{Line, fit},
    lexicon, novel,
    spice::{Style, spice},
    template::Fill,
};

/// One sentence, from the sources or, now and then, from the lists of near misses and user posts.
pub(crate) fn sentence(fill: &mut Fill, style: &Style) -> String {
    let own = match fill.between(0, 99) {
        0..=79 if !fill.sources.sentences.is_empty() => {
            let at = between(fill.rng, 0, fill.sources.sentences.len() - 1);
            fill.sources.sentences[at].clone()
        }
        80..=81 => fill.from(&lexicon::FOREIGN),
        82..=90 => fill.from(&lexicon::USER_POST),
        91..=92 => fill.from(&lexicon::STEP),
        _ => fill.from(&lexicon::NEAR),
    };
    spice(fill.rng, &own, style)
}

/// A paragraph of the sources, or a few sentences.
pub(crate) fn paragraph(fill: &mut Fill, style: &Style, most: usize) -> String {
    if !fill.sources.paragraphs.is_empty() && fill.chance(0.35) {
        let at = between(fill.rng, 0, fill.sources.paragraphs.len() - 1);
        let whole = fill.sources.paragraphs[at].clone();
        if whole.chars().count() <= most {
            return spice(fill.rng, &whole, style);
        }
    }
    let mut out = sentence(fill, style);
    let wanted = fill.between(0, 6);
    for _ in 0..wanted {
        let next = sentence(fill, style);
        if out.chars().count() + next.chars().count() + 1 > most {
            break;
        }
        out.push(' ');
        out.push_str(&next);
    }
    out
}

/// Paragraphs, with subheadings here and there.
pub(crate) fn article(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let headings = fill.chance(0.25);
    let length = fill.pick(&["short", "short", "middle", "long"]);
    fit(budget, style.gaps, || {
        if headings && fill.chance(0.25) {
            return Line::text(fill.title());
        }
        let most = match length {
            "short" => 180,
            "middle" => 400,
            _ => 900,
        };
        Line::text(paragraph(fill, style, most.min(budget)))
    })
}

/// One paragraph that fills the chunk.
pub(crate) fn one_paragraph(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let mut out = paragraph(fill, style, budget);
    while out.chars().count() < budget * 3 / 4 {
        let next = sentence(fill, style);
        if out.chars().count() + next.chars().count() > budget + 60 {
            break;
        }
        out.push(' ');
        out.push_str(&next);
    }
    vec![Line::text(out)]
}

/// A single line of any sort.
pub(crate) fn one_line(fill: &mut Fill, style: &Style) -> Vec<Line> {
    let line = match fill.between(0, 4) {
        0 | 1 => sentence(fill, style),
        2 => fill.title(),
        3 => fill.from(&lexicon::LINE),
        _ => fill.from(&lexicon::SPEC),
    };
    vec![Line::text(line)]
}

/// Speakers and what they say: play, interview, transcript.
pub(crate) fn dialogue(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let people = [fill.expand("{first}"), fill.expand("{name}"), fill.expand("{last}")];
    let form = fill.pick(&[
        "{who}: {say}",
        "{who}: {say}",
        "{WHO}: {say}",
        "\"{say}\" said {who}.",
        "{who} - {say}",
        "“{say}”",
        "[{who}] {say}",
        "{who}. {say}",
        "- {say}",
        "{WHO}\\n{say}",
    ]);
    fit(budget, style.gaps, || {
        let who = &people[fill.between(0, 2)];
        let say = sentence(fill, style);
        Line::text(
            form.replace("{who}", who)
                .replace("{WHO}", &who.to_uppercase())
                .replace("{say}", &say)
                .replace("\\n", "\n"),
        )
    })
}

/// Lines of a chat with nicknames and perhaps times.
pub(crate) fn chat(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let users = [fill.expand("{user}"), fill.expand("{user}"), fill.expand("{user}")];
    let form = fill.pick(&[
        "<{who}> {say}",
        "[{t}] <{who}> {say}",
        "{t} <{who}> {say}",
        "{who}: {say}",
        "{who}: {say}",
        "({t}) {who}: {say}",
        "* {who} {say}",
    ]);
    fit(budget, false, || {
        let who = users[fill.between(0, 2)].clone();
        let say = if fill.chance(0.6) { fill.from(&lexicon::USER_POST) } else { sentence(fill, style) };
        let time = format!("{:02}:{:02}", fill.between(0, 23), fill.between(0, 59));
        Line::text(form.replace("{who}", &who).replace("{say}", &say).replace("{t}", &time))
    })
}

/// What people write under posts; the heads between them are clutter and come from the corrupter.
pub(crate) fn posts(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let numbered = fill.chance(0.15);
    let mut n = fill.between(1, 20);
    fit(budget, style.gaps, || {
        n += 1;
        let text = match fill.between(0, 5) {
            0..=2 => fill.from(&lexicon::USER_POST),
            3 => {
                let two = [fill.from(&lexicon::USER_POST), sentence(fill, style)];
                two.join(" ")
            }
            _ => paragraph(fill, style, 300),
        };
        Line::text(if numbered { format!("{n}. {text}") } else { text })
    })
}

/// A mail: greeting, quoted lines, regards. Hard line breaks stay.
pub(crate) fn mail(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    if fill.chance(0.4) {
        for form in ["From: {name} <{email}>", "To: {email}", "Subject: {title}"] {
            lines.push(Line::text(fill.expand(form)));
        }
        lines.push(Line::blank());
    }
    if fill.chance(0.5) {
        let hello = fill.from(&[
            "Hi {first},",
            "Dear {first},",
            "Hello all,",
            "On {date}, {name} wrote:",
            "{name} wrote:",
            "Dear Sir or Madam,",
        ]);
        lines.push(Line::text(hello));
        lines.push(Line::blank());
    }
    let mark = fill.pick(&["> ", ">> ", "", "", ">", ">>>> "]);
    let text = paragraph(fill, style, budget);
    let width = fill.between(50, 76);
    lines.extend(wrap(&text, width).into_iter().map(|l| Line::text(format!("{mark}{l}"))));
    if fill.chance(0.4) {
        lines.push(Line::blank());
        let bye =
            fill.from(&["Regards,", "Cheers", "Best wishes, {first}", "-- \\n{name}", "Thanks, \\n{first}", "{name}"]);
        lines.extend(bye.lines().map(|l| Line::text(l.to_owned())));
    }
    lines
}

/// Running text with a line break every so many letters, as old pages and mails have it.
pub(crate) fn wrapped(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let width = fill.between(34, 80);
    let text = one_paragraph(fill, style, budget).remove(0).text;
    wrap(&text, width).into_iter().map(Line::text).collect()
}

/// Short lines in stanzas: verse, song, prayer.
pub(crate) fn poem(fill: &mut Fill, style: &Style, budget: usize) -> Vec<Line> {
    let text = one_paragraph(fill, style, budget).remove(0).text;
    let (width, stanza) = (fill.between(18, 46), fill.between(2, 6));
    let chorus = fill.chance(0.2).then(|| fill.from(&lexicon::USER_POST));
    let mut out = Vec::new();
    for (i, line) in wrap(&text, width).into_iter().enumerate() {
        if i > 0 && i % stanza == 0 {
            out.push(Line::blank());
            if let Some(chorus) = &chorus {
                out.push(Line::text(chorus.clone()));
            }
        }
        out.push(Line::text(if style.lower { line } else { novel::capital(&line) }));
    }
    out
}

/// Sentences in other languages and scripts.
pub(crate) fn foreign(fill: &mut Fill, budget: usize) -> Vec<Line> {
    let gaps = fill.chance(0.5);
    fit(budget / 2, gaps, || {
        let n = fill.between(1, 3);
        let own: Vec<String> = (0..n)
            .map(|_| {
                if fill.chance(0.8) {
                    fill.from(&lexicon::FOREIGN)
                } else {
                    (0..fill.between(3, 7)).map(|_| novel::other_script(fill.rng)).collect::<Vec<_>>().join(" ")
                }
            })
            .collect();
        Line::text(own.join(" "))
    })
}

/// Breaks at spaces so that lines have at most `width` letters (longer words stand alone).
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is always a line");
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    #[test]
    fn wraps_at_spaces() {
        assert_eq!(super::wrap("one two three unbreakable x", 8), ["one two", "three", "unbreakable", "x"]);
    }
}
