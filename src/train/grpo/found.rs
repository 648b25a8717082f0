//! What an iteration found, on the host: one transfer for its loss, its norm and the figures of every token. Knows the layout of
//! passes.

use super::{batch::Micro, loss, policy::ExampleReport};
use crate::train::{optim::norm, transfer::download};
use tch::Tensor;

/// The numbers of an iteration, brought to the host in one transfer.
pub(super) struct Found {
    /// Σ w L over all passes.
    pub(super) loss: f64,
    /// Of the gradient, before clipping.
    pub(super) norm: f64,
    /// kl, clipped and entropy of each token of each pass.
    columns: Vec<f64>,
}

impl Found {
    pub(super) fn new(passes: &[loss::Pass], grad: &Tensor) -> Self {
        let norm = norm(grad);
        let mut wanted: Vec<&Tensor> = passes.iter().map(|pass| &pass.loss).chain([&norm]).collect();
        wanted.extend(passes.iter().flat_map(|pass| [&pass.kl, &pass.clipped, &pass.entropy]));
        let mut values = download(&wanted);
        let columns = values.split_off(passes.len() + 1);
        Self { loss: values[..passes.len()].iter().sum(), norm: values[passes.len()], columns }
    }

    /// Means over each example's tokens, into the report.
    pub(super) fn note(
        &self,
        reports: &mut [ExampleReport],
        micros: &[Micro],
        (iteration, iterations): (usize, usize),
    ) {
        let mut rest = self.columns.as_slice();
        for micro in micros {
            let mut column = || {
                let (own, behind) = rest.split_at(micro.targets.len());
                rest = behind;
                own
            };
            let (kl, clipped, entropy) = (column(), column(), column());
            let mut start = 0;
            for &(index, tokens) in &micro.examples {
                let mean = |values: &[f64]| values[start..start + tokens].iter().sum::<f64>() / tokens as f64;
                reports[index].clipped += mean(clipped) / iterations as f64;
                if iteration == 0 {
                    (reports[index].kl, reports[index].entropy) = (mean(kl), mean(entropy));
                }
                start += tokens;
            }
        }
    }
}
