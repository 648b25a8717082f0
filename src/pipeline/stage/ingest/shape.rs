//! From a block of source rows to a batch of the table, and the rows that cannot be in it with the reason. Pure, in parallel.

use super::{
    Config,
    column::{self, Column},
    lines::{Block, Line, Lines},
    plan::Layout,
    types,
};
use crate::storage::commit::FailedRow;
use anyhow::Context;
use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, StringBuilder, new_null_array,
    },
    compute::filter_record_batch,
    datatypes::DataType,
};
use serde_json::Value;
use std::sync::Arc;

/// Rows as they come from a file.
#[derive(Debug)]
pub(super) enum Body {
    Lines(Lines),
    Batch(RecordBatch),
}

/// Rows as they go into the table.
#[derive(Debug)]
pub(super) struct Shaped {
    pub(super) batch: RecordBatch,
    pub(super) failed: Vec<FailedRow>,
    pub(super) input: u64,
}

/// Knows what the rows of one file are to become.
#[derive(Debug, Clone)]
pub(super) struct Shaper {
    pub(super) config: Arc<Config>,
    pub(super) layout: Arc<Layout>,
    pub(super) uri: Arc<str>,
}

impl Shaper {
    pub(super) fn shape(&self, block: &Block<Body>) -> anyhow::Result<Shaped> {
        match &block.rows {
            Body::Lines(lines) => self.lines(lines, block.first_row),
            Body::Batch(batch) => self.batch(batch, block.first_row),
        }
    }

    pub(super) fn failed(&self, row: u64, error: String) -> FailedRow {
        FailedRow { row_id: format!("{}#{row}", self.uri), error, attempts: 1 }
    }

    fn lines(&self, lines: &Lines, first_row: u64) -> anyhow::Result<Shaped> {
        let mut own = Own::default();
        let mut columns: Vec<Column> = self.layout.carried.iter().map(|c| Column::new(&c.kind)).collect();
        let mut failed = Vec::new();
        for (line, row) in lines.iter().zip(first_row..) {
            match self.json_row(&line) {
                Ok((object, id)) => {
                    let text = object.get(&self.config.text_column).and_then(Value::as_str).unwrap_or_default();
                    own.push(id, text, &self.uri, row);
                    for (carried, column) in self.layout.carried.iter().zip(&mut columns) {
                        column.push(object.get(&carried.source).unwrap_or(&Value::Null));
                    }
                }
                Err(error) => failed.push(self.failed(row, error)),
            }
        }
        let mut arrays = own.finish(&self.uri);
        for (carried, column) in self.layout.carried.iter().zip(columns) {
            arrays.push(types::adapt(&column.finish(), &carried.data_type)?);
        }
        let batch = RecordBatch::try_new(self.layout.schema.clone(), arrays)?;
        Ok(Shaped { batch, failed, input: lines.len() as u64 })
    }

    /// The row's fields, checked, and its id if the source gives one.
    fn json_row(&self, line: &Line<'_>) -> Result<(serde_json::Map<String, Value>, Option<String>), String> {
        let limit = self.config.max_line_bytes;
        let bytes = match line {
            Line::TooLong(n) => return Err(format!("the line has {n} bytes, more than max_line_bytes ({limit})")),
            Line::Whole(bytes) => bytes,
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|e| format!("not valid UTF-8 at byte {} of the line", e.valid_up_to()))?;
        let value = serde_json::from_str(text)
            .map_err(|e| format!("not JSON: {e}").replace(" at line 1 column ", " at column "))?;
        let Value::Object(object) = value else { return Err(format!("{}, not an object", article(&value))) };
        let name = &self.config.text_column;
        match object.get(name) {
            Some(Value::String(text)) => self.check_text(text)?,
            None => return Err(format!("no field `{name}`")),
            Some(other) => return Err(format!("`{name}` is {}, not text", article(other))),
        }
        let id = match &self.config.id_column {
            None => None,
            Some(name) => Some(match object.get(name) {
                Some(Value::String(id)) if !id.is_empty() => id.clone(),
                Some(Value::Number(id)) => id.to_string(),
                _ => return Err(format!("the id `{name}` is missing or empty")),
            }),
        };
        for (name, value) in &object {
            match self.layout.position(name).map(|at| &self.layout.carried[at]) {
                Some(carried) => column::fits(&carried.kind, value, name).map_err(|e| self.types_note(e))?,
                None if *name == self.config.text_column
                    || self.config.id_column.as_ref() == Some(name)
                    || value.is_null() => {}
                None => return Err(self.types_note(format!("column `{name}` is new"))),
            }
        }
        Ok((object, id))
    }

    fn types_note(&self, error: String) -> String {
        let bytes = self.config.infer_bytes;
        format!(
            "{error}; column types are learnt from the first {bytes} bytes of every file: raise infer_bytes, or set `columns`"
        )
    }

    fn check_text(&self, text: &str) -> Result<(), String> {
        let limit = self.config.max_text_bytes;
        match text.len() as u64 {
            n if n > limit => Err(format!("the text has {n} bytes, more than max_text_bytes ({limit})")),
            _ if text.trim().is_empty() => Err("the text is empty".to_owned()),
            _ => Ok(()),
        }
    }

    fn batch(&self, batch: &RecordBatch, first_row: u64) -> anyhow::Result<Shaped> {
        let text_column = batch.column_by_name(&self.config.text_column).context("the text column was there before")?;
        let text = types::adapt(text_column, &DataType::Utf8)?;
        let id = self.config.id_column.as_ref().map(|name| match batch.column_by_name(name) {
            Some(column) => types::adapt(column, &DataType::Utf8),
            None => Ok(new_null_array(&DataType::Utf8, batch.num_rows())),
        });
        let id = id.transpose()?;
        let mut errors: Vec<Option<String>> =
            (0..batch.num_rows()).map(|i| self.parquet_row(text.as_string(), id.as_ref(), i).err()).collect();
        let mut carried = Vec::with_capacity(self.layout.carried.len());
        for column in &self.layout.carried {
            carried.push(match batch.column_by_name(&column.source) {
                Some(array) => adapted(array, &column.data_type, &column.source, &mut errors)?,
                None => new_null_array(&column.data_type, batch.num_rows()),
            });
        }
        let mut own = Own::default();
        for (i, row) in (0..batch.num_rows()).zip(first_row..) {
            let given = id.as_ref().map(|id| id.as_string::<i32>().value(i).to_owned());
            own.push(given, text.as_string::<i32>().value(i), &self.uri, row);
        }
        let mut arrays = own.finish(&self.uri);
        arrays.append(&mut carried);
        let all = RecordBatch::try_new(self.layout.schema.clone(), arrays)?;
        let keep = BooleanArray::from_iter(errors.iter().map(|e| Some(e.is_none())));
        let failed = errors.into_iter().zip(first_row..).filter_map(|(e, row)| Some(self.failed(row, e?))).collect();
        Ok(Shaped { input: all.num_rows() as u64, batch: filter_record_batch(&all, &keep)?, failed })
    }

    fn parquet_row(&self, text: &StringArray, id: Option<&ArrayRef>, row: usize) -> Result<(), String> {
        if text.is_null(row) {
            return Err(format!("`{}` is null, not text", self.config.text_column));
        }
        self.check_text(text.value(row))?;
        match (id, &self.config.id_column) {
            (Some(id), Some(name)) if id.is_null(row) || id.as_string::<i32>().value(row).is_empty() => {
                Err(format!("the id `{name}` is missing or empty"))
            }
            _ => Ok(()),
        }
    }
}

/// A source column as the table's type; rows whose value does not fit are noted.
fn adapted(array: &ArrayRef, target: &DataType, name: &str, errors: &mut [Option<String>]) -> anyhow::Result<ArrayRef> {
    let out = types::adapt(array, target).with_context(|| format!("column `{name}`"))?;
    if array.data_type() != target {
        let before = array.logical_nulls();
        for (i, error) in errors.iter_mut().enumerate() {
            let lost = out.is_null(i) && before.as_ref().is_none_or(|nulls| nulls.is_valid(i));
            if lost && error.is_none() {
                *error = Some(format!("column `{name}`: the value does not fit {target}"));
            }
        }
    }
    Ok(out)
}

fn article(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The columns that every ingested table has.
#[derive(Default)]
struct Own {
    id: StringBuilder,
    text: StringBuilder,
    row: Vec<i64>,
}

impl Own {
    fn push(&mut self, id: Option<String>, text: &str, uri: &str, row: u64) {
        self.id.append_value(id.unwrap_or_else(|| row_id(text, uri, row)));
        self.text.append_value(text);
        self.row.push(row as i64);
    }

    fn finish(mut self, uri: &str) -> Vec<ArrayRef> {
        let uris = StringArray::from_iter_values(std::iter::repeat_n(uri, self.row.len()));
        vec![
            Arc::new(self.id.finish()),
            Arc::new(self.text.finish()),
            Arc::new(uris),
            Arc::new(Int64Array::from(self.row)),
        ]
    }
}

/// 128 bits of the BLAKE3 hash of source uri, row and text, in hexadecimal.
fn row_id(text: &str, uri: &str, row: u64) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&(uri.len() as u64).to_le_bytes());
    hash.update(uri.as_bytes());
    hash.update(&row.to_le_bytes());
    hash.update(text.as_bytes());
    hash.finalize().to_hex()[..32].to_owned()
}
