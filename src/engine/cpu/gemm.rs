//! Matrix products `x · Wᵀ` with weights packed once. Each output element is summed over the inner dimension in one fixed
//! order, so a row's result does not depend on how many rows are computed with it.
//!
//! Packed layout: panels of 16 output columns; in a panel, for each group of [`Elem::PACK`] inner elements, the 16 columns
//! in turn. Kernels work on pairs of panels. The bf16 layout is what AMX tiles and AVX512-BF16 dot products both read.

use super::{
    buffer::{Buffer, Shared},
    elem::Elem,
    isa::Isa,
    simd::{LANES, Simd, vectorised},
};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of activations that one kernel call takes at most; row counts of buffers are multiples of it.
pub const BLOCK: usize = 32;

/// Inner dimensions are padded to this, with zeros: an AMX tile's width.
pub const INNER: usize = 32;

/// One kernel call: `rows` rows of `x` (row stride `x_stride`) times a pair of panels (`panel` elements apart) over `inner`
/// elements, to `out` [32, 32] f32, row-major. Rows of `x` up to the next multiple of 16 must be readable.
pub struct Args<E> {
    /// First row.
    pub x: *const E,
    /// Elements from row to row.
    pub x_stride: usize,
    /// 1..=32.
    pub rows: usize,
    /// First panel.
    pub w: *const E,
    /// Elements from panel to panel.
    pub panel: usize,
    /// A multiple of [`INNER`].
    pub inner: usize,
    /// By what the sums are multiplied where the weights have another [`Form`].
    pub scale: f32,
    /// 1024 floats on a cache-line boundary.
    pub out: *mut f32,
}

/// How a kernel is called; `before` and `after` enclose a task's calls on one thread.
pub struct Kernel<E: 'static> {
    /// Prepares the thread (AMX tile configuration).
    pub before: unsafe fn(),
    /// Comes before the calls of `block` that take these rows, at most [`BLOCK`] of them.
    pub stage: unsafe fn(&Rows<E>),
    /// One block.
    pub block: unsafe fn(&Args<E>),
    /// Releases what `before` took.
    pub after: unsafe fn(),
    /// In what form the weights are packed, if not as the numbers that they are.
    pub form: Option<Form<E>>,
}

impl<E> Clone for Kernel<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Kernel<E> {}

/// Another form of weights, in as many bits.
pub struct Form<E: 'static> {
    /// By what power of two to multiply matrices.
    pub factor: fn(&[&[E]]) -> f32,
    /// A row times that, in the form.
    pub numbers: fn(&[E], f32, &mut [E]),
}

impl<E> Clone for Form<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Form<E> {}

/// A kernel that reads the rows where they are.
pub fn unstaged<E>(_: &Rows<E>) {}

/// A weight matrix [out, in], packed.
pub struct Packed<E: 'static> {
    data: Buffer<E>,
    kernel: Kernel<E>,
    /// By what the results of the kernel are multiplied.
    scale: f32,
    /// Inner elements, padded.
    inner: usize,
    /// Pairs of panels.
    pairs: usize,
    /// One value per packed column, or empty.
    bias: Vec<f32>,
}

/// What happens to a finished block.
pub enum Finish<E> {
    /// `out[row, column] = value + bias`.
    Store(Shared<f32>, usize),
    /// `out[row, column] += value + bias`.
    Add(Shared<f32>, usize),
    /// Pairs are (gate, up): `out[row, 16 · pair + lane] = silu(gate) · up`.
    SiluMul(Shared<E>, usize),
    /// `out[row, column] = map(value + bias)`.
    Map(Shared<E>, usize, Map),
}

/// What [`Finish::Map`] applies to each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// Nothing.
    Same,
    /// `x · Φ(x)`, Φ to 1.5e-7 (Abramowitz and Stegun 7.1.26).
    Gelu,
    /// `x · σ(2 · sqrt(2/π) · (x + 0.044715 · x³))`, the tanh form of the same.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// One activation matrix: address, row stride, rows.
#[derive(Clone, Copy)]
pub struct Rows<E> {
    /// First element.
    pub data: Shared<E>,
    /// Elements from row to row: the padded inner dimension of the weights.
    pub stride: usize,
    /// Rows that count.
    pub rows: usize,
}

/// Makes [`Packed`] matrices for a kernel, on a pool's threads.
#[derive(Clone, Copy)]
pub struct Packer<'a, E: 'static> {
    /// Which will read them.
    pub kernel: Kernel<E>,
    /// Whose threads work.
    pub pool: &'a rayon::ThreadPool,
}

impl<E: Elem> Packer<'_, E> {
    /// Matrices [outᵢ, in] one under the other.
    ///
    /// # Errors
    /// No memory.
    pub fn stacked(self, matrices: &[&[E]], inner: usize, bias: Vec<f32>) -> anyhow::Result<Packed<E>> {
        let columns: usize = matrices.iter().map(|m| m.len() / inner).sum();
        let pairs = columns.div_ceil(2 * LANES);
        let padded = vec![0.0; if bias.is_empty() { 0 } else { pairs * 2 * LANES }];
        let mut packed = Packed::empty(self.kernel, pairs, inner, padded)?;
        self.pool.install(|| packed.restack(matrices, inner, &bias));
        Ok(packed)
    }

    /// Two matrices of the same shape so that panel pairs hold 16 columns of each.
    ///
    /// # Errors
    /// No memory.
    pub fn interleaved(self, first: &[E], second: &[E], inner: usize) -> anyhow::Result<Packed<E>> {
        let columns = first.len() / inner;
        let mut packed = Packed::empty(self.kernel, columns.div_ceil(LANES), inner, Vec::new())?;
        self.pool.install(|| packed.reinterleave(first, second, inner));
        Ok(packed)
    }
}

impl<E: Elem> Packed<E> {
    /// Puts other matrices of the same shapes in the place of those that [`Packer::stacked`] was given, on the current rayon
    /// pool's threads.
    pub fn restack(&mut self, matrices: &[&[E]], inner: usize, bias: &[f32]) {
        self.fill(matrices, inner, |mut column| {
            for matrix in matrices {
                match matrix.get(column * inner..(column + 1) * inner) {
                    Some(row) => return Some(row),
                    None => column -= matrix.len() / inner,
                }
            }
            None
        });
        self.bias[..bias.len()].copy_from_slice(bias);
    }

    /// Puts other matrices of the same shape in the place of those that [`Packer::interleaved`] was given, likewise.
    pub fn reinterleave(&mut self, first: &[E], second: &[E], inner: usize) {
        self.fill(&[first, second], inner, |column| {
            let matrix = if (column / LANES).is_multiple_of(2) { first } else { second };
            let row = column / (2 * LANES) * LANES + column % LANES;
            matrix.get(row * inner..(row + 1) * inner)
        });
    }

    /// Gives the memory back until other matrices are put in.
    pub fn forget(&mut self) {
        self.data.forget();
    }

    fn empty(kernel: Kernel<E>, pairs: usize, inner: usize, bias: Vec<f32>) -> anyhow::Result<Self> {
        let inner = inner.next_multiple_of(INNER);
        Ok(Self { data: Buffer::zeroed(pairs * 2 * LANES * inner)?, kernel, scale: 1.0, inner, pairs, bias })
    }

    /// Packs the row of each column, if there is one, in parallel over the current rayon pool.
    fn fill<'a>(&mut self, matrices: &[&[E]], inner: usize, row: impl Fn(usize) -> Option<&'a [E]> + Sync) {
        let form = self.kernel.form.map(|form| (form, (form.factor)(matrices)));
        self.scale = form.map_or(1.0, |(_, factor)| factor.recip());
        self.data.par_chunks_exact_mut(LANES * self.inner).enumerate().for_each(|(panel, to)| {
            let mut changed = vec![E::from_f32(0.0); if form.is_some() { inner } else { 0 }];
            for lane in 0..LANES {
                let Some(mut row) = row(panel * LANES + lane) else { continue };
                if let Some((form, factor)) = form {
                    (form.numbers)(row, factor, &mut changed);
                    row = &changed;
                }
                for (k, &value) in row.iter().enumerate() {
                    to[(k / E::PACK * LANES + lane) * E::PACK + k % E::PACK] = value;
                }
            }
        });
    }

    /// Output columns, padded to whole pairs.
    pub fn columns(&self) -> usize {
        self.pairs * 2 * LANES
    }

    /// `x · Wᵀ`, in parallel over the current rayon pool.
    ///
    /// # Safety
    /// `x` has [`Rows::rows`] rows, readable up to a multiple of [`BLOCK`], with zeros or other numbers in the padded inner
    /// columns; the target has as many rows and [`Packed::columns`] columns (half of them for `SiluMul`), and nobody
    /// else touches it meanwhile.
    pub unsafe fn product(&self, isa: Isa, x: Rows<E>, finish: &Finish<E>) {
        debug_assert_eq!(x.stride, self.inner);
        // Enough tasks to balance: by columns, and by rows as well where there are many. The more pairs a task has, the less often the
        // activations are read; 16 of them stay in the second cache.
        let threads = rayon::current_num_threads();
        let blocks = x.rows.div_ceil(BLOCK);
        let few = (self.pairs / (threads * 4)).max((self.pairs / (threads * 2)).min(4)).clamp(1, 16);
        let (per_task, blocks_per_task) =
            if blocks < threads * 4 { (few, blocks) } else { (16, blocks.div_ceil(threads * 4)) };
        let (across, down) = (self.pairs.div_ceil(per_task), blocks.div_ceil(blocks_per_task.max(1)));
        (0..across * down).into_par_iter().with_max_len(1).for_each(|task| {
            let (column, row) = (task / down, task % down);
            let pairs = column * per_task..((column + 1) * per_task).min(self.pairs);
            let rows = row * blocks_per_task * BLOCK..((row + 1) * blocks_per_task * BLOCK).min(x.rows);
            // SAFETY: tasks have their own rows and columns of the target; the rest is passed on.
            unsafe { self.task(isa, x, rows, pairs, finish) }
        });
    }

    unsafe fn task(&self, isa: Isa, x: Rows<E>, rows: Range<usize>, pairs: Range<usize>, finish: &Finish<E>) {
        let kernel = self.kernel;
        let mut block = Block([0.0; BLOCK * 2 * LANES]);
        let panel = LANES * self.inner;
        // SAFETY: the kernel fits the processor; rows and panels are inside their buffers.
        unsafe {
            (kernel.before)();
            for first in rows.clone().step_by(BLOCK) {
                let rows = (rows.end - first).min(BLOCK);
                (kernel.stage)(&Rows { data: x.data.from(first * x.stride), stride: x.stride, rows });
                for pair in pairs.clone() {
                    (kernel.block)(&Args {
                        x: x.data.at(first * x.stride),
                        x_stride: x.stride,
                        rows,
                        w: self.data.as_ptr().add(pair * 2 * panel),
                        panel,
                        inner: self.inner,
                        scale: self.scale,
                        out: block.0.as_mut_ptr(),
                    });
                    let bias = self.bias.get(pair * 2 * LANES..).map_or(std::ptr::null(), <[f32]>::as_ptr);
                    let bias = if self.bias.is_empty() { std::ptr::null() } else { bias };
                    match *finish {
                        Finish::Store(out, stride) => {
                            store(isa.vector, &block.0, rows, bias, out.at(first * stride + pair * 2 * LANES), stride);
                        }
                        Finish::Add(out, stride) => {
                            add(isa.vector, &block.0, rows, bias, out.at(first * stride + pair * 2 * LANES), stride);
                        }
                        Finish::SiluMul(out, stride) => {
                            silu_mul::<E>(isa.vector, &block.0, rows, out.at(first * stride + pair * LANES), stride);
                        }
                        Finish::Map(out, stride, map) => {
                            let out = (out.at(first * stride + pair * 2 * LANES), stride);
                            mapped::<E>(isa.vector, &block.0, rows, bias, out, map);
                        }
                    }
                }
            }
            (kernel.after)();
        }
    }
}

#[repr(align(64))]
struct Block([f32; BLOCK * 2 * LANES]);

#[inline(always)]
unsafe fn store_rows<S: Simd>(block: &[f32], rows: usize, bias: *const f32, out: *mut f32, stride: usize) {
    // SAFETY: `rows` rows of 32 in both.
    unsafe {
        for row in 0..rows {
            for half in 0..2 {
                let mut v = S::load(block.as_ptr().add((row * 2 + half) * LANES));
                if !bias.is_null() {
                    v = S::add(v, S::load(bias.add(half * LANES)));
                }
                S::store(out.add(row * stride + half * LANES), v);
            }
        }
    }
}
vectorised!(
    /// out = block + bias
    store => store_rows(block: &[f32], rows: usize, bias: *const f32, out: *mut f32, stride: usize));

#[inline(always)]
unsafe fn add_rows<S: Simd>(block: &[f32], rows: usize, bias: *const f32, out: *mut f32, stride: usize) {
    // SAFETY: `rows` rows of 32 in both.
    unsafe {
        for row in 0..rows {
            for half in 0..2 {
                let mut v = S::load(block.as_ptr().add((row * 2 + half) * LANES));
                if !bias.is_null() {
                    v = S::add(v, S::load(bias.add(half * LANES)));
                }
                let p = out.add(row * stride + half * LANES);
                S::store(p, S::add(S::load(p), v));
            }
        }
    }
}
vectorised!(
    /// out += block + bias
    add => add_rows(block: &[f32], rows: usize, bias: *const f32, out: *mut f32, stride: usize));

#[inline(always)]
unsafe fn silu_mul_rows<S: Simd, E: Elem>(block: &[f32], rows: usize, out: *mut E, stride: usize) {
    // SAFETY: `rows` rows of 32 in, of 16 out.
    unsafe {
        for row in 0..rows {
            let gate = S::load(block.as_ptr().add(row * 2 * LANES));
            let up = S::load(block.as_ptr().add((row * 2 + 1) * LANES));
            let one = S::splat(1.0);
            let sigmoid = S::recip(S::add(one, S::exp(S::mul(gate, S::splat(-1.0)))));
            E::store::<S>(out.add(row * stride), S::mul(S::mul(gate, sigmoid), up));
        }
    }
}
vectorised!(
    /// out = silu(gate) · up, the gated feed-forward layer of these families
    silu_mul => silu_mul_rows::<E: Elem>(block: &[f32], rows: usize, out: *mut E, stride: usize));

#[inline(always)]
unsafe fn mapped_rows<S: Simd, E: Elem>(
    block: &[f32],
    rows: usize,
    bias: *const f32,
    (out, stride): (*mut E, usize),
    map: Map,
) {
    // SAFETY: `rows` rows of 32 in both.
    unsafe {
        for row in 0..rows {
            for half in 0..2 {
                let mut v = S::load(block.as_ptr().add((row * 2 + half) * LANES));
                if !bias.is_null() {
                    v = S::add(v, S::load(bias.add(half * LANES)));
                }
                let v = match map {
                    Map::Same => v,
                    Map::Gelu => gelu::<S>(v),
                    Map::GeluTanh => gelu_tanh::<S>(v),
                    Map::Relu => S::max(v, S::splat(0.0)),
                };
                E::store::<S>(out.add(row * stride + half * LANES), v);
            }
        }
    }
}
vectorised!(
    /// out = map(block + bias)
    mapped => mapped_rows::<E: Elem>(block: &[f32], rows: usize, bias: *const f32, out: (*mut E, usize), map: Map));

/// With y = |x| / √2 and erfc(y) ≈ poly(t) · e^(-y²), t = 1 / (1 + 0.3275911 y): max(x, 0) - |x| / 2 · erfc(y).
#[inline(always)]
unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    const POLYNOMIAL: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let size = S::max(x, S::mul(x, S::splat(-1.0)));
        let one = S::splat(1.0);
        let t = S::recip(S::fma(size, S::splat(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2), one));
        let mut p = S::splat(POLYNOMIAL[0]);
        let mut i = 1;
        while i < POLYNOMIAL.len() {
            p = S::fma(p, t, S::splat(POLYNOMIAL[i]));
            i += 1;
        }
        let e = S::exp(S::mul(S::mul(x, x), S::splat(-0.5)));
        let tail = S::mul(S::mul(S::mul(p, t), e), S::mul(size, S::splat(-0.5)));
        S::add(S::max(x, S::splat(0.0)), tail)
    }
}

#[inline(always)]
unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    // -2 · sqrt(2/π)
    const FACTOR: f32 = -1.595_769;
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let one = S::splat(1.0);
        let inner = S::mul(x, S::fma(S::mul(x, x), S::splat(0.044_715), one));
        S::mul(x, S::recip(S::add(one, S::exp(S::mul(inner, S::splat(FACTOR))))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::isa::Vector;

    /// Values of x · Φ(x) from the definition, with erf by its series in f64.
    fn exact(x: f64) -> f64 {
        let y = x / std::f64::consts::SQRT_2;
        let mut term = y;
        let mut sum = y;
        for n in 1..200 {
            term *= -y * y / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        x * 0.5 * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
    }

    #[test]
    fn activations_are_those_of_their_definitions() {
        let inputs: Vec<f32> = (0..1024).map(|i| (i as f32 - 512.0) / 100.0).collect();
        for vector in [Vector::Portable, Isa::detect().vector] {
            for map in [Map::Same, Map::Gelu, Map::GeluTanh, Map::Relu] {
                let mut out = vec![0f32; 1024];
                // SAFETY: 32 rows of 32 in both; the vectors were detected.
                unsafe { mapped::<f32>(vector, &inputs, 32, std::ptr::null(), (out.as_mut_ptr(), 32), map) }
                for (&x, &y) in inputs.iter().zip(&out) {
                    let x = f64::from(x);
                    let tanh = (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh();
                    let expected = match map {
                        Map::Same => x,
                        Map::Gelu => exact(x),
                        Map::GeluTanh => 0.5 * x * (1.0 + tanh),
                        Map::Relu => x.max(0.0),
                    };
                    assert!((f64::from(y) - expected).abs() < 2e-6, "{vector:?} {map:?} {x}: {y}, not {expected}");
                }
            }
        }
    }
}
