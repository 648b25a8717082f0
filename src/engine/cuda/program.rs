//! Our kernels on a GPU: kernels/*.cu compiled for one model by NVRTC when the engine starts, and launched on the stream that
//! libtorch uses, so that both take turns without waiting for each other. Knows pointers and counts, nothing of models.
//! In tests the same kernels run on the CPU (emulate.rs).

#[cfg(test)]
use super::emulate::Emulated;
#[cfg(test)]
use crate::engine::memory;
use crate::models::config::DecoderConfig;
use anyhow::{Context, anyhow};
use cudarc::{
    driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, sys},
    nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tch::Tensor;

const SOURCE: &str = concat!(
    include_str!("kernels/ptx.cu"),
    include_str!("kernels/base.cu"),
    include_str!("kernels/rows.cu"),
    include_str!("kernels/attend.cu"),
    include_str!("kernels/draw.cu"),
);

/// Threads of a block in the kernels that take whole warps of any number.
pub const THREADS: u32 = 256;

/// One model's kernels on one GPU.
pub struct Program {
    machine: Machine,
    pub embed: Kernel,
    pub rms_norm: Kernel,
    pub heads: Kernel,
    pub gate: Kernel,
    pub copy_page: Kernel,
    pub attend_plain: Kernel,
    /// Attention on tensor cores, where type and head width allow it.
    pub tiles: Option<Tiles>,
    pub draw: Kernel,
}

/// What runs the kernels.
enum Machine {
    Gpu {
        context: Arc<CudaContext>,
        stream: Arc<CudaStream>,
        module: Arc<CudaModule>,
    },
    #[cfg(test)]
    Emulated(Emulated),
}

/// One kernel.
pub struct Kernel {
    name: &'static str,
    /// None where it is emulated.
    function: Option<CudaFunction>,
}

/// The kernels that take tiles of queries.
pub struct Tiles {
    /// Many positions of a sequence: [`PROMPT_ROWS`] rows a tile.
    pub prompts: Kernel,
    /// One position of a sequence: [`TOKEN_ROWS`] rows a tile.
    pub tokens: Kernel,
    /// Bytes of shared memory that a block takes.
    pub shared: u32,
}

/// Rows (positions times query heads of a group) of a tile of a prompt.
pub const PROMPT_ROWS: usize = 64;
/// The same of single tokens.
pub const TOKEN_ROWS: usize = 16;

/// Whether the tensor-core kernels of kernels/attend.cu take this model.
pub fn takes_tiles(config: &DecoderConfig, half: bool) -> bool {
    half && matches!(config.head_dim, 64 | 128) && config.heads / config.kv_heads <= TOKEN_ROWS
}

/// Free and total bytes of a GPU's memory.
///
/// # Errors
/// The driver's.
pub fn memory(device: usize) -> anyhow::Result<(u64, u64)> {
    let context = CudaContext::new(device).map_err(driver).with_context(|| format!("cuda:{device}"))?;
    room(&context)
}

fn room(context: &CudaContext) -> anyhow::Result<(u64, u64)> {
    let (free, total) = context.mem_get_info().map_err(driver)?;
    Ok((free as u64, total as u64))
}

impl Program {
    /// Compiles for that model on GPU number `device`, whose CUDA library is loaded.
    ///
    /// # Errors
    /// The driver or NVRTC fails; the message holds the compiler's.
    pub fn new(device: usize, config: &DecoderConfig, half: bool, page: usize) -> anyhow::Result<Self> {
        let context = CudaContext::new(device).map_err(driver).with_context(|| format!("cuda:{device}"))?;
        let (major, minor) = context.compute_capability().map_err(driver)?;
        let mut options = vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++17".to_owned()];
        options.extend(definitions(config, half, page));
        let module = context.load_module(compiled(options)?).map_err(driver).context("loading the kernels")?;
        // libtorch computes on the default stream unless told otherwise, and nobody tells it.
        let stream = context.default_stream();
        Self::on(Machine::Gpu { context, stream, module }, takes_tiles(config, half).then_some(config.head_dim), page)
    }

    /// The same kernels on the CPU.
    ///
    /// # Errors
    /// They cannot be compiled.
    #[cfg(test)]
    pub fn emulated(config: &DecoderConfig, half: bool, page: usize) -> anyhow::Result<Self> {
        let machine = Machine::Emulated(Emulated::new(&definitions(config, half, page))?);
        Self::on(machine, takes_tiles(config, half).then_some(config.head_dim), page)
    }

    /// Finds the kernels. `tiles` is the head width of those that take tiles.
    fn on(machine: Machine, tiles: Option<usize>, page: usize) -> anyhow::Result<Self> {
        let get = |name: &'static str| machine.kernel(name);
        let tiles = tiles.map(|head_dim| {
            // Two pages of keys and two of values; the merged parts of single tokens take less.
            let shared = 4 * page * head_dim * 2;
            let shared = shared.max(4 * TOKEN_ROWS * (head_dim + 2) * size_of::<f32>());
            let large = |name| {
                let kernel = get(name)?;
                let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                if let Some(function) = &kernel.function {
                    function.set_attribute(attribute, shared as i32).map_err(driver)?;
                }
                anyhow::Ok(kernel)
            };
            anyhow::Ok(Tiles {
                prompts: large("attend_prompts")?,
                tokens: large("attend_tokens")?,
                shared: shared as u32,
            })
        });
        let tiles = tiles.transpose()?;
        Ok(Self {
            embed: get("embed")?,
            rms_norm: get("rms_norm")?,
            heads: get("heads")?,
            gate: get("gate")?,
            copy_page: get("copy_page")?,
            attend_plain: get("attend_plain")?,
            draw: get("draw")?,
            tiles,
            machine,
        })
    }

    /// Makes the GPU's context this thread's own; before the first launch on a thread.
    ///
    /// # Errors
    /// The driver's.
    pub fn bind(&self) -> anyhow::Result<()> {
        match &self.machine {
            Machine::Gpu { context, .. } => context.bind_to_thread().map_err(driver),
            #[cfg(test)]
            Machine::Emulated(_) => Ok(()),
        }
    }

    /// Free and total bytes of its GPU's memory.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> anyhow::Result<(u64, u64)> {
        match &self.machine {
            Machine::Gpu { context, .. } => room(context),
            #[cfg(test)]
            Machine::Emulated(_) => {
                let free = memory::available().context("the free memory is not known")?;
                Ok((free, free))
            }
        }
    }

    /// Queues a kernel: `blocks` [x, y] of `threads`, `shared` bytes each.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// `arguments` are what the kernel in kernels/ takes, in its order, and every pointer leads to memory of the size that it
    /// reads and writes, alive until the kernel has run: tensors of the same stream are, also when they are dropped before.
    pub unsafe fn launch(
        &self,
        kernel: &Kernel,
        blocks: [usize; 2],
        (threads, shared): (u32, u32),
        arguments: &[Argument],
    ) -> anyhow::Result<()> {
        if blocks.contains(&0) {
            return Ok(());
        }
        match (&self.machine, &kernel.function) {
            (Machine::Gpu { stream, .. }, Some(function)) => {
                let mut builder = stream.launch_builder(function);
                for argument in arguments {
                    match argument {
                        Argument::Pointer(p) => builder.arg(p),
                        Argument::Int(i) => builder.arg(i),
                        Argument::Float(f) => builder.arg(f),
                    };
                }
                let grid_dim = (blocks[0] as u32, blocks[1] as u32, 1);
                let config = LaunchConfig { grid_dim, block_dim: (threads, 1, 1), shared_mem_bytes: shared };
                // SAFETY: promised by the caller.
                unsafe { builder.launch(config) }.map_err(driver)?;
                Ok(())
            }
            #[cfg(test)]
            (Machine::Emulated(machine), _) => {
                // SAFETY: promised by the caller.
                unsafe { machine.launch(kernel.name, blocks, (threads, shared), arguments) }
            }
            _ => unreachable!("kernel {} was found on this machine", kernel.name),
        }
    }
}

impl Machine {
    fn kernel(&self, name: &'static str) -> anyhow::Result<Kernel> {
        let function = match self {
            Self::Gpu { module, .. } => {
                Some(module.load_function(name).map_err(driver).with_context(|| format!("kernel {name}"))?)
            }
            #[cfg(test)]
            Self::Emulated(_) => None,
        };
        Ok(Kernel { name, function })
    }
}

/// What the kernels are compiled for.
fn definitions(config: &DecoderConfig, half: bool, page: usize) -> Vec<String> {
    let values = [
        ("HALF", usize::from(half)),
        ("HEADS", config.heads),
        ("KV_HEADS", config.kv_heads),
        ("DIM", config.head_dim),
        ("PAGE", page),
    ];
    values.into_iter().map(|(name, value)| format!("-D{name}={value}")).collect()
}

/// The kernels under those options; models of the same shape in one process share them.
fn compiled(options: Vec<String>) -> anyhow::Result<Ptx> {
    static DONE: Mutex<BTreeMap<Vec<String>, Ptx>> = Mutex::new(BTreeMap::new());
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = done.get(&options) {
        return Ok(code.clone());
    }
    let given = CompileOptions { options: options.clone(), ..CompileOptions::default() };
    let code = compile_ptx_with_opts(SOURCE, given).map_err(|error| match error {
        CompileError::CompileError { log, .. } => anyhow!("NVRTC: {}", log.to_string_lossy()),
        other => anyhow!("NVRTC: {other:?}"),
    })?;
    done.insert(options, code.clone());
    Ok(code)
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// Device memory, or null.
    Pointer(u64),
    /// `int`.
    Int(i32),
    /// `float`.
    Float(f32),
}

impl Argument {
    /// No memory.
    pub const NULL: Self = Self::Pointer(0);

    /// Where a tensor's numbers begin.
    pub fn of(tensor: &Tensor) -> Self {
        Self::Pointer(tensor.data_ptr() as u64)
    }

    /// As [`Self::of`]; null for None.
    pub fn of_optional(tensor: Option<&Tensor>) -> Self {
        tensor.map_or(Self::NULL, Self::of)
    }

    /// A size.
    pub fn size(n: usize) -> Self {
        Self::Int(n as i32)
    }
}

fn driver(error: cudarc::driver::DriverError) -> anyhow::Error {
    anyhow!("CUDA driver: {error}")
}

/// The types above are passed as they are.
const _: fn() = || {
    fn passed<T: DeviceRepr>() {}
    passed::<u64>();
    passed::<i32>();
    passed::<f32>();
};
