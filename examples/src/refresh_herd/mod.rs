//! Ten sessions, one login, and refresh tokens that can be used once.

pub mod args;
pub mod parent;
pub mod report;
pub mod server;
pub mod tool;
