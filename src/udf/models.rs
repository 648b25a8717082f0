//! The models that SQL functions can name: their settings, loaded once on first use, shared by every query of the process.

use super::lm::Template;
use crate::{
    engine::{Engine, EngineOptions, Precision, score::Scorer},
    rewards::fasttext::FastText,
    storage::hub,
    text::{
        chat::ChatTemplate,
        chunk::Boundary,
        prompt::{MARKER, Prompt},
        tokenizer::Tokenizer,
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
    /// Sequences generated at the same time.
    pub slots: Option<usize>,
    /// `auto` (default), `cpu` or `cuda:N`.
    pub device: Option<String>,
    /// `auto` (default), `f32` or `bf16`.
    pub precision: Option<String>,
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
    tokenizer: OnceCell<Tokenizer>,
    hash: OnceCell<String>,
    permits: OnceLock<(Arc<Semaphore>, usize)>,
}

/// The registry. Cheap to share; models load on first use.
pub struct Models {
    entries: BTreeMap<String, Entry>,
    seed: u64,
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models").field("names", &self.names()).field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl Models {
    /// `seed` is the pipeline's; sampling derives from it, the model, the text, the chunk and the sample, never from batch or order.
    pub fn new(specs: BTreeMap<String, ModelSpec>, seed: u64) -> Arc<Self> {
        let entry = |spec| Entry {
            spec,
            language: OnceCell::new(),
            scorer: OnceCell::new(),
            fasttext: OnceCell::new(),
            tokenizer: OnceCell::new(),
            hash: OnceCell::new(),
            permits: OnceLock::new(),
        };
        Arc::new(Self { entries: specs.into_iter().map(|(name, spec)| (name, entry(spec))).collect(), seed })
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
            ModelSpec::Fasttext(_) => {
                bail!("model `{name}` is a fastText classifier, not a language model (kind: causal_lm)")
            }
        }
    }

    /// Errors name the model, and list those that exist when there is none of that name.
    pub async fn language_model(&self, name: &str) -> Result<Arc<LanguageModel>> {
        let (entry, spec) = self.causal(name)?;
        let load = async || load_language_model(spec, self.hash(name).await?).await.map(Arc::new);
        entry.language.get_or_try_init(load).await.cloned().with_context(|| format!("model `{name}`"))
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
                let (given, _) = with_recommended(&dir, &spec)?;
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
            bail!("model `{name}` is a language model, not a fastText classifier (kind: fasttext)");
        };
        let load = async || {
            let path = hub::resolve(&spec.path).await?;
            blocking(move || FastText::load(&path)).await.map(Arc::new)
        };
        entry.fasttext.get_or_try_init(load).await.cloned().with_context(|| format!("model `{name}`"))
    }
    /// The tokenizer of a language model, without the model.
    pub async fn tokenizer(&self, name: &str) -> Result<Tokenizer> {
        let (entry, spec) = self.causal(name)?;
        let load = async || {
            let dir = hub::resolve_tokenizer(&spec.path).await?;
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
        self.causal(name)
            .map(|_| ())
            .map_err(|e| datafusion::error::DataFusionError::Plan(format!("{function}: {e:#}")))
    }
    /// Bounds the requests of all queries to one model: the permits and how many there are.
    pub fn permits(&self, name: &str) -> Option<(Arc<Semaphore>, usize)> {
        let entry = self.entries.get(name)?;
        let permits = entry.permits.get_or_init(|| {
            let slots = match &entry.spec {
                ModelSpec::CausalLm(spec) => spec.slots.unwrap_or(DEFAULT_SLOTS),
                ModelSpec::Fasttext(_) => DEFAULT_SLOTS,
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the loading thread panicked")?
}

async fn load_language_model(spec: &CausalLmSpec, hash: String) -> Result<LanguageModel> {
    let dir = hub::resolve(&spec.path).await?;
    let spec = spec.clone();
    blocking(move || {
        let (given, prompt) = with_recommended(&dir, &spec)?;
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
        Ok(LanguageModel { engine, tokenizer, chat, prompt, settings, rephrase, plain, stop, hash })
    })
    .await
}

/// The settings, with those that the model's makers recommend in `repro.json` where none are given; and the prompt.
fn with_recommended(dir: &Path, spec: &CausalLmSpec) -> Result<(CausalLmSpec, Prompt)> {
    let path = dir.join("repro.json");
    let recommended = if path.exists() {
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
    let file = spec.prompt.clone().or_else(|| recommended.prompt.as_deref().map(beside)).or_else(|| {
        let own = dir.join("prompt.txt");
        own.exists().then_some(own)
    });
    let prompt = match file {
        Some(file) => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("prompt {}", file.display()))?;
            Prompt::parse(&text).with_context(|| format!("prompt {}", file.display()))?
        }
        None => Prompt::rephrase(),
    };
    let own = spec.clone();
    let merged = CausalLmSpec {
        path: own.path,
        prompt: own.prompt,
        temperature: own.temperature.or(recommended.temperature),
        top_p: own.top_p.or(recommended.top_p),
        top_k: own.top_k.or(recommended.top_k),
        max_new_tokens: own.max_new_tokens.or(recommended.max_new_tokens),
        max_prompt_tokens: own.max_prompt_tokens.or(recommended.max_prompt_tokens),
        chunk_chars: own.chunk_chars.or(recommended.chunk_chars),
        chunk_boundary: own.chunk_boundary.or(recommended.chunk_boundary),
        marker: own.marker.or(recommended.marker),
        slots: own.slots.or(recommended.slots),
        device: own.device.or(recommended.device),
        precision: own.precision.or(recommended.precision),
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
        };
        ensure!(
            settings.temperature >= 0.0 && settings.temperature.is_finite(),
            "temperature must be 0 or more, not {}",
            settings.temperature
        );
        ensure!(settings.top_p > 0.0 && settings.top_p <= 1.0, "top_p must be in (0, 1], not {}", settings.top_p);
        ensure!(settings.max_new_tokens > 0, "max_new_tokens must be at least 1");
        ensure!(settings.chunk_chars > 0, "chunk_chars must be at least 1");
        ensure!(spec.slots != Some(0), "slots must be at least 1");
        let room = limit - settings.max_new_tokens;
        Ok(Self { max_prompt_tokens: settings.max_prompt_tokens.min(room), ..settings })
    }
}

fn precision(text: Option<&str>) -> Result<Precision> {
    match text {
        None | Some("auto") => Ok(Precision::Auto),
        Some("f32") => Ok(Precision::F32),
        Some("bf16") => Ok(Precision::Bf16),
        Some(other) => bail!("precision must be auto, f32 or bf16, not `{other}`"),
    }
}

/// Files of a model directory that decide what the model answers.
fn hash_language_model(dir: &Path, spec: &CausalLmSpec) -> Result<String> {
    let (mut spec, prompt) = with_recommended(dir, spec)?;
    // Where the files are and how many run at once changes no answer.
    (spec.path, spec.prompt, spec.slots, spec.device) = (String::new(), None, None, None);
    let settings = serde_json::to_string(&spec)?;
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
    hash_files(&files, &format!("{settings}\n{}", prompt.hash()))
}

fn hash_files(files: &[PathBuf], extra: &str) -> Result<String> {
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
