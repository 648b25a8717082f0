//! Column types of JSON: what one value is, and the type that holds two. Pure; knows no files and no tables.
//!
//! Widening: Null → anything; Int64 → Float64; whole numbers past Int64 → UInt64; unlike scalars → Utf8; one value beside
//! lists → a list of one. An object with more than [`MAX_FIELDS`] different keys is a map. Only an object beside a scalar in
//! one column has no plain type: that column becomes Utf8 with JSON text.

use arrow::datatypes::{DataType, Field, Fields, Schema};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::{collections::HashMap, fmt, sync::Arc};

/// Fields of a nested object beyond which its keys are data and not names.
pub(super) const MAX_FIELDS: usize = 256;

/// The type of a column or of a part of one.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum Kind {
    /// Only null, `{}` or missing so far.
    #[default]
    Null,
    Bool,
    Int {
        negative: bool,
        /// Past the range of Int64.
        big: bool,
    },
    Float,
    Text,
    List(Box<Kind>),
    Struct(Names),
    Map(Box<Kind>),
    /// JSON text, the last resort.
    Json,
}

/// Named kinds in order of first appearance.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Names {
    pub(super) list: Vec<(String, Kind)>,
    index: HashMap<String, usize>,
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<(usize, &Kind)> {
        let at = *self.index.get(name)?;
        Some((at, &self.list[at].1))
    }

    /// Widens the kind of `name` so that it also holds `kind`.
    pub(super) fn widen(&mut self, name: String, kind: Kind) {
        match self.index.get(&name) {
            Some(&at) => {
                let former = std::mem::take(&mut self.list[at].1);
                self.list[at].1 = former.join(kind);
            }
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, kind));
            }
        }
    }

    pub(super) fn join(mut self, other: Self) -> Self {
        for (name, kind) in other.list {
            self.widen(name, kind);
        }
        self
    }

    fn joined_values(self) -> Kind {
        self.list.into_iter().fold(Kind::Null, |sum, (_, kind)| sum.join(kind))
    }
}

impl Kind {
    /// The narrowest kind that holds both.
    pub(super) fn join(self, other: Self) -> Self {
        use Kind::{Bool, Float, Int, Json, List, Map, Null, Struct, Text};
        match (self, other) {
            (Null, kind) | (kind, Null) => kind,
            (Struct(names), kind) | (kind, Struct(names)) if names.list.is_empty() => kind,
            (Json, _) | (_, Json) => Json,
            (Int { negative, big }, Int { negative: n, big: b }) => Int { negative: negative || n, big: big || b },
            (Int { .. } | Float, Int { .. } | Float) => Float,
            (Bool, Bool) => Bool,
            (List(a), List(b)) => List(Box::new(a.join(*b))),
            (List(a), b) | (b, List(a)) => List(Box::new(a.join(b))),
            (Struct(a), Struct(b)) => {
                let joined = a.join(b);
                if joined.list.len() > MAX_FIELDS { Map(Box::new(joined.joined_values())) } else { Struct(joined) }
            }
            (Map(a), Map(b)) => Map(Box::new(a.join(*b))),
            (Map(a), Struct(b)) | (Struct(b), Map(a)) => Map(Box::new(a.join(b.joined_values()))),
            (Struct(_) | Map(_), _) | (_, Struct(_) | Map(_)) => Json,
            (Bool | Int { .. } | Float | Text, Bool | Int { .. } | Float | Text) => Text,
        }
    }

    /// The Arrow type of the column.
    pub(super) fn arrow(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int { big: false, .. } => DataType::Int64,
            Self::Int { big: true, negative: false } => DataType::UInt64,
            Self::Int { .. } | Self::Float => DataType::Float64,
            Self::List(item) => DataType::List(Arc::new(list_item(item))),
            Self::Struct(names) if !names.list.is_empty() => DataType::Struct(struct_fields(names)),
            Self::Map(value) => DataType::Map(Arc::new(map_entries(value)), false),
            Self::Null | Self::Text | Self::Json | Self::Struct(_) => DataType::Utf8,
        }
    }

    /// Whether JSON text stands anywhere in the column.
    pub(super) fn has_json(&self) -> bool {
        match self {
            Self::Json => true,
            Self::List(inner) | Self::Map(inner) => inner.has_json(),
            Self::Struct(names) => names.list.iter().any(|(_, kind)| kind.has_json()),
            _ => false,
        }
    }
}

pub(super) fn list_item(item: &Kind) -> Field {
    Field::new_list_field(item.arrow(), true)
}

pub(super) fn struct_fields(names: &Names) -> Fields {
    names.list.iter().map(|(name, kind)| Field::new(name, kind.arrow(), true)).collect()
}

pub(super) fn map_fields(value: &Kind) -> Fields {
    Schema::new(vec![Field::new("key", DataType::Utf8, false), Field::new("value", value.arrow(), true)]).fields
}

pub(super) fn map_entries(value: &Kind) -> Field {
    Field::new("entries", DataType::Struct(map_fields(value)), false)
}

/// The kinds of one row's fields, read without building values.
pub(super) fn row_kinds(line: &str) -> Option<Names> {
    let mut reader = serde_json::Deserializer::from_str(line);
    let kind = Seed.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    match kind {
        Kind::Struct(names) => Some(names),
        _ => None,
    }
}

struct Seed;

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Kind;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Kind, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Bool)
    }
    fn visit_i64<E: Error>(self, n: i64) -> Result<Kind, E> {
        Ok(Kind::Int { negative: n < 0, big: false })
    }
    fn visit_u64<E: Error>(self, n: u64) -> Result<Kind, E> {
        Ok(Kind::Int { negative: false, big: i64::try_from(n).is_err() })
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Float)
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<Kind, E> {
        Ok(Kind::Text)
    }
    fn visit_unit<E: Error>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Kind, A::Error> {
        let mut item = Kind::Null;
        while let Some(next) = items.next_element_seed(Seed)? {
            item = item.join(next);
        }
        Ok(Kind::List(Box::new(item)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Kind, A::Error> {
        let mut names = Names::default();
        while let Some(name) = fields.next_key::<String>()? {
            names.widen(name, fields.next_value_seed(Seed)?);
        }
        Ok(Kind::Struct(names))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// The Arrow type of column `x` over several rows.
    fn check(values: &[&str], expected: &str) {
        let rows = values.iter().map(|v| row_kinds(&format!("{{\"x\":{v}}}")).unwrap());
        let all = rows.fold(Names::default(), Names::join);
        assert_eq!(all.get("x").unwrap().1.arrow().to_string(), expected, "{values:?}");
    }

    #[test]
    fn scalars_widen() {
        check(&["null"], "Utf8");
        check(&["null", "true"], "Boolean");
        check(&["1", "null", "-2"], "Int64");
        check(&["1", "1.5"], "Float64");
        check(&["1", "18446744073709551615"], "UInt64");
        check(&["-1", "18446744073709551615"], "Float64");
        check(&["1", "\"a\""], "Utf8");
        check(&["true", "1"], "Utf8");
    }

    #[test]
    fn nested_values_stay_nested() {
        check(&["[]"], "List(Utf8)");
        check(&["[1]", "[2.5]"], "List(Float64)");
        check(&["\"a\"", "[\"b\"]"], "List(Utf8)");
        check(&["{\"a\":1}", "{\"b\":\"x\"}"], "Struct(\"a\": Int64, \"b\": Utf8)");
        check(&["{}"], "Utf8");
        check(&["{\"a\":1}", "5"], "Utf8");
    }

    #[test]
    fn many_keys_are_a_map() {
        let keys: Vec<String> = (0..300).map(|i| format!("{{\"k{i}\":{i}}}")).collect();
        let rows: Vec<&str> = keys.iter().map(String::as_str).collect();
        check(&rows, "Map(\"entries\": non-null Struct(\"key\": non-null Utf8, \"value\": Int64), unsorted)");
    }

    #[test]
    fn broken_rows_have_no_kinds() {
        for line in ["", "{", "[1]", "5", "{\"a\":1} x"] {
            assert!(row_kinds(line).is_none(), "{line}");
        }
    }
}
