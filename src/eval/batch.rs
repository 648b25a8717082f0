//! Rows of questions as batches on a device: token ids, places and masks of all batches go there together, the forward passes follow one
//! another without waiting, and what they found comes back together. Owns the layout of a batch and the order of its figures.

use super::rows::{Place, Row, Target};
use crate::models::{
    causal::CausalModel,
    decoder::{Branches, RopeTables},
};
use anyhow::{Context, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};
use tch::{Device, Kind, Tensor};

/// How batches are cut to suit a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Prefixes and branches are padded to a multiple of this. On a GPU fused attention refuses masks of odd widths, and each new shape
    /// costs it time.
    pub(super) step: usize,
    /// Rows of the output matmul at a time: 512 logits of 50,000 tokens are 100 MB.
    pub(super) logit_rows: usize,
}

impl Cut {
    pub(super) const CPU: Self = Self { step: 1, logit_rows: 512 };
    pub(super) const GPU: Self = Self { step: 16, logit_rows: 4096 };

    /// What suits that device.
    pub(super) fn of(device: Device) -> Self {
        if device.is_cuda() { Self::GPU } else { Self::CPU }
    }
}

/// Shape of a batch: every row is its prefix, padded to `prefix`, then its branches, padded to `branch`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    prefix: usize,
    branch: usize,
}

impl Layout {
    fn of(rows: &[Row], step: usize) -> Self {
        let longest = |of: fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0).next_multiple_of(step);
        Self { prefix: longest(|r| r.prefix.len()), branch: longest(Row::branch_tokens) }
    }

    fn width(&self) -> usize {
        self.prefix + self.branch
    }

    /// Index in the flattened batch.
    fn flat(&self, row: usize, place: Place) -> i64 {
        let column = match place {
            Place::Prefix(at) => at,
            Place::Branch(at) => self.prefix + at,
        };
        (row * self.width() + column) as i64
    }
}

/// Numbers of a plan that are one tensor.
type Part = Range<usize>;

/// All batches, and every number that the device needs for them.
pub(super) struct Plan {
    numbers: Vec<i64>,
    batches: Vec<Batch>,
}

struct Batch {
    rows: usize,
    layout: Layout,
    /// [rows, width] token ids; padding is 0, which nothing real can see.
    tokens: Part,
    branched: Option<Branched>,
    /// Places in the flattened batch, ascending, and the tokens whose cross-entropy is wanted there.
    wanted: Vec<(i64, BTreeSet<u32>)>,
    chunks: Vec<Chunk>,
}

/// What a batch with branches has besides.
struct Branched {
    /// Number of positions in use.
    longest: usize,
    /// [rows, width]: where each token stands.
    positions: Part,
    /// [rows, branch]: the number of the branch that a token is of; -1 for padding.
    owners: Part,
    /// [rows]: tokens of the prefix.
    lengths: Part,
}

/// Some of a batch's places.
struct Chunk {
    places: Part,
    /// For each wanted token the number of its place in the chunk, and its index in the chunk's logits.
    rows: Part,
    flat: Part,
}

impl Plan {
    /// Lays out batches for a model of that vocabulary.
    pub(super) fn new(batches: &[&[Row]], cut: Cut, vocab: usize) -> Self {
        let mut plan = Self { numbers: Vec::new(), batches: Vec::new() };
        for rows in batches {
            let batch = plan.batch(rows, cut, vocab);
            plan.batches.push(batch);
        }
        plan
    }

    fn put(&mut self, numbers: impl IntoIterator<Item = i64>) -> Part {
        let start = self.numbers.len();
        self.numbers.extend(numbers);
        start..self.numbers.len()
    }

    fn batch(&mut self, rows: &[Row], cut: Cut, vocab: usize) -> Batch {
        let layout = Layout::of(rows, cut.step);
        let mut ids = vec![0i64; rows.len() * layout.width()];
        for (row, ids) in rows.iter().zip(ids.chunks_mut(layout.width())) {
            let copy = |to: &mut [i64], from: &[u32]| to.iter_mut().zip(from).for_each(|(a, &b)| *a = i64::from(b));
            copy(ids, &row.prefix);
            copy(&mut ids[layout.prefix..], &row.branches.concat());
        }
        let tokens = self.put(ids);
        let branched = (layout.branch > 0).then(|| self.branched(rows, layout));
        // Several candidates may be predicted from one place: its logits are computed once.
        let mut wanted: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
        for (b, row) in rows.iter().enumerate() {
            for target in row.targets.iter().flatten() {
                wanted.entry(layout.flat(b, target.place)).or_default().insert(target.token);
            }
        }
        let wanted: Vec<(i64, BTreeSet<u32>)> = wanted.into_iter().collect();
        let chunks = wanted.chunks(cut.logit_rows).map(|part| self.chunk(part, vocab)).collect();
        Batch { rows: rows.len(), layout, tokens, branched, wanted, chunks }
    }

    fn branched(&mut self, rows: &[Row], layout: Layout) -> Branched {
        let mut positions = Vec::with_capacity(rows.len() * layout.width());
        let mut owners = Vec::with_capacity(rows.len() * layout.branch);
        for row in rows {
            positions.extend(0..layout.prefix as i64);
            for (number, part) in row.branches.iter().enumerate() {
                positions.extend((0..part.len()).map(|i| (row.prefix.len() + i) as i64));
                owners.extend(part.iter().map(|_| number as i64));
            }
            positions.resize(positions.len().next_multiple_of(layout.width()), 0);
            owners.resize(owners.len().next_multiple_of(layout.branch), -1);
        }
        let longest = |r: &Row| r.prefix.len() + r.branches.iter().map(Vec::len).max().unwrap_or(0);
        Branched {
            longest: rows.iter().map(longest).max().unwrap_or(0).max(layout.prefix),
            positions: self.put(positions),
            owners: self.put(owners),
            lengths: self.put(rows.iter().map(|row| row.prefix.len() as i64)),
        }
    }

    fn chunk(&mut self, part: &[(i64, BTreeSet<u32>)], vocab: usize) -> Chunk {
        let each = || part.iter().enumerate().flat_map(|(row, (_, tokens))| tokens.iter().map(move |t| (row, *t)));
        Chunk {
            places: self.put(part.iter().map(|(place, _)| *place)),
            rows: self.put(each().map(|(row, _)| row as i64)),
            flat: self.put(each().map(|(row, token)| (row * vocab) as i64 + i64::from(token))),
        }
    }

    /// Runs all batches; `each(number)` after every one may stop the work.
    pub(super) fn run(
        &self,
        model: &CausalModel,
        device: Device,
        kind: Kind,
        each: &mut dyn FnMut(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Figures>> {
        let _guard = tch::no_grad_guard();
        let numbers = Numbers { all: Tensor::f_from_slice(&self.numbers)?.f_to_device(device)? };
        let (mut losses, mut best) = (Vec::new(), Vec::new());
        for (number, batch) in self.batches.iter().enumerate() {
            batch.run(model, &numbers, kind, &mut losses, &mut best)?;
            each(number)?;
        }
        if losses.is_empty() {
            return Ok(Vec::new());
        }
        let losses = Tensor::f_cat(&losses, 0)?.f_to_device(Device::Cpu)?;
        let losses = Vec::<f32>::try_from(losses).context("reading losses")?;
        let best =
            Vec::<i64>::try_from(Tensor::f_cat(&best, 0)?.f_to_device(Device::Cpu)?).context("reading tokens")?;
        let (mut losses, mut best) = (losses.into_iter(), best.into_iter());
        let figures = self.batches.iter().map(|batch| Figures::take(batch, &mut losses, &mut best)).collect();
        ensure!(losses.next().is_none() && best.next().is_none(), "the device gave more figures than were asked for");
        Ok(figures)
    }
}

/// A plan's numbers on the device.
struct Numbers {
    all: Tensor,
}

impl Numbers {
    fn of(&self, part: &Part) -> anyhow::Result<Tensor> {
        Ok(self.all.f_narrow(0, part.start as i64, part.len() as i64)?)
    }
}

impl Batch {
    /// One forward pass: the cross-entropy of each wanted token, and the most likely token at each place, stay on the device.
    fn run(
        &self,
        model: &CausalModel,
        numbers: &Numbers,
        kind: Kind,
        losses: &mut Vec<Tensor>,
        best: &mut Vec<Tensor>,
    ) -> anyhow::Result<()> {
        let shape = [self.rows as i64, self.layout.width() as i64];
        let tokens = numbers.of(&self.tokens)?.f_view(shape)?;
        let hidden = match &self.branched {
            None => model.hidden(&tokens, kind),
            Some(branched) => model.hidden_with(&tokens, &self.tables(branched, model, numbers, kind)?, kind),
        };
        let hidden = hidden.f_flatten(0, 1)?;
        for chunk in &self.chunks {
            let logits = model.logits(&hidden.f_index_select(0, &numbers.of(&chunk.places)?)?);
            let total = logits.f_logsumexp([1i64].as_slice(), false)?.f_index_select(0, &numbers.of(&chunk.rows)?)?;
            losses.push(total.f_sub(&logits.f_take(&numbers.of(&chunk.flat)?)?)?.f_to_kind(Kind::Float)?);
            best.push(logits.f_argmax(-1, false)?);
        }
        Ok(())
    }

    /// Rotary tables and mask: a branch goes on where its row's prefix ends, and sees that prefix and itself.
    fn tables(
        &self,
        branched: &Branched,
        model: &CausalModel,
        numbers: &Numbers,
        kind: Kind,
    ) -> anyhow::Result<RopeTables> {
        let (batch, width) = (self.rows as i64, self.layout.width() as i64);
        let (prefix, branch, device) = (self.layout.prefix as i64, self.layout.branch as i64, numbers.all.device());
        let plain = model.rope(branched.longest as i64, device, kind);
        let positions = numbers.of(&branched.positions)?.f_view([batch, width])?;
        let owners = numbers.of(&branched.owners)?.f_view([batch, branch])?;
        let lengths = numbers.of(&branched.lengths)?.f_view([batch, 1, 1])?;
        let before = Tensor::f_arange(prefix, (Kind::Int64, device))?.f_lt_tensor(&lengths)?;
        let before = before.f_expand([batch, branch, prefix], false)?;
        // Padding sees padding: a softmax over nothing is not a number.
        let own = owners.f_unsqueeze(2)?.f_eq_tensor(&owners.f_unsqueeze(1)?)?.f_tril(0)?;
        let hidden = Tensor::f_cat(&[before, own], 2)?.f_logical_not()?;
        let mut mask = Tensor::f_zeros([batch, branch, width], (kind, device))?;
        let mask = mask.f_masked_fill_(&hidden, f64::NEG_INFINITY)?.f_unsqueeze(1)?;
        Ok(plain.branched(&positions, Branches { prefix, mask }))
    }
}

/// Figures of one batch, by place in the flattened batch.
pub(super) struct Figures {
    layout: Layout,
    losses: BTreeMap<(i64, u32), f32>,
    best: BTreeMap<i64, u32>,
}

impl Figures {
    fn take(batch: &Batch, losses: &mut impl Iterator<Item = f32>, best: &mut impl Iterator<Item = i64>) -> Self {
        let places = || batch.wanted.iter().map(|(place, _)| *place);
        let keys = batch.wanted.iter().flat_map(|(place, tokens)| tokens.iter().map(|token| (*place, *token)));
        Self {
            layout: batch.layout,
            losses: keys.zip(losses).collect(),
            best: places().zip(best.map(|token| token as u32)).collect(),
        }
    }

    /// Cross-entropy of a target of the batch's row `b`, and the most likely token in its place.
    pub(super) fn of(&self, b: usize, target: &Target) -> (f32, u32) {
        let place = self.layout.flat(b, target.place);
        (self.losses[&(place, target.token)], self.best[&place])
    }
}
