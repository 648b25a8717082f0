//! Where tensors live: `auto | cpu | cuda:N`. Loads libtorch_cuda.so at run time when a GPU is asked for: the program
//! links the CPU library only, and libtorch asks for its CUDA hooks once, at the first call that needs them.

use anyhow::bail;
use std::{
    ffi::{CStr, CString},
    path::Path,
    sync::OnceLock,
};
use tch::{Cuda, Device};

/// Where a model runs: `auto | cpu | cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The first GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number.
    Cuda(usize),
}

impl std::str::FromStr for DeviceSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(Self::Cuda(n)),
                None => bail!("device `{text}`: expected auto, cpu or cuda:N"),
            },
        }
    }
}

impl DeviceSpec {
    /// The libtorch device, with the CUDA library loaded if it is a GPU.
    ///
    /// # Errors
    /// A GPU was asked for by number and the CUDA library or that GPU is not there.
    pub fn resolve(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if gpu_driver_present() && load_cuda().is_ok() && Cuda::is_available() => Ok(Device::Cuda(0)),
            Self::Auto => Ok(Device::Cpu),
            Self::Cuda(n) => {
                if let Err(reason) = load_cuda() {
                    bail!(
                        "device cuda:{n}: libtorch_cuda.so cannot be loaded ({reason}); use a libtorch 2.11 with CUDA, or device: cpu"
                    );
                }
                let count = Cuda::device_count();
                if n as i64 >= count {
                    bail!("device cuda:{n}: this machine shows {count} CUDA devices");
                }
                Ok(Device::Cuda(n))
            }
        }
    }
}

/// Whether the NVIDIA driver's device files exist; spares the half second of loading CUDA where there is no GPU.
fn gpu_driver_present() -> bool {
    std::path::Path::new("/dev/nvidiactl").exists()
}

/// Environment variable with which libtorch takes flash attention before cuDNN's.
const PLANNED_ATTENTION_LAST: &str = "TORCH_CUDNN_SDPA_DEPRIORITIZED";

/// Loads libtorch_cuda.so into the process once, for everybody to see, and NVRTC, which compiles the engine's kernels.
fn load_cuda() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // On Hopper libtorch prefers cuDNN's attention, which makes a plan for every new shape; ours differ from pass to pass.
            if std::env::var_os(PLANNED_ATTENTION_LAST).is_none() {
                // SAFETY: once a process, before libtorch reads it; nothing else here writes the environment.
                unsafe { std::env::set_var(PLANNED_ATTENTION_LAST, "1") }
            }
            open("libtorch_cuda.so")?;
            // libtorch's own way to NVRTC: linked with a search path to it, wherever the wheels put it.
            open("libcaffe2_nvrtc.so")?;
            // NVRTC looks for its other half on the library path only, and finds it if it is loaded already.
            for part in beside("libnvrtc.so", "libnvrtc-builtins.so") {
                open(&part)?;
            }
            Ok(())
        })
        .clone()
}

/// Loads one library for everybody to see.
fn open(name: &str) -> Result<(), String> {
    let name = CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: a nul-terminated name; the libraries' initialisers are those of libtorch and CUDA themselves.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns null or a nul-terminated message that lives until the next dl call on this thread.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return Err("unknown reason".to_owned());
    }
    // SAFETY: as above, not null.
    Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

/// Files that begin with `wanted` in the directory of a library that this process has loaded, whose name begins with `loaded`.
fn beside(loaded: &str, wanted: &str) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let named = |path: &Path, start: &str| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start));
    let Some(directory) = paths.into_iter().find(|path| named(path, loaded)).and_then(Path::parent) else {
        return Vec::new();
    };
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| named(path, wanted)).map(|path| path.to_string_lossy().into_owned()).collect()
}
