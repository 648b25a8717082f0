//! The command line: arguments → typed command → pipeline or session; progress, exit codes. Results go to stdout, all else to
//! stderr. Knows nothing of how a stage or a query works.

mod grid;
mod inspect;
mod models;
mod output;
mod progress;
mod run;
mod shell;
mod show;
mod sql;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Recycles web text for pretraining: Parquet tables in, SQL with language models in the middle, Parquet tables out.
#[derive(Debug, Parser)]
#[command(name = "repro", version, arg_required_else_help = true, infer_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline: what is finished and unchanged is skipped, what was interrupted continues.
    Run(run::Args),
    /// Query tables with SQL; without a query, a shell.
    Sql(sql::Args),
    /// Show what a table, pipeline location, Parquet file or model directory holds.
    Inspect(inspect::Args),
    /// Show models: architecture, size, and whether they can run here.
    Models(models::Args),
}

/// Why a command ends with another code than 0.
#[derive(Debug)]
enum Failure {
    /// Bad usage or a bad pipeline file: code 2. The text is complete.
    Usage(String),
    /// It was tried and failed: code 1.
    Failed(anyhow::Error),
    /// Code 1; everything was said already.
    Silent,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the program. Exit codes: 0 done, 1 failed, 2 bad usage or bad YAML.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(Failure::Failed(error.into())),
    };
    let result = match cli.command {
        Command::Run(args) => runtime.block_on(run::main(args)),
        Command::Sql(args) => sql::main(&runtime, args),
        Command::Inspect(args) => runtime.block_on(inspect::main(args)),
        Command::Models(args) => runtime.block_on(models::main(args)),
    };
    // A device thread or a blocked read must not hold up the exit.
    runtime.shutdown_background();
    result.map_or_else(report, |()| ExitCode::SUCCESS)
}

fn report(failure: Failure) -> ExitCode {
    match failure {
        Failure::Usage(text) => {
            output::message(&text);
            ExitCode::from(2)
        }
        Failure::Failed(error) => {
            output::message(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
        Failure::Silent => ExitCode::FAILURE,
    }
}

/// Logs go to stderr: `REPRO_LOG`, else `RUST_LOG`, else what is worth knowing of this program and warnings of others.
fn logging() {
    let filter = ["REPRO_LOG", "RUST_LOG"].iter().find_map(|name| std::env::var(name).ok()).filter(|f| !f.is_empty());
    let filter = filter.map_or_else(|| EnvFilter::new("warn,repro=info"), EnvFilter::new);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .without_time()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(|| progress::LogWriter)
        .init();
}

/// Time in which a second signal is an echo of the first.
const SAME_SIGNAL: std::time::Duration = std::time::Duration::from_secs(1);

/// Ends the process when Ctrl-C (or SIGTERM) comes a second time; at the first, calls `first`.
fn on_interrupt(first: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        interrupted().await;
        first();
        // `timeout` and other wrappers pass one signal on twice, to the process and to its group.
        tokio::time::sleep(SAME_SIGNAL).await;
        interrupted().await;
        output::message("stopped at once");
        std::process::exit(1);
    });
}

/// Waits for Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// `auto`, `cpu` or `cuda:N`.
fn device(text: &str) -> Result<String, String> {
    let known = text == "auto" || text == "cpu" || text.strip_prefix("cuda:").is_some_and(|n| n.parse::<u8>().is_ok());
    known.then(|| text.to_owned()).ok_or_else(|| "write auto, cpu, or cuda:N, e.g. cuda:0".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
