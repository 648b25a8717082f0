//! Causal attention of one head of one sequence, forward and backward, on bf16 pairs with f32 sums.
//!
//! The scores of [`BLOCK`] queries against all keys before them stand in the cache at once, so softmax is the plain one, and
//! nothing right of the diagonal's block is computed. For the backward pass only logsumexp is kept; scores are made again:
//!   P = exp(s Q Kᵀ - lse),  D = rowsum(dO ∘ O),  dS = s P ∘ (dO Vᵀ - D)
//!   dQ = dS K,  dK = dSᵀ Q,  dV = Pᵀ dO

use super::lanes::{LANES, Product, exp, load, mask, pairs, store};
use std::arch::x86_64::*;

/// Queries whose scores are made together.
const BLOCK: usize = 48;

/// Rows of one head: where they begin, and the distance from one to the next in halves.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) at: *mut u16,
    pub(super) stride: usize,
}

/// One head of one sequence.
pub(super) struct Head {
    /// [length, dim]
    pub(super) q: Rows,
    pub(super) k: Rows,
    pub(super) v: Rows,
    /// The output; written by the forward pass.
    pub(super) out: Rows,
    /// [length] logsumexp of each query's scaled scores
    pub(super) lse: *mut f32,
    pub(super) length: usize,
    /// A multiple of 16
    pub(super) dim: usize,
}

/// Gradients of one head: `d_out` is read, the others are written.
pub(super) struct Gradients {
    pub(super) d_out: Rows,
    pub(super) dq: Rows,
    pub(super) dk: Rows,
    pub(super) dv: Rows,
}

/// One thread's working memory.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Keys and values with pairs along the head: [dim / 2, padded]
    keys: Vec<u32>,
    values: Vec<u32>,
    /// With pairs along the positions: [padded / 2, dim]
    key_pairs: Vec<u32>,
    value_pairs: Vec<u32>,
    /// Of the block's queries and output gradients: [BLOCK / 2, dim]
    query_pairs: Vec<u32>,
    grad_pairs: Vec<u32>,
    /// [BLOCK, padded] scores and d P
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    /// [BLOCK, padded] bf16: P forward, dS backward
    rows: Vec<u16>,
    /// [BLOCK / 2, padded] P and dS with pairs along the queries
    p_pairs: Vec<u32>,
    ds_pairs: Vec<u32>,
    /// [BLOCK, dim]
    block: Vec<f32>,
    /// [padded, dim]
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Scratch {
    fn fit(&mut self, padded: usize, dim: usize) {
        let words = |v: &mut Vec<u32>, n: usize| v.resize(v.len().max(n), 0);
        for v in [&mut self.keys, &mut self.values, &mut self.key_pairs, &mut self.value_pairs] {
            words(v, dim / 2 * padded);
        }
        words(&mut self.query_pairs, BLOCK / 2 * dim);
        words(&mut self.grad_pairs, BLOCK / 2 * dim);
        words(&mut self.p_pairs, BLOCK / 2 * padded);
        words(&mut self.ds_pairs, BLOCK / 2 * padded);
        let floats = |v: &mut Vec<f32>, n: usize| v.resize(v.len().max(n), 0.0);
        floats(&mut self.scores, BLOCK * padded);
        floats(&mut self.d_scores, BLOCK * padded);
        floats(&mut self.block, BLOCK * dim);
        floats(&mut self.dk, padded * dim);
        floats(&mut self.dv, padded * dim);
        self.rows.resize(self.rows.len().max(BLOCK * padded), 0);
    }
}

impl Head {
    /// Positions up to a whole vector, and 16 more so that the rows of a packed matrix fall on different cache lines.
    fn padded(&self) -> usize {
        self.length.div_ceil(LANES) * LANES + LANES
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Fills `out` and `lse`.
    ///
    /// # Safety
    /// The pointers hold what their fields say; the processor has AVX-512 with BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn forward(&self, s: &mut Scratch) {
        let (padded, dim) = (self.padded(), self.dim);
        s.fit(padded, dim);
        // SAFETY: the scratch fits; blocks stay inside `length`.
        unsafe {
            along_head(self.k, self.length, dim, padded, &mut s.keys);
            along_rows(self.v, self.length, padded / 2, dim, &mut s.value_pairs);
            for from in (0..self.length).step_by(BLOCK) {
                let count = BLOCK.min(self.length - from);
                let limit = (from + count).div_ceil(LANES) * LANES;
                self.times(self.q, from, count, limit, &s.keys, &mut s.scores);
                let mut inverse = [0f32; BLOCK];
                for (r, inverse) in inverse.iter_mut().enumerate().take(count) {
                    let (scores, row) = (s.scores.as_ptr().add(r * padded), s.rows.as_mut_ptr().add(r * padded));
                    let (largest, sum) = softmax(scores, row, from + r + 1, limit, self.scale());
                    *self.lse.add(from + r) = largest * self.scale() + sum.ln();
                    *inverse = 1.0 / sum;
                }
                let mix = Product {
                    a: s.rows.as_ptr().cast(),
                    a_row: padded / 2,
                    a_pair: 1,
                    b: s.value_pairs.as_ptr(),
                    b_row: dim,
                    c: s.block.as_mut_ptr(),
                    c_row: dim,
                    add: false,
                };
                mix.run(count, dim, limit / 2);
                for (r, &inverse) in inverse.iter().enumerate().take(count) {
                    let to = self.out.at.add((from + r) * self.out.stride);
                    write_row(s.block.as_ptr().add(r * dim), dim, inverse, to);
                }
            }
        }
    }

    /// Fills `dq`, `dk`, `dv`.
    ///
    /// # Safety
    /// As [`Self::forward`], after it.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn backward(&self, g: &Gradients, s: &mut Scratch) {
        let (padded, dim) = (self.padded(), self.dim);
        s.fit(padded, dim);
        // SAFETY: the scratch fits; blocks stay inside `length`.
        unsafe {
            along_head(self.k, self.length, dim, padded, &mut s.keys);
            along_head(self.v, self.length, dim, padded, &mut s.values);
            along_rows(self.k, self.length, padded / 2, dim, &mut s.key_pairs);
            s.dk[..padded * dim].fill(0.0);
            s.dv[..padded * dim].fill(0.0);
            for from in (0..self.length).step_by(BLOCK) {
                let count = BLOCK.min(self.length - from);
                let limit = (from + count).div_ceil(LANES) * LANES;
                let below = |rows: Rows| Rows { at: rows.at.add(from * rows.stride), stride: rows.stride };
                along_rows(below(self.q), count, count.div_ceil(2), dim, &mut s.query_pairs);
                along_rows(below(g.d_out), count, count.div_ceil(2), dim, &mut s.grad_pairs);
                self.times(self.q, from, count, limit, &s.keys, &mut s.scores);
                self.times(g.d_out, from, count, limit, &s.values, &mut s.d_scores);
                self.score_gradients(g, from, count, limit, s);
                self.spread(from, count, limit, g.dq, s);
            }
            for position in 0..self.length {
                write_row(s.dk.as_ptr().add(position * dim), dim, 1.0, g.dk.at.add(position * g.dk.stride));
                write_row(s.dv.as_ptr().add(position * dim), dim, 1.0, g.dv.at.add(position * g.dv.stride));
            }
        }
    }

    /// `count` rows from `from` on times a matrix packed along the head: [count, limit] into `out`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn times(&self, rows: Rows, from: usize, count: usize, limit: usize, packed: &[u32], out: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            let product = Product {
                a: rows.at.add(from * rows.stride).cast(),
                a_row: rows.stride / 2,
                a_pair: 1,
                b: packed.as_ptr(),
                b_row: self.padded(),
                c: out.as_mut_ptr(),
                c_row: self.padded(),
                add: false,
            };
            product.run(count, limit, self.dim / 2);
        }
    }

    /// P and dS of a block, in the layouts that the three products read. Two queries at a time, so that they pair up.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn score_gradients(&self, g: &Gradients, from: usize, count: usize, limit: usize, s: &mut Scratch) {
        let padded = self.padded();
        let scale = _mm512_set1_ps(self.scale());
        for r in (0..count).step_by(2) {
            // SAFETY: rows below `count` (an odd last one pairs with zeros), columns below `limit`.
            unsafe {
                let about = |r: usize| {
                    let at = from + r;
                    let delta =
                        dot(g.d_out.at.add(at * g.d_out.stride), self.out.at.add(at * self.out.stride), self.dim);
                    (_mm512_set1_ps(*self.lse.add(at)), _mm512_set1_ps(delta))
                };
                let both = r + 1 < count;
                let first = about(r);
                let second = if both { about(r + 1) } else { first };
                for j in (0..limit).step_by(LANES) {
                    let at = |r: usize, (lse, delta): (__m512, __m512)| {
                        let kept = mask(j, from + r + 1);
                        let scores = _mm512_loadu_ps(s.scores.as_ptr().add(r * padded + j));
                        let p = _mm512_maskz_mov_ps(kept, exp(_mm512_fmsub_ps(scores, scale, lse)));
                        let dp = _mm512_loadu_ps(s.d_scores.as_ptr().add(r * padded + j));
                        (p, _mm512_maskz_mul_ps(kept, _mm512_mul_ps(p, scale), _mm512_sub_ps(dp, delta)))
                    };
                    let (p0, ds0) = at(r, first);
                    let zero = _mm512_setzero_ps();
                    let (p1, ds1) = if both { at(r + 1, second) } else { (zero, zero) };
                    store(s.rows.as_mut_ptr().add(r * padded + j), ds0);
                    if both {
                        store(s.rows.as_mut_ptr().add((r + 1) * padded + j), ds1);
                    }
                    let to = r / 2 * padded + j;
                    _mm512_storeu_si512(s.p_pairs.as_mut_ptr().add(to).cast(), pairs(p0, p1));
                    _mm512_storeu_si512(s.ds_pairs.as_mut_ptr().add(to).cast(), pairs(ds0, ds1));
                }
            }
        }
    }

    /// The three products of a block: its queries' gradients, and what it adds to keys and values.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn spread(&self, from: usize, count: usize, limit: usize, dq: Rows, s: &mut Scratch) {
        let (padded, dim) = (self.padded(), self.dim);
        let to_queries = Product {
            a: s.rows.as_ptr().cast(),
            a_row: padded / 2,
            a_pair: 1,
            b: s.key_pairs.as_ptr(),
            b_row: dim,
            c: s.block.as_mut_ptr(),
            c_row: dim,
            add: false,
        };
        let over_queries = |a: &[u32], b: &[u32], c: &mut [f32]| Product {
            a: a.as_ptr(),
            a_row: 1,
            a_pair: padded,
            b: b.as_ptr(),
            b_row: dim,
            c: c.as_mut_ptr(),
            c_row: dim,
            add: true,
        };
        // SAFETY: the scratch holds [BLOCK, padded] and [padded, dim]; `count`, `limit` stay below.
        unsafe {
            to_queries.run(count, dim, limit / 2);
            for r in 0..count {
                write_row(s.block.as_ptr().add(r * dim), dim, 1.0, dq.at.add((from + r) * dq.stride));
            }
            over_queries(&s.p_pairs, &s.grad_pairs, &mut s.dv).run(limit, dim, count.div_ceil(2));
            over_queries(&s.ds_pairs, &s.query_pairs, &mut s.dk).run(limit, dim, count.div_ceil(2));
        }
    }
}

/// exp(scale (score - largest)) of the first `seen` scores, bf16 zeros up to `limit`. Returns the largest score and the sum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn softmax(scores: *const f32, row: *mut u16, seen: usize, limit: usize, scale: f32) -> (f32, f32) {
    // SAFETY: `limit` scores and halves, as the caller has them.
    unsafe {
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        for j in (0..seen).step_by(LANES) {
            largest = _mm512_mask_max_ps(largest, mask(j, seen), largest, _mm512_loadu_ps(scores.add(j)));
        }
        let largest = _mm512_reduce_max_ps(largest);
        let shift = _mm512_set1_ps(-largest * scale);
        let mut sum = _mm512_setzero_ps();
        for j in (0..limit).step_by(LANES) {
            let p = exp(_mm512_fmadd_ps(_mm512_loadu_ps(scores.add(j)), _mm512_set1_ps(scale), shift));
            let p = _mm512_maskz_mov_ps(mask(j, seen), p);
            sum = _mm512_add_ps(sum, p);
            store(row.add(j), p);
        }
        (largest, _mm512_reduce_add_ps(sum))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn dot(a: *const u16, b: *const u16, n: usize) -> f32 {
    let mut sum = _mm512_setzero_ps();
    for i in (0..n).step_by(LANES) {
        // SAFETY: `n` halves each.
        sum = unsafe { _mm512_fmadd_ps(load(a.add(i)), load(b.add(i)), sum) };
    }
    _mm512_reduce_add_ps(sum)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn write_row(from: *const f32, n: usize, factor: f32, to: *mut u16) {
    for i in (0..n).step_by(LANES) {
        // SAFETY: `n` floats and halves.
        unsafe { store(to.add(i), _mm512_mul_ps(_mm512_loadu_ps(from.add(i)), _mm512_set1_ps(factor))) }
    }
}

/// [count, dim] to [dim / 2, padded] pairs along the head; columns from `count` on are zero.
unsafe fn along_head(rows: Rows, count: usize, dim: usize, padded: usize, out: &mut [u32]) {
    for block in (0..padded).step_by(LANES) {
        for pair in 0..dim / 2 {
            let to = &mut out[pair * padded + block..][..LANES];
            for (r, word) in to.iter_mut().enumerate() {
                let row = block + r;
                *word = if row < count {
                    // SAFETY: a row below `count`, a pair below `dim / 2`.
                    unsafe { rows.at.add(row * rows.stride + 2 * pair).cast::<u32>().read_unaligned() }
                } else {
                    0
                };
            }
        }
    }
}

/// [count, dim] to [pairs, dim] pairs along the rows; rows from `count` on are zero.
unsafe fn along_rows(rows: Rows, count: usize, pairs: usize, dim: usize, out: &mut [u32]) {
    for pair in 0..pairs {
        let to = &mut out[pair * dim..][..dim];
        let row = |r: usize| rows.at.wrapping_add(r * rows.stride);
        let (low, high) = (row(2 * pair), row(2 * pair + 1));
        for (i, word) in to.iter_mut().enumerate() {
            // SAFETY: only rows below `count` are read.
            let half = |r: usize, p: *mut u16| if r < count { u32::from(unsafe { *p.wrapping_add(i) }) } else { 0 };
            *word = half(2 * pair, low) | half(2 * pair + 1, high) << 16;
        }
    }
}
