//! Models of a Hugging Face hub, kept in the cache that its own libraries use (`$HF_HOME/hub`).
//!
//! All files come from one commit, weights last; the branch is pointed at the commit when everything is there.

use super::{
    RepoPath,
    files::{self, INDEX, Need, Weights},
};
use anyhow::{Context, bail};
use hf_hub::{
    Cache, Repo, RepoType,
    api::tokio::{Api, ApiBuilder, ApiError, ApiRepo, Progress},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Where the hub is and how to speak to it.
#[derive(Clone)]
pub struct Settings {
    /// `https://huggingface.co` or a mirror.
    pub endpoint: String,
    /// Sent to the endpoint, never shown.
    pub token: Option<String>,
    /// Directory of `models--org--name`.
    pub cache: PathBuf,
    /// Use the cache only.
    pub offline: bool,
    /// A download from which nothing came for this long is given up and tried again.
    pub patience: Duration,
    /// Wait before the second attempt; doubles each time.
    pub pause: Duration,
}

/// Attempts for one request before it counts as failed.
const ATTEMPTS: u32 = 5;
/// Attempts while another process holds the file's lock; each waits some seconds inside.
const LOCK_ATTEMPTS: u32 = 1000;

impl Settings {
    /// From HF_ENDPOINT, HF_TOKEN (else the token file), HF_HUB_CACHE or HF_HOME, HF_HUB_OFFLINE.
    pub fn from_env() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = match variable("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => {
                let base = variable("XDG_CACHE_HOME")
                    .map(PathBuf::from)
                    .or_else(|| Some(std::env::home_dir()?.join(".cache")));
                base.context("neither HF_HOME nor HOME is set: no place to keep downloaded models")?.join("huggingface")
            }
        };
        let cache = variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(home.join("token")).ok());
        Ok(Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            cache,
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no")),
            patience: Duration::from_secs(60),
            pause: Duration::from_secs(1),
        })
    }
}

/// A client of one hub.
pub struct HuggingFace {
    settings: Settings,
    api: Api,
}

impl HuggingFace {
    /// Makes the client; opens no connection.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        let api = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.trim_end_matches('/').to_owned())
            .with_token(settings.token.clone())
            .with_progress(false)
            .with_user_agent("repro", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| anyhow::anyhow!("cannot make an HTTP client: {error}"))?;
        Ok(Self { settings, api })
    }

    /// The local directory of a repository, or the file named in `wanted`.
    pub async fn fetch(&self, wanted: &RepoPath, need: Need) -> anyhow::Result<PathBuf> {
        if let Some(found) = self.cached(wanted, need) {
            tracing::debug!(model = wanted.id, path = %found.display(), "model found in the cache");
            return Ok(found);
        }
        let shown = format!("hf://{}@{}", wanted.id, wanted.revision);
        if self.settings.offline {
            bail!("{shown}: not whole in the cache {} and HF_HUB_OFFLINE is set", self.settings.cache.display());
        }
        self.download(wanted, need).await.with_context(|| shown)
    }

    /// What the cache holds, if that is all that is needed.
    fn cached(&self, wanted: &RepoPath, need: Need) -> Option<PathBuf> {
        let folder = self.settings.cache.join(repo(wanted, &wanted.revision).folder_name());
        let commit = std::fs::read_to_string(folder.join("refs").join(&wanted.revision));
        let commit = commit.map_or_else(|_| wanted.revision.clone(), |text| text.trim().to_owned());
        if !is_commit(&commit) {
            return None;
        }
        let dir = folder.join("snapshots").join(commit);
        match &wanted.file {
            Some(file) => Some(dir.join(file)).filter(|path| path.is_file()),
            None => files::is_whole(&dir, need).then_some(dir),
        }
    }

    async fn download(&self, wanted: &RepoPath, need: Need) -> anyhow::Result<PathBuf> {
        let branch = self.api.repo(repo(wanted, &wanted.revision));
        let info = self.attempt("the list of files", || async { Ok(branch.info().await?) }).await?;
        if !is_commit(&info.sha) {
            bail!("{} answers with the commit {:?}, which is none", self.settings.endpoint, info.sha);
        }
        let names: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let fetch = Fetch { hub: self, repo: self.api.repo(repo(wanted, &info.sha)), commit: repo(wanted, &info.sha) };
        let path = match &wanted.file {
            Some(file) if !names.contains(file) => bail!("has no file {file}; it has {}", listed(&names)),
            Some(file) => fetch.file(file).await?,
            None => fetch.all(&names, need).await?,
        };
        Cache::new(self.settings.cache.clone())
            .repo(repo(wanted, &wanted.revision))
            .create_ref(&info.sha)
            .with_context(|| format!("cannot write to the cache {}", self.settings.cache.display()))?;
        Ok(path)
    }

    /// Runs a request again while it fails in a way that may pass.
    async fn attempt<T, F>(&self, what: &str, request: impl Fn() -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let mut tries = 0;
        let mut pause = self.settings.pause;
        loop {
            let trouble = match tokio::time::timeout(
                self.settings.patience.max(Duration::from_secs(1)) * 10_000,
                request(),
            )
            .await
            {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::Stalled(self.settings.patience),
            };
            tries += 1;
            let limit = if trouble.is_lock() { LOCK_ATTEMPTS } else { ATTEMPTS };
            if !trouble.may_pass() || tries >= limit {
                return Err(self.explain(&trouble, tries).context(what.to_owned()));
            }
            tracing::warn!("{what}: {}; trying again", trouble.short());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    /// What went wrong and what to do. Never shows the token.
    fn explain(&self, trouble: &Trouble, tries: u32) -> anyhow::Error {
        let endpoint = &self.settings.endpoint;
        match (trouble.status(), &self.settings.token) {
            (Some(401 | 403), None) => anyhow::anyhow!(
                "{endpoint} refuses without a token: the model is private, gated or does not exist; set HF_TOKEN to a token of an \
                 account that may read it"
            ),
            (Some(status @ (401 | 403)), Some(_)) => anyhow::anyhow!(
                "{endpoint} refuses the given token ({status}): it is wrong, or its account may not read this model (for a gated model \
                 accept its conditions on the web page first)"
            ),
            (Some(404), token) => {
                let hint = if token.is_some() { "" } else { "; a private model needs HF_TOKEN" };
                anyhow::anyhow!("{endpoint} has no such model or revision{hint}")
            }
            (Some(status), _) => {
                anyhow::anyhow!("{endpoint} answers with HTTP status {status}, after {tries} attempts")
            }
            (None, _) => anyhow::anyhow!(
                "{endpoint}: {} (attempts: {tries}). The cache {} holds no whole copy. Check the network, or HF_ENDPOINT",
                trouble.short(),
                self.settings.cache.display()
            ),
        }
    }
}

/// The downloads of one commit.
struct Fetch<'a> {
    hub: &'a HuggingFace,
    repo: ApiRepo,
    commit: Repo,
}

impl Fetch<'_> {
    /// Everything that is needed; returns the directory.
    async fn all(&self, names: &[String], need: Need) -> anyhow::Result<PathBuf> {
        let weights = if need == Need::Model { files::weights(names)? } else { Weights::Files(Vec::new()) };
        if !names.iter().any(|name| name == "tokenizer.json") && need == Need::Tokenizer {
            bail!("has no tokenizer.json; it has {}", listed(names));
        }
        let mut dir = None;
        for name in files::small(names, need) {
            dir = Some(self.file(name).await?);
        }
        let shards = match weights {
            Weights::Files(files) => files,
            Weights::Indexed => files::shards(&self.file(INDEX).await?)?,
        };
        for shard in &shards {
            if !names.contains(shard) {
                bail!("its index lists {shard}, and the repository has no such file");
            }
            dir = Some(self.file(shard).await?);
        }
        let file = dir.context("has nothing that a model needs")?;
        Ok(file.parent().map(Path::to_path_buf).unwrap_or(file))
    }

    async fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        let cache = Cache::new(self.hub.settings.cache.clone()).repo(self.commit.clone());
        let started = Instant::now();
        let get = || async {
            match cache.get(name) {
                Some(path) => Ok(path),
                None => watched(&self.repo, name, self.hub.settings.patience).await,
            }
        };
        let path = self.hub.attempt(name, get).await?;
        let bytes = std::fs::metadata(&path).map_or(0, |data| data.len());
        tracing::info!(file = name, bytes, seconds = started.elapsed().as_secs_f32(), "model file ready");
        Ok(path)
    }
}

/// Downloads a file; gives up when nothing has come for `patience`.
async fn watched(repo: &ApiRepo, name: &str, patience: Duration) -> Result<PathBuf, Trouble> {
    let last = Watch(Arc::new(Mutex::new(Instant::now())));
    let download = repo.download_with_progress(name, last.clone());
    tokio::pin!(download);
    loop {
        tokio::select! {
            result = &mut download => return Ok(result?),
            () = tokio::time::sleep(patience.min(Duration::from_secs(1))) => {
                if last.idle() >= patience {
                    return Err(Trouble::Stalled(patience));
                }
            }
        }
    }
}

/// When something last came.
#[derive(Clone)]
struct Watch(Arc<Mutex<Instant>>);

impl Watch {
    fn touch(&self) {
        *self.0.lock().expect("no holder panics") = Instant::now();
    }
    fn idle(&self) -> Duration {
        self.0.lock().expect("no holder panics").elapsed()
    }
}

impl Progress for Watch {
    async fn init(&mut self, size: usize, filename: &str) {
        self.touch();
        if size > 50_000_000 {
            tracing::info!(file = filename, bytes = size, "downloading");
        }
    }
    async fn update(&mut self, _size: usize) {
        self.touch();
    }
    async fn finish(&mut self) {
        self.touch();
    }
}

/// Why a request failed.
enum Trouble {
    Api(ApiError),
    Stalled(Duration),
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl Trouble {
    fn status(&self) -> Option<u16> {
        match self {
            Self::Api(ApiError::RequestError(error)) => error.status().map(|status| status.as_u16()),
            _ => None,
        }
    }

    fn is_lock(&self) -> bool {
        matches!(self, Self::Api(ApiError::LockAcquisition(_)))
    }

    /// Whether the same request may succeed later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Stalled(_) => true,
            Self::Api(ApiError::RequestError(_)) => {
                self.status().is_none_or(|status| status >= 500 || matches!(status, 408 | 429))
            }
            Self::Api(_) => self.is_lock(),
        }
    }

    /// The innermost cause, without the request's address.
    fn short(&self) -> String {
        match self {
            Self::Stalled(patience) => format!("nothing came for {} s", patience.as_secs_f32()),
            Self::Api(ApiError::LockAcquisition(_)) => "another process is downloading this file".to_owned(),
            Self::Api(error) => {
                let mut cause: &dyn std::error::Error = error;
                while let Some(inner) = cause.source() {
                    cause = inner;
                }
                cause.to_string()
            }
        }
    }
}

fn repo(wanted: &RepoPath, revision: &str) -> Repo {
    Repo::with_revision(wanted.id.clone(), RepoType::Model, revision.to_owned())
}

/// A commit's name becomes a directory's name.
fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn listed(names: &[String]) -> String {
    let more = if names.len() > 12 { format!(" and {} more", names.len() - 12) } else { String::new() };
    names.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", ") + &more
}
