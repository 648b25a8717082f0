//! What a GPU runs, run on the CPU: against transformers (tests/golden/encoders.py) and against the packed kernels.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::{EncodeError, Encoder, EncoderOptions, Matches, Tokens, Vectors, torch::halved};
use crate::engine::{DeviceSpec, Precision};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const ENCODERS: [&str; 5] = ["bert", "roberta", "deberta", "deberta_c2p", "deberta_p2c"];

fn golden(kind: &str, model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(kind).join(model)
}

fn options(layer: usize) -> EncoderOptions {
    EncoderOptions {
        device: DeviceSpec::Cpu,
        precision: Precision::F32,
        layer,
        before: Vec::new(),
        after: Vec::new(),
        window: 64,
        rows: 128,
        threads: 1,
    }
}

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

async fn vectors(encoder: &Encoder, texts: &[Tokens]) -> Vec<Vectors> {
    encoder.vectors(texts.to_vec()).await.into_iter().map(Result::unwrap).collect()
}

fn off(vectors: &Vectors, hidden: &Tensor) -> f64 {
    let hidden: Vec<Vec<f32>> = Vec::try_from(hidden).unwrap();
    assert_eq!(vectors.lengths.len(), hidden.len());
    let rows = vectors.data.chunks_exact(vectors.width).zip(&vectors.lengths).zip(&hidden);
    let differences = rows.flat_map(|((row, length), hidden)| row.iter().zip(hidden).map(move |(a, b)| a * length - b));
    differences.map(|d| f64::from(d.abs())).fold(0.0, f64::max)
}

#[tokio::test]
async fn hidden_states_are_those_of_transformers() {
    for model in ENCODERS {
        let expected = expected(golden("encoders", model).join("expected.safetensors"));
        let texts: Vec<Tokens> = (0..5).map(|i| ids(&expected(&format!("tokens.{i}")))).collect();
        for layer in 0..=3 {
            let encoder = Encoder::start_torch(&golden("encoders", model), &options(layer)).unwrap();
            for (i, vectors) in vectors(&encoder, &texts).await.iter().enumerate() {
                let off = off(vectors, &expected(&format!("hidden.{i}.{layer}")));
                assert!(off < 1e-4, "{model}, sequence {i}, layer {layer}: off by {off}");
            }
        }
    }
}

#[tokio::test]
async fn hidden_states_of_decoders_are_those_of_transformers() {
    let expected = expected(golden("encoders", "decoders.safetensors"));
    for model in ["qwen3", "qwen2", "llama"] {
        let texts: Vec<Tokens> = (0..3).map(|i| ids(&expected(&format!("{model}.tokens.{i}")))).collect();
        for layer in 1..=2 {
            let options = EncoderOptions { window: 200, rows: 400, ..options(layer) };
            let encoder = Encoder::start_torch(&golden("decoders", model), &options).unwrap();
            for (i, vectors) in vectors(&encoder, &texts).await.iter().enumerate() {
                let off = off(vectors, &expected(&format!("{model}.hidden.{i}.{layer}")));
                assert!(off < 2e-4, "{model}, sequence {i}, layer {layer}: off by {off}");
            }
        }
    }
}

/// Pairs of all sorts: empty texts, one token, equal texts, the same pair both ways, windows, an unknown token.
fn pairs() -> Vec<(Tokens, Tokens)> {
    let text = |n: usize, seed| some(n, seed);
    vec![
        (text(20, 1), text(9, 2)),
        (text(9, 2), text(20, 1)),
        (text(20, 1), text(20, 1)),
        (Tokens::default(), text(5, 3)),
        (text(1, 4), text(61, 5)),
        (text(150, 6), text(40, 7)),
        (vec![5, 96].into(), text(3, 8)),
        (text(40, 9), text(41, 10)),
    ]
}

/// Largest difference of the matches; both have the same faults.
fn apart(a: &[Result<Matches, EncodeError>], b: &[Result<Matches, EncodeError>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut apart = 0f32;
    for (a, b) in a.iter().zip(b) {
        let (a, b) = match (a, b) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(a), Err(b)) => {
                assert_eq!(a.to_string(), b.to_string());
                continue;
            }
            _ => panic!("{a:?} {b:?}"),
        };
        assert_eq!((a.first.len(), a.second.len()), (b.first.len(), b.second.len()));
        let all = a.first.iter().zip(&b.first).chain(a.second.iter().zip(&b.second));
        apart = all.map(|(a, b)| (a - b).abs()).fold(apart, f32::max);
    }
    apart
}

#[tokio::test]
async fn matches_are_those_of_the_packed_kernels() {
    let names = ENCODERS.iter().map(|model| golden("encoders", model)).chain([golden("decoders", "qwen3")]);
    for dir in names {
        for (around, rows) in [((vec![1], vec![2]), 128), ((vec![], vec![]), 1000)] {
            let (before, after) = around;
            let options = EncoderOptions { before, after, rows, ..options(2) };
            let packed = Encoder::start(&dir, &options).unwrap();
            let torch = Encoder::start_torch(&dir, &options).unwrap();
            let (expected, found) = (packed.matches(pairs()).await, torch.matches(pairs()).await);
            let off = apart(&expected, &found);
            assert!(off < 1e-5, "{}: off by {off}", dir.display());
            assert_eq!(packed.tokens(), torch.tokens());
            let same = found[2].as_ref().unwrap();
            assert!(same.first.iter().all(|cosine| (cosine - 1.0).abs() < 1e-5));
            assert!(matches!(found[6], Err(EncodeError::TokenOutOfRange { id: 96, .. })));
        }
    }
}

#[tokio::test]
async fn bf16_stays_close() {
    for model in ENCODERS {
        let start = |precision| {
            let options = EncoderOptions { precision, before: vec![1], after: vec![2], ..options(3) };
            Encoder::start_torch(&golden("encoders", model), &options).unwrap()
        };
        let (exact, half) = (start(Precision::F32), start(Precision::Bf16));
        let off = apart(&exact.matches(pairs()).await, &half.matches(pairs()).await);
        assert!(off < 0.02, "{model}: {off}");
    }
}

/// A device that has room for two sequences at a time.
#[test]
fn a_batch_that_does_not_fit_is_halved() {
    let tokens = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6, 7]).view([7, 1]);
    let lengths = Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6, 7]);
    let mut asked = Vec::new();
    let mut run = |tokens: &Tensor, lengths: Option<&Tensor>| {
        asked.push(tokens.size()[0]);
        assert_eq!(lengths.unwrap(), &tokens.view([-1]));
        anyhow::ensure!(tokens.size()[0] <= 2, "CUDA out of memory. Tried to allocate");
        Ok(tokens.unsqueeze(2).to_kind(Kind::Float))
    };
    let states = halved(&tokens, Some(&lengths), &mut run).unwrap();
    assert_eq!(Vec::<f32>::try_from(states.view([-1])).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(asked, [7, 3, 1, 2, 4, 2, 2]);
    let mut broken = |_: &Tensor, _: Option<&Tensor>| anyhow::bail!("an illegal memory access");
    assert!(halved(&tokens, None, &mut broken).is_err());
}
