//! Table providers: Parquet files in a fixed order, a row range of one file, JSONL and CSV files (plain, gzip, zstd).
//!
//! Order: the files of a table are read in the order given; with one partition, rows come out in exactly that order.

use super::text_files::{Format, TextTable};
use crate::storage::{
    commit::TableCommit,
    location::Location,
    manifest::{DataFile, Manifest},
};
use anyhow::{Context, Result, bail, ensure};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{Statistics, stats::Precision},
    datasource::{
        TableType,
        file_format::{FileFormat, parquet::ParquetFormat},
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource, parquet::ParquetRowSelection},
        source::DataSourceExec,
    },
    error::Result as DfResult,
    execution::object_store::ObjectStoreUrl,
    logical_expr::Expr,
    physical_plan::ExecutionPlan,
    prelude::SessionContext,
};
use object_store::ObjectMeta;
use parquet::arrow::arrow_reader::RowSelection;
use std::{ops::Range, str::FromStr, sync::Arc};

/// Parquet files of one schema under one store.
#[derive(Debug)]
struct ParquetTable {
    schema: SchemaRef,
    store: ObjectStoreUrl,
    files: Vec<PartitionedFile>,
    /// Where it is known without reading the files.
    rows: Option<u64>,
}

#[async_trait]
impl TableProvider for ParquetTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::Base
    }
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let groups = deal(&self.files, state.config().target_partitions(), |file| file.effective_size());
        let groups = groups.into_iter().map(FileGroup::new).collect();
        let source = Arc::new(ParquetSource::new(Arc::clone(&self.schema)));
        let mut statistics = Statistics::new_unknown(&self.schema);
        if let (Some(rows), None) = (self.rows, limit) {
            statistics.num_rows = Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX));
        }
        let config = FileScanConfigBuilder::new(self.store.clone(), source)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .with_statistics(statistics)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// Cuts a list into at most `parts` runs of about equal weight, keeping the order. At least one run.
pub(super) fn deal<T: Clone>(items: &[T], parts: usize, weight: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let total: u64 = items.iter().map(&weight).sum();
    let share = (total / parts.max(1) as u64).max(1);
    let mut runs = vec![Vec::new()];
    let (mut filled, mut count) = (0, 1);
    for item in items {
        if filled >= share && count < parts {
            runs.push(Vec::new());
            (filled, count) = (0, count + 1);
        }
        filled += weight(item);
        if let Some(run) = runs.last_mut() {
            run.push(item.clone());
        }
    }
    runs
}

fn store_url(ctx: &SessionContext, location: &Location) -> Result<ObjectStoreUrl> {
    ctx.register_object_store(&location.root, Arc::clone(&location.store));
    Ok(ObjectStoreUrl::parse(location.root.as_str())?)
}

async fn parquet_schema(ctx: &SessionContext, location: &Location, files: &[ObjectMeta]) -> Result<SchemaRef> {
    let format = ParquetFormat::default().with_force_view_types(false);
    Ok(format.infer_schema(&ctx.state(), &location.store, files).await?)
}

/// A finished table: the files of its manifest, in order.
pub(super) async fn managed(ctx: &SessionContext, location: &Location, table: &str) -> Result<Arc<dyn TableProvider>> {
    let manifest = TableCommit::manifest(location, table)
        .await?
        .with_context(|| format!("table `{table}` at {location} is not finished: it has no manifest"))?;
    let home = location.join(table);
    let metas: Vec<ObjectMeta> = manifest.files.iter().map(|file| meta(&home, file)).collect();
    let schema = match metas.first() {
        Some(first) => parquet_schema(ctx, location, std::slice::from_ref(first)).await?,
        None => schema_of(&manifest)?,
    };
    let files = metas.into_iter().map(PartitionedFile::new_from_meta).collect();
    let rows = Some(manifest.files.iter().map(|file| file.rows).sum());
    Ok(Arc::new(ParquetTable { schema, store: store_url(ctx, location)?, files, rows }))
}

/// Some rows of one file of a table.
pub(super) async fn fragment(
    ctx: &SessionContext,
    location: &Location,
    table: &str,
    file: &DataFile,
    rows: Range<u64>,
) -> Result<Arc<dyn TableProvider>> {
    ensure!(
        rows.start <= rows.end && rows.end <= file.rows,
        "rows {}..{} of {}, which has {}",
        rows.start,
        rows.end,
        file.path,
        file.rows
    );
    let meta = meta(&location.join(table), file);
    let schema = parquet_schema(ctx, location, std::slice::from_ref(&meta)).await?;
    let range = usize::try_from(rows.start)?..usize::try_from(rows.end)?;
    let selection = RowSelection::from_consecutive_ranges(std::iter::once(range), usize::try_from(file.rows)?);
    let file = PartitionedFile::new_from_meta(meta).with_extension(ParquetRowSelection::new(selection));
    Ok(Arc::new(ParquetTable {
        schema,
        store: store_url(ctx, location)?,
        files: vec![file],
        rows: Some(rows.end - rows.start),
    }))
}

/// Files by path or glob; a directory with a manifest is a finished table.
pub(super) async fn files(ctx: &SessionContext, pattern: &str) -> Result<Arc<dyn TableProvider>> {
    if let Some((location, table)) = finished_at(pattern).await? {
        return managed(ctx, &location, &table).await;
    }
    let mut found = Location::expand(pattern).await?;
    found.retain(|(_, meta)| !meta.location.filename().unwrap_or_default().starts_with(['_', '.']));
    let Some((location, _)) = found.first().cloned() else { bail!("{pattern} matches no data files") };
    let kind = Kind::of(&location)?;
    for (other, _) in &found {
        ensure!(Kind::of(other)? == kind, "{pattern} matches files of different formats: {location} and {other}");
    }
    let metas: Vec<ObjectMeta> = found.iter().map(|(_, meta)| meta.clone()).collect();
    match kind {
        Kind::Parquet => {
            let schema = parquet_schema(ctx, &location, &metas).await.with_context(|| pattern.to_owned())?;
            let files = metas.into_iter().map(PartitionedFile::new_from_meta).collect();
            Ok(Arc::new(ParquetTable { schema, store: store_url(ctx, &location)?, files, rows: None }))
        }
        Kind::Text(format) => Ok(Arc::new(TextTable::open(location, metas, format).await?)),
    }
}

/// Splits a directory path into location and table name, if it holds a manifest.
async fn finished_at(pattern: &str) -> Result<Option<(Location, String)>> {
    let path = pattern.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    if name.is_empty() || path.contains(['*', '?', '[']) || name.contains('.') {
        return Ok(None);
    }
    let Ok(location) = Location::parse(parent) else { return Ok(None) };
    let manifest = TableCommit::manifest(&location, name).await;
    Ok(manifest.ok().flatten().map(|_| (location, name.to_owned())))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Parquet,
    Text(Format),
}

impl Kind {
    fn of(file: &Location) -> Result<Self> {
        let name = file.prefix.filename().unwrap_or_default().to_ascii_lowercase();
        let plain = [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        match plain.rsplit_once('.').map(|(_, extension)| extension) {
            Some("parquet") => Ok(Self::Parquet),
            Some("jsonl" | "ndjson" | "json") => Ok(Self::Text(Format::Json)),
            Some("csv") => Ok(Self::Text(Format::Csv)),
            _ => bail!(
                "{file}: cannot tell the format; known are .parquet, .jsonl, .ndjson, .json and .csv (text also with .gz or .zst)"
            ),
        }
    }
}

fn meta(home: &Location, file: &DataFile) -> ObjectMeta {
    ObjectMeta {
        location: home.child(&file.path),
        last_modified: chrono::DateTime::UNIX_EPOCH,
        size: file.bytes,
        e_tag: None,
        version: None,
    }
}

/// The schema of a table without files.
fn schema_of(manifest: &Manifest) -> Result<SchemaRef> {
    let field = |column: &crate::storage::manifest::Column| {
        let kind = DataType::from_str(&column.kind).with_context(|| {
            format!("table `{}`: column {} has the unknown type {}", manifest.table, column.name, column.kind)
        })?;
        Ok(Field::new(&column.name, kind, column.nullable))
    };
    let fields: Vec<Field> = manifest.schema.iter().map(field).collect::<Result<_>>()?;
    Ok(Arc::new(Schema::new(fields)))
}
