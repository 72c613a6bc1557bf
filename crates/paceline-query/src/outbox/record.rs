//! What a mutation is: the request to send, and what orders and describes it.
//!
//! A record is made once, by the caller, and its bytes never change; they are what the queue stores and what the hash of a
//! submit covers. They are one JSON object, so that a stored queue is read with the `sqlite3` tool alone.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Brief, Delivery, OnConflict};
use crate::limits::{RECORD_BYTES, SCOPE_BYTES};

/// The form of the payload; another one is another build's.
const FORM: u32 = 1;

/// A mutation as its caller made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    form: u32,
    /// The request method.
    pub method: String,
    /// Where it is sent.
    pub url: String,
    /// Its headers, without credentials: those are added where it is sent and stored nowhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// What is sent.
    #[serde(default, skip_serializing_if = "Body::is_none")]
    pub body: Body,
    /// One line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// Whatever the application keeps with it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
    /// Mutations of one scope are sent in the order of their acceptance; without one it waits for no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Its kind, for a handler of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Higher ones go first among the heads of scopes.
    #[serde(default)]
    pub priority: i32,
    /// When it was made, in milliseconds since 1970.
    pub at: u64,
    /// What its server promises.
    #[serde(default, skip_serializing_if = "is_default")]
    pub delivery: Delivery,
    /// What follows when the server's value is another than [`Record::base`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_conflict: OnConflict,
    /// The version of the value that it was made from, for servers that can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The `traceparent` of its cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The content of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// None at all.
    #[default]
    None,
    /// JSON, byte by byte as it was given.
    Json(String),
    /// Other text.
    Text(String),
    /// Other bytes, in base64.
    Base64(String),
}

impl Body {
    fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The bytes to send.
    ///
    /// # Errors
    /// Where the text is no base64.
    pub fn bytes(&self) -> Result<Option<Bytes>, RecordError> {
        Ok(match self {
            Self::None => None,
            Self::Json(text) | Self::Text(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
            Self::Base64(text) => Some(
                BASE64_STANDARD
                    .decode(text)
                    .map_err(|error| RecordError::Form { why: format!("its body is no base64: {error}") })?
                    .into(),
            ),
        })
    }
}

impl From<&[u8]> for Body {
    fn from(bytes: &[u8]) -> Self {
        Self::Base64(BASE64_STANDARD.encode(bytes))
    }
}

/// A record that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is no JSON object of the form that this build knows.
    #[error(
        "the record of the mutation cannot be read: {why}; it is kept and not sent, discard it or open it with the build that wrote it"
    )]
    Form {
        /// What is wrong.
        why: String,
    },
    /// It is longer than [`RECORD_BYTES`].
    #[error("the mutation takes {bytes} bytes of at most {RECORD_BYTES}; send what is large as an upload")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Its scope is longer than [`SCOPE_BYTES`].
    #[error("the scope takes {bytes} bytes of at most {SCOPE_BYTES}; name it by an id")]
    Scope {
        /// Its length.
        bytes: usize,
    },
    /// Its method is no HTTP token.
    #[error("{method:?} is no request method; for example POST")]
    Method {
        /// What it is.
        method: String,
    },
}

impl Record {
    /// A request without more.
    pub fn new(method: impl Into<String>, url: impl Into<String>, at: u64) -> Self {
        Self {
            form: FORM,
            method: method.into(),
            url: url.into(),
            headers: BTreeMap::new(),
            body: Body::None,
            summary: String::new(),
            metadata: Value::Null,
            scope: None,
            tag: None,
            priority: 0,
            at,
            delivery: Delivery::default(),
            on_conflict: OnConflict::default(),
            base: None,
            trace: None,
        }
    }

    /// The bytes that are stored.
    ///
    /// # Errors
    /// For what no build would send.
    pub fn to_payload(&self) -> Result<Bytes, RecordError> {
        self.check()?;
        let bytes = serde_json::to_vec(self).map_err(|error| RecordError::Form { why: error.to_string() })?;
        if bytes.len() > RECORD_BYTES {
            return Err(RecordError::TooLarge { bytes: bytes.len() });
        }
        Ok(bytes.into())
    }

    /// Reads what was stored.
    ///
    /// # Errors
    /// For bytes of another form, by another build or of no build. They are to be kept.
    pub fn from_payload(payload: &[u8]) -> Result<Self, RecordError> {
        let record: Self =
            serde_json::from_slice(payload).map_err(|error| RecordError::Form { why: error.to_string() })?;
        if record.form != FORM {
            let why = format!("it has form {}, this build reads form {FORM}", record.form);
            return Err(RecordError::Form { why });
        }
        record.check()?;
        record.body.bytes()?;
        Ok(record)
    }

    /// What the order needs to know of it.
    pub fn brief(&self) -> Brief {
        Brief {
            scope: self.scope.as_deref().map(Into::into),
            priority: self.priority,
            at: self.at,
            delivery: self.delivery,
            on_conflict: self.on_conflict,
        }
    }

    fn check(&self) -> Result<(), RecordError> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if self.method.is_empty() || !self.method.bytes().all(is_token) {
            return Err(RecordError::Method { method: self.method.clone() });
        }
        match &self.scope {
            Some(scope) if scope.len() > SCOPE_BYTES => Err(RecordError::Scope { bytes: scope.len() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Record {
        Record {
            headers: [("x-tenant".to_owned(), "7".to_owned())].into(),
            body: Body::Json("{ \"status\":  \"checked\" }".into()),
            summary: "Check package 7".into(),
            metadata: serde_json::json!({ "screen": "list" }),
            scope: Some("packages/7".into()),
            tag: Some("data-sync".into()),
            priority: -3,
            delivery: Delivery::AtMostOnce,
            on_conflict: OnConflict::Manual,
            base: Some("\"etag\"".into()),
            trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            ..Record::new("PATCH", "https://api.example.com/packages/7", 1_800_000_000_000)
        }
    }

    #[test]
    fn a_record_is_stored_as_json_and_read_as_it_was() {
        for record in [full(), Record::new("DELETE", "https://api.example.com/packages/7", 0)] {
            let payload = record.to_payload().unwrap();
            assert_eq!(Record::from_payload(&payload), Ok(record.clone()));
            let json: Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(json["url"], record.url);
        }
        let binary: &[u8] = &[0, 255, 254];
        let mut record = full();
        record.body = binary.into();
        let read = Record::from_payload(&record.to_payload().unwrap()).unwrap();
        assert_eq!(read.body.bytes().unwrap().as_deref(), Some(binary));
        assert_eq!(
            full().body.bytes().unwrap().unwrap(),
            "{ \"status\":  \"checked\" }",
            "no byte of it changes"
        );
    }

    #[test]
    fn what_is_no_record_says_so_and_is_kept() {
        let with = |name: &str, value: Value| {
            let mut json = serde_json::to_value(full()).unwrap();
            json[name] = value;
            serde_json::to_vec(&json).unwrap()
        };
        for (payload, expected) in [
            (b"\x00\x01".to_vec(), "cannot be read"),
            (b"[]".to_vec(), "cannot be read"),
            (with("form", 2.into()), "form 2, this build reads form 1"),
            (with("unheard_of", 2.into()), "unknown field `unheard_of`"),
            (with("body", serde_json::json!({ "base64": "%" })), "no base64"),
            (with("method", "GET /".into()), "\"GET /\" is no request method"),
        ] {
            let error = Record::from_payload(&payload).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn bounds_hold_at_the_bound_and_not_beyond_it() {
        let mut record = full();
        record.scope = Some("s".repeat(SCOPE_BYTES));
        assert!(record.to_payload().is_ok());
        record.scope = Some("s".repeat(SCOPE_BYTES + 1));
        assert_eq!(record.to_payload(), Err(RecordError::Scope { bytes: SCOPE_BYTES + 1 }));
        let mut record = full();
        let rest = record.to_payload().unwrap().len() - full().summary.len();
        record.summary = "s".repeat(RECORD_BYTES - rest);
        assert_eq!(record.to_payload().unwrap().len(), RECORD_BYTES);
        record.summary.push('s');
        assert_eq!(record.to_payload(), Err(RecordError::TooLarge { bytes: RECORD_BYTES + 1 }));
    }
}
