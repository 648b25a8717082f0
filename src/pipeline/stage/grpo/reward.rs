//! The rewards of a `grpo` stage: those of [`crate::udf::repro_reward`], the same as in SQL, and a fastText score. Turns names of
//! models into something that scores completions; knows nothing of advantages.

use super::Config;
use crate::{
    pipeline::stage::StageContext,
    rewards::{fasttext::FastText, repro_reward::RewardConfig},
    train::grpo::rollout::{Part, Reward, Sample, Scored},
    udf::{
        models::Models,
        repro_reward::{self, Answer, Pair},
    },
};
use anyhow::{Context, ensure};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::runtime::Handle;

/// What the completions of a stage are judged by.
pub(super) struct StageReward {
    models: Arc<Models>,
    config: RewardConfig,
    marker: String,
    fasttext: Option<(Arc<FastText>, Option<String>)>,
    parts: Vec<Part>,
    columns: Vec<Column>,
    /// DataMan scores of documents, each computed once.
    originals: Mutex<HashMap<String, f64>>,
    runtime: Handle,
}

/// Where a part's value comes from.
#[derive(Debug, Clone, Copy)]
enum Column {
    Dataman,
    Bertscore,
    F1,
    Structure,
    Length,
    LengthRatio,
    Format,
    Fasttext,
}

impl StageReward {
    /// Looks up what the settings name; a model that is missing is told before the first step.
    pub(super) async fn new(config: &Config, cx: &StageContext, marker: &str) -> anyhow::Result<Self> {
        let rewards = config.rewards.clone().unwrap_or_else(|| cx.models.rewards().clone());
        let faults = rewards.faults();
        ensure!(faults.is_empty(), "rewards: {}", faults.join("; "));
        for used in rewards.models() {
            ensure!(
                used.optional || cx.models.spec(&used.name).is_some(),
                "the part `{part}` of the reward needs the model `{name}`; add it under `models:`, or switch the part off: rewards: {{ \
                 {part}: {{ enabled: false }} }}",
                part = used.part,
                name = used.name
            );
        }
        let fasttext = match &config.fasttext {
            Some(part) => {
                ensure!(part.weight.is_finite(), "fasttext: the weight {} is not a number", part.weight);
                Some((cx.models.fasttext(&part.model).await?, part.label.clone()))
            }
            None => None,
        };
        let (columns, parts): (Vec<Column>, Vec<Part>) = columns(&rewards, config).into_iter().unzip();
        ensure!(
            parts.iter().any(|part| part.weight != 0.0),
            "the reward has no part with a weight: there is nothing to learn from"
        );
        Ok(Self {
            models: Arc::clone(&cx.models),
            config: rewards,
            marker: marker.to_owned(),
            fasttext,
            parts,
            columns,
            originals: Mutex::default(),
            runtime: Handle::current(),
        })
    }

    fn pairs(&self, samples: &[Sample<'_>]) -> Vec<Pair> {
        let known = self.originals.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = |sample: &Sample| Pair {
            original: sample.original.to_owned(),
            answer: Answer::Raw { text: sample.answer.to_owned(), marker: self.marker.clone() },
            original_dataman: known.get(sample.original).copied(),
        };
        samples.iter().map(pair).collect()
    }

    /// Score of the rephrasing less that of the document; a text of which the classifier knows nothing has 0, and so has an empty
    /// rephrasing where those are to have the lowest worth.
    fn fasttext(&self, sample: &Sample<'_>) -> Option<f64> {
        let (model, label) = self.fasttext.as_ref()?;
        let score = |text: &str| model.score(text, label.as_deref()).map_or(0.0, f64::from);
        let judged = self.config.scores(sample.text.chars().count());
        let rephrased = if judged { score(sample.text) } else { 0.0 };
        Some(rephrased - score(sample.original))
    }
}

/// The columns of the rollouts that the settings ask for, in order, with their weights.
fn columns(rewards: &RewardConfig, config: &Config) -> Vec<(Column, Part)> {
    let mut columns = Vec::new();
    let mut add = |on: bool, column, name: &str, weight| {
        if on {
            columns.push((column, Part { name: name.to_owned(), weight }));
        }
    };
    add(rewards.dataman.enabled, Column::Dataman, "dataman", rewards.dataman.weight);
    add(rewards.bertscore.enabled, Column::Bertscore, "bertscore", rewards.bertscore.weight);
    add(rewards.structure.enabled, Column::Structure, "structure", rewards.structure.weight);
    add(rewards.length.enabled, Column::Length, "length", rewards.length.weight);
    add(rewards.format.enabled, Column::Format, "format", rewards.format.weight);
    if let Some(fasttext) = &config.fasttext {
        add(true, Column::Fasttext, "fasttext", fasttext.weight);
    }
    add(rewards.bertscore.enabled, Column::F1, "f1", 0.0);
    add(rewards.length.enabled, Column::LengthRatio, "length_ratio", 0.0);
    columns
}

impl Reward for StageReward {
    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn score(&self, samples: &[Sample<'_>]) -> anyhow::Result<Vec<Scored>> {
        let pairs = self.pairs(samples);
        let scored = self
            .runtime
            .block_on(repro_reward::score(&self.models, &self.config, &pairs))
            .context("scoring the completions")?;
        let mut known = self.originals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut results = Vec::with_capacity(samples.len());
        for (sample, scored) in samples.iter().zip(scored) {
            let scored = match scored {
                Ok(scored) => scored,
                Err(error) => {
                    results.push(Scored { values: vec![None; self.parts.len()], error: Some(error) });
                    continue;
                }
            };
            if let Some(score) = scored.measures.original_dataman {
                known.insert(sample.original.to_owned(), score);
            }
            let value = |column: &Column| match column {
                Column::Dataman => scored.parts.dataman,
                Column::Bertscore => scored.parts.bertscore,
                Column::F1 => scored.measures.f1,
                Column::Structure => scored.parts.structure,
                Column::Length => scored.parts.length,
                Column::LengthRatio => {
                    Some(scored.measures.rephrased_chars as f64 / scored.measures.original_chars.max(1) as f64)
                }
                Column::Format => scored.parts.format,
                Column::Fasttext => self.fasttext(sample),
            };
            results.push(Scored { values: self.columns.iter().map(value).collect(), error: None });
        }
        Ok(results)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::rewards::repro_reward::EmptyRule;
    use std::{collections::BTreeMap, path::Path};

    /// A classifier has an opinion of an empty text as well; where an empty rephrasing is to have the lowest worth, it is not asked.
    #[tokio::test]
    async fn an_empty_rephrasing_is_scored_or_lowest() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fasttext/softmax_words.bin");
        let model = Arc::new(FastText::load(&golden).unwrap());
        let of = |empty: EmptyRule, text: &str| {
            let reward = StageReward {
                models: Models::new(BTreeMap::new(), 1),
                config: RewardConfig { empty, ..RewardConfig::default() },
                marker: String::new(),
                fasttext: Some((Arc::clone(&model), None)),
                parts: Vec::new(),
                columns: Vec::new(),
                originals: Mutex::default(),
                runtime: Handle::current(),
            };
            reward.fasttext(&Sample { original: "rain on the plain", answer: text, text }).unwrap()
        };
        let score = |text: &str| f64::from(model.score(text, None).unwrap());
        assert!(score("") > 0.0, "the end of a line is a word");
        let original = score("rain on the plain");
        assert_eq!(of(EmptyRule::Score, ""), score("") - original);
        assert_eq!(of(EmptyRule::Lowest, ""), -original);
        assert_eq!(of(EmptyRule::Lowest, "a river"), score("a river") - original);
    }
}
