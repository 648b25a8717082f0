//! Parameters as one flat f32 buffer, and AdamW (Loshchilov and Hutter 2019, algorithm 2) over it in one pass.
//! Knows nothing of models beyond names and shapes, nothing of schedules or files.
//!
//! On a GPU the buffers hold more elements than some kernels count to, and a temporary of the buffer's length would be as large as
//! the masters: work on a whole buffer goes over it in pieces of [`PIECE`].

use super::threads::{Shared, split};
use crate::models::{route, weights::Weights};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Elements of a buffer that a GPU works on at once: 256 MB a temporary.
const PIECE: i64 = 1 << 26;

/// One parameter's place in the buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Checkpoint name.
    pub name: String,
    /// Shape.
    pub shape: Vec<i64>,
}

/// f32 masters of all parameters in one buffer: first those that decay (two dimensions or more), then norms and biases.
#[derive(Debug)]
pub struct FlatParameters {
    /// [N] f32, no gradient of its own.
    pub master: Tensor,
    slots: Vec<Slot>,
    /// Leading elements that weight decay applies to.
    decayed: i64,
}

/// One forward pass's parameters: views of `leaf`, which collects the gradient of them all.
#[derive(Debug)]
pub struct Views {
    /// [N] in the compute type, requires a gradient.
    pub leaf: Tensor,
    /// The parameters by name.
    pub weights: Weights,
}

impl FlatParameters {
    /// Copies the parameters into one buffer, in f32.
    pub fn new(weights: &Weights) -> Self {
        let (matrices, vectors): (Vec<_>, Vec<_>) = weights.tensors.iter().partition(|(_, t)| t.dim() >= 2);
        let decayed = matrices.iter().map(|(_, t)| t.numel() as i64).sum();
        let ordered: Vec<(&String, &Tensor)> = matrices.into_iter().chain(vectors).collect();
        let slots: Vec<Slot> =
            ordered.iter().map(|(name, t)| Slot { name: (*name).clone(), shape: t.size() }).collect();
        let total = slots.iter().map(|slot| slot.shape.iter().product::<i64>()).sum::<i64>();
        let device = ordered.first().map_or(Device::Cpu, |(_, t)| t.device());
        let master = Tensor::empty([total], (Kind::Float, device));
        let mut start = 0;
        tch::no_grad(|| {
            for (_, tensor) in ordered {
                let length = tensor.numel() as i64;
                master.narrow(0, start, length).copy_(&tensor.reshape([-1]));
                start += length;
            }
        });
        Self { master, slots, decayed }
    }

    /// Lets weight decay apply to every parameter, norm gains and embeddings included (OpenLM's recipe, reference section 7.2).
    pub fn decay_all(mut self) -> Self {
        self.decayed = self.master.numel() as i64;
        self
    }

    /// Names and shapes in buffer order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The buffer in the compute type, to make [`Views`] of. Shares the masters' memory in f32.
    pub fn compute(&self, kind: Kind) -> Tensor {
        tch::no_grad(|| self.master.detach().to_kind(kind))
    }

    /// Parameters for one forward and backward pass over `compute` (see [`Self::compute`]).
    pub fn views(&self, compute: &Tensor) -> Views {
        let leaf = compute.detach().set_requires_grad(true);
        let weights = self.split(&leaf);
        Views { leaf, weights }
    }

    /// As [`Self::views`], but each parameter collects its own gradient, so that a layer's can be taken and freed before
    /// the next layer's are made. Take them with [`Self::collect`].
    pub fn leaves(&self, compute: &Tensor) -> Weights {
        let mut weights = tch::no_grad(|| self.split(&compute.detach()));
        for tensor in weights.tensors.values_mut() {
            *tensor = tensor.detach().set_requires_grad(true);
        }
        weights
    }

    /// Adds the gradients of those leaves whose names begin with `prefix` to `into` [N] f32, and frees them.
    pub fn collect(&self, leaves: &mut Weights, prefix: &str, into: &Tensor) {
        let mut start = 0;
        for slot in &self.slots {
            let length = slot.shape.iter().product();
            if slot.name.starts_with(prefix)
                && let Some(leaf) = leaves.tensors.get_mut(&slot.name)
                && leaf.grad().defined()
            {
                tch::no_grad(|| {
                    let mut target = into.narrow(0, start, length);
                    target += leaf.grad().reshape([-1]);
                });
                *leaf = leaf.detach().set_requires_grad(true);
            }
            start += length;
        }
    }

    /// The part of a buffer as long as the masters that belongs to the parameter `name`, in its shape.
    pub fn part(&self, buffer: &Tensor, name: &str) -> Option<Tensor> {
        let mut start = 0;
        for slot in &self.slots {
            let length = slot.shape.iter().product();
            if slot.name == name {
                return Some(buffer.narrow(0, start, length).view(slot.shape.as_slice()));
            }
            start += length;
        }
        None
    }

    /// The parameters in `kind`, detached, for writing to disk.
    pub fn weights(&self, kind: Kind) -> Weights {
        tch::no_grad(|| self.split(&self.compute(kind)))
    }

    /// The parameters as parts of a buffer [N]. One split whose backward is one concatenation: slicing each parameter on its own would make a gradient as long as
    /// the whole buffer for each.
    pub fn split(&self, buffer: &Tensor) -> Weights {
        let sizes: Vec<i64> = self.slots.iter().map(|slot| slot.shape.iter().product()).collect();
        let parts = buffer.split_with_sizes(&sizes, 0);
        let tensors: BTreeMap<String, Tensor> = self
            .slots
            .iter()
            .zip(parts)
            .map(|(slot, part)| (slot.name.clone(), part.view(slot.shape.as_slice())))
            .collect();
        Weights { tensors }
    }
}

/// What AdamW is set to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment per step.
    pub beta1: f64,
    /// Decay of the second moment per step.
    pub beta2: f64,
    /// Keeps the division by the second moment finite.
    pub eps: f64,
    /// Decoupled decay of matrices; of norms and biases only after [`FlatParameters::decay_all`].
    pub weight_decay: f64,
}

/// The moments of all parameters.
#[derive(Debug)]
pub struct AdamW {
    /// The settings.
    pub options: AdamWOptions,
    /// Steps made.
    pub step: i64,
    /// [N] f32
    pub first: Tensor,
    /// [N] f32
    pub second: Tensor,
}

impl AdamW {
    /// Moments at zero.
    pub fn new(parameters: &FlatParameters, options: AdamWOptions) -> Self {
        Self { options, step: 0, first: parameters.master.zeros_like(), second: parameters.master.zeros_like() }
    }

    /// One step with gradient `grad` [N] f32, multiplied by `grad_scale` (clipping) on the way in.
    pub fn step(&mut self, parameters: &mut FlatParameters, grad: &Tensor, grad_scale: f64, rate: f64) {
        let AdamWOptions { beta1, beta2, eps, weight_decay } = self.options;
        self.step += 1;
        // p -= rate * (m / c1) / (sqrt(v / c2) + eps) = rate * sqrt(c2) / c1 * m / (sqrt(v) + eps * sqrt(c2))
        let correction1 = 1.0 - beta1.powi(self.step as i32);
        let root2 = (1.0 - beta2.powi(self.step as i32)).sqrt();
        let rule = Rule {
            grad_scale: grad_scale as f32,
            first: (1.0 - beta1) as f32,
            second: (1.0 - beta2) as f32,
            keep: (1.0 - rate * weight_decay) as f32,
            rate: (rate * root2 / correction1) as f32,
            eps: (eps * root2) as f32,
        };
        let _guard = tch::no_grad_guard();
        let grad = grad.to_kind(Kind::Float).contiguous();
        if route::gpu(parameters.master.device()) {
            rule.on_gpu(self, parameters, &grad);
        } else {
            rule.on_cpu(self, parameters, &grad);
        }
    }
}

/// The numbers of one step.
#[derive(Clone, Copy)]
struct Rule {
    grad_scale: f32,
    /// 1 - beta1
    first: f32,
    /// 1 - beta2
    second: f32,
    /// What decay leaves of a parameter.
    keep: f32,
    /// Corrected for the young moments.
    rate: f32,
    eps: f32,
}

impl Rule {
    /// A handful of operations on each piece.
    fn on_gpu(self, adamw: &mut AdamW, parameters: &mut FlatParameters, grad: &Tensor) {
        for (start, length) in pieces(parameters.master.numel() as i64) {
            let piece = |whole: &Tensor| whole.narrow(0, start, length);
            let (mut p, mut m, mut v) = (piece(&parameters.master), piece(&adamw.first), piece(&adamw.second));
            let scaled = piece(grad) * f64::from(self.grad_scale);
            let _ = m.lerp_(&scaled, f64::from(self.first));
            let _ = v.lerp_(&scaled.square(), f64::from(self.second));
            let decayed = (parameters.decayed - start).clamp(0, length);
            if self.keep != 1.0 && decayed > 0 {
                let _ = p.narrow(0, 0, decayed).g_mul_scalar_(f64::from(self.keep));
            }
            let denominator = v.sqrt().g_add_scalar_(f64::from(self.eps));
            let _ = p.addcdiv_(&(m * f64::from(-self.rate)), &denominator);
        }
    }

    /// One pass over memory, on all threads.
    fn on_cpu(self, adamw: &mut AdamW, parameters: &mut FlatParameters, grad: &Tensor) {
        let total = parameters.master.numel();
        let address = |t: &Tensor| {
            assert!(t.kind() == Kind::Float && t.numel() == total && t.is_contiguous(), "flat buffers are alike");
            Shared(t.data_ptr().cast::<f32>())
        };
        let (p, m, v, g) = (address(&parameters.master), address(&adamw.first), address(&adamw.second), address(grad));
        let decayed = parameters.decayed as usize;
        split(tch::get_num_threads().max(1) as usize, total, |_, range| {
            let middle = decayed.clamp(range.start, range.end);
            for (part, keep) in [(range.start..middle, self.keep), (middle..range.end, 1.0)] {
                // SAFETY: four buffers of `total` floats; parts do not overlap, and nothing else runs.
                let (p, m, v, g) = unsafe {
                    let slice = |s: Shared<f32>| std::slice::from_raw_parts_mut(s.at(part.start), part.len());
                    (slice(p), slice(m), slice(v), std::slice::from_raw_parts(g.at(part.start), part.len()))
                };
                Self { keep, ..self }.slices(p, m, v, g);
            }
        });
    }

    fn slices(self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: just looked.
            return unsafe { self.slices_avx512(p, m, v, g) };
        }
        self.each(p, m, v, g);
    }

    /// The same loop in wide registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn slices_avx512(self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        self.each(p, m, v, g);
    }

    #[inline(always)]
    fn each(self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.grad_scale;
            *m += (g - *m) * self.first;
            *v += (g * g - *v) * self.second;
            *p = *p * self.keep - self.rate * *m / (v.sqrt() + self.eps);
        }
    }
}

/// Start and length of each piece of a buffer.
fn pieces(total: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..total).step_by(PIECE as usize).map(move |start| (start, PIECE.min(total - start)))
}

/// Gradient [N] f32 of the passes so far, and of one more in the type of its computation.
pub fn accumulated(before: Option<Tensor>, part: Tensor) -> Tensor {
    let Some(mut grad) = before else { return part.to_kind(Kind::Float) };
    grad += part;
    grad
}

/// Euclidean norm of a gradient [N] f32, a scalar on its device.
pub fn norm(grad: &Tensor) -> Tensor {
    let _guard = tch::no_grad_guard();
    let total = grad.numel() as i64;
    if !route::gpu(grad.device()) || total <= PIECE {
        return grad.norm();
    }
    let parts: Vec<Tensor> = pieces(total).map(|(start, length)| grad.narrow(0, start, length).norm()).collect();
    Tensor::stack(&parts, 0).norm()
}

/// The factor that clips a gradient of that norm to `max`; 1 where `max` is 0 or the norm is below it.
pub fn clip_factor(norm: f64, max: f64) -> f64 {
    if max > 0.0 && norm > max { max / (norm + 1e-6) } else { 1.0 }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn weights(pairs: &[(&str, &[f32], &[i64])]) -> Weights {
        let tensors = pairs.iter().map(|(n, v, s)| ((*n).to_owned(), Tensor::from_slice(v).view(*s))).collect();
        Weights { tensors }
    }

    #[test]
    fn as_pytorch_on_the_processor() {
        as_pytorch();
    }

    #[test]
    fn as_pytorch_the_way_of_a_gpu() {
        let _gpu = route::AsOnGpu::begin();
        as_pytorch();
    }

    /// Pieces cover a buffer, and only the decayed part of the buffer decays.
    #[test]
    fn pieces_cover_a_buffer() {
        assert_eq!(pieces(0).count(), 0);
        assert_eq!(pieces(2 * PIECE + 3).collect::<Vec<_>>(), [(0, PIECE), (PIECE, PIECE), (2 * PIECE, 3)]);
    }

    /// Ten steps on gradients that depend on the parameters, against torch.optim.AdamW with clip_grad_norm_ (tests/golden/train.py).
    fn as_pytorch() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../../tests/golden/train.json")).unwrap();
        let golden = &golden["adamw"];
        let list = |name: &str| -> Vec<f32> { serde_json::from_value(golden[name].clone()).unwrap() };
        let matrix = list("matrix");
        let vector = list("vector");
        let start = weights(&[("a.norm", &vector, &[vector.len() as i64]), ("b.proj", &matrix, &[3, 4])]);
        let mut parameters = FlatParameters::new(&start);
        let options = AdamWOptions {
            beta1: golden["beta1"].as_f64().unwrap(),
            beta2: golden["beta2"].as_f64().unwrap(),
            eps: golden["eps"].as_f64().unwrap(),
            weight_decay: golden["weight_decay"].as_f64().unwrap(),
        };
        let mut adamw = AdamW::new(&parameters, options);
        let rates: Vec<f64> = serde_json::from_value(golden["rates"].clone()).unwrap();
        for rate in rates {
            let compute = parameters.compute(Kind::Float);
            let views = parameters.views(&compute);
            let m = &views.weights.tensors["b.proj"];
            let v = &views.weights.tensors["a.norm"];
            let loss = (m.matmul(v) - 1.0).square().sum(Kind::Float) + m.sin().sum(Kind::Float);
            loss.backward();
            let grad = views.leaf.grad();
            let factor = clip_factor(norm(&grad).double_value(&[]), golden["clip"].as_f64().unwrap());
            adamw.step(&mut parameters, &grad, factor, rate);
        }
        let end = parameters.weights(Kind::Float);
        for (name, key) in [("b.proj", "matrix_after"), ("a.norm", "vector_after")] {
            let far = (end.tensors[name].reshape([-1]) - Tensor::from_slice(&list(key))).abs().max().double_value(&[]);
            assert!(far < 1e-6, "{name}: off by {far}");
        }
    }

    /// Matrices stand before vectors whatever their names, and come back under their names.
    #[test]
    fn buffer_order() {
        let start = weights(&[("a", &[1., 2.], &[2]), ("b", &[3., 4., 5., 6.], &[2, 2])]);
        let parameters = FlatParameters::new(&start);
        assert_eq!(Vec::<f32>::try_from(&parameters.master).unwrap(), [3., 4., 5., 6., 1., 2.]);
        assert_eq!(parameters.decayed, 4);
        let back = parameters.weights(Kind::BFloat16);
        assert_eq!(back.tensors["a"].size(), [2]);
        assert_eq!(back.tensors["b"].double_value(&[1, 0]), 5.0);
    }
}
