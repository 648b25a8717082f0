//! `repro sql`: a session over a pipeline's tables, or tables given by path; one query, or the shell.

use super::{
    Failure, device, interrupted,
    output::{Out, count, message, seconds, to_terminal},
    run::{faulty, place_models},
    shell,
    show::{Format, show},
};
use crate::{
    catalog::session::{FailureSink, Failures, Session, SessionOptions, TableSource},
    models::encoder::config::EncoderConfig,
    pipeline::{
        assets,
        made::made,
        plan::{Plan, paths::external_table},
        spec::Yields,
        sqlscan,
        stage::sql::InputTable,
    },
    udf::{
        encoder::EncoderSpec,
        models::{CausalLmSpec, FastTextSpec, ModelSpec, Models},
    },
};
use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    io::{IsTerminal, Read, stderr, stdin},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// Arguments of `repro sql`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The query. Without it: standard input, or a shell if that is a terminal.
    #[arg(value_name = "QUERY", conflicts_with = "file")]
    query: Option<String>,
    /// Take tables, models and parameters of this pipeline.
    #[arg(long, value_name = "PIPELINE.yaml")]
    pipeline: Option<PathBuf>,
    /// Read the query from a file.
    #[arg(long, value_name = "QUERY.sql")]
    file: Option<PathBuf>,
    /// Name a table: a table directory, or Parquet, JSONL or CSV files (path or glob, local or s3://). May be given several times.
    #[arg(long, value_name = "NAME=PATH", value_parser = named)]
    table: Vec<(String, String)>,
    /// Name a model: a directory, hf://org/name, or a fastText .bin file. May be given several times.
    #[arg(long, value_name = "NAME=PATH", value_parser = named)]
    model: Vec<(String, String)>,
    /// Set a parameter ($name in the query) or, with --pipeline, any of its keys.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How rows are written: table, csv, or json (one object a line).
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Where language models run: auto, cpu or cuda:N.
    #[arg(long, value_parser = device)]
    device: Option<String>,
}

/// `name=path`
fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.to_owned())),
        _ => Err("write NAME=PATH, e.g. organic=runs/quickstart/organic".to_owned()),
    }
}

/// Everything that queries of one command share.
pub struct Desk {
    session: Session,
    pub format: Format,
    /// Tables that a pipeline would make but has not yet.
    /// Table → the stage that would make it.
    unmade: BTreeMap<String, String>,
    errors: Arc<Mutex<BTreeMap<String, u64>>>,
    models: Arc<Models>,
}

/// Runs the command.
pub fn main(runtime: &tokio::runtime::Runtime, args: Args) -> Result<(), Failure> {
    let query = match (&args.query, &args.file) {
        (Some(query), _) => Some(query.clone()),
        (None, Some(file)) => Some(read_file(file)?),
        (None, None) if stdin().is_terminal() => None,
        (None, None) => {
            let mut text = String::new();
            stdin().read_to_string(&mut text).context("cannot read the query from standard input")?;
            Some(text)
        }
    };
    let desk = runtime.block_on(Desk::open(&args))?;
    match query {
        Some(query) => runtime.block_on(desk.answer(&query, Note::Nothing)),
        None => shell::main(runtime, desk),
    }
}

fn read_file(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("error: --file {}: cannot read it: {error}", path.display())))
}

/// What is said after a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    Nothing,
    /// Rows and time.
    Figures,
}

impl Desk {
    async fn open(args: &Args) -> Result<Self, Failure> {
        let plan = match &args.pipeline {
            Some(file) => Some(Plan::load(file, &args.set).await.map_err(faulty)?),
            None => None,
        };
        let mut models = plan.as_ref().map(|plan| plan.models.clone()).unwrap_or_else(assets::models);
        models.extend(args.model.iter().map(|(name, path)| (name.clone(), model_at(name, path))));
        place_models(&mut models, args.device.as_deref());
        let rewards = plan.as_ref().map(|plan| plan.rewards.clone()).unwrap_or_default();
        let models = Models::with_rewards(models, plan.as_ref().map_or(42, |plan| plan.seed), rewards);
        let params = match &plan {
            Some(plan) => plan.params.clone(),
            None => Plan::params_alone(&args.set).map_err(faulty)?,
        };
        let errors: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let failures = Failures::Null(tally(&errors));
        let session = Session::new(SessionOptions { models: Arc::clone(&models), params, failures, partitions: 0 })?;
        let mut desk = Self { session, format: args.format, unmade: BTreeMap::new(), errors, models };
        if let Some(plan) = &plan {
            desk.register_plan(plan).await?;
        }
        for (name, path) in &args.table {
            desk.register(name, external_table(path).await).await?;
        }
        Ok(desk)
    }

    async fn register_plan(&mut self, plan: &Plan) -> Result<()> {
        for stage in &plan.stages {
            let own = (stage.yields == Yields::Table).then(|| stage.name.clone());
            let names: Vec<String> = stage.config.side_tables(&stage.name).into_iter().chain(own).collect();
            if made(plan, stage).await?.is_none() {
                self.unmade.extend(names.into_iter().map(|name| (name, stage.name.clone())));
                continue;
            }
            for name in names {
                let table = InputTable::Managed { location: plan.location.clone(), table: name.clone() };
                self.register(&name, table).await?;
            }
        }
        for (name, table) in &plan.external {
            self.register(name, table.clone()).await?;
        }
        let failed = plan.location.join("failed");
        if failed.list().await.is_ok_and(|files| !files.is_empty()) {
            self.session.register("failed", TableSource::Files(failed.to_string())).await?;
        }
        Ok(())
    }

    async fn register(&self, name: &str, table: InputTable) -> Result<()> {
        let source = match table {
            InputTable::Managed { location, table } => TableSource::Managed { location, table },
            InputTable::Files(path) => TableSource::Files(path),
        };
        self.session.register(name, source).await
    }

    /// Tables of the pipeline that no run has made.
    pub fn unmade(&self) -> impl Iterator<Item = &String> {
        self.unmade.keys()
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Runs one statement and shows its rows. Ctrl-C stops it.
    pub async fn answer(&self, query: &str, note: Note) -> Result<(), Failure> {
        let start = Instant::now();
        let result = tokio::select! {
            result = self.rows(query) => result,
            () = interrupted() => return Err(Failure::Failed(anyhow::anyhow!("stopped"))),
        };
        self.report_failures();
        let rows = result?;
        if note == Note::Figures && stderr().is_terminal() {
            let tokens = self.models.output_tokens();
            let tokens = if tokens > 0 { format!(", {} tokens made", count(tokens)) } else { String::new() };
            let plural = if rows == 1 { "" } else { "s" };
            message(&format!("{} row{plural} in {}{tokens}", count(rows), seconds(start.elapsed().as_secs_f64())));
        }
        Ok(())
    }

    async fn rows(&self, query: &str) -> Result<u64> {
        let frame = self.session.sql(query).await.map_err(|error| self.explained(query, error))?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let stream = frame.execute_stream().await?;
        show(&schema, stream, self.format, Out::new(), to_terminal()).await
    }

    /// Says of a table that is not there that its stage has not run yet.
    fn explained(&self, query: &str, error: anyhow::Error) -> anyhow::Error {
        let named = sqlscan::scan(query).map(|scan| scan.tables).unwrap_or_default();
        match named.iter().find_map(|table| self.unmade.get(&table.name)) {
            Some(stage) => anyhow::anyhow!("the stage `{stage}` has not been run yet; `repro run` makes it"),
            None => error,
        }
    }

    /// Rows whose model call failed are NULL in the result; says how many and why.
    fn report_failures(&self) {
        let errors = std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner));
        for (error, n) in errors {
            message(&format!("warning: NULL for {} row{}: {error}", count(n), if n == 1 { "" } else { "s" }));
        }
    }
}

fn tally(errors: &Arc<Mutex<BTreeMap<String, u64>>>) -> FailureSink {
    let errors = Arc::clone(errors);
    Arc::new(move |_, error| *errors.lock().unwrap_or_else(PoisonError::into_inner).entry(error).or_default() += 1)
}

/// What stands at a path: a fastText file, an encoder, else a language model.
fn model_at(name: &str, path: &str) -> ModelSpec {
    let path = path.to_owned();
    if [".bin", ".ftz"].iter().any(|end| path.ends_with(end)) {
        return ModelSpec::Fasttext(FastTextSpec { path });
    }
    // Remote directories are not read yet: there the name decides.
    if name == "bertscore" || EncoderConfig::is_encoder(Path::new(&path)).unwrap_or(false) {
        return ModelSpec::Encoder(EncoderSpec { path, ..EncoderSpec::default() });
    }
    ModelSpec::CausalLm(CausalLmSpec { path, ..CausalLmSpec::default() })
}
