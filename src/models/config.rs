//! `config.json` of a Hugging Face directory, validated into one decoder description, and back. Owns the list of
//! supported architectures and the names and shapes of their parameters. Does not touch tensors.

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What the engine and the trainers need to know of a decoder. All supported families fit this one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family.
    pub arch: Arch,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the gated feed-forward layer.
    pub ffn: usize,
    /// Epsilon of every RMS norm.
    pub rms_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Rotary scaling.
    pub rope_scaling: RopeScaling,
    /// Longest sequence; with a sliding window, the window (inside it full attention is the same).
    pub max_positions: usize,
    /// The output matrix is the embedding matrix.
    pub tied_embeddings: bool,
    /// Ids that end a sequence, of `generation_config.json` where given.
    pub eos: Vec<u32>,
}

/// The family decides the projection biases (Qwen2), the q/k norms (Qwen3), and the weight names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// `Qwen3ForCausalLM`: RMS norms on each query and key head.
    Qwen3,
    /// `Qwen2ForCausalLM`: biases on the query, key and value projections.
    Qwen2,
    /// `LlamaForCausalLM`, and `MistralForCausalLM`, which computes the same.
    Llama,
}

/// Rotary scaling as in `rope_scaling` of config.json.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Plain rotary positions.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// `low_freq_factor`.
        low_freq: f64,
        /// `high_freq_factor`.
        high_freq: f64,
        /// Positions of the first training.
        original: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Extension factor.
        factor: f64,
        /// Positions of the first training.
        original: usize,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Scale of cos and sin; `0.1 ln(factor) + 1` if absent.
        attention_factor: Option<f64>,
    },
}

/// What [`DecoderConfig::from_dir`] accepts, for messages.
pub const SUPPORTED: &str = "Qwen3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM, MistralForCausalLM";

impl DecoderConfig {
    /// Reads and validates `dir/config.json` (and the eos ids of `generation_config.json`).
    ///
    /// # Errors
    /// Missing file, missing field, an architecture that is not supported (the message lists those that are).
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        ensure!(dir.is_dir(), "{}: no such model directory", dir.display());
        let path = dir.join("config.json");
        ensure!(path.exists(), "{}: the model directory has no config.json", dir.display());
        let json = read_object(&path)?;
        let mut config = Self::from_json(&json).with_context(|| path.display().to_string())?;
        let generation = dir.join("generation_config.json");
        if generation.exists() {
            let ids = token_ids(&read_object(&generation)?, "eos_token_id")
                .with_context(|| generation.display().to_string())?;
            if !ids.is_empty() {
                config.eos = ids;
            }
        }
        Ok(config)
    }

    /// Reads and validates the fields of a `config.json`.
    ///
    /// # Errors
    /// As [`DecoderConfig::from_dir`], without the path.
    pub fn from_json(json: &Map<String, Value>) -> anyhow::Result<Self> {
        let arch = arch(json)?;
        refuse_unsupported(json)?;
        let heads = size(json, "num_attention_heads")?;
        let hidden = size(json, "hidden_size")?;
        // transformers: Qwen3 falls back to 128, the others to hidden / heads.
        let head_dim = match optional_size(json, "head_dim")? {
            Some(dim) => dim,
            None if arch == Arch::Qwen3 => 128,
            None => hidden / heads,
        };
        let max_positions = optional_size(json, "max_position_embeddings")?.unwrap_or(2048);
        let (rope_theta, rope_scaling) = rope(json, max_positions)?;
        let config = Self {
            arch,
            vocab_size: size(json, "vocab_size")?,
            hidden,
            layers: size(json, "num_hidden_layers")?,
            heads,
            kv_heads: optional_size(json, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            ffn: size(json, "intermediate_size")?,
            rms_eps: number(json, "rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            max_positions: window(json, arch)?.map_or(max_positions, |w| w.min(max_positions)),
            tied_embeddings: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            eos: token_ids(json, "eos_token_id")?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks what every computation relies on.
    ///
    /// # Errors
    /// A zero size, heads that the key/value heads do not divide, an odd head width.
    pub fn validate(&self) -> anyhow::Result<()> {
        positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.ffn),
            ("max_position_embeddings", self.max_positions),
        ])?;
        ensure!(
            self.heads.is_multiple_of(self.kv_heads),
            "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
            self.heads,
            self.kv_heads
        );
        ensure!(self.head_dim.is_multiple_of(2), "`head_dim` {} is odd; rotary positions need pairs", self.head_dim);
        Ok(())
    }

    /// The config.json that transformers would load.
    pub fn to_json(&self) -> Value {
        let (architecture, model_type) = match self.arch {
            Arch::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            Arch::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Arch::Llama => ("LlamaForCausalLM", "llama"),
        };
        json!({
            "architectures": [architecture],
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_json(),
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied_embeddings,
            "attention_bias": false,
            "use_sliding_window": false,
            "eos_token_id": match self.eos.as_slice() {
                [] => Value::Null,
                [one] => json!(one),
                many => json!(many),
            },
        })
    }

    /// Number of parameters; tied embeddings count once.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Name and shape of every parameter, in checkpoint order. Matrices are [out, in].
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, f, d) = (self.hidden, self.ffn, self.head_dim);
        let (q, kv) = (self.heads * d, self.kv_heads * d);
        let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, h])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: Vec<usize>| list.push((format!("model.layers.{layer}.{name}"), shape));
            add("input_layernorm.weight", vec![h]);
            add("self_attn.q_proj.weight", vec![q, h]);
            add("self_attn.k_proj.weight", vec![kv, h]);
            add("self_attn.v_proj.weight", vec![kv, h]);
            if self.arch == Arch::Qwen2 {
                add("self_attn.q_proj.bias", vec![q]);
                add("self_attn.k_proj.bias", vec![kv]);
                add("self_attn.v_proj.bias", vec![kv]);
            }
            if self.arch == Arch::Qwen3 {
                add("self_attn.q_norm.weight", vec![d]);
                add("self_attn.k_norm.weight", vec![d]);
            }
            add("self_attn.o_proj.weight", vec![h, q]);
            add("post_attention_layernorm.weight", vec![h]);
            add("mlp.gate_proj.weight", vec![f, h]);
            add("mlp.up_proj.weight", vec![f, h]);
            add("mlp.down_proj.weight", vec![h, f]);
        }
        list.push(("model.norm.weight".to_owned(), vec![h]));
        if !self.tied_embeddings {
            list.push(("lm_head.weight".to_owned(), vec![self.vocab_size, h]));
        }
        list
    }
}

impl RopeScaling {
    fn to_json(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Self::Llama3 { factor, low_freq, high_freq, original } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq, "high_freq_factor": high_freq,
                "original_max_position_embeddings": original,
            }),
            Self::Yarn { factor, original, beta_fast, beta_slow, attention_factor } => {
                let mut map = json!({
                    "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                    "beta_fast": beta_fast, "beta_slow": beta_slow,
                });
                if let Some(scale) = attention_factor {
                    map["attention_factor"] = json!(scale);
                }
                map
            }
        }
    }
}

pub(super) fn read_object(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    match serde_json::from_slice(&bytes).with_context(|| format!("{}: not valid JSON", path.display()))? {
        Value::Object(map) => Ok(map),
        _ => bail!("{}: expected a JSON object", path.display()),
    }
}

fn arch(json: &Map<String, Value>) -> anyhow::Result<Arch> {
    let named = json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let found = named.or_else(|| json.get("model_type").and_then(Value::as_str));
    match found {
        Some("Qwen3ForCausalLM" | "qwen3") => Ok(Arch::Qwen3),
        Some("Qwen2ForCausalLM" | "qwen2") => Ok(Arch::Qwen2),
        Some("LlamaForCausalLM" | "llama" | "MistralForCausalLM" | "mistral") => Ok(Arch::Llama),
        Some(other) => bail!("architecture `{other}` is not supported; supported: {SUPPORTED}"),
        None => bail!("no `architectures` and no `model_type`; supported: {SUPPORTED}"),
    }
}

/// Variants of the supported families that would compute something else.
fn refuse_unsupported(json: &Map<String, Value>) -> anyhow::Result<()> {
    let activation = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
    ensure!(activation == "silu", "`hidden_act` {activation} is not supported; supported: silu");
    // Qwen2's own biases are implied by its family and not stated by this key.
    for key in ["attention_bias", "mlp_bias"] {
        let set = json.get(key).and_then(Value::as_bool).unwrap_or(false);
        ensure!(!set, "`{key}`: true is not supported");
    }
    if let Some(method) = json.get("quantization_config").filter(|q| !q.is_null()) {
        let name = method.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        bail!("quantised weights ({name}) are not supported; use the bf16 or f32 checkpoint");
    }
    Ok(())
}

/// The sliding window in force, if any.
fn window(json: &Map<String, Value>, arch: Arch) -> anyhow::Result<Option<usize>> {
    let used = match arch {
        Arch::Llama => true,
        Arch::Qwen2 | Arch::Qwen3 => json.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(false),
    };
    if used { optional_size(json, "sliding_window") } else { Ok(None) }
}

/// Base and scaling, from `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).
fn rope(json: &Map<String, Value>, max_positions: usize) -> anyhow::Result<(f64, RopeScaling)> {
    let empty = Map::new();
    let section = ["rope_parameters", "rope_scaling"].into_iter().find_map(|k| json.get(k).and_then(Value::as_object));
    let map = section.unwrap_or(&empty);
    let theta = number(map, "rope_theta")?.or(number(json, "rope_theta")?).unwrap_or(10_000.0);
    for place in [map, json] {
        let partial = number(place, "partial_rotary_factor")?.unwrap_or(1.0);
        ensure!(partial == 1.0, "`partial_rotary_factor` {partial} is not supported; supported: 1");
    }
    let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str).unwrap_or("default");
    let factor = || number(map, "factor")?.with_context(|| format!("rope scaling `{kind}` without `factor`"));
    let original = || optional_size(map, "original_max_position_embeddings");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "llama3" => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq: number(map, "low_freq_factor")?.context("rope scaling `llama3` without `low_freq_factor`")?,
            high_freq: number(map, "high_freq_factor")?.context("rope scaling `llama3` without `high_freq_factor`")?,
            original: original()?.context("rope scaling `llama3` without `original_max_position_embeddings`")?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: factor()?,
            original: original()?.unwrap_or(max_positions),
            beta_fast: number(map, "beta_fast")?.unwrap_or(32.0),
            beta_slow: number(map, "beta_slow")?.unwrap_or(1.0),
            attention_factor: number(map, "attention_factor")?,
        },
        other => bail!("rope scaling `{other}` is not supported; supported: default, linear, llama3, yarn"),
    };
    Ok((theta, scaling))
}

/// Refuses a size of 0.
pub(super) fn positive(sizes: &[(&str, usize)]) -> anyhow::Result<()> {
    for (name, value) in sizes {
        ensure!(*value > 0, "`{name}` must be at least 1");
    }
    Ok(())
}

pub(super) fn size(json: &Map<String, Value>, key: &str) -> anyhow::Result<usize> {
    optional_size(json, key)?.with_context(|| format!("`{key}` is missing"))
}

pub(super) fn optional_size(json: &Map<String, Value>, key: &str) -> anyhow::Result<Option<usize>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            // Far above any real model; keeps products of two sizes inside 64 bits.
            Some(n) if n <= 1 << 31 => Ok(Some(n)),
            _ => bail!("`{key}` must be a whole number, found {value}"),
        },
    }
}

pub(super) fn number(json: &Map<String, Value>, key: &str) -> anyhow::Result<Option<f64>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).with_context(|| format!("`{key}` must be a number, found {value}")),
    }
}

/// One id, a list of ids, or nothing.
pub(super) fn token_ids(json: &Map<String, Value>, key: &str) -> anyhow::Result<Vec<u32>> {
    let one = |v: &Value| {
        v.as_u64().and_then(|n| u32::try_from(n).ok()).with_context(|| format!("`{key}`: {v} is not a token id"))
    };
    match json.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}
