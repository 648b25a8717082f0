//! Attention without a mask over whole sequences: one task is one head of one sequence. Keys and values go to the thread's own scratch
//! in the layout of the decoder's cache, so that the kernels of [`crate::engine::cpu::attend`] serve both.

use super::positions::Tables;
use crate::{
    engine::{
        cpu::{
            attend::{self, Bias, QUERIES, Scratch, Sequence, View},
            buffer::Shared,
            elem::Elem,
            isa::Isa,
            simd::LANES,
        },
        pages::{PAGE, pages_for},
    },
    models::encoder::config::EncoderConfig,
};
use rayon::prelude::*;
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// One layer's attention.
pub(super) struct Heads<'a, E: Elem> {
    pub(super) config: &'a EncoderConfig,
    pub(super) isa: Isa,
    /// Queries, keys, values of all heads: data and row stride.
    pub(super) qkv: (Shared<E>, usize),
    /// Results: data and row stride.
    pub(super) mixed: (Shared<E>, usize),
    pub(super) positions: Option<&'a Tables<E>>,
    pub(super) scratch: &'a [Mutex<HeadScratch<E>>],
}

/// What one thread needs for one head of one sequence.
pub(super) struct HeadScratch<E> {
    attend: Scratch<E>,
    keys: Vec<E>,
    values: Vec<E>,
    pages: Vec<u32>,
    pub(super) bias: super::positions::Scratch<E>,
}

impl<E: Elem> HeadScratch<E> {
    /// Nothing yet; grows with use.
    pub(super) fn new() -> Self {
        Self {
            attend: Scratch::new(),
            keys: Vec::new(),
            values: Vec::new(),
            pages: Vec::new(),
            bias: super::positions::Scratch::new(),
        }
    }

    fn reserve(&mut self, dim: usize, rows: usize) {
        let pages = pages_for(rows);
        self.attend.reserve(dim, pages);
        grow(&mut self.keys, pages * PAGE * dim);
        grow(&mut self.values, pages * PAGE * dim.next_multiple_of(LANES));
        self.pages.clear();
        self.pages.extend(0..pages as u32);
    }
}

/// At least `len` numbers.
pub(super) fn grow<E: Elem>(vector: &mut Vec<E>, len: usize) {
    if vector.len() < len {
        vector.resize(len, E::from_f32(0.0));
    }
}

/// One head's queries, keys and values of one sequence, in the projected rows.
#[derive(Clone, Copy)]
pub(super) struct Slices<E> {
    data: Shared<E>,
    stride: usize,
    first: usize,
    hidden: usize,
    column: usize,
    pub(super) dim: usize,
}

impl<E: Elem> Slices<E> {
    /// # Safety
    /// The row is one of the sequence's.
    unsafe fn part<'a>(self, part: usize, row: usize) -> &'a [E] {
        // SAFETY: three parts of `hidden` columns a row, `dim` of them from the head's column.
        unsafe {
            let at = (self.first + row) * self.stride + part * self.hidden + self.column;
            std::slice::from_raw_parts(self.data.at(at), self.dim)
        }
    }
    /// # Safety
    /// The row is one of the sequence's.
    pub(super) unsafe fn query<'a>(self, row: usize) -> &'a [E] {
        // SAFETY: passed on.
        unsafe { self.part(0, row) }
    }
    /// # Safety
    /// The row is one of the sequence's.
    pub(super) unsafe fn key<'a>(self, row: usize) -> &'a [E] {
        // SAFETY: passed on.
        unsafe { self.part(1, row) }
    }
    /// # Safety
    /// The row is one of the sequence's.
    unsafe fn value<'a>(self, row: usize) -> &'a [E] {
        // SAFETY: passed on.
        unsafe { self.part(2, row) }
    }
}

impl<E: Elem> Heads<'_, E> {
    /// All heads of all sequences, in parallel over the current rayon pool.
    ///
    /// # Safety
    /// The buffers hold the rows of the ranges, and nobody else touches them meanwhile.
    pub(super) unsafe fn run(&self, ranges: &[Range<usize>]) {
        let heads = self.config.heads;
        let mut tasks: Vec<(usize, usize)> =
            (0..ranges.len()).flat_map(|sequence| (0..heads).map(move |head| (sequence, head))).collect();
        // The longest first: the short ones then fill what is left at the end.
        tasks.sort_by_key(|(sequence, _)| std::cmp::Reverse(ranges[*sequence].len()));
        tasks.par_iter().with_max_len(1).for_each(|&(sequence, head)| {
            // SAFETY: each task has its own rows and columns of the result.
            unsafe { self.one(ranges[sequence].clone(), head) }
        });
    }

    unsafe fn one(&self, range: Range<usize>, head: usize) {
        if self.positions.is_none()
            && let Some(attend) = E::attend_whole(self.isa, self.config.head_dim())
        {
            // SAFETY: passed on; the kernel is this processor's.
            return unsafe { attend(&self.sequence(range, head)) };
        }
        let thread = rayon::current_thread_index().unwrap_or(0);
        let mut scratch = self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let scratch = &mut *scratch;
        let (dim, hidden, rows) = (self.config.head_dim(), self.config.hidden, range.len());
        if rows == 0 {
            return;
        }
        scratch.reserve(dim, rows);
        let (data, stride) = self.qkv;
        let slices = Slices { data, stride, first: range.start, hidden, column: head * dim, dim };
        let kernels = E::attend_kernels(self.isa, dim);
        // SAFETY: the scratch was made for that many rows.
        unsafe {
            (kernels.before)();
            let wide = dim.next_multiple_of(LANES);
            for row in 0..rows {
                let page = row / PAGE * PAGE;
                let keys = scratch.keys.as_mut_ptr().add(page * dim);
                let values = scratch.values.as_mut_ptr().add(page * wide);
                attend::write(keys, values, row, slices.key(row), slices.value(row));
            }
            let step = self.positions.map_or(rows, |_| scratch.bias.rows_at_once(rows));
            for first in (0..rows).step_by(step) {
                let last = (first + step).min(rows);
                if let Some(tables) = self.positions {
                    scratch.bias.fill(tables, kernels, head, slices, first..last, rows);
                }
                for from in (first..last).step_by(QUERIES) {
                    let count = (last - from).min(QUERIES);
                    let bias = match self.positions {
                        Some(_) => scratch.bias.rows(from - first),
                        None => Bias::NONE,
                    };
                    self.attend(scratch, slices, range.start, from..from + count, rows, bias);
                }
            }
            (kernels.after)();
        }
    }

    /// # Safety
    /// The rows are there.
    unsafe fn sequence(&self, range: Range<usize>, head: usize) -> Sequence<E> {
        let (dim, hidden) = (self.config.head_dim(), self.config.hidden);
        // SAFETY: three parts of `hidden` columns a row; the head's columns of the result.
        let ([queries, keys, values], out) = unsafe {
            let first = self.qkv.0.at(range.start * self.qkv.1 + head * dim).cast_const();
            let parts = [first, first.add(hidden), first.add(2 * hidden)];
            (parts, self.mixed.0.at(range.start * self.mixed.1 + head * dim))
        };
        Sequence {
            queries,
            keys,
            values,
            stride: self.qkv.1,
            rows: range.len(),
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
            out,
            out_stride: self.mixed.1,
        }
    }

    /// At most [`QUERIES`] queries of the head.
    unsafe fn attend(
        &self,
        scratch: &mut HeadScratch<E>,
        slices: Slices<E>,
        first: usize,
        queries: Range<usize>,
        rows: usize,
        bias: Bias,
    ) {
        let (dim, count) = (slices.dim, queries.len());
        let wide = dim.next_multiple_of(LANES);
        // SAFETY: rows and pages are inside their buffers.
        unsafe {
            for (i, row) in queries.clone().enumerate() {
                scratch.attend.queries[i * dim..(i + 1) * dim].copy_from_slice(slices.query(row));
            }
            let view = View {
                keys: scratch.keys.as_ptr(),
                values: scratch.values.as_ptr(),
                key_page: PAGE * dim,
                value_page: PAGE * wide,
                pages: &scratch.pages,
                dim,
            };
            let terms = self.config.relative.map_or(1, |relative| relative.terms());
            let scale = 1.0 / ((dim * terms) as f32).sqrt();
            let kernels = E::attend_kernels(self.isa, dim);
            let limits = [rows; QUERIES];
            scratch.attend.attend_biased(self.isa.vector, kernels, &view, &limits[..count], scale, bias);
            for (i, row) in queries.enumerate() {
                let out = self.mixed.0.at((first + row) * self.mixed.1 + slices.column);
                scratch.attend.take(self.isa.vector, i, dim, out);
            }
        }
    }
}
