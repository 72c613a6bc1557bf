//! What a server's answer to a refresh means (RFC 6749, sections 5 and 6).

use std::time::Duration;

use paceline_query::path::Path;
use serde_json::Value;

use crate::protocol::Secret;

/// Where the answer has what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The access token.
    pub access: Path,
    /// The next refresh token.
    pub refresh: Path,
    /// The access token's life in seconds.
    pub expires_in: Path,
}

/// What became of a use of a refresh token. Its texts hold no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// There is a new pair.
    Rotated {
        /// The access token.
        access: Secret,
        /// The next refresh token; the old one stays where there is none.
        refresh: Option<Secret>,
        /// How long the access token is valid.
        expires_in: Option<Duration>,
    },
    /// The refresh token is not good, or nothing says that it still is.
    Refused(String),
    /// The server did not count it as a use.
    Declined(String),
    /// The server may have counted it.
    Unknown(String),
}

/// Errors of section 5.2 that are about the request or the client, not about the refresh token; and those of a server that is
/// too busy.
const NOT_THE_TOKEN: [&str; 7] = [
    "invalid_request",
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "temporarily_unavailable",
    "slow_down",
];

/// Longest life that counts as one: a year.
const LIFE_MAX: u64 = 366 * 24 * 60 * 60;

/// Reads an answer.
pub fn read_answer(status: u16, body: &[u8], paths: &Paths) -> Answer {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match status {
        200..=299 => rotated(status, &body, paths),
        400 | 401 | 403 => match body["error"].as_str() {
            Some(error) if NOT_THE_TOKEN.contains(&error) => Answer::Declined(format!("{status} {error}")),
            Some("invalid_grant") => Answer::Refused(format!("the server answered {status} invalid_grant")),
            Some(_) | None => Answer::Refused(format!("the server answered {status}")),
        },
        300..=499 => Answer::Declined(format!("the server answered {status}")),
        // A gateway says so as well after it passed the request on.
        _ => Answer::Unknown(format!("the server answered {status}")),
    }
}

fn rotated(status: u16, body: &Value, paths: &Paths) -> Answer {
    let text =
        |path: &Path| path.find(body).and_then(Value::as_str).filter(|text| is_token(text)).map(Secret::new);
    match text(&paths.access) {
        Some(access) => Answer::Rotated {
            access,
            refresh: text(&paths.refresh),
            expires_in: paths.expires_in.find(body).and_then(seconds),
        },
        None => Answer::Unknown(format!("the server answered {status} without an access token in its place")),
    }
}

/// What can stand in a header (RFC 6750 and RFC 6749, appendix A).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

fn seconds(life: &Value) -> Option<Duration> {
    let seconds = life.as_u64().or_else(|| life.as_str()?.parse().ok());
    let seconds = seconds.or_else(|| {
        let seconds = life.as_f64().filter(|seconds| *seconds >= 0.0)?;
        Some(seconds as u64)
    });
    seconds.map(|seconds| Duration::from_secs(seconds.min(LIFE_MAX)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths() -> Paths {
        let path = |text: &str| text.parse().unwrap();
        Paths {
            access: path("$.access_token"),
            refresh: path("$.refresh_token"),
            expires_in: path("$.expires_in"),
        }
    }

    fn read(status: u16, body: &Value) -> Answer {
        read_answer(status, body.to_string().as_bytes(), &paths())
    }

    #[test]
    fn a_pair_a_single_token_and_lives_of_all_spellings() {
        let rotated = |refresh: Option<&str>, seconds: Option<u64>| Answer::Rotated {
            access: Secret::new("a"),
            refresh: refresh.map(Secret::new),
            expires_in: seconds.map(Duration::from_secs),
        };
        for (body, want) in [
            (
                json!({ "access_token": "a", "refresh_token": "r", "expires_in": 60 }),
                rotated(Some("r"), Some(60)),
            ),
            (json!({ "access_token": "a", "expires_in": "60" }), rotated(None, Some(60))),
            (json!({ "access_token": "a", "expires_in": 60.5 }), rotated(None, Some(60))),
            (json!({ "access_token": "a", "expires_in": -1 }), rotated(None, None)),
            (json!({ "access_token": "a", "expires_in": u64::MAX }), rotated(None, Some(LIFE_MAX))),
            (json!({ "access_token": "a" }), rotated(None, None)),
        ] {
            assert_eq!(read(200, &body), want, "{body}");
        }
    }

    #[test]
    fn what_an_answer_says_of_the_refresh_token() {
        let kind = |answer: &Answer| match answer {
            Answer::Rotated { .. } => "rotated",
            Answer::Refused(_) => "refused",
            Answer::Declined(_) => "declined",
            Answer::Unknown(_) => "unknown",
        };
        let error = |error: &str| json!({ "error": error, "error_description": "hunter2" });
        for (status, body, want) in [
            (200, json!({}), "unknown"),
            (200, json!({ "access_token": "" }), "unknown"),
            (200, json!({ "access_token": "a\r\nb" }), "unknown"),
            (204, Value::Null, "unknown"),
            (302, Value::Null, "declined"),
            (400, error("invalid_grant"), "refused"),
            (400, error("invalid_scope"), "declined"),
            (401, error("invalid_client"), "declined"),
            (401, Value::Null, "refused"),
            (403, error("something"), "refused"),
            (404, Value::Null, "declined"),
            (429, error("slow_down"), "declined"),
            (500, Value::Null, "unknown"),
            (503, Value::Null, "unknown"),
            (101, Value::Null, "unknown"),
        ] {
            let answer = read(status, &body);
            assert_eq!(kind(&answer), want, "{status} {body}");
            assert!(!format!("{answer:?}").contains("hunter2"), "{answer:?}");
        }
        assert_eq!(kind(&read_answer(200, b"<html>", &paths())), "unknown");
    }
}
