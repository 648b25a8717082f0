//! Against the PyTorch transcription of OpenLM (tests/golden/openlm.py): logits, loss, every gradient, twenty steps.

#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap should fail")]

use super::{step::tensors, *};
use crate::{
    models::{
        causal::CausalModel,
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
        route::AsOnGpu,
    },
    train::{loss::Terms, optim::AdamWOptions, test_device},
};
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

pub(crate) fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openlm")
}

struct Golden {
    values: std::collections::BTreeMap<String, Tensor>,
    tokens: Vec<i64>,
}

impl Golden {
    fn load() -> Self {
        let file = golden_dir().join("expected.safetensors");
        let list = Tensor::read_safetensors(file).unwrap();
        let values: std::collections::BTreeMap<String, Tensor> = list.into_iter().collect();
        let tokens = Vec::<i64>::try_from(values["tokens"].view([-1])).unwrap();
        Self { values, tokens }
    }

    /// The batch of a step, in micro-batches of `rows` contexts.
    fn batches(&self, step: usize, rows: usize) -> Vec<Contexts> {
        let ids: Vec<u32> = self.tokens[step * 56..(step + 1) * 56].iter().map(|&id| id as u32).collect();
        ids.chunks(rows * 14).map(|c| Contexts { rows: c.len() / 14, ids: c.to_vec() }).collect()
    }
}

fn trainer(backward: Backward, kind: Kind) -> Pretrainer {
    let model = CausalModel::from_dir(&golden_dir(), test_device(), Kind::Float).unwrap();
    let adamw = AdamWOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.033 };
    Pretrainer::new(model, adamw, Options { kind, clip: 1.0, z_loss: 1e-4, backward })
}

/// Largest difference, as a part of the largest expected value.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Double);
    let (found, expected) = (wide(found), wide(expected));
    (found.view([-1]) - expected.view([-1])).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
}

#[test]
fn logits_as_pytorch() {
    let golden = Golden::load();
    let model = CausalModel::from_dir(&golden_dir(), Device::Cpu, Kind::Float).unwrap();
    let (tokens, _) = tensors(&golden.batches(0, 4), Device::Cpu).remove(0);
    let logits = tch::no_grad(|| model.logits(&model.hidden(&tokens, Kind::Float)));
    let far = (logits - &golden.values["logits"]).abs().max().double_value(&[]);
    assert!(far < 1e-4, "off by {far}");
}

#[test]
fn loss_and_every_gradient_as_pytorch() {
    every_gradient();
}

#[test]
fn every_gradient_the_way_of_a_gpu() {
    let _gpu = AsOnGpu::begin();
    every_gradient();
}

fn every_gradient() {
    let golden = Golden::load();
    for backward in [Backward::Autograd, Backward::Recompute, Backward::Auto] {
        for rows in [4, 1, 3] {
            let mut trainer = trainer(backward, Kind::Float);
            let terms = Terms { scale: 1.0 / 52.0, z_loss: 1e-4 };
            let (sums, grad) = trainer.gradient(&golden.batches(0, rows), terms);
            assert!((sums.loss / 52.0 / golden.values["loss"].double_value(&[0]) - 1.0).abs() < 1e-5);
            assert!((sums.z / 52.0 / golden.values["z_loss"].double_value(&[0]) - 1.0).abs() < 1e-5);
            let parts = trainer.parameters.split(&grad);
            for (name, part) in &parts.tensors {
                let far = off(part, &golden.values[&format!("grad.{name}")]);
                assert!(far < 1e-4, "{backward:?} in {rows}: {name} is off by {far}");
            }
        }
    }
}

#[test]
fn twenty_steps_as_pytorch() {
    twenty_steps();
}

#[test]
fn twenty_steps_the_way_of_a_gpu() {
    let _gpu = AsOnGpu::begin();
    twenty_steps();
}

fn twenty_steps() {
    let golden = Golden::load();
    let schedule = WarmupCosine { peak: 1e-2, floor: 1e-4, warmup_steps: 5, steps: 20 };
    for backward in [Backward::Autograd, Backward::Recompute, Backward::Auto] {
        let mut trainer = trainer(backward, Kind::Float);
        for step in 0..20 {
            let rate = schedule.rate(step as u64);
            assert!((rate - golden.values["rates"].double_value(&[step])).abs() < 1e-12);
            let report = trainer.step(&golden.batches(step as usize, 2), rate).unwrap();
            let (loss, norm) =
                (golden.values["losses"].double_value(&[step]), golden.values["norms"].double_value(&[step]));
            assert!((report.loss - loss).abs() < 1e-4, "step {step}: loss {} is not {loss}", report.loss);
            assert!(
                (report.grad_norm / norm - 1.0).abs() < 1e-3,
                "step {step}: norm {} is not {norm}",
                report.grad_norm
            );
        }
        for (name, part) in &trainer.parameters.weights(Kind::Float).tensors {
            let part = part.to_device(Device::Cpu);
            let far = (part - &golden.values[&format!("after.{name}")]).abs().max().double_value(&[]);
            assert!(far < 1e-4, "{backward:?}: {name} is off by {far}");
        }
    }
}

/// bf16 gradients point where the f32 ones do, whichever way they are made.
#[test]
fn bf16_is_near() {
    let golden = Golden::load();
    let terms = Terms { scale: 1.0 / 52.0, z_loss: 1e-4 };
    let (_, exact) = trainer(Backward::Autograd, Kind::Float).gradient(&golden.batches(0, 4), terms);
    for (backward, gpu) in [
        (Backward::Autograd, false),
        (Backward::Recompute, false),
        (Backward::ByHand, false),
        (Backward::Autograd, true),
        (Backward::Recompute, true),
    ] {
        let _gpu = gpu.then(AsOnGpu::begin);
        let (sums, grad) = trainer(backward, Kind::BFloat16).gradient(&golden.batches(0, 2), terms);
        assert!((sums.loss / 52.0 - golden.values["loss"].double_value(&[0])).abs() < 0.05);
        let cosine =
            grad.dot(&exact).double_value(&[]) / (grad.norm().double_value(&[]) * exact.norm().double_value(&[]));
        assert!(cosine > 0.999, "{backward:?}: cosine {cosine}");
    }
}

/// Recomputing is the same as keeping for every family, tied embeddings included.
#[test]
fn decoders_recompute_to_the_same_gradient() {
    for (arch, tied) in [(Arch::Qwen3, true), (Arch::Qwen2, false), (Arch::Llama, false)] {
        let config = DecoderConfig {
            arch,
            vocab_size: 61,
            hidden: 16,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            ffn: 24,
            rms_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            max_positions: 32,
            tied_embeddings: tied,
            eos: vec![0],
        };
        let gradient = |backward| {
            let model = Decoder::random(config.clone(), 0.2, 3, test_device(), Kind::Float).unwrap();
            let adamw = AdamWOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
            let options = Options { kind: Kind::Float, clip: 1.0, z_loss: 1e-4, backward };
            let terms = Terms { scale: 1.0 / 52.0, z_loss: 1e-4 };
            Pretrainer::new(model.into(), adamw, options).gradient(&Golden::load().batches(0, 3), terms)
        };
        let (kept, again) = (gradient(Backward::Autograd), gradient(Backward::Recompute));
        assert_eq!(kept.0.correct, again.0.correct);
        assert!(off(&again.1, &kept.1) < 1e-5, "{arch:?}: off by {}", off(&again.1, &kept.1));
    }
}

#[test]
fn what_cannot_be_trained_on_is_refused_and_changes_nothing() {
    let golden = Golden::load();
    let mut trainer = trainer(Backward::Autograd, Kind::Float);
    let before = trainer.parameters.master.copy();
    let mut batch = golden.batches(0, 4).remove(0);
    batch.ids[7] = 61;
    let error = trainer.step(&[batch], 1e-3).unwrap_err().to_string();
    assert!(error.contains("token id 61") && error.contains("ends at 60"), "{error}");
    trainer.parameters.master = &before * f64::NAN;
    let error = trainer.step(&golden.batches(0, 4), 1e-3).unwrap_err().to_string();
    assert!(error.contains("diverged") && error.contains("learning_rate"), "{error}");
    assert_eq!(trainer.adamw.step, 0);
}

/// The hand-written pass in bf16 errs no more than libtorch's own in bf16, parameter by parameter, measured against f32. Lengths that fill
/// no vector, several micro-batches, a vocabulary that fills none.
#[test]
fn by_hand_as_good_as_autograd() {
    use crate::models::openlm::{OpenLm, OpenLmConfig};
    use rand::{Rng, SeedableRng};
    // A GPU that other tests want must be known before the first backward pass of the process.
    test_device();
    for (length, vocab_size, heads) in [(75, 101, 2), (16, 64, 1), (130, 96, 2), (1, 64, 2)] {
        let config =
            OpenLmConfig { vocab_size, hidden: 64, layers: 2, heads, ffn: 96, max_positions: 256, eos: vec![0] };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(length as u64);
        let mut batch = |rows: usize| {
            let ids = (0..rows * (length + 1)).map(|_| rng.random_range(0..vocab_size as u32)).collect();
            Contexts { rows, ids }
        };
        let batches = [batch(3), batch(3), batch(1)];
        let terms = Terms { scale: 1.0 / (7 * length) as f64, z_loss: 1e-2 };
        let gradient = |kind, backward| {
            let model = OpenLm::random(config.clone(), 5, Device::Cpu, Kind::Float).unwrap();
            let adamw = AdamWOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
            let mut trainer = Pretrainer::new(model.into(), adamw, Options { kind, clip: 1.0, z_loss: 1e-2, backward });
            // the second call must not see anything of the first
            let _ = trainer.gradient(&batches[1..], terms);
            let (sums, grad) = trainer.gradient(&batches, terms);
            let parts = trainer.parameters.split(&grad).tensors;
            (sums, parts, trainer.method())
        };
        let exact = gradient(Kind::Float, Backward::Autograd);
        let usual = gradient(Kind::BFloat16, Backward::Autograd);
        let ours = gradient(Kind::BFloat16, Backward::ByHand);
        if ours.2 != "by hand" {
            eprintln!("skipped: this processor has no AVX512-BF16");
            return;
        }
        let n = (7 * length) as f64;
        assert!((ours.0.loss - exact.0.loss).abs() / n < 5e-3, "{length}: {:?} is not {:?}", ours.0, exact.0);
        assert!((ours.0.z / exact.0.z - 1.0).abs() < 1e-2, "{length}: {:?} is not {:?}", ours.0, exact.0);
        for (name, wanted) in &exact.1 {
            let size = wanted.norm().double_value(&[]);
            let error = |parts: &std::collections::BTreeMap<String, Tensor>| {
                (&parts[name] - wanted).norm().double_value(&[]) / size.max(1e-12)
            };
            let (usual, ours) = (error(&usual.1), error(&ours.1));
            assert!(ours < 1.3 * usual + 2e-3 || size < 1e-9, "{length} {name}: {ours:.5} off, libtorch {usual:.5}");
        }
    }
}
