//! Zeroed memory on page boundaries, shared between the tasks of one parallel region through raw pointers.

use anyhow::Context;
use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

/// Types for which all-zero bytes are the number zero, and any bytes are a value.
///
/// # Safety
/// As the summary says; the alignment is at most a page.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: IEEE zero is all zero bits.
unsafe impl Plain for f32 {}
// SAFETY: an integer.
unsafe impl Plain for u16 {}

/// A fixed-length zero-initialised array. Pages that were never written cost no memory.
pub struct Buffer<T> {
    map: memmap2::MmapMut,
    len: usize,
    kind: PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The operating system gives no address space.
    pub fn zeroed(len: usize) -> anyhow::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).context("a buffer larger than the address space")?;
        let map = memmap2::MmapMut::map_anon(bytes.max(1)).with_context(|| format!("no memory for {bytes} bytes"))?;
        #[cfg(target_os = "linux")]
        if bytes >= 4 << 20 {
            // Fewer address translations for weights and cache; only advice, so failure is no matter.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, len, kind: PhantomData })
    }

    /// Makes all elements zero, and costs no memory until they are written again.
    pub fn forget(&mut self) {
        #[cfg(target_os = "linux")]
        {
            // SAFETY: nobody else holds a reference, as `&mut self` says, and every byte pattern is a value; an anonymous mapping's pages
            // read as zero afterwards (madvise(2), MADV_DONTNEED).
            let gone = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            if gone.is_ok() {
                return;
            }
        }
        self.map.fill(0);
    }

    /// A pointer that tasks of a parallel region may share.
    pub fn shared(&mut self) -> Shared<T> {
        Shared(self.map.as_mut_ptr().cast())
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` plain elements inside the map, which is page-aligned.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

/// A pointer into a [`Buffer`] for the tasks of one parallel region; each task writes its own range only.
pub struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}
// SAFETY: a plain address; whoever dereferences it says why its range is its own.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// What begins at element `index`.
    ///
    /// # Safety
    /// As [`Shared::at`].
    pub unsafe fn from(self, index: usize) -> Self {
        // SAFETY: passed on.
        Self(unsafe { self.at(index) })
    }

    /// An address that the caller vouches for: the tasks that it is given to only read.
    pub const fn read_only(address: *const T) -> Self {
        Self(address.cast_mut())
    }

    /// The address of element `index`.
    ///
    /// # Safety
    /// `index` is inside the buffer, and the buffer is alive.
    pub unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: inside one allocation, as the caller says.
        unsafe { self.0.add(index) }
    }
}
