//! From the settings of a `pretrain` stage to a plan with nothing left open: checks, tables, tokenizer, model, budget.

use super::{Architecture, Config, Size};
use crate::{
    models::{
        causal::CausalConfig,
        config::{Arch, DecoderConfig, RopeScaling},
        openlm::{OpenLmConfig, Preset, default_ffn},
    },
    pipeline::stage::{StageContext, artifact},
    storage::packed::Packed,
    train::{
        optim::AdamWOptions,
        pretrain::{Backward, Plan},
        schedule::WarmupCosine,
        setup::{Compute, Recipe},
    },
};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// Tokens of one forward and backward pass where the settings leave it open.
const PASS_TOKENS: usize = 8192;
/// Names of the tokenizer's files beside a packed table, and in a model directory.
const TOKENIZER: [(&str, &str); 2] =
    [("_tokenizer.json", "tokenizer.json"), ("_tokenizer_config.json", "tokenizer_config.json")];

/// A stage's settings, resolved.
pub(super) struct Prepared {
    pub(super) packed: Packed,
    pub(super) held_out: Option<Packed>,
    pub(super) model: CausalConfig,
    pub(super) compute: Compute,
    pub(super) adamw: AdamWOptions,
    pub(super) recipe: Recipe,
    pub(super) plan: Plan,
    pub(super) seed: u64,
    /// Directory with the tokenizer's files, empty where the pack has none.
    pub(super) tokenizer: TempDir,
}

/// Resolves everything that the training needs.
pub(super) async fn prepare(config: &Config, cx: &StageContext) -> anyhow::Result<Prepared> {
    check(config)?;
    let compute = Compute::resolve(&config.device, config.precision)?;
    let open = async |table: &str| {
        let (location, name) = cx.table(table)?;
        Packed::open(&location, &name).await
    };
    let packed = open(&config.packed).await?;
    let held_out = match &config.held_out {
        Some(table) => Some(open(table).await?),
        None => None,
    };
    if let Some(held_out) = &held_out {
        same_tokenizer(&packed, held_out)?;
    }
    let tokenizer = tokenizer_files(config, cx, &packed).await?;
    let model = model(config, &packed)?;
    let plan = plan(config, &packed, held_out.as_ref())?;
    Ok(Prepared {
        plan,
        packed,
        held_out,
        model,
        compute,
        adamw: AdamWOptions { beta1: config.beta1, beta2: config.beta2, eps: 1e-8, weight_decay: config.weight_decay },
        recipe: Recipe {
            clip: config.gradient_clip,
            z_loss: config.z_loss,
            backward: if config.gradient_checkpointing { Backward::Recompute } else { Backward::Auto },
        },
        seed: config.seed.unwrap_or(cx.seed),
        tokenizer,
    })
}

/// What can be wrong with the settings alone.
fn check(config: &Config) -> anyhow::Result<()> {
    ensure!(
        config.preset.is_some() != config.size.is_some(),
        "give `preset` (400M, 1.4B, 2.8B) or `size: {{ hidden: …, layers: …, heads: … }}`, one of the two"
    );
    ensure!(
        config.preset.is_none() || config.architecture == Architecture::Openlm,
        "`preset` is a size of architecture openlm; give `size` for another one"
    );
    ensure!(
        config.learning_rate.is_finite() && config.learning_rate > 0.0,
        "learning_rate {} is not above 0",
        config.learning_rate
    );
    ensure!((0.0..=1.0).contains(&config.final_learning_rate), "final_learning_rate is a part of the highest: 0 to 1");
    for (name, beta) in [("beta1", config.beta1), ("beta2", config.beta2)] {
        ensure!((0.0..1.0).contains(&beta), "{name} {beta} is not in 0..1");
    }
    for (name, value) in [("z_loss", config.z_loss), ("weight_decay", config.weight_decay)] {
        ensure!(value.is_finite() && value >= 0.0, "{name} {value} is below 0");
    }
    ensure!(config.passes > 0, "passes is 0; 1 reads the table once");
    ensure!(config.sequences != Some(0), "sequences is 0; a step needs at least one context");
    ensure!(config.accumulation != Some(0), "accumulation is 0; 1 makes one pass a step");
    if config.architecture == Architecture::Openlm
        && let Some(Size { kv_heads, head_dim, tied_embeddings, .. }) = &config.size
    {
        let other = kv_heads.is_some() || head_dim.is_some() || *tied_embeddings;
        ensure!(
            !other,
            "`kv_heads`, `head_dim` and `tied_embeddings` are for llama and qwen3; openlm has none of them"
        );
    }
    Ok(())
}

/// A fact that `pack` wrote into the manifest.
fn fact<'a>(packed: &'a Packed, name: &str) -> Option<&'a Value> {
    packed.manifest.params.get(name)
}

fn hash(packed: &Packed) -> Option<&str> {
    fact(packed, "tokenizer_hash").and_then(Value::as_str)
}

fn same_tokenizer(packed: &Packed, held_out: &Packed) -> anyhow::Result<()> {
    let (one, other) = (hash(packed), hash(held_out));
    ensure!(
        one == other || one.is_none() || other.is_none(),
        "the tables `{}` and `{}` were packed with different tokenizers; pack both with the same one",
        packed.manifest.table,
        held_out.manifest.table
    );
    Ok(())
}

/// A directory with the tokenizer's files: those beside the pack, or those of `tokenizer`, which must be the same.
async fn tokenizer_files(config: &Config, cx: &StageContext, packed: &Packed) -> anyhow::Result<TempDir> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (location, name) = cx.table(&config.packed)?;
    let table = location.join(&name);
    for (from, to) in TOKENIZER {
        if let Some(bytes) = table.read(from).await? {
            std::fs::write(directory.path().join(to), bytes)?;
        }
    }
    if let Some(name) = &config.tokenizer {
        let own = artifact::tokenizer_directory(cx, name).await?;
        let path = own.join("tokenizer.json");
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let own_hash = blake3::hash(&bytes).to_hex().to_string();
        if hash(packed).is_some_and(|packed| packed != own_hash) {
            bail!(
                "the table `{}` was packed with another tokenizer than `{name}`; its token ids mean something else. \
                 Pack again with `tokenizer: {name}`, or leave `tokenizer` out to train a model for the pack's own",
                config.packed
            );
        }
        for file in crate::train::export::TOKENIZER_FILES {
            let from = own.join(file);
            if from.exists() {
                std::fs::copy(&from, directory.path().join(file))
                    .with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
    }
    Ok(directory)
}

fn model(config: &Config, packed: &Packed) -> anyhow::Result<CausalConfig> {
    let ids = fact(packed, "vocab_size").and_then(Value::as_u64).map(|n| n as usize);
    let eos: Vec<u32> = fact(packed, "eot").and_then(Value::as_u64).map(|id| id as u32).into_iter().collect();
    let preset = config.preset.map(OpenLmConfig::preset);
    let vocab_size = match (config.vocabulary, &preset, ids) {
        (Some(given), _, _) => given,
        (None, Some(preset), _) => preset.vocab_size,
        (None, None, Some(ids)) => ids.div_ceil(64) * 64,
        (None, None, None) => {
            bail!("the table `{}` does not say how many token ids there are; give `vocabulary`", config.packed)
        }
    };
    if let Some(ids) = ids {
        ensure!(
            ids <= vocab_size,
            "the pack's tokenizer has {ids} token ids, the model's vocabulary is {vocab_size}; \
             raise `vocabulary`, or pack with another tokenizer"
        );
    }
    let max_positions = packed.context - 1;
    if let Some(preset) = preset {
        return Ok(CausalConfig::OpenLm(OpenLmConfig { vocab_size, max_positions, eos, ..preset }));
    }
    let size = config.size.as_ref().context("`size` is missing")?;
    let ffn = size.ffn.unwrap_or_else(|| default_ffn(size.hidden));
    let arch = match config.architecture {
        Architecture::Openlm => {
            let (hidden, layers, heads) = (size.hidden, size.layers, size.heads);
            let model = OpenLmConfig { vocab_size, hidden, layers, heads, ffn, max_positions, eos };
            model.validate().context("size")?;
            return Ok(CausalConfig::OpenLm(model));
        }
        Architecture::Llama => Arch::Llama,
        Architecture::Qwen3 => Arch::Qwen3,
    };
    let model = DecoderConfig {
        arch,
        vocab_size,
        hidden: size.hidden,
        layers: size.layers,
        heads: size.heads,
        kv_heads: size.kv_heads.unwrap_or(size.heads),
        head_dim: size.head_dim.unwrap_or(size.hidden / size.heads.max(1)),
        ffn,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions,
        tied_embeddings: size.tied_embeddings,
        eos,
    };
    model.validate().context("size")?;
    Ok(CausalConfig::Decoder(model))
}

/// Tokens, contexts of a step and warm-up steps of the paper (reference section 7.2).
fn paper(preset: Preset) -> (u64, usize, u64) {
    match preset {
        Preset::M400 => (28_795_904_000, 512, 2000),
        Preset::B1_4 => (28_795_904_000, 256, 5000),
        Preset::B2_8 => (55_918_643_200, 256, 5000),
    }
}

fn plan(config: &Config, packed: &Packed, held_out: Option<&Packed>) -> anyhow::Result<Plan> {
    let paper = config.preset.map(paper);
    let sequences = config.sequences.or(paper.map(|p| p.1)).unwrap_or(256);
    let context_tokens = (packed.context - 1) as u64;
    let step_tokens = sequences as u64 * context_tokens;
    let available = packed.contexts.saturating_mul(config.passes);
    let steps = match config.tokens.or(paper.map(|p| p.0)) {
        Some(tokens) => tokens / step_tokens,
        None => available / sequences as u64,
    };
    ensure!(
        steps > 0,
        "a step is {sequences} contexts of {context_tokens} tokens, which is more than there is to train on; \
         lower `sequences`, or pack more text"
    );
    let needed = steps * sequences as u64;
    if needed > available {
        let passes = needed.div_ceil(packed.contexts);
        bail!(
            "the budget of {} tokens takes {needed} contexts; `{}` holds {}, read {}: \
             give `passes: {passes}`, lower `tokens` to {}, or pack more text",
            steps * step_tokens,
            config.packed,
            packed.contexts,
            if config.passes == 1 { "once".to_owned() } else { format!("{} times", config.passes) },
            available / sequences as u64 * step_tokens
        );
    }
    let warmup_steps = config.warmup_steps.or(paper.map(|p| p.2)).unwrap_or_else(|| (steps / 10).min(2000));
    ensure!(
        warmup_steps <= steps,
        "warmup_steps {warmup_steps} is more than the {steps} steps of the run; lower it, or raise `tokens`"
    );
    let micro_sequences = match config.accumulation {
        Some(passes) => sequences.div_ceil(passes),
        None => (PASS_TOKENS / context_tokens as usize).clamp(1, sequences),
    };
    Ok(Plan {
        schedule: WarmupCosine {
            peak: config.learning_rate,
            floor: config.learning_rate * config.final_learning_rate,
            warmup_steps,
            steps,
        },
        sequences,
        micro_sequences,
        held_out: held_out.map_or(0, |p| p.contexts as usize),
        log_every: config.log_every,
        checkpoint_every: config.checkpoint_every,
        evaluate_every: config.evaluate_every,
    })
}
