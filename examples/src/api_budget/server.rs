//! The API: an HTTP server that answers a quota of requests in each window, and writes every request down first.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

use super::args::{ServerArgs, WINDOW};
use crate::one_wire::control::say;

/// How long an answer takes.
const LATENCY: Duration = Duration::from_millis(50);

/// What the server says when it can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listening {
    /// Where.
    pub listening: std::net::SocketAddr,
}

/// A line of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// Milliseconds since the server began.
    pub at_ms: u64,
    /// What was asked.
    pub request: String,
    /// The process that asked.
    pub process: String,
    /// What it was answered.
    pub status: u16,
}

/// The quota of the window that runs, and the log.
struct Account {
    quota: u32,
    began: Instant,
    window: Instant,
    left: u32,
    log: std::fs::File,
}

/// Serves until the process ends.
///
/// # Errors
/// When the log or the socket cannot be made.
pub async fn run(args: ServerArgs) -> io::Result<()> {
    let log = std::fs::File::create(&args.log)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let now = Instant::now();
    let account = Account { quota: args.quota, began: now, window: now, left: args.quota, log };
    let account = Arc::new(Mutex::new(account));
    say(&Listening { listening: listener.local_addr()? })?;
    loop {
        let (stream, _) = listener.accept().await?;
        let account = account.clone();
        tokio::spawn(async move {
            // A client that goes away early has its line in the log.
            let _ = serve(stream, &account).await;
        });
    }
}

async fn serve(stream: TcpStream, account: &Mutex<Account>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let request = request.trim_end_matches(" HTTP/1.1\r\n").to_owned();
    let mut process = String::new();
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header).await? == 0 {
            return Ok(());
        }
        match header.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("x-process") => value.clone_into(&mut process),
            Some(_) => {}
            None => break,
        }
    }
    let answer = account.lock().ask(request, process)?;
    sleep(LATENCY).await;
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

impl Account {
    /// Decides, writes it down, and gives the answer.
    fn ask(&mut self, request: String, process: String) -> io::Result<String> {
        let now = Instant::now();
        if now.duration_since(self.window) >= WINDOW {
            self.window = now;
            self.left = self.quota;
        }
        let (status, head, body) = if request != "GET /budget" {
            (404, "404 Not Found\r\n".to_owned(), json!({ "error": "only /budget is here" }))
        } else if self.left == 0 {
            let wait = (WINDOW - now.duration_since(self.window)).as_secs_f64().ceil();
            (429, format!("429 Too Many Requests\r\nRetry-After: {wait}\r\n"), json!({ "error": "quota" }))
        } else {
            self.left -= 1;
            (200, "200 OK\r\n".to_owned(), json!({ "left": self.left }))
        };
        let at_ms = u64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let mut line = serde_json::to_vec(&Logged { at_ms, request, process, status })?;
        line.push(b'\n');
        self.log.write_all(&line)?;
        let body = body.to_string();
        let length = body.len();
        Ok(format!(
            "HTTP/1.1 {head}Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
    }
}
