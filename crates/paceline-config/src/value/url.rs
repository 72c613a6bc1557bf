//! Addresses of servers.

use std::fmt;

use paceline_channel::template::{Setting, Template};
use serde_json::Value;

use super::template::template;
use crate::{
    node::Node,
    problem::{Problem, ProblemKind},
    reader::{Field, Reader},
};

/// Who is spoken to: scheme, host and port. Nothing of it is filled in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UrlOrigin(String);

impl fmt::Display for UrlOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `ws://` or `wss://`; `{NAME}` is filled in behind the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveUrl {
    template: Template,
    origin: UrlOrigin,
}

/// `http://` or `https://`; `{NAME}` is filled in behind the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    template: Template,
    origin: UrlOrigin,
}

/// `http://` or `https://` without anything to fill in, query or fragment: what paths are put behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    text: String,
    origin: UrlOrigin,
}

impl LiveUrl {
    /// The template.
    pub const fn template(&self) -> &Template {
        &self.template
    }

    /// The server.
    pub const fn origin(&self) -> &UrlOrigin {
        &self.origin
    }
}

impl HttpUrl {
    /// The template.
    pub const fn template(&self) -> &Template {
        &self.template
    }

    /// The server.
    pub const fn origin(&self) -> &UrlOrigin {
        &self.origin
    }
}

impl ServerUrl {
    /// Without a `/` at its end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The server.
    pub const fn origin(&self) -> &UrlOrigin {
        &self.origin
    }
}

impl Field for LiveUrl {
    fn kind() -> String {
        "URL, `ws://` or `wss://`, `{NAME}` is filled in behind the host".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let origin = origin(node, reader, &["wss", "ws"])?;
        let template = template(node, reader, Setting::Url, &Self::kind())?;
        Some(Self { template, origin })
    }

    fn canon(&self) -> Value {
        self.template.to_string().into()
    }
}

impl Field for HttpUrl {
    fn kind() -> String {
        "URL, `http://` or `https://`, `{NAME}` is filled in behind the host".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let origin = origin(node, reader, &["https", "http"])?;
        let template = template(node, reader, Setting::Url, &Self::kind())?;
        Some(Self { template, origin })
    }

    fn canon(&self) -> Value {
        self.template.to_string().into()
    }
}

impl Field for ServerUrl {
    fn kind() -> String {
        "URL, `http://` or `https://`, without query and names to fill in".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let origin = origin(node, reader, &["https", "http"])?;
        let text = reader.text(node, &Self::kind())?;
        if text.contains(['?', '{', '}']) {
            reader.invalid(node, Self::kind());
            return None;
        }
        Some(Self { text: text.trim_end_matches('/').to_owned(), origin })
    }

    fn canon(&self) -> Value {
        self.text.as_str().into()
    }
}

/// The origin of a URL with one of the schemes, the first of which is meant where none is given.
fn origin(node: &Node, reader: &mut Reader<'_>, schemes: &[&str]) -> Option<UrlOrigin> {
    let allowed = format!("{}://HOST[:PORT][/PATH]", schemes.join(":// or "));
    let text = reader.text(node, &allowed)?;
    match parse(text, schemes) {
        Ok(origin) => Some(origin),
        Err((what, nearest)) => {
            // The text may hold a password: it is not shown.
            let mut problem = Problem::new(ProblemKind::Value, reader.key(), node.origin.clone(), what);
            problem.nearest = nearest;
            reader.report(problem.allowed(allowed));
            None
        }
    }
}

type Refusal = (String, Option<String>);

fn parse(text: &str, schemes: &[&str]) -> Result<UrlOrigin, Refusal> {
    let refuse = |what: &str| Err((what.to_owned(), None));
    let first = schemes.first().copied().unwrap_or_default();
    let Some((scheme, rest)) = text.split_once("://") else {
        let plain = !text.is_empty() && !text.contains(['@', ':', ' ']);
        return Err(("is no URL".to_owned(), plain.then(|| format!("{first}://{text}"))));
    };
    let scheme = scheme.to_ascii_lowercase();
    if !schemes.contains(&scheme.as_str()) {
        let secure = matches!(scheme.as_str(), "https" | "wss");
        let plain = schemes.get(1).copied().unwrap_or(first);
        let nearest = match scheme.as_str() {
            "http" | "https" | "ws" | "wss" if !rest.contains('@') => {
                Some(format!("{}://{rest}", if secure { first } else { plain }))
            }
            _ => None,
        };
        return Err((format!("is a URL of the scheme {scheme:?}"), nearest));
    }
    if text.len() > 4096 || rest.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return refuse("is longer than 4096 bytes, or holds a blank, a control character or `\\`");
    }
    if rest.contains('#') {
        return refuse("has a fragment, which no server gets to see");
    }
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    if authority.contains('@') {
        return refuse("holds a user or password; put it into a header with {secret:NAME}");
    }
    if authority.contains(['{', '}']) {
        return refuse("fills in a part of the host; names are filled in behind it only");
    }
    let (host, port) = split(authority);
    let default = if matches!(scheme.as_str(), "https" | "wss") { 443 } else { 80 };
    let port = match port {
        None => default,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 && !rest.starts_with('+') => port,
            Ok(_) | Err(_) => return refuse("has no port from 1 to 65535"),
        },
    };
    if !is_host(host) {
        return refuse("has no valid host");
    }
    let host = host.to_ascii_lowercase();
    let shown = if port == default { String::new() } else { format!(":{port}") };
    Ok(UrlOrigin(format!("{scheme}://{host}{shown}")))
}

/// Who a URL speaks to, if it is one of this language.
pub(crate) fn origin_of(text: &str) -> Option<String> {
    parse(text, &["https", "http", "wss", "ws"]).ok().map(|origin| origin.0)
}

/// Host and port.
fn split(authority: &str) -> (&str, Option<&str>) {
    match (authority.rfind(']'), authority.rfind(':')) {
        (Some(end), Some(colon)) if colon < end => (authority, None),
        (_, Some(colon)) => (&authority[..colon], Some(&authority[colon + 1..])),
        (_, None) => (authority, None),
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn is_host(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::number::tests::{problem, read};

    #[test]
    fn the_origin_is_scheme_host_and_port() {
        for (text, origin) in [
            ("wss://api.example.com/ws?x={id}", "wss://api.example.com"),
            ("WSS://API.example.com:443", "wss://api.example.com"),
            ("ws://127.0.0.1:9000/", "ws://127.0.0.1:9000"),
            ("ws://[::1]:9000/", "ws://[::1]:9000"),
            ("ws://[::1]", "ws://[::1]"),
            ("wss://h?x=1", "wss://h"),
        ] {
            assert_eq!(
                read::<LiveUrl>(&format!("{text:?}")).map(|url| url.origin().to_string()),
                Ok(origin.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "api.example.com",
            "https://h/",
            "wss://",
            "wss://u:p@h/",
            "wss://{host}/",
            "wss://h:0/",
            "wss://h:65536/",
            "wss://h:x/",
            "wss://h/a b",
            "wss://h/#x",
            "wss://-h/",
            "wss://h../",
            "wss://h\\\\x/",
            "wss://[::1/",
            "wss://h/{secret:api}",
        ] {
            assert!(read::<LiveUrl>(&format!("\"{text}\"")).is_err(), "{text}");
        }
        assert_eq!(problem::<LiveUrl>("\"https://h/x\"").nearest.as_deref(), Some("wss://h/x"));
        assert_eq!(problem::<HttpUrl>("\"ws://h/x\"").nearest.as_deref(), Some("http://h/x"));
        let password = problem::<HttpUrl>("\"https://u:hunter2@h/\"").to_string();
        assert!(!password.contains("hunter2"), "{password}");
        assert!(
            read::<ServerUrl>("\"https://h/{x}\"").is_err() && read::<ServerUrl>("\"https://h/a/\"").is_ok()
        );
    }
}
