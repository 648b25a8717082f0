//! The GPU's backend on the CPU (emulate.rs), against transformers' tokens and the CPU's own backend. Needs g++, as the build
//! does. On a GPU the integration tests do the same: `REPRO_TEST_DEVICE=cuda:0`.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::{
    CudaModel,
    program::{Argument, Program},
};
use crate::{
    engine::{
        DeviceSpec, Engine, EngineOptions, FormatStep, Precision, Request, RequestError, Sampling, backend::Limits,
        pages::PAGE, pool, start,
    },
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
        weights::Weights,
    },
};
use futures::future::join_all;
use std::{path::PathBuf, sync::Arc};
use tch::{Device, Kind, Tensor};

const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0 };

fn golden(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders").join(model)
}

fn decoder(model: &str) -> Decoder {
    Decoder::from_dir(&golden(model), Device::Cpu, Kind::Float).unwrap()
}

/// An engine whose steps hold `rows` rows of prompts.
fn emulated(decoder: Decoder, kind: Kind, slots: usize, rows: usize) -> Engine {
    let config = decoder.config.clone();
    let program = Program::emulated(&config, kind == Kind::BFloat16, PAGE).unwrap();
    let limits = Limits { rows: slots + rows, outputs: slots };
    let model = CudaModel::with(program, decoder, (slots, limits), Device::Cpu, kind).unwrap();
    start::spawn(config, Box::new(model), slots, pool::threads(1).unwrap()).unwrap()
}

fn request(prompt: Vec<u32>, new: usize) -> Request {
    let (prefix, stop) = (Arc::from([]), Arc::from([]));
    Request { prefix, prompt, max_new_tokens: new, sampling: GREEDY, stop, seed: 0, format: None }
}

async fn answers(engine: &Engine, requests: &[Request]) -> Vec<Vec<u32>> {
    join_all(requests.iter().map(|r| engine.generate(r.clone()))).await.into_iter().map(|r| r.unwrap().tokens).collect()
}

#[tokio::test]
async fn greedy_tokens_are_those_of_transformers_in_a_mixed_batch() {
    for model in ["qwen3", "qwen2", "llama"] {
        let tensors = Tensor::read_safetensors(golden(model).join("expected.safetensors")).unwrap();
        let ids = |kind: &str, i: usize| -> Vec<u32> {
            let tensor = &tensors.iter().find(|(name, _)| *name == format!("{kind}.{i}")).unwrap().1;
            Vec::<i64>::try_from(tensor).unwrap().into_iter().map(|id| id as u32).collect()
        };
        // Three slots for five prompts, and steps that cut a prompt in parts.
        let engine = emulated(decoder(model), Kind::Float, 3, 24);
        let requests: Vec<Request> = (0..5).map(|i| request(ids("prompt", i), 64)).collect();
        for (i, tokens) in answers(&engine, &requests).await.into_iter().enumerate() {
            assert_eq!(tokens, ids("greedy", i), "{model}, prompt {i}");
        }
    }
}

#[tokio::test]
async fn a_shared_prefix_changes_nothing() {
    // Shorter than a page, and a page and a part, which is copied.
    for length in [5u32, 100] {
        let prefix: Arc<[u32]> = (0..length).map(|t| t * 17 % 96).collect();
        let rest = |i: u32| (0..3 + i).map(|t| (t * 5 + i) % 96).collect::<Vec<u32>>();
        let with: Vec<_> = (0..4).map(|i| Request { prefix: prefix.clone(), ..request(rest(i), 12) }).collect();
        let whole = |i: u32| prefix.iter().copied().chain(rest(i)).collect();
        let without: Vec<_> = (0..4).map(|i| request(whole(i), 12)).collect();
        let engine = || emulated(decoder("qwen3"), Kind::Float, 2, 512);
        assert_eq!(answers(&engine(), &with).await, answers(&engine(), &without).await, "prefix of {length}");
    }
}

#[tokio::test]
async fn new_weights_in_place() {
    let asked = [request(vec![3, 1, 4, 1, 5], 12)];
    let wanted = answers(&emulated(decoder("llama"), Kind::Float, 1, 64), &asked).await;
    let other = Decoder::random(decoder("llama").config, 0.3, 9, Device::Cpu, Kind::Float).unwrap();
    let engine = emulated(other, Kind::Float, 1, 64);
    assert_ne!(answers(&engine, &asked).await, wanted);
    let taking = engine.clone();
    let weights = Weights::load(&golden("llama"), Device::Cpu, Kind::Float).unwrap();
    tokio::task::spawn_blocking(move || taking.set_weights(weights)).await.unwrap().unwrap();
    assert_eq!(answers(&engine, &asked).await, wanted);
}

/// A random model with head widths that the tensor-core kernels take, and one that they do not.
fn wide(head_dim: usize, heads: usize, kv_heads: usize) -> Decoder {
    let config = DecoderConfig {
        arch: Arch::Qwen3,
        vocab_size: 320,
        hidden: 64,
        layers: 2,
        heads,
        kv_heads,
        head_dim,
        ffn: 96,
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 512,
        tied_embeddings: true,
        eos: Vec::new(),
    };
    Decoder::random(config, 0.2, 4, Device::Cpu, Kind::Float).unwrap()
}

/// In bf16, prompts over several pages and steps, and single tokens after them, against f32 on the CPU: the probabilities of
/// eight tokens at three places.
#[tokio::test]
async fn attention_in_tiles_gives_the_probabilities_of_f32() {
    for (head_dim, heads, kv_heads) in [(64, 4, 2), (128, 2, 2), (64, 7, 1), (32, 4, 2)] {
        let on_cpu = EngineOptions { device: DeviceSpec::Cpu, precision: Precision::F32, slots: 4, threads: 1 };
        let exact = Engine::from_decoder(wide(head_dim, heads, kv_heads), on_cpu).unwrap();
        let tiles = emulated(wide(head_dim, heads, kv_heads), Kind::BFloat16, 4, 120);
        let weighed: Arc<[u32]> = (0..8).map(|i| i * 37).collect();
        // What is forced hides a near tie before it: all see the same tokens but one.
        let steps = [FormatStep::Weighed(weighed), FormatStep::Forced(Arc::from([11, 250]))];
        let format: Arc<[FormatStep]> = steps.iter().cycle().take(6).cloned().collect();
        let requests: Vec<Request> = [1usize, 17, 64, 65, 200]
            .into_iter()
            .map(|length| {
                let prompt = (0..length as u32).map(|t| (t * 7919 + length as u32) % 320).collect();
                Request { format: Some(format.clone()), ..request(prompt, 0) }
            })
            .collect();
        let ask = async |engine: &Engine| join_all(requests.iter().map(|r| engine.generate(r.clone()))).await;
        for ((request, exact), found) in requests.iter().zip(ask(&exact).await).zip(ask(&tiles).await) {
            let (exact, found) = (exact.unwrap(), found.unwrap());
            for place in 0..3 {
                let (exact_row, found_row) = (&exact.chances[place], &found.chances[place]);
                let off = exact_row.iter().zip(found_row).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let of = format!("{head_dim} x {heads}/{kv_heads}, prompt of {}, place {place}", request.prompt.len());
                assert!(off < 0.06, "{of}: off by {off}: {exact_row:?} and {found_row:?}");
                if exact.tokens[..3 * place + 1] != found.tokens[..3 * place + 1] {
                    break;
                }
            }
        }
    }
}

/// What a sequence of NaN leaves in a page does not reach the next sequence that takes it.
#[tokio::test]
async fn a_row_that_is_not_a_number_fails_alone() {
    let spoilt = || {
        let mut decoder = wide(64, 4, 2);
        let embedding = decoder.weights.tensors.remove("model.embed_tokens.weight").unwrap();
        let _ = embedding.get(7).fill_(f64::NAN);
        // The output matrix must not be spoilt with it.
        decoder.config.tied_embeddings = false;
        let head = wide(64, 4, 2).weights.tensors.remove("model.embed_tokens.weight").unwrap();
        decoder.weights.tensors.insert("lm_head.weight".into(), head);
        decoder.weights.tensors.insert("model.embed_tokens.weight".into(), embedding);
        decoder
    };
    let good = [request((20..60).collect(), 6)];
    let clean = answers(&emulated(spoilt(), Kind::BFloat16, 1, 256), &good).await;
    let engine = emulated(spoilt(), Kind::BFloat16, 1, 256);
    for _ in 0..2 {
        // Three full pages, of which the next sequence takes one.
        let bad = engine.generate(request(vec![7; 188], 4)).await;
        assert!(matches!(bad, Err(RequestError::NotANumber(0))), "{bad:?}");
        assert_eq!(answers(&engine, &good).await, clean);
    }
}

/// Draws of rows that the kernel lists and of rows that it does not, each from what a full sort keeps.
#[test]
fn drawn_tokens_are_of_the_nucleus_and_as_likely_as_they_should_be() {
    let program = Program::emulated(&wide(32, 4, 2).config, false, PAGE).unwrap();
    let (vocab, draws) = (6000usize, 40usize);
    for (spread, temperature, top_p, top_k) in
        [(8.0f32, 1.0f32, 0.9f32, 0usize), (0.1, 1.0, 0.95, 0), (8.0, 0.7, 1.0, 50), (3.0, 1.0, 0.5, 400)]
    {
        let logits: Vec<f32> = (0..vocab).map(|i| ((i * 7919) % vocab) as f32 / vocab as f32 * spread).collect();
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if top_k > 0 {
            order.truncate(top_k);
        }
        let weight = |&i: &usize| f64::from((logits[i] - spread) / temperature).exp();
        let (total, mut mass) = (order.iter().map(weight).sum::<f64>(), 0.0);
        let last = order.iter().position(|i| {
            mass += weight(i);
            mass >= total * f64::from(top_p)
        });
        let kept = &order[..=last.unwrap_or(order.len() - 1)];
        let drawn = draw(&program, &Tensor::from_slice(&logits), draws, (temperature, top_p, top_k));
        // One more at the cut: masses round.
        let outside =
            drawn.iter().filter(|&&id| !kept.contains(&(id as usize)) && order.get(kept.len()) != Some(&(id as usize)));
        assert_eq!(outside.count(), 0, "spread {spread}, top_p {top_p}, top_k {top_k}");
        // The likelier half of the mass is drawn about as often as the other.
        let (kept_mass, mut upper) = (kept.iter().map(weight).sum::<f64>(), 0.0);
        let half = kept.iter().position(|i| {
            upper += weight(i);
            upper >= kept_mass / 2.0
        });
        let high = drawn.iter().filter(|&&id| kept[..=half.unwrap()].contains(&(id as usize))).count();
        // Five standard deviations of so many draws.
        assert!(
            (high as f64 - draws as f64 * upper / kept_mass).abs() < 5.0 * (draws as f64 / 4.0).sqrt(),
            "{high} of {draws}"
        );
    }
    let bad = Tensor::from_slice(&[0.0f32, f32::NAN, 1.0, f32::INFINITY]);
    assert_eq!(draw(&program, &bad, 1, (1.0, 0.9, 0)), [-1]);
    let tie = Tensor::from_slice(&[0.0f32, 2.0, 2.0, -1.0]);
    assert_eq!(draw(&program, &tie, 1, (0.0, 0.9, 0)), [1], "greedy takes the first of equals");
}

/// The same row of logits drawn with so many seeds.
fn draw(program: &Program, logits: &Tensor, draws: usize, (temperature, top_p, top_k): (f32, f32, usize)) -> Vec<i32> {
    let rows = Tensor::zeros([draws as i64], (Kind::Int, Device::Cpu));
    let options = Tensor::from_slice(&[temperature, top_p]).repeat([draws as i64]);
    let top_ks = Tensor::full([draws as i64], top_k as i64, (Kind::Int, Device::Cpu));
    let seeds = Tensor::from_slice(&(0..draws as i64).collect::<Vec<_>>());
    let out = Tensor::full([draws as i64], 7, (Kind::Int, Device::Cpu));
    let vocab = logits.size()[0] as usize;
    let mut arguments = vec![Argument::of(logits), Argument::size(vocab)];
    arguments.extend([&rows, &options, &top_ks, &seeds, &out].map(Argument::of));
    // SAFETY: one row of `vocab` logits, lists of `draws` entries.
    unsafe { program.launch(&program.draw, [draws, 1], (512, 0), &arguments).unwrap() };
    Vec::try_from(out).unwrap()
}
