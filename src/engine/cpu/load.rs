//! From checkpoint tensors to a [`CpuModel`]: packing, cache size, the memory check.

use super::{
    CpuModel, Layer, Workspace,
    attend::Scratch,
    buffer::Buffer,
    elem::Elem,
    gemm::{BLOCK, INNER, Packer},
    isa::Isa,
    simd::LANES,
};
use crate::{
    engine::{
        backend::Limits,
        memory,
        pages::{PAGE, pages_for},
    },
    models::{
        config::{Arch, DecoderConfig},
        decoder::Decoder,
        rope,
        weights::Weights,
    },
};
use anyhow::{Context, ensure};
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};

/// Share of the memory left after the weights that the cache may take.
const CACHE_SHARE: f64 = 0.5;

/// How many of what.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Sequences at the same time.
    pub slots: usize,
    /// What one step may hold.
    pub limits: Limits,
}

impl<E: Elem> CpuModel<E> {
    /// Packs a decoder whose weights are CPU tensors of [`Elem::KIND`].
    ///
    /// # Errors
    /// Not enough memory, said before anything large is allocated.
    pub fn new(decoder: Decoder, sizes: Sizes, isa: Isa, pool: Arc<rayon::ThreadPool>) -> anyhow::Result<Self> {
        let packer = Packer { kernel: E::gemm_kernel(isa), pool: &pool };
        let Decoder { config, mut weights } = decoder;
        let pages = cache_pages::<E>(&config, sizes)?;
        let mut take = Source::<E>::new(&mut weights);
        let embedding = take.take("model.embed_tokens.weight")?;
        let head = if config.tied_embeddings { embedding.shallow_clone() } else { take.take("lm_head.weight")? };
        let head = packer.stacked(&[slice::<E>(&head)], config.hidden, Vec::new())?;
        let mut rows = Buffer::zeroed(config.vocab_size * config.hidden)?;
        rows.copy_from_slice(slice::<E>(&embedding));
        drop(embedding);
        let layers = (0..config.layers).map(|i| layer(packer, &config, i, pages, &mut take));
        let layers = layers.collect::<anyhow::Result<_>>()?;
        Ok(Self {
            isa,
            limits: sizes.limits,
            pages,
            embedding: rows,
            layers,
            final_norm: take.norm("model.norm.weight")?,
            work: workspace(&config, sizes.limits, head.columns())?,
            head,
            rope: rope::tables(&config, config.max_positions.min(pages * PAGE)),
            scratch: (0..pool.current_num_threads()).map(|_| Mutex::new(Scratch::new())).collect(),
            pool,
            config,
        })
    }

    /// Packs other parameters of the same shapes over the present ones.
    ///
    /// # Errors
    /// A parameter is missing.
    pub fn repack(&mut self, mut weights: Weights) -> anyhow::Result<()> {
        let (config, pool) = (&self.config, &self.pool);
        let mut take = Source::<E> { weights: &mut weights, kind: std::marker::PhantomData };
        let embedding = take.take("model.embed_tokens.weight")?;
        let head = if config.tied_embeddings { embedding.shallow_clone() } else { take.take("lm_head.weight")? };
        let output = slice::<E>(&head);
        pool.install(|| self.head.restack(&[output], config.hidden, &[]));
        self.embedding.copy_from_slice(slice::<E>(&embedding));
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let new = Block::take(config, index, &mut take)?;
            let (projections, bias, out) = (new.projections(), &new.bias, slice::<E>(&new.out));
            let (gate, up, down) = (slice::<E>(&new.gate), slice::<E>(&new.up), slice::<E>(&new.down));
            pool.install(|| {
                layer.qkv.restack(&projections, config.hidden, bias);
                layer.out.restack(&[out], config.heads * config.head_dim, &[]);
                layer.gate_up.reinterleave(gate, up, config.hidden);
                layer.down.restack(&[down], config.ffn, &[]);
            });
            (layer.input_norm, layer.post_norm) = (new.input_norm, new.post_norm);
            (layer.q_norm, layer.k_norm) = (new.q_norm, new.k_norm);
        }
        self.final_norm = take.norm("model.norm.weight")?;
        Ok(())
    }

    /// Bytes that weights take once packed, and while they are read.
    pub fn weight_bytes(config: &DecoderConfig) -> u64 {
        let extra = if config.tied_embeddings { config.vocab_size * config.hidden } else { 0 };
        // A tenth more: while reading, the largest matrix exists twice.
        ((config.parameters() + extra) as u64 * size_of::<E>() as u64) * 11 / 10
    }
}

/// Bytes of one page over all layers.
fn page_bytes<E>(config: &DecoderConfig) -> u64 {
    let per_position = config.kv_heads * (config.head_dim + config.head_dim.next_multiple_of(LANES));
    (config.layers * PAGE * per_position * size_of::<E>()) as u64
}

/// Pages of the cache: every slot at the model's full length, or what the memory allows, but room for one page at least.
fn cache_pages<E>(config: &DecoderConfig, sizes: Sizes) -> anyhow::Result<usize> {
    let wanted = sizes.slots * pages_for(config.max_positions);
    let page = page_bytes::<E>(config);
    let Some(free) = memory::available() else { return Ok(wanted) };
    let allowed = (free as f64 * CACHE_SHARE) as u64 / page;
    ensure!(
        allowed > 0,
        "the KV cache needs {} for {PAGE} positions and {} are free",
        memory::human(page),
        memory::human(free)
    );
    Ok(wanted.min(usize::try_from(allowed).unwrap_or(usize::MAX)))
}

fn workspace<E: Elem>(config: &DecoderConfig, limits: Limits, vocab: usize) -> anyhow::Result<Workspace<E>> {
    let rows = limits.rows.next_multiple_of(BLOCK);
    let outputs = limits.outputs.next_multiple_of(BLOCK);
    let pad = |n: usize| n.next_multiple_of(INNER);
    let (hidden, heads) = (pad(config.hidden), pad(config.heads * config.head_dim));
    Ok(Workspace {
        x: Buffer::zeroed(rows * hidden)?,
        normed: Buffer::zeroed(rows * hidden)?,
        qkv: Buffer::zeroed(rows * pad((config.heads + 2 * config.kv_heads) * config.head_dim))?,
        mixed: Buffer::zeroed(rows * heads)?,
        gated: Buffer::zeroed(rows * pad(config.ffn))?,
        last: Buffer::zeroed(outputs * hidden)?,
        logits: Buffer::zeroed(outputs * vocab)?,
    })
}

fn layer<E: Elem>(
    packer: Packer<E>,
    config: &DecoderConfig,
    index: usize,
    pages: usize,
    take: &mut Source<E>,
) -> anyhow::Result<Layer<E>> {
    let new = Block::take(config, index, take)?;
    let (hidden, dim) = (config.hidden, config.head_dim);
    let cache = pages * config.kv_heads * PAGE;
    Ok(Layer {
        qkv: packer.stacked(&new.projections(), hidden, new.bias.clone())?,
        out: packer.stacked(&[slice::<E>(&new.out)], config.heads * dim, Vec::new())?,
        gate_up: packer.interleaved(slice::<E>(&new.gate), slice::<E>(&new.up), hidden)?,
        down: packer.stacked(&[slice::<E>(&new.down)], config.ffn, Vec::new())?,
        keys: Buffer::zeroed(cache * dim)?,
        values: Buffer::zeroed(cache * dim.next_multiple_of(LANES))?,
        input_norm: new.input_norm,
        post_norm: new.post_norm,
        q_norm: new.q_norm,
        k_norm: new.k_norm,
    })
}

/// One block's parameters as the checkpoint has them.
struct Block {
    qkv: Vec<Tensor>,
    bias: Vec<f32>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    out: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
}

impl Block {
    fn take<E: Elem>(config: &DecoderConfig, index: usize, take: &mut Source<E>) -> anyhow::Result<Self> {
        let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
        let (mut qkv, mut bias) = (Vec::new(), Vec::new());
        for part in ["q", "k", "v"] {
            qkv.push(take.take(&name(&format!("self_attn.{part}_proj.weight")))?);
            if config.arch == Arch::Qwen2 {
                bias.extend(floats(&take.take(&name(&format!("self_attn.{part}_proj.bias")))?)?);
            }
        }
        let head_norm = |take: &mut Source<E>, part: &str| {
            (config.arch == Arch::Qwen3).then(|| take.norm(&name(&format!("self_attn.{part}_norm.weight")))).transpose()
        };
        Ok(Self {
            qkv,
            bias,
            q_norm: head_norm(take, "q")?,
            k_norm: head_norm(take, "k")?,
            out: take.take(&name("self_attn.o_proj.weight"))?,
            gate: take.take(&name("mlp.gate_proj.weight"))?,
            up: take.take(&name("mlp.up_proj.weight"))?,
            down: take.take(&name("mlp.down_proj.weight"))?,
            input_norm: take.norm(&name("input_layernorm.weight"))?,
            post_norm: take.norm(&name("post_attention_layernorm.weight"))?,
        })
    }

    fn projections<E: Elem>(&self) -> Vec<&[E]> {
        self.qkv.iter().map(slice::<E>).collect()
    }
}

/// Hands tensors out of the map, so that each is freed once packed.
pub struct Source<'a, E> {
    weights: &'a mut Weights,
    kind: std::marker::PhantomData<E>,
}

impl<'a, E: Elem> Source<'a, E> {
    /// Over these weights.
    pub fn new(weights: &'a mut Weights) -> Self {
        Self { weights, kind: std::marker::PhantomData }
    }

    /// The tensor as contiguous numbers of [`Elem::KIND`].
    ///
    /// # Errors
    /// There is none of that name.
    pub fn take(&mut self, name: &str) -> anyhow::Result<Tensor> {
        let tensor = self.weights.tensors.remove(name).with_context(|| format!("the weights have no `{name}`"))?;
        Ok(tensor.f_to_kind(E::KIND)?.f_contiguous()?)
    }

    /// As f32, padded with zeros to whole vectors.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn norm(&mut self, name: &str) -> anyhow::Result<Vec<f32>> {
        let mut values = floats(&self.take(name)?)?;
        values.resize(values.len().next_multiple_of(INNER), 0.0);
        Ok(values)
    }
}

/// All numbers of a tensor as f32.
///
/// # Errors
/// libtorch's.
pub fn floats(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(Vec::try_from(tensor.f_to_kind(Kind::Float)?.f_reshape([-1])?)?)
}

/// The numbers of a contiguous CPU tensor of [`Elem::KIND`].
pub fn slice<E: Elem>(tensor: &Tensor) -> &[E] {
    assert!(tensor.kind() == E::KIND && tensor.is_contiguous(), "tensors come from `Source::take`");
    // SAFETY: contiguous CPU memory of `numel` elements of E's type, alive as long as the tensor is borrowed.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}
