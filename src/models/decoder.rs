//! Qwen3, Qwen2 and Llama decoders: one forward pass, the differences are data ([`crate::models::config::Arch`]).
//! Whole sequences only; the engine has its own step over a KV cache.

use super::{
    config::{Arch, DecoderConfig},
    random::normal,
    rope,
    route::{self, repeat_heads},
    weights::Weights,
};
use anyhow::Context;
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
        weights.check(&expected)?;
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
        let table = self.rope(tokens.size()[1], tokens.device(), kind);
        let rows = self.rows(&table);
        let mut x = self.embed(tokens);
        for layer in 0..self.config.layers {
            x = self.block(&x, layer, kind, &rows);
        }
        self.final_norm(&x, kind)
    }

    /// Token ids of any shape to embeddings, one dimension more, in the type of the parameters.
    pub fn embed(&self, tokens: &Tensor) -> Tensor {
        Tensor::embedding(self.weight("model.embed_tokens.weight"), tokens, -1, false, false)
    }

    /// One decoder block over the residual stream [.., H]; `mixer` decides which rows attend to which. Matmuls and norms give `kind`.
    pub fn block(&self, x: &Tensor, layer: usize, kind: Kind, mixer: &dyn Mixer) -> Tensor {
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        let normed = self.norm(x, &name("input_layernorm.weight"), kind);
        let x = x + self.attention(&normed, layer, mixer);
        let normed = self.norm(&x, &name("post_attention_layernorm.weight"), kind);
        let gate = normed.linear(&self.cast(&name("mlp.gate_proj.weight"), kind), None::<Tensor>);
        let up = normed.linear(&self.cast(&name("mlp.up_proj.weight"), kind), None::<Tensor>);
        x + (gate.silu() * up).linear(&self.cast(&name("mlp.down_proj.weight"), kind), None::<Tensor>)
    }

    /// The norm after the last block, in `kind`.
    pub fn final_norm(&self, x: &Tensor, kind: Kind) -> Tensor {
        self.norm(x, "model.norm.weight", kind)
    }

    /// Tables of `length` positions for [`Self::rows`].
    pub fn rope(&self, length: i64, device: Device, kind: Kind) -> RopeTables {
        RopeTables::new(&self.config, length, device, kind)
    }

    /// Attention inside each row of [B, T], whose tokens stand where `table` says.
    pub fn rows<'a>(&'a self, table: &'a RopeTables) -> Rows<'a> {
        Rows { config: &self.config, table }
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
        if let Some(normed) = route::rms_norm(x, self.weight(weight), self.config.rms_eps, kind) {
            return normed;
        }
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

/// Attention inside each row of [B, T, heads, D].
pub struct Rows<'a> {
    config: &'a DecoderConfig,
    table: &'a RopeTables,
}

impl Mixer for Rows<'_> {
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        if let Some(mixed) = self.table.attend_rows(q, k, v) {
            return mixed;
        }
        let c = self.config;
        let (batch, length) = (q.size()[0], q.size()[1]);
        let groups = (c.heads / c.kv_heads) as i64;
        let (q, k) = (self.table.rotate(&q.transpose(1, 2)), self.table.rotate(&k.transpose(1, 2)));
        let (k, v) = (repeat_heads(&k, groups), repeat_heads(&v.transpose(1, 2), groups));
        let mixed = self.table.attend(&q, &k, &v);
        mixed.transpose(1, 2).reshape([batch, length, (c.heads * c.head_dim) as i64])
    }
}

/// Where the tokens of a batch stand: cos and sin as [T, head_dim / 2] or [B, 1, T, head_dim / 2] tensors, and who sees whom.
#[derive(Debug)]
pub struct RopeTables {
    cos: Tensor,
    sin: Tensor,
    /// On the way of a GPU: cos of the whole head, and sin with the sign of its half.
    full: Option<[Tensor; 2]>,
    /// None: each token sees itself and all before it.
    branches: Option<Branches>,
}

/// Rows whose first tokens are an ordinary sequence that several continuations share.
#[derive(Debug)]
pub struct Branches {
    /// Tokens P of the shared part, the same for all rows (padded on its right).
    pub prefix: i64,
    /// [B, 1, T − P, T], added to the scores of the tokens after the prefix: 0 where one sees another, −∞ elsewhere. In the type of
    /// the computation.
    pub mask: Tensor,
}

impl RopeTables {
    /// Of positions 0 to `length`.
    pub(super) fn new(config: &DecoderConfig, length: i64, device: Device, kind: Kind) -> Self {
        let (cos, sin) = rope::tables(config, length as usize);
        Self::from_values(&cos, &sin, length, device, kind)
    }

    /// Of row-major values, as [`rope::tables`] gives them.
    pub(super) fn from_values(cos: &[f32], sin: &[f32], length: i64, device: Device, kind: Kind) -> Self {
        let tensor = |v: &[f32]| Tensor::from_slice(v).reshape([length, -1]).to_device(device).to_kind(kind);
        let (cos, sin) = (tensor(cos), tensor(sin));
        let both = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], -1);
        let full = route::gpu(device).then(|| [both(&cos, &cos), both(&-&sin, &sin)]);
        Self { cos, sin, full, branches: None }
    }

    /// Tables of tokens at `positions` [B, T], i64, of which those after the prefix see what the mask says. Scoring only.
    pub fn branched(&self, positions: &Tensor, branches: Branches) -> Self {
        let [batch, length] = positions.size()[..] else { unreachable!("positions have two dimensions") };
        let at = |table: &Tensor| table.index_select(0, &positions.reshape([-1])).reshape([batch, 1, length, -1]);
        let full = self.full.as_ref().map(|[cos, sin]| [at(cos), at(sin)]);
        Self { cos: at(&self.cos), sin: at(&self.sin), full, branches: Some(branches) }
    }

    /// On the way of a GPU, causal attention of a batch of whole sequences: queries [B, T, heads, D], keys and values [B, T, kv_heads, D],
    /// not rotated, to [B, T, heads · D].
    pub(super) fn attend_rows(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Option<Tensor> {
        let ([cos, sin], None) = (self.full.as_ref()?, &self.branches) else { return None };
        let [batch, length, heads, width] = q.size()[..] else { unreachable!("heads have four dimensions") };
        let turned = |x: &Tensor| turn(x, &cos.unsqueeze(1), &sin.unsqueeze(1)).transpose(1, 2);
        let mixed = route::causal(&turned(q), &turned(k), &v.transpose(1, 2));
        Some(mixed.transpose(1, 2).reshape([batch, length, heads * width]))
    }

    /// Attention of rotated queries and keys, and values, all [B, heads, T, D].
    pub(super) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let causal = |q: &Tensor, k: &Tensor, v: &Tensor| {
            Tensor::scaled_dot_product_attention(q, k, v, None::<Tensor>, 0.0, true, None, false)
        };
        let Some(Branches { prefix, mask }) = &self.branches else { return causal(q, k, v) };
        let first = |x: &Tensor| x.narrow(2, 0, *prefix);
        let shared = causal(&first(q), &first(k), &first(v));
        let rest = q.narrow(2, *prefix, q.size()[2] - prefix);
        let rest = Tensor::scaled_dot_product_attention(&rest, k, v, Some(mask), 0.0, false, None, false);
        Tensor::cat(&[shared, rest], 2)
    }

    /// The entries of `positions` [N], shaped to turn [N, heads, head_dim].
    pub fn at(&self, positions: &Tensor) -> Self {
        let pick = |table: &Tensor| table.index_select(0, positions).unsqueeze(1);
        let full = self.full.as_ref().map(|[cos, sin]| [pick(cos), pick(sin)]);
        Self { cos: pick(&self.cos), sin: pick(&self.sin), full, branches: None }
    }

    /// Rotates [.., head_dim] where the tables' shapes broadcast; the pair of dimension i is i + head_dim / 2.
    pub(super) fn rotate(&self, x: &Tensor) -> Tensor {
        if let Some([cos, sin]) = &self.full {
            return turn(x, cos, sin);
        }
        let halves = x.chunk(2, -1);
        let (a, b) = (&halves[0], &halves[1]);
        Tensor::cat(&[a * &self.cos - b * &self.sin, b * &self.cos + a * &self.sin], -1)
    }
}

/// Rotation in three operations: the halves change places in one.
fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let half = cos.size().last().map_or(0, |width| width / 2);
    (x * cos).addcmul(&x.roll([half], [-1]), sin)
}
