//! The policy's engine, and the room that updates need beside it on a device.

use super::{
    loss,
    policy::{Activations, Policy, UpdateOptions},
};
use crate::{
    engine::{DeviceSpec, Engine, EngineOptions, Precision},
    models::decoder::Decoder,
};
use anyhow::Context;
use tch::{Device, Kind, Tensor};

impl Policy {
    /// An engine with the present parameters on the same device, for sequences of up to `positions` tokens, that leaves room for updates
    /// as `update` says. [`Engine::set_weights`] with [`Self::weights`] brings it up to date. Its precision may be another than the
    /// policy's: `auto` is bf16 on a processor whose bf16 is fast in the engine's kernels, and slow in libtorch's.
    ///
    /// # Errors
    /// Not enough memory; the device is one that the engine does not generate on.
    pub fn engine(
        &self,
        slots: usize,
        threads: usize,
        positions: usize,
        precision: Precision,
        update: &UpdateOptions,
    ) -> anyhow::Result<Engine> {
        let mut config = self.config().clone();
        config.max_positions = config.max_positions.min(positions);
        let Device::Cuda(n) = self.parameters.master.device() else {
            let options = EngineOptions { device: DeviceSpec::Cpu, precision, slots, threads };
            return Engine::from_decoder(Decoder { config, weights: self.weights() }, options);
        };
        // An engine takes for its cache what it finds free. What an update takes must not be among that, so it is held meanwhile.
        let room = Tensor::f_empty([self.room(update)], (Kind::Uint8, Device::Cuda(n))).with_context(|| {
            format!(
                "no {:.1} GB are left on cuda:{n} for the gradient and the activations of an update; lower micro_batch_tokens, \
                 set gradient_checkpointing, or use a smaller model",
                self.room(update) as f64 / 1e9
            )
        })?;
        // In f32 these are the masters, and an engine may keep what it is given.
        let mut weights = self.weights();
        if self.kind() == Kind::Float {
            weights.tensors.values_mut().for_each(|tensor| *tensor = tensor.copy());
        }
        let options = EngineOptions { device: DeviceSpec::Cuda(n), precision, slots, threads };
        let engine = Engine::from_decoder(Decoder { config, weights }, options)?;
        drop(room);
        Ok(engine)
    }

    /// Bytes that an update takes beside masters, moments and reference, about: the gradient, the parameters in the compute type, what
    /// a pass keeps, one block's inside, and a chunk of logits.
    pub fn room(&self, update: &UpdateOptions) -> i64 {
        let c = self.config();
        let bytes = self.kind().elt_size_in_bytes();
        let (queries, keys) = (c.heads * c.head_dim, 2 * c.kv_heads * c.head_dim);
        let inside = 6 * c.hidden + 10 * queries + 7 * keys + 4 * c.ffn;
        let row = match update.activations {
            Activations::Keep => (c.layers + 1) * inside,
            Activations::Recompute => c.layers * c.hidden + 2 * inside,
        };
        let head = loss::chunk_bytes(c.vocab_size) + 2 * c.vocab_size * c.hidden * bytes;
        (4 * self.parameters.master.numel() + self.compute_bytes() + update.rows * row * bytes + head) as i64
    }
}
