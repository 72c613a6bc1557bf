//! Polling: how often, as a function of the data.

use super::upstream::bound_names;
use crate::{
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Reader, Sourced},
    value::{ConditionText, Interval, StopOr},
};

words! {
    /// When a resource is polled.
    PollMode {
        /// On time, whatever is pushed.
        Independent = "independent",
        /// Only while the channel that feeds it is not healthy.
        Fallback = "fallback",
        /// Only while it is on screen and its user is not idle.
        Smart = "smart",
    }
}

table! {
    /// One rule; the first that holds counts.
    PollRule {
        /// When it holds: `$` is the value, `key.NAME` a bound segment, `error` the failure of the last fetch.
        must when: ConditionText,
        /// Polls so often.
        may every: Interval,
        /// Stops polling.
        may stop: bool,
        /// Polls ever more seldom, until focus, a reconnect or a manual refetch.
        may backoff: bool,
    }
}

impl Check for PollRule {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        let keys = ["every", "stop", "backoff"];
        let flags = [("stop", &self.stop), ("backoff", &self.backoff)];
        for (key, flag) in flags {
            if let Some(flag) = flag.as_ref().filter(|flag| !*flag.value()) {
                let problem = Problem::new(
                    ProblemKind::Value,
                    reader.key_of(key),
                    flag.origin().clone(),
                    "does not take false",
                );
                reader.report(problem.allowed("true").fix("leave it out"));
            }
        }
        let given: Vec<(&str, &Origin)> = self
            .every
            .iter()
            .map(|every| ("every", every.origin()))
            .chain(flags.iter().filter_map(|(key, flag)| flag.as_ref().map(|flag| (*key, flag.origin()))))
            .collect();
        match given.as_slice() {
            [_] => {}
            [first, second, ..] => {
                reader.relate(*first, *second, "a rule has one outcome", "leave all but one out");
            }
            [] if keys.iter().any(|key| reader.is_malformed(key)) => {}
            [] => {
                let problem = Problem::new(ProblemKind::Missing, reader.key(), at.clone(), "has no outcome");
                reader.report(problem.allowed(keys.join(", ")).fix("give one of them"));
            }
        }
    }
}

table! {
    /// `poll` of a resource: one timer per key, the shortest interval of all sessions.
    Poll {
        /// When it is polled.
        has mode: PollMode = "independent", "a resource that no channel feeds",
        /// Intervals by what the value is.
        table rules: Vec<Sourced<PollRule>>,
        /// The interval where no rule holds.
        has otherwise: StopOr = "stop", "nothing is polled that nobody asked for",
        /// The interval while no session is visible.
        has background: StopOr = "stop", "what nobody sees costs nothing",
        /// Without activity of its user for so long a session does not count. In the mode `smart`.
        may idle_after: Interval,
        /// The interval while the battery is low. In the mode `smart`.
        may low_battery: Interval,
    }
}

impl Check for Poll {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        let polls = self.rules.iter().any(|rule| rule.every.is_some())
            || *self.otherwise.value() != StopOr::Stop
            || *self.background.value() != StopOr::Stop;
        if !polls && !["rules", "otherwise", "background"].iter().any(|key| reader.is_malformed(key)) {
            let what = "never polls: no rule has `every`, and `otherwise` and `background` stop";
            let problem = Problem::new(ProblemKind::Relation, reader.key(), at.clone(), what);
            reader.report(problem.fix("give an interval, or leave `poll` out"));
        }
        for (key, value) in [("idle_after", &self.idle_after), ("low_battery", &self.low_battery)] {
            if let (Some(value), true) = (value, *self.mode.value() != PollMode::Smart) {
                let what = format!("only the mode `smart` has `{key}`");
                reader.relate(
                    (key, value.origin()),
                    ("mode", self.mode.origin()),
                    &what,
                    "say `mode = \"smart\"`",
                );
            }
        }
        if let (StopOr::Every(active), StopOr::Every(background)) =
            (self.otherwise.value(), self.background.value())
            && background < active
        {
            let what = format!("polls every {background} unseen and every {active} seen");
            reader.relate(
                ("background", self.background.origin()),
                ("otherwise", self.otherwise.origin()),
                &what,
                "make `background` at least `otherwise`",
            );
        }
    }
}

impl Poll {
    /// Names in conditions are bound by the resource's key. The reader stands at the resource.
    pub(super) fn check_names(&self, bound: &[&str], reader: &mut Reader<'_>) {
        for (n, rule) in self.rules.iter().enumerate() {
            reader.inside("poll", |reader| {
                reader.inside("rules", |reader| {
                    reader.inside(&format!("[{n}]"), |reader| {
                        bound_names(&rule.when, "when", bound, true, reader);
                    });
                });
            });
        }
    }
}
