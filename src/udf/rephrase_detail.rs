//! `rephrase_detail(text [, model])`: the rephrased document with how it came about. A failed document has NULL fields and its error.

use super::{CallOutput, ModelFunction, models::Models, rephrase::rephrase_all};
use crate::{engine::FinishReason, udf::rephrase::external};
use arrow::{
    array::{ArrayRef, BooleanArray, Int64Array, StringArray, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields},
};
use datafusion::error::Result;
use std::{ops::RangeInclusive, sync::Arc};

/// See the file.
#[derive(Debug)]
pub struct RephraseDetail;

/// Fields of the result.
fn fields() -> Fields {
    let text = |name| Field::new(name, DataType::Utf8, true);
    let count = |name| Field::new(name, DataType::Int64, true);
    Fields::from(vec![
        text("text"),
        count("chunks"),
        count("prompt_tokens"),
        count("output_tokens"),
        text("finish_reason"),
        Field::new("truncated", DataType::Boolean, true),
        text("error"),
        text("model_hash"),
        text("prompt_hash"),
    ])
}

#[async_trait::async_trait]
impl ModelFunction for RephraseDetail {
    fn name(&self) -> &'static str {
        "rephrase_detail"
    }
    fn arity(&self) -> RangeInclusive<usize> {
        1..=2
    }
    fn return_type(&self) -> DataType {
        DataType::Struct(fields())
    }
    fn model_argument(&self) -> (usize, &'static str) {
        (1, "rephraser")
    }
    async fn call(&self, models: &Models, model: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        let rows = rephrase_all(models, model, &args[0]).await?;
        let speaker = models.speaker(model).await.map_err(external)?;
        let prompt_hash = speaker.prompt().hash();
        let done: Vec<_> = rows.iter().map(|row| row.as_ref().ok().and_then(Option::as_ref)).collect();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let given: Vec<bool> = rows.iter().map(|row| !matches!(row, Ok(None))).collect();
        let same = |text: &str| -> ArrayRef {
            Arc::new(given.iter().map(|given| given.then_some(text)).collect::<StringArray>())
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(done.iter().map(|r| r.map(|r| r.text.as_str())).collect::<StringArray>()),
            Arc::new(done.iter().map(|r| r.map(|r| count(r.chunks))).collect::<Int64Array>()),
            Arc::new(done.iter().map(|r| r.map(|r| count(r.prompt_tokens))).collect::<Int64Array>()),
            Arc::new(done.iter().map(|r| r.map(|r| count(r.output_tokens))).collect::<Int64Array>()),
            Arc::new(done.iter().map(|r| r.map(|r| reason(r.finish))).collect::<StringArray>()),
            Arc::new(done.iter().map(|r| r.map(|r| r.truncated)).collect::<BooleanArray>()),
            Arc::new(rows.iter().map(|r| r.as_ref().err().map(String::as_str)).collect::<StringArray>()),
            same(speaker.hash()),
            same(&prompt_hash),
        ];
        let output_tokens = done.iter().flatten().map(|r| r.output_tokens as u64).sum();
        let array = StructArray::try_new(fields(), columns, Some(NullBuffer::from(given)))?;
        let errors = rows.into_iter().map(std::result::Result::err).collect();
        Ok(CallOutput { array: Arc::new(array), errors, output_tokens })
    }
}

fn reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
