//! Attention of a few queries over one sequence's paged cache, for one key/value head. A query's result depends on its own
//! limit only: not on the other queries of the call, nor on how its sequence was cut into steps.
//!
//! Cache layout, per page of [`PAGE`] positions and key/value head, dimensions `D` (values padded to 16, `V`):
//! keys [PAGE / 16][D / P][16 positions][P], values [PAGE / P][V][P], where P is [`Elem::PACK`].

use super::{
    elem::Elem,
    fma,
    isa::Vector,
    rows,
    simd::{LANES, Simd, vectorised},
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

/// One head of one whole sequence, without a mask: every query sees every position.
pub struct Sequence<E> {
    /// First row's query, of `dim` numbers.
    pub queries: *const E,
    /// First row's key.
    pub keys: *const E,
    /// First row's value.
    pub values: *const E,
    /// Numbers from row to row of the three.
    pub stride: usize,
    /// Positions.
    pub rows: usize,
    /// Head width D.
    pub dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// First row's result, of `dim` numbers.
    pub out: *mut E,
    /// Numbers from row to row of the results.
    pub out_stride: usize,
}

/// Attention over a whole sequence; results do not overlap what is read.
pub type Whole<E> = unsafe fn(&Sequence<E>);

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

/// Kernels of f32 multiply-adds for those vectors; bf16 is widened in registers.
pub fn fma_kernels<E: Elem>(vector: Vector) -> Kernels<E> {
    macro_rules! kernels {
        ($vector:expr) => {{
            unsafe fn scores<E: Elem>(v: &View<E>, q: *const E, n: usize, limit: usize, out: *mut f32, stride: usize) {
                // SAFETY: chosen for that processor; the rest is passed on.
                unsafe { fma_scores::<E>($vector, v, q, n, limit, out, stride) }
            }
            unsafe fn mix<E: Elem>(v: &View<E>, w: *const E, stride: usize, n: usize, limit: usize, out: *mut f32) {
                // SAFETY: chosen for that processor; the rest is passed on.
                unsafe { fma_mix::<E>($vector, v, w, stride, n, limit, out) }
            }
            Kernels { before: nothing, after: nothing, scores: scores::<E>, mix: mix::<E> }
        }};
    }
    unsafe fn nothing() {}
    match vector {
        Vector::Portable => kernels!(Vector::Portable),
        Vector::Avx2 => kernels!(Vector::Avx2),
        Vector::Avx512 => kernels!(Vector::Avx512),
    }
}

/// `count` rows of `length` numbers as f32 in the thread's scratch; returns the row stride.
#[inline(always)]
unsafe fn stage<S: Simd, E: Elem>(rows: *const E, stride: usize, count: usize, length: usize) -> (*const f32, usize) {
    // A line more than a multiple of a line: the rows of a tile would share a few cache sets.
    let wide = length.next_multiple_of(LANES) + LANES;
    let to = fma::scratch(QUERIES * wide);
    for row in 0..count {
        for at in (0..length).step_by(LANES) {
            // SAFETY: rows of `length` rounded up to 16, as `Scratch` keeps them; QUERIES rows of the scratch.
            unsafe { S::store(to.add(row * wide + at), E::load::<S>(rows.add(row * stride + at))) }
        }
    }
    (to, wide)
}

/// Calls `tile::<Q, B>` with as many rows and blocks of 16 sums as the registers take: 4 × 4 of 32 registers, else 2 × 2.
macro_rules! tiles {
    ($s:ty, $rows:expr, $blocks:expr, |$q:ident, $b:ident| $tile:ident::<$($generic:ty),*>($($arg:expr),*)) => {{
        let most = if <$s>::ROWS > 4 { 4 } else { 2 };
        let mut $q = 0;
        while $q < $rows {
            let height = ($rows - $q).min(most);
            let mut $b = 0;
            while $b < $blocks {
                let width = match $blocks - $b {
                    4.. if most == 4 => 4,
                    2.. => 2,
                    _ => 1,
                };
                // SAFETY: rows and blocks that there are; the rest is the caller's.
                unsafe {
                    match (height, width) {
                        (4, 4) if most == 4 => $tile::<$($generic,)* 4, 4>($($arg),*),
                        (3, 4) if most == 4 => $tile::<$($generic,)* 3, 4>($($arg),*),
                        (2, 4) if most == 4 => $tile::<$($generic,)* 2, 4>($($arg),*),
                        (1, 4) if most == 4 => $tile::<$($generic,)* 1, 4>($($arg),*),
                        (4, 2) if most == 4 => $tile::<$($generic,)* 4, 2>($($arg),*),
                        (3, 2) if most == 4 => $tile::<$($generic,)* 3, 2>($($arg),*),
                        (4, _) if most == 4 => $tile::<$($generic,)* 4, 1>($($arg),*),
                        (3, _) if most == 4 => $tile::<$($generic,)* 3, 1>($($arg),*),
                        (2, 2) => $tile::<$($generic,)* 2, 2>($($arg),*),
                        (1, 2) => $tile::<$($generic,)* 1, 2>($($arg),*),
                        (2, _) => $tile::<$($generic,)* 2, 1>($($arg),*),
                        _ => $tile::<$($generic,)* 1, 1>($($arg),*),
                    }
                }
                $b += width;
            }
            $q += height;
        }
    }};
}

#[inline(always)]
unsafe fn fma_scores_rows<S: Simd, E: Elem>(
    view: &View<E>,
    queries: *const E,
    count: usize,
    limit: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the queries lie one behind the other, with room for a whole vector behind the last.
    let (queries, wide) = unsafe { stage::<S, E>(queries, view.dim, count, view.dim) };
    for (number, &page) in view.pages.iter().enumerate().take(limit.div_ceil(PAGE)) {
        let blocks = (limit - number * PAGE).min(PAGE).div_ceil(LANES);
        // SAFETY: pages are inside the view; rows of scores hold whole pages.
        let (keys, out) = unsafe { (view.keys.add(page as usize * view.key_page), out.add(number * PAGE)) };
        let size = view.dim * LANES;
        // What is read next, asked for line by line: the hardware does not foresee the jump to another page.
        let next = match view.pages.get(number + 1) {
            Some(&next) => view.keys.wrapping_add(next as usize * view.key_page),
            None => view.values.wrapping_add(view.pages[0] as usize * view.value_page),
        };
        let needed = limit.saturating_sub((number + 1) * PAGE).min(PAGE).div_ceil(LANES);
        let needed = if number + 1 == view.pages.len() { blocks } else { needed };
        tiles!(S, count, blocks, |q, b| dots::<S, E>(
            (queries.add(q * wide), wide),
            (keys.add(b * size), size),
            view.dim,
            if b < needed { next.wrapping_add(b * size) } else { keys },
            (out.add(q * stride + b * LANES), stride)
        ));
    }
}
vectorised!(
    /// Scores by multiply-adds.
    fma_scores => fma_scores_rows::<E: Elem>(view: &View<E>, queries: *const E, count: usize, limit: usize, out: *mut f32, stride: usize));

/// `Q` queries against `B` blocks of 16 keys, while as many numbers from `next` come to the cache. Pairs of an address and a stride.
#[inline(always)]
unsafe fn dots<S: Simd, E: Elem, const Q: usize, const B: usize>(
    queries: (*const f32, usize),
    keys: (*const E, usize),
    dim: usize,
    next: *const E,
    out: (*mut f32, usize),
) {
    // SAFETY: Q queries of `dim`, B blocks of `dim` × 16, Q rows of at least B × 16.
    unsafe {
        let mut sums = [[S::splat(0.0); B]; Q];
        for d in (0..dim).step_by(E::PACK) {
            let mut k = [[S::splat(0.0); 2]; B];
            for (b, k) in k.iter_mut().enumerate() {
                *k = E::widen::<S>(keys.0.add(b * keys.1 + d * LANES));
                S::prefetch(next.wrapping_add(b * keys.1 + d * LANES).cast());
            }
            // Not a loop, which the compiler would not unroll, nor a closure, which it would not compile for these vectors.
            macro_rules! add {
                ($part:literal) => {{
                    for (q, sums) in sums.iter_mut().enumerate() {
                        let a = S::splat(*queries.0.add(q * queries.1 + d + $part));
                        for (sum, k) in sums.iter_mut().zip(k) {
                            *sum = S::fma(a, k[$part], *sum);
                        }
                    }
                }};
            }
            add!(0);
            if E::PACK == 2 {
                add!(1);
            }
        }
        for (q, sums) in sums.into_iter().enumerate() {
            for (b, sum) in sums.into_iter().enumerate() {
                S::store(out.0.add(q * out.1 + b * LANES), sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn fma_mix_rows<S: Simd, E: Elem>(
    view: &View<E>,
    weights: *const E,
    stride: usize,
    count: usize,
    limit: usize,
    out: *mut f32,
) {
    let wide = view.dim.next_multiple_of(LANES);
    // SAFETY: `count` rows of weights, written up to whole groups.
    let weights = unsafe { stage::<S, E>(weights, stride, count, limit) };
    tiles!(S, count, wide / LANES, |q, b| sums::<S, E>(
        view,
        (weights.0.add(q * weights.1), weights.1),
        limit,
        b * LANES,
        out.add(q * wide + b * LANES)
    ));
}
vectorised!(
    /// Weighted sums by multiply-adds.
    fma_mix => fma_mix_rows::<E: Elem>(view: &View<E>, weights: *const E, stride: usize, count: usize, limit: usize, out: *mut f32));

/// `Q` queries' weighted sums of 16 · `B` value dimensions from `d`, position after position.
#[inline(always)]
unsafe fn sums<S: Simd, E: Elem, const Q: usize, const B: usize>(
    view: &View<E>,
    weights: (*const f32, usize),
    limit: usize,
    d: usize,
    out: *mut f32,
) {
    let wide = view.dim.next_multiple_of(LANES);
    // SAFETY: positions below the limit are inside the view's pages; the partner of a last odd position has weight zero.
    unsafe {
        let mut sums = [[S::splat(0.0); B]; Q];
        for (number, &page) in view.pages.iter().enumerate().take(limit.div_ceil(PAGE)) {
            let values = view.values.add(page as usize * view.value_page + d * E::PACK);
            let weights = (weights.0.add(number * PAGE), weights.1);
            // What is read next: the next page's values; behind the last, perhaps the keys of the next head, which lie behind this one's.
            let next = match view.pages.get(number + 1) {
                Some(&next) => view.values.wrapping_add(next as usize * view.value_page + d * E::PACK),
                None => view.keys.wrapping_add(view.pages[0] as usize * view.key_page + PAGE * view.dim),
            };
            for p in (0..(limit - number * PAGE).min(PAGE)).step_by(E::PACK) {
                let mut v = [[S::splat(0.0); 2]; B];
                for (b, v) in v.iter_mut().enumerate() {
                    *v = E::widen::<S>(values.add(p * wide + b * LANES * E::PACK));
                    S::prefetch(next.wrapping_add(p * wide + b * LANES * E::PACK).cast());
                }
                macro_rules! add {
                    ($part:literal) => {{
                        for (q, sums) in sums.iter_mut().enumerate() {
                            let w = S::splat(*weights.0.add(q * weights.1 + p + $part));
                            for (sum, v) in sums.iter_mut().zip(v) {
                                *sum = S::fma(w, v[$part], *sum);
                            }
                        }
                    }};
                }
                add!(0);
                if E::PACK == 2 {
                    add!(1);
                }
            }
        }
        for (q, sums) in sums.into_iter().enumerate() {
            for (b, sum) in sums.into_iter().enumerate() {
                S::store(out.add(q * wide + b * LANES), sum);
            }
        }
    }
}
