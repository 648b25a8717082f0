//! The `sql` stage: one query, one table.
//!
//! A query that works row by row on one table (filters, projections, model calls) is cut into fragments of its input: each is committed on
//! its own, so a killed run continues where it was, and several run at the same time. Any other query (join, aggregate, sort, union) is
//! one fragment. Both run every fragment in one partition, so the rows come in the same order each time.

use crate::{
    catalog::session::{FailureSink, Failures, Session, SessionOptions, TableSource, row_local_table},
    pipeline::stage::StageContext,
    storage::{
        commit::{FailedRow, FragmentRecord, FragmentWriter, TableCommit},
        location::Location,
        manifest::{DataFile, Manifest},
    },
};
use anyhow::{Context, Result, bail, ensure};
use datafusion::{
    dataframe::DataFrame,
    logical_expr::{JoinType, LogicalPlan},
};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Rows of a fragment where the query calls a language model: small, because a fragment may take minutes.
const MODEL_FRAGMENT_ROWS: u64 = 256;
/// Rows of a fragment otherwise.
const PLAIN_FRAGMENT_ROWS: u64 = 100_000;

/// Options of a `sql` stage. `sql: file.sql` alone is short for `sql: { file: file.sql }`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// File with one SELECT statement.
    pub file: Option<PathBuf>,
    /// The statement itself, instead of a file.
    pub query: Option<String>,
    /// Input rows of a fragment, the unit of commit and resume. Default: 256 where the query calls a language model, else 100,000.
    pub fragment_rows: Option<u64>,
}

/// A table that the query reads.
#[derive(Debug, Clone)]
pub enum InputTable {
    /// A finished table of a pipeline.
    Managed {
        /// Its pipeline's location.
        location: Location,
        /// Its name there.
        table: String,
    },
    /// Parquet, JSONL or CSV files.
    Files(String),
}

/// The query with what it reads; everything resolved.
#[derive(Debug, Clone)]
pub struct Query {
    /// One SELECT statement.
    pub text: String,
    /// Where the text came from, for messages.
    pub origin: String,
    /// Tables by the names that the statement uses.
    pub tables: BTreeMap<String, InputTable>,
    /// Whether a language model is called.
    pub calls_model: bool,
    /// As in [`Config::fragment_rows`].
    pub fragment_rows: Option<u64>,
}

/// One unit of work: all of the query, or its part over some rows of one file.
#[derive(Debug, Clone)]
struct Fragment {
    id: String,
    input: u64,
    slice: Option<Slice>,
}

#[derive(Debug, Clone)]
struct Slice {
    name: String,
    location: Location,
    table: String,
    file: DataFile,
    rows: Range<u64>,
}

/// Runs the query and commits its rows.
///
/// # Errors
/// A statement that does not plan (with position and known names), a failing fragment (finished ones stay), cancellation.
pub async fn run(query: &Query, cx: &StageContext) -> Result<Manifest> {
    let commit = execute(query, cx).await?;
    publish(commit, cx).await
}

/// Runs the query and commits its rows; the table is not finished yet.
///
/// # Errors
/// As [`run`].
pub async fn execute(query: &Query, cx: &StageContext) -> Result<TableCommit> {
    let commit = TableCommit::begin(&cx.location, &cx.output, &cx.key).await?;
    let fragments = plan_fragments(query, cx).await?;
    let total: u64 = fragments.iter().map(|f| f.input).sum();
    let done = |f: &&Fragment| commit.done(&f.id).is_some();
    let before: u64 = fragments.iter().filter(done).map(|f| f.input).sum();
    cx.progress.begin(&cx.output, Some(total), before, "rows");
    let pending: Vec<&Fragment> = fragments.iter().filter(|f| !done(f)).collect();
    let parallel = std::thread::available_parallelism().map_or(1, usize::from).max(2);
    let records: Vec<FragmentRecord> =
        stream::iter(pending.into_iter().map(|fragment| run_fragment(query, fragment, &commit, cx)))
            .buffer_unordered(parallel)
            .try_collect()
            .await?;
    drop(records);
    Ok(commit)
}

/// Finishes what [`execute`] made.
///
/// # Errors
/// The rows do not add up, or the manifest cannot be written.
pub async fn publish(commit: TableCommit, cx: &StageContext) -> Result<Manifest> {
    let totals = commit.totals();
    let mut manifest = Manifest::describe(cx);
    manifest.rows.dropped = totals.input.saturating_sub(totals.kept + totals.failed);
    manifest.rows.created = (totals.kept + totals.failed).saturating_sub(totals.input);
    commit.publish(manifest).await
}

async fn run_fragment(
    query: &Query,
    fragment: &Fragment,
    commit: &TableCommit,
    cx: &StageContext,
) -> Result<FragmentRecord> {
    let failures: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let frame = plan(query, fragment.slice.as_ref(), cx, sink(&failures)).await?;
    let tokens_before = cx.models.output_tokens();
    let mut stream = frame.execute_stream().await.with_context(|| format!("{}: cannot run the query", query.origin))?;
    let mut writer = commit.fragment(&fragment.id, stream.schema()).await?;
    loop {
        let next = tokio::select! {
            biased;
            () = cx.cancel.cancelled() => bail!("stopped; run the same command again to continue"),
            next = stream.next() => next,
        };
        let Some(batch) = next else { break };
        let batch = batch.with_context(|| format!("{}: the query failed", query.origin))?;
        writer.write(&batch).await?;
        cx.progress.advance(&cx.output, batch.num_rows() as u64, "");
    }
    drop(stream);
    let failed = record_failures(&mut writer, &failures);
    let made = cx.models.output_tokens().saturating_sub(tokens_before);
    writer.add_output_tokens(made);
    let record = writer.finish(fragment.input).await?;
    let unseen = fragment.input.saturating_sub(record.kept);
    cx.progress.advance(&cx.output, unseen, &if failed > 0 { format!("{failed} failed") } else { String::new() });
    Ok(record)
}

fn sink(failures: &Arc<Mutex<Vec<(String, String)>>>) -> FailureSink {
    let failures = Arc::clone(failures);
    Arc::new(move |id, error| {
        failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((id, error));
    })
}

/// Hands the collected failures to the writer, ordered by row id so that two runs write the same file.
fn record_failures(writer: &mut FragmentWriter, failures: &Mutex<Vec<(String, String)>>) -> usize {
    let mut rows = std::mem::take(&mut *failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    rows.sort();
    let count = rows.len();
    for (row_id, error) in rows {
        writer.fail(FailedRow { row_id, error, attempts: 1 });
    }
    count
}

/// Plans the query; with a slice, its driving table is only those rows.
async fn plan(query: &Query, slice: Option<&Slice>, cx: &StageContext, sink: FailureSink) -> Result<DataFrame> {
    let session = Session::new(SessionOptions {
        models: Arc::clone(&cx.models),
        params: cx.params.clone(),
        failures: Failures::Divert(sink),
        partitions: 1,
    })?;
    for (name, table) in &query.tables {
        let source = match (slice, table) {
            (Some(s), _) if s.name == *name => TableSource::Fragment {
                location: s.location.clone(),
                table: s.table.clone(),
                file: s.file.clone(),
                rows: s.rows.clone(),
            },
            (_, InputTable::Managed { location, table }) => {
                TableSource::Managed { location: location.clone(), table: table.clone() }
            }
            (_, InputTable::Files(pattern)) => TableSource::Files(pattern.clone()),
        };
        session.register(name, source).await?;
    }
    session.sql(&query.text).await.with_context(|| query.origin.clone())
}

/// Cuts a row-wise query over one managed table into slices of its files; any other query is one fragment.
async fn plan_fragments(query: &Query, cx: &StageContext) -> Result<Vec<Fragment>> {
    let nothing: FailureSink = Arc::new(|_, _| {});
    let frame = plan(query, None, cx, nothing).await?;
    let logical = frame.logical_plan();
    let driving = row_local_table(logical).and_then(|name| query.tables.get_key_value(&name));
    let Some((name, InputTable::Managed { location, table })) = driving else {
        let input = driving_rows(logical, query).await?;
        return Ok(vec![Fragment { id: "00000".into(), input, slice: None }]);
    };
    let size = query.fragment_rows.unwrap_or(if query.calls_model { MODEL_FRAGMENT_ROWS } else { PLAIN_FRAGMENT_ROWS });
    ensure!(size > 0, "{}: fragment_rows must be at least 1", query.origin);
    let manifest = finished(location, table).await?;
    let mut fragments = Vec::new();
    for (index, file) in manifest.files.iter().enumerate() {
        let mut start = 0;
        while start < file.rows {
            let rows = start..(start + size).min(file.rows);
            fragments.push(Fragment {
                id: format!("{index:06}-{start:010}"),
                input: rows.end - rows.start,
                slice: Some(Slice {
                    name: name.clone(),
                    location: location.clone(),
                    table: table.clone(),
                    file: file.clone(),
                    rows: rows.clone(),
                }),
            });
            start = rows.end;
        }
    }
    if fragments.is_empty() {
        fragments.push(Fragment { id: "00000".into(), input: 0, slice: None });
    }
    Ok(fragments)
}

async fn finished(location: &Location, table: &str) -> Result<Manifest> {
    TableCommit::manifest(location, table)
        .await?
        .with_context(|| format!("table `{table}` at {location} is not finished: it has no manifest"))
}

/// Rows that go into a query that is not row-wise: those of the table that drives it (left side of joins, all branches of unions).
async fn driving_rows(plan: &LogicalPlan, query: &Query) -> Result<u64> {
    let mut rows = 0;
    for name in driving_tables(plan) {
        if let Some(InputTable::Managed { location, table }) = query.tables.get(&name) {
            let counted = finished(location, table).await?.rows;
            rows += counted.kept;
        }
    }
    Ok(rows)
}

fn driving_tables(plan: &LogicalPlan) -> Vec<String> {
    match plan {
        LogicalPlan::TableScan(scan) => vec![scan.table_name.table().to_owned()],
        LogicalPlan::Union(union) => union.inputs.iter().flat_map(|input| driving_tables(input)).collect(),
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                driving_tables(&join.right)
            }
            _ => driving_tables(&join.left),
        },
        other => other.inputs().first().map(|input| driving_tables(input)).unwrap_or_default(),
    }
}
