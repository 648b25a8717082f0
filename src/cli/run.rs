//! `repro run`: plan, schedule, run, and a table of what came of it.

use super::{
    Failure, device,
    grid::Grid,
    on_interrupt,
    output::{Out, count, message, rate, seconds},
    progress,
};
use crate::{
    pipeline::{
        made::Made,
        plan::Plan,
        run::{Action, Outcome, Report, Scheduled, Selection, run, schedule},
        spec::Yields,
        yaml::problem::{Problems, suggest},
    },
    udf::models::{ModelSpec, Models},
};
use std::{collections::BTreeMap, io::Write, path::PathBuf};
use tokio_util::sync::CancellationToken;

/// Arguments of `repro run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline file.
    #[arg(value_name = "PIPELINE.yaml")]
    pipeline: PathBuf,
    /// Run this stage alone; what it reads must be finished.
    #[arg(long, value_name = "STAGE")]
    only: Option<String>,
    /// Make this stage again although nothing changed, and all that depends on it. May be given several times.
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Show what would run, and why; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Set a parameter (name=value) or any key (models.rephraser.path=…, sources.raw.path=…, location=…).
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where language models run: auto, cpu or cuda:N. Default: what the pipeline says.
    #[arg(long, value_parser = device)]
    device: Option<String>,
}

/// Runs the command.
pub async fn main(args: Args) -> Result<(), Failure> {
    let mut plan = Plan::load(&args.pipeline, &args.set).await.map_err(faulty)?;
    place_models(&mut plan.models, args.device.as_deref());
    let names: Vec<&str> = plan.stages.iter().map(|s| s.name.as_str()).collect();
    for (flag, name) in args.only.iter().map(|n| ("--only", n)).chain(args.force.iter().map(|n| ("--force", n))) {
        if !names.contains(&name.as_str()) {
            return Err(Failure::Usage(format!("error: {flag} {name}: no such stage{}", suggest(name, &names))));
        }
    }
    let models = Models::with_rewards(plan.models.clone(), plan.seed, plan.rewards.clone());
    let selection = Selection { only: args.only, force: args.force };
    let scheduled = schedule(&plan, &models, &selection).await?;
    if args.dry_run {
        return Ok(show_schedule(&plan, &scheduled)?);
    }
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    on_interrupt(move || {
        message("stopping at the next safe point; press Ctrl-C again to stop at once");
        token.cancel();
    });
    let report = run(&plan, &scheduled, &models, &progress::progress(), &cancel).await;
    show_report(&plan, &report)?;
    conclude(&args.pipeline, report)
}

/// Says what is wrong with a pipeline.
pub fn faulty(problems: Problems) -> Failure {
    let n = problems.len();
    let summary = format!("{n} problem{}; nothing was run", if n == 1 { "" } else { "s" });
    Failure::Usage(format!("{problems}\n{summary}"))
}

/// `--device` wins over what the pipeline says.
pub fn place_models(models: &mut BTreeMap<String, ModelSpec>, device: Option<&str>) {
    for spec in models.values_mut() {
        match (spec, device) {
            (ModelSpec::CausalLm(spec), Some(device)) => spec.device = Some(device.to_owned()),
            (ModelSpec::Encoder(spec), Some(device)) => spec.device = Some(device.to_owned()),
            _ => {}
        }
    }
}

fn show_schedule(plan: &Plan, scheduled: &[Scheduled]) -> std::io::Result<()> {
    let mut grid = Grid::new(["stage", "yields", "kind", "reads", "rows in", "tokens before", "what happens"]);
    for item in scheduled {
        let stage = &plan.stages[item.stage];
        let former = item.former.as_ref();
        let rows = item.rows_in.or_else(|| former.map(|m| m.rows().input)).map_or("?".into(), count);
        let tokens = former.map(|m| m.cost().output_tokens).filter(|t| *t > 0).map_or("-".into(), count);
        let reads: Vec<&str> = stage.tables.iter().chain(&stage.models).map(String::as_str).collect();
        let yields = if stage.yields == Yields::Table { "table" } else { "model" };
        let action = match &item.action {
            Action::Skip => "skip: finished, unchanged".to_owned(),
            Action::Run(why) => format!("run: {why}"),
        };
        grid.row([
            stage.name.clone(),
            yields.into(),
            stage.config.kind().into(),
            some_of(&reads),
            rows,
            tokens,
            action,
        ]);
    }
    let mut out = Out::new();
    write!(out, "{grid}")?;
    let running = scheduled.iter().filter(|s| s.action != Action::Skip).count();
    writeln!(out, "\n{running} of {} stages would run, at {}; nothing was changed", scheduled.len(), plan.location)
}

/// Names in one line of bounded width: a union of fifty tables must not push the other columns out of sight.
fn some_of(names: &[&str]) -> String {
    const ROOM: usize = 40;
    let (mut line, mut shown) = (String::new(), 0);
    for name in names {
        let more = if shown + 1 < names.len() { " +99".len() } else { 0 };
        if shown > 0 && line.chars().count() + 1 + name.chars().count() + more > ROOM {
            break;
        }
        if shown > 0 {
            line.push(' ');
        }
        line.push_str(name);
        shown += 1;
    }
    match names.len() - shown {
        _ if names.is_empty() => "-".into(),
        0 => line,
        rest => format!("{line} +{rest}"),
    }
}

fn show_report(plan: &Plan, report: &Report) -> std::io::Result<()> {
    let mut grid = Grid::new(["stage", "input", "kept", "dropped", "failed", "time", "rows/s", ""]);
    for outcome in &report.stages {
        let (rows, cost) = (outcome.made.rows(), outcome.made.cost());
        let created = if rows.created > 0 { format!("{} created ", count(rows.created)) } else { String::new() };
        let state = if outcome.skipped { "unchanged" } else { "" };
        grid.row([
            outcome.name.clone(),
            count(rows.input),
            count(rows.kept),
            count(rows.dropped),
            count(rows.failed),
            seconds(cost.wall_seconds),
            rate(cost.rows_per_second),
            format!("{created}{state}"),
        ]);
    }
    let mut out = Out::new();
    if !grid.is_empty() {
        writeln!(out, "{grid}")?;
    }
    let of = |yields: Yields| report.stages.iter().filter(|o| o.yields == yields).count();
    if of(Yields::Table) > 0 {
        writeln!(out, "tables: {}/<table>/", plan.location)?;
    }
    if of(Yields::Model) > 0 {
        writeln!(out, "models: {}/models/<model>/", plan.location)?;
    }
    if let Some(Outcome { name, .. }) = report.stages.iter().find(|o| failed(&o.made) > 0) {
        writeln!(out, "failed rows: {0}/failed/ (why: repro inspect {0}/{name})", plan.location)?;
    }
    Ok(())
}

fn failed(made: &Made) -> u64 {
    made.rows().failed
}

fn conclude(pipeline: &std::path::Path, report: Report) -> Result<(), Failure> {
    let Some(error) = report.failure else { return Ok(()) };
    if report.stopped {
        // How far a training came, or that its checkpoint could not be written.
        message(&format!("{error:#}"));
        message(&format!("stopped; what is done is kept, `repro run {}` continues", pipeline.display()));
        return Err(Failure::Silent);
    }
    message(&format!("error: {error:#}"));
    message("what is done is kept; mend the cause and run the same command again to continue");
    Err(Failure::Silent)
}

#[cfg(test)]
mod tests {
    use super::some_of;

    #[test]
    fn many_names_take_little_room() {
        assert_eq!(some_of(&[]), "-");
        assert_eq!(some_of(&["a", "b"]), "a b");
        let long = "a_name_of_more_than_forty_characters_is_shown_whole";
        assert_eq!(some_of(&[long, "b"]), format!("{long} +1"));
        let many: Vec<String> = (0..24).map(|i| format!("evals_{i:02}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(some_of(&many), "evals_00 evals_01 evals_02 evals_03 +20");
        assert_eq!(some_of(&many[..4]), "evals_00 evals_01 evals_02 evals_03");
    }
}
