//! From checkpoint tensors to a [`CudaModel`]: projections that read the same input stacked into one matrix, the size of the
//! cache, the memory check.

use super::{CudaModel, Layer, program::Program};
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
use tch::{Device, Kind, Tensor};

/// Share of the GPU memory left after weights and activations that the cache may take.
const CACHE_SHARE: f64 = 0.92;
/// What libtorch and the driver take beside tensors: cuBLAS workspaces, kernels, what the allocator rounds up.
const OVERHEAD: u64 = 1 << 30;

impl CudaModel {
    /// Puts a decoder on GPU number `device`; its tensors may be anywhere and of any type.
    ///
    /// # Errors
    /// No driver; not enough memory, said before the cache is made; kernels that compute something else on this GPU.
    pub fn new(decoder: Decoder, slots: usize, limits: Limits, device: usize, kind: Kind) -> anyhow::Result<Self> {
        let program = Program::new(device, &decoder.config, kind == Kind::BFloat16, PAGE)?;
        Self::with(program, decoder, (slots, limits), Device::Cuda(device), kind)
    }

    /// The same with the kernels at hand.
    pub(super) fn with(
        program: Program,
        decoder: Decoder,
        (slots, limits): (usize, Limits),
        gpu: Device,
        kind: Kind,
    ) -> anyhow::Result<Self> {
        let _guard = tch::no_grad_guard();
        let Decoder { config, mut weights } = decoder;
        let mut take = Source { weights: &mut weights, device: gpu, kind };
        let embedding = take.take("model.embed_tokens.weight")?;
        let head = if config.tied_embeddings { embedding.shallow_clone() } else { take.take("lm_head.weight")? };
        let mut layers = Vec::new();
        for index in 0..config.layers {
            layers.push(layer(&config, index, &mut take)?);
        }
        let final_norm = take.norm("model.norm.weight")?;
        let pages = pages(&config, &program, slots, limits, kind)?;
        let cache = [pages, config.kv_heads, PAGE, config.head_dim].map(|n| n as i64);
        for layer in &mut layers {
            // Zeros: what is not written yet is multiplied by a weight of zero, and must be a number.
            layer.keys = Tensor::f_zeros(cache, (kind, gpu))?;
            layer.values = Tensor::f_zeros(cache, (kind, gpu))?;
        }
        let positions = config.max_positions.min(pages * PAGE);
        let (cos, sin) = rope::tables(&config, positions);
        let table = |values: &[f32]| Ok::<_, tch::TchError>(Tensor::f_from_slice(values)?.to_device(gpu));
        let mut model = Self {
            rope: (table(&cos)?, table(&sin)?),
            program,
            device: gpu,
            kind,
            limits,
            pages,
            embedding,
            head,
            layers,
            final_norm,
            config,
            host: Vec::new(),
        };
        model.check()?;
        Ok(model)
    }

    /// Takes other parameters of the same shapes for the present ones. Those that are on the GPU in the model's type already
    /// and are not stacked are shared, not copied.
    ///
    /// # Errors
    /// A parameter is missing.
    pub fn replace(&mut self, mut weights: Weights) -> anyhow::Result<()> {
        let _guard = tch::no_grad_guard();
        let mut take = Source { weights: &mut weights, device: self.device, kind: self.kind };
        self.embedding = take.take("model.embed_tokens.weight")?;
        let tied = self.config.tied_embeddings;
        self.head = if tied { self.embedding.shallow_clone() } else { take.take("lm_head.weight")? };
        for (index, old) in self.layers.iter_mut().enumerate() {
            let (keys, values) = (old.keys.shallow_clone(), old.values.shallow_clone());
            *old = Layer { keys, values, ..layer(&self.config, index, &mut take)? };
        }
        self.final_norm = take.norm("model.norm.weight")?;
        Ok(())
    }

    /// Bytes that the weights take.
    pub fn weight_bytes(config: &DecoderConfig, kind: Kind) -> u64 {
        (config.parameters() * kind.elt_size_in_bytes()) as u64
    }
}

/// Pages of the cache: every slot at the model's full length, or what the memory allows.
fn pages(config: &DecoderConfig, program: &Program, slots: usize, limits: Limits, kind: Kind) -> anyhow::Result<usize> {
    let size = kind.elt_size_in_bytes();
    let page = (2 * config.layers * config.kv_heads * PAGE * config.head_dim * size) as u64;
    let wide = (config.heads + 2 * config.kv_heads) * config.head_dim;
    let row = 4 * config.hidden + size * (3 * config.hidden + wide + config.heads * config.head_dim + 3 * config.ffn);
    // Logits twice: those that the host draws from are copied.
    let activations = (limits.rows * row + 2 * limits.outputs * config.vocab_size * size_of::<f32>()) as u64;
    let (free, total) = program.memory()?;
    let left = (free.saturating_sub(activations + OVERHEAD) as f64 * CACHE_SHARE) as u64;
    ensure!(
        left >= page,
        "the KV cache needs {} for {PAGE} positions; of the GPU's {} the weights leave {}, of which a step takes {}; use fewer slots or \
         a smaller model",
        memory::human(page),
        memory::human(total),
        memory::human(free),
        memory::human(activations + OVERHEAD)
    );
    let wanted = slots * pages_for(config.max_positions);
    Ok(wanted.min(usize::try_from(left / page).unwrap_or(usize::MAX)))
}

fn layer(config: &DecoderConfig, index: usize, take: &mut Source) -> anyhow::Result<Layer> {
    let name = |suffix: &str| format!("model.layers.{index}.{suffix}");
    let stack = |take: &mut Source, names: &[&str]| {
        let parts = names.iter().map(|n| take.take(&name(n))).collect::<anyhow::Result<Vec<_>>>()?;
        Ok::<_, anyhow::Error>(Tensor::f_cat(&parts, 0)?)
    };
    let weights = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"];
    let biases = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];
    let normed = config.arch == Arch::Qwen3;
    let none = Tensor::f_empty([0], (take.kind, take.device))?;
    Ok(Layer {
        qkv: stack(take, &weights)?,
        bias: (config.arch == Arch::Qwen2).then(|| stack(take, &biases)).transpose()?,
        q_norm: normed.then(|| take.norm(&name("self_attn.q_norm.weight"))).transpose()?,
        k_norm: normed.then(|| take.norm(&name("self_attn.k_norm.weight"))).transpose()?,
        out: take.take(&name("self_attn.o_proj.weight"))?,
        gate_up: stack(take, &["mlp.gate_proj.weight", "mlp.up_proj.weight"])?,
        down: take.take(&name("mlp.down_proj.weight"))?,
        input_norm: take.norm(&name("input_layernorm.weight"))?,
        post_norm: take.norm(&name("post_attention_layernorm.weight"))?,
        keys: none.shallow_clone(),
        values: none,
    })
}

/// Hands tensors out of the map, so that each is freed once stacked.
struct Source<'a> {
    weights: &'a mut Weights,
    device: Device,
    kind: Kind,
}

impl Source<'_> {
    fn raw(&mut self, name: &str) -> anyhow::Result<Tensor> {
        self.weights.tensors.remove(name).with_context(|| format!("the weights have no `{name}`"))
    }

    /// On the GPU, in the model's type.
    fn take(&mut self, name: &str) -> anyhow::Result<Tensor> {
        let tensor = self.raw(name)?;
        Ok(tensor.f_to_device(self.device)?.f_to_kind(self.kind)?.f_contiguous()?)
    }

    /// On the GPU, in f32.
    fn norm(&mut self, name: &str) -> anyhow::Result<Tensor> {
        let tensor = self.raw(name)?;
        Ok(tensor.f_to_device(self.device)?.f_to_kind(Kind::Float)?.f_contiguous()?)
    }
}
