//! A trained model as a Hugging Face directory: `config.json`, `generation_config.json`, `model.safetensors`, the tokenizer's files.
//! Knows the layout; not where the directory goes.

use super::setup::Stored;
use crate::models::{causal::CausalConfig, weights::Weights};
use anyhow::Context;
use serde_json::json;
use std::path::Path;

/// Tokenizer files that are carried over from the directory that the tokenizer came from, where present.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Writes config, weights (of the type that `stored` names) and the tokenizer of `tokenizer_dir` into the local directory `dir`.
///
/// # Errors
/// The directory cannot be written; the tokenizer's files cannot be read.
pub fn write_model(
    dir: &Path,
    config: &CausalConfig,
    weights: &Weights,
    stored: Stored,
    tokenizer_dir: &Path,
) -> anyhow::Result<()> {
    let dtype = match stored {
        Stored::Bf16 => "bfloat16",
        Stored::F32 => "float32",
    };
    let mut model_config = config.to_json();
    model_config["torch_dtype"] = json!(dtype);
    write_json(&dir.join("config.json"), &model_config)?;
    let eos = if let [one] = config.eos() { json!(one) } else { json!(config.eos()) };
    write_json(
        &dir.join("generation_config.json"),
        &json!({"do_sample": false, "eos_token_id": eos, "pad_token_id": 0}),
    )?;
    weights.save(&dir.join("model.safetensors"))?;
    for (name, content) in config.extra_files() {
        let path = dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for name in TOKENIZER_FILES {
        let source = tokenizer_dir.join(name);
        if source.exists() {
            std::fs::copy(&source, dir.join(name)).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &serde_json::Value) -> anyhow::Result<()> {
    std::fs::write(path, format!("{value:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}
