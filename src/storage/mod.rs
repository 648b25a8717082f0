//! Bytes and tables at rest: local directories and S3-compatible buckets, atomic publish, fragments, manifests, and where
//! model files come from. Knows nothing of SQL or of what a stage does.

pub mod commit;
mod conditional;
mod fragment;
mod glob;
pub mod hub;
pub mod lease;
pub mod location;
pub mod manifest;
pub mod packed;
pub mod reader;
pub mod s3;
