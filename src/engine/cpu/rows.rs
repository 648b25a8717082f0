//! Work on single rows between the matrix products: RMS norm, the rotation of one head, the exponentials of a
//! probability row.

use super::{
    elem::Elem,
    simd::{LANES, Simd, vectorised},
};

/// `out = w · x / sqrt(mean(x²) + eps)` over `n` numbers; all rows are padded to a multiple of 16 with zeros.
#[inline(always)]
unsafe fn norm_row<S: Simd, E: Elem>(x: *const f32, w: *const f32, out: *mut E, n: usize, eps: f32) {
    // SAFETY: three rows of `n` rounded up to 16.
    unsafe {
        let mut squares = S::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let v = S::load(x.add(i));
            squares = S::fma(v, v, squares);
        }
        let scale = S::splat(1.0 / (S::sum(squares) / n as f32 + eps).sqrt());
        for i in (0..n).step_by(LANES) {
            E::store::<S>(out.add(i), S::mul(S::mul(S::load(x.add(i)), scale), S::load(w.add(i))));
        }
    }
}
vectorised!(
    /// RMS norm of a row.
    norm => norm_row::<E: Elem>(x: *const f32, w: *const f32, out: *mut E, n: usize, eps: f32));

/// A layer norm's parameters, each padded to whole vectors with zeros.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// Factor.
    pub weight: &'a [f32],
    /// Summand.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// `x = w · (x - mean) / sqrt(var + eps) + b` in place, and the same to `out`, over `n` numbers; rows are padded to a multiple of 16 with
/// zeros, and stay so.
#[inline(always)]
unsafe fn layer_norm_row<S: Simd, E: Elem>(x: *mut f32, norm: LayerNorm<'_>, out: *mut E, n: usize) {
    // SAFETY: four rows of `n` rounded up to 16.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..n).step_by(LANES) {
            sum = S::add(sum, S::load(x.add(i)));
        }
        let mean = S::sum(sum) / n as f32;
        let minus = S::splat(-mean);
        let mut squares = S::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let v = S::add(S::load(x.add(i)), minus);
            squares = S::fma(v, v, squares);
        }
        // The padding's zeros were counted as -mean.
        let padding = (n.next_multiple_of(LANES) - n) as f32;
        let variance = (S::sum(squares) - padding * mean * mean).max(0.0) / n as f32;
        let scale = S::splat(1.0 / (variance + norm.eps).sqrt());
        for i in (0..n).step_by(LANES) {
            let v = S::mul(S::add(S::load(x.add(i)), minus), scale);
            let v = S::fma(v, S::load(norm.weight.as_ptr().add(i)), S::load(norm.bias.as_ptr().add(i)));
            S::store(x.add(i), v);
            E::store::<S>(out.add(i), v);
        }
    }
}
vectorised!(
    /// Layer norm of a row.
    layer_norm => layer_norm_row::<E: Elem>(x: *mut f32, norm: LayerNorm<'_>, out: *mut E, n: usize));

/// `out = x / |x|` over `n` numbers; rows are padded to a multiple of 16 with zeros. Returns |x|.
#[inline(always)]
unsafe fn unit_row<S: Simd>(x: *const f32, out: *mut f32, n: usize) -> f32 {
    // SAFETY: two rows of `n` rounded up to 16.
    unsafe {
        let mut squares = S::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let v = S::load(x.add(i));
            squares = S::fma(v, v, squares);
        }
        let size = S::sum(squares).sqrt();
        let scale = S::splat(1.0 / size);
        for i in (0..n).step_by(LANES) {
            S::store(out.add(i), S::mul(S::load(x.add(i)), scale));
        }
        size
    }
}
vectorised!(
    /// A row of length one, and the length it had.
    unit => unit_row(x: *const f32, out: *mut f32, n: usize) -> f32);

/// `out = max(a, b)` over `n` numbers, a multiple of 16.
#[inline(always)]
unsafe fn max_row<S: Simd>(a: *const f32, b: *const f32, out: *mut f32, n: usize) {
    // SAFETY: three rows of `n`.
    unsafe {
        for i in (0..n).step_by(LANES) {
            S::store(out.add(i), S::max(S::load(a.add(i)), S::load(b.add(i))));
        }
    }
}
vectorised!(
    /// The larger number of each place.
    max => max_row(a: *const f32, b: *const f32, out: *mut f32, n: usize));

/// `out += x` over `n` numbers, of which whole vectors may be touched.
#[inline(always)]
unsafe fn add_row<S: Simd>(x: *const f32, out: *mut f32, n: usize) {
    // SAFETY: two rows of `n` rounded up to 16.
    unsafe {
        for i in (0..n).step_by(LANES) {
            S::store(out.add(i), S::add(S::load(out.add(i)), S::load(x.add(i))));
        }
    }
}
vectorised!(
    /// Adds a row.
    add => add_row(x: *const f32, out: *mut f32, n: usize));

/// How one head is normed and turned.
pub struct Head<'a> {
    /// Its RMS norm, if the family has one.
    pub norm: Option<&'a [f32]>,
    /// Epsilon of that norm.
    pub eps: f32,
    /// cos of this position, `dim / 2`.
    pub cos: &'a [f32],
    /// sin of this position, `dim / 2`.
    pub sin: &'a [f32],
}

/// Norms and rotates the head `x` [dim] into `out` [dim]; dimension i pairs with i + dim / 2.
#[inline(always)]
unsafe fn head_row<S: Simd, E: Elem>(x: *const f32, out: *mut E, head: &Head<'_>) {
    let half = head.cos.len();
    // SAFETY: `dim` floats in both, `dim / 2` in the tables, `dim` in the norm.
    unsafe {
        let mut scale = 1.0;
        if head.norm.is_some() {
            let mut squares = S::splat(0.0);
            let whole = 2 * half / LANES * LANES;
            for i in (0..whole).step_by(LANES) {
                let v = S::load(x.add(i));
                squares = S::fma(v, v, squares);
            }
            let mut sum = S::sum(squares);
            for i in whole..2 * half {
                sum += *x.add(i) * *x.add(i);
            }
            scale = 1.0 / (sum / (2 * half) as f32 + head.eps).sqrt();
        }
        let vectors = half / LANES * LANES;
        for i in (0..vectors).step_by(LANES) {
            let weigh = |at: usize| match head.norm {
                Some(w) => S::mul(S::mul(S::load(x.add(at)), S::splat(scale)), S::load(w.as_ptr().add(at))),
                None => S::load(x.add(at)),
            };
            let (a, b) = (weigh(i), weigh(i + half));
            let (c, s) = (S::load(head.cos.as_ptr().add(i)), S::load(head.sin.as_ptr().add(i)));
            let minus = S::mul(s, S::splat(-1.0));
            E::store::<S>(out.add(i), S::fma(b, minus, S::mul(a, c)));
            E::store::<S>(out.add(i + half), S::fma(a, s, S::mul(b, c)));
        }
        for i in vectors..half {
            let weigh = |at: usize| *x.add(at) * head.norm.map_or(1.0, |w| scale * w[at]);
            let (a, b) = (weigh(i), weigh(i + half));
            *out.add(i) = E::from_f32(a * head.cos[i] - b * head.sin[i]);
            *out.add(i + half) = E::from_f32(b * head.cos[i] + a * head.sin[i]);
        }
    }
}
vectorised!(
    /// One head of one position.
    head => head_row::<E: Elem>(x: *const f32, out: *mut E, head: &Head<'_>));

/// `out = x · factor` over `n` numbers.
#[inline(always)]
unsafe fn scale_row<S: Simd, E: Elem>(x: *const f32, factor: f32, out: *mut E, n: usize) {
    let whole = n / LANES * LANES;
    // SAFETY: `n` numbers in both.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            E::store::<S>(out.add(i), S::mul(S::load(x.add(i)), S::splat(factor)));
        }
        for i in whole..n {
            *out.add(i) = E::from_f32(*x.add(i) * factor);
        }
    }
}
vectorised!(
    /// A scaled row in another type.
    scale => scale_row::<E: Elem>(x: *const f32, factor: f32, out: *mut E, n: usize));

/// `out[i] = exp((x[i] - high) · scale)`.
#[inline(always)]
unsafe fn exp_rows<S: Simd>(x: &[f32], high: f32, scale: f32, out: &mut [f32]) {
    let whole = x.len() / LANES * LANES;
    // SAFETY: whole vectors inside both slices; the tail goes through a padded copy.
    unsafe {
        let (shift, factor) = (S::splat(-high), S::splat(scale));
        for i in (0..whole).step_by(LANES) {
            let v = S::mul(S::add(S::load(x.as_ptr().add(i)), shift), factor);
            S::store(out.as_mut_ptr().add(i), S::exp(v));
        }
        if whole < x.len() {
            let mut tail = [high; LANES];
            tail[..x.len() - whole].copy_from_slice(&x[whole..]);
            let v = S::exp(S::mul(S::add(S::load(tail.as_ptr()), shift), factor));
            S::store(tail.as_mut_ptr(), v);
            out[whole..].copy_from_slice(&tail[..x.len() - whole]);
        }
    }
}
vectorised!(
    /// Exponentials of a row.
    exp => exp_rows(x: &[f32], high: f32, scale: f32, out: &mut [f32]));

/// The largest number of the row, or NaN if not all are finite.
#[inline(always)]
unsafe fn peak_rows<S: Simd>(x: &[f32]) -> f32 {
    let whole = x.len() / LANES * LANES;
    // SAFETY: whole vectors inside the slice.
    unsafe {
        let mut high = S::splat(f32::NEG_INFINITY);
        // x · 0 is 0 for numbers, NaN for NaN and infinities: one sum finds them all.
        let mut odd = S::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let v = S::load(x.as_ptr().add(i));
            high = S::max(v, high);
            odd = S::fma(v, S::splat(0.0), odd);
        }
        let mut odd = S::sum(odd);
        let mut high = S::hmax(high);
        for &v in &x[whole..] {
            high = if v > high { v } else { high };
            odd += v * 0.0;
        }
        if odd == 0.0 { high } else { f32::NAN }
    }
}
vectorised!(
    /// Largest number of a row of finite numbers, else NaN.
    peak => peak_rows(x: &[f32]) -> f32);
