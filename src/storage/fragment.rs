//! One fragment of a table while it is written: Parquet encoding on blocking threads, a temporary file or a multipart
//! upload that becomes final in one step, then the failed rows, then the record. What makes a table of fragments is in `commit.rs`.

use super::{
    commit::{FailedRow, FragmentRecord, Table},
    location::{Location, TempFile, blocking, io_error},
    manifest::DataFile,
};
use anyhow::{Context, anyhow};
use arrow::{
    array::{ArrayRef, Int32Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use bytes::Bytes;
use object_store::{ObjectStoreExt, buffered::BufWriter};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::io::AsyncWriteExt;

/// Rows of a row group at most: what a reader such as DuckDB takes as its unit of work.
const ROW_GROUP_ROWS: usize = 122_880;
/// Encoded bytes of a row group at most. A writer holds one row group in memory.
const ROW_GROUP_BYTES: usize = 32 << 20;
/// Rows encoded between two looks at the page size; web pages are long, so the default of 1024 makes pages of many megabytes.
const ENCODE_ROWS: usize = 64;
/// Bytes of one part of an upload, and how many may be on their way.
const PART: usize = 8 << 20;
const PARTS_IN_FLIGHT: usize = 2;

fn properties() -> anyhow::Result<WriterProperties> {
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_write_batch_size(ENCODE_ROWS)
        .set_created_by(concat!("repro ", env!("CARGO_PKG_VERSION")).to_owned())
        .build())
}

/// A Parquet file under way.
enum Encoder {
    Local(Box<ArrowWriter<TempFile>>, PathBuf),
    Remote(Box<ArrowWriter<Vec<u8>>>),
}

impl Encoder {
    fn new(target: Option<PathBuf>, schema: SchemaRef) -> anyhow::Result<Self> {
        Ok(match target {
            Some(path) => {
                let file = TempFile::create(&path)?;
                let writer = ArrowWriter::try_new(file, schema, Some(properties()?)).map_err(|e| explain(&path, e))?;
                Self::Local(Box::new(writer), path)
            }
            None => Self::Remote(Box::new(ArrowWriter::try_new(Vec::new(), schema, Some(properties()?))?)),
        })
    }

    /// Encodes a batch; returns what is to be uploaded.
    fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<Bytes> {
        match self {
            Self::Local(writer, path) => {
                writer.write(batch).map_err(|e| explain(path, e))?;
                Ok(Bytes::new())
            }
            Self::Remote(writer) => {
                writer.write(batch)?;
                writer.sync()?;
                Ok(std::mem::take(writer.inner_mut()).into())
            }
        }
    }

    /// Ends the file. Local files are final now; their size is returned, or else the last bytes to upload.
    fn close(self) -> anyhow::Result<(u64, Bytes)> {
        match self {
            Self::Local(writer, path) => {
                let file = writer.into_inner().map_err(|e| explain(&path, e))?;
                Ok((file.publish()?, Bytes::new()))
            }
            Self::Remote(writer) => Ok((0, writer.into_inner()?.into())),
        }
    }
}

fn explain(path: &Path, error: ParquetError) -> anyhow::Error {
    if let ParquetError::External(inner) = &error
        && let Some(io) = inner.downcast_ref::<std::io::Error>()
    {
        return io_error("write", path, std::io::Error::new(io.kind(), io.to_string()));
    }
    anyhow!("cannot write {}: {error}", path.display())
}

/// A Parquet file on its way to its place; nothing is visible before [`ParquetSink::finish`].
pub(super) struct ParquetSink {
    dir: Location,
    name: String,
    encoder: Option<Encoder>,
    upload: Option<BufWriter>,
    rows: u64,
    uploaded: u64,
}

impl ParquetSink {
    pub(super) async fn create(dir: &Location, name: &str, schema: SchemaRef) -> anyhow::Result<Self> {
        let local = dir.join(name).local();
        let upload = local.is_none().then(|| {
            BufWriter::with_capacity(dir.store.clone(), dir.child(name), PART).with_max_concurrency(PARTS_IN_FLIGHT)
        });
        let encoder = Some(blocking(move || Encoder::new(local, schema)).await?);
        Ok(Self { dir: dir.clone(), name: name.to_owned(), encoder, upload, rows: 0, uploaded: 0 })
    }

    pub(super) async fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let mut encoder = self.encoder.take().with_context(|| format!("{}: an earlier write failed", self.name))?;
        let rows = batch.num_rows() as u64;
        let batch = batch.clone();
        let (encoder, bytes) = blocking(move || {
            let bytes = encoder.write(&batch)?;
            Ok((encoder, bytes))
        })
        .await?;
        self.send(bytes).await?;
        self.encoder = Some(encoder);
        self.rows += rows;
        Ok(())
    }

    async fn send(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        let Some(upload) = self.upload.as_mut().filter(|_| !bytes.is_empty()) else { return Ok(()) };
        self.uploaded += bytes.len() as u64;
        let sent = upload.put(bytes).await;
        sent.map_err(|e| self.dir.explain(&format!("uploading {}", self.dir.child(&self.name)), &e))
    }

    /// Closes the file and makes it visible in one step.
    pub(super) async fn finish(mut self) -> anyhow::Result<DataFile> {
        let encoder = self.encoder.take().with_context(|| format!("{}: an earlier write failed", self.name))?;
        let (mut bytes, rest) = blocking(move || encoder.close()).await?;
        self.send(rest).await?;
        if let Some(upload) = &mut self.upload {
            bytes = self.uploaded;
            let ended = upload.shutdown().await;
            self.upload = None;
            if let Err(e) = ended {
                arrived(&self.dir, &self.name, bytes, e).await?;
            }
        }
        Ok(DataFile { path: self.name.clone(), rows: self.rows, bytes })
    }
}

/// An upload whose last answer was lost may have arrived: the server then knows no such upload any more, but has the object.
async fn arrived(dir: &Location, name: &str, bytes: u64, error: std::io::Error) -> anyhow::Result<()> {
    let path = dir.child(name);
    if dir.store.head(&path).await.is_ok_and(|meta| meta.size == bytes) {
        return Ok(());
    }
    let error = object_store::Error::Generic { store: "S3", source: Box::new(error) };
    Err(dir.explain(&format!("finishing the upload of {path}"), &error))
}

impl Drop for ParquetSink {
    fn drop(&mut self) {
        if let Some(mut upload) = self.upload.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // Gives the parts back. After a kill they stay until the bucket's own rule for unfinished uploads removes them.
            runtime.spawn(async move { upload.abort().await.ok() });
        }
    }
}

/// One fragment being written; nothing is visible until [`FragmentWriter::finish`].
pub struct FragmentWriter {
    table: Arc<Table>,
    id: String,
    sink: ParquetSink,
    failed: Vec<FailedRow>,
    output_tokens: u64,
    last: bool,
    begun: Instant,
    begun_at: u64,
}

impl FragmentWriter {
    pub(super) async fn open(table: Arc<Table>, id: &str, schema: SchemaRef) -> anyhow::Result<Self> {
        let sink = ParquetSink::create(&table.dir, &format!("part-{id}.parquet"), schema).await?;
        let (begun, begun_at) = (Instant::now(), unix_ms());
        Ok(Self { table, id: id.to_owned(), sink, failed: Vec::new(), output_tokens: 0, last: false, begun, begun_at })
    }

    /// Appends rows. They are encoded on a blocking thread, so that several fragments use several cores.
    pub async fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.sink.write(batch).await
    }

    /// Notes a row that could not be done.
    pub fn fail(&mut self, row: FailedRow) {
        self.failed.push(row);
    }

    /// Counts tokens that models made for this fragment.
    pub fn add_output_tokens(&mut self, tokens: u64) {
        self.output_tokens += tokens;
    }

    /// Says that no rows of this input follow, so that a resumed run need not read it again to find out.
    pub fn mark_last(&mut self) {
        self.last = true;
    }

    /// [`FragmentWriter::finish`] with the number of tokens that models made for the fragment.
    pub async fn finish_with(mut self, input: u64, output_tokens: u64) -> anyhow::Result<FragmentRecord> {
        self.output_tokens += output_tokens;
        self.finish(input).await
    }

    /// Closes the file, makes it final, writes the record. `input` is the number of rows read.
    pub async fn finish(self, input: u64) -> anyhow::Result<FragmentRecord> {
        let Self { table, id, sink, failed, output_tokens, last, begun, begun_at } = self;
        let file = sink.finish().await?;
        let failed_file = match failed.is_empty() {
            true => None,
            false => Some(write_failed(&table, &id, &failed).await?),
        };
        let out = file.rows + failed.len() as u64;
        let record = FragmentRecord {
            key: table.key.clone(),
            input,
            kept: file.rows,
            failed: failed.len() as u64,
            dropped: input.saturating_sub(out),
            created: out.saturating_sub(input),
            file: Some(file),
            failed_file,
            wall_seconds: begun.elapsed().as_secs_f64(),
            output_tokens,
            last,
            begun_at,
            ended_at: unix_ms(),
            id,
        };
        table.add(record.clone()).await?;
        Ok(record)
    }
}

async fn write_failed(table: &Table, id: &str, rows: &[FailedRow]) -> anyhow::Result<DataFile> {
    let name = format!("{}-{id}.parquet", table.name);
    let mut sink = ParquetSink::create(&table.failed_dir, &name, failed_schema()).await?;
    for rows in rows.chunks(1024) {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|_| &table.name))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.row_id))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.error))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.attempts))),
        ];
        sink.write(&RecordBatch::try_new(failed_schema(), columns)?).await?;
    }
    sink.finish().await
}

/// Columns of the files in `failed/`.
pub fn failed_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("stage", DataType::Utf8, false),
        Field::new("row_id", DataType::Utf8, false),
        Field::new("error", DataType::Utf8, false),
        Field::new("attempts", DataType::Int32, false),
    ]))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
