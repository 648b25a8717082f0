//! Prompt templates: a text file with one `{TEXT}` mark, an optional system part. The document never becomes part of a template language.

/// The marker that published rephrasers begin their answer with (reference: RePro code, rewards.py).
pub const MARKER: &str = "Here is a paraphrased version:";
/// The mark that the document replaces.
pub const SLOT: &str = "{TEXT}";

/// A prompt split at its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub system: Option<String>,
    pub before: String,
    pub after: String,
}

impl Prompt {
    /// Parses a template file's text. An optional first block `[system]\n…\n[user]\n` holds the system message.
    pub fn parse(source: &str) -> anyhow::Result<Self> {
        let _ = source;
        todo!()
    }
    /// The project's own rephrasing prompt (assets/prompts/rephrase.txt, embedded).
    pub fn rephrase() -> Self {
        todo!()
    }
    /// Hash of everything that reaches the model (hex blake3), for `prompt_hash`.
    pub fn hash(&self) -> String {
        todo!()
    }
}
