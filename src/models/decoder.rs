//! Qwen3, Qwen2 and Llama decoders: one forward pass, the differences are data ([`crate::models::config::Arch`]).
//! Whole sequences only; the engine has its own step over a KV cache.

use super::{
    config::{Arch, DecoderConfig},
    rope,
    weights::Weights,
};
use anyhow::{Context, bail};
use tch::{Device, Kind, Tensor};

/// A decoder's parameters, named as in the checkpoint, and its forward pass over whole sequences (training, tests).
/// The engine has its own step over a KV cache.
#[derive(Debug)]
pub struct Decoder {
    /// Its shape.
    pub config: DecoderConfig,
    /// Its parameters; every name of [`DecoderConfig::tensors`] is present with that shape.
    pub weights: Weights,
}

impl Decoder {
    /// Loads a Hugging Face directory; refuses weights whose names or shapes do not fit the config.
    ///
    /// # Errors
    /// As [`DecoderConfig::from_dir`] and [`Weights::load`]; a parameter is missing, of another shape, or unknown.
    pub fn from_dir(dir: &std::path::Path, device: Device, kind: Kind) -> anyhow::Result<Self> {
        let config = DecoderConfig::from_dir(dir)?;
        let weights = Weights::load(dir, device, kind)?;
        Self::new(config, weights).with_context(|| format!("{}: config.json and weights do not fit", dir.display()))
    }

    /// Puts a config and its parameters together.
    ///
    /// # Errors
    /// A parameter is missing, of another shape, or unknown.
    pub fn new(config: DecoderConfig, mut weights: Weights) -> anyhow::Result<Self> {
        let expected = config.tensors();
        // Tied checkpoints may store the same matrix twice; old exports store rotary buffers.
        weights.tensors.retain(|name, _| {
            !(name.ends_with("rotary_emb.inv_freq") || config.tied_embeddings && name == "lm_head.weight")
        });
        for (name, shape) in &expected {
            let found: Vec<usize> = weights.get(name)?.size().iter().map(|&n| n as usize).collect();
            if found != *shape {
                bail!("`{name}` has the shape {found:?}; config.json says {shape:?}");
            }
        }
        if weights.tensors.len() > expected.len() {
            let known: std::collections::HashSet<&str> = expected.iter().map(|(n, _)| n.as_str()).collect();
            let unknown = weights.tensors.keys().find(|n| !known.contains(n.as_str()));
            bail!("the weights hold `{}`, which this architecture does not have", unknown.map_or("", |n| n));
        }
        Ok(Self { config, weights })
    }

    /// Random parameters: normal with standard deviation `std`, norms one, biases zero. Deterministic for a seed.
    ///
    /// # Errors
    /// The config is not valid; out of memory.
    pub fn random(config: DecoderConfig, std: f64, seed: u64, device: Device, kind: Kind) -> anyhow::Result<Self> {
        use rand::SeedableRng;
        config.validate()?;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut weights = Weights { tensors: Default::default() };
        for (name, shape) in config.tensors() {
            let dims: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            let tensor = if name.ends_with("norm.weight") {
                Tensor::f_ones(&dims, (Kind::Float, Device::Cpu))?
            } else if name.ends_with(".bias") {
                Tensor::f_zeros(&dims, (Kind::Float, Device::Cpu))?
            } else {
                Tensor::f_from_slice(&normal(&mut rng, shape.iter().product(), std))?.f_reshape(&dims)?
            };
            weights.tensors.insert(name, tensor.f_to_kind(kind)?.f_to_device(device)?);
        }
        Ok(Self { config, weights })
    }

    /// Full causal forward: `tokens` [B, T] i64 (right padded; padding cannot be seen by real tokens) to hidden
    /// states [B, T, H] after the final norm. Differentiable when the parameters require gradients.
    /// `kind` is the compute type: matmuls run in it, the parameters may be f32 masters. The residual stream stays in
    /// the type of the parameters, the norms compute in f32.
    pub fn hidden(&self, tokens: &Tensor, kind: Kind) -> Tensor {
        let rows = Rows {
            config: &self.config,
            table: RopeTables::new(&self.config, tokens.size()[1], tokens.device(), kind),
        };
        let mut x = self.embed(tokens);
        for layer in 0..self.config.layers {
            x = self.block(&x, layer, kind, &rows);
        }
        self.final_norm(&x, kind)
    }

    /// Token ids of any shape to embeddings, one dimension more.
    pub fn embed(&self, tokens: &Tensor) -> Tensor {
        Tensor::embedding(self.weight("model.embed_tokens.weight"), tokens, -1, false, false)
    }

    /// One decoder block over the residual stream [.., H]; `mixer` decides which rows attend to which.
    pub fn block(&self, x: &Tensor, layer: usize, kind: Kind, mixer: &dyn Mixer) -> Tensor {
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        let normed = self.norm(x, &name("input_layernorm.weight"), kind);
        let x = x + self.attention(&normed, layer, mixer);
        let normed = self.norm(&x, &name("post_attention_layernorm.weight"), kind);
        let gate = normed.linear(&self.cast(&name("mlp.gate_proj.weight"), kind), None::<Tensor>);
        let up = normed.linear(&self.cast(&name("mlp.up_proj.weight"), kind), None::<Tensor>);
        &x + (gate.silu() * up).linear(&self.cast(&name("mlp.down_proj.weight"), kind), None::<Tensor>)
    }

    /// The norm after the last block.
    pub fn final_norm(&self, x: &Tensor, kind: Kind) -> Tensor {
        self.norm(x, "model.norm.weight", kind)
    }

    /// The output projection's name: the embedding's where both are one.
    pub fn output_name(&self) -> &'static str {
        if self.config.tied_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Hidden states [.., H] to logits [.., V] in f32; the matmul runs in the type of `hidden`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        hidden.linear(&self.cast(self.output_name(), hidden.kind()), None::<Tensor>).to_kind(Kind::Float)
    }

    /// Self-attention of normed states [.., H] to [.., H].
    fn attention(&self, x: &Tensor, layer: usize, mixer: &dyn Mixer) -> Tensor {
        let kind = x.kind();
        let c = &self.config;
        let name = |suffix: &str| format!("model.layers.{layer}.self_attn.{suffix}");
        let lead = &x.size()[..x.dim() - 1];
        let project = |part: &str, heads: usize| {
            let bias = (c.arch == Arch::Qwen2).then(|| self.cast(&name(&format!("{part}_proj.bias")), kind));
            let flat = x.linear(&self.cast(&name(&format!("{part}_proj.weight")), kind), bias);
            flat.reshape([lead, &[heads as i64, c.head_dim as i64]].concat())
        };
        let (mut q, mut k, v) = (project("q", c.heads), project("k", c.kv_heads), project("v", c.kv_heads));
        if c.arch == Arch::Qwen3 {
            q = self.norm(&q, &name("q_norm.weight"), kind);
            k = self.norm(&k, &name("k_norm.weight"), kind);
        }
        mixer.mix(&q, &k, &v).linear(&self.cast(&name("o_proj.weight"), kind), None::<Tensor>)
    }

    /// RMS norm over the last dimension, computed in f32: `w · x / sqrt(mean(x²) + eps)` (arXiv 1910.07467), result in `kind`.
    fn norm(&self, x: &Tensor, weight: &str, kind: Kind) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let scale = (wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + self.config.rms_eps).rsqrt();
        (wide * scale * self.weight(weight)).to_kind(kind)
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.weights.tensors.get(name).expect("`new` checked that every parameter is present")
    }

    fn cast(&self, name: &str, kind: Kind) -> Tensor {
        self.weight(name).to_kind(kind)
    }
}

/// Which rows attend to which, and at which positions they stand: the part of a block that mixes rows.
pub trait Mixer {
    /// Queries [.., heads, D], keys and values [.., kv_heads, D], not yet rotated, to [.., heads · D].
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor;
}

/// Causal attention inside each row of [B, T, heads, D].
struct Rows<'a> {
    config: &'a DecoderConfig,
    table: RopeTables,
}

impl Mixer for Rows<'_> {
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let c = self.config;
        let (batch, length) = (q.size()[0], q.size()[1]);
        let groups = (c.heads / c.kv_heads) as i64;
        let (q, k) = (self.table.rotate(&q.transpose(1, 2)), self.table.rotate(&k.transpose(1, 2)));
        let (k, v) = (repeat_heads(&k, groups), repeat_heads(&v.transpose(1, 2), groups));
        let mixed = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, None, false);
        mixed.transpose(1, 2).reshape([batch, length, (c.heads * c.head_dim) as i64])
    }
}

/// cos and sin as [T, head_dim / 2] tensors.
pub(super) struct RopeTables {
    cos: Tensor,
    sin: Tensor,
}

impl RopeTables {
    /// Of positions 0 to `length`.
    pub(super) fn new(config: &DecoderConfig, length: i64, device: Device, kind: Kind) -> Self {
        let (cos, sin) = rope::tables(config, length as usize);
        let tensor = |v: &[f32]| Tensor::from_slice(v).reshape([length, -1]).to_device(device).to_kind(kind);
        Self { cos: tensor(&cos), sin: tensor(&sin) }
    }

    /// The entries of `positions` [N], shaped to turn [N, heads, head_dim].
    pub(super) fn at(&self, positions: &Tensor) -> Self {
        let pick = |table: &Tensor| table.index_select(0, positions).unsqueeze(1);
        Self { cos: pick(&self.cos), sin: pick(&self.sin) }
    }

    /// Rotates [.., head_dim] where the tables' shapes broadcast; the pair of dimension i is i + head_dim / 2.
    pub(super) fn rotate(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let (a, b) = (&halves[0], &halves[1]);
        Tensor::cat(&[a * &self.cos - b * &self.sin, b * &self.cos + a * &self.sin], -1)
    }
}

/// [B, kv_heads, T, D] to [B, kv_heads · groups, T, D], each head repeated in place.
pub(super) fn repeat_heads(x: &Tensor, groups: i64) -> Tensor {
    if groups == 1 {
        return x.shallow_clone();
    }
    let [b, h, t, d] = x.size()[..] else { unreachable!("heads have four dimensions") };
    x.unsqueeze(2).expand([b, h, groups, t, d], false).reshape([b, h * groups, t, d])
}

/// Normal numbers by Box-Muller, so that they do not depend on libtorch's generator.
fn normal(rng: &mut rand_chacha::ChaCha8Rng, n: usize, std: f64) -> Vec<f32> {
    use rand::Rng;
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        let radius = std * (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * rng.random::<f64>();
        out.push((radius * angle.cos()) as f32);
        out.push((radius * angle.sin()) as f32);
    }
    out.truncate(n);
    out
}
