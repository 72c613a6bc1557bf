//! The query engine of an owner.

mod types;

pub use types::*;
