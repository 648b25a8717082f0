//! Models below an s3 URL, copied to a local cache directory once per version of each object.

use super::files::{self, INDEX, Need, Weights};
use crate::storage::location::Location;
use anyhow::{Context, bail};
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt, path::Path as ObjectPath};
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;

/// `$REPRO_CACHE`, else `$XDG_CACHE_HOME/repro`, else `~/.cache/repro`.
pub(super) fn cache_dir() -> anyhow::Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let default =
        || Some(variable("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("repro"));
    variable("REPRO_CACHE")
        .or_else(default)
        .context("neither REPRO_CACHE nor HOME is set: no place to keep downloaded models")
}

/// Copies what is needed below `url` (or the one object it names) and returns the local directory (or file). The bucket is always
/// asked, because a pipeline may have made the model anew; objects whose version is known are not copied again.
pub(super) async fn fetch(url: &str, need: Need, cache: &Path) -> anyhow::Result<PathBuf> {
    let location = Location::parse(url)?;
    let objects = location.list().await.with_context(|| format!("{url}: cannot list"))?;
    if objects.is_empty() {
        let object = location.store.head(&location.prefix).await.with_context(|| format!("{url}: no such model"))?;
        let dir = cache.join("models").join(key(url, std::slice::from_ref(&object)));
        return copy(&location, &object, &dir).await.with_context(|| url.to_owned());
    }
    fetch_dir(&location, &objects, need, &cache.join("models").join(key(url, &objects)))
        .await
        .with_context(|| url.to_owned())
}

async fn fetch_dir(location: &Location, objects: &[ObjectMeta], need: Need, dir: &Path) -> anyhow::Result<PathBuf> {
    let names: Vec<String> =
        objects.iter().filter_map(|object| name_below(&location.prefix, &object.location)).collect();
    let weights = if need == Need::Model { files::weights(&names)? } else { Weights::Files(Vec::new()) };
    for name in files::small(&names, need) {
        one(location, objects, name, dir).await?;
    }
    let shards = match weights {
        Weights::Files(files) => files,
        Weights::Indexed => files::shards(&one(location, objects, INDEX, dir).await?)?,
    };
    for shard in &shards {
        one(location, objects, shard, dir).await?;
    }
    if !dir.is_dir() {
        bail!("holds nothing that a model needs");
    }
    Ok(dir.to_path_buf())
}

async fn one(location: &Location, objects: &[ObjectMeta], name: &str, dir: &Path) -> anyhow::Result<PathBuf> {
    let is_it = |object: &&ObjectMeta| name_below(&location.prefix, &object.location).as_deref() == Some(name);
    let object = objects.iter().find(is_it).with_context(|| format!("{name} is listed in {INDEX} and missing"))?;
    copy(location, object, dir).await
}

/// Streams an object to a file; the file appears when it is whole.
async fn copy(location: &Location, object: &ObjectMeta, dir: &Path) -> anyhow::Result<PathBuf> {
    let name = object.location.filename().context("an object without a name")?;
    let path = dir.join(name);
    if std::fs::metadata(&path).is_ok_and(|data| data.len() == object.size) {
        return Ok(path);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("{}: cannot make this directory", dir.display()))?;
    let part = tempfile::Builder::new()
        .prefix(".part-")
        .tempfile_in(dir)
        .with_context(|| format!("{}: cannot write", dir.display()))?;
    let mut file = tokio::fs::File::from_std(part.reopen().context("cannot open the temporary file")?);
    let mut bytes =
        location.store.get(&object.location).await.with_context(|| format!("{name}: cannot read"))?.into_stream();
    let mut length = 0;
    while let Some(piece) = bytes.try_next().await.with_context(|| format!("{name}: cannot read"))? {
        length += piece.len() as u64;
        file.write_all(&piece).await.with_context(|| format!("{}: cannot write", dir.display()))?;
    }
    file.sync_all().await.with_context(|| format!("{}: cannot write", dir.display()))?;
    if length != object.size {
        bail!("{name}: {length} of {} bytes came", object.size);
    }
    part.persist(&path).with_context(|| format!("{}: cannot write", path.display()))?;
    Ok(path)
}

fn name_below(prefix: &ObjectPath, object: &ObjectPath) -> Option<String> {
    let parts: Vec<_> = object.prefix_match(prefix)?.collect();
    Some(parts.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/"))
}

/// A directory name for these versions of these objects.
fn key(url: &str, objects: &[ObjectMeta]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(url.as_bytes());
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"] {
        hasher.update(std::env::var(variable).unwrap_or_default().as_bytes());
        hasher.update(b"\n");
    }
    let mut versions: Vec<String> = objects
        .iter()
        .map(|object| format!("{} {} {:?} {}\n", object.location, object.size, object.e_tag, object.last_modified))
        .collect();
    versions.sort();
    versions.iter().for_each(|version| {
        hasher.update(version.as_bytes());
    });
    hasher.finalize().to_hex()[..32].to_owned()
}
