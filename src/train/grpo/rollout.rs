//! Completions of a step: drawn by the engine, decoded, scored. A sample depends on the weights, its prompt and its own seed
//! only. Knows the engine, a tokenizer and a [`Reward`]; nothing of updates.

use super::{
    batch::sample_seed,
    edits::{Between, Script},
};
use crate::{
    engine::{Completion, Engine, FinishReason, Request, RequestError, Sampling},
    text::{edits::Edits, extract::extract, tokenizer::Tokenizer},
};
use anyhow::{Context, anyhow, ensure};
use futures::{executor::block_on, future::try_join_all};
use std::sync::Arc;

/// One document to rephrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The row's id.
    pub id: String,
    /// The whole request: template and document. With a script: up to its first choice.
    pub tokens: Vec<u32>,
    /// The form of its completions, where the model rephrases by edits.
    pub script: Option<Script>,
    /// The document.
    pub text: Arc<str>,
}

/// What a reward sees of a completion.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The document.
    pub original: &'a str,
    /// The whole answer.
    pub answer: &'a str,
    /// What rephrase() would return of it: the text behind the marker, empty where there is none.
    pub text: &'a str,
}

/// One part of a reward.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Column in the rollouts.
    pub name: String,
    /// Its weight in the total; 0: measured only.
    pub weight: f64,
}

/// What a completion was given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    /// A value for each part, in the order of [`Reward::parts`]; None where it could not be had.
    pub values: Vec<Option<f64>>,
    /// Why not.
    pub error: Option<String>,
}

/// What completions are judged by.
pub trait Reward: Send + Sync {
    /// The parts, in the order of the values.
    fn parts(&self) -> &[Part];

    /// One result a sample, in order.
    ///
    /// # Errors
    /// Nothing can be scored at all; one sample's fault belongs into [`Scored::error`].
    fn score(&self, samples: &[Sample<'_>]) -> anyhow::Result<Vec<Scored>>;
}

/// Σ weight x value; None where a part that counts is missing or not a number.
pub fn total(parts: &[Part], values: &[Option<f64>]) -> Option<f64> {
    let counted = parts.iter().zip(values).filter(|(part, _)| part.weight != 0.0);
    counted.map(|(part, value)| value.filter(|v| v.is_finite()).map(|v| part.weight * v)).sum()
}

/// A completion with its rewards.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Index of the prompt among those of the step.
    pub prompt: usize,
    /// The prompt's id.
    pub prompt_id: String,
    /// Number among the completions of its prompt.
    pub sample: usize,
    /// Tokens, the end token included where one was drawn. Of a script: choices and what was given between them.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// The whole answer; of a script, what its choices keep.
    pub answer: String,
    /// The text behind the marker.
    pub text: String,
    /// By part.
    pub scored: Scored,
    /// Weighted sum; None where a part is missing.
    pub total: Option<f64>,
}

/// How completions are drawn.
#[derive(Debug, Clone)]
pub struct Drawing {
    /// Samples a prompt.
    pub samples: usize,
    /// Temperature and cuts.
    pub sampling: Sampling,
    /// Longest completion in tokens.
    pub longest: usize,
    /// Ids that end one.
    pub stop: Arc<[u32]>,
    /// Marker before the text; empty: the whole answer.
    pub marker: String,
    /// What the choices of a script are between.
    pub between: Option<Between>,
}

/// Draws and decodes the completions of `prompts`; the engine then rests: an update needs the memory. `seeds` gives (seed, step) of the samples' random streams.
///
/// # Errors
/// A request that the engine refuses or fails; a completion that the tokenizer cannot decode.
pub fn draw(
    engine: &Engine,
    tokenizer: &Tokenizer,
    prompts: &[&Prompt],
    drawing: &Drawing,
    (seed, step): (u64, u64),
) -> anyhow::Result<Vec<Rollout>> {
    let mut requests = Vec::with_capacity(prompts.len() * drawing.samples);
    for (index, prompt) in prompts.iter().enumerate() {
        // A prompt that stands twice in a step goes on counting.
        let before = prompts[..index].iter().filter(|p| p.id == prompt.id).count() * drawing.samples;
        let (last, head) = prompt.tokens.split_last().context("a prompt without tokens")?;
        let prefix: Arc<[u32]> = head.into();
        for sample in before..before + drawing.samples {
            let request = Request {
                prefix: Arc::clone(&prefix),
                prompt: vec![*last],
                max_new_tokens: drawing.longest,
                sampling: drawing.sampling,
                stop: Arc::clone(&drawing.stop),
                seed: sample_seed(seed, step, &prompt.id, sample),
                format: prompt.script.as_ref().map(|script| Arc::clone(&script.steps)),
            };
            requests.push(async move {
                let done = engine.rollout(request).await.map_err(explained);
                done.map(|done| (index, sample, done)).with_context(|| format!("prompt `{}`", prompt.id))
            });
        }
    }
    let drawn = block_on(try_join_all(requests))?;
    engine.rest()?;
    drawn
        .into_iter()
        .map(|(prompt, sample, done)| {
            let answer = match (&prompts[prompt].script, drawing.between) {
                (Some(script), Some(between)) => {
                    Edits::new(&prompts[prompt].text).apply(&script.kept(&done.tokens, between))
                }
                _ => tokenizer.decode(spoken(&done))?,
            };
            Ok(Rollout {
                prompt,
                prompt_id: prompts[prompt].id.clone(),
                sample,
                text: extract(&answer, &drawing.marker).unwrap_or_default().to_owned(),
                answer,
                tokens: done.tokens,
                finish: done.finish,
                scored: Scored::default(),
                total: None,
            })
        })
        .collect()
}

/// The tokens without the one that ended them.
fn spoken(done: &Completion) -> &[u32] {
    match done.tokens.split_last() {
        Some((_, rest)) if done.finish == FinishReason::Stop => rest,
        _ => &done.tokens,
    }
}

fn explained(error: RequestError) -> anyhow::Error {
    match error {
        RequestError::NotANumber(_) => anyhow!("training diverged: {error}; lower learning_rate or raise warmup_ratio"),
        other => other.into(),
    }
}

/// Scores completions in place.
///
/// # Errors
/// The reward fails as a whole; it gives another number of results; every completion's reward failed.
pub fn score(reward: &dyn Reward, prompts: &[&Prompt], rollouts: &mut [Rollout]) -> anyhow::Result<()> {
    let samples: Vec<Sample> = rollouts
        .iter()
        .map(|r| Sample { original: &prompts[r.prompt].text, answer: &r.answer, text: &r.text })
        .collect();
    let scored = reward.score(&samples).context("the reward")?;
    let parts = reward.parts();
    ensure!(
        scored.len() == rollouts.len() && scored.iter().all(|s| s.values.len() == parts.len()),
        "the reward gave {} results for {} completions",
        scored.len(),
        rollouts.len()
    );
    for (rollout, scored) in rollouts.iter_mut().zip(scored) {
        rollout.total = total(parts, &scored.values);
        rollout.scored = scored;
    }
    let first = rollouts.iter().find_map(|r| r.scored.error.clone());
    ensure!(
        rollouts.iter().any(|r| r.total.is_some()),
        "the reward failed for every completion of the step: {}",
        first.unwrap_or_else(|| "values that are not numbers".to_owned())
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals() {
        let part = |name: &str, weight| Part { name: name.to_owned(), weight };
        let parts = [part("a", 3.0), part("b", 1.0), part("c", 0.0)];
        assert_eq!(total(&parts, &[Some(2.0), Some(1.0), Some(9.0)]), Some(7.0));
        assert_eq!(total(&parts, &[Some(2.0), None, Some(9.0)]), None);
        assert_eq!(total(&parts, &[Some(f64::NAN), Some(1.0), Some(9.0)]), None);
        assert_eq!(total(&parts, &[Some(2.0), Some(1.0), None]), Some(7.0), "what does not count may be missing");
    }
}
