//! Lines whose form their own signs tell: fences, JSON, headings, bullets and numbers, quotes, labels.

use super::{Form, Mark, code::is_code_sign, is_short, open};

pub(super) fn mark_fences(lines: &[&str], marks: &mut [Mark]) {
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
pub(super) fn mark_json(text: &str, lines: &[&str], marks: &mut [Mark]) {
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

pub(super) fn mark_headings(lines: &[&str], marks: &mut [Mark]) {
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
pub(super) fn mark_signs(lines: &[&str], marks: &mut [Mark]) {
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

/// Three or more label lines, nothing but blank lines between them.
pub(super) fn mark_labels(lines: &[&str], marks: &mut [Mark]) {
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
