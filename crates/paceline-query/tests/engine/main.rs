//! The query engine in virtual time, requirement by requirement.

mod cache;
mod fetching;
mod invalidation;
mod world;
