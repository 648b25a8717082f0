//! Text in, text or token ids out: tokenizer, chat template, chunking, answer extraction, line structure. Pure.

pub mod bpe;
pub mod chat;
pub mod chunk;
pub mod corrupt;
pub mod detokenise;
pub mod edits;
pub mod extract;
pub mod lines;
pub mod pack;
pub mod prompt;
pub mod request;
pub mod structure;
pub mod tokenizer;
