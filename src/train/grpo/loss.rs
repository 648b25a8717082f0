//! The GRPO objective: per-token loss, mask, normaliser and sign stand together here, with the gradient written out. Pure;
//! knows nothing of models, batches or rewards. The paper's settings are the defaults (reference/repro.md section 3.4).
//!
//! With ρ = exp(log π - log π_old), A the advantage, δ = log π_ref - log π, for each token t of a completion:
//!
//!   L_t = -min(ρ A, clip(ρ, 1 - ε, 1 + ε_high) A) + β (exp(δ) - δ - 1)          k3, never below 0
//!   dL_t / d log π = -ρ A [ρ A <= clip(ρ) A] + β (1 - exp(δ))
//!
//! and the step minimises Σ_t w_t L_t, where w_t is the normaliser ([`normalisers`]; 0 for masked completions). A positive
//! advantage makes its tokens likelier. log π is taken of logits / temperature; top-p is not reflected in it.
//!
//! As in [`crate::train::loss`], logits exist for a chunk of rows at a time and their gradient is computed in the same pass,
//! without autograd: batch x length x vocabulary never exists.

use crate::models::route;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Logits that exist at the same time, in numbers: 16 MB in f32, which stays near the processor.
const CHUNK_LOGITS: i64 = 1 << 22;

/// The same on a GPU: 512 MB, so that a product has rows enough to be worth reading the output projection for.
const GPU_CHUNK_LOGITS: i64 = 1 << 27;

/// How token losses become one number. Names and formulas are TRL's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean over each completion's tokens, then over completions.
    Grpo,
    /// Sum over a loss batch divided by its tokens: what the paper used.
    #[default]
    Bnpo,
    /// Sum divided by completions times the longest allowed length: no bias by length.
    DrGrpo,
    /// Sum divided by the tokens of the whole step.
    Dapo,
}

/// What the objective is set to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Clipping below 1.
    pub epsilon: f64,
    /// Clipping above 1.
    pub epsilon_high: f64,
    /// Weight of the divergence from the reference; 0: there is no reference.
    pub beta: f64,
    /// Logits are divided by it.
    pub temperature: f64,
}

/// What is known of N tokens before the pass.
#[derive(Debug)]
pub struct Tokens {
    /// [N] i64, the tokens that were drawn.
    pub targets: Tensor,
    /// [N] f32, of the completion that the token belongs to.
    pub advantages: Tensor,
    /// [N] f32, see [`normalisers`].
    pub weights: Tensor,
    /// [N] f32 log-probabilities when the tokens were drawn; None: they are the present ones (exactly on policy, ρ = 1).
    pub old: Option<Tensor>,
    /// [N] f32 log-probabilities under the reference; None without one.
    pub reference: Option<Tensor>,
}

/// Each token's share, all [N] f32.
#[derive(Debug)]
pub struct Terms {
    /// L_t, not yet weighted.
    pub loss: Tensor,
    /// dL_t / d log π.
    pub slope: Tensor,
    /// k3 without β; zeros without a reference.
    pub kl: Tensor,
    /// 1 where the clip takes the gradient away.
    pub clipped: Tensor,
}

/// The objective of N tokens with log-probabilities `log_p` [N] f32.
pub fn terms(log_p: &Tensor, tokens: &Tokens, objective: &Objective) -> Terms {
    let ratio = tokens.old.as_ref().map_or_else(|| log_p.ones_like(), |old| (log_p - old).exp());
    let gain = &ratio * &tokens.advantages;
    let bounded = ratio.clamp(1.0 - objective.epsilon, 1.0 + objective.epsilon_high) * &tokens.advantages;
    let clipped = gain.gt_tensor(&bounded).to_kind(Kind::Float);
    let mut loss = -gain.minimum(&bounded);
    let mut slope = -&gain * (1.0 - &clipped);
    let kl = match &tokens.reference {
        Some(reference) => {
            let delta = reference - log_p;
            let grown = delta.exp();
            loss += (&grown - &delta - 1.0) * objective.beta;
            slope += (1.0 - &grown) * objective.beta;
            grown - delta - 1.0
        }
        None => log_p.zeros_like(),
    };
    Terms { loss, slope, kl, clipped }
}

/// One completion as the normaliser sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Tokens that count: 0 for a masked completion.
    pub tokens: usize,
    /// The loss batch that it is in, from 0.
    pub batch: usize,
}

/// w of each completion's tokens. `batches` loss batches are averaged (they are what gradient accumulation and several
/// ranks are in TRL); `longest` is the longest allowed completion.
///
/// With n_b completions and T_b tokens in the completion's loss batch, T in all, B batches:
///   grpo 1 / (B n_b tokens), bnpo 1 / (B T_b), dr_grpo 1 / (B n_b longest), dapo 1 / T; empty sums count as 1.
pub fn normalisers(loss_type: LossType, completions: &[Counted], batches: usize, longest: usize) -> Vec<f64> {
    let (mut count, mut tokens) = (vec![0usize; batches], vec![0usize; batches]);
    for completion in completions {
        count[completion.batch] += 1;
        tokens[completion.batch] += completion.tokens;
    }
    let all: usize = tokens.iter().sum();
    let weight = |c: &Counted| {
        let divisor = match loss_type {
            LossType::Grpo => batches * count[c.batch] * c.tokens.max(1),
            LossType::Bnpo => batches * tokens[c.batch].max(1),
            LossType::DrGrpo => batches * count[c.batch] * longest,
            LossType::Dapo => all.max(1),
        };
        if c.tokens == 0 { 0.0 } else { 1.0 / divisor as f64 }
    };
    completions.iter().map(weight).collect()
}

/// What one pass over N tokens gives.
#[derive(Debug)]
pub struct Pass {
    /// Σ w L, f64 scalar.
    pub loss: Tensor,
    /// Log-probabilities [N] f32.
    pub log_p: Tensor,
    /// k3 [N] f32.
    pub kl: Tensor,
    /// [N] f32, 1 where clipped.
    pub clipped: Tensor,
    /// Entropy of the distribution at each token [N] f32, in nats.
    pub entropy: Tensor,
}

/// Where logits come from: hidden @ weight^T + bias.
#[derive(Debug)]
pub struct Output {
    /// [V, H]: the output projection, or the rows of the tokens that are chosen between.
    pub weight: Tensor,
    /// [V] f32, added before the temperature; it is not learned.
    pub bias: Option<Tensor>,
}

/// The objective and its gradient. `hidden` [N, H] are the states that predict the tokens; the gradient of the projection is added to
/// `weight_grad` [V, H] f32 where it is wanted. Beside the pass: d (Σ w L) / d hidden [N, H], in the type of `hidden`.
///
/// With p = softmax(z), z = (hidden @ weight^T + bias) / T, g = w dL/dlog π:
///   d / d (hidden @ weight^T) = g (onehot - p) / T
pub fn pass(
    hidden: &Tensor,
    output: &Output,
    tokens: &Tokens,
    objective: &Objective,
    mut weight_grad: Option<Tensor>,
) -> (Pass, Tensor) {
    let _guard = tch::no_grad_guard();
    let mut loss = Tensor::zeros([], (Kind::Double, hidden.device()));
    let mut columns: [Vec<Tensor>; 5] = Default::default();
    for (start, length) in chunks(hidden.size()[0], output.weight.size()[0], hidden.device()) {
        let rows = hidden.narrow(0, start, length);
        let part = tokens.narrow(start, length);
        let (mut log_softmax, log_p) = chunk_log_p(&rows, output, &part.targets, objective.temperature);
        let terms = terms(&log_p, &part, objective);
        loss += (&terms.loss * &part.weights).sum(Kind::Double);
        let p = log_softmax.exp();
        log_softmax *= &p;
        let entropy = -log_softmax.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        let g = ((terms.slope * &part.weights) / objective.temperature).unsqueeze(1);
        let mut d_logits = p;
        d_logits *= -&g;
        let _ = d_logits.scatter_add_(1, &part.targets.unsqueeze(1), &g);
        let d_logits = d_logits.to_kind(hidden.kind());
        if let Some(weight_grad) = &mut weight_grad {
            match hidden.kind() {
                Kind::Float => drop(weight_grad.addmm_(&d_logits.tr(), &rows)),
                _ => *weight_grad += d_logits.tr().matmul(&rows),
            }
        }
        for (column, value) in
            columns.iter_mut().zip([log_p, terms.kl, terms.clipped, entropy, d_logits.matmul(&output.weight)])
        {
            column.push(value);
        }
    }
    let [log_p, kl, clipped, entropy, hidden_grad] = columns.map(|parts| Tensor::cat(&parts, 0));
    (Pass { loss, log_p, kl, clipped, entropy }, hidden_grad)
}

/// Log-probabilities [N] f32 of `targets` [N] at `temperature`, chunk by chunk.
pub fn log_probs(hidden: &Tensor, output: &Output, targets: &Tensor, temperature: f64) -> Tensor {
    let _guard = tch::no_grad_guard();
    let parts: Vec<Tensor> = chunks(hidden.size()[0], output.weight.size()[0], hidden.device())
        .map(|(start, length)| {
            let rows = hidden.narrow(0, start, length);
            chunk_log_p(&rows, output, &targets.narrow(0, start, length), temperature).1
        })
        .collect();
    Tensor::cat(&parts, 0)
}

impl Tokens {
    fn narrow(&self, start: i64, length: i64) -> Self {
        let cut = |tensor: &Tensor| tensor.narrow(0, start, length);
        Self {
            targets: cut(&self.targets),
            advantages: cut(&self.advantages),
            weights: cut(&self.weights),
            old: self.old.as_ref().map(cut),
            reference: self.reference.as_ref().map(cut),
        }
    }
}

/// log softmax of the logits over the temperature [n, V] f32, and its values at `targets` [n].
fn chunk_log_p(rows: &Tensor, output: &Output, targets: &Tensor, temperature: f64) -> (Tensor, Tensor) {
    let mut logits = rows.matmul(&output.weight.tr()).to_kind(Kind::Float);
    if let Some(bias) = &output.bias {
        logits += bias;
    }
    if temperature != 1.0 {
        logits /= temperature;
    }
    let log_softmax = logits.log_softmax(-1, Kind::Float);
    let picked = log_softmax.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    (log_softmax, picked)
}

/// Bytes of the temporaries of a chunk on a GPU, about.
pub(super) fn chunk_bytes(vocab: usize) -> usize {
    5 * 4 * (GPU_CHUNK_LOGITS as usize).min(8192 * vocab)
}

fn chunks(rows: i64, vocab: i64, device: Device) -> impl Iterator<Item = (i64, i64)> {
    let (numbers, most) = if route::gpu(device) { (GPU_CHUNK_LOGITS, 8192) } else { (CHUNK_LOGITS, 512) };
    let step = (numbers / vocab.max(1)).clamp(16, most);
    (0..rows).step_by(step as usize).map(move |start| (start, step.min(rows - start)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const PAPER: Objective = Objective { epsilon: 0.2, epsilon_high: 0.2, beta: 0.0, temperature: 1.0 };

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.to_kind(Kind::Float)).unwrap()
    }

    fn close(tensor: &Tensor, wanted: &[f32]) {
        let got = floats(tensor);
        let near = got.len() == wanted.len() && got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near, "{got:?} is not {wanted:?}");
    }

    /// Ratios 1.5, 1.5, 0.5, 0.5, 1.1 with advantages 2, -2, 2, -2, 2 and ε = 0.2:
    /// min(3, 2.4), min(-3, -2.4), min(1, 1.6), min(-1, -1.6), min(2.2, 2.2).
    #[test]
    fn clipping_by_hand() {
        let ratios = [1.5f32, 1.5, 0.5, 0.5, 1.1];
        let log_p = tensor(&ratios.map(f32::ln));
        let tokens = Tokens {
            targets: Tensor::zeros([5], (Kind::Int64, tch::Device::Cpu)),
            advantages: tensor(&[2., -2., 2., -2., 2.]),
            weights: tensor(&[1.; 5]),
            old: Some(tensor(&[0.; 5])),
            reference: None,
        };
        let terms_ = terms(&log_p, &tokens, &PAPER);
        close(&terms_.loss, &[-2.4, 3.0, -1.0, 1.6, -2.2]);
        close(&terms_.slope, &[0.0, 3.0, -1.0, 0.0, -2.2]);
        close(&terms_.clipped, &[1., 0., 0., 1., 0.]);
        // a wider upper bound keeps the first
        let wide = terms(&log_p, &tokens, &Objective { epsilon_high: 0.6, ..PAPER });
        close(&wide.loss, &[-3.0, 3.0, -1.0, 1.6, -2.2]);
    }

    /// p = 1/2, reference 1/4: δ = -ln 2, k3 = 1/2 + ln 2 - 1, slope 1 - 1/2. Reference 1/2: nothing.
    #[test]
    fn divergence_by_hand() {
        let half = 0.5f32.ln();
        let tokens = Tokens {
            targets: Tensor::zeros([2], (Kind::Int64, tch::Device::Cpu)),
            advantages: tensor(&[0., 0.]),
            weights: tensor(&[1., 1.]),
            old: None,
            reference: Some(tensor(&[0.25f32.ln(), half])),
        };
        let terms = terms(&tensor(&[half, half]), &tokens, &Objective { beta: 0.1, ..PAPER });
        let k3 = 0.5 + 2f32.ln() - 1.0;
        close(&terms.kl, &[k3, 0.0]);
        close(&terms.loss, &[0.1 * k3, 0.0]);
        close(&terms.slope, &[0.05, 0.0]);
    }

    /// Completions of 2, 6 and 4 tokens, the last masked away: two batches, the second with the 4 masked ones.
    #[test]
    fn normalisers_by_hand() {
        let counted = |tokens, batch| Counted { tokens, batch };
        let completions = [counted(2, 0), counted(6, 0), counted(0, 1)];
        let check = |loss_type, wanted: [f64; 3]| {
            assert_eq!(normalisers(loss_type, &completions, 2, 10), wanted, "{loss_type:?}");
        };
        check(LossType::Grpo, [1. / 8., 1. / 24., 0.]);
        check(LossType::Bnpo, [1. / 16., 1. / 16., 0.]);
        check(LossType::DrGrpo, [1. / 40., 1. / 40., 0.]);
        check(LossType::Dapo, [1. / 8., 1. / 8., 0.]);
    }

    /// Logits (ln 1, ln 2, ln 5) at temperature 1: p = 1/8, 1/4, 5/8. Advantage 2 for token 2, weight 1/2, on policy:
    /// loss -2 * 1/2, gradient -1 (onehot - p).
    #[test]
    fn gradient_by_hand() {
        let weight = Tensor::eye(3, (Kind::Float, tch::Device::Cpu));
        let hidden = tensor(&[0., 2f32.ln(), 5f32.ln()]).view([1, 3]);
        let tokens = Tokens {
            targets: Tensor::from_slice(&[2i64]),
            advantages: tensor(&[2.]),
            weights: tensor(&[0.5]),
            old: None,
            reference: None,
        };
        let weight_grad = Tensor::zeros([3, 3], (Kind::Float, tch::Device::Cpu));
        let output = Output { weight, bias: None };
        let (pass, hidden_grad) = pass(&hidden, &output, &tokens, &PAPER, Some(weight_grad.shallow_clone()));
        assert!((pass.loss.double_value(&[]) + 1.0).abs() < 1e-6);
        close(&pass.log_p, &[0.625f32.ln()]);
        close(&hidden_grad.view([-1]), &[0.125, 0.25, -0.375]);
        let entropy = -(0.125f32 * 0.125f32.ln() + 0.25 * 0.25f32.ln() + 0.625 * 0.625f32.ln());
        close(&pass.entropy, &[entropy]);
        close(&weight_grad.get(1), &[0.0, 0.25 * 2f32.ln(), 0.25 * 5f32.ln()]);
        close(&log_probs(&hidden, &output, &tokens.targets, 1.0), &[0.625f32.ln()]);
    }

    /// The written-out gradient equals autograd's over the formula, in every part: clip, divergence, temperature, bias, chunks.
    #[test]
    fn gradient_is_that_of_the_formula() {
        tch::manual_seed(7);
        let options = (Kind::Float, tch::Device::Cpu);
        let (n, h, v) = (700, 5, 9);
        let hidden = Tensor::randn([n, h], options).set_requires_grad(true);
        let weight = Tensor::randn([v, h], options).set_requires_grad(true);
        let objective = Objective { epsilon: 0.1, epsilon_high: 0.3, beta: 0.2, temperature: 0.7 };
        let tokens = Tokens {
            targets: Tensor::randint(v, [n], (Kind::Int64, tch::Device::Cpu)),
            advantages: Tensor::randn([n], options),
            weights: Tensor::rand([n], options),
            old: Some(Tensor::randn([n], options) * 0.3 - 2.0),
            reference: Some(Tensor::randn([n], options) * 0.3 - 2.0),
        };
        let bias = Tensor::randn([v], options);
        let logits = hidden.matmul(&weight.tr()) + &bias;
        let log_softmax = (logits / objective.temperature).log_softmax(-1, Kind::Float);
        let log_p = log_softmax.gather(1, &tokens.targets.unsqueeze(1), false).squeeze_dim(1);
        let ratio = (&log_p - tokens.old.as_ref().unwrap()).exp();
        let gain = &ratio * &tokens.advantages;
        let bounded = ratio.clamp(0.9, 1.3) * &tokens.advantages;
        let delta = tokens.reference.as_ref().unwrap() - &log_p;
        let each = -gain.minimum(&bounded) + (delta.exp() - delta - 1.0) * objective.beta;
        let loss = (each * &tokens.weights).sum(Kind::Float);
        loss.backward();
        let weight_grad = Tensor::zeros([v, h], options);
        let output = Output { weight: weight.detach(), bias: Some(bias) };
        let (pass, hidden_grad) = pass(&hidden, &output, &tokens, &objective, Some(weight_grad.shallow_clone()));
        let relative = (pass.loss.double_value(&[]) / loss.double_value(&[]) - 1.0).abs();
        assert!(relative < 1e-5, "{relative}");
        for (got, wanted) in [(hidden_grad, hidden.grad()), (weight_grad, weight.grad())] {
            let far = ((got - &wanted).norm() / wanted.norm()).double_value(&[]);
            assert!(far < 1e-5, "off by {far}");
        }
    }
}
