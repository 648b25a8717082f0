//! The pipeline with everything looked up: tables, models, parameters, files, order. Past this point no name is open.

use super::{
    spec::{Spec, Yields},
    stage::{
        StageConfig, evaluate, fasttext, figure, grpo,
        ingest::{self, SourceSpec},
        pack, pretrain, sft,
        sql::{InputTable, Query},
        tokenizer,
    },
    yaml::{
        node::Value,
        problem::{Place, Problems},
        set::Assignment,
    },
};
use crate::{rewards::repro_reward::RewardConfig, storage::location::Location, udf::models::ModelSpec};
use builder::Builder;
use datafusion::common::ScalarValue;
use std::{collections::BTreeMap, path::Path};

mod builder;
pub mod paths;

/// A validated pipeline.
#[derive(Debug)]
pub struct Plan {
    /// The pipeline's name.
    pub name: String,
    /// Everything is written below it.
    pub location: Location,
    /// What all randomness of the pipeline starts from.
    pub seed: u64,
    /// Values of `$name` in SQL; `$seed` is one of them.
    pub params: BTreeMap<String, ScalarValue>,
    /// Models that SQL may call, those of stages included.
    pub models: BTreeMap<String, ModelSpec>,
    /// How rephrasings are rewarded.
    pub rewards: RewardConfig,
    /// Tables that no stage makes.
    pub external: BTreeMap<String, InputTable>,
    /// In an order in which every stage comes after those it needs.
    pub stages: Vec<Stage>,
}

/// One stage.
#[derive(Debug)]
pub struct Stage {
    /// The table or model that it yields.
    pub name: String,
    /// Whether that is a table or a model.
    pub yields: Yields,
    /// What it does.
    pub work: Work,
    /// The settings as written, for the key.
    pub config: StageConfig,
    /// Tables that it reads.
    pub tables: Vec<String>,
    /// Models that it uses.
    pub models: Vec<String>,
    /// Parameters that its query binds.
    pub params: BTreeMap<String, ScalarValue>,
    /// How rephrasings are rewarded, where the stage does that.
    pub rewards: Option<RewardConfig>,
    /// Stages that have to be finished before, as indices into [`Plan::stages`].
    pub needs: Vec<usize>,
}

/// What a stage does.
#[derive(Debug)]
pub enum Work {
    /// Reads files into a table.
    Ingest {
        /// The settings.
        config: ingest::Config,
        /// The files.
        source: SourceSpec,
    },
    /// Runs a query.
    Sql(Query),
    /// Runs a query and draws its rows.
    Figure {
        /// The settings.
        config: Box<figure::Config>,
        /// The query.
        query: Query,
    },
    /// Packs texts into contexts.
    Pack {
        /// The settings.
        config: Box<pack::Config>,
        /// Its tables, in the order of the settings.
        tables: Vec<(String, InputTable)>,
    },
    /// Pretrains a decoder on contexts.
    Pretrain(Box<pretrain::Config>),
    /// Fine-tunes a decoder on pairs.
    Sft(Box<sft::Config>),
    /// Trains a rephraser by reinforcement.
    Grpo(Box<grpo::Config>),
    /// Trains a tokenizer.
    Tokenizer(tokenizer::Config),
    /// Trains a fastText classifier.
    Fasttext(fasttext::Config),
    /// Scores a model on the tasks.
    Evaluate(evaluate::Config),
}

impl Plan {
    /// Reads and checks a pipeline file.
    ///
    /// # Errors
    /// Every fault in the file, in the SQL files that it names, and in `set`.
    pub async fn load(file: &Path, set: &[String]) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let Some(spec) = Spec::read(file, set, &mut problems) else { return Err(problems) };
        Self::build(&spec, file, problems).await
    }

    async fn build(spec: &Spec, file: &Path, mut problems: Problems) -> Result<Self, Problems> {
        let place = Place::whole(&file.display().to_string());
        let location = match Location::parse(&spec.location) {
            Ok(location) => location,
            Err(error) if spec.location.is_empty() => return Err(with(problems, &place, error)),
            Err(error) => return Err(with(problems, &place, error.context("`location`"))),
        };
        let mut builder =
            Builder { spec, file, location: &location, problems: &mut problems, params_used: spec.used.clone() };
        let params = builder.params();
        let models = builder.models();
        let scans = builder.scans();
        let external = builder.external(&scans).await;
        let stages = builder.stages(&scans, &params, &models, &external);
        builder.undeclared();
        let order = builder.order(&stages);
        problems.or(())?;
        let plan = Self {
            name: spec.name.clone(),
            seed: spec.seed,
            location,
            params,
            models,
            rewards: spec.rewards.clone(),
            external,
            stages: in_order(stages.into_iter().flatten().collect(), &order),
        };
        Ok(plan)
    }

    /// Parameters for a query that belongs to no pipeline, from `--set name=value` arguments.
    ///
    /// # Errors
    /// Arguments that are not `name=value`.
    pub fn params_alone(set: &[String]) -> Result<BTreeMap<String, ScalarValue>, Problems> {
        let mut problems = Problems::default();
        let mut params = BTreeMap::new();
        for argument in set {
            let Some(Assignment { path, value }) = Assignment::parse(argument, &mut problems) else { continue };
            match (&path[..], scalar(&value.value)) {
                ([name], Some(value)) => drop(params.insert(name.clone(), value)),
                ([_], None) => problems.add(&value.at, "the value must be a number, a text or `true`/`false`"),
                _ => problems.add(&value.at, "without --pipeline, write --set name=value"),
            }
        }
        problems.or(params)
    }

    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<usize> {
        self.stages.iter().position(|stage| stage.name == name)
    }
}

fn with(mut problems: Problems, place: &Place, error: anyhow::Error) -> Problems {
    if problems.is_empty() {
        problems.add(place, format!("{error:#}"));
    }
    problems
}

fn in_order(stages: Vec<Stage>, order: &[usize]) -> Vec<Stage> {
    let mut slots: Vec<Option<Stage>> = stages.into_iter().map(Some).collect();
    let mut new_index = vec![0; slots.len()];
    order.iter().enumerate().for_each(|(new, &old)| new_index[old] = new);
    order
        .iter()
        .filter_map(|&old| slots[old].take())
        .map(|mut stage| {
            stage.needs.iter_mut().for_each(|need| *need = new_index[*need]);
            stage
        })
        .collect()
}

/// A YAML value as SQL sees it.
fn scalar(value: &Value) -> Option<ScalarValue> {
    match value {
        Value::Bool(b) => Some(ScalarValue::Boolean(Some(*b))),
        Value::Int(n) => Some(ScalarValue::Int64(Some(*n))),
        Value::Float(n) => Some(ScalarValue::Float64(Some(*n))),
        Value::Text(t) => Some(ScalarValue::Utf8(Some(t.clone()))),
        Value::Null | Value::List(_) | Value::Map(_) | Value::Hole => None,
    }
}
