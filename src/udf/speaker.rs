//! One face for every language model that a function can ask: in this process, or behind an endpoint. Functions see texts, prompts and
//! answers; which of the two answers they need not know.

use super::{
    edited::edited,
    lm::{self, Answer, Draw, Rephraser, Template},
    models::{AnswerForm, LanguageModel, LmSettings},
    remote::Endpoint,
};
use crate::text::{
    chat::ChatTemplate,
    prompt::{PairPrompt, Prompt},
    tokenizer::Tokenizer,
};
use anyhow::Result;
use std::sync::Arc;

/// A language model ready to be asked.
#[derive(Clone)]
pub enum Speaker {
    /// Runs here.
    Local(Arc<LanguageModel>),
    /// Runs elsewhere.
    Remote(Arc<Endpoint>),
}

/// A prompt made ready for a model.
pub enum Form {
    /// Tokens around the text.
    Tokens(Template),
    /// Text around the text: an endpoint tokenises itself.
    Text(Prompt),
}

impl Speaker {
    /// The model's settings.
    pub fn settings(&self) -> &LmSettings {
        match self {
            Self::Local(lm) => &lm.settings,
            Self::Remote(endpoint) => &endpoint.settings,
        }
    }
    /// Hash of the model, its settings and its prompt.
    pub fn hash(&self) -> &str {
        match self {
            Self::Local(lm) => &lm.hash,
            Self::Remote(endpoint) => &endpoint.hash,
        }
    }
    /// The rephrasing prompt.
    pub fn prompt(&self) -> &Prompt {
        match self {
            Self::Local(lm) => &lm.prompt,
            Self::Remote(endpoint) => &endpoint.prompt,
        }
    }
    /// The prompt about a pair that the model's entry names, if it names one.
    pub fn pair_prompt(&self) -> Option<&PairPrompt> {
        match self {
            Self::Local(lm) => lm.pair.as_ref(),
            Self::Remote(endpoint) => endpoint.pair.as_ref(),
        }
    }
    /// The model's tokenizer; an endpoint may have none here.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        match self {
            Self::Local(lm) => Some(&lm.tokenizer),
            Self::Remote(endpoint) => endpoint.tokenizer.as_ref(),
        }
    }

    /// Makes a prompt ready. `chatml`: without a chat template of its own the model speaks Qwen's format if it knows the marks.
    ///
    /// # Errors
    /// A chat template that cannot hold the prompt.
    pub fn form(&self, prompt: &Prompt, chatml: Unframed) -> Result<Form> {
        match self {
            Self::Local(lm) => template(&lm.tokenizer, lm.chat.as_ref(), prompt, chatml).map(Form::Tokens),
            Self::Remote(endpoint) => endpoint.form(prompt, chatml),
        }
    }

    /// The answer to a prompt with `text` in it.
    ///
    /// # Errors
    /// Why it failed, for the row.
    pub async fn put(&self, form: &Form, text: &str, draw: Draw) -> Result<Answer, String> {
        match (self, form) {
            (Self::Local(lm), Form::Tokens(template)) => lm::put(lm, &lm.engine, template, text, draw).await,
            (Self::Remote(endpoint), form) => endpoint.put(form, text, draw).await,
            (Self::Local(_), Form::Text(_)) => Err("a prompt made for an endpoint was put to a model here".to_owned()),
        }
    }

    /// The answer to the user's own prompt.
    ///
    /// # Errors
    /// Why it failed, for the row.
    pub async fn plain(&self, prompt: &str, seed: u64) -> Result<Answer, String> {
        match self {
            Self::Local(lm) => lm::ask(lm, &lm.engine, &lm.plain, prompt, seed).await,
            Self::Remote(endpoint) => {
                endpoint.put(&endpoint.plain, prompt, Draw::settings(&endpoint.settings, seed)).await
            }
        }
    }
}

#[async_trait::async_trait]
impl Rephraser for Speaker {
    fn settings(&self) -> &LmSettings {
        self.settings()
    }
    async fn answer(&self, text: &str, seed: u64) -> Result<Answer, String> {
        match self {
            Self::Local(lm) => match lm.settings.answer {
                AnswerForm::Text => lm::ask(lm, &lm.engine, &lm.rephrase, text, seed).await,
                AnswerForm::Edits => edited(lm, &lm.engine, text, seed).await,
            },
            Self::Remote(endpoint) => {
                endpoint.put(&endpoint.rephrase, text, Draw::settings(&endpoint.settings, seed)).await
            }
        }
    }
}

/// What surrounds a prompt where the model has no chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unframed {
    /// Nothing: the prompt stands as it is.
    Bare,
    /// Qwen's chat format, the one of the published scorers.
    Chatml,
}

/// Qwen's chat format, for a checkpoint that came without its template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The tokens around a text for a model with that chat template. Without one and without Qwen's marks in its vocabulary, a prompt that
/// wants Qwen's format stands alone, a line end after it and the system message left out.
pub fn template(
    tokenizer: &Tokenizer,
    chat: Option<&ChatTemplate>,
    prompt: &Prompt,
    unframed: Unframed,
) -> Result<Template> {
    let marks = ["<|im_start|>", "<|im_end|>"].iter().all(|mark| tokenizer.id(mark).is_some());
    match (chat, unframed) {
        (Some(chat), _) => Template::new(tokenizer, Some(chat), prompt),
        (None, Unframed::Bare) => Template::new(tokenizer, None, prompt),
        (None, Unframed::Chatml) if marks => {
            Template::new(tokenizer, Some(&ChatTemplate::new(CHATML, Default::default())?), prompt)
        }
        (None, Unframed::Chatml) => {
            let alone = Prompt { system: None, before: prompt.before.clone(), after: format!("{}\n", prompt.after) };
            Template::new(tokenizer, None, &alone)
        }
    }
}

/// A prompt in Qwen's chat format as one text, for an endpoint that completes texts and whose tokenizer is not known.
pub fn chatml_text(prompt: &Prompt) -> Result<Prompt> {
    let system: Vec<_> =
        prompt.system.iter().map(|text| crate::text::chat::Message::new("system", text.as_str())).collect();
    let template = ChatTemplate::new(CHATML, Default::default())?;
    let (before, after) = template.render_split(&system, &prompt.before, &prompt.after)?;
    Ok(Prompt { system: None, before, after })
}
