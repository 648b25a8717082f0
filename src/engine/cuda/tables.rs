//! What a step's kernels look up, made on the host and sent to the GPU in one copy: tokens, positions, places in the cache, page
//! tables, tiles of attention, draws.

use super::program::{PROMPT_ROWS, TOKEN_ROWS};
use crate::engine::{
    backend::{Batch, Segment},
    pages::PAGE,
};
use tch::{Device, Kind, Tensor};

/// One step's tables; all are views of one buffer of i32.
pub struct Tables {
    /// Rows of the step.
    pub rows: usize,
    pub tokens: Tensor,
    pub positions: Tensor,
    /// Page · PAGE + place in it, per row.
    pub places: Tensor,
    /// Where a row's page table starts in `pages`.
    pub row_pages: Tensor,
    /// The sequences' page tables, one after another.
    pub pages: Tensor,
    /// Tiles (see kernels/attend.cu) of sequences with many rows, and their number.
    pub prompts: (Tensor, usize),
    /// The same of sequences with few.
    pub singles: (Tensor, usize),
    /// Rows whose logits are wanted.
    pub outputs: Tensor,
    pub output_count: usize,
    pub draws: Option<Draws>,
    /// Outputs without a draw, i64 (their logits go to the host), and their number.
    pub undrawn: Tensor,
    pub undrawn_count: usize,
}

/// What is drawn on the GPU.
pub struct Draws {
    pub count: usize,
    /// Rows of the logits.
    pub rows: Tensor,
    /// Temperature and top-p, bits of f32.
    pub options: Tensor,
    pub top_ks: Tensor,
    /// Low and high half of a u64.
    pub seeds: Tensor,
}

/// Lists that become one buffer; each starts at a multiple of 16 bytes.
#[derive(Default)]
struct Lists {
    all: Vec<i32>,
    starts: Vec<(usize, usize)>,
}

impl Lists {
    fn add(&mut self, list: &[i32]) {
        self.starts.push((self.all.len(), list.len()));
        self.all.extend_from_slice(list);
        self.all.resize(self.all.len().next_multiple_of(4), 0);
    }
}

impl Tables {
    /// `group` query heads share a key/value head; None where attention takes no tiles.
    ///
    /// # Errors
    /// The device fails.
    pub fn new(batch: &Batch, group: Option<usize>, device: Device) -> anyhow::Result<Self> {
        let (mut positions, mut places, mut row_pages, mut pages) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut prompts, mut singles) = (Vec::new(), Vec::new());
        for segment in &batch.segments {
            let table = pages.len();
            for position in segment.start..segment.start + segment.rows {
                positions.push(position as i32);
                places.push((segment.pages[position / PAGE] as usize * PAGE + position % PAGE) as i32);
                row_pages.push(table as i32);
            }
            let used = (segment.start + segment.rows).div_ceil(PAGE);
            pages.extend(segment.pages[..used].iter().map(|&page| page as i32));
            if let Some(group) = group {
                let few = segment.rows * group <= TOKEN_ROWS;
                tiles(segment, table, group, if few { &mut singles } else { &mut prompts });
            }
        }
        let whole = |x: &usize| *x as i32;
        let draws: Vec<_> = batch.draws.iter().enumerate().filter_map(|(i, d)| d.as_ref().map(|d| (i, d))).collect();
        let undrawn = batch.draws.iter().enumerate().filter(|(_, d)| d.is_none());
        let undrawn: Vec<i32> = undrawn.map(|(i, _)| i as i32).collect();
        let bits = |x: f32| x.to_bits().cast_signed();
        let options = draws.iter().flat_map(|(_, d)| [bits(d.sampling.temperature), bits(d.sampling.top_p)]);
        let seeds = draws.iter().flat_map(|(_, d)| [d.seed as u32, (d.seed >> 32) as u32].map(u32::cast_signed));
        let top_k = |k: usize| i32::try_from(k).unwrap_or(i32::MAX);

        let mut lists = Lists::default();
        lists.add(&batch.tokens.iter().map(|&token| token as i32).collect::<Vec<_>>());
        lists.add(&positions);
        lists.add(&places);
        lists.add(&row_pages);
        lists.add(&pages);
        lists.add(&prompts);
        lists.add(&singles);
        lists.add(&batch.outputs.iter().map(whole).collect::<Vec<_>>());
        lists.add(&undrawn);
        lists.add(&draws.iter().map(|(i, _)| *i as i32).collect::<Vec<_>>());
        lists.add(&options.collect::<Vec<_>>());
        lists.add(&draws.iter().map(|(_, d)| top_k(d.sampling.top_k)).collect::<Vec<_>>());
        lists.add(&seeds.collect::<Vec<_>>());
        let buffer = Tensor::f_from_slice(&lists.all)?.f_to_device(device)?;
        let mut views = lists.starts.iter().map(|&(start, length)| buffer.f_narrow(0, start as i64, length as i64));
        let mut next = || views.next().expect("one view for each list above");
        let (tokens, positions, places, row_pages, pages) = (next()?, next()?, next()?, next()?, next()?);
        let (prompt_tiles, single_tiles, outputs, undrawn_rows) = (next()?, next()?, next()?, next()?);
        let (draw_rows, options, top_ks, seeds) = (next()?, next()?, next()?, next()?);
        let count = draws.len();
        Ok(Self {
            rows: batch.tokens.len(),
            tokens,
            positions,
            places,
            row_pages,
            pages,
            prompts: (prompt_tiles, prompts.len() / 4),
            singles: (single_tiles, singles.len() / 4),
            outputs,
            output_count: batch.outputs.len(),
            draws: (count > 0).then_some(Draws { count, rows: draw_rows, options, top_ks, seeds }),
            undrawn: undrawn_rows.f_to_kind(Kind::Int64)?,
            undrawn_count: undrawn.len(),
        })
    }
}

/// Appends the tiles of one sequence: as many positions each as fill the rows of a tile.
fn tiles(segment: &Segment, table: usize, group: usize, list: &mut Vec<i32>) {
    let per_tile = if segment.rows * group <= TOKEN_ROWS { segment.rows } else { PROMPT_ROWS / group };
    for from in (0..segment.rows).step_by(per_tile.max(1)) {
        let count = per_tile.min(segment.rows - from);
        let tile = [segment.first + from, count, segment.start + from, table];
        list.extend(tile.map(|x| x as i32));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::engine::{Sampling, backend::Draw};

    fn ints(tensor: &Tensor) -> Vec<i32> {
        Vec::try_from(tensor.to_kind(Kind::Int)).unwrap()
    }

    #[test]
    fn a_step_of_a_long_prompt_and_a_single_token() {
        let sampling = Sampling { temperature: 0.5, top_p: 0.9, top_k: 7 };
        let batch = Batch {
            tokens: (10..50).chain([99]).collect(),
            segments: vec![
                Segment { first: 0, rows: 40, start: 60, pages: vec![5, 2, 8] },
                Segment { first: 40, rows: 1, start: 3, pages: vec![4] },
            ],
            outputs: vec![39, 40],
            draws: vec![None, Some(Draw { sampling, seed: 3 << 32 | 1 })],
        };
        let tables = Tables::new(&batch, Some(4), Device::Cpu).unwrap();
        assert_eq!(ints(&tables.tokens)[38..], [48, 49, 99]);
        assert_eq!(ints(&tables.positions)[38..], [98, 99, 3]);
        // Position 63 is the last of page 5, 64 the first of page 2.
        assert_eq!(ints(&tables.places)[3..5], [5 * 64 + 63, 2 * 64]);
        assert_eq!(ints(&tables.pages), [5, 2, 4], "only pages that hold positions");
        assert_eq!(ints(&tables.row_pages)[39..], [0, 2]);
        assert_eq!(ints(&tables.prompts.0), [0, 16, 60, 0, 16, 16, 76, 0, 32, 8, 92, 0]);
        assert_eq!((ints(&tables.singles.0), tables.singles.1), (vec![40, 1, 3, 2], 1));
        assert_eq!((ints(&tables.outputs), ints(&tables.undrawn)), (vec![39, 40], vec![0]));
        let draws = tables.draws.unwrap();
        assert_eq!((draws.count, ints(&draws.rows), ints(&draws.top_ks)), (1, vec![1], vec![7]));
        assert_eq!(ints(&draws.options), [0.5f32, 0.9].map(|x| x.to_bits().cast_signed()));
        assert_eq!(ints(&draws.seeds), [1, 3]);
    }
}
