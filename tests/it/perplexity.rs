//! Scores of whole sequences against the logits of transformers (tests/golden/decoders.py), on the device that `REPRO_TEST_DEVICE` names.

use super::device::spec;
use repro::engine::{EngineOptions, Precision, score::Scorer};
use std::{collections::BTreeMap, path::Path};
use tch::{Kind, Tensor};

/// Prompts of different lengths share passes.
#[tokio::test]
async fn scores_are_those_of_transformers() {
    for model in ["qwen3", "qwen2", "llama"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decoders").join(model);
        let golden: BTreeMap<String, Tensor> =
            Tensor::read_safetensors(dir.join("expected.safetensors")).unwrap().into_iter().collect();
        let prompts: Vec<Tensor> = (0..5).map(|i| golden[&format!("prompt.{i}")].shallow_clone()).collect();
        let ids = |t: &Tensor| Vec::<i64>::try_from(t).unwrap().iter().map(|&id| id as u32).collect();
        let sequences: Vec<Vec<u32>> = prompts.iter().map(ids).collect();
        let found = async |precision| {
            let options = EngineOptions { device: spec(), precision, slots: 1, threads: 1 };
            Scorer::start(&dir, &options).unwrap().score(sequences.clone()).await.unwrap()
        };
        let (exact, near) = (found(Precision::F32).await, found(Precision::Bf16).await);
        for (i, prompt) in prompts.iter().enumerate() {
            let n = prompt.size()[0] - 1;
            assert_eq!(exact[i].tokens, n as u64);
            let log_p = golden[&format!("logits.{i}")].log_softmax(-1, Kind::Double).narrow(0, 0, n);
            let nll = -log_p.gather(1, &prompt.narrow(0, 1, n).unsqueeze(1), false).sum(Kind::Double).double_value(&[]);
            assert!((exact[i].nll - nll).abs() <= 1e-4 * nll, "{model} {i}: {} is not {nll}", exact[i].nll);
            assert!((near[i].nll - nll).abs() <= 0.05 * nll, "{model} {i}: {} is far from {nll}", near[i].nll);
        }
    }
}
