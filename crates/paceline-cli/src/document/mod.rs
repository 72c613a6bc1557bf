//! The JSON documents of the commands. Field order is output order; `schema` comes first. Described in `docs/schemas/`.

mod configured;
mod doctor;
mod looks;

use std::time::{Duration, SystemTime};

use paceline::{ItemConflict, QueryKey, Rank, SessionId, SessionInfo, Standing, Version};
use serde::{Serialize, Serializer};
use serde_json::{Value, value::RawValue};

pub use self::{configured::*, doctor::*, looks::*};

/// The number that documents begin with; it grows when a document changes in a way that breaks readers.
const SCHEMA: u32 = 1;

/// A document: `schema`, then the rest.
#[derive(Debug, Serialize)]
pub struct Document<T> {
    schema: u32,
    #[serde(flatten)]
    body: T,
}

/// Makes a document.
pub fn document<T: Serialize>(body: T) -> Document<T> {
    Document { schema: SCHEMA, body }
}

/// `status`. Parts that are not built are null.
#[derive(Debug, Serialize)]
pub struct Status {
    pub group: String,
    pub epoch: u64,
    pub primary: Option<Primary>,
    pub sessions: usize,
    pub connection: Option<Connection>,
    pub strategy: Option<Unbuilt>,
    pub sync: Option<Unbuilt>,
    pub queries: Option<Unbuilt>,
    pub outbox: Option<Unbuilt>,
    pub upstream: Option<Unbuilt>,
    pub connections: Vec<Connection>,
    pub conflicts: Vec<Conflict>,
    pub directory: String,
}

/// Something that two sessions declare differently.
#[derive(Debug, Serialize)]
pub struct Conflict {
    pub item: String,
    pub ignored: Declarer,
    pub counts: Declarer,
}

/// Who declares it, and where.
#[derive(Debug, Serialize)]
pub struct Declarer {
    pub session: String,
    pub pid: u32,
    pub place: String,
}

impl From<&ItemConflict> for Conflict {
    fn from(conflict: &ItemConflict) -> Self {
        let declarer = |it: &paceline::Declarer| Declarer {
            session: it.session.to_string(),
            pid: it.pid,
            place: it.place.clone(),
        };
        Self {
            item: conflict.item.clone(),
            ignored: declarer(&conflict.ignored),
            counts: declarer(&conflict.counts),
        }
    }
}

/// What is not built yet has no value.
#[derive(Debug, Serialize)]
pub enum Unbuilt {}

/// Who leads.
#[derive(Debug, Serialize)]
pub struct Primary {
    pub session: String,
    pub pid: u32,
    pub label: String,
    pub since: Option<Instant>,
    pub build: String,
}

/// An upstream connection.
#[derive(Debug, Clone, Serialize)]
pub struct Connection {
    pub upstream: String,
    pub state: &'static str,
    pub transport: Option<String>,
    pub attempts: u32,
    /// When the next attempt is due; null where none is, or where it was announced before this command joined.
    pub backoff_until: Option<Instant>,
    pub reason: Option<String>,
}

impl From<&paceline::Connection> for Connection {
    fn from(connection: &paceline::Connection) -> Self {
        let mut reason = None;
        let state = match &connection.state {
            paceline::ConnectionState::Connecting => "connecting",
            paceline::ConnectionState::Live => "live",
            paceline::ConnectionState::Degraded => "degraded",
            paceline::ConnectionState::Offline => "offline",
            paceline::ConnectionState::Paused => "paused",
            paceline::ConnectionState::Stopped(why) => {
                reason = Some(why.clone());
                "stopped"
            }
        };
        Self {
            upstream: connection.upstream.to_string(),
            state,
            transport: Some(connection.transport.to_string()).filter(|transport| !transport.is_empty()),
            attempts: connection.attempts,
            backoff_until: None,
            reason,
        }
    }
}

/// `sessions`.
#[derive(Debug, Serialize)]
pub struct Sessions {
    pub group: String,
    pub epoch: u64,
    pub sessions: Vec<Session>,
}

/// One session.
#[derive(Debug, Serialize)]
pub struct Session {
    pub session: String,
    pub role: &'static str,
    pub current: Option<bool>,
    pub rank: &'static str,
    pub pid: u32,
    pub label: String,
    pub build: Option<String>,
    pub protocol: Option<u16>,
    pub since_ms: u64,
    pub keys: u64,
    pub streams: u64,
    pub queued: u64,
    pub behind: Option<u64>,
    pub conflated: bool,
    pub dropped: u64,
}

impl Session {
    /// What is known of a session, `last` being the last offset of the reign.
    pub fn new(info: &SessionInfo, last: u64) -> Self {
        let awaited = info.standing == Standing::Awaited;
        Self {
            session: info.member.session.to_string(),
            role: role(info.standing),
            current: match info.standing {
                Standing::Heir { current } => Some(current),
                Standing::Primary | Standing::Follower | Standing::Joining | Standing::Awaited => None,
            },
            rank: match info.rank {
                Rank::Observer => "observer",
                Rank::Candidate => "candidate",
                Rank::Preferred => "preferred",
            },
            pid: info.member.pid,
            label: info.member.label.clone(),
            build: Some(info.build.clone()).filter(|_| !awaited),
            protocol: Some(info.proto).filter(|_| !awaited),
            since_ms: info.since_ms,
            keys: info.keys,
            streams: info.streams,
            queued: info.queued,
            behind: info.acked.map(|acked| last.saturating_sub(acked.0)),
            conflated: info.conflated,
            dropped: info.dropped,
        }
    }
}

/// The word for a standing.
pub fn role(standing: Standing) -> &'static str {
    match standing {
        Standing::Primary => "primary",
        Standing::Heir { .. } => "heir",
        Standing::Follower => "follower",
        Standing::Joining => "joining",
        Standing::Awaited => "awaited",
    }
}

/// `queries`.
#[derive(Debug, Serialize)]
pub struct Queries {
    pub group: String,
    pub epoch: u64,
    pub queries: Vec<Query>,
}

/// One key of the cache.
#[derive(Debug, Serialize)]
pub struct Query {
    pub key: Key,
    pub bytes: u64,
    pub stale: bool,
    pub version: Value,
    pub subscribers: u64,
    /// Optimistic layers; null where the primary's build knows none.
    pub layers: Option<u64>,
    pub epoch: u64,
    pub offset: u64,
}

/// `get`.
#[derive(Debug, Serialize)]
pub struct Got {
    pub group: String,
    pub key: Key,
    pub value: Box<RawValue>,
    pub stale: bool,
    pub version: Value,
}

/// `refetch`.
#[derive(Debug, Serialize)]
pub struct Refetched {
    pub group: String,
    pub key: Key,
    /// Keys with a new value.
    pub ok: u64,
    /// Keys without.
    pub failed: u64,
    /// The first failures.
    pub failures: Vec<RefetchFailure>,
}

/// A key that could not be fetched.
#[derive(Debug, Serialize)]
pub struct RefetchFailure {
    pub key: Key,
    pub why: String,
}

/// `invalidate --preview`.
#[derive(Debug, Serialize)]
pub struct Preview {
    pub group: String,
    pub key: Key,
    pub reached: Vec<Reached>,
}

/// What an invalidation would reach.
#[derive(Debug, Serialize)]
pub struct Reached {
    /// Steps from what was asked for.
    pub depth: u32,
    /// Why: a key in its short form, `tag NAME` or `resource NAME`.
    pub cause: String,
    /// Null for a resource without a key in the cache.
    pub key: Option<Key>,
    pub resource: Option<String>,
    /// It would be fetched at once.
    pub refetches: bool,
}

/// `set` and `invalidate`.
#[derive(Debug, Serialize)]
pub struct Done {
    pub group: String,
    pub key: Key,
    /// Held by the primary alone.
    pub volatile: bool,
    /// The cause it is traced by.
    pub trace: String,
}

/// `promote`.
#[derive(Debug, Serialize)]
pub struct Promoted {
    pub group: String,
    pub epoch: u64,
    pub primary: String,
}

/// A line of `watch`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Watched {
    /// The key has this value.
    Value { at: Instant, key: Key, value: Box<RawValue>, stale: bool, version: Value },
    /// The key has no value any more: nobody held it when the primary was lost.
    Lost { at: Instant, key: Key },
    /// An event of the stream.
    Message { at: Instant, stream: String, data: Box<RawValue> },
    /// Events may be missing here.
    Gap { at: Instant, stream: String, channel: String, why: &'static str },
    /// Everybody who could lead was gone: keys that were known and have no value any more, as they are spelled.
    Recovered { at: Instant, lost: Vec<String>, kept: bool },
    /// The primary is gone; another one is awaited.
    PrimaryLost { at: Instant, epoch: u64 },
    /// A session leads.
    Primary { at: Instant, epoch: u64, session: String, pid: Option<u32>, label: Option<String> },
}

/// A line of `run` and `events`.
#[derive(Debug, Serialize)]
pub struct Event {
    pub at: Instant,
    pub session: String,
    pub kind: String,
    pub level: String,
    pub text: String,
}

/// A time: RFC 3339 in UTC, with milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Instant(pub SystemTime);

impl Instant {
    /// Now.
    pub fn now() -> Self {
        Self(paceline_ipc::clock::wall())
    }

    /// The time of the day in UTC, with milliseconds.
    pub fn time(self) -> String {
        humantime::format_rfc3339_millis(self.shown()).to_string()[11..23].to_owned()
    }

    /// A wall clock may show any year; text has those from 1970 to 9999.
    fn shown(self) -> SystemTime {
        const LAST: Duration = Duration::from_secs(253_402_300_799);
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        SystemTime::UNIX_EPOCH + since.min(LAST)
    }

    /// The same, with microseconds.
    pub fn time_fine(self) -> String {
        humantime::format_rfc3339_micros(self.shown()).to_string()[11..26].to_owned()
    }
}

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.shown()))
    }
}

/// A key, as an array of its segments.
#[derive(Debug)]
pub struct Key(pub QueryKey);

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.segments().serialize(serializer)
    }
}

/// A version, null where there is none.
pub fn version(version: Option<&Version>) -> Value {
    match version {
        None | Some(Version::None) => Value::Null,
        Some(Version::Number(number)) => (*number).into(),
        Some(Version::Text(text)) => text.to_string().into(),
    }
}

/// JSON bytes as they came. What is no JSON, which no session of this build makes, is shown as a text.
pub fn raw(bytes: &[u8]) -> Box<RawValue> {
    let text = String::from_utf8_lossy(bytes);
    RawValue::from_string(text.clone().into_owned()).unwrap_or_else(|_| {
        serde_json::value::to_raw_value(&text).unwrap_or_else(|_| RawValue::NULL.to_owned())
    })
}

/// The shortest spelling of a key that reads back.
pub fn spell(key: &QueryKey) -> String {
    let part = |segment: &Value| match segment {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let short: Option<Vec<String>> = key.segments().iter().map(part).collect();
    let short = short.map(|parts| parts.join("/"));
    short.filter(|short| short.parse().as_ref() == Ok(key)).unwrap_or_else(|| key.to_string())
}

/// The id that people see.
pub fn short(session: SessionId) -> String {
    session.short()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_with_their_schema() {
        let done =
            Done { group: "g".into(), key: Key("a/1".parse().unwrap()), volatile: true, trace: "7".into() };
        let text = serde_json::to_string(&document(done)).unwrap();
        assert_eq!(text, r#"{"schema":1,"group":"g","key":["a",1],"volatile":true,"trace":"7"}"#);
    }

    #[test]
    fn keys_are_spelled_so_that_they_read_back() {
        for (json, spelled) in [
            (r#"["packages",7]"#, "packages/7"),
            (r#"["packages","7"]"#, r#"["packages","7"]"#),
            (r#"["a/b"]"#, r#"["a/b"]"#),
            (r#"["a",{"b":1}]"#, r#"["a",{"b":1}]"#),
        ] {
            let key: QueryKey = json.parse().unwrap();
            assert_eq!(spell(&key), spelled);
            assert_eq!(spelled.parse::<QueryKey>().unwrap(), key);
        }
    }

    #[test]
    fn whatever_the_wall_clock_shows_can_be_written() {
        let at = |seconds: i64| {
            let by = Duration::from_secs(seconds.unsigned_abs());
            let epoch = SystemTime::UNIX_EPOCH;
            Instant(if seconds < 0 { epoch - by } else { epoch + by })
        };
        let text = |at: Instant| serde_json::to_value(at).unwrap();
        assert_eq!(text(at(-1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(at(1)), "1970-01-01T00:00:01.000Z");
        assert_eq!(text(at(253_402_300_799)), "9999-12-31T23:59:59.000Z");
        assert_eq!(text(at(253_402_300_800)), "9999-12-31T23:59:59.000Z");
        assert_eq!(at(-1).time_fine(), "00:00:00.000000");
    }
}
