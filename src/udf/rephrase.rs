//! `rephrase(text [, model])`: the rephrased document, NULL where it failed. What counts as a failure is in [`super::lm`].

use super::{
    CallOutput, ModelFunction,
    lm::{Rephrased, rephrase, request_seed},
    models::Models,
};
use arrow::{
    array::{Array, ArrayRef, AsArray, StringArray},
    datatypes::DataType,
};
use datafusion::error::{DataFusionError, Result};
use futures::future::join_all;
use std::{ops::RangeInclusive, sync::Arc};

/// See the file.
#[derive(Debug)]
pub struct Rephrase;

#[async_trait::async_trait]
impl ModelFunction for Rephrase {
    fn name(&self) -> &'static str {
        "rephrase"
    }
    fn arity(&self) -> RangeInclusive<usize> {
        1..=2
    }
    fn return_type(&self) -> DataType {
        DataType::Utf8
    }
    fn model_argument(&self) -> (usize, &'static str) {
        (1, "rephraser")
    }
    async fn call(&self, models: &Models, model: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        let rows = rephrase_all(models, model, &args[0]).await?;
        let output_tokens = rows.iter().flatten().flatten().map(|r| r.output_tokens as u64).sum();
        let array: StringArray = rows.iter().map(|r| r.as_ref().ok()?.as_ref().map(|r| r.text.as_str())).collect();
        let errors = rows.into_iter().map(std::result::Result::err).collect();
        Ok(CallOutput { array: Arc::new(array), errors, output_tokens })
    }
}

/// Every document of a column at once; None for NULL. `rephrase` and `rephrase_detail` give the same text for a document.
pub(super) async fn rephrase_all(
    models: &Models,
    model: &str,
    texts: &ArrayRef,
) -> Result<Vec<std::result::Result<Option<Rephrased>, String>>> {
    let speaker = models.speaker(model).await.map_err(external)?;
    let texts = texts.as_string::<i32>();
    let rows = (0..texts.len()).map(|i| {
        let speaker = &speaker;
        async move {
            if texts.is_null(i) {
                return Ok(None);
            }
            let text = texts.value(i);
            let seed = |chunk| request_seed(models.seed(), "rephrase", model, text, chunk, 0);
            rephrase(speaker, text, seed).await.map(Some)
        }
    });
    Ok(join_all(rows).await)
}

/// A fault that concerns all rows.
pub(super) fn external(error: anyhow::Error) -> DataFusionError {
    DataFusionError::Execution(format!("{error:#}"))
}
