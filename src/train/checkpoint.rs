//! Training checkpoints: masters, moments and the state of the run (whatever its trainer keeps) in one safetensors file, so that it is there as a whole or not at
//! all. Knows where files stand and what must fit; not what a step does.
//!
//! A checkpoint lives at `<location>/_checkpoints/<model>/<key>-<step>.safetensors`. A new one is complete before the one
//! before it is removed. `key` is the stage's: a checkpoint made under other settings is never continued.

use super::optim::{AdamW, FlatParameters};
use crate::storage::location::Location;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use tch::{Kind, Tensor};

const FORMAT: &str = "repro-checkpoint-1";

/// Everything that a run continues from, as bytes of a safetensors file. `state` is the trainer's own: whatever it needs beside
/// masters and moments to go on as if nothing had happened.
///
/// # Errors
/// Only what serialisation reports.
pub fn to_bytes(parameters: &FlatParameters, adamw: &AdamW, state: &impl Serialize) -> anyhow::Result<Bytes> {
    let buffers = [("first", &adamw.first), ("master", &parameters.master), ("second", &adamw.second)];
    let raw: Vec<(&str, Vec<u8>)> = buffers
        .iter()
        .map(|(name, tensor)| {
            let tensor = tensor.to_device(tch::Device::Cpu).contiguous();
            let mut bytes = vec![0u8; tensor.numel() * 4];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            (*name, bytes)
        })
        .collect();
    let views = raw
        .iter()
        .map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("layout".to_owned(), layout(parameters)),
        ("optimiser_step".to_owned(), adamw.step.to_string()),
        ("state".to_owned(), serde_json::to_string(state)?),
    ]);
    Ok(safetensors::serialize(views, Some(metadata))?.into())
}

/// Puts a checkpoint back: fills `parameters` and `adamw`, returns the state. `what` names it in errors.
///
/// # Errors
/// The file is not a whole checkpoint, or it is one of a model with other parameters.
pub fn restore<S: DeserializeOwned>(
    bytes: &[u8],
    what: &str,
    parameters: &mut FlatParameters,
    adamw: &mut AdamW,
) -> anyhow::Result<S> {
    restore_inner(bytes, parameters, adamw)
        .with_context(|| format!("cannot continue from the checkpoint {what}; remove it to train from the start"))
}

fn restore_inner<S: DeserializeOwned>(
    bytes: &[u8],
    parameters: &mut FlatParameters,
    adamw: &mut AdamW,
) -> anyhow::Result<S> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let field = |name: &str| metadata.get(name).with_context(|| format!("it holds no `{name}`"));
    if field("format")? != FORMAT {
        bail!("its format is `{}`, this program reads `{FORMAT}`", field("format")?);
    }
    let (found, expected) = (field("layout")?, layout(parameters));
    if *found != expected {
        bail!("it belongs to another model: {}", difference(found, &expected));
    }
    let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let state = serde_json::from_str(field("state")?).context("its state does not parse")?;
    let device = parameters.master.device();
    let size = parameters.master.size();
    let load = |name: &str| -> anyhow::Result<Tensor> {
        let view = tensors.tensor(name).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        ensure!(view.dtype() == Dtype::F32 && view.data().len() as i64 == size[0] * 4, "`{name}` has the wrong size");
        Ok(Tensor::from_data_size(view.data(), &size, Kind::Float).to_device(device))
    };
    let (master, first, second) = (load("master")?, load("first")?, load("second")?);
    adamw.step = field("optimiser_step")?.parse().context("its optimiser step is not a number")?;
    parameters.master = master;
    adamw.first = first;
    adamw.second = second;
    Ok(state)
}

fn damaged(error: safetensors::SafeTensorError) -> anyhow::Error {
    anyhow::anyhow!("it is not a whole safetensors file ({error}); it may be cut off")
}

/// Names and shapes of all parameters, in buffer order.
fn layout(parameters: &FlatParameters) -> String {
    parameters.slots().iter().map(|slot| format!("{} {:?}\n", slot.name, slot.shape)).collect()
}

fn difference(found: &str, expected: &str) -> String {
    let pair = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    match pair {
        Some((a, b)) => format!("it has `{a}` where this model has `{b}`"),
        None => format!("it has {} parameters, this model {}", found.lines().count(), expected.lines().count()),
    }
}

/// The checkpoints of one model at a pipeline's location.
#[derive(Debug, Clone)]
pub struct Store {
    directory: Location,
    key: String,
}

impl Store {
    /// `key` decides which checkpoints may be continued.
    pub fn new(location: &Location, model: &str, key: &str) -> Self {
        let key = key.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        Self { directory: location.join(&format!("_checkpoints/{model}")), key }
    }

    /// The newest checkpoint of this key: what to call it, and its bytes.
    ///
    /// # Errors
    /// The location cannot be read.
    pub async fn latest(&self) -> anyhow::Result<Option<(String, Bytes)>> {
        let mut own: Vec<String> =
            self.names().await?.into_iter().filter(|n| n.starts_with(&format!("{}-", self.key))).collect();
        own.sort();
        let Some(name) = own.pop() else { return Ok(None) };
        let bytes = self.directory.read(&name).await?;
        Ok(bytes.map(|bytes| (format!("{}/{name}", self.directory), bytes)))
    }

    /// Writes the checkpoint of `step`, then removes all others.
    ///
    /// # Errors
    /// The location cannot be written; the checkpoint before it is still there then.
    pub async fn save(&self, step: u64, bytes: Bytes) -> anyhow::Result<()> {
        let name = format!("{}-{step:012}.safetensors", self.key);
        self.directory
            .write(&name, bytes)
            .await
            .with_context(|| format!("cannot write the checkpoint of step {step}"))?;
        for other in self.names().await?.into_iter().filter(|n| *n != name) {
            self.directory.delete(&other).await?;
        }
        Ok(())
    }

    /// Removes every checkpoint of the model: it is finished.
    ///
    /// # Errors
    /// The location cannot be written.
    pub async fn clear(&self) -> anyhow::Result<()> {
        for name in self.names().await? {
            self.directory.delete(&name).await?;
        }
        Ok(())
    }

    async fn names(&self) -> anyhow::Result<Vec<String>> {
        let all = self.directory.list().await?;
        let names = all.iter().filter_map(|meta| meta.location.filename()).filter(|n| n.ends_with(".safetensors"));
        Ok(names.map(str::to_owned).collect())
    }
}
