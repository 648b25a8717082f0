//! `bertscore(candidate, reference [, model])`: how much of the meaning of one text is in the other, as precision, recall and F1 of
//! best-matching token vectors. An empty candidate or reference scores 0.

use super::{CallOutput, ModelFunction, models::Models, rephrase::external};
use crate::rewards::bertscore::Score;
use arrow::{
    array::{ArrayRef, AsArray, Float32Array, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields},
};
use datafusion::error::Result;
use std::{ops::RangeInclusive, sync::Arc};

/// See the file.
#[derive(Debug)]
pub struct BertScore;

/// Fields of the result.
fn fields() -> Fields {
    Fields::from_iter(["precision", "recall", "f1"].map(|name| Field::new(name, DataType::Float32, true)))
}

#[async_trait::async_trait]
impl ModelFunction for BertScore {
    fn name(&self) -> &'static str {
        "bertscore"
    }
    fn arity(&self) -> RangeInclusive<usize> {
        2..=3
    }
    fn return_type(&self) -> DataType {
        DataType::Struct(fields())
    }
    fn model_argument(&self) -> (usize, &'static str) {
        (2, "bertscore")
    }
    fn check_model(&self, models: &Models, name: &str) -> Result<()> {
        models.check_encoder(self.name(), name)
    }
    async fn call(&self, models: &Models, model: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        let encoder = models.encoder(model).await.map_err(external)?;
        let (candidates, references) = (args[0].as_string::<i32>(), args[1].as_string::<i32>());
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let pairs = candidates.iter().zip(references).map(|(a, b)| (text(a), text(b))).collect();
        let scores = encoder.score(pairs).await;
        let given = candidates.iter().zip(references).map(|(a, b)| a.is_some() && b.is_some());
        let scores: Vec<_> = scores.into_iter().zip(given).collect();
        let column = |part: fn(&Score) -> f32| -> ArrayRef {
            let value = |(score, given): &(std::result::Result<Score, String>, bool)| {
                score.as_ref().ok().filter(|_| *given).map(part)
            };
            Arc::new(scores.iter().map(value).collect::<Float32Array>())
        };
        let columns = vec![column(|s| s.precision), column(|s| s.recall), column(|s| s.f1)];
        let valid = NullBuffer::from_iter(scores.iter().map(|(score, given)| score.is_ok() && *given));
        let array = StructArray::try_new(fields(), columns, Some(valid))?;
        let errors = scores.into_iter().map(|(score, _)| score.err()).collect();
        Ok(CallOutput { array: Arc::new(array), errors, output_tokens: 0 })
    }
}
