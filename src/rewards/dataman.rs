//! The DataMan protocol (reference section 2.1): what a document looks like before it is scored, the request, the reply. Pure; who
//! answers the request is not known here.
//!
//! Departure from the published code: a reply out of format is an error that names its line, never a score of 0.

use super::cut::Limits;
use anyhow::{Context, Result, ensure};
use regex::Regex;
use std::{borrow::Cow, sync::LazyLock};

/// The user's turn, a wire format that the published model was trained on; `{text}` stands for the document.
pub const REQUEST: &str = include_str!("../../assets/protocol/dataman_request.txt");
/// The system message of the published model.
pub const SYSTEM: &str = "You are a helpful assistant.";
/// What is kept of a document.
pub const LIMITS: Limits = Limits { chars: 20_000, tokens: 1_894 };
/// Values of a reply: the domain and fourteen scores.
pub const VALUES: usize = 1 + CRITERIA.len();
/// The least and the greatest score.
pub const SCORES: std::ops::RangeInclusive<i64> = 1..=5;

/// The domains of the letters A to O.
pub const DOMAINS: [&str; 15] = [
    "Medicine",
    "Finance",
    "Law",
    "Education",
    "Technology",
    "Entertainment",
    "Mathematics",
    "Coding",
    "Government",
    "Culture",
    "Transportation",
    "Retail E-commerce",
    "Telecommunication",
    "Agriculture",
    "Other",
];

/// The scores of a reply in their order; the last is the overall score.
pub const CRITERIA: [&str; 14] = [
    "accuracy",
    "coherence",
    "language_consistency",
    "semantic_density",
    "knowledge_novelty",
    "topic_focus",
    "creativity",
    "professionalism",
    "style_consistency",
    "grammatical_diversity",
    "structural_standardization",
    "originality",
    "sensitivity",
    "overall",
];

/// A reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scores {
    /// One of [`DOMAINS`].
    pub domain: &'static str,
    /// In the order of [`CRITERIA`], each 1 to 5.
    pub scores: [i64; CRITERIA.len()],
}

impl Scores {
    /// The overall score, 1 to 5.
    pub fn overall(&self) -> i64 {
        self.scores[CRITERIA.len() - 1]
    }
}

/// The request's text before and after the document.
pub fn request() -> (&'static str, &'static str) {
    REQUEST.trim_end().split_once("{text}").expect("the protocol's request has the mark")
}

/// Takes away what the annotators of DataMan took away: a quoted ellipsis at the very start, and images without a caption on a line's end.
pub fn without_noise(text: &str) -> Cow<'_, str> {
    static ELLIPSIS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("^[\"“”](?:…+|\\.{3,})[\"“”]").expect("a fixed pattern"));
    static IMAGE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"!\[\]\(/?[^)]+\)\n").expect("a fixed pattern"));
    let start = ELLIPSIS.find(text).map_or(0, |found| found.end());
    IMAGE.replace_all(&text[start..], "")
}

/// Reads a reply: the letter of the domain and fourteen whole numbers from 1 to 5, one a line.
///
/// # Errors
/// Which line is wrong, or how many there are instead of fifteen.
pub fn parse(reply: &str) -> Result<Scores> {
    let lines: Vec<&str> = reply.trim().lines().map(str::trim).collect();
    ensure!(lines.len() == VALUES, "the reply has {} lines instead of {VALUES}: {:?}", lines.len(), begin(reply));
    let domain = domain(lines[0]).with_context(|| {
        format!("line 1 of the reply is {:?}, not the letter of a domain (A to O)", begin(lines[0]))
    })?;
    let mut scores = [0; CRITERIA.len()];
    for (number, (score, line)) in scores.iter_mut().zip(&lines[1..]).enumerate() {
        let value = line.parse().ok().filter(|value| SCORES.contains(value));
        *score = value.with_context(|| {
            let what = CRITERIA[number];
            format!("line {} of the reply ({what}) is {:?}, not a whole number from 1 to 5", number + 2, begin(line))
        })?;
    }
    Ok(Scores { domain, scores })
}

fn domain(line: &str) -> Option<&'static str> {
    match line.as_bytes() {
        [letter @ b'A'..=b'O'] => Some(DOMAINS[usize::from(letter - b'A')]),
        _ => None,
    }
}

/// A reply's first characters, for messages.
fn begin(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_its_fields_in_order() {
        let (before, after) = request();
        assert!(before.ends_with("\nText: ") && after.starts_with("\nDomain:_\n[1]Accuracy:_/5\n"));
        assert!(after.ends_with("\n[14]Overall Score:_/5"));
        assert_eq!(after.lines().count(), 1 + 1 + CRITERIA.len());
    }

    #[test]
    fn reads_a_reply() {
        let scores = parse("K\n5\n4\n3\n2\n1\n5\n4\n3\n2\n1\n5\n4\n3\n2").unwrap();
        assert_eq!(scores.domain, "Transportation");
        assert_eq!(scores.scores, [5, 4, 3, 2, 1, 5, 4, 3, 2, 1, 5, 4, 3, 2]);
        assert_eq!(scores.overall(), 2);
        assert_eq!(parse(" A\r\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n\n").unwrap().domain, "Medicine");
        assert_eq!(parse("O\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1").unwrap().domain, "Other");
    }

    #[test]
    fn names_what_is_wrong_with_a_reply() {
        let fails = |reply: &str, with: &str| {
            let error = format!("{:#}", parse(reply).unwrap_err());
            assert!(error.contains(with), "{error}");
        };
        fails("", "1 lines instead of 15");
        fails("A\n5\n5", "3 lines");
        fails("P\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1", "line 1");
        fails("AB\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1", "line 1");
        fails("A\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n6", "line 15 of the reply (overall) is \"6\"");
        fails("A\n1\n0\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1", "line 3 of the reply (coherence)");
        fails("A\n4.5\n0\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1", "line 2");
    }

    #[test]
    fn noise_goes_only_where_the_rule_says() {
        let check = |text: &str, left: &str| assert_eq!(without_noise(text), left);
        check("“…” A start", " A start");
        check("\"…………\"A", "A");
        check("\"....\"A", "A");
        check("\"..\"A", "\"..\"A");
        check("A “…” B", "A “…” B");
        check("\n“…” A", "\n“…” A");
        check("a\n![](/pic.png)\nb", "a\nb");
        check("![](x)\n![](y)\nb ![](z) c", "b ![](z) c");
        check("![alt](x)\n![]()\n", "![alt](x)\n![]()\n");
        check("![](two\nlines)\nb", "b");
    }
}
