//! Cross entropy on the answer's tokens: what is counted, the normaliser and the gradient stand together here. Pure tensor
//! arithmetic; knows nothing of batches, models or optimisers.
//!
//! Departure from the textbook form: the gradient of the sum is computed here, chunk by chunk, without autograd. The logits of
//! all positions never exist at the same time, nothing of the vocabulary's size is kept for a backward pass, and the same
//! pass yields loss, accuracy and gradients. The caller runs `surrogate.backward()`, whose gradient with respect to `hidden`
//! and `weight` is exactly that of `scale * sum(-log p)`; its value means nothing.

use crate::models::route;
use tch::{Device, Kind, Tensor};

/// Rows of logits that exist at the same time: 512 x 4,096 in f32 is 8 MB, which stays near the processor.
pub const CHUNK_ROWS: i64 = 512;

/// Rows of logits that exist at the same time on a device: on a GPU products want more of them.
pub fn chunk_rows(device: Device) -> i64 {
    if route::gpu(device) { 4 * CHUNK_ROWS } else { CHUNK_ROWS }
}

/// Loss of one micro-batch. `sum` and `correct` are scalars on the device, so that reading them is the caller's choice.
#[derive(Debug)]
pub struct AnswerLoss {
    /// `sum_i -log p(target_i)`, f64 scalar.
    pub sum: Tensor,
    /// `sum_i logsumexp_i²` where z-loss is on, else 0; f64 scalar.
    pub z_sum: Tensor,
    /// How many targets had the highest logit, i64 scalar.
    pub correct: Tensor,
    /// Scalar whose gradient is that of `scale * sum`.
    pub surrogate: Tensor,
}

/// Cross entropy of `hidden @ weight^T` against `targets`.
///
/// `hidden` [N, H] at the positions whose next token belongs to an answer, `weight` [V, H] (the output projection), `targets`
/// [N] i64, `scale` = 1 / (answer tokens of the whole optimiser step), so that accumulated micro-batches weigh every
/// token alike. Matmuls run in the type of `hidden`; softmax and sums run in f32 and f64.
///
/// With p = softmax(hidden @ weight^T), onehot = the targets:
///   d sum / d logits = p - onehot          [N, V]
///   d sum / d hidden = (p - onehot) @ weight     [N, H]
///   d sum / d weight = (p - onehot)^T @ hidden   [V, H]
pub fn answer_loss(hidden: &Tensor, weight: &Tensor, targets: &Tensor, scale: f64, chunk_rows: i64) -> AnswerLoss {
    answer_loss_z(hidden, weight, targets, Terms { scale, z_loss: 0.0 }, chunk_rows)
}

/// What the loss is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Factor of everything: 1 / (targets of the whole optimiser step).
    pub scale: f64,
    /// Factor of the squared log of the softmax's denominator (z-loss), which keeps logits from drifting.
    pub z_loss: f64,
}

/// As [`answer_loss`] with z-loss: the gradient is that of `scale * sum(-log p + z_loss * lse²)`, lse = logsumexp of the row.
///
///   d / d logits = (1 + 2 z_loss lse) p - onehot     since d lse / d logits = p
pub fn answer_loss_z(hidden: &Tensor, weight: &Tensor, targets: &Tensor, terms: Terms, chunk_rows: i64) -> AnswerLoss {
    let parts = tch::no_grad(|| gradients(hidden, weight, targets, terms, chunk_rows));
    let surrogate = (hidden * &parts.hidden_grad).sum(Kind::Float) + (weight * &parts.weight_grad).sum(Kind::Float);
    AnswerLoss { sum: parts.sum, z_sum: parts.z_sum, correct: parts.correct, surrogate }
}

/// Loss and accuracy only, for evaluation. Returns (sum of -log p as f64 scalar, correct as i64 scalar).
pub fn answer_loss_value(hidden: &Tensor, weight: &Tensor, targets: &Tensor, chunk_rows: i64) -> (Tensor, Tensor) {
    tch::no_grad(|| {
        let mut sum = Tensor::zeros([], (Kind::Double, hidden.device()));
        let mut correct = Tensor::zeros([], (Kind::Int64, hidden.device()));
        for (start, length) in chunks(hidden.size()[0], chunk_rows) {
            let chunk = chunk_log_p(&hidden.narrow(0, start, length), weight, &targets.narrow(0, start, length));
            sum -= chunk.picked.sum(Kind::Double);
            correct += chunk.correct;
        }
        (sum, correct)
    })
}

struct Gradients {
    sum: Tensor,
    z_sum: Tensor,
    correct: Tensor,
    hidden_grad: Tensor,
    weight_grad: Tensor,
}

fn gradients(hidden: &Tensor, weight: &Tensor, targets: &Tensor, terms: Terms, chunk_rows: i64) -> Gradients {
    let device = hidden.device();
    let mut sum = Tensor::zeros([], (Kind::Double, device));
    let mut z_sum = Tensor::zeros([], (Kind::Double, device));
    let mut correct = Tensor::zeros([], (Kind::Int64, device));
    let mut hidden_grads = Vec::new();
    let mut weight_grad = Tensor::zeros(weight.size(), (Kind::Float, device));
    for (start, length) in chunks(hidden.size()[0], chunk_rows) {
        let rows = hidden.narrow(0, start, length);
        let wanted = targets.narrow(0, start, length);
        let chunk = chunk_log_p(&rows, weight, &wanted);
        sum -= chunk.picked.sum(Kind::Double);
        correct += chunk.correct;
        // p - onehot, scaled, in the compute type
        let mut d_logits = chunk.log_p;
        let _ = d_logits.exp_();
        if terms.z_loss != 0.0 {
            let lse = chunk.picked_logit - &chunk.picked;
            z_sum += lse.square().sum(Kind::Double);
            d_logits *= lse * (2.0 * terms.z_loss) + 1.0;
        }
        let minus_one = Tensor::full([length, 1], -1.0, (Kind::Float, device));
        let _ = d_logits.scatter_add_(1, &wanted.unsqueeze(1), &minus_one);
        let d_logits = (d_logits * terms.scale).to_kind(hidden.kind());
        hidden_grads.push(d_logits.matmul(weight));
        weight_grad += d_logits.tr().matmul(&rows);
    }
    let hidden_grad = if hidden_grads.is_empty() { hidden.zeros_like() } else { Tensor::cat(&hidden_grads, 0) };
    Gradients { sum, z_sum, correct, hidden_grad, weight_grad: weight_grad.to_kind(weight.kind()) }
}

struct ChunkLogP {
    /// [n, V] f32
    log_p: Tensor,
    /// [n, 1] f32: log p of the target
    picked: Tensor,
    /// [n, 1] f32: its logit
    picked_logit: Tensor,
    correct: Tensor,
}

fn chunk_log_p(rows: &Tensor, weight: &Tensor, targets: &Tensor) -> ChunkLogP {
    let logits = rows.matmul(&weight.tr()).to_kind(Kind::Float);
    let picked_logit = logits.gather(1, &targets.unsqueeze(1), false);
    let log_p = logits.log_softmax(-1, Kind::Float);
    let picked = log_p.gather(1, &targets.unsqueeze(1), false);
    let correct = picked.ge_tensor(&log_p.amax([-1], true)).sum(Kind::Int64);
    ChunkLogP { log_p, picked, picked_logit, correct }
}

fn chunks(rows: i64, chunk_rows: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..rows).step_by(chunk_rows.max(1) as usize).map(move |start| (start, chunk_rows.max(1).min(rows - start)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Logits (ln 1, ln 2, ln 5) and (ln 4, ln 4, ln 8) with targets 2 and 0: p = 5/8 and 1/4.
    #[test]
    fn worked_by_hand() {
        let weight = Tensor::from_slice(&[1f32, 0., 0., 0., 1., 0., 0., 0., 1.]).view([3, 3]).set_requires_grad(true);
        let logits: Vec<f32> = [1f32, 2., 5., 4., 4., 8.].iter().map(|x| x.ln()).collect();
        let hidden = Tensor::from_slice(&logits).view([2, 3]).set_requires_grad(true);
        let loss = answer_loss(&hidden, &weight, &Tensor::from_slice(&[2i64, 0]), 0.5, 1);
        let expected = -(5f64 / 8.).ln() - 0.25f64.ln();
        assert!((loss.sum.double_value(&[]) - expected).abs() < 1e-6);
        assert_eq!(loss.correct.int64_value(&[]), 1);
        loss.surrogate.backward();
        // the projection is the identity: d hidden = (p - onehot) / 2
        let wanted = [0.125, 0.25, -0.375, -0.75, 0.25, 0.5].map(|x| x / 2.0);
        for (i, want) in wanted.iter().enumerate() {
            let got = hidden.grad().view([-1]).double_value(&[i as i64]);
            assert!((got - want).abs() < 1e-6, "{i}: {got} is not {want}");
        }
    }

    #[test]
    fn no_answers_no_loss() {
        let weight = Tensor::ones([5, 3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let hidden = Tensor::zeros([0, 3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let loss = answer_loss(&hidden, &weight, &Tensor::zeros([0], (Kind::Int64, tch::Device::Cpu)), 1.0, 4);
        assert_eq!(loss.sum.double_value(&[]), 0.0);
        loss.surrogate.backward();
        assert_eq!(weight.grad().abs().sum(Kind::Double).double_value(&[]), 0.0);
    }

    /// Loss and both gradients against torch.nn.functional.cross_entropy (tests/golden/train.py).
    #[test]
    fn as_pytorch() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../../tests/golden/train.json")).unwrap();
        let golden = &golden["loss"];
        let floats = |name: &str| -> Tensor {
            let values: Vec<f32> = serde_json::from_value(golden[name].clone()).unwrap();
            Tensor::from_slice(&values)
        };
        let targets: Vec<i64> = serde_json::from_value(golden["targets"].clone()).unwrap();
        let rows = targets.len() as i64;
        for chunk in [1, 3, 64] {
            let hidden = floats("hidden").view([rows, -1]).set_requires_grad(true);
            let weight = floats("weight").view([-1, hidden.size()[1]]).set_requires_grad(true);
            let loss = answer_loss(&hidden, &weight, &Tensor::from_slice(&targets), 1.0 / rows as f64, chunk);
            let mean = loss.sum.double_value(&[]) / rows as f64;
            assert!((mean - golden["loss"].as_f64().unwrap()).abs() < 1e-6, "chunk {chunk}: {mean}");
            assert_eq!(loss.correct.int64_value(&[]), golden["correct"].as_i64().unwrap());
            loss.surrogate.backward();
            for (name, tensor) in [("hidden_grad", &hidden), ("weight_grad", &weight)] {
                let far = (tensor.grad().view([-1]) - floats(name)).abs().max().double_value(&[]);
                assert!(far < 1e-6, "{name} at chunk {chunk}: off by {far}");
            }
            let (sum, correct) = answer_loss_value(&hidden, &weight, &Tensor::from_slice(&targets), chunk);
            assert!((sum.double_value(&[]) / rows as f64 - mean).abs() < 1e-9);
            assert_eq!(correct.int64_value(&[]), golden["correct"].as_i64().unwrap());
        }
    }
}
