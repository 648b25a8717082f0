//! One integration binary; a file per area.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap should fail")]

mod ingest;
mod s3;
mod storage;
