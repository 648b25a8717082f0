//! Which files make a model what it is, and their hash.

use anyhow::{Context, Result};
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// Files of a model directory that decide what it computes, sorted.
pub(in crate::udf) fn model_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for item in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = item?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let counts = name.ends_with(".safetensors")
            || [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "chat_template.jinja",
            ]
            .contains(&name);
        if counts {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Hash of the files' contents and something more (hex blake3).
pub(in crate::udf) fn hash_files(files: &[PathBuf], extra: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(extra.as_bytes());
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        hasher.update(&file.metadata()?.len().to_le_bytes());
        loop {
            let n = file.read(&mut buffer).with_context(|| path.display().to_string())?;
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
