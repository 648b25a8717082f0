//! bf16 kernels on AVX512-BF16 dot products: for processors whose dot products are fast and that have no AMX.
#![cfg(target_arch = "x86_64")]

use super::{
    attend::{Kernels, View},
    gemm::{Args, Kernel, unstaged},
    simd::LANES,
};
use crate::engine::pages::PAGE;
use std::arch::x86_64::*;

/// Matrices on AVX512-BF16.
pub fn dot_kernel() -> Kernel<u16> {
    unsafe fn nothing() {}
    Kernel { before: nothing, stage: unstaged, block: dot_block, after: nothing, form: None }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn dot_block(args: &Args<u16>) {
    let mut row = 0;
    while row < args.rows {
        // SAFETY: row ranges stay inside `rows`.
        row += unsafe {
            match args.rows - row {
                8.. => dot_rows::<8>(args, row),
                4.. => dot_rows::<4>(args, row),
                _ => dot_rows::<1>(args, row),
            }
        };
    }
}

/// `R` rows by 32 columns in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn dot_rows<const R: usize>(args: &Args<u16>, row: usize) -> usize {
    // SAFETY: inside the rows and panels that the caller gave.
    unsafe {
        let x = args.x.add(row * args.x_stride);
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for pair in 0..args.inner / 2 {
            let w = [load(args.w.add(pair * 2 * LANES)), load(args.w.add(args.panel + pair * 2 * LANES))];
            for (r, sum) in sums.iter_mut().enumerate() {
                let a = broadcast(x.add(r * args.x_stride + pair * 2));
                sum[0] = _mm512_dpbf16_ps(sum[0], a, w[0]);
                sum[1] = _mm512_dpbf16_ps(sum[1], a, w[1]);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let out = args.out.add((row + r) * 2 * LANES);
            _mm512_storeu_ps(out, sum[0]);
            _mm512_storeu_ps(out.add(LANES), sum[1]);
        }
        R
    }
}

/// 32 consecutive bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load(p: *const u16) -> __m512bh {
    // SAFETY: 32 readable halves; the two types are the same 64 bytes.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())) }
}

/// One pair of bf16 in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn broadcast(p: *const u16) -> __m512bh {
    // SAFETY: a readable pair; the two types are the same 64 bytes.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(p.cast::<i32>().read_unaligned())) }
}

/// Attention on AVX512-BF16.
pub fn attend_kernels() -> Kernels<u16> {
    unsafe fn nothing() {}
    Kernels { before: nothing, after: nothing, scores, mix }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn scores(view: &View<u16>, queries: *const u16, count: usize, limit: usize, out: *mut f32, stride: usize) {
    for (number, &page) in view.pages.iter().enumerate().take(limit.div_ceil(PAGE)) {
        let blocks = (limit - number * PAGE).min(PAGE).div_ceil(LANES);
        let mut q = 0;
        while q < count {
            // SAFETY: the page is inside the view; `count` queries, `count` rows of `stride`.
            q += unsafe {
                let keys = view.keys.add(page as usize * view.key_page);
                let (queries, out) = (queries.add(q * view.dim), out.add(q * stride + number * PAGE));
                match count - q {
                    8.. => page_scores::<8, 2>(view.dim, keys, blocks, queries, out, stride),
                    4.. => page_scores::<4, 4>(view.dim, keys, blocks, queries, out, stride),
                    2.. => page_scores::<2, 4>(view.dim, keys, blocks, queries, out, stride),
                    _ => page_scores::<1, 4>(view.dim, keys, blocks, queries, out, stride),
                }
            };
        }
    }
}

/// `Q` queries against the first `blocks` blocks of a page (rounded up to `B`), `B` blocks at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn page_scores<const Q: usize, const B: usize>(
    dim: usize,
    keys: *const u16,
    blocks: usize,
    queries: *const u16,
    out: *mut f32,
    stride: usize,
) -> usize {
    let size = dim * LANES;
    for first in (0..blocks).step_by(B) {
        // SAFETY: B divides the blocks of a page, so all of them are inside it.
        unsafe {
            let block = keys.add(first * size);
            let mut sums = [[_mm512_setzero_ps(); B]; Q];
            for pair in 0..dim / 2 {
                let mut k = [_mm512_setzero_ps(); B];
                for (b, k) in k.iter_mut().enumerate() {
                    *k = _mm512_loadu_ps(block.add(b * size + pair * 2 * LANES).cast());
                }
                for (q, sums) in sums.iter_mut().enumerate() {
                    let a = broadcast(queries.add(q * dim + pair * 2));
                    for (sum, k) in sums.iter_mut().zip(k) {
                        *sum = _mm512_dpbf16_ps(*sum, a, std::mem::transmute::<__m512, __m512bh>(k));
                    }
                }
            }
            for (q, sums) in sums.into_iter().enumerate() {
                for (b, sum) in sums.into_iter().enumerate() {
                    _mm512_storeu_ps(out.add(q * stride + (first + b) * LANES), sum);
                }
            }
        }
    }
    Q
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn mix(view: &View<u16>, weights: *const u16, stride: usize, count: usize, limit: usize, out: *mut f32) {
    let wide = view.dim.next_multiple_of(LANES);
    let mut q = 0;
    while q < count {
        let step = if count - q >= 4 {
            4
        } else if count - q >= 2 {
            2
        } else {
            1
        };
        let mut d = 0;
        while d < wide {
            // SAFETY: `count` rows of `stride` weights, of `wide` results; d + the block's width stays inside `wide`.
            d += unsafe {
                let (w, o) = (weights.add(q * stride), out.add(q * wide + d));
                match (step, wide - d) {
                    (4, 64..) => sums::<4, 4>(view, w, stride, limit, d, o),
                    (4, _) => sums::<4, 1>(view, w, stride, limit, d, o),
                    (2, 64..) => sums::<2, 4>(view, w, stride, limit, d, o),
                    (2, _) => sums::<2, 1>(view, w, stride, limit, d, o),
                    (_, 64..) => sums::<1, 4>(view, w, stride, limit, d, o),
                    _ => sums::<1, 1>(view, w, stride, limit, d, o),
                }
            };
        }
        q += step;
    }
}

/// `Q` queries' weighted sums of `16 · B` value dimensions from `d`; returns how many.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn sums<const Q: usize, const B: usize>(
    view: &View<u16>,
    weights: *const u16,
    stride: usize,
    limit: usize,
    d: usize,
    out: *mut f32,
) -> usize {
    let wide = view.dim.next_multiple_of(LANES);
    // SAFETY: pairs of positions below the limit are inside the view's pages; a last odd position's partner is zero.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); B]; Q];
        for (number, &page) in view.pages.iter().enumerate().take(limit.div_ceil(PAGE)) {
            let values = view.values.add(page as usize * view.value_page + d * 2);
            let weights = weights.add(number * PAGE);
            for pair in 0..(limit - number * PAGE).min(PAGE).div_ceil(2) {
                let mut v = [_mm512_setzero_ps(); B];
                for (b, v) in v.iter_mut().enumerate() {
                    *v = _mm512_loadu_ps(values.add((pair * wide + b * LANES) * 2).cast());
                }
                for (q, sums) in sums.iter_mut().enumerate() {
                    let w = broadcast(weights.add(q * stride + pair * 2));
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum = _mm512_dpbf16_ps(*sum, w, std::mem::transmute::<__m512, __m512bh>(v));
                    }
                }
            }
        }
        for (q, sums) in sums.into_iter().enumerate() {
            for (b, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(out.add(q * wide + b * LANES), sum);
            }
        }
        LANES * B
    }
}
