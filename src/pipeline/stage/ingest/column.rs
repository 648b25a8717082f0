//! Arrow columns from JSON values. A value is checked first, so that a row goes into all columns or into none.

use super::kind::{self, Kind, Names};
use arrow::{
    array::{
        ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, ListArray, MapArray, NullBufferBuilder, StringBuilder,
        StructArray, UInt64Builder,
    },
    buffer::{OffsetBuffer, ScalarBuffer},
};
use serde_json::Value;
use std::sync::Arc;

/// Says where and why `value` does not fit a column of `kind`.
pub(super) fn fits(kind: &Kind, value: &Value, path: &str) -> Result<(), String> {
    let wrong = |wanted: &str| Err(format!("column `{path}`: {} is not {wanted}", shown(value)));
    match (kind, value) {
        (_, Value::Null) | (Kind::Json, _) => Ok(()),
        (_, Value::Object(map)) if map.is_empty() => Ok(()),
        (Kind::Bool, v) => {
            if v.is_boolean() {
                Ok(())
            } else {
                wrong("true or false")
            }
        }
        (Kind::Int { big: false, .. }, v) => {
            if v.is_i64() {
                Ok(())
            } else {
                wrong("a whole number (Int64)")
            }
        }
        (Kind::Int { big: true, negative: false }, v) => {
            if v.is_u64() {
                Ok(())
            } else {
                wrong("a whole number (UInt64)")
            }
        }
        (Kind::Int { .. } | Kind::Float, v) => {
            if v.is_number() {
                Ok(())
            } else {
                wrong("a number")
            }
        }
        (Kind::List(item), Value::Array(values)) => values.iter().try_for_each(|v| fits(item, v, path)),
        (Kind::List(item), one) => fits(item, one, path),
        (Kind::Map(item), Value::Object(map)) => {
            map.iter().try_for_each(|(k, v)| fits(item, v, &format!("{path}.{k}")))
        }
        (Kind::Map(_), _) => wrong("an object"),
        (Kind::Struct(names), Value::Object(map)) if !names.list.is_empty() => {
            map.iter().try_for_each(|(k, v)| match names.get(k) {
                Some((_, kind)) => fits(kind, v, &format!("{path}.{k}")),
                None if v.is_null() => Ok(()),
                None => Err(format!("column `{path}` has no field `{k}`")),
            })
        }
        (Kind::Struct(names), _) if !names.list.is_empty() => wrong("an object"),
        (Kind::Text | Kind::Null | Kind::Struct(_), Value::Array(_) | Value::Object(_)) => {
            wrong("a single value (Utf8)")
        }
        (Kind::Text | Kind::Null | Kind::Struct(_), _) => Ok(()),
    }
}

/// A value in a message: short.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Builds one column. Values must fit ([`fits`]).
pub(super) enum Column {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    UInt(UInt64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
    Json(StringBuilder),
    List { kind: Kind, ends: Vec<i32>, valid: NullBufferBuilder, items: Box<Column> },
    Struct { names: Names, valid: NullBufferBuilder, columns: Vec<Column> },
    Map { kind: Kind, ends: Vec<i32>, valid: NullBufferBuilder, keys: StringBuilder, values: Box<Column> },
}

impl Column {
    pub(super) fn new(kind: &Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
            Kind::Int { big: false, .. } => Self::Int(Int64Builder::new()),
            Kind::Int { big: true, negative: false } => Self::UInt(UInt64Builder::new()),
            Kind::Int { .. } | Kind::Float => Self::Float(Float64Builder::new()),
            Kind::Json => Self::Json(StringBuilder::new()),
            Kind::List(item) => Self::List {
                kind: (**item).clone(),
                ends: vec![0],
                valid: NullBufferBuilder::new(0),
                items: Box::new(Self::new(item)),
            },
            Kind::Struct(names) if !names.list.is_empty() => Self::Struct {
                names: names.clone(),
                valid: NullBufferBuilder::new(0),
                columns: names.list.iter().map(|(_, kind)| Self::new(kind)).collect(),
            },
            Kind::Map(value) => Self::Map {
                kind: (**value).clone(),
                ends: vec![0],
                valid: NullBufferBuilder::new(0),
                keys: StringBuilder::new(),
                values: Box::new(Self::new(value)),
            },
            Kind::Null | Kind::Text | Kind::Struct(_) => Self::Text(StringBuilder::new()),
        }
    }

    pub(super) fn push(&mut self, value: &Value) {
        match self {
            Self::Bool(b) => b.append_option(value.as_bool()),
            Self::Int(b) => b.append_option(value.as_i64()),
            Self::UInt(b) => b.append_option(value.as_u64()),
            Self::Float(b) => b.append_option(value.as_f64()),
            Self::Text(b) => match value {
                Value::String(text) => b.append_value(text),
                Value::Bool(_) | Value::Number(_) => b.append_value(value.to_string()),
                _ => b.append_null(),
            },
            Self::Json(b) => match value {
                Value::Null => b.append_null(),
                // A lone string stays as it is; everything else is written as JSON.
                Value::String(text) => b.append_value(text),
                other => b.append_value(other.to_string()),
            },
            Self::List { ends, valid, items, .. } => push_list(value, ends, valid, items),
            Self::Struct { names, valid, columns } => {
                let object = value.as_object();
                valid.append(object.is_some());
                for ((name, _), column) in names.list.iter().zip(columns) {
                    column.push(object.and_then(|o| o.get(name)).unwrap_or(&Value::Null));
                }
            }
            Self::Map { ends, valid, keys, values, .. } => {
                let object = value.as_object();
                valid.append(object.is_some());
                for (key, value) in object.into_iter().flatten() {
                    keys.append_value(key);
                    values.push(value);
                }
                let last = *ends.last().expect("starts with 0");
                ends.push(last + object.map_or(0, |o| o.len() as i32));
            }
        }
    }

    pub(super) fn finish(self) -> ArrayRef {
        let offsets = |ends: Vec<i32>| OffsetBuffer::new(ScalarBuffer::from(ends));
        match self {
            Self::Bool(mut b) => Arc::new(b.finish()),
            Self::Int(mut b) => Arc::new(b.finish()),
            Self::UInt(mut b) => Arc::new(b.finish()),
            Self::Float(mut b) => Arc::new(b.finish()),
            Self::Text(mut b) | Self::Json(mut b) => Arc::new(b.finish()),
            Self::List { kind, ends, mut valid, items } => Arc::new(ListArray::new(
                Arc::new(kind::list_item(&kind)),
                offsets(ends),
                items.finish(),
                valid.finish(),
            )),
            Self::Struct { names, mut valid, columns } => {
                let arrays = columns.into_iter().map(Self::finish).collect();
                Arc::new(StructArray::new(kind::struct_fields(&names), arrays, valid.finish()))
            }
            Self::Map { kind, ends, mut valid, mut keys, values } => {
                let entries =
                    StructArray::new(kind::map_fields(&kind), vec![Arc::new(keys.finish()), values.finish()], None);
                Arc::new(MapArray::new(
                    Arc::new(kind::map_entries(&kind)),
                    offsets(ends),
                    entries,
                    valid.finish(),
                    false,
                ))
            }
        }
    }
}

fn push_list(value: &Value, ends: &mut Vec<i32>, valid: &mut NullBufferBuilder, items: &mut Column) {
    let empty = value.as_object().is_some_and(serde_json::Map::is_empty);
    let values = match value {
        Value::Null => &[],
        _ if empty => &[],
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    valid.append(!value.is_null() && !empty);
    values.iter().for_each(|v| items.push(v));
    let last = *ends.last().expect("starts with 0");
    ends.push(last + values.len() as i32);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_shape() {
        let lines = [r#"{"x":{"a":[1,2],"b":"t"}}"#, r#"{"x":null}"#, r#"{"x":{"a":7}}"#, r#"{"x":{}}"#];
        let kinds = lines.iter().map(|l| kind::row_kinds(l).unwrap()).fold(Names::default(), Names::join);
        let (_, kind) = kinds.get("x").unwrap();
        let mut column = Column::new(kind);
        for line in lines {
            let row: Value = serde_json::from_str(line).unwrap();
            fits(kind, &row["x"], "x").unwrap();
            column.push(&row["x"]);
        }
        let shown = arrow::util::pretty::pretty_format_columns("x", &[column.finish()]).unwrap().to_string();
        let rows: Vec<&str> = shown.lines().filter(|l| l.starts_with("| ")).skip(1).map(str::trim).collect();
        assert_eq!(rows[0], "| {a: [1, 2], b: t} |");
        assert_eq!(rows[1].replace(' ', ""), "||");
        assert_eq!(rows[2].trim_end_matches(['|', ' ']), "| {a: [7], b: }");
    }

    #[test]
    fn misfits_name_their_place() {
        let kinds = kind::row_kinds(r#"{"m":{"n":1}}"#).unwrap();
        let (_, kind) = kinds.get("m").unwrap();
        let error = |text: &str| fits(kind, &serde_json::from_str(text).unwrap(), "m").unwrap_err();
        assert_eq!(error(r#"{"n":1.5}"#), "column `m.n`: 1.5 is not a whole number (Int64)");
        assert_eq!(error(r#"{"z":1}"#), "column `m` has no field `z`");
        assert_eq!(error("3"), "column `m`: 3 is not an object");
    }
}
