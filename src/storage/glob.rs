//! Patterns of files: `dir/*.jsonl.zst`, `s3://bucket/a/**/part-?.parquet`, `shard_{0,1}.jsonl`, a directory, a single file.
//! Files come sorted by name, so that the order of rows does not depend on the machine. Hidden names (`.x`, `_x`) below a
//! directory or wildcard are left out: they are manifests, locks and unfinished files.

use super::location::{Location, blocking};
use anyhow::{Context, bail};
use glob::{MatchOptions, Pattern};
use object_store::ObjectMeta;
use std::path::{Path, PathBuf};

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// See [`Location::expand`].
pub(super) async fn expand(pattern: &str) -> anyhow::Result<Vec<(Location, ObjectMeta)>> {
    let mut found = Vec::new();
    for one in braces(pattern)? {
        let more =
            if one.starts_with("s3://") || one.starts_with("s3a://") { on_s3(&one).await } else { local(&one).await };
        found.extend(more.with_context(|| format!("cannot read `{pattern}`"))?);
    }
    found.sort_by(|a, b| a.1.location.cmp(&b.1.location));
    found.dedup_by(|a, b| a.1.location == b.1.location);
    if found.is_empty() {
        let place = std::env::current_dir().ok().filter(|_| !pattern.contains("://") && !pattern.starts_with('/'));
        let place = place.map(|d| format!(" (looked in {})", d.display())).unwrap_or_default();
        bail!("no file matches `{pattern}`{place}; check the path");
    }
    Ok(found)
}

fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// `a{b,c}d` → `abd`, `acd`. An existing file of that very name wins.
fn braces(pattern: &str) -> anyhow::Result<Vec<String>> {
    if Path::new(pattern).exists() {
        return Ok(vec![pattern.to_owned()]);
    }
    let Some(open) = pattern.find('{') else { return Ok(vec![pattern.to_owned()]) };
    let Some(close) = pattern[open..].find('}') else { bail!("`{pattern}`: a `{{` without a `}}`") };
    let (head, inner, tail) = (&pattern[..open], &pattern[open + 1..open + close], &pattern[open + close + 1..]);
    let mut out = Vec::new();
    for choice in inner.split(',') {
        out.extend(braces(&format!("{head}{choice}{tail}"))?);
    }
    Ok(out)
}

async fn local(pattern: &str) -> anyhow::Result<Vec<(Location, ObjectMeta)>> {
    let pattern = pattern.to_owned();
    let files = blocking(move || local_files(&pattern)).await?;
    let mut out = Vec::with_capacity(files.len());
    for (path, size, modified) in files {
        let shown = path.to_str().with_context(|| format!("{}: file names must be UTF-8", path.display()))?.to_owned();
        let location = Location::from_local(path, &shown)?;
        let object = location.prefix.clone();
        out.push((
            location,
            ObjectMeta { location: object, last_modified: modified.into(), size, e_tag: None, version: None },
        ));
    }
    Ok(out)
}

fn local_files(pattern: &str) -> anyhow::Result<Vec<(PathBuf, u64, std::time::SystemTime)>> {
    let from_url = pattern.starts_with("file://").then(|| url::Url::parse(pattern).ok()?.to_file_path().ok()).flatten();
    let path = from_url.unwrap_or_else(|| PathBuf::from(pattern));
    let pattern = path.to_str().context("a pattern is UTF-8")?;
    let mut paths = Vec::new();
    if path.is_dir() {
        walk(&path, &mut paths)?;
    } else if path.exists() || !has_wildcard(pattern) {
        paths.extend(path.exists().then(|| path.clone()));
    } else {
        for hit in glob::glob_with(pattern, OPTIONS).with_context(|| format!("`{pattern}` is not a valid pattern"))? {
            let hit = hit?;
            let hidden = hit.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"_"));
            paths.extend((hit.is_file() && !hidden).then_some(hit));
        }
    }
    let stat = |p: PathBuf| {
        let meta = std::fs::metadata(&p).with_context(|| format!("cannot read {}", p.display()))?;
        Ok((p, meta.len(), meta.modified()?))
    };
    paths.into_iter().map(stat).collect()
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read the directory {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| matches!(n.as_encoded_bytes().first(), Some(b'.' | b'_')));
        match path.is_dir() {
            _ if hidden => {}
            true => walk(&path, out)?,
            false => out.push(path),
        }
    }
    Ok(())
}

async fn on_s3(pattern: &str) -> anyhow::Result<Vec<(Location, ObjectMeta)>> {
    let (scheme, rest) = pattern.split_once("://").context("an S3 pattern has a scheme")?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if !has_wildcard(key) {
        let whole = Location::parse(pattern)?;
        if !key.is_empty()
            && !key.ends_with('/')
            && let Some(meta) = whole.head().await?
        {
            return Ok(vec![(whole, meta)]);
        }
        let base = whole.prefix.as_ref().len();
        let visible = |key: &str| key[base..].split('/').all(|part| !part.starts_with(['.', '_']));
        return below(&whole, visible).await;
    }
    let fixed: Vec<&str> = key.split('/').take_while(|part| !has_wildcard(part)).collect();
    let top = Location::parse(&format!("{scheme}://{bucket}/{}", fixed.join("/")))?;
    let matcher = Pattern::new(key).with_context(|| format!("`{pattern}` is not a valid pattern"))?;
    let visible = |key: &str| {
        matcher.matches_with(key, OPTIONS) && !key.rsplit('/').next().is_some_and(|name| name.starts_with('_'))
    };
    below(&top, visible).await
}

async fn below(top: &Location, keep: impl Fn(&str) -> bool) -> anyhow::Result<Vec<(Location, ObjectMeta)>> {
    let listed = top.list().await?;
    let kept = listed.into_iter().filter(|meta| keep(meta.location.as_ref()));
    Ok(kept.map(|meta| (top.sibling(&meta.location), meta)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_multiply() {
        let out = braces("s3://b/{x,y}-{1,2}").expect("valid");
        assert_eq!(out, ["s3://b/x-1", "s3://b/x-2", "s3://b/y-1", "s3://b/y-2"]);
        assert!(braces("a{b").is_err());
    }
}
