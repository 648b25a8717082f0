//! Encoders against transformers: tests/golden/encoders.py made the models and the hidden states. Also what must not happen: neighbours
//! that change a result, a bad directory or setting that is accepted. On the device that `REPRO_TEST_DEVICE` names.

use super::device::{device, spec};
use repro::engine::{
    Precision,
    encoder::{EncodeError, Encoder, EncoderOptions, Matches, Tokens, Vectors},
};
use std::path::{Path, PathBuf};
use tch::Tensor;

const ENCODERS: [&str; 5] = ["bert", "roberta", "deberta", "deberta_c2p", "deberta_p2c"];
const SEQUENCES: usize = 5;
const LAYERS: usize = 3;

pub fn golden(kind: &str, model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(kind).join(model)
}

fn options(layer: usize) -> EncoderOptions {
    EncoderOptions {
        device: spec(),
        precision: Precision::F32,
        layer,
        before: Vec::new(),
        after: Vec::new(),
        window: 64,
        rows: 128,
        threads: 2,
    }
}

fn start(model: &str, options: &EncoderOptions) -> Encoder {
    Encoder::start(&golden("encoders", model), options).unwrap()
}

fn refused(dir: &Path, options: &EncoderOptions) -> String {
    format!("{:#}", Encoder::start(dir, options).unwrap_err())
}

/// The golden tensors of a file, by name.
fn expected(path: PathBuf) -> impl Fn(&str) -> Tensor {
    let tensors = Tensor::read_safetensors(path).unwrap();
    move |name| tensors.iter().find(|(n, _)| n == name).unwrap().1.shallow_clone()
}

fn ids(tensor: &Tensor) -> Tokens {
    Vec::<i64>::try_from(tensor).unwrap().into_iter().map(|x| x as u32).collect()
}

fn some(count: usize, seed: u32) -> Tokens {
    (0..count as u32).map(|i| 3 + (i * 7919 + seed * 104_729) % 93).collect()
}

/// Largest difference between the vectors, at the length they had, and hidden states [T, H].
fn off(vectors: &Vectors, hidden: &Tensor) -> f64 {
    let hidden: Vec<Vec<f32>> = Vec::try_from(hidden).unwrap();
    assert_eq!((vectors.lengths.len(), vectors.data.len()), (hidden.len(), hidden.len() * vectors.width));
    let rows = vectors.data.chunks_exact(vectors.width).zip(&vectors.lengths).zip(&hidden);
    let differences = rows.flat_map(|((row, length), hidden)| row.iter().zip(hidden).map(move |(a, b)| a * length - b));
    differences.map(|d| f64::from(d.abs())).fold(0.0, f64::max)
}

async fn vectors(encoder: &Encoder, texts: &[Tokens]) -> Vec<Vectors> {
    encoder.vectors(texts.to_vec()).await.into_iter().map(Result::unwrap).collect()
}

/// How far the same text may be from itself beside other neighbours: not at all on the CPU, where a row is computed alike in every pass.
fn same() -> f32 {
    if device() == "cpu" { 0.0 } else { 1e-5 }
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test]
async fn hidden_states_of_every_layer_are_those_of_transformers() {
    for model in ENCODERS {
        let expected = expected(golden("encoders", model).join("expected.safetensors"));
        let texts: Vec<Tokens> = (0..SEQUENCES).map(|i| ids(&expected(&format!("tokens.{i}")))).collect();
        for layer in 0..=LAYERS {
            let encoder = start(model, &options(layer));
            for (i, vectors) in vectors(&encoder, &texts).await.iter().enumerate() {
                let off = off(vectors, &expected(&format!("hidden.{i}.{layer}")));
                assert!(off < 1e-4, "{model}, sequence {i}, layer {layer}: off by {off}");
            }
        }
    }
}

#[tokio::test]
async fn decoders_give_the_hidden_states_of_transformers_too() {
    let expected = expected(golden("encoders", "decoders.safetensors"));
    for model in ["qwen3", "qwen2", "llama"] {
        let texts: Vec<Tokens> = (0..3).map(|i| ids(&expected(&format!("{model}.tokens.{i}")))).collect();
        for layer in 1..=2 {
            // Steps of 64 rows: the longest sequence takes three.
            let options = EncoderOptions { window: 200, rows: 64, ..options(layer) };
            let encoder = Encoder::start(&golden("decoders", model), &options).unwrap();
            assert!(encoder.info().causal);
            for (i, vectors) in vectors(&encoder, &texts).await.iter().enumerate() {
                let off = off(vectors, &expected(&format!("{model}.hidden.{i}.{layer}")));
                assert!(off < 2e-4, "{model}, sequence {i}, layer {layer}: off by {off}");
            }
        }
    }
}

#[tokio::test]
async fn bf16_stays_close() {
    for model in ENCODERS {
        let texts = [some(40, 1), some(33, 2), some(1, 3)];
        let exact = vectors(&start(model, &options(LAYERS)), &texts).await;
        let half =
            vectors(&start(model, &EncoderOptions { precision: Precision::Bf16, ..options(LAYERS) }), &texts).await;
        for (a, b) in exact.iter().zip(&half) {
            for (a, b) in a.data.chunks_exact(a.width).zip(b.data.chunks_exact(b.width)) {
                let cosine: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!(cosine > 0.995, "{model}: {cosine}");
            }
        }
    }
}

#[tokio::test]
async fn neighbours_change_nothing() {
    for model in ENCODERS {
        let encoder = start(model, &options(LAYERS));
        let texts: Vec<Tokens> = [3, 61, 17, 1, 64, 30].iter().zip(0..).map(|(&n, seed)| some(n, seed)).collect();
        let together = vectors(&encoder, &texts).await;
        for (text, together) in texts.iter().zip(together) {
            let alone = vectors(&encoder, std::slice::from_ref(text)).await.remove(0);
            let apart = apart(&alone.data, &together.data);
            assert!(apart <= same(), "{model}, {} tokens: {apart}", text.len());
        }
    }
}

#[tokio::test]
async fn long_texts_are_read_in_windows() {
    // Windows of 14 tokens between two special ones; by hand: 0..14 keeps ..10, 7..21 keeps ..17, 14..28 …, the last is 16..30.
    let around = EncoderOptions { before: vec![1], after: vec![2], window: 16, ..options(2) };
    let encoder = start("bert", &around);
    let text = some(30, 5);
    let whole = vectors(&encoder, std::slice::from_ref(&text)).await.remove(0);
    assert_eq!(whole.lengths.len(), 32);
    let starts = [0usize, 7, 14, 16];
    let mut pieces = Vec::new();
    for start in starts {
        pieces.extend(vectors(&encoder, &[text[start..start + 14].into()]).await);
    }
    let row = |v: &Vectors, i: usize| v.data[i * v.width..(i + 1) * v.width].to_vec();
    for token in 0..30 {
        let window = match token {
            0..10 => 0,
            10..17 => 1,
            17..22 => 2,
            _ => 3,
        };
        let inside = 1 + token - starts[window];
        assert!(apart(&row(&whole, 1 + token), &row(&pieces[window], inside)) <= same(), "token {token}");
    }
    assert!(apart(&row(&whole, 0), &row(&pieces[0], 0)) <= same());
    assert!(apart(&row(&whole, 31), &row(&pieces[3], 15)) <= same());
}

#[tokio::test]
async fn matches_are_the_largest_cosines() {
    let encoder = start("roberta", &EncoderOptions { before: vec![0], after: vec![2], ..options(2) });
    let (a, b) = (some(20, 1), some(9, 2));
    let found = encoder.matches(vec![(a.clone(), b.clone()), (b.clone(), a.clone()), (a.clone(), a.clone())]).await;
    let found: Vec<Matches> = found.into_iter().map(Result::unwrap).collect();
    let both = vectors(&encoder, &[a.clone(), b.clone()]).await;
    let rows = |v: &Vectors| v.data.chunks_exact(v.width).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let (of_a, of_b) = (rows(&both[0]), rows(&both[1]));
    let cosine = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    for (i, best) in found[0].first.iter().enumerate() {
        let expected = of_b.iter().map(|y| cosine(&of_a[i + 1], y)).fold(-1.0, f32::max);
        assert!((best - expected).abs() < 1e-5, "token {i}");
    }
    assert_eq!((found[0].first.len(), found[0].second.len()), (20, 9));
    assert!(apart(&found[0].first, &found[1].second) <= same() && apart(&found[0].second, &found[1].first) <= same());
    assert!(found[2].first.iter().chain(&found[2].second).all(|c| (c - 1.0).abs() < 1e-5));
}

#[tokio::test]
async fn a_bad_text_fails_alone() {
    let encoder = start("bert", &options(1));
    let results = encoder
        .matches(vec![(some(3, 1), some(3, 2)), (vec![5, 96].into(), some(3, 2)), (some(3, 1), some(3, 3))])
        .await;
    assert!(matches!(results[1], Err(EncodeError::TokenOutOfRange { id: 96, vocab: 96 })));
    assert!(results[0].is_ok() && results[2].is_ok());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let bert = golden("encoders", "bert");
    let error = refused(&bert, &options(4));
    assert!(error.contains("layer 4 was asked for; the model has 3"), "{error}");
    let error = refused(&bert, &EncoderOptions { window: 73, ..options(1) });
    assert!(error.contains("positions for 72"), "{error}");
    let error = refused(&golden("encoders", "roberta"), &EncoderOptions { window: 71, ..options(1) });
    assert!(error.contains("positions for 70"), "{error}");
    let error = refused(&bert, &EncoderOptions { window: 2, before: vec![1], after: vec![2], ..options(1) });
    assert!(error.contains("no room for text"), "{error}");
    let error = refused(&bert, &EncoderOptions { before: vec![400], ..options(1) });
    assert!(error.contains("400") && error.contains("vocabulary of 96"), "{error}");
    let error = refused(&golden("decoders", "qwen3"), &EncoderOptions { ..options(0) });
    assert!(error.contains("give one of 1 to 2"), "{error}");
}

#[test]
fn directories_that_are_not_whole_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let to = |name: &str| dir.path().join(name);
    let copy = |name: &str| std::fs::copy(golden("encoders", "bert").join(name), to(name)).unwrap();
    assert!(refused(dir.path(), &options(1)).contains("no config.json"));
    let _ = copy("config.json");
    assert!(refused(dir.path(), &options(1)).contains("no model.safetensors"));
    std::fs::write(to("pytorch_model.bin"), b"x").unwrap();
    assert!(refused(dir.path(), &options(1)).contains("pickled weights (pytorch_model.bin)"));
    std::fs::write(to("model.safetensors"), b"cut off").unwrap();
    assert!(refused(dir.path(), &options(1)).contains("not a whole safetensors file"));
    std::fs::copy(golden("decoders", "qwen3").join("model.safetensors"), to("model.safetensors")).unwrap();
    assert!(refused(dir.path(), &options(1)).contains("not an encoder of a supported family"));
    let _ = copy("model.safetensors");
    assert!(Encoder::start(dir.path(), &options(1)).is_ok());
    let config = std::fs::read_to_string(to("config.json")).unwrap();
    std::fs::write(to("config.json"), config.replace("\"intermediate_size\": 40", "\"intermediate_size\": 48"))
        .unwrap();
    let error = refused(dir.path(), &options(1));
    assert!(error.contains("intermediate.dense") && error.contains("config.json says [48"), "{error}");
    std::fs::write(to("config.json"), config.replace("\"bert\"", "\"modernbert\"")).unwrap();
    assert!(refused(dir.path(), &options(1)).contains("`modernbert` is not supported"));
}
