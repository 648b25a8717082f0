//! The decoder on an NVIDIA GPU: products by libtorch (cuBLAS), everything between them by the kernels in kernels/, paged KV
//! cache, one step over any mix of prompts and single tokens, tokens drawn on the GPU. Knows nothing of requests.
//!
//! Departures from the CPU's backend: cuBLAS picks another kernel for another number of rows, so the last bits of a row depend
//! on how many rows the step has, in f32 too; the random streams are hashes (kernels/draw.cu), so a seed draws other tokens
//! than on the CPU. Departure from transformers in bf16: the residual stream and all norms stay in f32, logits are f32.

mod check;
#[cfg(test)]
mod emulate;
mod load;
mod program;
mod tables;
#[cfg(test)]
mod tests;

use super::{
    backend::{Backend, Batch, Limits, Logits, Output},
    pages::PAGE,
};
use crate::models::{config::DecoderConfig, weights::Weights};
use program::{Argument, Program, THREADS};
use tables::Tables;
use tch::{Device, Kind, Tensor};

/// A decoder on a GPU.
pub struct CudaModel {
    config: DecoderConfig,
    program: Program,
    device: Device,
    kind: Kind,
    limits: Limits,
    pages: usize,
    /// [vocab, hidden]
    embedding: Tensor,
    /// [vocab, hidden]; the embedding itself where both are one.
    head: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    /// cos and sin, [positions, head_dim / 2] each, f32.
    rope: (Tensor, Tensor),
    /// Logits of the last step that the host draws from.
    host: Vec<f32>,
}

/// One block's weights and its part of the cache.
struct Layer {
    /// Queries, keys and values, [(heads + 2 · kv_heads) · head_dim, hidden].
    qkv: Tensor,
    bias: Option<Tensor>,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    out: Tensor,
    /// [2 · ffn, hidden]
    gate_up: Tensor,
    down: Tensor,
    input_norm: Tensor,
    post_norm: Tensor,
    /// [pages, kv_heads, PAGE, head_dim]
    keys: Tensor,
    values: Tensor,
}

impl Backend for CudaModel {
    fn step(&mut self, batch: &Batch) -> anyhow::Result<Output<'_>> {
        let _guard = tch::no_grad_guard();
        self.program.bind()?;
        let (rows, outputs) = (batch.tokens.len(), batch.outputs.len());
        assert!(rows <= self.limits.rows && outputs <= self.limits.outputs, "the step is over its limits");
        let group = self.program.tiles.is_some().then(|| self.config.heads / self.config.kv_heads);
        let tables = Tables::new(batch, group, self.device)?;
        let x = Tensor::f_empty([rows as i64, self.config.hidden as i64], (Kind::Float, self.device))?;
        self.embed(&tables, &x)?;
        let mut delta = None;
        for layer in &self.layers {
            delta = Some(self.block(layer, &x, delta.as_ref(), &tables)?);
        }
        let logits = match outputs {
            0 => return Ok(Output { logits: Logits { data: &[], stride: self.config.vocab_size }, drawn: Vec::new() }),
            _ => self.project(&x, delta.as_ref(), &tables)?,
        };
        let drawn = self.draw(&logits, &tables)?;
        self.host.clear();
        if tables.undrawn_count > 0 {
            let wanted = logits.f_index_select(0, &tables.undrawn)?.f_reshape([-1])?;
            self.host = Vec::<f32>::try_from(wanted.f_to_device(Device::Cpu)?)?;
        }
        Ok(Output { logits: Logits { data: &self.host, stride: self.config.vocab_size }, drawn })
    }

    fn copy_page(&mut self, from: u32, to: u32) -> anyhow::Result<()> {
        self.program.bind()?;
        let size = self.config.kv_heads * PAGE * self.config.head_dim;
        for cache in self.layers.iter().flat_map(|layer| [&layer.keys, &layer.values]) {
            let arguments =
                [Argument::of(cache), Argument::Int(from as i32), Argument::Int(to as i32), Argument::size(size)];
            // SAFETY: both pages are inside the cache, `size` elements each.
            unsafe {
                self.program.launch(&self.program.copy_page, [size.div_ceil(1024), 1], (THREADS, 0), &arguments)?
            };
        }
        Ok(())
    }

    fn set_weights(&mut self, weights: Weights) -> anyhow::Result<()> {
        self.replace(weights)
    }

    fn pages(&self) -> usize {
        self.pages
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn draws(&self) -> bool {
        true
    }
}

/// Free bytes of a GPU's memory.
///
/// # Errors
/// The driver's.
pub fn free_memory(device: usize) -> anyhow::Result<u64> {
    program::memory(device).map(|(free, _)| free)
}

impl CudaModel {
    fn embed(&self, tables: &Tables, x: &Tensor) -> anyhow::Result<()> {
        let arguments = [
            Argument::of(&tables.tokens),
            Argument::of(&self.embedding),
            Argument::of(x),
            Argument::size(self.config.hidden),
        ];
        // SAFETY: tokens are inside the vocabulary (checked when a request is queued), x has a row for each.
        unsafe { self.program.launch(&self.program.embed, [tables.rows, 1], (THREADS, 0), &arguments) }
    }

    /// Adds `delta` to the residual stream `x`, and gives the normed rows; those `picked` alone if that is given.
    fn norm(
        &self,
        x: &Tensor,
        delta: Option<&Tensor>,
        weight: &Tensor,
        picked: Option<(&Tensor, usize)>,
    ) -> anyhow::Result<Tensor> {
        let rows = picked.map_or(x.size()[0] as usize, |(_, count)| count);
        let out = Tensor::f_empty([rows as i64, self.config.hidden as i64], (self.kind, self.device))?;
        let arguments = [
            Argument::of(x),
            Argument::of_optional(delta),
            Argument::of(weight),
            Argument::of(&out),
            Argument::of_optional(picked.map(|(rows, _)| rows)),
            Argument::size(self.config.hidden),
            Argument::Float(self.config.rms_eps as f32),
        ];
        // SAFETY: x and delta are [rows, hidden], the weight [hidden]; picked rows are rows of x.
        unsafe { self.program.launch(&self.program.rms_norm, [rows, 1], (THREADS, 0), &arguments)? };
        Ok(out)
    }

    /// One block; its last product is returned, to be added by the next norm.
    fn block(&self, layer: &Layer, x: &Tensor, delta: Option<&Tensor>, tables: &Tables) -> anyhow::Result<Tensor> {
        let normed = self.norm(x, delta, &layer.input_norm, None)?;
        let qkv = normed.f_linear(&layer.qkv, layer.bias.as_ref())?;
        self.heads(layer, &qkv, tables)?;
        let mixed = self.attend(layer, &qkv, tables)?;
        let delta = mixed.f_linear(&layer.out, None::<&Tensor>)?;
        let normed = self.norm(x, Some(&delta), &layer.post_norm, None)?;
        let gate_up = normed.f_linear(&layer.gate_up, None::<&Tensor>)?;
        let gated = Tensor::f_empty([tables.rows as i64, self.config.ffn as i64], (self.kind, self.device))?;
        let arguments = [Argument::of(&gate_up), Argument::of(&gated), Argument::size(self.config.ffn)];
        // SAFETY: [rows, 2 · ffn] to [rows, ffn].
        unsafe { self.program.launch(&self.program.gate, [tables.rows, 1], (THREADS, 0), &arguments)? };
        Ok(gated.f_linear(&layer.down, None::<&Tensor>)?)
    }

    /// Rotates queries in place, writes keys and values to the cache.
    fn heads(&self, layer: &Layer, qkv: &Tensor, tables: &Tables) -> anyhow::Result<()> {
        let units = tables.rows * (self.config.heads + 2 * self.config.kv_heads);
        let arguments = [
            Argument::of(qkv),
            Argument::of_optional(layer.q_norm.as_ref()),
            Argument::of_optional(layer.k_norm.as_ref()),
            Argument::of(&self.rope.0),
            Argument::of(&self.rope.1),
            Argument::of(&tables.positions),
            Argument::of(&tables.places),
            Argument::of(&layer.keys),
            Argument::of(&layer.values),
            Argument::size(tables.rows),
            Argument::Float(self.config.rms_eps as f32),
        ];
        let blocks = units.div_ceil(THREADS as usize / 32);
        // SAFETY: positions are inside the tables of the rotation, places inside the cache.
        unsafe { self.program.launch(&self.program.heads, [blocks, 1], (THREADS, 0), &arguments) }
    }

    fn attend(&self, layer: &Layer, qkv: &Tensor, tables: &Tables) -> anyhow::Result<Tensor> {
        let c = &self.config;
        let out = Tensor::f_empty([tables.rows as i64, (c.heads * c.head_dim) as i64], (self.kind, self.device))?;
        let stride = (c.heads + 2 * c.kv_heads) * c.head_dim;
        let scale = Argument::Float(1.0 / (c.head_dim as f32).sqrt());
        let common = [
            Argument::of(qkv),
            Argument::size(stride),
            Argument::of(&out),
            Argument::of(&layer.keys),
            Argument::of(&layer.values),
            Argument::of(&tables.pages),
        ];
        let with = |rest: &[Argument]| [common.as_slice(), rest].concat();
        let Some(tiles) = &self.program.tiles else {
            let rest = with(&[
                Argument::of(&tables.row_pages),
                Argument::of(&tables.positions),
                Argument::size(tables.rows),
                scale,
            ]);
            let blocks = (tables.rows * c.heads).div_ceil(THREADS as usize / 32);
            // SAFETY: each row reads its own page table up to its position.
            unsafe { self.program.launch(&self.program.attend_plain, [blocks, 1], (THREADS, 0), &rest)? };
            return Ok(out);
        };
        for (kernel, (list, count)) in [(&tiles.prompts, &tables.prompts), (&tiles.tokens, &tables.singles)] {
            let arguments = with(&[Argument::of(list), scale]);
            // SAFETY: every tile's rows are rows of the step, and its page table holds their positions.
            unsafe { self.program.launch(kernel, [*count, c.kv_heads], (128, tiles.shared), &arguments)? };
        }
        Ok(out)
    }

    /// Logits [outputs, vocab], f32.
    fn project(&self, x: &Tensor, delta: Option<&Tensor>, tables: &Tables) -> anyhow::Result<Tensor> {
        let last = self.norm(x, delta, &self.final_norm, Some((&tables.outputs, tables.output_count)))?;
        let head = self.head.f_tr()?;
        if self.device.is_cuda() && self.kind != Kind::Float {
            return Ok(last.f_mm_dtype(&head, Kind::Float)?);
        }
        // What libtorch has no product with wider results for: the CPU.
        Ok(last.f_to_kind(Kind::Float)?.f_mm(&head.f_to_kind(Kind::Float)?)?)
    }

    /// What was drawn for the outputs that ask for it.
    fn draw(&self, logits: &Tensor, tables: &Tables) -> anyhow::Result<Vec<Option<u32>>> {
        let Some(draws) = &tables.draws else { return Ok(Vec::new()) };
        let drawn = Tensor::f_empty([draws.count as i64], (Kind::Int, self.device))?;
        let arguments = [
            Argument::of(logits),
            Argument::size(self.config.vocab_size),
            Argument::of(&draws.rows),
            Argument::of(&draws.options),
            Argument::of(&draws.top_ks),
            Argument::of(&draws.seeds),
            Argument::of(&drawn),
        ];
        // SAFETY: rows of the logits; one entry a draw in every list.
        unsafe { self.program.launch(&self.program.draw, [draws.count, 1], (512, 0), &arguments)? };
        let ids = Vec::<i32>::try_from(drawn.f_to_device(Device::Cpu)?)?;
        Ok(ids.into_iter().map(|id| u32::try_from(id).ok()).collect())
    }
}
