//! The deadlines of the engine in one ordered set: the earliest is known at once, a change costs a logarithm, and nothing
//! ever looks through all of them.
//!
//! **Invariant:** a timer stands in the set at most once, at the time that was set last.

use std::collections::{BTreeMap, BTreeSet};

use paceline_proto::{id::Key, time::Time};

use super::AskId;

/// What is due. Of two at the same time the one that stands first here fires first: what ends goes before what begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A value turns stale.
    Stale(Key),
    /// The next attempt of a fetch, or the deadline of the one that runs.
    Attempt(Key),
    /// A caller does not wait any longer.
    Wait(AskId),
    /// No session has been visible for the grace time.
    Grace,
    /// Gathered invalidations are fetched.
    Batch,
    /// Gathered triggers are followed.
    Debounce,
    /// The refresh service looks at a value.
    Refresh(Key),
    /// A value is polled.
    Poll(Key),
    /// Nobody needed a value for its gc time.
    Gc(Key),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Time, Timer)>,
    at: BTreeMap<Timer, Time>,
}

impl Timers {
    /// Sets, moves or stops a timer. [`Time::NEVER`] stops it too.
    pub(super) fn set(&mut self, timer: Timer, at: Option<Time>) {
        let at = at.filter(|at| *at < Time::NEVER);
        let old = self.at(&timer);
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.due.remove(&(old, timer.clone()));
        }
        match at {
            Some(at) => {
                self.at.insert(timer.clone(), at);
                self.due.insert((at, timer));
            }
            None => drop(self.at.remove(&timer)),
        }
    }

    /// When the timer fires.
    pub(super) fn at(&self, timer: &Timer) -> Option<Time> {
        self.at.get(timer).copied()
    }

    /// The earliest.
    pub(super) fn first(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes the earliest that is due.
    pub(super) fn pop(&mut self, now: Time) -> Option<(Time, Timer)> {
        if self.first()? > now {
            return None;
        }
        let (at, timer) = self.due.pop_first()?;
        self.at.remove(&timer);
        Some((at, timer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_fires_once_at_the_time_that_was_set_last() {
        let mut timers = Timers::default();
        timers.set(Timer::Batch, Some(Time(5)));
        timers.set(Timer::Grace, Some(Time(7)));
        timers.set(Timer::Batch, Some(Time(9)));
        assert_eq!(timers.first(), Some(Time(7)));
        assert_eq!(timers.pop(Time(6)), None);
        timers.set(Timer::Grace, Some(Time::NEVER));
        assert_eq!(timers.pop(Time(9)), Some((Time(9), Timer::Batch)));
        assert_eq!(timers.pop(Time(9)), None);
        assert_eq!(timers.first(), None);
    }

    #[test]
    fn of_timers_at_one_time_what_ends_fires_before_what_begins() {
        let mut timers = Timers::default();
        let key = || Key::copy_from(b"k");
        for timer in [Timer::Gc(key()), Timer::Poll(key()), Timer::Stale(key())] {
            timers.set(timer, Some(Time(1)));
        }
        let fired: Vec<_> = std::iter::from_fn(|| timers.pop(Time(1)).map(|(_, timer)| timer)).collect();
        assert_eq!(fired, [Timer::Stale(key()), Timer::Poll(key()), Timer::Gc(key())]);
    }
}
