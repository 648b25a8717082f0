//! The models that SQL functions can name: their settings, loaded once on first use, shared by every query of the process.

use super::{
    dataman,
    encoder::{self, EncoderSpec, TextEncoder},
    lm::Template,
    remote::{DEFAULT_CONCURRENCY, Endpoint, RemoteSpec, endpoint_hash},
    speaker::Speaker,
    structure_preserved::Judge,
};
use crate::{
    engine::{Engine, EngineOptions, Precision, score::Scorer},
    rewards::{fasttext::FastText, repro_reward::RewardConfig},
    storage::hub,
    text::{
        chat::ChatTemplate,
        chunk::Boundary,
        prompt::{MARKER, ORIGINAL, PairPrompt, Prompt},
        tokenizer::{Tokenizer, tokenizer_json},
    },
};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};
use tokio::sync::{OnceCell, Semaphore};

/// Sequences generated at the same time where nothing says otherwise.
const DEFAULT_SLOTS: usize = 32;
/// Requests in flight per slot: enough that a freed slot finds the next request waiting.
const REQUESTS_PER_SLOT: usize = 4;
/// Requests in flight at least.
const MIN_REQUESTS: usize = 256;

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

/// A generating language model in Hugging Face layout. What is not given comes from `repro.json` in the model directory (the settings its makers
/// recommend, same field names), else from the paper.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CausalLmSpec {
    /// Local directory, `hf://org/name[@rev]` or `s3://…`.
    pub path: String,
    /// Template file with a `{TEXT}` mark; else the model directory's `prompt.txt`, else the embedded rephrasing prompt.
    pub prompt: Option<PathBuf>,
    /// 0 is greedy. Paper: 1.0.
    pub temperature: Option<f32>,
    /// Paper: 0.9.
    pub top_p: Option<f32>,
    /// 0 keeps all (default).
    pub top_k: Option<usize>,
    /// Tokens generated per chunk at most. Paper: 2048.
    pub max_new_tokens: Option<usize>,
    /// Tokens of a whole prompt at most; longer chunks lose their middle and are marked truncated. Paper: 4096 (Qwen 8192).
    pub max_prompt_tokens: Option<usize>,
    /// Characters of a chunk. Paper: 7000.
    pub chunk_chars: Option<usize>,
    /// Where cuts may fall. Paper: `char`.
    pub chunk_boundary: Option<Boundary>,
    /// Marker before the rephrased text; empty: the whole answer is the text.
    pub marker: Option<String>,
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

impl ModelSpec {
    /// For messages.
    fn noun(&self) -> &'static str {
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

/// A language model ready to use: engine, tokenizer, template, prompt, settings.
pub struct LanguageModel {
    /// Runs the model.
    pub engine: Engine,
    /// The model's own tokenizer.
    pub tokenizer: Tokenizer,
    /// None for base models.
    pub chat: Option<ChatTemplate>,
    /// The rephrasing prompt.
    pub prompt: Prompt,
    /// Nothing left open.
    pub settings: LmSettings,
    /// Tokens around a document that is to be rephrased.
    pub rephrase: Template,
    /// Tokens around the user's own prompt.
    pub plain: Template,
    /// The prompt about a pair of texts, where the model's entry names one.
    pub pair: Option<PairPrompt>,
    /// Ids that end an answer.
    pub stop: Arc<[u32]>,
    /// As [`Models::hash`].
    pub hash: String,
}

struct Entry {
    spec: ModelSpec,
    language: OnceCell<Arc<LanguageModel>>,
    scorer: OnceCell<Arc<Scorer>>,
    fasttext: OnceCell<Arc<FastText>>,
    encoder: OnceCell<Arc<TextEncoder>>,
    tokenizer: OnceCell<Tokenizer>,
    endpoint: OnceCell<Arc<Endpoint>>,
    dataman: OnceCell<Arc<dataman::Scorer>>,
    judge: OnceCell<Arc<Judge>>,
    hash: OnceCell<String>,
    permits: OnceLock<(Arc<Semaphore>, usize)>,
}

/// The registry. Cheap to share; models load on first use.
pub struct Models {
    entries: BTreeMap<String, Entry>,
    seed: u64,
    rewards: RewardConfig,
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models").field("names", &self.names()).field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Models {
    /// `seed` is the pipeline's; sampling derives from it, the model, the text, the chunk and the sample, never from batch or order.
    pub fn new(specs: BTreeMap<String, ModelSpec>, seed: u64) -> Arc<Self> {
        Self::with_rewards(specs, seed, RewardConfig::default())
    }
    /// As [`Self::new`], with the section `rewards:` of a pipeline.
    pub fn with_rewards(specs: BTreeMap<String, ModelSpec>, seed: u64, rewards: RewardConfig) -> Arc<Self> {
        let entry = |spec| Entry {
            spec,
            language: OnceCell::new(),
            scorer: OnceCell::new(),
            fasttext: OnceCell::new(),
            encoder: OnceCell::new(),
            tokenizer: OnceCell::new(),
            endpoint: OnceCell::new(),
            dataman: OnceCell::new(),
            judge: OnceCell::new(),
            hash: OnceCell::new(),
            permits: OnceLock::new(),
        };
        let entries = specs.into_iter().map(|(name, spec)| (name, entry(spec))).collect();
        Arc::new(Self { entries, seed, rewards })
    }
    /// The settings as given.
    pub fn spec(&self, name: &str) -> Option<&ModelSpec> {
        self.entries.get(name).map(|entry| &entry.spec)
    }
    /// Sorted.
    pub fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }
    /// The pipeline's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }
    /// How rephrasings are rewarded.
    pub fn rewards(&self) -> &RewardConfig {
        &self.rewards
    }
    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).with_context(|| match self.names() {
            names if names.is_empty() => format!("no model `{name}`; none is configured"),
            names => format!("no model `{name}`; there are: {}", names.join(", ")),
        })
    }
    fn causal(&self, name: &str) -> Result<(&Entry, &CausalLmSpec)> {
        let entry = self.entry(name)?;
        match &entry.spec {
            ModelSpec::CausalLm(spec) => Ok((entry, spec)),
            other => {
                bail!("model `{name}` is {}, not a language model in this process (kind: causal_lm)", other.noun())
            }
        }
    }

    /// Errors name the model, and list those that exist when there is none of that name.
    pub async fn language_model(&self, name: &str) -> Result<Arc<LanguageModel>> {
        let (entry, spec) = self.causal(name)?;
        let load = async || load_language_model(spec, self.hash(name).await?).await.map(Arc::new);
        entry.language.get_or_try_init(load).await.cloned().with_context(|| format!("model `{name}`"))
    }
    /// A language model that can be asked, in this process or at an endpoint.
    pub async fn speaker(&self, name: &str) -> Result<Speaker> {
        let entry = self.entry(name)?;
        let ModelSpec::Remote(spec) = &entry.spec else { return Ok(Speaker::Local(self.language_model(name).await?)) };
        let open = async || Endpoint::open(spec).await.map(Arc::new);
        entry
            .endpoint
            .get_or_try_init(open)
            .await
            .cloned()
            .map(Speaker::Remote)
            .with_context(|| format!("model `{name}`"))
    }
    /// A language model made ready to judge structure.
    pub async fn judge(&self, name: &str) -> Result<Arc<Judge>> {
        let speaker = self.speaker(name).await?;
        let entry = self.entry(name)?;
        let make = async || Judge::new(speaker).map(Arc::new);
        entry.judge.get_or_try_init(make).await.cloned().with_context(|| format!("model `{name}`"))
    }
    /// A language model made ready to score texts by the DataMan protocol.
    pub async fn dataman(&self, name: &str) -> Result<Arc<dataman::Scorer>> {
        let speaker = self.speaker(name).await?;
        let entry = self.entry(name)?;
        let make = async || dataman::Scorer::new(speaker).map(Arc::new);
        entry.dataman.get_or_try_init(make).await.cloned().with_context(|| format!("model `{name}`"))
    }
    /// The language model of that name, for scoring texts instead of writing them. Any causal decoder, OpenLM included.
    ///
    /// # Errors
    /// As [`Self::language_model`].
    pub async fn scorer(&self, name: &str) -> Result<Arc<Scorer>> {
        let (entry, spec) = self.causal(name)?;
        let load = async || {
            let dir = hub::resolve(&spec.path).await?;
            let spec = spec.clone();
            let start = move || {
                let (given, _) = recommended(&dir, &spec)?;
                let options = EngineOptions {
                    device: given.device.as_deref().unwrap_or("auto").parse()?,
                    precision: precision(given.precision.as_deref())?,
                    slots: 1,
                    threads: 0,
                };
                Scorer::start(&dir, &options)
            };
            blocking(start).await.map(Arc::new)
        };
        entry.scorer.get_or_try_init(load).await.cloned().with_context(|| format!("model `{name}`"))
    }
    /// The classifier of that name.
    pub async fn fasttext(&self, name: &str) -> Result<Arc<FastText>> {
        let entry = self.entry(name)?;
        let ModelSpec::Fasttext(spec) = &entry.spec else {
            bail!("model `{name}` is {}, not a fastText classifier (kind: fasttext)", entry.spec.noun());
        };
        let load = async || {
            let path = hub::resolve(&spec.path).await?;
            blocking(move || FastText::load(&path)).await.map(Arc::new)
        };
        entry.fasttext.get_or_try_init(load).await.cloned().with_context(|| format!("model `{name}`"))
    }

    /// The encoder of that name.
    ///
    /// # Errors
    /// There is none, it is of another kind, or it cannot be loaded.
    pub async fn encoder(&self, name: &str) -> Result<Arc<TextEncoder>> {
        let (entry, spec) = self.encoding(name)?;
        let load = async || {
            let dir = hub::resolve(&spec.path).await?;
            encoder::load(dir, spec.clone(), self.hash(name).await?).await
        };
        entry.encoder.get_or_try_init(load).await.cloned().with_context(|| format!("model `{name}`"))
    }

    fn encoding(&self, name: &str) -> Result<(&Entry, &EncoderSpec)> {
        let entry = self.entry(name)?;
        match &entry.spec {
            ModelSpec::Encoder(spec) => Ok((entry, spec)),
            other => bail!("model `{name}` is {}, not an encoder (kind: encoder)", other.noun()),
        }
    }

    /// The tokenizer of a language model, without the model; or a tokenizer of its own.
    pub async fn tokenizer(&self, name: &str) -> Result<Tokenizer> {
        let entry = self.entry(name)?;
        let path = match &entry.spec {
            ModelSpec::CausalLm(spec) => &spec.path,
            ModelSpec::Tokenizer(spec) => &spec.path,
            ModelSpec::Remote(spec) => spec.tokenizer.as_ref().with_context(|| {
                format!("model `{name}` is remote and its entry names no tokenizer; add `tokenizer: DIRECTORY`")
            })?,
            other => bail!("model `{name}` is {}, it has no tokenizer", other.noun()),
        };
        let load = async || {
            let dir = hub::resolve_tokenizer(path).await?;
            blocking(move || Tokenizer::from_dir(&dir)).await
        };
        entry.tokenizer.get_or_try_init(load).await.cloned().with_context(|| format!("model `{name}`"))
    }
    /// Hash of the model's files and of the settings that change its output (hex blake3), without loading it into an engine.
    pub async fn hash(&self, name: &str) -> Result<String> {
        let entry = self.entry(name)?;
        let hash = async || match entry.spec.clone() {
            ModelSpec::CausalLm(spec) => {
                let dir = hub::resolve(&spec.path).await?;
                blocking(move || hash_language_model(&dir, &spec)).await
            }
            ModelSpec::Fasttext(spec) => {
                let path = hub::resolve(&spec.path).await?;
                blocking(move || hash_files(&[path], "")).await
            }
            ModelSpec::Remote(spec) => endpoint_hash(&spec),
            ModelSpec::Encoder(spec) => {
                let dir = hub::resolve(&spec.path).await?;
                blocking(move || encoder::hash_encoder(&dir, &spec)).await
            }
            ModelSpec::Tokenizer(spec) => {
                let path = hub::resolve_tokenizer(&spec.path).await?;
                blocking(move || Ok(blake3::hash(&tokenizer_json(&path)?).to_hex().to_string())).await
            }
        };
        entry.hash.get_or_try_init(hash).await.cloned().with_context(|| format!("model `{name}`"))
    }
    /// Output tokens made so far by all engines of this registry (for progress and cost).
    pub fn output_tokens(&self) -> u64 {
        let loaded = self.entries.values().filter_map(|entry| entry.language.get());
        loaded.map(|model| model.engine.stats().output_tokens).sum()
    }

    /// Whether `function` can call the model.
    ///
    /// # Errors
    /// No model of that name, or not a language model.
    pub fn check_language_model(&self, function: &str, name: &str) -> datafusion::error::Result<()> {
        let fault = match self.entry(name).map(|entry| &entry.spec) {
            Ok(ModelSpec::CausalLm(_) | ModelSpec::Remote(_)) => return Ok(()),
            Ok(other) => {
                format!("model `{name}` is {}, not a language model (kind: causal_lm or remote)", other.noun())
            }
            Err(error) => format!("{error:#}"),
        };
        Err(datafusion::error::DataFusionError::Plan(format!("{function}: {fault}")))
    }
    /// Whether `function` can call the model.
    ///
    /// # Errors
    /// No model of that name, or not an encoder.
    pub fn check_encoder(&self, function: &str, name: &str) -> datafusion::error::Result<()> {
        self.encoding(name)
            .map(|_| ())
            .map_err(|e| datafusion::error::DataFusionError::Plan(format!("{function}: {e:#}")))
    }
    /// Bounds the requests of all queries to one model: the permits and how many there are.
    pub fn permits(&self, name: &str) -> Option<(Arc<Semaphore>, usize)> {
        let entry = self.entries.get(name)?;
        let permits = entry.permits.get_or_init(|| {
            let slots = match &entry.spec {
                ModelSpec::CausalLm(spec) => spec.slots.unwrap_or(DEFAULT_SLOTS),
                ModelSpec::Remote(spec) => spec.concurrency.unwrap_or(DEFAULT_CONCURRENCY),
                ModelSpec::Fasttext(_) | ModelSpec::Encoder(_) | ModelSpec::Tokenizer(_) => DEFAULT_SLOTS,
            };
            let count = (slots * REQUESTS_PER_SLOT).max(MIN_REQUESTS);
            (Arc::new(Semaphore::new(count)), count)
        });
        Some(permits.clone())
    }
    /// [`Self::fasttext`] for callers outside async code, such as expression evaluation.
    pub fn fasttext_now(self: &Arc<Self>, name: &str) -> Result<Arc<FastText>> {
        if let Some(model) = self.entry(name)?.fasttext.get() {
            return Ok(Arc::clone(model));
        }
        let (models, name) = (Arc::clone(self), name.to_owned());
        outside_runtime(async move || models.fasttext(&name).await)
    }
    /// [`Self::tokenizer`] for callers outside async code.
    pub fn tokenizer_now(self: &Arc<Self>, name: &str) -> Result<Tokenizer> {
        if let Some(tokenizer) = self.entry(name)?.tokenizer.get() {
            return Ok(tokenizer.clone());
        }
        let (models, name) = (Arc::clone(self), name.to_owned());
        outside_runtime(async move || models.tokenizer(&name).await)
    }
}

/// Runs a future to its end on a thread of its own: the caller may itself be inside an async runtime.
fn outside_runtime<T: Send + 'static>(work: impl AsyncFnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let run = move || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work());
    std::thread::spawn(run).join().unwrap_or_else(|_| bail!("loading the model panicked"))
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the loading thread panicked")?
}

async fn load_language_model(spec: &CausalLmSpec, hash: String) -> Result<LanguageModel> {
    let dir = hub::resolve(&spec.path).await?;
    let spec = spec.clone();
    blocking(move || {
        let (given, prompt) = recommended(&dir, &spec)?;
        let pair = pair_prompt(&spec)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let chat = ChatTemplate::from_dir(&dir)?;
        let rephrase = Template::new(&tokenizer, chat.as_ref(), &prompt)?;
        let empty = Prompt { system: None, before: String::new(), after: String::new() };
        let plain = Template::new(&tokenizer, chat.as_ref(), &empty)?;
        let options = EngineOptions {
            device: given.device.as_deref().unwrap_or("auto").parse()?,
            precision: precision(given.precision.as_deref())?,
            slots: given.slots.unwrap_or(DEFAULT_SLOTS),
            threads: 0,
        };
        let engine = Engine::start(&dir, options)?;
        let config = engine.config();
        let (tokens, vocab) = (tokenizer.vocab_size(), config.vocab_size);
        ensure!(
            tokens <= vocab,
            "{}: the tokenizer has {tokens} tokens but the model's vocabulary is {vocab}; the tokenizer does not fit the model",
            dir.display()
        );
        ensure!(!config.eos.is_empty(), "{}: the model names no end token (eos_token_id)", dir.display());
        let qwen = format!("{:?}", config.arch).starts_with("Qwen");
        let settings = LmSettings::resolve(&given, qwen, engine.limit())?;
        let stop = config.eos.clone().into();
        Ok(LanguageModel { engine, tokenizer, chat, prompt, settings, rephrase, plain, pair, stop, hash })
    })
    .await
}

/// The rephrasing prompt, and the prompt about a pair where the file is one.
type Prompts = (Prompt, Option<PairPrompt>);

/// Reads a prompt file. One with the marks of a pair leaves the embedded rephrasing prompt in place.
pub(super) fn read_prompt(file: &Path) -> Result<Prompts> {
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
fn pair_prompt(spec: &CausalLmSpec) -> Result<Option<PairPrompt>> {
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
    /// Fills what is open with the paper's values (reference/repro.md section 4) and checks the rest. `limit` is what a sequence can hold:
    /// a smaller model than the paper's gets smaller requests.
    fn resolve(spec: &CausalLmSpec, qwen: bool, limit: usize) -> Result<Self> {
        let paper_prompt = if qwen { 8192 } else { 4096 };
        let settings = Self {
            temperature: spec.temperature.unwrap_or(1.0),
            top_p: spec.top_p.unwrap_or(0.9),
            top_k: spec.top_k.unwrap_or(0),
            max_new_tokens: spec.max_new_tokens.unwrap_or(2048).min(limit / 2),
            max_prompt_tokens: spec.max_prompt_tokens.unwrap_or(paper_prompt),
            chunk_chars: spec.chunk_chars.unwrap_or(7000),
            chunk_boundary: spec.chunk_boundary.unwrap_or(Boundary::Char),
            marker: spec.marker.clone().unwrap_or_else(|| MARKER.to_owned()),
            answer: spec.answer.unwrap_or_default(),
            drop_lean: spec.drop_lean.unwrap_or(0.0),
        };
        settings.check()?;
        ensure!(spec.slots != Some(0), "slots must be at least 1");
        let room = limit - settings.max_new_tokens;
        Ok(Self { max_prompt_tokens: settings.max_prompt_tokens.min(room), ..settings })
    }

    /// Refuses numbers that make no sense.
    pub(super) fn check(&self) -> Result<()> {
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
pub(super) fn precision(text: Option<&str>) -> Result<Precision> {
    match text {
        None | Some("auto") => Ok(Precision::Auto),
        Some("f32") => Ok(Precision::F32),
        Some("bf16") => Ok(Precision::Bf16),
        Some(other) => bail!("precision must be auto, f32 or bf16, not `{other}`"),
    }
}

/// Files of a model directory that decide what the model answers.
fn hash_language_model(dir: &Path, spec: &CausalLmSpec) -> Result<String> {
    let pair = pair_prompt(spec)?;
    let (mut spec, prompt) = recommended(dir, spec)?;
    // Where the files are and how many run at once changes no answer.
    (spec.path, spec.prompt, spec.slots, spec.device) = (String::new(), None, None, None);
    let settings = serde_json::to_string(&spec)?;
    let pair = pair.map(|pair| format!("\n{}", pair.hash())).unwrap_or_default();
    hash_files(&model_files(dir)?, &format!("{settings}\n{}{pair}", prompt.hash()))
}

/// Files of a model directory that decide what it computes, sorted.
pub(super) fn model_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for item in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = item?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let counts = name.ends_with(".safetensors")
            || [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "chat_template.jinja",
            ]
            .contains(&name);
        if counts {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Hash of the files' contents and something more (hex blake3).
pub(super) fn hash_files(files: &[PathBuf], extra: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(extra.as_bytes());
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        hasher.update(&file.metadata()?.len().to_le_bytes());
        loop {
            let n = file.read(&mut buffer).with_context(|| path.display().to_string())?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
