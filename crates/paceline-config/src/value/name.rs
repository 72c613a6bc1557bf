//! Names.

use std::{borrow::Borrow, collections::BTreeMap, fmt};

use serde_json::Value;

use super::template::Credential;
use crate::{
    node::{Node, join},
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Entry, Field, Reader, Sourced},
};

const NAME_KIND: &str = "a name: [a-z0-9][a-z0-9_-]{0,63}";
const NAME_MAX: usize = 64;

macro_rules! text_type {
    ($(#[doc = $doc:literal])+ $name:ident) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_type! {
    /// A name: `[a-z0-9][a-z0-9_-]{0,63}`. As the name of a resource it may have an action behind a dot.
    Name
}
text_type! {
    /// The name of a resource, or of an action of one: `process`, `process.list`.
    ResourceName
}
text_type! {
    /// The name of a group: `[a-z0-9][a-z0-9._-]{0,63}`.
    GroupName
}
text_type! {
    /// The name of a variable of the environment.
    VariableName
}
text_type! {
    /// The name of a header.
    HeaderName
}

fn is_first(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

pub(super) fn is_name(text: &str) -> bool {
    text.len() <= NAME_MAX
        && text.bytes().next().is_some_and(is_first)
        && text.bytes().all(|byte| is_first(byte) || matches!(byte, b'_' | b'-'))
}

/// `resource` or `resource.action`.
pub(super) fn is_resource(text: &str) -> bool {
    match text.split_once('.') {
        Some((resource, action)) => is_name(resource) && is_name(action),
        None => is_name(text),
    }
}

/// A name that is close to the text and valid.
fn repaired(text: &str) -> Option<String> {
    let lower = text.trim().to_lowercase();
    let name: String =
        lower.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    is_name(&name).then_some(name)
}

impl Reader<'_> {
    /// The name of a table in a table: of a resource, it may have an action.
    pub(crate) fn name(&mut self, text: &str, at: &Origin) -> Option<Name> {
        let key = self.key();
        let is_resource_table = key == "resources" || key.ends_with(".resources");
        let fits = if is_resource_table { is_resource(text) } else { is_name(text) };
        if fits {
            return Some(Name(text.to_owned()));
        }
        let what = format!("{text:?} is no name");
        let mut problem =
            Problem::new(ProblemKind::UnknownKey, join(&key, text), at.clone(), what).allowed(NAME_KIND);
        problem.nearest = repaired(text);
        self.report(problem);
        None
    }

    /// A word that is none of those allowed.
    pub(crate) fn unknown_word(&mut self, node: &Node, word: &str, words: &[&str]) {
        let what = format!("does not take {word:?}");
        let problem = Problem::new(ProblemKind::Value, self.key(), node.origin.clone(), what);
        self.report(problem.one_of(word, words.iter().copied()));
    }
}

fn read_text(
    node: &Node,
    reader: &mut Reader<'_>,
    kind: &str,
    fits: impl Fn(&str) -> bool,
) -> Option<String> {
    let text = reader.text(node, kind)?;
    if fits(text) {
        return Some(text.to_owned());
    }
    let mut problem = Problem::new(
        ProblemKind::Value,
        reader.key(),
        node.origin.clone(),
        format!("does not take {text:?}"),
    );
    problem.nearest = repaired(text).filter(|name| fits(name));
    reader.report(problem.allowed(kind));
    None
}

macro_rules! text_field {
    ($name:ident, $kind:literal, $fits:expr) => {
        impl Field for $name {
            fn kind() -> String {
                $kind.to_owned()
            }

            fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
                read_text(node, reader, $kind, $fits).map(Self)
            }

            fn canon(&self) -> Value {
                self.0.as_str().into()
            }
        }
    };
}

text_field!(Name, "name", is_name);
text_field!(ResourceName, "name of a resource", is_resource);
text_field!(GroupName, "name of a group: [a-z0-9][a-z0-9._-]{0,63}", |text: &str| {
    text.len() <= NAME_MAX
        && text.bytes().next().is_some_and(is_first)
        && text.bytes().all(|byte| is_first(byte) || matches!(byte, b'_' | b'-' | b'.'))
});
text_field!(VariableName, "name of a variable", |text: &str| {
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    text.len() <= 256
        && text.bytes().next().is_some_and(first)
        && text.bytes().all(|byte| first(byte) || byte.is_ascii_digit())
});
text_field!(HeaderName, "name of a header", is_header);

/// A token of RFC 9110.
fn is_header(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Headers of requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Headers(BTreeMap<HeaderName, Sourced<Credential>>);

impl Headers {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &Sourced<Credential>)> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Headers that a request is built with; setting them would break it.
const OWN: [&str; 8] = [
    "connection",
    "content-length",
    "host",
    "sec-websocket-key",
    "sec-websocket-version",
    "te",
    "transfer-encoding",
    "upgrade",
];

impl Field for Headers {
    fn kind() -> String {
        "table of texts by the name of a header; `{secret:NAME}` and `{token.access}` are filled in"
            .to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(members) = node.members() else {
            reader.invalid(node, Self::kind());
            return None;
        };
        let mut headers = Self::default();
        let mut seen: BTreeMap<String, (&String, &Origin)> = BTreeMap::new();
        let mut whole = true;
        for (name, member) in members {
            let lower = name.to_ascii_lowercase();
            let what = match seen.get(&lower) {
                _ if !is_header(name) => Some("no name of a header"),
                _ if OWN.contains(&lower.as_str()) => Some("a header that the connection sets itself"),
                Some(_) => Some("the same header again"),
                None => None,
            };
            if let Some(what) = what {
                let kind =
                    if seen.contains_key(&lower) { ProblemKind::Duplicate } else { ProblemKind::UnknownKey };
                let mut problem = Problem::new(kind, join(&reader.key(), name), member.at.clone(), what)
                    .fix("leave it out or rename it");
                if let Some((first, at)) = seen.get(&lower) {
                    problem = problem.related(join(&reader.key(), first), (*at).clone());
                }
                reader.report(problem);
                whole = false;
                continue;
            }
            seen.insert(lower, (name, &member.at));
            match reader.member::<Credential>(members, name, None) {
                Some(value) => drop(headers.0.insert(HeaderName(name.clone()), value)),
                None => whole = false,
            }
        }
        whole.then_some(headers)
    }

    fn canon(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, value)| (name.to_string(), value.canon())).collect())
    }

    fn list(&self, key: &str, _origin: &Origin, out: &mut Vec<Entry>) {
        for (name, value) in &self.0 {
            let shown = value.shown(name.as_str());
            out.push(Entry { key: join(key, name.as_str()), value: shown, origin: value.origin().clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::number::tests::{problem, read};

    #[test]
    fn names_are_bounded() {
        let of = |len: usize| format!("\"{}\"", "x".repeat(len));
        assert!(read::<Name>(&of(64)).is_ok());
        for text in [of(65).as_str(), "\"\"", "\"-a\"", "\"A\"", "\"a.b\"", "\"ä\"", "1"] {
            assert!(read::<Name>(text).is_err(), "{text}");
        }
        assert_eq!(problem::<Name>("\"My Feed\"").nearest.as_deref(), Some("my-feed"));
        assert!(read::<GroupName>("\"a.b\"").is_ok());
        assert!(read::<ResourceName>("\"process.list\"").is_ok());
        assert!(read::<ResourceName>("\"a.b.c\"").is_err());
        assert!(read::<VariableName>("\"_TOKEN1\"").is_ok());
        assert!(read::<VariableName>("\"1TOKEN\"").is_err());
    }

    #[test]
    fn headers_are_tokens_and_unique_without_regard_to_case() {
        assert!(
            read::<Headers>("{ X-A = \"1\", Authorization = \"Bearer {secret:api}\" }").is_err(),
            "no such secret"
        );
        assert!(read::<Headers>("{ X-A = \"1\" }").is_ok());
        for text in
            ["{ x-a = \"1\", X-A = \"2\" }", "{ \"a b\" = \"1\" }", "{ Host = \"x\" }", "{ x = 1 }", "[]"]
        {
            assert!(read::<Headers>(text).is_err(), "{text}");
        }
    }
}
