//! Parts of the trainers on the device of `REPRO_TEST_DEVICE`: AdamW against PyTorch's, what a checkpoint brings back, and bf16 beside
//! f32. The trainers as a whole are in `train`, `pretrain` and `grpo`.

use crate::device::tensor_device;
use repro::{
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
        route::AsOnGpu,
        weights::Weights,
    },
    train::{
        adapters::Lora,
        checkpoint,
        grpo::{
            batch::Example,
            edits::Between,
            loss::{LossType, Objective},
            policy::{Activations, Policy, UpdateOptions},
        },
        optim::{AdamW, AdamWOptions, FlatParameters, clip_factor, norm},
    },
};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/train.json");
    serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap()[name].clone()
}

/// Ten steps on gradients that depend on the parameters, against torch.optim.AdamW with clip_grad_norm_ (tests/golden/train.py).
#[test]
fn adamw_as_pytorch() {
    let golden = golden("adamw");
    let number = |name: &str| golden[name].as_f64().unwrap();
    let list = |name: &str| -> Tensor {
        let values: Vec<f32> = serde_json::from_value(golden[name].clone()).unwrap();
        Tensor::from_slice(&values)
    };
    let on_device = |name: &str, shape: &[i64]| list(name).view(shape).to_device(tensor_device());
    let start = BTreeMap::from([
        ("a.norm".to_owned(), on_device("vector", &[4])),
        ("b.proj".to_owned(), on_device("matrix", &[3, 4])),
    ]);
    let mut parameters = FlatParameters::new(&Weights { tensors: start });
    let (beta1, beta2) = (number("beta1"), number("beta2"));
    let options = AdamWOptions { beta1, beta2, eps: number("eps"), weight_decay: number("weight_decay") };
    let mut adamw = AdamW::new(&parameters, options);
    let rates: Vec<f64> = serde_json::from_value(golden["rates"].clone()).unwrap();
    for rate in rates {
        let compute = parameters.compute(Kind::Float);
        let views = parameters.views(&compute);
        let (m, v) = (&views.weights.tensors["b.proj"], &views.weights.tensors["a.norm"]);
        let loss = (m.matmul(v) - 1.0).square().sum(Kind::Float) + m.sin().sum(Kind::Float);
        loss.backward();
        let grad = views.leaf.grad();
        let factor = clip_factor(norm(&grad).double_value(&[]), number("clip"));
        adamw.step(&mut parameters, &grad, factor, rate);
    }
    let end = parameters.weights(Kind::Float);
    for (name, key) in [("b.proj", "matrix_after"), ("a.norm", "vector_after")] {
        let ours = end.tensors[name].reshape([-1]).to_device(Device::Cpu);
        let far = (ours - list(key)).abs().max().double_value(&[]);
        assert!(far < 1e-6, "{name}: off by {far}");
    }
}

fn policy(kind: Kind, device: Device) -> Policy {
    Policy::new(decoder(device), ADAMW, kind, true)
}

const ADAMW: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };

fn decoder(device: Device) -> Decoder {
    let config = DecoderConfig {
        arch: Arch::Qwen3,
        vocab_size: 300,
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 96,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 256,
        tied_embeddings: true,
        eos: vec![1],
    };
    Decoder::random(config, 0.1, 7, device, Kind::Float).unwrap()
}

fn options(activations: Activations) -> UpdateOptions {
    UpdateOptions {
        objective: Objective { epsilon: 0.2, epsilon_high: 0.2, beta: 0.01, temperature: 1.0 },
        loss_type: LossType::Bnpo,
        batches: 2,
        longest: 40,
        iterations: 2,
        rows: 200,
        activations,
        clip: 1.0,
        between: None,
    }
}

/// Two prompts, longer than a padding step together with some completions, and completions of many lengths, one of a single token.
fn completions() -> (Vec<Vec<u32>>, Vec<Example>) {
    let prompts = vec![(2..130).collect(), vec![7, 8, 9]];
    let example = |prompt: usize, i: usize, length: usize| Example {
        prompt,
        tokens: (0..length).map(|t| ((t * 31 + i * 17) % 290 + 2) as u32).collect(),
        advantage: if i.is_multiple_of(2) { 1.0 } else { -0.7 },
        batch: i % 2,
        drawn: None,
        masked: false,
    };
    let examples = [30, 1, 17].into_iter().enumerate().map(|(i, n)| example(0, i, n));
    (prompts, examples.chain([12, 40, 2].into_iter().enumerate().map(|(i, n)| example(1, i + 3, n))).collect())
}

fn host(tensor: &Tensor) -> Tensor {
    tensor.to_device(Device::Cpu).to_kind(Kind::Float)
}

/// The gradient in bf16 points where that of f32 on the processor does, whichever way it is made.
#[test]
fn bf16_is_near_f32() {
    // A GPU must be known before the first backward pass of the process.
    let device = tensor_device();
    let (prompts, examples) = completions();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let of = |kind, device, activations| {
        let (loss, grad) = policy(kind, device).loss_and_gradient(&prompts, &examples, &options(activations));
        (loss, host(&grad))
    };
    let (loss, exact) = of(Kind::Float, Device::Cpu, Activations::Keep);
    for (gpu, activations) in [(false, Activations::Keep), (true, Activations::Keep), (true, Activations::Recompute)] {
        let _gpu = gpu.then(AsOnGpu::begin);
        let (near, grad) = of(Kind::BFloat16, device, activations);
        let cosine =
            grad.dot(&exact).double_value(&[]) / (grad.norm().double_value(&[]) * exact.norm().double_value(&[]));
        assert!(cosine > 0.995 && (near - loss).abs() < 0.02, "{gpu}: cosine {cosine}, loss {near} for {loss}");
    }
}

/// Two updates, saved, put into a new policy: the same masters and moments on the same device, and the same next step within rounding.
#[test]
fn a_checkpoint_comes_back_on_the_device() {
    let (prompts, examples) = completions();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let options = options(Activations::Recompute);
    let mut first = policy(Kind::Float, tensor_device());
    let report = first.update(&prompts, &examples, &options, 1e-3).unwrap();
    assert!(report.loss.is_finite() && report.examples.iter().all(|e| e.entropy > 0.0 && e.kl.abs() < 1e-5));
    let bytes = checkpoint::to_bytes(&first.parameters, &first.adamw, &7u64).unwrap();
    let mut second = policy(Kind::Float, tensor_device());
    let state: u64 = checkpoint::restore(&bytes, "x", &mut second.parameters, &mut second.adamw).unwrap();
    assert_eq!((state, second.adamw.step), (7, 2));
    assert_eq!(second.parameters.master.device(), tensor_device());
    let same = |a: &Tensor, b: &Tensor| assert_eq!(host(a), host(b));
    same(&first.parameters.master, &second.parameters.master);
    same(&first.adamw.first, &second.adamw.first);
    same(&first.adamw.second, &second.adamw.second);
    let loss = |policy: &mut Policy| policy.update(&prompts, &examples, &options, 1e-3).unwrap().loss;
    let (one, other) = (loss(&mut first), loss(&mut second));
    assert!((one - other).abs() < 1e-5, "{one} and {other}");
}

/// Four updates of adapters alone: everything but the matrices inside blocks is as before, these have changed by a product of the rank
/// asked for, the merged model computes what base and adapters beside it do, and an export of it reads back the same.
#[test]
fn adapters_change_and_nothing_else() {
    let (prompts, examples) = completions();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let lora = Lora { rank: 3, alpha: 6.0 };
    let mut policy = Policy::with_adapters(decoder(tensor_device()), ADAMW, Kind::Float, true, (lora, 5));
    let base = decoder(tensor_device());
    let options = options(Activations::Recompute);
    let first = policy.update(&prompts, &examples, &options, 1e-2).unwrap();
    assert!(first.grad_norm > 0.0 && first.examples.iter().all(|e| e.kl.abs() < 1e-5), "starts at its reference");
    let second = policy.update(&prompts, &examples, &options, 1e-2).unwrap();
    assert!(second.examples.iter().any(|e| e.kl > 1e-4), "and leaves it: {:?}", second.examples);
    let merged = policy.weights();
    let trained = policy.parameters.weights(Kind::Float).tensors;
    assert_eq!(trained.len(), 2 * 7 * 2, "two matrices for each of seven in two blocks");
    for (name, before) in &base.weights.tensors {
        let after = &merged.tensors[name];
        let Some(a) = trained.get(&format!("{name}.lora_a")) else {
            assert_eq!(host(after), host(before), "{name} is frozen");
            continue;
        };
        let b = &trained[&format!("{name}.lora_b")];
        assert_eq!((a.size()[0], b.size()[1]), (3, 3));
        assert!((after - before).abs().max().double_value(&[]) > 1e-4, "{name} has learned");
        // x W'ᵀ = x Wᵀ + (alpha / rank) (x Aᵀ) Bᵀ
        let x = Tensor::randn([4, before.size()[1]], (Kind::Float, tensor_device()));
        let beside = x.matmul(&before.tr()) + x.matmul(&a.tr()).matmul(&b.tr()) * 2.0;
        let far = (x.matmul(&after.tr()) - beside).abs().max().double_value(&[]);
        assert!(far < 1e-5, "{name}: off by {far}");
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.safetensors");
    policy.weights_in(Kind::Float).save(&path).unwrap();
    let read = Weights::load(home.path(), tensor_device(), Kind::Float).unwrap();
    let logits = |weights: Weights| {
        let decoder = Decoder::new(base.config.clone(), weights).unwrap();
        let tokens = Tensor::from_slice(&[5i64, 6, 7, 8]).view([1, 4]).to_device(tensor_device());
        decoder.logits(&decoder.hidden(&tokens, Kind::Float))
    };
    let far = (logits(read) - logits(merged)).abs().max().double_value(&[]);
    assert!(far < 1e-6, "off by {far}");
}

/// Completions of which some tokens were drawn, between two: the gradient is autograd's over the formula, each completion on its own.
#[test]
fn choices_between_two_tokens_as_autograd() {
    let device = tensor_device();
    let between = Between { ids: [5, 9], lean: 0.8 };
    let mut options = UpdateOptions { between: Some(between), ..options(Activations::Keep) };
    options.objective = Objective { beta: 0.0, temperature: 0.7, ..options.objective };
    let prompts: [&[u32]; 2] = [&[3, 4, 6], &[7]];
    let example = |prompt: usize, tokens: &[u32], drawn: &[usize], advantage: f64| Example {
        prompt,
        tokens: tokens.to_vec(),
        advantage,
        batch: 0,
        drawn: Some(drawn.into()),
        masked: false,
    };
    let examples = [
        example(0, &[5, 20, 21, 9], &[0, 3], 1.0),
        example(0, &[9, 20, 21, 9], &[0, 3], -0.6),
        example(1, &[9, 30, 5, 31, 32, 5], &[0, 2, 5], 0.4),
    ];
    let options = UpdateOptions { loss_type: LossType::Dapo, batches: 1, ..options };
    let mut policy = policy(Kind::Float, device);
    let (_, grad) = policy.loss_and_gradient(&prompts, &examples, &options);

    let mut decoder = decoder(device);
    for tensor in decoder.weights.tensors.values_mut() {
        *tensor = tensor.set_requires_grad(true);
    }
    let mut loss = Tensor::zeros([], (Kind::Float, device));
    for example in &examples {
        let ids = [prompts[example.prompt], &example.tokens].concat();
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let hidden = decoder.hidden(&Tensor::from_slice(&ids).to_device(device).unsqueeze(0), Kind::Float).squeeze();
        let logits = decoder.logits(&hidden);
        for &at in example.drawn.iter().flat_map(|drawn| drawn.iter()) {
            let row = logits.get((prompts[example.prompt].len() + at - 1) as i64);
            let [keep, drop] = between.ids.map(|id| row.get(i64::from(id)));
            let two = Tensor::stack(&[keep, drop + f64::from(between.lean)], 0) / options.objective.temperature;
            let drawn = i64::from(example.tokens[at] == between.ids[1]);
            loss -= two.log_softmax(0, Kind::Float).get(drawn) * example.advantage / 7.0;
        }
    }
    loss.backward();
    for (name, tensor) in &decoder.weights.tensors {
        let (got, wanted) = (policy.parameters.part(&grad, name).unwrap(), tensor.grad());
        let far = ((got - &wanted).norm() / wanted.norm()).double_value(&[]);
        assert!(far < 1e-4, "{name}: off by {far}");
    }
}
