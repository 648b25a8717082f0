//! Cross entropy with z-loss over rows of logits, which become their own gradient in place.
//!   d logits = scale ((1 + 2 z lse) p - onehot)

use super::lanes::{LANES, exp, load, mask, store};
use crate::train::{loss::Terms, pretrain::Sums};
use std::{arch::x86_64::*, ops::Range};

/// Rows of logits and the tokens that they should predict.
pub(super) struct Entropy {
    /// [rows, vocab] logits, then their gradient
    pub(super) logits: *mut u16,
    /// [rows]
    pub(super) targets: *const u32,
    /// A multiple of 16, or the last vector of a row is taken alone
    pub(super) vocab: usize,
    pub(super) terms: Terms,
}

impl Entropy {
    /// # Safety
    /// The pointers hold what their fields say, targets lie below `vocab`; no other thread touches these rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn run(&self, rows: Range<usize>) -> Sums {
        let mut sums = Sums::default();
        for row in rows {
            // SAFETY: the caller's promise.
            unsafe {
                let logits = self.logits.add(row * self.vocab);
                let target = *self.targets.add(row) as usize;
                let wanted = f32::from_bits(u32::from(*logits.add(target)) << 16);
                let (largest, sum) = self.softmax(logits);
                let lse = largest + sum.ln();
                sums.loss += f64::from(lse - wanted);
                sums.z += f64::from(lse * lse);
                sums.correct += i64::from(wanted >= largest);
                self.gradient(logits, target, lse, (wanted - lse).exp());
            }
        }
        sums
    }

    /// The largest logit, and the sum of exp(logit - largest).
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn softmax(&self, logits: *const u16) -> (f32, f32) {
        // SAFETY: `vocab` halves; the rest after the last whole vector is read lane by lane.
        unsafe {
            let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
            for i in (0..self.vocab).step_by(LANES) {
                largest = _mm512_max_ps(largest, self.part(logits, i));
            }
            let largest = _mm512_reduce_max_ps(largest);
            let mut sum = _mm512_setzero_ps();
            for i in (0..self.vocab).step_by(LANES) {
                let e = exp(_mm512_sub_ps(self.part(logits, i), _mm512_set1_ps(largest)));
                sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(mask(i, self.vocab), e));
            }
            (largest, _mm512_reduce_add_ps(sum))
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn gradient(&self, logits: *mut u16, target: usize, lse: f32, p_target: f32) {
        let factor = ((1.0 + 2.0 * self.terms.z_loss * f64::from(lse)) * self.terms.scale) as f32;
        // SAFETY: as above.
        unsafe {
            for i in (0..self.vocab).step_by(LANES) {
                let p = exp(_mm512_sub_ps(self.part(logits, i), _mm512_set1_ps(lse)));
                let d = _mm512_mul_ps(p, _mm512_set1_ps(factor));
                if i + LANES <= self.vocab {
                    store(logits.add(i), d);
                } else {
                    let mut last = [0u16; LANES];
                    store(last.as_mut_ptr(), d);
                    std::ptr::copy_nonoverlapping(last.as_ptr(), logits.add(i), self.vocab - i);
                }
            }
            let own = p_target * factor - self.terms.scale as f32;
            *logits.add(target) = crate::engine::cpu::simd::to_bf16(own);
        }
    }

    /// Sixteen logits; beyond the end they are minus infinity.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn part(&self, logits: *const u16, i: usize) -> __m512 {
        // SAFETY: as above.
        unsafe {
            if i + LANES <= self.vocab {
                return load(logits.add(i));
            }
            let mut last = [0xff80u16; LANES];
            std::ptr::copy_nonoverlapping(logits.add(i), last.as_mut_ptr(), self.vocab - i);
            load(last.as_ptr())
        }
    }
}
