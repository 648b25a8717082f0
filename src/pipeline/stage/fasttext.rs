//! Stub of the `fasttext` stage until branch train is merged.

use super::StageContext;
use serde::{Deserialize, Serialize};

/// Stub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Table of examples.
    pub table: String,
}

/// Stub.
pub async fn run(config: &Config, cx: &StageContext) -> anyhow::Result<()> {
    anyhow::bail!("{}: not built yet ({config:?})", cx.output)
}
