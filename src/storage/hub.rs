//! Where a model's files are: a local directory, `hf://org/name[@rev]` (HF_ENDPOINT and HF_TOKEN honoured, cached in HF_HOME), `s3://`.

use std::path::PathBuf;

/// Resolves a model path to a local directory (or file, for fastText), downloading what is missing: config, safetensors, tokenizer and
/// chat template only. Never pickle.
pub async fn resolve(path: &str) -> anyhow::Result<PathBuf> {
    let _ = path;
    todo!()
}
