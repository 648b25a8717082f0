//! Sixteen lanes of bf16 and f32 for the training kernels, and the small matrix product on bf16 pairs that attention is made of.
//! AVX-512 with BF16 only.

use crate::engine::cpu::simd::{Avx512, Simd};
use std::arch::x86_64::*;

pub(super) use crate::engine::cpu::simd::LANES;

/// e^x, see [`Simd::exp`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) fn exp(x: __m512) -> __m512 {
    // SAFETY: AVX-512 is there.
    unsafe { Avx512::exp(x) }
}

/// Sixteen bf16 as f32.
///
/// # Safety
/// 16 readable halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn load(p: *const u16) -> __m512 {
    // SAFETY: the caller's promise.
    let halves = unsafe { _mm256_loadu_si256(p.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// Sixteen f32 rounded to bf16, as the low half of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) fn round(v: __m512) -> __m256i {
    // SAFETY: the two types are the same 32 bytes.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) }
}

/// Stores sixteen f32 as bf16.
///
/// # Safety
/// 16 writable halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn store(p: *mut u16, v: __m512) {
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(p.cast(), round(v)) }
}

/// Lane by lane the bf16 of `low` and `high` as one pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) fn pairs(low: __m512, high: __m512) -> __m512i {
    let (low, high) = (_mm512_cvtepu16_epi32(round(low)), _mm512_cvtepu16_epi32(round(high)));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

/// Lanes `from..` of a vector that begins at `from` which lie below `end`.
pub(super) fn mask(from: usize, end: usize) -> __mmask16 {
    match end.saturating_sub(from) {
        16.. => 0xffff,
        n => (1u16 << n) - 1,
    }
}

/// C[m][n] (+)= Σ over pairs k of A(m, k) · B(k, n), where a pair is two bf16 that meet two others: products and sums in f32.
/// Strides count pairs (A, B) and floats (C).
pub(super) struct Product {
    /// A(m, k) at `a + m a_row + k a_pair`
    pub(super) a: *const u32,
    pub(super) a_row: usize,
    pub(super) a_pair: usize,
    /// B(k, n) at `b + k b_row + n`
    pub(super) b: *const u32,
    pub(super) b_row: usize,
    /// C(m, n) at `c + m c_row + n`
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    /// Adds to what C holds.
    pub(super) add: bool,
}

impl Product {
    /// `rows` by `columns` (a multiple of 16) over `pairs`.
    ///
    /// # Safety
    /// All elements lie inside their allocations.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn run(&self, rows: usize, columns: usize, pairs: usize) {
        let mut row = 0;
        while row < rows {
            // SAFETY: rows and columns stay inside the caller's.
            row += unsafe {
                match rows - row {
                    6.. => self.strip::<6>(row, columns, pairs),
                    4.. => self.strip::<4>(row, columns, pairs),
                    2.. => self.strip::<2>(row, columns, pairs),
                    _ => self.strip::<1>(row, columns, pairs),
                }
            };
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn strip<const M: usize>(&self, row: usize, columns: usize, pairs: usize) -> usize {
        let mut column = 0;
        while column < columns {
            // SAFETY: as above.
            column += unsafe {
                match columns - column {
                    64.. => self.tile::<M, 4>(row, column, pairs),
                    32.. => self.tile::<M, 2>(row, column, pairs),
                    _ => self.tile::<M, 1>(row, column, pairs),
                }
            };
        }
        M
    }

    /// `M` rows by `16 N` columns in registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn tile<const M: usize, const N: usize>(&self, row: usize, column: usize, pairs: usize) -> usize {
        // SAFETY: as above; the vector types are the same 64 bytes.
        unsafe {
            let (a, b) = (self.a.add(row * self.a_row), self.b.add(column));
            let mut sums = [[_mm512_setzero_ps(); N]; M];
            for k in 0..pairs {
                let mut w = [_mm512_setzero_si512(); N];
                for (n, w) in w.iter_mut().enumerate() {
                    *w = _mm512_loadu_si512(b.add(k * self.b_row + n * LANES).cast());
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*a.add(m * self.a_row + k * self.a_pair) as i32);
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = _mm512_dpbf16_ps(
                            *sum,
                            std::mem::transmute::<__m512i, __m512bh>(x),
                            std::mem::transmute::<__m512i, __m512bh>(w),
                        );
                    }
                }
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (n, sum) in sums.into_iter().enumerate() {
                    let c = self.c.add((row + m) * self.c_row + column + n * LANES);
                    let sum = if self.add { _mm512_add_ps(sum, _mm512_loadu_ps(c)) } else { sum };
                    _mm512_storeu_ps(c, sum);
                }
            }
        }
        N * LANES
    }
}

/// `vectors` vectors of bf16 to f32, set or added.
///
/// # Safety
/// The processor has the instructions named; so many elements on both sides.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn widen(from: *const u16, to: *mut f32, vectors: usize, add: bool) {
    for i in (0..vectors * LANES).step_by(LANES) {
        // SAFETY: the caller's promise: so many elements on both sides.
        unsafe {
            let v = load(from.add(i));
            let v = if add { _mm512_add_ps(v, _mm512_loadu_ps(to.add(i))) } else { v };
            _mm512_storeu_ps(to.add(i), v);
        }
    }
}
