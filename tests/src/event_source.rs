//! A server that numbers its messages, keeps some of them, and can be down. It has them as Server-Sent Events and, under
//! `poll?since=N`, as lists.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};

/// The server. Its threads end with the process.
#[derive(Debug)]
pub struct EventSource {
    /// Where it listens.
    pub url: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Messages so far; they are numbered from 1.
    published: u64,
    /// Messages up to here are kept no more.
    evicted: u64,
    down: bool,
    /// Streams are refused for good, so that lists are all there is.
    lists_only: bool,
    /// Connections of an older generation are cut.
    generation: u64,
    /// The last id that each request named.
    asked: Vec<Option<u64>>,
}

impl EventSource {
    /// Starts one. Message n is `{"n": n}` with the id n, behind `prefix`.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(prefix: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("it has an address"));
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = serving.clone();
                // A client that goes away is no failure.
                std::thread::spawn(move || drop(serve(stream, &shared, prefix)));
            }
        });
        Self { url, shared }
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://").trim_end_matches('/')
    }

    /// How many messages were published.
    pub fn published(&self) -> u64 {
        self.shared.state.lock().published
    }

    /// Publishes the next message and returns its number.
    pub fn publish(&self) -> u64 {
        let mut state = self.shared.state.lock();
        state.published += 1;
        self.shared.changed.notify_all();
        state.published
    }

    /// Cuts all connections and refuses new ones until [`EventSource::up`].
    pub fn down(&self) {
        let mut state = self.shared.state.lock();
        state.down = true;
        state.generation += 1;
        self.shared.changed.notify_all();
    }

    /// Serves again.
    pub fn up(&self) {
        self.shared.state.lock().down = false;
    }

    /// Cuts all connections; from then on there are lists only, or streams again and no lists.
    pub fn lists_only(&self, only: bool) {
        let mut state = self.shared.state.lock();
        state.lists_only = only;
        state.generation += 1;
        self.shared.changed.notify_all();
    }

    /// Forgets the messages up to this one.
    pub fn evict(&self, upto: u64) {
        self.shared.state.lock().evicted = upto;
    }

    /// The last id that each request so far named.
    pub fn asked(&self) -> Vec<Option<u64>> {
        self.shared.state.lock().asked.clone()
    }
}

fn serve(mut stream: TcpStream, shared: &Shared, prefix: &str) -> std::io::Result<()> {
    let mut last = None;
    let mut since = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_lowercase();
        if let Some(list) = line.strip_prefix("get /poll") {
            let after = list.split(' ').next().unwrap_or_default().strip_prefix("?since=");
            since = Some(after.and_then(|after| after.parse().ok()).unwrap_or(u64::MAX));
        }
        if let Some(id) = line.strip_prefix("last-event-id: ") {
            last = id.strip_prefix(prefix).and_then(|id| id.parse().ok());
        }
        if line.is_empty() {
            break;
        }
    }
    if let Some(since) = since {
        return list(&mut stream, &mut shared.state.lock(), since);
    }
    let (mut sent, generation) = {
        let mut state = shared.state.lock();
        if state.lists_only {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        }
        if state.down {
            return stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
        }
        state.asked.push(last);
        (last.unwrap_or(state.published), state.generation)
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: hello\n\n")?;
    loop {
        let upto = {
            let mut state = shared.state.lock();
            while state.published == sent && state.generation == generation {
                shared.changed.wait(&mut state);
            }
            if state.generation != generation {
                return Ok(());
            }
            sent = sent.max(state.evicted);
            state.published
        };
        for n in sent + 1..=upto {
            write!(stream, "id: {prefix}{n}\ndata: {{\"n\": {n}}}\n\n")?;
        }
        sent = upto;
    }
}

/// Who asks without a number begins behind the last message.
fn list(stream: &mut TcpStream, state: &mut State, since: u64) -> std::io::Result<()> {
    if !state.lists_only {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    }
    state.asked.push(Some(since));
    let after = since.max(state.evicted);
    let item = |n: u64| format!("{{\"data\": {{\"n\": {n}}}, \"n\": {n}}}");
    let items: Vec<String> = (after.saturating_add(1)..=state.published).map(item).collect();
    let body = format!("[{}]", items.join(","));
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
