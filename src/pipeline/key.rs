//! What decides a stage's output, as one hash: kind, settings, SQL text, parameters, seed, inputs, models, code version. Equal
//! keys mean equal output, so a finished stage with the same key need not run. Computing a key loads no model.

use super::{
    plan::{Plan, Stage, Work},
    stage::{ingest, json, sql::InputTable},
};
use crate::{
    storage::{commit::TableCommit, location::Location},
    udf::models::Models,
};
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeMap;

/// A stage's key and the fingerprints that went into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageKey {
    /// Hash of everything that decides the output, in hexadecimal.
    pub key: String,
    /// Input table or source file → fingerprint.
    pub inputs: BTreeMap<String, String>,
    /// Model → hash.
    pub models: BTreeMap<String, String>,
}

/// Keys of stages by name, upstream first: a stage's key is the fingerprint of what it yields.
pub type Known = BTreeMap<String, String>;

/// The key of a stage whose upstream keys are in `known`.
///
/// # Errors
/// An input that cannot be listed (a glob without a match, a bucket out of reach), a model that is not there.
pub async fn stage_key(plan: &Plan, stage: &Stage, known: &Known, models: &Models) -> Result<StageKey> {
    let mut inputs = match &stage.work {
        Work::Ingest { source, .. } => ingest::fingerprint(source).await?,
        _ => tables(plan, stage, known).await?,
    };
    inputs.extend(named_files(stage).await?);
    let models = model_hashes(stage, known, models).await?;
    let params: BTreeMap<&String, serde_json::Value> = stage.params.iter().map(|(n, v)| (n, json(v))).collect();
    let (query, format) = match &stage.work {
        Work::Sql(query) | Work::Figure { query, .. } => (Some(&query.text), None),
        Work::Ingest { source, .. } => (None, Some(source.format)),
        _ => (None, None),
    };
    let seeded = !models.is_empty() || !matches!(stage.work, Work::Ingest { .. } | Work::Sql(_) | Work::Figure { .. });
    let mut facts = json!({
        "kind": stage.config.kind(),
        "code": code_version(stage),
        "config": settings(stage)?,
        "query": query,
        "format": format,
        "params": params,
        "seed": seeded.then_some(plan.seed),
        "inputs": inputs,
        "models": models,
    });
    if let Some(rewards) = &stage.rewards {
        facts["rewards"] = json!(rewards);
    }
    Ok(StageKey { key: blake3::hash(facts.to_string().as_bytes()).to_hex()[..32].to_owned(), inputs, models })
}

/// Program and stage version, as written to manifests.
pub fn code_version(stage: &Stage) -> String {
    format!("{}-{}", stage.config.kind(), stage.config.code_version())
}

/// The settings without names that only say where something was found: the text of a query counts, not its file's name.
fn settings(stage: &Stage) -> Result<serde_json::Value> {
    let mut settings = serde_json::to_value(&stage.config)?;
    if let Some(fields) = settings.get_mut(stage.config.kind()).and_then(serde_json::Value::as_object_mut) {
        for name in match &stage.work {
            Work::Sql(_) | Work::Figure { .. } => ["file", "query"].as_slice(),
            Work::Ingest { .. } => &["source"],
            Work::Pack { .. } => &["memory_mib"],
            _ => &[],
        } {
            fields.shift_remove(*name);
        }
    }
    Ok(settings)
}

async fn tables(plan: &Plan, stage: &Stage, known: &Known) -> Result<BTreeMap<String, String>> {
    let mut inputs = BTreeMap::new();
    for name in &stage.tables {
        let print = match (known.get(name), plan.external.get(name)) {
            (Some(key), _) => key.clone(),
            (None, Some(InputTable::Managed { location, table })) => {
                TableCommit::manifest(location, table)
                    .await?
                    .with_context(|| format!("the table `{name}` at {location} is not finished: it has no manifest"))?
                    .key
            }
            (None, Some(InputTable::Files(path))) => {
                digest(&files(path).await.with_context(|| format!("the table `{name}` of the section `tables:`"))?)
            }
            (None, None) => anyhow::bail!("the table `{name}` has no maker"),
        };
        inputs.insert(name.clone(), print);
    }
    Ok(inputs)
}

/// Files and model directories that the settings name by path.
async fn named_files(stage: &Stage) -> Result<BTreeMap<String, String>> {
    let mut prints = BTreeMap::new();
    for path in stage.config.files() {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        prints.insert(path.display().to_string(), blake3::hash(&bytes).to_hex()[..32].to_owned());
    }
    for path in stage.config.directories() {
        prints.insert(path.to_owned(), digest(&files(path).await?));
    }
    for path in stage.config.models().into_iter().filter(|name| !stage.models.iter().any(|m| m == name)) {
        // What a hub's revision holds does not change; a directory may.
        let print = if path.starts_with("hf://") { path.to_owned() } else { digest(&files(path).await?) };
        prints.insert(path.to_owned(), print);
    }
    Ok(prints)
}

async fn model_hashes(stage: &Stage, known: &Known, models: &Models) -> Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for name in &stage.models {
        let hash = match known.get(name) {
            Some(key) => key.clone(),
            None => models.hash(name).await?,
        };
        hashes.insert(name.clone(), hash);
    }
    Ok(hashes)
}

/// Each file below a path with a fingerprint of name, size and time of change: cheap also where the files are large.
async fn files(path: &str) -> Result<BTreeMap<String, String>> {
    let found = Location::expand(path).await?;
    Ok(found
        .into_iter()
        .map(|(location, meta)| {
            let facts = format!("{}\n{}\n{}", meta.location, meta.size, meta.last_modified.timestamp_micros());
            (shown(&location, &meta.location), blake3::hash(facts.as_bytes()).to_hex()[..32].to_owned())
        })
        .collect())
}

/// The file's name as a user would write it.
fn shown(location: &Location, path: &impl std::fmt::Display) -> String {
    match location.root.scheme() {
        "file" => format!("/{path}"),
        _ => format!("{}/{path}", location.root.as_str().trim_end_matches('/')),
    }
}

fn digest(prints: &BTreeMap<String, String>) -> String {
    let all: Vec<String> = prints.iter().map(|(name, print)| format!("{name}\n{print}")).collect();
    blake3::hash(all.join("\n").as_bytes()).to_hex()[..32].to_owned()
}
