//! `repro_reward(original, rephrased)`: the combined reward of RePro with every part visible; see [`crate::rewards::repro_reward`] for weights,
//! thresholds and what an empty rephrasing is worth. Which models measure the parts, and which parts are on, the section `rewards:` of the
//! pipeline says. Training calls [`score`] with the model's raw answers, SQL with texts of a table: the same numbers.
//!
//! A pair of which one part cannot be measured fails as a whole: a total without a part would not be comparable.

use super::{
    CallOutput, ModelFunction, dataman,
    models::Models,
    rephrase::external,
    structure_preserved::{ROLE, judge_all},
};
use crate::{
    rewards::repro_reward::{Measures, PartModel, Parts, RewardConfig, well_formed},
    text::{extract::extract, structure::preserved},
};
use anyhow::Context;
use arrow::{
    array::{ArrayRef, AsArray, Float64Array, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields},
};
use datafusion::error::{DataFusionError, Result};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use std::{collections::HashMap, ops::RangeInclusive, sync::Arc};

/// The function's name, for whoever has to know that it uses several models.
pub const NAME: &str = "repro_reward";

/// A pair to score.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The text that was to be rephrased.
    pub original: String,
    /// What came of it.
    pub answer: Answer,
    /// The original's overall DataMan score where it is known; else it is computed.
    pub original_dataman: Option<f64>,
}

/// A rephrasing.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The text itself.
    Text(String),
    /// A model's answer, from which the text is extracted; without the marker the rephrasing is empty.
    Raw {
        /// All that the model wrote, decoded.
        text: String,
        /// What the text follows; may be empty.
        marker: String,
    },
}

impl Answer {
    /// The rephrased text; empty where the answer holds none.
    pub fn rephrased(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Raw { text, marker } => extract(text, marker).unwrap_or_default(),
        }
    }
}

/// A scored pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// What was measured.
    pub measures: Measures,
    /// What it is worth.
    pub parts: Parts,
}

/// Scores pairs, all parts and all pairs at once; a text that stands in several pairs is scored by DataMan once.
///
/// # Errors
/// A model that is not there or cannot be loaded. One pair's fault is in its place, with the name of the part.
pub async fn score(
    models: &Models,
    config: &RewardConfig,
    pairs: &[Pair],
) -> anyhow::Result<Vec<std::result::Result<Scored, String>>> {
    let texts: Vec<(&str, &str)> = pairs.iter().map(|pair| (pair.original.as_str(), pair.answer.rephrased())).collect();
    // An empty rephrasing of the lowest worth needs no scorer.
    let seen: Vec<bool> = texts.iter().map(|(_, rephrased)| config.scores(chars(rephrased))).collect();
    let (scores, f1, kept) = tokio::try_join!(
        dataman_scores(models, config, pairs, &texts, &seen),
        f1_scores(models, config, &texts, &seen),
        structures(models, config, &texts, &seen),
    )?;
    let result = |i: usize| -> std::result::Result<Scored, String> {
        let (original, rephrased) = texts[i];
        let (original_dataman, rephrased_dataman) = scores[i].clone()?;
        let measures = Measures {
            original_dataman,
            rephrased_dataman,
            f1: f1[i].clone()?,
            structure: kept[i].clone()?,
            format: config.format.enabled.then(|| formed(&pairs[i].answer, config)),
            original_chars: chars(original),
            rephrased_chars: chars(rephrased),
        };
        Ok(Scored { measures, parts: config.combine(&measures) })
    };
    Ok((0..pairs.len()).map(result).collect())
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

fn formed(answer: &Answer, config: &RewardConfig) -> bool {
    match answer {
        Answer::Text(text) => !text.trim().is_empty(),
        Answer::Raw { text, marker } => well_formed(text, marker, config.format.rule),
    }
}

/// A part's value of each pair; None where it is off or not looked at.
type Column<T> = Vec<std::result::Result<T, String>>;

/// Overall scores of original and rephrasing.
async fn dataman_scores(
    models: &Models,
    config: &RewardConfig,
    pairs: &[Pair],
    texts: &[(&str, &str)],
    seen: &[bool],
) -> anyhow::Result<Column<(Option<f64>, Option<f64>)>> {
    if !config.dataman.enabled {
        return Ok(vec![Ok((None, None)); pairs.len()]);
    }
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut wanted: Vec<&str> = Vec::new();
    for ((pair, (original, rephrased)), seen) in pairs.iter().zip(texts).zip(seen) {
        let open = pair.original_dataman.is_none().then_some(*original);
        for text in open.into_iter().chain(seen.then_some(*rephrased)) {
            places.entry(text).or_insert_with(|| {
                wanted.push(text);
                wanted.len() - 1
            });
        }
    }
    let scored = if wanted.is_empty() {
        Vec::new()
    } else {
        dataman::score_all(models, &config.dataman.model, &wanted).await.context("the part `dataman` of the reward")?
    };
    let look = |text: &str| match &scored[places[text]] {
        Ok(scored) => Ok(scored.scores.overall() as f64),
        Err(error) => Err(format!("dataman: {error}")),
    };
    let of_pair = |i: usize| {
        let before = pairs[i].original_dataman.map_or_else(|| look(texts[i].0), Ok)?;
        let after = if seen[i] { Some(look(texts[i].1)?) } else { None };
        Ok((Some(before), after))
    };
    Ok((0..pairs.len()).map(of_pair).collect())
}

async fn f1_scores(
    models: &Models,
    config: &RewardConfig,
    texts: &[(&str, &str)],
    seen: &[bool],
) -> anyhow::Result<Column<Option<f64>>> {
    if !config.bertscore.enabled || !seen.contains(&true) {
        return Ok(vec![Ok(None); texts.len()]);
    }
    let encoder = models.encoder(&config.bertscore.model).await.context("the part `bertscore` of the reward")?;
    let asked = texts.iter().zip(seen).filter(|(_, seen)| **seen);
    let wanted = asked.map(|((original, rephrased), _)| ((*rephrased).to_owned(), (*original).to_owned())).collect();
    let scored = encoder.score(wanted).await;
    let mut scored = scored
        .into_iter()
        .map(|row| row.map(|score| Some(f64::from(score.f1))).map_err(|error| format!("bertscore: {error}")));
    Ok(seen.iter().map(|seen| if *seen { scored.next().unwrap_or(Ok(None)) } else { Ok(None) }).collect())
}

async fn structures(
    models: &Models,
    config: &RewardConfig,
    texts: &[(&str, &str)],
    seen: &[bool],
) -> anyhow::Result<Column<Option<bool>>> {
    if !config.structure.enabled {
        return Ok(vec![Ok(None); texts.len()]);
    }
    let named = config.structure.model.as_deref();
    let Some(model) = named.or_else(|| models.spec(ROLE).map(|_| ROLE)) else {
        return Ok(model_free(texts, seen));
    };
    let wanted: Vec<(&str, &str)> = texts.iter().zip(seen).filter(|(_, seen)| **seen).map(|(pair, _)| *pair).collect();
    let judged = judge_all(models, model, &wanted).await.context("the part `structure` of the reward")?;
    let mut judged = judged.into_iter().map(|kept| kept.map(Some).map_err(|error| format!("structure: {error}")));
    Ok(seen.iter().map(|seen| if *seen { judged.next().unwrap_or(Ok(None)) } else { Ok(None) }).collect())
}

fn model_free(texts: &[(&str, &str)], seen: &[bool]) -> Column<Option<bool>> {
    let rows: Vec<(&(&str, &str), &bool)> = texts.iter().zip(seen).collect();
    rows.par_iter().map(|((original, rephrased), seen)| Ok(seen.then(|| preserved(original, rephrased)))).collect()
}

/// See the file.
#[derive(Debug)]
pub struct ReproReward;

/// Fields of the result: the parts, the total, and what was measured for them.
const FIELDS: [&str; 10] = [
    "dataman",
    "bertscore",
    "structure",
    "length",
    "format",
    "total",
    "original_dataman",
    "rephrased_dataman",
    "f1",
    "length_ratio",
];

/// The fields' values in order.
fn values(scored: &Scored) -> [Option<f64>; FIELDS.len()] {
    let Scored { parts, measures } = scored;
    let ratio = measures.rephrased_chars as f64 / measures.original_chars as f64;
    [
        parts.dataman,
        parts.bertscore,
        parts.structure,
        parts.length,
        parts.format,
        Some(parts.total),
        measures.original_dataman,
        measures.rephrased_dataman,
        measures.f1,
        (measures.original_chars > 0).then_some(ratio),
    ]
}

#[async_trait::async_trait]
impl ModelFunction for ReproReward {
    fn name(&self) -> &'static str {
        NAME
    }
    fn arity(&self) -> RangeInclusive<usize> {
        2..=2
    }
    fn return_type(&self) -> DataType {
        DataType::Struct(FIELDS.iter().map(|name| Field::new(*name, DataType::Float64, true)).collect::<Fields>())
    }
    /// No argument names a model: the section `rewards:` names several.
    fn model_argument(&self) -> (usize, &'static str) {
        (2, "rewards")
    }
    fn check_model(&self, models: &Models, _: &str) -> Result<()> {
        for PartModel { part, name, optional } in models.rewards().models() {
            if !optional && models.spec(&name).is_none() {
                let names = models.names().join(", ");
                return Err(DataFusionError::Plan(format!(
                    "{NAME}: no model `{name}` for its part `{part}`; there are: {names}; add it under `models:`, name another with rewards: \
                     {{ {part}: {{ model: NAME }} }}, or switch the part off with rewards: {{ {part}: {{ enabled: false }} }}"
                )));
            }
        }
        Ok(())
    }
    async fn call(&self, models: &Models, _: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        let (originals, rephrased) = (args[0].as_string::<i32>(), args[1].as_string::<i32>());
        let given: Vec<Option<Pair>> = originals
            .iter()
            .zip(rephrased)
            .map(|(original, rephrased)| {
                let answer = Answer::Text(rephrased?.to_owned());
                Some(Pair { original: original?.to_owned(), answer, original_dataman: None })
            })
            .collect();
        let pairs: Vec<Pair> = given.iter().flatten().cloned().collect();
        let mut scored = score(models, models.rewards(), &pairs).await.map_err(external)?.into_iter();
        let rows: Vec<_> = given.iter().map(|pair| pair.as_ref().and_then(|_| scored.next())).collect();
        let done: Vec<Option<[Option<f64>; FIELDS.len()]>> =
            rows.iter().map(|row| row.as_ref()?.as_ref().ok().map(values)).collect();
        let column = |i: usize| Arc::new(done.iter().map(|row| row.and_then(|row| row[i])).collect::<Float64Array>());
        let columns = (0..FIELDS.len()).map(|i| column(i) as ArrayRef).collect();
        let valid = NullBuffer::from_iter(done.iter().map(Option::is_some));
        let DataType::Struct(fields) = self.return_type() else { unreachable!("a struct by definition") };
        let array = Arc::new(StructArray::try_new(fields, columns, Some(valid))?);
        let errors = rows.into_iter().map(|row| row?.err()).collect();
        Ok(CallOutput { array, errors, output_tokens: 0 })
    }
}
