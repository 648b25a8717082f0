//! The list `stages:`: what each entry yields, the one key that says how, and the settings below it with their short forms.

use super::{Located, StageSpec, Yields, check_keys, check_name, push, text_of};
use crate::pipeline::{
    stage::{StageConfig, evaluate, fasttext, figure, grpo, ingest, pack, pretrain, sft, sql, tokenizer, union},
    yaml::{
        decode::decode,
        each,
        node::{Entry, Node, Value},
        problem::{Problems, list},
    },
};
use std::collections::BTreeMap;

const TABLE_KINDS: &[&str] = &["ingest", "sql", "union", "pack", "figure", "evaluate"];
const MODEL_KINDS: &[&str] = &["pretrain", "sft", "grpo", "tokenizer", "fasttext"];
/// Directories beside the tables.
const RESERVED_TABLES: &[&str] = &["failed", "models"];

pub(super) fn stages(tree: &Node, problems: &mut Problems) -> Vec<StageSpec> {
    let items = match tree.get("stages").map(|e| &e.value) {
        Some(Node { value: Value::List(items), .. }) if !items.is_empty() => items,
        Some(node) => {
            problems.add(&node.at, format!("`stages` must be a list of at least one stage, found {}", node.kind()));
            return Vec::new();
        }
        None => {
            problems.add(&tree.at, "the key `stages` is missing; add the list of stages");
            return Vec::new();
        }
    };
    let mut stages: Vec<StageSpec> = Vec::new();
    for item in items {
        let Some(stage) = stage(item, problems) else { continue };
        if let Some(other) = stages.iter().find(|s| clash(s, &stage)) {
            let line = other.name.at.line;
            let message =
                format!("`{}` is already made by the stage in line {line}; choose another name", stage.name.value);
            problems.add(&stage.name.at, message);
        }
        stages.push(stage);
    }
    stages
}

/// Whether two stages write to one name. A table and a model of one name would be one word in SQL.
fn clash(a: &StageSpec, b: &StageSpec) -> bool {
    a.name.value == b.name.value || a.side_tables().contains(&b.name.value) || b.side_tables().contains(&a.name.value)
}

fn stage(item: &Node, problems: &mut Problems) -> Option<StageSpec> {
    if !matches!(item.value, Value::Map(_)) {
        problems.add(
            &item.at,
            format!("a stage is a mapping with `table` or `model` and what makes it; this is {}", item.kind()),
        );
        return None;
    }
    let known: Vec<&str> =
        ["table", "model", each::KEY].iter().chain(TABLE_KINDS).chain(MODEL_KINDS).copied().collect();
    check_keys(item, &known, problems);
    let (yields, name) = match (item.get("table"), item.get("model")) {
        (Some(entry), None) => (Yields::Table, entry),
        (None, Some(entry)) => (Yields::Model, entry),
        (Some(_), Some(entry)) => {
            problems.add(&entry.key_at, "a stage yields one thing: give `table` or `model`, not both");
            return None;
        }
        (None, None) => {
            problems.add(&item.at, "the stage has no name; add `table: NAME` or `model: NAME`");
            return None;
        }
    };
    let Some(text) = text_of(&name.value) else {
        problems.add(&name.value.at, format!("`{}` must be a name, found {}", name.key, name.value.kind()));
        return None;
    };
    check_name(&text, &name.value.at, &name.key, problems);
    if RESERVED_TABLES.contains(&text.as_str()) {
        problems
            .add(&name.value.at, format!("`{text}` is the name of a directory beside the tables; choose another name"));
    }
    let name = Located { value: text, at: name.value.at.clone() };
    let config = kind(item, &name, yields, problems);
    let node = config.map_or_else(|| item.clone(), |entry| entry.value.clone());
    let config = config.and_then(|entry| config_of(entry, problems));
    let each = match item.get(each::KEY).map(|entry| &entry.value.value) {
        Some(Value::Map(entries)) => entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect(),
        _ => BTreeMap::new(),
    };
    Some(StageSpec { name, yields, config, each, node })
}

/// The one key that says how the stage works, if it fits what the stage yields.
fn kind<'a>(item: &'a Node, name: &Located<String>, yields: Yields, problems: &mut Problems) -> Option<&'a Entry> {
    let (right, wrong, word) = match yields {
        Yields::Table => (TABLE_KINDS, MODEL_KINDS, "model"),
        Yields::Model => (MODEL_KINDS, TABLE_KINDS, "table"),
    };
    let name_text = &name.value;
    let given: Vec<&Entry> = right.iter().chain(wrong).filter_map(|key| item.get(key)).collect();
    match given[..] {
        [entry] if right.contains(&entry.key.as_str()) => Some(entry),
        [entry] => {
            let message = format!("`{}` yields a {word}; write `{word}: {name_text}`", entry.key);
            problems.add(&entry.key_at, message);
            None
        }
        [] => {
            problems.add(&name.at, format!("nothing says how to make `{name_text}`; add one of {}", list(right)));
            None
        }
        _ => {
            let keys: Vec<&str> = given.iter().map(|e| e.key.as_str()).collect();
            problems.add(&name.at, format!("`{name_text}` has {}; a stage does one thing, split it", list(&keys)));
            None
        }
    }
}

/// Decodes the config below a kind's key, with its short forms.
fn config_of(entry: &Entry, problems: &mut Problems) -> Option<StageConfig> {
    let mut node = entry.value.clone();
    let short = matches!(node.value, Value::Text(_));
    let place = |key: &str, node: &mut Node| {
        let value = std::mem::replace(&mut node.value, Value::Map(Vec::new()));
        push(node, key, value);
    };
    match entry.key.as_str() {
        "ingest" => {
            if short {
                place("source", &mut node);
            }
            if matches!(node.value, Value::Map(_)) && node.get("source").is_none() {
                problems.add(&node.at, "the key `source` is missing; name an entry of `sources:`");
            }
            decode::<ingest::Config>(&node, problems).map(StageConfig::Ingest)
        }
        "sql" => {
            if short {
                place("file", &mut node);
            }
            sql_config(&node, problems).map(StageConfig::Sql)
        }
        "union" => {
            if short {
                place("tables", &mut node);
            }
            decode::<union::Config>(&node, problems).map(StageConfig::Union)
        }
        "figure" => figure_config(&node, problems).map(|config| StageConfig::Figure(Box::new(config))),
        "pack" => decode::<pack::Config>(&node, problems).map(|config| StageConfig::Pack(Box::new(config))),
        "pretrain" => decode::<pretrain::Config>(&node, problems).map(|config| StageConfig::Pretrain(Box::new(config))),
        "sft" => decode::<sft::Config>(&node, problems).map(|config| StageConfig::Sft(Box::new(config))),
        "grpo" => decode::<grpo::Config>(&node, problems).map(|config| StageConfig::Grpo(Box::new(config))),
        "tokenizer" => decode::<tokenizer::Config>(&node, problems).map(StageConfig::Tokenizer),
        "evaluate" => decode::<evaluate::Config>(&node, problems).map(StageConfig::Evaluate),
        _ => decode::<fasttext::Config>(&node, problems).map(StageConfig::Fasttext),
    }
}

fn sql_config(node: &Node, problems: &mut Problems) -> Option<sql::Config> {
    if node.holed() {
        return None;
    }
    let config: sql::Config = decode(node, problems)?;
    if !one_query(&config, node, problems) {
        return None;
    }
    if config.fragment_rows == Some(0) {
        let at = node.get("fragment_rows").map_or(&node.at, |e| &e.value.at);
        problems.add(at, "`fragment_rows` must be at least 1");
        return None;
    }
    Some(config)
}

fn figure_config(node: &Node, problems: &mut Problems) -> Option<figure::Config> {
    let config: figure::Config = decode(node, problems)?;
    one_query(&config.sql(), node, problems).then_some(config)
}

fn one_query(config: &sql::Config, node: &Node, problems: &mut Problems) -> bool {
    match (&config.file, &config.query) {
        (Some(_), Some(_)) => problems.add(&node.at, "give `file` or `query`, not both"),
        (None, None) => problems.add(&node.at, "no SQL; give `file: NAME.sql` or `query: SELECT …`"),
        _ => return true,
    }
    false
}
