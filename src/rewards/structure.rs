//! The structure judge's protocol (reference section 2.3): how much of each text is shown, and what the answer means. Pure; the judge itself is
//! not known here, the model-free form is [`crate::text::structure`].
//!
//! Departure from the published code: an answer that ends in neither `1` nor `0` is an error; there it counts as 0.

use super::{
    cut::{Limits, cut},
    dataman::without_noise,
};
use crate::text::tokenizer::Tokenizer;
use anyhow::{Result, bail};

/// What is shown of each of the two texts: half of what DataMan sees, so the middle of a long text is not judged.
pub const LIMITS: Limits = Limits { chars: 10_000, tokens: 947 };
/// Tokens of an answer at most: an empty think block and the digit fit.
pub const ANSWER_TOKENS: usize = 8;

/// A text as the judge sees it. Without the judge's tokenizer only characters are counted.
///
/// # Errors
/// A text that the tokenizer cannot encode.
pub fn shown(text: &str, tokenizer: Option<&Tokenizer>) -> Result<String> {
    cut(&without_noise(text), LIMITS, tokenizer)
}

/// The verdict: the last character of the answer.
///
/// # Errors
/// It is neither `1` nor `0`.
pub fn verdict(answer: &str) -> Result<bool> {
    match answer.trim().chars().next_back() {
        Some('1') => Ok(true),
        Some('0') => Ok(false),
        _ => bail!("the judge answered {:?} instead of 1 or 0", answer.chars().take(60).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn the_last_character_decides() {
        let check = |answer: &str, expected: Option<bool>| assert_eq!(verdict(answer).ok(), expected, "{answer:?}");
        check("1", Some(true));
        check(" 0\n", Some(false));
        check("<think>\n\n</think>\n\n1", Some(true));
        check("Answer: 0", Some(false));
        check("", None);
        check("yes", None);
        check("1.", None);
    }
}
