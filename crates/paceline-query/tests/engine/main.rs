//! The query engine in virtual time, requirement by requirement.

mod cache;
mod chaos;
mod fetching;
mod group;
mod invalidation;
mod model;
mod polling;
mod refreshing;
mod world;
