//! One face over all causal decoders, for training and scoring whole sequences: Qwen3, Qwen2, Llama ([`Decoder`]) and
//! OpenLM ([`OpenLm`]). Dispatches on config.json. The engine, which generates, has its own way for [`Decoder`]s.

use super::{
    config::{Arch, DecoderConfig, read_object, token_ids},
    decoder::{Decoder, RopeTables},
    openlm::{self, OpenLm, OpenLmConfig},
    weights::Weights,
};
use anyhow::{Context, ensure};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The shape of a causal decoder.
#[derive(Debug, Clone, PartialEq)]
pub enum CausalConfig {
    /// Qwen3, Qwen2, Llama, Mistral.
    Decoder(DecoderConfig),
    /// OpenLM.
    OpenLm(OpenLmConfig),
}

impl From<DecoderConfig> for CausalConfig {
    fn from(config: DecoderConfig) -> Self {
        Self::Decoder(config)
    }
}

impl CausalConfig {
    /// Reads and validates `dir/config.json` (and the end tokens of generation_config.json).
    ///
    /// # Errors
    /// Missing file, missing field, an architecture that is not supported (the message lists those that are).
    pub fn from_dir(dir: &Path) -> anyhow::Result<Self> {
        ensure!(dir.is_dir(), "{}: no such model directory", dir.display());
        let path = dir.join("config.json");
        ensure!(path.exists(), "{}: the model directory has no config.json", dir.display());
        if !openlm::describes(&read_object(&path)?) {
            return DecoderConfig::from_dir(dir).map(Self::Decoder);
        }
        let mut config = OpenLmConfig::from_dir(dir)?;
        let generation = dir.join("generation_config.json");
        if generation.exists() {
            let ids = token_ids(&read_object(&generation)?, "eos_token_id")
                .with_context(|| generation.display().to_string())?;
            if !ids.is_empty() {
                config.eos = ids;
            }
        }
        Ok(Self::OpenLm(config))
    }

    /// Rows of the output matrix.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Decoder(c) => c.vocab_size,
            Self::OpenLm(c) => c.vocab_size,
        }
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        match self {
            Self::Decoder(c) => c.hidden,
            Self::OpenLm(c) => c.hidden,
        }
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        match self {
            Self::Decoder(c) => c.layers,
            Self::OpenLm(c) => c.layers,
        }
    }

    /// Query heads, and key and value heads.
    pub fn heads(&self) -> (usize, usize) {
        match self {
            Self::Decoder(c) => (c.heads, c.kv_heads),
            Self::OpenLm(c) => (c.heads, c.heads),
        }
    }

    /// The family's name, as in `model_type`.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Decoder(c) => match c.arch {
                Arch::Qwen3 => "qwen3",
                Arch::Qwen2 => "qwen2",
                Arch::Llama => "llama",
            },
            Self::OpenLm(_) => openlm::MODEL_TYPE,
        }
    }

    /// Longest sequence.
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Decoder(c) => c.max_positions,
            Self::OpenLm(c) => c.max_positions,
        }
    }

    /// Ids that end a sequence; may be empty.
    pub fn eos(&self) -> &[u32] {
        match self {
            Self::Decoder(c) => &c.eos,
            Self::OpenLm(c) => &c.eos,
        }
    }

    /// Name and shape of every parameter. Matrices are [out, in].
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Decoder(c) => c.tensors(),
            Self::OpenLm(c) => c.tensors(),
        }
    }

    /// Number of parameters; tied embeddings count once.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The config.json that transformers would load.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Decoder(c) => c.to_json(),
            Self::OpenLm(c) => c.to_json(),
        }
    }

    /// Files that an export carries besides config and weights: name and content.
    pub fn extra_files(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Decoder(_) => &[],
            Self::OpenLm(_) => std::slice::from_ref(&openlm::MODELING_FILE),
        }
    }

    /// Name of the output matrix [V, H].
    pub fn output_name(&self) -> &'static str {
        match self {
            Self::Decoder(c) if c.tied_embeddings => "model.embed_tokens.weight",
            Self::Decoder(_) => "lm_head.weight",
            Self::OpenLm(_) => "output.weight",
        }
    }
}

/// A causal decoder with its parameters.
#[derive(Debug)]
pub enum CausalModel {
    /// Qwen3, Qwen2, Llama, Mistral.
    Decoder(Decoder),
    /// OpenLM.
    OpenLm(OpenLm),
}

impl From<Decoder> for CausalModel {
    fn from(decoder: Decoder) -> Self {
        Self::Decoder(decoder)
    }
}

impl From<OpenLm> for CausalModel {
    fn from(model: OpenLm) -> Self {
        Self::OpenLm(model)
    }
}

impl CausalModel {
    /// Loads a Hugging Face directory, parameters in `kind`; refuses weights whose names or shapes do not fit the config.
    ///
    /// # Errors
    /// As [`CausalConfig::from_dir`] and [`Weights::load`]; a parameter is missing, of another shape, or unknown.
    pub fn from_dir(dir: &Path, device: Device, kind: Kind) -> anyhow::Result<Self> {
        match CausalConfig::from_dir(dir)? {
            CausalConfig::Decoder(_) => Decoder::from_dir(dir, device, kind).map(Self::Decoder),
            CausalConfig::OpenLm(_) => OpenLm::from_dir(dir, device, kind).map(Self::OpenLm),
        }
    }

    /// Its shape.
    pub fn config(&self) -> CausalConfig {
        match self {
            Self::Decoder(m) => CausalConfig::Decoder(m.config.clone()),
            Self::OpenLm(m) => CausalConfig::OpenLm(m.config.clone()),
        }
    }

    /// Its parameters.
    pub fn weights(&self) -> &Weights {
        match self {
            Self::Decoder(m) => &m.weights,
            Self::OpenLm(m) => &m.weights,
        }
    }

    /// Its parameters, for trainers that put views of their own buffer in their place.
    pub fn weights_mut(&mut self) -> &mut Weights {
        match self {
            Self::Decoder(m) => &mut m.weights,
            Self::OpenLm(m) => &mut m.weights,
        }
    }

    /// Full causal forward: `tokens` [B, T] i64 (right padded; padding cannot be seen by real tokens) to hidden states
    /// [B, T, H] after the final norm, in `kind`, the type that matmuls run in. Differentiable when the parameters require
    /// gradients.
    pub fn hidden(&self, tokens: &Tensor, kind: Kind) -> Tensor {
        self.hidden_with(tokens, &self.rope(tokens.size()[1], tokens.device(), kind), kind)
    }

    /// [`Self::hidden`] of tokens that stand where `table` says: see [`RopeTables::branched`].
    pub fn hidden_with(&self, tokens: &Tensor, table: &RopeTables, kind: Kind) -> Tensor {
        let mut x = self.embed(tokens);
        for layer in 0..self.layers() {
            x = self.block(&x, layer, table, kind);
        }
        self.finish(&x, kind)
    }

    /// Hidden states [.., H] to logits [.., V] in f32; the matmul runs in the type of `hidden`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.linear(&self.output_weight().to_kind(hidden.kind()), None::<Tensor>).to_kind(Kind::Float)
    }

    /// The output matrix [V, H].
    pub fn output_weight(&self) -> &Tensor {
        let name = match self {
            Self::Decoder(m) if m.config.tied_embeddings => "model.embed_tokens.weight",
            Self::Decoder(_) => "lm_head.weight",
            Self::OpenLm(_) => "output.weight",
        };
        self.weights().tensors.get(name).expect("a model has its output matrix")
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        match self {
            Self::Decoder(m) => m.config.layers,
            Self::OpenLm(m) => m.config.layers,
        }
    }

    /// Rotary tables of `length` positions.
    pub fn rope(&self, length: i64, device: Device, kind: Kind) -> RopeTables {
        match self {
            Self::Decoder(m) => m.rope(length, device, kind),
            Self::OpenLm(m) => m.rope(length, device, kind),
        }
    }

    /// Token ids [B, T] to the residual stream [B, T, H], in the type of the parameters.
    pub fn embed(&self, tokens: &Tensor) -> Tensor {
        match self {
            Self::Decoder(m) => m.embed(tokens),
            Self::OpenLm(m) => m.embed(tokens),
        }
    }

    /// One block of the residual stream [B, T, H].
    pub fn block(&self, x: &Tensor, layer: usize, table: &RopeTables, kind: Kind) -> Tensor {
        match self {
            Self::Decoder(m) => m.block(x, layer, kind, &m.rows(table)),
            Self::OpenLm(m) => m.block(x, layer, table, kind),
        }
    }

    /// The final norm, in `kind`.
    pub fn finish(&self, x: &Tensor, kind: Kind) -> Tensor {
        match self {
            Self::Decoder(m) => m.final_norm(x, kind),
            Self::OpenLm(m) => m.finish(x, kind),
        }
    }
}
