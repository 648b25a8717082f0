//! Bidirectional encoders: BERT (and MiniLM), RoBERTa, DeBERTa v1. [`config`] says what they are, [`weights`] reads their
//! parameters under one set of names. The forward pass is the engine's.

pub mod config;
pub mod weights;
