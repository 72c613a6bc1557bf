//! The pure data layer: query keys and patches. Values are JSON; the group protocol below sees bytes only.

pub mod cascade;
pub mod condition;
pub mod engine;
pub mod filter;
pub mod index;
pub mod key;
pub mod layers;
pub mod limits;
pub mod number;
pub mod outbox;
pub mod patch;
pub mod path;
pub mod pattern;
pub mod resources;
pub mod rules;

#[doc(hidden)]
pub use serde_json::json as __json;

/// Content hash of a value: XXH64 with seed 0, the same in every process and build. Tells equal contents apart from
/// changed ones; not meant to resist an attacker.
pub fn content_hash(value: &[u8]) -> u64 {
    twox_hash::XxHash64::oneshot(0, value)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_content_hash_is_the_published_one() {
        // XXH64 of the empty input with seed 0, from the algorithm's specification.
        assert_eq!(super::content_hash(b""), 0xef46_db37_51d8_e999);
    }
}
