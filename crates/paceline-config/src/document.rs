//! The tables of `docs/CONFIG.md`, written from the code.

use crate::{
    config::Config,
    reader::{Field, KeyDoc},
    tables::{PusherUpstream, SseUpstream, WebSocketUpstream},
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
    let mut out = String::new();
    let mut section = None;
    for key in &keys {
        let this = section_of(&key.key);
        if section.as_ref() != Some(&this) {
            out.push_str(&format!(
                "\n### {}\n| key | takes | default | meaning |\n|---|---|---|---|\n",
                heading(&this)
            ));
            section = Some(this.clone());
        }
        let inside =
            key.key.strip_prefix(&this).map_or(key.key.as_str(), |rest| rest.trim_start_matches('.'));
        let default = match (&key.default, key.required) {
            (Some(default), _) => format!("`{default}`"),
            (None, true) => "*required*".to_owned(),
            (None, false) => String::new(),
        };
        let mut meaning = key.meaning.clone();
        if let Some(why) = key.tuned_for.filter(|why| !why.is_empty()) {
            meaning.push_str(&format!(" Default: {why}."));
        }
        if let Some(part) = key.needs {
            meaning.push_str(&format!(" Needs {part}."));
        }
        out.push_str(&format!(
            "| `{inside}` | {} | {} | {} |\n",
            cell(&key.kind),
            cell(&default),
            cell(&meaning)
        ));
    }
    out
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

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
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
