//! Model families: configuration, weights and the forward pass of each. Knows nothing of batching, text or SQL.

pub mod causal;
pub mod config;
pub mod decoder;
pub mod device;
pub mod encoder;
pub mod openlm;
pub mod packed;
mod random;
pub mod rope;
pub mod route;
pub mod weights;
