//! `repro inspect`: a table with its manifest, a pipeline's location, data files, or a model directory, for the eye.

use super::{
    Failure,
    grid::Grid,
    models::{card, is_model},
    output::{Out, bytes, count, rate, seconds, width},
    show::sample,
};
use crate::{
    catalog::session::{Failures, Session, SessionOptions, TableSource},
    pipeline::plan::paths::split_table,
    storage::{
        commit::TableCommit,
        location::Location,
        manifest::{Cost, MANIFEST, Manifest, ModelManifest, Rows},
    },
    udf::models::Models,
};
use anyhow::{Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
    sync::Arc,
};

/// Rows shown of a table.
const SAMPLES: usize = 3;
/// Errors shown of a table with failed rows.
const ERRORS: usize = 10;

/// Arguments of `repro inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A table directory, a pipeline's location, data files (Parquet, JSONL, CSV), or a model directory; local or s3://.
    path: String,
}

/// Runs the command.
pub async fn main(args: Args) -> Result<(), Failure> {
    let mut out = Out::new();
    let path = args.path.trim_end_matches('/');
    if Path::new(path).is_file() {
        if is_model(Path::new(path)) {
            model(Path::new(path), &mut out)?
        } else {
            files(path, &mut out).await?
        }
        return Ok(out.flush()?);
    }
    if !path.contains("://") && !Path::new(path).exists() && !path.contains(['*', '?', '[', '{']) {
        return Err(Failure::Failed(anyhow::anyhow!("{path}: there is no such file or directory")));
    }
    let location = Location::parse(path)?;
    let manifest = location.read(MANIFEST).await?;
    match manifest {
        Some(bytes) => manifested(path, &bytes, &mut out).await?,
        None if is_model(Path::new(path)) => model(Path::new(path), &mut out)?,
        None => {
            let tables = tables_below(&location).await?;
            match tables.is_empty() {
                true => files(path, &mut out).await?,
                false => overview(&location, &tables, &mut out).await?,
            }
        }
    }
    Ok(out.flush()?)
}

async fn manifested(path: &str, bytes: &[u8], out: &mut Out) -> Result<()> {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        return table(path, &manifest, out).await;
    }
    let manifest: ModelManifest = serde_json::from_slice(bytes)
        .with_context(|| format!("{path}/{MANIFEST} is not a manifest of this program"))?;
    model(Path::new(path), out)?;
    writeln!(out)?;
    figures(&manifest.rows, &manifest.cost, out)?;
    for (name, value) in &manifest.figures {
        writeln!(out, "{name}: {value}")?;
    }
    made_from(&manifest.inputs, &manifest.models, &BTreeMap::new(), &manifest.code_version, out)
}

async fn table(path: &str, manifest: &Manifest, out: &mut Out) -> Result<()> {
    let size: u64 = manifest.files.iter().map(|f| f.bytes).sum();
    let files = manifest.files.len();
    writeln!(
        out,
        "table {}: {} rows, {files} file{}, {}",
        manifest.table,
        count(manifest.rows.kept),
        plural(files),
        bytes(size)
    )?;
    figures(&manifest.rows, &manifest.cost, out)?;
    made_from(&manifest.inputs, &manifest.models, &manifest.params, &manifest.code_version, out)?;
    let mut grid = Grid::new(["column", "type", "nullable"]);
    for column in &manifest.schema {
        grid.row([column.name.clone(), column.kind.clone(), if column.nullable { "yes" } else { "no" }.into()]);
    }
    write!(out, "\n{grid}")?;
    let session = session()?;
    as_t(&session, path).await?;
    samples(&session, out).await?;
    if !manifest.failed_files.is_empty() {
        let (parent, name) = split_table(path);
        let failed = format!("{parent}/failed/{name}-*.parquet");
        session.register("failed", TableSource::Files(failed)).await?;
        failures(&session, out).await?;
    }
    Ok(())
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Row arithmetic and cost.
fn figures(rows: &Rows, cost: &Cost, out: &mut Out) -> Result<()> {
    let Rows { input, kept, dropped, failed, created } = *rows;
    let made = if created > 0 { format!(" + {} created", count(created)) } else { String::new() };
    let verdict = if rows.adds_up() { "" } else { "   (does not add up: the table is damaged)" };
    writeln!(
        out,
        "rows: {} input{made} = {} kept + {} dropped + {} failed{verdict}",
        count(input),
        count(kept),
        count(dropped),
        count(failed)
    )?;
    let mut parts = vec![seconds(cost.wall_seconds), format!("{} rows/s", rate(cost.rows_per_second))];
    if cost.output_tokens > 0 {
        parts.push(format!("{} tokens, {}/s", count(cost.output_tokens), rate(cost.tokens_per_second)));
    }
    if cost.peak_memory_bytes > 0 {
        parts.push(format!("{} of memory at most", bytes(cost.peak_memory_bytes)));
    }
    Ok(writeln!(out, "cost: {}", parts.join(", "))?)
}

fn made_from(
    inputs: &BTreeMap<String, String>,
    models: &BTreeMap<String, String>,
    params: &BTreeMap<String, serde_json::Value>,
    code: &str,
    out: &mut Out,
) -> Result<()> {
    let some = |names: Vec<&String>| {
        let shown = names.iter().take(5).map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(5);
        if more > 0 { format!("{shown} and {more} more") } else { shown }
    };
    if !inputs.is_empty() {
        writeln!(out, "inputs: {}", some(inputs.keys().collect()))?;
    }
    for (name, hash) in models {
        writeln!(out, "model: {name} {hash}")?;
    }
    for (name, value) in params {
        writeln!(out, "param: {name} = {value}")?;
    }
    Ok(writeln!(out, "made by: {code}")?)
}

/// Registers what is looked at as `t`, a name that nobody gave and no message needs.
async fn as_t(session: &Session, path: &str) -> Result<()> {
    let registered = session.register("t", TableSource::Files(path.to_owned())).await;
    registered.map_err(|e| anyhow::anyhow!(e.chain().skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": ")))
}

async fn files(path: &str, out: &mut Out) -> Result<()> {
    let found = Location::expand(path).await?;
    let size: u64 = found.iter().map(|(_, meta)| meta.size).sum();
    let session = session()?;
    as_t(&session, path).await?;
    let rows = first_number(&session, "SELECT count(*) FROM t").await?;
    let n = found.len();
    writeln!(out, "{path}: {} rows, {n} file{}, {}\n", count(rows), plural(n), bytes(size))?;
    let frame = session.context().table("t").await?;
    let mut grid = Grid::new(["column", "type", "nullable"]);
    for field in frame.schema().fields() {
        let nullable = if field.is_nullable() { "yes" } else { "no" };
        grid.row([field.name().clone(), field.data_type().to_string(), nullable.into()]);
    }
    write!(out, "{grid}")?;
    samples(&session, out).await
}

fn model(path: &Path, out: &mut Out) -> Result<()> {
    let card = card(path);
    writeln!(out, "model {}: {}, {}", card.name, card.kind, bytes(card.size))?;
    if let Some(parameters) = card.parameters {
        writeln!(out, "parameters: {}", count(parameters))?;
    }
    if !card.detail.is_empty() {
        writeln!(out, "details: {}", card.detail)?;
    }
    Ok(writeln!(out, "can run here: {}", card.obstacle.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}")))?)
}

/// Names of the finished tables (and `models/…`) right below a location.
async fn tables_below(location: &Location) -> Result<BTreeSet<String>> {
    let below = location.child("").to_string();
    let mut names = BTreeSet::new();
    for file in location.list().await? {
        let path = file.location.to_string();
        let relative = path.strip_prefix(below.as_str()).unwrap_or(&path).trim_start_matches('/');
        if let Some(table) = relative.strip_suffix(&format!("/{MANIFEST}")) {
            names.insert(table.to_owned());
        }
    }
    Ok(names)
}

async fn overview(location: &Location, names: &BTreeSet<String>, out: &mut Out) -> Result<()> {
    let mut grid = Grid::new(["table", "input", "kept", "dropped", "failed", "size", "time"]);
    let mut models = Vec::new();
    for name in names {
        if let Some(model) = name.strip_prefix("models/") {
            models.push(model);
            continue;
        }
        let Ok(Some(m)) = TableCommit::manifest(location, name).await else { continue };
        let size = m.files.iter().map(|f| f.bytes).sum();
        let Rows { input, kept, dropped, failed, .. } = m.rows;
        let [input, kept, dropped, failed] = [input, kept, dropped, failed].map(count);
        grid.row([name.clone(), input, kept, dropped, failed, bytes(size), seconds(m.cost.wall_seconds)]);
    }
    if !grid.is_empty() {
        write!(out, "{grid}")?;
    }
    for model in models {
        writeln!(out, "model: {location}/models/{model}")?;
    }
    Ok(())
}

fn session() -> Result<Session> {
    let models = Models::new(BTreeMap::new(), 0);
    let failures = Failures::Null(Arc::new(|_, _| {}));
    Session::new(SessionOptions { models, params: BTreeMap::new(), failures, partitions: 0 })
}

async fn samples(session: &Session, out: &mut Out) -> Result<()> {
    let frame = session.sql(&format!("SELECT * FROM t LIMIT {SAMPLES}")).await?;
    let batches = frame.collect().await?;
    writeln!(out)?;
    sample(&batches, width(), out)
}

async fn failures(session: &Session, out: &mut Out) -> Result<()> {
    let query =
        "SELECT count(*) AS rows, error, min(row_id) AS example FROM failed GROUP BY error ORDER BY rows DESC, error";
    let batches = session.sql(query).await?.collect().await?;
    let kinds: usize = batches.iter().map(|b| b.num_rows()).sum();
    writeln!(
        out,
        "\nfailed rows by error{}:",
        if kinds > ERRORS { format!(" ({ERRORS} of {kinds})") } else { String::new() }
    )?;
    let mut grid = Grid::new(["rows", "error", "e.g. row"]);
    for row in super::show::cells(&batches)?.into_iter().take(ERRORS) {
        let [rows, error, example] =
            <[String; 3]>::try_from(row).map_err(|_| anyhow::anyhow!("three columns were asked for"))?;
        grid.row([rows, super::show::one_line(&error, 120), example]);
    }
    Ok(write!(out, "{grid}")?)
}

async fn first_number(session: &Session, query: &str) -> Result<u64> {
    let batches = session.sql(query).await?.collect().await?;
    let cells = super::show::cells(&batches)?;
    Ok(cells.first().and_then(|row| row.first()).and_then(|cell| cell.parse().ok()).unwrap_or(0))
}
