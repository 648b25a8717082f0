//! Lines of code without fences, by the signs of many languages.

use super::{Form, Mark, open};

pub(super) fn is_code_sign(line: &str) -> bool {
    matches!(line.trim(), "{" | "}" | "};" | ");" | "(" | ")" | "}," | "})" | "});" | "];" | "]")
}

/// Runs of lines that look like code. A line without signs of its own joins when it is indented and stands beside code.
pub(super) fn mark_code(lines: &[&str], marks: &mut [Mark]) {
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
