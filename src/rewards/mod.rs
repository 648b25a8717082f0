//! Measures of a document or a pair. Pure functions, one file each; no I/O, no Arrow. SQL functions and trainers share them.

pub mod cut;
pub mod dataman;
pub mod fasttext;
pub mod length;
pub mod repro_reward;
