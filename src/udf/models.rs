//! The models that SQL functions can name: their settings, loaded once on first use, shared by every query of the process.

use super::{
    dataman,
    encoder::{self, EncoderSpec, TextEncoder},
    lm::Template,
    remote::{DEFAULT_CONCURRENCY, Endpoint, endpoint_hash},
    speaker::Speaker,
    structure_preserved::Judge,
};
use crate::{
    engine::{Engine, EngineOptions, score::Scorer},
    rewards::{fasttext::FastText, repro_reward::RewardConfig},
    storage::hub,
    text::{
        chat::ChatTemplate,
        prompt::{PairPrompt, Prompt},
        tokenizer::{Tokenizer, tokenizer_json},
    },
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, OnceLock},
};
use tokio::sync::{OnceCell, Semaphore};

mod files;
mod spec;

pub(super) use files::{hash_files, model_files};
use spec::pair_prompt;
pub use spec::{AnswerForm, CausalLmSpec, FastTextSpec, LmSettings, ModelSpec, TokenizerSpec, recommended};
pub(super) use spec::{asked, precision, read_prompt};

/// Sequences generated at the same time where nothing says otherwise.
const DEFAULT_SLOTS: usize = 32;
/// Requests in flight per slot: enough that a freed slot finds the next request waiting.
const REQUESTS_PER_SLOT: usize = 4;
/// As many texts as a GPU's encoder sorts by length and computes together; waiting ones cost their text only.
const ENCODER_SLOTS: usize = 256;
/// Requests in flight at least.
const MIN_REQUESTS: usize = 256;

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
                ModelSpec::Encoder(_) => ENCODER_SLOTS,
                ModelSpec::Fasttext(_) | ModelSpec::Tokenizer(_) => DEFAULT_SLOTS,
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
