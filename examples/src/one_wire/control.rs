//! The lines that the parent and its children exchange: one JSON value a line, commands on the child's standard
//! input, reports on its standard output.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use super::message::Versioned;

/// Asks the feed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedCommand {
    /// Publish no more; answered by [`FeedLine::Paused`].
    Pause,
    /// End.
    Stop,
}

/// Told by the feed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedLine {
    /// The server accepts connections.
    Listening {
        /// On this port of 127.0.0.1.
        port: u16,
    },
    /// A consumer came, went or was refused.
    Counters(Counters),
    /// Nothing more will be published.
    Paused {
        /// The last number.
        seq: u64,
        /// The final value of each key.
        values: BTreeMap<String, Versioned>,
        /// What happened until now.
        counters: Counters,
    },
}

/// What the feed saw of its consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Consumers connected now.
    pub connections: u64,
    /// The most consumers at one time.
    pub connections_max: u64,
    /// Consumers admitted since the start.
    pub connections_total: u64,
    /// Consumers turned away with 409 because one was connected.
    pub refused: u64,
    /// Consumers dropped because nothing was heard of them.
    pub silent: u64,
    /// Version of the key that changes once in each outage.
    pub outage_version: u64,
}

/// Asks a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionCommand {
    /// Ask the group to make this session its primary, politely.
    Promote,
    /// Tell the values shown by the queries; answered by [`SessionLine::Final`].
    Final,
    /// Leave the group and end.
    Leave,
}

/// Told by a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionLine {
    /// Member of the group, subscribed to the queries and to the events.
    Joined {
        /// From when on every event must reach it.
        at_ns: u64,
    },
    /// The session's place in the group.
    State(Place),
    /// The query of the outage key shows this version.
    Outage {
        /// The version.
        version: u64,
    },
    /// Events may be missing.
    Gap {
        /// Where and why, for people.
        what: String,
    },
    /// What the queries show.
    Final {
        /// By key of the feed; a key without a value is left out.
        values: BTreeMap<String, Versioned>,
    },
    /// A command was refused.
    Refused {
        /// Why.
        why: String,
    },
    /// Left as asked, or ended because nothing else can be done.
    Ended {
        /// `None` if asked to.
        error: Option<String>,
    },
}

/// A session's place in the group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// `primary`, `follower`, or what the session does to become one of them.
    pub role: String,
    /// The reign it follows or holds.
    pub epoch: u64,
    /// State of the live connection.
    pub connection: String,
}

impl Place {
    /// Whether the session holds the wire.
    pub fn is_primary(&self) -> bool {
        self.role == "primary"
    }
}

/// A fault that one session puts into its own log, so that the comparison is seen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Inject {
    /// Leaves one event out.
    Drop,
    /// Writes one event twice.
    Repeat,
    /// Writes two events in the wrong order.
    Swap,
}

/// Writes one line to standard output, at once.
pub fn say<T: Serialize>(line: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()
}

/// Commands from standard input. The receiver ends when the other side closes it or is gone.
///
/// The thread that reads is never joined: it ends with the process.
pub fn commands<T: DeserializeOwned + Send + 'static>() -> mpsc::UnboundedReceiver<T> {
    let (to, from) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            let Ok(command) = serde_json::from_str(&line) else { continue };
            if to.send(command).is_err() {
                return;
            }
        }
    });
    from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_reports_are_one_json_value_each() {
        assert_eq!(serde_json::to_string(&SessionCommand::Leave).unwrap(), r#""leave""#);
        let line = r#"{"state":{"role":"primary","epoch":3,"connection":"live"}}"#;
        let SessionLine::State(place) = serde_json::from_str(line).unwrap() else { panic!("another line") };
        assert!(place.is_primary() && place.epoch == 3);
    }
}
