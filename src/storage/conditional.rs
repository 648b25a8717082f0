//! Objects that are written only if they are what they were when last seen: of two writers one wins. Leases are made of this.
//!
//! S3 compares entity tags (`If-None-Match`, `If-Match`). A local directory is locked for the moment of a comparison; where a file system
//! has no locks, making a new object is still one step, replacing one is not.

use super::{
    location::{Location, TempFile, blocking, io_error},
    s3::again,
};
use anyhow::Context;
use bytes::Bytes;
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, PutResult, UpdateVersion};
use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// What an object was when it was read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    /// Of a local file.
    Content(Bytes),
    /// Of an object on S3.
    Tag(UpdateVersion),
}

impl Location {
    /// The whole object and its version, or None where there is none.
    pub(super) async fn read_version(&self, name: &str) -> anyhow::Result<Option<(Bytes, Version)>> {
        if self.local().is_some() {
            return Ok(self.read(name).await?.map(|bytes| (bytes.clone(), Version::Content(bytes))));
        }
        let path = self.child(name);
        let read = again(|| async {
            let got = self.store.get(&path).await?;
            let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
            Ok((got.bytes().await?, Version::Tag(version)))
        });
        match read.await {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(&format!("reading {path}"), &error)),
        }
    }

    /// Writes an object where there is none. None: there is one.
    pub(super) async fn create(&self, name: &str, bytes: Bytes) -> anyhow::Result<Option<Version>> {
        let Some(dir) = self.local() else { return self.put_if(name, bytes, PutMode::Create).await };
        let file = dir.join(name);
        blocking(move || {
            // Who gives a lease back removes a directory that is empty then, perhaps just now.
            let mut temp = TempFile::create(&file).or_else(|_| TempFile::create(&file))?;
            temp.write_all(&bytes).map_err(|e| io_error("write", &file, e))?;
            let _guard = guard(&dir);
            Ok(temp.publish_new()?.then_some(Version::Content(bytes)))
        })
        .await
    }

    /// Replaces the object that was `was`. None: it is another by now, or gone.
    pub(super) async fn replace(&self, name: &str, bytes: Bytes, was: &Version) -> anyhow::Result<Option<Version>> {
        match (self.local(), was) {
            (Some(dir), Version::Content(was)) => {
                let (file, was) = (dir.join(name), was.clone());
                blocking(move || {
                    let mut temp = TempFile::create(&file)?;
                    temp.write_all(&bytes).map_err(|e| io_error("write", &file, e))?;
                    let _guard = guard(&dir);
                    if !holds(&file, &was)? {
                        return Ok(None);
                    }
                    temp.publish()?;
                    Ok(Some(Version::Content(bytes)))
                })
                .await
            }
            (None, Version::Tag(tag)) => self.put_if(name, bytes, PutMode::Update(tag.clone())).await,
            _ => anyhow::bail!("{self}: a version of {name} from another kind of store"),
        }
    }

    /// Deletes the object if it is still `was`. (S3: compared just before; a deletion cannot be conditional there.)
    pub(super) async fn delete_version(&self, name: &str, was: &Version) -> anyhow::Result<()> {
        match (self.local(), was) {
            (Some(dir), Version::Content(was)) => {
                let was = was.clone();
                let name = name.to_owned();
                blocking(move || delete_local(&dir, &name, &was)).await
            }
            _ => match self.read_version(name).await? {
                Some((_, now)) if now == *was => self.delete(name).await,
                _ => Ok(()),
            },
        }
    }

    async fn put_if(&self, name: &str, bytes: Bytes, mode: PutMode) -> anyhow::Result<Option<Version>> {
        let path = self.child(name);
        let put = again(|| self.store.put_opts(&path, bytes.clone().into(), PutOptions::from(mode.clone())));
        let tag = |made: PutResult| Some(Version::Tag(UpdateVersion { e_tag: made.e_tag, version: made.version }));
        match put.await {
            Ok(made) => Ok(tag(made)),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }) => Ok(None),
            // A server without conditional writes: what is there has just been read.
            Err(error) if unsupported(&error) => {
                let put = self.store.put(&path, bytes.into()).await;
                put.map(tag).map_err(|e| self.explain(&format!("writing {path}"), &e))
            }
            Err(error) => Err(self.explain(&format!("writing {path}"), &error)),
        }
    }
}

fn unsupported(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || error.to_string().contains("NotImplemented")
}

/// Deletes a local file if it still holds `was`.
pub(super) fn delete_local(dir: &Path, name: &str, was: &[u8]) -> anyhow::Result<()> {
    let file = dir.join(name);
    let _guard = guard(dir);
    if holds(&file, was)? {
        std::fs::remove_file(&file).map_err(|e| io_error("delete", &file, e))?;
    }
    Ok(())
}

fn holds(file: &PathBuf, was: &[u8]) -> anyhow::Result<bool> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(bytes == was),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Keeps others of this machine out of the directory's comparisons, until dropped.
fn guard(dir: &Path) -> Option<File> {
    let dir = File::open(dir).ok()?;
    // Some network file systems have no locks.
    dir.lock().ok()?;
    Some(dir)
}
