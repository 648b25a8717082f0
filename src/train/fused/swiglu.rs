//! a = silu(g) u of the two halves of a projection, and its backward: one pass each.
//!   dg = da u σ(g) (1 + g (1 - σ(g))),  du = da silu(g)

use super::lanes::{LANES, exp, load, store};
use std::{arch::x86_64::*, ops::Range};

/// `both` [rows, 2 ffn] to `out` [rows, ffn].
///
/// # Safety
/// The pointers hold that; no other thread writes these rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn forward(both: *const u16, out: *mut u16, ffn: usize, rows: Range<usize>) {
    for row in rows {
        for i in (0..ffn).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let g = load(both.add(row * 2 * ffn + i));
                let u = load(both.add(row * 2 * ffn + ffn + i));
                store(out.add(row * ffn + i), _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u));
            }
        }
    }
}

/// `d_out` [rows, ffn] and `both` to `d_both` [rows, 2 ffn].
///
/// # Safety
/// As [`forward`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn backward(d_out: *const u16, both: *const u16, d_both: *mut u16, ffn: usize, rows: Range<usize>) {
    let one = _mm512_set1_ps(1.0);
    for row in rows {
        for i in (0..ffn).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let g = load(both.add(row * 2 * ffn + i));
                let u = load(both.add(row * 2 * ffn + ffn + i));
                let d = load(d_out.add(row * ffn + i));
                let s = sigmoid(g);
                let slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
                store(d_both.add(row * 2 * ffn + i), _mm512_mul_ps(_mm512_mul_ps(d, u), slope));
                store(d_both.add(row * 2 * ffn + ffn + i), _mm512_mul_ps(d, _mm512_mul_ps(g, s)));
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn sigmoid(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    _mm512_div_ps(one, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))))
}
