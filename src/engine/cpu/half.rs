//! bf16 matrices by fp16 multiply-adds (AVX512-FP16): for Intel processors whose AMX tiles a virtual machine hides. Their fp16
//! multiply-adds are twice as fast as f32's, their bf16 dot products half as fast: 200, 93 and 45 billion multiply-adds a second
//! on one core of a model 207.
//!
//! fp16 has three more bits than bf16 but few exponents, so numbers are scaled by powers of two: weights per matrix, when packed;
//! activations per row, when staged. Products of [`SHORT`] pairs are summed in fp16, and those sums in f32. On random numbers the sums
//! add 1.4e-3 to the result where rounding the inputs to bf16 made 2.1e-3 (relative, root mean square). Each element is summed in one
//! order, whatever the number of rows.
#![cfg(target_arch = "x86_64")]

pub mod attend;

use super::{
    fma::scratch,
    gemm::{Args, BLOCK, Form, Kernel, Rows},
    simd::LANES,
};
use std::arch::x86_64::*;

/// Pairs of inner elements that are summed in fp16.
const SHORT: usize = 96;

/// The exponent of a staged row's largest number, and of a packed matrix's. With them a short sum stays below 2 · 96 · 2⁶ · 2² = 49,152,
/// inside fp16, and numbers down to 2⁻¹⁹ and 2⁻¹⁵ of the largest keep all their bits.
const ROW_TOP: i32 = 5;
const MATRIX_TOP: i32 = 1;

/// Inner elements that lie together; the rows of a longer inner dimension lie in several such stretches.
const STRETCH: usize = 6 * SHORT;

/// Halves from row to row of a stretch. Not a power of two: the rows of a tile would share a few cache sets. A constant: one address and
/// fixed offsets reach all rows of a tile.
const STRIDE: usize = STRETCH + 2 * LANES;

/// Halves of a block's stretch.
const STRETCH_ROWS: usize = BLOCK * STRIDE;

const _: () = assert!(STRETCH.is_multiple_of(2 * SHORT), "a short sum is of one stretch");

/// Rows of a tile: 2 · 12 sums, two vectors of weights and one number fit the registers.
const TILE: usize = 12;

/// How far ahead weights are asked for, in numbers.
const AHEAD: usize = 512;

/// Lanes of a pair's second number.
const SECOND: __mmask32 = 0xaaaa_aaaa;

/// Matrices in fp16.
pub fn gemm_kernel() -> Kernel<u16> {
    unsafe fn nothing() {}
    Kernel { before: nothing, stage, block, after: nothing, form: Some(Form { factor, numbers }) }
}

/// 2^(top - exponent of the number), for a number by the exponent bits of its bf16 form. Infinities and NaN are left as they are.
fn power(exponent: u16, top: i32) -> f32 {
    if exponent == 0xff {
        return 1.0;
    }
    // Both this and its inverse stay normal numbers.
    let power = (top + 127 - i32::from(exponent)).clamp(-125, 125);
    f32::from_bits(((power + 127) as u32) << 23)
}

fn factor(matrices: &[&[u16]]) -> f32 {
    let largest = matrices.iter().map(|m| m.iter().map(|x| x & 0x7fff).max().unwrap_or(0)).max().unwrap_or(0);
    power(largest >> 7, MATRIX_TOP)
}

fn numbers(row: &[u16], factor: f32, out: &mut [u16]) {
    let whole = row.len() / LANES * LANES;
    // SAFETY: whole vectors of both; this form is asked for where AVX512-FP16 was found.
    unsafe { convert(row.as_ptr(), factor, out.as_mut_ptr(), whole) }
    let mut tail = [0u16; LANES];
    tail[..row.len() - whole].copy_from_slice(&row[whole..]);
    let from = tail;
    // SAFETY: one vector of both.
    unsafe { convert(from.as_ptr(), factor, tail.as_mut_ptr(), LANES) }
    out[whole..row.len()].copy_from_slice(&tail[..row.len() - whole]);
}

/// `n` bf16 numbers, a multiple of 16, times a factor as fp16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn convert(from: *const u16, factor: f32, to: *mut u16, n: usize) {
    // SAFETY: `n` readable and writable halves.
    unsafe {
        let factor = _mm512_set1_ps(factor);
        for k in (0..n).step_by(LANES) {
            let bits = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(k).cast())));
            let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_mul_ps(_mm512_castsi512_ps(bits), factor));
            _mm256_storeu_si256(to.add(k).cast(), half);
        }
    }
}

/// The largest magnitude's bits of rows of `n` bf16 numbers, a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn largest(rows: impl Iterator<Item = *const u16>, n: usize) -> u16 {
    let mut high = _mm512_setzero_si512();
    for row in rows {
        for k in (0..n).step_by(2 * LANES) {
            // SAFETY: `n` readable halves.
            let bits = unsafe { _mm512_loadu_si512(row.add(k).cast()) };
            high = _mm512_max_epu16(high, _mm512_and_si512(bits, _mm512_set1_epi16(0x7fff)));
        }
    }
    let odd = _mm512_srli_epi32::<16>(high);
    let even = _mm512_and_si512(high, _mm512_set1_epi32(0xffff));
    _mm512_reduce_max_epu32(_mm512_max_epu32(odd, even)) as u16
}

/// The thread's scratch for rows of `inner`: the factors by which results are multiplied, then the rows.
fn staged(inner: usize) -> (*mut f32, *mut u16) {
    let factors = scratch(BLOCK + inner.div_ceil(STRETCH) * STRETCH_ROWS / 2);
    (factors, factors.wrapping_add(BLOCK).cast())
}

unsafe fn stage(x: &Rows<u16>) {
    let (factors, rows) = staged(x.stride);
    for row in 0..x.rows {
        // SAFETY: `rows` rows of `stride`, a multiple of 32; the scratch holds BLOCK rows of them.
        unsafe {
            let from = x.data.at(row * x.stride);
            let factor = power(largest(std::iter::once(from.cast_const()), x.stride) >> 7, ROW_TOP);
            *factors.add(row) = factor.recip();
            for first in (0..x.stride).step_by(STRETCH) {
                let to = rows.add(first / STRETCH * STRETCH_ROWS + row * STRIDE);
                convert(from.add(first), factor, to, (x.stride - first).min(STRETCH));
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
unsafe fn block(args: &Args<u16>) {
    let mut row = 0;
    for left in (1..=args.rows.div_ceil(TILE)).rev() {
        let rows = (args.rows - row).div_ceil(left);
        // Tiles of the same height as far as it goes: of 32 rows 11, 11 and 10 rather than 12, 12 and 8.
        macro_rules! pick {
            ($($n:literal)*) => {
                match rows {
                    // SAFETY: rows inside the block.
                    $($n => unsafe { tile::<$n>(args, row) },)*
                    _ => unreachable!("a tile of more rows than fit the registers"),
                }
            };
        }
        pick!(1 2 3 4 5 6 7 8 9 10 11 12);
        row += rows;
    }
}

/// `R` rows by 32 columns: fp16 sums in registers, f32 sums in the block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
unsafe fn tile<const R: usize>(args: &Args<u16>, row: usize) {
    let (factors, x) = staged(args.inner);
    // SAFETY: inside the scratch's rows, the panels and the block that the caller gave.
    unsafe {
        let out = args.out.add(row * 2 * LANES);
        let panels = [args.w, args.w.add(args.panel)];
        sums::<R>(x.add(row * STRIDE), STRETCH_ROWS, args.inner, panels, 2 * LANES, out);
        for r in 0..R {
            // One after the other: together they might be more than a number holds.
            let factors = [_mm512_set1_ps(args.scale), _mm512_set1_ps(*factors.add(row + r))];
            for half in 0..2 {
                let out = out.add((r * 2 + half) * LANES);
                let sum = _mm512_mul_ps(_mm512_load_ps(out), factors[0]);
                _mm512_store_ps(out, _mm512_mul_ps(sum, factors[1]));
            }
        }
    }
}

/// `R` staged rows, their stretches so far apart, times two panels, whose pairs are `step` halves apart: `R` rows of 32 sums to `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
unsafe fn sums<const R: usize>(
    x: *const u16,
    stretch: usize,
    inner: usize,
    [mut left, mut right]: [*const u16; 2],
    step: usize,
    out: *mut f32,
) {
    // SAFETY: `R` rows and two panels of `inner` numbers, as the caller says.
    unsafe {
        for first in (0..inner).step_by(2 * SHORT) {
            let mut x = x.add(first / STRETCH * stretch + first % STRETCH);
            let mut sums = [[_mm512_setzero_ph(); 2]; R];
            for _ in 0..SHORT.min((inner - first) / 2) {
                _mm_prefetch::<_MM_HINT_T0>(left.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(right.wrapping_add(AHEAD).cast());
                let w = [load(left), load(right)];
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = x.add(r * STRIDE).cast::<i32>().read_unaligned();
                    let a = _mm512_castsi512_ph(_mm512_set1_epi32(a));
                    sum[0] = _mm512_fmadd_ph(a, w[0], sum[0]);
                    sum[1] = _mm512_fmadd_ph(a, w[1], sum[1]);
                }
                (left, right, x) = (left.add(step), right.add(step), x.add(2));
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let out = out.add(r * 2 * LANES);
                for (half, sum) in widen(sum).into_iter().enumerate() {
                    let out = out.add(half * LANES);
                    let before = if first == 0 { _mm512_setzero_ps() } else { _mm512_load_ps(out) };
                    _mm512_store_ps(out, _mm512_add_ps(before, sum));
                }
            }
        }
    }
}

/// 32 consecutive fp16.
#[inline]
#[target_feature(enable = "avx512f,avx512fp16")]
unsafe fn load(p: *const u16) -> __m512h {
    // SAFETY: 32 readable halves.
    _mm512_castsi512_ph(unsafe { _mm512_loadu_si512(p.cast()) })
}

/// Sums of pairs: the 16 of the first vector, the 16 of the second, as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512fp16")]
fn widen([left, right]: [__m512h; 2]) -> [__m512; 2] {
    /// Even halves, then odd ones.
    const APART: [u16; 32] = [
        0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27,
        29, 31,
    ];
    let (left, right) = (_mm512_castph_si512(left), _mm512_castph_si512(right));
    // The first number of a left pair beside the second of a right one, and the other two in each other's place.
    let kept = _mm512_mask_blend_epi16(SECOND, left, right);
    let turned = _mm512_rol_epi32::<16>(_mm512_mask_blend_epi16(SECOND, right, left));
    let sums = _mm512_castph_si512(_mm512_add_ph(_mm512_castsi512_ph(kept), _mm512_castsi512_ph(turned)));
    // SAFETY: 64 readable bytes.
    let order = unsafe { _mm512_loadu_si512(APART.as_ptr().cast()) };
    let sums = _mm512_permutexvar_epi16(order, sums);
    [_mm512_cvtph_ps(_mm512_castsi512_si256(sums)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sums))]
}
