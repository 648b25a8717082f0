//! Training checkpoints: masters, moments and the state of the run (whatever its trainer keeps) in one safetensors file, so that it is there as a whole or not at
//! all. Knows where files stand and what must fit; not what a step does.
//!
//! A checkpoint lives at `<location>/_checkpoints/<model>/<key>-<step>.safetensors`. A new one is complete before the one
//! before it is removed. `key` is the stage's: a checkpoint made under other settings is never continued.

use super::optim::{AdamW, FlatParameters};
use crate::storage::location::Location;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use safetensors::{
    Dtype, SafeTensors,
    tensor::{TensorView, View},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{borrow::Cow, collections::HashMap};
use tch::{Device, Kind, Tensor};

const FORMAT: &str = "repro-checkpoint-1";

/// Everything that a run continues from, as bytes of a safetensors file. `state` is the trainer's own: whatever it needs beside
/// masters and moments to go on as if nothing had happened.
///
/// # Errors
/// Only what serialisation reports.
pub fn to_bytes(parameters: &FlatParameters, adamw: &AdamW, state: &impl Serialize) -> anyhow::Result<Bytes> {
    let buffers = [("first", &adamw.first), ("master", &parameters.master), ("second", &adamw.second)];
    let views = buffers.map(|(name, tensor)| (name, Flat(tensor, tensor.numel())));
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("layout".to_owned(), layout(parameters)),
        ("optimiser_step".to_owned(), adamw.step.to_string()),
        ("state".to_owned(), serde_json::to_string(state)?),
    ]);
    Ok(safetensors::serialize(views, Some(metadata))?.into())
}

/// A flat f32 buffer as safetensors reads it. One that is on a device comes to the host when its turn is, so that only one does at a time.
struct Flat<'a>(&'a Tensor, usize);

impl View for Flat<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        std::slice::from_ref(&self.1)
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = self.0.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0u8; tensor.numel() * 4];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        Cow::Owned(bytes)
    }
    fn data_len(&self) -> usize {
        self.1 * 4
    }
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
    let elements = parameters.master.numel();
    let view = |name: &str| -> anyhow::Result<TensorView<'_>> {
        let view = tensors.tensor(name).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        ensure!(view.dtype() == Dtype::F32 && view.data().len() == elements * 4, "`{name}` has the wrong size");
        Ok(view)
    };
    let views = [view("master")?, view("first")?, view("second")?];
    adamw.step = field("optimiser_step")?.parse().context("its optimiser step is not a number")?;
    // In place: on a device there may be no room for a second set of buffers.
    let _guard = tch::no_grad_guard();
    for (buffer, view) in [&mut parameters.master, &mut adamw.first, &mut adamw.second].into_iter().zip(views) {
        buffer.copy_(&Tensor::from_data_size(view.data(), &[elements as i64], Kind::Float));
    }
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
