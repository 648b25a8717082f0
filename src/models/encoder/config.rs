//! `config.json` of an encoder, validated into one description: the families differ in positions and in the names of the attention
//! parameters. Owns the list of supported families and the names and shapes of their parameters. Does not touch tensors.

use crate::models::config::{number, optional_size, read_object, size};
use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};
use std::path::Path;

/// What the engine needs to know of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// The family.
    pub arch: EncoderArch,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Epsilon of every layer norm.
    pub norm_eps: f64,
    /// Between the two matrices of the feed-forward layer.
    pub activation: Activation,
    /// Learned positions added to the embeddings; they bound the length of a sequence.
    pub absolute: Option<Absolute>,
    /// Disentangled attention over relative positions (DeBERTa).
    pub relative: Option<Relative>,
    /// Rows of the token type table; 0: there is none. All tokens are of type 0 here.
    pub token_types: usize,
}

/// The family decides the names of the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderArch {
    /// BERT, MiniLM.
    Bert,
    /// RoBERTa, XLM-RoBERTa, CamemBERT.
    Roberta,
    /// DeBERTa, first version.
    Deberta,
}

/// Activation functions of feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the exact normal distribution function.
    Gelu,
    /// Its tanh approximation (`gelu_new`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// A learned position table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absolute {
    /// Rows of the table.
    pub rows: usize,
    /// Row of the first token: 0, for RoBERTa the padding id plus 1.
    pub offset: usize,
}

/// Disentangled attention (arXiv 2006.03654, equation 4): distances are clamped to `span`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    /// Half the rows of the relative position table.
    pub span: usize,
    /// Content to position: the query looks at where the key stands.
    pub c2p: bool,
    /// Position to content: the key looks at where the query stands.
    pub p2c: bool,
}

impl Relative {
    /// Terms of the attention score, for its scale `1 / sqrt(head_dim · terms)`.
    pub fn terms(self) -> usize {
        1 + usize::from(self.c2p) + usize::from(self.p2c)
    }
}

/// What [`EncoderConfig::from_dir`] accepts, for messages.
pub const SUPPORTED: &str =
    "BertModel, RobertaModel, XLMRobertaModel, CamembertModel, DebertaModel (v1) and their task heads";

impl EncoderConfig {
    /// Whether the directory's config.json names an encoder family, supported or not (as opposed to a decoder).
    ///
    /// # Errors
    /// The file is missing or is no JSON object.
    pub fn is_encoder(dir: &Path) -> anyhow::Result<bool> {
        let json = read(dir)?;
        let name = family(&json).unwrap_or_default().to_lowercase();
        Ok(["bert", "electra", "mpnet"].iter().any(|known| name.contains(known)))
    }

    /// Reads and validates `dir/config.json`.
    ///
    /// # Errors
    /// Missing file, missing field, a family that is not supported (the message lists those that are).
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        Self::from_json(&read(dir)?).with_context(|| dir.join("config.json").display().to_string())
    }

    /// Reads and validates the fields of a `config.json`.
    ///
    /// # Errors
    /// As [`EncoderConfig::from_dir`], without the path.
    pub fn from_json(json: &Map<String, Value>) -> anyhow::Result<Self> {
        let arch = arch(json)?;
        refuse_unsupported(json)?;
        let positions = size(json, "max_position_embeddings")?;
        let relative = if arch == EncoderArch::Deberta { relative(json, positions)? } else { None };
        let biased = json.get("position_biased_input").and_then(Value::as_bool).unwrap_or(true);
        let offset = match arch {
            EncoderArch::Roberta => optional_size(json, "pad_token_id")?.unwrap_or(1) + 1,
            EncoderArch::Bert | EncoderArch::Deberta => 0,
        };
        let default_types = if arch == EncoderArch::Deberta { 0 } else { 2 };
        let config = Self {
            arch,
            vocab_size: size(json, "vocab_size")?,
            hidden: size(json, "hidden_size")?,
            layers: size(json, "num_hidden_layers")?,
            heads: size(json, "num_attention_heads")?,
            ffn: size(json, "intermediate_size")?,
            norm_eps: number(json, "layer_norm_eps")?.unwrap_or(1e-12),
            activation: activation(json)?,
            absolute: (arch != EncoderArch::Deberta || biased).then_some(Absolute { rows: positions, offset }),
            relative,
            token_types: optional_size(json, "type_vocab_size")?.unwrap_or(default_types),
        };
        config.validate(json)?;
        Ok(config)
    }

    fn validate(&self, json: &Map<String, Value>) -> anyhow::Result<()> {
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("intermediate_size", self.ffn),
        ] {
            ensure!(value > 0, "`{name}` must be at least 1");
        }
        let (hidden, heads) = (self.hidden, self.heads);
        ensure!(
            hidden.is_multiple_of(heads),
            "`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}"
        );
        ensure!(self.head_dim().is_multiple_of(2), "heads of {} dimensions are not supported: odd", self.head_dim());
        if let Some(embedding) = optional_size(json, "embedding_size")? {
            ensure!(embedding == hidden, "`embedding_size` {embedding} other than `hidden_size` is not supported");
        }
        if let Some(Absolute { rows, offset }) = self.absolute {
            ensure!(rows > offset, "`max_position_embeddings` {rows} leaves no room for a token");
        }
        Ok(())
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Tokens of the longest sequence, special tokens included; None where positions are relative only.
    pub fn limit(&self) -> Option<usize> {
        self.absolute.map(|table| table.rows - table.offset)
    }

    /// Number of parameters up to that layer.
    pub fn parameters(&self, layers: usize) -> usize {
        self.tensors(layers).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Name (without the family's prefix) and shape of every parameter that the first `layers` blocks need. Matrices are [out, in].
    pub fn tensors(&self, layers: usize) -> Vec<(String, Vec<usize>)> {
        let (h, f) = (self.hidden, self.ffn);
        let mut list = vec![("embeddings.word_embeddings.weight".to_owned(), vec![self.vocab_size, h])];
        if let Some(table) = self.absolute {
            list.push(("embeddings.position_embeddings.weight".to_owned(), vec![table.rows, h]));
        }
        if self.token_types > 0 {
            list.push(("embeddings.token_type_embeddings.weight".to_owned(), vec![self.token_types, h]));
        }
        list.push(("embeddings.LayerNorm.weight".to_owned(), vec![h]));
        list.push(("embeddings.LayerNorm.bias".to_owned(), vec![h]));
        if let Some(relative) = self.relative {
            list.push(("encoder.rel_embeddings.weight".to_owned(), vec![2 * relative.span, h]));
        }
        for layer in 0..layers {
            let mut add = |name: &str, shape: Vec<usize>| list.push((format!("encoder.layer.{layer}.{name}"), shape));
            self.attention_tensors(&mut add);
            for (name, out, inner) in [("attention.output", h, h), ("intermediate", f, h), ("output", h, f)] {
                add(&format!("{name}.dense.weight"), vec![out, inner]);
                add(&format!("{name}.dense.bias"), vec![out]);
                if name != "intermediate" {
                    add(&format!("{name}.LayerNorm.weight"), vec![h]);
                    add(&format!("{name}.LayerNorm.bias"), vec![h]);
                }
            }
        }
        list
    }

    fn attention_tensors(&self, add: &mut dyn FnMut(&str, Vec<usize>)) {
        let h = self.hidden;
        if self.arch == EncoderArch::Deberta {
            add("attention.self.in_proj.weight", vec![3 * h, h]);
            add("attention.self.q_bias", vec![h]);
            add("attention.self.v_bias", vec![h]);
            if self.relative.is_some_and(|r| r.c2p) {
                add("attention.self.pos_proj.weight", vec![h, h]);
            }
            if self.relative.is_some_and(|r| r.p2c) {
                add("attention.self.pos_q_proj.weight", vec![h, h]);
                add("attention.self.pos_q_proj.bias", vec![h]);
            }
            return;
        }
        for part in ["query", "key", "value"] {
            add(&format!("attention.self.{part}.weight"), vec![h, h]);
            add(&format!("attention.self.{part}.bias"), vec![h]);
        }
    }
}

fn read(dir: &Path) -> anyhow::Result<Map<String, Value>> {
    ensure!(dir.is_dir(), "{}: no such model directory", dir.display());
    let path = dir.join("config.json");
    ensure!(path.exists(), "{}: the model directory has no config.json", dir.display());
    read_object(&path)
}

/// `model_type`, else the first of `architectures`.
fn family(json: &Map<String, Value>) -> Option<&str> {
    let named = json.get("model_type").and_then(Value::as_str);
    named.or_else(|| json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str))
}

fn arch(json: &Map<String, Value>) -> anyhow::Result<EncoderArch> {
    let Some(name) = family(json) else {
        bail!("no `architectures` and no `model_type`; supported: {SUPPORTED}");
    };
    match name {
        "bert" => Ok(EncoderArch::Bert),
        "roberta" | "xlm-roberta" | "camembert" => Ok(EncoderArch::Roberta),
        "deberta" => Ok(EncoderArch::Deberta),
        other if other.starts_with("BertFor") || other == "BertModel" => Ok(EncoderArch::Bert),
        other if other.starts_with("RobertaFor") || other == "RobertaModel" => Ok(EncoderArch::Roberta),
        other if other.starts_with("DebertaFor") || other == "DebertaModel" => Ok(EncoderArch::Deberta),
        other => bail!("encoder `{other}` is not supported; supported: {SUPPORTED}"),
    }
}

/// Variants of the supported families that would compute something else.
fn refuse_unsupported(json: &Map<String, Value>) -> anyhow::Result<()> {
    let kind = json.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
    ensure!(kind == "absolute", "`position_embedding_type` {kind} is not supported; supported: absolute");
    for key in ["is_decoder", "add_cross_attention", "talking_head", "conv_kernel_size"] {
        let set = json.get(key).is_some_and(|v| v.as_bool().unwrap_or(!v.is_null()));
        ensure!(!set, "`{key}` is not supported");
    }
    if let Some(method) = json.get("quantization_config").filter(|q| !q.is_null()) {
        let name = method.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        bail!("quantised weights ({name}) are not supported; use the bf16 or f32 checkpoint");
    }
    Ok(())
}

fn activation(json: &Map<String, Value>) -> anyhow::Result<Activation> {
    match json.get("hidden_act").and_then(Value::as_str).unwrap_or("gelu") {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => bail!("`hidden_act` {other} is not supported; supported: gelu, gelu_new, gelu_pytorch_tanh, relu"),
    }
}

/// `relative_attention`, `max_relative_positions` (below 1: as many as positions), `pos_att_type` (`"c2p|p2c"` or a list).
fn relative(json: &Map<String, Value>, positions: usize) -> anyhow::Result<Option<Relative>> {
    if !json.get("relative_attention").and_then(Value::as_bool).unwrap_or(false) {
        return Ok(None);
    }
    let span = number(json, "max_relative_positions")?.unwrap_or(-1.0);
    ensure!(span <= 65536.0 && span.fract() == 0.0, "`max_relative_positions` {span} is not supported");
    let span = if span < 1.0 { positions } else { span as usize };
    let kinds: Vec<String> = match json.get("pos_att_type") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => text.split('|').map(|t| t.trim().to_lowercase()).collect(),
        Some(Value::Array(list)) => list.iter().filter_map(|v| v.as_str().map(str::to_lowercase)).collect(),
        Some(other) => bail!("`pos_att_type` must be text or a list, found {other}"),
    };
    if let Some(other) = kinds.iter().find(|kind| !["c2p", "p2c", ""].contains(&kind.as_str())) {
        bail!("`pos_att_type` {other} is not supported; supported: c2p, p2c");
    }
    let has = |kind: &str| kinds.iter().any(|k| k == kind);
    Ok(Some(Relative { span, c2p: has("c2p"), p2c: has("p2c") }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(json: Value) -> anyhow::Result<EncoderConfig> {
        EncoderConfig::from_json(json.as_object().unwrap())
    }

    /// The facts of the published config.json of microsoft/deberta-large-mnli, the paper's scorer.
    fn deberta_large_mnli() -> Value {
        json!({
            "model_type": "deberta", "architectures": ["DebertaForSequenceClassification"], "hidden_size": 1024,
            "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "vocab_size": 50265,
            "hidden_act": "gelu", "layer_norm_eps": 1e-7, "max_position_embeddings": 512, "relative_attention": true,
            "max_relative_positions": -1, "pos_att_type": "c2p|p2c", "position_biased_input": false,
            "type_vocab_size": 0, "padding_idx": 0, "pooler_hidden_size": 1024, "pooler_hidden_act": "gelu",
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        })
    }

    #[test]
    fn the_papers_scorer_is_read() {
        let config = config(deberta_large_mnli()).unwrap();
        let relative = Relative { span: 512, c2p: true, p2c: true };
        assert_eq!((config.arch, config.relative), (EncoderArch::Deberta, Some(relative)));
        assert_eq!((config.absolute, config.limit(), relative.terms()), (None, None, 3));
        // 50,265 · 1024 + 2 · 1024 (norm) + 1024 · 1024 (relative), and a layer: 3h² + 2h + h² + (h² + h) + (h² + 3h) +
        // (8h² + f + 3h) with h = 1024, f = 4096.
        let (h, f) = (1024, 4096);
        let layer = 3 * h * h + 2 * h + h * h + h * h + h + h * h + h + 2 * h + 8 * h * h + f + h + 2 * h;
        assert_eq!(config.parameters(24), 50_265 * h + 2 * h + 1024 * h + 24 * layer);
    }

    #[test]
    fn roberta_positions_begin_behind_the_padding_id() {
        let json = json!({
            "model_type": "roberta", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 514, "type_vocab_size": 1,
            "pad_token_id": 1,
        });
        assert_eq!(config(json).unwrap().limit(), Some(512));
    }

    #[test]
    fn what_would_compute_something_else_is_refused_by_name() {
        for (key, value, reason) in [
            ("model_type", json!("deberta-v2"), "`deberta-v2` is not supported; supported: BertModel"),
            ("hidden_act", json!("silu"), "`hidden_act` silu"),
            ("talking_head", json!(true), "`talking_head`"),
            ("position_embedding_type", json!("relative_key"), "relative_key"),
            ("pos_att_type", json!("c2p|p2p"), "`pos_att_type` p2p"),
            ("num_attention_heads", json!(15), "not a multiple"),
            ("embedding_size", json!(128), "`embedding_size` 128"),
            ("vocab_size", json!("many"), "`vocab_size`"),
            ("hidden_size", Value::Null, "`hidden_size` is missing"),
            ("quantization_config", json!({"quant_method": "gptq"}), "gptq"),
        ] {
            let mut json = deberta_large_mnli();
            json[key] = value;
            let error = format!("{:#}", config(json).unwrap_err());
            assert!(error.contains(reason), "{key}: {error}");
        }
    }
}
