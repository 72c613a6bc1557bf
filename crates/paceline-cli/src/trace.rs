//! `trace`: the trace rings of all sessions, merged; one cause as a tree over processes.

use std::{collections::BTreeSet, time::Duration};

use paceline::{Look, QueryKey, Seen, SessionInfo, TraceRecord};
use paceline_proto::id::Key;

use crate::{
    args::{Trace, TraceCommand, TraceFilter},
    document::{self, document, spell},
    events::say_who_is_silent,
    failure::Failure,
    group::{self, Absent, Joined},
    listing::wall_of,
    looks::{Looks, Sight, silent},
    settings::Settings,
    ui::{Cell, Style, Ui, one_line},
};

/// Between two looks while following.
const STEP: Duration = Duration::from_millis(200);
/// Bytes of a key that a record keeps; a longer one is cut.
const KEY_BYTES: usize = 23;

/// Shows the rings, or one cause.
pub async fn trace(settings: &Settings, trace: Trace, ui: &Ui) -> Result<(), Failure> {
    let joined = group::join(settings, "paceline trace", Absent::Fail, ui).await?;
    let shown = match &trace.command {
        Some(TraceCommand::Show { id }) => show(settings, &joined, id, ui).await,
        None => list(settings, &joined, &trace, ui).await,
    };
    joined.leave().await;
    shown
}

/// A record and whose it is.
struct Line<'a> {
    info: &'a SessionInfo,
    record: &'a TraceRecord,
}

async fn list(settings: &Settings, joined: &Joined, trace: &Trace, ui: &Ui) -> Result<(), Failure> {
    let mut looks = Looks::new(settings, joined, trace.filter.session.as_deref()).await?;
    let look = |after| Look::Trace { after, trace: None };
    let mut sights = looks.again(settings, joined, look).await?;
    let mut heading = !ui.json;
    if ui.json && !trace.follow {
        return ui.document(&document(document::Trace {
            group: settings.group.to_string(),
            records: lines(&sights, &trace.filter).iter().map(document_of).collect(),
            silent: silent(&sights).iter().map(|info| info.member.session.to_string()).collect(),
        }));
    }
    say_who_is_silent(&sights, ui);
    loop {
        let lines = lines(&sights, &trace.filter);
        if ui.json {
            lines.iter().try_for_each(|line| ui.document(&document(document_of(line))))?;
        } else if heading || !lines.is_empty() {
            print(&lines, heading, ui)?;
            heading = false;
        }
        if !trace.follow {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
        }
        sights = looks.again(settings, joined, look).await?;
    }
}

fn lines<'a>(sights: &'a [Sight], filter: &TraceFilter) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    for sight in sights {
        if let Some(Seen::Trace { records, .. }) = &sight.seen {
            let fitting = records.iter().filter(|record| fits(record, filter));
            lines.extend(fitting.map(|record| Line { info: &sight.info, record }));
        }
    }
    lines.sort_by_key(|line| line.record.at);
    lines
}

fn fits(record: &TraceRecord, filter: &TraceFilter) -> bool {
    let id = format!("{:032x}", record.trace.trace);
    (filter.all || record.trace.trace != 0)
        && filter.actor.as_ref().is_none_or(|actor| *actor == record.actor)
        && filter.key.as_ref().is_none_or(|key| is_under(&record.key, &key.to_key().0))
        && filter.trace.as_ref().is_none_or(|wanted| id.starts_with(wanted) || id.ends_with(wanted))
        && filter.min.is_none_or(|min| {
            Duration::from_nanos(u64::from(record.queue_ns) + u64::from(record.run_ns)) >= min
        })
}

/// Whether a record's key, of which the end may be cut off, may lie at or under `wanted`.
fn is_under(key: &[u8], wanted: &[u8]) -> bool {
    key.starts_with(wanted) || (key.len() == KEY_BYTES && wanted.starts_with(key))
}

fn print(lines: &[Line<'_>], heading: bool, ui: &Ui) -> Result<(), Failure> {
    let rows: Vec<Vec<Cell>> = lines
        .iter()
        .map(|Line { info, record }| {
            let id = format!("{:032x}", record.trace.trace);
            vec![
                Cell::new(wall_of(record.at).time_fine()).style(Style::Dim),
                Cell::new(&info.member.session.to_string()[24..]).style(Style::Bold),
                Cell::new(record.actor.clone()),
                Cell::new(record.kind.clone()),
                Cell::new(key_text(&record.key)),
                Cell::new(micros(record.queue_ns)),
                Cell::new(micros(record.run_ns)),
                Cell::new(if record.outcome == "done" { "" } else { record.outcome.as_str() })
                    .style(Style::Warn),
                Cell::new(if record.trace.trace == 0 { "" } else { &id[24..] }).style(Style::Dim),
            ]
        })
        .collect();
    let names = ["TIME", "SESSION", "ACTOR", "MESSAGE", "KEY", "QUEUED", "RAN", "", "TRACE"];
    if heading { ui.table(&names, &rows) } else { ui.table_without_heading(&names, &rows) }
}

fn document_of(line: &Line<'_>) -> document::TraceRecord {
    let Line { info, record } = line;
    document::TraceRecord {
        at: wall_of(record.at),
        session: info.member.session.to_string(),
        pid: info.member.pid,
        actor: record.actor.clone(),
        message: record.kind.clone(),
        key: (!record.key.is_empty()).then(|| key_text(&record.key)),
        queued_us: f64::from(record.queue_ns) / 1e3,
        ran_us: f64::from(record.run_ns) / 1e3,
        outcome: record.outcome.clone(),
        trace: (record.trace.trace != 0).then(|| format!("{:032x}", record.trace.trace)),
        span: format!("{:016x}", record.trace.span),
        parent: (record.parent != 0).then(|| format!("{:016x}", record.parent)),
    }
}

async fn show(settings: &Settings, joined: &Joined, id: &str, ui: &Ui) -> Result<(), Failure> {
    let mut looks = Looks::new(settings, joined, None).await?;
    let sights = looks.again(settings, joined, |after| Look::Trace { after, trace: None }).await?;
    let filter = TraceFilter { trace: Some(id.to_owned()), ..TraceFilter::default() };
    let lines = lines(&sights, &filter);
    let ids: BTreeSet<u128> = lines.iter().map(|line| line.record.trace.trace).collect();
    let trace = match ids.iter().collect::<Vec<_>>()[..] {
        [one] => *one,
        [] => {
            return Err(Failure::failed(format!(
                "no ring holds a trace whose id begins or ends with {id:?}"
            )));
        }
        _ => return Err(Failure::Refused(format!("{} traces fit {id:?}; give more of the id", ids.len()))),
    };
    let tree = Tree::new(&lines);
    if ui.json {
        return ui.document(&document(document::TraceShown {
            group: settings.group.to_string(),
            trace: format!("{trace:032x}"),
            processes: tree.processes(),
            took_us: tree.took_ns() as f64 / 1e3,
            spans: tree.walk().iter().map(|step| step.document(&tree)).collect(),
            silent: silent(&sights).iter().map(|info| info.member.session.to_string()).collect(),
        }));
    }
    say_who_is_silent(&sights, ui);
    ui.line(&format!(
        "{}  {} messages in {} processes, {} from the first to the end of the last",
        ui.paint(Style::Bold, &format!("trace {trace:032x}")),
        lines.len(),
        tree.processes(),
        millis(tree.took_ns()),
    ))?;
    tree.print(ui)
}

/// Records of one cause, each below the one that caused it.
struct Tree<'a> {
    lines: &'a [Line<'a>],
    begin: u64,
}

/// A record on a walk through the tree.
struct Step {
    at: usize,
    /// Whether a sibling follows, for each level above and its own.
    more: Vec<bool>,
}

impl<'a> Tree<'a> {
    fn new(lines: &'a [Line<'a>]) -> Self {
        let begin = lines.iter().map(|line| begun(line.record)).min().unwrap_or_default();
        Self { lines, begin }
    }

    fn processes(&self) -> usize {
        self.lines.iter().map(|line| line.info.member.pid).collect::<BTreeSet<_>>().len()
    }

    fn took_ns(&self) -> u64 {
        let end = self.lines.iter().map(|line| line.record.at + u64::from(line.record.run_ns)).max();
        end.unwrap_or_default().saturating_sub(self.begin)
    }

    /// Depth first, children in the order of time. What caused it may be in a ring that is gone: then it is a root.
    fn walk(&self) -> Vec<Step> {
        let spans: BTreeSet<u64> = self.lines.iter().map(|line| line.record.trace.span).collect();
        let roots: Vec<usize> = (0..self.lines.len())
            .filter(|at| {
                let record = self.lines[*at].record;
                !spans.contains(&record.parent) || record.parent == record.trace.span
            })
            .collect();
        let mut steps = Vec::new();
        let mut open: Vec<Step> = Vec::new();
        let push = |open: &mut Vec<Step>, children: &[usize], above: &[bool]| {
            for (n, at) in children.iter().enumerate().rev() {
                let mut more = above.to_vec();
                more.push(n + 1 < children.len());
                open.push(Step { at: *at, more });
            }
        };
        push(&mut open, &roots, &[]);
        while let Some(step) = open.pop() {
            let span = self.lines[step.at].record.trace.span;
            // A session that lies about its spans could make a ring of them: nothing is walked twice.
            let children: Vec<usize> = (0..self.lines.len())
                .filter(|at| {
                    self.lines[*at].record.parent == span && self.lines[*at].record.trace.span != span
                })
                .collect();
            if steps.len() < self.lines.len() {
                push(&mut open, &children, &step.more);
                steps.push(step);
            }
        }
        steps
    }

    fn print(&self, ui: &Ui) -> Result<(), Failure> {
        let rows: Vec<Vec<Cell>> = self
            .walk()
            .iter()
            .map(|step| {
                let Line { info, record } = &self.lines[step.at];
                vec![
                    Cell::new(format!("+{}", millis(begun(record) - self.begin))).style(Style::Dim),
                    Cell::new(format!("{}{} {}", step.branch(), record.actor, record.kind)),
                    Cell::new(key_text(&record.key)),
                    Cell::new(&info.member.session.to_string()[24..]).style(Style::Bold),
                    Cell::new(format!("{}, process {}", one_line(&info.member.label), info.member.pid)),
                    Cell::new(micros(record.queue_ns)),
                    Cell::new(micros(record.run_ns)),
                ]
            })
            .collect();
        ui.table(&["AFTER", "MESSAGE", "KEY", "SESSION", "WHO", "QUEUED", "RAN"], &rows)
    }
}

impl Step {
    fn branch(&self) -> String {
        let Some((last, above)) = self.more.split_last() else { return String::new() };
        if above.is_empty() {
            return String::new();
        }
        let mut text: String = above[1..].iter().map(|more| if *more { "│  " } else { "   " }).collect();
        text += if *last { "├─ " } else { "└─ " };
        text
    }

    fn document(&self, tree: &Tree<'_>) -> document::Span {
        let line = &tree.lines[self.at];
        document::Span {
            depth: self.more.len() - 1,
            after_us: (begun(line.record) - tree.begin) as f64 / 1e3,
            record: document_of(line),
        }
    }
}

/// When a message was queued.
fn begun(record: &TraceRecord) -> u64 {
    record.at.saturating_sub(u64::from(record.queue_ns))
}

/// The key, or as much of it as the record kept.
fn key_text(bytes: &[u8]) -> String {
    let read = |len: usize| QueryKey::from_key(&Key::copy_from(&bytes[..len])).ok();
    match read(bytes.len()) {
        Some(key) => spell(&key),
        None => match (1..bytes.len()).rev().find_map(read) {
            Some(key) => format!("{}/…", spell(&key)),
            None => String::new(),
        },
    }
}

fn micros(ns: u32) -> String {
    if ns == 0 { "-".to_owned() } else { format!("{:.1} µs", f64::from(ns) / 1e3) }
}

fn millis(ns: u64) -> String {
    format!("{:.3} ms", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use paceline::{Member, Rank, SessionId, Standing};

    use super::*;

    fn info() -> SessionInfo {
        SessionInfo {
            member: Member { session: SessionId(7), label: "one".into(), pid: 1, joined: true },
            build: String::new(),
            rank: Rank::Candidate,
            standing: Standing::Follower,
            since_ms: 0,
            keys: 0,
            streams: 0,
            queued: 0,
            acked: None,
            conflated: false,
            proto: 1,
            dropped: 0,
        }
    }

    fn record(at: u64, span: u64, parent: u64) -> TraceRecord {
        TraceRecord {
            at,
            actor: "hub".into(),
            kind: "op".into(),
            key: Bytes::new(),
            queue_ns: 5,
            run_ns: 10,
            outcome: "done".into(),
            trace: paceline::Trace { trace: 9, span },
            parent,
        }
    }

    fn walked(records: &[TraceRecord]) -> Vec<(u64, String)> {
        let info = info();
        let lines: Vec<Line<'_>> = records.iter().map(|record| Line { info: &info, record }).collect();
        let tree = Tree::new(&lines);
        tree.walk().iter().map(|step| (lines[step.at].record.trace.span, step.branch())).collect()
    }

    #[test]
    fn what_was_caused_stands_below_its_cause() {
        let records =
            [record(10, 1, 0), record(20, 2, 1), record(30, 3, 2), record(40, 4, 2), record(50, 5, 1)];
        let spans: Vec<u64> = walked(&records).iter().map(|(span, _)| *span).collect();
        assert_eq!(spans, [1, 2, 3, 4, 5]);
        let branches: Vec<String> = walked(&records).into_iter().map(|(_, branch)| branch).collect();
        assert_eq!(branches, ["", "├─ ", "│  ├─ ", "│  └─ ", "└─ "]);
    }

    #[test]
    fn a_cause_that_is_gone_leaves_a_root_and_a_ring_of_causes_ends() {
        assert_eq!(walked(&[record(10, 2, 1)]).len(), 1);
        assert!(walked(&[record(10, 1, 2), record(20, 2, 1)]).len() <= 2);
        assert_eq!(walked(&[record(10, 1, 1)]).len(), 1);
    }

    #[test]
    fn a_cut_key_may_lie_under_a_longer_one() {
        assert!(is_under(b"ab", b"a") && !is_under(b"a", b"ab"));
        let cut = [b'k'; KEY_BYTES];
        assert!(is_under(&cut, &[b'k'; 40]));
    }

    #[test]
    fn keys_are_shown_as_far_as_they_were_kept() {
        let key: QueryKey = r#"["packages",7]"#.parse().unwrap();
        assert_eq!(key_text(&key.to_key().0), "packages/7");
        let long: QueryKey = r#"["packages","a text that is longer than a record keeps"]"#.parse().unwrap();
        assert_eq!(key_text(&long.to_key().0[..KEY_BYTES]), "packages/…");
    }
}
