//! A test of the kernels on the very GPU they will run on, at the start of each engine: one prompt over two pages and a token
//! behind it, with attention in tiles (tensor cores) and again in plain arithmetic. Takes milliseconds; a driver, a card or a
//! compiler that our kernels do not suit is refused instead of writing nonsense.

use super::{
    CudaModel,
    program::{TOKEN_ROWS, Tiles},
};
use crate::engine::{
    backend::{Backend, Batch, Segment},
    pages::PAGE,
};
use anyhow::{Context, ensure};

/// Rows of the prompt: more than a page, so that a second one is read.
const ROWS: usize = PAGE + 6;
/// Least cosine of two rows of logits. bf16 rounding in all blocks leaves 0.999 and more.
const ALIKE: f64 = 0.98;

impl CudaModel {
    /// Compares both ways of attention where this model has both.
    ///
    /// # Errors
    /// They differ, or the GPU fails.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let rows = ROWS.min(self.limits.rows).min(self.pages * PAGE - 1);
        if self.program.tiles.is_none() || self.limits.outputs == 0 {
            return Ok(());
        }
        let in_tiles = self.probe(rows)?;
        let tiles: Option<Tiles> = self.program.tiles.take();
        let plain = self.probe(rows);
        self.program.tiles = tiles;
        for (a, b) in in_tiles.iter().zip(plain?) {
            let (dot, aa, bb) = a.iter().zip(&b).fold((0.0, 0.0, 0.0), |(dot, aa, bb), (&x, &y)| {
                let (x, y) = (f64::from(x), f64::from(y));
                (dot + x * y, aa + x * x, bb + y * y)
            });
            if !bb.is_finite() {
                // The model's own numbers; they fail their rows.
                return Ok(());
            }
            let cosine = dot / (aa * bb).sqrt();
            ensure!(
                cosine >= ALIKE,
                "the attention kernels give other logits on this GPU than plain arithmetic does (cosine {cosine:.4}); use device: cpu, and \
                 please report the card and driver"
            );
        }
        Ok(())
    }

    /// Logits behind a prompt, and behind one more token.
    fn probe(&mut self, rows: usize) -> anyhow::Result<[Vec<f32>; 2]> {
        let token = |i: usize| ((i * 7919 + 5) % self.config.vocab_size) as u32;
        let pages: Vec<u32> = (0..rows.div_ceil(PAGE).max(rows / PAGE + 1) as u32).rev().collect();
        let segment = |rows, start| vec![Segment { first: 0, rows, start, pages: pages.clone() }];
        let prompt = (0..rows).map(token).collect();
        let first = Batch { tokens: prompt, segments: segment(rows, 0), outputs: vec![rows - 1], draws: vec![None] };
        let next = Batch { tokens: vec![token(rows)], segments: segment(1, rows), outputs: vec![0], draws: vec![None] };
        let mut run =
            |batch: &Batch| anyhow::Ok(self.step(batch).context("checking the kernels")?.logits.data.to_vec());
        Ok([run(&first)?, run(&next)?])
    }
}

// A prompt must not fit into a tile of single tokens, or only one kernel would be tested.
const _: () = assert!(ROWS > TOKEN_ROWS);
