//! What lies on disk between tokenising and the finished table, below `<table>/_spill/<key>/`: runs of contexts sorted by their keys, and a record
//! for each job that says which runs it made and what it counted. A job without its record, or with a run missing, is done again.
//!
//! A run is its records, then an index of every [`STEP`]th: key and offset. A record is its size, key, serial, number of tokens that are not
//! padding, spans, and tokens; all numbers little-endian.

use crate::{storage::location::Location, text::pack::Span};
use anyhow::{Context, ensure};
use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

const DIRECTORY: &str = "_spill";
/// Sums of all jobs; stays when the runs are gone.
const TOTAL: &str = "_pack.json";
/// Records between two entries of an index.
const STEP: usize = 16;
/// Size, key, serial, length, number of spans.
const HEADER: usize = 4 + 8 + 8 + 4 + 4;

/// What one job made and counted; also the sum of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JobRecord {
    /// The stage's key.
    pub(super) key: String,
    /// Rows read.
    pub(super) documents: u64,
    /// Rows whose text is NULL.
    pub(super) without_text: u64,
    /// Documents that could not be encoded: id and error.
    pub(super) failed: Vec<(String, String)>,
    /// Tokens without padding.
    pub(super) tokens: u64,
    /// Contexts of each unit, in order.
    pub(super) units: Vec<u32>,
    /// Files of contexts.
    pub(super) runs: Vec<Run>,
}

/// A sorted file of contexts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Where the index begins.
    pub(super) index: u64,
}

impl JobRecord {
    /// All jobs together.
    pub(super) fn sum(records: &[Self]) -> Self {
        let mut total = Self::default();
        for record in records {
            total.key.clone_from(&record.key);
            total.documents += record.documents;
            total.without_text += record.without_text;
            total.tokens += record.tokens;
            total.failed.extend_from_slice(&record.failed);
            total.units.extend_from_slice(&record.units);
        }
        total
    }

    /// Contexts of all units.
    pub(super) fn contexts(&self) -> u64 {
        self.units.iter().map(|n| u64::from(*n)).sum()
    }
}

/// The directory of one key.
#[derive(Debug, Clone)]
pub(super) struct Spill {
    table: Location,
    /// Where the runs are.
    pub(super) directory: Location,
    key: String,
    /// Finished runs of former processes and their sizes.
    present: HashMap<String, u64>,
}

impl Spill {
    /// Opens the directory; what was left there under another key goes.
    pub(super) async fn open(table: &Location, key: &str) -> anyhow::Result<Self> {
        let all = table.join(DIRECTORY);
        let directory = all.join(key);
        let mut present = HashMap::new();
        for object in all.list().await? {
            let name = object.location.as_ref()[all.prefix.as_ref().len()..].trim_start_matches('/');
            match name.split_once('/') {
                Some((of, name)) if of == key && !name.starts_with('.') => {
                    present.insert(name.to_owned(), object.size);
                }
                _ => all.delete(name).await?,
            }
        }
        Ok(Self { table: table.clone(), directory, key: key.to_owned(), present })
    }

    /// The sums, if a former process came so far.
    pub(super) async fn total(&self) -> anyhow::Result<Option<JobRecord>> {
        let bytes = self.table.read(TOTAL).await?;
        Ok(bytes.and_then(|b| serde_json::from_slice::<JobRecord>(&b).ok()).filter(|total| total.key == self.key))
    }

    /// Keeps the sums.
    pub(super) async fn note(&self, total: &JobRecord) -> anyhow::Result<()> {
        self.table.write(TOTAL, serde_json::to_vec(total)?.into()).await
    }

    /// The record of a job whose runs are all there.
    pub(super) async fn done(&self, job: usize) -> anyhow::Result<Option<JobRecord>> {
        let name = job_name(job);
        if !self.present.contains_key(&name) {
            return Ok(None);
        }
        let bytes = self.directory.read(&name).await?;
        let record = bytes.and_then(|b| serde_json::from_slice::<JobRecord>(&b).ok());
        let whole = |r: &JobRecord| r.runs.iter().all(|run| self.present.get(&run.name) == Some(&run.bytes));
        Ok(record.filter(|r| r.key == self.key && whole(r)))
    }

    /// Says that a job is done.
    pub(super) async fn record(&self, job: usize, record: &JobRecord) -> anyhow::Result<()> {
        self.directory.write(&job_name(job), serde_json::to_vec(record)?.into()).await
    }

    /// Removes the runs. The sums stay.
    pub(super) async fn clear(&self, total: &JobRecord) -> anyhow::Result<()> {
        self.note(total).await?;
        let all = self.table.join(DIRECTORY);
        for object in all.list().await? {
            let name = object.location.as_ref()[all.prefix.as_ref().len()..].trim_start_matches('/').to_owned();
            all.delete(&name).await?;
        }
        if let Some(local) = all.local() {
            // Only the empty directories are left.
            let _ = std::fs::remove_dir(local.join(&self.key)).and_then(|()| std::fs::remove_dir(&local));
        }
        Ok(())
    }
}

fn job_name(job: usize) -> String {
    format!("job-{job:06}.json")
}

/// Name of a run.
pub(super) fn run_name(job: usize, run: usize) -> String {
    format!("run-{job:06}-{run:06}")
}

/// Contexts that are not on disk yet.
#[derive(Debug, Default)]
pub(super) struct RunBuffer {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    key: u64,
    serial: u64,
    start: usize,
    end: usize,
}

impl RunBuffer {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a context; `width` is the bytes of an id.
    pub(super) fn push(&mut self, key: u64, serial: u64, tokens: &[u32], length: u32, spans: &[Span], width: usize) {
        let start = self.bytes.len();
        let out = &mut self.bytes;
        let names: usize = spans.iter().map(|s| 20 + s.id.len()).sum();
        let size = HEADER + names + tokens.len() * width;
        out.extend((size as u32).to_le_bytes());
        out.extend(key.to_le_bytes());
        out.extend(serial.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend((spans.len() as u32).to_le_bytes());
        for span in spans {
            out.extend(span.start.to_le_bytes());
            out.extend(span.offset.to_le_bytes());
            out.extend(span.length.to_le_bytes());
            out.extend((span.id.len() as u32).to_le_bytes());
            out.extend(span.id.as_bytes());
        }
        match width {
            2 => tokens.iter().for_each(|t| out.extend((*t as u16).to_le_bytes())),
            _ => tokens.iter().for_each(|t| out.extend(t.to_le_bytes())),
        }
        self.entries.push(Entry { key, serial, start, end: start + size });
    }

    /// The run and where its index begins; the buffer is empty then.
    pub(super) fn take(&mut self) -> (Bytes, u64) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable();
        let mut run = Vec::with_capacity(self.bytes.len() + (entries.len() / STEP + 1) * 16);
        let mut index = Vec::new();
        for (number, entry) in entries.iter().enumerate() {
            if number.is_multiple_of(STEP) {
                index.extend(entry.key.to_le_bytes());
                index.extend((run.len() as u64).to_le_bytes());
            }
            run.extend_from_slice(&self.bytes[entry.start..entry.end]);
        }
        self.bytes.clear();
        let at = run.len() as u64;
        run.extend(index);
        (run.into(), at)
    }
}

/// Where the keys of a run are.
#[derive(Debug)]
pub(super) struct Index {
    name: String,
    /// Key and offset of some records, in order.
    entries: Vec<(u64, u64)>,
    end: u64,
}

impl Index {
    pub(super) async fn read(directory: &Location, run: &Run) -> anyhow::Result<Self> {
        let mut bytes = directory.read_range(&run.name, run.index..run.bytes).await?;
        let mut entries = Vec::with_capacity(bytes.len() / 16);
        while bytes.remaining() >= 16 {
            entries.push((bytes.get_u64_le(), bytes.get_u64_le()));
        }
        Ok(Self { name: run.name.clone(), entries, end: run.index })
    }

    /// The bytes that hold the records with keys `from..=last`, and some before and after.
    pub(super) async fn slice(&self, directory: &Location, from: u64, last: u64) -> anyhow::Result<Bytes> {
        let before = self.entries.partition_point(|(key, _)| *key < from);
        let start = before.checked_sub(1).map_or(0, |at| self.entries[at].1);
        let after = self.entries.partition_point(|(key, _)| *key <= last);
        let end = self.entries.get(after).map_or(self.end, |(_, offset)| *offset);
        if start >= end {
            return Ok(Bytes::new());
        }
        directory.read_range(&self.name, start..end).await
    }
}

/// One context of a run.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) length: u32,
    pub(super) spans: Vec<Span>,
    /// Ids of the stored width.
    pub(super) tokens: Bytes,
}

/// Key and serial of the record at the beginning, and its bytes, which are taken off.
pub(super) fn next(bytes: &mut Bytes) -> anyhow::Result<Option<(u64, u64, Bytes)>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    ensure!(bytes.len() >= HEADER, "a run is cut off");
    let size = (&bytes[..4]).get_u32_le() as usize;
    ensure!(size >= HEADER && size <= bytes.len(), "a run is damaged");
    let record = bytes.split_to(size);
    let (key, serial) = ((&record[4..12]).get_u64_le(), (&record[12..20]).get_u64_le());
    Ok(Some((key, serial, record)))
}

impl Record {
    /// Reads what [`next`] gave.
    pub(super) fn decode(mut bytes: Bytes) -> anyhow::Result<Self> {
        bytes.advance(4 + 8 + 8);
        let (length, count) = (bytes.get_u32_le(), bytes.get_u32_le());
        let mut spans = Vec::with_capacity(count as usize);
        for _ in 0..count {
            ensure!(bytes.len() >= 20, "a run is damaged");
            let (start, offset, length) = (bytes.get_u64_le(), bytes.get_u32_le(), bytes.get_u32_le());
            let size = bytes.get_u32_le() as usize;
            ensure!(bytes.len() >= size, "a run is damaged");
            let id = bytes.split_to(size);
            let id = std::str::from_utf8(&id).context("a run is damaged")?.into();
            spans.push(Span { id, start, offset, length });
        }
        Ok(Self { length, spans, tokens: bytes })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn span(id: &str, start: u64) -> Span {
        Span { id: id.into(), start, offset: 0, length: 3 }
    }

    #[tokio::test]
    async fn runs_come_back_sorted_and_by_range() {
        let home = tempfile::tempdir().unwrap();
        let location = Location::parse(home.path().to_str().unwrap()).unwrap();
        let mut buffer = RunBuffer::default();
        let keys: Vec<u64> = (0..100).map(|i| (i * 37) % 101 * 10).collect();
        for (serial, key) in keys.iter().enumerate() {
            buffer.push(
                *key,
                serial as u64,
                &[7, 65_535, serial as u32],
                3,
                &[span("a", 5), span(&"é".repeat(serial), 0)],
                2,
            );
        }
        let (bytes, index) = buffer.take();
        let run = Run { name: "r".into(), bytes: bytes.len() as u64, index };
        location.write("r", bytes).await.unwrap();
        let index = Index::read(&location, &run).await.unwrap();
        for (from, last) in [(0, u64::MAX), (0, 0), (250, 400), (395, 399), (1000, 1000), (1001, u64::MAX)] {
            let mut slice = index.slice(&location, from, last).await.unwrap();
            let mut found = Vec::new();
            while let Some((key, serial, record)) = next(&mut slice).unwrap() {
                let record = Record::decode(record).unwrap();
                assert_eq!(record.tokens[..], [7, 0, 255, 255, serial as u8, 0]);
                assert_eq!(record.spans, [span("a", 5), span(&"é".repeat(serial as usize), 0)]);
                if (from..=last).contains(&key) {
                    found.push(key);
                }
            }
            let mut expected: Vec<u64> = keys.iter().copied().filter(|k| (from..=last).contains(k)).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{from}..={last}");
        }
    }
}
