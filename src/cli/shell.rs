//! The shell of `repro sql`: statements over several lines until `;`, history, and a few backslash commands.

use super::{
    Failure,
    output::{Out, message},
    report,
    sql::{Desk, Note},
};
use rustyline::{
    Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};
use std::{io::Write, path::PathBuf};
use tokio::runtime::Runtime;

const HELP: &str = "\
  SELECT …;      a statement ends with `;` and may take several lines
  \\d             tables
  \\d TABLE       columns of a table
  \\f             functions of this program
  \\o FORMAT      write rows as table, csv or json
  \\q             quit (also Ctrl-D)
  \\?             this help";

/// Decides whether Enter ends the input.
struct Lines;
impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if complete(context.input()) { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}
impl Completer for Lines {
    type Candidate = String;
}
impl Hinter for Lines {
    type Hint = String;
}
impl Highlighter for Lines {}
impl Helper for Lines {}

/// A backslash command, nothing, or a statement with its `;` outside quotes and comments at the end.
fn complete(input: &str) -> bool {
    let trimmed = input.trim();
    trimmed.is_empty() || trimmed.starts_with('\\') || ended(trimmed)
}

/// Whether the last thing outside quotes and comments is a semicolon.
fn ended(text: &str) -> bool {
    let mut quote = None;
    let mut ended = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => {
                quote = Some(c);
                ended = false;
            }
            (None, '-') if chars.peek() == Some(&'-') => while chars.next_if(|c| *c != '\n').is_some() {},
            (None, ';') => ended = true,
            (None, _) if c.is_whitespace() => {}
            (None, _) => ended = false,
        }
    }
    ended && quote.is_none()
}

/// Reads and answers until the end of input.
pub fn main(runtime: &Runtime, mut desk: Desk) -> Result<(), Failure> {
    let mut editor: Editor<Lines, FileHistory> = Editor::new().map_err(anyhow::Error::from)?;
    editor.set_helper(Some(Lines));
    let history = history_file();
    if let Some(path) = &history {
        // The first time there is none.
        editor.load_history(path).ok();
    }
    message("repro sql: \\? for help, \\d for tables, \\q to quit");
    loop {
        match editor.readline("repro> ") {
            Ok(input) => {
                let input = input.trim();
                if input.is_empty() {
                    continue;
                }
                editor.add_history_entry(input).map_err(anyhow::Error::from)?;
                if !turn(runtime, &mut desk, input) {
                    break;
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(Failure::Failed(error.into())),
        }
    }
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        tracing::warn!("cannot save the history to {}: {error}", path.display());
    }
    Ok(())
}

/// One input; false ends the shell. Errors are shown and the shell goes on.
fn turn(runtime: &Runtime, desk: &mut Desk, input: &str) -> bool {
    let result = match input.strip_prefix('\\') {
        Some(command) => match command.trim_end_matches(';').split_whitespace().collect::<Vec<_>>()[..] {
            ["q" | "quit"] => return false,
            ["?" | "h" | "help"] => said(HELP),
            ["d"] => runtime.block_on(tables(desk)),
            ["d", table] => runtime.block_on(columns(desk, table)),
            ["f"] => said(&desk.session().functions().join("\n")),
            ["o", format] => output_format(desk, format),
            _ => Err(Failure::Usage(format!("error: no command \\{command}; \\? lists them"))),
        },
        None => runtime.block_on(desk.answer(input, Note::Figures)),
    };
    if let Err(failure) = result {
        report(failure);
    }
    true
}

fn said(text: &str) -> Result<(), Failure> {
    Ok(writeln!(Out::new(), "{text}")?)
}

fn output_format(desk: &mut Desk, format: &str) -> Result<(), Failure> {
    desk.format = clap::ValueEnum::from_str(format, true)
        .map_err(|_| Failure::Usage(format!("error: \\o {format}: write table, csv or json")))?;
    Ok(())
}

async fn tables(desk: &Desk) -> Result<(), Failure> {
    let mut out = Out::new();
    let names = desk.session().tables();
    if names.is_empty() {
        writeln!(out, "no tables; start with --pipeline FILE or --table NAME=PATH")?;
    }
    for name in names {
        let fields = fields(desk, &name).await?;
        let columns: Vec<String> = fields.into_iter().map(|(name, _)| name).collect();
        writeln!(out, "{name} ({})", columns.join(", "))?;
    }
    for name in desk.unmade() {
        writeln!(out, "{name} (not made yet)")?;
    }
    Ok(())
}

async fn columns(desk: &Desk, table: &str) -> Result<(), Failure> {
    let mut grid = super::grid::Grid::new(["column", "type"]);
    for (name, kind) in fields(desk, table).await? {
        grid.row([name, kind]);
    }
    Ok(write!(Out::new(), "{grid}")?)
}

/// Names and types of a table's columns.
async fn fields(desk: &Desk, table: &str) -> Result<Vec<(String, String)>, Failure> {
    let known = desk.session().tables();
    if !known.iter().any(|name| name == table) {
        let hint = crate::pipeline::yaml::problem::suggest(table, &known);
        return Err(Failure::Usage(format!("error: no table `{table}`{hint}")));
    }
    let frame = desk.session().context().table(table).await.map_err(anyhow::Error::from)?;
    let fields = frame.schema().fields().iter();
    Ok(fields.map(|f| (f.name().clone(), f.data_type().to_string())).collect())
}

/// `$XDG_STATE_HOME/repro/sql_history`, else below `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|s| !s.is_empty()).map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let directory = state.join("repro");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("sql_history"))
}

#[cfg(test)]
mod tests {
    use super::complete;

    #[test]
    fn a_semicolon_outside_quotes_and_comments_ends_a_statement() {
        for input in ["select 1;", "select ';';", "\\d", "", "select 1; -- done", "select 1\n;"] {
            assert!(complete(input), "{input}");
        }
        for input in ["select 1", "select ';'", "select 'a;", "select 1 -- ;", "select 1; + 2"] {
            assert!(!complete(input), "{input}");
        }
    }
}
