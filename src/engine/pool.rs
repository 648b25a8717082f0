//! The threads that compute on the CPU. All models of the process that use every core share one pool, so that two of them at work
//! do not ask for twice the cores.

use anyhow::Context;
use std::sync::{Arc, Mutex, PoisonError};

/// A pool of that many threads; 0: the shared one, of all cores.
///
/// # Errors
/// The operating system gives no threads.
pub fn threads(count: usize) -> anyhow::Result<Arc<rayon::ThreadPool>> {
    static SHARED: Mutex<Option<Arc<rayon::ThreadPool>>> = Mutex::new(None);
    if count > 0 {
        return build(count);
    }
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = shared.as_ref() {
        return Ok(Arc::clone(pool));
    }
    let pool = build(std::thread::available_parallelism().map_or(1, usize::from))?;
    Ok(Arc::clone(shared.insert(pool)))
}

fn build(count: usize) -> anyhow::Result<Arc<rayon::ThreadPool>> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("engine-{i}"));
    builder.build().map(Arc::new).context("cannot start the engine's threads")
}
