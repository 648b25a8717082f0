//! The `figure` stage: a query and a chart of its rows. Yields the rows as a table, so that what is shown can be queried, with
//! `figure.svg` in the table's directory.

use super::{StageContext, sql};
use crate::storage::{manifest::Manifest, reader::SourceFile};
use anyhow::{Context, bail, ensure};
use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type},
};
use chart::{Chart, Mark, Point, Series, X};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub mod chart;

/// The picture's name in the table's directory.
pub const FILE: &str = "figure.svg";
/// Rows that a chart can show.
const MOST_ROWS: u64 = 10_000;

/// Settings of a `figure` stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// File with one SELECT statement.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The statement itself, instead of a file.
    #[serde(default)]
    pub query: Option<String>,
    /// `line` over numbers or `bar` over names.
    #[serde(default)]
    pub mark: Kind,
    /// Column of the horizontal axis. Lines join points in the order of the rows.
    pub x: String,
    /// Column of the values; rows where it is NULL are left out.
    pub y: String,
    /// Column with half the length of an error bar, e.g. a standard deviation.
    #[serde(default)]
    pub error: Option<String>,
    /// Column that tells the series apart, each of its own colour.
    #[serde(default)]
    pub series: Option<String>,
    /// Above the chart.
    #[serde(default)]
    pub title: String,
    /// Below the horizontal axis. Default: the column's name.
    #[serde(default)]
    pub x_label: Option<String>,
    /// Beside the vertical axis. Default: the column's name.
    #[serde(default)]
    pub y_label: Option<String>,
}

impl Config {
    /// The query alone, as a `sql` stage has it.
    pub fn sql(&self) -> sql::Config {
        sql::Config { file: self.file.clone(), query: self.query.clone(), fragment_rows: None }
    }
}

/// How the points are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Points joined by a line.
    #[default]
    Line,
    /// A bar for each row.
    Bar,
}

/// Runs the query, draws its rows, then publishes them.
///
/// # Errors
/// Those of the query; a column that is not there or not a number; more rows than a chart can show.
pub async fn run(config: &Config, query: &sql::Query, cx: &StageContext) -> anyhow::Result<Manifest> {
    let commit = sql::execute(query, cx).await?;
    let rows = commit.totals().kept;
    ensure!(rows <= MOST_ROWS, "a figure of {rows} rows cannot be read; the query should give {MOST_ROWS} at most");
    let directory = cx.location.join(&cx.output);
    let mut series = Vec::new();
    for file in commit.files() {
        let file = directory.join(&file.path);
        let meta = file.head().await?.with_context(|| format!("{file} is missing"))?;
        let source = SourceFile::new(file, meta);
        let read = move || {
            let reader = ParquetRecordBatchReaderBuilder::try_new(source.ranges()?)?.build()?;
            anyhow::Ok(reader.collect::<Result<Vec<RecordBatch>, _>>()?)
        };
        for batch in tokio::task::spawn_blocking(read).await.context("reading the rows ended early")?? {
            add(config, &batch, &mut series)?;
        }
    }
    let label = |label: &Option<String>, column: &String| label.clone().unwrap_or_else(|| column.clone());
    let mark = match config.mark {
        Kind::Line => Mark::Line,
        Kind::Bar => Mark::Bar,
    };
    let chart = Chart {
        title: config.title.clone(),
        x_label: label(&config.x_label, &config.x),
        y_label: label(&config.y_label, &config.y),
        mark,
        series,
    };
    directory.write(FILE, chart.svg().into()).await?;
    sql::publish(commit, cx).await
}

fn add(config: &Config, batch: &RecordBatch, all: &mut Vec<Series>) -> anyhow::Result<()> {
    let values = numbers(batch, &config.y)?;
    let errors = config.error.as_ref().map(|name| numbers(batch, name)).transpose()?;
    let names = config.series.as_ref().map(|name| texts(batch, name)).transpose()?;
    let places = match config.mark {
        Kind::Line => Places::Numbers(numbers(batch, &config.x)?),
        Kind::Bar => Places::Names(texts(batch, &config.x)?),
    };
    for row in (0..batch.num_rows()).filter(|row| values.is_valid(*row)) {
        let Some(x) = places.at(row) else { continue };
        let error = errors.as_ref().filter(|e| e.is_valid(row)).map(|e| e.as_primitive::<Float64Type>().value(row));
        let point = Point { x, y: values.as_primitive::<Float64Type>().value(row), error };
        let name = names.as_ref().filter(|n| n.is_valid(row)).map_or("", |n| n.as_string::<i32>().value(row));
        match all.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => all.push(Series { name: name.to_owned(), points: vec![point] }),
        }
    }
    Ok(())
}

enum Places {
    Numbers(ArrayRef),
    Names(ArrayRef),
}

impl Places {
    fn at(&self, row: usize) -> Option<X> {
        match self {
            Self::Numbers(numbers) => {
                numbers.is_valid(row).then(|| X::Number(numbers.as_primitive::<Float64Type>().value(row)))
            }
            Self::Names(names) => names.is_valid(row).then(|| X::Name(names.as_string::<i32>().value(row).to_owned())),
        }
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> anyhow::Result<&'a ArrayRef> {
    let schema = batch.schema();
    let has = || schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
    batch.column_by_name(name).with_context(|| format!("the query gives no column `{name}`; it gives {}", has()))
}

fn numbers(batch: &RecordBatch, name: &str) -> anyhow::Result<ArrayRef> {
    let found = column(batch, name)?;
    if !found.data_type().is_numeric() {
        bail!("the column `{name}` is {}, not a number", found.data_type());
    }
    Ok(cast(found, &DataType::Float64)?)
}

fn texts(batch: &RecordBatch, name: &str) -> anyhow::Result<ArrayRef> {
    cast(column(batch, name)?, &DataType::Utf8).with_context(|| format!("the column `{name}` cannot be shown as text"))
}
