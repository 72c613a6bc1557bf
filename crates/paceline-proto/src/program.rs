//! What a session's program is, and what two programs of different age can do with each other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Protocol versions this build speaks; the highest common one is used per connection.
pub const PROTO: ProtoRange = ProtoRange { min: 1, max: 1 };

/// The release this build is of.
pub const RELEASE: Release = Release {
    major: number(env!("CARGO_PKG_VERSION_MAJOR")),
    minor: number(env!("CARGO_PKG_VERSION_MINOR")),
    patch: number(env!("CARGO_PKG_VERSION_PATCH")),
};

/// A closed range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtoRange {
    /// Oldest version spoken.
    pub min: u16,
    /// Newest version spoken.
    pub max: u16,
}

impl ProtoRange {
    /// The highest version both sides speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }

    /// Whether this version is spoken.
    pub fn speaks(self, version: u16) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for ProtoRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            return write!(f, "protocol {}", self.min);
        }
        write!(f, "protocols {} to {}", self.min, self.max)
    }
}

/// A release of this software; a later one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Release {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// What a build can do beyond the protocol version that a connection uses. Each end says what it can; what both can is used,
/// and bits that nobody here knows are passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Features(pub u64);

impl Features {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Optimistic layers.
    pub const LAYERS: Self = Self(1);
    /// What this build can do.
    pub const ALL: Self = Self::LAYERS;

    /// What both can do.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `wanted` is in it.
    pub fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// The program of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its build, for people.
    pub build: String,
    /// Its process, for people.
    pub pid: u32,
    /// The release of this software in it.
    pub release: Release,
    /// Protocol versions it speaks.
    pub proto: ProtoRange,
    /// What it can do.
    pub features: Features,
    /// The schema of the stores it writes, and the highest it was made for.
    pub schema: u32,
    /// The lowest schema that a build must be made for to read its stores.
    pub min_reader: u32,
}

impl Program {
    /// This build's, with stores of the first schema.
    pub fn new(build: impl Into<String>, pid: u32) -> Self {
        Self {
            build: build.into(),
            pid,
            release: RELEASE,
            proto: PROTO,
            features: Features::ALL,
            schema: 1,
            min_reader: 1,
        }
    }

    /// As it names itself to others.
    pub fn speaker(&self) -> Speaker {
        Speaker { build: self.build.clone(), pid: self.pid, proto: self.proto }
    }
}

/// How an heir's build stands to the owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Age {
    /// An older release: it leads only when it must, or when people want it to.
    Older,
    /// The same release.
    #[default]
    Same,
    /// A newer release that every session of the group can follow: it is handed the wire, politely and seldom.
    Newer,
    /// A newer release that some session of the group could not follow.
    Apart,
}

/// Who speaks which protocol versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speaker {
    /// Its build.
    pub build: String,
    /// Its process.
    pub pid: u32,
    /// The versions.
    pub proto: ProtoRange,
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "build {:?}, process {}", self.build, self.pid)
    }
}

/// Two builds that share no protocol version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Who was turned away.
    pub ours: Speaker,
    /// Who leads.
    pub theirs: Speaker,
}

impl Misfit {
    /// What they share no version of; `None` where they share one.
    pub fn between(ours: Speaker, theirs: Speaker) -> Option<Self> {
        ours.proto.common(theirs.proto).is_none().then_some(Self { ours, theirs })
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, theirs } = self;
        write!(f, "the primary ({theirs}) speaks {}, this session ({ours}) {}; ", theirs.proto, ours.proto)?;
        if ours.proto.max < theirs.proto.min {
            write!(f, "update the program of process {}", ours.pid)
        } else {
            write!(
                f,
                "update the program of process {} and end that process: another session takes over",
                theirs.pid
            )
        }
    }
}

const fn number(text: &str) -> u16 {
    match u16::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("the parts of a package's version are small numbers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: u16, max: u16) -> ProtoRange {
        ProtoRange { min, max }
    }

    #[test]
    fn the_highest_version_that_both_speak_is_used() {
        for (ours, theirs, common) in [
            (range(1, 1), range(1, 1), Some(1)),
            (range(1, 3), range(2, 5), Some(3)),
            (range(2, 5), range(1, 2), Some(2)),
            (range(1, 9), range(4, 5), Some(5)),
            (range(1, 2), range(3, 4), None),
            (range(3, 4), range(1, 2), None),
        ] {
            assert_eq!(ours.common(theirs), common, "{ours} and {theirs}");
            assert_eq!(theirs.common(ours), common, "{theirs} and {ours}");
        }
    }

    #[test]
    fn features_are_what_both_have() {
        assert_eq!(Features(0b110).common(Features(0b011)), Features(0b010));
        assert!(Features(0b110).has(Features(0b010)) && !Features(0b100).has(Features(0b110)));
    }

    #[test]
    fn releases_are_ordered_by_age() {
        let release = |major, minor, patch| Release { major, minor, patch };
        assert!(release(0, 9, 9) < release(1, 0, 0) && release(0, 2, 0) > release(0, 1, 10));
        assert_eq!(RELEASE.to_string(), env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn builds_that_cannot_speak_are_named_with_what_to_do() {
        let speaker = |build: &str, pid, proto| Speaker { build: build.into(), pid, proto };
        let (old, new) = (speaker("app 1", 11, range(1, 1)), speaker("app 9", 99, range(2, 3)));
        assert_eq!(Misfit::between(old.clone(), speaker("app 5", 5, range(1, 4))), None);
        assert_eq!(
            Misfit::between(old.clone(), new.clone()).unwrap().to_string(),
            "the primary (build \"app 9\", process 99) speaks protocols 2 to 3, this session (build \"app 1\", process 11) \
             protocol 1; update the program of process 11"
        );
        assert_eq!(
            Misfit::between(new, old).unwrap().to_string(),
            "the primary (build \"app 1\", process 11) speaks protocol 1, this session (build \"app 9\", process 99) protocols \
             2 to 3; update the program of process 11 and end that process: another session takes over"
        );
    }
}
