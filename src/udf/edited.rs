//! One chunk through a model that rephrases by edits ([`crate::text::edits`]): the script is forced, only the letters are drawn, one pass
//! for each segment. Such a model must run in this process: an endpoint cannot be held to a form.

use super::{
    lm::{Answer, Complete},
    models::LanguageModel,
};
use crate::{
    engine::{FinishReason, FormatStep, Request, Sampling},
    text::{
        edits::{DROP, Edits, KEEP},
        tokenizer::{Special, Tokenizer},
    },
};
use anyhow::{Context, Result, ensure};
use std::sync::Arc;

/// The chunk without the segments that the model drops. `output_tokens` counts the choices, `prompt_tokens` all that was read.
///
/// # Errors
/// Why the request failed, for the row.
pub async fn edited(lm: &LanguageModel, engine: &dyn Complete, text: &str, seed: u64) -> Result<Answer, String> {
    let edits = Edits::new(text);
    let script = edits.script();
    let format = form(&lm.tokenizer, &script, lm.settings.drop_lean).map_err(|e| format!("{e:#}"))?;
    let (prefix, prompt, _) = lm.rephrase.request("", usize::MAX).map_err(|e| format!("{e:#}"))?;
    let settings = &lm.settings;
    let before = prefix.len() + prompt.len();
    let request = Request {
        prefix,
        prompt,
        max_new_tokens: 0,
        sampling: Sampling { temperature: settings.temperature, top_p: settings.top_p, top_k: settings.top_k },
        stop: Arc::clone(&lm.stop),
        seed,
        format: Some(format),
    };
    let done = engine.complete(request).await.map_err(|e| e.to_string())?;
    let answer = lm.tokenizer.decode(&done.tokens).map_err(|e| format!("{e:#}"))?;
    Ok(Answer {
        text: edits.apply(&edits.read(&answer)),
        finish: FinishReason::Stop,
        prompt_tokens: before + done.tokens.len() - script.len(),
        output_tokens: script.len(),
        truncated: false,
        chances: Vec::new(),
    })
}

/// The tokens of the two letters: keep, drop.
///
/// # Errors
/// The tokenizer writes one of them as several tokens.
pub fn letters(tokenizer: &Tokenizer) -> Result<[u32; 2]> {
    let letter = |letter: char| -> Result<u32> {
        let ids = tokenizer.encode(&letter.to_string(), Special::Plain)?;
        ensure!(ids.len() == 1, "answer: edits needs a tokenizer that writes {letter} as one token");
        Ok(ids[0])
    };
    Ok([letter(KEEP)?, letter(DROP)?])
}

/// The script with a choice behind each entry. Entries are tokenised one by one, as in training.
///
/// # Errors
/// An entry cannot be tokenised; [`letters`].
pub fn form(tokenizer: &Tokenizer, script: &[String], drop_lean: f32) -> Result<Arc<[FormatStep]>> {
    // Of equals the first is taken: in doubt a segment stays.
    let choice = FormatStep::Leaning(letters(tokenizer)?.into(), (drop_lean * 1000.0) as i32);
    let mut steps = Vec::with_capacity(script.len() * 2);
    for given in script {
        let ids = tokenizer.encode(given, Special::Plain).context("script")?;
        steps.extend([FormatStep::Forced(ids.into()), choice.clone()]);
    }
    Ok(steps.into())
}
