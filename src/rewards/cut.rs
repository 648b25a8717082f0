//! How the scorers shorten a long text (reference section 2.1): the first and the last half of what is allowed, first in characters, then in
//! the scorer's own tokens. Pure.

use crate::text::tokenizer::{Special, Tokenizer};
use anyhow::Result;

/// What is kept of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Characters; of a longer text, the first and last half of these, with nothing between them.
    pub chars: usize,
    /// Tokens; of a longer text, the first and last half of these with `...` between them.
    pub tokens: usize,
}

/// Cuts a text to the limits and strips white space. Without a tokenizer only characters are counted.
///
/// # Errors
/// A text that the tokenizer cannot encode.
pub fn cut(text: &str, limits: Limits, tokenizer: Option<&Tokenizer>) -> Result<String> {
    let text = in_chars(text, limits.chars);
    let Some(tokenizer) = tokenizer else { return Ok(strip(&text).to_owned()) };
    let tokens = tokenizer.encode(&text, Special::Plain)?;
    if tokens.len() <= limits.tokens {
        return Ok(strip(&text).to_owned());
    }
    let half = limits.tokens / 2;
    let (first, last) = (tokenizer.decode(&tokens[..half])?, tokenizer.decode(&tokens[tokens.len() - half..])?);
    Ok(strip(&[first.as_str(), "...", &last].concat()).to_owned())
}

/// The first and last half of `limit` characters, or all.
fn in_chars(text: &str, limit: usize) -> std::borrow::Cow<'_, str> {
    let count = text.chars().count();
    if count <= limit {
        return text.into();
    }
    let half = limit / 2;
    let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    [&text[..at(half)], &text[at(count - half)..]].concat().into()
}

/// As Python strips: white space, and the four ASCII separators that Unicode does not count as such.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_both_ends_in_characters() {
        let limits = Limits { chars: 6, tokens: 100 };
        let check = |text: &str, kept: &str| assert_eq!(cut(text, limits, None).ok().as_deref(), Some(kept));
        check("äbcdef", "äbcdef");
        check("äbcdefg", "äbcefg");
        check(" äbcdef ", "äbef");
        check("", "");
        check(" \u{1f}\n ", "");
    }
}
