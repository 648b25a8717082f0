//! `perplexity(text [, model])`: how badly a causal language model predicts a text. exp of the mean -log p over the text's tokens but the
//! first, which nothing precedes: no begin token is added, no chat template, no special tokens. A text longer than the model's positions is
//! read in windows that share one token, each seeing only itself. 1 is a text known by heart; the vocabulary's size is guessing.
//!
//! NULL with a reason for a text of fewer than two tokens. The number compares models only where their tokenizers are the same. In
//! bf16 (`precision: auto` on processors that have it) it is within about 1 % of the f32 value.

use super::{CallOutput, ModelFunction, models::Models, rephrase::external};
use crate::text::tokenizer::Special;
use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array},
    datatypes::DataType,
};
use datafusion::error::Result;
use std::{ops::RangeInclusive, sync::Arc};

/// See the file.
#[derive(Debug)]
pub struct Perplexity;

#[async_trait::async_trait]
impl ModelFunction for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }
    fn arity(&self) -> RangeInclusive<usize> {
        1..=2
    }
    fn return_type(&self) -> DataType {
        DataType::Float64
    }
    fn model_argument(&self) -> (usize, &'static str) {
        (1, "base")
    }
    async fn call(&self, models: &Models, model: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        let scorer = models.scorer(model).await.map_err(external)?;
        let tokenizer = models.tokenizer(model).await.map_err(external)?;
        let texts = args[0].as_string::<i32>();
        let mut errors: Vec<Option<String>> = vec![None; texts.len()];
        let mut sequences = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            let ids = text.map_or(Ok(Vec::new()), |text| tokenizer.encode(text, Special::Plain));
            let ids = ids.unwrap_or_else(|error| {
                errors[i] = Some(format!("{error:#}"));
                Vec::new()
            });
            if ids.len() < 2 && text.is_some() && errors[i].is_none() {
                errors[i] = Some(format!("the text has {} tokens; two are needed, the first is not scored", ids.len()));
            }
            sequences.push(ids);
        }
        let scores = scorer.score(sequences).await.map_err(external)?;
        let mut values = Vec::with_capacity(scores.len());
        for (score, error) in scores.iter().zip(&mut errors) {
            let value = (score.tokens > 0).then(|| score.perplexity());
            if error.is_none() && value.is_some_and(f64::is_nan) {
                *error = Some("the model's output is not a number for this text".to_owned());
            }
            values.push(value.filter(|v| !v.is_nan()));
        }
        Ok(CallOutput { array: Arc::new(Float64Array::from(values)), errors, output_tokens: 0 })
    }
}
