//! Trainers: supervised fine-tuning, tokenizer training, and the loss, optimiser, schedule and checkpoint parts they share.
//! Knows nothing of SQL or of pipelines: the stages in [`crate::pipeline`] hand over tables' columns and a place to write.

pub mod adapters;
pub mod batch;
pub mod bpe;
pub mod checkpoint;
pub mod classifier;
pub mod copy_task;
pub mod export;
pub mod fused;
pub mod grpo;
pub mod heap;
pub mod loss;
pub mod metrics;
pub mod optim;
pub mod pretrain;
pub mod recompute;
pub mod schedule;
pub mod setup;
pub mod sft;
mod threads;
mod transfer;

/// Where tests that can run on a GPU run: `REPRO_TEST_DEVICE`; the processor without it.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
fn test_device() -> tch::Device {
    let name = std::env::var("REPRO_TEST_DEVICE").ok().filter(|name| !name.is_empty());
    name.map_or(tch::Device::Cpu, |name| {
        name.parse::<crate::models::device::DeviceSpec>().and_then(|spec| spec.resolve()).unwrap()
    })
}
