//! What a file that was found in a working directory may not set by itself: commands, credentials and origins. Whoever
//! controls a directory would otherwise control what runs, what is read from the environment, and where secrets go.

use std::fmt;

use crate::{
    digest::Digest,
    draft::Draft,
    node::{Members, Node, join, literal},
    origin::Origin,
    problem::{Problem, ProblemKind},
    value::origin_of,
};

/// A value of an untrusted file that needs `paceline trust`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Untrusted {
    /// For example `secrets.api.command`.
    pub key: String,
    /// Where.
    pub origin: Origin,
    /// What it does that needs trust.
    pub why: Reason,
    /// The value, as the trust is given for it.
    pub value: String,
}

/// What needs trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A program would be run.
    Command,
    /// A secret would be read or sent.
    Credential,
    /// A server would be spoken to that the user did not name at this key.
    Server,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "runs a command",
            Self::Credential => "uses a credential",
            Self::Server => "speaks to a server",
        })
    }
}

impl Untrusted {
    /// One digest for what needs trust: another command, credential or server makes another one, anything else does
    /// not.
    pub fn digest(all: &[Self]) -> Digest {
        let mut lines: Vec<String> =
            all.iter().map(|it| format!("{}\u{0}{:?}\u{0}{}", it.key, it.why, it.value)).collect();
        lines.sort();
        Digest::of("trust", lines.join("\u{1}").as_bytes())
    }

    pub(crate) fn into_problem(self) -> Problem {
        let file = self.origin.file().unwrap_or("the file").to_owned();
        let what = format!("{}, and {file} was found in a working directory and is not trusted", self.why);
        Problem::new(ProblemKind::Untrusted, self.key, self.origin, what)
            .fix(format!("read it, then run `paceline trust {file}`, or move the key to the user file"))
    }
}

impl Draft {
    /// The values of untrusted files that need trust; none, and the files may be used as they are.
    ///
    /// ```
    /// use paceline_config::{Draft, Source};
    ///
    /// let text = "[secrets.api]\ncommand = [\"pass\", \"show\", \"api\"]\n";
    /// let asked = Draft::new([Source::found("paceline.toml", text)])?.untrusted();
    /// assert_eq!(asked[0].key, "secrets.api.command");
    /// assert_eq!(asked[0].why.to_string(), "runs a command");
    /// assert!(Draft::new([Source::named("paceline.toml", text)])?.untrusted().is_empty());
    /// # Ok::<(), paceline_config::ConfigError>(())
    /// ```
    pub fn untrusted(&self) -> Vec<Untrusted> {
        let mut found = Vec::new();
        for layer in &self.untrusted {
            let look = Look { trusted: &self.trusted };
            look.secrets(layer, &mut found);
            look.servers(layer, &mut found);
            look.requests(layer, &mut found);
            for table in ["upstreams", "http", "resources", "tags"] {
                if let Some(node) = child(layer, table) {
                    credentials(node, table, &mut found);
                }
            }
        }
        found.sort_by(|a, b| (&a.origin, &a.key, a.why).cmp(&(&b.origin, &b.key, b.why)));
        found.dedup();
        found
    }
}

struct Look<'a> {
    trusted: &'a Node,
}

impl Look<'_> {
    fn secrets(&self, layer: &Node, found: &mut Vec<Untrusted>) {
        for (name, secret) in tables(layer, "secrets") {
            for (key, why) in [("command", Reason::Command), ("env", Reason::Credential)] {
                if let Some(node) = child(secret, key)
                    && !self.says(&["secrets", name, key], node)
                {
                    push(found, &["secrets", name, key], node, why, literal(&node.to_json()));
                }
            }
        }
    }

    /// Addresses, unless the trusted layers have the same server at the same key.
    fn servers(&self, layer: &Node, found: &mut Vec<Untrusted>) {
        let keys: [(&str, &[&str]); 6] = [
            ("upstreams", &["url"]),
            ("upstreams", &["host"]),
            ("upstreams", &["cluster"]),
            ("upstreams", &["port"]),
            ("upstreams", &["auth", "endpoint"]),
            ("http", &["base"]),
        ];
        for (table, key) in keys {
            for (name, node) in tables(layer, table) {
                let Some(node) = descend(node, key) else { continue };
                let path: Vec<&str> = [table, name].into_iter().chain(key.iter().copied()).collect();
                let server =
                    |node: &Node| node.text().and_then(origin_of).unwrap_or_else(|| literal(&node.to_json()));
                let known = descend(self.trusted, &path).map(server);
                if known.as_ref() != Some(&server(node)) {
                    push(found, &path, node, Reason::Server, server(node));
                }
            }
        }
        // Without TLS a known server is another one.
        for (name, node) in tables(layer, "upstreams") {
            if let Some(tls) = child(node, "force_tls")
                && !self.says(&["upstreams", name, "force_tls"], tls)
                && tls.to_json() != serde_json::Value::Bool(true)
            {
                push(found, &["upstreams", name, "force_tls"], tls, Reason::Server, literal(&tls.to_json()));
            }
        }
    }

    /// Requests by a server whose headers, which the user gave, hold a credential.
    fn requests(&self, layer: &Node, found: &mut Vec<Untrusted>) {
        for (table, key) in [("resources", "fetch"), ("tags", "post")] {
            for (name, node) in tables(layer, table) {
                let Some(request) = child(node, key).filter(|it| it.members().is_some()) else { continue };
                let merged_server = descend(request, &["http"])
                    .or_else(|| descend(self.trusted, &[table, name, key, "http"]))
                    .and_then(Node::text);
                let Some(server) = merged_server else { continue };
                let carries = descend(self.trusted, &["http", server, "headers"]).is_some_and(|headers| {
                    headers.to_json().to_string().contains("{secret:")
                        || headers.to_json().to_string().contains("{token.")
                });
                if carries && !self.says(&[table, name, key], request) {
                    push(
                        found,
                        &[table, name, key],
                        request,
                        Reason::Credential,
                        literal(&request.to_json()),
                    );
                }
            }
        }
    }

    /// Whether the trusted layers say the same at the same key.
    fn says(&self, path: &[&str], node: &Node) -> bool {
        descend(self.trusted, path).is_some_and(|known| known.to_json() == node.to_json())
    }
}

/// Texts that ask for a secret or a token.
fn credentials(node: &Node, key: &str, found: &mut Vec<Untrusted>) {
    if let Some(text) = node.text() {
        if text.contains("{secret:") || text.contains("{token.") {
            found.push(Untrusted {
                key: key.to_owned(),
                origin: node.origin.clone(),
                why: Reason::Credential,
                value: text.to_owned(),
            });
        }
    } else if let Some(members) = node.members() {
        for (name, member) in members {
            credentials(&member.node, &join(key, name), found);
        }
    }
}

fn push(found: &mut Vec<Untrusted>, path: &[&str], node: &Node, why: Reason, value: String) {
    let key = path.iter().fold(String::new(), |key, part| join(&key, part));
    found.push(Untrusted { key, origin: node.origin.clone(), why, value });
}

fn child<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    node.members()?.get(name).map(|member| &member.node)
}

fn descend<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    path.iter().try_fold(node, |node, name| child(node, name))
}

fn tables<'a>(layer: &'a Node, table: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
    let none = const { &Members::new() };
    let members = child(layer, table).and_then(Node::members).unwrap_or(none);
    members.iter().map(|(name, member)| (name.as_str(), &member.node))
}
