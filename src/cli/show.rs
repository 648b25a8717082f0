//! Rows of a query as text: a table, CSV, or JSON lines. On a terminal long cells are shortened; elsewhere nothing is.

use super::output::width;
use anyhow::{Context, Result};
use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    csv,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    json::{LineDelimitedWriter, WriterBuilder, writer::LineDelimited},
    util::{
        display::{ArrayFormatter, FormatOptions},
        pretty::pretty_format_batches_with_options,
    },
};
use futures::{Stream, StreamExt};
use std::{fmt::Display, io::Write, sync::Arc};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    Csv,
    Json,
}

/// Characters of a cell on a terminal, in a table.
const CELL: usize = 40;
/// Lines of a cell on a terminal, where each row is a block.
const BLOCK_LINES: usize = 40;
/// Lines of a cell of a sample.
const SAMPLE_LINES: usize = 6;

/// Writes all rows; gives their number.
///
/// # Errors
/// The query fails on the way, or the rows cannot be written.
pub async fn show<E: Display>(
    schema: &SchemaRef,
    mut stream: impl Stream<Item = Result<RecordBatch, E>> + Unpin,
    format: Format,
    mut out: impl Write,
    terminal: bool,
) -> Result<u64> {
    let mut rows = 0;
    let mut kept = Vec::new();
    if format == Format::Csv {
        csv_lines(&RecordBatch::new_empty(Arc::clone(schema)), Header::Yes, &mut out)?;
    }
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(|error| anyhow::anyhow!("the query failed: {error}"))?;
        rows += batch.num_rows() as u64;
        match format {
            Format::Table => kept.push(batch),
            Format::Json => json_lines(&batch, &mut out)?,
            Format::Csv => csv_lines(&batch, Header::No, &mut out)?,
        }
    }
    if format == Format::Table {
        table(schema, &kept, &mut out, terminal)?;
    }
    out.flush()?;
    Ok(rows)
}

/// Whether the line of column names is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    Yes,
    No,
}

fn json_lines(batch: &RecordBatch, out: &mut impl Write) -> Result<()> {
    let mut writer: LineDelimitedWriter<_> =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out);
    writer.write(batch).context("cannot write a row as JSON")?;
    Ok(writer.finish()?)
}

fn csv_lines(batch: &RecordBatch, header: Header, out: &mut impl Write) -> Result<()> {
    let flat = flat(batch)?;
    csv::WriterBuilder::new()
        .with_header(header == Header::Yes)
        .build(out)
        .write(&flat)
        .context("cannot write a row as CSV")
}

/// Nested columns as JSON text: CSV has plain cells only.
fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
            columns.push(json_texts(field, column)?);
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        } else {
            columns.push(Arc::clone(column));
            fields.push(Arc::clone(field));
        }
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

/// Each value of a column as JSON, NULL where it is.
fn json_texts(field: &Field, column: &ArrayRef) -> Result<ArrayRef> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", field.data_type().clone(), true)]));
    let mut texts = Vec::with_capacity(column.len());
    for row in 0..column.len() {
        if column.is_null(row) {
            texts.push(None);
            continue;
        }
        let mut line = Vec::new();
        let one = RecordBatch::try_new(Arc::clone(&schema), vec![column.slice(row, 1)])?;
        json_lines(&one, &mut line)?;
        let object: serde_json::Value = serde_json::from_slice(&line)?;
        texts.push(Some(object["v"].to_string()));
    }
    Ok(Arc::new(StringArray::from(texts)))
}

fn options() -> FormatOptions<'static> {
    FormatOptions::default().with_null("NULL")
}

fn table(schema: &SchemaRef, batches: &[RecordBatch], out: &mut impl Write, terminal: bool) -> Result<()> {
    if !terminal {
        let empty = [RecordBatch::new_empty(Arc::clone(schema))];
        let batches = if batches.is_empty() { &empty[..] } else { batches };
        writeln!(out, "{}", pretty_format_batches_with_options(batches, &options())?)?;
        return Ok(());
    }
    let rows = cells(batches)?;
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    let longest = |c: usize| rows.iter().map(|r| shortened(&r[c]).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = names.iter().enumerate().map(|(c, n)| longest(c).max(n.chars().count())).collect();
    let fits = widths.iter().map(|w| w + 3).sum::<usize>() < width() + 2;
    let right: Vec<bool> = schema.fields().iter().map(|f| f.data_type().is_numeric()).collect();
    // Few rows with long texts are read better one below the other.
    let long = rows.len() <= 5 && rows.iter().flatten().any(|cell| cell.chars().count() > CELL);
    match fits && !long {
        true => aligned(&names, &rows, &widths, &right, out),
        false => blocks(&names, &rows, Size { width: width(), lines: BLOCK_LINES }, out),
    }
}

/// Each value as text.
pub fn cells(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>> {
    let options = options();
    let mut rows = Vec::new();
    for batch in batches {
        let formatters: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c.as_ref(), &options))
            .collect::<Result<_, ArrowError>>()?;
        for row in 0..batch.num_rows() {
            rows.push(formatters.iter().map(|f| printable(&f.value(row).to_string())).collect());
        }
    }
    Ok(rows)
}

/// Control characters of a document must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// One line of at most `room` characters.
pub fn one_line(cell: &str, room: usize) -> String {
    let line = cell.replace('\n', "↵").replace('\t', " ");
    match line.char_indices().nth(room) {
        Some(_) => line.chars().take(room - 1).chain(['…']).collect(),
        None => line,
    }
}

fn shortened(cell: &str) -> String {
    one_line(cell, CELL)
}

/// A few rows as blocks, long values cut after a few lines.
///
/// # Errors
/// A value that cannot be shown.
pub fn sample(batches: &[RecordBatch], width: usize, out: &mut impl Write) -> Result<()> {
    let Some(first) = batches.first() else { return Ok(()) };
    let schema = first.schema();
    let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    blocks(&names, &cells(batches)?, Size { width, lines: SAMPLE_LINES }, out)
}

/// Characters of a line and lines of a value.
#[derive(Clone, Copy)]
struct Size {
    width: usize,
    lines: usize,
}

fn aligned(names: &[&str], rows: &[Vec<String>], widths: &[usize], right: &[bool], out: &mut impl Write) -> Result<()> {
    let line = |cells: Vec<String>, right: &[bool]| -> String {
        let padded = cells.iter().enumerate().map(|(c, cell)| match right[c] {
            true => format!(" {cell:>w$} ", w = widths[c]),
            false => format!(" {cell:<w$} ", w = widths[c]),
        });
        padded.collect::<Vec<_>>().join("│")
    };
    writeln!(out, "{}", line(names.iter().map(|n| (*n).to_owned()).collect(), right).trim_end())?;
    writeln!(out, "{}", widths.iter().map(|w| "─".repeat(w + 2)).collect::<Vec<_>>().join("┼"))?;
    for row in rows {
        writeln!(out, "{}", line(row.iter().map(|cell| shortened(cell)).collect(), right).trim_end())?;
    }
    Ok(())
}

/// Each row as a block of `name │ value` lines, wrapped to the terminal.
fn blocks(names: &[&str], rows: &[Vec<String>], size: Size, out: &mut impl Write) -> Result<()> {
    let Size { width, lines: most } = size;
    let name_width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
    let room = width.saturating_sub(name_width + 3).max(20);
    for (i, row) in rows.iter().enumerate() {
        let title = format!("── row {} ", i + 1);
        writeln!(out, "{title}{}", "─".repeat(width.saturating_sub(title.chars().count())))?;
        for (name, cell) in names.iter().zip(row) {
            let lines = wrapped(cell, room);
            for (n, line) in lines.iter().take(most).enumerate() {
                let label = if n == 0 { *name } else { "" };
                writeln!(out, "{}", format!("{label:<name_width$} │ {line}").trim_end())?;
            }
            if let Some(rest) = lines.get(most..).filter(|rest| !rest.is_empty()) {
                writeln!(out, "{:<name_width$} │ … {} more lines", "", rest.len())?;
            }
        }
    }
    Ok(())
}

/// The text's lines, broken between words where they are too long.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let mut current = String::new();
        for word in line.split_inclusive(' ') {
            if !current.is_empty() && current.chars().count() + word.trim_end().chars().count() > room {
                lines.push(std::mem::take(&mut current).trim_end().to_owned());
            }
            current.push_str(word);
            while current.trim_end().chars().count() > room {
                let cut = current.char_indices().nth(room).map_or(current.len(), |(at, _)| at);
                let rest = current.split_off(cut);
                lines.push(std::mem::replace(&mut current, rest));
            }
        }
        lines.push(current.trim_end().to_owned());
    }
    lines
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, ListArray};

    fn batch() -> RecordBatch {
        let list =
            ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([Some(vec![Some(1), None]), None]);
        RecordBatch::try_from_iter_with_nullable([
            ("n", Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef, true),
            ("t", Arc::new(StringArray::from(vec![Some("a \"b\"\nc, d"), None])) as ArrayRef, true),
            ("l", Arc::new(list) as ArrayRef, true),
        ])
        .unwrap()
    }

    #[test]
    fn json_has_one_object_a_line_with_nulls() {
        let mut out = Vec::new();
        json_lines(&batch(), &mut out).unwrap();
        let expected = "{\"n\":1,\"t\":\"a \\\"b\\\"\\nc, d\",\"l\":[1,null]}\n{\"n\":null,\"t\":null,\"l\":null}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn csv_quotes_and_writes_nested_values_as_json() {
        let mut out = Vec::new();
        csv_lines(&batch(), Header::Yes, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "n,t,l\n1,\"a \"\"b\"\"\nc, d\",\"[1,null]\"\n,,\n");
    }

    #[test]
    fn long_cells_are_shortened_and_blocks_wrapped() {
        assert_eq!(shortened("a\nb"), "a↵b");
        assert_eq!(shortened(&"x".repeat(50)).chars().count(), CELL);
        assert_eq!(wrapped("one two three\n\nfour", 8), ["one two", "three", "", "four"]);
        assert_eq!(wrapped("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrapped("abc defg hi", 8), ["abc defg", "hi"]);
        let mut out = Vec::new();
        blocks(&["id", "text"], &[vec!["1".into(), "one two three".into()]], Size { width: 27, lines: 9 }, &mut out)
            .unwrap();
        let expected = "── row 1 ──────────────────\nid   │ 1\ntext │ one two three\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
