//! Kinds of channels, by their names, and what they may do.

/// A channel's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// To be authorised before it is joined.
    pub(super) is_private: bool,
    /// Knows who else is there.
    pub(super) is_presence: bool,
    /// Its events are sealed with a secret that the server of the application gives out.
    pub(super) is_encrypted: bool,
}

impl Kind {
    pub(super) fn of(channel: &str) -> Self {
        let begins = |prefixes: [&str; 2]| prefixes.into_iter().any(|prefix| channel.starts_with(prefix));
        let is_presence = begins(["presence-", "presence-cache-"]);
        let is_encrypted = begins(["private-encrypted-", "private-encrypted-cache-"]);
        Self { is_private: is_presence || channel.starts_with("private-"), is_presence, is_encrypted }
    }

    /// Whether sessions may send events on it.
    pub(super) const fn takes_events(self) -> bool {
        self.is_private && !self.is_encrypted
    }
}

/// The name on the wire of an event as Laravel Echo writes it: with the namespace before it and `\` for each dot; a leading
/// dot or backslash means that it is on the wire as it stands.
///
/// ```
/// use paceline_channel::pusher::event_name;
///
/// assert_eq!(event_name(Some("App.Events"), "Labels.Approved"), "App\\Events\\Labels\\Approved");
/// assert_eq!(event_name(Some("App\\Events"), ".labels.approved"), "labels.approved");
/// assert_eq!(event_name(None, "LabelApproved"), "LabelApproved");
/// ```
pub fn event_name(namespace: Option<&str>, name: &str) -> String {
    if let Some(bare) = name.strip_prefix(['.', '\\']) {
        return bare.to_owned();
    }
    let spaced = namespace.filter(|it| !it.is_empty()).map(|it| format!("{it}.{name}"));
    spaced.as_deref().unwrap_or(name).replace('.', "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_what_its_name_says() {
        for (channel, is_private, is_presence, is_encrypted, takes_events) in [
            ("news", false, false, false, false),
            ("cache-news", false, false, false, false),
            ("private-org.7", true, false, false, true),
            ("private-cache-org.7", true, false, false, true),
            ("presence-room", true, true, false, true),
            ("presence-cache-room", true, true, false, true),
            ("private-encrypted-org.7", true, false, true, false),
            ("private-encrypted-cache-org.7", true, false, true, false),
            ("privateer", false, false, false, false),
        ] {
            let kind = Kind::of(channel);
            assert_eq!(kind, Kind { is_private, is_presence, is_encrypted }, "{channel}");
            assert_eq!(kind.takes_events(), takes_events, "{channel}");
        }
    }

    #[test]
    fn names_are_those_of_echo() {
        for (namespace, name, wire) in [
            (Some("App.Events"), "X", "App\\Events\\X"),
            (Some("App\\Events"), "X", "App\\Events\\X"),
            (Some("App\\Events"), "\\Other\\X", "Other\\X"),
            (Some("App.Events"), ".x.y", "x.y"),
            (Some(""), "a.b", "a\\b"),
            (None, "X", "X"),
            (Some("App"), ".client-typing", "client-typing"),
        ] {
            assert_eq!(event_name(namespace, name), wire);
        }
    }
}
