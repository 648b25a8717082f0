//! From the settings of a `grpo` stage to a plan with nothing left open: checks, model, tokenizer, prompts as tokens, rewards.

use super::{Config, reward::StageReward};
use crate::{
    engine::Sampling,
    models::config::DecoderConfig,
    pipeline::stage::{StageContext, artifact},
    storage::manifest::Rows,
    text::{
        chat::ChatTemplate,
        chunk::{Boundary, chunk},
        edits::Edits,
        prompt::MARKER,
        request,
        tokenizer::Tokenizer,
    },
    train::{
        grpo::{
            edits::{Between, Script},
            loss::Objective,
            policy::{Activations, UpdateOptions},
            rollout::{Drawing, Prompt},
            run::Plan,
        },
        optim::AdamWOptions,
        schedule::Schedule,
        setup::Compute,
    },
    udf::{
        edited,
        models::{AnswerForm, CausalLmSpec, ModelSpec, recommended},
    },
};
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};

/// Characters of a document where neither the stage nor the model says (the paper's).
const PAPER_CHARS: usize = 7000;

/// A stage's settings, resolved.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) rows: Rows,
    pub(super) model_dir: PathBuf,
    /// Template file that the `models:` entry names, where it does.
    prompt_file: Option<PathBuf>,
    pub(super) tokenizer: Tokenizer,
    pub(super) compute: Compute,
    pub(super) reward: StageReward,
}

impl Prepared {
    /// Prompt and recommended settings go with the model, so that rephrase() asks it as it was trained.
    pub(super) fn write_settings(&self, target: &Path) -> anyhow::Result<()> {
        let own_prompt = self.prompt_file.clone().unwrap_or_else(|| self.model_dir.join("prompt.txt"));
        for (from, name) in [(own_prompt, "prompt.txt"), (self.model_dir.join("repro.json"), "repro.json")] {
            if from.exists() {
                std::fs::copy(&from, target.join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        Ok(())
    }
}

/// What can be wrong with the settings alone.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    ensure!(
        config.num_generations >= 2,
        "num_generations is {}: rewards are compared inside a prompt's group, so a group needs at least 2 completions",
        config.num_generations
    );
    for (name, value) in [
        ("steps", config.steps as usize),
        ("prompts_per_step", config.prompts_per_step),
        ("num_iterations", config.num_iterations),
        ("max_prompt_length", config.max_prompt_length),
        ("max_completion_length", config.max_completion_length),
        ("micro_batch_tokens", config.micro_batch_tokens),
        ("slots", config.slots),
        ("gradient_accumulation_steps", config.gradient_accumulation_steps.unwrap_or(1)),
        ("max_prompt_chars", config.max_prompt_chars.unwrap_or(1)),
    ] {
        ensure!(value > 0, "{name} is 0; it must be at least 1");
    }
    for (name, value) in [("learning_rate", config.learning_rate), ("temperature", f64::from(config.temperature))] {
        ensure!(value.is_finite() && value > 0.0, "{name} {value} is not above 0");
    }
    ensure!(config.top_p > 0.0 && config.top_p <= 1.0, "top_p {} is not in (0, 1]", config.top_p);
    let epsilon_high = config.epsilon_high.unwrap_or(config.epsilon);
    for (name, value) in [
        ("beta", config.beta),
        ("epsilon", config.epsilon),
        ("epsilon_high", epsilon_high),
        ("weight_decay", config.weight_decay),
        ("max_grad_norm", config.max_grad_norm),
    ] {
        ensure!(value.is_finite() && value >= 0.0, "{name} {value} is not 0 or more");
    }
    for (name, value) in [("min_lr_ratio", config.min_lr_ratio), ("warmup_ratio", config.warmup_ratio)] {
        ensure!((0.0..=1.0).contains(&value), "{name} {value} is not in 0 to 1");
    }
    for (name, value) in [("adam_beta1", config.adam_beta1), ("adam_beta2", config.adam_beta2)] {
        ensure!((0.0..1.0).contains(&value), "{name} {value} is not in 0..1");
    }
    if let Some(lora) = &config.lora {
        lora.check()?;
    }
    let completions = config.prompts_per_step * config.num_generations;
    let batches = loss_batches(config);
    ensure!(
        completions.is_multiple_of(batches),
        "gradient_accumulation_steps {batches} does not divide the {completions} completions of a step (prompts_per_step x num_generations)"
    );
    ensure!(
        config.held_out.as_ref() != Some(&config.prompts),
        "held_out is the table that is trained on; give it documents of its own"
    );
    Ok(())
}

fn loss_batches(config: &Config) -> usize {
    config.gradient_accumulation_steps.unwrap_or(config.prompts_per_step)
}

pub(super) fn adamw(config: &Config) -> AdamWOptions {
    AdamWOptions { beta1: config.adam_beta1, beta2: config.adam_beta2, eps: 1e-8, weight_decay: config.weight_decay }
}

pub(super) async fn prepare(config: &Config, cx: &StageContext) -> anyhow::Result<Prepared> {
    let compute = Compute::resolve(&config.device, config.precision)?;
    let model_dir = artifact::model_directory(cx, &config.init).await?;
    let model = DecoderConfig::from_dir(&model_dir)?;
    let room = config.max_prompt_length + config.max_completion_length;
    ensure!(
        room <= model.max_positions,
        "max_prompt_length {} and max_completion_length {} together are more than the {} positions of the model `{}`",
        config.max_prompt_length,
        config.max_completion_length,
        model.max_positions,
        config.init
    );
    ensure!(!model.eos.is_empty(), "the model `{}` names no end token (eos_token_id)", config.init);
    let tokenizer = Tokenizer::from_dir(&model_dir)?;
    ensure!(
        tokenizer.vocab_size() <= model.vocab_size,
        "{}: the tokenizer has {} tokens but the model's vocabulary is {}; they do not fit",
        model_dir.display(),
        tokenizer.vocab_size(),
        model.vocab_size
    );
    let spec = match cx.models.spec(&config.init) {
        Some(ModelSpec::CausalLm(spec)) => spec.clone(),
        _ => CausalLmSpec::default(),
    };
    let (settings, prompt) = recommended(&model_dir, &spec)?;
    let frame = request::Frame::new(&tokenizer, ChatTemplate::from_dir(&model_dir)?.as_ref(), &prompt)?;
    let between = match settings.answer.unwrap_or_default() {
        AnswerForm::Edits => {
            Some(Between { ids: edited::letters(&tokenizer)?, lean: settings.drop_lean.unwrap_or_default() })
        }
        AnswerForm::Text => None,
    };
    let reader = Reader {
        frame,
        tokenizer: &tokenizer,
        between,
        max_completion: config.max_completion_length,
        chars: config.max_prompt_chars.or(settings.chunk_chars).unwrap_or(PAPER_CHARS),
        boundary: settings.chunk_boundary.unwrap_or(Boundary::Char),
        max_tokens: config.max_prompt_length,
    };
    let (prompts, rows) = reader.table(cx, &config.prompts).await?;
    let held_out = match &config.held_out {
        Some(table) => reader.table(cx, table).await?.0,
        None => Vec::new(),
    };
    // What edits keep has no marker before it.
    let marker = if between.is_some() { String::new() } else { settings.marker.unwrap_or_else(|| MARKER.to_owned()) };
    let reward = StageReward::new(config, cx, &marker).await?;
    let plan = plan(config, cx.seed, (prompts, held_out), model.eos.clone(), (marker, between));
    Ok(Prepared { plan, rows, model_dir, prompt_file: spec.prompt, tokenizer, compute, reward })
}

fn plan(
    config: &Config,
    seed: u64,
    (prompts, held_out): (Vec<Prompt>, Vec<Prompt>),
    stop: Vec<u32>,
    (marker, between): (String, Option<Between>),
) -> Plan {
    Plan {
        prompts,
        held_out,
        steps: config.steps,
        prompts_per_step: config.prompts_per_step,
        drawing: Drawing {
            samples: config.num_generations,
            sampling: Sampling { temperature: config.temperature, top_p: config.top_p, top_k: config.top_k },
            longest: config.max_completion_length,
            stop: stop.into(),
            marker,
            between,
        },
        update: UpdateOptions {
            objective: Objective {
                epsilon: config.epsilon,
                epsilon_high: config.epsilon_high.unwrap_or(config.epsilon),
                beta: config.beta,
                temperature: f64::from(config.temperature),
            },
            loss_type: config.loss_type,
            batches: loss_batches(config),
            longest: config.max_completion_length,
            iterations: config.num_iterations,
            rows: config.micro_batch_tokens,
            activations: if config.gradient_checkpointing { Activations::Recompute } else { Activations::Keep },
            clip: config.max_grad_norm,
            between,
        },
        scale: config.scale_rewards,
        mask_truncated: config.mask_truncated_completions,
        schedule: Schedule {
            peak: config.learning_rate,
            floor: config.learning_rate * config.min_lr_ratio,
            warmup_steps: (config.steps as f64 * config.warmup_ratio).round() as u64,
        },
        seed: config.seed.unwrap_or(seed),
        save_every: config.save_steps,
        eval_every: config.eval_steps,
        patience: config.patience,
    }
}

/// Documents to prompts.
struct Reader<'a> {
    frame: request::Frame,
    tokenizer: &'a Tokenizer,
    /// Where completions are edits: what their choices are between.
    between: Option<Between>,
    max_completion: usize,
    chars: usize,
    boundary: Boundary,
    max_tokens: usize,
}

impl Reader<'_> {
    /// Reads a table of documents. Those that are NULL, empty or too long are left out and counted.
    async fn table(&self, cx: &StageContext, table: &str) -> anyhow::Result<(Vec<Prompt>, Rows)> {
        let mut prompts = Vec::new();
        let mut long = 0u64;
        let input = artifact::read_columns(cx, table, &["id", "text"], |row| {
            let [Some(id), Some(text)] = row else { return Ok(()) };
            if text.trim().is_empty() {
                return Ok(());
            }
            let pieces = chunk(text, self.chars, self.boundary);
            let text = pieces.first().map_or(*text, |piece| piece.text);
            let (tokens, script) = self.request(text)?;
            if tokens.len() > self.max_tokens || script.as_ref().is_some_and(|s| s.len() > self.max_completion) {
                long += 1;
                return Ok(());
            }
            prompts.push(Prompt { id: (*id).to_owned(), tokens, script, text: text.into() });
            Ok(())
        })
        .await
        .with_context(|| format!("table `{table}`"))?;
        if long > 0 {
            tracing::warn!(
                "{}: {long} of {input} documents of `{table}` are longer than {} and left out",
                cx.output,
                self.bound()
            );
        }
        ensure!(
            !prompts.is_empty(),
            "the table `{table}` holds no prompt: of {input} rows, {long} are longer than {} and the others \
             have no id or no text",
            self.bound()
        );
        let kept = prompts.len() as u64;
        Ok((prompts, Rows { input, kept, dropped: input - kept, ..Rows::default() }))
    }

    /// What the model is given of a document before it draws, and the form of what it draws then, where that has one.
    fn request(&self, text: &str) -> anyhow::Result<(Vec<u32>, Option<Script>)> {
        let Some(between) = self.between else { return Ok((self.frame.request(text, usize::MAX)?.tokens, None)) };
        let format = edited::form(self.tokenizer, &Edits::new(text).script(), between.lean)?;
        let (given, script) = Script::split(&format);
        ensure!(!script.is_empty(), "a document of {} characters has no segment", text.chars().count());
        let mut tokens = self.frame.request("", usize::MAX)?.tokens;
        tokens.extend(given);
        Ok((tokens, Some(script)))
    }

    /// What documents may be too long for, with its value.
    fn bound(&self) -> String {
        match self.between {
            Some(_) => {
                format!("max_prompt_length {} or max_completion_length {}", self.max_tokens, self.max_completion)
            }
            None => format!("max_prompt_length {}", self.max_tokens),
        }
    }
}
