//! One JSON request to an endpoint: at most so many at a time, repeated while there is hope, given up quickly once the endpoint is down.
//!
//! A failure that may pass (no connection, time-out, status 408, 429 or 5xx, a body that is cut off or no JSON) is tried again after a pause
//! that doubles, with jitter; `Retry-After` makes it longer. The request keeps its place meanwhile, so a server that asks for less gets less.
//! When several requests in a row have used up all attempts, the endpoint counts as down: requests then fail at once, except for one every few
//! seconds that looks whether it is back. So an endpoint that dies costs its rows, not hours.
//!
//! The key is sent and never shown: it is cut out of every message, whatever a server may echo.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde_json::Value;
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Bytes of a reply at most.
const MAX_REPLY: usize = 64 << 20;
/// The longest pause that is taken by itself.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause that a server may ask for.
const MAX_ASKED: Duration = Duration::from_secs(300);
/// Requests given up in a row that make an endpoint count as down.
const DOWN_AFTER: u32 = 8;
/// How often an endpoint that is down is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// How hard an endpoint is pressed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests at the same time.
    pub concurrency: usize,
    /// Time of one attempt.
    pub timeout: Duration,
    /// Attempts after the first.
    pub retries: u32,
    /// Pause before the second attempt; doubles each time.
    pub pause: Duration,
}

/// A client of one URL.
pub struct Client {
    http: reqwest::Client,
    url: reqwest::Url,
    key: Option<String>,
    limits: Limits,
    places: Semaphore,
    health: Mutex<Health>,
}

/// Whether the endpoint answers.
#[derive(Default)]
struct Health {
    /// Requests given up since the last success.
    given_up: u32,
    /// When one was last let through although the endpoint is down.
    looked: Option<Instant>,
    /// The last fault.
    fault: String,
}

/// What went wrong with one attempt.
struct Trouble {
    message: String,
    /// It may pass.
    passing: bool,
    /// What the server asked for.
    wait: Option<Duration>,
}

impl Trouble {
    fn passing(message: impl Into<String>) -> Self {
        Self { message: message.into(), passing: true, wait: None }
    }
}

impl Client {
    /// Checks the address; opens no connection.
    ///
    /// # Errors
    /// An address that is not http(s), or that holds a user or a password.
    pub fn new(base: &str, path: &str, key: Option<String>, limits: Limits) -> Result<Self> {
        let base = base.trim_end_matches('/');
        let url = reqwest::Url::parse(&format!("{base}/{path}"))
            .with_context(|| format!("`base_url` {base:?} is no address; write it as http://localhost:8000/v1"))?;
        ensure!(
            matches!(url.scheme(), "http" | "https"),
            "`base_url` must begin with http:// or https://, not {base:?}"
        );
        ensure!(
            url.username().is_empty() && url.password().is_none(),
            "`base_url` holds a user or a password; put the key into an environment variable and name it in `api_key_env`"
        );
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT.min(limits.timeout))
            .timeout(limits.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("repro/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| anyhow::anyhow!("cannot make an HTTP client: {error}"))?;
        let places = Semaphore::new(limits.concurrency);
        Ok(Self { http, url, key, limits, places, health: Mutex::default() })
    }

    /// Sends a body and reads the reply with `read`, as often as it takes.
    ///
    /// # Errors
    /// The last fault and the number of attempts.
    pub async fn post<T>(
        &self,
        body: &Value,
        read: &(dyn Fn(&Value) -> Result<T, String> + Sync),
    ) -> Result<T, String> {
        let Ok(_place) = self.places.acquire().await else { return Err("the client is closed".to_owned()) };
        let attempts = self.attempts()?;
        let bytes = body.to_string();
        let mut tries = 0;
        loop {
            tries += 1;
            let trouble = match self.once(&bytes, read).await {
                Ok(answer) => {
                    *self.health() = Health::default();
                    return Ok(answer);
                }
                Err(trouble) => trouble,
            };
            let message = self.hidden(&trouble.message);
            if !trouble.passing {
                // A refusal is an answer: the endpoint is alive.
                *self.health() = Health::default();
                return Err(message);
            }
            if tries >= attempts {
                return Err(self.give_up(message, tries));
            }
            tracing::debug!(url = %self.url, tries, %message, "the request is sent again");
            tokio::time::sleep(self.pause(tries, trouble.wait)).await;
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attempts that a request may make now; an error while the endpoint is down.
    fn attempts(&self) -> Result<u32, String> {
        let mut health = self.health();
        if health.given_up < DOWN_AFTER {
            return Ok(self.limits.retries + 1);
        }
        let due = health.looked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN);
        if !due {
            return Err(format!(
                "{} is down: the last {} requests were given up; the last fault: {}",
                self.url, health.given_up, health.fault
            ));
        }
        health.looked = Some(Instant::now());
        Ok(1)
    }

    fn give_up(&self, fault: String, tries: u32) -> String {
        let mut health = self.health();
        health.given_up = health.given_up.saturating_add(1);
        if health.given_up == DOWN_AFTER {
            health.looked = Some(Instant::now());
            tracing::warn!(url = %self.url, %fault, "the endpoint is down");
        }
        let message = format!("{fault} ({tries} attempt{})", if tries == 1 { "" } else { "s" });
        health.fault = fault;
        message
    }

    /// Doubles with each try, less up to half by chance, so that many clients do not come back at the same moment.
    fn pause(&self, tries: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.limits.pause.saturating_mul(1 << (tries - 1).min(16)).min(MAX_PAUSE);
        let own = doubled.mul_f64(rand::rng().random_range(0.5..=1.0));
        asked.map_or(own, |asked| own.max(asked.min(MAX_ASKED)))
    }

    async fn once<T>(&self, body: &str, read: &(dyn Fn(&Value) -> Result<T, String> + Sync)) -> Result<T, Trouble> {
        let mut request =
            self.http.post(self.url.clone()).header("content-type", "application/json").body(body.to_owned());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| Trouble::passing(self.reason(&error)))?;
        let status = response.status();
        let wait = response.headers().get("retry-after").and_then(|value| asked(value.to_str().ok()?));
        let reply = self.body(response).await?;
        if !status.is_success() {
            let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
            let message = format!("{} answers {status}: {}", self.url, says(&self.shown(&reply)));
            return Err(Trouble { message, passing, wait });
        }
        let json = serde_json::from_slice(&reply).map_err(|_| Trouble::passing(self.no_json(&reply)))?;
        // The same request would get the same reply.
        read(&json).map_err(|fault| Trouble {
            message: format!("{}: {}", self.url, self.hidden(&fault).chars().take(300).collect::<String>()),
            passing: false,
            wait: None,
        })
    }

    async fn body(&self, mut response: reqwest::Response) -> Result<Vec<u8>, Trouble> {
        let mut reply = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(part)) if reply.len() + part.len() <= MAX_REPLY => reply.extend_from_slice(&part),
                Ok(Some(_)) => {
                    let message = format!("{} sent more than {} MiB", self.url, MAX_REPLY >> 20);
                    return Err(Trouble { message, passing: false, wait: None });
                }
                Ok(None) => return Ok(reply),
                Err(error) => return Err(Trouble::passing(self.reason(&error))),
            }
        }
    }

    /// Why there is no answer.
    fn reason(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            return format!("{} did not answer within {} s", self.url, self.limits.timeout.as_secs_f64());
        }
        let mut causes = vec![error.to_string()];
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            causes.push(inner.to_string());
            cause = inner.source();
        }
        format!("no answer from {}: {}", self.url, causes.pop().unwrap_or_default())
    }

    fn no_json(&self, reply: &[u8]) -> String {
        let start = begin(&self.shown(reply));
        let html = start.trim_start().to_lowercase();
        let kind = match html.starts_with("<!doctype") || html.starts_with("<html") {
            true => "a web page; is `base_url` right, with its /v1?",
            false => "something that is not JSON",
        };
        format!("{} answers with {kind}: {start:?}", self.url)
    }

    /// A reply as text without the key; to be cut only then, or a part of the key would be left.
    fn shown(&self, reply: &[u8]) -> String {
        self.hidden(&String::from_utf8_lossy(reply))
    }

    /// A message without the key.
    fn hidden(&self, message: &str) -> String {
        match &self.key {
            Some(key) => message.replace(key.as_str(), "[key]"),
            None => message.to_owned(),
        }
    }
}

/// A `Retry-After` header: seconds, or a date.
fn asked(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<f64>() {
        return (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(1e6)));
    }
    let date = chrono::DateTime::parse_from_rfc2822(value.trim()).ok()?;
    (date.with_timezone(&chrono::Utc) - chrono::Utc::now()).to_std().ok()
}

/// What an error reply says: the message of OpenAI's form, else its beginning.
fn says(reply: &str) -> String {
    let json: Option<Value> = serde_json::from_str(reply).ok();
    let message = json.as_ref().and_then(|json| {
        let error = &json["error"];
        error["message"].as_str().or(error.as_str()).or(json["message"].as_str()).or(json["detail"].as_str())
    });
    message.map_or_else(|| begin(reply), |message| message.chars().take(300).collect())
}

fn begin(reply: &str) -> String {
    reply.chars().take(100).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn client(key: Option<&str>) -> Client {
        let limits =
            Limits { concurrency: 1, timeout: Duration::from_secs(1), retries: 3, pause: Duration::from_secs(4) };
        Client::new("http://localhost:1/v1/", "completions", key.map(str::to_owned), limits).unwrap()
    }

    #[test]
    fn pauses_double_with_jitter_up_to_a_limit_and_heed_the_server() {
        let client = client(None);
        let within = |tries: u32, low: f64, high: f64| {
            for _ in 0..50 {
                let pause = client.pause(tries, None).as_secs_f64();
                assert!((low..=high).contains(&pause), "{pause}");
            }
        };
        within(1, 2.0, 4.0);
        within(2, 4.0, 8.0);
        within(3, 8.0, 16.0);
        within(9, 15.0, 30.0);
        assert_eq!(client.pause(1, Some(Duration::from_secs(60))).as_secs(), 60);
        assert_eq!(client.pause(1, Some(Duration::from_secs(6000))), MAX_ASKED);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(asked("-1"), None);
        assert_eq!(asked("soon"), None);
        assert_eq!(asked("Wed, 21 Oct 2015 07:28:00 GMT"), None, "in the past");
        let date = (chrono::Utc::now() + Duration::from_secs(100)).to_rfc2822();
        assert!((98..=100).contains(&asked(&date).unwrap().as_secs()));
    }

    #[test]
    fn addresses_are_checked_and_keys_hidden() {
        let fails = |base: &str, with: &str| {
            let limits = client(None).limits;
            let error = format!("{:#}", Client::new(base, "completions", None, limits).err().unwrap());
            assert!(error.contains(with), "{error}");
        };
        fails("localhost:8000/v1", "http://");
        fails("", "no address");
        fails("ftp://host/v1", "http://");
        fails("http://me:secret@host/v1", "api_key_env");
        assert_eq!(client(None).url.as_str(), "http://localhost:1/v1/completions");
        assert_eq!(client(Some("sesame")).hidden("Bearer sesame is wrong"), "Bearer [key] is wrong");
    }

    #[test]
    fn an_endpoint_that_is_down_is_looked_at_once_in_a_while() {
        let client = client(None);
        assert_eq!(client.attempts(), Ok(4));
        for _ in 0..DOWN_AFTER {
            assert_eq!(client.attempts(), Ok(4));
            client.give_up("refused".into(), 4);
        }
        assert!(client.attempts().unwrap_err().contains("refused"));
        client.health().looked = Instant::now().checked_sub(LOOK_AGAIN);
        assert_eq!(client.attempts(), Ok(1));
        assert!(client.attempts().is_err());
    }
}
