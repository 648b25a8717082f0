//! `for_each` of a stage: the stage once for each value of a name, or for each combination of values of several. Knows nothing of what a stage
//! is beyond that it is named by `table` or `model`.
//!
//! ```yaml
//! - model: base_${pool}_${seed}
//!   for_each: { pool: [organic, mixed], seed: [1, 2, 3] }
//!   pretrain: { packed: packed_${pool}, seed: ${seed} }
//! ```

use super::{
    node::{Entry, Node, Value},
    problem::{Place, Problems},
    set::{Names, interpolate},
};

/// The key; in a copy it holds `name: value`.
pub const KEY: &str = "for_each";
/// Stages that one `for_each` may make; more is a slip.
const MOST: usize = 1000;

/// Replaces each stage with a `for_each` by its copies, in which the names are filled in. `names` are the pipeline's parameters, `used` those that
/// the copies use.
pub fn expand(tree: &mut Node, names: &Names, used: &mut Vec<String>, problems: &mut Problems) {
    let Value::Map(top) = &mut tree.value else { return };
    let stages = top.iter_mut().find(|entry| entry.key == "stages").map(|entry| &mut entry.value.value);
    let Some(Value::List(stages)) = stages else { return };
    *stages = std::mem::take(stages).into_iter().flat_map(|stage| copies(stage, names, used, problems)).collect();
}

fn copies(mut stage: Node, names: &Names, used: &mut Vec<String>, problems: &mut Problems) -> Vec<Node> {
    let Value::Map(entries) = &mut stage.value else { return vec![stage] };
    let Some(at) = entries.iter().position(|entry| entry.key == KEY) else { return vec![stage] };
    let each = entries.remove(at);
    let Some(combinations) = combinations(&each, names, problems) else { return vec![] };
    if !check_name(&stage, &each, problems) {
        return vec![];
    }
    let copy = |local: &Vec<(&Entry, &Node)>| {
        let mut copy = stage.clone();
        let mut all = names.clone();
        all.extend(local.iter().map(|(entry, value)| (entry.key.clone(), (*value).clone())));
        let mut mentioned = Vec::new();
        interpolate(&mut copy, &all, &mut mentioned, problems);
        keep(&mut copy, &each, local);
        used.extend(mentioned.into_iter().filter(|name| names.contains_key(name)));
        copy
    };
    combinations.iter().map(copy).collect()
}

/// The names with this copy's values take the place of the list of values: a query binds them as `$name`.
fn keep(copy: &mut Node, each: &Entry, local: &[(&Entry, &Node)]) {
    let value = local.iter().map(|(entry, value)| Entry { value: (*value).clone(), ..(*entry).clone() }).collect();
    if let Value::Map(entries) = &mut copy.value {
        entries.push(Entry { value: Node { at: each.value.at.clone(), value: Value::Map(value) }, ..each.clone() });
    }
}

/// One value for each name, in every way; the last name changes fastest.
fn combinations<'a>(
    each: &'a Entry,
    names: &Names,
    problems: &mut Problems,
) -> Option<Vec<Vec<(&'a Entry, &'a Node)>>> {
    let Value::Map(entries) = &each.value.value else {
        let kind = each.value.kind();
        problems.add(&each.value.at, format!("`{KEY}` holds `name: [value, …]`, found {kind}"));
        return None;
    };
    let mut all = vec![Vec::new()];
    let mut good = !entries.is_empty();
    if !good {
        problems.add(&each.value.at, format!("`{KEY}` is empty; give it `name: [value, …]`"));
    }
    for entry in entries {
        if names.contains_key(&entry.key) {
            problems.add(
                &entry.key_at,
                format!("`{}` is a parameter already; give the name in `{KEY}` another one", entry.key),
            );
            good = false;
        }
        let Some(values) = values(entry, problems) else {
            good = false;
            continue;
        };
        all = all.iter().flat_map(|before| values.iter().map(|v| [&before[..], &[(entry, v)]].concat())).collect();
        if all.len() > MOST {
            problems.add(&each.key_at, format!("`{KEY}` makes more than {MOST} stages"));
            return None;
        }
    }
    good.then_some(all)
}

fn values<'a>(entry: &'a Entry, problems: &mut Problems) -> Option<&'a [Node]> {
    let scalar = |node: &Node| matches!(node.value, Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_));
    match &entry.value.value {
        Value::List(values) if !values.is_empty() && values.iter().all(scalar) => Some(values),
        Value::Hole => None,
        _ => {
            let message =
                format!("`{}` must be a list of numbers or texts, e.g. `{}: [1, 2, 3]`", entry.key, entry.key);
            problems.add(&entry.value.at, message);
            None
        }
    }
}

/// The stage's name has to tell the copies apart.
fn check_name(stage: &Node, each: &Entry, problems: &mut Problems) -> bool {
    let Some(name) = stage.get("table").or_else(|| stage.get("model")) else { return true };
    let (Value::Text(text), Value::Map(entries)) = (&name.value.value, &each.value.value) else { return true };
    let missing: Vec<&Entry> = entries.iter().filter(|e| !text.contains(&format!("${{{}}}", e.key))).collect();
    for entry in &missing {
        let at: &Place = &name.value.at;
        problems.add(at, format!("`{text}` is the same for every `{0}`; put `${{{0}}}` into the name", entry.key));
    }
    missing.is_empty()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// Names and problems of the stages that a text makes.
    fn expanded(text: &str) -> (Vec<String>, String, Vec<String>) {
        let mut problems = Problems::default();
        let mut tree = Node::parse("f", text, &mut problems).unwrap();
        let value = Node { at: Place::whole("f"), value: Value::Int(5) };
        let mut used = Vec::new();
        expand(&mut tree, &Names::from([("n".to_owned(), value)]), &mut used, &mut problems);
        let Value::List(stages) = &tree.get("stages").unwrap().value.value else { panic!() };
        let text = |stage: &Node| {
            let Value::Map(entries) = &stage.value else { panic!() };
            let plain = entries.iter().filter(|e| e.key != KEY);
            plain.map(|e| format!("{}={}", e.key, e.value.kind())).collect::<Vec<_>>().join(" ")
        };
        (stages.iter().map(text).collect(), problems.to_string(), used)
    }

    #[test]
    fn every_combination_once() {
        let (stages, problems, used) = expanded(
            "stages:\n  - table: t_${a}_${b}\n    for_each: { a: [x, y], b: [1, 2] }\n    k: \"${b}\"\n    m: ${n}\n  - table: u\n",
        );
        assert_eq!(problems, "");
        let name = |a, b| format!("table=the text `t_{a}_{b}` k=the number `{b}` m=the number `5`");
        assert_eq!(stages, [name("x", 1), name("x", 2), name("y", 1), name("y", 2), "table=the text `u`".to_owned()]);
        assert_eq!(used, vec!["n"; 4]);
    }

    #[test]
    fn faults_have_their_places() {
        let check = |text: &str, expected: &str| assert_eq!(expanded(text).1, expected);
        check(
            "stages:\n  - table: t\n    for_each: { a: [1] }\n",
            "f:2:12: `t` is the same for every `a`; put `${a}` into the name",
        );
        check(
            "stages:\n  - table: t_${a}\n    for_each: { a: 1 }\n",
            "f:3:20: `a` must be a list of numbers or texts, e.g. `a: [1, 2, 3]`",
        );
        check(
            "stages:\n  - table: t_${a}\n    for_each: [1]\n",
            "f:3:15: `for_each` holds `name: [value, …]`, found a list",
        );
        check(
            "stages:\n  - table: t_${n}\n    for_each: { n: [1] }\n",
            "f:3:17: `n` is a parameter already; give the name in `for_each` another one",
        );
        check(
            "stages:\n  - table: t_${a}\n    for_each: {}\n",
            "f:3:15: `for_each` is empty; give it `name: [value, …]`",
        );
    }
}
