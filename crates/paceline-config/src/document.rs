//! The tables of `docs/CONFIG.md`, written from the code.

use crate::{
    config::Config,
    reader::{Field, KeyDoc},
    tables::{PollUpstream, PusherUpstream, SseUpstream, WebSocketUpstream},
};

/// Every key of the language.
pub fn documented() -> Vec<KeyDoc> {
    let mut keys = Vec::new();
    Config::describe("", &mut keys);
    let place = keys.iter().position(|key| key.key == "upstreams").map_or(keys.len(), |at| at + 1);
    let mut upstreams = Vec::new();
    WebSocketUpstream::describe("upstreams.NAME(websocket)", &mut upstreams);
    SseUpstream::describe("upstreams.NAME(sse)", &mut upstreams);
    PusherUpstream::describe("upstreams.NAME(pusher)", &mut upstreams);
    PollUpstream::describe("upstreams.NAME(poll)", &mut upstreams);
    for key in &mut upstreams {
        // `join` quotes what is no bare key.
        key.key = key.key.replace('"', "");
    }
    keys.splice(place..place, upstreams);
    keys
}

/// The same as tables in Markdown, one for each table of the language.
pub fn markdown() -> String {
    let keys = documented();
    let mut sections: Vec<(String, Vec<&KeyDoc>)> = vec![(String::new(), Vec::new())];
    for key in &keys {
        let name = section_of(&key.key);
        match sections.iter_mut().find(|(section, _)| *section == name) {
            Some((_, rows)) => rows.push(key),
            None => sections.push((name, vec![key])),
        }
    }
    let mut out = String::new();
    for (section, rows) in &sections {
        out.push_str(&format!("\n### {}\n", heading(section)));
        out.push_str("| key | takes | default | tuned for | meaning |\n|---|---|---|---|---|\n");
        for key in rows {
            out.push_str(&row(key, section));
        }
    }
    out
}

fn row(key: &KeyDoc, section: &str) -> String {
    let inside = key.key.strip_prefix(section).map_or(key.key.as_str(), |rest| rest.trim_start_matches('.'));
    let default = match (&key.default, key.required) {
        (Some(default), _) => format!("`{default}`"),
        (None, true) => "*required*".to_owned(),
        (None, false) => String::new(),
    };
    let needs = key.needs.map_or_else(String::new, |part| format!(" Needs a build with {part}."));
    let meaning = format!("{}{needs}", key.meaning);
    let shown = format!("`{inside}`");
    let cells = [shown.as_str(), &key.kind, &default, key.tuned_for.unwrap_or_default(), &meaning];
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// The table that a key belongs to; tables at the root are sections of their own.
fn section_of(key: &str) -> String {
    let mut parts = key.split('.');
    let first = parts.next().unwrap_or_default();
    match parts.next() {
        None => String::new(),
        Some(_) if first.ends_with("[]") => first.to_owned(),
        Some(second) if second.starts_with("NAME") => format!("{first}.{second}"),
        Some(_) => first.to_owned(),
    }
}

fn heading(section: &str) -> String {
    if section.is_empty() {
        return "The root".to_owned();
    }
    if let Some(list) = section.strip_suffix("[]") {
        return format!("`[[{list}]]`");
    }
    match section.split_once('(') {
        Some((table, protocol)) => {
            format!("`[{table}]` with `protocol = \"{}\"`", protocol.trim_end_matches(')'))
        }
        None => format!("`[{section}]`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_described_and_says_what_its_default_is_tuned_for() {
        let keys = documented();
        assert!(keys.len() > 150, "{}", keys.len());
        for key in &keys {
            assert!(key.meaning.ends_with('.'), "{}: {:?}", key.key, key.meaning);
            assert_eq!(
                key.default.is_some(),
                key.tuned_for.is_some_and(|why| !why.is_empty()),
                "{}",
                key.key
            );
            assert!(!key.kind.is_empty(), "{}", key.key);
        }
        let mut names: Vec<&str> = keys.iter().map(|key| key.key.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), keys.len(), "a key is described twice");
    }
}
