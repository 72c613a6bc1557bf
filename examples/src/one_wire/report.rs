//! What the run ends with: one JSON document, or a summary for people.

use std::fmt::Write;

use serde::Serialize;

use super::{
    schedule::FaultKind,
    verify::{Latency, Tally, percentile},
};

/// The document of `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Document {
    /// Version of this document.
    pub schema: u32,
    /// Session processes at one time.
    pub sessions: u32,
    /// Fixes the schedule of faults.
    pub seed: u64,
    /// From the last join to the last update, in seconds.
    pub duration_s: f64,
    /// What the feed saw.
    pub upstream: Upstream,
    /// Counted on the event stream.
    pub updates: Updates,
    /// How long takeovers took; `None` without a group.
    pub takeover_ms: Option<Takeovers>,
    /// Frozen primaries that came back as followers.
    pub fenced_returns: u32,
    /// The most memory a primary used, in KiB; `None` where that cannot be read.
    pub primary_rss_kib: Option<u64>,
    /// `ok` or `failed`.
    pub verdict: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// What the feed saw of its consumers; nothing is known of a foreign feed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Upstream {
    /// The most consumers at one time.
    pub connections_max: Option<u64>,
    /// Consumers admitted.
    pub connections_total: Option<u64>,
    /// Consumers turned away because one was connected.
    pub refused: Option<u64>,
}

/// Events published, and delivered over all sessions.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Updates {
    /// Published by the feed.
    pub published: u64,
    /// Delivered, over all sessions.
    pub delivered: u64,
    /// Losses without a gap event.
    pub gaps: u64,
    /// Losses with one.
    pub gaps_reported: u64,
    /// Delivered again.
    pub duplicates: u64,
    /// Delivered after a later one.
    pub reordered: u64,
}

impl Updates {
    /// From the counts of all sessions.
    pub fn new(published: u64, tally: Tally) -> Self {
        Self {
            published,
            delivered: tally.delivered,
            gaps: tally.gaps,
            gaps_reported: tally.gaps_reported,
            duplicates: tally.duplicates,
            reordered: tally.reordered,
        }
    }
}

/// Takeovers by what was done to the primary.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Takeovers {
    /// Killed.
    pub sigkill: Figures,
    /// Frozen.
    pub sigstop: Figures,
    /// Asked.
    pub polite: Figures,
}

impl Takeovers {
    /// Summarizes what was measured.
    pub fn new(measured: &[(FaultKind, Latency)]) -> Self {
        let of = |kind| Figures::new(measured.iter().filter(|one| one.0 == kind).map(|one| one.1));
        Self {
            sigkill: of(FaultKind::Sigkill),
            sigstop: of(FaultKind::Sigstop),
            polite: of(FaultKind::Polite),
        }
    }
}

/// Milliseconds until an update published after the signal was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Takeovers measured.
    pub n: usize,
    /// Median, in the last surviving session.
    pub p50: Option<f64>,
    /// 99th percentile, in the last surviving session.
    pub p99: Option<f64>,
    /// Maximum, in the last surviving session.
    pub max: Option<f64>,
    /// Median, in the first surviving session.
    pub first_p50: Option<f64>,
    /// The longest that any update took around a takeover; for people.
    #[serde(skip)]
    pub worst: Option<f64>,
}

impl Figures {
    fn new(latencies: impl Iterator<Item = Latency>) -> Self {
        let latencies: Vec<Latency> = latencies.collect();
        let of = |value: fn(&Latency) -> u64, percent| {
            let values: Vec<u64> = latencies.iter().map(value).collect();
            percentile(&values, percent).map(milliseconds)
        };
        Self {
            n: latencies.len(),
            p50: of(|one| one.last_ns, 50),
            p99: of(|one| one.last_ns, 99),
            max: of(|one| one.last_ns, 100),
            first_p50: of(|one| one.first_ns, 50),
            worst: of(|one| one.worst_ns, 100),
        }
    }
}

/// Milliseconds with three decimals.
fn milliseconds(ns: u64) -> f64 {
    (ns as f64 / 1000.0).round() / 1000.0
}

/// The summary for people. `notes` are said before the verdict.
pub fn summary(document: &Document, notes: &[String]) -> String {
    let mut text = String::new();
    let known = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
    let Document { upstream, updates, .. } = document;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} sessions, {:.1} s, seed {}",
        document.sessions, document.duration_s, document.seed
    );
    let _ = writeln!(
        text,
        "  upstream   {} connected at most, {} connections in all, {} refused",
        known(upstream.connections_max),
        known(upstream.connections_total),
        known(upstream.refused)
    );
    let _ = writeln!(
        text,
        "  updates    {} published, {} delivered; {} lost silently, {} with notice, {} repeated, {} out of order",
        updates.published,
        updates.delivered,
        updates.gaps,
        updates.gaps_reported,
        updates.duplicates,
        updates.reordered
    );
    if let Some(takeovers) = &document.takeover_ms {
        let named =
            [("killed", takeovers.sigkill), ("frozen", takeovers.sigstop), ("polite", takeovers.polite)];
        for (name, figures) in named {
            takeover_line(&mut text, name, &figures);
        }
        let _ = writeln!(
            text,
            "  fenced     {} of {} frozen primaries came back as followers",
            document.fenced_returns, takeovers.sigstop.n
        );
    }
    if let Some(kib) = document.primary_rss_kib {
        let _ = writeln!(text, "  memory     {:.1} MiB in the primary at most", kib as f64 / 1024.0);
    }
    for note in notes {
        let _ = writeln!(text, "  note       {note}");
    }
    let _ = writeln!(text, "  verdict    {}", document.verdict);
    for reason in &document.reasons {
        let _ = writeln!(text, "             {reason}");
    }
    text
}

fn takeover_line(text: &mut String, name: &str, figures: &Figures) {
    let Figures {
        n,
        p50: Some(p50),
        p99: Some(p99),
        max: Some(max),
        first_p50: Some(first),
        worst: Some(worst),
    } = *figures
    else {
        return;
    };
    let _ = writeln!(
        text,
        "  takeover   {name} {n:>3} times: p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms; p50 of the first \
         session {first:.2} ms, longest any update took {worst:.2} ms"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(reasons: Vec<String>, measured: &[(FaultKind, Latency)]) -> Document {
        Document {
            schema: 1,
            sessions: 8,
            seed: 7,
            duration_s: 20.0,
            upstream: Upstream { connections_max: Some(1), connections_total: Some(17), refused: Some(2) },
            updates: Updates::new(20, Tally { delivered: 160, ..Tally::default() }),
            takeover_ms: Some(Takeovers::new(measured)),
            fenced_returns: 0,
            primary_rss_kib: Some(9000),
            verdict: if reasons.is_empty() { "ok" } else { "failed" },
            reasons,
        }
    }

    #[test]
    fn the_document_has_its_fields_in_order() {
        let kill =
            |last_ns| (FaultKind::Sigkill, Latency { last_ns, first_ns: 500_000, worst_ns: 9_000_000 });
        let text = serde_json::to_string(&document(Vec::new(), &[kill(1_234_567), kill(3_000_000)])).unwrap();
        let none = r#"{"n":0,"p50":null,"p99":null,"max":null,"first_p50":null}"#;
        let expected = format!(
            r#"{{"schema":1,"sessions":8,"seed":7,"duration_s":20.0,"upstream":{{"connections_max":1,"connections_total":17,"refused":2}},"updates":{{"published":20,"delivered":160,"gaps":0,"gaps_reported":0,"duplicates":0,"reordered":0}},"takeover_ms":{{"sigkill":{{"n":2,"p50":1.235,"p99":3.0,"max":3.0,"first_p50":0.5}},"sigstop":{none},"polite":{none}}},"fenced_returns":0,"primary_rss_kib":9000,"verdict":"ok"}}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_failed_run_says_why() {
        let failed = document(vec!["s3: 1 losses without a gap event".to_owned()], &[]);
        assert!(
            serde_json::to_string(&failed)
                .unwrap()
                .ends_with(r#""verdict":"failed","reasons":["s3: 1 losses without a gap event"]}"#)
        );
        assert!(summary(&failed, &[]).contains("failed\n             s3: 1 losses"));
    }
}
