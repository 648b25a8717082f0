//! Trees of sequences in one flat list of rows, without padding: a prompt and the continuations that share it. The prompt's
//! rows are computed once, however many continuations it has. Knows nothing of losses.
//!
//! Exact: a continuation's row attends to its whole prompt and to the rows of its own continuation up to itself, at the
//! positions it would have in a sequence of its own.

use super::{
    config::DecoderConfig,
    decoder::{Mixer, RopeTables},
    route::{self, repeat_heads},
};
use tch::{Device, Kind, Tensor};

/// Rows of one prompt and of the continuations behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Rows of the prompt, at least one.
    pub prompt: usize,
    /// Rows of each continuation; 0 for one that takes part with its first token only, which the prompt predicts.
    pub branches: Vec<usize>,
}

impl Tree {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.prompt + self.branches.iter().sum::<usize>()
    }
}

/// Attention over trees laid one behind the other: each prompt, then its continuations in order.
pub struct Packed {
    groups: i64,
    width: i64,
    /// Rows of each non-empty piece.
    sizes: Vec<i64>,
    /// For each tree: its prompt's piece, and how many non-empty continuations follow it.
    trees: Vec<(usize, usize)>,
    /// For each piece that is a continuation, what it may see [rows, prompt + rows]; None for prompts.
    masks: Vec<Option<Tensor>>,
    table: RopeTables,
}

impl Packed {
    /// Lays out `trees` for a model of that shape, computing in `kind`.
    pub fn new(config: &DecoderConfig, trees: &[Tree], device: Device, kind: Kind) -> Self {
        let (mut sizes, mut firsts, mut masks, mut positions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for tree in trees {
            firsts.push((sizes.len(), tree.branches.iter().filter(|&&rows| rows > 0).count()));
            sizes.push(tree.prompt as i64);
            masks.push(None);
            positions.extend(0..tree.prompt as i64);
            for &rows in tree.branches.iter().filter(|&&rows| rows > 0) {
                sizes.push(rows as i64);
                masks.push(Some(mask(tree.prompt as i64, rows as i64, device, kind)));
                positions.extend(tree.prompt as i64..(tree.prompt + rows) as i64);
            }
        }
        let longest = positions.iter().max().map_or(0, |last| last + 1);
        let positions = Tensor::from_slice(&positions).to_device(device);
        Self {
            groups: (config.heads / config.kv_heads) as i64,
            width: (config.heads * config.head_dim) as i64,
            sizes,
            trees: firsts,
            masks,
            table: RopeTables::new(config, longest, device, kind).at(&positions),
        }
    }
}

/// 0 where row i of a continuation may look (the prompt, and itself up to i), minus infinity elsewhere.
fn mask(prompt: i64, rows: i64, device: Device, kind: Kind) -> Tensor {
    Tensor::full([rows, prompt + rows], f64::NEG_INFINITY, (kind, device)).triu(prompt + 1)
}

impl Mixer for Packed {
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let heads = |x: &Tensor| -> Vec<Tensor> {
            // [rows, heads, D] pieces to [1, heads, rows, D]
            x.split_with_sizes(self.sizes.as_slice(), 0).iter().map(|p| p.transpose(0, 1).unsqueeze(0)).collect()
        };
        let (q, k, v) = (heads(&self.table.rotate(q)), heads(&self.table.rotate(k)), heads(v));
        let mut mixed = Vec::with_capacity(self.sizes.len());
        for &(prompt, branches) in &self.trees {
            for piece in prompt..=prompt + branches {
                let joined = |x: &[Tensor]| {
                    let own = match piece == prompt {
                        true => x[piece].shallow_clone(),
                        false => Tensor::cat(&[&x[prompt], &x[piece]], 2),
                    };
                    repeat_heads(&own, self.groups)
                };
                let mask = self.masks[piece].as_ref();
                let causal = mask.is_none();
                let (k, v) = (joined(&k), joined(&v));
                let out = Tensor::scaled_dot_product_attention(&q[piece], &k, &v, mask, 0.0, causal, None, false);
                mixed.push(out.squeeze_dim(0).transpose(0, 1).reshape([self.sizes[piece], self.width]));
            }
        }
        Tensor::cat(&mixed, 0)
    }
}

/// Lengths of padded sequences are multiples of it: few different shapes, so that memory and kernels are used again.
const LENGTH_STEP: usize = 128;

/// Where the rows of [`Padded`] trees go. Numbers only; they go to the device with a pass's other numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// For each tree: sequences, and their padded length.
    pub shapes: Vec<[i64; 2]>,
    /// The row that stands at each place of the padded sequences, tree by tree.
    pub rows: Vec<i64>,
    /// The place of each row.
    pub places: Vec<i64>,
    /// The position of each row in its sequence.
    pub positions: Vec<i64>,
}

impl Places {
    /// A sequence for each non-empty continuation, behind its prompt; the prompt alone where there is none. Padding repeats a
    /// sequence's last row: nothing sees it, and nothing of it is taken.
    pub fn new(trees: &[Tree]) -> Self {
        let mut new = Self::default();
        let mut first = 0;
        for tree in trees {
            let longest = tree.prompt + tree.branches.iter().max().copied().unwrap_or(0);
            let length = longest.next_multiple_of(LENGTH_STEP);
            let start = new.rows.len() as i64;
            new.places.extend((0..tree.prompt as i64).map(|at| start + at));
            new.positions.extend(0..tree.prompt as i64);
            let mut from = first + tree.prompt;
            let mut sequences = 0;
            for &rows in tree.branches.iter().filter(|&&rows| rows > 0) {
                let end = new.rows.len() + length;
                new.places.extend((0..rows).map(|at| (new.rows.len() + tree.prompt + at) as i64));
                new.positions.extend((tree.prompt..tree.prompt + rows).map(|at| at as i64));
                new.rows.extend((first..first + tree.prompt).chain(from..from + rows).map(|row| row as i64));
                new.rows.resize(end, (from + rows - 1) as i64);
                from += rows;
                sequences += 1;
            }
            if sequences == 0 {
                new.rows.extend((first..from).map(|row| row as i64));
                new.rows.resize(start as usize + length, from as i64 - 1);
                sequences = 1;
            }
            new.shapes.push([sequences, length as i64]);
            first = from;
        }
        new
    }
}

/// Attention over trees on a GPU: each continuation with its prompt is a sequence of its own, all of a tree in one causal call
/// without a mask. Only attention sees a prompt as often as it has continuations; everything else computes its rows once.
pub struct Padded {
    /// See [`Places::shapes`].
    pub shapes: Vec<[i64; 2]>,
    /// [places] i64, see [`Places::rows`].
    pub rows: Tensor,
    /// [rows] i64, see [`Places::places`].
    pub places: Tensor,
    /// Of each row.
    pub table: RopeTables,
}

impl Mixer for Padded {
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let [count, heads, width] = q.size()[..] else { unreachable!("heads have three dimensions") };
        let kv_heads = k.size()[1];
        let flat = |x: &Tensor| x.reshape([count, -1]);
        let joined = Tensor::cat(&[flat(&self.table.rotate(q)), flat(&self.table.rotate(k)), flat(v)], 1);
        // As an embedding, because its gradient is summed in f32 however often a row stands somewhere.
        let padded = Tensor::embedding(&joined, &self.rows, -1, false, false);
        let mut mixed = Vec::with_capacity(self.shapes.len());
        let mut start = 0;
        for &[sequences, length] in &self.shapes {
            let tree = padded.narrow(0, start, sequences * length).view([sequences, length, -1]);
            let part = |from: i64, heads: i64| {
                tree.narrow(2, from * width, heads * width).view([sequences, length, heads, width]).transpose(1, 2)
            };
            let out = route::causal(&part(0, heads), &part(heads, kv_heads), &part(heads + kv_heads, kv_heads));
            mixed.push(out.transpose(1, 2).reshape([sequences * length, heads * width]));
            start += sequences * length;
        }
        let mixed = if mixed.len() == 1 { mixed.remove(0) } else { Tensor::cat(&mixed, 0) };
        mixed.index_select(0, &self.places)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::models::{
        config::{Arch, RopeScaling},
        decoder::Decoder,
    };

    /// Hidden states of trees equal those of each sequence on its own, for every architecture and with one row a piece.
    #[test]
    fn a_tree_is_its_sequences() {
        for arch in [Arch::Qwen3, Arch::Qwen2, Arch::Llama] {
            let config = DecoderConfig {
                arch,
                vocab_size: 50,
                hidden: 16,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 8,
                ffn: 24,
                rms_eps: 1e-6,
                rope_theta: 10_000.0,
                rope_scaling: RopeScaling::None,
                max_positions: 64,
                tied_embeddings: true,
                eos: vec![1],
            };
            let decoder = Decoder::random(config.clone(), 0.3, 3, Device::Cpu, Kind::Float).unwrap();
            let sequences: [(&[i64], &[&[i64]]); 2] =
                [(&[5, 6, 7], &[&[8, 9], &[], &[10, 11, 12, 13]]), (&[20], &[&[21]])];
            let trees: Vec<Tree> = sequences
                .iter()
                .map(|(p, branches)| Tree { prompt: p.len(), branches: branches.iter().map(|b| b.len()).collect() })
                .collect();
            let flat: Vec<i64> = sequences
                .iter()
                .flat_map(|(p, b)| p.iter().chain(b.concat().iter()).copied().collect::<Vec<_>>())
                .collect();
            let through = |mixer: &dyn Mixer| {
                let mut x = decoder.embed(&Tensor::from_slice(&flat));
                for layer in 0..config.layers {
                    x = decoder.block(&x, layer, Kind::Float, mixer);
                }
                decoder.final_norm(&x, Kind::Float)
            };
            let got = through(&Packed::new(&config, &trees, Device::Cpu, Kind::Float));
            let padded = {
                let _gpu = route::AsOnGpu::begin();
                let Places { shapes, rows, places, positions } = Places::new(&trees);
                assert_eq!(shapes, [[2, 128], [1, 128]]);
                let table = decoder.rope(16, Device::Cpu, Kind::Float).at(&Tensor::from_slice(&positions));
                let (rows, places) = (Tensor::from_slice(&rows), Tensor::from_slice(&places));
                through(&Padded { shapes, rows, places, table })
            };
            let far = (&got - padded).abs().max().double_value(&[]);
            assert!(far < 1e-5, "{arch:?}: padded sequences are off by {far}");
            let mut row = 0;
            for (prompt, branches) in &sequences {
                let mut behind = row + prompt.len() as i64;
                for branch in *branches {
                    let whole: Vec<i64> = prompt.iter().chain(*branch).copied().collect();
                    let want = decoder.hidden(&Tensor::from_slice(&whole).unsqueeze(0), Kind::Float).squeeze_dim(0);
                    let (p, b) = (prompt.len() as i64, branch.len() as i64);
                    let own = Tensor::cat(&[got.narrow(0, row, p), got.narrow(0, behind, b)], 0);
                    let far = (own - want).abs().max().double_value(&[]);
                    assert!(far < 1e-5, "{arch:?}: off by {far}");
                    behind += b;
                }
                row = behind;
            }
        }
    }
}
