//! One integration binary; a file per area.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap should fail")]

mod cli;
mod engine;
mod evaluate;
mod hub;
mod ingest;
mod kill;
mod layers;
mod operator;
mod pretrain;
mod recycle;
mod s3;
mod session;
mod storage;
mod train;
mod yaml;
