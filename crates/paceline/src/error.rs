//! What can go wrong for a caller.

use std::path::PathBuf;

use paceline_ipc::dirs::DirectoryError;
use paceline_proto::{fetch::FetchFailure, program::Misfit};
use paceline_runtime::{Blocked, CallError, End, StartError};

/// A call on a session failed. Each variant says whether state changed and whether a retry helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name of the group is not allowed; nothing changed.
    #[error("{0}")]
    Name(String),
    /// The group's directory cannot be used; nothing changed, and a retry helps after the fix.
    #[error("use the directory {path}: {why}; {fix}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What to do.
        fix: String,
    },
    /// The session cannot join as things are; nothing changed. The text says who and why.
    #[error("join the group: {0}")]
    Refused(String),
    /// This session and the primary have no protocol version in common; nothing changed. The text names both builds and
    /// processes and says which to update.
    #[error("join the group: {0}")]
    VersionRefused(Box<Misfit>),
    /// Nobody leads the group, and its store needs a newer build than this one; nothing changed. A retry helps once a session
    /// of a build that reads it leads.
    #[error(
        "join the group: its store has schema {schema} and needs a build that reads schema {min_reader}, this one ({ours}, \
         process {pid}) reads up to {reads}; update it, or start a session of a newer build"
    )]
    StoreTooNew {
        /// The schema of the store.
        schema: u32,
        /// The lowest schema that a build must be made for to read it.
        min_reader: u32,
        /// This build.
        ours: String,
        /// This process.
        pid: u32,
        /// The highest schema that this build reads.
        reads: u32,
    },
    /// A signal told the session to leave before it had joined; nothing changed.
    #[error("join the group: a signal told the session to leave")]
    ToldToLeave,
    /// A declaration of this session is not valid; nothing changed.
    #[error("{0}")]
    Invalid(String),
    /// A configuration file cannot be read; nothing changed, and a retry helps after the fix.
    #[error("read the configuration {path}: {why}")]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The configuration is not valid, or asks for a part that this build lacks; nothing changed. It names every
    /// problem with its place.
    #[error(transparent)]
    Config(#[from] paceline_config::ConfigError),
    /// A secret that the session would need to lead is not there; nothing changed, and a retry helps after the fix.
    #[error("find the secret {name:?} of {origin}: {why}")]
    Secret {
        /// Its name.
        name: String,
        /// Where it is declared.
        origin: paceline_config::Origin,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The value could not be written as JSON, or exceeds a bound; nothing changed.
    #[error("encode the value: {0}")]
    Encode(String),
    /// The stored value is not what the caller's type expects; nothing changed.
    #[error("decode the value at {path}: {why}")]
    Decode {
        /// Where in the value.
        path: String,
        /// What was found.
        why: String,
    },
    /// The owner refused the operation; nothing changed.
    #[error("the operation does not fit: {0}")]
    Rejected(String),
    /// `update` lost against others eight times; nothing changed, a retry may help.
    #[error("others kept changing the value")]
    Contended,
    /// Too many calls of this session are unanswered; nothing changed, a retry helps later.
    #[error("too many calls of this session are unanswered")]
    Overloaded,
    /// The mutation was not acknowledged. With `state_unknown` it may be stored, and as long as the session lives it keeps
    /// it and submits it again: a repeated call would be another mutation.
    #[error("the mutation {seq} of this session was not acknowledged: {why}")]
    NotAcknowledged {
        /// Its number within the session.
        seq: u64,
        /// Whether it may be stored all the same.
        state_unknown: bool,
        /// What the owner said.
        why: String,
    },
    /// No value could be fetched; nothing changed. Its kind says whether a retry may help.
    #[error("{0}")]
    Fetch(FetchFailure),
    /// The token can be refreshed by nobody; nothing changed. A retry helps once somebody signed in again.
    #[error("use the token {name:?}: {why}; sign in again")]
    NeedsAuth {
        /// The resource.
        name: String,
        /// What ended it.
        why: String,
    },
    /// The session's runtime ended (it left, or a part of it panicked); what the call did is unknown.
    #[error("the session's runtime ended: {0}")]
    RuntimeDead(String),
}

impl From<DirectoryError> for Error {
    fn from(error: DirectoryError) -> Self {
        Self::Directory { path: error.path, why: error.why, fix: error.fix }
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Overloaded => Self::Overloaded,
            CallError::Dead(end) => Self::dead(&end),
        }
    }
}

impl Error {
    pub(crate) fn dead(end: &End) -> Self {
        Self::RuntimeDead(match end {
            End::Left => "it left the group".to_owned(),
            End::Panicked(text) => format!("a part of it panicked: {text}"),
            End::Failed(text) => text.to_string(),
        })
    }

    /// An answer that belongs to another question: the primary breaks the protocol.
    pub(crate) fn unexpected() -> Self {
        Self::Refused("the primary gave another answer than was asked for".to_owned())
    }

    pub(crate) fn blocked(why: Blocked) -> Self {
        match why {
            Blocked::Version(misfit) => Self::VersionRefused(misfit),
            Blocked::Store { schema, min_reader, ours } => {
                let (pid, reads) = (ours.pid, ours.schema);
                Self::StoreTooNew { schema, min_reader, ours: ours.build, pid, reads }
            }
            Blocked::Other(why) => Self::Refused(why.to_string()),
        }
    }

    pub(crate) fn decode(error: &serde_json::Error) -> Self {
        Self::Decode {
            path: format!("line {} column {}", error.line(), error.column()),
            why: error.to_string(),
        }
    }
}
