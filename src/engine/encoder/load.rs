//! From a model directory to an encoder ready to run: family, memory check, packing. An encoder of a decoder family is its first
//! blocks.

use super::{
    EncoderOptions, Info, Model,
    causal::CausalStates,
    heads::HeadScratch,
    packed::{Layer, Norm, PackedEncoder, Workspace},
    positions::Tables,
    torch::{Blocks, GPU_ROWS, TorchEncoder},
};
use crate::{
    engine::{
        cpu::{
            buffer::Buffer,
            elem::Elem,
            gemm::{Packed, Packer},
            isa::Isa,
            load::{Source, floats, slice},
        },
        memory, pool,
        start::half,
    },
    models::{
        config::DecoderConfig,
        decoder::Decoder,
        encoder::{
            config::{EncoderArch, EncoderConfig},
            forward::EncoderModel,
            weights,
        },
        weights::Weights,
    },
};
use anyhow::{Context, bail, ensure};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};
use tch::{Device, Kind, Tensor};

/// What config.json says, and the parameters and bytes of the first `layers` blocks.
enum Family {
    Encoder(EncoderConfig),
    Decoder(DecoderConfig),
}

impl Family {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        if EncoderConfig::is_encoder(dir)? {
            return EncoderConfig::from_dir(dir).map(Self::Encoder);
        }
        let supported = || format!("nor is it an encoder; encoders: {}", crate::models::encoder::config::SUPPORTED);
        DecoderConfig::from_dir(dir).map(Self::Decoder).with_context(supported)
    }

    fn info(&self) -> Info {
        match self {
            Self::Encoder(c) => Info {
                family: format!("{:?}", c.arch).to_lowercase(),
                layers: c.layers,
                hidden: c.hidden,
                vocab: c.vocab_size,
                limit: c.limit(),
                causal: false,
            },
            Self::Decoder(c) => Info {
                family: format!("{:?}", c.arch).to_lowercase(),
                layers: c.layers,
                hidden: c.hidden,
                vocab: c.vocab_size,
                limit: Some(c.max_positions),
                causal: true,
            },
        }
    }
}

/// What config.json says.
pub fn info(dir: &Path) -> anyhow::Result<Info> {
    Family::read(dir).map(|family| family.info())
}

/// The model and what is known of it.
pub struct Loaded {
    pub model: Box<dyn Model>,
    pub info: Info,
    pub pool: Arc<rayon::ThreadPool>,
}

/// Where parameters come from.
enum Parameters<'a> {
    Directory(&'a Path),
    /// Drawn anew each time.
    Random,
}

impl Parameters<'_> {
    fn shown(&self) -> String {
        match self {
            Self::Directory(dir) => dir.display().to_string(),
            Self::Random => "random encoder".to_owned(),
        }
    }

    fn of(&self, config: &EncoderConfig, layers: usize, device: Device, kind: Kind) -> anyhow::Result<Weights> {
        match self {
            Self::Directory(dir) => weights::load(dir, config, layers, kind),
            Self::Random => weights::random(config, layers, device, kind),
        }
    }
}

/// From a directory, with the kernels that fit the device.
pub fn load(dir: &Path, options: &EncoderOptions) -> anyhow::Result<Loaded> {
    make(&Parameters::Directory(dir), Family::read(dir)?, options, false)
}

/// The same with random parameters.
pub fn random(config: EncoderConfig, options: &EncoderOptions) -> anyhow::Result<Loaded> {
    make(&Parameters::Random, Family::Encoder(config), options, false)
}

/// From a directory, with the operations of a GPU wherever it runs.
#[cfg(test)]
pub fn load_torch(dir: &Path, options: &EncoderOptions) -> anyhow::Result<Loaded> {
    make(&Parameters::Directory(dir), Family::read(dir)?, options, true)
}

fn make(from: &Parameters, family: Family, options: &EncoderOptions, torch: bool) -> anyhow::Result<Loaded> {
    let info = family.info();
    let lowest = usize::from(info.causal);
    ensure!(
        (lowest..=info.layers).contains(&options.layer),
        "{}: layer {} was asked for; the model has {} (give one of {lowest} to {})",
        from.shown(),
        options.layer,
        info.layers,
        info.layers
    );
    let device = options.device.resolve()?;
    let isa = Isa::detect();
    let pool = pool::threads(options.threads)?;
    let half = half(options.precision, device, isa);
    let model = match (device.is_cuda() || torch, half) {
        (true, _) => load_blocks(from, family, options, device, if half { Kind::BFloat16 } else { Kind::Float })?,
        (false, true) => load_as::<u16>(from, family, options, isa, &pool)?,
        (false, false) => load_as::<f32>(from, family, options, isa, &pool)?,
    };
    Ok(Loaded { model, info, pool })
}

/// For a GPU.
fn load_blocks(
    from: &Parameters,
    family: Family,
    options: &EncoderOptions,
    device: Device,
    kind: Kind,
) -> anyhow::Result<Box<dyn Model>> {
    let _guard = tch::no_grad_guard();
    let context = || from.shown();
    let (hidden, heads, blocks) = match (family, from) {
        (Family::Encoder(config), from) => {
            let weights = from.of(&config, options.layer, device, kind)?;
            let (hidden, heads) = (config.hidden, config.heads);
            let model = EncoderModel::new(config, weights, options.layer, device, kind).with_context(context)?;
            (hidden, heads, Blocks::Encoder(model))
        }
        (Family::Decoder(config), Parameters::Directory(dir)) => {
            let mut decoder = Decoder::from_dir(dir, device, kind)?;
            let last = options.layer == decoder.config.layers;
            decoder.config.layers = options.layer;
            let blocks = Blocks::Decoder { model: Box::new(decoder), last, ropes: BTreeMap::new() };
            (config.hidden, config.heads, blocks)
        }
        (Family::Decoder(_), Parameters::Random) => bail!("random parameters are those of an encoder"),
    };
    let rows = if device.is_cuda() { options.rows.max(GPU_ROWS) } else { options.rows };
    Ok(Box::new(TorchEncoder { blocks, device, kind, hidden, heads, rows, states: Vec::new() }))
}

fn load_as<E: Elem>(
    from: &Parameters,
    family: Family,
    options: &EncoderOptions,
    isa: Isa,
    pool: &Arc<rayon::ThreadPool>,
) -> anyhow::Result<Box<dyn Model>> {
    let config = match (family, from) {
        (Family::Decoder(config), Parameters::Directory(dir)) => {
            return Ok(Box::new(CausalStates::<E>::load(dir, &config, options, isa, pool)?));
        }
        (Family::Decoder(_), Parameters::Random) => bail!("random parameters are those of an encoder"),
        (Family::Encoder(config), _) => config,
    };
    check_memory::<E>(&config, options.layer).with_context(|| from.shown())?;
    let packer = Packer { kernel: E::gemm_kernel(isa), pool };
    let mut weights = from.of(&config, options.layer, Device::Cpu, E::KIND)?;
    let mut take = Source::<E>::new(&mut weights);
    let mut words = Buffer::zeroed(config.vocab_size * config.hidden)?;
    words.copy_from_slice(slice::<E>(&take.take("embeddings.word_embeddings.weight")?));
    let places = places(&config, &mut take)?;
    let relative = match config.relative {
        Some(_) => Some(take.take("encoder.rel_embeddings.weight")?.f_to_kind(Kind::Float)?),
        None => None,
    };
    let layers = (0..options.layer).map(|i| layer(packer, &config, i, relative.as_ref(), &mut take));
    Ok(Box::new(PackedEncoder::<E> {
        layers: layers.collect::<anyhow::Result<_>>()?,
        embedding_norm: norm(&mut take, "embeddings.LayerNorm")?,
        isa,
        words,
        places,
        work: Workspace::new(&config, options.rows)?,
        scratch: (0..pool.current_num_threads()).map(|_| Mutex::new(HeadScratch::new())).collect(),
        pool: Arc::clone(pool),
        config,
    }))
}

/// Refuses a model that cannot fit before anything of it is read.
fn check_memory<E>(config: &EncoderConfig, layers: usize) -> anyhow::Result<()> {
    let Some(free) = memory::available() else { return Ok(()) };
    let parameters = config.parameters(layers);
    // While it is packed, the largest matrix exists twice; a tenth for that.
    let needed = parameters as u64 * size_of::<E>() as u64 * 2;
    ensure!(
        needed < free,
        "{layers} layers have {parameters} parameters and need {} of memory while they are read, but {} are free; use a smaller model{}",
        memory::human(needed),
        memory::human(free),
        if size_of::<E>() == 2 { "" } else { " or precision: bf16" }
    );
    Ok(())
}

/// Positions and token type 0 in one table.
fn places<E: Elem>(config: &EncoderConfig, take: &mut Source<E>) -> anyhow::Result<Vec<f32>> {
    let hidden = config.hidden;
    let kind = match config.token_types {
        0 => vec![0.0; hidden],
        _ => floats(&take.take("embeddings.token_type_embeddings.weight")?)?[..hidden].to_vec(),
    };
    match config.absolute {
        Some(table) => {
            let rows = floats(&take.take("embeddings.position_embeddings.weight")?)?;
            let rows = rows.chunks_exact(hidden).skip(table.offset);
            Ok(rows.flat_map(|row| row.iter().zip(&kind).map(|(a, b)| a + b)).collect())
        }
        None if config.token_types > 0 => Ok(kind),
        None => Ok(Vec::new()),
    }
}

fn layer<E: Elem>(
    packer: Packer<E>,
    config: &EncoderConfig,
    index: usize,
    relative: Option<&Tensor>,
    take: &mut Source<E>,
) -> anyhow::Result<Layer<E>> {
    let hidden = config.hidden;
    let at = |name: &str| format!("encoder.layer.{index}.{name}");
    let (qkv, positions) = match config.arch {
        EncoderArch::Deberta => (joint(packer, config, index, take)?, tables(config, index, relative, take)?),
        EncoderArch::Bert | EncoderArch::Roberta => (separate(packer, config, index, take)?, None),
    };
    let dense = |name: &str, inner: usize, take: &mut Source<E>| {
        let weight = take.take(&at(&format!("{name}.dense.weight")))?;
        let bias = floats(&take.take(&at(&format!("{name}.dense.bias")))?)?;
        packer.stacked(&[slice::<E>(&weight)], inner, bias)
    };
    Ok(Layer {
        qkv,
        positions,
        out: dense("attention.output", hidden, take)?,
        attention_norm: norm(take, &at("attention.output.LayerNorm"))?,
        up: dense("intermediate", hidden, take)?,
        down: dense("output", config.ffn, take)?,
        output_norm: norm(take, &at("output.LayerNorm"))?,
    })
}

fn norm<E: Elem>(take: &mut Source<E>, name: &str) -> anyhow::Result<Norm> {
    Ok(Norm { weight: take.norm(&format!("{name}.weight"))?, bias: take.norm(&format!("{name}.bias"))? })
}

/// BERT's three projections.
fn separate<E: Elem>(
    packer: Packer<E>,
    config: &EncoderConfig,
    index: usize,
    take: &mut Source<E>,
) -> anyhow::Result<Packed<E>> {
    let (mut matrices, mut bias) = (Vec::new(), Vec::new());
    for part in ["query", "key", "value"] {
        let name = format!("encoder.layer.{index}.attention.self.{part}");
        matrices.push(take.take(&format!("{name}.weight"))?);
        bias.extend(floats(&take.take(&format!("{name}.bias"))?)?);
    }
    let slices: Vec<&[E]> = matrices.iter().map(slice::<E>).collect();
    packer.stacked(&slices, config.hidden, bias)
}

/// DeBERTa's one projection: for each head its queries, keys and values; biases on queries and values only.
fn joint<E: Elem>(
    packer: Packer<E>,
    config: &EncoderConfig,
    index: usize,
    take: &mut Source<E>,
) -> anyhow::Result<Packed<E>> {
    let (hidden, dim) = (config.hidden, config.head_dim());
    let name = |part: &str| format!("encoder.layer.{index}.attention.self.{part}");
    let weight = take.take(&name("in_proj.weight"))?;
    let weight = slice::<E>(&weight);
    let part = |part: usize| {
        (0..config.heads).map(move |head| {
            let start = (head * 3 + part) * dim * hidden;
            &weight[start..start + dim * hidden]
        })
    };
    let matrices: Vec<&[E]> = (0..3).flat_map(part).collect();
    let mut bias = floats(&take.take(&name("q_bias"))?)?;
    bias.resize(2 * hidden, 0.0);
    bias.extend(floats(&take.take(&name("v_bias"))?)?);
    packer.stacked(&matrices, hidden, bias)
}

/// The layer's projections of the relative positions.
fn tables<E: Elem>(
    config: &EncoderConfig,
    index: usize,
    positions: Option<&Tensor>,
    take: &mut Source<E>,
) -> anyhow::Result<Option<Tables<E>>> {
    let (Some(relative), Some(positions)) = (config.relative, positions) else { return Ok(None) };
    let name = |part: &str| format!("encoder.layer.{index}.attention.self.{part}");
    let mut project = |part: &str, bias: bool| -> anyhow::Result<Vec<f32>> {
        let weight = take.take(&name(&format!("{part}.weight")))?.f_to_kind(Kind::Float)?;
        let bias = match bias {
            true => Some(take.take(&name(&format!("{part}.bias")))?.f_to_kind(Kind::Float)?),
            false => None,
        };
        floats(&positions.f_linear(&weight, bias)?)
    };
    let keys = if relative.c2p { Some(project("pos_proj", false)?) } else { None };
    let queries = if relative.p2c { Some(project("pos_q_proj", true)?) } else { None };
    if keys.is_none() && queries.is_none() {
        return Ok(None);
    }
    Ok(Some(Tables::new(relative.span, config.head_dim(), keys.as_deref(), queries.as_deref())))
}
