//! What came of it.

use std::fmt::Write;

use serde::Serialize;

use super::server::Logged;

/// One way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// Processes that wanted the answer.
    pub processes: u64,
    /// Requests that the API logged.
    pub calls: u64,
    /// Processes that got the answer without a request of their own.
    pub hits: u64,
    /// Requests that the API refused because the quota was used up.
    pub http_429: u64,
    /// Processes without the answer.
    pub failed: u64,
}

impl Arm {
    /// Counts what the API logged; `got` processes have the answer.
    pub fn new(processes: u64, got: u64, log: &[Logged]) -> Self {
        let of = |status| log.iter().filter(|logged| logged.status == status).count() as u64;
        Self {
            processes,
            calls: log.len() as u64,
            hits: got.saturating_sub(of(200)),
            http_429: of(429),
            failed: processes - got,
        }
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
    /// Judges both ways: one request for all, and the trouble that it saves.
    pub fn new(with: Option<Arm>, without: Arm) -> Self {
        let shared = with.is_none_or(|with| {
            with == Arm { calls: 1, hits: with.processes - 1, http_429: 0, failed: 0, ..with }
        });
        let pain = without.calls > 1 && without.http_429 > 0;
        Self { schema: 1, with, without, verdict: if shared && pain { "ok" } else { "failed" } }
    }

    /// For people.
    pub fn summary(&self) -> String {
        let mut text = String::from("             processes  calls  hits  429  failed\n");
        let arms = [("each alone", Some(self.without)), ("one wire", self.with)];
        for (name, arm) in arms.into_iter().filter_map(|(name, arm)| Some((name, arm?))) {
            let Arm { processes, calls, hits, http_429, failed } = arm;
            let _ =
                writeln!(text, "  {name:<10} {processes:>9} {calls:>6} {hits:>5} {http_429:>4} {failed:>7}");
        }
        let _ = writeln!(text, "  verdict    {}", self.verdict);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Arm = Arm { processes: 20, calls: 1, hits: 19, http_429: 0, failed: 0 };
    const ALONE: Arm = Arm { processes: 20, calls: 45, hits: 0, http_429: 30, failed: 5 };

    #[test]
    fn the_document_has_its_fields_in_order() {
        let text = |document| serde_json::to_string(&document).unwrap();
        let without =
            r#""without":{"processes":20,"calls":45,"hits":0,"http_429":30,"failed":5},"verdict":"ok"}"#;
        let with = r#"{"schema":1,"with":{"processes":20,"calls":1,"hits":19,"http_429":0,"failed":0},"#;
        assert_eq!(text(Document::new(Some(SHARED), ALONE)), format!("{with}{without}"));
        assert_eq!(text(Document::new(None, ALONE)), format!("{{\"schema\":1,{without}"));
    }

    #[test]
    fn anything_but_one_call_for_all_and_pain_without_fails() {
        assert_eq!(Document::new(Some(SHARED), ALONE).verdict, "ok");
        for with in [
            Arm { calls: 2, hits: 18, ..SHARED },
            Arm { calls: 2, ..SHARED },
            Arm { http_429: 1, ..SHARED },
            Arm { hits: 18, failed: 1, ..SHARED },
        ] {
            assert_eq!(Document::new(Some(with), ALONE).verdict, "failed", "{with:?}");
        }
        for without in [Arm { http_429: 0, ..ALONE }, Arm { calls: 1, ..ALONE }] {
            assert_eq!(Document::new(Some(SHARED), without).verdict, "failed", "{without:?}");
        }
    }

    #[test]
    fn counters_come_from_the_log() {
        let logged = |status| Logged { at_ms: 0, request: "GET /budget".into(), process: "1".into(), status };
        let log = [logged(200), logged(429), logged(429), logged(200)];
        assert_eq!(Arm::new(4, 3, &log), Arm { processes: 4, calls: 4, hits: 1, http_429: 2, failed: 1 });
    }
}
