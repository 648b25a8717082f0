//! Rollouts and metrics as record batches of plain columns. Knows the schema; not where the tables go.
//!
//! `rollouts`: step, split (`train` or `held_out`), prompt_id, sample, completion (the whole answer), text (behind the marker),
//! one column for each part of the reward, total, advantage, n_tokens, kl, clipped, entropy, finish_reason (`stop`, `length`),
//! error. What does not apply is NULL: advantage, kl and clipped of held-out rollouts, kl without a reference.
//! `metrics`: step, name, value, wall_seconds.

use super::{
    policy::ExampleReport,
    rollout::{Part, Rollout},
};
use crate::engine::FinishReason;
use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use std::sync::Arc;

/// Which prompts a rollout is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Trained on.
    Train,
    /// Only measured.
    HeldOut,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }
}

/// A rollout with what the update made of it.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Completion and rewards.
    pub rollout: &'a Rollout,
    /// None where it was not learned from.
    pub advantage: Option<f64>,
    /// None where it was not learned from.
    pub report: Option<ExampleReport>,
    /// Whether there is a reference that kl is measured against.
    pub with_reference: bool,
}

/// Columns of the rollouts.
pub fn rollout_schema(parts: &[Part]) -> SchemaRef {
    let mut fields = vec![
        Field::new("step", DataType::Int64, false),
        Field::new("split", DataType::Utf8, false),
        Field::new("prompt_id", DataType::Utf8, false),
        Field::new("sample", DataType::Int64, false),
        Field::new("completion", DataType::Utf8, false),
        Field::new("text", DataType::Utf8, false),
    ];
    fields.extend(parts.iter().map(|part| Field::new(&part.name, DataType::Float64, true)));
    fields.extend(["total", "advantage"].map(|name| Field::new(name, DataType::Float64, true)));
    fields.push(Field::new("n_tokens", DataType::Int64, false));
    fields.extend(["kl", "clipped", "entropy"].map(|name| Field::new(name, DataType::Float64, true)));
    fields.push(Field::new("finish_reason", DataType::Utf8, false));
    fields.push(Field::new("error", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

/// The rollouts of one step.
///
/// # Errors
/// Only those of Arrow.
pub fn rollout_batch(parts: &[Part], step: u64, split: Split, rows: &[Row<'_>]) -> anyhow::Result<RecordBatch> {
    let floats = |value: &dyn Fn(&Row) -> Option<f64>| -> ArrayRef {
        Arc::new(rows.iter().map(value).collect::<Float64Array>())
    };
    let integers = |value: &dyn Fn(&Row) -> usize| -> ArrayRef {
        Arc::new(rows.iter().map(|row| value(row) as i64).collect::<Int64Array>())
    };
    let texts = |value: &dyn Fn(&Row) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(value).collect::<StringArray>())
    };
    let mut columns = vec![
        integers(&|_| step as usize),
        texts(&|_| Some(split.name().to_owned())),
        texts(&|row| Some(row.rollout.prompt_id.clone())),
        integers(&|row| row.rollout.sample),
        texts(&|row| Some(row.rollout.answer.clone())),
        texts(&|row| Some(row.rollout.text.clone())),
    ];
    columns.extend((0..parts.len()).map(|i| floats(&|row| row.rollout.scored.values.get(i).copied().flatten())));
    columns.extend([
        floats(&|row| row.rollout.total),
        floats(&|row| row.advantage),
        integers(&|row| row.rollout.tokens.len()),
        floats(&|row| row.report.filter(|_| row.with_reference).map(|r| r.kl)),
        floats(&|row| row.report.map(|r| r.clipped)),
        floats(&|row| row.report.map(|r| r.entropy)),
        texts(&|row| {
            Some(match row.rollout.finish {
                FinishReason::Stop => "stop".to_owned(),
                FinishReason::Length => "length".to_owned(),
            })
        }),
        texts(&|row| row.rollout.scored.error.clone()),
    ]);
    Ok(RecordBatch::try_new(rollout_schema(parts), columns)?)
}

/// One figure of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// `reward`, `reward/<part>`, `kl`, `held_out/reward`, …
    pub name: String,
    /// Its value.
    pub value: f64,
}

/// Columns of the metrics.
pub fn metric_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("step", DataType::Int64, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("value", DataType::Float64, false),
        Field::new("wall_seconds", DataType::Float64, false),
    ]))
}

/// The figures of one step; `wall_seconds` counts from the start of training, earlier runs included.
///
/// # Errors
/// Only those of Arrow.
pub fn metric_batch(step: u64, metrics: &[Metric], wall_seconds: f64) -> anyhow::Result<RecordBatch> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(metrics.iter().map(|_| step as i64).collect::<Int64Array>()),
        Arc::new(StringArray::from_iter_values(metrics.iter().map(|m| &m.name))),
        Arc::new(metrics.iter().map(|m| m.value).collect::<Float64Array>()),
        Arc::new(metrics.iter().map(|_| wall_seconds).collect::<Float64Array>()),
    ];
    Ok(RecordBatch::try_new(metric_schema(), columns)?)
}
