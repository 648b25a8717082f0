//! `structure_preserved(original, rephrased [, model])`: whether the rephrasing kept the form of the original.
//!
//! With a model (named, or the entry `structure` of `models:`), the paper's judge (reference section 2.3): both texts are cut, put into the prompt
//! of assets/prompts/structure.txt or the file that the model's entry names, and the model answers 1 or 0. A model in this process chooses
//! between the two tokens; of an endpoint's answer the last character counts, and one that is neither fails the row. Without a model, the
//! model-free form of [`crate::text::structure`], as an ordinary function.

use super::{
    CallOutput, ModelFunction,
    args::{Plain, Texts},
    lm::Draw,
    models::Models,
    rephrase::external,
    speaker::{Form, Speaker, Unframed},
};
use crate::{
    engine::FormatStep,
    rewards::structure::{ANSWER_TOKENS, shown, verdict},
    text::{
        prompt::PairPrompt,
        structure::preserved,
        tokenizer::{Special, Tokenizer},
    },
};
use anyhow::ensure;
use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray},
    datatypes::DataType,
};
use datafusion::{error::Result, logical_expr::ScalarUDF};
use futures::future::join_all;
use std::{ops::RangeInclusive, sync::Arc};

/// Entry of `models:` that judges where none is named.
pub const ROLE: &str = "structure";
const NAME: &str = "structure_preserved";

/// See the file.
#[derive(Debug)]
pub struct StructurePreserved;

#[async_trait::async_trait]
impl ModelFunction for StructurePreserved {
    fn name(&self) -> &'static str {
        NAME
    }
    fn arity(&self) -> RangeInclusive<usize> {
        2..=3
    }
    fn return_type(&self) -> DataType {
        DataType::Boolean
    }
    fn model_argument(&self) -> (usize, &'static str) {
        (2, ROLE)
    }
    fn without_model(&self) -> Option<ScalarUDF> {
        Some(Plain::udf(
            NAME,
            vec![DataType::Utf8; 2],
            2,
            DataType::Boolean,
            Arc::new(|args| {
                let (original, rephrased) = (Texts::new(&args.args[0])?, Texts::new(&args.args[1])?);
                let kept = |i| Some(preserved(original.get(i)?, rephrased.get(i)?));
                Ok(Arc::new((0..args.number_rows).map(kept).collect::<BooleanArray>()))
            }),
        ))
    }
    async fn call(&self, models: &Models, model: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        let (originals, rephrased) = (args[0].as_string::<i32>(), args[1].as_string::<i32>());
        let pairs: Vec<Option<(&str, &str)>> = originals.iter().zip(rephrased).map(|(a, b)| a.zip(b)).collect();
        let given: Vec<(&str, &str)> = pairs.iter().copied().flatten().collect();
        let mut judged = judge_all(models, model, &given).await.map_err(external)?.into_iter();
        let rows: Vec<_> = pairs.iter().map(|pair| pair.and_then(|_| judged.next())).collect();
        let array: BooleanArray = rows.iter().map(|row| row.as_ref()?.as_ref().ok().copied()).collect();
        let output_tokens = array.len() as u64 - array.null_count() as u64;
        let errors = rows.into_iter().map(|row| row?.err()).collect();
        Ok(CallOutput { array: Arc::new(array), errors, output_tokens })
    }
}

/// Judges every pair at once.
///
/// # Errors
/// A model that cannot be loaded or cannot hold the prompt. One pair's fault is in its place.
pub async fn judge_all(
    models: &Models,
    model: &str,
    pairs: &[(&str, &str)],
) -> anyhow::Result<Vec<std::result::Result<bool, String>>> {
    let judge = models.judge(model).await?;
    Ok(join_all(pairs.iter().map(|(original, rephrased)| judge.judge(original, rephrased))).await)
}

/// A model ready to judge.
pub struct Judge {
    speaker: Speaker,
    prompt: PairPrompt,
    form: Form,
    /// None at an endpoint, which cannot be held to it.
    format: Option<Arc<[FormatStep]>>,
}

impl Judge {
    /// Makes the prompt ready for a model.
    ///
    /// # Errors
    /// A chat template that cannot hold it, a tokenizer that does not write 1 and 0 as one token each.
    pub fn new(speaker: Speaker) -> anyhow::Result<Self> {
        let prompt = speaker.pair_prompt().cloned().unwrap_or_else(PairPrompt::structure);
        let form = speaker.form(&prompt.prompt, Unframed::Bare)?;
        let format = match &speaker {
            Speaker::Local(lm) => Some(answer_format(&lm.tokenizer)?),
            Speaker::Remote(_) => None,
        };
        Ok(Self { speaker, prompt, form, format })
    }

    async fn judge(&self, original: &str, rephrased: &str) -> std::result::Result<bool, String> {
        let show = |text| shown(text, self.speaker.tokenizer()).map_err(|error| format!("{error:#}"));
        let pair = self.prompt.fill(&show(original)?, &show(rephrased)?);
        let draw = Draw::greedy(ANSWER_TOKENS, self.format.clone());
        let answer = self.speaker.put(&self.form, &pair, draw).await?;
        verdict(&answer.text).map_err(|error| error.to_string())
    }
}

/// One of the tokens of `0` and `1`, after what the tokenizer may put before a digit.
fn answer_format(tokenizer: &Tokenizer) -> anyhow::Result<Arc<[FormatStep]>> {
    let (no, yes) = (tokenizer.encode("0", Special::Plain)?, tokenizer.encode("1", Special::Plain)?);
    let split = no.split_last().zip(yes.split_last()).filter(|((a, lead), (b, other))| a != b && lead == other);
    ensure!(split.is_some(), "the tokenizer does not write the answers 0 and 1 as one token each");
    let Some(((no, lead), (yes, _))) = split else { return Ok(Arc::default()) };
    let choice = FormatStep::OneOf(Arc::from([*no.min(yes), *no.max(yes)]));
    let lead = (!lead.is_empty()).then(|| FormatStep::Forced(lead.into()));
    Ok(lead.into_iter().chain([choice]).collect())
}
