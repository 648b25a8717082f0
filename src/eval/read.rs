//! The harness's own JSONL files into items, checked: every message names the file and the line. Does not know how an item
//! becomes a prompt.

use super::tasks::{Kind, Task};
use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

/// One item of a task file. Texts outside lists are stripped, as the harness strips them.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Row of the file, from 0; blank lines do not count.
    pub index: usize,
    /// Its category, for the tasks that have some.
    pub category: Option<String>,
    /// What is asked.
    pub body: Body,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// One query, several answers.
    Choice {
        /// What stands before the answer.
        query: String,
        /// The answers.
        choices: Vec<String>,
        /// Which is right.
        gold: usize,
    },
    /// Several contexts, one continuation.
    Schema {
        /// The contexts.
        contexts: Vec<String>,
        /// What follows the right one.
        continuation: String,
        /// Which is right.
        gold: usize,
    },
    /// One context, one continuation.
    Text {
        /// What stands before.
        context: String,
        /// What has to follow.
        continuation: String,
    },
}

impl Body {
    /// Index of the right candidate; None where there is one candidate only.
    pub fn gold(&self) -> Option<usize> {
        match self {
            Self::Choice { gold, .. } | Self::Schema { gold, .. } => Some(*gold),
            Self::Text { .. } => None,
        }
    }

    /// The texts among which a model chooses, or the one that it has to give.
    pub fn answers(&self) -> Vec<&str> {
        match self {
            Self::Choice { choices, .. } => choices.iter().map(String::as_str).collect(),
            Self::Schema { contexts, .. } => contexts.iter().map(String::as_str).collect(),
            Self::Text { continuation, .. } => vec![continuation],
        }
    }
}

/// Reads a task file. `name` is its path, for messages.
///
/// # Errors
/// Not UTF-8, not JSON, a missing field, a field of another type, `gold` out of range, no item at all.
pub fn read(task: &Task, name: &str, bytes: &[u8]) -> anyhow::Result<Vec<Item>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.trim_start_matches('\u{feff}'),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            bail!("{name}:{line}: not UTF-8 text; fetch the file again, or convert it");
        }
    };
    let mut items = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let item = item(task, items.len(), line).with_context(|| format!("{name}:{}", number + 1))?;
        items.push(item);
    }
    ensure!(
        !items.is_empty(),
        "{name}: holds no item; one JSON object a line is expected, with {}",
        task.kind.fields()
    );
    Ok(items)
}

fn item(task: &Task, index: usize, line: &str) -> anyhow::Result<Item> {
    let json: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| anyhow::anyhow!("not a JSON object ({error})"))?;
    let fields = Fields { json: &json, kind: task.kind };
    let body = match task.kind {
        Kind::MultipleChoice => {
            let choices = fields.texts("choices")?;
            Body::Choice { query: fields.text("query")?, gold: fields.gold(choices.len(), "choices")?, choices }
        }
        Kind::Schema => {
            let contexts = fields.texts("context_options")?;
            let gold = fields.gold(contexts.len(), "context_options")?;
            Body::Schema { continuation: fields.text("continuation")?, gold, contexts }
        }
        Kind::LanguageModeling => {
            Body::Text { context: fields.text("context")?, continuation: fields.text("continuation")? }
        }
    };
    let category = if task.categories { Some(fields.text("category")?) } else { None };
    Ok(Item { index, category, body })
}

struct Fields<'a> {
    json: &'a Map<String, Value>,
    kind: Kind,
}

impl Fields<'_> {
    fn get(&self, name: &str) -> anyhow::Result<&Value> {
        self.json.get(name).filter(|v| !v.is_null()).with_context(|| {
            let has: Vec<&str> = self.json.keys().map(String::as_str).collect();
            let has = if has.is_empty() { "nothing".to_owned() } else { has.join(", ") };
            format!(
                "the field `{name}` is missing; an item of this task has {}, this one has {has}",
                self.kind.fields()
            )
        })
    }

    fn text(&self, name: &str) -> anyhow::Result<String> {
        let value = self.get(name)?;
        let text = value.as_str().with_context(|| format!("`{name}` must be a text, found {}", kind(value)))?;
        Ok(strip(text).to_owned())
    }

    fn texts(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let value = self.get(name)?;
        let list = value.as_array().with_context(|| format!("`{name}` must be a list, found {}", kind(value)))?;
        ensure!(list.len() > 1, "`{name}` holds {} texts; a choice needs two at least", list.len());
        let text = |v: &Value| {
            v.as_str().map(str::to_owned).with_context(|| format!("`{name}` must hold texts, found {}", kind(v)))
        };
        list.iter().map(text).collect()
    }

    fn gold(&self, options: usize, of: &str) -> anyhow::Result<usize> {
        let value = self.get("gold")?;
        let gold = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n < options);
        gold.with_context(|| format!("`gold` is {value}; with {options} `{of}` it must be 0 to {}", options - 1))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What Python's `str.strip` takes for space: Unicode's white space, and four control characters.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Python's `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.rstrip()`.
pub fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{super::tasks::find, *};

    fn parse(label: &str, text: &str) -> anyhow::Result<Vec<Item>> {
        read(find(label).unwrap(), "data/x.jsonl", text.as_bytes())
    }

    #[test]
    fn texts_are_stripped_and_lists_are_not() {
        let items = parse(
            "copa",
            "\n{\"query\": \" a\\u001f\\u00a0\", \"choices\": [\" b \", \"c\"], \"gold\": 1, \"x\": 2}\r\n",
        )
        .unwrap();
        let body = Body::Choice { query: "a".into(), choices: vec![" b ".into(), "c".into()], gold: 1 };
        assert_eq!(items, [Item { index: 0, category: None, body }]);
        let items = parse("jeopardy", r#"{"context": "a", "continuation": "b ", "category": "c"}"#).unwrap();
        assert_eq!(items[0].category.as_deref(), Some("c"));
        assert_eq!(items[0].body.answers(), ["b"]);
        let items = parse("winogrande", r#"{"context_options": ["a", "b "], "continuation": "c", "gold": 0}"#).unwrap();
        assert_eq!((items[0].body.gold(), items[0].body.answers()), (Some(0), vec!["a", "b "]));
    }

    #[test]
    fn faults_name_file_line_and_field() {
        let fine = r#"{"query": "q", "choices": ["a", "b"], "gold": 0}"#;
        for (label, text, expected) in [
            (
                "copa",
                format!("{fine}\n\n{{\"query\": \"q\", \"gold\": 0}}"),
                "data/x.jsonl:3: the field `choices` is missing; an item of this task has query, choices, gold, this one has query, gold",
            ),
            (
                "copa",
                r#"{"query": "q", "choices": ["a", "b"], "gold": 2}"#.into(),
                "data/x.jsonl:1: `gold` is 2; with 2 `choices` it must be 0 to 1",
            ),
            ("copa", r#"{"query": "q", "choices": ["a", "b"], "gold": -1}"#.into(), "`gold` is -1"),
            ("copa", r#"{"query": "q", "choices": ["a", "b"], "gold": null}"#.into(), "the field `gold` is missing"),
            (
                "copa",
                r#"{"query": 3, "choices": ["a", "b"], "gold": 1}"#.into(),
                "`query` must be a text, found a number",
            ),
            (
                "copa",
                r#"{"query": "q", "choices": ["a"], "gold": 0}"#.into(),
                "`choices` holds 1 texts; a choice needs two",
            ),
            (
                "copa",
                r#"{"query": "q", "choices": ["a", 3], "gold": 0}"#.into(),
                "`choices` must hold texts, found a number",
            ),
            ("copa", r#"{"query": "q", "choices": "ab", "gold": 0}"#.into(), "`choices` must be a list, found a text"),
            ("copa", format!("{fine}\n{{\"query\": \"q"), "data/x.jsonl:2: not a JSON object (EOF"),
            ("copa", "[1]".into(), "not a JSON object"),
            ("copa", "{}".into(), "this one has nothing"),
            ("copa", "\n\n".into(), "data/x.jsonl: holds no item"),
            ("copa", String::new(), "data/x.jsonl: holds no item"),
            ("winogrande", fine.into(), "the field `context_options` is missing"),
            ("lambada_openai", r#"{"context": "q"}"#.into(), "the field `continuation` is missing"),
            ("jeopardy", r#"{"context": "q", "continuation": "a"}"#.into(), "the field `category` is missing"),
        ] {
            let error = format!("{:#}", parse(label, &text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let error = read(find("copa").unwrap(), "x", b"{}\n\xff").unwrap_err().to_string();
        assert!(error.contains("x:2: not UTF-8"), "{error}");
    }
}
