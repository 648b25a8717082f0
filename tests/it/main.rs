//! One integration binary; a file per area.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap should fail")]

mod bad_input;
mod bertscore;
mod cli;
mod device;
mod encoder;
mod endpoint;
mod engine;
mod evaluate;
mod grpo;
mod hub;
mod ingest;
mod kill;
mod layers;
mod lease;
mod operator;
mod pack;
mod perplexity;
mod pretrain;
mod recycle;
mod remote;
mod s3;
mod scorers;
mod session;
mod storage;
mod train;
mod train_device;
mod yaml;
