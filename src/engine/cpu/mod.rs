//! The decoder on the CPU: packed weights, paged KV cache, one step over any mix of prompts and single tokens. Needs
//! libtorch to read checkpoints only; the arithmetic is in the kernels beside this file. Knows nothing of requests.
//!
//! Every row is computed with the same sequence of operations whatever else is in the step, in f32 and in bf16, so the
//! result of a sequence does not depend on its neighbours, on the number of slots, or on how its prompt was cut.
//! Departure from transformers in bf16: residual stream, norms and rotation stay in f32; products take bf16 inputs.

#[cfg(target_arch = "x86_64")]
pub mod amx;
pub mod attend;
#[cfg(target_arch = "x86_64")]
pub mod bf16;
pub mod buffer;
pub mod elem;
pub mod fma;
pub mod gemm;
#[cfg(target_arch = "x86_64")]
pub mod half;
pub mod isa;
#[cfg(test)]
mod kernel_tests;
pub mod load;
pub mod rows;
pub mod simd;

use super::{
    backend::{Backend, Batch, Limits, Logits, Output, Rest, Segment},
    pages::PAGE,
};
use crate::models::{config::DecoderConfig, weights::Weights};
use attend::{QUERIES, Scratch, View};
use buffer::Buffer;
use elem::Elem;
use gemm::{BLOCK, Finish, Packed, Rows};
use isa::Isa;
use rayon::prelude::*;
use simd::LANES;
use std::sync::{Arc, Mutex};

/// A decoder with weights and activations of type `E`.
pub struct CpuModel<E: Elem> {
    config: DecoderConfig,
    isa: Isa,
    pool: Arc<rayon::ThreadPool>,
    limits: Limits,
    pages: usize,
    /// [vocab, hidden]
    embedding: Buffer<E>,
    layers: Vec<Layer<E>>,
    final_norm: Vec<f32>,
    head: Packed<E>,
    /// [positions, head_dim / 2] each.
    rope: (Vec<f32>, Vec<f32>),
    work: Workspace<E>,
    /// One per thread of the pool.
    scratch: Vec<Mutex<Scratch<E>>>,
}

/// One block's weights and its part of the cache.
struct Layer<E: Elem> {
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    qkv: Packed<E>,
    out: Packed<E>,
    gate_up: Packed<E>,
    down: Packed<E>,
    /// [pages, kv_heads, PAGE · head_dim], see [`attend`].
    keys: Buffer<E>,
    /// [pages, kv_heads, PAGE · head_dim padded to 16].
    values: Buffer<E>,
}

/// Activations of one step; rows are padded to [`BLOCK`], columns to the packed weights' widths with zeros.
struct Workspace<E> {
    /// Residual stream [rows, hidden].
    x: Buffer<f32>,
    /// Normed rows [rows, hidden].
    normed: Buffer<E>,
    /// Queries, keys, values [rows, …].
    qkv: Buffer<f32>,
    /// Attention results [rows, heads · head_dim].
    mixed: Buffer<E>,
    /// Gated feed-forward [rows, ffn].
    gated: Buffer<E>,
    /// Normed rows whose logits are wanted [outputs, hidden].
    last: Buffer<E>,
    /// [outputs, vocab]
    logits: Buffer<f32>,
}

/// Rows of one sequence and one key/value head.
#[derive(Clone, Copy)]
struct Task {
    segment: usize,
    head: usize,
    /// Rows of the segment to attend for.
    from: usize,
    to: usize,
    /// Whether this task also writes the segment's keys and values.
    write: bool,
}

/// Rows per task when prompts are long; also the length from which they are split.
const SPLIT: usize = 64;

impl<E: Elem> Backend for CpuModel<E> {
    fn step(&mut self, batch: &Batch) -> anyhow::Result<Output<'_>> {
        let pool = self.pool.clone();
        pool.install(|| self.forward(batch));
        let logits = Logits { data: &self.work.logits, stride: self.head.columns() };
        Ok(Output { logits, drawn: Vec::new() })
    }

    fn copy_page(&mut self, from: u32, to: u32) -> anyhow::Result<()> {
        for layer in &mut self.layers {
            for cache in [&mut layer.keys, &mut layer.values] {
                let size = cache.len() / self.pages;
                let start = from as usize * size;
                cache.copy_within(start..start + size, to as usize * size);
            }
        }
        Ok(())
    }

    fn set_weights(&mut self, weights: Weights) -> anyhow::Result<()> {
        self.repack(weights)
    }

    fn rest(&mut self, rest: Rest) {
        if rest == Rest::Weights {
            for Layer { qkv, out, gate_up, down, .. } in &mut self.layers {
                [qkv, out, gate_up, down].into_iter().for_each(Packed::forget);
            }
            self.head.forget();
            self.embedding.forget();
        }
        for layer in &mut self.layers {
            layer.keys.forget();
            layer.values.forget();
        }
        let Workspace { x, normed, qkv, mixed, gated, last, logits } = &mut self.work;
        [x, qkv, logits].into_iter().for_each(Buffer::forget);
        [normed, mixed, gated, last].into_iter().for_each(Buffer::forget);
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn kind(&self) -> tch::Kind {
        E::KIND
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

impl<E: Elem> CpuModel<E> {
    fn forward(&mut self, batch: &Batch) {
        let rows = batch.tokens.len();
        assert!(rows <= self.limits.rows && batch.outputs.len() <= self.limits.outputs, "the step is over its limits");
        self.embed(&batch.tokens);
        let tasks = tasks(&batch.segments, self.config.kv_heads);
        for layer in 0..self.layers.len() {
            self.block(layer, rows, batch, &tasks);
        }
        if !batch.outputs.is_empty() {
            self.project(&batch.outputs);
        }
    }

    fn embed(&mut self, tokens: &[u32]) {
        let (hidden, wide) = (self.config.hidden, self.width());
        for (row, &token) in self.work.x.chunks_exact_mut(wide).zip(tokens) {
            let start = token as usize * hidden;
            for (x, e) in row.iter_mut().zip(&self.embedding[start..start + hidden]) {
                *x = e.to_f32();
            }
        }
    }

    /// Row stride of the residual stream.
    fn width(&self) -> usize {
        self.config.hidden.next_multiple_of(gemm::INNER)
    }

    fn block(&mut self, index: usize, rows: usize, batch: &Batch, tasks: &(Vec<Task>, Vec<Task>)) {
        let (isa, wide) = (self.isa, self.width());
        let eps = self.config.rms_eps as f32;
        let work = &mut self.work;
        let (x, normed) = (work.x.shared(), work.normed.shared());
        let (qkv, mixed, gated) = (work.qkv.shared(), work.mixed.shared(), work.gated.shared());
        let layer = &mut self.layers[index];
        let hidden = self.config.hidden;
        let norm_all = |weight: &[f32]| {
            (0..rows).into_par_iter().with_min_len(16).for_each(|row| {
                // SAFETY: each task writes its own row; rows and weights are padded to 32.
                unsafe {
                    rows::norm::<E>(isa.vector, x.at(row * wide), weight.as_ptr(), normed.at(row * wide), hidden, eps)
                }
            });
        };
        let input = |data, stride| Rows { data, stride, rows };
        norm_all(&layer.input_norm);
        let add = Finish::Add(x, wide);
        // SAFETY: every buffer has `limits.rows` rows, padded to BLOCK, of the stride given; each product and
        // each attention task writes its own range; the products end before the next begins.
        unsafe {
            layer.qkv.product(isa, input(normed, wide), &Finish::Store(qkv, layer.qkv.columns()));
            let attention = Attention {
                config: &self.config,
                isa,
                batch,
                keys: layer.keys.shared(),
                values: layer.values.shared(),
                norms: (layer.q_norm.as_deref(), layer.k_norm.as_deref()),
                rope: &self.rope,
                qkv: (qkv, layer.qkv.columns()),
                mixed: (mixed, layer.out_stride(&self.config)),
                scratch: &self.scratch,
            };
            for stage in [&tasks.0, &tasks.1] {
                stage.par_iter().with_max_len(1).for_each(|task| attention.run(*task));
            }
            layer.out.product(isa, input(mixed, layer.out_stride(&self.config)), &add);
            norm_all(&layer.post_norm);
            let ffn = self.config.ffn.next_multiple_of(gemm::INNER);
            layer.gate_up.product(isa, input(normed, wide), &Finish::SiluMul(gated, ffn));
            layer.down.product(isa, Rows { data: gated, stride: ffn, rows }, &add);
        }
    }

    /// The residual stream of the last step's rows after the last block, and the row stride.
    pub fn residual(&self) -> (&[f32], usize) {
        (&self.work.x, self.width())
    }

    /// The final norm of one row of [`CpuModel::residual`] to `out`, of the same width.
    pub fn final_norm(&self, row: &[f32], out: &mut [f32]) {
        let wide = self.width();
        assert!(row.len() == wide && out.len() == wide, "rows of the residual stream");
        let eps = self.config.rms_eps as f32;
        // SAFETY: rows and weights are padded to 32.
        unsafe {
            let (x, w) = (row.as_ptr(), self.final_norm.as_ptr());
            rows::norm::<f32>(self.isa.vector, x, w, out.as_mut_ptr(), self.config.hidden, eps);
        }
    }

    /// Final norm and output matrix of the wanted rows.
    fn project(&mut self, outputs: &[usize]) {
        let (isa, wide, eps) = (self.isa, self.width(), self.config.rms_eps as f32);
        let (x, last, logits) = (self.work.x.shared(), self.work.last.shared(), self.work.logits.shared());
        for (to, &row) in outputs.iter().enumerate() {
            // SAFETY: rows inside their buffers, padded to 32.
            unsafe {
                let (x, out) = (x.at(row * wide), last.at(to * wide));
                rows::norm::<E>(isa.vector, x, self.final_norm.as_ptr(), out, self.config.hidden, eps);
            }
        }
        let input = Rows { data: last, stride: wide, rows: outputs.len() };
        // SAFETY: `limits.outputs` rows in both buffers, padded to BLOCK.
        unsafe {
            self.head.product(isa, input, &Finish::Store(logits, self.head.columns()));
        }
    }
}

impl<E: Elem> Layer<E> {
    fn out_stride(&self, config: &DecoderConfig) -> usize {
        (config.heads * config.head_dim).next_multiple_of(gemm::INNER)
    }
}

/// What to attend, in two stages: the second starts when the first has written all keys and values.
fn tasks(segments: &[Segment], heads: usize) -> (Vec<Task>, Vec<Task>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (segment, s) in segments.iter().enumerate() {
        for head in 0..heads {
            if s.rows <= SPLIT {
                first.push(Task { segment, head, from: 0, to: s.rows, write: true });
            } else {
                first.push(Task { segment, head, from: 0, to: 0, write: true });
                for from in (0..s.rows).step_by(SPLIT) {
                    second.push(Task { segment, head, from, to: (from + SPLIT).min(s.rows), write: false });
                }
            }
        }
    }
    // The longest pasts last: whoever is idle then takes the small ones left over from the front.
    second.sort_by_key(|t| std::cmp::Reverse(segments[t.segment].start + t.to));
    (first, second)
}

/// One layer's attention over a step.
struct Attention<'a, E: Elem> {
    config: &'a DecoderConfig,
    isa: Isa,
    batch: &'a Batch,
    keys: buffer::Shared<E>,
    values: buffer::Shared<E>,
    norms: (Option<&'a [f32]>, Option<&'a [f32]>),
    rope: &'a (Vec<f32>, Vec<f32>),
    /// Data and row stride.
    qkv: (buffer::Shared<f32>, usize),
    /// Data and row stride.
    mixed: (buffer::Shared<E>, usize),
    scratch: &'a [Mutex<Scratch<E>>],
}

impl<E: Elem> Attention<'_, E> {
    /// # Safety
    /// The buffers hold the batch; no two tasks that run together share rows of a head, or write what another reads.
    unsafe fn run(&self, task: Task) {
        let thread = rayon::current_thread_index().unwrap_or(0);
        let mut scratch = self.scratch[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let segment = &self.batch.segments[task.segment];
        scratch.reserve(self.config.head_dim, segment.pages.len());
        let kernels = E::attend_kernels(self.isa, self.config.head_dim);
        // SAFETY: passed on.
        unsafe {
            (kernels.before)();
            if task.write {
                for row in 0..segment.rows {
                    self.write(segment, row, task.head, &mut scratch);
                }
            }
            let group = self.config.heads / self.config.kv_heads;
            let rows = (QUERIES / group).max(1);
            for first in (task.from..task.to).step_by(rows) {
                let last = (first + rows).min(task.to);
                for from in (0..group).step_by(QUERIES) {
                    let heads = task.head * group + from..task.head * group + (from + QUERIES).min(group);
                    self.attend(segment, first..last, heads, task.head, &mut scratch);
                }
            }
            (kernels.after)();
        }
    }

    /// Address of the page's block of this head.
    unsafe fn cache(&self, page: u32, head: usize) -> (*mut E, *mut E) {
        let at = page as usize * self.config.kv_heads + head;
        let dim = self.config.head_dim;
        // SAFETY: pages are inside the cache.
        unsafe { (self.keys.at(at * PAGE * dim), self.values.at(at * PAGE * dim.next_multiple_of(LANES))) }
    }

    fn turn<'b>(&'b self, position: usize, norm: Option<&'b [f32]>) -> rows::Head<'b> {
        let half = self.config.head_dim / 2;
        let range = position * half..(position + 1) * half;
        rows::Head { norm, eps: self.config.rms_eps as f32, cos: &self.rope.0[range.clone()], sin: &self.rope.1[range] }
    }

    /// Key and value of one row to the cache.
    unsafe fn write(&self, segment: &Segment, row: usize, head: usize, scratch: &mut Scratch<E>) {
        let (dim, position) = (self.config.head_dim, segment.start + row);
        // SAFETY: the row's columns are queries, keys, values in that order.
        unsafe {
            let input = self.qkv.0.at((segment.first + row) * self.qkv.1);
            let key = input.add((self.config.heads + head) * dim);
            let value = input.add((self.config.heads + self.config.kv_heads + head) * dim);
            let (turned, plain) = scratch.head.split_at_mut(dim);
            rows::head::<E>(self.isa.vector, key, turned.as_mut_ptr(), &self.turn(position, self.norms.1));
            rows::scale::<E>(self.isa.vector, value, 1.0, plain.as_mut_ptr(), dim);
            let (keys, values) = self.cache(segment.pages[position / PAGE], head);
            attend::write(keys, values, position, turned, plain);
        }
    }

    /// At most [`QUERIES`] queries: some heads of some rows.
    unsafe fn attend(
        &self,
        segment: &Segment,
        rows: std::ops::Range<usize>,
        heads: std::ops::Range<usize>,
        kv_head: usize,
        scratch: &mut Scratch<E>,
    ) {
        let dim = self.config.head_dim;
        let mut limits = [0; QUERIES];
        let mut count = 0;
        // SAFETY: rows, heads and pages are inside their buffers.
        unsafe {
            for row in rows.clone() {
                let head_input = self.turn(segment.start + row, self.norms.0);
                for head in heads.clone() {
                    let input = self.qkv.0.at((segment.first + row) * self.qkv.1 + head * dim);
                    let query = scratch.queries[count * dim..].as_mut_ptr();
                    rows::head::<E>(self.isa.vector, input, query, &head_input);
                    limits[count] = segment.start + row + 1;
                    count += 1;
                }
            }
            let (keys, values) = self.cache(0, kv_head);
            let page = self.config.kv_heads * PAGE;
            let wide = dim.next_multiple_of(LANES);
            let view = View { keys, values, key_page: page * dim, value_page: page * wide, pages: &segment.pages, dim };
            let scale = 1.0 / (dim as f32).sqrt();
            scratch.attend(self.isa.vector, E::attend_kernels(self.isa, dim), &view, &limits[..count], scale);
            let mut done = 0;
            for row in rows {
                for head in heads.clone() {
                    let out = self.mixed.0.at((segment.first + row) * self.mixed.1 + head * dim);
                    scratch.take(self.isa.vector, done, dim, out);
                    done += 1;
                }
            }
        }
    }
}

const _: () = assert!(BLOCK.is_multiple_of(16), "AMX reads rows in groups of 16");
