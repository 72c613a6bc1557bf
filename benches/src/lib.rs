//! What all measurements share: the clock, batches and their median, and the document that comes out.

pub mod measure;
pub mod report;
