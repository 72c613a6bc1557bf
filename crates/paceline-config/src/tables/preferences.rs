//! What users choose for themselves.

use crate::{
    origin::Origin,
    reader::{Check, Field, Reader},
    value::{Fraction, Interval},
};

table! {
    /// `[preferences]`: defaults for what users set by `paceline prefs set`, which wins over this file.
    Preferences {
        /// Whether data is refreshed by itself.
        has automatic_updates: bool = true, "what is shown is true",
        /// Whether stale data is fetched when a session gains focus.
        has refetch_on_focus: bool = true, "what a user comes back to is fresh",
        /// Whether stale data is fetched when the network is back.
        has refetch_on_reconnect: bool = true, "what a user comes back to is fresh",
        /// Shortest interval of polling while some session is visible.
        has poll_active: Interval = "5s", "as good as live for a person",
        /// Shortest interval of polling while none is.
        has poll_background: Interval = "60s", "a notice that is a minute old is still one",
        /// Below this charge polling is slow.
        has battery_saver_below: Fraction = 0.2, "where systems warn",
        /// Whether periodic sync runs.
        has periodic_sync: bool = true, "what is declared is done",
    }
}

impl Check for Preferences {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if self.poll_background.value() < self.poll_active.value() {
            let what =
                format!("polls every {} unseen and every {} seen", *self.poll_background, *self.poll_active);
            reader.relate(
                ("poll_background", self.poll_background.origin()),
                ("poll_active", self.poll_active.origin()),
                &what,
                "make `poll_background` at least `poll_active`",
            );
        }
    }
}

/// The preferences that are yes or no.
pub(super) fn switches() -> Vec<String> {
    let mut keys = Vec::new();
    Preferences::describe("", &mut keys);
    keys.into_iter().filter(|key| key.kind == bool::kind()).map(|key| key.key).collect()
}
