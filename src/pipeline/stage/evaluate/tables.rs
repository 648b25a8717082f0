//! The rows of an `evaluate` stage's two tables, and their columns.

use super::{Config, items_table};
use crate::{
    eval::{
        metrics::{self, Mark, Mean},
        prompt::Question,
        read::Item,
        score::Answer,
        tasks::{Kind, Task},
    },
    pipeline::stage::StageContext,
    storage::commit::FragmentRecord,
    text::tokenizer::Tokenizer,
};
use anyhow::Context;
use arrow::{
    array::{
        Array, ArrayRef, BooleanArray, Float32Array, Float32Builder, Float64Array, Int32Array, Int64Array, ListArray,
        ListBuilder, RecordBatch, StringArray,
    },
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::{collections::BTreeMap, sync::Arc};

/// One row of the stage's own table.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TaskRow {
    pub(super) task: String,
    pub(super) group: Option<&'static str>,
    /// `accuracy`, or `loss` of a held-out table.
    pub(super) metric: &'static str,
    /// `scored` or `missing`.
    pub(super) status: &'static str,
    pub(super) core: bool,
    pub(super) shots: Option<i32>,
    pub(super) n: i64,
    pub(super) failed: i64,
    pub(super) trimmed: i64,
    pub(super) accuracy: Option<f64>,
    pub(super) baselines: Option<&'static str>,
    pub(super) baseline: Option<f64>,
    pub(super) centered: Option<f64>,
    pub(super) loss: Option<f64>,
    pub(super) model: String,
    pub(super) seconds: f64,
}

impl TaskRow {
    pub(super) fn new(task: &Task, config: &Config, items: &[ItemRow], failed: u64, seconds: f64) -> Self {
        let marks: Vec<Mark> = items.iter().map(ItemRow::mark).collect();
        let score = metrics::score(&marks);
        let baseline = task.baseline(config.baselines);
        Self {
            task: task.label.to_owned(),
            group: Some(task.group.name()),
            metric: "accuracy",
            status: if items.is_empty() && failed == 0 { "missing" } else { "scored" },
            core: task.core,
            shots: Some(task.shots as i32),
            n: items.len() as i64,
            failed: failed as i64,
            trimmed: items.iter().filter(|i| i.trimmed).count() as i64,
            accuracy: score.map(|s| s.accuracy),
            baselines: Some(config.baselines.name()),
            baseline: Some(baseline),
            centered: score.map(|s| metrics::centered(s.accuracy, baseline)),
            loss: score.map(|s| s.gold_loss),
            model: config.model.clone(),
            seconds,
        }
    }
}

/// Core over the rows that are there.
pub(super) fn core(rows: &[TaskRow]) -> Mean {
    let centered: BTreeMap<&str, f64> =
        rows.iter().filter_map(|row| Some((row.task.as_str(), row.centered?))).collect();
    metrics::core(&centered)
}

/// One row of the table of items.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ItemRow {
    pub(super) task: String,
    /// Row of the task's file, from 0.
    pub(super) item: i64,
    pub(super) category: Option<String>,
    /// Index of the right candidate and of the model's; NULL where the answer has to be given word for word.
    pub(super) gold: Option<i32>,
    pub(super) prediction: Option<i32>,
    pub(super) correct: bool,
    /// Mean cross-entropy a token of each candidate.
    pub(super) losses: Vec<f32>,
    /// The right answer and the model's, as text.
    pub(super) answer: String,
    pub(super) predicted: String,
    /// Tokens of the longest candidate with its context.
    pub(super) tokens: i32,
    pub(super) trimmed: bool,
}

impl ItemRow {
    pub(super) fn new(
        task: &Task,
        item: &Item,
        question: &Question,
        answer: Answer,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Self> {
        let answers = item.body.answers();
        let text = |i: usize| answers.get(i).map(|t| (*t).to_owned()).unwrap_or_default();
        let predicted = match (answer.prediction, &answer.greedy) {
            (Some(choice), _) => text(choice),
            (None, Some(greedy)) => tokenizer.decode(greedy)?,
            (None, None) => String::new(),
        };
        debug_assert_eq!(question.gold.is_none(), task.kind == Kind::LanguageModeling);
        Ok(Self {
            task: task.label.to_owned(),
            item: item.index as i64,
            category: item.category.clone(),
            gold: question.gold.map(|g| g as i32),
            prediction: answer.prediction.map(|p| p as i32),
            correct: answer.correct,
            losses: answer.losses,
            answer: text(question.gold.unwrap_or(0)),
            predicted,
            tokens: question.candidates.iter().map(|c| c.tokens.len()).max().unwrap_or(0) as i32,
            trimmed: question.trimmed,
        })
    }

    fn mark(&self) -> Mark {
        let gold = self.losses.get(self.gold.unwrap_or(0) as usize).copied().unwrap_or(f32::NAN);
        Mark { category: self.category.clone(), correct: self.correct, gold_loss: f64::from(gold) }
    }
}

/// Columns of the stage's own table.
pub(super) fn task_schema() -> SchemaRef {
    let field = |name: &str, kind: DataType, null: bool| Field::new(name, kind, null);
    Arc::new(Schema::new(vec![
        field("task", DataType::Utf8, false),
        field("group", DataType::Utf8, true),
        field("metric", DataType::Utf8, false),
        field("status", DataType::Utf8, false),
        field("core", DataType::Boolean, false),
        field("shots", DataType::Int32, true),
        field("n", DataType::Int64, false),
        field("failed", DataType::Int64, false),
        field("trimmed", DataType::Int64, false),
        field("accuracy", DataType::Float64, true),
        field("baselines", DataType::Utf8, true),
        field("baseline", DataType::Float64, true),
        field("centered", DataType::Float64, true),
        field("loss", DataType::Float64, true),
        field("model", DataType::Utf8, false),
        field("seconds", DataType::Float64, false),
    ]))
}

/// The rows in those columns.
pub(super) fn task_batch(rows: &[TaskRow]) -> anyhow::Result<RecordBatch> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.task))),
        Arc::new(rows.iter().map(|r| r.group).collect::<StringArray>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.metric))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.status))),
        Arc::new(rows.iter().map(|r| Some(r.core)).collect::<BooleanArray>()),
        Arc::new(rows.iter().map(|r| r.shots).collect::<Int32Array>()),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.n))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.failed))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.trimmed))),
        Arc::new(rows.iter().map(|r| r.accuracy).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|r| r.baselines).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.baseline).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|r| r.centered).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|r| r.loss).collect::<Float64Array>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.model))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.seconds))),
    ];
    Ok(RecordBatch::try_new(task_schema(), columns)?)
}

/// Columns of the table of items.
pub(super) fn item_schema() -> SchemaRef {
    let field = |name: &str, kind: DataType, null: bool| Field::new(name, kind, null);
    let losses = DataType::List(Arc::new(Field::new("item", DataType::Float32, true)));
    Arc::new(Schema::new(vec![
        field("task", DataType::Utf8, false),
        field("item", DataType::Int64, false),
        field("category", DataType::Utf8, true),
        field("gold", DataType::Int32, true),
        field("prediction", DataType::Int32, true),
        field("correct", DataType::Boolean, false),
        field("losses", losses, false),
        field("answer", DataType::Utf8, false),
        field("predicted", DataType::Utf8, false),
        field("tokens", DataType::Int32, false),
        field("trimmed", DataType::Boolean, false),
    ]))
}

/// The rows in those columns.
pub(super) fn item_batch(rows: &[ItemRow]) -> anyhow::Result<RecordBatch> {
    let mut losses = ListBuilder::new(Float32Builder::new());
    for row in rows {
        losses.values().append_slice(&row.losses);
        losses.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.task))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.item))),
        Arc::new(rows.iter().map(|r| r.category.as_deref()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.gold).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|r| r.prediction).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|r| Some(r.correct)).collect::<BooleanArray>()),
        Arc::new(losses.finish()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.answer))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.predicted))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.tokens))),
        Arc::new(rows.iter().map(|r| Some(r.trimmed)).collect::<BooleanArray>()),
    ];
    Ok(RecordBatch::try_new(item_schema(), columns)?)
}

/// The rows of a fragment that a former run finished.
pub(super) async fn read_items(cx: &StageContext, record: &FragmentRecord) -> anyhow::Result<Vec<ItemRow>> {
    let Some(file) = &record.file else { return Ok(Vec::new()) };
    let directory = cx.location.join(&items_table(&cx.output));
    let shown = format!("{directory}/{}", file.path);
    let bytes = directory.read(&file.path).await?.with_context(|| format!("{shown} is missing"))?;
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).with_context(|| shown.clone())?.build()? {
        rows.extend(from_batch(&batch?).with_context(|| shown.clone())?);
    }
    Ok(rows)
}

fn from_batch(batch: &RecordBatch) -> anyhow::Result<Vec<ItemRow>> {
    fn column<'a, T: 'static>(batch: &'a RecordBatch, name: &str) -> anyhow::Result<&'a T> {
        let found = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<T>());
        found.with_context(|| format!("no column `{name}` of the expected type"))
    }
    let text = |name| column::<StringArray>(batch, name);
    let (task, category) = (text("task")?, text("category")?);
    let (answer, predicted) = (text("answer")?, text("predicted")?);
    let number = |name| column::<Int32Array>(batch, name);
    let (gold, prediction, tokens) = (number("gold")?, number("prediction")?, number("tokens")?);
    let item = column::<Int64Array>(batch, "item")?;
    let (correct, trimmed) = (column::<BooleanArray>(batch, "correct")?, column::<BooleanArray>(batch, "trimmed")?);
    let losses = column::<ListArray>(batch, "losses")?;
    let row = |i: usize| {
        let values = losses.value(i);
        let values = values.as_any().downcast_ref::<Float32Array>().context("`losses` holds no 32-bit floats")?;
        Ok(ItemRow {
            task: task.value(i).to_owned(),
            item: item.value(i),
            category: category.is_valid(i).then(|| category.value(i).to_owned()),
            gold: gold.is_valid(i).then(|| gold.value(i)),
            prediction: prediction.is_valid(i).then(|| prediction.value(i)),
            correct: correct.value(i),
            losses: values.values().to_vec(),
            answer: answer.value(i).to_owned(),
            predicted: predicted.value(i).to_owned(),
            tokens: tokens.value(i),
            trimmed: trimmed.value(i),
        })
    };
    (0..batch.num_rows()).map(row).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_their_columns() {
        let row = |item, gold: Option<i32>| ItemRow {
            task: "jeopardy".into(),
            item,
            category: gold.map(|g| format!("c{g}")),
            gold,
            prediction: gold.map(|g| 1 - g),
            correct: gold.is_none(),
            losses: vec![0.5, 1.5],
            answer: "a".into(),
            predicted: "b".into(),
            tokens: 7,
            trimmed: item == 1,
        };
        let rows = vec![row(0, None), row(1, Some(1)), row(2, Some(0))];
        assert_eq!(from_batch(&item_batch(&rows).unwrap()).unwrap(), rows);
        assert_eq!(rows[1].mark().gold_loss, 1.5);
        assert!(item_batch(&[]).unwrap().num_rows() == 0);
    }
}
