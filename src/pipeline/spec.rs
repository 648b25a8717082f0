//! The pipeline file as it was written: every part decoded and placed, nothing looked up yet. What refers to what is
//! checked in [`super::plan`].

use super::{
    stage::{StageConfig, ingest::SourceSpec},
    yaml::{
        each,
        node::{Entry, Node, Value},
        problem::{Place, Problems, list, suggest},
        set::interpolate,
    },
};
use crate::{rewards::repro_reward::RewardConfig, udf::models::ModelSpec};
use params::{assign, params, refuse_text_in_queries};
use sections::{models, rewards, sources, tables};
use stages::stages;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

mod params;
mod sections;
mod stages;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands in the file.
    pub at: Place,
}

/// A pipeline file.
#[derive(Debug)]
pub struct Spec {
    /// `name`, else the file's own name.
    pub name: String,
    /// Directory or `s3://bucket/prefix` below which everything is written.
    pub location: String,
    /// What all randomness starts from.
    pub seed: u64,
    /// Scalars, Null where a value has to come from `--set`.
    pub params: BTreeMap<String, Node>,
    /// Parameters that some `${name}` used.
    pub used: BTreeSet<String>,
    /// Parameters that `--set` brought in without a declaration.
    pub undeclared: BTreeMap<String, Place>,
    /// None where the entry is faulty (already reported).
    pub models: BTreeMap<String, Located<Option<ModelSpec>>>,
    /// How rephrasings are rewarded; the paper's way where nothing is said.
    pub rewards: RewardConfig,
    /// None where the entry is faulty (already reported).
    pub sources: BTreeMap<String, Located<Option<SourceSpec>>>,
    /// Tables made elsewhere: name → path.
    pub tables: BTreeMap<String, Located<String>>,
    /// In the order of the file.
    pub stages: Vec<StageSpec>,
}

/// What a stage yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yields {
    /// A table, at `<location>/<name>/`.
    Table,
    /// A model, at `<location>/models/<name>/`.
    Model,
}

/// One entry of `stages:`.
#[derive(Debug)]
pub struct StageSpec {
    /// The table or model that it yields.
    pub name: Located<String>,
    /// Which of the two.
    pub yields: Yields,
    /// The kind's key and the config below it; None where it is faulty (already reported).
    pub config: Option<StageConfig>,
    /// Names and values of its `for_each`.
    pub each: BTreeMap<String, Node>,
    /// The config as written, to find places.
    pub node: Node,
}

impl StageSpec {
    /// Tables that it makes besides what it yields.
    pub fn side_tables(&self) -> Vec<String> {
        self.config.as_ref().map(|config| config.side_tables(&self.name.value)).unwrap_or_default()
    }
}

const TOP: &[&str] = &["name", "location", "seed", "params", "models", "rewards", "sources", "tables", "stages"];
/// Names of params that would be taken for something else.
const RESERVED_PARAMS: &[&str] = TOP;

impl Spec {
    /// Reads the file and applies `--set` arguments and `${name}`. Faults go to `problems`; None where nothing can be made
    /// of the file.
    pub fn read(path: &Path, set: &[String], problems: &mut Problems) -> Option<Self> {
        let shown = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                problems.add(&Place::whole(&shown), format!("cannot read the pipeline: {error}"));
                return None;
            }
        };
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Self::parse(&shown, &stem, &text, set, problems)
    }

    /// As [`Self::read`], from a text; `shown` names it in messages.
    pub fn parse(shown: &str, stem: &str, text: &str, set: &[String], problems: &mut Problems) -> Option<Self> {
        let mut tree = Node::parse(shown, text, problems)?;
        if !matches!(tree.value, Value::Map(_)) {
            let kind = tree.kind();
            problems.add(&tree.at, format!("a pipeline is a mapping with {}; this is {kind}", list(TOP)));
            return None;
        }
        let undeclared = assign(&mut tree, set, problems);
        let (params, mut used) = params(&mut tree, problems);
        refuse_text_in_queries(&mut tree, problems);
        each::expand(&mut tree, &params, &mut used, problems);
        interpolate(&mut tree, &params, &mut used, problems);
        check_keys(&tree, TOP, problems);
        Some(Self {
            name: text_at(&tree, "name", problems).unwrap_or_else(|| stem.to_owned()),
            location: required_text(&tree, "location", problems),
            seed: seed(&tree, problems),
            models: models(&tree, problems),
            rewards: rewards(&tree, problems),
            sources: sources(&tree, problems),
            tables: tables(&tree, problems),
            stages: stages(&tree, problems),
            used: used.into_iter().collect(),
            params,
            undeclared,
        })
    }
}

fn check_keys(node: &Node, known: &[&str], problems: &mut Problems) {
    let Value::Map(entries) = &node.value else { return };
    for entry in entries.iter().filter(|e| !known.contains(&e.key.as_str())) {
        problems.add(&entry.key_at, format!("unknown key `{}`{}", entry.key, suggest(&entry.key, known)));
    }
}

/// Lower-case names need no quotes in SQL and make plain directory names.
fn check_name(name: &str, at: &Place, what: &str, problems: &mut Problems) {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !plain {
        let rule = "use lower-case letters, digits and `_`, not beginning with a digit";
        problems.add(at, format!("`{name}` is not a plain {what} name; {rule}"));
    }
}

fn text_at(tree: &Node, key: &str, problems: &mut Problems) -> Option<String> {
    let node = &tree.get(key)?.value;
    match &node.value {
        Value::Text(text) if !text.is_empty() => Some(text.clone()),
        Value::Hole => None,
        _ => {
            problems.add(&node.at, format!("`{key}` must be a text, found {}", node.kind()));
            None
        }
    }
}

fn required_text(tree: &Node, key: &str, problems: &mut Problems) -> String {
    if tree.get(key).is_none() {
        problems.add(&tree.at, format!("the key `{key}` is missing; add it, e.g. `{key}: runs/mine`"));
    }
    text_at(tree, key, problems).unwrap_or_default()
}

fn seed(tree: &Node, problems: &mut Problems) -> u64 {
    let Some(entry) = tree.get("seed") else { return 42 };
    match entry.value.value {
        Value::Int(n) if n >= 0 => n.unsigned_abs(),
        Value::Hole => 0,
        _ => {
            problems.add(
                &entry.value.at,
                format!("`seed` must be a whole number, 0 or more, found {}", entry.value.kind()),
            );
            0
        }
    }
}

fn push(node: &mut Node, key: &str, value: Value) {
    let at = node.at.clone();
    if let Value::Map(entries) = &mut node.value {
        entries.push(Entry { key: key.into(), key_at: at.clone(), value: Node { at, value } });
    }
}

fn text_of(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}
