//! What came of it.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::server::Logged;

/// One way of refreshing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// Sessions.
    pub processes: u64,
    /// Refreshes that the server logged, those that it refused included.
    pub refreshes: u64,
    /// Sessions whose access token the server takes at the end.
    pub alive: u64,
    /// Sessions whose login is over.
    pub logged_out: u64,
}

impl Arm {
    /// Counts what the server logged. A session's last look at its own account says whether it lives.
    pub fn new(processes: u64, log: &[Logged]) -> Self {
        let refreshes = log.iter().filter(|logged| logged.request == "POST /token").count() as u64;
        let looks = log.iter().filter(|logged| logged.request == "GET /me");
        let last: BTreeMap<&str, u16> = looks.map(|logged| (&*logged.process, logged.status)).collect();
        let alive = last.values().filter(|status| **status == 200).count() as u64;
        Self { processes, refreshes, alive, logged_out: processes.saturating_sub(alive) }
    }
}

/// The document of `--json`.
#[derive(Debug, Serialize)]
pub struct Document {
    /// 1.
    pub schema: u32,
    /// With Paceline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with: Option<Arm>,
    /// Each for itself.
    pub without: Arm,
    /// `ok` or `failed`.
    pub verdict: &'static str,
}

impl Document {
    /// Judges both ways: one refresh for all, and the trouble that it saves.
    pub fn new(with: Option<Arm>, without: Arm) -> Self {
        let shared = with
            .is_none_or(|with| with == Arm { refreshes: 1, alive: with.processes, logged_out: 0, ..with });
        let pain = without.logged_out > 0;
        Self { schema: 1, with, without, verdict: if shared && pain { "ok" } else { "failed" } }
    }

    /// For people.
    pub fn summary(&self) -> String {
        let mut text = String::from("             sessions  refreshes  alive  logged out\n");
        let arms = [("each alone", Some(self.without)), ("one wire", self.with)];
        for (name, arm) in arms.into_iter().filter_map(|(name, arm)| Some((name, arm?))) {
            let Arm { processes, refreshes, alive, logged_out } = arm;
            let _ = writeln!(text, "  {name:<10} {processes:>8} {refreshes:>10} {alive:>6} {logged_out:>11}");
        }
        let _ = writeln!(text, "  verdict    {}", self.verdict);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Arm = Arm { processes: 10, refreshes: 1, alive: 10, logged_out: 0 };
    const ALONE: Arm = Arm { processes: 10, refreshes: 10, alive: 0, logged_out: 10 };

    #[test]
    fn the_document_has_its_fields_in_order() {
        let text = serde_json::to_string(&Document::new(Some(SHARED), ALONE)).unwrap();
        let with = r#"{"schema":1,"with":{"processes":10,"refreshes":1,"alive":10,"logged_out":0},"#;
        let without =
            r#""without":{"processes":10,"refreshes":10,"alive":0,"logged_out":10},"verdict":"ok"}"#;
        assert_eq!(text, format!("{with}{without}"));
    }

    #[test]
    fn anything_but_one_refresh_for_all_and_pain_without_fails() {
        for with in [
            Arm { refreshes: 2, ..SHARED },
            Arm { refreshes: 0, ..SHARED },
            Arm { alive: 9, logged_out: 1, ..SHARED },
        ] {
            assert_eq!(Document::new(Some(with), ALONE).verdict, "failed", "{with:?}");
        }
        assert_eq!(Document::new(Some(SHARED), Arm { logged_out: 0, ..ALONE }).verdict, "failed");
        assert_eq!(Document::new(None, ALONE).verdict, "ok");
    }

    #[test]
    fn the_last_look_of_a_session_says_whether_it_lives() {
        let logged = |request: &str, process: &str, status| Logged {
            request: request.into(),
            process: process.into(),
            status,
        };
        let log = [
            logged("GET /me", "1", 401),
            logged("GET /me", "2", 200),
            logged("POST /token", "", 200),
            logged("POST /token", "", 400),
            logged("GET /me", "1", 200),
            logged("GET /me", "2", 401),
        ];
        assert_eq!(Arm::new(3, &log), Arm { processes: 3, refreshes: 2, alive: 1, logged_out: 2 });
    }
}
