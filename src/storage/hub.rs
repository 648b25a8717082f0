//! Where a model's files are: a local directory or file, `hf://org/name[@rev][/file]` (HF_ENDPOINT, HF_TOKEN and HF_HOME honoured), or
//! `s3://`. Knows file names, never what is in a model. Pickle files are never fetched.
//!
//! A model that is whole in the cache is used without asking the network, so that runs repeat and start fast; to follow a branch that
//! moved, name a revision or delete the cached one.

mod bucket;
mod files;
mod huggingface;

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

pub use files::Need;
pub use huggingface::{HuggingFace, Settings};

/// Resolves a model path to a local directory (or file, for fastText), downloading what is missing: config, safetensors, tokenizer and
/// chat template only. Never pickle.
pub async fn resolve(path: &str) -> anyhow::Result<PathBuf> {
    resolve_for(path, Need::Model).await
}

/// The same for a directory of which only the tokenizer is wanted: no weights are fetched.
pub async fn resolve_tokenizer(path: &str) -> anyhow::Result<PathBuf> {
    resolve_for(path, Need::Tokenizer).await
}

async fn resolve_for(path: &str, need: Need) -> anyhow::Result<PathBuf> {
    match Source::parse(path)? {
        Source::Local(local) => existing(path, local),
        Source::HuggingFace(wanted) => HuggingFace::new(Settings::from_env()?)?.fetch(&wanted, need).await,
        Source::Bucket(url) => bucket::fetch(&url, need, &bucket::cache_dir()?).await,
    }
}

/// A model path, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On this machine.
    Local(PathBuf),
    /// In a Hugging Face repository.
    HuggingFace(RepoPath),
    /// Below an s3 URL.
    Bucket(String),
}

/// `org/name`, its revision, and one file if one was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoPath {
    /// `org/name`
    pub id: String,
    /// branch, tag or commit
    pub revision: String,
    /// path inside the repository
    pub file: Option<String>,
}

impl Source {
    /// Reads a path as written in a pipeline.
    pub fn parse(path: &str) -> anyhow::Result<Self> {
        if let Some(rest) = path.strip_prefix("hf://") {
            return RepoPath::parse(rest).with_context(|| path.to_owned()).map(Self::HuggingFace);
        }
        if path.starts_with("s3://") {
            return Ok(Self::Bucket(path.to_owned()));
        }
        if let Some((scheme, rest)) = path.split_once("://") {
            if scheme == "file" {
                return Ok(Self::Local(PathBuf::from(rest)));
            }
            bail!("{path}: models come from a local path, hf://org/name or s3://bucket/prefix, not from {scheme}://");
        }
        Ok(Self::Local(PathBuf::from(path)))
    }
}

impl RepoPath {
    /// `org/name[@rev][/file]`; a slash in a revision is written `%2F`.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (org, rest) = text.split_once('/').context("write hf://org/name, with @revision and /file if wanted")?;
        let (name, file) = match rest.split_once('/') {
            Some((name, file)) => (name, Some(file.trim_end_matches('/'))),
            None => (rest, None),
        };
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let revision = revision.replace("%2F", "/").replace("%2f", "/");
        for part in [org, name].into_iter().chain(revision.split('/')) {
            check_part(part)?;
        }
        let file = file.filter(|file| !file.is_empty()).map(str::to_owned);
        for part in file.iter().flat_map(|file| file.split('/')) {
            check_part(part)?;
        }
        Ok(Self { id: format!("{org}/{name}"), revision, file })
    }
}

/// Parts of a path become parts of file names here.
fn check_part(part: &str) -> anyhow::Result<()> {
    let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if part.is_empty() || !plain || part.starts_with('.') {
        bail!("{part:?} cannot be part of a repository's name, revision or file");
    }
    Ok(())
}

fn existing(path: &str, local: PathBuf) -> anyhow::Result<PathBuf> {
    if local.exists() {
        return Ok(local);
    }
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() == 2 && parts.iter().all(|part| check_part(part).is_ok()) && Path::new(path).extension().is_none() {
        bail!("{path}: no such directory; for the Hugging Face repository of this name write hf://{path}");
    }
    bail!("{path}: no such file or directory")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn repo(path: &str) -> (String, String, Option<String>) {
        match Source::parse(path).unwrap() {
            Source::HuggingFace(repo) => (repo.id, repo.revision, repo.file),
            other => panic!("{other:?}"),
        }
    }

    fn fails(path: &str) -> String {
        format!("{:#}", Source::parse(path).unwrap_err())
    }

    #[test]
    fn reads_paths() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(repo("hf://a/b"), ("a/b".into(), "main".into(), None));
        assert_eq!(repo("hf://a/b@v1.0/"), ("a/b".into(), "v1.0".into(), None));
        assert_eq!(repo("hf://a/b@refs%2Fpr%2F1/x/y.bin"), ("a/b".into(), "refs/pr/1".into(), some("x/y.bin")));
        assert_eq!(Source::parse("s3://b/p").unwrap(), Source::Bucket("s3://b/p".into()));
        assert_eq!(Source::parse("file:///a/b").unwrap(), Source::Local("/a/b".into()));
        assert_eq!(Source::parse("assets/x").unwrap(), Source::Local("assets/x".into()));
    }

    #[test]
    fn refuses_what_could_leave_the_cache() {
        for path in [
            "hf://a",
            "hf://../b",
            "hf://a/..",
            "hf://a/b@..",
            "hf://a/b@x%2F..",
            "hf://a/b/../c",
            "hf://a/b//c",
            "hf://a/b@",
            "hf:///b",
        ] {
            assert!(fails(path).starts_with(path), "{path}");
        }
        assert!(fails("https://example.org/model").contains("not from https://"));
    }

    #[test]
    fn a_missing_directory_that_looks_like_a_repository_gets_a_hint() {
        assert!(
            existing("Qwen/Qwen3-4B", "Qwen/Qwen3-4B".into()).unwrap_err().to_string().contains("hf://Qwen/Qwen3-4B")
        );
        assert!(existing("assets/no.bin", "assets/no.bin".into()).unwrap_err().to_string().contains("no such file"));
    }
}
