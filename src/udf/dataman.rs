//! `dataman(text [, model])`: the domain and the fourteen quality scores that a DataMan model gives a text (reference section 2.1).
//!
//! The reply's form is known: fifteen values with newlines between them. So the newlines are not sampled, each value is chosen among the
//! tokens that may stand there, and a reply costs fifteen passes, the prompt's included. A reply out of format can only come from an
//! endpoint; it fails its row.
//!
//! The request goes through the model's own chat template, else through ChatML where the tokenizer has its marks, else it stands as it is
//! with a newline after it. A text is cut to the protocol's limits and, where they are tighter, to the model's `max_prompt_tokens`. The
//! empty text is scored like any other.
//!
//! `expected` is the mean over the fourteen criteria of the score's expected value, from the probabilities of the five digits. It tells texts apart
//! that get the same whole scores. NULL at an endpoint, which tells no probabilities. Not in the paper.

use super::{
    CallOutput, ModelFunction,
    lm::Draw,
    models::Models,
    rephrase::external,
    speaker::{Form, Speaker, Unframed},
};
use crate::{
    engine::FormatStep,
    rewards::{
        cut::cut,
        dataman::{CRITERIA, DOMAINS, LIMITS, SCORES, SYSTEM, Scores, VALUES, parse, request, without_noise},
    },
    text::{
        prompt::Prompt,
        tokenizer::{Special, Tokenizer},
    },
};
use anyhow::{Context, ensure};
use arrow::{
    array::{ArrayRef, AsArray, Float64Array, Int64Array, StringArray, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields},
};
use datafusion::error::Result;
use futures::future::join_all;
use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc};

/// A reply: the values and the newlines between them.
const REPLY_TOKENS: usize = 2 * VALUES - 1;

/// See the file.
#[derive(Debug)]
pub struct Dataman;

/// Fields of the result.
fn fields() -> Fields {
    let domain = Field::new("domain", DataType::Utf8, true);
    let expected = Field::new("expected", DataType::Float64, true);
    let scores = CRITERIA.map(|name| Field::new(name, DataType::Int64, true));
    [domain].into_iter().chain(scores).chain([expected]).collect()
}

#[async_trait::async_trait]
impl ModelFunction for Dataman {
    fn name(&self) -> &'static str {
        "dataman"
    }
    fn arity(&self) -> RangeInclusive<usize> {
        1..=2
    }
    fn return_type(&self) -> DataType {
        DataType::Struct(fields())
    }
    fn model_argument(&self) -> (usize, &'static str) {
        (1, "dataman")
    }
    async fn call(&self, models: &Models, model: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        let texts: Vec<Option<&str>> = args[0].as_string::<i32>().iter().collect();
        let given: Vec<&str> = texts.iter().copied().flatten().collect();
        let mut scored = score_all(models, model, &given).await.map_err(external)?.into_iter();
        let rows: Vec<_> = texts.iter().map(|text| text.and_then(|_| scored.next())).collect();
        let output_tokens = (rows.iter().flatten().flatten().count() * VALUES) as u64;
        let done: Vec<Option<&Scored>> = rows.iter().map(|row| row.as_ref()?.as_ref().ok()).collect();
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(done.iter().map(|row| row.map(|s| s.scores.domain)).collect::<StringArray>())];
        for i in 0..CRITERIA.len() {
            columns.push(Arc::new(done.iter().map(|row| row.map(|s| s.scores.scores[i])).collect::<Int64Array>()));
        }
        columns.push(Arc::new(done.iter().map(|row| row.and_then(|s| s.expected)).collect::<Float64Array>()));
        let valid = NullBuffer::from_iter(done.iter().map(Option::is_some));
        let array = Arc::new(StructArray::try_new(fields(), columns, Some(valid))?);
        let errors = rows.into_iter().map(|row| row?.err()).collect();
        Ok(CallOutput { array, errors, output_tokens })
    }
}

/// What a text gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The reply.
    pub scores: Scores,
    /// Mean expected score, 1 to 5; see the file.
    pub expected: Option<f64>,
}

/// Scores every text at once.
///
/// # Errors
/// A model that cannot be loaded or cannot speak the protocol. One text's fault is in its place.
pub async fn score_all(
    models: &Models,
    model: &str,
    texts: &[&str],
) -> anyhow::Result<Vec<std::result::Result<Scored, String>>> {
    let scorer = models.dataman(model).await?;
    Ok(join_all(texts.iter().map(|text| scorer.score(text))).await)
}

/// A model ready to score.
pub struct Scorer {
    speaker: Speaker,
    form: Form,
    /// None at an endpoint, which cannot be held to it.
    format: Option<Arc<[FormatStep]>>,
}

impl Scorer {
    /// Makes the request's template and the reply's form for a model.
    ///
    /// # Errors
    /// A chat template that cannot hold the request, a tokenizer that does not write each value as one token.
    pub fn new(speaker: Speaker) -> anyhow::Result<Self> {
        let (before, after) = request();
        let prompt = Prompt { system: Some(SYSTEM.to_owned()), before: before.to_owned(), after: after.to_owned() };
        let form = speaker.form(&prompt, Unframed::Chatml)?;
        let format = match &speaker {
            Speaker::Local(lm) => Some(reply_format(&lm.tokenizer)?),
            Speaker::Remote(_) => None,
        };
        Ok(Self { speaker, form, format })
    }

    async fn score(&self, text: &str) -> std::result::Result<Scored, String> {
        let text = cut(&without_noise(text), LIMITS, self.speaker.tokenizer()).map_err(|error| format!("{error:#}"))?;
        let draw = Draw::greedy(REPLY_TOKENS, self.format.clone());
        let reply = self.speaker.put(&self.form, &text, draw).await?;
        let scores = parse(&reply.text).map_err(|error| format!("{error:#}"))?;
        Ok(Scored { scores, expected: expected(&reply.chances) })
    }
}

/// Mean over the criteria of the score's expected value; a step's probabilities stand in the order of the scores.
fn expected(chances: &[Box<[f32]>]) -> Option<f64> {
    let of = |step: &[f32]| step.iter().zip(SCORES).map(|(&p, score)| f64::from(p) * score as f64).sum::<f64>();
    (chances.len() == CRITERIA.len()).then(|| chances.iter().map(|step| of(step)).sum::<f64>() / CRITERIA.len() as f64)
}

/// The reply's form in a tokenizer's ids: a letter A to O, then fourteen times a newline and a digit 1 to 5. What stands at a place is found by
/// encoding whole replies, so a tokenizer that marks the start of a text or of a line is no exception.
fn reply_format(tokenizer: &Tokenizer) -> anyhow::Result<Arc<[FormatStep]>> {
    let encode = |domain: char, scores: &[char]| -> anyhow::Result<Vec<u32>> {
        let reply: String = [domain].into_iter().chain(scores.iter().flat_map(|score| ['\n', *score])).collect();
        let ids = tokenizer.encode(&reply, Special::Plain)?;
        ensure!(
            ids.len() == REPLY_TOKENS,
            "the tokenizer writes the reply {reply:?} in {} tokens instead of {}: the DataMan protocol needs one token for each letter, \
             digit and newline",
            ids.len(),
            REPLY_TOKENS
        );
        Ok(ids)
    };
    let digits: Vec<char> =
        SCORES.map(|score| char::from_digit(score as u32, 10)).collect::<Option<_>>().context("one digit a score")?;
    let plain = ['1'; CRITERIA.len()];
    let letters = (b'A'..).take(DOMAINS.len()).map(char::from);
    let domains: Vec<Vec<u32>> = letters.map(|letter| encode(letter, &plain)).collect::<anyhow::Result<_>>()?;
    let mut steps = vec![FormatStep::OneOf(differing(&domains, 0)?)];
    for place in 0..CRITERIA.len() {
        let with = |digit: &char| {
            let mut scores = plain;
            scores[place] = *digit;
            encode('A', &scores)
        };
        let replies: Vec<Vec<u32>> = digits.iter().map(with).collect::<anyhow::Result<_>>()?;
        let at = 2 * place + 2;
        steps.push(FormatStep::Forced(Arc::from([replies[0][at - 1]])));
        steps.push(FormatStep::Weighed(differing(&replies, at)?));
    }
    Ok(steps.into())
}

/// The ids in which replies differ at one place, in the order of the replies; elsewhere they must agree.
fn differing(replies: &[Vec<u32>], at: usize) -> anyhow::Result<Arc<[u32]>> {
    let ids: Vec<u32> = replies.iter().map(|reply| reply[at]).collect();
    let different: BTreeSet<u32> = ids.iter().copied().collect();
    let others_agree = replies.iter().all(|reply| {
        reply.iter().zip(&replies[0]).enumerate().all(|(place, (one, other))| place == at || one == other)
    });
    ensure!(
        different.len() == replies.len() && others_agree,
        "the tokenizer does not tell the values of a DataMan reply apart by one token each"
    );
    Ok(ids.into())
}
