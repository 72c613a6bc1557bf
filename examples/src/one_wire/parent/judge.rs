//! The verdict: what was logged against what was published, and what was asked for against what was done.

use std::io;

use super::{Outcome, Parent};
use crate::one_wire::{
    args::RunArgs,
    fleet::Member,
    log::{Record, read_log},
    report::{Document, Takeovers, Updates, Upstream},
    schedule::FaultKind,
    verify::{Latency, Reference, Rules, SessionLog, Tally, check_session, check_values, latency},
};

impl Parent {
    /// Compares the logs and writes the document.
    pub(super) fn judge(mut self) -> io::Result<Outcome> {
        let mut reasons = std::mem::take(&mut self.fleet.failures);
        let rules = Rules { resumable: self.args.resumable() };
        let mut logs = self.session_logs()?;
        let reference = if self.args.url.is_none() {
            Reference::from_feed(&existing_log(&self.fleet.feed_log())?)
        } else {
            cut_to_common_end(&mut logs);
            Reference::from_sessions(logs.iter().map(|log| log.records.as_slice()))
        };
        let mut tally = Tally::default();
        for log in &logs {
            tally.add(check_session(&reference, log, rules, &mut reasons));
        }
        if let Some(paused) = &self.fleet.paused {
            for (member, _) in self.fleet.members.iter().zip(&logs).filter(|(_, log)| log.survived) {
                let shown = member.values.clone().unwrap_or_default();
                check_values(&member.name, &paused.values, &shown, &mut reasons);
            }
        }
        let measured = self.measure(&reference, &logs, &mut reasons);
        self.judge_run(&measured, &mut reasons);
        let notes = self.notes(tally, rules);
        let counters = self.args.url.is_none().then_some(self.fleet.counters);
        let document = Document {
            schema: 1,
            sessions: self.args.sessions,
            seed: self.seed,
            duration_s: (self.end_ns.saturating_sub(self.start_ns) / 1_000_000) as f64 / 1000.0,
            upstream: Upstream {
                connections_max: counters.map(|counters| counters.connections_max),
                connections_total: counters.map(|counters| counters.connections_total),
                refused: counters.map(|counters| counters.refused),
            },
            updates: Updates::new(reference.len() as u64, tally),
            takeover_ms: (!self.args.without).then(|| Takeovers::new(&measured)),
            fenced_returns: self.fenced_returns,
            primary_rss_kib: self.fleet.primary_rss_kib,
            verdict: if reasons.is_empty() { "ok" } else { "failed" },
            reasons,
        };
        Ok(Outcome { document, notes })
    }

    fn session_logs(&self) -> io::Result<Vec<SessionLog>> {
        let log = |(index, member): (usize, &Member)| {
            Ok(SessionLog {
                name: member.name.clone(),
                joined_ns: member.joined_ns,
                survived: self.survivors.contains(&index),
                records: existing_log(&member.log)?,
            })
        };
        self.fleet.members.iter().enumerate().map(log).collect()
    }

    fn measure(
        &self,
        reference: &Reference,
        logs: &[SessionLog],
        reasons: &mut Vec<String>,
    ) -> Vec<(FaultKind, Latency)> {
        let mut measured = Vec::new();
        for takeover in &self.takeovers {
            match latency(reference, logs, takeover) {
                Some(latency) => measured.push((takeover.kind, latency)),
                None => reasons.push("after a takeover, some session got no update".to_owned()),
            }
        }
        measured
    }

    /// What must hold for the run as a whole.
    fn judge_run(&self, measured: &[(FaultKind, Latency)], reasons: &mut Vec<String>) {
        let RunArgs { without, sessions, kills, stops, handovers, .. } = self.args;
        if self.args.url.is_none() {
            let (max, expected) =
                (self.fleet.counters.connections_max, if without { sessions.into() } else { 1 });
            if max != expected {
                reasons.push(format!("the feed saw {max} consumers at one time, not {expected}"));
            }
            if self.fleet.paused.is_none() {
                reasons.push("the feed did not come to its end".to_owned());
            }
        }
        if without {
            return;
        }
        let asked =
            [(FaultKind::Sigkill, kills), (FaultKind::Sigstop, stops), (FaultKind::Polite, handovers)];
        for (kind, asked) in asked {
            let done = measured.iter().filter(|one| one.0 == kind).count();
            if done != asked as usize {
                reasons.push(format!("{done} of {asked} takeovers of kind {kind:?} were done"));
            }
        }
        if self.fenced_returns != stops {
            reasons
                .push(format!("{} of {stops} frozen primaries came back as followers", self.fenced_returns));
        }
    }

    fn notes(&self, tally: Tally, rules: Rules) -> Vec<String> {
        let mut notes = vec![format!("epochs with a primary: {}", self.fleet.epochs.len())];
        let asked = self.takeovers.len() + 1;
        if !self.args.without && self.fleet.epochs.len() > asked {
            notes.push(format!("that is {} more than the faults explain", self.fleet.epochs.len() - asked));
        }
        if rules.resumable && tally.needless_gaps > 0 {
            notes.push(format!("{} gaps were told where nothing was lost", tally.needless_gaps));
        }
        if self.fleet.counters.silent > 0 {
            notes.push(format!("{} consumers fell silent and were dropped", self.fleet.counters.silent));
        }
        notes
    }
}

/// A process that ended early may not have made its log.
fn existing_log(path: &std::path::Path) -> io::Result<Vec<Record>> {
    match read_log(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// A foreign feed does not stop, so sessions end at different places: what not all of them can have is left out.
fn cut_to_common_end(logs: &mut [SessionLog]) {
    let last = |log: &SessionLog| log.records.iter().rev().find_map(number);
    let Some(end) = logs.iter().filter(|log| log.survived).filter_map(last).min() else { return };
    for log in logs {
        log.records.retain(|record| number(record).is_none_or(|number| number <= end));
    }
}

fn number(record: &Record) -> Option<u64> {
    match record {
        Record::Event { number, .. } => Some(*number),
        Record::Gap { .. } => None,
    }
}
