//! Trainers: supervised fine-tuning, tokenizer training, and the loss, optimiser, schedule and checkpoint parts they share.
//! Knows nothing of SQL or of pipelines: the stages in [`crate::pipeline`] hand over tables' columns and a place to write.

pub mod batch;
pub mod bpe;
pub mod checkpoint;
pub mod classifier;
pub mod copy_task;
pub mod export;
pub mod fused;
pub mod grpo;
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
