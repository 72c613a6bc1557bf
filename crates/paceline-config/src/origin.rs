//! Where a value comes from.

use std::{fmt, sync::Arc};

/// Layers, the weakest first: each beats those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// Built in.
    Default,
    /// The user's own file.
    User,
    /// The project's file: found in a working directory, or named by `--config`.
    Project,
    /// `PACELINE_*`.
    Environment,
    /// The command line, or code.
    Flag,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::User => "user file",
            Self::Project => "project file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody gave it.
    Default {
        /// What the default is tuned for.
        tuned_for: &'static str,
    },
    /// A file gave it.
    File {
        /// Its layer.
        layer: Layer,
        /// Its name, as it was handed in.
        file: Arc<str>,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// A flag or a variable of the environment gave it.
    Named {
        /// Its layer.
        layer: Layer,
        /// For example `PACELINE_PROFILE` or `--profile`.
        name: Arc<str>,
    },
}

impl Origin {
    /// The layer.
    pub const fn layer(&self) -> Layer {
        match self {
            Self::Default { .. } => Layer::Default,
            Self::File { layer, .. } | Self::Named { layer, .. } => *layer,
        }
    }

    /// The file, if one gave it.
    pub fn file(&self) -> Option<&str> {
        match self {
            Self::File { file, .. } => Some(file),
            Self::Default { .. } | Self::Named { .. } => None,
        }
    }

    /// Line and column in the file, from 1.
    pub const fn place(&self) -> Option<(usize, usize)> {
        match self {
            Self::File { line, column, .. } => Some((*line, *column)),
            Self::Default { .. } | Self::Named { .. } => None,
        }
    }
}

impl fmt::Display for Origin {
    /// `paceline.toml:14:8`, `PACELINE_PROFILE`, `--profile` or `default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default { .. } => f.write_str("default"),
            Self::File { file, line, column, .. } => write!(f, "{file}:{line}:{column}"),
            Self::Named { name, .. } => f.write_str(name),
        }
    }
}
