//! What stages have left at a location: where an output lies, and the manifest of a finished one.

use super::{
    plan::{Plan, Stage},
    spec::Yields,
};
use crate::storage::{
    commit::TableCommit,
    location::Location,
    manifest::{Cost, MANIFEST, Manifest, ModelManifest, Rows},
};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// What a finished stage left: the manifest of its table or model.
#[derive(Debug, Clone)]
pub enum Made {
    /// A table's manifest.
    Table(Manifest),
    /// A model's manifest.
    Model(ModelManifest),
}

impl Made {
    /// Hash of everything that decided the output.
    pub fn key(&self) -> &str {
        match self {
            Self::Table(m) => &m.key,
            Self::Model(m) => &m.key,
        }
    }
    /// Row arithmetic; for a model, of its training examples.
    pub fn rows(&self) -> Rows {
        match self {
            Self::Table(m) => m.rows,
            Self::Model(m) => m.rows,
        }
    }
    /// What it took to make.
    pub fn cost(&self) -> Cost {
        match self {
            Self::Table(m) => m.cost,
            Self::Model(m) => m.cost,
        }
    }
    pub(super) fn code_version(&self) -> &str {
        match self {
            Self::Table(m) => &m.code_version,
            Self::Model(m) => &m.code_version,
        }
    }
    pub(super) fn inputs(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Table(m) => &m.inputs,
            Self::Model(m) => &m.inputs,
        }
    }
    pub(super) fn models(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Table(m) => &m.models,
            Self::Model(m) => &m.models,
        }
    }
    pub(super) fn table(&self) -> Option<&Manifest> {
        match self {
            Self::Table(m) => Some(m),
            Self::Model(_) => None,
        }
    }
}

/// The output of a stage, if there is a finished one, whatever its key.
///
/// # Errors
/// The location cannot be read, or the manifest is not ours.
pub async fn made(plan: &Plan, stage: &Stage) -> Result<Option<Made>> {
    match stage.yields {
        Yields::Table => Ok(TableCommit::manifest(&plan.location, &stage.name).await?.map(Made::Table)),
        Yields::Model => {
            let directory = directory(plan, stage);
            let Some(bytes) = directory.read(MANIFEST).await? else { return Ok(None) };
            let manifest = serde_json::from_slice(&bytes).with_context(|| {
                format!("{directory}/{MANIFEST} is not a manifest of this program; remove {directory}")
            })?;
            Ok(Some(Made::Model(manifest)))
        }
    }
}

/// Where a stage's output lies.
pub(super) fn directory(plan: &Plan, stage: &Stage) -> Location {
    match stage.yields {
        Yields::Table => plan.location.join(&stage.name),
        Yields::Model => plan.location.join("models").join(&stage.name),
    }
}
