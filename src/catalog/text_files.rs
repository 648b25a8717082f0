//! JSONL and CSV files as tables: plain, gzip or zstd, from any object store, decoded as a stream.
//!
//! The schema comes from the first lines of the files. DataFusion's own readers are not used because they need its `compression` feature
//! (bzip2 and xz built from C) to read zstd.

use super::tables::deal;
use crate::storage::location::Location;
use anyhow::{Context, Result, ensure};
use arrow::{
    array::RecordBatch,
    csv,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    json,
};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use datafusion::{
    catalog::{Session, TableProvider},
    datasource::TableType,
    error::{DataFusionError, Result as DfResult},
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::Expr,
    physical_plan::{
        ExecutionPlan,
        stream::RecordBatchReceiverStream,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use futures::StreamExt;
use object_store::{ObjectMeta, ObjectStoreExt};
use std::{
    io::{BufRead, BufReader, Read},
    sync::Arc,
};
use tokio::sync::mpsc;

/// Rows of a batch; documents may be long.
const BATCH_ROWS: usize = 1024;
/// Records per file that decide the schema.
const INFER_RECORDS: usize = 1000;
/// Files that decide the schema.
const INFER_FILES: usize = 16;

/// How a file's lines are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One object a line.
    Json,
    /// With a header line.
    Csv,
}

/// Files of one format and schema.
#[derive(Debug)]
pub(super) struct TextTable {
    location: Location,
    files: Vec<ObjectMeta>,
    format: Format,
    schema: SchemaRef,
}

impl TextTable {
    /// Reads the beginning of the first files.
    ///
    /// # Errors
    /// A file that is not of its format, or files whose columns do not agree.
    pub(super) async fn open(location: Location, files: Vec<ObjectMeta>, format: Format) -> Result<Self> {
        let mut schemas = Vec::new();
        for file in files.iter().take(INFER_FILES) {
            let name = file.location.to_string();
            let reader = open(&location, file);
            let infer = move || infer(reader, &name, format);
            let schema = tokio::task::spawn_blocking(infer).await.context("reading the first lines panicked")?;
            schemas.push(schema.with_context(|| file.location.to_string())?);
        }
        let schema = Schema::try_merge(schemas).context("the files' columns do not agree")?;
        ensure!(!schema.fields().is_empty(), "{}: the files hold no records", location);
        Ok(Self { location, files, format, schema: Arc::new(schema) })
    }
}

#[async_trait]
impl TableProvider for TextTable {
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
        let runs = deal(&self.files, state.config().target_partitions(), |file| file.size);
        let partition = |files| {
            let part =
                Part { location: self.location.clone(), files, format: self.format, schema: Arc::clone(&self.schema) };
            Arc::new(part) as Arc<dyn PartitionStream>
        };
        let parts = runs.into_iter().map(partition).collect();
        let schema = Arc::clone(&self.schema);
        Ok(Arc::new(StreamingTableExec::try_new(schema, parts, projection, vec![], false, limit)?))
    }
}

#[derive(Debug)]
struct Part {
    location: Location,
    files: Vec<ObjectMeta>,
    format: Format,
    schema: SchemaRef,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }
    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStream::builder(Arc::clone(&self.schema), 2);
        let output = stream.tx();
        let (location, files) = (self.location.clone(), self.files.clone());
        let (format, schema) = (self.format, Arc::clone(&self.schema));
        stream.spawn(async move {
            for file in files {
                let (reader, output, schema) = (open(&location, &file), output.clone(), Arc::clone(&schema));
                let name = file.location.to_string();
                let read = move || read(reader, &name, format, schema, &output);
                match tokio::task::spawn_blocking(read).await {
                    Ok(Ok(true)) => {}
                    Ok(Ok(false)) => break,
                    Ok(Err(error)) => return Err(error),
                    Err(stopped) => return Err(DataFusionError::Execution(format!("reading stopped: {stopped}"))),
                }
            }
            Ok(())
        });
        stream.build()
    }
}

/// Decodes a whole file into `output`. False when nobody listens any more.
fn read(
    reader: impl Read,
    name: &str,
    format: Format,
    schema: SchemaRef,
    output: &mpsc::Sender<DfResult<RecordBatch>>,
) -> DfResult<bool> {
    let within = |e: ArrowError| DataFusionError::Execution(format!("{name}: {e}"));
    let reader = decoded(reader, name).map_err(|e| DataFusionError::Execution(format!("{name}: {e}")))?;
    let send = |batch: std::result::Result<RecordBatch, ArrowError>| {
        let batch = batch.map_err(within)?;
        Ok::<bool, DataFusionError>(output.blocking_send(Ok(batch)).is_ok())
    };
    match format {
        Format::Json => {
            for batch in json::ReaderBuilder::new(schema).with_batch_size(BATCH_ROWS).build(reader).map_err(within)? {
                if !send(batch)? {
                    return Ok(false);
                }
            }
        }
        Format::Csv => {
            let builder = csv::ReaderBuilder::new(schema).with_header(true).with_batch_size(BATCH_ROWS);
            for batch in builder.build_buffered(reader).map_err(within)? {
                if !send(batch)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

fn infer(reader: impl Read, name: &str, format: Format) -> Result<Schema> {
    let reader = decoded(reader, name)?;
    Ok(match format {
        Format::Json => json::reader::infer_json_schema(reader, Some(INFER_RECORDS))?.0,
        Format::Csv => csv::reader::Format::default().with_header(true).infer_schema(reader, Some(INFER_RECORDS))?.0,
    })
}

fn decoded<'a>(reader: impl Read + 'a, name: &str) -> std::io::Result<Box<dyn BufRead + 'a>> {
    let name = name.to_ascii_lowercase();
    Ok(if name.ends_with(".gz") {
        Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(reader)))
    } else if name.ends_with(".zst") || name.ends_with(".zstd") {
        Box::new(BufReader::new(zstd::stream::read::Decoder::new(reader)?))
    } else {
        Box::new(BufReader::new(reader))
    })
}

/// An object's bytes for a blocking reader; a task of the runtime fetches them, a few pieces ahead.
fn open(location: &Location, file: &ObjectMeta) -> ObjectReader {
    let (sender, pieces) = mpsc::channel(4);
    let (store, path) = (Arc::clone(&location.store), file.location.clone());
    tokio::spawn(async move {
        let mut stream = match store.get(&path).await {
            Ok(object) => object.into_stream(),
            Err(error) => {
                let _ = sender.send(Err(error)).await;
                return;
            }
        };
        while let Some(piece) = stream.next().await {
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    });
    ObjectReader { pieces, current: Bytes::new() }
}

struct ObjectReader {
    pieces: mpsc::Receiver<object_store::Result<Bytes>>,
    current: Bytes,
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece.map_err(std::io::Error::other)?,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
