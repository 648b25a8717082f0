//! Bytes and tables at rest: local directories and S3-compatible buckets, atomic publish, fragments, manifests, and where
//! model files come from. Knows nothing of SQL or of what a stage does.

pub mod commit;
mod fragment;
mod glob;
pub mod hub;
pub mod location;
pub mod manifest;
pub mod packed;
pub mod reader;
pub mod s3;
