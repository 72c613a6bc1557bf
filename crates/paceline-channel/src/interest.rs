//! Which channels are wanted: those that a route names as they stand always, and those with names in them while a session
//! subscribes to a key that binds the names.
//!
//! A route with the channel `org.{org}` and the key `["labels", "{org}"]` wants `org.7` while somebody subscribes to
//! `["labels", 7]` or to a key under it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use paceline_proto::id::{Key, SessionId};
use paceline_query::key::QueryKey;

use crate::{pattern::Pattern, protocol::Channels, route::Router, shape::KeyShape};

/// What sessions subscribe to, as far as channels depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// A session subscribes to a key.
    Observed {
        /// Who.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// It does no more.
    Unobserved {
        /// Who.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// The session is gone, and all it subscribed to.
    Gone(SessionId),
}

/// The channels wanted of one upstream.
#[derive(Debug)]
pub struct Interest {
    /// Channels with names in them, each with the keys that bind these.
    wishes: Vec<(Pattern, Vec<KeyShape>)>,
    fixed: Channels,
    /// Keys that want channels: who subscribes, and what they want.
    keys: BTreeMap<Key, (BTreeSet<SessionId>, Channels)>,
}

impl Interest {
    /// What the routes want.
    pub fn new(router: &Router) -> Self {
        let mut interest = Self { wishes: Vec::new(), fixed: Channels::new(), keys: BTreeMap::new() };
        for (pattern, keys) in router.wishes() {
            if pattern.is_fixed() {
                interest.fixed.insert(pattern.to_string().into());
            } else {
                interest.wishes.push((pattern.clone(), keys.cloned().collect()));
            }
        }
        interest
    }

    /// Whether it depends on what sessions subscribe to.
    pub fn follows_sessions(&self) -> bool {
        !self.wishes.is_empty()
    }

    /// Takes a fact. Whether the channels may have changed.
    pub fn take(&mut self, observation: &Observation) -> bool {
        match observation {
            Observation::Observed { session, key } => {
                if let Some((sessions, _)) = self.keys.get_mut(key) {
                    sessions.insert(*session);
                    return false;
                }
                let wanted = self.wanted_by(key);
                let is_new = !wanted.is_empty();
                if is_new {
                    self.keys.insert(key.clone(), (BTreeSet::from([*session]), wanted));
                }
                is_new
            }
            Observation::Unobserved { session, key } => {
                let Some((sessions, _)) = self.keys.get_mut(key) else { return false };
                sessions.remove(session);
                let is_last = sessions.is_empty();
                if is_last {
                    self.keys.remove(key);
                }
                is_last
            }
            Observation::Gone(session) => {
                let before = self.keys.len();
                self.keys.retain(|_, (sessions, _)| {
                    sessions.remove(session);
                    !sessions.is_empty()
                });
                self.keys.len() != before
            }
        }
    }

    /// Nobody subscribes to anything.
    pub fn clear(&mut self) {
        self.keys.clear();
    }

    /// The channels that are wanted.
    pub fn channels(&self) -> Channels {
        let of_keys = self.keys.values().flat_map(|(_, channels)| channels);
        self.fixed.iter().chain(of_keys).cloned().collect()
    }

    fn wanted_by(&self, key: &Key) -> Channels {
        let Ok(key) = QueryKey::from_key(key) else { return Channels::new() };
        let segments = key.segments();
        let channel = |(pattern, keys): &(Pattern, Vec<KeyShape>)| {
            let filled = keys.iter().filter_map(|shape| pattern.fill(&shape.bind(&segments)?));
            filled.map(Arc::from).collect::<Vec<_>>()
        };
        self.wishes.iter().flat_map(channel).collect()
    }
}

#[cfg(test)]
mod tests {
    use paceline_query::key;
    use serde_json::json;

    use super::*;
    use crate::route::Route;

    fn interest() -> Interest {
        let mut router = Router::default();
        let route = |channel: &str, key: serde_json::Value| {
            Route::new().channel(channel).and_then(|route| route.invalidate(&key, false)).unwrap()
        };
        router.push(route("org.{org}", json!(["labels", "{org}"])));
        router.push(route("org.{org}.inventory", json!(["packages", "$.license", "{org}"])));
        router.push(route("org.{org}", json!(["stock", {"of": "{org}"}])));
        router.push(Route::new().channel("news").and_then(|route| route.event("news", "$")).unwrap());
        router.push(Route::new().event("all", "$").unwrap());
        Interest::new(&router)
    }

    fn channels(interest: &Interest) -> Vec<String> {
        interest.channels().iter().map(ToString::to_string).collect()
    }

    fn session(n: u128) -> SessionId {
        SessionId(n)
    }

    #[test]
    fn a_channel_is_wanted_while_a_key_that_binds_its_names_is_subscribed() {
        let mut interest = interest();
        assert!(interest.follows_sessions());
        assert_eq!(channels(&interest), ["news"]);
        let observed = |n, key: QueryKey| Observation::Observed { session: session(n), key: key.to_key() };
        let unobserved =
            |n, key: QueryKey| Observation::Unobserved { session: session(n), key: key.to_key() };
        assert!(interest.take(&observed(1, key!["labels", 7])));
        assert!(!interest.take(&observed(2, key!["labels", 7])));
        assert!(interest.take(&observed(2, key!["labels", 7, "new"])), "a key under it wants it too");
        assert!(interest.take(&observed(1, key!["packages", "A", "x"])));
        assert_eq!(channels(&interest), ["news", "org.7", "org.x.inventory"]);
        assert!(!interest.take(&unobserved(1, key!["labels", 7])));
        assert!(interest.take(&Observation::Gone(session(2))));
        assert_eq!(channels(&interest), ["news", "org.x.inventory"]);
        assert!(interest.take(&unobserved(1, key!["packages", "A", "x"])));
        assert!(!interest.take(&unobserved(1, key!["packages", "A", "x"])));
        assert_eq!(channels(&interest), ["news"]);
    }

    #[test]
    fn keys_that_bind_no_channel_want_none() {
        let mut interest = interest();
        for key in [
            key!["labels"],
            key!["other", 7],
            // A name in a channel has no dot, is not empty, and is a number if it looks like one.
            key!["labels", "a.b"],
            key!["labels", ""],
            key!["labels", "7"],
            key!["labels", null],
            key!["labels", [7]],
            key!["stock", { "of": 7 }],
        ] {
            assert!(
                !interest.take(&Observation::Observed { session: session(1), key: key.to_key() }),
                "{key}"
            );
        }
        interest.clear();
        assert_eq!(channels(&interest), ["news"]);
    }
}
