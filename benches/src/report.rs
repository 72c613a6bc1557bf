//! What a run found, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

/// A run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this document.
    pub schema: u32,
    /// Which measurements.
    pub bench: &'static str,
    /// Where they ran.
    pub machine: Machine,
    /// What stood beside them.
    pub peers: Vec<String>,
    /// What could not run, and why.
    pub skipped: Vec<String>,
    /// The measurements.
    pub rows: Vec<Row>,
}

/// The machine, as far as it matters.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Logical processors.
    pub cpus: usize,
    /// System and its version.
    pub system: String,
}

/// A measurement.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// Queries in the cache.
    pub queries: usize,
    /// What came out, in `unit`.
    pub value: f64,
    /// Of `value`.
    pub unit: &'static str,
    /// The same of the peer, if it has the like.
    pub peer: Option<f64>,
    /// How many times the peer's is ours.
    pub ratio: Option<f64>,
    /// At most so much, where that is promised.
    pub target: Option<f64>,
    /// At least so many times, where that is promised.
    pub target_ratio: Option<f64>,
}

impl Row {
    /// A measurement in nanoseconds.
    pub fn ns(name: &'static str, queries: usize, value: f64) -> Self {
        Self { name, queries, value, unit: "ns", ..Self::default() }
    }

    /// Beside this of the peer.
    #[must_use]
    pub fn beside(mut self, peer: Option<f64>) -> Self {
        self.peer = peer;
        self.ratio = peer.filter(|_| self.value > 0.0).map(|peer| peer / self.value);
        self
    }

    /// Promised to be at most so much.
    #[must_use]
    pub fn at_most(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }

    /// Promised to be at least so many times better than the peer.
    #[must_use]
    pub fn at_least_times(self, ratio: f64) -> Self {
        Self { target_ratio: Some(ratio), ..self }
    }

    /// Whether what was promised holds; `None` where nothing was, or nothing stood beside it.
    pub fn is_met(&self) -> Option<bool> {
        let value = self.target.map(|target| self.value <= target);
        let ratio = self.target_ratio.and_then(|target| Some(self.ratio? >= target));
        match (value, ratio) {
            (Some(value), Some(ratio)) => Some(value && ratio),
            (one, other) => one.or(other),
        }
    }
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let processor = model.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()));
        Self {
            processor: processor.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease")),
        }
    }
}

impl Report {
    /// As a table for people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let machine = &self.machine;
        let _ = writeln!(out, "{} CPUs, {}, {}", machine.cpus, machine.processor, machine.system);
        let _ = writeln!(
            out,
            "beside: {}\n",
            if self.peers.is_empty() { "nothing".to_owned() } else { self.peers.join(", ") }
        );
        let _ = writeln!(
            out,
            "| what | queries | here | peer | ratio | target | met |\n|---|---|---|---|---|---|---|"
        );
        for row in &self.rows {
            let show = |value: f64| shown(value, row.unit);
            let target = [
                row.target.map(|target| format!("≤ {}", show(target))),
                row.target_ratio.map(|ratio| format!("≥ {ratio}×")),
            ];
            let target: Vec<String> = target.into_iter().flatten().collect();
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                row.name,
                row.queries,
                show(row.value),
                row.peer.map_or("–".to_owned(), show),
                row.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.0}×")),
                target.join(", "),
                row.is_met().map_or("", |met| if met { "yes" } else { "no" }),
            );
        }
        for skipped in &self.skipped {
            let _ = writeln!(out, "skipped: {skipped}");
        }
        out
    }
}

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "ns" if value >= 1e6 => format!("{:.1} ms", value / 1e6),
        "ns" if value >= 1e3 => format!("{:.2} µs", value / 1e3),
        "ns" => format!("{value:.0} ns"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_is_judged_only_where_it_can_be() {
        let row = Row::ns("x", 1, 100.0);
        assert_eq!(row.is_met(), None);
        assert_eq!(Row::ns("x", 1, 100.0).at_most(99.0).is_met(), Some(false));
        assert_eq!(Row::ns("x", 1, 100.0).at_least_times(10.0).is_met(), None, "nothing stood beside it");
        let beside = || Row::ns("x", 1, 100.0).beside(Some(1000.0)).at_least_times(10.0);
        assert_eq!((beside().ratio, beside().is_met()), (Some(10.0), Some(true)));
        assert_eq!(beside().at_most(99.0).is_met(), Some(false));
        assert_eq!(beside().at_least_times(11.0).is_met(), Some(false));
    }
}
