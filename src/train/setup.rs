//! From a description of a model, a device and a precision to a [`Trainer`] or [`Pretrainer`]. Knows libtorch's devices, types and threads, so that
//! the stages do not.

use super::{
    adapters::Lora,
    fused::Fused,
    grpo::policy::Policy,
    optim::AdamWOptions,
    pretrain::{Backward, Options, Pretrainer},
    sft::Trainer,
};
use crate::{
    engine::cpu::isa::Isa,
    models::{
        causal::{CausalConfig, CausalModel},
        config::DecoderConfig,
        decoder::Decoder,
        device::DeviceSpec,
        openlm::OpenLm,
    },
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// Type of the matmuls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 where libtorch multiplies it faster, else f32.
    #[default]
    Auto,
    /// bf16 everywhere, slow where the processor has no instructions for it.
    Bf16,
    /// f32: the same weights again after a resume, bit for bit.
    F32,
}

impl From<Precision> for crate::engine::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Auto => Self::Auto,
            Precision::Bf16 => Self::Bf16,
            Precision::F32 => Self::F32,
        }
    }
}

/// Type of the exported weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stored {
    /// Half the size; what inference computes in anyway.
    #[default]
    Bf16,
    /// The masters as they are.
    F32,
}

impl Stored {
    /// libtorch's name of the type.
    pub fn kind(self) -> Kind {
        match self {
            Self::Bf16 => Kind::BFloat16,
            Self::F32 => Kind::Float,
        }
    }
}

/// Where the parameters come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A model directory in Hugging Face layout.
    Directory(PathBuf),
    /// Normal numbers with that standard deviation.
    Random(DecoderConfig, f64),
}

/// Where and in what a run computes.
#[derive(Debug, Clone, Copy)]
pub struct Compute {
    device: Device,
    kind: Kind,
    /// The type was not asked for.
    auto: bool,
}

impl Compute {
    /// Resolves `auto | cpu | cuda:N` and the precision that fits the device.
    ///
    /// # Errors
    /// The device is misspelled or not there.
    pub fn resolve(device: &str, precision: Precision) -> anyhow::Result<Self> {
        let spec = device.parse::<DeviceSpec>()?;
        if spec == DeviceSpec::Cpu {
            // libtorch counts devices at its first backward pass and never again: where there is a GPU, a later stage may train on it.
            DeviceSpec::Auto.resolve()?;
        }
        let device = spec.resolve()?;
        let kind = match precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
            Precision::Auto => Isa::detect().libtorch_kind(device),
        };
        Ok(Self { device, kind, auto: precision == Precision::Auto })
    }

    /// Loads a model directory for training by reinforcement, with a copy as reference if that is asked for; with adapters and the seed
    /// that they start from, only these are trained.
    ///
    /// # Errors
    /// The directory does not hold a model that can be loaded.
    pub fn policy(
        self,
        dir: &Path,
        adamw: AdamWOptions,
        with_reference: bool,
        lora: Option<(Lora, u64)>,
    ) -> anyhow::Result<Policy> {
        Ok(match lora {
            Some(lora) => {
                let decoder = Decoder::from_dir(dir, self.device, self.kind)?;
                Policy::with_adapters(decoder, adamw, self.kind, with_reference, lora)
            }
            None => Policy::new(Decoder::from_dir(dir, self.device, Kind::Float)?, adamw, self.kind, with_reference),
        })
    }

    /// Loads or makes the model, ready to train.
    ///
    /// # Errors
    /// The directory does not hold a model that can be loaded; the description is not valid.
    pub fn trainer(self, source: &Source, seed: u64, adamw: AdamWOptions, clip: f64) -> anyhow::Result<Trainer> {
        let decoder = match source {
            Source::Directory(dir) => Decoder::from_dir(dir, self.device, Kind::Float)?,
            Source::Random(config, std) => Decoder::random(config.clone(), *std, seed, self.device, Kind::Float)?,
        };
        Ok(Trainer::new(decoder, adamw, self.kind, clip))
    }
}

/// What pretraining does beside AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Largest gradient norm; 0 for no bound.
    pub clip: f64,
    /// Factor of the z-loss.
    pub z_loss: f64,
    /// How the backward pass is made.
    pub backward: Backward,
}

/// Standard deviation of new matrices of Llama and Qwen3; OpenLM has its own rule.
const DECODER_STD: f64 = 0.02;

impl Compute {
    /// A new model, ready to be pretrained. Where the type is left open, a step by hand is worth computing in bf16 for: it is the faster one on
    /// every processor that it takes.
    ///
    /// # Errors
    /// The description is not valid; out of memory.
    pub fn pretrainer(
        self,
        config: &CausalConfig,
        seed: u64,
        adamw: AdamWOptions,
        recipe: Recipe,
    ) -> anyhow::Result<Pretrainer> {
        let model: CausalModel = match config.clone() {
            CausalConfig::OpenLm(config) => OpenLm::random(config, seed, self.device, Kind::Float)?.into(),
            CausalConfig::Decoder(config) => {
                Decoder::random(config, DECODER_STD, seed, self.device, Kind::Float)?.into()
            }
        };
        let Recipe { clip, z_loss, backward } = recipe;
        let by_hand = self.auto && backward == Backward::Auto && Fused::takes(config, self.device);
        let kind = if by_hand { Kind::BFloat16 } else { self.kind };
        Ok(Pretrainer::new(model, adamw, Options { kind, clip, z_loss, backward }))
    }
}

/// Sets the CPU threads that this thread's libtorch calls use; 0 for all cores. Call it on the thread that trains.
pub fn set_threads(threads: usize) {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    tch::set_num_threads(if threads == 0 { all() } else { threads } as i32);
}
