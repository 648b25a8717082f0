//! The commit protocol (design.md 2.4): data file, then fragment record, then manifest.
//!
//! A table directory holds `part-<fragment>.parquet`, `_fragments/<fragment>.json` and, when finished, `_manifest.json`.
//! Failed rows are in `<location>/failed/<table>-<fragment>.parquet` (stage, row_id, error, attempts).
//!
//! Killed at any instant, the next run with the same key finds some records and redoes the rest: a data file without a
//! record is overwritten or removed, a record without its file is not believed. Locally `_lock` (a lock that dies with
//! its process) keeps a second process out; on S3 nothing here does. Pipelines hold the [lease](super::lease) of a table while they
//! make it, which keeps a second run out of both.

pub use super::fragment::{FragmentWriter, failed_schema};
use super::{
    location::{Location, TEMPORARY, blocking},
    manifest::{Cost, DataFile, MANIFEST, Manifest, Rows},
};
use anyhow::{Context, bail};
use arrow::datatypes::SchemaRef;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{File, TryLockError},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const RECORDS: &str = "_fragments";
/// Among the records: says that the directory is ours, from before the first file is written.
const MARKER: &str = "_begun.json";
const LOCK: &str = "_lock";
/// Requests in flight where many small objects are read or deleted.
const MANY: usize = 16;

/// What one finished fragment wrote and counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FragmentRecord {
    /// Also part of the names of its files.
    pub id: String,
    /// Key of the table that it belongs to.
    pub key: String,
    /// Rows read.
    pub input: u64,
    /// Rows written.
    pub kept: u64,
    /// Rows in `failed_file`.
    pub failed: u64,
    /// Rows read that are neither kept nor failed.
    #[serde(default)]
    pub dropped: u64,
    /// Rows kept or failed beyond those read.
    #[serde(default)]
    pub created: u64,
    /// The data file, relative to the table directory. One without rows may be gone from a published table.
    pub file: Option<DataFile>,
    /// Relative to `<location>/failed/`.
    pub failed_file: Option<DataFile>,
    /// From opening to the final file.
    pub wall_seconds: f64,
    /// Tokens that models made for it.
    pub output_tokens: u64,
    /// No rows of the fragment's input file follow.
    #[serde(default)]
    pub last: bool,
    /// Milliseconds since 1970 when the fragment was opened.
    #[serde(default)]
    pub begun_at: u64,
    /// Milliseconds since 1970 when its data was final.
    #[serde(default)]
    pub ended_at: u64,
}

/// A row that could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRow {
    /// Id of the row; where it has none yet, `<source uri>#<row>`.
    pub row_id: String,
    /// What is wrong with it.
    pub error: String,
    /// How often it was tried.
    pub attempts: i32,
}

/// What the writers of one table share.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) key: String,
    pub(super) dir: Location,
    pub(super) failed_dir: Location,
    finished: Mutex<BTreeMap<String, FragmentRecord>>,
    schema: Mutex<Option<SchemaRef>>,
    /// Held until the last writer is gone.
    _lock: Option<File>,
}

impl Table {
    /// Writes a fragment's record: from now on the fragment is done.
    pub(super) async fn add(&self, record: FragmentRecord) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(&record)?;
        self.dir.write(&format!("{RECORDS}/{}.json", record.id), json.into()).await?;
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).insert(record.id.clone(), record);
        Ok(())
    }
}

/// A table being written. Clones are the same table, for tasks that write fragments at the same time.
#[derive(Debug, Clone)]
pub struct TableCommit {
    table: Arc<Table>,
    former: Arc<BTreeMap<String, FragmentRecord>>,
}

impl TableCommit {
    /// The manifest, if the table is finished.
    pub async fn manifest(location: &Location, table: &str) -> anyhow::Result<Option<Manifest>> {
        check_name(table)?;
        let Some(bytes) = location.read(&format!("{table}/{MANIFEST}")).await? else { return Ok(None) };
        let manifest = serde_json::from_slice(&bytes).with_context(|| {
            format!("{location}/{table}/{MANIFEST} is not a manifest of this program; remove the directory {location}/{table} to make it anew")
        })?;
        Ok(Some(manifest))
    }

    /// Begins or continues the table for `key`. Whatever was made under another key is removed, manifest first.
    pub async fn begin(location: &Location, table: &str, key: &str) -> anyhow::Result<Self> {
        check_name(table)?;
        let (dir, failed_dir) = (location.join(table), location.join("failed"));
        let lock = lock(&dir).await?;
        let mut records = records(&dir).await?;
        let marker = dir.read(&format!("{RECORDS}/{MARKER}")).await?;
        let manifest = dir.read(MANIFEST).await?;
        let present = Present::list(&dir, &failed_dir, table).await?;
        if marker.is_none() && manifest.is_none() && records.is_empty() {
            present.refuse_foreign(&dir)?;
            dir.write(&format!("{RECORDS}/{MARKER}"), "{}".into()).await?;
        }
        let finished_key = manifest.map(|m| serde_json::from_slice::<Manifest>(&m).map(|m| m.key).unwrap_or_default());
        let other_manifest = finished_key.is_some_and(|k| k != key);
        if other_manifest || records.iter().any(|r| r.as_ref().is_ok_and(|r| r.key != key)) {
            dir.delete(MANIFEST).await?;
            remove_records(&dir).await?;
            records.clear();
        }
        let (good, bad): (Vec<_>, Vec<_>) = records.into_iter().partition(|r| r.as_ref().is_ok_and(|r| present.has(r)));
        if !bad.is_empty() {
            dir.delete(MANIFEST).await?;
            let ids = bad.into_iter().map(|r| r.map_or_else(|id| id, |r| r.id));
            remove(&dir, ids.map(|id| format!("{RECORDS}/{id}.json")).collect()).await?;
        }
        let former: BTreeMap<_, _> = good.into_iter().flatten().map(|r| (r.id.clone(), r)).collect();
        present.sweep(&dir, &failed_dir, &former).await?;
        let finished = Mutex::new(former.clone());
        let (name, key) = (table.to_owned(), key.to_owned());
        let table = Arc::new(Table { name, key, dir, failed_dir, finished, schema: Mutex::default(), _lock: lock });
        Ok(Self { table, former: Arc::new(former) })
    }

    /// Removes a table, manifest first, so that it is made anew whatever its key.
    pub async fn remove(location: &Location, table: &str) -> anyhow::Result<()> {
        check_name(table)?;
        let (dir, failed_dir) = (location.join(table), location.join("failed"));
        let _lock = lock(&dir).await?;
        dir.delete(MANIFEST).await?;
        remove_records(&dir).await?;
        Present::list(&dir, &failed_dir, table).await?.sweep(&dir, &failed_dir, &BTreeMap::new()).await
    }

    /// The record of a fragment that a former run finished.
    pub fn done(&self, fragment: &str) -> Option<&FragmentRecord> {
        self.former.get(fragment)
    }

    /// Sums of all fragments finished so far, by this run and former ones.
    pub fn totals(&self) -> Rows {
        let finished = self.table.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.values().fold(Rows::default(), |sum, r| Rows {
            input: sum.input + r.input,
            kept: sum.kept + r.kept,
            failed: sum.failed + r.failed,
            dropped: sum.dropped + r.dropped,
            created: sum.created + r.created,
        })
    }

    /// Data files of all fragments finished so far, in order.
    pub fn files(&self) -> Vec<DataFile> {
        data_files(&self.table.finished.lock().unwrap_or_else(PoisonError::into_inner)).0
    }

    /// Opens a fragment's file (zstd Parquet, bounded row groups, streamed upload on S3). Fragments may be written at the same time.
    /// Ids are `[A-Za-z0-9-]`, padded with zeros so that the order of names is the order of rows.
    pub async fn fragment(&self, fragment: &str, schema: SchemaRef) -> anyhow::Result<FragmentWriter> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if fragment.is_empty() || fragment.len() > 100 || !fragment.chars().all(legal) {
            bail!("`{}` is not a fragment id", fragment.escape_debug());
        }
        *self.table.schema.lock().unwrap_or_else(PoisonError::into_inner) = Some(schema.clone());
        FragmentWriter::open(self.table.clone(), fragment, schema).await
    }

    /// Writes the manifest from all records (files in fragment order) and the given facts; checks the row arithmetic.
    ///
    /// Of `manifest`, table, key, rows, files and cost are filled in here, and the schema if it is empty. A caller that knows how many
    /// rows were dropped or created gives `rows.dropped` and `rows.created`; where both are 0 each fragment's own difference counts.
    pub async fn publish(self, mut manifest: Manifest) -> anyhow::Result<Manifest> {
        let Table { name, key, dir, .. } = &*self.table;
        let Rows { dropped, created, .. } = manifest.rows;
        manifest.rows = match self.totals() {
            counted if dropped == 0 && created == 0 => counted,
            counted => Rows { dropped, created, ..counted },
        };
        let records = self.table.finished.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let written: u64 = records.values().filter_map(|r| r.file.as_ref()).map(|f| f.rows).sum();
        if !manifest.rows.adds_up() || written != manifest.rows.kept {
            let Rows { input, kept, dropped, failed, created } = manifest.rows;
            bail!(
                "table `{name}` is not published, its rows do not add up: input {input} + created {created} is not kept {kept} + \
                 dropped {dropped} + failed {failed}, with {written} rows in files; the fragments are kept in {dir}"
            );
        }
        let (files, superfluous) = data_files(&records);
        remove(dir, superfluous).await?;
        manifest.files = files;
        manifest.failed_files = records.values().filter_map(|r| r.failed_file.clone()).collect();
        manifest.table.clone_from(name);
        manifest.key.clone_from(key);
        let schema = self.table.schema.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(schema) = schema.filter(|_| manifest.schema.is_empty()) {
            manifest.schema = Manifest::columns(&schema);
        }
        manifest.cost = cost(manifest.cost, manifest.rows.input, &records);
        dir.write(MANIFEST, serde_json::to_vec_pretty(&manifest)?.into()).await?;
        Ok(manifest)
    }
}

/// Files with rows, in order, and the names of those without. A table without rows keeps one file: it shows the columns.
fn data_files(records: &BTreeMap<String, FragmentRecord>) -> (Vec<DataFile>, Vec<String>) {
    let (mut full, mut empty): (Vec<_>, Vec<_>) =
        records.values().filter_map(|r| r.file.clone()).partition(|f| f.rows > 0);
    if full.is_empty() && !empty.is_empty() {
        full.push(empty.remove(0));
    }
    (full, empty.into_iter().map(|f| f.path).collect())
}

fn cost(given: Cost, input: u64, records: &BTreeMap<String, FragmentRecord>) -> Cost {
    let wall_seconds = if given.wall_seconds > 0.0 { given.wall_seconds } else { busy_seconds(records) };
    let output_tokens = given.output_tokens.max(records.values().map(|r| r.output_tokens).sum());
    let rate = |n: u64| if wall_seconds > 0.0 { n as f64 / wall_seconds } else { 0.0 };
    Cost {
        wall_seconds,
        rows_per_second: rate(input),
        output_tokens,
        tokens_per_second: rate(output_tokens),
        peak_memory_bytes: given.peak_memory_bytes.max(peak_memory()),
    }
}

/// Time during which at least one fragment was being written, over all runs that took part.
fn busy_seconds(records: &BTreeMap<String, FragmentRecord>) -> f64 {
    let mut spans: Vec<_> = records.values().map(|r| (r.begun_at, r.ended_at.max(r.begun_at))).collect();
    spans.sort_unstable();
    let (mut total, mut until) = (0, 0);
    for (begun, ended) in spans {
        total += ended.saturating_sub(begun.max(until));
        until = until.max(ended);
    }
    total as f64 / 1000.0
}

/// Highest resident memory of this process so far, in bytes (0 where the system does not tell).
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

/// A table's name becomes a directory and a SQL name, so it is plain.
pub fn check_name(table: &str) -> anyhow::Result<()> {
    let plain = table.starts_with(|c: char| c.is_ascii_alphabetic())
        && table.len() <= 100
        && table.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !plain {
        bail!(
            "`{}` is not a table name: use letters, digits and `_`, a letter first, 100 at most",
            table.escape_debug()
        );
    }
    if matches!(table, "failed" | "models") {
        bail!("`{table}` is not free as a table name: the directory of that name holds something else");
    }
    Ok(())
}

/// Keeps other processes away from a local table until the file is closed, by the end of the process at the latest.
async fn lock(dir: &Location) -> anyhow::Result<Option<File>> {
    let Some(path) = dir.local() else { return Ok(None) };
    for _ in 0..30 {
        if let Some(file) = try_lock(path.clone()).await? {
            return Ok(Some(file));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let holder = std::fs::read_to_string(path.join(LOCK)).unwrap_or_default();
    bail!("another run (process {}) is writing {dir}; wait for it or stop it, or use another location", holder.trim())
}

async fn try_lock(dir: PathBuf) -> anyhow::Result<Option<File>> {
    blocking(move || {
        std::fs::create_dir_all(&dir).map_err(|e| super::location::io_error("create", &dir, e))?;
        let path = dir.join(LOCK);
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let mut file = open.map_err(|e| super::location::io_error("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some network file systems have no locks: go on without.
            Err(TryLockError::Error(e)) => tracing::debug!("{}: no lock: {e}", path.display()),
        }
        let note = file
            .set_len(0)
            .and_then(|()| std::io::Write::write_all(&mut file, std::process::id().to_string().as_bytes()));
        // The process id only serves the message above.
        note.unwrap_or_else(|e| tracing::debug!("{}: {e}", path.display()));
        Ok(Some(file))
    })
    .await
}

/// All records of a table; one that cannot be read is given by its id.
async fn records(dir: &Location) -> anyhow::Result<Vec<Result<FragmentRecord, String>>> {
    let found = dir.join(RECORDS).list().await?;
    let ids = found.iter().filter_map(|m| m.location.filename()?.strip_suffix(".json").map(str::to_owned));
    let ids = ids.filter(|id| !id.starts_with(['_', '.']));
    let read = |id: String| async move {
        let bytes = dir.read(&format!("{RECORDS}/{id}.json")).await?;
        let record = bytes.and_then(|b| serde_json::from_slice::<FragmentRecord>(&b).ok()).filter(|r| r.id == id);
        anyhow::Ok(record.ok_or(id))
    };
    stream::iter(ids.collect::<Vec<_>>()).map(read).buffer_unordered(MANY).try_collect().await
}

async fn remove_records(dir: &Location) -> anyhow::Result<()> {
    let found = dir.join(RECORDS).list().await?;
    let names = found.iter().filter_map(|m| m.location.filename()).filter(|n| *n != MARKER);
    remove(dir, names.map(|n| format!("{RECORDS}/{n}")).collect()).await
}

async fn remove(dir: &Location, names: Vec<String>) -> anyhow::Result<()> {
    stream::iter(names).map(|n| async move { dir.delete(&n).await }).buffer_unordered(MANY).try_collect().await
}

/// The files of a table that are there, with their sizes.
struct Present {
    data: HashMap<String, u64>,
    failed: HashMap<String, u64>,
}

impl Present {
    async fn list(dir: &Location, failed_dir: &Location, table: &str) -> anyhow::Result<Self> {
        let own = format!("{table}-");
        let named = |dir: &Location, found: Vec<object_store::ObjectMeta>| -> HashMap<String, u64> {
            let skip = dir.prefix.as_ref().len();
            let name = |m: &object_store::ObjectMeta| m.location.as_ref()[skip..].trim_start_matches('/').to_owned();
            found.iter().map(|m| (name(m), m.size)).filter(|(n, _)| !n.contains('/')).collect()
        };
        let data = named(dir, dir.list().await?);
        let failed = named(failed_dir, failed_dir.list().await?);
        let failed = failed.into_iter().filter(|(n, _)| n.trim_start_matches('.').starts_with(&own)).collect();
        Ok(Self { data, failed })
    }

    /// A directory that this program did not make is not swept.
    fn refuse_foreign(&self, dir: &Location) -> anyhow::Result<()> {
        match self.data.keys().filter(|n| !n.starts_with(['.', '_'])).min() {
            Some(name) => bail!(
                "{dir} holds files that this program did not write (such as {name}), and they are left alone; choose another \
                 location or table name, or move them away"
            ),
            None => Ok(()),
        }
    }

    /// Whether a record's files are there in full.
    fn has(&self, record: &FragmentRecord) -> bool {
        let data = record.file.as_ref().is_none_or(|f| f.rows == 0 || self.data.get(&f.path) == Some(&f.bytes));
        data && record.failed_file.as_ref().is_none_or(|f| self.failed.get(&f.path) == Some(&f.bytes))
    }

    /// Removes unfinished and unrecorded files.
    async fn sweep(
        &self,
        dir: &Location,
        failed_dir: &Location,
        records: &BTreeMap<String, FragmentRecord>,
    ) -> anyhow::Result<()> {
        let known: HashSet<&str> =
            records.values().flat_map(|r| [&r.file, &r.failed_file]).flatten().map(|f| f.path.as_str()).collect();
        let stray = |n: &&String| n.ends_with(TEMPORARY) || (n.ends_with(".parquet") && !known.contains(n.as_str()));
        let data = self.data.keys().filter(|n| n.starts_with("part-") || n.starts_with('.')).filter(stray).cloned();
        remove(dir, data.collect()).await?;
        remove(failed_dir, self.failed.keys().filter(stray).cloned().collect()).await?;
        sweep_records(dir).await
    }
}

/// Unfinished record and manifest files, which only local directories can have.
async fn sweep_records(dir: &Location) -> anyhow::Result<()> {
    let Some(path) = dir.local() else { return Ok(()) };
    blocking(move || {
        for entry in std::fs::read_dir(path.join(RECORDS)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(TEMPORARY) {
                std::fs::remove_file(entry.path()).or_else(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(e),
                })?;
            }
        }
        Ok(())
    })
    .await
}
