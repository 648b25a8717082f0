//! An OpenAI-compatible endpoint in this process: answers over real HTTP, keeps connections open, and misbehaves on request.

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

impl Asked {
    /// The user's turn, or the prompt.
    pub fn said(&self) -> String {
        let turn = self.body["messages"].as_array().and_then(|turns| turns.last()?["content"].as_str());
        turn.or(self.body["prompt"].as_str()).unwrap_or_default().to_owned()
    }
}

/// What the endpoint does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// A proper answer with this text.
    Text(String),
    /// A status with headers (each ending in a line end) and a body.
    Status(u16, &'static str, String),
    /// Sends half of a proper answer and hangs up.
    Cut,
    /// Hangs up at once.
    HangUp,
    /// Sends nothing for a long time.
    Stall,
}

type Behaviour = dyn Fn(&Asked, usize) -> Reply + Send + Sync;

/// The endpoint.
#[derive(Clone)]
pub struct Endpoint {
    /// Up to and with `/v1`.
    pub base_url: String,
    state: Arc<State>,
}

struct State {
    behaviour: Box<Behaviour>,
    asked: Mutex<Vec<Asked>>,
    count: AtomicUsize,
    running: AtomicUsize,
    peak: AtomicUsize,
    dead: AtomicBool,
}

impl Endpoint {
    /// `behaviour` sees each request and its number, from 0.
    pub fn start(behaviour: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let state = Arc::new(State {
            behaviour: Box::new(behaviour),
            asked: Mutex::default(),
            count: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
        });
        let endpoint = Self { base_url, state };
        let this = endpoint.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if this.state.dead.load(Ordering::SeqCst) {
                    return;
                }
                let this = this.clone();
                std::thread::spawn(move || this.serve(&stream));
            }
        });
        endpoint
    }

    /// Requests so far.
    pub fn count(&self) -> usize {
        self.state.count.load(Ordering::SeqCst)
    }
    /// The most requests that ran at the same time.
    pub fn peak(&self) -> usize {
        self.state.peak.load(Ordering::SeqCst)
    }
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }
    /// Every connection is cut from now on.
    pub fn die(&self) {
        self.state.dead.store(true, Ordering::SeqCst);
    }

    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(asked) = read(&mut reader) {
            if self.state.dead.load(Ordering::SeqCst) {
                return;
            }
            let running = self.state.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.state.peak.fetch_max(running, Ordering::SeqCst);
            let number = self.state.count.fetch_add(1, Ordering::SeqCst);
            let reply = (self.state.behaviour)(&asked, number);
            let chat = asked.path.ends_with("/chat/completions");
            self.state.asked.lock().unwrap().push(asked);
            let kept = write(stream, &reply, chat);
            self.state.running.fetch_sub(1, Ordering::SeqCst);
            if !kept {
                return;
            }
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { path, authorization, body: serde_json::from_slice(&body).unwrap() })
}

/// Whether the connection stays open.
fn write(mut stream: &TcpStream, reply: &Reply, chat: bool) -> bool {
    let send = |mut stream: &TcpStream, status: u16, headers: &str, body: &str| {
        let length = body.len();
        write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}").is_ok()
    };
    match reply {
        Reply::Text(text) => send(stream, 200, "content-type: application/json\r\n", &answer(text, chat)),
        Reply::Status(status, headers, body) => send(stream, *status, headers, body),
        Reply::Cut => {
            let body = answer("cut", chat);
            let _ =
                write!(stream, "HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n{}", body.len(), &body[..body.len() / 2]);
            false
        }
        Reply::HangUp => false,
        Reply::Stall => {
            std::thread::sleep(Duration::from_secs(20));
            false
        }
    }
}

fn answer(text: &str, chat: bool) -> String {
    let choice = match chat {
        true => json!({ "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }),
        false => json!({ "text": text, "finish_reason": "stop" }),
    };
    json!({ "choices": [choice], "usage": { "prompt_tokens": 7, "completion_tokens": 3 } }).to_string()
}
