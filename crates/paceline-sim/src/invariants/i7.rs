//! I7: a follower's place only grows, and what it shows of a key never goes back without a Reset.

use std::collections::BTreeMap;

use paceline_proto::id::{Key, Mark, Place, SessionId};

use crate::{
    fact::Fact,
    invariants::{Invariant, View},
};

#[derive(Default)]
pub(super) struct FollowersGoForward {
    last: BTreeMap<SessionId, Mark>,
    shown: BTreeMap<(SessionId, Key), Place>,
    /// How often the server had set the key back when a Reset took the value.
    resets: BTreeMap<(Key, Mark), u64>,
}

impl Invariant for FollowersGoForward {
    fn name(&self) -> &'static str {
        "I7"
    }

    fn observe(&mut self, fact: &Fact, view: &View<'_>, broken: &mut Vec<String>) {
        match fact {
            Fact::Followed { session, last } => {
                let before = self.last.insert(*session, *last).unwrap_or_default();
                if before > *last {
                    broken.push(format!("{session:?} went back from {before} to {last}"));
                }
            }
            Fact::Shown { session, held } => {
                let before = self.shown.insert((*session, held.key.clone()), held.place.clone());
                if let Some(before) = before.filter(|before| *before > held.place) {
                    broken.push(format!(
                        "{session:?} was shown {:?} at {:?} after {before:?}",
                        held.key, held.place
                    ));
                }
                let feed = view.feeds.iter().find(|feed| feed.key_index(&held.key).is_some());
                let Some(feed) = feed else { return };
                let Some(generation) = feed.published(&held.key, &held.place.version, &held.value) else {
                    broken.push(format!(
                        "{session:?} was shown a value of {:?} that nobody published",
                        held.key
                    ));
                    return;
                };
                let reset = (held.key.clone(), held.place.reset);
                if held.place.mark == held.place.reset {
                    self.resets.insert(reset.clone(), generation);
                }
                if self.resets.get(&reset).is_some_and(|known| *known > generation) {
                    broken.push(format!("{session:?} was shown {:?} as it was before a Reset", held.key));
                }
            }
            Fact::Unsubscribed { session, key } | Fact::Cleared { session, key } => {
                self.shown.remove(&(*session, key.clone()));
            }
            _ => {}
        }
    }
}
