//! Identifiers that cross process boundaries or name things inside one session.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Number of a reign. Grows by one with each election of a group; 0 means "no reign yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// No reign: what a session that never saw a primary remembers.
    pub const NONE: Self = Self(0);

    /// The epoch after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of a shared-state frame within an epoch. The first frame has offset 1; 0 means "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Offset(pub u64);

impl Offset {
    /// Before the first frame of an epoch.
    pub const ZERO: Self = Self(0);

    /// The offset after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in the group's history: an epoch and an offset in it. Ordered by epoch first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The reign.
    pub epoch: Epoch,
    /// The frame within the reign.
    pub offset: Offset,
}

impl Mark {
    /// Before everything.
    pub const ZERO: Self = Self { epoch: Epoch::NONE, offset: Offset::ZERO };

    /// The place of frame `offset` in reign `epoch`.
    pub const fn new(epoch: Epoch, offset: Offset) -> Self {
        Self { epoch, offset }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.offset)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl $name {
            /// The first eight hexadecimal digits of the random end: enough for people and file names.
            pub fn short(self) -> String {
                format!("{:08x}", self.0 & 0xffff_ffff)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(s, 16).map(Self)
            }
        }
    };
}

hex_id! {
    /// A joined client, for as long as it lives. A UUID version 7 as a number.
    SessionId
}

hex_id! {
    /// Names one kit (claim file, socket, database) and proves to a peer that the holder could read the claim.
    Nonce
}

/// A connection between a session and the hub, numbered by the hub's process; never reused there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkId(pub u64);

/// A volatile operation, made unique by the session that submitted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// The session whose caller made the operation.
    pub session: SessionId,
    /// Counts that session's operations from 1.
    pub seq: u64,
}

/// A durable mutation: made by the caller before its first submit and resent until acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MutationId {
    /// The session whose caller made the mutation.
    pub session: SessionId,
    /// Counts that session's mutations from 1, without holes.
    pub seq: u64,
}

/// Trace context of a message: which cause it belongs to and which span sent it. Zero means "none".
///
/// Follows W3C Trace Context: a 16-byte trace id and an 8-byte parent span id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Trace {
    /// The cause.
    pub trace: u128,
    /// The span that sent the message.
    pub span: u64,
}

impl Trace {
    /// No cause known.
    pub const NONE: Self = Self { trace: 0, span: 0 };
}

/// Canonical bytes of a query key. Opaque here; a key is a prefix of another exactly if its bytes are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Key(pub Bytes);

impl Key {
    /// Copies the canonical bytes.
    pub fn copy_from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }

    /// Whether `other` lies under this key, itself included.
    pub fn is_prefix_of(&self, other: &Key) -> bool {
        other.0.starts_with(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0.escape_ascii())
    }
}

/// Name of an ordered event stream, for example `labels`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stream(pub Arc<str>);

impl From<&str> for Stream {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

/// Name of a live channel: the upstream's name, and after a `/` the channel at that upstream, if it has several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Channel(pub Arc<str>);

impl From<&str> for Channel {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

/// Where a channel stands, as told by the upstream or, without one that tells, counted by the owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Position {
    /// Assigned by the upstream and ordered within `epoch`, the upstream's own name for an unbroken history.
    /// `dense` upstreams number without holes, so a hole proves a loss.
    Seq {
        /// The upstream's name for the history the number belongs to; empty where it has none.
        epoch: Arc<str>,
        /// The number, ascending.
        offset: u64,
    },
    /// Assigned by the upstream, comparable for equality only.
    Opaque(Arc<str>),
    /// Counted by the owner of `epoch`; means nothing in another epoch.
    Local {
        /// The owner that counted.
        epoch: Epoch,
        /// Counts from 1.
        n: u64,
    },
}

impl Position {
    /// Where a session stands that follows a channel whose first message has not come. Compares with nothing.
    pub const START: Self = Self::Local { epoch: Epoch::NONE, n: 0 };

    /// The position before this one, where positions are numbers.
    pub fn previous(&self) -> Option<Self> {
        match self {
            Self::Seq { epoch, offset } => {
                Some(Self::Seq { epoch: epoch.clone(), offset: offset.checked_sub(1)? })
            }
            Self::Local { epoch, n } => Some(Self::Local { epoch: *epoch, n: n.checked_sub(1)? }),
            Self::Opaque(_) => None,
        }
    }

    /// Whether `self` is at or past `other`; `None` where the two cannot be compared.
    pub fn covers(&self, other: &Position) -> Option<bool> {
        match (self, other) {
            (Self::Seq { epoch: a, offset: x }, Self::Seq { epoch: b, offset: y }) if a == b => Some(x >= y),
            (Self::Local { epoch: a, n: x }, Self::Local { epoch: b, n: y }) if a == b => Some(x >= y),
            (Self::Opaque(a), Self::Opaque(b)) if a == b => Some(true),
            (Self::Seq { .. } | Self::Opaque(_) | Self::Local { .. }, _) => None,
        }
    }
}

/// Version of a value as the server gives it. Servers without versions give `None`, which is below all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Version {
    /// The server gave none.
    #[default]
    None,
    /// A counter.
    Number(u64),
    /// Anything whose text order is its order, for example an RFC 3339 time in UTC.
    Text(Arc<str>),
}

/// Place of a value: compared field by field, the greater one wins (ELECTION "Values").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Place {
    /// The key's last Reset; everything after a Reset beats everything before it.
    pub reset: Mark,
    /// The server's version.
    pub version: Version,
    /// The frame that installed the value.
    pub mark: Mark,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(epoch: &str, offset: u64) -> Position {
        Position::Seq { epoch: epoch.into(), offset }
    }

    #[test]
    fn positions_compare_only_within_one_history() {
        assert_eq!(seq("a", 5).covers(&seq("a", 5)), Some(true));
        assert_eq!(seq("a", 4).covers(&seq("a", 5)), Some(false));
        assert_eq!(seq("a", 9).covers(&seq("b", 1)), None);
        assert_eq!(Position::Opaque("x".into()).covers(&Position::Opaque("x".into())), Some(true));
        assert_eq!(Position::Opaque("x".into()).covers(&Position::Opaque("y".into())), None);
        let local = |epoch, n| Position::Local { epoch: Epoch(epoch), n };
        assert_eq!(local(2, 9).covers(&local(3, 1)), None);
    }

    #[test]
    fn a_reset_beats_any_version_before_it() {
        let mark = |e, o| Mark::new(Epoch(e), Offset(o));
        let old = Place { reset: Mark::ZERO, version: Version::Number(900), mark: mark(1, 90) };
        let new = Place { reset: mark(2, 1), version: Version::Number(3), mark: mark(2, 1) };
        assert!(new > old);
    }

    #[test]
    fn session_ids_read_back_what_they_print() {
        let id = SessionId(0x0192_0000_0000_7000_8000_0000_dead_beef);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "deadbeef");
    }
}
