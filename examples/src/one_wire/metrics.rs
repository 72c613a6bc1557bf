//! Live figures of this machine, read from the operating system.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A figure is read again only when it is older than this: the publication rate must not set the cost of reading.
const FRESH: Duration = Duration::from_millis(20);

/// Reads figures, keeping what was read for a moment.
///
/// Where the system has no `/proc`, every figure is null: the messages still differ by number and version.
#[derive(Debug, Default)]
pub struct Sampler {
    read: [Option<(Instant, Value)>; 4],
    /// Busy and total ticks at the last look, from which the share of busy time is taken.
    ticks: (u64, u64),
}

impl Sampler {
    /// The present value of one of [`METRIC_KEYS`](super::message::METRIC_KEYS), by its index.
    pub fn sample(&mut self, index: usize) -> Value {
        if let Some((at, value)) = &self.read[index]
            && at.elapsed() < FRESH
        {
            return value.clone();
        }
        let value = match index {
            0 => self.cpu(),
            1 => load(&file("/proc/loadavg")),
            2 => memory(&file("/proc/meminfo")),
            _ => network(&file("/proc/net/dev")),
        };
        self.read[index] = Some((Instant::now(), value.clone()));
        value
    }

    fn cpu(&mut self) -> Value {
        let text = file("/proc/stat");
        let ticks: Vec<u64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|n| n.parse().ok())
            .collect();
        let &[user, nice, system, idle, wait, ..] = ticks.as_slice() else {
            return json!({ "busy_permille": null });
        };
        let total: u64 = ticks.iter().sum();
        let busy = total - idle - wait;
        let (busy_before, total_before) = std::mem::replace(&mut self.ticks, (busy, total));
        let passed = total.saturating_sub(total_before).max(1);
        json!({
            "busy_permille": (busy.saturating_sub(busy_before) * 1000 / passed).min(1000),
            "idle_ticks": idle,
            "system_ticks": system,
            "user_ticks": user + nice,
        })
    }
}

fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Load averages in hundredths.
fn load(text: &str) -> Value {
    let mut words = text.split_whitespace();
    let mut hundredths = || {
        let (whole, part) = words.next()?.split_once('.')?;
        Some(whole.parse::<u64>().ok()? * 100 + part.parse::<u64>().ok()?)
    };
    json!({ "of_1_min": hundredths(), "of_5_min": hundredths(), "of_15_min": hundredths() })
}

fn memory(text: &str) -> Value {
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    json!({ "available_kib": kib("MemAvailable"), "free_kib": kib("MemFree"), "total_kib": kib("MemTotal") })
}

/// Sums over all interfaces.
fn network(text: &str) -> Value {
    let rows: Vec<Vec<u64>> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(_, row)| row.split_whitespace().filter_map(|n| n.parse().ok()).collect())
        .collect();
    let sum = |column: usize| rows.iter().filter_map(|row: &Vec<u64>| row.get(column)).sum::<u64>();
    if rows.is_empty() {
        return json!({ "received_bytes": null, "sent_bytes": null });
    }
    json!({ "received_bytes": sum(0), "received_packets": sum(1), "sent_bytes": sum(8), "sent_packets": sum(9) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            load("0.52 1.07 12.00 2/513 4711\n"),
            json!({ "of_1_min": 52, "of_5_min": 107, "of_15_min": 1200 })
        );
        assert_eq!(
            memory("MemTotal:        8000 kB\nMemFree:         100 kB\nMemAvailable:    4000 kB\n"),
            json!({ "available_kib": 4000, "free_kib": 100, "total_kib": 8000 })
        );
        let table = "Inter-|   Receive                    |  Transmit\n face |bytes packets\n\
                     \u{20}   lo: 10 1 0 0 0 0 0 0 20 2 0 0 0 0 0 0\n  eth0: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n";
        assert_eq!(
            network(table),
            json!({ "received_bytes": 11, "received_packets": 3, "sent_bytes": 23, "sent_packets": 6 })
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn figures_of_this_machine_are_real() {
        let mut sampler = Sampler::default();
        assert!(sampler.sample(0)["user_ticks"].as_u64().unwrap() > 0);
        assert!(sampler.sample(1)["of_1_min"].is_u64());
        assert!(sampler.sample(2)["total_kib"].as_u64().unwrap() > 1024);
        assert!(sampler.sample(3)["received_bytes"].is_u64());
    }

    #[test]
    fn a_system_without_these_files_gives_nulls() {
        assert_eq!(memory("")["total_kib"], Value::Null);
        assert_eq!(network("")["sent_bytes"], Value::Null);
        assert_eq!(load("")["of_1_min"], Value::Null);
    }
}
