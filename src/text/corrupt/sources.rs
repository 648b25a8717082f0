//! Clean text that pages are composed of: paragraphs, sentences, short lines, whole pages. Splits and filters; it draws
//! nothing at random and knows no layout.

/// The material of [`super::page`]. Any part may be empty: what is missing is made from the embedded lists.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    pub(crate) paragraphs: Vec<String>,
    pub(crate) sentences: Vec<String>,
    pub(crate) lines: Vec<String>,
    pub(crate) pages: Vec<String>,
}

impl Sources {
    /// Sources from running text: every line of every text is a paragraph. Short lines become short-line material.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut sources = Self::default();
        for text in texts {
            for line in text.lines() {
                sources.add(line);
            }
        }
        sources
    }

    /// Adds one paragraph or short line.
    pub fn add(&mut self, line: &str) {
        let line = line.trim();
        match line.chars().count() {
            0..=2 => {}
            3..=79 => self.lines.push(line.to_owned()),
            _ => {
                self.sentences.extend(split_sentences(line).into_iter().filter(|s| s.len() > 20).map(str::to_owned));
                self.paragraphs.push(line.to_owned());
            }
        }
    }

    /// Adds whole clean pages, which are used with their own layout.
    pub fn with_pages<'a>(mut self, pages: impl IntoIterator<Item = &'a str>) -> Self {
        self.pages.extend(pages.into_iter().filter(|p| !p.trim().is_empty()).map(str::to_owned));
        self
    }

    /// True where there is nothing at all to draw from.
    pub fn is_empty(&self) -> bool {
        self.paragraphs.is_empty() && self.sentences.is_empty() && self.lines.is_empty() && self.pages.is_empty()
    }
}

/// Sentences of a paragraph: cut after `.`, `!` or `?` (and closing quotes) where a space and a capital, digit or quote follow.
pub(crate) fn split_sentences(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let mut i = 0;
    while i < chars.len() {
        if matches!(chars[i].1, '.' | '!' | '?') {
            let mut end = i + 1;
            while end < chars.len() && matches!(chars[end].1, '"' | '”' | '’' | '\'' | ')') {
                end += 1;
            }
            let opens = |c: char| c.is_uppercase() || c.is_numeric() || matches!(c, '"' | '“' | '‘' | '(');
            if end + 1 < chars.len()
                && chars[end].1 == ' '
                && opens(chars[end + 1].1)
                && long_enough(text, start, chars[i].0)
            {
                out.push(text[start..chars[end].0].trim());
                start = chars[end + 1].0;
            }
            i = end;
        } else {
            i += 1;
        }
    }
    if start < text.len() {
        out.push(text[start..].trim());
    }
    out.retain(|s| !s.is_empty());
    out
}

/// Abbreviations (`Dr.`, `J.`, `St.`) end no sentence: the last word must be longer than three letters or the piece long.
fn long_enough(text: &str, start: usize, stop: usize) -> bool {
    let last = text[start..stop].rsplit(' ').next().unwrap_or("");
    last.chars().count() > 3 || last.chars().any(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_by_hand() {
        assert_eq!(
            split_sentences("Dr. Who came home. \"It rained.\" He slept"),
            ["Dr. Who came home.", "\"It rained.\"", "He slept"]
        );
        assert_eq!(split_sentences("One sentence only."), ["One sentence only."]);
        assert!(split_sentences("").is_empty());
    }

    #[test]
    fn sorts_by_length() {
        let sources = Sources::from_texts([
            "Short line\n\nab\nThis line is a paragraph because it has more than eighty characters. It has two long sentences.",
        ]);
        assert_eq!(sources.lines, ["Short line"]);
        assert_eq!(sources.paragraphs.len(), 1);
        assert_eq!(sources.sentences.len(), 2);
    }
}
