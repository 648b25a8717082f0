//! Hidden states of a decoder's first blocks, with the decoder's own kernels and cache. A token's vector knows only what stands before
//! it. As transformers counts: states after block `layer`, with the final norm after the last block only.

use super::{EncoderOptions, Model, States};
use crate::{
    engine::{
        backend::{Backend, Batch, Limits, Segment},
        cpu::{CpuModel, elem::Elem, isa::Isa, load::Sizes},
        memory,
        pages::{PAGE, pages_for},
    },
    models::{config::DecoderConfig, decoder::Decoder},
};
use anyhow::{Context, ensure};
use std::{path::Path, sync::Arc};
use tch::{Device, Tensor};

/// Sequences of one pass at most; each takes a page of the cache at least.
const SEQUENCES: usize = 256;

/// See the file.
pub struct CausalStates<E: Elem> {
    model: CpuModel<E>,
    /// Whether the wanted layer is the last.
    last: bool,
    rows: usize,
    width: usize,
    states: Vec<f32>,
}

impl<E: Elem> CausalStates<E> {
    /// Loads the first blocks of a decoder directory.
    ///
    /// # Errors
    /// As for a decoder.
    pub fn load(
        dir: &Path,
        config: &DecoderConfig,
        options: &EncoderOptions,
        isa: Isa,
        pool: &Arc<rayon::ThreadPool>,
    ) -> anyhow::Result<Self> {
        let (bytes, free) = (CpuModel::<E>::weight_bytes(config), memory::available().unwrap_or(u64::MAX));
        let (needs, has) = (memory::human(bytes), memory::human(free));
        ensure!(bytes < free, "{}: the model needs {needs} of memory, but {has} are free", dir.display());
        let mut decoder = Decoder::from_dir(dir, Device::Cpu, E::KIND)?;
        let last = options.layer == decoder.config.layers;
        decoder.config.layers = options.layer;
        // Nothing is generated: a matrix of one row stands for the output matrix.
        decoder.config.tied_embeddings = false;
        let head = Tensor::f_zeros([1, config.hidden as i64], (E::KIND, Device::Cpu))?;
        decoder.weights.tensors.insert("lm_head.weight".to_owned(), head);
        let limits = Limits { rows: options.rows.max(PAGE), outputs: 1 };
        let slots = (SEQUENCES + pages_for(options.window)).div_ceil(pages_for(config.max_positions));
        let model = CpuModel::<E>::new(decoder, Sizes { slots, limits }, isa, Arc::clone(pool))
            .with_context(|| dir.display().to_string())?;
        let pages = model.pages();
        ensure!(
            pages >= pages_for(options.window),
            "{}: memory for {} tokens is left, {} were asked for; lower `window`",
            dir.display(),
            pages * PAGE,
            options.window
        );
        let width = model.residual().1;
        Ok(Self { model, last, rows: limits.rows, width, states: Vec::new() })
    }

    /// As many sequences from the front as fit the cache and, unless it is one alone, a step.
    fn fitting(&self, sequences: &[&[u32]]) -> usize {
        let (mut rows, mut pages) = (0, 0);
        let fits = sequences.iter().take_while(|sequence| {
            rows += sequence.len();
            pages += pages_for(sequence.len());
            rows <= self.rows && pages <= self.model.pages()
        });
        fits.count().max(1)
    }

    /// Runs sequences that fit together; a long one alone in several steps.
    fn run(&mut self, sequences: &[&[u32]]) -> anyhow::Result<()> {
        let mut page = 0;
        let mut first = 0;
        let mut batch = Batch::default();
        for sequence in sequences {
            let pages: Vec<u32> = (page..page + pages_for(sequence.len()) as u32).collect();
            page += pages.len() as u32;
            for (number, piece) in sequence.chunks(self.rows).enumerate() {
                if number > 0 {
                    self.step(&std::mem::take(&mut batch))?;
                    first = 0;
                }
                batch.tokens.extend_from_slice(piece);
                let (rows, start) = (piece.len(), number * self.rows);
                batch.segments.push(Segment { first, rows, start, pages: pages.clone() });
                first += rows;
            }
        }
        self.step(&batch)
    }

    fn step(&mut self, batch: &Batch) -> anyhow::Result<()> {
        self.model.step(batch)?;
        let (x, width) = self.model.residual();
        let x = &x[..batch.tokens.len() * width];
        let start = self.states.len();
        self.states.extend_from_slice(x);
        if self.last {
            for (row, out) in x.chunks_exact(width).zip(self.states[start..].chunks_exact_mut(width)) {
                self.model.final_norm(row, out);
            }
        }
        Ok(())
    }
}

impl<E: Elem> Model for CausalStates<E> {
    fn states(&mut self, sequences: &[&[u32]]) -> anyhow::Result<States<'_>> {
        self.states.clear();
        let mut rest = sequences;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.fitting(rest));
            self.run(now)?;
            rest = later;
        }
        Ok(States { data: &self.states, stride: self.width })
    }
}
