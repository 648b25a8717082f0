//! A part of the tree → any serde type, with every error at once.
//!
//! serde stops at the first error. So an error is noted, the tree is mended at that place (an unknown key is taken out, a
//! wrong or missing value becomes a [`Value::Hole`], which decodes as anything), and decoding starts again.

use super::{
    node::{Entry, Node, Value},
    problem::{Place, Problems, list, suggest},
};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor, value::StrDeserializer,
};
use std::fmt;

/// Decodes `node`; every fault goes to `problems`. None if there was any.
pub fn decode<T: DeserializeOwned>(node: &Node, problems: &mut Problems) -> Option<T> {
    let mut tree = node.clone();
    let mut clean = !tree.holed();
    // Each round mends one place; the bound only guards against a type that is never satisfied.
    for _ in 0..1000 {
        let fault = match T::deserialize(De(&tree)) {
            Ok(value) => return clean.then_some(value),
            Err(fault) => fault,
        };
        let fresh = report(&tree, &fault, problems);
        clean = false;
        if !fresh || !mend(&mut tree, &fault) {
            return None;
        }
    }
    None
}

/// Adds the fault to the problems, unless it comes from a hole. Says whether it was new.
fn report(tree: &Node, fault: &Fault, problems: &mut Problems) -> bool {
    let steps = fault.path.iter().rev();
    let Some((node, key_at)) = walk(tree, steps) else { return false };
    if node.value == Value::Hole {
        return false;
    }
    let at = match &fault.kind {
        Kind::UnknownKey => key_at.unwrap_or(&node.at),
        _ => &node.at,
    };
    let message = match fault.message.starts_with("data did not match any variant") {
        // What serde says of an untagged enum names the type in the program, not what was written.
        true => format!("{} does not fit here; see the documentation of this key", node.kind()),
        false => fault.message.clone(),
    };
    problems.add(at, message);
    true
}

/// The node at the end of the path and the place of its key.
fn walk<'a>(tree: &'a Node, steps: impl Iterator<Item = &'a Step>) -> Option<(&'a Node, Option<&'a Place>)> {
    let (mut node, mut key_at) = (tree, None);
    for step in steps {
        match (step, &node.value) {
            (Step::Key(key), Value::Map(entries)) => {
                let entry = entries.iter().find(|e| e.key == *key)?;
                (node, key_at) = (&entry.value, Some(&entry.key_at));
            }
            (Step::Index(i), Value::List(items)) => (node, key_at) = (items.get(*i)?, None),
            // A variant's content is the value of its only key.
            (Step::Key(_), _) | (Step::Index(_), _) => return None,
        }
    }
    Some((node, key_at))
}

/// Changes the tree so that the same fault cannot come again.
fn mend(tree: &mut Node, fault: &Fault) -> bool {
    let mut node = tree;
    let (last, steps) = match (fault.kind, fault.path.split_first()) {
        (Kind::UnknownKey, Some((last, rest))) => (Some(last), rest),
        _ => (None, &fault.path[..]),
    };
    for step in steps.iter().rev() {
        let next = match (step, &mut node.value) {
            (Step::Key(key), Value::Map(entries)) => entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.value),
            (Step::Index(i), Value::List(items)) => items.get_mut(*i),
            _ => None,
        };
        match next {
            Some(next) => node = next,
            None => return false,
        }
    }
    match (fault.kind, last, &mut node.value) {
        (Kind::UnknownKey, Some(Step::Key(key)), Value::Map(entries)) => entries.retain(|e| e.key != *key),
        (Kind::Missing(key), _, Value::Map(entries)) => {
            let hole = Node { at: node.at.clone(), value: Value::Hole };
            entries.push(Entry { key: key.to_owned(), key_at: node.at.clone(), value: hole });
        }
        _ => node.value = Value::Hole,
    }
    true
}

/// One step down the tree.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// The last step is a key that the type does not know.
    UnknownKey,
    /// The mapping at the path lacks this key.
    Missing(&'static str),
    /// The value at the path does not fit.
    Wrong,
}

/// A decoding error with the path to its node, innermost step first.
#[derive(Debug)]
struct Fault {
    message: String,
    kind: Kind,
    path: Vec<Step>,
}

impl Fault {
    fn wrong(message: String) -> Self {
        Self { message, kind: Kind::Wrong, path: Vec::new() }
    }
    fn below(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::wrong(message.to_string())
    }
    fn invalid_type(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::wrong(format!("expected {}, found {}", plain(&expected.to_string()), shown(found)))
    }
    fn invalid_value(found: Unexpected, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self { kind: Kind::UnknownKey, ..Self::wrong(format!("unknown key `{field}`{}", suggest(field, known))) }
    }
    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let choice = suggest(variant, known);
        let choice = if choice.starts_with("; known") { format!("; one of {}", list(known)) } else { choice };
        Self::wrong(format!("`{variant}` is not a choice here{choice}"))
    }
    fn missing_field(field: &'static str) -> Self {
        Self { kind: Kind::Missing(field), ..Self::wrong(format!("the key `{field}` is missing; add it")) }
    }
}

/// serde's names of expected types in plain words.
fn plain(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a string" | "path string" => "a text",
        "a sequence" => "a list",
        "a map" => "a mapping",
        other if other.starts_with("struct ") => "a mapping",
        other => other,
    }
}

fn shown(found: Unexpected) -> String {
    match found {
        Unexpected::Unit | Unexpected::Option => "nothing".into(),
        Unexpected::Bool(b) => format!("`{b}`"),
        Unexpected::Unsigned(n) => format!("the number `{n}`"),
        Unexpected::Signed(n) => format!("the number `{n}`"),
        Unexpected::Float(n) => format!("the number `{n}`"),
        Unexpected::Str(t) => format!("the text `{t}`"),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a mapping".into(),
        other => other.to_string(),
    }
}

/// serde's view of a node.
struct De<'a>(&'a Node);

impl De<'_> {
    fn hole(&self) -> bool {
        self.0.value == Value::Hole
    }
}

/// What a hole is for each wanted type; other nodes say what they are and the type decides.
macro_rules! scalar {
    ($($method:ident => $visit:ident($value:expr)),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            if self.hole() { visitor.$visit($value) } else { self.deserialize_any(visitor) }
        })*
    };
}

impl<'de> Deserializer<'de> for De<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Null | Value::Hole => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(n) => visitor.visit_i64(*n),
            Value::Float(n) => visitor.visit_f64(*n),
            Value::Text(t) => visitor.visit_str(t),
            Value::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Map(entries) => visitor.visit_map(Entries { entries, next: 0 }),
        }
    }
    scalar! {
        deserialize_bool => visit_bool(false),
        deserialize_i8 => visit_i8(1), deserialize_i16 => visit_i16(1), deserialize_i32 => visit_i32(1),
        deserialize_i64 => visit_i64(1), deserialize_i128 => visit_i128(1),
        deserialize_u8 => visit_u8(1), deserialize_u16 => visit_u16(1), deserialize_u32 => visit_u32(1),
        deserialize_u64 => visit_u64(1), deserialize_u128 => visit_u128(1),
        deserialize_f32 => visit_f32(1.0), deserialize_f64 => visit_f64(1.0),
        deserialize_char => visit_char('x'), deserialize_str => visit_str("hole"), deserialize_string => visit_str("hole"),
        deserialize_identifier => visit_str("hole"),
        deserialize_seq => visit_seq(Items { items: &[], next: 0 }),
        deserialize_map => visit_map(Entries { entries: &[], next: 0 }),
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.value {
            Value::Null | Value::Hole => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Hole => visitor.visit_map(Entries { entries: &[], next: 0 }),
            // A derived struct would take a list by position; a mapping is meant.
            Value::List(_) => Err(Fault::wrong("expected a mapping, found a list".into())),
            // `sft:` with nothing after it is a mapping without keys.
            Value::Null => visitor.visit_map(Entries { entries: &[], next: 0 }),
            _ => self.deserialize_any(visitor),
        }
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Text(name) => visitor.visit_enum(Variant { name, node: None }),
            Value::Map(entries) if entries.len() == 1 => {
                visitor.visit_enum(Variant { name: &entries[0].key, node: Some(&entries[0].value) })
            }
            Value::Hole if !variants.is_empty() => visitor.visit_enum(Variant { name: variants[0], node: None }),
            _ => Err(Fault::wrong(format!("expected one of {}, found {}", list(variants), self.0.kind()))),
        }
    }
    serde::forward_to_deserialize_any! { bytes byte_buf unit unit_struct tuple tuple_struct ignored_any }
}

struct Items<'a> {
    items: &'a [Node],
    next: usize,
}
impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        self.next += 1;
        seed.deserialize(De(node)).map(Some).map_err(|f| f.below(Step::Index(self.next - 1)))
    }
}

struct Entries<'a> {
    entries: &'a [Entry],
    next: usize,
}
impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some(entry) = self.entries.get(self.next) else { return Ok(None) };
        let key: StrDeserializer<'_, Fault> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|f| f.below(Step::Key(entry.key.clone())))
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let entry = &self.entries[self.next];
        self.next += 1;
        seed.deserialize(De(&entry.value)).map_err(|f| f.below(Step::Key(entry.key.clone())))
    }
}

struct Variant<'a> {
    name: &'a str,
    node: Option<&'a Node>,
}
impl<'a, 'de> EnumAccess<'de> for Variant<'a> {
    type Error = Fault;
    type Variant = Content<'a>;
    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Content<'a>), Fault> {
        let name: StrDeserializer<'_, Fault> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, Content { name: self.name, node: self.node }))
    }
}

/// What stands behind a variant's name.
struct Content<'a> {
    name: &'a str,
    node: Option<&'a Node>,
}
impl Content<'_> {
    fn inside<T>(&self, take: impl FnOnce(De<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        let node = self.node.ok_or_else(|| Fault::wrong(format!("`{}` needs a value", self.name)))?;
        take(De(node)).map_err(|f| f.below(Step::Key(self.name.to_owned())))
    }
}
impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = Fault;
    fn unit_variant(self) -> Result<(), Fault> {
        match self.node {
            None => Ok(()),
            Some(_) => Err(Fault::wrong(format!("`{}` takes no value", self.name))),
        }
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        self.inside(|de| seed.deserialize(de))
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.inside(|de| de.deserialize_seq(visitor))
    }
    fn struct_variant<V: Visitor<'de>>(self, known: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.inside(|de| de.deserialize_struct("", known, visitor))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Fast,
        Slow { steps: u64 },
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        rate: f32,
    }
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        name: String,
        count: usize,
        mode: Mode,
        inner: Option<Inner>,
        #[serde(default)]
        tags: Vec<String>,
    }

    fn run(text: &str) -> (Option<Outer>, String) {
        let mut problems = Problems::default();
        let node = Node::parse("f", text, &mut problems).unwrap();
        let value = decode(&node, &mut problems);
        (value, problems.to_string())
    }

    #[test]
    fn good_values_decode() {
        let (value, problems) = run("name: a\ncount: 3\nmode: {slow: {steps: 2}}\ninner: {rate: 1}\ntags: [x]\n");
        assert_eq!(problems, "");
        let expected = Outer {
            name: "a".into(),
            count: 3,
            mode: Mode::Slow { steps: 2 },
            inner: Some(Inner { rate: 1.0 }),
            tags: vec!["x".into()],
        };
        assert_eq!(value, Some(expected));
    }

    #[test]
    fn all_errors_come_at_once_each_with_its_place() {
        let text = "name: 5\ncuont: 3\nmode: fsat\ninner: {rat: 1, rate: fast}\ntags: [x, 7]\n";
        assert_eq!(
            run(text),
            (
                None,
                "f:1:1: the key `count` is missing; add it\n\
                 f:1:7: expected a text, found the number `5`\n\
                 f:2:1: unknown key `cuont`; did you mean `count`?\n\
                 f:3:7: `fsat` is not a choice here; did you mean `fast`?\n\
                 f:4:9: unknown key `rat`; did you mean `rate`?\n\
                 f:4:23: expected a number, found the text `fast`\n\
                 f:5:11: expected a text, found the number `7`"
                    .into()
            )
        );
    }

    #[test]
    fn wrong_shapes() {
        assert!(run("[1, 2]").1.contains("f:1:1: expected a mapping, found a list"));
        assert!(
            run("name: a\ncount: -1\nmode: fast")
                .1
                .contains("f:2:8: expected a whole number, 0 or more, found the number `-1`")
        );
        assert!(run("name: a\ncount: 1\nmode: {slow: {}}").1.contains("f:3:14: the key `steps` is missing; add it"));
        assert!(run("name: a\ncount: 1\nmode: [1]").1.contains("expected one of `fast`, `slow`, found a list"));
    }
}
