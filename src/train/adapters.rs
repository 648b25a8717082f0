//! Low-rank adapters (LoRA, arXiv 2106.09685) of a decoder's projections: W' = W + (alpha / rank) B A with W frozen, A [rank, in] and
//! B [out, rank] trained. Knows matrices; nothing of losses, passes or files.
//!
//! The product is added to the matrix before a pass, in the type that computes, instead of beside it in every pass: training, the
//! engine that draws completions and the export then use the same numbers, and no forward pass knows of adapters. The gradient of a
//! whole matrix exists for one block at a time:
//!   dB = (alpha / rank) dW' Aᵀ,  dA = (alpha / rank) Bᵀ dW'

use super::optim::FlatParameters;
use crate::models::weights::Weights;
use anyhow::ensure;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Size and weight of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Columns of B and rows of A; 8 to 64 are usual.
    pub rank: usize,
    /// Factor of the product, times `rank`; as large as `rank`, or twice that, is usual.
    pub alpha: f64,
}

impl Lora {
    /// Refuses sizes that make no adapter.
    ///
    /// # Errors
    /// The rank is 0; alpha is not above 0.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.rank > 0, "lora: rank is 0; it must be at least 1");
        ensure!(self.alpha.is_finite() && self.alpha > 0.0, "lora: alpha {} is not above 0", self.alpha);
        Ok(())
    }
}

/// Frozen parameters with adapters of all matrices inside their blocks.
#[derive(Debug)]
pub struct Adapters {
    /// The frozen parameters, in the type that computes; nothing changes them.
    pub base: Weights,
    scale: f64,
}

/// Whether a parameter has an adapter: a matrix inside a block.
fn adapted(name: &str, tensor: &Tensor) -> bool {
    name.contains(".layers.") && tensor.dim() == 2
}

fn names(name: &str) -> [String; 2] {
    [format!("{name}.lora_a"), format!("{name}.lora_b")]
}

impl Adapters {
    /// Freezes `base` and makes its adapters: A uniform in ±1/√in, B zero, so that nothing has changed yet. f32 masters of both are
    /// what is to be trained.
    pub fn new(base: Weights, lora: Lora, seed: u64) -> (Self, FlatParameters) {
        let mut trained = BTreeMap::new();
        let rank = lora.rank as i64;
        for (stream, (name, matrix)) in base.tensors.iter().filter(|(name, t)| adapted(name, t)).enumerate() {
            let [rows, columns] = matrix.size()[..] else { continue };
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(stream as u64);
            let bound = 1.0 / (columns as f32).sqrt();
            let values: Vec<f32> = (0..rank * columns).map(|_| rng.random_range(-bound..bound)).collect();
            let [a, b] = names(name);
            trained.insert(a, Tensor::from_slice(&values).view([rank, columns]).to_device(matrix.device()));
            trained.insert(b, Tensor::zeros([rows, rank], (Kind::Float, matrix.device())));
        }
        let parameters = FlatParameters::new(&Weights { tensors: trained });
        (Self { base, scale: lora.alpha / lora.rank as f64 }, parameters)
    }

    /// Parameters of the base and of its adapters together: what the model computes with. Matrices are new tensors, the rest is the base's.
    pub fn merged(&self, parameters: &FlatParameters, kind: Kind) -> Weights {
        let _guard = tch::no_grad_guard();
        let trained = parameters.split(&parameters.master);
        let merge = |(name, tensor): (&String, &Tensor)| {
            let [a, b] = names(name).map(|name| trained.tensors.get(&name));
            let merged = match a.zip(b) {
                Some((a, b)) => (b.matmul(a) * self.scale + tensor).to_kind(kind),
                None => tensor.detach().to_kind(kind),
            };
            (name.clone(), merged)
        };
        Weights { tensors: self.base.tensors.iter().map(merge).collect() }
    }

    /// Leaves for a pass over `merged`: only what has adapters collects a gradient.
    pub fn leaves(&self, merged: &Weights) -> Weights {
        let leaf = |(name, tensor): (&String, &Tensor)| {
            let own = tensor.detach();
            (name.clone(), if adapted(name, tensor) { own.set_requires_grad(true) } else { own })
        };
        Weights { tensors: merged.tensors.iter().map(leaf).collect() }
    }

    /// Turns the gradients of those leaves whose names begin with `prefix` into those of their adapters, adds these to `into` [N] f32,
    /// and frees the leaves'.
    pub fn collect(&self, parameters: &FlatParameters, leaves: &mut Weights, prefix: &str, into: &Tensor) {
        let _guard = tch::no_grad_guard();
        for (name, leaf) in leaves.tensors.iter_mut().filter(|(name, _)| name.starts_with(prefix)) {
            if !leaf.grad().defined() {
                continue;
            }
            let whole = leaf.grad().to_kind(Kind::Float) * self.scale;
            let [a, b] = names(name);
            let part =
                |buffer: &Tensor, name: &str| parameters.part(buffer, name).expect("adapted leaves have adapters");
            let (mut into_a, mut into_b) = (part(into, &a), part(into, &b));
            into_b += whole.matmul(&part(&parameters.master, &a).tr());
            into_a += part(&parameters.master, &b).tr().matmul(&whole);
            *leaf = leaf.detach().set_requires_grad(true);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use tch::Device;

    /// One matrix, by autograd over W + 2 B A: the same gradients.
    #[test]
    fn gradients_of_the_product() {
        tch::manual_seed(3);
        let options = (Kind::Float, Device::Cpu);
        let name = "model.layers.0.mlp.up_proj.weight";
        let tensors = BTreeMap::from([
            (name.to_owned(), Tensor::randn([5, 4], options)),
            ("model.norm.weight".to_owned(), Tensor::ones([4], options)),
        ]);
        let (adapters, mut parameters) = Adapters::new(Weights { tensors }, Lora { rank: 2, alpha: 4.0 }, 1);
        assert_eq!(parameters.slots().len(), 2);
        let start = adapters.merged(&parameters, Kind::Float);
        assert_eq!(start.tensors[name], adapters.base.tensors[name], "nothing has changed yet");
        parameters.master = Tensor::randn([18], options);
        let merged = adapters.merged(&parameters, Kind::Float);
        let mut leaves = adapters.leaves(&merged);
        leaves.tensors[name].sin().sum(Kind::Float).backward();
        assert!(!leaves.tensors["model.norm.weight"].requires_grad());
        let grad = Tensor::zeros([18], options);
        adapters.collect(&parameters, &mut leaves, "model.layers.0.", &grad);

        let master = parameters.master.detach().set_requires_grad(true);
        let own = parameters.split(&master).tensors;
        let [a, b] = names(name).map(|name| own[&name].shallow_clone());
        let product = b.matmul(&a) * 2.0 + &adapters.base.tensors[name];
        product.sin().sum(Kind::Float).backward();
        let far = (grad - master.grad()).abs().max().double_value(&[]);
        assert!(far < 1e-5, "off by {far}");
        assert!(Lora { rank: 0, alpha: 1.0 }.check().unwrap_err().to_string().contains("rank"));
    }
}
