//! What the functions that generate text share: the tokens around a text, the seed of a request, one document through the model.
//!
//! Departure from design.md 2.4: a request's seed comes from the text itself (with pipeline seed, function, model, chunk, sample) rather
//! than from the row's id. So a document gets the same answer whatever table, shard, batch or row it stands in, equal documents need one
//! call, and an id that changes (a file was split) does not change the text.
//!
//! Departures from the reference (reference/repro.md section 4): a chunk without the marker fails its document instead of vanishing;
//! a chunk may be answered with nothing (it was all clutter) but not the whole document; `---` is stripped from every chunk; a document of
//! white space fails with a reason instead of losing its row.

use super::models::{AnswerForm, LanguageModel, LmSettings};
use crate::{
    engine::{Completion, Engine, FinishReason, FormatStep, Request, RequestError, Sampling},
    text::{
        chat::ChatTemplate,
        chunk::{chunk, join},
        extract::extract,
        prompt::Prompt,
        request::Frame,
        tokenizer::Tokenizer,
    },
};
use anyhow::Result;
use futures::future::join_all;
use std::sync::Arc;

/// Makes requests of one form: the tokens around a text, and those that all such requests begin with.
pub struct Template {
    frame: Frame,
    prefix: Arc<[u32]>,
}

impl Template {
    /// Renders the prompt and finds the shared beginning.
    ///
    /// # Errors
    /// A chat template that cannot hold the prompt.
    pub fn new(tokenizer: &Tokenizer, chat: Option<&ChatTemplate>, prompt: &Prompt) -> Result<Self> {
        let frame = Frame::new(tokenizer, chat, prompt)?;
        // Where the text begins, a token may reach over the seam: what texts of different kinds have in common is safe to share.
        let mut prefix = frame.request("x", usize::MAX)?.tokens;
        for text in ["\n", " 1", "<|", "\u{65e5}"] {
            let other = frame.request(text, usize::MAX)?.tokens;
            let same = prefix.iter().zip(&other).take_while(|(a, b)| a == b).count();
            prefix.truncate(same);
        }
        // The engine needs at least one token after the prefix.
        Ok(Self { frame, prefix: prefix.into() })
    }

    /// The shared beginning and the rest; whether the text lost its middle.
    pub(super) fn request(&self, text: &str, max_tokens: usize) -> Result<(Arc<[u32]>, Vec<u32>, bool)> {
        let request = self.frame.request(text, max_tokens)?;
        let tokens = request.tokens;
        if tokens.starts_with(&self.prefix) && tokens.len() > self.prefix.len() {
            return Ok((Arc::clone(&self.prefix), tokens[self.prefix.len()..].to_vec(), request.truncated));
        }
        Ok((Arc::default(), tokens, request.truncated))
    }
}

/// Something that completes requests: the engine, or a stand-in for tests.
#[async_trait::async_trait]
pub trait Complete: Send + Sync {
    /// As [`Engine::generate`].
    async fn complete(&self, request: Request) -> Result<Completion, RequestError>;
}

#[async_trait::async_trait]
impl Complete for Engine {
    async fn complete(&self, request: Request) -> Result<Completion, RequestError> {
        self.generate(request).await
    }
}

/// Seed of one request; see the top of the file.
pub fn request_seed(pipeline: u64, function: &str, model: &str, text: &str, chunk: usize, sample: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&pipeline.to_le_bytes());
    for part in [function, model, text] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.update(&(chunk as u64).to_le_bytes());
    hasher.update(&(sample as u64).to_le_bytes());
    let mut seed = [0; 8];
    seed.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(seed)
}

/// A model's answer to one prompt.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Decoded, without the end token.
    pub text: String,
    /// Whether it ended by itself.
    pub finish: FinishReason,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// The prompt lost its middle.
    pub truncated: bool,
    /// As [`Completion::chances`]; an endpoint tells none.
    pub chances: Vec<Box<[f32]>>,
}

/// How an answer is to be drawn.
#[derive(Debug, Clone)]
pub struct Draw {
    /// Temperature, nucleus, top-k.
    pub sampling: Sampling,
    /// Tokens of the answer at most.
    pub max_new_tokens: usize,
    /// Seed of the answer's own random stream.
    pub seed: u64,
    /// The answer's form, where it is known; an endpoint cannot be held to it.
    pub format: Option<Arc<[FormatStep]>>,
}

impl Draw {
    /// As a model's settings say.
    pub fn settings(settings: &LmSettings, seed: u64) -> Self {
        let sampling = Sampling { temperature: settings.temperature, top_p: settings.top_p, top_k: settings.top_k };
        Self { sampling, max_new_tokens: settings.max_new_tokens, seed, format: None }
    }
    /// The likeliest answer.
    pub fn greedy(max_new_tokens: usize, format: Option<Arc<[FormatStep]>>) -> Self {
        Self { sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: 0 }, max_new_tokens, seed: 1024, format }
    }
}

/// Sends one text through a template, drawn as the model's settings say. A text that is too long keeps its beginning and end.
///
/// # Errors
/// Why the request failed, for the row.
pub async fn ask(
    lm: &LanguageModel,
    engine: &dyn Complete,
    template: &Template,
    text: &str,
    seed: u64,
) -> Result<Answer, String> {
    put(lm, engine, template, text, Draw::settings(&lm.settings, seed)).await
}

/// As [`ask`], drawn as `draw` says.
///
/// # Errors
/// Why the request failed, for the row.
pub async fn put(
    lm: &LanguageModel,
    engine: &dyn Complete,
    template: &Template,
    text: &str,
    draw: Draw,
) -> Result<Answer, String> {
    let (prefix, prompt, truncated) =
        template.request(text, lm.settings.max_prompt_tokens).map_err(|e| format!("{e:#}"))?;
    let prompt_tokens = prefix.len() + prompt.len();
    let request = Request {
        prefix,
        prompt,
        max_new_tokens: draw.max_new_tokens,
        sampling: draw.sampling,
        stop: Arc::clone(&lm.stop),
        seed: draw.seed,
        format: draw.format,
    };
    let done = engine.complete(request).await.map_err(|e| e.to_string())?;
    let output_tokens = done.tokens.len();
    let text = lm.tokenizer.decode(&done.tokens).map_err(|e| format!("{e:#}"))?;
    Ok(Answer { text, finish: done.finish, prompt_tokens, output_tokens, truncated, chances: done.chances })
}

/// Whoever rephrases: a model in this process, an endpoint, or a stand-in for tests.
#[async_trait::async_trait]
pub trait Rephraser: Send + Sync {
    /// Chunk size and marker; the rest is the rephraser's own business.
    fn settings(&self) -> &LmSettings;
    /// The answer to the rephrasing prompt with `text` in it.
    async fn answer(&self, text: &str, seed: u64) -> Result<Answer, String>;
}

/// A rephrased document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rephrased {
    /// The answers of all chunks, joined.
    pub text: String,
    /// Pieces that the document was cut into.
    pub chunks: usize,
    /// Over all chunks, templates included.
    pub prompt_tokens: usize,
    /// Over all chunks.
    pub output_tokens: usize,
    /// `Length` where any chunk hit the limit.
    pub finish: FinishReason,
    /// Whether a chunk lost its middle because its prompt was too long.
    pub truncated: bool,
}

/// Cuts, asks for all chunks at once, extracts, joins.
///
/// # Errors
/// Which chunk failed and why; a document without text; a document of which nothing is left.
pub async fn rephrase(model: &dyn Rephraser, text: &str, seed: impl Fn(usize) -> u64) -> Result<Rephrased, String> {
    if text.trim().is_empty() {
        return Err("the text is empty".into());
    }
    let settings = model.settings();
    let chunks = chunk(text, settings.chunk_chars, settings.chunk_boundary);
    let count = chunks.len();
    let answers = chunks.iter().enumerate().map(|(i, piece)| {
        let seed = seed(i);
        async move {
            if piece.text.trim().is_empty() {
                return Ok(None);
            }
            let answer = model.answer(piece.text, seed).await?;
            match settings.answer {
                AnswerForm::Text => extracted(answer, &settings.marker).map(Some),
                AnswerForm::Edits => Ok(Some(answer)),
            }
        }
    });
    let mut whole = Rephrased {
        text: String::new(),
        chunks: count,
        prompt_tokens: 0,
        output_tokens: 0,
        finish: FinishReason::Stop,
        truncated: false,
    };
    let mut texts = Vec::with_capacity(count);
    for (i, answer) in join_all(answers).await.into_iter().enumerate() {
        let answer = answer.map_err(|e| if count > 1 { format!("chunk {} of {count}: {e}", i + 1) } else { e })?;
        let Some(answer) = answer else {
            texts.push(String::new());
            continue;
        };
        whole.prompt_tokens += answer.prompt_tokens;
        whole.output_tokens += answer.output_tokens;
        whole.truncated |= answer.truncated;
        if answer.finish == FinishReason::Length {
            whole.finish = FinishReason::Length;
        }
        texts.push(answer.text);
    }
    whole.text = join(texts.iter().map(String::as_str).zip(chunks.iter().map(|piece| piece.separator)));
    if whole.text.trim().is_empty() {
        return Err("nothing is left of the text: the model answered with no words".into());
    }
    Ok(whole)
}

fn extracted(mut answer: Answer, marker: &str) -> Result<Answer, String> {
    let start: String = answer.text.chars().take(60).collect();
    let Some(text) = extract(&answer.text, marker) else {
        return Err(format!("the answer lacks the marker {marker:?}; it begins {start:?}"));
    };
    if text.is_empty() && answer.finish == FinishReason::Length {
        return Err(format!("the answer ran to {} tokens without any text", answer.output_tokens));
    }
    answer.text = text.to_owned();
    Ok(answer)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{
        engine::{EngineOptions, Precision},
        text::{chunk::Boundary, tokenizer::Special},
    };
    use std::sync::Mutex;

    /// Answers by a function of the document; keeps the requests.
    struct Scripted<'a> {
        lm: &'a LanguageModel,
        answer: fn(&str) -> (&'static str, FinishReason),
        requests: Mutex<Vec<Request>>,
    }

    #[async_trait::async_trait]
    impl Complete for Scripted<'_> {
        async fn complete(&self, request: Request) -> Result<Completion, RequestError> {
            let whole = [&request.prefix[..], &request.prompt[..]].concat();
            let text = self.lm.tokenizer.decode(&whole).unwrap();
            let document = text.strip_prefix("rewrite: ").unwrap().strip_suffix(" = ").unwrap();
            let (answer, finish) = (self.answer)(document);
            self.requests.lock().unwrap().push(request);
            Ok(Completion {
                tokens: self.lm.tokenizer.encode(answer, Special::Recognise).unwrap(),
                finish,
                chances: Vec::new(),
            })
        }
    }

    #[async_trait::async_trait]
    impl Rephraser for Scripted<'_> {
        fn settings(&self) -> &LmSettings {
            &self.lm.settings
        }
        async fn answer(&self, text: &str, seed: u64) -> Result<Answer, String> {
            ask(self.lm, self, &self.lm.rephrase, text, seed).await
        }
    }

    fn lm() -> LanguageModel {
        let golden_dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let path = golden_dir.join("tokenizers.json");
        let golden: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let file = &golden.iter().find(|t| t["name"] == "bytelevel").unwrap()["file"];
        let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
        let options = EngineOptions { device: "cpu".parse().unwrap(), precision: Precision::F32, slots: 2, threads: 1 };
        let prompt = Prompt::parse("rewrite: {TEXT} = ").unwrap();
        let prompt = Prompt { after: " = ".into(), ..prompt };
        let plain = Prompt { system: None, before: String::new(), after: String::new() };
        LanguageModel {
            engine: Engine::start(&golden_dir.join("decoders/qwen3"), options).unwrap(),
            rephrase: Template::new(&tokenizer, None, &prompt).unwrap(),
            plain: Template::new(&tokenizer, None, &plain).unwrap(),
            tokenizer,
            chat: None,
            prompt,
            settings: LmSettings {
                temperature: 1.0,
                top_p: 0.9,
                top_k: 0,
                max_new_tokens: 20,
                max_prompt_tokens: 100,
                chunk_chars: 10,
                chunk_boundary: Boundary::Char,
                marker: "M:".into(),
                answer: AnswerForm::Text,
                drop_lean: 0.0,
            },
            stop: Arc::from([330]),
            pair: None,
            hash: "h".into(),
        }
    }

    async fn run(
        lm: &LanguageModel,
        text: &str,
        answer: fn(&str) -> (&'static str, FinishReason),
    ) -> (Result<Rephrased, String>, Vec<Request>) {
        let engine = Scripted { lm, answer, requests: Mutex::default() };
        let seed = |chunk| request_seed(1, "rephrase", "m", text, chunk, 0);
        let result = rephrase(&engine, text, seed).await;
        (result, engine.requests.into_inner().unwrap())
    }

    #[tokio::test]
    async fn chunks_are_answered_together_and_joined_by_a_space() {
        let lm = lm();
        let (result, requests) = run(&lm, "0123456789abcdefghijXYZ", |chunk| match chunk {
            "0123456789" => ("M: one", FinishReason::Stop),
            "abcdefghij" => ("M:two\n---\n", FinishReason::Length),
            "XYZ" => ("so. M: three ", FinishReason::Stop),
            other => panic!("{other:?}"),
        })
        .await;
        let result = result.unwrap();
        assert_eq!((result.text.as_str(), result.chunks), ("one two three", 3));
        assert_eq!((result.finish, result.truncated), (FinishReason::Length, false));
        let prompt_tokens: usize = requests.iter().map(|r| r.prefix.len() + r.prompt.len()).sum();
        assert_eq!(result.prompt_tokens, prompt_tokens);
        assert!(
            requests.iter().all(|r| !r.prefix.is_empty() && r.prefix == requests[0].prefix && !r.prompt.is_empty())
        );
        let mut seeds: Vec<u64> = requests.iter().map(|r| r.seed).collect();
        seeds.dedup();
        assert_eq!(seeds.len(), 3, "each chunk draws on its own");
    }

    #[tokio::test]
    async fn a_chunk_of_clutter_may_vanish_but_not_a_document() {
        let lm = lm();
        let (result, _) = run(&lm, "0123456789abcdefghijXYZ", |chunk| {
            (if chunk == "abcdefghij" { "M:" } else { "M: x" }, FinishReason::Stop)
        })
        .await;
        assert_eq!(result.unwrap().text, "x x");
        let (result, _) = run(&lm, "0123456789abc", |_| ("M: \n", FinishReason::Stop)).await;
        assert!(result.unwrap_err().contains("nothing is left"));
        let (result, _) = run(&lm, "short", |_| ("M:", FinishReason::Length)).await;
        assert!(result.unwrap_err().contains("without any text"));
    }

    #[tokio::test]
    async fn a_failed_chunk_fails_its_document_by_name() {
        let lm = lm();
        let (result, _) =
            run(&lm, "0123456789abc", |chunk| (if chunk == "abc" { "sorry" } else { "M: x" }, FinishReason::Stop))
                .await;
        let error = result.unwrap_err();
        assert!(error.starts_with("chunk 2 of 2") && error.contains("\"M:\"") && error.contains("sorry"), "{error}");
        let (result, requests) = run(&lm, " \n\t ", |_| ("M: x", FinishReason::Stop)).await;
        assert_eq!(result.unwrap_err(), "the text is empty");
        assert!(requests.is_empty());
    }

    #[tokio::test]
    async fn a_chunk_of_white_space_needs_no_call() {
        let lm = lm();
        let (result, requests) = run(&lm, "0123456789          XYZ", |_| ("M: x", FinishReason::Stop)).await;
        assert_eq!(result.unwrap().text, "x x");
        assert_eq!(requests.len(), 2);
    }

    #[tokio::test]
    async fn a_chunk_beyond_the_budget_loses_its_middle_and_says_so() {
        let mut lm = lm();
        lm.settings.chunk_chars = 1000;
        let text = format!("FIRST{}LAST", "x".repeat(500));
        let (result, requests) = run(&lm, &text, |chunk| {
            assert!(chunk.starts_with("FIRST") && chunk.contains("... ") && chunk.ends_with("LAST"), "{chunk}");
            ("M: x", FinishReason::Stop)
        })
        .await;
        assert!(result.unwrap().truncated);
        assert!(requests[0].prefix.len() + requests[0].prompt.len() <= 100);
    }

    #[tokio::test]
    async fn the_real_engine_answers_the_same_every_time() {
        let lm = lm();
        let mut answers = Vec::new();
        for seed in [5, 5, 6] {
            answers.push(ask(&lm, &lm.engine, &lm.plain, "abc", seed).await.unwrap().text);
        }
        assert_eq!(answers[0], answers[1]);
        assert_ne!(answers[0], answers[2]);
    }

    #[test]
    fn seeds_depend_on_everything_that_is_named() {
        let one = request_seed(1, "f", "m", "t", 0, 0);
        let others = [
            request_seed(2, "f", "m", "t", 0, 0),
            request_seed(1, "g", "m", "t", 0, 0),
            request_seed(1, "f", "n", "t", 0, 0),
            request_seed(1, "f", "m", "u", 0, 0),
            request_seed(1, "f", "m", "t", 1, 0),
            request_seed(1, "f", "m", "t", 0, 1),
            request_seed(1, "fm", "", "t", 0, 0),
        ];
        assert!(others.iter().all(|other| *other != one));
        assert_eq!(one, request_seed(1, "f", "m", "t", 0, 0));
    }
}
