//! The engine against transformers: tests/golden/decoders.py made the models, logits and tokens. Also what must not
//! happen: neighbours that change a result, one bad row that fails others, a bad directory that is accepted.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap should fail")]

use crate::device;
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use repro::{
    engine::{DeviceSpec, Engine, EngineOptions, FinishReason, FormatStep, Precision, Request, RequestError, Sampling},
    models::{
        config::{Arch, DecoderConfig, RopeScaling},
        decoder::Decoder,
        weights::Weights,
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tch::{Device, Kind, Tensor};

const MODELS: [&str; 3] = ["qwen3", "qwen2", "llama"];
const PROMPTS: usize = 5;
const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0 };

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders").join(model)
}

/// Reads tests/golden/decoders/<model>/expected.safetensors.
fn expected(model: &str) -> impl Fn(&str, usize) -> Tensor {
    let tensors = Tensor::read_safetensors(golden(model).join("expected.safetensors")).unwrap();
    move |kind, i| {
        let name = format!("{kind}.{i}");
        tensors.iter().find(|(n, _)| *n == name).unwrap().1.shallow_clone()
    }
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    Vec::<i64>::try_from(tensor).unwrap().into_iter().map(|x| x as u32).collect()
}

fn options(slots: usize, precision: Precision) -> EngineOptions {
    EngineOptions { device: device::spec(), precision, slots, threads: 2 }
}

fn start(model: &str, slots: usize) -> Engine {
    Engine::start(&golden(model), options(slots, Precision::F32)).unwrap()
}

fn request(prompt: Vec<u32>, new: usize) -> Request {
    Request {
        prefix: Arc::from([]),
        prompt,
        max_new_tokens: new,
        sampling: GREEDY,
        stop: Arc::from([]),
        seed: 0,
        format: None,
    }
}

fn sampled(prompt: Vec<u32>, new: usize, seed: u64) -> Request {
    Request { sampling: Sampling { temperature: 1.0, top_p: 0.9, top_k: 0 }, seed, ..request(prompt, new) }
}

/// A directory like the golden one, to be spoilt.
fn copy(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn whole_sequence_logits_are_those_of_transformers() {
    for model in MODELS {
        let decoder = Decoder::from_dir(&golden(model), Device::Cpu, Kind::Float).unwrap();
        let expected = expected(model);
        for i in 0..PROMPTS {
            let hidden = decoder.hidden(&expected("prompt", i).unsqueeze(0), Kind::Float);
            let logits = decoder.logits(&hidden).squeeze_dim(0);
            let off = (logits - expected("logits", i)).abs().max().double_value(&[]);
            assert!(off < 1e-4, "{model}, prompt {i}: off by {off}");
        }
    }
}

#[test]
fn right_padding_is_not_seen() {
    let decoder = Decoder::from_dir(&golden("qwen3"), Device::Cpu, Kind::Float).unwrap();
    let prompt = expected("qwen3")("prompt", 2).unsqueeze(0);
    let padded = Tensor::cat(&[&prompt, &Tensor::zeros([1, 9], (Kind::Int64, Device::Cpu))], 1);
    let alone = decoder.hidden(&prompt, Kind::Float);
    let among = decoder.hidden(&padded, Kind::Float).narrow(1, 0, prompt.size()[1]);
    assert!((alone - among).abs().max().double_value(&[]) < 1e-5);
}

#[test]
fn every_parameter_gets_a_gradient() {
    for model in MODELS {
        let decoder = Decoder::from_dir(&golden(model), Device::Cpu, Kind::Float).unwrap();
        for tensor in decoder.weights.tensors.values() {
            let _ = tensor.set_requires_grad(true);
        }
        let prompt = expected(model)("prompt", 2).unsqueeze(0);
        decoder
            .logits(&decoder.hidden(&prompt, Kind::BFloat16))
            .logsumexp([-1i64].as_slice(), false)
            .sum(Kind::Float)
            .backward();
        for (name, tensor) in &decoder.weights.tensors {
            let size = tensor.grad().abs().sum(Kind::Float).double_value(&[]);
            // Softmax is blind to what is added to all keys alike.
            assert!(size > 0.0 || name.ends_with("k_proj.bias"), "{model}: no gradient reaches {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_tokens_are_those_of_transformers_alone() {
    for model in MODELS {
        let (engine, expected) = (start(model, 1), expected(model));
        for i in 0..PROMPTS {
            let done = engine.generate(request(ids(&expected("prompt", i)), 64)).await.unwrap();
            assert_eq!(done.tokens, ids(&expected("greedy", i)), "{model}, prompt {i}");
            assert_eq!(done.finish, FinishReason::Length);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_tokens_are_those_of_transformers_in_a_mixed_batch() {
    for model in MODELS {
        let (engine, expected) = (start(model, 4), expected(model));
        let mut running = FuturesUnordered::new();
        for round in 0..3usize {
            for i in 0..PROMPTS {
                // Of other lengths, and drawn at random, so that they leave and others join at every step.
                let noise = (0..(i * 7 + round) % 40 + 1).map(|t| (t * 31 % 96) as u32).collect();
                let noise = sampled(noise, 1 + (round * 17 + i * 5) % 50, 9);
                let engine = &engine;
                let wanted = (round, i, ids(&expected("prompt", i)), ids(&expected("greedy", i)));
                running.push(futures::future::Either::Left(async move {
                    engine.generate(noise).await.unwrap();
                }));
                running.push(futures::future::Either::Right(async move {
                    let (round, i, prompt, tokens) = wanted;
                    let done = engine.generate(request(prompt, 64)).await.unwrap();
                    assert_eq!(done.tokens, tokens, "{model}, prompt {i}, round {round}");
                }));
            }
        }
        while running.next().await.is_some() {}
        let stats = engine.stats();
        assert_eq!((stats.completed, stats.waiting), (30, 0));
    }
}

/// Draws the same requests with so many slots.
async fn draw_all(engine: &Engine, requests: &[Request]) -> Vec<Vec<u32>> {
    let all = requests.iter().map(|r| engine.generate(r.clone()));
    futures::future::join_all(all).await.into_iter().map(|r| r.unwrap().tokens).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draws_do_not_depend_on_slots_or_order() {
    for precision in [Precision::F32, Precision::Bf16] {
        for model in MODELS {
            let requests: Vec<Request> = (0..24u64)
                .map(|i| sampled((0..1 + i as u32 * 7 % 90).map(|t| (t * 13 + i as u32) % 96).collect(), 40, i))
                .collect();
            let one = Engine::start(&golden(model), options(1, precision)).unwrap();
            let alone = draw_all(&one, &requests).await;
            let many = Engine::start(&golden(model), options(16, precision)).unwrap();
            assert_eq!(draw_all(&many, &requests).await, alone, "{model} {precision:?}");
            let mut backwards: Vec<Request> = requests.clone();
            backwards.reverse();
            let mut found = draw_all(&many, &backwards).await;
            found.reverse();
            assert_eq!(found, alone, "{model} {precision:?}, reversed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeds_differ() {
    let engine = start("llama", 4);
    let draw = |seed| engine.generate(sampled(vec![1, 2, 3], 32, seed));
    let (a, b, again) = futures::join!(draw(1), draw(2), draw(1));
    assert_ne!(a.as_ref().unwrap().tokens, b.unwrap().tokens);
    assert_eq!(a.unwrap().tokens, again.unwrap().tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_prefix_changes_nothing_and_is_computed_once() {
    for model in MODELS {
        // Shorter than a page, a whole page, a page and a part.
        for length in [5u32, 64, 100] {
            let prefix: Arc<[u32]> = (0..length).map(|t| t * 17 % 96).collect();
            let rest = |i: u32| (0..3 + i).map(|t| (t * 5 + i) % 96).collect::<Vec<u32>>();
            let with = |i: u32| Request { prefix: prefix.clone(), ..sampled(rest(i), 20, u64::from(i)) };
            let without = |i: u32| sampled(prefix.iter().copied().chain(rest(i)).collect(), 20, u64::from(i));
            let engine = start(model, 3);
            let shared = draw_all(&engine, &(0..8).map(with).collect::<Vec<_>>()).await;
            let computed = engine.stats().prompt_tokens;
            assert_eq!(
                computed,
                u64::from(length) + (0..8u64).map(|i| 3 + i).sum::<u64>(),
                "{model}, prefix of {length}"
            );
            let plain = draw_all(&start(model, 3), &(0..8).map(without).collect::<Vec<_>>()).await;
            assert_eq!(shared, plain, "{model}, prefix of {length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_without_a_rest_works() {
    let (engine, expected) = (start("qwen3", 2), expected("qwen3"));
    let whole = Request { prefix: ids(&expected("prompt", 3)).into(), ..request(Vec::new(), 64) };
    for _ in 0..2 {
        assert_eq!(engine.generate(whole.clone()).await.unwrap().tokens, ids(&expected("greedy", 3)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_tokens_end_and_are_left_out() {
    let (engine, expected) = (start("llama", 2), expected("llama"));
    let greedy = ids(&expected("greedy", 2));
    let stop = greedy[10];
    let first = greedy.iter().position(|&t| t == stop).unwrap();
    let asked = Request { stop: Arc::from([stop]), ..request(ids(&expected("prompt", 2)), 64) };
    let done = engine.generate(asked).await.unwrap();
    assert_eq!((done.tokens.as_slice(), done.finish), (&greedy[..first], FinishReason::Stop));
    // The last allowed token may be the stop token.
    let asked = Request { stop: Arc::from([stop]), ..request(ids(&expected("prompt", 2)), first + 1) };
    let done = engine.generate(asked).await.unwrap();
    assert_eq!((done.tokens.as_slice(), done.finish), (&greedy[..first], FinishReason::Stop));
    assert!(engine.generate(request(vec![1], 0)).await.unwrap().tokens.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_future_frees_its_slot() {
    let engine = start("qwen2", 1);
    // Fills the only slot for long; the next would wait for it.
    let long = tokio::spawn({
        let engine = engine.clone();
        async move { engine.generate(request(vec![1, 2, 3], 250)).await }
    });
    while engine.stats().output_tokens == 0 {
        tokio::task::yield_now().await;
    }
    let also = tokio::spawn({
        let engine = engine.clone();
        async move { engine.generate(request(vec![4], 250)).await }
    });
    long.abort();
    also.abort();
    assert!(long.await.unwrap_err().is_cancelled());
    engine.generate(request(vec![5, 6], 3)).await.unwrap();
    assert!(engine.stats().output_tokens < 250, "the cancelled sequence ran to its end");
    assert_eq!(engine.stats().completed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_not_a_number_fails_alone() {
    let dir = copy("qwen2");
    // Token 7 of the input embedding is spoilt; the output matrix of this model is another one.
    let mut weights = Weights::load(dir.path(), Device::Cpu, Kind::Float).unwrap();
    let embedding = weights.tensors.remove("model.embed_tokens.weight").unwrap().copy();
    let _ = embedding.get(7).fill_(f64::NAN);
    weights.tensors.insert("model.embed_tokens.weight".into(), embedding);
    weights.save(&dir.path().join("model.safetensors")).unwrap();
    let engine = Engine::start(dir.path(), options(3, Precision::F32)).unwrap();
    let prompt: Vec<u32> = vec![1, 2, 3, 4, 5];
    // Without a spoilt token, as long as none is generated.
    let clean = start("qwen2", 1).generate(request(prompt.clone(), 64)).await.unwrap().tokens;
    let until = clean.iter().position(|&t| t == 7).unwrap_or(clean.len());
    for _ in 0..3 {
        let (bad, good) =
            futures::join!(engine.generate(request(vec![1, 7, 2], 8)), engine.generate(request(prompt.clone(), until)));
        assert!(matches!(bad, Err(RequestError::NotANumber(0))), "{bad:?}");
        assert_eq!(good.unwrap().tokens, clean[..until]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cannot_be_served_are_refused() {
    let engine = start("llama", 2);
    let long = engine.generate(request(vec![1; 200], 57)).await;
    assert!(matches!(long, Err(RequestError::TooLong { prompt: 200, new: 57, limit: 256 })), "{long:?}");
    assert_eq!(engine.generate(request(vec![1; 200], 56)).await.unwrap().tokens.len(), 56);
    let outside = engine.generate(request(vec![1, 96], 4)).await;
    assert!(matches!(outside, Err(RequestError::TokenOutOfRange { id: 96, vocab: 96 })), "{outside:?}");
    assert!(matches!(engine.generate(request(vec![], 4)).await, Err(RequestError::Empty)));
}

#[test]
fn shards_and_single_files_hold_the_same() {
    let sharded = Weights::load(&golden("llama"), Device::Cpu, Kind::Float).unwrap();
    let dir = tempfile::tempdir().unwrap();
    sharded.save(&dir.path().join("model.safetensors")).unwrap();
    let single = Weights::load(dir.path(), Device::Cpu, Kind::Float).unwrap();
    assert_eq!(sharded.tensors.keys().collect::<Vec<_>>(), single.tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &sharded.tensors {
        assert!(tensor.equal(&single.tensors[name]), "{name}");
    }
}

#[test]
fn bad_directories_are_refused_with_a_reason() {
    type Spoil = fn(&Path);
    let cases: [(&str, &str, Spoil, &str); 9] = [
        ("no config", "qwen3", |d| std::fs::remove_file(d.join("config.json")).unwrap(), "no config.json"),
        ("not JSON", "qwen3", |d| std::fs::write(d.join("config.json"), "{").unwrap(), "not valid JSON"),
        (
            "unknown architecture",
            "qwen3",
            |d| edit(d, "Qwen3ForCausalLM", "GemmaForCausalLM"),
            "supported: Qwen3ForCausalLM",
        ),
        ("missing field", "qwen3", |d| edit(d, "hidden_size", "hidden_sizes"), "`hidden_size` is missing"),
        (
            "other shape",
            "qwen3",
            |d| edit(d, "\"intermediate_size\": 48", "\"intermediate_size\": 64"),
            "has the shape",
        ),
        (
            "missing shard",
            "llama",
            |d| std::fs::remove_file(d.join("model-00002-of-00003.safetensors")).unwrap(),
            "model-00002-of-00003.safetensors is missing",
        ),
        ("no weights", "qwen3", |d| std::fs::remove_file(d.join("model.safetensors")).unwrap(), "no model.safetensors"),
        (
            "pickle only",
            "qwen3",
            |d| std::fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap(),
            "pytorch_model.bin",
        ),
        (
            "cut off",
            "qwen3",
            |d| {
                let path = d.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            },
            "cut off",
        ),
    ];
    for (name, model, spoil, reason) in cases {
        let dir = copy(model);
        spoil(dir.path());
        let error = Engine::start(dir.path(), options(1, Precision::F32)).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(reason), "{name}: {text}");
        assert!(text.contains(&*dir.path().to_string_lossy()), "{name} does not say where: {text}");
    }
    let error = Engine::start(Path::new("no/such/model"), options(1, Precision::F32)).unwrap_err();
    assert!(format!("{error:#}").contains("no/such/model: no such model directory"));
}

fn edit(dir: &Path, from: &str, to: &str) {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// An engine that was given new weights answers as one that was started with them, whatever was cached before; and requests
/// that stood in the queue before them get the old ones.
#[tokio::test(flavor = "multi_thread")]
async fn new_weights_in_place() {
    for model in MODELS {
        // The last: as a trainer gives them whose own type is another.
        for (precision, kind) in
            [(Precision::F32, Kind::Float), (Precision::Bf16, Kind::BFloat16), (Precision::Bf16, Kind::Float)]
        {
            let prompt = ids(&expected(model)("prompt", 4));
            let (prefix, rest) = prompt.split_at(20);
            let ask = || Request { prefix: prefix.into(), ..sampled(rest.to_vec(), 16, 5) };
            let fresh = Engine::start(&golden(model), options(3, precision)).unwrap();
            let wanted = fresh.generate(ask()).await.unwrap().tokens;
            let config = fresh.config().clone();
            let other = Decoder::random(config.clone(), 0.3, 9, Device::Cpu, kind).unwrap();
            let engine = Engine::from_decoder(other, options(3, precision)).unwrap();
            let before = engine.generate(ask()).await.unwrap().tokens;
            assert_ne!(before, wanted, "{model}");
            let queued: Vec<_> = (0..5)
                .map(|_| {
                    let (engine, ask) = (engine.clone(), ask());
                    tokio::spawn(async move { engine.generate(ask).await })
                })
                .collect();
            while engine.stats().running + engine.stats().waiting + engine.stats().completed as usize == 1 {
                tokio::task::yield_now().await;
            }
            let weights = Weights::load(&golden(model), Device::Cpu, kind).unwrap();
            let taking = engine.clone();
            tokio::task::spawn_blocking(move || taking.set_weights(weights)).await.unwrap().unwrap();
            assert_eq!(engine.generate(ask()).await.unwrap().tokens, wanted, "{model} {precision:?}");
            for answer in queued {
                let tokens = answer.await.unwrap().unwrap().tokens;
                assert!(tokens == before || tokens == wanted, "a mixture of two models");
            }
            let missing = Weights { tensors: Default::default() };
            let refused = engine.clone();
            let error = tokio::task::spawn_blocking(move || refused.set_weights(missing)).await.unwrap().unwrap_err();
            assert!(error.to_string().contains("the weights have no"), "{error}");
            assert_eq!(engine.generate(ask()).await.unwrap().tokens, wanted, "the old ones stay");
        }
    }
}

#[tokio::test]
async fn a_rest_changes_nothing_and_waits_for_what_runs() {
    let engine = start("qwen3", 2);
    let prompt = ids(&expected("qwen3")("prompt", 4));
    let (prefix, rest) = prompt.split_at(20);
    let ask = || Request { prefix: prefix.into(), ..sampled(rest.to_vec(), 16, 5) };
    let before = engine.generate(ask()).await.unwrap().tokens;
    for _ in 0..2 {
        let running: Vec<_> = (0..5)
            .map(|_| {
                tokio::spawn({
                    let (engine, ask) = (engine.clone(), ask());
                    async move { engine.generate(ask).await }
                })
            })
            .collect();
        let resting = engine.clone();
        tokio::task::spawn_blocking(move || resting.rest()).await.unwrap().unwrap();
        for answer in running {
            assert_eq!(answer.await.unwrap().unwrap().tokens, before);
        }
    }
    assert_eq!(engine.generate(ask()).await.unwrap().tokens, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_weights_nothing_is_answered_until_new_ones_come() {
    let engine = start("qwen3", 2);
    let prompt = ids(&expected("qwen3")("prompt", 4));
    let before = engine.generate(request(prompt.clone(), 12)).await.unwrap().tokens;
    let away = engine.clone();
    tokio::task::spawn_blocking(move || away.unload()).await.unwrap().unwrap();
    let error = engine.generate(request(prompt.clone(), 12)).await.unwrap_err();
    assert!(error.to_string().contains("no weights"), "{error}");
    let (again, weights) = (engine.clone(), Weights::load(&golden("qwen3"), Device::Cpu, Kind::Float).unwrap());
    tokio::task::spawn_blocking(move || again.set_weights(weights)).await.unwrap().unwrap();
    assert_eq!(engine.generate(request(prompt, 12)).await.unwrap().tokens, before);
}

#[tokio::test]
async fn a_rollout_keeps_its_stop_token() {
    let engine = start("qwen3", 2);
    let prompt = ids(&expected("qwen3")("prompt", 1));
    let free = engine.generate(request(prompt.clone(), 12)).await.unwrap().tokens;
    let stop: Arc<[u32]> = Arc::from([free[7]]);
    let first = free.iter().position(|token| *token == free[7]).unwrap();
    let ask = || Request { stop: stop.clone(), ..request(prompt.clone(), 12) };
    assert_eq!(engine.generate(ask()).await.unwrap().tokens, free[..first]);
    let kept = engine.rollout(ask()).await.unwrap();
    assert_eq!((kept.tokens, kept.finish), (free[..=first].to_vec(), FinishReason::Stop));
}

fn forced(ids: &[u32]) -> FormatStep {
    FormatStep::Forced(ids.into())
}

fn one_of(ids: &[u32]) -> FormatStep {
    FormatStep::OneOf(ids.into())
}

/// The likeliest of `ids` after `tokens`, by the whole-sequence forward pass.
/// Logits of the token after `tokens`, by libtorch.
fn next_logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let tokens: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
    let hidden = decoder.hidden(&Tensor::from_slice(&tokens).unsqueeze(0), Kind::Float);
    Vec::<f32>::try_from(decoder.logits(&hidden).squeeze_dim(0).get(-1)).unwrap()
}

fn likeliest(decoder: &Decoder, tokens: &[u32], ids: &[u32]) -> u32 {
    let row = next_logits(decoder, tokens);
    *ids.iter().max_by(|a, b| row[**a as usize].total_cmp(&row[**b as usize])).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_form_is_filled_with_the_likeliest_allowed_tokens() {
    let lean = |thousandths| FormatStep::Leaning(Arc::from([12, 22]), thousandths);
    let format = [
        forced(&[3, 4]),
        one_of(&[10, 20, 30]),
        forced(&[5]),
        FormatStep::Weighed(Arc::from([11, 21])),
        one_of(&[7]),
        forced(&[8, 9]),
        lean(100_000),
        lean(-100_000),
    ];
    for model in MODELS {
        let engine = start(model, 2);
        let decoder = Decoder::from_dir(&golden(model), Device::Cpu, Kind::Float).unwrap();
        let prompt = ids(&expected(model)("prompt", 2));
        let mut wanted = prompt.clone();
        let mut share = 0.0;
        for step in &format {
            match step {
                FormatStep::Forced(ids) => wanted.extend_from_slice(ids),
                FormatStep::OneOf(ids) => wanted.push(likeliest(&decoder, &wanted, ids)),
                FormatStep::Leaning(ids, thousandths) => wanted.push(ids[usize::from(*thousandths > 0)]),
                FormatStep::Weighed(ids) => {
                    let row = next_logits(&decoder, &wanted);
                    share = 1.0 / (1.0 + (row[ids[1] as usize] - row[ids[0] as usize]).exp());
                    wanted.push(likeliest(&decoder, &wanted, ids));
                }
            }
        }
        // A stop token and a limit play no part.
        let request =
            Request { format: Some(format.clone().into()), stop: Arc::from([5]), ..request(prompt.clone(), 1) };
        let before = engine.stats();
        let others = (0..5).map(|seed| engine.generate(sampled(vec![seed + 1; 20], 12, seed.into())));
        let (done, _) = tokio::join!(engine.generate(request.clone()), join_all(others));
        let done = done.unwrap();
        assert_eq!(done.tokens, wanted[prompt.len()..], "{model}");
        assert_eq!(done.finish, FinishReason::Stop);
        let [chances] = &done.chances[..] else { panic!("one step is weighed: {:?}", done.chances) };
        assert!(
            (chances[0] - share).abs() < 1e-4 && (chances[0] + chances[1] - 1.0).abs() < 1e-6,
            "{chances:?}, {share}"
        );
        assert_eq!(engine.stats().output_tokens - before.output_tokens, 5 + 5 * 12, "one pass a choice");
        let sampled = Request { sampling: Sampling { temperature: 2.0, top_p: 1.0, top_k: 0 }, ..request };
        for seed in 0..8 {
            let done = engine.generate(Request { seed, ..sampled.clone() }).await.unwrap().tokens;
            assert!(
                [10, 20, 30].contains(&done[2]) && [11, 21].contains(&done[4]) && done[6..] == [8, 9, 22, 12],
                "{done:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_form_without_a_choice_is_refused() {
    let engine = start("qwen2", 1);
    let with = |format: &[FormatStep]| Request { format: Some(format.into()), ..request(vec![1, 2], 4) };
    for format in [&[][..], &[forced(&[1])], &[one_of(&[1]), one_of(&[])]] {
        assert!(matches!(engine.generate(with(format)).await, Err(RequestError::NoChoice)));
    }
    let outside = engine.generate(with(&[one_of(&[1, 96])])).await;
    assert!(matches!(outside, Err(RequestError::TokenOutOfRange { id: 96, .. })));
    let long = engine.generate(with(&[one_of(&[1]), forced(&[1; 300])])).await;
    assert!(matches!(long, Err(RequestError::TooLong { .. })));
}

/// A random Qwen3 with head widths that GPUs have tensor-core kernels for.
fn wide_heads(head_dim: usize, heads: usize, kv_heads: usize) -> Decoder {
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

/// Long prompts, a shared prefix and single tokens in bf16 against the same in f32 on the CPU, by the probabilities of eight
/// tokens at six places. Also a prompt that is longer than a step of the CPU's holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_precision_probabilities_are_near_those_of_f32() {
    for (head_dim, heads, kv_heads) in [(64, 4, 2), (128, 4, 1), (128, 3, 3), (64, 14, 2), (32, 4, 2)] {
        let on_cpu = EngineOptions { device: DeviceSpec::Cpu, ..options(4, Precision::F32) };
        let exact = Engine::from_decoder(wide_heads(head_dim, heads, kv_heads), on_cpu).unwrap();
        let half = Engine::from_decoder(wide_heads(head_dim, heads, kv_heads), options(4, Precision::Bf16)).unwrap();
        let weighed: Arc<[u32]> = (0..8).map(|i| i * 37).collect();
        let step = [FormatStep::Weighed(weighed), FormatStep::Forced(Arc::from([11, 250]))];
        let format: Arc<[FormatStep]> = step.iter().cycle().take(12).cloned().collect();
        let requests: Vec<Request> = [1usize, 17, 63, 64, 65, 130, 200, 400]
            .into_iter()
            .map(|length| {
                let prompt = (0..length as u32).map(|t| (t * 7919 + length as u32) % 320).collect();
                let prefix: Arc<[u32]> = if length % 2 == 0 { (0..70).collect() } else { Arc::from([]) };
                Request { prefix, format: Some(format.clone()), ..request(prompt, 0) }
            })
            .collect();
        let ask = async |engine: &Engine| join_all(requests.iter().map(|r| engine.generate(r.clone()))).await;
        let (exact, half) = (ask(&exact).await, ask(&half).await);
        for ((request, exact), half) in requests.iter().zip(exact).zip(half) {
            let (exact, half) = (exact.unwrap().chances, half.unwrap().chances);
            assert_eq!(exact.len(), 6);
            // The choices before may differ by a near tie; the first is of the prompt alone.
            let off = exact[0].iter().zip(&half[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let of = format!("{head_dim} x {heads}/{kv_heads}, prompt of {}", request.prompt.len());
            assert!(off < 0.06, "{of}: a probability is off by {off}: {:?} and {:?}", exact[0], half[0]);
        }
    }
}

/// What the device draws, against the probabilities that f32 on the CPU gives: temperature, top-k and nucleus.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_drawn_as_often_as_their_probabilities_say() {
    let (draws, prompt) = (4000u64, vec![5u32, 9, 2, 77]);
    let on_cpu = EngineOptions { device: DeviceSpec::Cpu, ..options(64, Precision::F32) };
    let reference = Engine::start(&golden("qwen3"), on_cpu).unwrap();
    let tested = Engine::start(&golden("qwen3"), options(64, Precision::F32)).unwrap();
    let vocab = reference.config().vocab_size as u32;
    let all: Arc<[u32]> = (0..vocab).collect();
    let format: Arc<[FormatStep]> = Arc::from([FormatStep::Weighed(all)]);
    let asked = Request { format: Some(format), ..request(prompt.clone(), 0) };
    let chances = reference.generate(asked).await.unwrap().chances[0].to_vec();
    let cases = [(1.0f32, 1.0f32, 0usize), (1.0, 0.6, 0), (0.7, 0.9, 0), (1.0, 1.0, 5), (1.5, 0.8, 20)];
    for (case, (temperature, top_p, top_k)) in cases.into_iter().enumerate() {
        let mut order: Vec<usize> = (0..vocab as usize).collect();
        order.sort_by(|&a, &b| chances[b].total_cmp(&chances[a]));
        let mut weights: Vec<f64> = chances.iter().map(|p| f64::from(p.powf(1.0 / temperature))).collect();
        if top_k > 0 {
            order[top_k..].iter().for_each(|&token| weights[token] = 0.0);
        }
        let (total, mut mass): (f64, f64) = (weights.iter().sum(), 0.0);
        for &token in &order {
            let before = mass;
            mass += weights[token];
            if before >= total * f64::from(top_p) {
                weights[token] = 0.0;
            }
        }
        let total: f64 = weights.iter().sum();
        let sampling = Sampling { temperature, top_p, top_k };
        let requests: Vec<Request> = (0..draws)
            .map(|i| Request { sampling, seed: i + draws * case as u64, ..request(prompt.clone(), 1) })
            .collect();
        let mut counts = vec![0u32; vocab as usize];
        for tokens in draw_all(&tested, &requests).await {
            counts[tokens[0] as usize] += 1;
        }
        for (token, count) in counts.into_iter().enumerate() {
            let p = weights[token] / total;
            let expected = p * draws as f64;
            // Five standard deviations, and room for a token at the cut whose mass rounds the other way.
            let room = 5.0 * (expected * (1.0 - p)).sqrt() + 1.0;
            assert!(
                (f64::from(count) - expected).abs() <= room,
                "{sampling:?}, token {token}: {count}, not {expected:.1}"
            );
        }
    }
}
