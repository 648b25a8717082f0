//! From the fused projection to rotated queries and keys, and back: layer norm over the full width, then rotary positions.
//! (The norm's formulas are in `norm.rs`; a rotation's backward is the rotation by the opposite angle.)

use super::lanes::{LANES, load, store};
use crate::models::openlm::NORM_EPS;
use std::{arch::x86_64::*, ops::Range};

/// What forward and backward share.
pub(super) struct Heads {
    /// [rows, 3 width] queries, keys, values as projected
    pub(super) qkv: *const u16,
    /// [width] gains of queries and keys
    pub(super) gains: [*const u16; 2],
    /// [length, dim / 2] each
    pub(super) cos: *const f32,
    pub(super) sin: *const f32,
    /// [rows, 2] mean and r, of queries and keys
    pub(super) stats: [*mut f32; 2],
    /// [rows, width] queries and keys, normed and rotated; in the backward pass their gradients
    pub(super) rotated: [*mut u16; 2],
    pub(super) width: usize,
    /// Of a head; a multiple of 32
    pub(super) dim: usize,
    /// Positions of a sequence; row r stands at r % length
    pub(super) length: usize,
}

impl Heads {
    /// Fills `stats` and `rotated`.
    ///
    /// # Safety
    /// The pointers hold what their fields say; no other thread writes these rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn forward(&self, rows: Range<usize>) {
        for row in rows {
            for part in 0..2 {
                // SAFETY: the caller's promise.
                unsafe { self.forward_row(row, part) }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn forward_row(&self, row: usize, part: usize) {
        let (width, half) = (self.width, self.dim / 2);
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.qkv.add(row * 3 * width + part * width);
            let mut total = _mm512_setzero_ps();
            for i in (0..width).step_by(LANES) {
                total = _mm512_add_ps(total, load(x.add(i)));
            }
            let mean = _mm512_reduce_add_ps(total) / width as f32;
            let middle = _mm512_set1_ps(mean);
            let mut squares = _mm512_setzero_ps();
            for i in (0..width).step_by(LANES) {
                let v = _mm512_sub_ps(load(x.add(i)), middle);
                squares = _mm512_fmadd_ps(v, v, squares);
            }
            let r = 1.0 / (_mm512_reduce_add_ps(squares) / width as f32 + NORM_EPS as f32).sqrt();
            *self.stats[part].add(2 * row) = mean;
            *self.stats[part].add(2 * row + 1) = r;
            let r = _mm512_set1_ps(r);
            let at = |i: usize| {
                let v = _mm512_mul_ps(_mm512_sub_ps(load(x.add(i)), middle), r);
                _mm512_mul_ps(v, load(self.gains[part].add(i)))
            };
            let out = self.rotated[part].add(row * width);
            for head in (0..width).step_by(self.dim) {
                for i in (0..half).step_by(LANES) {
                    let (cos, sin) = self.angle(row, i);
                    let (a, b) = (at(head + i), at(head + half + i));
                    store(out.add(head + i), _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)));
                    store(out.add(head + half + i), _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)));
                }
            }
        }
    }

    /// Turns the gradients in `rotated` into those of the projection's output: the first two thirds of `dqkv` [rows, 3 width].
    /// `dgains` [width] each are this thread's own and are added to.
    ///
    /// # Safety
    /// As [`Self::forward`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn backward(&self, rows: Range<usize>, dqkv: *mut u16, dgains: [*mut f32; 2]) {
        let mut scratch = vec![0f32; self.width];
        for row in rows {
            for (part, dgain) in dgains.into_iter().enumerate() {
                // SAFETY: the caller's promise; the scratch row is as wide.
                unsafe { self.backward_row(row, part, dqkv, dgain, scratch.as_mut_ptr()) }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn backward_row(&self, row: usize, part: usize, dqkv: *mut u16, dgain: *mut f32, dy: *mut f32) {
        let (width, half) = (self.width, self.dim / 2);
        // SAFETY: the caller's promise.
        unsafe {
            let turned = self.rotated[part].add(row * width);
            for head in (0..width).step_by(self.dim) {
                for i in (0..half).step_by(LANES) {
                    let (cos, sin) = self.angle(row, i);
                    let (a, b) = (load(turned.add(head + i)), load(turned.add(head + half + i)));
                    _mm512_storeu_ps(dy.add(head + i), _mm512_fmadd_ps(a, cos, _mm512_mul_ps(b, sin)));
                    _mm512_storeu_ps(dy.add(head + half + i), _mm512_fmsub_ps(b, cos, _mm512_mul_ps(a, sin)));
                }
            }
            let middle = _mm512_set1_ps(*self.stats[part].add(2 * row));
            let r = _mm512_set1_ps(*self.stats[part].add(2 * row + 1));
            let x = self.qkv.add(row * 3 * width + part * width);
            let at = |i: usize| {
                let normed = _mm512_mul_ps(_mm512_sub_ps(load(x.add(i)), middle), r);
                let dy = _mm512_loadu_ps(dy.add(i));
                (normed, dy, _mm512_mul_ps(dy, load(self.gains[part].add(i))))
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
            let out = dqkv.add(row * 3 * width + part * width);
            for i in (0..width).step_by(LANES) {
                let (normed, _, g) = at(i);
                store(out.add(i), _mm512_mul_ps(_mm512_fnmadd_ps(normed, along, _mm512_sub_ps(g, plain)), r));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn angle(&self, row: usize, i: usize) -> (__m512, __m512) {
        let at = (row % self.length) * (self.dim / 2) + i;
        // SAFETY: a position below `length`, a frequency below `dim / 2`.
        unsafe { (_mm512_loadu_ps(self.cos.add(at)), _mm512_loadu_ps(self.sin.add(at))) }
    }
}
