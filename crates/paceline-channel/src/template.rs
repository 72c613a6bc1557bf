//! Text templates: `{name}` is filled from bindings, `{secret:name}` from secrets, `{token.access}` and
//! `{token.refresh}` from a token resource. Any other brace is text, so that JSON needs no escapes; a brace that opens
//! `secret:` or `token.` and goes wrong behind it is an error rather than text that a server would get to see.

use std::fmt;

use paceline_query::{condition::Bindings, pattern::name_len};
use serde_json::Value;

use crate::protocol::Secret;

/// Characters of a name: `[a-z0-9][a-z0-9_-]{0,63}`.
const NAME_MAX: usize = 64;

/// A parsed template for one setting.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    setting: Setting,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Name(String),
    Secret(String),
    Token(Token),
}

/// Which half of a token pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Token {
    /// `{token.access}`
    Access,
    /// `{token.refresh}`
    Refresh,
}

/// Where a template stands, which decides what it may hold and how values are written into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Part of a URL: values are percent-encoded; no secrets, since URLs are logged everywhere.
    Url,
    /// A name, for example of a channel: values as they are; no secrets.
    Name,
    /// Inside a text of a JSON message: values are escaped; no secrets.
    Json,
    /// Value of a header or a form field: values as they are, without control characters; secrets allowed.
    Credential,
}

/// The text is no template, or not one for this setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the template {text:?}: {why} at character {at}")]
pub struct TemplateError {
    /// The text.
    pub text: String,
    /// Where.
    pub at: usize,
    /// What is wrong.
    pub why: &'static str,
}

/// A template cannot be filled. Nothing was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// Nothing is bound to the name.
    #[error("nothing is bound to {{{0}}}")]
    Unbound(String),
    /// Lists, objects and null have no text.
    #[error("what is bound to {{{0}}} is no text, number or boolean")]
    NoText(String),
    /// A line break or another control character where it would break the request.
    #[error("what is bound to {{{0}}} holds a control character")]
    Control(String),
    /// The secret is not declared, or could not be resolved.
    #[error("the secret {0:?} is not known here")]
    UnknownSecret(String),
    /// There is no token here.
    #[error("there is no token to fill in here")]
    NoToken,
}

/// What templates are filled from.
pub trait Vault {
    /// The secret of this name.
    fn secret(&self, name: &str) -> Option<Secret>;
    /// The current token.
    fn token(&self, which: Token) -> Option<Secret>;
}

/// Knows no secret.
#[derive(Debug, Clone, Copy)]
pub struct NoSecrets;

impl Vault for NoSecrets {
    fn secret(&self, _: &str) -> Option<Secret> {
        None
    }

    fn token(&self, _: Token) -> Option<Secret> {
        None
    }
}

impl Template {
    /// Reads a template for a setting.
    ///
    /// # Errors
    /// [`TemplateError`] says what and where.
    pub fn new(text: &str, setting: Setting) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find('{') {
            let open = at + found;
            plain.push_str(&text[at..open]);
            match placeholder(text, open, setting)? {
                Some((part, end)) => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(part);
                    at = end;
                }
                None => {
                    plain.push('{');
                    at = open + 1;
                }
            }
        }
        plain.push_str(&text[at..]);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { setting, parts })
    }

    /// The names it needs, in order, each as often as it stands there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Name(name) => Some(name.as_str()),
            Part::Text(_) | Part::Secret(_) | Part::Token(_) => None,
        })
    }

    /// The names of the secrets it needs, in order.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Secret(name) => Some(name.as_str()),
            Part::Text(_) | Part::Name(_) | Part::Token(_) => None,
        })
    }

    /// The tokens it needs, in order.
    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        self.parts.iter().filter_map(|part| match part {
            Part::Token(token) => Some(*token),
            Part::Text(_) | Part::Name(_) | Part::Secret(_) => None,
        })
    }

    /// The text, for a template without secrets.
    ///
    /// # Errors
    /// When a name is not bound to something that has a text there, or the template wants a secret.
    pub fn fill(&self, bindings: &Bindings) -> Result<String, FillError> {
        self.write(bindings, &NoSecrets)
    }

    /// The text of a header or form field, hidden from logs.
    ///
    /// # Errors
    /// When a name is not bound, or a secret or token is not there. The error shows no secret.
    pub fn fill_secret(&self, bindings: &Bindings, vault: &dyn Vault) -> Result<Secret, FillError> {
        self.write(bindings, vault).map(Secret::new)
    }

    /// The name, when the template is `{name}` and nothing else.
    pub fn as_name(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Name(name)] => Some(name),
            _ => None,
        }
    }

    fn write(&self, bindings: &Bindings, vault: &dyn Vault) -> Result<String, FillError> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Name(name) => write_value(self.setting, name, bindings, &mut out)?,
                Part::Secret(name) => {
                    let secret = vault.secret(name).ok_or_else(|| FillError::UnknownSecret(name.clone()))?;
                    out.push_str(secret.reveal());
                }
                Part::Token(which) => out.push_str(vault.token(*which).ok_or(FillError::NoToken)?.reveal()),
            }
        }
        Ok(out)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Name(name) => write!(f, "{{{name}}}"),
            Part::Secret(name) => write!(f, "{{secret:{name}}}"),
            Part::Token(Token::Access) => f.write_str("{token.access}"),
            Part::Token(Token::Refresh) => f.write_str("{token.refresh}"),
        })
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({self})")
    }
}

/// The placeholder whose brace is at `open`, and where the text goes on; `None` = the brace is text.
fn placeholder(text: &str, open: usize, setting: Setting) -> Result<Option<(Part, usize)>, TemplateError> {
    let error = |at: usize, why: &'static str| TemplateError { text: text.to_owned(), at, why };
    let inside = &text[open + 1..];
    let credential = |at: usize| match setting {
        Setting::Credential => Ok(()),
        Setting::Url | Setting::Name | Setting::Json => {
            Err(error(at, "secrets and tokens stand in headers and form fields only"))
        }
    };
    if let Some(name) = inside.strip_prefix("secret:") {
        let at = open + 1 + "secret:".len();
        credential(open)?;
        let len = name_len(name);
        if len == 0 || len > NAME_MAX || !name[len..].starts_with('}') {
            return Err(error(at, "expected the name of a secret and `}`"));
        }
        return Ok(Some((Part::Secret(name[..len].to_owned()), at + len + 1)));
    }
    if let Some(which) = inside.strip_prefix("token.") {
        credential(open)?;
        for (name, token) in [("access}", Token::Access), ("refresh}", Token::Refresh)] {
            if which.starts_with(name) {
                return Ok(Some((Part::Token(token), open + 1 + "token.".len() + name.len())));
            }
        }
        return Err(error(open + 1 + "token.".len(), "expected `access}` or `refresh}`"));
    }
    let len = name_len(inside);
    if len == 0 || !inside[len..].starts_with('}') {
        return Ok(None);
    }
    if len > NAME_MAX {
        return Err(error(open + 1, "a name has at most 64 characters"));
    }
    Ok(Some((Part::Name(inside[..len].to_owned()), open + len + 2)))
}

fn write_value(setting: Setting, name: &str, bindings: &Bindings, out: &mut String) -> Result<(), FillError> {
    let text = match bindings.get(name) {
        None => return Err(FillError::Unbound(name.to_owned())),
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        Some(Value::Null | Value::Array(_) | Value::Object(_)) => {
            return Err(FillError::NoText(name.to_owned()));
        }
    };
    match setting {
        Setting::Url => out.push_str(&percent_encode(&text)),
        Setting::Name => out.push_str(&text),
        Setting::Json => {
            let quoted = Value::from(text).to_string();
            out.push_str(&quoted[1..quoted.len() - 1]);
        }
        Setting::Credential if text.chars().any(char::is_control) => {
            return Err(FillError::Control(name.to_owned()));
        }
        Setting::Credential => out.push_str(&text),
    }
    Ok(())
}

/// RFC 3986: everything but unreserved characters.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn bindings(value: Value) -> Bindings {
        Bindings::from([("id".to_owned(), value)])
    }

    fn fill(text: &str, setting: Setting, value: Value) -> Result<String, FillError> {
        Template::new(text, setting).unwrap().fill(&bindings(value))
    }

    #[test]
    fn values_are_written_as_the_setting_needs_them() {
        let nasty = || json!("a b/ü\"\\{id}\n?");
        assert_eq!(fill("/x/{id}?y={id}", Setting::Url, json!(7)), Ok("/x/7?y=7".into()));
        assert_eq!(fill("/{id}", Setting::Url, nasty()), Ok("/a%20b%2F%C3%BC%22%5C%7Bid%7D%0A%3F".into()));
        assert_eq!(fill("private-{id}", Setting::Name, json!("org.7")), Ok("private-org.7".into()));
        let message = fill(r#"{"op":"subscribe","channel":"{id}","n":{}}"#, Setting::Json, nasty()).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&message).unwrap()["channel"], nasty());
        assert_eq!(fill("Bearer {id}", Setting::Credential, json!("x")), Ok("Bearer x".into()));
        assert_eq!(fill("{id}", Setting::Credential, nasty()), Err(FillError::Control("id".into())));
        assert_eq!(fill("{id}", Setting::Url, json!(true)), Ok("true".into()));
        for value in [json!(null), json!([1]), json!({})] {
            assert_eq!(fill("{id}", Setting::Url, value), Err(FillError::NoText("id".into())));
        }
        assert_eq!(fill("{other}", Setting::Url, json!(1)), Err(FillError::Unbound("other".into())));
    }

    #[test]
    fn other_braces_are_text() {
        for text in ["{", "}", "{}", "{ id }", "{Id}", "{-x}", r#"{"a":{"b":1}}"#, "{id", "{{", "{a b}"] {
            assert_eq!(fill(text, Setting::Json, json!(1)), Ok(text.into()), "{text}");
        }
        assert_eq!(fill("{{id}}", Setting::Json, json!(1)), Ok("{1}".into()));
    }

    #[test]
    fn secrets_stand_in_credentials_only_and_are_never_shown() {
        struct Known;
        impl Vault for Known {
            fn secret(&self, name: &str) -> Option<Secret> {
                (name == "api").then(|| Secret::new("s3cret"))
            }
            fn token(&self, which: Token) -> Option<Secret> {
                (which == Token::Access).then(|| Secret::new("t0ken"))
            }
        }
        let credential = |text: &str| Template::new(text, Setting::Credential).unwrap();
        let filled =
            credential("Bearer {secret:api} {token.access}").fill_secret(&Bindings::new(), &Known).unwrap();
        assert_eq!(filled.reveal(), "Bearer s3cret t0ken");
        let both = credential("{x}{secret:api}{token.access}{secret:b}");
        assert_eq!(both.secrets().collect::<Vec<_>>(), ["api", "b"]);
        assert_eq!(both.tokens().collect::<Vec<_>>(), [Token::Access]);
        assert!(!format!("{filled:?}").contains("s3cret"));
        let unknown = credential("{secret:other}").fill_secret(&Bindings::new(), &Known);
        assert_eq!(unknown, Err(FillError::UnknownSecret("other".into())));
        let missing = credential("{token.refresh}").fill_secret(&Bindings::new(), &Known);
        assert_eq!(missing, Err(FillError::NoToken));
        for setting in [Setting::Url, Setting::Name, Setting::Json] {
            assert_eq!(Template::new("x{secret:api}", setting).unwrap_err().at, 1);
            assert_eq!(Template::new("{token.access}", setting).unwrap_err().at, 0);
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (text, at) in [("{secret:}", 8), ("{secret:api", 8), ("a{secret:API}", 9), ("{token.both}", 7)] {
            assert_eq!(Template::new(text, Setting::Credential).unwrap_err().at, at, "{text}");
        }
        let name = |len: usize| format!("{{{}}}", "x".repeat(len));
        assert!(Template::new(&name(NAME_MAX), Setting::Url).is_ok());
        assert!(Template::new(&name(NAME_MAX + 1), Setting::Url).is_err());
    }

    proptest! {
        #[test]
        fn a_template_shows_as_it_was_read(text in "[ab{}\":]{0,12}") {
            prop_assert_eq!(Template::new(&text, Setting::Url).unwrap().to_string(), text);
        }

        #[test]
        fn no_value_breaks_out_of_a_url_or_a_json_text(value in ".{0,12}") {
            let url = fill("{id}", Setting::Url, json!(value)).unwrap();
            prop_assert!(url.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
            let message = fill(r#"{"a":"{id}"}"#, Setting::Json, json!(value)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&message).unwrap(), json!({"a": value}));
        }
    }
}
