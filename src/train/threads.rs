//! Work split over the threads that libtorch itself uses. Its OpenMP threads keep spinning for a while after each of its own
//! operations; a second pool beside them would wait for them. So the kernels here run as OpenMP regions too, through the
//! library that libtorch brought into the process. Without it, on threads of the standard library.

use std::{
    ffi::c_void,
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A pointer that threads share; each writes where no other does.
#[derive(Debug)]
pub struct Shared<T>(pub *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}
// SAFETY: a plain address; what is done with it is the business of the unsafe code that dereferences it.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The address of element `i`.
    ///
    /// # Safety
    /// It lies inside the allocation.
    pub unsafe fn at(self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

/// Runs `body(part, range)` for `parts` ranges that cover `0..n`, at the same time. The split depends on `n` and `parts` only.
pub fn split(parts: usize, n: usize, body: impl Fn(usize, Range<usize>) + Sync) {
    let range = |part: usize| n * part / parts..n * (part + 1) / parts;
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return;
            }
            body(part, range(part));
        }
    };
    if parts <= 1 || n <= 1 {
        return work();
    }
    match openmp() {
        Some(region) => region.run(parts, &work),
        None => std::thread::scope(|scope| {
            for _ in 1..parts {
                scope.spawn(work);
            }
            work();
        }),
    }
}

/// `GOMP_parallel(function, argument, threads, flags)`.
type Region = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, u32, u32);

struct OpenMp(Region);

impl OpenMp {
    fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        extern "C" fn enter(argument: *mut c_void) {
            // SAFETY: the address of the reference below, which outlives the region.
            let work = unsafe { *argument.cast::<&(dyn Fn() + Sync)>() };
            work();
        }
        let mut work = work;
        // SAFETY: libgomp's documented entry of a parallel region; it returns when every thread has returned from `enter`.
        unsafe { (self.0)(enter, (&raw mut work).cast(), threads as u32, 0) }
    }
}

fn openmp() -> Option<&'static OpenMp> {
    static FOUND: OnceLock<Option<OpenMp>> = OnceLock::new();
    let find = || {
        // SAFETY: a nul-terminated name, looked up among the libraries that the program has loaded.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
        // SAFETY: the symbol of that name has this type in every libgomp since 2013 (GCC 4.9).
        (!address.is_null()).then(|| OpenMp(unsafe { std::mem::transmute::<*mut c_void, Region>(address) }))
    };
    FOUND.get_or_init(find).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_once() {
        tch::set_num_threads(2);
        for (parts, n) in [(1, 5), (2, 1), (3, 10), (2, 1001), (4, 0)] {
            let seen: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            split(parts, n, |part, range| {
                assert!(part < parts);
                range.for_each(|i| {
                    seen[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1), "{n} in {parts}");
        }
    }
}
