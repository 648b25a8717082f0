//! The sections that map names to things: `models:`, `sources:`, `tables:`; and `rewards:`.

use super::{Located, check_name, push, text_of};
use crate::{
    pipeline::{
        stage::ingest::SourceSpec,
        yaml::{
            decode::decode,
            node::{Entry, Node, Value},
            problem::{Problems, list, suggest},
        },
    },
    rewards::repro_reward::RewardConfig,
    udf::{
        encoder::EncoderSpec,
        models::{CausalLmSpec, FastTextSpec, ModelSpec, TokenizerSpec},
        remote::RemoteSpec,
    },
};
use std::collections::BTreeMap;

/// The entries of a section that maps names to things.
fn section<'a>(tree: &'a Node, key: &str, what: &str, problems: &mut Problems) -> &'a [Entry] {
    match tree.get(key).map(|e| &e.value) {
        Some(Node { value: Value::Map(entries), .. }) => {
            entries.iter().for_each(|e| check_name(&e.key, &e.key_at, what, problems));
            entries
        }
        None | Some(Node { value: Value::Null | Value::Hole, .. }) => &[],
        Some(node) => {
            problems.add(&node.at, format!("`{key}` holds `name: …` pairs, found {}", node.kind()));
            &[]
        }
    }
}

pub(super) fn models(tree: &Node, problems: &mut Problems) -> BTreeMap<String, Located<Option<ModelSpec>>> {
    let made: Vec<String> = match tree.get("stages").map(|e| &e.value.value) {
        Some(Value::List(stages)) => stages.iter().filter_map(|s| text_of(&s.get("model")?.value)).collect(),
        _ => Vec::new(),
    };
    let entries = section(tree, "models", "model", problems);
    let others = |name: &str| entries.iter().map(|e| e.key.as_str()).filter(|key| *key != name).collect::<Vec<_>>();
    let entries = entries.iter();
    entries
        .map(|entry| {
            let mut node = entry.value.clone();
            // A stage of this name gives the path; the entry holds settings only.
            let remote = node.get("kind").and_then(|kind| text_of(&kind.value)).is_some_and(|kind| kind == "remote");
            if made.contains(&entry.key) && node.get("path").is_none() && !remote {
                push(&mut node, "path", Value::Text(String::new()));
            }
            (
                entry.key.clone(),
                Located { value: model(&entry.key, &node, &others(&entry.key), problems), at: entry.key_at.clone() },
            )
        })
        .collect()
}

fn model(name: &str, node: &Node, others: &[&str], problems: &mut Problems) -> Option<ModelSpec> {
    const KINDS: &[&str] = &["causal_lm", "encoder", "fasttext", "remote", "tokenizer"];
    let Value::Map(entries) = &node.value else {
        problems.add(&node.at, format!("the model `{name}` must be a mapping, e.g. {{ kind: causal_lm, path: … }}"));
        return None;
    };
    let Some(kind) = node.get("kind") else {
        // An entry that `--set models.NAME.path=…` made is perhaps a slip.
        let set = node.at.file.starts_with("--set ");
        let slip = set.then(|| suggest(name, others)).filter(|hint| hint.contains("did you mean"));
        let hint =
            slip.map(|hint| format!("; or is `{name}` a slip{}", hint.replacen(';', ",", 1))).unwrap_or_default();
        problems.add(&node.at, format!("the key `kind` is missing; add it, one of {}{hint}", list(KINDS)));
        return None;
    };
    let rest: Vec<Entry> = entries.iter().filter(|e| e.key != "kind").cloned().collect();
    let rest = Node { at: node.at.clone(), value: Value::Map(rest) };
    match text_of(&kind.value).as_deref() {
        Some("causal_lm") => decode::<CausalLmSpec>(&rest, problems).map(ModelSpec::CausalLm),
        Some("encoder") => decode::<EncoderSpec>(&rest, problems).map(ModelSpec::Encoder),
        Some("fasttext") => decode::<FastTextSpec>(&rest, problems).map(ModelSpec::Fasttext),
        Some("remote") => decode::<RemoteSpec>(&rest, problems).map(ModelSpec::Remote),
        Some("tokenizer") => decode::<TokenizerSpec>(&rest, problems).map(ModelSpec::Tokenizer),
        Some(other) => {
            problems.add(&kind.value.at, format!("`{other}` is no kind of model{}", suggest(other, KINDS)));
            None
        }
        None => {
            problems.add(&kind.value.at, format!("`kind` must be one of {}, found {}", list(KINDS), kind.value.kind()));
            None
        }
    }
}

/// The section `rewards:`, with its numbers checked.
pub(super) fn rewards(tree: &Node, problems: &mut Problems) -> RewardConfig {
    let Some(entry) = tree.get("rewards") else { return RewardConfig::default() };
    if entry.value.value == Value::Null {
        return RewardConfig::default();
    }
    let config: RewardConfig = decode(&entry.value, problems).unwrap_or_default();
    for fault in config.faults() {
        problems.add(&entry.key_at, format!("`rewards`: {fault}"));
    }
    config
}

pub(super) fn sources(tree: &Node, problems: &mut Problems) -> BTreeMap<String, Located<Option<SourceSpec>>> {
    let mut found = BTreeMap::new();
    for entry in section(tree, "sources", "source", problems) {
        let value = match &entry.value.value {
            Value::Text(path) => Some(SourceSpec::from(path.as_str())),
            Value::Hole => None,
            _ => decode(&entry.value, problems),
        };
        found.insert(entry.key.clone(), Located { value, at: entry.key_at.clone() });
    }
    found
}

pub(super) fn tables(tree: &Node, problems: &mut Problems) -> BTreeMap<String, Located<String>> {
    let mut found = BTreeMap::new();
    for entry in section(tree, "tables", "table", problems) {
        let path = text_of(&entry.value).unwrap_or_else(|| {
            if entry.value.value != Value::Hole {
                let kind = entry.value.kind();
                problems.add(&entry.value.at, format!("the table `{}` must be a path, found {kind}", entry.key));
            }
            String::new()
        });
        found.insert(entry.key.clone(), Located { value: path, at: entry.key_at.clone() });
    }
    found
}
