//! An S3 server over HTTP inside the test process, on a temporary directory, that can misbehave now and then.

use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret-that-must-not-be-shown";

/// How a server misbehaves: every n-th request or connection; 0 is never.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub error: u64,
    pub stall: u64,
    pub cut: u64,
}

/// A running server. The files of bucket `b` are in `root/b`.
pub struct Server {
    pub endpoint: String,
    pub root: tempfile::TempDir,
    pub requests: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(faults: Faults) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicU64::new(0));
        let counter = requests.clone();
        let task = tokio::spawn(async move {
            for connection in 1.. {
                let Ok((socket, _)) = listener.accept().await else { return };
                let budget = if hit(connection, faults.cut) { 100_000 } else { usize::MAX };
                let (service, counter) = (service.clone(), counter.clone());
                let answer = service_fn(move |request: Request<Incoming>| {
                    let n = counter.fetch_add(1, Ordering::Relaxed) + 1;
                    let service = service.clone();
                    async move {
                        if hit(n, faults.stall) {
                            tokio::time::sleep(Duration::from_secs(3600)).await;
                        }
                        if hit(n, faults.error) {
                            let mut response =
                                Response::new(s3s::Body::from("<Error><Code>InternalError</Code></Error>".to_owned()));
                            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                            return Ok(response);
                        }
                        hyper::service::Service::call(&service, request).await
                    }
                });
                tokio::spawn(async move {
                    let io = TokioIo::new(Cut { socket, budget });
                    // A client that goes away is no fault of the server.
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(io, answer).await;
                });
            }
        });
        Self { endpoint, root, requests, task }
    }

    /// Makes a bucket and tells the program how to reach it.
    pub fn bucket(&self, name: &str) {
        std::fs::create_dir_all(self.root.path().join(name)).unwrap();
        self.reach(name, KEY, SECRET);
    }

    /// Tells the program how to reach a bucket that may not exist, with these credentials.
    pub fn reach(&self, name: &str, key: &str, secret: &str) {
        let settings = [
            ("endpoint", self.endpoint.as_str()),
            ("access_key_id", key),
            ("secret_access_key", secret),
            ("region", "us-east-1"),
            ("timeout", "2s"),
        ];
        repro::storage::s3::configure(name, &settings).unwrap();
    }

    /// Puts a file into a bucket behind the server's back.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let file = self.root.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
}

fn hit(n: u64, every: u64) -> bool {
    every > 0 && n.is_multiple_of(every)
}

/// A connection that breaks off after so many bytes of answers.
struct Cut {
    socket: TcpStream,
    budget: usize,
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, out)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        if self.budget == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let n = bytes.len().min(self.budget);
        let written = Pin::new(&mut self.socket).poll_write(cx, &bytes[..n]);
        if let Poll::Ready(Ok(n)) = written
            && self.budget != usize::MAX
        {
            self.budget -= n;
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
