//! A small HTTP server that answers with the bytes it is told to, and keeps what it was asked.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Method and target.
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// Which connection it came over, from 0.
    pub connection: usize,
}

/// What is written, piece by piece, and whether the connection stays.
#[derive(Debug, Clone)]
pub struct Say {
    pub pieces: Vec<Vec<u8>>,
    /// The last piece is written again and again until the client goes.
    pub endless: bool,
}

pub struct Server {
    pub base: String,
    pub asked: UnboundedReceiver<Asked>,
    /// One message for each connection that the client closed.
    pub closed: UnboundedReceiver<usize>,
    _serving: JoinSet<()>,
}

/// A whole answer with a length.
pub fn answer(status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Say {
    let body = body.as_ref();
    let mut head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        head += &format!("{header}\r\n");
    }
    Say { pieces: vec![[head.as_bytes(), b"\r\n", body].concat()], endless: false }
}

/// An answer in chunks whose length nobody announced.
pub fn chunked(chunks: &[Vec<u8>], endless: bool) -> Say {
    let mut pieces = vec![b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()];
    for chunk in chunks {
        pieces.push([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    }
    if !endless {
        pieces.push(b"0\r\n\r\n".to_vec());
    }
    Say { pieces, endless }
}

/// Nothing, for ever.
pub fn silence() -> Say {
    Say { pieces: Vec::new(), endless: false }
}

impl Server {
    /// Answers what `answers` says of each request.
    pub async fn start(answers: impl Fn(&Asked) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (told, asked) = unbounded_channel();
        let (ended, closed) = unbounded_channel();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let answers = Arc::new(answers);
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (answers, told, ended) = (answers.clone(), told.clone(), ended.clone());
                connections.spawn(async move {
                    serve(connection, stream, &*answers, &told).await;
                    // The test may have ended.
                    let _ = ended.send(connection);
                });
            }
        });
        Self { base, asked, closed, _serving: serving }
    }
}

/// Serves a connection until the client goes.
async fn serve(
    connection: usize,
    mut stream: TcpStream,
    answers: &(dyn Fn(&Asked) -> Say + Send + Sync),
    told: &UnboundedSender<Asked>,
) {
    let mut read = Vec::new();
    loop {
        let Some(asked) = request(connection, &mut stream, &mut read).await else { return };
        let Say { pieces, endless } = answers(&asked);
        // The test may have ended.
        let _ = told.send(asked);
        for piece in &pieces {
            if stream.write_all(piece).await.is_err() {
                return;
            }
        }
        if let (true, Some(last)) = (endless, pieces.last()) {
            while stream.write_all(last).await.is_ok() {}
            return;
        }
    }
}

async fn request(connection: usize, stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<Asked> {
    let head = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            break String::from_utf8(std::mem::replace(read, rest)).unwrap();
        }
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    };
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next()?.trim_end_matches(" HTTP/1.1").to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while read.len() < length {
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
    let rest = read.split_off(length);
    let body = String::from_utf8(std::mem::replace(read, rest)).unwrap();
    Some(Asked { line, headers, body, connection })
}
