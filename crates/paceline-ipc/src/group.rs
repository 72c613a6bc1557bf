//! Names of groups, and what makes two of them the same.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// Name of a group: `[a-z0-9][a-z0-9._-]{0,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupName(String);

impl GroupName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for GroupName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GroupName {
    type Err = InvalidGroupName;

    fn from_str(name: &str) -> Result<Self, InvalidGroupName> {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = name.as_bytes();
        let valid = matches!(bytes.len(), 1..=64)
            && word(bytes[0])
            && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'_' | b'-'));
        if valid { Ok(Self(name.to_owned())) } else { Err(InvalidGroupName(name.to_owned())) }
    }
}

/// The text is not a group name. Nothing changed; the same text never works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "use {0:?} as a group name: 1 to 64 characters of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
)]
pub struct InvalidGroupName(pub String);

/// A group of one user on one machine: its name, and the principal whose credentials its wire carries.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupIdentity {
    name: GroupName,
    principal: Option<[u8; 8]>,
}

impl GroupIdentity {
    /// The group `name` of `principal`. Sessions with different principals never share a wire, a cache or an outbox.
    pub fn new(name: GroupName, principal: Option<&str>) -> Self {
        let principal = principal.map(|principal| {
            let digest: [u8; 32] = Sha256::digest(principal.as_bytes()).into();
            let mut first = [0; 8];
            first.copy_from_slice(&digest[..8]);
            first
        });
        Self { name, principal }
    }

    /// The name people use.
    pub fn name(&self) -> &GroupName {
        &self.name
    }
}

impl fmt::Display for GroupIdentity {
    /// `<name>`, with a principal `<name>@<first 16 hexadecimal digits of its SHA-256>`: the name of the directory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match self.principal {
            Some(digest) => write!(f, "@{:016x}", u64::from_be_bytes(digest)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> GroupName {
        text.parse().unwrap()
    }

    #[test]
    fn group_names_just_inside_and_just_outside() {
        for good in ["a", "0", "default", "a.b_c-d", "a..", &"a".repeat(64)] {
            assert_eq!(name(good).as_str(), good);
        }
        for bad in ["", ".a", "-a", "_a", "A", "a/b", "a@b", "ä", "a b", "..", &"a".repeat(65)] {
            assert_eq!(bad.parse::<GroupName>(), Err(InvalidGroupName(bad.to_owned())), "{bad:?}");
        }
    }

    #[test]
    fn a_principal_makes_another_group() {
        let alone = GroupIdentity::new(name("g"), None);
        let with = GroupIdentity::new(name("g"), Some("alice"));
        assert_eq!(alone.to_string(), "g");
        // printf alice | sha256sum | head -c 16
        assert_eq!(with.to_string(), "g@2bd806c97f0e00af");
        assert_ne!(with, GroupIdentity::new(name("g"), Some("bob")));
    }
}
