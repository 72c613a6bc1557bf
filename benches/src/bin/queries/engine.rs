//! The query engine as a whole: invalidation with all that follows, and what deadlines cost while nothing is due.

use std::time::Duration;

use bytes::Bytes;
use paceline_benches::{
    measure::{per_call, per_prepared_call},
    report::Row,
};
use paceline_proto::{
    id::{Key, SessionId, Trace},
    presence::Presence,
    time::Time,
};
use paceline_query::{
    engine::{Cause, Effect, Engine, Inherited, Input, RefetchType, Start},
    key,
    rules::{Defaults, Options, Staleness},
};

use crate::{
    keys::{PER_GROUP, groups, key},
    peer::Peer,
};

const SESSION: SessionId = SessionId(1);
const NOW: Time = Time(1_000_000_000_000);
/// Prefixes of one batch.
const CALLS: usize = 100;
/// What changes a value.
const PUSH: Cause = Cause::Push { versioned: false };

/// An engine that holds so many values, none of them due for two hours.
fn engine(queries: usize) -> Engine {
    let value = Bytes::from_static(b"{\"id\":1}");
    let hours = Duration::from_secs(7200);
    let defaults = Defaults { stale: Staleness::After(hours), gc: hours, ..Defaults::default() };
    let values = (0..queries).map(|number| Inherited {
        key: key(number),
        value: value.clone(),
        at: NOW,
        invalidated: false,
    });
    let start = Start { own: SESSION, seed: 1, takeover: false, online: true, values: values.collect() };
    let mut engine = Engine::new(defaults, NOW, start);
    engine.handle(
        NOW,
        Input::Presence { session: SESSION, presence: Some(Presence::default()) },
        &mut Vec::new(),
    );
    engine
}

fn observe(engine: &mut Engine, key: Key, out: &mut Vec<Effect>) {
    engine.handle(NOW, Input::Observed { session: SESSION, key, options: vec![Options::default()] }, out);
    out.clear();
}

fn invalidate(engine: &mut Engine, prefix: &Key, out: &mut Vec<Effect>) -> usize {
    let input = Input::Invalidated {
        key: prefix.clone(),
        exact: false,
        refetch: RefetchType::Active,
        trace: Trace::NONE,
    };
    engine.handle(NOW, input, out);
    let wishes = out.len();
    out.clear();
    wishes
}

pub fn rows(peer: Option<&Peer>) -> Vec<Row> {
    let mut rows = Vec::new();
    for queries in [1000, 100_000, 1_000_000] {
        let mut engine = engine(queries);
        let groups = groups(queries);
        let mut out = Vec::new();
        let taken = per_call(|number| invalidate(&mut engine, &groups[number % groups.len()], &mut out));
        rows.push(
            Row::ns("invalidate 10: the engine, nobody looks", queries, taken)
                .beside(peer.and_then(|peer| peer.invalidate(queries))),
        );
        if queries == 100_000 {
            let all = key!["list"].to_key();
            let taken = per_call(|_| invalidate(&mut engine, &all, &mut out));
            let beside = peer.and_then(|peer| peer.subtree(queries));
            rows.push(Row::ns("invalidate all: the engine, nobody looks", queries, taken).beside(beside));
        }
        rows.push(
            Row::ns(
                "invalidate 10: the engine, somebody looks at all ten",
                queries,
                looked_at(engine, &groups),
            )
            .beside(peer.and_then(|peer| peer.invalidate(queries))),
        );
    }
    rows.extend(deadlines());
    rows
}

/// Somebody looks at the keys, and they are fresh before each call: each of them is marked, shown stale, and looked at for a
/// fetch.
fn looked_at(mut engine: Engine, groups: &[Key]) -> f64 {
    let prefixes: Vec<Key> = groups.iter().take(CALLS).cloned().collect();
    let mut out = Vec::new();
    let keys: Vec<Key> = prefixes
        .iter()
        .flat_map(|prefix| (0..PER_GROUP).map(|at| under(prefix, at)))
        .inspect(|key| observe(&mut engine, key.clone(), &mut out))
        .collect();
    let mut state = (engine, out);
    per_prepared_call(
        &mut state,
        101,
        prefixes.len(),
        |(engine, out)| {
            for key in &keys {
                let value = Bytes::from_static(b"{\"id\":2}");
                engine.handle(NOW, Input::Changed { key: key.clone(), value, at: NOW, cause: PUSH }, out);
            }
            out.clear();
        },
        |(engine, out), number| invalidate(engine, &prefixes[number], out),
    )
}

fn under(prefix: &Key, at: usize) -> Key {
    Key::copy_from(&[&*prefix.0, &*key![at].to_key().0].concat())
}

/// Values that somebody looks at and that turn stale in two hours.
fn deadlines() -> Vec<Row> {
    let mut rows = Vec::new();
    for queries in [1000, 100_000] {
        let mut engine = engine(queries);
        let mut out = Vec::new();
        (0..queries).for_each(|number| observe(&mut engine, key(number), &mut out));
        rows.push(Row::ns("deadlines: ask for the earliest", queries, per_call(|_| engine.deadline())));
        let keys: Vec<Key> = (0..queries).map(|number| key(number * 7919 % queries)).collect();
        let taken = per_call(|number| {
            let value = Bytes::from_static(b"{\"id\":3}");
            let key = keys[number % queries].clone();
            engine.handle(NOW, Input::Changed { key, value, at: NOW, cause: PUSH }, &mut out);
            out.clear();
        });
        rows.push(Row::ns("deadlines: a value comes, and its own move", queries, taken));
        let mut wakeups = 0;
        let end = NOW + Duration::from_secs(3600);
        while let Some(due) = engine.deadline().filter(|due| *due <= end) {
            engine.handle(due, Input::Deadline, &mut out);
            out.clear();
            wakeups += 1;
        }
        let idle = Row {
            unit: "wakeups",
            ..Row::ns("deadlines: an hour in which nothing is due", queries, wakeups.into())
        };
        rows.push(idle.at_most(0.0));
    }
    rows
}
