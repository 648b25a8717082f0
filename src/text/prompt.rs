//! Prompt templates: a text file with one `{TEXT}` mark, an optional system part. The document never becomes part of a template
//! language: it is put in place of the mark as it is. Knows nothing of chat templates or tokens.

use anyhow::bail;

/// The marker that published rephrasers begin their answer with (reference: RePro code, rewards.py).
pub const MARKER: &str = "Here is a paraphrased version:";
/// The mark that the document replaces.
pub const SLOT: &str = "{TEXT}";

const SYSTEM: &str = "[system]";
const USER: &str = "[user]";

/// A prompt split at its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The system message.
    pub system: Option<String>,
    /// The user message up to the document.
    pub before: String,
    /// The user message after it.
    pub after: String,
}

impl Prompt {
    /// Parses a template file's text. An optional first block `[system]\n…\n[user]\n` holds the system message. White space at the
    /// end of the file and around the system message is dropped; Windows line ends are read as plain ones.
    pub fn parse(source: &str) -> anyhow::Result<Self> {
        let source = source.strip_prefix('\u{feff}').unwrap_or(source).replace("\r\n", "\n");
        let (system, user) = split_system(&source)?;
        if let Some(text) = &system
            && text.contains(SLOT)
        {
            bail!("the {SLOT} mark stands in the {SYSTEM} block; the document belongs in the {USER} block");
        }
        let user = user.trim_end();
        match user.match_indices(SLOT).count() {
            1 => {}
            0 => bail!("the prompt has no {SLOT} mark; write {SLOT} once, where the document goes"),
            n => bail!("the prompt has {n} {SLOT} marks; write {SLOT} exactly once, where the document goes"),
        }
        let (before, after) = user.split_once(SLOT).expect("counted above");
        Ok(Self { system, before: before.to_owned(), after: after.to_owned() })
    }

    /// The project's own rephrasing prompt (assets/prompts/rephrase.txt, embedded).
    pub fn rephrase() -> Self {
        Self::parse(include_str!("../../assets/prompts/rephrase.txt")).expect("the embedded prompt is tested")
    }

    /// Hash of everything that reaches the model (hex blake3), for `prompt_hash`. Parts are length-prefixed, so that moving text from
    /// one to the next changes it.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [self.system.as_deref(), Some(self.before.as_str()), Some(self.after.as_str())] {
            match part {
                None => {
                    hasher.update(&u64::MAX.to_le_bytes());
                }
                Some(text) => {
                    hasher.update(&(text.len() as u64).to_le_bytes());
                    hasher.update(text.as_bytes());
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// A prompt about two texts: an original and its rephrasing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairPrompt {
    /// What stands around the two texts and what is between them; both stand where the mark of [`Prompt`] was.
    pub prompt: Prompt,
    /// Between the original and the rephrasing.
    pub between: String,
}

/// The mark that the original replaces.
pub const ORIGINAL: &str = "{ORIGINAL}";
/// The mark that the rephrasing replaces.
pub const REPHRASED: &str = "{REPHRASED}";

impl PairPrompt {
    /// Parses a template file's text: as [`Prompt::parse`], with the marks `{ORIGINAL}` and `{REPHRASED}`, once each and in this order.
    ///
    /// # Errors
    /// A mark that is missing, doubled or out of order; and as [`Prompt::parse`].
    pub fn parse(source: &str) -> anyhow::Result<Self> {
        let once = |mark: &str| match source.matches(mark).count() {
            1 => Ok(()),
            n => bail!("the prompt about a pair has {n} {mark} marks; write {ORIGINAL} and {REPHRASED} once each"),
        };
        once(ORIGINAL)?;
        once(REPHRASED)?;
        if source.contains(SLOT) {
            bail!("the prompt about a pair has a {SLOT} mark; write {ORIGINAL} and {REPHRASED} instead");
        }
        let Some((before, (between, after))) =
            source.split_once(ORIGINAL).and_then(|(before, rest)| Some((before, rest.split_once(REPHRASED)?)))
        else {
            bail!("the prompt about a pair has {REPHRASED} before {ORIGINAL}; the original comes first");
        };
        let prompt = Prompt::parse(&[before, SLOT, after].concat())?;
        Ok(Self { prompt, between: between.replace("\r\n", "\n") })
    }

    /// The project's own question about structure (assets/prompts/structure.txt, embedded).
    pub fn structure() -> Self {
        Self::parse(include_str!("../../assets/prompts/structure.txt")).expect("the embedded prompt is tested")
    }

    /// What stands in place of the mark of [`Self::prompt`].
    pub fn fill(&self, original: &str, rephrased: &str) -> String {
        [original, &self.between, rephrased].concat()
    }

    /// As [`Prompt::hash`].
    pub fn hash(&self) -> String {
        blake3::hash(format!("{}\n{}", self.prompt.hash(), self.between).as_bytes()).to_hex().to_string()
    }
}

/// The system message, if the file begins with its block, and the rest.
fn split_system(source: &str) -> anyhow::Result<(Option<String>, &str)> {
    let body = source.trim_start();
    if let Some(rest) = body.strip_prefix(USER).and_then(|rest| rest.strip_prefix('\n')) {
        return Ok((None, rest));
    }
    let Some(rest) = body.strip_prefix(SYSTEM).and_then(|rest| rest.strip_prefix('\n')) else {
        return Ok((None, source));
    };
    let mark = format!("\n{USER}\n");
    let lead = format!("{USER}\n");
    let (system, user) = match rest.strip_prefix(lead.as_str()) {
        Some(user) => ("", user),
        None => match rest.split_once(mark.as_str()) {
            Some(parts) => parts,
            None => bail!("the prompt has a {SYSTEM} block but no line {USER} after it"),
        },
    };
    let system = system.trim();
    Ok(((!system.is_empty()).then(|| system.to_owned()), user))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn fails(source: &str, with: &str) {
        let error = Prompt::parse(source).unwrap_err().to_string();
        assert!(error.contains(with), "{error}");
    }

    #[test]
    fn splits_at_the_mark() {
        let prompt = Prompt::parse("Do it:\n{TEXT}\nNow.\n").unwrap();
        assert_eq!(prompt, Prompt { system: None, before: "Do it:\n".into(), after: "\nNow.".into() });
    }

    #[test]
    fn reads_a_system_block() {
        let prompt = Prompt::parse("[system]\nBe kind.\n\n[user]\nA {TEXT} B").unwrap();
        assert_eq!(prompt, Prompt { system: Some("Be kind.".into()), before: "A ".into(), after: " B".into() });
        let windows = Prompt::parse("\u{feff}[system]\r\nBe kind.\r\n[user]\r\nA {TEXT} B\r\n").unwrap();
        assert_eq!(windows, prompt);
        assert_eq!(Prompt::parse("[user]\n{TEXT}").unwrap().system, None);
        assert_eq!(Prompt::parse("[system]\n[user]\n{TEXT}").unwrap().system, None);
    }

    #[test]
    fn wants_the_mark_exactly_once() {
        fails("no mark", "no {TEXT} mark");
        fails("", "no {TEXT} mark");
        fails("{TEXT} {TEXT}", "2 {TEXT} marks");
        fails("[system]\n{TEXT}\n[user]\n{TEXT}", "[system] block");
        fails("[system]\nx\n{TEXT}", "no line [user]");
    }

    #[test]
    fn hash_depends_on_every_part_and_its_place() {
        let hash = |source: &str| Prompt::parse(source).unwrap().hash();
        let all = [
            hash("a{TEXT}b"),
            hash("ab{TEXT}"),
            hash("{TEXT}ab"),
            hash("[system]\na\n[user]\n{TEXT}b"),
            hash("[system]\nab\n[user]\n{TEXT}"),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all[0].len(), 64);
    }

    #[test]
    fn a_prompt_about_a_pair_wants_both_marks_in_order() {
        let pair = PairPrompt::parse("[system]\nS\n[user]\nA {ORIGINAL}\nB {REPHRASED} C\n").unwrap();
        assert_eq!((pair.prompt.before.as_str(), pair.prompt.after.as_str()), ("A ", " C"));
        assert_eq!((pair.fill("x", "y").as_str(), pair.prompt.system.as_deref()), ("x\nB y", Some("S")));
        for (source, with) in [
            ("{ORIGINAL}", "0 {REPHRASED}"),
            ("{ORIGINAL} {ORIGINAL} {REPHRASED}", "2 {ORIGINAL}"),
            ("{REPHRASED} {ORIGINAL}", "the original comes first"),
            ("{ORIGINAL} {REPHRASED} {TEXT}", "{TEXT}"),
        ] {
            let error = PairPrompt::parse(source).unwrap_err().to_string();
            assert!(error.contains(with), "{error}");
        }
        let own = PairPrompt::structure();
        assert!(own.prompt.before.contains("1 if the form is kept") && own.prompt.after.trim().ends_with("Answer:"));
    }

    #[test]
    fn the_embedded_prompt_parses_and_names_the_marker() {
        let prompt = Prompt::rephrase();
        assert!(prompt.after.contains(MARKER));
    }
}
