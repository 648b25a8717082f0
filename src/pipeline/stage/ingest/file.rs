//! One file of an ingest: a blocking thread reads, tasks shape rows in parallel, fragments are written in order.
//! Only so many blocks are under way, so memory does not depend on the size of the file.

use super::{
    Config, Format, OnBadFile,
    lines::{self, Block, RowReader},
    pages,
    plan::Layout,
    shape::{Body, Shaped, Shaper},
};
use crate::{
    pipeline::stage::StageContext,
    storage::{
        commit::{FragmentRecord, FragmentWriter, TableCommit},
        reader::SourceFile,
    },
};
use anyhow::{Context, anyhow, bail};
use futures::{Stream, StreamExt, stream};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::{sync::mpsc, task::JoinSet};

/// Blocks read ahead of the shaping tasks.
const READ_AHEAD: usize = 2;
/// Fragments of one file that are being finished (synced, uploaded) while the next is written.
const FINISHING: usize = 2;

/// What the files of one ingest share.
pub(super) struct Job {
    pub(super) config: Arc<Config>,
    pub(super) layout: Arc<Layout>,
    pub(super) commit: TableCommit,
    pub(super) cx: StageContext,
    /// Shaping tasks of one file.
    pub(super) parallel: usize,
}

/// A file and its number in the order of the input.
pub(super) struct InputFile {
    pub(super) number: usize,
    pub(super) format: Format,
    pub(super) file: SourceFile,
}

impl InputFile {
    fn fragment(&self, fragment: u64) -> String {
        format!("{:05}-{fragment:06}", self.number)
    }

    /// Whether a former run finished all its fragments.
    pub(super) fn is_done(&self, commit: &TableCommit) -> bool {
        let records = (0..).map_while(|f| commit.done(&self.fragment(f)));
        records.into_iter().any(|r| r.last)
    }
}

/// Ingests one file. Finished fragments stay when it fails.
pub(super) async fn run(job: Arc<Job>, input: Arc<InputFile>) -> anyhow::Result<()> {
    let uri: Arc<str> = input.file.uri().into();
    let shaper = Shaper { config: job.config.clone(), layout: job.layout.clone(), uri: uri.clone() };
    let read = Arc::new(AtomicU64::new(0));
    let (send, receive) = mpsc::channel(READ_AHEAD);
    let reading = tokio::task::spawn_blocking({
        let (job, input, read) = (job.clone(), input.clone(), read.clone());
        move || produce(&job, &input, &read, &send)
    });
    let mut blocks = Box::pin(shaped(receive, shaper.clone(), job.parallel));
    let mut progress = Bytes { job: &job, size: input.file.meta.size, read, shown: 0 };
    let mut table = Fragments { job: &job, input: &input, open: None, finishing: JoinSet::new() };
    while let Some(next) = blocks.next().await {
        let (mut shaped, end) = next.with_context(|| format!("{uri}: a row could not be shaped"))?;
        if job.cx.cancel.is_cancelled() {
            bail!("stopped; run the same command again to continue");
        }
        if let Some(trouble) = input.file.trouble() {
            bail!("{trouble}");
        }
        if let Some(damage) = &end.damage {
            let row = end.first_row + shaped.input;
            if job.config.on_bad_file == OnBadFile::Fail {
                bail!(
                    "{uri} is damaged at row {row}: {damage}; replace the file, or set `on_bad_file: skip` to keep the rows before the \
                     damage and note the file in `failed`"
                );
            }
            shaped.failed.push(shaper.failed(row, format!("the file is damaged from here on: {damage}")));
            shaped.input += 1;
        }
        table.add(shaped, &end).await?;
        progress.show();
    }
    reading.await.map_err(|e| anyhow!("{uri}: the reader broke off, the file is probably damaged: {e}"))?;
    table.finish_all().await?;
    progress.end();
    Ok(())
}

/// Reads the file and sends its blocks; ends early when nobody listens any more.
fn produce(job: &Job, input: &InputFile, read: &Arc<AtomicU64>, send: &mpsc::Sender<Block<Body>>) {
    let rows = job.config.fragment_rows;
    let done = |fragment| job.commit.done(&input.fragment(fragment)).is_some();
    let on = |block: Block<Body>| !job.cx.cancel.is_cancelled() && send.blocking_send(block).is_ok();
    if input.format == Format::Parquet && input.file.meta.size > 0 {
        return pages::blocks(&input.file, rows, read, done, on);
    }
    match lines::open(&input.file) {
        Ok((text, counter)) => {
            let reader = RowReader::new(text, job.config.max_line_bytes);
            lines::blocks(reader, rows, done, |block| {
                read.store(counter.load(Ordering::Relaxed), Ordering::Relaxed);
                on(block.map(Body::Lines))
            });
        }
        Err(e) => {
            let block = Block { closes: true, last: true, damage: Some(e.to_string()), ..Block::default() };
            on(block.map(Body::Lines));
        }
    }
}

/// Shapes blocks in parallel and yields them in order, each with what it says about its fragment's end.
fn shaped(
    mut receive: mpsc::Receiver<Block<Body>>,
    shaper: Shaper,
    parallel: usize,
) -> impl Stream<Item = anyhow::Result<(Shaped, Block<()>)>> {
    stream::poll_fn(move |cx| receive.poll_recv(cx))
        .map(move |block| {
            let shaper = shaper.clone();
            let task = tokio::task::spawn_blocking(move || {
                let shaped = shaper.shape(&block)?;
                anyhow::Ok((shaped, block.map(drop)))
            });
            async move { task.await? }
        })
        .buffered(parallel)
}

/// Writes the fragments of a file.
struct Fragments<'a> {
    job: &'a Job,
    input: &'a InputFile,
    open: Option<(FragmentWriter, u64)>,
    finishing: JoinSet<anyhow::Result<FragmentRecord>>,
}

impl Fragments<'_> {
    async fn add(&mut self, shaped: Shaped, end: &Block<()>) -> anyhow::Result<()> {
        let (mut writer, mut rows) = match self.open.take() {
            Some(open) => open,
            None => {
                let id = self.input.fragment(end.fragment);
                (self.job.commit.fragment(&id, self.job.layout.schema.clone()).await?, 0)
            }
        };
        writer.write(&shaped.batch).await?;
        shaped.failed.into_iter().for_each(|row| writer.fail(row));
        rows += shaped.input;
        if !end.closes {
            self.open = Some((writer, rows));
            return Ok(());
        }
        if end.last {
            writer.mark_last();
        }
        while self.finishing.len() >= FINISHING {
            self.wait().await?;
        }
        self.finishing.spawn(writer.finish(rows));
        Ok(())
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        match self.finishing.join_next().await {
            Some(record) => record?.map(drop),
            None => Ok(()),
        }
    }

    async fn finish_all(&mut self) -> anyhow::Result<()> {
        while !self.finishing.is_empty() {
            self.wait().await?;
        }
        Ok(())
    }
}

/// Progress in bytes of the source as it lies on disk.
struct Bytes<'a> {
    job: &'a Job,
    size: u64,
    read: Arc<AtomicU64>,
    shown: u64,
}

impl Bytes<'_> {
    fn show(&mut self) {
        self.advance(self.read.load(Ordering::Relaxed).min(self.size));
    }

    fn end(&mut self) {
        self.advance(self.size);
    }

    fn advance(&mut self, to: u64) {
        let more = to.saturating_sub(self.shown);
        if more > 0 {
            self.shown = to;
            self.job.cx.progress.advance(&self.job.cx.output, more, "");
        }
    }
}
