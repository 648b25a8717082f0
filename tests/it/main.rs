//! One integration binary; a file per area.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap should fail")]

mod engine;
mod hub;
mod layers;
mod operator;
mod train;
mod yaml;
