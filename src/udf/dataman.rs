//! `dataman(text [, model])`: the domain and the fourteen quality scores that a DataMan model gives a text (reference section 2.1).
//!
//! The reply's form is known: fifteen values with newlines between them. So the newlines are not sampled, each value is chosen among the
//! tokens that may stand there, and a reply costs fifteen passes, the prompt's included. A reply out of format can only come from an
//! endpoint; it fails its row.
//!
//! The request goes through the model's own chat template, else through ChatML where the tokenizer has its marks, else it stands as it is
//! with a newline after it. A text is cut to the protocol's limits and, where they are tighter, to the model's `max_prompt_tokens`. The
//! empty text is scored like any other.

use super::{
    CallOutput, ModelFunction,
    lm::{Complete, Template},
    models::{LanguageModel, Models},
    rephrase::external,
};
use crate::{
    engine::{FormatStep, Request, Sampling},
    rewards::{
        cut::cut,
        dataman::{CRITERIA, DOMAINS, LIMITS, SCORES, SYSTEM, Scores, VALUES, parse, request, without_noise},
    },
    text::{
        chat::ChatTemplate,
        prompt::Prompt,
        tokenizer::{Special, Tokenizer},
    },
};
use anyhow::{Context, ensure};
use arrow::{
    array::{ArrayRef, AsArray, Int64Array, StringArray, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields},
};
use datafusion::error::Result;
use futures::future::join_all;
use std::{ops::RangeInclusive, sync::Arc};

/// The chat format of Qwen models, for a checkpoint that came without its template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// See the file.
#[derive(Debug)]
pub struct Dataman;

/// Fields of the result.
fn fields() -> Fields {
    let domain = Field::new("domain", DataType::Utf8, true);
    [domain].into_iter().chain(CRITERIA.map(|name| Field::new(name, DataType::Int64, true))).collect()
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
        let done: Vec<Option<&Scores>> = rows.iter().map(|row| row.as_ref()?.as_ref().ok()).collect();
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(done.iter().map(|scores| scores.map(|s| s.domain)).collect::<StringArray>())];
        for i in 0..CRITERIA.len() {
            columns.push(Arc::new(done.iter().map(|scores| scores.map(|s| s.scores[i])).collect::<Int64Array>()));
        }
        let valid = NullBuffer::from_iter(done.iter().map(Option::is_some));
        let array = Arc::new(StructArray::try_new(fields(), columns, Some(valid))?);
        let errors = rows.into_iter().map(|row| row?.err()).collect();
        Ok(CallOutput { array, errors, output_tokens })
    }
}

/// Scores every text at once.
///
/// # Errors
/// A model that cannot be loaded or cannot speak the protocol. One text's fault is in its place.
pub async fn score_all(
    models: &Models,
    model: &str,
    texts: &[&str],
) -> anyhow::Result<Vec<std::result::Result<Scores, String>>> {
    let scorer = models.dataman(model).await?;
    Ok(join_all(texts.iter().map(|text| scorer.score(text))).await)
}

/// A model ready to score.
pub struct Scorer {
    lm: Arc<LanguageModel>,
    template: Template,
    format: Arc<[FormatStep]>,
}

impl Scorer {
    /// Makes the request's template and the reply's form for a model.
    ///
    /// # Errors
    /// A chat template that cannot hold the request, a tokenizer that does not write each value as one token.
    pub fn new(lm: Arc<LanguageModel>) -> anyhow::Result<Self> {
        let template = template(&lm.tokenizer, lm.chat.as_ref())?;
        let format = reply_format(&lm.tokenizer)?;
        Ok(Self { lm, template, format })
    }

    async fn score(&self, text: &str) -> std::result::Result<Scores, String> {
        let reply = self.reply(&self.lm.engine, text).await.map_err(|error| format!("{error:#}"))?;
        parse(&reply).map_err(|error| format!("{error:#}"))
    }

    /// The model's reply to a text.
    async fn reply(&self, engine: &dyn Complete, text: &str) -> anyhow::Result<String> {
        let text = cut(&without_noise(text), LIMITS, Some(&self.lm.tokenizer))?;
        let (prefix, prompt, _) = self.template.request(&text, self.lm.settings.max_prompt_tokens)?;
        let request = Request {
            prefix,
            prompt,
            max_new_tokens: 0,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, top_k: 0 },
            stop: Arc::clone(&self.lm.stop),
            seed: 0,
            format: Some(Arc::clone(&self.format)),
        };
        let tokens = engine.complete(request).await?.tokens;
        self.lm.tokenizer.decode(&tokens)
    }
}

/// The request around a text, for a model with that template.
fn template(tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> anyhow::Result<Template> {
    let (before, after) = request();
    let prompt = Prompt { system: Some(SYSTEM.to_owned()), before: before.to_owned(), after: after.to_owned() };
    let chatml = tokenizer.id("<|im_start|>").is_some() && tokenizer.id("<|im_end|>").is_some();
    match chat {
        Some(chat) => Template::new(tokenizer, Some(chat), &prompt),
        None if chatml => Template::new(tokenizer, Some(&ChatTemplate::new(CHATML, Default::default())?), &prompt),
        None => Template::new(tokenizer, None, &Prompt { system: None, after: format!("{after}\n"), ..prompt }),
    }
}

/// The reply's form in a tokenizer's ids: a letter A to O, then fourteen times a newline and a digit 1 to 5. What stands at a place is found by
/// encoding whole replies, so a tokenizer that marks the start of a text or of a line is no exception.
fn reply_format(tokenizer: &Tokenizer) -> anyhow::Result<Arc<[FormatStep]>> {
    let encode = |domain: char, scores: &[char]| -> anyhow::Result<Vec<u32>> {
        let reply: String = [domain].into_iter().chain(scores.iter().flat_map(|score| ['\n', *score])).collect();
        let ids = tokenizer.encode(&reply, Special::Plain)?;
        ensure!(
            ids.len() == 2 * VALUES - 1,
            "the tokenizer writes the reply {reply:?} in {} tokens instead of {}: the DataMan protocol needs one token for each letter, \
             digit and newline",
            ids.len(),
            2 * VALUES - 1
        );
        Ok(ids)
    };
    let digits: Vec<char> =
        SCORES.map(|score| char::from_digit(score as u32, 10)).collect::<Option<_>>().context("one digit a score")?;
    let plain = ['1'; CRITERIA.len()];
    let letters = (b'A'..).take(DOMAINS.len()).map(char::from);
    let domains: Vec<Vec<u32>> = letters.map(|letter| encode(letter, &plain)).collect::<anyhow::Result<_>>()?;
    let mut steps = vec![one_of(&domains, 0)?];
    for place in 0..CRITERIA.len() {
        let with = |digit: &char| {
            let mut scores = plain;
            scores[place] = *digit;
            encode('A', &scores)
        };
        let replies: Vec<Vec<u32>> = digits.iter().map(with).collect::<anyhow::Result<_>>()?;
        let at = 2 * place + 2;
        steps.push(FormatStep::Forced(Arc::from([replies[0][at - 1]])));
        steps.push(one_of(&replies, at)?);
    }
    Ok(steps.into())
}

/// The ids in which replies differ at one place, lowest first; elsewhere they must agree.
fn one_of(replies: &[Vec<u32>], at: usize) -> anyhow::Result<FormatStep> {
    let mut ids: Vec<u32> = replies.iter().map(|reply| reply[at]).collect();
    ids.sort_unstable();
    ids.dedup();
    let others_agree = replies.iter().all(|reply| {
        reply.iter().zip(&replies[0]).enumerate().all(|(place, (one, other))| place == at || one == other)
    });
    ensure!(
        ids.len() == replies.len() && others_agree,
        "the tokenizer does not tell the values of a DataMan reply apart by one token each"
    );
    Ok(FormatStep::OneOf(ids.into()))
}
