//! What is seen while the run goes on: a table that is drawn over itself on a terminal, plain lines elsewhere.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    control::Counters,
    fleet::{Life, Member},
    log::Progress,
};

/// Between two drawings: often enough to see a takeover pass by.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Standard error, as a table or as lines.
#[derive(Debug)]
pub struct Table {
    terminal: bool,
    drawn_lines: usize,
    start: Instant,
    next: Instant,
}

impl Table {
    /// A table if standard error is a terminal.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { terminal: io::stderr().is_terminal(), drawn_lines: 0, start: now, next: now }
    }

    /// Draws the present state, if there is a terminal and it is time.
    pub fn draw(&mut self, members: &[Member], published: Progress, counters: Counters) {
        let now = Instant::now();
        if !self.terminal || now < self.next {
            return;
        }
        self.next = now + DRAW_EVERY;
        let rows = table(self.start.elapsed(), members, published, counters);
        self.replace(&rows);
    }

    /// Says what happened; the table goes on below it.
    pub fn say(&mut self, what: &str) {
        let line = format!("{:7.2} s  {what}\n", self.start.elapsed().as_secs_f64());
        self.replace(&line);
        self.drawn_lines = 0;
        self.next = Instant::now();
    }

    /// Removes the table.
    pub fn close(&mut self) {
        self.replace("");
    }

    fn replace(&mut self, text: &str) {
        let mut out = String::new();
        if self.drawn_lines > 0 {
            // Up to the first line of what was drawn, and clear from there.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn_lines);
        }
        out.push_str(text);
        self.drawn_lines = text.lines().count();
        // A terminal that is gone must not end the run.
        let _ = io::stderr().lock().write_all(out.as_bytes());
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

fn table(elapsed: Duration, members: &[Member], published: Progress, counters: Counters) -> String {
    let mut text = format!(
        "{:7.2} s  {} published, {} of {} connections open, {} refused\n",
        elapsed.as_secs_f64(),
        published.last,
        counters.connections,
        counters.connections_total,
        counters.refused
    );
    text.push_str("  session     pid  role         epoch  connection  delivered   behind  gaps\n");
    let shown = members.iter().filter(|one| !matches!(one.life, Life::Killed | Life::Left));
    for one in shown {
        let progress = one.progress();
        let role = match one.life {
            Life::Frozen => "frozen",
            Life::Joining => "joining",
            Life::Failed => "failed",
            Life::Member | Life::Leaving | Life::Killed | Life::Left => &one.place.role,
        };
        let behind = published.last.saturating_sub(progress.last);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<7} {:>7}  {:<11} {:>6}  {:<10} {:>10} {:>8} {:>5}",
            one.name,
            one.process.pid(),
            role,
            one.place.epoch,
            one.place.connection,
            progress.events,
            behind,
            progress.gaps
        );
    }
    text
}
