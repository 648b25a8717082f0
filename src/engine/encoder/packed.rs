//! BERT, RoBERTa and DeBERTa on the CPU: packed weights, one pass over any mix of whole sequences laid end to end, without padding.
//! The matrix and attention kernels are those of [`crate::engine::cpu`]. Knows nothing of requests.
//!
//! Every row is computed with the same operations whatever else is in the pass. Departure from transformers in bf16: hidden states and
//! norms stay in f32; products take bf16 inputs.

use super::{
    Model, States,
    heads::{HeadScratch, Heads},
    positions::Tables,
};
use crate::{
    engine::cpu::{
        buffer::Buffer,
        elem::Elem,
        gemm::{self, BLOCK, Finish, Map, Packed, Rows},
        isa::Isa,
        rows::{self, LayerNorm},
    },
    models::encoder::config::{Activation, EncoderConfig},
};
use rayon::prelude::*;
use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

/// An encoder's first blocks with weights and activations of type `E`.
pub struct PackedEncoder<E: Elem> {
    pub(super) config: EncoderConfig,
    pub(super) isa: Isa,
    pub(super) pool: Arc<rayon::ThreadPool>,
    /// [vocab, hidden]
    pub(super) words: Buffer<E>,
    /// What is added to a word at each position, [positions, hidden]; one row where positions are not absolute; may be empty.
    pub(super) places: Vec<f32>,
    pub(super) embedding_norm: Norm,
    pub(super) layers: Vec<Layer<E>>,
    pub(super) work: Workspace<E>,
    /// One per thread of the pool.
    pub(super) scratch: Vec<Mutex<HeadScratch<E>>>,
}

/// Weight and bias of a layer norm, padded to whole vectors.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// One block's weights.
pub(super) struct Layer<E: 'static> {
    /// Queries, keys, values of all heads, in that order.
    pub(super) qkv: Packed<E>,
    pub(super) positions: Option<Tables<E>>,
    pub(super) out: Packed<E>,
    pub(super) attention_norm: Norm,
    pub(super) up: Packed<E>,
    pub(super) down: Packed<E>,
    pub(super) output_norm: Norm,
}

/// Activations of one pass; rows are padded to [`BLOCK`], columns to the packed weights' widths with zeros.
pub(super) struct Workspace<E> {
    pub(super) rows: usize,
    /// Hidden states [rows, hidden].
    pub(super) x: Buffer<f32>,
    /// The same as inputs of products.
    pub(super) normed: Buffer<E>,
    /// [rows, 3 · hidden]
    pub(super) qkv: Buffer<E>,
    /// Attention results [rows, hidden].
    pub(super) mixed: Buffer<E>,
    /// [rows, ffn]
    pub(super) wide: Buffer<E>,
}

impl<E: Elem> Workspace<E> {
    pub(super) fn new(config: &EncoderConfig, rows: usize) -> anyhow::Result<Self> {
        let rows = rows.next_multiple_of(BLOCK);
        let pad = |n: usize| n.next_multiple_of(gemm::INNER);
        let hidden = pad(config.hidden);
        Ok(Self {
            rows,
            x: Buffer::zeroed(rows * hidden)?,
            normed: Buffer::zeroed(rows * hidden)?,
            qkv: Buffer::zeroed(rows * pad(3 * config.hidden))?,
            mixed: Buffer::zeroed(rows * hidden)?,
            wide: Buffer::zeroed(rows * pad(config.ffn))?,
        })
    }
}

impl<E: Elem> Model for PackedEncoder<E> {
    fn states(&mut self, sequences: &[&[u32]]) -> anyhow::Result<States<'_>> {
        let rows: usize = sequences.iter().map(|s| s.len()).sum();
        if rows > self.work.rows {
            self.work = Workspace::new(&self.config, rows)?;
        }
        let mut ranges = Vec::with_capacity(sequences.len());
        let mut first = 0;
        for sequence in sequences {
            ranges.push(first..first + sequence.len());
            first += sequence.len();
        }
        let pool = Arc::clone(&self.pool);
        pool.install(|| {
            self.embed(sequences, &ranges);
            for layer in 0..self.layers.len() {
                self.block(layer, rows, &ranges);
            }
        });
        Ok(States { data: &self.work.x, stride: self.width() })
    }
}

impl<E: Elem> PackedEncoder<E> {
    /// Row stride of the hidden states.
    fn width(&self) -> usize {
        self.config.hidden.next_multiple_of(gemm::INNER)
    }

    fn norm<'a>(&self, norm: &'a Norm) -> LayerNorm<'a> {
        LayerNorm { weight: &norm.weight, bias: &norm.bias, eps: self.config.norm_eps as f32 }
    }

    fn embed(&mut self, sequences: &[&[u32]], ranges: &[Range<usize>]) {
        let (hidden, wide, isa) = (self.config.hidden, self.width(), self.isa);
        let (x, normed) = (self.work.x.shared(), self.work.normed.shared());
        let (words, places, absolute) = (&self.words, &self.places, self.config.absolute.is_some());
        let norm = self.norm(&self.embedding_norm);
        sequences.par_iter().zip(ranges).for_each(|(sequence, range)| {
            for (position, &token) in sequence.iter().enumerate() {
                let word = &words[token as usize * hidden..][..hidden];
                let place = if absolute { position } else { 0 };
                let at = (range.start + position) * wide;
                // SAFETY: each sequence writes its own rows, `hidden` of `wide` numbers; the rest stays zero.
                unsafe {
                    let row = std::slice::from_raw_parts_mut(x.at(at), hidden);
                    match places.get(place * hidden..(place + 1) * hidden) {
                        Some(place) => {
                            for ((x, w), p) in row.iter_mut().zip(word).zip(place) {
                                *x = w.to_f32() + p;
                            }
                        }
                        None => {
                            for (x, w) in row.iter_mut().zip(word) {
                                *x = w.to_f32();
                            }
                        }
                    }
                    rows::layer_norm::<E>(isa.vector, x.at(at), norm, normed.at(at), hidden);
                }
            }
        });
    }

    /// Attention, norm, feed-forward, norm (the order of the original transformer).
    fn block(&mut self, index: usize, rows: usize, ranges: &[Range<usize>]) {
        let (isa, wide, hidden) = (self.isa, self.width(), self.config.hidden);
        let (x, normed) = (self.work.x.shared(), self.work.normed.shared());
        let (qkv, mixed, ffn) = (self.work.qkv.shared(), self.work.mixed.shared(), self.work.wide.shared());
        let layer = &self.layers[index];
        let norm_all = |norm: &Norm| {
            let norm = self.norm(norm);
            (0..rows).into_par_iter().with_min_len(16).for_each(|row| {
                // SAFETY: each task has its own row; rows and parameters are padded to whole vectors.
                unsafe { rows::layer_norm::<E>(isa.vector, x.at(row * wide), norm, normed.at(row * wide), hidden) }
            });
        };
        let map = match self.config.activation {
            Activation::Gelu => Map::Gelu,
            Activation::GeluTanh => Map::GeluTanh,
            Activation::Relu => Map::Relu,
        };
        let input = |data, stride| Rows { data, stride, rows };
        let ffn_wide = layer.up.columns();
        // SAFETY: every buffer has `rows` rows, padded to BLOCK, of the stride given; each product and each attention task writes its
        // own range; the products end before the next begins.
        unsafe {
            let to = Finish::Map(qkv, layer.qkv.columns(), Map::Same);
            layer.qkv.product(isa, input(normed, wide), &to);
            let heads = Heads {
                config: &self.config,
                isa,
                qkv: (qkv, layer.qkv.columns()),
                mixed: (mixed, wide),
                positions: layer.positions.as_ref(),
                scratch: &self.scratch,
            };
            heads.run(ranges);
            layer.out.product(isa, input(mixed, wide), &Finish::Add(x, wide));
            norm_all(&layer.attention_norm);
            layer.up.product(isa, input(normed, wide), &Finish::Map(ffn, ffn_wide, map));
            layer.down.product(isa, input(ffn, ffn_wide), &Finish::Add(x, wide));
            norm_all(&layer.output_norm);
        }
    }
}
