//! From rows to sorted runs of contexts. A thread reads batches of rows, one thread a core turns texts into ids, this one puts the batches back
//! into order and packs, another one writes. So the contexts do not depend on the number of threads, and a bounded number of batches is under
//! way.

use super::{
    Work, order,
    order::Serial,
    spill::{JobRecord, Run, RunBuffer, Spill, run_name},
    units::{Job, Unit},
};
use crate::text::pack::{Packer, Span};
use anyhow::{Context, anyhow, ensure};
use arrow::{
    array::{Array, RecordBatch, StringArray},
    datatypes::DataType,
};
use bytes::Bytes;
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
};
use tokio::runtime::Handle;

/// Text of a batch, about.
const BATCH_BYTES: u64 = 1 << 20;
/// Rows of a batch at most.
const BATCH_ROWS: u64 = 4096;

/// Does all jobs that no former run has done.
pub(super) async fn run_all(work: &Arc<Work>, spill: &Spill, jobs: Vec<Job>) -> anyhow::Result<Vec<JobRecord>> {
    let total: u64 = jobs.iter().map(Job::rows).sum();
    let mut records = Vec::with_capacity(jobs.len());
    let mut pending = Vec::new();
    let mut before = 0;
    for job in jobs {
        let done = spill.done(job.number).await?;
        before += done.as_ref().map_or(0, |_| job.rows());
        if done.is_none() {
            pending.push((records.len(), job));
        }
        records.push(done.unwrap_or_default());
    }
    work.cx.progress.begin(&work.cx.output, Some(total), before, "rows");
    for (slot, job) in pending {
        let (work, spill, runtime) = (Arc::clone(work), spill.clone(), Handle::current());
        let run = move || run_job(&work, &spill, &job, &runtime);
        records[slot] = tokio::task::spawn_blocking(run).await.context("packing ended early")??;
    }
    Ok(records)
}

/// Rows of one unit that follow each other.
struct Batch {
    unit: usize,
    first_row: u64,
    ids: Option<StringArray>,
    texts: StringArray,
    /// The unit ends here.
    last: bool,
}

/// A batch with its ids of tokens.
struct Encoded {
    batch: Batch,
    tokens: Vec<u32>,
    documents: Vec<Document>,
}

enum Document {
    /// Where its tokens end.
    Tokens(usize),
    WithoutText,
    Failed(String),
}

fn run_job(work: &Arc<Work>, spill: &Spill, job: &Job, runtime: &Handle) -> anyhow::Result<JobRecord> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let under_way = 2 * threads + 2;
    let (rows, unread) = sync_channel::<(u64, Batch)>(under_way);
    let unread = Mutex::new(unread);
    let (done, encoded) = channel::<(u64, anyhow::Result<Encoded>)>();
    // A batch holds a ticket from being read to being packed.
    let (take, give_back) = sync_channel::<()>(under_way);
    let (runs, written) = sync_channel::<(Run, Bytes)>(1);
    thread::scope(|scope| {
        let done_reading = done.clone();
        scope.spawn(move || {
            let _inside = runtime.enter();
            if let Err((number, error)) = read(work, job, &rows, &take) {
                let _ = done_reading.send((number, Err(error)));
            }
        });
        for _ in 0..threads {
            let (unread, done) = (&unread, done.clone());
            scope.spawn(move || encode(work, unread, &done));
        }
        drop(done);
        let writer = scope.spawn(move || write(spill, &written, runtime));
        let mut assembly = Assembly::new(work, job, runs);
        let assembled = assembly.all(&encoded, &give_back);
        // Whoever still wants to send finds nobody and ends.
        drop((encoded, give_back));
        let record = assembled.and_then(|()| assembly.end());
        // The writer ends when nobody can send to it any more.
        drop(assembly);
        writer.join().map_err(|_| anyhow!("the writer of runs broke off"))??;
        let record = record?;
        runtime.block_on(spill.record(job.number, &record))?;
        Ok(record)
    })
}

/// Reads the rows of a job. The error comes with the number of the batch that is missing.
fn read(
    work: &Work,
    job: &Job,
    rows: &SyncSender<(u64, Batch)>,
    take: &SyncSender<()>,
) -> Result<(), (u64, anyhow::Error)> {
    let mut number = 0;
    for (place, unit) in job.units.iter().enumerate() {
        let mut give = |batch: Batch| {
            let sent = take.send(()).is_ok() && rows.send((number, batch)).is_ok();
            number += 1;
            sent
        };
        let going = read_unit(work, place, unit, &mut give).with_context(|| unit.file.uri());
        match going {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err((number, error)),
        }
    }
    Ok(())
}

/// False where nobody wants more.
fn read_unit(work: &Work, place: usize, unit: &Unit, give: &mut impl FnMut(Batch) -> bool) -> anyhow::Result<bool> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(unit.file.ranges()?)?;
    let has: Vec<String> = builder.schema().fields().iter().map(|f| f.name().clone()).collect();
    let column = work.config.column.as_str();
    let missing = |name: &str| anyhow!("there is no column `{name}`; the table has {}", has.join(", "));
    ensure!(has.iter().any(|name| name == column), missing(column));
    let id = match &work.config.id {
        Some(id) if !has.contains(id) => return Err(missing(id)),
        Some(id) => Some(id.clone()),
        None => has.iter().find(|name| *name == "id").cloned(),
    };
    let mask = ProjectionMask::columns(builder.parquet_schema(), id.iter().map(String::as_str).chain([column]));
    let batch_rows = batch_rows(&builder, column);
    let count = unit.rows.end - unit.rows.start;
    let reader = builder
        .with_projection(mask)
        .with_batch_size(batch_rows)
        .with_offset(usize::try_from(unit.rows.start)?)
        .with_limit(usize::try_from(count)?)
        .build()?;
    let mut at = 0;
    for batch in reader {
        let batch = batch?;
        work.stopped()?;
        let texts = text_column(&batch, column)?;
        let ids = id.as_deref().map(|id| text_column(&batch, id)).transpose()?;
        let first_row = unit.rows.start + at;
        at += texts.len() as u64;
        if !give(Batch { unit: place, first_row, ids, texts, last: at >= count }) {
            return Ok(false);
        }
    }
    ensure!(at == count, "the file has {at} rows from row {} on, not {count}", unit.rows.start);
    Ok(true)
}

/// Rows that hold about [`BATCH_BYTES`] of text.
fn batch_rows<T: parquet::file::reader::ChunkReader + 'static>(
    builder: &ParquetRecordBatchReaderBuilder<T>,
    column: &str,
) -> usize {
    let groups = builder.metadata().row_groups();
    let rows: i64 = groups.iter().map(|g| g.num_rows()).sum();
    let texts = groups.iter().flat_map(|g| g.columns()).filter(|c| c.column_path().string() == column);
    let bytes: i64 = texts.map(|c| c.uncompressed_size()).sum();
    let row = (bytes.max(1) as u64 / rows.max(1) as u64).max(1);
    (BATCH_BYTES / row).clamp(1, BATCH_ROWS) as usize
}

/// A column as text; numbers are written out.
fn text_column(batch: &RecordBatch, name: &str) -> anyhow::Result<StringArray> {
    let column = batch.column_by_name(name).with_context(|| format!("there is no column `{name}`"))?;
    let kind = match column.data_type() {
        DataType::Dictionary(_, value) => value.as_ref(),
        kind => kind,
    };
    let text = matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) || kind.is_integer();
    ensure!(text, "the column `{name}` is {}, not text", column.data_type());
    let cast = arrow::compute::cast(column, &DataType::Utf8)?;
    Ok(cast.as_any().downcast_ref::<StringArray>().context("a cast to text gives text")?.clone())
}

/// Turns batches into tokens until there are no more.
fn encode(work: &Work, unread: &Mutex<Receiver<(u64, Batch)>>, done: &Sender<(u64, anyhow::Result<Encoded>)>) {
    let mut encoder = work.tokenizer.encoder();
    loop {
        let next = unread.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, batch)) = next else { return };
        let mut tokens = Vec::with_capacity(batch.texts.values().len() / 3);
        let mut documents = Vec::with_capacity(batch.texts.len());
        for row in 0..batch.texts.len() {
            let before = tokens.len();
            documents.push(
                match batch.texts.is_valid(row).then(|| encoder.encode(batch.texts.value(row), &mut tokens)) {
                    None => Document::WithoutText,
                    Some(Ok(())) => Document::Tokens(tokens.len()),
                    Some(Err(error)) => {
                        tokens.truncate(before);
                        Document::Failed(format!("{error:#}"))
                    }
                },
            );
        }
        if done.send((number, Ok(Encoded { batch, tokens, documents }))).is_err() {
            return;
        }
    }
}

/// Writes runs; each is complete or not there.
fn write(spill: &Spill, runs: &Receiver<(Run, Bytes)>, runtime: &Handle) -> anyhow::Result<()> {
    for (run, bytes) in runs {
        runtime.block_on(spill.directory.write(&run.name, bytes))?;
    }
    Ok(())
}

/// Batches in order, to contexts, to runs.
struct Assembly<'a> {
    work: &'a Work,
    job: &'a Job,
    packer: Packer,
    sink: Sink<'a>,
    record: JobRecord,
}

/// Where contexts go.
struct Sink<'a> {
    work: &'a Work,
    job: usize,
    buffer: RunBuffer,
    limit: usize,
    out: Option<SyncSender<(Run, Bytes)>>,
    runs: Vec<Run>,
    /// The unit's number and its contexts so far.
    serial: Serial,
    tokens: u64,
}

impl Sink<'_> {
    fn context(&mut self, tokens: &[u32], length: u32, spans: &[Span]) -> anyhow::Result<()> {
        let key = order::key(self.work.shuffle(), self.serial);
        self.buffer.push(key, self.serial.number(), tokens, length, spans, self.work.width);
        self.serial.context =
            self.serial.context.checked_add(1).context("a unit has too many contexts; lower `unit_rows`")?;
        self.tokens += u64::from(length);
        if self.buffer.len() >= self.limit { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        if self.buffer.len() == 0 {
            return Ok(());
        }
        let (bytes, index) = self.buffer.take();
        let run = Run { name: run_name(self.job, self.runs.len()), bytes: bytes.len() as u64, index };
        self.runs.push(run.clone());
        let sent = self.out.as_ref().is_some_and(|out| out.send((run, bytes)).is_ok());
        ensure!(sent, "a run could not be written");
        Ok(())
    }
}

impl<'a> Assembly<'a> {
    fn new(work: &'a Work, job: &'a Job, out: SyncSender<(Run, Bytes)>) -> Self {
        let sink = Sink {
            work,
            job: job.number,
            buffer: RunBuffer::default(),
            limit: work.memory() / 16,
            out: Some(out),
            runs: Vec::new(),
            serial: Serial { unit: job.units.first().map_or(0, |u| u.number), context: 0 },
            tokens: 0,
        };
        let record = JobRecord { key: work.cx.key.clone(), ..JobRecord::default() };
        Self { work, job, packer: Packer::new(work.shape), sink, record }
    }

    fn all(
        &mut self,
        encoded: &Receiver<(u64, anyhow::Result<Encoded>)>,
        give_back: &Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        for (number, batch) in encoded {
            waiting.insert(number, batch);
            while let Some(batch) = waiting.remove(&next) {
                let batch = batch?;
                let rows = batch.documents.len() as u64;
                self.add(batch)?;
                self.work.cx.progress.advance(&self.work.cx.output, rows, "");
                next += 1;
                let _ = give_back.try_recv();
            }
        }
        ensure!(self.record.units.len() == self.job.units.len(), "a reader of the table broke off");
        Ok(())
    }

    fn add(&mut self, encoded: Encoded) -> anyhow::Result<()> {
        let Encoded { batch, tokens, documents } = encoded;
        let (packer, sink) = (&mut self.packer, &mut self.sink);
        self.record.documents += documents.len() as u64;
        let mut from = 0;
        for (row, document) in documents.into_iter().enumerate() {
            let given = batch.ids.as_ref().filter(|ids| ids.is_valid(row)).map(|ids| ids.value(row));
            let made;
            let id = match given {
                Some(id) => id,
                None => {
                    made = format!("{}#{}", self.job.units[batch.unit].name, batch.first_row + row as u64);
                    made.as_str()
                }
            };
            match document {
                Document::WithoutText => self.record.without_text += 1,
                Document::Failed(error) => self.record.failed.push((id.to_owned(), error)),
                Document::Tokens(end) => {
                    packer.push(id, &tokens[from..end], |tokens, length, spans| sink.context(tokens, length, spans))?;
                    from = end;
                }
            }
        }
        if batch.last {
            packer.finish(|tokens, length, spans| sink.context(tokens, length, spans))?;
            self.record.units.push(sink.serial.context);
            sink.serial = Serial { unit: sink.serial.unit + 1, context: 0 };
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<JobRecord> {
        self.sink.flush()?;
        self.sink.out = None;
        self.record.runs = std::mem::take(&mut self.sink.runs);
        self.record.tokens = self.sink.tokens;
        Ok(std::mem::take(&mut self.record))
    }
}
