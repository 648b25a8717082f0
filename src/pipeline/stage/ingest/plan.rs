//! What an ingest will write: the files, their format, and one schema for all of them. JSONL types are learnt from the head
//! of every file, Parquet types from every footer, so that no file decides for the others and none is read in full.

use super::{
    ColumnType, Config, Format, OnBadFile, SourceSpec,
    kind::{self, Kind, Names},
    lines::{self, Line, Lines, RowReader},
    types,
};
use crate::storage::{location::Location, reader::SourceFile};
use anyhow::{Context, bail};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use std::{collections::HashMap, sync::Arc};

/// Columns that every ingested table has, in this order, before those of the source.
pub(super) const OWN: [&str; 4] = ["id", "text", "source_uri", "source_row"];
/// More columns than this are a sign that keys are data.
const MAX_COLUMNS: usize = 2000;

/// A source column that is carried along.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    /// Its name in the source.
    pub(super) source: String,
    /// How JSON values of it are read.
    pub(super) kind: Kind,
    /// Its type in the table.
    pub(super) data_type: DataType,
}

/// The schema of the table and where its columns come from.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) schema: SchemaRef,
    pub(super) carried: Vec<Carried>,
    index: HashMap<String, usize>,
}

impl Layout {
    pub(super) fn position(&self, source: &str) -> Option<usize> {
        self.index.get(source).copied()
    }
}

/// The files of a source in order. Errors name the pattern that matches nothing.
pub(super) async fn files(source: &SourceSpec) -> anyhow::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for pattern in source.path.list() {
        let found = Location::expand(pattern).await?;
        files.extend(found.into_iter().map(|(location, meta)| SourceFile::new(location, meta)));
    }
    if files.is_empty() {
        bail!("the source names no files: its `path` is an empty list");
    }
    let mut seen = std::collections::HashSet::new();
    files.retain(|f| seen.insert((f.location.root.clone(), f.meta.location.clone())));
    Ok(files)
}

/// How a file is to be read.
pub(super) fn format(file: &SourceFile, given: Format) -> Format {
    let name = file.uri().to_ascii_lowercase();
    match given {
        Format::Auto if name.ends_with(".parquet") || name.ends_with(".pq") => Format::Parquet,
        Format::Auto => Format::Jsonl,
        other => other,
    }
}

enum Seen {
    Json(Names),
    Parquet(Vec<(String, DataType)>),
}

/// Learns the schema from all files.
pub(super) async fn layout(config: &Config, spec: &SourceSpec, files: &[SourceFile]) -> anyhow::Result<Layout> {
    let look = |file: SourceFile| {
        let (config, format) = (config.clone(), format(&file, spec.format));
        async move { tokio::task::spawn_blocking(move || see(&file, format, &config)).await? }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seen: Vec<Seen> = stream::iter(files.to_vec()).map(look).buffered(threads).try_collect().await?;
    let mut json = Names::default();
    let mut parquet: Vec<(String, DataType, usize)> = Vec::new();
    for (at, seen) in seen.into_iter().enumerate() {
        match seen {
            Seen::Json(names) => json = json.join(names),
            Seen::Parquet(columns) => merge_columns(&mut parquet, columns, at, files)?,
        }
    }
    settle(config, json, parquet)
}

fn see(file: &SourceFile, format: Format, config: &Config) -> anyhow::Result<Seen> {
    if file.meta.size == 0 {
        return Ok(Seen::Json(Names::default()));
    }
    match format {
        Format::Parquet => match parquet_columns(file, config) {
            Ok(columns) => Ok(Seen::Parquet(columns)),
            // The file itself will be put among the failed when its turn comes.
            Err(_) if config.on_bad_file == OnBadFile::Skip => Ok(Seen::Json(Names::default())),
            Err(e) => Err(e),
        },
        _ => Ok(Seen::Json(json_head(file, config))),
    }
}

/// Columns in the first `infer_bytes` of a file. Damage is met again, and reported, when the rows are read.
fn json_head(file: &SourceFile, config: &Config) -> Names {
    let mut names = Names::default();
    let Ok((text, _)) = lines::open(file) else { return names };
    let mut rows = RowReader::new(text, config.max_line_bytes);
    let mut left = config.infer_bytes;
    loop {
        let mut lines = Lines::default();
        if !matches!(rows.next(&mut lines), Ok(true)) {
            return names;
        }
        for line in lines.iter() {
            let length = match line {
                Line::TooLong(length) => length,
                Line::Whole(bytes) => {
                    if let Some(row) = std::str::from_utf8(bytes).ok().and_then(kind::row_kinds) {
                        names = names.join(row);
                    }
                    bytes.len() as u64
                }
            };
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return names,
            }
        }
    }
}

fn parquet_columns(file: &SourceFile, config: &Config) -> anyhow::Result<Vec<(String, DataType)>> {
    let uri = file.uri();
    let ranges = file.ranges().with_context(|| format!("cannot read {uri}"))?;
    let footer = ArrowReaderMetadata::load(&ranges, ArrowReaderOptions::new()).with_context(|| {
        format!("{uri} is not a Parquet file, or is cut off; replace it, or set `on_bad_file: skip`")
    })?;
    let columns: Vec<_> =
        footer.schema().fields().iter().map(|f| (f.name().clone(), types::plain(f.data_type()))).collect();
    let names = || columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    match columns.iter().find(|(name, _)| *name == config.text_column) {
        Some((_, DataType::Utf8)) => Ok(columns),
        Some((name, other)) => {
            bail!("{uri}: the text column `{name}` is {other} and not text; set `text_column` to one of: {}", names())
        }
        None => bail!("{uri} has no column `{}`; set `text_column` to one of: {}", config.text_column, names()),
    }
}

fn merge_columns(
    all: &mut Vec<(String, DataType, usize)>,
    columns: Vec<(String, DataType)>,
    at: usize,
    files: &[SourceFile],
) -> anyhow::Result<()> {
    for (name, data_type) in columns {
        let Some(known) = all.iter_mut().find(|(n, _, _)| *n == name) else {
            all.push((name, data_type, at));
            continue;
        };
        let merged = types::merge(&known.1, &data_type);
        known.1 = merged.with_context(|| {
            let (first, second) = (files[known.2].uri(), files[at].uri());
            format!("column `{name}` is {} in {first} and {data_type} in {second}; ingest them as two tables", known.1)
        })?;
    }
    Ok(())
}

/// Puts our columns first, gives the source's columns free names, and settles their types.
fn settle(config: &Config, json: Names, parquet: Vec<(String, DataType, usize)>) -> anyhow::Result<Layout> {
    let mut sources: Vec<(String, Kind, Option<DataType>)> = json.list.into_iter().map(|(n, k)| (n, k, None)).collect();
    for (name, data_type, _) in parquet {
        match sources.iter_mut().find(|(n, ..)| *n == name) {
            Some(known) => known.2 = Some(data_type),
            None => sources.push((name, Kind::Null, Some(data_type))),
        }
    }
    for (name, kind) in &config.columns {
        let forced = (name.clone(), kind.kind(), Some(kind.kind().arrow()));
        match sources.iter_mut().find(|(n, ..)| n == name) {
            Some(known) => *known = forced,
            None => sources.push(forced),
        }
    }
    sources.retain(|(name, ..)| *name != config.text_column && Some(name) != config.id_column.as_ref());
    if sources.len() > MAX_COLUMNS {
        bail!(
            "the source has {} different columns, more than {MAX_COLUMNS}; is each line one object with fixed keys?",
            sources.len()
        );
    }
    let mut fields = own_fields();
    let mut taken: Vec<String> = OWN.iter().map(|n| (*n).to_owned()).collect();
    taken.extend(sources.iter().map(|(n, ..)| n.to_lowercase()).filter(|n| !OWN.contains(&n.as_str())));
    let mut carried = Vec::with_capacity(sources.len());
    for (source, kind, parquet) in sources {
        let data_type = column_type(&source, &kind, parquet)?;
        fields.push(Field::new(free_name(&source, &mut taken), data_type.clone(), true));
        carried.push(Carried { source, kind, data_type });
    }
    let index = carried.iter().enumerate().map(|(i, c)| (c.source.clone(), i)).collect();
    Ok(Layout { schema: Arc::new(Schema::new(fields)), carried, index })
}

fn column_type(name: &str, kind: &Kind, parquet: Option<DataType>) -> anyhow::Result<DataType> {
    if kind.has_json() {
        tracing::warn!("column `{name}` holds both objects and single values: it is kept as JSON text");
    }
    let json = kind.arrow();
    match parquet {
        None => Ok(json),
        Some(data_type) if *kind == Kind::Null => Ok(match data_type {
            DataType::Null => DataType::Utf8,
            other => other,
        }),
        Some(data_type) => types::merge(&json, &data_type).with_context(|| {
            format!(
                "column `{name}` is {json} in JSONL files and {data_type} in Parquet files; ingest them as two tables"
            )
        }),
    }
}

fn own_fields() -> Vec<Field> {
    OWN.iter()
        .map(|name| Field::new(*name, if *name == "source_row" { DataType::Int64 } else { DataType::Utf8 }, false))
        .collect()
}

/// The column's own name, or `source_<name>` where one of ours (in any case, as SQL sees it) has it already.
fn free_name(source: &str, taken: &mut Vec<String>) -> String {
    let mut name = source.to_owned();
    if OWN.contains(&name.to_lowercase().as_str()) || name.is_empty() {
        while taken.contains(&name.to_lowercase()) || name.is_empty() {
            name = format!("source_{name}");
        }
        taken.push(name.to_lowercase());
    }
    name
}

impl ColumnType {
    fn kind(self) -> Kind {
        match self {
            Self::Boolean => Kind::Bool,
            Self::Int64 => Kind::Int { negative: true, big: false },
            Self::Float64 => Kind::Float,
            Self::Utf8 => Kind::Text,
        }
    }
}
