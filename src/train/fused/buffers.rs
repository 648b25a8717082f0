//! Memory of a hand-written step: activations that the backward pass needs, working space, and where each parameter lies in
//! the flat buffers. Allocated once for a shape of micro-batch.

use super::attend::Scratch;
use crate::{
    models::{
        openlm::{OpenLmConfig, ROPE_THETA},
        rope,
    },
    train::optim::FlatParameters,
};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// One parameter's place in the flat buffers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) at: i64,
    pub(super) rows: i64,
    pub(super) columns: i64,
}

impl Place {
    pub(super) fn numel(self) -> i64 {
        self.rows * self.columns
    }

    /// The parameter in a flat buffer, as a matrix.
    pub(super) fn of(self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.at, self.numel()).view([self.rows, self.columns])
    }
}

/// The parameters of one block.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BlockPlaces {
    pub(super) attention_norm: Place,
    pub(super) in_proj: Place,
    pub(super) q_norm: Place,
    pub(super) k_norm: Place,
    pub(super) out_proj: Place,
    pub(super) ffn_norm: Place,
    pub(super) w12: Place,
    pub(super) w3: Place,
}

/// All parameters.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) embedding: Place,
    pub(super) blocks: Vec<BlockPlaces>,
    pub(super) norm: Place,
    pub(super) output: Place,
}

impl Places {
    pub(super) fn new(config: &OpenLmConfig, parameters: &FlatParameters) -> Self {
        let mut at = 0;
        let mut found = HashMap::new();
        for slot in parameters.slots() {
            let (rows, columns) = match slot.shape[..] {
                [rows, columns] => (rows, columns),
                _ => (1, slot.shape.iter().product()),
            };
            found.insert(slot.name.as_str(), Place { at, rows, columns });
            at += rows * columns;
        }
        let place = |name: String| found.get(name.as_str()).copied().expect("the buffer holds every parameter");
        let block = |layer: usize| {
            let place = |name: &str| place(format!("layers.{layer}.{name}.weight"));
            BlockPlaces {
                attention_norm: place("attention_norm"),
                in_proj: place("attention.in_proj"),
                q_norm: place("attention.q_norm"),
                k_norm: place("attention.k_norm"),
                out_proj: place("attention.out_proj"),
                ffn_norm: place("ffn_norm"),
                w12: place("feed_forward.w12"),
                w3: place("feed_forward.w3"),
            }
        };
        Self {
            embedding: place("tok_embeddings.weight".to_owned()),
            blocks: (0..config.layers).map(block).collect(),
            norm: place("norm.weight".to_owned()),
            output: place("output.weight".to_owned()),
        }
    }
}

/// What one block keeps for its backward pass. N = rows · length positions.
#[derive(Debug)]
pub(super) struct Kept {
    /// [N, width] f32: the stream that the attention norm and the feed-forward norm saw
    pub(super) x_attention: Tensor,
    pub(super) x_ffn: Tensor,
    /// [N, width] bf16: their outputs
    pub(super) attention_in: Tensor,
    pub(super) ffn_in: Tensor,
    /// [N, 2] f32 each
    pub(super) attention_stats: Tensor,
    pub(super) ffn_stats: Tensor,
    pub(super) q_stats: Tensor,
    pub(super) k_stats: Tensor,
    /// [N, 3 width]
    pub(super) qkv: Tensor,
    /// [N, width] normed and rotated
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    /// [N, width] what attention gives
    pub(super) mixed: Tensor,
    /// [rows, heads, length] f32
    pub(super) lse: Tensor,
    /// [N, 2 ffn] and [N, ffn]
    pub(super) both: Tensor,
    pub(super) gated: Tensor,
}

/// Everything of one shape of micro-batch.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) rows: usize,
    pub(super) length: usize,
    pub(super) kept: Vec<Kept>,
    /// [N, width] f32: the last stream; its norm's output and figures
    pub(super) x_last: Tensor,
    pub(super) last_in: Tensor,
    pub(super) last_stats: Tensor,
    /// [N, width] bf16: what a layer adds, and its gradient; the gradients of layer inputs
    pub(super) added: Tensor,
    pub(super) d_added: Tensor,
    pub(super) d_in: Tensor,
    /// [N, width] f32: gradient of the stream
    pub(super) dx: Tensor,
    /// [N, width]: gradients of queries, keys and of what attention gives
    pub(super) dq: Tensor,
    pub(super) dk: Tensor,
    pub(super) d_mixed: Tensor,
    /// [N, 3 width], [N, 2 ffn], [N, ffn]
    pub(super) d_qkv: Tensor,
    pub(super) d_both: Tensor,
    pub(super) d_gated: Tensor,
    /// [chunk, vocab]
    pub(super) logits: Tensor,
    pub(super) chunk: usize,
    /// [length, dim / 2] f32
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    /// One a thread
    pub(super) scratch: Vec<Scratch>,
}

impl Buffers {
    /// `logits`: bytes of them that should exist at the same time, and the fewest rows.
    pub(super) fn new(
        config: &OpenLmConfig,
        (rows, length): (usize, usize),
        threads: usize,
        (bytes, fewest): (usize, usize),
    ) -> Self {
        let n = (rows * length) as i64;
        let (width, ffn) = (config.hidden as i64, config.ffn as i64);
        let half = |columns: i64| Tensor::empty([n, columns], (Kind::BFloat16, Device::Cpu));
        let wide = |columns: i64| Tensor::empty([n, columns], (Kind::Float, Device::Cpu));
        let kept = |_| Kept {
            x_attention: wide(width),
            x_ffn: wide(width),
            attention_in: half(width),
            ffn_in: half(width),
            attention_stats: wide(2),
            ffn_stats: wide(2),
            q_stats: wide(2),
            k_stats: wide(2),
            qkv: half(3 * width),
            q: half(width),
            k: half(width),
            mixed: half(width),
            lse: wide(config.heads as i64),
            both: half(2 * ffn),
            gated: half(ffn),
        };
        let chunk = (bytes / (2 * config.vocab_size)).clamp(fewest, 8192).min(rows * length);
        let (cos, sin) = rope::plain_tables(config.head_dim(), ROPE_THETA, length);
        Self {
            rows,
            length,
            kept: (0..config.layers).map(kept).collect(),
            x_last: wide(width),
            last_in: half(width),
            last_stats: wide(2),
            added: half(width),
            d_added: half(width),
            d_in: half(width),
            dx: wide(width),
            dq: half(width),
            dk: half(width),
            d_mixed: half(width),
            d_qkv: half(3 * width),
            d_both: half(2 * ffn),
            d_gated: half(ffn),
            logits: Tensor::empty([chunk as i64, config.vocab_size as i64], (Kind::BFloat16, Device::Cpu)),
            chunk,
            cos: Tensor::from_slice(&cos),
            sin: Tensor::from_slice(&sin),
            scratch: (0..threads).map(|_| Scratch::default()).collect(),
        }
    }

    /// Numbers of the largest matrix that takes part in a product, parameters aside.
    pub(super) fn largest(&self) -> usize {
        [&self.d_both, &self.d_qkv, &self.logits].map(Tensor::numel).into_iter().max().unwrap_or(0)
    }
}

/// Address of a contiguous bf16 tensor's elements.
pub(super) fn halves(t: &Tensor) -> *mut u16 {
    debug_assert_eq!(t.kind(), Kind::BFloat16);
    t.data_ptr().cast()
}

/// Address of a contiguous f32 tensor's elements.
pub(super) fn floats(t: &Tensor) -> *mut f32 {
    debug_assert_eq!(t.kind(), Kind::Float);
    t.data_ptr().cast()
}
