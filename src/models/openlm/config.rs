//! What an OpenLM model looks like: sizes, presets, names and shapes of its parameters, and its `config.json`. Facts:
//! reference section 7.1. Does not touch tensors.

use crate::models::config::{positive, read_object, size, token_ids};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// `model_type` in config.json.
pub const MODEL_TYPE: &str = "openlm";
/// `architectures` in config.json.
pub const ARCHITECTURE: &str = "OpenLMForCausalLM";
/// Epsilon of every layer norm.
pub const NORM_EPS: f64 = 1e-5;
/// Base of the rotary frequencies.
pub const ROPE_THETA: f64 = 10_000.0;

/// The shape of an OpenLM decoder. Query, key and value heads are as many, and together as wide as the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenLmConfig {
    /// Rows of the embedding and of the output matrix, which are two.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads; divides `hidden`.
    pub heads: usize,
    /// Width of the gated feed-forward layer.
    pub ffn: usize,
    /// Longest sequence that the model was trained on.
    pub max_positions: usize,
    /// Ids that end a sequence.
    pub eos: Vec<u32>,
}

/// The sizes of the paper (DCLM's configurations).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// 411,665,408 parameters.
    #[serde(rename = "400M")]
    M400,
    /// 1,439,893,504 parameters.
    #[serde(rename = "1.4B")]
    B1_4,
    /// 2,796,096,000 parameters.
    #[serde(rename = "2.8B")]
    B2_8,
}

impl OpenLmConfig {
    /// A preset with the paper's vocabulary of 50,432 and 2,048 positions.
    pub fn preset(preset: Preset) -> Self {
        let (hidden, layers, heads) = match preset {
            Preset::M400 => (1024, 24, 8),
            Preset::B1_4 => (2048, 24, 16),
            Preset::B2_8 => (2560, 32, 32),
        };
        let ffn = default_ffn(hidden);
        Self { vocab_size: 50_432, hidden, layers, heads, ffn, max_positions: 2048, eos: vec![0] }
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Reads and validates `dir/config.json`.
    ///
    /// # Errors
    /// Missing file, missing field, a variant of the architecture that is not computed here.
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("config.json");
        Self::from_json(&read_object(&path)?).with_context(|| path.display().to_string())
    }

    fn from_json(json: &Map<String, Value>) -> anyhow::Result<Self> {
        refuse_variants(json)?;
        let config = Self {
            vocab_size: size(json, "vocab_size")?,
            hidden: size(json, "hidden_size")?,
            layers: size(json, "num_hidden_layers")?,
            heads: size(json, "num_attention_heads")?,
            ffn: size(json, "intermediate_size")?,
            max_positions: size(json, "max_position_embeddings")?,
            eos: token_ids(json, "eos_token_id")?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks what every computation relies on.
    ///
    /// # Errors
    /// A zero size, heads that do not divide the width, an odd head width.
    pub fn validate(&self) -> anyhow::Result<()> {
        positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("intermediate_size", self.ffn),
            ("max_position_embeddings", self.max_positions),
        ])?;
        ensure!(
            self.hidden.is_multiple_of(self.heads),
            "the width {} cannot be split into {} heads",
            self.hidden,
            self.heads
        );
        ensure!(
            self.head_dim().is_multiple_of(2),
            "a head is {} wide; rotary positions need pairs, so choose another number of heads",
            self.head_dim()
        );
        Ok(())
    }

    /// config.json. `auto_map` points at the modeling file that is exported along, for transformers with `trust_remote_code`.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "auto_map": {
                "AutoConfig": "modeling_openlm.OpenLMConfig",
                "AutoModelForCausalLM": "modeling_openlm.OpenLMForCausalLM",
            },
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.ffn,
            "layer_norm_eps": NORM_EPS,
            "qk_norm": true,
            "rope_theta": ROPE_THETA,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": false,
            "eos_token_id": match self.eos.as_slice() {
                [] => Value::Null,
                [one] => json!(one),
                many => json!(many),
            },
        })
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Name (open_lm's) and shape of every parameter, in the order of the computation. Matrices are [out, in].
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, f) = (self.hidden, self.ffn);
        let mut list = vec![("tok_embeddings.weight".to_owned(), vec![self.vocab_size, h])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: Vec<usize>| list.push((format!("layers.{layer}.{name}"), shape));
            add("attention_norm.weight", vec![h]);
            add("attention.in_proj.weight", vec![3 * h, h]);
            add("attention.q_norm.weight", vec![h]);
            add("attention.k_norm.weight", vec![h]);
            add("attention.out_proj.weight", vec![h, h]);
            add("ffn_norm.weight", vec![h]);
            add("feed_forward.w12.weight", vec![2 * f, h]);
            add("feed_forward.w3.weight", vec![h, f]);
        }
        list.push(("norm.weight".to_owned(), vec![h]));
        list.push(("output.weight".to_owned(), vec![self.vocab_size, h]));
        list
    }
}

/// Width of the feed-forward layer where none is given: 8/3 of the width, rounded up to 256.
pub fn default_ffn(hidden: usize) -> usize {
    (8 * hidden).div_ceil(3).div_ceil(256) * 256
}

/// Whether a config.json describes this architecture.
pub fn describes(json: &Map<String, Value>) -> bool {
    let named = json.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    named == Some(ARCHITECTURE) || named.is_none() && json.get("model_type").and_then(Value::as_str) == Some(MODEL_TYPE)
}

fn refuse_variants(json: &Map<String, Value>) -> anyhow::Result<()> {
    for (key, wanted) in [("layer_norm_eps", NORM_EPS), ("rope_theta", ROPE_THETA)] {
        let found = json.get(key).and_then(Value::as_f64).unwrap_or(wanted);
        ensure!(found == wanted, "`{key}` {found} is not supported for OpenLM; supported: {wanted}");
    }
    for (key, wanted) in [("qk_norm", true), ("tie_word_embeddings", false)] {
        let found = json.get(key).and_then(Value::as_bool).unwrap_or(wanted);
        ensure!(found == wanted, "`{key}`: {found} is not supported for OpenLM; supported: {wanted}");
    }
    if !json.contains_key("hidden_size") && (json.contains_key("hidden_dim") || json.contains_key("params_args_dict")) {
        bail!(
            "this is a config of open_lm itself; it has to be exported with `hidden_size`, `num_hidden_layers`, … first"
        );
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Totals of reference section 7.1, q and k norms included.
    #[test]
    fn the_paper_s_sizes() {
        let count = |preset| OpenLmConfig::preset(preset).parameters();
        assert_eq!(count(Preset::M400), 411_665_408);
        assert_eq!(count(Preset::B1_4), 1_439_893_504);
        assert_eq!(count(Preset::B2_8), 2_796_096_000);
        assert_eq!([1024, 2048, 2560].map(default_ffn), [2816, 5632, 6912]);
        assert_eq!(OpenLmConfig::preset(Preset::B2_8).head_dim(), 80);
    }

    #[test]
    fn config_json_comes_back() {
        let config = OpenLmConfig::preset(Preset::M400);
        let json = config.to_json();
        let map = json.as_object().unwrap();
        assert!(describes(map));
        assert_eq!(OpenLmConfig::from_json(map).unwrap(), config);
    }

    #[test]
    fn other_models_are_refused() {
        let check = |key: &str, value: Value, expected: &str| {
            let mut json = OpenLmConfig::preset(Preset::M400).to_json();
            json[key] = value;
            let error = OpenLmConfig::from_json(json.as_object().unwrap()).unwrap_err().to_string();
            assert!(error.contains(expected), "{key}: {error}");
        };
        check("num_attention_heads", json!(7), "1024 cannot be split into 7 heads");
        check("num_attention_heads", json!(1024), "a head is 1 wide");
        check("qk_norm", json!(false), "`qk_norm`: false is not supported");
        check("rope_theta", json!(5e5), "`rope_theta` 500000 is not supported");
        check("intermediate_size", json!(0), "`intermediate_size` must be at least 1");
    }
}
