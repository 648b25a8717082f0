//! Qwen3, Qwen2 and Llama decoders: one forward pass, the differences are data ([`crate::models::config::Arch`]).

use super::{config::DecoderConfig, weights::Weights};
use tch::{Device, Kind, Tensor};

/// A decoder's parameters, named as in the checkpoint, and its forward pass over whole sequences (training, tests).
/// The engine has its own step over a KV cache.
#[derive(Debug)]
pub struct Decoder {
    pub config: DecoderConfig,
    pub weights: Weights,
}

impl Decoder {
    /// Loads a Hugging Face directory; refuses weights whose names or shapes do not fit the config.
    pub fn from_dir(dir: &std::path::Path, device: Device, kind: Kind) -> anyhow::Result<Self> {
        let _ = (dir, device, kind);
        todo!()
    }
    /// Random parameters: normal with standard deviation `std`, norms one. Deterministic for a seed.
    pub fn random(config: DecoderConfig, std: f64, seed: u64, device: Device, kind: Kind) -> anyhow::Result<Self> {
        let _ = (config, std, seed, device, kind);
        todo!()
    }
    /// Full causal forward: `tokens` [B, T] i64 (right padded; padding cannot be seen by real tokens) to hidden
    /// states [B, T, H] after the final norm. Differentiable when the parameters require gradients.
    /// `kind` is the compute type: matmuls run in it, the parameters may be f32 masters.
    pub fn hidden(&self, tokens: &Tensor, kind: Kind) -> Tensor {
        let _ = (tokens, kind);
        todo!()
    }
    /// Hidden states [.., H] to logits [.., V] in f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let _ = hidden;
        todo!()
    }
}
