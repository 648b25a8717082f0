//! `generate(prompt [, model])`: the model's raw answer. The prompt is the user's turn of the model's chat template.

use super::{CallOutput, ModelFunction, lm::request_seed, models::Models, rephrase::external};
use arrow::{
    array::{ArrayRef, AsArray, StringArray},
    datatypes::DataType,
};
use datafusion::error::Result;
use futures::future::join_all;
use std::{ops::RangeInclusive, sync::Arc};

/// See the file.
#[derive(Debug)]
pub struct Generate;

#[async_trait::async_trait]
impl ModelFunction for Generate {
    fn name(&self) -> &'static str {
        "generate"
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
        let speaker = models.speaker(model).await.map_err(external)?;
        let prompts = args[0].as_string::<i32>();
        let speaker = &speaker;
        let answers = join_all(prompts.iter().map(|prompt| async move {
            let Some(prompt) = prompt else { return Ok(None) };
            let seed = request_seed(models.seed(), "generate", model, prompt, 0, 0);
            speaker.plain(prompt, seed).await.map(Some)
        }))
        .await;
        let output_tokens = answers.iter().flatten().flatten().map(|a| a.output_tokens as u64).sum();
        let array: StringArray = answers.iter().map(|a| a.as_ref().ok()?.as_ref().map(|a| a.text.as_str())).collect();
        let errors = answers.into_iter().map(Result::err).collect();
        Ok(CallOutput { array: Arc::new(array), errors, output_tokens })
    }
}
