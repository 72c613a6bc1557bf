//! Templates, paths, conditions and patterns: the languages of `paceline-channel`, as values of keys.

use std::{collections::BTreeMap, fmt};

use paceline_channel::{
    condition::Condition,
    path::Path,
    pattern::Pattern,
    template::{Setting, Template, Token},
};
use serde_json::Value;

use crate::{
    node::{Node, join, literal},
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Entry, Field, Reader, Sourced},
};

/// Value of a header or a form field: a template in which secrets and tokens are allowed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(Template);

/// Form fields by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CredentialFields(BTreeMap<String, Sourced<Credential>>);

/// Query parameters by name: templates without secrets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UrlFields(BTreeMap<String, Sourced<UrlText>>);

/// A template for one parameter of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlText(Template);

/// The path of a URL: begins with one `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPath(Template);

/// A message about a channel: `{channel}` is the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelMessage(Template);

/// Names of channels, `{name}` in them binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelPattern(Pattern);

/// A condition on JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct ConditionText(Condition);

/// A path into JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Path);

/// Says that the text may hold a literal credential, so that it is shown nowhere.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

impl Credential {
    /// The template.
    pub const fn template(&self) -> &Template {
        &self.0
    }

    /// The value as listings show it: one that holds no secret but stands where credentials do may be one itself.
    pub(super) fn shown(&self, name: &str) -> String {
        let lower = name.to_ascii_lowercase();
        let is_telling =
            ["auth", "cookie", "token", "key", "secret", "password"].iter().any(|word| lower.contains(word));
        if is_telling && !self.is_secret() { HIDDEN.to_owned() } else { literal(&self.canon()) }
    }

    /// Whether it asks for a secret or a token.
    pub fn is_secret(&self) -> bool {
        self.0.secrets().next().is_some() || self.0.tokens().next().is_some()
    }
}

impl CredentialFields {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Sourced<Credential>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl UrlFields {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Template)> {
        self.0.iter().map(|(name, value)| (name.as_str(), &value.value().0))
    }

    pub(crate) fn origins(&self) -> impl Iterator<Item = (&str, &Template, &Origin)> {
        self.0.iter().map(|(name, value)| (name.as_str(), &value.value().0, value.origin()))
    }
}

impl UrlPath {
    /// The template.
    pub const fn template(&self) -> &Template {
        &self.0
    }
}

impl ChannelMessage {
    /// The template.
    pub const fn template(&self) -> &Template {
        &self.0
    }
}

impl ChannelPattern {
    /// The pattern.
    pub const fn pattern(&self) -> &Pattern {
        &self.0
    }
}

impl ConditionText {
    /// The condition.
    pub const fn condition(&self) -> &Condition {
        &self.0
    }
}

impl JsonPath {
    /// The path.
    pub const fn path(&self) -> &Path {
        &self.0
    }
}

impl Field for Credential {
    fn kind() -> String {
        "text, `{secret:NAME}`, `{token.access}` and `{token.refresh}` are filled in".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(text) = node.text() else {
            // Not shown: it may be a credential all the same.
            reader.odd(node, "takes a text", Self::kind());
            return None;
        };
        if text.is_empty() || text.len() > 8192 || text.chars().any(char::is_control) {
            reader.odd(node, "is empty, too long or holds a control character", "1 to 8192 bytes");
            return None;
        }
        let template = match Template::new(text, Setting::Credential) {
            Ok(template) => template,
            Err(error) => {
                let what = format!("is no template: {} at character {}", error.why, error.at);
                reader.odd(node, what, Self::kind());
                return None;
            }
        };
        let mut known = true;
        for secret in template.secrets() {
            known &= reader.refer(node, "secrets", secret);
        }
        known.then_some(Self(template))
    }

    fn canon(&self) -> Value {
        self.0.to_string().into()
    }
}

/// Reads a template of a setting.
pub(super) fn template(
    node: &Node,
    reader: &mut Reader<'_>,
    setting: Setting,
    kind: &str,
) -> Option<Template> {
    let text = reader.text(node, kind)?;
    match Template::new(text, setting) {
        Ok(template) => Some(template),
        Err(error) => {
            reader.odd(node, format!("is no template: {} at character {}", error.why, error.at), kind);
            None
        }
    }
}

fn fields<T: Field>(
    node: &Node,
    reader: &mut Reader<'_>,
    kind: String,
) -> Option<BTreeMap<String, Sourced<T>>> {
    let Some(members) = node.members() else {
        reader.invalid(node, kind);
        return None;
    };
    let mut fields = BTreeMap::new();
    let mut whole = true;
    for name in members.keys() {
        match reader.member::<T>(members, name, None) {
            Some(value) => drop(fields.insert(name.clone(), value)),
            None => whole = false,
        }
    }
    whole.then_some(fields)
}

/// Stands for a text that may be a credential.
const HIDDEN: &str = "\"(hidden)\"";

macro_rules! field_map {
    ($name:ident, $value:ty, $show:expr, $kind:literal) => {
        impl Field for $name {
            fn kind() -> String {
                $kind.to_owned()
            }

            fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
                fields(node, reader, Self::kind()).map(Self)
            }

            fn canon(&self) -> Value {
                Value::Object(self.0.iter().map(|(name, value)| (name.clone(), value.canon())).collect())
            }

            fn list(&self, key: &str, _origin: &Origin, out: &mut Vec<Entry>) {
                for (name, value) in &self.0 {
                    let show: fn(&str, &$value) -> String = $show;
                    let (key, value, origin) = (join(key, name), show(name, value), value.origin().clone());
                    out.push(Entry { key, value, origin });
                }
            }
        }
    };
}

field_map!(
    CredentialFields,
    Credential,
    |name, value| value.shown(name),
    "table of texts by the name of a field; `{secret:NAME}` and tokens are filled in"
);
field_map!(
    UrlFields,
    UrlText,
    |_, value| literal(&value.canon()),
    "table of texts by the name of a parameter; `{NAME}` is filled in"
);

impl Field for UrlText {
    fn kind() -> String {
        "text, `{NAME}` is filled in".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        template(node, reader, Setting::Url, &Self::kind()).map(Self)
    }

    fn canon(&self) -> Value {
        self.0.to_string().into()
    }
}

impl Field for UrlPath {
    fn kind() -> String {
        "path of a URL that begins with `/`, `{NAME}` is filled in, percent-encoded".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        let fits = text.starts_with('/')
            && !text.starts_with("//")
            && !text.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '?' | '#' | '\\'));
        if !fits {
            reader.invalid(node, "a path that begins with one `/`, without blanks, `?`, `#` and `\\`");
            return None;
        }
        template(node, reader, Setting::Url, &Self::kind()).map(Self)
    }

    fn canon(&self) -> Value {
        self.0.to_string().into()
    }
}

impl Field for ChannelMessage {
    fn kind() -> String {
        "text to send, `{channel}` is filled in".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let template = template(node, reader, Setting::Json, &Self::kind())?;
        if let Some(other) = template.names().find(|name| *name != "channel") {
            let what = format!("cannot fill {{{other}}}");
            let problem = Problem::new(ProblemKind::Value, reader.key(), node.origin.clone(), what);
            reader.report(problem.one_of(other, ["channel"]));
            return None;
        }
        if template.names().next().is_none() {
            reader.odd(node, "names no channel", "a text with `{channel}` in it");
            return None;
        }
        Some(Self(template))
    }

    fn canon(&self) -> Value {
        self.0.to_string().into()
    }
}

impl Field for ChannelPattern {
    fn kind() -> String {
        "name of a channel, `{NAME}` in it binds".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        match Pattern::new(text) {
            Ok(pattern) => Some(Self(pattern)),
            Err(error) => {
                let what = format!("is no channel: {} at character {} of {text:?}", error.why, error.at);
                reader.odd(node, what, Self::kind());
                None
            }
        }
    }

    fn canon(&self) -> Value {
        self.0.to_string().into()
    }
}

impl Field for ConditionText {
    fn kind() -> String {
        "condition, as `$.type == \"UPDATE\"`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        match text.parse() {
            Ok(condition) => Some(Self(condition)),
            Err(error) => {
                let allowed =
                    "PATH COMPARISON LITERAL, empty(PATH), any(PATH, condition), error, joined by `and`";
                reader.odd(node, format!("failed to {error}"), allowed);
                None
            }
        }
    }

    fn canon(&self) -> Value {
        self.0.to_string().into()
    }
}

impl Field for JsonPath {
    fn kind() -> String {
        "path, as `$.data.id`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        match text.parse() {
            Ok(path) => Some(Self(path)),
            Err(error) => {
                reader.odd(
                    node,
                    format!("failed to {error}"),
                    "a path, as \"$\", \"$.a.b\" or \"$.items[0].id\"",
                );
                None
            }
        }
    }

    fn canon(&self) -> Value {
        self.0.to_string().into()
    }
}

/// The first token that a template asks for, as it is written.
pub(crate) fn token_of(template: &Template) -> Option<&'static str> {
    template.tokens().next().map(|token| match token {
        Token::Access => "{token.access}",
        Token::Refresh => "{token.refresh}",
    })
}
