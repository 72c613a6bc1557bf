//! The data layer of the simulator: values are lists of eight-byte tokens, patches append to them, so that a value
//! shows which operations it contains and how often.

use bytes::Bytes;
use paceline_proto::{hub::Fold, id::Key, message::Operation};

/// Appends patches.
#[derive(Debug, Clone, Copy)]
pub struct Appending;

impl Fold for Appending {
    fn fold(&self, old: Option<&[u8]>, patch: &[u8]) -> Result<Bytes, String> {
        let mut value = old.unwrap_or_default().to_vec();
        value.extend_from_slice(patch);
        Ok(value.into())
    }

    fn hash(&self, value: &[u8]) -> u64 {
        value.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// Number of keys that callers merge into.
pub const MERGE_KEYS: u64 = 3;
/// Number of keys that callers set, last one wins.
pub const SET_KEYS: u64 = 2;
const MERGE: &[u8] = b"ops/merge/";
const ONCE: &[u8] = b"ops/once/";

/// A key that is only merged into.
pub fn merge_key(n: u64) -> Key {
    numbered(MERGE, n)
}

/// A key that is set and compared-and-set by everybody.
pub fn set_key(n: u64) -> Key {
    numbered(b"ops/set/", n)
}

/// A key that is set once, to the token in its name.
pub fn once_key(token: u64) -> Key {
    numbered(ONCE, token)
}

/// The tokens in a value, if the key is one whose values keep all of them.
pub fn tokens<'a>(key: &Key, value: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
    let keeps = key.0.starts_with(MERGE) || key.0.starts_with(ONCE);
    let value = if keeps { value } else { &[] };
    value.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok().map(u64::from_be_bytes))
}

/// The token an operation leaves in such a value.
pub fn operation_token(operation: &Operation) -> Option<u64> {
    match operation {
        Operation::Set { key, value } | Operation::Merge { key, patch: value } => tokens(key, value).next(),
        Operation::CompareSet { .. } | Operation::Invalidate { .. } => None,
    }
}

/// All keys whose values keep tokens, after `last` tokens were given out.
pub fn token_keys(last: u64) -> impl Iterator<Item = Key> {
    (0..MERGE_KEYS).map(merge_key).chain((1..=last).map(once_key))
}

fn numbered(prefix: &[u8], n: u64) -> Key {
    let mut bytes = prefix.to_vec();
    bytes.extend_from_slice(n.to_string().as_bytes());
    Key::copy_from(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_tells_which_patches_it_holds() {
        let key = merge_key(0);
        let once = Appending.fold(None, &7u64.to_be_bytes()).expect("fits");
        let twice = Appending.fold(Some(&once), &9u64.to_be_bytes()).expect("fits");
        assert_eq!(tokens(&key, &twice).collect::<Vec<_>>(), [7, 9]);
        assert_eq!(tokens(&set_key(0), &twice).count(), 0);
    }
}
