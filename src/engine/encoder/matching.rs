//! Greedy matching of two texts' vectors: the largest cosine of each token with any token of the other text. A matrix product of which
//! only the maxima of rows and columns are kept. Always in f32: it is a few per cent of the work, and equal texts must match at 1.

use super::Vectors;
use crate::engine::cpu::{
    buffer::Shared,
    fma,
    gemm::{Args, BLOCK, Rows},
    isa::{Isa, Vector},
    rows,
    simd::{LANES, Simd, vectorised},
};
use rayon::prelude::*;

/// Columns of one kernel call.
const PAIR: usize = 2 * LANES;

/// Rows that one task takes.
const SPLIT: usize = 256;

/// Largest cosines of all rows of `a` with rows of `b`, and the other way round.
pub fn best(isa: Isa, a: &Vectors, b: &Vectors) -> (Vec<f32>, Vec<f32>) {
    let (inner, rows, columns) = (a.width, a.data.len() / a.width, b.data.len() / b.width);
    if rows == 0 || columns == 0 {
        return (vec![0.0; rows], vec![0.0; columns]);
    }
    let panels = pack(b, columns);
    let one = |range: std::ops::Range<usize>| {
        // The kernel may read up to a whole block of rows.
        let mut copy = vec![0f32; range.len().next_multiple_of(BLOCK) * inner];
        copy[..range.len() * inner].copy_from_slice(&a.data[range.start * inner..range.end * inner]);
        part(isa.vector, &copy, range.len(), inner, &panels, columns)
    };
    let starts: Vec<usize> = (0..rows).step_by(SPLIT).collect();
    let parts: Vec<_> = starts.par_iter().map(|&start| one(start..(start + SPLIT).min(rows))).collect();
    let mut of_rows = Vec::with_capacity(rows);
    let mut of_columns = vec![f32::NEG_INFINITY; columns.next_multiple_of(PAIR)];
    for (rows_best, columns_best) in parts {
        of_rows.extend(rows_best);
        let n = of_columns.len();
        // SAFETY: both hold `n` floats, a multiple of 16; the vectors were detected.
        unsafe {
            let to = of_columns.as_mut_ptr();
            rows::max(isa.vector, to, columns_best.as_ptr(), to, n);
        }
    }
    of_columns.truncate(columns);
    (of_rows, of_columns)
}

/// Panels of 16 columns, as [`crate::engine::cpu::gemm`] packs weights in f32.
fn pack(b: &Vectors, columns: usize) -> Vec<f32> {
    let inner = b.width;
    let mut panels = vec![0f32; columns.next_multiple_of(PAIR) * inner];
    for (column, row) in b.data.chunks_exact(inner).enumerate() {
        let panel = &mut panels[column / LANES * LANES * inner + column % LANES..];
        for (to, &value) in panel.iter_mut().step_by(LANES).zip(row) {
            *to = value;
        }
    }
    panels
}

#[repr(align(64))]
struct Block([f32; BLOCK * PAIR]);

/// Maxima of some rows with all columns.
fn part(vector: Vector, a: &[f32], rows: usize, inner: usize, panels: &[f32], columns: usize) -> (Vec<f32>, Vec<f32>) {
    let kernel = fma::kernel::<f32>(vector);
    let mut block = Block([0.0; BLOCK * PAIR]);
    let mut of_rows = vec![f32::NEG_INFINITY; rows];
    let mut of_columns = vec![f32::NEG_INFINITY; columns.next_multiple_of(PAIR)];
    for row in (0..rows).step_by(BLOCK) {
        let count = (rows - row).min(BLOCK);
        let x = a[row * inner..].as_ptr();
        // SAFETY: `a` is padded to whole blocks, and only read.
        unsafe { (kernel.stage)(&Rows { data: Shared::read_only(x), stride: inner, rows: count }) }
        for first in (0..columns).step_by(PAIR) {
            let args = Args {
                x,
                x_stride: inner,
                rows: count,
                w: panels[first * inner..].as_ptr(),
                panel: LANES * inner,
                inner,
                scale: 1.0,
                out: block.0.as_mut_ptr(),
            };
            // SAFETY: `a` is padded to whole blocks, the panels come in pairs, the block holds 32 × 32.
            unsafe { (kernel.block)(&args) }
            if columns - first < PAIR {
                // Columns that are not there must win nothing.
                for row in block.0.chunks_exact_mut(PAIR) {
                    row[columns - first..].fill(f32::NEG_INFINITY);
                }
            }
            // SAFETY: a block, `count` rows, 32 columns; the vectors were detected.
            unsafe { maxima(vector, &block.0, &mut of_rows[row..row + count], of_columns[first..].as_mut_ptr()) }
        }
    }
    (of_rows, of_columns)
}

#[inline(always)]
unsafe fn maxima_rows<S: Simd>(block: &[f32], of_rows: &mut [f32], of_columns: *mut f32) {
    // SAFETY: as many rows of 32 as `of_rows` has numbers; 32 columns.
    unsafe {
        let mut left = S::load(of_columns);
        let mut right = S::load(of_columns.add(LANES));
        for (row, best) in of_rows.iter_mut().enumerate() {
            let a = S::load(block.as_ptr().add(row * PAIR));
            let b = S::load(block.as_ptr().add(row * PAIR + LANES));
            left = S::max(a, left);
            right = S::max(b, right);
            let high = S::hmax(S::max(a, b));
            *best = if high > *best { high } else { *best };
        }
        S::store(of_columns, left);
        S::store(of_columns.add(LANES), right);
    }
}
vectorised!(
    /// Raises the maxima of rows and columns by a block.
    maxima => maxima_rows(block: &[f32], of_rows: &mut [f32], of_columns: *mut f32));

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(rows: usize, width: usize, seed: u32) -> Vectors {
        let number = |i: usize| ((i as u32 * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.6;
        Vectors { data: (0..rows * width).map(number).collect(), lengths: Vec::new(), width }
    }

    #[test]
    fn maxima_are_those_of_the_whole_matrix() {
        for (rows, columns) in [(1, 1), (1, 40), (33, 31), (300, 65)] {
            let (a, b) = (vectors(rows, 32, 1), vectors(columns, 32, 2));
            let dot = |i: usize, j: usize| -> f32 { (0..32).map(|k| a.data[i * 32 + k] * b.data[j * 32 + k]).sum() };
            for isa in [Isa::PORTABLE, Isa::detect()] {
                let (of_rows, of_columns) = best(isa, &a, &b);
                assert_eq!((of_rows.len(), of_columns.len()), (rows, columns));
                for (i, best) in of_rows.iter().enumerate() {
                    let expected = (0..columns).map(|j| dot(i, j)).fold(f32::NEG_INFINITY, f32::max);
                    assert!((best - expected).abs() < 1e-5, "row {i} of {rows}");
                }
                for (j, best) in of_columns.iter().enumerate() {
                    let expected = (0..rows).map(|i| dot(i, j)).fold(f32::NEG_INFINITY, f32::max);
                    assert!((best - expected).abs() < 1e-5, "column {j} of {columns}");
                }
            }
        }
    }

    #[test]
    fn negative_cosines_are_not_raised_by_padding() {
        let (mut a, mut b) = (vectors(2, 32, 0), vectors(3, 32, 0));
        a.data.fill(0.5);
        b.data.fill(-0.5);
        let (of_rows, of_columns) = best(Isa::detect(), &a, &b);
        assert_eq!((of_rows, of_columns), (vec![-8.0; 2], vec![-8.0; 3]));
    }
}
