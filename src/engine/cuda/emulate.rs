//! The GPU's kernels on the CPU, for tests: kernels/emulate.cpp compiled by g++ for one model and loaded. Slow, and exact about
//! what the kernels address, wait for and share; it says nothing about a GPU's own arithmetic or timing.

use super::program::Argument;
use anyhow::{Context, ensure};
use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

type Launch = unsafe extern "C" fn(*const c_char, c_uint, c_uint, c_uint, c_uint, *const *const c_void) -> c_int;

/// The kernels of one model.
#[derive(Clone, Copy)]
pub struct Emulated {
    launch: Launch,
}

/// Blocks run one after another, and the libraries keep their state in globals.
static TURN: Mutex<()> = Mutex::new(());

impl Emulated {
    /// Compiles under these definitions (`-DNAME=VALUE`), once a process.
    ///
    /// # Errors
    /// No g++, or it finds an error.
    pub fn new(definitions: &[String]) -> anyhow::Result<Self> {
        static DONE: Mutex<BTreeMap<Vec<String>, Emulated>> = Mutex::new(BTreeMap::new());
        let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = done.get(definitions) {
            return Ok(*known);
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/cuda/kernels/emulate.cpp");
        let directory = tempfile::tempdir()?;
        let library = directory.path().join("kernels.so");
        let mut gcc = Command::new("g++");
        gcc.args(["-std=c++17", "-O2", "-shared", "-fPIC", "-w"]).args(definitions).arg(source).arg("-o").arg(&library);
        let output = gcc.output().context("g++")?;
        ensure!(output.status.success(), "g++: {}", String::from_utf8_lossy(&output.stderr));
        let path = CString::new(library.to_string_lossy().into_owned())?;
        // SAFETY: nul-terminated; the library was made above, and stays loaded until the process ends.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        ensure!(!handle.is_null(), "{}: cannot be loaded", library.display());
        // SAFETY: a handle that dlopen gave, a nul-terminated name.
        let symbol = unsafe { libc::dlsym(handle, c"repro_launch".as_ptr()) };
        ensure!(!symbol.is_null(), "the library has no repro_launch");
        // SAFETY: that is its type in emulate.cpp.
        let emulated = Self { launch: unsafe { std::mem::transmute::<*mut c_void, Launch>(symbol) } };
        done.insert(definitions.to_vec(), emulated);
        Ok(emulated)
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// There is none of that name.
    ///
    /// # Safety
    /// As [`super::program::Program::launch`], of the CPU's memory.
    pub unsafe fn launch(
        &self,
        name: &str,
        blocks: [usize; 2],
        (threads, shared): (u32, u32),
        arguments: &[Argument],
    ) -> anyhow::Result<()> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let pointers: Vec<*const c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(p) => std::ptr::from_ref(p).cast(),
                Argument::Int(i) => std::ptr::from_ref(i).cast(),
                Argument::Float(f) => std::ptr::from_ref(f).cast(),
            })
            .collect();
        let c_name = CString::new(name)?;
        let text: &CStr = &c_name;
        let [x, y] = blocks.map(|n| n as c_uint);
        // SAFETY: promised by the caller; each argument is given by its address, as CUDA does.
        let code = unsafe { (self.launch)(text.as_ptr(), x, y, threads, shared, pointers.as_ptr()) };
        ensure!(code == 0, "kernel {name} cannot be emulated with {threads} threads");
        Ok(())
    }
}
