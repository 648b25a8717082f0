//! Stub of the `ingest` stage until branch storage is merged.

use super::StageContext;
use crate::storage::manifest::Manifest;
use serde::{Deserialize, Serialize};

/// Stub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of an entry of `sources:`.
    pub source: String,
}

/// Stub.
pub async fn run(config: &Config, path: &str, cx: &StageContext) -> anyhow::Result<Manifest> {
    anyhow::bail!("{}: not built yet ({config:?} {path})", cx.output)
}
