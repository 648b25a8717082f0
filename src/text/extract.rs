//! The rephrased text inside a model's answer (reference sections 2.0 and 4). Pure.
//!
//! Departures from the published code: a think block is stripped first, because a model may rehearse the marker while it thinks; a
//! leading or trailing rule (`---`) is dropped from every answer, not only from a shard's last.
//! After the think block the FIRST marker counts. The answer begins with it, so whatever follows is the text, and a document that
//! itself contains the marker sentence is kept whole; taking the last one would throw away all that stands before it.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Strips a think block, takes what follows the first marker after it, strips white space and a leading or trailing `---` line.
/// None when the marker is missing or the model was still thinking. With an empty marker the whole answer is the text.
pub fn extract<'a>(answer: &'a str, marker: &str) -> Option<&'a str> {
    let (before, text) = split_at_marker(answer, marker)?;
    if before.contains(OPEN) || (marker.is_empty() && text.trim_start().starts_with(OPEN)) {
        return None;
    }
    // "**Here is …:**" set in bold
    let text = if before.ends_with("**") { text.strip_prefix("**").unwrap_or(text) } else { text };
    Some(strip_rules(text))
}

/// What stands between the think block and the marker, and what follows the marker. The think block ends at the last `</think>` that
/// a marker follows: a document may mention the tag, and that must not swallow the answer.
fn split_at_marker<'a>(answer: &'a str, marker: &str) -> Option<(&'a str, &'a str)> {
    if !answer.contains(CLOSE) {
        return cut(answer, marker);
    }
    let behind = |(at, close): (usize, &str)| cut(&answer[at + close.len()..], marker);
    answer.rmatch_indices(CLOSE).find_map(behind).or_else(|| {
        // An answer that begins with the marker has no think block: the tag stands in its text.
        cut(answer, marker).filter(|(before, _)| !marker.is_empty() && before.trim().is_empty())
    })
}

fn cut<'a>(text: &'a str, marker: &str) -> Option<(&'a str, &'a str)> {
    text.find(marker).map(|at| (&text[..at], &text[at + marker.len()..]))
}

/// Drops white space and lines of three or more dashes at both ends.
fn strip_rules(text: &str) -> &str {
    let mut text = text.trim();
    loop {
        let (first, last) = (text.lines().next().unwrap_or(""), text.lines().next_back().unwrap_or(""));
        if is_rule(first) {
            text = text[first.len()..].trim();
        } else if is_rule(last) {
            text = text.strip_suffix(last).unwrap_or(text).trim();
        } else {
            return text;
        }
    }
}

fn is_rule(line: &str) -> bool {
    let line = line.trim();
    line.len() >= 3 && line.bytes().all(|byte| byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::extract;

    const M: &str = "Here is a paraphrased version:";

    fn check(answer: &str, expected: Option<&str>) {
        assert_eq!(
            extract(&answer.replace("MARK", M), M),
            expected.map(|text| text.replace("MARK", M)).as_deref(),
            "{answer}"
        );
    }

    #[test]
    fn takes_what_follows_the_marker() {
        check("MARK\nA page.", Some("A page."));
        check("Sure! MARK\n\n A page.\nTwo lines. \n", Some("A page.\nTwo lines."));
        check("MARK", Some(""));
        check("MARK \n ", Some(""));
        check("**MARK**\nA page.", Some("A page."));
    }

    #[test]
    fn without_the_marker_there_is_no_answer() {
        check("", None);
        check("A page.", None);
        check("here is a paraphrased version: A page.", None);
    }

    #[test]
    fn the_think_block_goes_first() {
        check("<think>\n\n</think>\n\nMARK A page.", Some("A page."));
        check("<think>I start with MARK and then</think>MARK A page.", Some("A page."));
        check("I was thinking MARK draft</think>\nMARK A page.", Some("A page."));
        check("<think>I start with MARK and then</think> A page.", None);
        check("I was thinking MARK draft</think> A page.", None);
    }

    #[test]
    fn an_unclosed_think_block_is_no_answer() {
        check("<think>I start with MARK and then", None);
        check("</think><think>again MARK x", None);
        check("<think>", None);
        assert_eq!(extract("<think>still", ""), None);
    }

    #[test]
    fn a_document_may_speak_of_tags_and_markers() {
        check("MARK The tag <think> opens and </think> closes.", Some("The tag <think> opens and </think> closes."));
        check("MARK The prompt says MARK and more.", Some("The prompt says MARK and more."));
        check("<think></think>MARK One <think> tag.", Some("One <think> tag."));
    }

    #[test]
    fn rules_at_the_ends_go() {
        check("MARK\n---\nA page.\n---", Some("A page."));
        check("MARK\n---\n\n-----\nA\n---\nB\n\n---\n ---", Some("A\n---\nB"));
        check("MARK\r\n---\r\nA page.\r\n---\r\n", Some("A page."));
        check("MARK --- A page. ---", Some("--- A page. ---"));
        check("MARK\n---", Some(""));
        check("MARK\n-- not a rule", Some("-- not a rule"));
    }

    #[test]
    fn an_empty_marker_takes_the_whole_answer() {
        assert_eq!(extract(" A page. ", ""), Some("A page."));
        assert_eq!(extract("<think>x</think> A page.", ""), Some("A page."));
        assert_eq!(extract("", ""), Some(""));
    }
}
