//! The position terms of DeBERTa's disentangled attention (arXiv 2006.03654, equation 4). With span k and the table row
//! `δ(i, j) = clamp(i - j + k, 0, 2k - 1)`, query i and key j score
//!
//! `q_i · k_j + q_i · posKey[δ(i, j)] + k_j · posQuery[δ(i, j)]`
//!
//! as transformers computes it (its second index is written for the transposed matrix and comes to the same row). The first product is the
//! attention kernel's own; the other two are made here, as a matrix that is added to the scores before they are scaled.
//!
//! Both tables lie in the cache layout of keys, so the score kernel multiplies a block of queries with a run of table rows at once. A row
//! of the matrix is then a run of such products: the table of keys is stored backwards, so that it runs the way j does.

use super::heads::{Slices, grow};
use crate::engine::{
    cpu::{
        attend::{Bias, Kernels, QUERIES, View},
        elem::Elem,
        simd::LANES,
    },
    pages::{PAGE, pages_for},
};
use std::ops::Range;

/// Numbers of the matrix made at once: 16 MiB of them a thread at most.
const AT_ONCE: usize = 4 << 20;

/// Blocks of zeros behind each table: kernels take whole pages.
const BEHIND: usize = PAGE / LANES;

/// One layer's tables, each [heads][2k rounded up + padding][head_dim] in the key layout.
pub(super) struct Tables<E> {
    span: usize,
    dim: usize,
    /// posKey, last row first.
    keys: Option<Vec<E>>,
    /// posQuery.
    queries: Option<Vec<E>>,
}

/// Scratch of one thread.
pub(super) struct Scratch<E> {
    /// [rows, stride]
    matrix: Vec<f32>,
    stride: usize,
    /// [QUERIES, run]
    products: Vec<f32>,
    /// [QUERIES, head_dim]
    block: Vec<E>,
    pages: Vec<u32>,
}

impl<E: Elem> Tables<E> {
    /// From the projected relative positions [2k, heads · dim], where the family has them.
    pub(super) fn new(span: usize, dim: usize, keys: Option<&[f32]>, queries: Option<&[f32]>) -> Self {
        let keys = keys.map(|rows| pack(rows, span, dim, |row| 2 * span - 1 - row));
        let queries = queries.map(|rows| pack(rows, span, dim, |row| row));
        Self { span, dim, keys, queries }
    }

    fn head<'a>(&self, table: &'a [E], head: usize) -> &'a [E] {
        let size = blocks(self.span) * LANES * self.dim;
        &table[head * size..(head + 1) * size]
    }
}

fn blocks(span: usize) -> usize {
    (2 * span).div_ceil(LANES) + BEHIND
}

fn pack<E: Elem>(rows: &[f32], span: usize, dim: usize, place: impl Fn(usize) -> usize) -> Vec<E> {
    let hidden = rows.len() / (2 * span);
    let size = blocks(span) * LANES * dim;
    let mut table = vec![E::from_f32(0.0); hidden / dim * size];
    for (row, values) in rows.chunks_exact(hidden).enumerate() {
        let at = place(row);
        for (column, &value) in values.iter().enumerate() {
            let (head, d) = (column / dim, column % dim);
            let inside = at / LANES * dim * LANES + d / E::PACK * LANES * E::PACK + at % LANES * E::PACK + d % E::PACK;
            table[head * size + inside] = E::from_f32(value);
        }
    }
    table
}

impl<E: Elem> Scratch<E> {
    /// Nothing yet; grows with use.
    pub(super) fn new() -> Self {
        Self { matrix: Vec::new(), stride: 0, products: Vec::new(), block: Vec::new(), pages: Vec::new() }
    }

    /// Query rows of the matrix that are made at once for a sequence of `rows`.
    pub(super) fn rows_at_once(&self, rows: usize) -> usize {
        (AT_ONCE / rows.next_multiple_of(LANES))
            .next_multiple_of(QUERIES)
            .clamp(QUERIES, rows.next_multiple_of(QUERIES))
    }

    /// The matrix from that row on.
    pub(super) fn rows(&self, row: usize) -> Bias {
        Bias { rows: self.matrix[row * self.stride..].as_ptr(), stride: self.stride }
    }

    /// Makes the matrix for the given queries and all `rows` keys of a head.
    ///
    /// # Safety
    /// The slices hold `rows` rows, the kernels fit the processor and are between their `before` and `after`.
    pub(super) unsafe fn fill(
        &mut self,
        tables: &Tables<E>,
        kernels: Kernels<E>,
        head: usize,
        slices: Slices<E>,
        queries: Range<usize>,
        rows: usize,
    ) {
        self.stride = rows.next_multiple_of(LANES);
        grow(&mut self.matrix, queries.len() * self.stride);
        grow(&mut self.block, QUERIES * slices.dim.next_multiple_of(2 * LANES));
        let (stride, span) = (self.stride, tables.span);
        if tables.keys.is_none() {
            self.matrix[..queries.len() * stride].fill(0.0);
        }
        if let Some(table) = &tables.keys {
            for first in queries.clone().step_by(QUERIES) {
                let block = first..(first + QUERIES).min(queries.end);
                // Backwards: row k - 1 - i + j.
                let place = |i: usize, j: usize| clamp(span - 1 + j, i, span);
                let reach = place(block.end - 1, 0)..place(block.start, rows - 1) + 1;
                // SAFETY: passed on.
                let start = unsafe {
                    let row = |i: usize| slices.query(block.start + i);
                    self.products(kernels, tables.head(table, head), reach, block.len(), row)
                };
                let run = self.products.len() / QUERIES;
                for (q, i) in block.enumerate() {
                    let to = &mut self.matrix[(i - queries.start) * stride..][..rows];
                    let from = &self.products[q * run..(q + 1) * run];
                    // Distances beyond the span share a row: flat, rising by one a key, flat.
                    let rising = (i + 1).saturating_sub(span).min(rows)..(i + span + 1).min(rows);
                    to[..rising.start].fill(from[0]);
                    to[rising.end..].fill(from[place(i, rows - 1) - start]);
                    let from = &from[place(i, rising.start) - start..][..rising.len()];
                    to[rising].copy_from_slice(from);
                }
            }
        }
        if let Some(table) = &tables.queries {
            for first in (0..rows).step_by(QUERIES) {
                let block = first..(first + QUERIES).min(rows);
                let place = |i: usize, j: usize| clamp(span + i, j, span);
                let reach = place(queries.start, block.end - 1)..place(queries.end - 1, block.start) + 1;
                // SAFETY: passed on.
                let start = unsafe {
                    let row = |i: usize| slices.key(block.start + i);
                    self.products(kernels, tables.head(table, head), reach, block.len(), row)
                };
                let run = self.products.len() / QUERIES;
                for i in queries.clone() {
                    let to = &mut self.matrix[(i - queries.start) * stride + block.start..][..block.len()];
                    for (q, to) in to.iter_mut().enumerate() {
                        *to += self.products[q * run + place(i, block.start + q) - start];
                    }
                }
            }
        }
    }

    /// Products of up to [`QUERIES`] rows with the table rows of `reach` to `products`; returns the table row of its first column.
    unsafe fn products<'b>(
        &mut self,
        kernels: Kernels<E>,
        table: &[E],
        reach: Range<usize>,
        count: usize,
        row: impl Fn(usize) -> &'b [E],
    ) -> usize
    where
        E: 'b,
    {
        let dim = row(0).len();
        for i in 0..count {
            self.block[i * dim..(i + 1) * dim].copy_from_slice(row(i));
        }
        let start = reach.start / LANES * LANES;
        let positions = reach.end - start;
        let pages = pages_for(positions);
        self.pages.clear();
        self.pages.extend(0..pages as u32);
        self.products.resize(QUERIES * pages * PAGE, 0.0);
        let keys = table[start * dim..].as_ptr();
        let view = View { keys, values: keys, key_page: PAGE * dim, value_page: 0, pages: &self.pages, dim };
        // SAFETY: the table has a page of padding; QUERIES rows of whole pages.
        unsafe {
            let out = self.products.as_mut_ptr();
            (kernels.scores)(&view, self.block.as_ptr(), count, positions, out, pages * PAGE);
        }
        start
    }
}

/// `clamp(plus - minus, 0, 2 · span - 1)`
fn clamp(plus: usize, minus: usize, span: usize) -> usize {
    plus.saturating_sub(minus).min(2 * span - 1)
}
