//! Pieces of the examples that are worth testing on their own.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(unix)]
pub mod api_budget;
#[cfg(unix)]
pub mod one_wire;
#[cfg(unix)]
pub mod refresh_herd;
