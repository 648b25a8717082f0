//! An encoder's parameters under the family's plain names. Checkpoints put them behind `bert.`, `roberta.`, `deberta.` or nothing, beside
//! heads that are not needed; the oldest call a norm's weight and bias gamma and beta.

use super::config::EncoderConfig;
use crate::models::weights::{self, Weights};
use anyhow::{Context, bail, ensure};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The table that every encoder has; what stands before its name is the checkpoint's prefix.
const WORDS: &str = "embeddings.word_embeddings.weight";

/// Reads what the first `layers` blocks need, on the CPU, as `kind`.
///
/// # Errors
/// As [`Weights::load`]; a parameter is missing or of another shape than config.json says.
pub fn load(dir: &Path, config: &EncoderConfig, layers: usize, kind: Kind) -> anyhow::Result<Weights> {
    let whole = |name: &str| format!("{}: {name}", dir.display());
    let prefix = prefix(&weights::names(dir)?).with_context(|| dir.display().to_string())?;
    let needed = config.tensors(layers);
    let plain = |name: &str| name.strip_prefix(prefix.as_str()).map(modern);
    let wanted = |name: &str| plain(name).is_some_and(|name| needed.iter().any(|(needed, _)| *needed == name));
    let loaded = Weights::load_some(dir, Device::Cpu, kind, &wanted)?;
    let tensors = loaded.tensors.into_iter().filter_map(|(name, tensor)| Some((plain(&name)?, tensor))).collect();
    let loaded = Weights { tensors };
    for (name, shape) in &needed {
        let found = loaded.get(name).with_context(|| whole("config.json and weights do not fit"))?;
        let found: Vec<usize> = found.size().iter().map(|&n| n as usize).collect();
        ensure!(found == *shape, "{}", whole(&format!("`{name}` has the shape {found:?}; config.json says {shape:?}")));
    }
    Ok(loaded)
}

/// Random parameters on the device, as new models have them (normal, deviation 0.02; norms one, biases zero): for measurements, so from
/// libtorch's own generator, which is fast on a GPU.
///
/// # Errors
/// The device has no room.
pub fn random(config: &EncoderConfig, layers: usize, device: Device, kind: Kind) -> anyhow::Result<Weights> {
    let one = |(name, shape): (String, Vec<usize>)| {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let made = match name.as_str() {
            norm if norm.ends_with("LayerNorm.weight") => Tensor::f_ones(&shape, (kind, device)),
            bias if bias.ends_with("bias") => Tensor::f_zeros(&shape, (kind, device)),
            _ => Tensor::f_randn(&shape, (kind, device)).and_then(|values| values.f_mul_scalar(0.02)),
        };
        Ok((name, made?))
    };
    Ok(Weights { tensors: config.tensors(layers).into_iter().map(one).collect::<anyhow::Result<_>>()? })
}

fn prefix(names: &[String]) -> anyhow::Result<String> {
    let found: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(WORDS)).collect();
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => bail!("the weights have no `{WORDS}`, with or without a prefix: not an encoder of a supported family"),
        several => bail!("the weights hold several encoders (prefixes {several:?}); save the one that is wanted alone"),
    }
}

fn modern(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((norm, "gamma")) => format!("{norm}.weight"),
        Some((norm, "beta")) => format!("{norm}.bias"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_old_names() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(prefix(&names(&["bert.embeddings.word_embeddings.weight", "cls.bias"])).unwrap(), "bert.");
        assert_eq!(prefix(&names(&["embeddings.word_embeddings.weight"])).unwrap(), "");
        assert!(prefix(&names(&["model.embed_tokens.weight"])).unwrap_err().to_string().contains("not an encoder"));
        assert_eq!(modern("embeddings.LayerNorm.gamma"), "embeddings.LayerNorm.weight");
        assert_eq!(modern("embeddings.LayerNorm.beta"), "embeddings.LayerNorm.bias");
    }
}
