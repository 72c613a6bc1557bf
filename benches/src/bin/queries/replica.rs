//! A session as a program has it: reads from its replica, and whole calls.

use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use paceline::{Session, key};
use paceline_benches::{
    measure::{median, now_ns, per_call, time_ns},
    report::Row,
};
use serde_json::{Value, json};

use crate::{Failure, keys::PER_GROUP, peer::Peer};

/// Values of the session.
const QUERIES: usize = 100_000;
/// Reads between two looks at the clock.
const READS: usize = 1000;
const BATCHES: usize = 3000;
/// Sets of each millisecond.
const SETS: usize = 10;

pub fn rows(peer: Option<&Peer>) -> Result<Vec<Row>, Failure> {
    let place = tempfile::tempdir()?;
    let session = Session::builder("benches").state_dir(place.path()).join_blocking()?;
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = reads(&session, &executor, peer)?;
    rows.extend(calls(&session, &executor, peer)?);
    session.leave_blocking()?;
    Ok(rows)
}

/// Reads of the raw value, alone and by two readers while a writer changes it ten thousand times a second.
fn reads(
    session: &Session,
    executor: &tokio::runtime::Runtime,
    peer: Option<&Peer>,
) -> Result<Vec<Row>, Failure> {
    let key = || key!["read"];
    session.set_blocking(key(), &json!({ "id": 1 }))?;
    let mut subscription = session.query(key()).subscribe::<Value>();
    subscription.changed_blocking()?;
    let beside = peer.and_then(|peer| peer.read(QUERIES));
    let alone = per_call(|_| subscription.current().raw().len());
    let mut rows = vec![Row::ns("read: raw value, one reader", 1, alone).beside(beside)];

    let done = AtomicBool::new(false);
    let (found, sets) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let subscription = session.query(key()).subscribe::<Value>();
                scope.spawn(move || {
                    let batches = (0..BATCHES).map(|_| {
                        let taken = time_ns(|| {
                            (0..READS).fold(0, |sum, _| sum + black_box(subscription.current().raw().len()))
                        });
                        taken as f64 / READS as f64
                    });
                    median(batches.collect())
                })
            })
            .collect();
        let writer = scope.spawn(|| executor.block_on(write(session, &done)));
        let found: Vec<f64> = readers.into_iter().filter_map(|reader| reader.join().ok()).collect();
        done.store(true, Ordering::Relaxed);
        (found, writer.join())
    });
    let slower = found.into_iter().fold(0.0, f64::max);
    let row = Row::ns("read: raw value, the slower of two readers under a writer", 1, slower).beside(beside);
    rows.push(row.at_most(100.0).at_least_times(50.0));
    let sets = Row { unit: "a second", ..Row::ns("… the writer's sets", 1, sets.unwrap_or_default()) };
    rows.push(sets);
    Ok(rows)
}

/// Sets the value until told; how often a second.
async fn write(session: &Session, done: &AtomicBool) -> f64 {
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let (begin, mut count) = (now_ns(), 0_usize);
    while !done.load(Ordering::Relaxed) {
        tick.tick().await;
        let values: Vec<Value> = (0..SETS).map(|n| json!({ "id": count + n })).collect();
        let sets = join_all(values.iter().map(|value| session.set(key!["read"], value))).await;
        count += sets.iter().filter(|set| set.is_ok()).count();
    }
    count as f64 * 1e9 / (now_ns() - begin) as f64
}

/// Invalidations of ten through the API, each acknowledged.
fn calls(
    session: &Session,
    executor: &tokio::runtime::Runtime,
    peer: Option<&Peer>,
) -> Result<Vec<Row>, Failure> {
    let value = json!({ "id": 1 });
    executor.block_on(async {
        let numbers: Vec<usize> = (0..QUERIES).collect();
        for chunk in numbers.chunks(1000) {
            let sets = chunk.iter().map(|n| session.set(key!["list", n / PER_GROUP, n % PER_GROUP], &value));
            for set in join_all(sets).await {
                set?;
            }
        }
        Ok::<(), paceline::Error>(())
    })?;
    let groups = QUERIES / PER_GROUP;
    let prefix = |number: usize| key!["list", number * 7919 % groups];
    let beside = peer.and_then(|peer| peer.invalidate(QUERIES));
    let mut failed = 0;
    let one = per_call(|number| failed += usize::from(session.invalidate_blocking(prefix(number)).is_err()));
    let together = per_call(|number| {
        let calls = (0..100).map(|n| session.invalidate(prefix(number * 100 + n)));
        let all = executor.block_on(join_all(calls));
        failed += all.iter().filter(|call| call.is_err()).count();
    });
    let rows = vec![
        Row::ns("invalidate 10: a whole call of a session, one at a time", QUERIES, one)
            .beside(beside)
            .at_least_times(1000.0),
        Row::ns("invalidate 10: a whole call of a session, a hundred at a time", QUERIES, together / 100.0)
            .beside(beside),
    ];
    let failures = Row { unit: "failures", ..Row::ns("… calls that failed", QUERIES, failed as f64) };
    Ok(rows.into_iter().chain([failures.at_most(0.0)]).collect())
}
