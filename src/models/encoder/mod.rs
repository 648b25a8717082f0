//! Bidirectional encoders: BERT (and MiniLM), RoBERTa, DeBERTa v1. [`config`] says what they are, [`weights`] reads their
//! parameters under one set of names, [`forward`] is their pass in libtorch's operations, for GPUs. A CPU's pass is the engine's.

pub mod config;
pub mod forward;
pub mod weights;
