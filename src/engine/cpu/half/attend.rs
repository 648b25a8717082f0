//! Attention without a mask, one head of one whole sequence, in fp16: bf16 in, bf16 out.
//!
//! Keys and values are scaled by powers of two, so that their largest is below 2; queries carry the softmax's scale. Scores are fp16 sums over
//! the head's width, weights are fp16 powers of two of them, and weighted values are summed as matrix products are ([`super::sums`]). On random
//! numbers that adds less than rounding keys, values and weights to bf16 did.
//!
//! Keys lie as [blocks of 32][D][32 positions], so that a vector is one dimension of 32 keys; a query's numbers as pairs of the same number,
//! which one 32-bit broadcast spreads; weights as staged rows; values as packed matrices, [pairs of positions][D / 16][16][2].

use super::{STRETCH, STRIDE, TILE, largest, load, power, sums};
use crate::engine::cpu::{
    attend::Sequence,
    simd::{Avx512, LANES, Simd, from_bf16},
};
use std::{arch::x86_64::*, cell::RefCell, mem::MaybeUninit};

/// Halves of a vector.
const WIDE: usize = 2 * LANES;

/// Halves of a tile's stretch of weights.
const STRETCH_ROWS: usize = TILE * STRIDE;

/// Scores of a query stay below this, inside fp16.
const HIGHEST: f32 = 32768.0;

/// What a thread needs for one head; grows with use.
struct Scratch {
    keys: Vec<__m512i>,
    values: Vec<__m512i>,
    queries: Vec<__m512i>,
    weights: Vec<__m512i>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { keys: Vec::new(), values: Vec::new(), queries: Vec::new(), weights: Vec::new() }) };
}

/// At least `halves` of a buffer.
fn room(buffer: &mut Vec<__m512i>, halves: usize) -> *mut u16 {
    let lines = halves.div_ceil(WIDE);
    if buffer.len() < lines {
        // SAFETY: all-zero bytes are a value.
        buffer.resize(lines, unsafe { std::mem::zeroed() });
    }
    buffer.as_mut_ptr().cast()
}

/// Heads whose width is a multiple of this.
pub const HEAD: usize = WIDE;

/// All queries of the sequence.
///
/// # Safety
/// The processor has AVX512-FP16; the sequence's rows are valid, its width is a multiple of [`HEAD`].
pub unsafe fn attend(sequence: &Sequence<u16>) {
    let (rows, dim) = (sequence.rows, sequence.dim);
    SCRATCH.with_borrow_mut(|scratch| {
        let keys = room(&mut scratch.keys, rows.next_multiple_of(WIDE) * dim);
        let values = room(&mut scratch.values, rows.next_multiple_of(2) * dim);
        let queries = room(&mut scratch.queries, TILE * 2 * dim);
        let weights = room(&mut scratch.weights, rows.div_ceil(STRETCH) * STRETCH_ROWS);
        // SAFETY: passed on; the buffers hold what the functions say.
        unsafe {
            let of_keys = write_keys(sequence, keys);
            let of_values = write_values(sequence, values);
            let queries_as = Queries::new(sequence, of_keys);
            let mut row = 0;
            for left in (1..=rows.div_ceil(TILE)).rev() {
                let count = (rows - row).div_ceil(left);
                for r in 0..count {
                    let query = sequence.queries.add((row + r) * sequence.stride);
                    write_query(query, queries_as.factor, dim, queries.add(r * 2 * dim));
                }
                let (buffers, spread) = ([keys, values, queries, weights], queries_as.spread);
                macro_rules! pick {
                    ($($n:literal)*) => {
                        match count {
                            $($n => tile::<$n>(sequence, row, buffers, spread, of_values),)*
                            _ => unreachable!("a tile of more rows than fit the registers"),
                        }
                    };
                }
                pick!(1 2 3 4 5 6 7 8 9 10 11 12);
                row += count;
            }
        }
    });
}

/// The largest magnitude's bits of rows of the sequence from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn highest(sequence: &Sequence<u16>, first: *const u16) -> u16 {
    // SAFETY: the rows that there are.
    unsafe { largest((0..sequence.rows).map(|row| first.add(row * sequence.stride)), sequence.dim) }
}

/// How queries are written.
struct Queries {
    /// What their numbers are multiplied by: the softmax's scale, less where scores could leave fp16.
    factor: f32,
    /// What differences of scores are multiplied by.
    spread: f32,
}

impl Queries {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn new(sequence: &Sequence<u16>, of_keys: f32) -> Self {
        let scale = sequence.scale * std::f32::consts::LOG2_E / of_keys;
        // SAFETY: passed on.
        let most = from_bf16(unsafe { highest(sequence, sequence.queries) });
        // Keys are below 2.
        let most = most * scale.abs() * 2.0 * sequence.dim as f32;
        let spread = if most > HIGHEST && most.is_finite() { (most / HIGHEST).log2().ceil().exp2() } else { 1.0 };
        // More than fp16 holds is not needed: such scores are whole numbers far apart.
        Self { factor: scale / spread, spread: spread.min(HIGHEST) }
    }
}

/// 16 bf16 times a factor as fp16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn halves(from: *const u16, factor: __m512) -> __m256i {
    // SAFETY: 16 readable halves.
    let bits = unsafe { _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))) };
    _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_mul_ps(_mm512_castsi512_ps(bits), factor))
}

/// All keys, zeros behind the last; returns their factor.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn write_keys(sequence: &Sequence<u16>, keys: *mut u16) -> f32 {
    /// Of two rows: the first halves, number by number in turn; then the second halves.
    const TURNS: [[u16; WIDE]; 2] = {
        let mut turns = [[0; WIDE]; 2];
        let mut i = 0;
        while i < 2 * WIDE {
            turns[i / WIDE][i % WIDE] = (i / 2 + i % 2 * WIDE) as u16;
            i += 1;
        }
        turns
    };
    let (rows, dim, stride) = (sequence.rows, sequence.dim, sequence.stride);
    // SAFETY: the sequence's rows; blocks of 32 keys times `dim`.
    unsafe {
        let found = power(highest(sequence, sequence.keys) >> 7, 0);
        let factor = _mm512_set1_ps(found);
        let turns = TURNS.map(|turn| _mm512_loadu_si512(turn.as_ptr().cast()));
        for first in (0..rows).step_by(WIDE) {
            for d in (0..dim).step_by(WIDE) {
                let mut square = [_mm512_setzero_si512(); WIDE];
                for (row, line) in (first..rows).zip(&mut square) {
                    let from = sequence.keys.add(row * stride + d);
                    let left = _mm512_castsi256_si512(halves(from, factor));
                    *line = _mm512_inserti64x4::<1>(left, halves(from.add(LANES), factor));
                }
                // Each round moves one bit of the row's number to the column's and one of the column's to the row's.
                for _ in 0..WIDE.ilog2() {
                    let from = square;
                    for i in 0..WIDE {
                        square[i] = _mm512_permutex2var_epi16(from[i / 2], turns[i % 2], from[i / 2 + WIDE / 2]);
                    }
                }
                for (i, line) in square.into_iter().enumerate() {
                    _mm512_store_si512(keys.add(first * dim + (d + i) * WIDE).cast(), line);
                }
            }
        }
        found
    }
}

/// All values in pairs of positions, zeros behind an odd last one; returns their factor.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn write_values(sequence: &Sequence<u16>, values: *mut u16) -> f32 {
    let (rows, dim, stride) = (sequence.rows, sequence.dim, sequence.stride);
    // SAFETY: the sequence's rows; pairs of positions times `dim`.
    unsafe {
        let found = power(highest(sequence, sequence.values) >> 7, 0);
        let factor = _mm512_set1_ps(found);
        for row in (0..rows).step_by(2) {
            for d in (0..dim).step_by(LANES) {
                let from = sequence.values.add(row * stride + d);
                let first = _mm512_cvtepu16_epi32(halves(from, factor));
                let second = match row + 1 < rows {
                    true => _mm512_cvtepu16_epi32(halves(from.add(stride), factor)),
                    false => _mm512_setzero_si512(),
                };
                let pairs = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
                _mm512_store_si512(values.add(row * dim + d * 2).cast(), pairs);
            }
        }
        found
    }
}

/// A query's numbers times a factor, each twice.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn write_query(query: *const u16, factor: f32, dim: usize, out: *mut u16) {
    let factor = _mm512_set1_ps(factor);
    for d in (0..dim).step_by(LANES) {
        // SAFETY: `dim` numbers in, twice as many out.
        unsafe {
            let numbers = _mm512_cvtepu16_epi32(halves(query.add(d), factor));
            let twice = _mm512_or_si512(numbers, _mm512_slli_epi32::<16>(numbers));
            _mm512_store_si512(out.add(d * 2).cast(), twice);
        }
    }
}

/// `R` queries from a row on, with all keys and values. `buffers`: keys, values, the queries, weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
unsafe fn tile<const R: usize>(
    sequence: &Sequence<u16>,
    row: usize,
    buffers: [*mut u16; 4],
    spread: f32,
    of_values: f32,
) {
    #[repr(align(64))]
    struct Block([MaybeUninit<[f32; WIDE]>; TILE]);
    let (rows, dim) = (sequence.rows, sequence.dim);
    let [keys, values, queries, weights] = buffers;
    // SAFETY: the buffers hold what `attend` says.
    unsafe {
        let blocks = rows.div_ceil(WIDE);
        for block in (0..blocks).step_by(2) {
            let (keys, position) = (keys.add(block * dim * WIDE), block * WIDE);
            let to = weights.add(position / STRETCH * STRETCH_ROWS + position % STRETCH);
            match blocks - block {
                1 => dots::<R, 1>(queries.cast(), keys, dim, to),
                _ => dots::<R, 2>(queries.cast(), keys, dim, to),
            }
        }
        let mut norms = [0.0; R];
        for (r, norm) in norms.iter_mut().enumerate() {
            *norm = 1.0 / (softmax(weights.add(r * STRIDE), rows, spread) * of_values);
        }
        let mut block = Block([MaybeUninit::uninit(); TILE]);
        for d in (0..dim).step_by(WIDE) {
            let left = values.add(d * 2).cast_const();
            let out: *mut f32 = block.0.as_mut_ptr().cast();
            let (pairs, step) = (rows.next_multiple_of(2), 2 * dim);
            sums::<R>(weights, STRETCH_ROWS, pairs, [left, left.add(WIDE)], step, out);
            for (r, norm) in norms.iter().enumerate() {
                let to = sequence.out.add((row + r) * sequence.out_stride + d);
                for half in [0, LANES] {
                    let sum = _mm512_mul_ps(_mm512_load_ps(out.add(r * WIDE + half)), _mm512_set1_ps(*norm));
                    Avx512::store_bf16(to.add(half), sum);
                }
            }
        }
    }
}

/// `R` queries with `B` blocks of 32 keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
unsafe fn dots<const R: usize, const B: usize>(queries: *const i32, keys: *const u16, dim: usize, out: *mut u16) {
    let mut sums = [[_mm512_setzero_ph(); B]; R];
    // SAFETY: R queries of `dim` pairs, B blocks of `dim` vectors, R rows of weights.
    unsafe {
        for d in 0..dim {
            let mut k = [_mm512_setzero_ph(); B];
            for (b, k) in k.iter_mut().enumerate() {
                *k = _mm512_castsi512_ph(_mm512_load_si512(keys.add((b * dim + d) * WIDE).cast()));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_castsi512_ph(_mm512_set1_epi32(*queries.add(r * dim + d)));
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum = _mm512_fmadd_ph(a, k, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (b, sum) in sums.into_iter().enumerate() {
                _mm512_store_si512(out.add(r * STRIDE + b * WIDE).cast(), _mm512_castph_si512(sum));
            }
        }
    }
}

/// A row of scores to `2^(spread · (score - highest))`, zeros behind the last; returns their sum.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
unsafe fn softmax(row: *mut u16, count: usize, spread: f32) -> f32 {
    /// 2^r on [-1/2, 1/2], from the highest power: within 1.3e-4 (relative) with these coefficients, which fp16 holds exactly.
    const POLYNOMIAL: [f32; 4] = [0.054_992_676, 0.242_309_57, 0.693_359_4, 1.0];
    /// 2 to the power of this is zero in fp16.
    const LOWEST: f32 = -40.0;
    // SAFETY: a row of `count` rounded up to 32, in stretches.
    unsafe {
        let at = |position: usize| row.add(position / STRETCH * STRETCH_ROWS + position % STRETCH);
        if !count.is_multiple_of(WIDE) {
            let behind = u32::MAX << (count % WIDE);
            _mm512_mask_storeu_epi16(
                at(count / WIDE * WIDE).cast(),
                behind,
                _mm512_castph_si512(splat(f32::NEG_INFINITY)),
            );
        }
        let mut high = splat(f32::NEG_INFINITY);
        for position in (0..count).step_by(WIDE) {
            high = _mm512_max_ph(load(at(position)), high);
        }
        let [left, right] = wide(high);
        let high = splat(_mm512_reduce_max_ps(_mm512_max_ps(left, right)));
        let (spread, lowest) = (splat(spread), splat(LOWEST));
        let terms = [splat(POLYNOMIAL[0]), splat(POLYNOMIAL[1]), splat(POLYNOMIAL[2]), splat(POLYNOMIAL[3])];
        let mut total = _mm512_setzero_ps();
        for first in (0..count).step_by(STRETCH) {
            let mut sum = _mm512_setzero_ph();
            for position in (first..count.min(first + STRETCH)).step_by(WIDE) {
                let x = _mm512_mul_ph(_mm512_sub_ph(load(at(position)), high), spread);
                // The second of the two where one is NaN.
                let x = _mm512_max_ph(lowest, x);
                let whole = _mm512_roundscale_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
                let part = _mm512_sub_ph(x, whole);
                let mut p = terms[0];
                for term in &terms[1..] {
                    p = _mm512_fmadd_ph(p, part, *term);
                }
                let weight = _mm512_scalef_ph(p, whole);
                _mm512_store_si512(at(position).cast(), _mm512_castph_si512(weight));
                sum = _mm512_add_ph(sum, weight);
            }
            let [left, right] = wide(sum);
            total = _mm512_add_ps(total, _mm512_add_ps(left, right));
        }
        _mm512_reduce_add_ps(total)
    }
}

/// The number in all lanes, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512fp16")]
fn splat(x: f32) -> __m512h {
    let half =
        _mm512_castsi512_si128(_mm512_castsi256_si512(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_set1_ps(x))));
    _mm512_castsi512_ph(_mm512_broadcastw_epi16(half))
}

/// Both halves as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512fp16")]
fn wide(x: __m512h) -> [__m512; 2] {
    let x = _mm512_castph_si512(x);
    [_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(x))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::simd::to_bf16;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A sequence's three parts side by side, as the encoder has them: row by row `3 · dim` numbers.
    struct Rows {
        data: Vec<u16>,
        rows: usize,
        dim: usize,
    }

    impl Rows {
        /// Numbers up to the three sizes.
        fn random(rng: &mut ChaCha8Rng, rows: usize, dim: usize, sizes: [f32; 3]) -> Self {
            let one = |i: usize| to_bf16(rng.random_range(-1.0..1.0f32) * sizes[i / dim % 3]);
            Self { data: (0..rows * 3 * dim).map(one).collect(), rows, dim }
        }

        fn number(&self, part: usize, row: usize, d: usize) -> f64 {
            f64::from(from_bf16(self.data[(row * 3 + part) * self.dim + d]))
        }

        fn attend(&self) -> Vec<f32> {
            let mut out = vec![0u16; self.rows * self.dim];
            let first = self.data.as_ptr();
            let sequence = Sequence {
                queries: first,
                keys: first.wrapping_add(self.dim),
                values: first.wrapping_add(2 * self.dim),
                stride: 3 * self.dim,
                rows: self.rows,
                dim: self.dim,
                scale: 1.0 / (self.dim as f32).sqrt(),
                out: out.as_mut_ptr(),
                out_stride: self.dim,
            };
            // SAFETY: the rows that there are; asked for where the processor has the instructions.
            unsafe { attend(&sequence) }
            out.into_iter().map(from_bf16).collect()
        }

        /// The definition, in f64.
        fn exact(&self) -> Vec<f64> {
            let mut out = Vec::new();
            for query in 0..self.rows {
                let dot =
                    |row| -> f64 { (0..self.dim).map(|d| self.number(0, query, d) * self.number(1, row, d)).sum() };
                let scores: Vec<f64> = (0..self.rows).map(|row| dot(row) / (self.dim as f64).sqrt()).collect();
                let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - high).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend(
                    (0..self.dim).map(|d| {
                        weights.iter().enumerate().map(|(row, w)| w * self.number(2, row, d)).sum::<f64>() / sum
                    }),
                );
            }
            out
        }
    }

    fn absent() -> bool {
        !std::is_x86_feature_detected!("avx512fp16")
    }

    #[test]
    fn whole_sequences_as_in_f64() {
        if absent() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for dim in [32, 64] {
            for rows in [1, 2, 13, 31, 32, 33, 65, 515] {
                // Weights of like size, and few large ones.
                for size in [1.0, 4.0] {
                    let sequence = Rows::random(&mut rng, rows, dim, [size, size, 1.0]);
                    let squares = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
                    let (got, exact) = (sequence.attend(), sequence.exact());
                    let off = squares(&mut got.iter().zip(&exact).map(|(g, e)| f64::from(*g) - e));
                    let off = off / squares(&mut exact.iter().copied());
                    // Rounding the result to bf16 makes 1.7e-3 of it. Scores of up to 30 have errors of half a hundredth in fp16.
                    let near = if size > 1.0 { 1.2e-2 } else { 2.5e-3 };
                    assert!(off < near, "{rows} rows of {dim}, size {size}: {off}");
                }
            }
        }
    }

    /// Sizes that fp16 does not hold, and scores beyond it, where one position has all the weight.
    #[test]
    fn numbers_of_any_size() {
        if absent() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        for sizes in
            [[1e-20, 1e20, 1.0], [1e20, 1e-20, 1e30], [1.0, 1.0, 1e-30], [1e-30, 1e-30, 1e5], [900.0, 900.0, 1.0]]
        {
            let sequence = Rows::random(&mut rng, 70, 32, sizes);
            let (got, exact) = (sequence.attend(), sequence.exact());
            for (i, (g, e)) in got.iter().zip(&exact).enumerate() {
                assert!((f64::from(*g) - e).abs() < 0.02 * f64::from(sizes[2]), "{sizes:?}, element {i}: {g} for {e}");
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so() {
        if absent() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let sequence = || Rows::random(&mut ChaCha8Rng::seed_from_u64(7), 40, 32, [1.0; 3]);
        let first = rng.random_range(0..32);
        for (part, all) in [(0, false), (1, true), (2, true)] {
            for what in [f32::NAN, f32::INFINITY] {
                // A key of minus infinity may just have no weight.
                if part == 1 && what.is_infinite() {
                    continue;
                }
                let mut sequence = sequence();
                sequence.data[(3 * 3 + part) * 32 + first] = to_bf16(what);
                let got = sequence.attend();
                assert!(got[3 * 32..4 * 32].iter().any(|g| !g.is_finite()), "{what} in part {part}");
                if !all {
                    assert!(got[..3 * 32].iter().chain(&got[4 * 32..]).all(|g| g.is_finite()), "the other queries");
                }
            }
        }
    }

    /// No row's bits depend on how the queries were grouped: here by rows behind them that have no weight.
    #[test]
    fn a_query_is_the_same_among_others() {
        if absent() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let mut sequence = Rows::random(&mut rng, 29, 32, [1.0; 3]);
        let alone = sequence.attend();
        let twin = sequence.data[..96].to_vec();
        for row in [5, 12, 28] {
            sequence.data[row * 96..row * 96 + 32].copy_from_slice(&twin[..32]);
        }
        let got = sequence.attend();
        for row in [0, 5, 12, 28] {
            assert_eq!(got[row * 32..(row + 1) * 32], alone[..32], "row {row}");
        }
    }
}
