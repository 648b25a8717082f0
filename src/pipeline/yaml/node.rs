//! The tree: parsed once, every value with its place. Duplicate keys are problems, not overwritten values.

use super::problem::{Place, Problems};
use serde::{
    Deserialize,
    de::{Deserializer, Error, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Spanned, options::DuplicateKeyPolicy};
use std::{fmt, sync::Arc};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub at: Place,
    /// What it is.
    pub value: Value,
}

/// A YAML value by the rules of YAML 1.2: only `true` and `false` are booleans.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A text, quoted or not.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping; every key once.
    Map(Vec<Entry>),
    /// Stands for a value that was already reported as wrong or missing; decodes as anything.
    Hole,
}

/// One `key: value` of a mapping, in file order.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Where the key stands.
    pub key_at: Place,
    /// What the key is given.
    pub value: Node,
}

impl Node {
    /// Parses one document. Syntax errors end the parse; duplicate keys are reported and the first one stays.
    pub fn parse(file: &str, text: &str, problems: &mut Problems) -> Option<Self> {
        let mut options = serde_saphyr::Options::default();
        options.duplicate_keys = DuplicateKeyPolicy::LastWins;
        options.strict_booleans = true;
        options.with_snippet = false;
        options.emit_comments = false;
        let file: Arc<str> = file.into();
        match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
            Ok(raw) => Some(Converter { file, problems }.node(raw)),
            Err(error) => {
                let (line, column) = error.location().map_or((0, 0), |l| (l.line() as usize, l.column() as usize));
                let place = Place { file, line, column };
                problems.add(&place, format!("not valid YAML: {}", one_line(&error)));
                None
            }
        }
    }

    /// What the value is, for messages.
    pub fn kind(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Int(n) => format!("the number `{n}`"),
            Value::Float(n) => format!("the number `{n}`"),
            Value::Text(t) => format!("the text `{t}`"),
            Value::List(_) => "a list".into(),
            Value::Map(_) | Value::Hole => "a mapping".into(),
        }
    }

    /// Whether a value in it was already reported as wrong.
    pub fn holed(&self) -> bool {
        match &self.value {
            Value::Hole => true,
            Value::List(items) => items.iter().any(Self::holed),
            Value::Map(entries) => entries.iter().any(|e| e.value.holed()),
            _ => false,
        }
    }

    /// Where the text `wanted` stands in it.
    pub fn find_text(&self, wanted: &str) -> Option<&Place> {
        match &self.value {
            Value::Text(text) if text == wanted => Some(&self.at),
            Value::List(items) => items.iter().find_map(|item| item.find_text(wanted)),
            Value::Map(entries) => entries.iter().find_map(|e| e.value.find_text(wanted)),
            _ => None,
        }
    }

    /// The value of a mapping's entry, to be changed.
    pub fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::Map(entries) => entries.iter_mut().find(|e| e.key == key).map(|e| &mut e.value),
            _ => None,
        }
    }

    /// The entry of a mapping.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }
}

/// The parser's own words without its position (ours is in front) and without line breaks.
fn one_line(error: &serde_saphyr::Error) -> String {
    let shown = error.without_snippet().to_string();
    let message = shown.split(" at line ").next().unwrap_or(&shown);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Converter<'a> {
    file: Arc<str>,
    problems: &'a mut Problems,
}

impl Converter<'_> {
    fn place(&self, location: serde_saphyr::Location) -> Place {
        Place { file: self.file.clone(), line: location.line() as usize, column: location.column() as usize }
    }
    fn node(&mut self, raw: Spanned<Raw>) -> Node {
        let at = self.place(raw.referenced);
        let value = match raw.value {
            Raw::Scalar(value) => value,
            Raw::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            Raw::Map(pairs) => Value::Map(self.entries(pairs)),
        };
        Node { at, value }
    }
    fn entries(&mut self, pairs: Vec<(Spanned<String>, Spanned<Raw>)>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let key_at = self.place(key.referenced);
            let mut value = self.node(value);
            if value.value == Value::Null {
                value.at = key_at.clone();
            }
            match entries.iter().find(|e| e.key == key.value) {
                Some(first) => {
                    let line = first.key_at.line;
                    self.problems
                        .add(&key_at, format!("`{}` is given twice (first in line {line}); remove one", key.value));
                }
                None => entries.push(Entry { key: key.value, key_at, value }),
            }
        }
        entries
    }
}

/// The tree as serde hands it over, before it has file names.
enum Raw {
    Scalar(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;
impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_unit<E: Error>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }
    fn visit_none<E: Error>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }
    fn visit_bool<E: Error>(self, b: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Bool(b)))
    }
    fn visit_i64<E: Error>(self, n: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Int(n)))
    }
    fn visit_u64<E: Error>(self, n: u64) -> Result<Raw, E> {
        i64::try_from(n)
            .map(|n| Raw::Scalar(Value::Int(n)))
            .map_err(|_| E::custom(format!("the number {n} is too large (at most {})", i64::MAX)))
    }
    fn visit_f64<E: Error>(self, n: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Float(n)))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Text(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Raw::Map(pairs))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(text: &str) -> (Option<Node>, String) {
        let mut problems = Problems::default();
        let node = Node::parse("f.yaml", text, &mut problems);
        (node, problems.to_string())
    }

    #[test]
    fn values_keep_type_and_place() {
        let (node, problems) = parse("a: 1\nb:\n  - x\n  - 2.5\nc: {d: true, e: 'true', f: yes}\ng:\n");
        let node = node.unwrap();
        assert_eq!(problems, "");
        let b = &node.get("b").unwrap().value;
        let Value::List(items) = &b.value else { panic!("{b:?}") };
        assert_eq!((items[1].at.line, items[1].at.column), (4, 5));
        assert_eq!(items[1].value, Value::Float(2.5));
        let c = node.get("c").unwrap();
        assert_eq!((c.key_at.line, c.key_at.column), (5, 1));
        assert_eq!(c.value.get("d").unwrap().value.value, Value::Bool(true));
        assert_eq!(c.value.get("e").unwrap().value.value, Value::Text("true".into()));
        assert_eq!(c.value.get("f").unwrap().value.value, Value::Text("yes".into()));
        let g = node.get("g").unwrap();
        assert_eq!((&g.value.value, g.value.at.line), (&Value::Null, 6));
    }

    #[test]
    fn every_duplicate_key_is_reported_and_the_first_stays() {
        let (node, problems) = parse("a: 1\nb: {c: 1, c: 2}\na: 3\na: 4\n");
        assert_eq!(
            problems,
            "f.yaml:2:11: `c` is given twice (first in line 2); remove one\n\
             f.yaml:3:1: `a` is given twice (first in line 1); remove one\n\
             f.yaml:4:1: `a` is given twice (first in line 1); remove one"
        );
        assert_eq!(node.unwrap().get("a").unwrap().value.value, Value::Int(1));
    }

    #[test]
    fn broken_syntax_has_a_place() {
        let (node, problems) = parse("a: [1, 2\nb: 3\n");
        assert!(node.is_none());
        assert!(problems.starts_with("f.yaml:2:") && problems.contains("not valid YAML"), "{problems}");
    }
}
