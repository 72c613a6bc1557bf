//! Time of one call, as the median over batches.

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};

/// Batches of a measurement: odd, so that the median is one of them.
const BATCHES: usize = 31;
/// A batch takes at least so long, so that reading the clock costs nothing beside it.
const BATCH_NS: u64 = 200_000;

/// Nanoseconds on a clock that does not go back.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Nanoseconds that the call takes.
pub fn time_ns<T>(call: impl FnOnce() -> T) -> u64 {
    let begin = now_ns();
    black_box(call());
    now_ns() - begin
}

/// The middle of the values; zero of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Nanoseconds of one call, with its number counted up.
pub fn per_call<T>(mut call: impl FnMut(usize) -> T) -> f64 {
    let mut number = 0;
    let mut batch = |calls: usize| {
        time_ns(|| {
            for _ in 0..calls {
                black_box(call(number));
                number += 1;
            }
        })
    };
    let mut calls = 1;
    while batch(calls) < BATCH_NS {
        calls *= 2;
    }
    median((0..BATCHES).map(|_| batch(calls) as f64 / calls as f64).collect())
}

/// Nanoseconds of one of `calls` calls; before each batch of them, untimed, `prepare` runs.
pub fn per_prepared_call<S, T>(
    state: &mut S,
    batches: usize,
    calls: usize,
    mut prepare: impl FnMut(&mut S),
    mut call: impl FnMut(&mut S, usize) -> T,
) -> f64 {
    let mut batch = |state: &mut S| {
        prepare(state);
        let taken = time_ns(|| {
            for number in 0..calls {
                black_box(call(state, number));
            }
        });
        taken as f64 / calls as f64
    };
    batch(state);
    median((0..batches).map(|_| batch(state)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![]), 0.0);
    }

    #[test]
    fn calls_are_counted_up_and_batches_prepared() {
        let mut seen = Vec::new();
        per_call(|number| seen.push(number));
        assert!(seen.iter().enumerate().all(|(at, number)| at == *number));
        let mut state = (0, Vec::new());
        per_prepared_call(&mut state, 2, 3, |state| state.0 += 1, |state, number| state.1.push(number));
        assert_eq!(state, (3, vec![0, 1, 2, 0, 1, 2, 0, 1, 2]));
    }
}
