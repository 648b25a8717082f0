//! Gain-only layer norm over rows of the f32 residual stream, forward and backward, with the addition before it and the rounding
//! after it in the same pass.
//!
//!   y = g x̂,  x̂ = (x - mean) r,  r = 1/√(var + ε)
//!   dx = r (g dy - mean(g dy) - x̂ mean(g dy x̂)),  dg = Σ dy x̂

use super::lanes::{LANES, load, store};
use crate::models::openlm::NORM_EPS;
use std::{arch::x86_64::*, ops::Range};

/// Residual addition and norm of rows.
pub(super) struct Forward {
    /// [rows, width] the stream before
    pub(super) x: *const f32,
    /// [rows, width] what a layer adds to it; null for nothing
    pub(super) add: *const u16,
    /// [rows, width] the stream after the addition; may be `x`
    pub(super) sum: *mut f32,
    /// [width]
    pub(super) gain: *const u16,
    /// [rows, width]
    pub(super) out: *mut u16,
    /// [rows, 2] mean and r
    pub(super) stats: *mut f32,
    pub(super) width: usize,
}

impl Forward {
    /// # Safety
    /// The pointers hold what their fields say; no other thread writes these rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn run(&self, rows: Range<usize>) {
        let width = self.width;
        for row in rows {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = self.sum.add(row * width);
                let mut total = _mm512_setzero_ps();
                for i in (0..width).step_by(LANES) {
                    let mut v = _mm512_loadu_ps(self.x.add(row * width + i));
                    if !self.add.is_null() {
                        v = _mm512_add_ps(v, load(self.add.add(row * width + i)));
                    }
                    _mm512_storeu_ps(sum.add(i), v);
                    total = _mm512_add_ps(total, v);
                }
                let mean = _mm512_reduce_add_ps(total) / width as f32;
                let middle = _mm512_set1_ps(mean);
                let mut squares = _mm512_setzero_ps();
                for i in (0..width).step_by(LANES) {
                    let v = _mm512_sub_ps(_mm512_loadu_ps(sum.add(i)), middle);
                    squares = _mm512_fmadd_ps(v, v, squares);
                }
                let r = 1.0 / (_mm512_reduce_add_ps(squares) / width as f32 + NORM_EPS as f32).sqrt();
                for i in (0..width).step_by(LANES) {
                    let v = _mm512_sub_ps(_mm512_loadu_ps(sum.add(i)), middle);
                    let v = _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(r)), load(self.gain.add(i)));
                    store(self.out.add(row * width + i), v);
                }
                *self.stats.add(2 * row) = mean;
                *self.stats.add(2 * row + 1) = r;
            }
        }
    }
}

/// Backward of the norm, added to the gradient of the stream.
pub(super) struct Backward {
    /// [rows, width] gradient of the norm's output
    pub(super) dy: *const u16,
    /// [rows, width] the stream that was normed
    pub(super) x: *const f32,
    /// [rows, 2]
    pub(super) stats: *const f32,
    /// [width]
    pub(super) gain: *const u16,
    /// [rows, width] gradient of the stream, added to (set where `first`)
    pub(super) dx: *mut f32,
    /// Whether `dx` holds nothing yet.
    pub(super) first: bool,
    /// [rows, width] the sum, rounded, for the next layer down
    pub(super) rounded: *mut u16,
    pub(super) width: usize,
}

impl Backward {
    /// `dgain` [width] f32 is this thread's own and is added to.
    ///
    /// # Safety
    /// The pointers hold what their fields say; no other thread writes these rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn run(&self, rows: Range<usize>, dgain: *mut f32) {
        let width = self.width;
        for row in rows {
            // SAFETY: the caller's promise.
            unsafe {
                let (mean, r) = (*self.stats.add(2 * row), *self.stats.add(2 * row + 1));
                let (middle, r) = (_mm512_set1_ps(mean), _mm512_set1_ps(r));
                let (dy, x) = (self.dy.add(row * width), self.x.add(row * width));
                let at = |i: usize| {
                    let normed = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x.add(i)), middle), r);
                    let dy = load(dy.add(i));
                    (normed, dy, _mm512_mul_ps(dy, load(self.gain.add(i))))
                };
                let (mut plain, mut along) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                for i in (0..width).step_by(LANES) {
                    let (normed, dy, g) = at(i);
                    plain = _mm512_add_ps(plain, g);
                    along = _mm512_fmadd_ps(g, normed, along);
                    let total = _mm512_fmadd_ps(dy, normed, _mm512_loadu_ps(dgain.add(i)));
                    _mm512_storeu_ps(dgain.add(i), total);
                }
                let plain = _mm512_set1_ps(_mm512_reduce_add_ps(plain) / width as f32);
                let along = _mm512_set1_ps(_mm512_reduce_add_ps(along) / width as f32);
                for i in (0..width).step_by(LANES) {
                    let (normed, _, g) = at(i);
                    let v = _mm512_mul_ps(_mm512_fnmadd_ps(normed, along, _mm512_sub_ps(g, plain)), r);
                    let dx = self.dx.add(row * width + i);
                    let v = if self.first { v } else { _mm512_add_ps(v, _mm512_loadu_ps(dx)) };
                    _mm512_storeu_ps(dx, v);
                    store(self.rounded.add(row * width + i), v);
                }
            }
        }
    }
}
