//! Twenty short-lived processes and an API with a quota.

pub mod api;
pub mod args;
pub mod parent;
pub mod report;
pub mod server;
pub mod tool;
