//! The configuration language of `paceline.toml`.
//!
//! Text goes in, in layers; a [`Config`] comes out that can only be valid, with the [`Origin`] of every value. No file
//! is looked for and no environment read here. The whole language is in `docs/CONFIG.md`, whose tables are written from
//! [`documented`].
//!
//! ```
//! use paceline_config::{Capabilities, Draft, Source};
//!
//! let text = "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"wss://api.example.com/ws\"\n";
//! let draft = Draft::new([Source::named("paceline.toml", text)])?;
//! let config = draft.validate(&Capabilities::all())?;
//! assert_eq!(config.group().name().origin().to_string(), "default");
//! assert!(config.upstreams().contains_key("feed"));
//! # Ok::<(), paceline_config::ConfigError>(())
//! ```
//!
//! What is wrong is said all at once, with file, line, column, key, what is allowed and what comes nearest:
//!
//! ```
//! use paceline_config::{Capabilities, Draft, Source};
//!
//! let text = "[group]\nnmae = \"warehouse\"\nidle_exit = 600\n";
//! let error = Draft::new([Source::named("paceline.toml", text)])?.validate(&Capabilities::all()).unwrap_err();
//! let lines: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
//! assert!(lines[0].starts_with("paceline.toml:2:1: group.nmae: unknown key\n    did you mean `name`?"));
//! assert!(lines[1].starts_with("paceline.toml:3:13: group.idle_exit: the number 600 has no unit"));
//! # Ok::<(), paceline_config::ConfigError>(())
//! ```

#[macro_use]
mod table;

mod config;
mod convert;
mod digest;
mod document;
mod draft;
mod duplicate;
mod node;
mod origin;
mod part;
mod problem;
mod queries;
mod reader;
pub mod tables;
mod trust;
pub mod value;

pub use config::{Config, Rules};
pub use convert::{ConvertError, LiveUpstream};
pub use digest::{Comparison, Conflict, Declared, Digest, Item};
pub use document::{documented, markdown};
pub use draft::{Draft, Override, Source, VARIABLES};
pub use origin::{Layer, Origin};
pub use part::{Capabilities, Part};
pub use problem::{ConfigError, Problem, ProblemKind};
pub use reader::{Entry, KeyDoc, Named, Sourced};
pub use trust::{Reason, Untrusted};
