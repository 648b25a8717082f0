//! Plan → finished tables and models: what has to run and why, and running it. Shows nothing itself; progress goes to
//! [`Progress`], the outcome is a [`Report`].

use super::{
    graph,
    key::{Known, StageKey, code_version, stage_key},
    made::{Made, directory, made},
    plan::{Plan, Stage, Work},
    spec::Yields,
    stage::{
        Progress, StageContext, evaluate, fasttext, figure, grpo, ingest, json, pack, pretrain, sft, sql, tokenizer,
    },
};
use crate::{
    storage::{
        commit::TableCommit,
        lease::{LEASE, Lease, Terms},
        manifest::MANIFEST,
    },
    udf::models::Models,
};
use anyhow::{Context, Result, bail};
use std::{collections::BTreeMap, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Which stages, beyond what has changed.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only this stage; its inputs must be finished.
    pub only: Option<String>,
    /// These are made again, with all that depends on them.
    pub force: Vec<String>,
}

/// One stage of a schedule.
#[derive(Debug, Clone)]
pub struct Scheduled {
    /// Index into [`Plan::stages`].
    pub stage: usize,
    /// Its key and what went into it.
    pub key: StageKey,
    /// Whether it runs.
    pub action: Action,
    /// The output of a former run, whatever its key.
    pub former: Option<Made>,
    /// Rows that the stage will read, where they are known before it runs.
    pub rows_in: Option<u64>,
}

/// What happens to a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Finished with the same key.
    Skip,
    /// Runs; why.
    Run(String),
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Report {
    /// Finished stages, skipped ones included, in the order of the plan.
    pub stages: Vec<Outcome>,
    /// What ended the run before its end, with the stage's name.
    pub failure: Option<anyhow::Error>,
    /// Ctrl-C ended it.
    pub stopped: bool,
}

/// One stage that is finished.
#[derive(Debug)]
pub struct Outcome {
    /// The stage's name.
    pub name: String,
    /// Whether it made a table or a model.
    pub yields: Yields,
    /// It was finished before; nothing ran.
    pub skipped: bool,
    /// What it left.
    pub made: Made,
}

/// Decides what runs. Loads no model and changes nothing.
///
/// # Errors
/// A stage name that does not exist, inputs that cannot be listed, `only` with inputs that are not finished.
pub async fn schedule(plan: &Plan, models: &Models, selection: &Selection) -> Result<Vec<Scheduled>> {
    let index = |name: &String| plan.stage(name).with_context(|| format!("no stage `{name}`"));
    let only = selection.only.as_ref().map(index).transpose()?;
    let forced: Vec<usize> = selection.force.iter().map(index).collect::<Result<_>>()?;
    let needs: Vec<Vec<usize>> = plan.stages.iter().map(|s| s.needs.clone()).collect();
    let redo = graph::downstream(&needs, &forced);
    let mut known = Known::new();
    let mut kept: BTreeMap<String, u64> = BTreeMap::new();
    let mut scheduled = Vec::new();
    for (i, stage) in plan.stages.iter().enumerate() {
        let former = made(plan, stage).await?;
        if only.is_some_and(|only| only != i) {
            if let Some(manifest) = &former {
                know(&mut known, stage, manifest.key());
                kept.insert(stage.name.clone(), manifest.rows().kept);
            }
            continue;
        }
        if only == Some(i) {
            require_inputs(plan, stage, &known)?;
        }
        let key = stage_key(plan, stage, &known, models).await.with_context(|| format!("stage `{}`", stage.name))?;
        let action = match &former {
            _ if forced.contains(&i) => Action::Run("forced".into()),
            _ if redo[i] && only.is_none() => Action::Run(because_of(plan, stage, &redo)),
            None => Action::Run("not made yet".into()),
            Some(manifest) if manifest.key() == key.key => Action::Skip,
            Some(manifest) => Action::Run(changed(stage, manifest, &key)),
        };
        know(&mut known, stage, &key.key);
        let rows_in = stage.tables.first().and_then(|name| kept.get(name).copied());
        if let (Action::Skip, Some(manifest)) = (&action, &former) {
            kept.insert(stage.name.clone(), manifest.rows().kept);
        }
        scheduled.push(Scheduled { stage: i, key, action, former, rows_in });
    }
    Ok(scheduled)
}

/// The tables beside a stage's output have its key.
fn know(known: &mut Known, stage: &Stage, key: &str) {
    let names = stage.config.side_tables(&stage.name).into_iter().chain([stage.name.clone()]);
    known.extend(names.map(|name| (name, key.to_owned())));
}

/// For `--only`: what the stage reads has to be there.
fn require_inputs(plan: &Plan, stage: &Stage, known: &Known) -> Result<()> {
    let missing: Vec<&str> =
        stage.needs.iter().map(|&n| plan.stages[n].name.as_str()).filter(|name| !known.contains_key(*name)).collect();
    if let [first, ..] = missing[..] {
        let list = missing.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        bail!(
            "stage `{}` reads {list}, not finished at {}; run without --only, or with --only {first} first",
            stage.name,
            plan.location
        );
    }
    Ok(())
}

fn because_of(plan: &Plan, stage: &Stage, redo: &[bool]) -> String {
    let sources: Vec<String> =
        stage.needs.iter().filter(|&&n| redo[n]).map(|&n| format!("`{}`", plan.stages[n].name)).collect();
    format!("depends on {}", sources.join(", "))
}

/// What differs from the run that made the finished output.
fn changed(stage: &Stage, former: &Made, key: &StageKey) -> String {
    let mut causes = Vec::new();
    if former.code_version() != code_version(stage) {
        causes.push("the program".to_owned());
    }
    let names = |old: &BTreeMap<String, String>, new: &BTreeMap<String, String>| -> Vec<String> {
        let all: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        all.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
    };
    let inputs = names(former.inputs(), &key.inputs);
    match (inputs.len(), &stage.work) {
        (0, _) => {}
        (1, _) => causes.push(format!("the input `{}`", inputs[0])),
        (n, Work::Ingest { .. }) => causes.push(format!("{n} input files")),
        _ => causes.push(format!("the inputs `{}`", inputs.join("`, `"))),
    }
    causes.extend(names(former.models(), &key.models).into_iter().map(|name| format!("the model `{name}`")));
    let params: BTreeMap<String, serde_json::Value> = stage.params.iter().map(|(n, v)| (n.clone(), json(v))).collect();
    let old = former.table().map(|m| m.params.clone()).unwrap_or_default();
    for (name, value) in &params {
        match old.get(name) {
            Some(old) if old == value => {}
            Some(old) => causes.push(format!("`{name}` from {old} to {value}")),
            None => causes.push(format!("`{name}`")),
        }
    }
    match causes.is_empty() {
        true => "changed: its settings or SQL".into(),
        false => format!("changed: {}", causes.join(", ")),
    }
}

/// Runs what the schedule says, in order. What is finished stays whatever happens later.
pub async fn run(
    plan: &Plan,
    schedule: &[Scheduled],
    models: &Arc<Models>,
    progress: &Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Report {
    let mut report = Report::default();
    if let Err(error) = clear_forced(plan, schedule).await {
        report.failure = Some(error);
        return report;
    }
    for item in schedule {
        let stage = &plan.stages[item.stage];
        let result = match &item.former {
            Some(former) if item.action == Action::Skip => Ok((former.clone(), false)),
            _ if cancel.is_cancelled() => Err(anyhow::anyhow!("stopped")),
            _ => make(plan, item, models, progress, cancel).await,
        };
        match result {
            Ok((made, ran)) => {
                if ran {
                    progress.end(&stage.name, made.table());
                }
                report.stages.push(Outcome { name: stage.name.clone(), yields: stage.yields, skipped: !ran, made });
            }
            Err(error) => {
                progress.end(&stage.name, None);
                report.stopped = cancel.is_cancelled();
                report.failure = Some(error.context(format!("stage `{}`", stage.name)));
                return report;
            }
        }
    }
    report
}

/// Outputs that are made again although their key is unchanged go first, all of them: a killed run must not leave a table
/// that looks finished beside inputs that were made anew.
async fn clear_forced(plan: &Plan, schedule: &[Scheduled]) -> Result<()> {
    for item in schedule.iter().rev() {
        let same_key = item.former.as_ref().is_some_and(|m| m.key() == item.key.key);
        let unfinished_forced = item.action == Action::Run("forced".into());
        if item.action != Action::Skip && (same_key || unfinished_forced) {
            let stage = &plan.stages[item.stage];
            clear(plan, stage).await.with_context(|| format!("removing `{}`", stage.name))?;
        }
    }
    Ok(())
}

/// Removes an output, the manifest first, and the tables beside it.
async fn clear(plan: &Plan, stage: &Stage) -> Result<()> {
    let directory = directory(plan, stage);
    let lease = Lease::take(&directory, Terms::default(), &CancellationToken::new()).await?;
    for table in stage.config.side_tables(&stage.name) {
        TableCommit::remove(&plan.location, &table).await?;
    }
    if stage.yields == Yields::Table {
        TableCommit::remove(&plan.location, &stage.name).await?;
    } else {
        directory.delete(MANIFEST).await?;
        for file in directory.list().await? {
            if let Some(name) = file.location.filename().filter(|name| *name != LEASE) {
                directory.delete(name).await?;
            }
        }
    }
    lease.release().await;
    Ok(())
}

/// Makes what a stage yields, as the only run that does so at this location. False: another run has made it since the schedule was made.
async fn make(
    plan: &Plan,
    item: &Scheduled,
    models: &Arc<Models>,
    progress: &Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<(Made, bool)> {
    let stage = &plan.stages[item.stage];
    let stop = cancel.child_token();
    let lease = Lease::take(&directory(plan, stage), Terms::default(), &stop).await?;
    let work = async {
        if let Some(former) = made(plan, stage).await?.filter(|former| former.key() == item.key.key) {
            tracing::info!("{}: another run has finished it meanwhile", stage.name);
            return Ok((former, false));
        }
        same_inputs(plan, stage, &item.key).await?;
        Ok((run_stage(plan, item, models, progress, &stop).await?, true))
    };
    let result = work.await;
    match (lease.release().await, result) {
        (Some(taker), Err(_)) => bail!("{taker}"),
        (_, result) => result,
    }
}

/// What the stage reads must still be what its key was made of: another run, with other parameters, may have made it anew.
async fn same_inputs(plan: &Plan, stage: &Stage, key: &StageKey) -> Result<()> {
    for upstream in stage.needs.iter().map(|&n| &plan.stages[n]) {
        let mut names = upstream.config.side_tables(&upstream.name);
        names.push(upstream.name.clone());
        let Some(expected) = names.iter().find_map(|name| key.inputs.get(name).or_else(|| key.models.get(name))) else {
            continue;
        };
        let found = made(plan, upstream).await?;
        if found.as_ref().is_none_or(|found| found.key() != expected) {
            bail!(
                "`{}` was made anew by another run, with other settings or inputs, after this run began; run the same command again, or \
                 use another location",
                upstream.name
            );
        }
    }
    Ok(())
}

async fn run_stage(
    plan: &Plan,
    item: &Scheduled,
    models: &Arc<Models>,
    progress: &Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<Made> {
    let stage = &plan.stages[item.stage];
    let cx = StageContext {
        location: plan.location.clone(),
        external: plan.external.clone(),
        output: stage.name.clone(),
        key: item.key.key.clone(),
        seed: plan.seed,
        params: stage.params.clone(),
        models: Arc::clone(models),
        progress: Arc::clone(progress),
        cancel: cancel.clone(),
        inputs: item.key.inputs.clone(),
        model_hashes: item.key.models.clone(),
        code_version: code_version(stage),
    };
    Ok(match &stage.work {
        Work::Ingest { config, source } => Made::Table(ingest::run(config, source, &cx).await?),
        Work::Sql(query) => Made::Table(sql::run(query, &cx).await?),
        Work::Figure { config, query } => Made::Table(figure::run(config, query, &cx).await?),
        Work::Pack { config, tables } => Made::Table(pack::run(config, tables, &cx).await?),
        Work::Pretrain(config) => Made::Model(pretrain::run(config, &cx).await?),
        Work::Sft(config) => Made::Model(sft::run(config, &cx).await?),
        Work::Grpo(config) => Made::Model(grpo::run(config, &cx).await?),
        Work::Tokenizer(config) => Made::Model(tokenizer::run(config, &cx).await?),
        Work::Fasttext(config) => Made::Model(fasttext::run(config, &cx).await?),
        Work::Evaluate(config) => Made::Table(evaluate::run(config, &cx).await?),
    })
}
