//! One integration binary; a file per area.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap should fail")]

mod engine;
mod hub;
mod cli;
mod layers;
mod operator;
mod session;
mod train;
mod yaml;
