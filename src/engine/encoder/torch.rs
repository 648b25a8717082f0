//! Encoders in libtorch's operations: what a GPU runs, and the same code on the CPU for tests. Sequences are sorted by length and padded
//! within like lengths; vectors and their matches are made on the device, and only the matches travel. Everything that the device needs of
//! a call goes there at once, before the first product, and nothing waits for it until the last.

use super::{Best, Model, Piece, Resident, States, sheet};
use crate::models::{
    decoder::{Decoder, RopeTables},
    encoder::forward::EncoderModel,
};
use anyhow::ensure;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Tokens of a pass on a GPU, padding included.
pub(super) const GPU_ROWS: usize = 1 << 15;

/// Tokens whose vectors a GPU holds at the same time: 1 GiB at 1,024 dimensions.
const GPU_HELD: usize = 1 << 18;

/// Attention scores of a pass: heads × tokens × tokens of each sequence. A GiB in f32; DeBERTa needs six such.
const SCORES: usize = 1 << 28;

/// Cosines that exist at the same time.
const COSINES: usize = 1 << 26;

/// Numbers of vectors copied for one product of a matching.
const COPIED: usize = 1 << 28;

/// Lengths are padded to a multiple of this: products of odd sizes are slow on a GPU, and fused attention refuses odd masks.
const STEP: usize = 8;

/// A family's blocks.
pub(super) enum Blocks {
    Encoder(EncoderModel),
    /// The first blocks of a decoder; whether they are all, which is when the final norm counts.
    Decoder {
        model: Box<Decoder>,
        last: bool,
        ropes: BTreeMap<i64, RopeTables>,
    },
}

/// See the file.
pub(super) struct TorchEncoder {
    pub(super) blocks: Blocks,
    pub(super) device: Device,
    pub(super) kind: Kind,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    /// Tokens of a pass, unless one sequence is longer.
    pub(super) rows: usize,
    pub(super) states: Vec<f32>,
}

/// Sequences of like length side by side.
struct Pass {
    /// First row of its states among those of all passes.
    first: usize,
    sequences: usize,
    width: usize,
    /// Whether some sequence is shorter than `width`.
    padded: bool,
}

/// How the sequences of a call are laid out.
struct Layout {
    passes: Vec<Pass>,
    /// First row of each sequence, in the order that they came.
    starts: Vec<usize>,
    /// Rows in all, padding included.
    rows: usize,
    /// Token ids by row, then lengths by pass.
    ids: Vec<i64>,
}

impl TorchEncoder {
    fn layout(&self, sequences: &[&[u32]]) -> Layout {
        let mut order: Vec<usize> = (0..sequences.len()).filter(|&i| !sequences[i].is_empty()).collect();
        order.sort_by_key(|&i| sequences[i].len());
        let width = |i: usize| sequences[i].len().next_multiple_of(STEP);
        let fits = |count: usize, width: usize| {
            count * width <= self.rows && count * self.heads * width * width <= SCORES || count == 1
        };
        let mut layout = Layout { passes: Vec::new(), starts: vec![0; sequences.len()], rows: 0, ids: Vec::new() };
        let mut lengths = Vec::with_capacity(order.len());
        let mut rest = order.as_slice();
        while let Some(&shortest) = rest.first() {
            // Sorted: the last one of a pass is the longest.
            let count = (1..=rest.len()).take_while(|&n| fits(n, width(rest[n - 1]))).last().unwrap_or(1);
            let (now, later) = rest.split_at(count);
            let width = now.last().map_or(0, |&i| width(i));
            let padded = sequences[shortest].len() < width;
            layout.passes.push(Pass { first: layout.rows, sequences: count, width, padded });
            for &i in now {
                layout.starts[i] = layout.rows;
                layout.rows += width;
                layout.ids.extend(sequences[i].iter().map(|&id| i64::from(id)));
                layout.ids.resize(layout.rows, 0);
                lengths.push(sequences[i].len() as i64);
            }
            rest = later;
        }
        layout.ids.extend(lengths);
        layout
    }

    /// Calls `each(pass, states)` for every pass, states f32 [rows of the pass, hidden] on the device.
    fn passes(
        &mut self,
        layout: &Layout,
        each: &mut dyn FnMut(&Pass, Tensor) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let _guard = tch::no_grad_guard();
        let all = Tensor::f_from_slice(&layout.ids)?.f_to_device(self.device)?;
        let mut sequence = layout.rows as i64;
        for pass in &layout.passes {
            let (count, width) = (pass.sequences as i64, pass.width as i64);
            let tokens = all.f_narrow(0, pass.first as i64, count * width)?.f_view([count, width])?;
            let lengths = if pass.padded { Some(all.f_narrow(0, sequence, count)?) } else { None };
            sequence += count;
            let (blocks, kind) = (&mut self.blocks, self.kind);
            let states = halved(&tokens, lengths.as_ref(), &mut |t, l| blocks.forward(t, l, kind))?;
            each(pass, states.f_reshape([count * width, self.hidden as i64])?)?;
        }
        Ok(())
    }
}

/// What a batch runs.
type Run<'a> = &'a mut dyn FnMut(&Tensor, Option<&Tensor>) -> anyhow::Result<Tensor>;

/// States of a batch; of its halves, if the device has no room for all of it.
pub(super) fn halved(tokens: &Tensor, lengths: Option<&Tensor>, run: Run) -> anyhow::Result<Tensor> {
    let error = match run(tokens, lengths) {
        Ok(states) => return Ok(states),
        Err(error) => error,
    };
    let count = tokens.size()[0];
    if count < 2 || !format!("{error:#}").contains("out of memory") {
        return Err(error);
    }
    let (half, mut parts) = (count / 2, Vec::new());
    for (from, count) in [(0, half), (half, count - half)] {
        let lengths = lengths.map(|all| all.f_narrow(0, from, count)).transpose()?;
        parts.push(halved(&tokens.f_narrow(0, from, count)?, lengths.as_ref(), run)?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

impl Blocks {
    fn forward(&mut self, tokens: &Tensor, lengths: Option<&Tensor>, kind: Kind) -> anyhow::Result<Tensor> {
        match self {
            Self::Encoder(model) => model.forward(tokens, lengths),
            // Real tokens do not see padding on their right.
            Self::Decoder { model, last, ropes } => {
                let length = tokens.size()[1];
                let table = ropes.entry(length).or_insert_with(|| model.rope(length, tokens.device(), kind));
                let rows = model.rows(table);
                let mut x = model.embed(tokens);
                for layer in 0..model.config.layers {
                    x = model.block(&x, layer, kind, &rows);
                }
                let x = if *last { model.final_norm(&x, Kind::Float) } else { x };
                Ok(x.f_to_kind(Kind::Float)?)
            }
        }
    }
}

impl Model for TorchEncoder {
    fn states(&mut self, sequences: &[&[u32]]) -> anyhow::Result<States<'_>> {
        let layout = self.layout(sequences);
        let (hidden, stride) = (self.hidden, self.hidden.next_multiple_of(32));
        let mut padded = Vec::with_capacity(layout.rows * hidden);
        self.passes(&layout, &mut |_, states| {
            padded.extend(Vec::<f32>::try_from(states.f_view([-1])?.f_to_device(Device::Cpu)?)?);
            Ok(())
        })?;
        self.states.clear();
        for (sequence, start) in sequences.iter().zip(&layout.starts) {
            for row in padded[start * hidden..(start + sequence.len()) * hidden].chunks_exact(hidden) {
                self.states.extend_from_slice(row);
                self.states.resize(self.states.len() + stride - hidden, 0.0);
            }
        }
        Ok(States { data: &self.states, stride })
    }

    fn resident(&mut self) -> Option<&mut dyn Resident> {
        Some(self)
    }
}

impl Resident for TorchEncoder {
    fn held(&self) -> Option<usize> {
        self.device.is_cuda().then_some(GPU_HELD)
    }

    fn matches(
        &mut self,
        pieces: &[Piece],
        texts: usize,
        pairs: &[(usize, usize)],
    ) -> anyhow::Result<Vec<Option<Best>>> {
        let sequences: Vec<&[u32]> = pieces.iter().map(|piece| piece.ids.as_slice()).collect();
        let layout = self.layout(&sequences);
        // The rows of each text that count.
        let mut rows: Vec<Vec<i64>> = vec![Vec::new(); texts];
        for (piece, start) in pieces.iter().zip(&layout.starts) {
            rows[piece.text].extend(piece.keeps.clone().map(|row| (start + row) as i64));
        }
        let sheets = sheet::sheets(&rows, pairs, |a, b, count| {
            count * a * b <= COSINES && count * (a + b) * self.hidden <= COPIED || count == 1
        });
        let (hidden, device) = (self.hidden as i64, self.device);
        if layout.rows == 0 {
            return Ok(vec![Some(Default::default()); pairs.len()]);
        }
        let _guard = tch::no_grad_guard();
        let indices = Tensor::f_from_slice(&sheets.indices)?.f_to_device(device)?;
        let unit = Tensor::f_empty([layout.rows as i64, hidden], (Kind::Float, device))?;
        let mut lengths = Vec::with_capacity(layout.passes.len());
        self.passes(&layout, &mut |pass, states| {
            let size = states.f_norm_scalaropt_dim(2.0, [1i64], true)?;
            let place = unit.f_narrow(0, pass.first as i64, states.size()[0])?;
            let _ = states.f_div_out(&place, &size)?;
            lengths.push(size.f_view([-1])?);
            Ok(())
        })?;
        let mut found = Vec::with_capacity(2 * sheets.all.len() + lengths.len());
        for sheet in &sheets.all {
            found.extend(sheet.best(&unit, &indices)?);
        }
        found.append(&mut lengths);
        let found = Vec::<f32>::try_from(Tensor::f_cat(&found, 0)?.f_to_device(Device::Cpu)?)?;
        ensure!(found.len() == sheets.cells + layout.rows, "the device gave {} numbers", found.len());
        let (best, lengths) = found.split_at(sheets.cells);
        let whole = |text: usize| {
            rows[text].iter().all(|&row| lengths[row as usize].is_finite() && lengths[row as usize] > 0.0)
        };
        let whole: Vec<bool> = (0..texts).map(whole).collect();
        let answers = sheets.read(best, &rows, pairs).into_iter().zip(pairs);
        Ok(answers.map(|(answer, &(a, b))| (whole[a] && whole[b]).then_some(answer)).collect())
    }
}
