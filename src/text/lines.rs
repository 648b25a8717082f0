//! What each line of a text is: prose, list item, heading, code, table row, JSON, quote, label, or just a short line. Pure.
//! [`structure`](super::structure) compares two texts by this; it knows nothing of pairs. Linear in the text's length.

/// The form in which something is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// A sentence of running text.
    Prose,
    /// A short line that is no sentence: a title, a menu entry, a line of verse, an ingredient.
    Line,
    /// An item of a bullet list or a numbered list.
    List,
    /// A Markdown heading.
    Heading,
    /// A line between code fences.
    Fenced,
    /// A line of code without fences.
    Code,
    /// A row of a table.
    Table,
    /// A line of JSON.
    Json,
    /// A line marked as quoted with `>`.
    Quote,
    /// One of several lines `Name: value`: data sheets, interviews, questions and answers.
    Label,
}

impl Form {
    /// Number of forms.
    pub const COUNT: usize = Self::Label as usize + 1;
    /// All forms.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Prose,
        Self::Line,
        Self::List,
        Self::Heading,
        Self::Fenced,
        Self::Code,
        Self::Table,
        Self::Json,
        Self::Quote,
        Self::Label,
    ];
}

/// A piece of text with one form: a sentence of prose, else a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit<'a> {
    /// Its form.
    pub form: Form,
    /// Its text, with its marks.
    pub text: &'a str,
    /// Units of one paragraph share this number.
    pub paragraph: usize,
}

/// A line longer than this is prose even without a full stop.
const SHORT_LINE: usize = 100;

/// Cuts a text into units, in order. Blank lines and the fences themselves give none.
pub fn units(text: &str) -> Vec<Unit<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut forms = vec![None; lines.len()];
    mark_fences(&lines, &mut forms);
    mark_json(text, &lines, &mut forms);
    mark_tables(&lines, &mut forms);
    mark_headings(&lines, &mut forms);
    mark_signs(&lines, &mut forms);
    mark_code(&lines, &mut forms);
    mark_labels(&lines, &mut forms);
    collect(text, &lines, &forms)
}

/// What a line has been found to be; `Some(None)` is a line that belongs to something but says nothing (a fence, a table's rule).
type Mark = Option<Option<Form>>;

fn open(line: &str, mark: Mark) -> bool {
    mark.is_none() && !line.trim().is_empty()
}

fn mark_fences(lines: &[&str], marks: &mut [Mark]) {
    let mut fence: Option<&str> = None;
    for (line, mark) in lines.iter().zip(marks) {
        let start = line.trim_start();
        let sign = ["```", "~~~"].into_iter().find(|sign| start.starts_with(sign));
        match (fence, sign) {
            (None, Some(sign)) => (fence, *mark) = (Some(sign), Some(None)),
            (Some(open), Some(sign)) if open == sign => (fence, *mark) = (None, Some(None)),
            (Some(_), _) => *mark = Some(Some(Form::Fenced)),
            (None, None) => {}
        }
    }
}

/// Marks lines that a JSON object, or a list of more than one thing, covers whole.
fn mark_json(text: &str, lines: &[&str], marks: &mut [Mark]) {
    let offset = |line: &str| line.as_ptr() as usize - text.as_ptr() as usize;
    let mut spent = 0; // bytes read in vain: values that never end must not be read again from each of their lines
    let mut at = 0;
    while at < lines.len() {
        let start = lines[at].trim_start();
        let covered = if open(lines[at], marks[at]) && start.starts_with(['{', '[']) && spent <= 2 * text.len() {
            json_length(&text[offset(lines[at])..])
        } else {
            Ok(0)
        };
        match covered {
            Ok(bytes) if bytes > 0 => {
                let end = offset(lines[at]) + bytes;
                while at < lines.len() && offset(lines[at]) < end {
                    marks[at] = Some(Some(Form::Json));
                    at += 1;
                }
            }
            Ok(_) => at += 1,
            Err(read) => {
                spent += read;
                at += 1;
            }
        }
    }
}

/// Bytes of the JSON value that `text` begins with and that ends its line; `Err` with the bytes read when there is none.
fn json_length(text: &str) -> Result<usize, usize> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    let value = stream.next();
    let read = stream.byte_offset();
    match value {
        Some(Ok(value)) => {
            let rest = text[read..].lines().next().unwrap_or("").trim();
            let enough = match &value {
                serde_json::Value::Object(map) => !map.is_empty(),
                serde_json::Value::Array(items) => items.len() > 1 || items.iter().any(serde_json::Value::is_object),
                _ => false,
            };
            if enough && (rest.is_empty() || rest == ",") { Ok(read) } else { Ok(0) }
        }
        _ => Err(text.len().min(1 << 16)),
    }
}

fn mark_tables(lines: &[&str], marks: &mut [Mark]) {
    let count = |line: &str, kind: Columns| kind.count(line);
    for (kind, least_rows, least_gaps) in [
        (Columns::Framed, 2, 2),
        (Columns::Pipes, 3, 1),
        (Columns::Tabs, 2, 1),
        (Columns::Spaces, 3, 1),
        (Columns::Commas, 3, 2),
    ] {
        let mut at = 0;
        while at < lines.len() {
            let gaps = if open(lines[at], marks[at]) { count(lines[at], kind) } else { 0 };
            let mut end = at + 1;
            if gaps >= least_gaps {
                while end < lines.len() && open(lines[end], marks[end]) && count(lines[end], kind) == gaps {
                    end += 1;
                }
            }
            if gaps >= least_gaps && end - at >= least_rows {
                for row in at..end {
                    let rule = lines[row].chars().all(|c| matches!(c, '|' | '-' | ':' | '+' | '=' | ' ' | '\t'));
                    marks[row] = Some((!rule).then_some(Form::Table));
                }
            }
            at = end;
        }
    }
}

/// How a table separates its columns.
#[derive(Clone, Copy)]
enum Columns {
    /// `| a | b |`
    Framed,
    /// `a | b`
    Pipes,
    Tabs,
    /// two or more spaces
    Spaces,
    /// `a,b,c` without spaces
    Commas,
}

impl Columns {
    /// Column gaps in a line; 0 where it is no row of this kind.
    fn count(self, line: &str) -> usize {
        let inner = line.trim();
        match self {
            Self::Framed if inner.starts_with('|') && inner.len() > 1 => inner.matches('|').count(),
            Self::Framed => 0,
            Self::Pipes => inner.matches('|').count(),
            Self::Tabs => inner.matches('\t').count(),
            Self::Spaces => inner.split("  ").filter(|cell| !cell.trim().is_empty()).count().saturating_sub(1),
            Self::Commas if inner.contains(", ") => 0,
            Self::Commas => inner.matches(',').count(),
        }
    }
}

fn mark_headings(lines: &[&str], marks: &mut [Mark]) {
    for at in 0..lines.len() {
        if !open(lines[at], marks[at]) {
            continue;
        }
        let line = lines[at].trim_start();
        let level = line.len() - line.trim_start_matches('#').len();
        if (1..=6).contains(&level) && line[level..].starts_with(' ') && !line[level..].trim().is_empty() {
            marks[at] = Some(Some(Form::Heading));
        } else if at > 0 && is_underline(line) && open(lines[at - 1], marks[at - 1]) && is_short(lines[at - 1]) {
            (marks[at - 1], marks[at]) = (Some(Some(Form::Heading)), Some(None));
        }
    }
}

fn is_underline(line: &str) -> bool {
    let line = line.trim();
    line.len() >= 3 && (line.bytes().all(|b| b == b'=') || line.bytes().all(|b| b == b'-'))
}

/// Bullets, numbers and quotes: what a line's first sign says.
fn mark_signs(lines: &[&str], marks: &mut [Mark]) {
    let numbered = lines.iter().zip(marks.iter()).filter(|(line, mark)| mark.is_none() && is_numbered(line)).count();
    for (line, mark) in lines.iter().zip(marks) {
        if !open(line, *mark) {
            continue;
        }
        let start = line.trim_start();
        if start.starts_with('>') && !start.starts_with(">>>") {
            *mark = Some(Some(Form::Quote));
        } else if is_bullet(start) || (numbered >= 2 && is_numbered(start)) {
            *mark = Some(Some(Form::List));
        } else if is_underline(start) || start.chars().all(|c| !c.is_alphanumeric()) && !is_code_sign(start) {
            *mark = Some(None); // decoration
        }
    }
}

fn is_bullet(line: &str) -> bool {
    let mut chars = line.chars();
    let Some(sign) = chars.next() else { return false };
    let rest = chars.as_str();
    match sign {
        '-' | '*' | '+' | '–' | '—' | '·' | 'o' => {
            rest.starts_with([' ', '\t']) && rest.trim().chars().any(char::is_alphanumeric) && sign != 'o'
        }
        '•' | '‣' | '◦' | '▪' | '►' | '●' | '○' | '■' | '□' | '✓' | '✔' | '»' | '›' => {
            !rest.trim().is_empty()
        }
        _ => false,
    }
}

/// `1.`, `2)`, `(3)`, `a)`, `Step 4:`
fn is_numbered(line: &str) -> bool {
    let line = line.trim_start();
    let body = line.strip_prefix("Step ").or_else(|| line.strip_prefix('(')).unwrap_or(line);
    let digits = body.bytes().take_while(u8::is_ascii_digit).count();
    let head = match digits {
        0 if body.starts_with(|c: char| c.is_ascii_alphabetic()) => 1,
        n => n,
    };
    let rest = &body[head.min(body.len())..];
    let closed = if digits == 0 { rest.starts_with(')') } else { rest.starts_with(['.', ')', ':']) };
    (1..=3).contains(&head) && closed && rest[1..].starts_with([' ', '\t']) && !rest[1..].trim().is_empty()
}

fn is_code_sign(line: &str) -> bool {
    matches!(line.trim(), "{" | "}" | "};" | ");" | "(" | ")" | "}," | "})" | "});" | "];" | "]")
}

/// Runs of lines that look like code. A line without signs of its own joins when it is indented and stands beside code.
fn mark_code(lines: &[&str], marks: &mut [Mark]) {
    let scores: Vec<usize> = lines
        .iter()
        .zip(marks.iter())
        .map(|(line, mark)| if open(line, *mark) { code_score(line) } else { 0 })
        .collect();
    let mut at = 0;
    while at < lines.len() {
        if scores[at] == 0 {
            at += 1;
            continue;
        }
        let (mut end, mut last, mut total) = (at, at, 0);
        while end < lines.len() {
            let joins = scores[end] > 0 || (open(lines[end], marks[end]) && is_indented(lines[end]));
            if joins {
                total += scores[end];
                last = end;
            } else if !(lines[end].trim().is_empty() && end == last + 1) {
                break;
            }
            end += 1;
        }
        if total >= 2 {
            for (line, mark) in lines[at..=last].iter().zip(&mut marks[at..=last]) {
                if open(line, *mark) {
                    *mark = Some(Some(Form::Code));
                }
            }
        }
        at = last + 1;
    }
}

fn is_indented(line: &str) -> bool {
    line.starts_with("  ") || line.starts_with('\t')
}

/// 0 for prose, 1 for a hint of code, 2 for a clear sign.
fn code_score(line: &str) -> usize {
    let text = line.trim();
    let ends = |signs: &[&str]| signs.iter().any(|sign| text.ends_with(sign));
    let begins = |signs: &[&str]| signs.iter().any(|sign| text.starts_with(sign));
    let has = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    if is_code_sign(text)
        || begins(&[
            "#include",
            "#define",
            "$ ",
            ">>> ",
            "</",
            "<?",
            "<!",
            "//",
            "/*",
            "public ",
            "private ",
            "@Override",
            "#!/",
        ]) && !ends(&[".", "?"])
        || ends(&["{", "};", ");", "];", "/>"])
        || (ends(&[";"]) && has(&["(", "=", "<", "return", "++", "--"]))
    {
        return 2;
    }
    let mut score = 0;
    if begins(&["def ", "class ", "for ", "if ", "elif ", "else:", "while ", "try:", "except ", "with "])
        && ends(&[":"])
    {
        score += 2;
    }
    if begins(&[
        "import ",
        "from ",
        "return ",
        "var ",
        "let ",
        "const ",
        "function ",
        "fn ",
        "print(",
        "export ",
        "use ",
    ]) && !ends(&[".", ",", "?", "!"])
        && text.len() < 60
    {
        score += 1;
    }
    if begins(&[
        "SELECT ",
        "INSERT INTO",
        "UPDATE ",
        "CREATE TABLE",
        "FROM ",
        "WHERE ",
        "GROUP BY",
        "ORDER BY",
        "LEFT JOIN",
        "INNER JOIN",
        "LIMIT ",
    ]) {
        score += 1;
    }
    if has(&["==", "!=", "+=", "-=", "=>", "->", "::", "&&", "||", "();", "</"]) {
        score += 1;
    }
    if is_assignment(text) {
        score += 1;
    }
    if is_call(text) || is_tag(text) {
        score += 1;
    }
    score.min(2)
}

/// `name = value`, `a.b[0] = value`
fn is_assignment(text: &str) -> bool {
    let Some((left, right)) = text.split_once('=') else { return false };
    let name = left.trim();
    !name.is_empty()
        && name.split_whitespace().count() <= 2
        && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '[' | ']' | ' ' | '$' | '"' | '\''))
        && !right.trim().is_empty()
        && !text.ends_with('.')
}

/// `name(…)` and nothing else
fn is_call(text: &str) -> bool {
    let Some((name, _)) = text.split_once('(') else { return false };
    !name.is_empty() && text.ends_with(')') && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | ':'))
}

/// begins and ends as markup does
fn is_tag(text: &str) -> bool {
    text.starts_with('<') && text.ends_with('>') && text[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
}

/// Three or more label lines, nothing but blank lines between them.
fn mark_labels(lines: &[&str], marks: &mut [Mark]) {
    let mut run: Vec<usize> = Vec::new();
    for at in 0..=lines.len() {
        if at < lines.len() && lines[at].trim().is_empty() {
            continue;
        }
        if at < lines.len() && open(lines[at], marks[at]) && is_label(lines[at]) {
            run.push(at);
            continue;
        }
        if run.len() >= 3 {
            for line in &run {
                marks[*line] = Some(Some(Form::Label));
            }
        }
        run.clear();
    }
}

fn is_label(line: &str) -> bool {
    let Some((name, value)) = line.trim().split_once(':') else { return false };
    let words = name.split_whitespace().count();
    (1..=4).contains(&words)
        && name.len() <= 40
        && name.starts_with(char::is_alphabetic)
        && !name.contains(['.', ',', '"', '?', '!'])
        && value.starts_with([' ', '\t'])
        && !value.trim().is_empty()
}

fn is_short(line: &str) -> bool {
    let line = line.trim();
    let ended =
        line.trim_end_matches(['"', '\'', ')', '”', '’', '*', '_']).ends_with(['.', '!', '?', '…', '。', '！', '？']);
    !ended && line.len() < 4 * SHORT_LINE && line.chars().count() < SHORT_LINE
}

/// Turns marks into units: marked lines as they are, the rest as short lines or as sentences of paragraphs.
fn collect<'a>(text: &'a str, lines: &[&'a str], marks: &[Mark]) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    let mut paragraph = 0;
    let mut at = 0;
    while at < lines.len() {
        if !open(lines[at], marks[at]) {
            if let Some(Some(form)) = marks[at]
                && !lines[at].trim().is_empty()
            {
                units.push(Unit { form, text: lines[at].trim(), paragraph });
            }
            paragraph += 1;
            at += 1;
            continue;
        }
        let mut end = at + 1;
        while end < lines.len() && open(lines[end], marks[end]) {
            end += 1;
        }
        if is_wrapped(&lines[at..end]) {
            let offset = |line: &str| line.as_ptr() as usize - text.as_ptr() as usize;
            let whole = &text[offset(lines[at])..offset(lines[end - 1]) + lines[end - 1].len()];
            units.extend(sentences(whole).map(|text| Unit { form: Form::Prose, text, paragraph }));
            paragraph += 1;
        } else {
            for line in &lines[at..end] {
                if is_short(line) {
                    units.push(Unit { form: Form::Line, text: line.trim(), paragraph });
                } else {
                    units.extend(sentences(line).map(|text| Unit { form: Form::Prose, text, paragraph }));
                }
                paragraph += 1;
            }
        }
        at = end;
    }
    units
}

/// Whether the lines are one paragraph broken at a fixed width: about equally long, most of them ending in mid-sentence.
fn is_wrapped(lines: &[&str]) -> bool {
    let Some((_, body)) = lines.split_last().filter(|(_, body)| !body.is_empty()) else { return false };
    let widest = lines.iter().map(|line| line.trim().len()).max().unwrap_or(0);
    let full = body.iter().filter(|line| line.trim().len() * 5 >= widest * 3).count();
    let broken = body.iter().filter(|line| !line.trim_end().ends_with(['.', '!', '?', ':', ',', ';'])).count();
    (60..=140).contains(&widest) && full * 5 >= body.len() * 4 && broken * 2 >= body.len()
}

/// Splits at full stops, question and exclamation marks that white space follows.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.trim();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let ends = |(at, sign): &(usize, &str)| {
            let after = &rest[at + sign.len()..];
            after.starts_with(char::is_whitespace) || sign.len() > 1
        };
        let end = rest
            .match_indices(['.', '!', '?', '。', '！', '？'])
            .find(ends)
            .map_or(rest.len(), |(at, sign)| at + sign.len());
        let (sentence, tail) = rest.split_at(end);
        rest = tail.trim_start();
        Some(sentence.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[Form]) {
        let found: Vec<Form> = units(text).iter().map(|unit| unit.form).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn tells_forms_apart() {
        use Form::*;
        check("", &[]);
        check("One sentence. Another one!\n\nA title\n", &[Prose, Prose, Line]);
        check("- a thing\n* a thing\n• thing\n  - nested thing", &[List; 4]);
        check("1. one\n2) two\n(3) three\nStep 4: four", &[List; 4]);
        check("1. One alone is no list.", &[Prose, Prose]);
        check("# A\n\nB\n===\ntext.", &[Heading, Heading, Prose]);
        check("```\nx\n\ny = 1\n```\nEnd.", &[Fenced, Fenced, Prose]);
        check("| a | b |\n|---|---|\n| 1 | 2 |", &[Table, Table]);
        check("a\tb\nc\td", &[Table, Table]);
        check("Home | News | Sport", &[Line]);
        check("{\n \"a\": 1,\n \"b\": [2]\n}\nText here.", &[Json, Json, Json, Json, Prose]);
        check("[1] A note.\n[edit]", &[Prose, Line]);
        check("> said\n> he", &[Quote, Quote]);
        check("Q: One?\n\nA: Two.\nQ: Three?", &[Label; 3]);
        check("Note: one label is a sentence.", &[Prose]);
        check("x = 1\nif x:\n    y()\n", &[Code; 3]);
        check("-----\n* * *\n", &[]);
    }

    #[test]
    fn wrapped_lines_are_one_paragraph() {
        let text = "The mill was first named in a letter of 1342, when the abbey sold\nit to a miller from the next valley. A flood took the wheel in the\nyear 1610.";
        let found = units(text);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|unit| unit.form == Form::Prose && unit.paragraph == found[0].paragraph));
        assert_eq!(units("roses are red,\nviolets are blue").len(), 2);
    }

    #[test]
    fn odd_input_is_read() {
        for text in ["\0", "{", "[[[[", "|", "```", "\u{feff}", "-", "#", "1.", "((", "=", "<", "：", "\r\n\r\n"] {
            let _ = units(text);
        }
    }
}
