//! What is packed: the files of the tables, cut into units, and units gathered into jobs. Both are functions of the tables and the settings alone.

use super::Work;
use crate::{
    pipeline::stage::sql::InputTable,
    storage::{commit::TableCommit, location::Location, reader::SourceFile},
};
use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use std::ops::Range;

/// Files looked up at the same time.
const MANY: usize = 16;

/// Rows that are packed by themselves.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    /// Its place among all units.
    pub(super) number: u32,
    pub(super) file: SourceFile,
    /// Names a document that has no id.
    pub(super) name: String,
    /// Rows of the file.
    pub(super) rows: Range<u64>,
}

/// Units that are done, recorded and done again together.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) number: usize,
    pub(super) units: Vec<Unit>,
}

impl Job {
    pub(super) fn rows(&self) -> u64 {
        self.units.iter().map(|u| u.rows.end - u.rows.start).sum()
    }
}

struct File {
    source: SourceFile,
    name: String,
    rows: u64,
}

/// Cuts the tables.
///
/// # Errors
/// A table that is not finished or not Parquet; a file that is missing.
pub(super) async fn plan(work: &Work, tables: &[(String, InputTable)]) -> anyhow::Result<Vec<Job>> {
    let mut units = Vec::new();
    for (name, table) in tables {
        for file in files(table).await.with_context(|| format!("the table `{name}`"))? {
            let mut start = 0;
            while start < file.rows {
                let rows = start..(start + work.config.unit_rows).min(file.rows);
                start = rows.end;
                let number = u32::try_from(units.len()).context("too many units; raise `unit_rows`")?;
                units.push(Unit { number, file: file.source.clone(), name: file.name.clone(), rows });
            }
        }
    }
    Ok(gather(units, work.config.unit_rows))
}

fn gather(units: Vec<Unit>, rows: u64) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for unit in units {
        let size = unit.rows.end - unit.rows.start;
        match jobs.last_mut().filter(|job| job.rows() + size <= rows) {
            Some(job) => job.units.push(unit),
            None => jobs.push(Job { number: jobs.len(), units: vec![unit] }),
        }
    }
    jobs
}

async fn files(table: &InputTable) -> anyhow::Result<Vec<File>> {
    match table {
        InputTable::Managed { location, table } => managed(location, table).await,
        InputTable::Files(pattern) => foreign(pattern).await,
    }
}

async fn managed(location: &Location, table: &str) -> anyhow::Result<Vec<File>> {
    let manifest = TableCommit::manifest(location, table)
        .await?
        .with_context(|| format!("is not finished at {location}; run the stage that makes it first"))?;
    let directory = location.join(table);
    let open = |file: crate::storage::manifest::DataFile| {
        let at = directory.join(&file.path);
        async move {
            let meta = at.head().await?.with_context(|| format!("{at} is missing; make the table again"))?;
            ensure!(
                meta.size == file.bytes,
                "{at} has {} bytes and not {}; make the table again",
                meta.size,
                file.bytes
            );
            Ok(File { source: SourceFile::new(at, meta), name: format!("{table}/{}", file.path), rows: file.rows })
        }
    };
    stream::iter(manifest.files).map(open).buffered(MANY).try_collect().await
}

async fn foreign(pattern: &str) -> anyhow::Result<Vec<File>> {
    let mut found = Location::expand(pattern).await?;
    found.retain(|(_, meta)| !meta.location.filename().unwrap_or_default().starts_with(['_', '.']));
    let open = |(location, meta): (Location, _)| async move {
        let source = SourceFile::new(location, meta);
        let name = source.uri();
        if !name.to_ascii_lowercase().ends_with(".parquet") {
            bail!("{name} is not Parquet; bring it into a table with an `ingest` stage first");
        }
        let (of, shown) = (source.clone(), name.clone());
        let rows = move || {
            let footer = ArrowReaderMetadata::load(&of.ranges()?, Default::default())?;
            anyhow::Ok(footer.metadata().file_metadata().num_rows() as u64)
        };
        let rows =
            tokio::task::spawn_blocking(rows).await.context("reading a footer ended early")?.with_context(|| shown)?;
        Ok(File { source, name, rows })
    };
    stream::iter(found).map(open).buffered(MANY).try_collect().await
}
