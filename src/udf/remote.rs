//! `kind: remote`: a language model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp server), asked by the same prompts, chunks
//! and extraction as a model in this process. How a request is sent, repeated and given up is in [`http`].
//!
//! What an endpoint cannot do: show hidden states (BERTScore), be held to an answer's form. Without `tokenizer:` nothing here counts tokens:
//! a text that is too long for the server fails its row, and DataMan's and the judge's limits count characters only.

mod http;

use super::{
    lm::{Answer, Draw},
    models::{LmSettings, asked},
    speaker::{Form, Unframed, chatml_text, template},
};
use crate::{
    engine::FinishReason,
    storage::hub,
    text::{
        chat::ChatTemplate,
        prompt::{PairPrompt, Prompt},
        tokenizer::Tokenizer,
    },
};
use anyhow::{Context, Result, ensure};
pub use http::Limits;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Requests at the same time where nothing says otherwise.
pub const DEFAULT_CONCURRENCY: usize = 32;

asked! {
    /// An endpoint and how to ask it.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct RemoteSpec {
        {
            /// Up to and with the version, as `http://localhost:8000/v1`.
            pub base_url: String,
            /// The model's name at the endpoint.
            pub model: String,
            /// Which of the endpoint's two interfaces is used.
            #[serde(default)]
            pub api: Api,
            /// Environment variable with the key, sent as bearer token; the key itself never stands in a file or a message.
            pub api_key_env: Option<String>,
            /// Requests at the same time, of all queries of this process. Default: 32.
            pub concurrency: Option<usize>,
            /// Seconds that one attempt may take, from connecting to the last byte. Default: 120.
            pub timeout_seconds: Option<f64>,
            /// Attempts after the first, for connections that fail, time-outs, replies that are no JSON, and status 408, 429 and 5xx. Default: 5.
            pub retries: Option<u32>,
            /// Seconds before the first retry; doubles each time up to 30, less up to half of it by chance; a `Retry-After` header may ask for more.
            /// Default: 1.
            pub retry_pause_seconds: Option<f64>,
            /// Directory with the model's tokenizer.json and chat template, or `hf://…`. With it, texts are cut in tokens as for a model in this process,
            /// and `api: completions` sends token ids, so that a text that spells out control tokens stays text.
            pub tokenizer: Option<String>,
        }
        asked {}
    }
}

/// An interface of the endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/chat/completions`: the server applies the model's chat template.
    #[default]
    Chat,
    /// `/completions`: the prompt is sent ready. With `tokenizer` it goes through the chat template found there, else it stands as it is
    /// (DataMan's request in Qwen's chat format).
    Completions,
}

/// An endpoint ready to be asked.
pub struct Endpoint {
    client: http::Client,
    api: Api,
    model: String,
    /// Settings with nothing left open.
    pub settings: LmSettings,
    /// The rephrasing prompt.
    pub prompt: Prompt,
    /// The prompt about a pair, where the entry names one.
    pub pair: Option<PairPrompt>,
    /// The rephrasing prompt made ready.
    pub rephrase: Form,
    /// The user's own prompt made ready.
    pub plain: Form,
    /// Where the entry names one.
    pub tokenizer: Option<Tokenizer>,
    chat: Option<ChatTemplate>,
    /// Hash of the entry and the prompt.
    pub hash: String,
}

impl Endpoint {
    /// Checks the entry, reads prompt and tokenizer. Sends nothing.
    ///
    /// # Errors
    /// An address that is none or holds a password, a key that is not in the environment, numbers out of range, a prompt or a tokenizer that
    /// cannot be read.
    pub async fn open(spec: &RemoteSpec) -> Result<Self> {
        let (tokenizer, chat) = match &spec.tokenizer {
            Some(path) => {
                let dir = hub::resolve_tokenizer(path).await.context("tokenizer")?;
                (Some(Tokenizer::from_dir(&dir)?), ChatTemplate::from_dir(&dir)?)
            }
            None => (None, None),
        };
        let settings = settings(spec)?;
        let (prompt, pair) = prompts(spec)?;
        let path = match spec.api {
            Api::Chat => "chat/completions",
            Api::Completions => "completions",
        };
        let unready = || Form::Text(Prompt { system: None, before: String::new(), after: String::new() });
        let mut endpoint = Self {
            client: http::Client::new(&spec.base_url, path, key(spec)?, limits(spec)?)?,
            api: spec.api,
            model: spec.model.clone(),
            settings,
            rephrase: unready(),
            plain: unready(),
            tokenizer,
            chat,
            hash: hash(spec)?,
            prompt,
            pair,
        };
        endpoint.rephrase = endpoint.form(&endpoint.prompt, Unframed::Bare)?;
        let alone = Prompt { system: None, before: String::new(), after: String::new() };
        endpoint.plain = endpoint.form(&alone, Unframed::Bare)?;
        Ok(endpoint)
    }

    /// Makes a prompt ready.
    ///
    /// # Errors
    /// A chat template that cannot hold it.
    pub fn form(&self, prompt: &Prompt, unframed: Unframed) -> Result<Form> {
        match (self.api, &self.tokenizer) {
            (Api::Chat, _) => Ok(Form::Text(prompt.clone())),
            (Api::Completions, Some(tokenizer)) => {
                template(tokenizer, self.chat.as_ref(), prompt, unframed).map(Form::Tokens)
            }
            (Api::Completions, None) if unframed == Unframed::Chatml => chatml_text(prompt).map(Form::Text),
            (Api::Completions, None) => Ok(Form::Text(prompt.clone())),
        }
    }

    /// Asks. The form that `draw` may know is not sent; whoever needs it checks the answer.
    ///
    /// # Errors
    /// Why the request failed in the end, for the row.
    pub async fn put(&self, form: &Form, text: &str, draw: Draw) -> Result<Answer, String> {
        let (mut body, truncated) = self.prompt_body(form, text).map_err(|error| format!("{error:#}"))?;
        body["model"] = json!(self.model);
        body["max_tokens"] = json!(draw.max_new_tokens);
        body["temperature"] = json!(draw.sampling.temperature);
        body["top_p"] = json!(draw.sampling.top_p);
        if draw.sampling.top_k > 0 {
            body["top_k"] = json!(draw.sampling.top_k);
        }
        // Servers keep seeds in 32 or 64 signed bits.
        body["seed"] = json!(draw.seed & 0x7fff_ffff);
        let api = self.api;
        let mut answer = self.client.post(&body, &|reply| read(reply, api)).await?;
        answer.truncated = truncated;
        Ok(answer)
    }

    /// The part of the request that holds the text, and whether the text lost its middle.
    fn prompt_body(&self, form: &Form, text: &str) -> Result<(Value, bool)> {
        let prompt = match form {
            Form::Tokens(template) => {
                let (prefix, rest, truncated) = template.request(text, self.settings.max_prompt_tokens)?;
                let ids = [&prefix[..], &rest].concat();
                return Ok((json!({ "prompt": ids }), truncated));
            }
            Form::Text(prompt) => prompt,
        };
        let said = [prompt.before.as_str(), text, &prompt.after].concat();
        Ok(match self.api {
            Api::Chat => {
                let system = prompt.system.iter().map(|text| json!({ "role": "system", "content": text }));
                let messages: Vec<Value> = system.chain([json!({ "role": "user", "content": said })]).collect();
                (json!({ "messages": messages }), false)
            }
            Api::Completions => {
                let system = prompt.system.as_ref().map(|text| format!("{text}\n\n")).unwrap_or_default();
                (json!({ "prompt": system + &said }), false)
            }
        })
    }
}

/// The answer inside a reply.
fn read(reply: &Value, api: Api) -> Result<Answer, String> {
    let choice = &reply["choices"][0];
    let text = match api {
        Api::Chat => &choice["message"]["content"],
        Api::Completions => &choice["text"],
    };
    let Some(text) = text.as_str() else {
        return Err(format!("the reply holds no text: {reply}"));
    };
    let tokens = |name: &str| reply["usage"][name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let finish = if choice["finish_reason"] == "length" { FinishReason::Length } else { FinishReason::Stop };
    Ok(Answer {
        text: text.to_owned(),
        finish,
        prompt_tokens: tokens("prompt_tokens"),
        output_tokens: tokens("completion_tokens"),
        truncated: false,
        chances: Vec::new(),
    })
}

fn settings(spec: &RemoteSpec) -> Result<LmSettings> {
    let settings = spec.or_paper(8192);
    settings.check()?;
    ensure!(!spec.model.trim().is_empty(), "`model` is empty; give the model's name at the endpoint");
    Ok(settings)
}

fn limits(spec: &RemoteSpec) -> Result<Limits> {
    let seconds = |name: &str, given: Option<f64>, default: f64| {
        let value = given.unwrap_or(default);
        ensure!(value.is_finite() && value > 0.0 && value < 1e6, "`{name}` must be above 0 seconds, not {value}");
        Ok(std::time::Duration::from_secs_f64(value))
    };
    let concurrency = spec.concurrency.unwrap_or(DEFAULT_CONCURRENCY);
    ensure!((1..=4096).contains(&concurrency), "`concurrency` must be from 1 to 4096, not {concurrency}");
    Ok(Limits {
        concurrency,
        timeout: seconds("timeout_seconds", spec.timeout_seconds, 120.0)?,
        retries: spec.retries.unwrap_or(5),
        pause: seconds("retry_pause_seconds", spec.retry_pause_seconds, 1.0)?,
    })
}

/// The key from the environment.
fn key(spec: &RemoteSpec) -> Result<Option<String>> {
    let Some(name) = &spec.api_key_env else { return Ok(None) };
    let value = std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    value.map(Some).with_context(|| format!("`api_key_env` names {name}, but no such environment variable is set"))
}

/// The rephrasing prompt, and the prompt about a pair if the entry's file is one.
fn prompts(spec: &RemoteSpec) -> Result<(Prompt, Option<PairPrompt>)> {
    let Some(file) = &spec.prompt else { return Ok((Prompt::rephrase(), None)) };
    super::models::read_prompt(file)
}

fn hash(spec: &RemoteSpec) -> Result<String> {
    let (prompt, pair) = prompts(spec)?;
    // Where prompt and key are, and how hard the endpoint is pressed, changes no answer.
    let same = RemoteSpec {
        prompt: None,
        api_key_env: None,
        concurrency: None,
        timeout_seconds: None,
        retries: None,
        retry_pause_seconds: None,
        ..spec.clone()
    };
    let facts = format!(
        "{}\n{}\n{}",
        serde_json::to_string(&same)?,
        prompt.hash(),
        pair.map(|pair| pair.hash()).unwrap_or_default()
    );
    Ok(blake3::hash(facts.as_bytes()).to_hex().to_string())
}

/// Hash of what decides the endpoint's answers as far as it is known here.
///
/// # Errors
/// A prompt that cannot be read.
pub fn endpoint_hash(spec: &RemoteSpec) -> Result<String> {
    hash(spec)
}
