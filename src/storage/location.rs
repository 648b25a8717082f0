//! A directory that may be local or on S3: parse, read, write, list, delete. Knows nothing of tables; patterns are in
//! `glob.rs`, S3 clients and their errors in `s3.rs`.
//!
//! A local write goes to a temporary file in the same directory, is synced, and is then renamed; S3 shows an object only when it is complete.

use super::s3::{self, Bucket};
use anyhow::{Context, anyhow, bail};
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as ObjectPath};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// `runs/quickstart`, `/data/x`, `file:///data/x` or `s3://bucket/prefix`. Credentials, region and endpoint of S3 come from the usual
/// AWS_* variables (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, …, AWS_ALLOW_HTTP) and are never logged.
#[derive(Debug, Clone)]
pub struct Location {
    /// Where its objects are.
    pub store: Arc<dyn ObjectStore>,
    /// Root URL under which DataFusion registers `store`.
    pub root: url::Url,
    /// Path within the store.
    pub prefix: ObjectPath,
    shown: String,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Local(PathBuf),
    S3(Arc<Bucket>),
}

static LOCAL: LazyLock<Arc<dyn ObjectStore>> = LazyLock::new(|| Arc::new(LocalFileSystem::new()));

impl Location {
    /// Errors name the text and say what is wrong with it. Nothing is contacted yet.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        if text.contains('\0') || text.trim().is_empty() {
            bail!("`{}` is not a location: give a directory or s3://bucket/prefix", text.escape_debug());
        }
        if let Some(rest) = text.strip_prefix("s3://").or_else(|| text.strip_prefix("s3a://")) {
            return Self::parse_s3(text, rest);
        }
        if let Some((scheme, _)) = text.split_once("://")
            && scheme != "file"
        {
            bail!("`{text}`: cannot read or write {scheme}:// locations; use a local path or s3://bucket/prefix");
        }
        if text.starts_with("file://") {
            let path = url::Url::parse(text).ok().and_then(|u| u.to_file_path().ok());
            return Self::from_local(
                path.with_context(|| format!("`{text}` is not a file:/// URL of this machine"))?,
                text,
            );
        }
        Self::from_local(PathBuf::from(text), text)
    }

    fn parse_s3(text: &str, rest: &str) -> anyhow::Result<Self> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(legal) {
            bail!("`{text}`: `{bucket}` is not a bucket name; write s3://bucket/prefix");
        }
        let prefix =
            ObjectPath::parse(key.trim_matches('/')).map_err(|e| anyhow!("`{text}` is not a usable S3 path: {e}"))?;
        let place = s3::bucket(bucket)?;
        let root = url::Url::parse(&format!("s3://{bucket}")).with_context(|| format!("`{text}`"))?;
        let shown = text.trim_end_matches('/').to_owned();
        Ok(Self { store: place.store.clone(), root, prefix, shown, place: Place::S3(place) })
    }

    /// A local directory or file, shown as `shown`.
    pub(super) fn from_local(path: PathBuf, shown: &str) -> anyhow::Result<Self> {
        let absolute = clean(&std::path::absolute(&path).with_context(|| format!("`{shown}` is not a usable path"))?);
        let prefix = ObjectPath::from_absolute_path(&absolute)
            .map_err(|e| anyhow!("`{shown}` is not a usable path (names must be UTF-8): {e}"))?;
        let root = url::Url::parse("file:///").expect("a constant URL");
        let trimmed = shown.trim_end_matches('/');
        let shown = if trimmed.is_empty() { shown } else { trimmed }.to_owned();
        Ok(Self { store: LOCAL.clone(), root, prefix, shown, place: Place::Local(absolute) })
    }

    /// An object of the same store, by full path.
    pub(super) fn sibling(&self, object: &ObjectPath) -> Self {
        let shown = format!("{}/{object}", self.root.as_str().trim_end_matches('/'));
        Self { prefix: object.clone(), shown, ..self.clone() }
    }

    /// The location `relative` (parts separated by `/`) below this one.
    pub fn join(&self, relative: &str) -> Self {
        let prefix = self.child(relative);
        let shown = format!("{}/{relative}", self.shown.trim_end_matches('/'));
        let place = match &self.place {
            Place::Local(dir) => Place::Local(below(dir, relative)),
            Place::S3(bucket) => Place::S3(bucket.clone()),
        };
        Self { store: self.store.clone(), root: self.root.clone(), prefix, shown, place }
    }

    /// Full object path of a file below this location.
    pub fn child(&self, relative: &str) -> ObjectPath {
        segments(relative).fold(self.prefix.clone(), |path, part| {
            // A raw name where it is a legal one, so that local names with special characters stay as they are.
            ObjectPath::parse(format!("{path}/{part}").trim_start_matches('/')).unwrap_or_else(|_| path.join(part))
        })
    }

    /// The whole object, or None where there is none.
    pub async fn read(&self, relative: &str) -> anyhow::Result<Option<bytes::Bytes>> {
        let path = self.child(relative);
        match &self.place {
            Place::Local(dir) => {
                let file = below(dir, relative);
                match tokio::fs::read(&file).await {
                    Ok(bytes) => Ok(Some(bytes.into())),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
                }
            }
            Place::S3(bucket) => match s3::again(|| async { self.store.get(&path).await?.bytes().await }).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e @ object_store::Error::NotFound { .. }) if !Bucket::is_missing_bucket(&e) => Ok(None),
                Err(e) => Err(bucket.explain(&format!("reading {path}"), &e)),
            },
        }
    }

    /// Bytes `range` of an object that is there and that long.
    ///
    /// # Errors
    /// It is missing, shorter, or cannot be read.
    pub async fn read_range(&self, relative: &str, range: std::ops::Range<u64>) -> anyhow::Result<bytes::Bytes> {
        let length = range.end.saturating_sub(range.start);
        match &self.place {
            Place::Local(dir) => {
                let file = below(dir, relative);
                blocking(move || {
                    let mut bytes = vec![0; usize::try_from(length)?];
                    let read = std::fs::File::open(&file)
                        .and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, range.start));
                    read.with_context(|| format!("cannot read {}", file.display()))?;
                    Ok(bytes.into())
                })
                .await
            }
            Place::S3(bucket) => {
                let path = self.child(relative);
                let read = s3::again(|| self.store.get_range(&path, range.clone())).await;
                let bytes = read.map_err(|e| bucket.explain(&format!("reading {path}"), &e))?;
                if bytes.len() as u64 != length {
                    bail!("{}/{relative} ends before byte {}", self.shown, range.end);
                }
                Ok(bytes)
            }
        }
    }

    /// Whole-object write that readers see complete or not at all.
    pub async fn write(&self, relative: &str, bytes: bytes::Bytes) -> anyhow::Result<()> {
        match &self.place {
            Place::Local(dir) => {
                let file = below(dir, relative);
                blocking(move || {
                    let mut temp = TempFile::create(&file)?;
                    temp.write_all(&bytes).map_err(|e| io_error("write", &file, e))?;
                    temp.publish().map(drop)
                })
                .await
            }
            Place::S3(bucket) => {
                let path = self.child(relative);
                let put = self.store.put(&path, bytes.into()).await;
                put.map(drop).map_err(|e| bucket.explain(&format!("writing {path}"), &e))
            }
        }
    }

    /// All objects below this location, sorted by path. A directory that does not exist has none.
    pub async fn list(&self) -> anyhow::Result<Vec<ObjectMeta>> {
        if let Place::Local(dir) = &self.place
            && !tokio::fs::try_exists(dir).await.unwrap_or(true)
        {
            return Ok(Vec::new());
        }
        let listed = s3::again(|| self.store.list(Some(&self.prefix)).try_collect::<Vec<_>>()).await;
        let mut found = listed.map_err(|e| self.explain("listing files", &e))?;
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Deletes one object; it is no error if there is none.
    pub async fn delete(&self, relative: &str) -> anyhow::Result<()> {
        match &self.place {
            Place::Local(dir) => {
                let file = below(dir, relative);
                match tokio::fs::remove_file(&file).await {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        Err(e).with_context(|| format!("cannot delete {}", file.display()))
                    }
                    _ => Ok(()),
                }
            }
            Place::S3(_) => {
                let path = self.child(relative);
                match s3::again(|| self.store.delete(&path)).await {
                    Err(e) if !matches!(e, object_store::Error::NotFound { .. }) => {
                        Err(self.explain(&format!("deleting {path}"), &e))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The local directory, if it is one.
    pub fn local(&self) -> Option<PathBuf> {
        match &self.place {
            Place::Local(dir) => Some(dir.clone()),
            Place::S3(_) => None,
        }
    }

    /// Expands a glob or a directory into its files, sorted by name. A pattern that matches nothing is an error that names it.
    /// Each result is the location of the file itself (it is shown as the pattern was given) with its size and version.
    pub async fn expand(pattern: &str) -> anyhow::Result<Vec<(Self, ObjectMeta)>> {
        super::glob::expand(pattern).await
    }

    /// Size and version of the file that this location is, or None.
    pub async fn head(&self) -> anyhow::Result<Option<ObjectMeta>> {
        match s3::again(|| self.store.head(&self.prefix)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(e @ object_store::Error::NotFound { .. }) if !Bucket::is_missing_bucket(&e) => Ok(None),
            Err(e) => Err(self.explain("looking for the file", &e)),
        }
    }

    /// A clear message for a store's error.
    pub(super) fn explain(&self, doing: &str, error: &object_store::Error) -> anyhow::Error {
        match &self.place {
            Place::Local(dir) => anyhow!("{}: {doing} failed: {error}", dir.display()),
            Place::S3(bucket) => bucket.explain(doing, error),
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

fn segments(relative: &str) -> impl Iterator<Item = &str> {
    relative.split('/').filter(|part| !part.is_empty() && *part != ".")
}

/// `relative` below `dir`; a `..` never climbs.
fn below(dir: &Path, relative: &str) -> PathBuf {
    let mut path = dir.to_owned();
    path.extend(segments(relative).map(|part| if part == ".." { "%2E%2E" } else { part }));
    path
}

/// An absolute path without `.` and `..`, by text (symbolic links are not followed).
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Runs file work off the asynchronous threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| anyhow!("a file task ended early: {e}"))?
}

/// A clear message for an error on a local file; a full disk says what to do.
pub(super) fn io_error(doing: &str, path: &Path, error: std::io::Error) -> anyhow::Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let full = matches!(error.kind(), StorageFull | QuotaExceeded);
    let note = if full { "; free some space and run the same command again, finished work is kept" } else { "" };
    anyhow!("cannot {doing} {}: {error}{note}", path.display())
}

/// Suffix of files that are being written; `.gitignore`, sweeps and readers know it.
pub(super) const TEMPORARY: &str = ".tmp";
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A local file under a temporary name beside its final one. Dropped before [`TempFile::publish`], it is removed.
#[derive(Debug)]
pub(super) struct TempFile {
    file: Option<std::io::BufWriter<std::fs::File>>,
    temporary: PathBuf,
    target: PathBuf,
}

impl TempFile {
    pub(super) fn create(target: &Path) -> anyhow::Result<Self> {
        let dir = target.parent().context("a file has a directory")?;
        std::fs::create_dir_all(dir).map_err(|e| io_error("create", dir, e))?;
        let name = target.file_name().context("a file has a name")?.to_string_lossy();
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!(".{name}.{}-{n}{TEMPORARY}", std::process::id()));
        let file = std::fs::File::create(&temporary).map_err(|e| io_error("create", target, e))?;
        let file = Some(std::io::BufWriter::with_capacity(1 << 18, file));
        Ok(Self { file, temporary, target: target.to_owned() })
    }

    /// Gives the file its final name if there is none of that name; returns whether it was so. Not synced.
    pub(super) fn publish_new(mut self) -> anyhow::Result<bool> {
        let io = |e| io_error("write", &self.target, e);
        self.file.take().context("the file is open until published")?.flush().map_err(io)?;
        match std::fs::hard_link(&self.temporary, &self.target) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            // Some file systems have no hard links.
            Err(_) if self.target.exists() => Ok(false),
            Err(_) => std::fs::rename(&self.temporary, &self.target).map(|()| true).map_err(io),
        }
    }

    /// Syncs the file, gives it its final name and returns its size.
    pub(super) fn publish(mut self) -> anyhow::Result<u64> {
        let io = |e| io_error("write", &self.target, e);
        let file = self.file.take().context("the file is open until published")?;
        let file = file.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        std::fs::rename(&self.temporary, &self.target).map_err(io)?;
        if let Some(dir) = self.target.parent()
            && let Ok(dir) = std::fs::File::open(dir)
        {
            // Makes the new name itself durable. Not every file system lets directories be synced.
            let _ = dir.sync_all();
        }
        Ok(bytes)
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?.flush()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After publishing the name is gone already.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
