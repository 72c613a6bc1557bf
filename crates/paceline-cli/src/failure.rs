//! How a command fails: exit codes are a contract, messages say what, where and what to do.

use std::time::Duration;

use paceline::config::ConfigError;
use paceline_ipc::dirs::DirectoryError;

/// The command line is wrong.
pub const USAGE: u8 = 2;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for did not happen.
    #[error("{0}")]
    Failed(String),
    /// The command line or a setting is wrong.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error("failed to {0}")]
    Config(ConfigError),
    /// What is wrong was told already.
    #[error("see above")]
    Told,
    /// Nobody leads this group.
    #[error("no group {group:?} is running; `paceline run --group {group}` starts one")]
    NoGroup {
        /// The group.
        group: String,
    },
    /// Builds that do not understand each other.
    #[error("{0}")]
    Version(String),
    /// No answer in time.
    #[error("no answer within {}: {what}; `paceline doctor` looks for the reason", humantime::format_duration(*.after))]
    Timeout {
        /// What was waited for.
        what: String,
        /// For so long.
        after: Duration,
    },
    /// The group, or the directory, said no.
    #[error("{0}")]
    Refused(String),
    /// The doctor found something; the report was printed.
    #[error("{count} findings")]
    Findings {
        /// How many.
        count: usize,
    },
    /// A command that was to be run said no: what it said is said again, and its status is ours.
    #[error("{why}")]
    Command {
        /// Its exit code.
        status: u8,
        /// What it wrote to stderr.
        said: Vec<u8>,
        /// How it ended.
        why: String,
    },
    /// Interrupted by the user.
    #[error("interrupted")]
    Interrupted,
    /// Whoever read the output went away: nothing is wrong.
    #[error("nobody reads the output any more")]
    OutputClosed,
}

impl Failure {
    /// What was asked for did not happen.
    pub fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Failed(_) | Self::Told => 1,
            Self::Usage(_) | Self::Config(_) => USAGE,
            Self::NoGroup { .. } => 3,
            Self::Version(_) => 4,
            Self::Timeout { .. } => 5,
            Self::Refused(_) => 6,
            Self::Findings { .. } => 10,
            Self::Command { status, .. } => (*status).max(1),
            Self::Interrupted => 130,
        }
    }

    /// Whether there is something to say.
    pub fn is_silent(&self) -> bool {
        matches!(
            self,
            Self::OutputClosed
                | Self::Interrupted
                | Self::Findings { .. }
                | Self::Told
                | Self::Command { .. }
        )
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<paceline::Error> for Failure {
    fn from(error: paceline::Error) -> Self {
        let text = format!("failed to {error}");
        match error {
            paceline::Error::Name(why) => Self::Usage(format!("failed to {why}")),
            paceline::Error::Directory { .. } | paceline::Error::Refused(_) => Self::Refused(text),
            paceline::Error::VersionRefused(_) | paceline::Error::StoreTooNew { .. } => Self::Version(text),
            paceline::Error::Rejected(why) => Self::Refused(why),
            paceline::Error::Config(error) => Self::Config(error),
            paceline::Error::ConfigFile { .. } | paceline::Error::Secret { .. } => Self::Usage(text),
            paceline::Error::Invalid(_)
            | paceline::Error::Encode(_)
            | paceline::Error::Decode { .. }
            | paceline::Error::Contended
            | paceline::Error::Overloaded
            | paceline::Error::Fetch(_)
            | paceline::Error::NeedsAuth { .. }
            | paceline::Error::ToldToLeave
            | paceline::Error::NotAcknowledged { .. }
            | paceline::Error::RuntimeDead(_) => Self::Failed(error.to_string()),
        }
    }
}
