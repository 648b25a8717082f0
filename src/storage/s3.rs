//! S3-compatible stores: one client a bucket, settings from the usual `AWS_*` variables, bounded retries, and errors that say
//! which bucket at which endpoint failed and what to do. Knows nothing of tables or local files. Credentials are never shown.

use anyhow::{Context, anyhow};
use object_store::{
    BackoffConfig, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
};
use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Longest time one request may take, body included. A part of an upload is 8 MiB, so this allows links down to 0.4 MB/s.
/// `AWS_TIMEOUT` (for example `60s`) overrides it.
const REQUEST_TIMEOUT: &str = "20s";
/// Longest time to connect. `AWS_CONNECT_TIMEOUT` overrides it.
const CONNECT_TIMEOUT: &str = "5s";
/// After this time since its first attempt a request is not retried any more.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// Attempts after the first one.
const RETRIES: usize = 8;

/// A bucket and how to reach it.
#[derive(Debug)]
pub struct Bucket {
    /// The client, shared by all locations of the bucket.
    pub store: Arc<dyn ObjectStore>,
    name: String,
    endpoint: Option<String>,
}

static BUCKETS: LazyLock<Mutex<HashMap<String, Arc<Bucket>>>> = LazyLock::new(Mutex::default);

/// The client of a bucket, made at first use from the environment.
pub(super) fn bucket(name: &str) -> anyhow::Result<Arc<Bucket>> {
    let mut buckets = BUCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = buckets.get(name) {
        return Ok(known.clone());
    }
    let made = Arc::new(connect(name, &[])?);
    buckets.insert(name.to_owned(), made.clone());
    Ok(made)
}

/// Sets how one bucket is reached, in place of (and over) the environment. Keys are those of `AWS_*` variables in lower case:
/// `endpoint_url`, `region`, `access_key_id`, `secret_access_key`, `timeout`, … For programs and tests that talk to several servers.
pub fn configure(name: &str, settings: &[(&str, &str)]) -> anyhow::Result<()> {
    let made = Arc::new(connect(name, settings)?);
    BUCKETS.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), made);
    Ok(())
}

fn connect(name: &str, settings: &[(&str, &str)]) -> anyhow::Result<Bucket> {
    let mut builder = AmazonS3Builder::new();
    for (key, value) in [("timeout", REQUEST_TIMEOUT), ("connect_timeout", CONNECT_TIMEOUT)] {
        builder = builder.with_config(key.parse::<AmazonS3ConfigKey>()?, value);
    }
    for (key, value) in std::env::vars_os() {
        let (Some(key), Some(value)) = (key.to_str(), value.to_str()) else { continue };
        if key.starts_with("AWS_")
            && !value.is_empty()
            && let Ok(key) = key.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
        {
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in settings {
        let key = key.parse::<AmazonS3ConfigKey>().with_context(|| format!("unknown S3 setting `{key}`"))?;
        builder = builder.with_config(key, *value);
    }
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    if endpoint.as_deref().is_some_and(|e| e.starts_with("http://")) {
        builder = builder.with_allow_http(true);
    }
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_FOR };
    let store = builder
        .with_bucket_name(name)
        .with_retry(retry)
        .build()
        .map_err(|e| anyhow!("s3://{name}: the S3 settings (AWS_* variables) are not usable: {e}"))?;
    Ok(Bucket { store: Arc::new(store), name: name.to_owned(), endpoint })
}

impl Bucket {
    /// `s3://bucket (endpoint …)`.
    fn shown(&self) -> String {
        match &self.endpoint {
            Some(endpoint) => format!("s3://{} (endpoint {})", self.name, without_user(endpoint)),
            None => format!("s3://{} (endpoint of AWS)", self.name),
        }
    }

    /// Turns a store's error into one that names the bucket, the endpoint and the remedy.
    pub(super) fn explain(&self, doing: &str, error: &object_store::Error) -> anyhow::Error {
        let text = chain(error);
        let place = self.shown();
        let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
        if has(&["NoSuchBucket"]) {
            return anyhow!("{place}: the bucket does not exist (while {doing}); create it or correct the path");
        }
        if has(&["169.254.169.254", "169.254.170.2", "MissingCredentials", "NoCredentials"]) {
            return anyhow!(
                "{place}: no credentials found (while {doing}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                 AWS_SKIP_SIGNATURE=true for a public bucket"
            );
        }
        let refused = [
            "InvalidAccessKeyId",
            "NotSignedUp",
            "SignatureDoesNotMatch",
            "InvalidToken",
            "ExpiredToken",
            "TokenRefreshRequired",
        ];
        if has(&refused) || matches!(error, object_store::Error::Unauthenticated { .. }) {
            return anyhow!(
                "{place}: the server refused the credentials (while {doing}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, \
                 AWS_SESSION_TOKEN and AWS_REGION"
            );
        }
        if has(&["AccessDenied", "403 Forbidden"]) || matches!(error, object_store::Error::PermissionDenied { .. }) {
            return anyhow!(
                "{place}: access denied while {doing}; these credentials lack the permission, or the bucket belongs to another"
            );
        }
        let short: String = text.chars().take(600).collect();
        anyhow!("{place}: {doing} failed, retries included: {short}")
    }

    /// Whether an error means that the bucket itself is missing, and not just the object.
    pub(super) fn is_missing_bucket(error: &object_store::Error) -> bool {
        chain(error).contains("NoSuchBucket")
    }
}

/// Runs a request again that may be made twice and broke half-way: answers that stop in the middle of a body, and deletions that are not
/// answered, are not retried by the client. What the client has retried to the end is not tried again.
pub(super) async fn again<T, F>(mut attempt: impl FnMut() -> F) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let begun = Instant::now();
    let in_vain = format!("after {RETRIES} retries");
    let mut left = 4;
    loop {
        match attempt().await {
            Err(object_store::Error::Generic { store, source })
                if left > 0 && begun.elapsed() < RETRY_FOR / 2 && !source.to_string().contains(&in_vain) =>
            {
                tracing::debug!("{store}: reading again after: {source}");
                left -= 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            done => return done,
        }
    }
}

fn chain(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// An endpoint without a user name and password that somebody may have put into it.
fn without_user(endpoint: &str) -> String {
    match url::Url::parse(endpoint) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())
        }
        _ => endpoint.to_owned(),
    }
}
