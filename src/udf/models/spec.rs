//! What a pipeline may say about a model, and what stands where it says nothing: the makers' recommendations, else the paper's values.

use crate::{
    engine::Precision,
    text::{
        chunk::Boundary,
        prompt::{ORIGINAL, PairPrompt, Prompt},
    },
    udf::{encoder::EncoderSpec, remote::RemoteSpec},
};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One entry of `models:`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSpec {
    /// A generating language model.
    CausalLm(CausalLmSpec),
    /// A text classifier.
    Fasttext(FastTextSpec),
    /// A model that gives vectors, for `bertscore`.
    Encoder(EncoderSpec),
    /// A language model behind an OpenAI-compatible endpoint.
    Remote(RemoteSpec),
    /// A tokenizer without a model, for `token_count` and `pack`.
    Tokenizer(TokenizerSpec),
}

/// A tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSpec {
    /// A directory with `tokenizer.json` (local, `hf://`, `s3://`), such a file itself, or a tiktoken rank file with the split of GPT-2
    /// (`*.tiktoken`).
    pub path: String,
}

/// Defines an entry of `models:` for a language model that is asked: its own fields, with those between that every such entry has.
macro_rules! asked {
    ($(#[$meta:meta])* pub struct $name:ident { { $($before:tt)* } asked { $($after:tt)* } }) => {
        $(#[$meta])*
        pub struct $name {
            $($before)*
            /// Template file with a `{TEXT}` mark (with `{ORIGINAL}` and `{REPHRASED}` for a judge); else the model directory's `prompt.txt`,
            /// else the embedded rephrasing prompt.
            pub prompt: Option<std::path::PathBuf>,
            /// 0 is greedy. Paper: 1.0.
            pub temperature: Option<f32>,
            /// Paper: 0.9.
            pub top_p: Option<f32>,
            /// 0 keeps all (default); an endpoint is told only where it is given, OpenAI's own servers do not know it.
            pub top_k: Option<usize>,
            /// Tokens generated per chunk at most. Paper: 2048.
            pub max_new_tokens: Option<usize>,
            /// Tokens of a whole prompt at most, where there is a tokenizer; longer chunks lose their middle and are marked truncated.
            /// Paper: 4096 (Qwen and endpoints 8192).
            pub max_prompt_tokens: Option<usize>,
            /// Characters of a chunk. Paper: 7000.
            pub chunk_chars: Option<usize>,
            /// Where cuts may fall. Paper: `char`.
            pub chunk_boundary: Option<$crate::text::chunk::Boundary>,
            /// Marker before the rephrased text; empty: the whole answer is the text.
            pub marker: Option<String>,
            $($after)*
        }

        impl $name {
            /// The settings that are given, the paper's where none are (reference/repro.md section 4). `max_prompt_tokens` differs by model.
            pub(in $crate::udf) fn or_paper(&self, max_prompt_tokens: usize) -> $crate::udf::models::LmSettings {
                $crate::udf::models::LmSettings {
                    temperature: self.temperature.unwrap_or(1.0),
                    top_p: self.top_p.unwrap_or(0.9),
                    top_k: self.top_k.unwrap_or(0),
                    max_new_tokens: self.max_new_tokens.unwrap_or(2048),
                    max_prompt_tokens: self.max_prompt_tokens.unwrap_or(max_prompt_tokens),
                    chunk_chars: self.chunk_chars.unwrap_or(7000),
                    chunk_boundary: self.chunk_boundary.unwrap_or($crate::text::chunk::Boundary::Char),
                    marker: self.marker.clone().unwrap_or_else(|| $crate::text::prompt::MARKER.to_owned()),
                    answer: $crate::udf::models::AnswerForm::Text,
                    drop_lean: 0.0,
                }
            }
        }
    };
}
pub(in crate::udf) use asked;

asked! {
    /// A generating language model in Hugging Face layout. What is not given comes from `repro.json` in the model directory (the settings its
    /// makers recommend, same field names), else from the paper.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct CausalLmSpec {
        {
            /// Local directory, `hf://org/name[@rev]` or `s3://…`.
            pub path: String,
        }
        asked
        {
            /// What an answer to a rephrasing request is: `text` (default) or `edits`.
            pub answer: Option<AnswerForm>,
            /// With `answer: edits`: added to the logit of dropping a segment. Above 0 more goes, below 0 less.
            pub drop_lean: Option<f32>,
            /// Sequences generated at the same time.
            pub slots: Option<usize>,
            /// `auto` (default), `cpu` or `cuda:N`.
            pub device: Option<String>,
            /// `auto` (default), `f32` or `bf16`.
            pub precision: Option<String>,
        }
    }
}

impl ModelSpec {
    /// For messages.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::CausalLm(_) => "a language model",
            Self::Fasttext(_) => "a fastText classifier",
            Self::Encoder(_) => "an encoder",
            Self::Remote(_) => "a remote language model",
            Self::Tokenizer(_) => "a tokenizer",
        }
    }
}

/// A causal model's settings with nothing left open.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LmSettings {
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Least probability mass that sampling draws from, in (0, 1].
    pub top_p: f32,
    /// Most likely tokens that sampling draws from; 0 keeps all.
    pub top_k: usize,
    /// Tokens generated per chunk at most.
    pub max_new_tokens: usize,
    /// Tokens of a whole prompt at most.
    pub max_prompt_tokens: usize,
    /// Characters of a chunk.
    pub chunk_chars: usize,
    /// Where cuts may fall.
    pub chunk_boundary: Boundary,
    /// Marker before the rephrased text; empty: the whole answer is the text.
    pub marker: String,
    /// What an answer to a rephrasing request is.
    pub answer: AnswerForm,
    /// Added to the logit of dropping a segment.
    pub drop_lean: f32,
}

/// What a rephraser writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// The rephrased text, behind the marker.
    #[default]
    Text,
    /// Which segments of the source stay ([`crate::text::edits`]); there is no marker then.
    Edits,
}

/// A fastText classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FastTextSpec {
    /// The classifier.
    pub path: String,
}

/// The rephrasing prompt, and the prompt about a pair where the file is one.
type Prompts = (Prompt, Option<PairPrompt>);

/// Reads a prompt file. One with the marks of a pair leaves the embedded rephrasing prompt in place.
pub(in crate::udf) fn read_prompt(file: &Path) -> Result<Prompts> {
    let read = || -> Result<Prompts> {
        let text = std::fs::read_to_string(file)?;
        if text.contains(ORIGINAL) {
            return Ok((Prompt::rephrase(), Some(PairPrompt::parse(&text)?)));
        }
        Ok((Prompt::parse(&text)?, None))
    };
    read().with_context(|| format!("prompt {}", file.display()))
}

/// The prompt about a pair, where the entry names one.
pub(super) fn pair_prompt(spec: &CausalLmSpec) -> Result<Option<PairPrompt>> {
    spec.prompt.as_deref().map_or(Ok(None), |file| Ok(read_prompt(file)?.1))
}

/// The settings, with those that the model's makers recommend in `repro.json` where none are given; and the prompt.
///
/// # Errors
/// `repro.json` or the prompt cannot be read.
pub fn recommended(dir: &Path, spec: &CausalLmSpec) -> Result<(CausalLmSpec, Prompt)> {
    let path = dir.join("repro.json");
    let makers = if path.exists() {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut json: serde_json::Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if let Some(object) = json.as_object_mut() {
            object.insert("path".into(), "".into());
        }
        serde_json::from_value(json).with_context(|| path.display().to_string())?
    } else {
        CausalLmSpec::default()
    };
    let beside = |name: &Path| dir.join(name);
    let file = spec.prompt.clone().or_else(|| makers.prompt.as_deref().map(beside)).or_else(|| {
        let own = dir.join("prompt.txt");
        own.exists().then_some(own)
    });
    let prompt = match file {
        Some(file) => read_prompt(&file)?.0,
        None => Prompt::rephrase(),
    };
    let own = spec.clone();
    let merged = CausalLmSpec {
        path: own.path,
        prompt: own.prompt,
        temperature: own.temperature.or(makers.temperature),
        top_p: own.top_p.or(makers.top_p),
        top_k: own.top_k.or(makers.top_k),
        max_new_tokens: own.max_new_tokens.or(makers.max_new_tokens),
        max_prompt_tokens: own.max_prompt_tokens.or(makers.max_prompt_tokens),
        chunk_chars: own.chunk_chars.or(makers.chunk_chars),
        chunk_boundary: own.chunk_boundary.or(makers.chunk_boundary),
        marker: own.marker.or(makers.marker),
        answer: own.answer.or(makers.answer),
        drop_lean: own.drop_lean.or(makers.drop_lean),
        slots: own.slots.or(makers.slots),
        device: own.device.or(makers.device),
        precision: own.precision.or(makers.precision),
    };
    Ok((merged, prompt))
}

impl LmSettings {
    /// Fills what is open with the paper's values and checks the rest. `limit` is what a sequence can hold:
    /// a smaller model than the paper's gets smaller requests.
    pub(super) fn resolve(spec: &CausalLmSpec, qwen: bool, limit: usize) -> Result<Self> {
        let paper = spec.or_paper(if qwen { 8192 } else { 4096 });
        let settings = Self {
            max_new_tokens: paper.max_new_tokens.min(limit / 2),
            answer: spec.answer.unwrap_or_default(),
            drop_lean: spec.drop_lean.unwrap_or(0.0),
            ..paper
        };
        settings.check()?;
        ensure!(spec.slots != Some(0), "slots must be at least 1");
        let room = limit - settings.max_new_tokens;
        Ok(Self { max_prompt_tokens: settings.max_prompt_tokens.min(room), ..settings })
    }

    /// Refuses numbers that make no sense.
    pub(in crate::udf) fn check(&self) -> Result<()> {
        ensure!(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature must be 0 or more, not {}",
            self.temperature
        );
        ensure!(self.top_p > 0.0 && self.top_p <= 1.0, "top_p must be in (0, 1], not {}", self.top_p);
        ensure!(self.max_new_tokens > 0, "max_new_tokens must be at least 1");
        ensure!(self.chunk_chars > 0, "chunk_chars must be at least 1");
        ensure!(self.drop_lean.abs() <= 100.0, "drop_lean must be between -100 and 100, not {}", self.drop_lean);
        Ok(())
    }
}

/// `auto`, `f32` or `bf16`.
pub(in crate::udf) fn precision(text: Option<&str>) -> Result<Precision> {
    match text {
        None | Some("auto") => Ok(Precision::Auto),
        Some("f32") => Ok(Precision::F32),
        Some("bf16") => Ok(Precision::Bf16),
        Some(other) => bail!("precision must be auto, f32 or bf16, not `{other}`"),
    }
}
