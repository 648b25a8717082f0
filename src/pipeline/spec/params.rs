//! `params:` and `--set`: which values there are, and where they may not be put in.

use super::{RESERVED_PARAMS, TOP, check_name};
use crate::pipeline::yaml::{
    node::{Entry, Node, Value},
    problem::{Place, Problems},
    set::{Assignment, Names, interpolate},
};
use std::collections::BTreeMap;

/// Applies every `--set`. A single step is a top-level scalar or a param. Gives the params that the file does not declare.
pub(super) fn assign(tree: &mut Node, set: &[String], problems: &mut Problems) -> BTreeMap<String, Place> {
    let mut undeclared = BTreeMap::new();
    for argument in set {
        let Some(mut assignment) = Assignment::parse(argument, problems) else { continue };
        if let [name] = &assignment.path[..]
            && !TOP.contains(&name.as_str())
        {
            let declared = tree.get("params").and_then(|params| params.value.get(name)).map(|e| &e.value.value);
            match (declared, &assignment.value.value) {
                // 1 for a parameter that holds 0.5 is still a float in SQL.
                (Some(Value::Float(_)), Value::Int(n)) => assignment.value.value = Value::Float(*n as f64),
                (None, _) => drop(undeclared.insert(name.clone(), assignment.value.at.clone())),
                _ => {}
            }
            assignment.path.insert(0, "params".into());
        }
        assignment.apply(tree, problems);
    }
    undeclared
}

/// Takes `params` out of the tree: scalars only, `${other}` inside them filled in.
pub(super) fn params(tree: &mut Node, problems: &mut Problems) -> (Names, Vec<String>) {
    let mut names = Names::new();
    let mut used = Vec::new();
    let Value::Map(top) = &mut tree.value else { return (names, used) };
    let Some(at) = top.iter().position(|e| e.key == "params") else { return (names, used) };
    let section = std::mem::replace(&mut top[at].value.value, Value::Null);
    let entries = match section {
        Value::Map(entries) => entries,
        Value::Null => Vec::new(),
        _ => {
            problems.add(&top[at].value.at, "`params` holds `name: value` pairs");
            Vec::new()
        }
    };
    for Entry { key, key_at, mut value } in entries {
        check_name(&key, &key_at, "parameter", problems);
        if RESERVED_PARAMS.contains(&key.as_str()) {
            problems.add(&key_at, format!("`{key}` is a key of the pipeline itself; give the parameter another name"));
        }
        if matches!(value.value, Value::List(_) | Value::Map(_)) {
            problems.add(&value.at, format!("the parameter `{key}` must be a number, a text or `true`/`false`"));
            value.value = Value::Hole;
        }
        names.insert(key, value);
    }
    fill_params(&mut names, &mut used, problems);
    (names, used)
}

/// Parameters may use each other, in any order; what is left over after as many rounds as there are names is a circle.
fn fill_params(names: &mut Names, used: &mut Vec<String>, problems: &mut Problems) {
    let open = |node: &Node| matches!(&node.value, Value::Text(t) if t.replace("$${", "").contains("${"));
    for _ in 0..=names.len() {
        let ready: Names = names.iter().filter(|(_, n)| !open(n)).map(|(k, n)| (k.clone(), n.clone())).collect();
        let waiting: Vec<String> = names.iter().filter(|(_, n)| open(n)).map(|(k, _)| k.clone()).collect();
        for name in waiting {
            let refers_to_open = |n: &Node| match &n.value {
                Value::Text(t) => names.keys().any(|k| !ready.contains_key(k) && t.contains(&format!("${{{k}}}"))),
                _ => false,
            };
            let mut node = names[&name].clone();
            if !refers_to_open(&node) {
                interpolate(&mut node, &ready, used, problems);
                names.insert(name, node);
            }
        }
    }
    for (name, node) in names.iter_mut().filter(|(_, n)| open(n)) {
        problems.add(&node.at, format!("the parameter `{name}` uses itself, directly or through another"));
        node.value = Value::Hole;
    }
}

/// In SQL a parameter is `$name`, bound as a value; text substitution there would let a value change the query.
pub(super) fn refuse_text_in_queries(tree: &mut Node, problems: &mut Problems) {
    let Value::Map(top) = &mut tree.value else { return };
    let Some(Value::List(stages)) = top.iter_mut().find(|e| e.key == "stages").map(|e| &mut e.value.value) else {
        return;
    };
    for stage in stages {
        for key in ["sql", "figure"] {
            let Some(query) = stage.get_mut(key).and_then(|sql| sql.get_mut("query")) else { continue };
            if matches!(&query.value, Value::Text(t) if t.contains("${")) {
                problems.add(&query.at, "`${name}` in a query; write $name, which binds the value");
                query.value = Value::Hole;
            }
        }
    }
}
