//! From the settings of an `sft` stage to a plan with nothing left open: checks, model, tokenizer, frame, token pairs.

use super::{Architecture, Config, Init, NewModel};
use crate::{
    models::config::{Arch, DecoderConfig, RopeScaling},
    pipeline::stage::{StageContext, artifact},
    storage::manifest::Rows,
    text::{
        chat::ChatTemplate,
        edits,
        prompt::Prompt,
        request,
        tokenizer::{Special, Tokenizer},
    },
    train::{
        batch::{GIVEN, Grouping, Pair},
        copy_task::Frame,
        optim::AdamWOptions,
        schedule::Schedule,
        setup::{Compute, Source},
        sft::{Budget, CopyPhase, PairPhase, Plan},
    },
    udf::models::CausalLmSpec,
};
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};

/// A stage's settings, resolved.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) rows: Rows,
    pub(super) tokenizer_dir: PathBuf,
    /// Text of `prompt.txt`, where the settings name one.
    pub(super) prompt: Option<String>,
    pub(super) compute: Compute,
    pub(super) source: Source,
}

/// What can be wrong with the settings alone.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    ensure!(
        config.pairs.is_some() || config.copy_warmup.is_some(),
        "there is nothing to train on: name a table in `pairs`, or give `copy_warmup`"
    );
    let bounded = config.steps.is_some() || config.tokens.is_some() || config.minutes.is_some();
    ensure!(config.pairs.is_none() || bounded, "give `steps`, `tokens` or `minutes`: how long to train on the pairs");
    ensure!(
        config.learning_rate.is_finite() && config.learning_rate > 0.0,
        "learning_rate {} is not above 0",
        config.learning_rate
    );
    ensure!((0.0..=1.0).contains(&config.final_learning_rate), "final_learning_rate is a part of the highest: 0 to 1");
    for (name, value) in [
        ("batch_tokens", config.batch_tokens),
        ("micro_batch_tokens", config.micro_batch_tokens),
        ("length_window", config.length_window),
    ] {
        ensure!(value > 0, "{name} is 0");
    }
    ensure!(config.max_length >= 2, "max_length {} leaves no room for a prompt and an answer", config.max_length);
    for (name, beta) in [("beta1", config.beta1), ("beta2", config.beta2)] {
        ensure!((0.0..1.0).contains(&beta), "{name} {beta} is not in 0..1");
    }
    if let Some(copy) = &config.copy_warmup {
        ensure!(copy.start_length > 0, "copy_warmup: start_length is 0");
        ensure!(copy.longest >= copy.start_length, "copy_warmup: longest is below start_length");
    }
    recommended(config)
}

/// `repro.json` must be readable as the settings of a model.
fn recommended(config: &Config) -> anyhow::Result<()> {
    let mut settings = serde_json::Map::from_iter(config.settings.clone());
    ensure!(!settings.contains_key("path"), "settings: a model does not recommend a path");
    settings.insert("path".to_owned(), "".into());
    serde_json::from_value::<CausalLmSpec>(settings.into()).map(drop).context("settings")
}

/// Resolves everything that the training needs.
pub(super) async fn prepare(config: &Config, cx: &StageContext) -> anyhow::Result<Prepared> {
    let compute = Compute::resolve(&config.device, config.precision)?;
    let (tokenizer_dir, source) = source(config, cx).await?;
    let tokenizer = Tokenizer::from_dir(&tokenizer_dir)?;
    let model = match &source {
        Source::Directory(dir) => DecoderConfig::from_dir(dir)?,
        Source::Random(model, _) => model.clone(),
    };
    ensure!(
        tokenizer.vocab_size() <= model.vocab_size,
        "the tokenizer has {} tokens, the model {}; they do not belong together",
        tokenizer.vocab_size(),
        model.vocab_size
    );
    ensure!(
        config.max_length <= model.max_positions,
        "max_length {} is more than the model's {} positions",
        config.max_length,
        model.max_positions
    );
    let prompt = config.prompt.as_deref().map(read_prompt).transpose()?;
    let encoder =
        Encoder::new(tokenizer, &tokenizer_dir, &model, prompt.as_deref(), (config.max_length, config.given))?;
    let (pairs, rows) = match &config.pairs {
        Some(table) => encoder.table(cx, table).await?,
        None => (Vec::new(), Rows::default()),
    };
    let (held_out, _) = match &config.held_out {
        Some(table) => encoder.table(cx, table).await?,
        None => (Vec::new(), Rows::default()),
    };
    let plan = plan(config, cx.seed, &encoder, pairs, held_out)?;
    Ok(Prepared { plan, rows, tokenizer_dir, prompt, compute, source })
}

fn read_prompt(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the prompt {}", path.display()))?;
    Prompt::parse(&text).with_context(|| path.display().to_string())?;
    Ok(text)
}

async fn source(config: &Config, cx: &StageContext) -> anyhow::Result<(PathBuf, Source)> {
    match &config.init {
        Init::Existing(name) => {
            let dir = artifact::model_directory(cx, name).await?;
            Ok((dir.clone(), Source::Directory(dir)))
        }
        Init::New(new) => {
            let dir = artifact::tokenizer_directory(cx, &new.tokenizer).await?;
            let model = new_model(new, &dir)?;
            Ok((dir, Source::Random(model, new.init_std)))
        }
    }
}

fn new_model(new: &NewModel, tokenizer_dir: &Path) -> anyhow::Result<DecoderConfig> {
    let tokenizer = Tokenizer::from_dir(tokenizer_dir)?;
    let end = end_token(&tokenizer, tokenizer_dir)?;
    let config = DecoderConfig {
        arch: match new.architecture {
            Architecture::Qwen3 => Arch::Qwen3,
            Architecture::Qwen2 => Arch::Qwen2,
            Architecture::Llama => Arch::Llama,
        },
        vocab_size: tokenizer.vocab_size(),
        hidden: new.hidden,
        layers: new.layers,
        heads: new.heads,
        kv_heads: new.kv_heads,
        head_dim: new.head_dim,
        ffn: new.ffn,
        rms_eps: 1e-6,
        rope_theta: new.rope_theta,
        rope_scaling: RopeScaling::None,
        max_positions: new.max_positions,
        tied_embeddings: new.tied_embeddings,
        eos: vec![end],
    };
    config.validate().context("init")?;
    Ok(config)
}

/// The `eos_token` of tokenizer_config.json.
fn end_token(tokenizer: &Tokenizer, dir: &Path) -> anyhow::Result<u32> {
    let path = dir.join("tokenizer_config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let json: serde_json::Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let token = json["eos_token"].as_str().or_else(|| json["eos_token"]["content"].as_str());
    let token = token.with_context(|| format!("{}: no eos_token; an answer needs an end", path.display()))?;
    tokenizer.id(token).with_context(|| format!("the eos_token `{token}` is not in the vocabulary"))
}

pub(super) fn adamw(config: &Config) -> AdamWOptions {
    AdamWOptions { beta1: config.beta1, beta2: config.beta2, eps: 1e-8, weight_decay: config.weight_decay }
}

fn plan(config: &Config, seed: u64, encoder: &Encoder, pairs: Vec<Pair>, held_out: Vec<Pair>) -> anyhow::Result<Plan> {
    let copy = match &config.copy_warmup {
        Some(copy) => Some(CopyPhase {
            start_length: copy.start_length,
            longest: copy.longest,
            threshold: copy.threshold,
            schedule: Schedule::constant(copy.learning_rate, config.warmup_steps),
            max_steps: copy.max_steps,
            ordinary: encoder.ordinary()?,
            frame: encoder.frame()?,
        }),
        None => None,
    };
    let pairs = match &config.pairs {
        Some(table) => {
            ensure!(!pairs.is_empty(), "the table `{table}` holds no pair of up to {} tokens", config.max_length);
            Some(PairPhase {
                pairs,
                held_out,
                schedule: Schedule {
                    peak: config.learning_rate,
                    floor: config.learning_rate * config.final_learning_rate,
                    warmup_steps: config.warmup_steps,
                },
                budget: Budget {
                    steps: config.steps,
                    tokens: config.tokens,
                    seconds: config.minutes.map(|minutes| minutes * 60.0),
                },
            })
        }
        None => None,
    };
    Ok(Plan {
        copy,
        pairs,
        batch_tokens: config.batch_tokens,
        grouping: Grouping { micro_tokens: config.micro_batch_tokens, window: config.length_window },
        seed,
        log_every: config.log_every,
        checkpoint_every: config.checkpoint_every,
        evaluate_every: config.evaluate_every,
    })
}

/// Texts to token pairs, in the chat template's frame. Control tokens come from the frame only, never from a document.
struct Encoder {
    tokenizer: Tokenizer,
    request: request::Frame,
    end: u32,
    max_length: usize,
    /// Whether completions mark what is given in them.
    given: bool,
}

impl Encoder {
    fn new(
        tokenizer: Tokenizer,
        dir: &Path,
        model: &DecoderConfig,
        prompt: Option<&str>,
        (max_length, given): (usize, bool),
    ) -> anyhow::Result<Self> {
        let prompt = match prompt {
            Some(source) => Prompt::parse(source)?,
            None => Prompt { system: None, before: String::new(), after: String::new() },
        };
        let Some(&end) = model.eos.first() else { bail!("the model's config.json names no eos_token_id") };
        let request = request::Frame::new(&tokenizer, ChatTemplate::from_dir(dir)?.as_ref(), &prompt)?;
        Ok(Self { tokenizer, request, end, max_length, given })
    }

    /// Reads a table of pairs. Rows with a NULL, and those longer than the limit, are dropped and counted.
    async fn table(&self, cx: &StageContext, table: &str) -> anyhow::Result<(Vec<Pair>, Rows)> {
        let mut pairs = Vec::new();
        let input = artifact::read_columns(cx, table, &["prompt", "completion"], |row| {
            if let [Some(prompt), Some(completion)] = row {
                let pair = self.pair(prompt, completion)?;
                if pair.prompt.len() + pair.answer.len() <= self.max_length {
                    pairs.push(pair);
                }
            }
            Ok(())
        })
        .await
        .with_context(|| format!("table `{table}`"))?;
        let kept = pairs.len() as u64;
        Ok((pairs, Rows { input, kept, dropped: input - kept, ..Rows::default() }))
    }

    fn pair(&self, prompt: &str, completion: &str) -> anyhow::Result<Pair> {
        let tokens = self.request.request(prompt, usize::MAX)?.tokens;
        let mut answer =
            if self.given { self.spans(completion)? } else { self.tokenizer.encode(completion, Special::Plain)? };
        answer.push(self.end);
        Ok(Pair { prompt: tokens, answer })
    }

    /// A completion with marked spans: each span is tokenised on its own, as it will be when the model is used.
    fn spans(&self, completion: &str) -> anyhow::Result<Vec<u32>> {
        let [open, close] = edits::GIVEN;
        let mut ids = Vec::new();
        for (i, part) in completion.split(open).enumerate() {
            let (given, learnt) = match part.split_once(close) {
                Some(parts) => parts,
                None if i == 0 => ("", part),
                None => bail!("a completion opens a given span (U+E0F0) and does not close it (U+E0F1)"),
            };
            ids.extend(self.tokenizer.encode(given, Special::Plain)?.into_iter().map(|id| id | GIVEN));
            ids.extend(self.tokenizer.encode(learnt, Special::Plain)?);
        }
        Ok(ids)
    }

    fn frame(&self) -> anyhow::Result<Frame> {
        let (before, after) = self.request.ends();
        Ok(Frame { before: before.to_vec(), after: after.to_vec(), end: self.end })
    }

    /// Ids that decode to some text: not the control tokens.
    fn ordinary(&self) -> anyhow::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for id in 0..self.tokenizer.vocab_size() as u32 {
            if !self.tokenizer.decode(&[id])?.is_empty() {
                ids.push(id);
            }
        }
        ensure!(ids.len() > 1, "the tokenizer has no ordinary tokens");
        Ok(ids)
    }
}
