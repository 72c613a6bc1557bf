//! The index of keys: marking what a prefix has.

use paceline_benches::{measure::per_call, report::Row};
use paceline_proto::id::Key;
use paceline_query::{index::Index, key};

use crate::peer::Peer;

/// Matches of a prefix.
pub const PER_GROUP: usize = 10;

/// The key of a query; ten of them have a prefix in common.
pub fn key(number: usize) -> Key {
    key!["list", number / PER_GROUP, number % PER_GROUP].to_key()
}

/// Prefixes, in a stride through all, so that no call finds in the processor's cache what the last one left there.
pub fn groups(queries: usize) -> Vec<Key> {
    let groups = queries / PER_GROUP;
    (0..groups).map(|number| key!["list", number * 7919 % groups].to_key()).collect()
}

pub fn rows(peer: Option<&Peer>) -> Vec<Row> {
    let mut rows = Vec::new();
    for queries in [1000, 100_000, 1_000_000] {
        let mut index = Index::new(1);
        for number in 0..queries {
            let key = key(number);
            index.insert(&key);
            index.set_active(&key, true);
        }
        let groups = groups(queries);
        let taken = per_call(|number| {
            let prefix = &groups[number % groups.len()];
            (index.mark(prefix, false), index.active_under(prefix).fold(0, |sum, key| sum + key.0.len()))
        });
        let beside = peer.and_then(|peer| peer.invalidate(queries));
        let row =
            Row::ns("invalidate 10: mark them and walk to the active ones", queries, taken).beside(beside);
        rows.push(match queries {
            100_000 => row.at_most(1000.0).at_least_times(10_000.0),
            1_000_000 => row.at_most(2000.0),
            _ => row,
        });
        if queries == 100_000 {
            let all = key!["list"].to_key();
            let taken = per_call(|_| index.mark(&all, false));
            rows.push(
                Row::ns("mark a subtree of all", queries, taken)
                    .beside(peer.and_then(|peer| peer.subtree(queries))),
            );
            let asked: Vec<Key> = (0..queries).map(|number| key(number * 7919 % queries)).collect();
            let taken = per_call(|number| index.marked(&asked[number % queries]));
            rows.push(Row::ns("ask whether a key is marked", queries, taken));
        }
    }
    rows
}
