//! Reading one file of any size with flat memory, local or on S3: as a stream from its start, or in ranges (for Parquet).
//! Blocking calls, to be made on blocking threads of a tokio runtime. Does not know what the bytes mean.
//!
//! From S3, bytes come in requests of [`CHUNK`] bytes, each with its own time limit and retries, so that a server that stalls
//! or fails now and then costs one chunk and not the file. Every request insists on the version that was listed.

use super::{location::Location, s3};
use bytes::Bytes;
use object_store::{GetOptions, ObjectMeta, ObjectStore};
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};
use std::{
    collections::VecDeque,
    io::{Error, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tokio::{runtime::Handle, task::JoinHandle};

/// Bytes of one request to S3.
const CHUNK: u64 = 8 << 20;
/// Chunks that a Parquet file on S3 keeps; a page spans at most a few, and a row group's columns are read in turns.
const KEPT_CHUNKS: usize = 8;

/// A file as it was listed.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Where the file is.
    pub location: Location,
    /// Its size and version.
    pub meta: ObjectMeta,
    trouble: Arc<OnceLock<String>>,
}

impl SourceFile {
    /// A file with the version to be read.
    pub fn new(location: Location, meta: ObjectMeta) -> Self {
        Self { location, meta, trouble: Arc::default() }
    }

    /// Why its bytes could not be had, if that happened. Tells a disk or server in trouble from a file with bad content.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.get().map(String::as_str)
    }

    fn note(&self, error: Error) -> Error {
        let _ = self.trouble.set(error.to_string());
        error
    }

    /// Name shown to users and kept as `source_uri`.
    pub fn uri(&self) -> String {
        self.location.to_string()
    }

    /// What names this version of the file: size and time of change locally, size and entity tag on S3. Content is not hashed:
    /// it would take a full read of the input before every run.
    pub fn fingerprint(&self) -> String {
        match &self.meta.e_tag {
            Some(tag) => format!("{}-{}", self.meta.size, tag.trim_matches('"')),
            None => {
                format!("{}-{:x}", self.meta.size, self.meta.last_modified.timestamp_nanos_opt().unwrap_or_default())
            }
        }
    }

    /// The bytes from the start. Call on a thread of a tokio runtime.
    pub fn open(&self) -> std::io::Result<Box<dyn Read + Send>> {
        match self.location.local() {
            Some(path) => Ok(Box::new(self.open_local(path)?)),
            None => Ok(Box::new(RemoteStream {
                remote: self.remote(),
                next: VecDeque::new(),
                requested: 0,
                now: Bytes::new(),
            })),
        }
    }

    /// The bytes at random. Call on a thread of a tokio runtime.
    pub fn ranges(&self) -> std::io::Result<Ranges> {
        let source = match self.location.local() {
            Some(path) => Source::Local(self.open_local(path)?),
            None => Source::Remote(self.remote(), Mutex::default()),
        };
        Ok(Ranges { source: Arc::new(source), size: self.meta.size })
    }

    fn open_local(&self, path: PathBuf) -> std::io::Result<LocalFile> {
        let opened = std::fs::File::open(&path);
        let file =
            opened.map_err(|e| self.note(Error::new(e.kind(), format!("cannot read {}: {e}", path.display()))))?;
        Ok(LocalFile { file, source: self.clone() })
    }

    fn remote(&self) -> Remote {
        Remote { file: self.clone(), runtime: Handle::current() }
    }
}

#[derive(Debug)]
struct LocalFile {
    file: std::fs::File,
    source: SourceFile,
}

impl LocalFile {
    fn failed(&self, error: Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::Interrupted => error,
            kind => self.source.note(Error::new(kind, format!("cannot read {}: {error}", self.source.location))),
        }
    }
}

impl Read for LocalFile {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(out).map_err(|e| self.failed(e))
    }
}

#[derive(Debug, Clone)]
struct Remote {
    file: SourceFile,
    runtime: Handle,
}

impl Remote {
    /// Chunk `index` of the file; empty past its end.
    async fn chunk(self, index: u64) -> std::io::Result<Bytes> {
        let size = self.file.meta.size;
        let range = (index * CHUNK).min(size)..((index + 1) * CHUNK).min(size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let location = &self.file.location;
        let get = || async {
            let options = GetOptions {
                if_match: self.file.meta.e_tag.clone(),
                range: Some(range.clone().into()),
                ..Default::default()
            };
            location.store.get_opts(&location.prefix, options).await?.bytes().await
        };
        let message = match s3::again(get).await {
            Ok(bytes) if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
            Ok(bytes) => format!("{location}: asked for bytes {range:?}, got {}", bytes.len()),
            Err(object_store::Error::Precondition { .. }) => {
                format!("{location}: the file was changed while it was read; run again")
            }
            Err(e) => format!("{:#}", location.explain(&format!("reading {}", location.prefix), &e)),
        };
        Err(self.file.note(Error::other(message)))
    }
}

/// Sequential reading with the next chunk on its way.
struct RemoteStream {
    remote: Remote,
    next: VecDeque<JoinHandle<std::io::Result<Bytes>>>,
    requested: u64,
    now: Bytes,
}

impl Read for RemoteStream {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.now.is_empty() {
            while self.next.len() < 2 && self.requested * CHUNK < self.remote.file.meta.size {
                self.next.push_back(self.remote.runtime.spawn(self.remote.clone().chunk(self.requested)));
                self.requested += 1;
            }
            let Some(task) = self.next.pop_front() else { return Ok(0) };
            self.now = self.remote.runtime.block_on(task).map_err(Error::other)??;
        }
        let n = out.len().min(self.now.len());
        out[..n].copy_from_slice(&self.now.split_to(n));
        Ok(n)
    }
}

impl Drop for RemoteStream {
    fn drop(&mut self) {
        self.next.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Debug)]
enum Source {
    Local(LocalFile),
    Remote(Remote, Mutex<VecDeque<(u64, Bytes)>>),
}

/// Random access to a file. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Ranges {
    source: Arc<Source>,
    size: u64,
}

impl Ranges {
    fn read_at(&self, out: &mut [u8], at: u64) -> std::io::Result<usize> {
        match &*self.source {
            Source::Local(local) => local.file.read_at(out, at).map_err(|e| local.failed(e)),
            Source::Remote(remote, kept) => {
                let chunk = cached_chunk(remote, kept, at / CHUNK)?;
                let rest = chunk.get((at % CHUNK) as usize..).unwrap_or_default();
                let n = out.len().min(rest.len());
                out[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            }
        }
    }
}

fn cached_chunk(remote: &Remote, kept: &Mutex<VecDeque<(u64, Bytes)>>, index: u64) -> std::io::Result<Bytes> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, bytes)) = kept.iter().find(|(i, _)| *i == index) {
        return Ok(bytes.clone());
    }
    let bytes = remote.runtime.block_on(remote.clone().chunk(index))?;
    if kept.len() == KEPT_CHUNKS {
        kept.pop_front();
    }
    kept.push_back((index, bytes.clone()));
    Ok(bytes)
}

/// Reads on from a position.
#[derive(Debug)]
pub struct RangeReader {
    ranges: Ranges,
    at: u64,
}

impl Read for RangeReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.ranges.read_at(out, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Length for Ranges {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Ranges {
    type T = std::io::BufReader<RangeReader>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(std::io::BufReader::with_capacity(4096, RangeReader { ranges: self.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if start.saturating_add(length as u64) > self.size {
            return Err(ParquetError::EOF(format!(
                "bytes {start} + {length} lie past the end of the file ({} bytes)",
                self.size
            )));
        }
        let mut out = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.read_at(&mut out[filled..], start + filled as u64)? {
                0 => return Err(ParquetError::EOF(format!("the file ends at byte {}", start + filled as u64))),
                n => filled += n,
            }
        }
        Ok(out.into())
    }
}
