//! Changes to the tree from outside the file: `--set key=value`, and `${name}` inside texts.

use super::{
    node::{Entry, Node, Value},
    problem::{Place, Problems, suggest},
};
use std::collections::BTreeMap;

/// One `--set` argument, split.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Key path; one step is a param or a top-level key.
    pub path: Vec<String>,
    /// What the path is set to; its place is the argument.
    pub value: Node,
}

impl Assignment {
    /// Splits `a.b.c=value`. The value is a number, `true`, `false` or `null` by YAML's rules; what begins with `[`, `{` or a
    /// quote is YAML; all else is text as it stands (`--set input=*.jsonl`).
    pub fn parse(argument: &str, problems: &mut Problems) -> Option<Self> {
        let at = Place::whole(&format!("--set {argument}"));
        let Some((key, text)) = argument.split_once('=') else {
            problems.add(&at, "no `=` in it; write --set key=value");
            return None;
        };
        let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            problems.add(&at, format!("`{key}` is not a key; write a name, or names joined by dots"));
            return None;
        }
        let value = typed(text, &at, problems)?;
        Some(Self { path, value })
    }

    /// Puts the value into the tree, making mappings on the way. A step below a list names an element by its index or by
    /// its `table` or `model`.
    pub fn apply(&self, tree: &mut Node, problems: &mut Problems) {
        let at = &self.value.at;
        let mut node = tree;
        for (i, step) in self.path.iter().enumerate() {
            let here = self.path[..i].join(".");
            if node.value == Value::Null {
                node.value = Value::Map(Vec::new());
            }
            let kind = node.kind();
            node = match &mut node.value {
                Value::Map(entries) => {
                    let index = entries.iter().position(|e| e.key == *step).unwrap_or_else(|| {
                        let value = Node { at: at.clone(), value: Value::Null };
                        entries.push(Entry { key: step.clone(), key_at: at.clone(), value });
                        entries.len() - 1
                    });
                    &mut entries[index].value
                }
                Value::List(items) => {
                    let names: Vec<String> = items.iter().filter_map(element_name).collect();
                    let found = items
                        .iter()
                        .position(|item| element_name(item).as_deref() == Some(step))
                        .or_else(|| step.parse().ok().filter(|i| *i < items.len()));
                    match found {
                        Some(index) => &mut items[index],
                        None => {
                            problems.add(at, format!("`{here}` has no element `{step}`{}", suggest(step, &names)));
                            return;
                        }
                    }
                }
                _ => {
                    problems.add(at, format!("`{here}` is {kind}, so it has no key `{step}`"));
                    return;
                }
            };
        }
        node.value = self.value.value.clone();
        node.at = at.clone();
    }
}

fn typed(text: &str, at: &Place, problems: &mut Problems) -> Option<Node> {
    let mut own = Problems::default();
    let parsed = Node::parse(&at.file, text, &mut own);
    let is_yaml = text.starts_with(['[', '{', '"', '\'']);
    let mut value = match parsed {
        Some(node) if is_yaml && own.is_empty() => node.value,
        _ if is_yaml => {
            let first = own.iter().next().map(|p| p.message.clone()).unwrap_or_default();
            problems.add(at, format!("{first}; put a text that begins so in quotes"));
            return None;
        }
        Some(Node { value: value @ (Value::Bool(_) | Value::Int(_) | Value::Float(_)), .. }) if !text.contains('#') => {
            value
        }
        _ if matches!(text, "null" | "~") => Value::Null,
        _ => Value::Text(text.to_owned()),
    };
    replace_places(&mut value, at);
    Some(Node { at: at.clone(), value })
}

fn replace_places(value: &mut Value, at: &Place) {
    match value {
        Value::List(items) => items.iter_mut().for_each(|item| {
            item.at = at.clone();
            replace_places(&mut item.value, at);
        }),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_at = at.clone();
            entry.value.at = at.clone();
            replace_places(&mut entry.value.value, at);
        }),
        _ => {}
    }
}

/// A stage's own name.
fn element_name(item: &Node) -> Option<String> {
    ["table", "model"].iter().find_map(|key| match &item.get(key)?.value.value {
        Value::Text(name) => Some(name.clone()),
        _ => None,
    })
}

/// Values by name, for `${name}`. A value that is not there yet (`name:` with nothing) is Null.
pub type Names = BTreeMap<String, Node>;

/// Replaces `${name}` in every text below `node`. A text that is nothing but `${name}` takes the value with its type. `$${`
/// stands for a plain `${`. Names that were used go to `used`.
pub fn interpolate(node: &mut Node, names: &Names, used: &mut Vec<String>, problems: &mut Problems) {
    match &mut node.value {
        Value::Text(text) if text.contains("${") => {
            if let Some(value) = filled(text, &node.at, names, used, problems) {
                node.value = value;
            } else {
                node.value = Value::Hole;
            }
        }
        Value::List(items) => items.iter_mut().for_each(|item| interpolate(item, names, used, problems)),
        Value::Map(entries) => entries.iter_mut().for_each(|e| interpolate(&mut e.value, names, used, problems)),
        _ => {}
    }
}

fn filled(text: &str, at: &Place, names: &Names, used: &mut Vec<String>, problems: &mut Problems) -> Option<Value> {
    let mut out = String::new();
    let mut rest = text;
    let mut whole = true;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            out.push_str(&rest[..start - 1]);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        let Some(end) = rest[start..].find('}') else {
            problems.add(at, "`${` without `}`; write `$${` for the characters themselves");
            whole = false;
            break;
        };
        let name = &rest[start + 2..start + end];
        out.push_str(&rest[..start]);
        used.push(name.to_owned());
        match lookup(name, at, names, problems) {
            Some(value) if start == 0 && end + 1 == text.len() => return Some(value.clone()),
            Some(value) => out.push_str(&plain(value)),
            None => whole = false,
        }
        rest = &rest[start + end + 1..];
    }
    out.push_str(rest);
    whole.then_some(Value::Text(out))
}

fn lookup<'a>(name: &str, at: &Place, names: &'a Names, problems: &mut Problems) -> Option<&'a Value> {
    match names.get(name).map(|node| &node.value) {
        None => {
            let known: Vec<&String> = names.keys().collect();
            problems
                .add(at, format!("no parameter `{name}`{}; give it with --set {name}=VALUE", suggest(name, &known)));
            None
        }
        Some(Value::Null) => {
            problems.add(at, unset(name));
            None
        }
        // Already reported where the parameter stands.
        Some(Value::Hole | Value::List(_) | Value::Map(_)) => None,
        Some(value) => Some(value),
    }
}

/// The message for a declared parameter without a value.
pub fn unset(name: &str) -> String {
    format!("the parameter `{name}` has no value; give it with --set {name}=VALUE or under `params`")
}

fn plain(value: &Value) -> String {
    match value {
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Float(n) => n.to_string(),
        Value::Text(t) => t.clone(),
        Value::Null | Value::List(_) | Value::Map(_) | Value::Hole => String::new(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn value(argument: &str) -> Value {
        let mut problems = Problems::default();
        let assignment = Assignment::parse(argument, &mut problems).unwrap();
        assert!(problems.is_empty(), "{problems}");
        assignment.value.value
    }

    #[test]
    fn values_are_typed_as_in_yaml() {
        assert_eq!(value("a=5"), Value::Int(5));
        assert_eq!(value("a=0.5"), Value::Float(0.5));
        assert_eq!(value("a=true"), Value::Bool(true));
        assert_eq!(value("a=null"), Value::Null);
        assert_eq!(value("a='5'"), Value::Text("5".into()));
        assert_eq!(value("a="), Value::Text(String::new()));
        for text in ["*.jsonl", "a: b", "x=y", "s3://b/c", "# no comment", "5 # x", "- x"] {
            assert_eq!(value(&format!("a={text}")), Value::Text(text.into()), "{text}");
        }
    }

    #[test]
    fn assignments_reach_into_maps_and_named_stages() {
        let mut problems = Problems::default();
        let text = "location: a\nstages:\n  - table: t\n    sql: {file: f}\n";
        let mut tree = Node::parse("f", text, &mut problems).unwrap();
        for argument in ["stages.t.sql.fragment_rows=8", "models.m.path=x", "location=b"] {
            Assignment::parse(argument, &mut problems).unwrap().apply(&mut tree, &mut problems);
        }
        assert!(problems.is_empty(), "{problems}");
        let Value::List(stages) = &tree.get("stages").unwrap().value.value else { panic!() };
        let sql = &stages[0].get("sql").unwrap().value;
        assert_eq!(sql.get("fragment_rows").unwrap().value.value, Value::Int(8));
        assert_eq!(tree.get("location").unwrap().value.value, Value::Text("b".into()));
        let model = &tree.get("models").unwrap().value.get("m").unwrap().value;
        assert_eq!(model.get("path").unwrap().value.value, Value::Text("x".into()));
        Assignment::parse("location.x=1", &mut problems).unwrap().apply(&mut tree, &mut problems);
        Assignment::parse("stages.x.y=1", &mut problems).unwrap().apply(&mut tree, &mut problems);
        assert!(Assignment::parse("novalue", &mut problems).is_none());
        assert_eq!(
            problems.to_string(),
            "--set location.x=1: `location` is the text `b`, so it has no key `x`\n\
             --set novalue: no `=` in it; write --set key=value\n\
             --set stages.x.y=1: `stages` has no element `x`; did you mean `t`?"
        );
    }

    #[test]
    fn texts_take_values_and_whole_texts_their_type() {
        let mut problems = Problems::default();
        let mut names = Names::new();
        for (name, value) in [("n", Value::Int(3)), ("dir", Value::Text("d".into())), ("open", Value::Null)] {
            names.insert(name.into(), Node { at: Place::whole("f"), value });
        }
        let text = "[\"${n}\", \"${dir}/x-${n}\", \"$${n}\", \"${open}\", \"${di}\", \"a ${n\"]";
        let mut tree = Node::parse("f", text, &mut problems).unwrap();
        let mut used = Vec::new();
        interpolate(&mut tree, &names, &mut used, &mut problems);
        let Value::List(items) = tree.value else { panic!() };
        assert_eq!(items[0].value, Value::Int(3));
        assert_eq!(items[1].value, Value::Text("d/x-3".into()));
        assert_eq!(items[2].value, Value::Text("${n}".into()));
        assert_eq!(used, ["n", "dir", "n", "open", "di"]);
        assert_eq!(
            problems.to_string(),
            "f:1:36: the parameter `open` has no value; give it with --set open=VALUE or under `params`\n\
             f:1:47: no parameter `di`; did you mean `dir`?; give it with --set di=VALUE\n\
             f:1:56: `${` without `}`; write `$${` for the characters themselves"
        );
    }
}
