//! Attention of a few queries over one sequence's paged cache, for one key/value head. A query's result depends on its own
//! limit only: not on the other queries of the call, nor on how its sequence was cut into steps.
//!
//! Cache layout, per page of [`PAGE`] positions and key/value head, dimensions `D` (values padded to 16, `V`):
//! keys [PAGE / 16][D / P][16 positions][P], values [PAGE / P][V][P], where P is [`Elem::PACK`].

use super::{
    elem::Elem,
    isa::Vector,
    rows,
    simd::{LANES, Simd, from_bf16, vectorised},
};
use crate::engine::pages::PAGE;

/// Queries that one call takes at most.
pub const QUERIES: usize = 16;

/// Positions whose values are cleared together before the first of them is written, and whose weights are written together:
/// a tile's inner dimension. What lies behind the last position is then zero times zero.
pub const GROUP: usize = 32;

/// The cache of one layer and head as one sequence sees it.
pub struct View<'a, E> {
    /// Keys of page 0, this head.
    pub keys: *const E,
    /// Values of page 0, this head.
    pub values: *const E,
    /// Elements from page to page, keys.
    pub key_page: usize,
    /// Elements from page to page, values.
    pub value_page: usize,
    /// The sequence's pages in order.
    pub pages: &'a [u32],
    /// Head width D.
    pub dim: usize,
}

/// Added to the scores of a call: `rows[q · stride + position]`, or nothing.
#[derive(Clone, Copy)]
pub struct Bias {
    /// First query's row; null: no bias.
    pub rows: *const f32,
    /// Floats from query to query.
    pub stride: usize,
}

impl Bias {
    /// Adds nothing.
    pub const NONE: Self = Self { rows: std::ptr::null(), stride: 0 };
}

/// Scratch of one thread.
pub struct Scratch<E> {
    /// Queries [QUERIES, D].
    pub queries: Vec<E>,
    /// Scores [QUERIES, positions].
    scores: Vec<f32>,
    /// Unnormalised weights [QUERIES, positions].
    weights: Vec<E>,
    /// Unnormalised results [QUERIES, V].
    out: Vec<f32>,
    /// What each result is to be multiplied by.
    norms: [f32; QUERIES],
    /// A key and a value on their way to the cache.
    pub head: Vec<E>,
}

/// Inner loops that differ by number type and processor. Positions run to the largest limit.
pub struct Kernels<E: 'static> {
    /// Prepares the thread (AMX tile configuration).
    pub before: unsafe fn(),
    /// Releases what `before` took.
    pub after: unsafe fn(),
    /// `scores[q][p] = queries[q] · keys[p]` for all positions of the pages up to `limit`; stride in floats.
    pub scores: unsafe fn(&View<E>, queries: *const E, count: usize, limit: usize, scores: *mut f32, stride: usize),
    /// `out[q] = Σ weights[q][p] · values[p]`, stride `V` of `out`.
    pub mix: unsafe fn(&View<E>, weights: *const E, stride: usize, count: usize, limit: usize, out: *mut f32),
}

impl<E> Clone for Kernels<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Kernels<E> {}

impl<E: Elem> Default for Scratch<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Elem> Scratch<E> {
    /// Nothing yet; grows with use.
    pub const fn new() -> Self {
        Self {
            queries: Vec::new(),
            scores: Vec::new(),
            weights: Vec::new(),
            out: Vec::new(),
            norms: [0.0; QUERIES],
            head: Vec::new(),
        }
    }

    /// Room for heads of `dim` and sequences of `pages`.
    pub fn reserve(&mut self, dim: usize, pages: usize) {
        let zero = E::from_f32(0.0);
        let wide = dim.next_multiple_of(2 * LANES);
        self.queries.resize(QUERIES * wide, zero);
        self.out.resize(QUERIES * wide, 0.0);
        self.head.resize(2 * dim, zero);
        let positions = QUERIES * pages * PAGE;
        if self.scores.len() < positions {
            self.scores.resize(positions, 0.0);
            self.weights.resize(positions, zero);
        }
    }

    /// Softmax attention of `limits.len()` queries; query q sees the first `limits[q]` positions. Results by [`Scratch::take`].
    ///
    /// # Safety
    /// The view is valid for the largest limit, `reserve` was called for it, and nobody writes those positions meanwhile.
    pub unsafe fn attend(&mut self, vector: Vector, kernels: Kernels<E>, view: &View<E>, limits: &[usize], scale: f32) {
        // SAFETY: passed on; no bias is read.
        unsafe { self.attend_biased(vector, kernels, view, limits, scale, Bias::NONE) }
    }

    /// The same with something added to the scores before they are scaled.
    ///
    /// # Safety
    /// As [`Scratch::attend`]; the bias has a row for each query, of the largest limit rounded up to 16.
    pub unsafe fn attend_biased(
        &mut self,
        vector: Vector,
        kernels: Kernels<E>,
        view: &View<E>,
        limits: &[usize],
        scale: f32,
        bias: Bias,
    ) {
        let longest = limits.iter().copied().max().unwrap_or(0);
        let stride = view.pages.len() * PAGE;
        let (scores, weights) = (self.scores.as_mut_ptr(), self.weights.as_mut_ptr());
        // SAFETY: the scratch holds QUERIES rows of `stride`.
        unsafe {
            (kernels.scores)(view, self.queries.as_ptr(), limits.len(), longest, scores, stride);
            for (q, &limit) in limits.iter().enumerate() {
                if !bias.rows.is_null() {
                    rows::add(vector, bias.rows.add(q * bias.stride), scores.add(q * stride), limit);
                }
                self.norms[q] =
                    softmax::<E>(vector, scores.add(q * stride), weights.add(q * stride), limit, longest, scale);
            }
            (kernels.mix)(view, weights, stride, limits.len(), longest, self.out.as_mut_ptr());
        }
    }

    /// Writes query q's result to `out` [dim].
    ///
    /// # Safety
    /// `out` holds `dim` numbers; `vector` is what this processor has.
    pub unsafe fn take(&self, vector: Vector, q: usize, dim: usize, out: *mut E) {
        let result = &self.out[q * dim.next_multiple_of(LANES)..][..dim];
        // SAFETY: `dim` numbers in both.
        unsafe { rows::scale(vector, result.as_ptr(), self.norms[q], out, dim) }
    }
}

/// `weights = exp(scale · (score - max))` up to `limit`, zeros up to `longest` rounded up to [`GROUP`]; returns one over the sum.
#[inline(always)]
unsafe fn softmax_row<S: Simd, E: Elem>(
    scores: *mut f32,
    weights: *mut E,
    limit: usize,
    longest: usize,
    scale: f32,
) -> f32 {
    // SAFETY: both rows hold `longest` rounded up to a page.
    unsafe {
        for p in limit..limit.next_multiple_of(LANES) {
            *scores.add(p) = f32::NEG_INFINITY;
        }
        let mut high = S::splat(f32::NEG_INFINITY);
        for p in (0..limit).step_by(LANES) {
            high = S::max(S::load(scores.add(p)), high);
        }
        let high = S::splat(S::hmax(high) * -scale);
        let scale = S::splat(scale);
        let mut sum = S::splat(0.0);
        for p in (0..limit).step_by(LANES) {
            let e = S::exp(S::fma(S::load(scores.add(p)), scale, high));
            S::store(scores.add(p), e);
            if p + LANES > limit {
                // exp never returns exactly zero; positions behind the limit must.
                for beyond in limit..p + LANES {
                    *scores.add(beyond) = 0.0;
                }
            }
            let e = S::load(scores.add(p));
            sum = S::add(sum, e);
            E::store::<S>(weights.add(p), e);
        }
        for p in limit.next_multiple_of(LANES)..longest.next_multiple_of(GROUP) {
            *weights.add(p) = E::from_f32(0.0);
        }
        1.0 / S::sum(sum)
    }
}
vectorised!(
    /// One row of scores to weights.
    softmax => softmax_row::<E: Elem>(scores: *mut f32, weights: *mut E, limit: usize, longest: usize, scale: f32) -> f32);

/// Writes a key and a value of one position. The first position of a [`GROUP`] clears the group's values.
///
/// # Safety
/// `keys` and `values` are the page's blocks of this head; nobody else touches that position's group.
pub unsafe fn write<E: Elem>(keys: *mut E, values: *mut E, position: usize, key: &[E], value: &[E]) {
    let (block, lane, pack) = (position % PAGE / LANES, position % LANES, E::PACK);
    let dim = key.len();
    let wide = dim.next_multiple_of(LANES);
    let (pair, half) = (position % PAGE / pack, position % pack);
    // SAFETY: inside the page's blocks, by the layout above; all-zero bytes are the number zero.
    unsafe {
        if position.is_multiple_of(GROUP) {
            values.add(position % PAGE * wide).write_bytes(0, GROUP * wide);
        }
        let keys = keys.add(block * dim * LANES + lane * pack);
        let values = values.add(pair * wide * pack + half);
        let mut d = 0;
        while d < dim {
            keys.add(d * LANES).copy_from_nonoverlapping(key.as_ptr().add(d), pack);
            d += pack;
        }
        let mut d = 0;
        while d < dim {
            *values.add(d * pack) = *value.as_ptr().add(d);
            d += 1;
        }
    }
}

unsafe fn nothing() {}

/// The f32 kernels for those vectors.
pub fn f32_kernels(vector: Vector) -> Kernels<f32> {
    macro_rules! kernels {
        ($vector:expr) => {{
            unsafe fn scores(v: &View<f32>, q: *const f32, n: usize, limit: usize, out: *mut f32, stride: usize) {
                // SAFETY: chosen for that processor; the rest is passed on.
                unsafe { f32_scores($vector, v, q, n, limit, out, stride) }
            }
            unsafe fn mix(v: &View<f32>, w: *const f32, stride: usize, n: usize, limit: usize, out: *mut f32) {
                // SAFETY: chosen for that processor; the rest is passed on.
                unsafe { f32_mix($vector, v, w, stride, n, limit, out) }
            }
            Kernels { before: nothing, after: nothing, scores, mix }
        }};
    }
    match vector {
        Vector::Portable => kernels!(Vector::Portable),
        Vector::Avx2 => kernels!(Vector::Avx2),
        Vector::Avx512 => kernels!(Vector::Avx512),
    }
}

#[inline(always)]
unsafe fn f32_scores_rows<S: Simd>(
    view: &View<f32>,
    queries: *const f32,
    count: usize,
    limit: usize,
    out: *mut f32,
    stride: usize,
) {
    for first in (0..limit).step_by(LANES) {
        // SAFETY: the page and block of `first` are inside the view; rows hold `stride` floats.
        unsafe {
            let page = view.keys.add(view.pages[first / PAGE] as usize * view.key_page);
            let block = page.add(first % PAGE / LANES * view.dim * LANES);
            let mut q = 0;
            while q < count {
                let at = (queries.add(q * view.dim), out.add(q * stride + first));
                q += if count - q >= 2 {
                    f32_dots::<S, 2>(at.0, block, view.dim, at.1, stride)
                } else {
                    f32_dots::<S, 1>(at.0, block, view.dim, at.1, stride)
                };
            }
        }
    }
}
vectorised!(
    /// f32 scores.
    f32_scores => f32_scores_rows(view: &View<f32>, queries: *const f32, count: usize, limit: usize, out: *mut f32, stride: usize));

/// `N` queries against 16 keys.
#[inline(always)]
unsafe fn f32_dots<S: Simd, const N: usize>(
    queries: *const f32,
    block: *const f32,
    dim: usize,
    out: *mut f32,
    stride: usize,
) -> usize {
    // SAFETY: N queries of `dim`, a block of `dim` × 16, N rows of at least 16.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        for d in 0..dim {
            let keys = S::load(block.add(d * LANES));
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(S::splat(*queries.add(n * dim + d)), keys, *sum);
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            S::store(out.add(n * stride), sum);
        }
        N
    }
}

#[inline(always)]
unsafe fn f32_mix_rows<S: Simd>(
    view: &View<f32>,
    weights: *const f32,
    stride: usize,
    count: usize,
    limit: usize,
    out: *mut f32,
) {
    let wide = view.dim.next_multiple_of(LANES);
    for d in (0..wide).step_by(LANES) {
        let mut q = 0;
        while q < count {
            // SAFETY: `count` rows of `stride` weights, of `wide` results.
            unsafe {
                let (w, o) = (weights.add(q * stride), out.add(q * wide + d));
                q += if count - q >= 4 {
                    f32_sums::<S, 4>(view, w, stride, limit, d, o)
                } else {
                    f32_sums::<S, 1>(view, w, stride, limit, d, o)
                };
            }
        }
    }
}
vectorised!(
    /// f32 weighted sums.
    f32_mix => f32_mix_rows(view: &View<f32>, weights: *const f32, stride: usize, count: usize, limit: usize, out: *mut f32));

/// `N` queries' weighted sums of 16 value dimensions from `d`.
#[inline(always)]
unsafe fn f32_sums<S: Simd, const N: usize>(
    view: &View<f32>,
    weights: *const f32,
    stride: usize,
    limit: usize,
    d: usize,
    out: *mut f32,
) -> usize {
    let wide = view.dim.next_multiple_of(LANES);
    // SAFETY: positions below the limit are inside the view's pages.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        for (number, &page) in view.pages.iter().enumerate().take(limit.div_ceil(PAGE)) {
            let values = view.values.add(page as usize * view.value_page + d);
            for p in 0..(limit - number * PAGE).min(PAGE) {
                let v = S::load(values.add(p * wide));
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::splat(*weights.add(n * stride + number * PAGE + p)), v, *sum);
                }
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            S::store(out.add(n * wide), sum);
        }
        N
    }
}

/// bf16 without bf16 instructions: correct, slow.
pub fn bf16_portable_kernels() -> Kernels<u16> {
    unsafe fn scores(view: &View<u16>, queries: *const u16, count: usize, limit: usize, out: *mut f32, stride: usize) {
        for p in 0..limit {
            for q in 0..count {
                // SAFETY: inside the view and the rows, by the layout above.
                unsafe {
                    let page = view.keys.add(view.pages[p / PAGE] as usize * view.key_page);
                    let block = page.add(p % PAGE / LANES * view.dim * LANES);
                    let key = |d: usize| from_bf16(*block.add((d / 2 * LANES + p % LANES) * 2 + d % 2));
                    let dot = (0..view.dim).map(|d| from_bf16(*queries.add(q * view.dim + d)) * key(d)).sum();
                    *out.add(q * stride + p) = dot;
                }
            }
        }
    }
    unsafe fn mix(view: &View<u16>, weights: *const u16, stride: usize, count: usize, limit: usize, out: *mut f32) {
        let wide = view.dim.next_multiple_of(LANES);
        for q in 0..count {
            for d in 0..view.dim {
                let mut sum = 0f32;
                for p in 0..limit {
                    // SAFETY: inside the view and the rows, by the layout above.
                    unsafe {
                        let page = view.values.add(view.pages[p / PAGE] as usize * view.value_page);
                        let value = from_bf16(*page.add((p % PAGE / 2 * wide + d) * 2 + p % 2));
                        sum += from_bf16(*weights.add(q * stride + p)) * value;
                    }
                }
                // SAFETY: `count` rows of `wide`.
                unsafe { *out.add(q * wide + d) = sum }
            }
        }
    }
    Kernels { before: nothing, after: nothing, scores, mix }
}
