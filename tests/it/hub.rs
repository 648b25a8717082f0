//! Models from a Hugging Face hub: a server in this process answers as the hub does, and misbehaves on request.

use repro::storage::hub::{HuggingFace, Need, RepoPath, Settings, Source};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does wrong, and how often it still does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Answers with this status.
    Status(u16),
    /// Sends half of the promised bytes and hangs up.
    Cut,
    /// Sends nothing for a long time.
    Stall,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    token: Option<String>,
    /// part of a request's path → fault and number of times
    faults: Vec<(&'static str, Fault, usize)>,
    requests: Vec<String>,
}

/// A hub that holds one repository, `org/name`.
#[derive(Clone)]
struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let server = Self { endpoint, state: Arc::new(Mutex::new(State { files, ..State::default() })) };
        let this = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let this = this.clone();
                std::thread::spawn(move || this.answer(stream));
            }
        });
        server
    }

    fn set(&self, change: impl FnOnce(&mut State)) -> &Self {
        change(&mut self.state.lock().unwrap());
        self
    }

    fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let path = first.split(' ').nth(1).unwrap_or("").to_owned();
        let headers: Vec<(String, String)> = lines
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
            .collect();
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let (fault, reply) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(path.clone());
            let refused =
                state.token.as_ref().is_some_and(|token| header("authorization") != Some(&format!("Bearer {token}")));
            let fault = state.faults.iter_mut().find(|(part, _, left)| path.contains(part) && *left > 0).map(|fault| {
                fault.2 -= 1;
                fault.1
            });
            (fault, if refused { Err(401) } else { body(&state, &path).ok_or(404) })
        };
        let reply = match fault {
            Some(Fault::Status(status)) => Err(status),
            Some(Fault::Stall) => {
                std::thread::sleep(Duration::from_secs(20));
                return;
            }
            _ => reply,
        };
        let _ = match reply {
            Err(status) => write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
            Ok(bytes) => send(&mut stream, &bytes, header("range"), fault == Some(Fault::Cut)),
        };
    }
}

/// The body for a path: the list of files, or a file.
fn body(state: &State, path: &str) -> Option<Vec<u8>> {
    for revision in ["main", "v1", COMMIT] {
        if path == format!("/api/models/org/name/revision/{revision}") {
            let list: Vec<String> = state.files.keys().map(|name| format!(r#"{{"rfilename": "{name}"}}"#)).collect();
            return Some(format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, list.join(", ")).into_bytes());
        }
        if let Some(name) = path.strip_prefix(&format!("/org/name/resolve/{revision}/")) {
            return state.files.get(name).cloned();
        }
    }
    None
}

fn send(stream: &mut TcpStream, bytes: &[u8], range: Option<&str>, cut: bool) -> std::io::Result<()> {
    let numbers = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (status, part, extra) = match numbers {
        Some((from, to)) => {
            let from: usize = from.parse().unwrap();
            let to = to.parse::<usize>().unwrap().min(bytes.len() - 1);
            (206, &bytes[from..=to], format!("content-range: bytes {from}-{to}/{}\r\n", bytes.len()))
        }
        None => (200, bytes, String::new()),
    };
    let etag = blake3::hash(bytes).to_hex();
    write!(
        stream,
        "HTTP/1.1 {status} OK\r\ncontent-length: {}\r\nx-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\n{extra}connection: close\r\n\r\n",
        part.len()
    )?;
    // the one-byte request for the size is never cut
    let sent = if cut && part.len() > 1 { part.len() / 2 } else { part.len() };
    stream.write_all(&part[..sent])
}

const SMALL: &[(&str, &[u8])] = &[
    ("README.md", b"# a model"),
    ("chat_template.jinja", b"{{ messages }}"),
    ("config.json", b"{}"),
    ("model.safetensors", b"weights weights weights"),
    ("pytorch_model.bin", b"\x80\x02pickle"),
    ("quality.bin", b"a fastText model"),
    ("tokenizer.json", b"{\"a\": 1}"),
];

fn client(server: &Server, cache: &Path, token: Option<&str>, offline: bool) -> HuggingFace {
    HuggingFace::new(Settings {
        endpoint: server.endpoint.clone(),
        token: token.map(str::to_owned),
        cache: cache.to_path_buf(),
        offline,
        patience: Duration::from_millis(400),
        pause: Duration::from_millis(10),
    })
    .unwrap()
}

fn wanted(path: &str) -> RepoPath {
    match Source::parse(path).unwrap() {
        Source::HuggingFace(wanted) => wanted,
        other => panic!("{other:?}"),
    }
}

async fn fetch(server: &Server, cache: &Path, path: &str) -> anyhow::Result<PathBuf> {
    client(server, cache, None, false).fetch(&wanted(path), Need::Model).await
}

async fn fails(server: &Server, path: &str) -> String {
    let cache = tempfile::tempdir().unwrap();
    format!("{:#}", fetch(server, cache.path(), path).await.unwrap_err())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn only_needed_files_are_fetched_and_then_kept() {
    let (server, cache) = (Server::start(SMALL), tempfile::tempdir().unwrap());
    let dir = fetch(&server, cache.path(), "hf://org/name").await.unwrap();
    assert_eq!(names(&dir), ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), b"weights weights weights");
    let asked = server.requests().len();
    assert_eq!(fetch(&server, cache.path(), "hf://org/name").await.unwrap(), dir);
    assert_eq!(fetch(&server, cache.path(), &format!("hf://org/name@{COMMIT}")).await.unwrap(), dir);
    assert_eq!(server.requests().len(), asked, "a whole model in the cache needs no network");
    let offline = client(&server, cache.path(), None, true);
    assert_eq!(offline.fetch(&wanted("hf://org/name"), Need::Model).await.unwrap(), dir);
}

#[tokio::test]
async fn offline_without_a_copy_says_so() {
    let (server, cache) = (Server::start(SMALL), tempfile::tempdir().unwrap());
    let offline = client(&server, cache.path(), None, true);
    let error = offline.fetch(&wanted("hf://org/name"), Need::Model).await.unwrap_err().to_string();
    assert!(error.contains("hf://org/name@main") && error.contains("HF_HUB_OFFLINE"), "{error}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn shards_come_from_the_index() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let files: &[(&str, &[u8])] = &[
        ("config.json", b"{}"),
        ("consolidated.safetensors", b"the same weights again"),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("model.safetensors.index.json", index),
        ("tokenizer.json", b"{}"),
    ];
    let (server, cache) = (Server::start(files), tempfile::tempdir().unwrap());
    let dir = fetch(&server, cache.path(), "hf://org/name@v1").await.unwrap();
    assert!(!names(&dir).contains(&"consolidated.safetensors".to_owned()));
    assert_eq!(std::fs::read(dir.join("model-2.safetensors")).unwrap(), b"two");
    server.set(|state| drop(state.files.remove("model-2.safetensors")));
    assert!(fails(&server, "hf://org/name").await.contains("lists model-2.safetensors"));
}

#[tokio::test]
async fn one_named_file_is_fetched_alone() {
    let (server, cache) = (Server::start(SMALL), tempfile::tempdir().unwrap());
    let file = fetch(&server, cache.path(), "hf://org/name/quality.bin").await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"a fastText model");
    assert_eq!(names(file.parent().unwrap()), ["quality.bin"]);
    // a lone file in the cache is not taken for the whole model
    let dir = fetch(&server, cache.path(), "hf://org/name").await.unwrap();
    assert!(dir.join("model.safetensors").is_file());
    let error = fails(&server, "hf://org/name/other.bin").await;
    assert!(error.contains("no file other.bin") && error.contains("quality.bin"), "{error}");
}

#[tokio::test]
async fn a_tokenizer_comes_without_weights() {
    let (server, cache) = (Server::start(SMALL), tempfile::tempdir().unwrap());
    let hub = client(&server, cache.path(), None, false);
    let dir = hub.fetch(&wanted("hf://org/name"), Need::Tokenizer).await.unwrap();
    assert_eq!(names(&dir), ["chat_template.jinja", "config.json", "tokenizer.json"]);
    assert!(fetch(&server, cache.path(), "hf://org/name").await.unwrap().join("model.safetensors").is_file());
}

#[tokio::test]
async fn pickles_are_not_fetched() {
    let server =
        Server::start(&[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("pytorch_model.bin", b"\x80\x02")]);
    let error = fails(&server, "hf://org/name").await;
    assert!(error.contains("pickle") && error.contains("hf://org/name@main"), "{error}");
    assert!(!server.requests().iter().any(|path| path.contains("pytorch_model")));
}

#[tokio::test]
async fn the_token_is_sent_and_its_absence_explained() {
    let server = Server::start(SMALL);
    server.set(|state| state.token = Some("hf_secret".to_owned()));
    let error = fails(&server, "hf://org/name").await;
    assert!(error.contains("set HF_TOKEN"), "{error}");
    let cache = tempfile::tempdir().unwrap();
    let wrong = client(&server, cache.path(), Some("hf_wrong"), false);
    let error = format!("{:#}", wrong.fetch(&wanted("hf://org/name"), Need::Model).await.unwrap_err());
    assert!(error.contains("refuses the given token") && !error.contains("hf_wrong"), "{error}");
    let right = client(&server, cache.path(), Some("hf_secret"), false);
    assert!(right.fetch(&wanted("hf://org/name"), Need::Model).await.unwrap().join("config.json").is_file());
}

#[tokio::test]
async fn a_model_that_does_not_exist_is_reported_at_once() {
    let server = Server::start(SMALL);
    let error = fails(&server, "hf://org/other").await;
    assert!(error.contains("no such model or revision") && error.contains("HF_TOKEN"), "{error}");
    assert!(fails(&server, "hf://org/name@v2").await.contains("hf://org/name@v2"));
    assert_eq!(server.requests().len(), 2, "404 is not tried again");
}

#[tokio::test]
async fn a_server_that_fails_now_and_then_is_asked_again() {
    let (server, cache) = (Server::start(SMALL), tempfile::tempdir().unwrap());
    server.set(|state| {
        state.faults = vec![
            ("/revision/", Fault::Status(503), 2),
            ("config.json", Fault::Status(500), 1),
            ("model.safetensors", Fault::Cut, 3),
            ("tokenizer.json", Fault::Stall, 1),
        ];
    });
    let dir = fetch(&server, cache.path(), "hf://org/name").await.unwrap();
    for (name, bytes) in SMALL.iter().filter(|(name, _)| dir.join(name).exists()) {
        assert_eq!(&std::fs::read(dir.join(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(names(&dir).len(), 4);
}

#[tokio::test]
async fn a_server_that_keeps_failing_gives_an_error() {
    let server = Server::start(SMALL);
    server.set(|state| state.faults = vec![("model.safetensors", Fault::Cut, 99)]);
    let error = fails(&server, "hf://org/name").await;
    assert!(error.contains("model.safetensors") && error.contains("attempts: 5"), "{error}");
    server.set(|state| state.faults = vec![("/revision/", Fault::Status(502), 99)]);
    assert!(fails(&server, "hf://org/name").await.contains("502"));
}

#[tokio::test]
async fn after_a_cut_the_next_run_goes_on() {
    let (server, cache) = (Server::start(SMALL), tempfile::tempdir().unwrap());
    server.set(|state| state.faults = vec![("model.safetensors", Fault::Cut, 99)]);
    assert!(fetch(&server, cache.path(), "hf://org/name").await.is_err());
    let before = server.requests().iter().filter(|path| path.contains("tokenizer.json")).count();
    server.set(|state| state.faults.clear());
    let dir = fetch(&server, cache.path(), "hf://org/name").await.unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), b"weights weights weights");
    let after = server.requests().iter().filter(|path| path.contains("tokenizer.json")).count();
    assert_eq!(before, after, "files that are there are not fetched again");
}

#[tokio::test]
async fn an_unreachable_hub_is_named() {
    let mut server = Server::start(SMALL);
    // a port on which nothing listens: bound, then released
    server.endpoint = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let error = fails(&server, "hf://org/name").await;
    assert!(error.contains(&server.endpoint) && error.contains("HF_ENDPOINT"), "{error}");
}
