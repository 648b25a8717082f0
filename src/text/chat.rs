//! Chat templates (Jinja, as in tokenizer_config.json or chat_template.jinja).

use std::path::Path;

/// One turn of a conversation.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// A compiled template with its bos and eos strings.
pub struct ChatTemplate {
    _p: (),
}

impl ChatTemplate {
    /// None where the directory has no template (a base model): the prompt is then used as it is.
    pub fn from_dir(dir: &Path) -> anyhow::Result<Option<Self>> {
        let _ = dir;
        todo!()
    }
    /// Renders with `add_generation_prompt = true`.
    pub fn render(&self, messages: &[Message]) -> anyhow::Result<String> {
        let _ = messages;
        todo!()
    }
}
