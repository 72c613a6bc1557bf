//! What the feed knows: its history, the value of each key, and who is connected.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::FeedOptions;
use crate::one_wire::{
    clock::now_ns,
    control::{Counters, FeedLine},
    log::{LogWriter, Record},
    message::{METRIC_KEYS, Message, OUTAGE_KEY, Versioned},
    metrics::Sampler,
};

/// Shared by the publisher and the connections.
#[derive(Debug)]
pub(super) struct Store {
    options: FeedOptions,
    stream: String,
    state: Mutex<State>,
    /// The latest number; what consumers wait for.
    latest: watch::Sender<u64>,
    changes: watch::Sender<Counters>,
}

#[derive(Debug)]
struct State {
    /// Ends with message number `last`.
    history: VecDeque<Utf8Bytes>,
    last: u64,
    values: BTreeMap<&'static str, Versioned>,
    counters: Counters,
    sampler: Sampler,
    paused: bool,
    log: Option<LogWriter>,
}

/// Answer to one who wants to connect.
pub(super) enum Admission {
    /// May connect, for as long as the seat is kept.
    Admitted(Seat),
    /// Another one is connected.
    Refused,
}

/// The right to be connected.
pub(super) struct Seat {
    pub(super) store: Arc<Store>,
    /// Where the consumer wants to go on.
    since: Option<u64>,
}

/// What a consumer gets before it follows: texts to send, and the number they end with.
pub(super) struct Opening {
    pub(super) texts: Vec<Utf8Bytes>,
    pub(super) upto: u64,
}

/// At most so many messages are copied out of the history at once.
const CHUNK: usize = 1024;

impl Store {
    pub(super) fn new(options: FeedOptions) -> io::Result<Self> {
        let log = options.log.as_deref().map(|path| LogWriter::create(path, None)).transpose()?;
        let state = State {
            history: VecDeque::new(),
            last: 0,
            values: BTreeMap::new(),
            counters: Counters::default(),
            sampler: Sampler::default(),
            paused: false,
            log,
        };
        let store = Self {
            options,
            stream: format!("{:x}-{:x}", std::process::id(), now_ns()),
            state: Mutex::new(state),
            latest: watch::Sender::new(0),
            changes: watch::Sender::new(Counters::default()),
        };
        // Every key has a value from the start, so that every snapshot is whole.
        store.publish_metrics(METRIC_KEYS.len());
        store.with(State::publish_outage);
        Ok(store)
    }

    fn with<R>(&self, change: impl FnOnce(&mut State, &Store) -> R) -> R {
        let mut state = self.state.lock();
        let (last, counters) = (state.last, state.counters);
        let result = change(&mut state, self);
        if state.last != last
            && let Some(log) = &mut state.log
        {
            // A log that cannot be written shows in the comparison, as messages that were never published.
            let _ = log.flush();
        }
        if state.counters != counters {
            self.changes.send_replace(state.counters);
        }
        if state.last != last {
            self.latest.send_replace(state.last);
        }
        result
    }

    /// Publishes the next `n` figures; false if the feed was paused.
    pub(super) fn publish_metrics(&self, n: usize) -> bool {
        self.with(|state, store| {
            for _ in 0..n {
                if state.paused {
                    return false;
                }
                let index = usize::try_from(state.last).unwrap_or(0) % METRIC_KEYS.len();
                let data = state.sampler.sample(index);
                state.publish(store, METRIC_KEYS[index], data);
            }
            !state.paused
        })
    }

    /// Decides on a connection; `query` is the query of its URL.
    pub(super) fn admit(self: &Arc<Self>, query: &str) -> Admission {
        self.with(|state, store| {
            if state.counters.connections > 0 && !store.options.admit_all {
                state.counters.refused += 1;
                return Admission::Refused;
            }
            let counters = &mut state.counters;
            counters.connections += 1;
            counters.connections_total += 1;
            counters.connections_max = counters.connections_max.max(counters.connections);
            let since = query.split('&').find_map(|part| part.strip_prefix("since=")?.parse().ok());
            // A position that was never given belongs to another history.
            let since = since.filter(|since| store.options.resume && *since <= state.last);
            Admission::Admitted(Seat { store: Arc::clone(self), since })
        })
    }

    /// The next messages after `cursor`, with the number they end with.
    pub(super) fn after(&self, cursor: u64) -> Opening {
        let state = self.state.lock();
        let first = state.last - state.history.len() as u64 + 1;
        let skip = usize::try_from((cursor + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let texts: Vec<_> = state.history.iter().skip(skip).take(CHUNK).cloned().collect();
        let upto = first + (skip.min(state.history.len()) + texts.len()) as u64 - 1;
        Opening { texts, upto }
    }

    pub(super) fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    pub(super) fn changes(&self) -> watch::Receiver<Counters> {
        self.changes.subscribe()
    }

    pub(super) fn counters(&self) -> Counters {
        self.state.lock().counters
    }

    pub(super) fn pause(&self) -> FeedLine {
        self.with(|state, _| {
            state.paused = true;
            let values = state.values.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            FeedLine::Paused { seq: state.last, values, counters: state.counters }
        })
    }
}

impl State {
    fn publish(&mut self, store: &Store, key: &'static str, data: Value) {
        let version = self.values.get(key).map_or(1, |value| value.version + 1);
        self.last += 1;
        let message = Message {
            seq: self.last,
            stream: store.stream.clone(),
            r#type: "metric".to_owned(),
            key: key.to_owned(),
            version,
            data,
        };
        let text =
            serde_json::to_string(&message).expect("strings, numbers and a JSON value are always JSON");
        if let Some(log) = &mut self.log {
            log.push(Record::Event { number: self.last, hash: message.fingerprint(), at_ns: now_ns() });
        }
        self.values.insert(key, Versioned { version, data: message.data });
        self.history.push_back(text.into());
        while self.history.len() > store.options.history.max(1) {
            self.history.pop_front();
        }
    }

    fn publish_outage(&mut self, store: &Store) {
        if !self.paused {
            let outages = self.values.get(OUTAGE_KEY).map_or(0, |value| value.version);
            self.publish(store, OUTAGE_KEY, json!({ "outages": outages }));
            self.counters.outage_version = outages + 1;
        }
    }

    /// A versioned snapshot of every key.
    fn snapshot(&self, store: &Store) -> Opening {
        let mut texts: Vec<Utf8Bytes> = self
            .values
            .iter()
            .map(|(key, value)| {
                let Versioned { version, data } = value;
                json!({ "type": "snapshot", "stream": store.stream, "key": key, "version": version, "data": data })
                    .to_string()
                    .into()
            })
            .collect();
        texts.push(live());
        Opening { texts, upto: self.last }
    }
}

fn live() -> Utf8Bytes {
    json!({ "type": "live" }).to_string().into()
}

impl Seat {
    /// Where this consumer begins: after its position, or with a snapshot where it has none or none is honoured. Then
    /// comes the mark that numbered messages follow.
    pub(super) fn opening(&self) -> Opening {
        match self.since {
            Some(since) => Opening { texts: vec![live()], upto: since },
            None => {
                let state = self.store.state.lock();
                state.snapshot(&self.store)
            }
        }
    }

    /// Notes that the consumer was dropped for its silence.
    pub(super) fn fell_silent(&self) {
        self.store.with(|state, _| state.counters.silent += 1);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.store.with(|state, store| {
            state.counters.connections -= 1;
            if state.counters.connections == 0 {
                state.publish_outage(store);
            }
        });
    }
}
