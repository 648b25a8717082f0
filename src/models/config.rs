//! `config.json` of a Hugging Face directory, validated into one decoder description.

use std::path::Path;

/// What the engine and the trainers need to know of a decoder. All supported families fit this one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub arch: Arch,
    pub vocab_size: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub rms_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub max_positions: usize,
    pub tied_embeddings: bool,
    pub eos: Vec<u32>,
}

/// The family decides the projection biases (Qwen2), the q/k norms (Qwen3), and the weight names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    Qwen3,
    Qwen2,
    Llama,
}

/// Rotary scaling as in `rope_scaling` of config.json.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low_freq: f64, high_freq: f64, original: usize },
    Yarn { factor: f64, original: usize, beta_fast: f64, beta_slow: f64, attention_factor: Option<f64> },
}

impl DecoderConfig {
    /// Reads and validates `dir/config.json` (and the eos ids of `generation_config.json`).
    ///
    /// # Errors
    /// Missing file, missing field, an architecture that is not supported (the message lists those that are).
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        let _ = dir;
        todo!()
    }
    /// The config.json that transformers would load.
    pub fn to_json(&self) -> serde_json::Value {
        todo!()
    }
    /// Number of parameters; tied embeddings count once.
    pub fn parameters(&self) -> usize {
        todo!()
    }
}
