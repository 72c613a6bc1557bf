//! Rules as they cross local connections: strict JSON. Durations are whole nanoseconds; what takes more than 64 bits, about
//! 584 years, is never.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

use super::{Dependency, Hints, Options, Poll, PollStep, Resource, Retry};
use crate::{
    content_hash,
    key::{KeyError, QueryKey},
    limits::{INTERVAL_MIN, RETRIES_MAX, RULES_MAX},
    pattern::{self, KeyPatternError},
};

/// Rules that make no sense. Nothing changed; a retry helps only with other rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// The bytes are not rules; an unknown member is named.
    #[error("read the rules: {0}")]
    Json(String),
    /// They are too long.
    #[error("read the rules: they take {0} bytes, at most {RULES_MAX} are allowed")]
    TooLong(usize),
    /// The name is no name of a resource.
    #[error(
        "read the rules: {0:?} is no name of a resource, which is NAME or NAME.ACTION of [a-z0-9][a-z0-9_-]{{0,63}}"
    )]
    Name(String),
    /// The tag is no name.
    #[error("read the rules of {resource}: {tag:?} is no tag, which is [a-z0-9][a-z0-9_-]{{0,63}}")]
    Tag {
        /// The resource.
        resource: String,
        /// The tag.
        tag: String,
    },
    /// The keys are none.
    #[error("{0}")]
    Pattern(#[from] KeyPatternError),
    /// A dependency names no key.
    #[error("read the rules of {resource}: it depends on {key}, which is no key: {why}")]
    Dependency {
        /// The resource.
        resource: String,
        /// What it depends on.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// An interval is too short.
    #[error("read the rules: `{0}` is shorter than {INTERVAL_MIN:?}; make it longer")]
    Interval(&'static str),
    /// Too many retries.
    #[error("read the rules: {0} retries, at most {RETRIES_MAX} are allowed")]
    Retries(u32),
    /// The first delay is longer than the longest.
    #[error(
        "read the rules: the first delay of a retry is longer than the longest; make `cap` at least `base`"
    )]
    Delays,
}

impl Resource {
    /// The rules as bytes, JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        write(self)
    }

    /// Reads what [`Resource::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`RulesError`]: the bytes are not rules, or [`Resource::check`] refuses them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RulesError> {
        let resource: Self = read(bytes)?;
        resource.check()?;
        Ok(resource)
    }

    /// Whether a group takes these rules. Others are refused where they are declared.
    ///
    /// # Errors
    /// See [`RulesError`].
    pub fn check(&self) -> Result<(), RulesError> {
        if !is_resource_name(&self.name) {
            return Err(RulesError::Name(self.name.to_string()));
        }
        let tagged = self.depends_on.iter().filter_map(|dependency| match dependency {
            Dependency::Tag(tag) => Some(tag),
            Dependency::Key(_) => None,
        });
        if let Some(tag) = self.tags.iter().chain(tagged).find(|tag| !pattern::is_name(tag)) {
            return Err(RulesError::Tag { resource: self.name.to_string(), tag: tag.to_string() });
        }
        for dependency in &self.depends_on {
            let Dependency::Key(segments) = dependency else { continue };
            check_template(segments).map_err(|why| RulesError::Dependency {
                resource: self.name.to_string(),
                key: Value::from(segments.clone()).to_string(),
                why,
            })?;
        }
        self.retry.map_or(Ok(()), Retry::check)?;
        at_least("deadline", self.deadline)?;
        self.poll.as_ref().map_or(Ok(()), Poll::check)?;
        let len = self.to_bytes().len();
        if len > RULES_MAX { Err(RulesError::TooLong(len)) } else { Ok(()) }
    }

    /// A digest of the rules: equal in every process and build of this version for equal rules. Who fetches is no part of it;
    /// sessions differ in that.
    pub fn digest(&self) -> u64 {
        content_hash(&write(&Self { source: None, ..self.clone() }))
    }
}

impl Poll {
    fn check(&self) -> Result<(), RulesError> {
        self.rules.iter().try_for_each(|(_, step)| step.check())?;
        self.otherwise.check()?;
        at_least("background", self.background)?;
        at_least("low_battery", self.low_battery)
    }
}

impl PollStep {
    fn check(&self) -> Result<(), RulesError> {
        match self {
            Self::Every(interval) => at_least("every", Some(*interval)),
            Self::Stop | Self::BackOff => Ok(()),
        }
    }
}

impl Retry {
    fn check(self) -> Result<(), RulesError> {
        if self.times > RETRIES_MAX {
            return Err(RulesError::Retries(self.times));
        }
        at_least("base", Some(self.base))?;
        if self.base > self.cap { Err(RulesError::Delays) } else { Ok(()) }
    }
}

impl Options {
    /// The options as bytes, JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        write(self)
    }

    /// What a session asks for a key in several places at once; as [`Options::to_bytes`] where it is one.
    pub fn list_to_bytes(list: &[Self]) -> Vec<u8> {
        match list {
            [] => Vec::new(),
            [one] => one.to_bytes(),
            many => write(&many),
        }
    }

    /// Reads what [`Options::list_to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`RulesError`].
    pub fn list_from_bytes(bytes: &[u8]) -> Result<Vec<Self>, RulesError> {
        if !bytes.starts_with(b"[") {
            return Ok(vec![Self::from_bytes(bytes)?]);
        }
        let list: Vec<Self> = read(bytes)?;
        list.iter().try_for_each(|options| at_least("poll", options.poll.flatten()))?;
        Ok(list)
    }

    /// Reads what [`Options::to_bytes`] wrote; no bytes are the default.
    ///
    /// # Errors
    /// See [`RulesError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RulesError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let options: Self = read(bytes)?;
        at_least("poll", options.poll.flatten())?;
        Ok(options)
    }
}

impl Hints {
    /// The hints as bytes, JSON; none are no bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        if *self == Self::default() { Vec::new() } else { write(self) }
    }

    /// Reads what [`Hints::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`RulesError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RulesError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let hints: Self = read(bytes)?;
        hints.poll.as_ref().map_or(Ok(()), PollStep::check)?;
        Ok(hints)
    }
}

fn write(rules: &impl Serialize) -> Vec<u8> {
    // Members with names, numbers, texts and JSON values: nothing in it can fail to serialise.
    serde_json::to_vec(rules).unwrap_or_default()
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RulesError> {
    if bytes.len() > RULES_MAX {
        return Err(RulesError::TooLong(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|error| RulesError::Json(error.to_string()))
}

/// `NAME` or `NAME.ACTION`.
pub(super) fn is_resource_name(name: &str) -> bool {
    let (name, action) = name.split_once('.').unwrap_or((name, name));
    pattern::is_name(name) && pattern::is_name(action)
}

/// Segments of which texts may be `{name}`.
fn check_template(segments: &[Value]) -> Result<(), String> {
    QueryKey::new(segments).map_err(|error: KeyError| error.to_string())?;
    match segments
        .iter()
        .filter_map(Value::as_str)
        .find(|text| text.contains(['{', '}']) && pattern::name_in_braces(text).is_none())
    {
        Some(text) => Err(format!("{text:?} is neither a text without braces nor one `{{name}}`")),
        None => Ok(()),
    }
}

fn at_least(what: &'static str, interval: Option<Duration>) -> Result<(), RulesError> {
    match interval {
        Some(interval) if interval < INTERVAL_MIN => Err(RulesError::Interval(what)),
        Some(_) | None => Ok(()),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes members by reference")]
pub(super) fn is_false(flag: &bool) -> bool {
    !flag
}

pub(super) mod nanoseconds {
    use super::*;

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(|number| match number {
            u64::MAX => Duration::MAX,
            number => Duration::from_nanos(number),
        })
    }
}

/// A duration on its own, to be held by an option.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Nanoseconds(#[serde(with = "nanoseconds")] Duration);

pub(super) mod optional_nanoseconds {
    use super::*;

    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        duration.map(Nanoseconds).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<Nanoseconds>::deserialize(deserializer)
            .map(|read| read.map(|Nanoseconds(duration)| duration))
    }
}

/// Left out = not said; null = said, and none.
pub(super) mod said_nanoseconds {
    use super::*;

    pub fn serialize<S: Serializer>(
        said: &Option<Option<Duration>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        optional_nanoseconds::serialize(&said.flatten(), serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<Duration>>, D::Error> {
        optional_nanoseconds::deserialize(deserializer).map(Some)
    }
}

pub(super) mod pattern_segments {
    use serde::de::Error;

    use super::*;
    use crate::pattern::KeyPattern;

    pub fn serialize<S: Serializer>(pattern: &KeyPattern, serializer: S) -> Result<S::Ok, S::Error> {
        pattern.to_value().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyPattern, D::Error> {
        KeyPattern::new(&Vec::<Value>::deserialize(deserializer)?).map_err(Error::custom)
    }
}

pub(super) mod poll_rules {
    use serde::de::Error;

    use super::*;
    use crate::condition::Condition;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        when: String,
        then: PollStep,
    }

    pub fn serialize<S: Serializer>(
        rules: &[(Condition, PollStep)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(rules.iter().map(|(when, then)| Rule { when: when.to_string(), then: *then }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Condition, PollStep)>, D::Error> {
        let rules = Vec::<Rule>::deserialize(deserializer)?;
        rules.into_iter().map(|rule| Ok((rule.when.parse().map_err(Error::custom)?, rule.then))).collect()
    }
}
