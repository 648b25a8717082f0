//! Matrix products by f32 multiply-adds, for f32 weights and for bf16 weights, which are widened in registers. Each element is
//! summed over the inner dimension in order, whatever the number of rows and the vectors.
//!
//! The rows of a block are first copied as f32 to a scratch of the thread, with a fixed stride, so that one address and constant
//! offsets reach all rows of a tile.

use super::{
    elem::Elem,
    gemm::{Args, BLOCK, Kernel, Rows},
    isa::Vector,
    simd::{LANES, Simd, vectorised},
};
use std::cell::UnsafeCell;

/// Inner elements that lie together; the rows of a longer inner dimension lie in several such stretches.
const STRETCH: usize = 512;

/// Floats from row to row. Not a power of two: the rows of a tile would share a few cache sets.
const STRIDE: usize = STRETCH + LANES;

/// Floats of a block's stretch.
const STRETCH_ROWS: usize = BLOCK * STRIDE;

/// How far ahead weights are asked for, in bytes.
const AHEAD: usize = 1024;

thread_local! {
    static SCRATCH: UnsafeCell<Vec<f32>> = const { UnsafeCell::new(Vec::new()) };
}

/// At least `len` floats of this thread, as the last caller left them; valid until the thread's next call.
pub(super) fn scratch(len: usize) -> *mut f32 {
    SCRATCH.with(|cell| {
        // SAFETY: the only reference to this thread's scratch, gone when this returns.
        let scratch = unsafe { &mut *cell.get() };
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        scratch.as_mut_ptr()
    })
}

/// The kernel for those vectors.
pub fn kernel<E: Elem>(vector: Vector) -> Kernel<E> {
    macro_rules! kernel {
        ($vector:expr) => {{
            unsafe fn stage<E: Elem>(x: &Rows<E>) {
                // SAFETY: chosen for that processor; the rest is passed on.
                unsafe { copy::<E>($vector, x) }
            }
            unsafe fn block<E: Elem>(args: &Args<E>) {
                // SAFETY: chosen for that processor; the rest is passed on.
                unsafe { tiles::<E>($vector, args) }
            }
            Kernel { before: nothing, stage: stage::<E>, block: block::<E>, after: nothing, form: None }
        }};
    }
    unsafe fn nothing() {}
    match vector {
        Vector::Portable => kernel!(Vector::Portable),
        Vector::Avx2 => kernel!(Vector::Avx2),
        Vector::Avx512 => kernel!(Vector::Avx512),
    }
}

#[inline(always)]
unsafe fn copy_rows<S: Simd, E: Elem>(x: &Rows<E>) {
    let to = scratch(x.stride.div_ceil(STRETCH) * STRETCH_ROWS);
    for row in 0..x.rows {
        for first in (0..x.stride).step_by(STRETCH) {
            // SAFETY: `rows` rows of `stride`, a multiple of 16; the scratch holds BLOCK rows of them.
            unsafe {
                let from = x.data.at(row * x.stride + first);
                let to = to.add(first / STRETCH * STRETCH_ROWS + row * STRIDE);
                for k in (0..(x.stride - first).min(STRETCH)).step_by(LANES) {
                    S::store(to.add(k), E::load::<S>(from.add(k)));
                }
            }
        }
    }
}
vectorised!(
    /// A block's rows to the scratch.
    copy => copy_rows::<E: Elem>(x: &Rows<E>));

#[inline(always)]
unsafe fn tiles_of<S: Simd, E: Elem>(args: &Args<E>) {
    let x = scratch(args.inner.div_ceil(STRETCH) * STRETCH_ROWS);
    let mut row = 0;
    for left in (1..=args.rows.div_ceil(S::ROWS)).rev() {
        let rows = (args.rows - row).div_ceil(left);
        // Tiles of the same height as far as it goes: of 32 rows 11, 11 and 10 rather than 12, 12 and 8.
        macro_rules! pick {
            ($($n:literal)*) => {
                match rows {
                    // SAFETY: rows inside the block.
                    $($n if $n <= S::ROWS => unsafe { tile::<S, E, $n>(args, x, row) },)*
                    _ => unreachable!("a tile of more rows than fit the registers"),
                }
            };
        }
        pick!(1 2 3 4 5 6 7 8 9 10 11 12);
        row += rows;
    }
}
vectorised!(
    /// One block.
    tiles => tiles_of::<E: Elem>(args: &Args<E>));

/// `R` rows by 32 columns in registers.
#[expect(
    clippy::needless_range_loop,
    reason = "`part` also chooses the inner element, and f32 has one part of the two"
)]
#[inline(always)]
unsafe fn tile<S: Simd, E: Elem, const R: usize>(args: &Args<E>, x: *const f32, row: usize) {
    // SAFETY: inside the scratch's rows and the panels that the caller gave.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; R];
        let (mut left, mut right) = (args.w, args.w.add(args.panel));
        for first in (0..args.inner).step_by(STRETCH) {
            let x = x.add(first / STRETCH * STRETCH_ROWS + row * STRIDE);
            for k in (0..(args.inner - first).min(STRETCH)).step_by(E::PACK) {
                let w = [E::widen::<S>(left), E::widen::<S>(right)];
                S::prefetch(left.cast::<u8>().wrapping_add(AHEAD));
                S::prefetch(right.cast::<u8>().wrapping_add(AHEAD));
                left = left.add(LANES * E::PACK);
                right = right.add(LANES * E::PACK);
                for part in 0..E::PACK {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let a = S::splat(*x.add(r * STRIDE + k + part));
                        sum[0] = S::fma(a, w[0][part], sum[0]);
                        sum[1] = S::fma(a, w[1][part], sum[1]);
                    }
                }
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let out = args.out.add((row + r) * 2 * LANES);
            S::store(out, sum[0]);
            S::store(out.add(LANES), sum[1]);
        }
    }
}
