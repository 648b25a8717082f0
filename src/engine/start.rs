//! From a model directory and options to a running device thread: device, precision, memory check.

use super::{
    Counters, Engine, EngineOptions, Precision, Shared,
    backend::{Backend, Limits},
    cpu::{
        CpuModel,
        elem::Elem,
        isa::{Bf16, Isa},
        load::Sizes,
    },
    cuda::{self, CudaModel},
    memory,
    pages::PAGE,
    pool, scheduler,
};
use crate::models::{config::DecoderConfig, decoder::Decoder, weights};
use anyhow::{Context, ensure};
use std::{
    path::Path,
    sync::{Arc, Mutex, mpsc},
};
use tch::{Device, Kind};

/// Prompt tokens computed in one step: enough to keep the matrix kernels busy, few enough to stay in the second-level
/// cache of the models this engine meets on a CPU.
pub const PREFILL_ROWS: usize = 512;
/// The same on a GPU, whose products want thousands of rows.
pub const CUDA_PREFILL_ROWS: usize = 8192;

/// What was decided from the options.
struct Setup {
    device: Device,
    half: bool,
    isa: Isa,
    /// 0: all cores.
    threads: usize,
    sizes: Sizes,
}

impl Setup {
    /// Type of weights and activations.
    fn kind(&self) -> Kind {
        if self.half { Kind::BFloat16 } else { Kind::Float }
    }
}

pub fn from_dir(dir: &Path, options: &EngineOptions) -> anyhow::Result<Engine> {
    let config = DecoderConfig::from_dir(dir)?;
    let setup = setup(options)?;
    let stored = weights::bytes_on_disk(dir)?;
    check_memory(&config, &setup, stored).with_context(|| dir.display().to_string())?;
    // For a GPU too: it takes one block at a time, and what is stacked never lies there twice.
    launch(Decoder::from_dir(dir, Device::Cpu, setup.kind())?, setup)
}

pub fn from_decoder(decoder: Decoder, options: &EngineOptions) -> anyhow::Result<Engine> {
    let setup = setup(options)?;
    check_memory(&decoder.config, &setup, 0)?;
    launch(decoder, setup)
}

fn setup(options: &EngineOptions) -> anyhow::Result<Setup> {
    ensure!(options.slots > 0, "`slots` must be at least 1");
    let isa = Isa::detect();
    let device = options.device.resolve()?;
    let half = half(options.precision, device, isa);
    let threads = options.threads;
    let prefill = if device.is_cuda() { CUDA_PREFILL_ROWS } else { PREFILL_ROWS };
    let limits = Limits { rows: options.slots + prefill, outputs: options.slots };
    Ok(Setup { device, half, isa, threads, sizes: Sizes { slots: options.slots, limits } })
}

/// Whether that precision means bf16 here.
pub fn half(precision: Precision, device: Device, isa: Isa) -> bool {
    match precision {
        Precision::F32 => false,
        Precision::Bf16 => true,
        Precision::Auto => device.is_cuda() || isa.bf16 != Bf16::None,
    }
}

/// Refuses a model that cannot fit before anything of it is read.
fn check_memory(config: &DecoderConfig, setup: &Setup, stored: u64) -> anyhow::Result<()> {
    let (free, packed) = match setup.device {
        Device::Cuda(device) => (Some(cuda::free_memory(device)?), CudaModel::weight_bytes(config, setup.kind())),
        _ if setup.half => (memory::available(), CpuModel::<u16>::weight_bytes(config)),
        _ => (memory::available(), CpuModel::<f32>::weight_bytes(config)),
    };
    let Some(free) = free else { return Ok(()) };
    ensure!(
        packed < free,
        "the model has {} parameters and needs {} of memory ({} on disk), but {} are free; use a smaller model{}",
        config.parameters(),
        memory::human(packed),
        memory::human(stored),
        memory::human(free),
        if setup.half { "" } else { " or precision: bf16" }
    );
    Ok(())
}

fn launch(decoder: Decoder, setup: Setup) -> anyhow::Result<Engine> {
    if let Device::Cuda(device) = setup.device {
        let (config, pool) = (decoder.config.clone(), pool::threads(setup.threads)?);
        let Sizes { slots, limits } = setup.sizes;
        let model = CudaModel::new(decoder, slots, limits, device, setup.kind())?;
        return spawn(config, Box::new(model), slots, pool);
    }
    if setup.half { launch_as::<u16>(decoder, setup) } else { launch_as::<f32>(decoder, setup) }
}

fn launch_as<E: Elem>(decoder: Decoder, setup: Setup) -> anyhow::Result<Engine> {
    let config = decoder.config.clone();
    let pool = pool::threads(setup.threads)?;
    let model = CpuModel::<E>::new(decoder, setup.sizes, setup.isa, pool.clone())?;
    spawn(config, Box::new(model), setup.sizes.slots, pool)
}

/// Starts the thread that owns the backend.
pub fn spawn(
    config: DecoderConfig,
    backend: Box<dyn Backend>,
    slots: usize,
    pool: Arc<rayon::ThreadPool>,
) -> anyhow::Result<Engine> {
    let shared = Arc::new(Shared {
        limit: config.max_positions.min(backend.pages() * PAGE),
        kind: backend.kind(),
        config,
        counters: Counters::default(),
        stopped: Mutex::new(None),
    });
    let (queue, requests) = mpsc::channel();
    let of_thread = shared.clone();
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || scheduler::run(backend, slots, pool, requests, &of_thread))
        .context("cannot start the engine thread")?;
    Ok(Engine { queue, shared })
}
