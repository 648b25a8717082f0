//! The `evaluate` stage: a causal model on the paper's tasks. It makes two tables: its own, with one row a task, and
//! `<name>_items`, with one row an item, so that SQL can ask which items changed between two models. The scoring is in
//! [`crate::eval`]; the rows' columns are in [`tables`].
//!
//! Items are committed in fragments, so a killed run goes on where it was. The items' manifest is published first: where the
//! stage's own table is finished, both are. Items that cannot be asked are in `failed`.

use super::{StageContext, artifact};
use crate::{
    eval::{
        prompt::{self, Plan, Prompter},
        score::{Options, Precision, Scorer},
        tasks::{self, Baselines, TASKS, Task},
    },
    storage::{
        commit::{FailedRow, TableCommit},
        manifest::Manifest,
    },
    text::tokenizer::Tokenizer,
};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Instant};
use tokio::runtime::Handle;

mod files;
mod held_out;
mod tables;

use files::Found;
use tables::{ItemRow, TaskRow};

/// Items of a fragment, the unit of commit and resume. Also what is sorted by length together.
const FRAGMENT_ITEMS: usize = 2048;
/// Longest sequence of the harness.
const HARNESS_LENGTH: usize = 2048;

/// Settings of an `evaluate` stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model: a name of this pipeline, or a path (local, `hf://`, `s3://`) of a directory in Hugging Face layout.
    pub model: String,
    /// Directory (local or s3://) with the harness's task files, at their places below `local_data` or all in one directory.
    /// A file that is not there makes its task's row say `missing`.
    #[serde(default)]
    pub tasks: Option<String>,
    /// Labels of the tasks; empty for the 22 of Core. `commonsense_qa`, which the paper leaves out, has to be named.
    #[serde(default)]
    pub include: Vec<String>,
    /// Only the first N items of each task, with the few-shot examples that they have in a full run; categories share N evenly,
    /// at least one item each. Accuracies are then rough.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Tokens of a prompt with its continuation; longer prompts lose their start. Default: 2,048 as in the harness, or
    /// the model's positions where it has fewer.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// `v1`, DCLM's baselines as in the paper, or `v2`, corrected. Results over different ones cannot be compared.
    #[serde(default)]
    pub baselines: Baselines,
    /// A `packed` table that the model was not trained on. Its mean loss becomes a row with the metric `loss`.
    #[serde(default)]
    pub held_out: Option<String>,
    /// Tokens of one forward pass, padding included; a GPU takes at least 32,768.
    #[serde(default = "batch_tokens")]
    pub batch_tokens: usize,
    /// `f32`, as the harness, or `bf16`.
    #[serde(default)]
    pub precision: Precision,
    /// `auto`, `cpu` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
    /// CPU threads; 0 for all cores.
    #[serde(default)]
    pub threads: usize,
}

fn batch_tokens() -> usize {
    4096
}
fn cpu() -> String {
    "cpu".to_owned()
}

impl Config {
    /// Tables that the stage reads.
    pub fn tables(&self) -> Vec<&str> {
        self.held_out.iter().map(String::as_str).collect()
    }

    /// The model that is evaluated.
    pub fn models(&self) -> Vec<&str> {
        vec![&self.model]
    }
}

/// The table of items that a stage of this name makes besides its own.
pub fn items_table(name: &str) -> String {
    format!("{name}_items")
}

/// Scores the tasks and publishes both tables; continues where a former run ended.
///
/// # Errors
/// Settings, files, model and tokenizer that do not fit; an interruption.
pub async fn run(config: &Config, cx: &StageContext) -> anyhow::Result<Manifest> {
    let tasks = selected(config)?;
    let found = files::read(config.tasks.as_deref(), &tasks).await?;
    let directory = artifact::model_directory(cx, &config.model).await?;
    let evals = TableCommit::begin(&cx.location, &cx.output, &cx.key).await?;
    let items = TableCommit::begin(&cx.location, &items_table(&cx.output), &cx.key).await?;
    let packed = match &config.held_out {
        Some(table) => Some(held_out::open(cx, table).await?),
        None => None,
    };
    let job =
        Job { config: config.clone(), cx: cx.clone(), runtime: Handle::current(), directory, found, items, packed };
    let (items, rows) =
        tokio::task::spawn_blocking(move || job.run()).await.context("the scoring thread ended early")??;
    let mut manifest = Manifest::describe(cx);
    manifest.table = items_table(&cx.output);
    items.publish(manifest).await?;
    let mut writer = evals.fragment("00000", tables::task_schema()).await?;
    writer.write(&tables::task_batch(&rows)?).await?;
    writer.finish(rows.len() as u64).await?;
    evals.publish(Manifest::describe(cx)).await
}

/// The tasks that the settings ask for, in the order of the reports.
fn selected(config: &Config) -> anyhow::Result<Vec<&'static Task>> {
    if config.tasks.is_none() {
        ensure!(config.include.is_empty(), "`include` names tasks; give their directory in `tasks`");
        ensure!(config.held_out.is_some(), "there is nothing to evaluate on: give `tasks` or `held_out`");
        return Ok(Vec::new());
    }
    ensure!(config.limit != Some(0), "limit is 0; leave it out for all items");
    for label in &config.include {
        if tasks::find(label).is_none() {
            let known: Vec<&str> = TASKS.iter().map(|t| t.label).collect();
            bail!("include: there is no task `{label}`; the tasks are {}", known.join(", "));
        }
    }
    let wanted = |task: &&Task| match config.include.is_empty() {
        true => task.core,
        false => config.include.iter().any(|label| label == task.label),
    };
    Ok(TASKS.iter().filter(wanted).collect())
}

/// Everything that the scoring thread needs.
struct Job {
    config: Config,
    cx: StageContext,
    runtime: Handle,
    directory: PathBuf,
    found: Vec<Found>,
    items: TableCommit,
    packed: Option<held_out::Contexts>,
}

/// A model that is ready, and its prompts.
struct Ready {
    scorer: Scorer,
    prompter: Prompter,
    tokenizer: Tokenizer,
}

impl Job {
    fn run(mut self) -> anyhow::Result<(TableCommit, Vec<TaskRow>)> {
        let begin = Instant::now();
        let plans: Vec<Vec<Plan>> =
            self.found.iter().map(|f| prompt::plan(f.task, &f.items, self.config.limit)).collect();
        let (all, done) = self.work(&plans);
        self.cx.progress.begin(&self.cx.output, Some(all), done, "items");
        let ready = self.load()?;
        let mut rows = Vec::new();
        for (found, plans) in self.found.iter().zip(&plans) {
            rows.push(self.task(found, plans, &ready)?);
        }
        if let Some(contexts) = self.packed.take() {
            rows.push(contexts.row(&ready.scorer, &self.config, &self.cx)?);
        }
        self.summarise(&rows, begin);
        Ok((self.items, rows))
    }

    fn load(&self) -> anyhow::Result<Ready> {
        let config = &self.config;
        let options = Options {
            device: config.device.clone(),
            precision: config.precision,
            batch_tokens: config.batch_tokens,
            threads: config.threads,
        };
        let scorer = Scorer::load(&self.directory, &options)?;
        let positions = scorer.max_positions();
        let length = config.max_length.unwrap_or(HARNESS_LENGTH.min(positions));
        ensure!(length >= 2, "max_length {length} leaves no room for a context and a continuation");
        ensure!(
            length <= positions,
            "max_length {length} is more than the model's {positions} positions; leave it out or take at most {positions}"
        );
        let tokenizer = Tokenizer::from_dir(&self.directory)?;
        ensure!(
            tokenizer.vocab_size() <= scorer.vocab_size(),
            "the tokenizer has {} tokens, the model {}; they do not belong together",
            tokenizer.vocab_size(),
            scorer.vocab_size()
        );
        let prompter = Prompter::new(tokenizer.clone(), length)?;
        Ok(Ready { scorer, prompter, tokenizer })
    }

    /// Items of all tasks, and those that a former run finished.
    fn work(&self, plans: &[Vec<Plan>]) -> (u64, u64) {
        let (mut all, mut done) = (0, 0);
        for (found, plans) in self.found.iter().zip(plans) {
            for (part, chunk) in plans.chunks(FRAGMENT_ITEMS).enumerate() {
                all += chunk.len() as u64;
                if self.items.done(&fragment_id(found.task, part)).is_some() {
                    done += chunk.len() as u64;
                }
            }
        }
        (all, done)
    }

    fn task(&self, found: &Found, plans: &[Plan], ready: &Ready) -> anyhow::Result<TaskRow> {
        let begin = Instant::now();
        let last = plans.len().div_ceil(FRAGMENT_ITEMS).saturating_sub(1);
        // Items beyond the limit are dropped; the last fragment answers for them.
        let left_out = found.items.len() - plans.len();
        let (mut rows, mut failed) = (Vec::new(), 0);
        for (part, chunk) in plans.chunks(FRAGMENT_ITEMS).enumerate() {
            let id = fragment_id(found.task, part);
            if let Some(record) = self.items.done(&id) {
                failed += record.failed;
                rows.extend(self.runtime.block_on(tables::read_items(&self.cx, record))?);
                continue;
            }
            let fragment = self.fragment(found, chunk, ready).with_context(|| found.task.label)?;
            let input = chunk.len() + if part == last { left_out } else { 0 };
            failed += fragment.failed.len() as u64;
            self.runtime.block_on(self.commit(&id, &fragment, input as u64))?;
            rows.extend(fragment.rows);
        }
        let seconds = begin.elapsed().as_secs_f64();
        let row = TaskRow::new(found.task, &self.config, &rows, failed, seconds);
        if let Some(accuracy) = row.accuracy {
            self.cx.progress.advance(&self.cx.output, 0, &format!("{} {accuracy:.3}", found.task.label));
        }
        Ok(row)
    }

    fn fragment(&self, found: &Found, plans: &[Plan], ready: &Ready) -> anyhow::Result<Fragment> {
        let (mut questions, mut failed) = (Vec::new(), Vec::new());
        for (plan, question) in plans.iter().zip(ready.prompter.questions(found.task, &found.items, plans)) {
            match question {
                Ok(question) => questions.push(question),
                Err(error) => failed.push(self.failure(found, plan.item, &format!("{error:#}"))),
            }
        }
        let mut meter = Meter::new(&self.cx, found.task.label);
        let answers = ready.scorer.answers(&questions, &mut |tokens| meter.batch(tokens))?;
        let mut rows = Vec::new();
        for (question, answer) in questions.iter().zip(answers) {
            let item = &found.items[question.index];
            if answer.losses.iter().any(|loss| !loss.is_finite()) {
                failed.push(self.failure(found, question.index, "the model gives a loss that is not a number"));
                continue;
            }
            rows.push(ItemRow::new(found.task, item, question, answer, &ready.tokenizer)?);
        }
        rows.sort_by_key(|row| row.item);
        self.cx.progress.advance(&self.cx.output, plans.len() as u64, found.task.label);
        Ok(Fragment { rows, failed })
    }

    fn failure(&self, found: &Found, item: usize, error: &str) -> FailedRow {
        FailedRow {
            row_id: format!("{}:{item}", found.task.label),
            error: format!("{}: {error}", found.shown),
            attempts: 1,
        }
    }

    async fn commit(&self, id: &str, fragment: &Fragment, input: u64) -> anyhow::Result<()> {
        let mut writer = self.items.fragment(id, tables::item_schema()).await?;
        writer.write(&tables::item_batch(&fragment.rows)?).await?;
        fragment.failed.iter().cloned().for_each(|row| writer.fail(row));
        writer.finish(input).await?;
        Ok(())
    }

    fn summarise(&self, rows: &[TaskRow], begin: Instant) {
        let failed: i64 = rows.iter().map(|row| row.failed).sum();
        if failed > 0 {
            let (location, items) = (&self.cx.location, items_table(&self.cx.output));
            tracing::warn!("{failed} items could not be asked; why: repro inspect {location}/{items}");
        }
        let core = tables::core(rows);
        if let Some(centered) = core.centered {
            tracing::info!(
                "{}: Core {centered:.4} over {} of {} tasks, baselines {}, {:.0} s",
                self.cx.output,
                core.tasks,
                core.of,
                self.config.baselines.name(),
                begin.elapsed().as_secs_f64()
            );
        }
    }
}

/// Rows of one fragment.
struct Fragment {
    rows: Vec<ItemRow>,
    failed: Vec<FailedRow>,
}

/// In the order of the reports; a fragment id has no `_`.
fn fragment_id(task: &Task, part: usize) -> String {
    let index = TASKS.iter().position(|t| t.label == task.label).unwrap_or(TASKS.len());
    format!("{index:02}-{}-{part:03}", task.label.replace('_', "-"))
}

/// Progress of one fragment: its batches are not in the order of its items, so items count when all are done.
struct Meter {
    cx: StageContext,
    label: &'static str,
    tokens: u64,
    begin: Instant,
}

impl Meter {
    fn new(cx: &StageContext, label: &'static str) -> Self {
        Self { cx: cx.clone(), label, tokens: 0, begin: Instant::now() }
    }

    fn batch(&mut self, tokens: u64) -> anyhow::Result<()> {
        ensure!(!self.cx.cancel.is_cancelled(), "stopped; run the same command again to continue");
        self.tokens += tokens;
        let rate = self.tokens as f64 / self.begin.elapsed().as_secs_f64().max(1e-9);
        self.cx.progress.advance(&self.cx.output, 0, &format!("{}, {rate:.0} tok/s", self.label));
        Ok(())
    }
}
