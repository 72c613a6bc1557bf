//! What the feed sends, and the fingerprint by which a delivered message is compared with the published one.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Keys whose values are read from the operating system, in the order in which they are published.
pub const METRIC_KEYS: [&str; 4] = ["cpu", "load", "memory", "network"];

/// The key that changes exactly once in each outage, at the moment the last consumer is gone: no later update can
/// pass for its repair.
pub const OUTAGE_KEY: &str = "outage";

/// All keys of the feed.
pub fn all_keys() -> impl Iterator<Item = &'static str> {
    METRIC_KEYS.into_iter().chain([OUTAGE_KEY])
}

/// One numbered message of the feed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Position in the history, ascending without holes from 1.
    pub seq: u64,
    /// Names the unbroken history that `seq` counts in.
    pub stream: String,
    /// `metric`.
    pub r#type: String,
    /// Which value changed.
    pub key: String,
    /// Version of the key's value, ascending.
    pub version: u64,
    /// The value. Integers only, so that its text survives any JSON library.
    pub data: Value,
}

impl Message {
    /// Fingerprint of everything a subscriber acts on.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(self.seq, &self.key, self.version, &self.data.to_string())
    }
}

/// A value of a key with its version: what a query shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versioned {
    /// Version given by the feed.
    pub version: u64,
    /// The value.
    pub data: Value,
}

/// Fingerprint of message `seq`, from its parts; `data` is compact JSON text with sorted members.
pub fn fingerprint(seq: u64, key: &str, version: u64, data: &str) -> u64 {
    let mut hash = Fnv::new();
    hash.write(&seq.to_le_bytes());
    hash.write(key.as_bytes());
    hash.write(&[0]);
    hash.write(&version.to_le_bytes());
    hash.write(data.as_bytes());
    hash.0
}

/// Fingerprint of a message of a feed whose shape is not known.
pub fn fingerprint_bytes(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::new();
    hash.write(bytes);
    hash.0
}

/// FNV-1a, 64 bit: stable between builds and machines, which is all that is asked of it.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_gives_its_published_values() {
        assert_eq!(fingerprint_bytes(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fingerprint_bytes(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_fingerprint_survives_a_round_trip_and_sees_every_part() {
        let message = Message {
            seq: 7,
            stream: "a".into(),
            r#type: "metric".into(),
            key: "cpu".into(),
            version: 3,
            data: serde_json::json!({ "busy_permille": 12, "cores": 2 }),
        };
        let back: Message = serde_json::from_str(&serde_json::to_string(&message).unwrap()).unwrap();
        assert_eq!(back.fingerprint(), message.fingerprint());
        for changed in [
            Message { seq: 8, ..message.clone() },
            Message { key: "load".into(), ..message.clone() },
            Message { version: 4, ..message.clone() },
            Message { data: serde_json::json!({ "busy_permille": 13, "cores": 2 }), ..message.clone() },
        ] {
            assert_ne!(changed.fingerprint(), message.fingerprint(), "{changed:?}");
        }
    }
}
