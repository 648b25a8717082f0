//! Greedy matching on a device: pairs of like lengths side by side, the vectors of one text of each against those of the other in one
//! product, of which the maxima of rows and columns are kept. In f32, as on the CPU. Owns the layout; the vectors are the caller's.

use super::Best;
use tch::{Kind, Tensor};

/// Pairs that share a product.
pub(super) struct Sheet {
    /// Numbers of the pairs, in the order of the sheet.
    pairs: Vec<usize>,
    /// Rows of the longest first text, and of the longest second.
    size: (usize, usize),
    /// Where its part of the indices begins: rows of first texts, of second texts, their numbers.
    at: usize,
    /// Whether some text is shorter than the longest, on each side.
    padded: (bool, bool),
}

/// All pairs of a call.
pub(super) struct Sheets {
    pub(super) all: Vec<Sheet>,
    /// What the device needs to know of all of them.
    pub(super) indices: Vec<i64>,
    /// Maxima of all sheets, padding included.
    pub(super) cells: usize,
}

/// Lays out the pairs whose texts both have rows. `fits` says whether that many pairs of these sizes may share a sheet.
pub(super) fn sheets(
    rows: &[Vec<i64>],
    pairs: &[(usize, usize)],
    fits: impl Fn(usize, usize, usize) -> bool,
) -> Sheets {
    let size = |pair: usize| (rows[pairs[pair].0].len(), rows[pairs[pair].1].len());
    let mut order: Vec<usize> = (0..pairs.len()).filter(|&pair| size(pair).0 > 0 && size(pair).1 > 0).collect();
    order.sort_by_key(|&pair| (size(pair).0.max(size(pair).1), size(pair)));
    let mut sheets = Sheets { all: Vec::new(), indices: Vec::new(), cells: 0 };
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let (mut largest, mut smallest) = ((0, 0), (usize::MAX, usize::MAX));
        let mut count = 0;
        for &pair in rest {
            let (a, b) = size(pair);
            let wider = (largest.0.max(a), largest.1.max(b));
            if count > 0 && !fits(wider.0, wider.1, count + 1) {
                break;
            }
            largest = wider;
            smallest = (smallest.0.min(a), smallest.1.min(b));
            count += 1;
        }
        let (now, later) = rest.split_at(count);
        sheets.add(now, largest, smallest, rows, pairs);
        rest = later;
    }
    sheets
}

impl Sheets {
    fn add(
        &mut self,
        now: &[usize],
        largest: (usize, usize),
        smallest: (usize, usize),
        rows: &[Vec<i64>],
        pairs: &[(usize, usize)],
    ) {
        let at = self.indices.len();
        let firsts = || now.iter().map(|&pair| &rows[pairs[pair].0]);
        let seconds = || now.iter().map(|&pair| &rows[pairs[pair].1]);
        for text in firsts() {
            let end = self.indices.len() + largest.0;
            self.indices.extend(text);
            // Any row will do for padding: it is masked.
            self.indices.resize(end, text[0]);
        }
        for text in seconds() {
            let end = self.indices.len() + largest.1;
            self.indices.extend(text);
            self.indices.resize(end, text[0]);
        }
        self.indices.extend(firsts().map(|text| text.len() as i64));
        self.indices.extend(seconds().map(|text| text.len() as i64));
        let padded = (smallest.0 < largest.0, smallest.1 < largest.1);
        self.cells += now.len() * (largest.0 + largest.1);
        self.all.push(Sheet { pairs: now.to_vec(), size: largest, at, padded });
    }

    /// Maxima of all sheets, one after the other, to those of each pair; empty texts have none, and give the others 0.
    pub(super) fn read(&self, mut best: &[f32], rows: &[Vec<i64>], pairs: &[(usize, usize)]) -> Vec<Best> {
        let zeros = |text: usize| vec![0.0; rows[text].len()];
        let mut answers: Vec<_> = pairs.iter().map(|&(a, b)| (zeros(a), zeros(b))).collect();
        for sheet in &self.all {
            let (firsts, rest) = best.split_at(sheet.pairs.len() * sheet.size.0);
            let (seconds, rest) = rest.split_at(sheet.pairs.len() * sheet.size.1);
            best = rest;
            let both = firsts.chunks_exact(sheet.size.0).zip(seconds.chunks_exact(sheet.size.1));
            for (&pair, (first, second)) in sheet.pairs.iter().zip(both) {
                let (of_first, of_second) = &mut answers[pair];
                let whole = |to: &mut Vec<f32>, from: &[f32]| {
                    let rows = to.len();
                    to.copy_from_slice(&from[..rows]);
                };
                whole(of_first, first);
                whole(of_second, second);
            }
        }
        answers
    }
}

impl Sheet {
    /// Largest cosines of the first texts' rows, then of the second texts', of unit vectors [rows, width].
    pub(super) fn best(&self, unit: &Tensor, indices: &Tensor) -> anyhow::Result<[Tensor; 2]> {
        let (count, a, b) = (self.pairs.len() as i64, self.size.0 as i64, self.size.1 as i64);
        let at = self.at as i64;
        let vectors = |at: i64, rows: i64| -> anyhow::Result<Tensor> {
            let picked = unit.f_index_select(0, &indices.f_narrow(0, at, count * rows)?)?;
            Ok(picked.f_view([count, rows, unit.size()[1]])?)
        };
        let seconds = vectors(at + count * a, b)?.f_transpose(1, 2)?;
        let mut cosines = vectors(at, a)?.f_bmm(&seconds)?;
        // Texts that are not there must win nothing.
        let lengths = at + count * (a + b);
        let beyond = |at: i64, rows: i64| -> anyhow::Result<Tensor> {
            let places = Tensor::f_arange(rows, (Kind::Int64, unit.device()))?.f_unsqueeze(0)?;
            Ok(places.f_ge_tensor(&indices.f_narrow(0, at, count)?.f_unsqueeze(1)?)?)
        };
        if self.padded.1 {
            let _ = cosines.f_masked_fill_(&beyond(lengths + count, b)?.f_unsqueeze(1)?, f64::NEG_INFINITY)?;
        }
        let first = cosines.f_amax([2i64], false)?.f_view([-1])?;
        if self.padded.0 {
            let _ = cosines.f_masked_fill_(&beyond(lengths, a)?.f_unsqueeze(2)?, f64::NEG_INFINITY)?;
        }
        let second = cosines.f_amax([1i64], false)?.f_view([-1])?;
        Ok([first, second])
    }
}
