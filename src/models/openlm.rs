//! OpenLM, the decoder that DCLM and the paper pretrain: pre-norm blocks with gain-only layer norms, query and key norms over
//! the full width, rotary positions, a SwiGLU layer, an output matrix of its own, no biases. Facts: reference section 7.1.
//! Whole sequences only. Parameter names are open_lm's.

use super::{decoder::RopeTables, random::truncated_normal, rope, weights::Weights};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use tch::{Device, Kind, Tensor};

mod config;

pub use config::{ARCHITECTURE, MODEL_TYPE, NORM_EPS, OpenLmConfig, Preset, ROPE_THETA, default_ffn, describes};

/// The modeling file that an export carries, so that transformers computes the same (`trust_remote_code=True`).
pub const MODELING_FILE: (&str, &str) = ("modeling_openlm.py", include_str!("openlm/modeling_openlm.py"));

/// An OpenLM model: its parameters and its forward pass.
#[derive(Debug)]
pub struct OpenLm {
    /// Its shape.
    pub config: OpenLmConfig,
    /// Its parameters; every name of [`OpenLmConfig::tensors`] is present with that shape.
    pub weights: Weights,
}

impl OpenLm {
    /// Loads a directory with config.json and safetensors.
    ///
    /// # Errors
    /// As [`OpenLmConfig::from_dir`] and [`Weights::load`]; a parameter is missing, of another shape, or unknown.
    pub fn from_dir(dir: &Path, device: Device, kind: Kind) -> anyhow::Result<Self> {
        use anyhow::Context;
        let config = OpenLmConfig::from_dir(dir)?;
        let weights = Weights::load(dir, device, kind)?;
        Self::new(config, weights).with_context(|| format!("{}: config.json and weights do not fit", dir.display()))
    }

    /// Puts a config and its parameters together. Rotary buffers of open_lm's own checkpoints are dropped.
    ///
    /// # Errors
    /// A parameter is missing, of another shape, or unknown.
    pub fn new(config: OpenLmConfig, mut weights: Weights) -> anyhow::Result<Self> {
        weights.tensors.retain(|name, _| !name.ends_with("pos_embed.inv_freq"));
        weights.check(&config.tensors())?;
        Ok(Self { config, weights })
    }

    /// Random parameters by open_lm's rule, deterministic for a seed; each parameter has its own stream.
    ///
    /// Norm gains are one. Matrices are normal, cut at three standard deviations, with
    ///   σ = 1/√width for embeddings, output, in_proj and w12,
    ///   σ = 1/√width / √(2(l+1)) for out_proj and 1/√ffn / √(2(l+1)) for w3, l = layer from 0.
    ///
    /// # Errors
    /// The config is not valid; out of memory.
    pub fn random(config: OpenLmConfig, seed: u64, device: Device, kind: Kind) -> anyhow::Result<Self> {
        config.validate()?;
        let mut weights = Weights { tensors: Default::default() };
        for (stream, (name, shape)) in config.tensors().into_iter().enumerate() {
            let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            let tensor = if name.ends_with("norm.weight") {
                Tensor::f_ones(&dims, (Kind::Float, Device::Cpu))?
            } else {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(stream as u64);
                let values = truncated_normal(&mut rng, shape.iter().product(), deviation(&name, shape[1]), 3.0);
                Tensor::f_from_slice(&values)?.f_reshape(&dims)?
            };
            weights.tensors.insert(name, tensor.f_to_kind(kind)?.f_to_device(device)?);
        }
        Ok(Self { config, weights })
    }

    /// Token ids [B, T] to the residual stream [B, T, H], in the type of the parameters.
    pub fn embed(&self, tokens: &Tensor) -> Tensor {
        Tensor::embedding(self.weight("tok_embeddings.weight"), tokens, -1, false, false)
    }

    /// One block: residual stream [B, T, H] to residual stream. Matmuls and norms run in `kind`.
    pub fn block(&self, x: &Tensor, layer: usize, table: &RopeTables, kind: Kind) -> Tensor {
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let attended = self.attention(&self.norm(x, &name("attention_norm.weight"), kind), layer, table);
        let x = x + attended;
        let normed = self.norm(&x, &name("ffn_norm.weight"), kind);
        let both = normed.linear(&self.cast(&name("feed_forward.w12.weight"), kind), None::<Tensor>);
        let halves = both.chunk(2, -1);
        let gated = halves[0].silu() * &halves[1];
        x + gated.linear(&self.cast(&name("feed_forward.w3.weight"), kind), None::<Tensor>)
    }

    /// The final norm: what the output matrix is applied to, in `kind`.
    pub fn finish(&self, x: &Tensor, kind: Kind) -> Tensor {
        self.norm(x, "norm.weight", kind)
    }

    /// Tables of `length` positions for [`Self::block`].
    pub fn rope(&self, length: i64, device: Device, kind: Kind) -> RopeTables {
        let (cos, sin) = rope::plain_tables(self.config.head_dim(), ROPE_THETA, length as usize);
        RopeTables::from_values(&cos, &sin, length, device, kind)
    }

    /// Causal self-attention of normed states [B, T, H] to [B, T, H].
    fn attention(&self, x: &Tensor, layer: usize, table: &RopeTables) -> Tensor {
        let [batch, length, width] = x.size()[..] else { unreachable!("the residual stream has three dimensions") };
        let (heads, kind) = (self.config.heads as i64, x.kind());
        let name = |suffix: &str| format!("layers.{layer}.attention.{suffix}");
        let qkv = x.linear(&self.cast(&name("in_proj.weight"), kind), None::<Tensor>).chunk(3, -1);
        let split = |x: &Tensor| x.view([batch, length, heads, -1]);
        let q = split(&self.norm(&qkv[0], &name("q_norm.weight"), kind));
        let k = split(&self.norm(&qkv[1], &name("k_norm.weight"), kind));
        let v = split(&qkv[2].contiguous());
        let flat = table.attend_rows(&q, &k, &v).unwrap_or_else(|| {
            let (q, k) = (table.rotate(&q.transpose(1, 2)), table.rotate(&k.transpose(1, 2)));
            table.attend(&q, &k, &v.transpose(1, 2)).transpose(1, 2).reshape([batch, length, width])
        });
        flat.linear(&self.cast(&name("out_proj.weight"), kind), None::<Tensor>)
    }

    /// Layer norm over the last dimension with a gain and no bias; input and gain in `kind` (sums are kept in f32).
    fn norm(&self, x: &Tensor, weight: &str, kind: Kind) -> Tensor {
        let gain = self.cast(weight, kind);
        x.to_kind(kind).layer_norm([self.config.hidden as i64], Some(gain), None::<Tensor>, NORM_EPS, false)
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.weights.tensors.get(name).expect("`new` checked that every parameter is present")
    }

    fn cast(&self, name: &str, kind: Kind) -> Tensor {
        self.weight(name).to_kind(kind)
    }
}

/// Standard deviation of a new matrix; `inputs` is its number of columns.
fn deviation(name: &str, inputs: usize) -> f64 {
    let plain = 1.0 / (inputs as f64).sqrt();
    let layer = name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    let scaled = name.ends_with("out_proj.weight") || name.ends_with("w3.weight");
    match layer {
        Some(layer) if scaled => plain / (2.0 * f64::from(layer + 1)).sqrt(),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules of reference section 7.1 with numbers put in by hand.
    #[test]
    fn deviations() {
        let check = |name, inputs, expected: f64| {
            let found = deviation(name, inputs);
            assert!((found - expected).abs() < 1e-12, "{name}: {found} is not {expected}");
        };
        check("tok_embeddings.weight", 1024, 0.03125);
        check("output.weight", 1024, 0.03125);
        check("layers.7.attention.in_proj.weight", 1024, 0.03125);
        check("layers.7.feed_forward.w12.weight", 1024, 0.03125);
        // 1/32 / sqrt(2 * 8) and 1/16 / sqrt(2)
        check("layers.7.attention.out_proj.weight", 1024, 0.0078125);
        check("layers.0.feed_forward.w3.weight", 256, 0.0625 / 2f64.sqrt());
    }
}
