//! What a session declares by configuration.

use std::path::PathBuf;

use paceline_channel::{
    protocol::Secret,
    template::{Token, Vault},
};
use paceline_config::{Capabilities, Config, Draft, Part, Source, tables::Upstream as Declared};
use paceline_proto::message::Rank;
use paceline_runtime::socket::Upstream;

use crate::error::Error;

/// The parts of the configuration language that this build can carry out.
///
/// ```
/// use paceline::config::Part;
///
/// assert!(paceline::capabilities().has(Part::WebSocket));
/// ```
pub fn capabilities() -> Capabilities {
    Capabilities::of([Part::WebSocket])
}

/// Configuration as it was handed to the builder.
#[derive(Debug, Default)]
pub(crate) struct Declarations {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) validated: Option<Config>,
    pub(crate) from_env: bool,
}

impl Declarations {
    /// Reads and checks it; `None` where there is none.
    pub(crate) fn read(&self) -> Result<Option<Config>, Error> {
        if let Some(config) = &self.validated {
            return Ok(Some(config.clone()));
        }
        if self.files.is_empty() {
            return Ok(None);
        }
        let mut sources = Vec::new();
        for path in &self.files {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::ConfigFile { path: path.clone(), why: error.to_string() })?;
            sources.push(Source::named(path.display().to_string(), text));
        }
        if self.from_env {
            sources.push(Source::environment(|name| std::env::var(name).ok()));
        }
        Ok(Some(Draft::new(sources)?.validate(&capabilities())?))
    }

    /// Its upstreams. One that never leads opens none, and needs no secrets.
    pub(crate) fn upstreams(&self, config: &Config, rank: Rank) -> Result<Vec<Upstream>, Error> {
        let secrets = match rank {
            Rank::Observer => Secrets { config, from_env: false, leads: false },
            Rank::Candidate | Rank::Preferred => {
                let secrets = Secrets { config, from_env: self.from_env, leads: true };
                secrets.check()?;
                secrets
            }
        };
        let made = config.websockets(&secrets).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(made
            .into_iter()
            .map(|it| Upstream {
                name: it.name.into(),
                spec: it.spec,
                backoff: it.backoff,
                router: it.router,
            })
            .collect())
    }
}

/// The secrets of a configuration, in a process that may hold the wire.
struct Secrets<'a> {
    config: &'a Config,
    from_env: bool,
    leads: bool,
}

impl Secrets<'_> {
    /// Every secret that an upstream needs is there.
    fn check(&self) -> Result<(), Error> {
        for upstream in self.config.upstreams().values() {
            let Declared::WebSocket(upstream) = upstream.value() else { continue };
            for (_, header) in upstream.headers().iter() {
                for name in header.template().secrets() {
                    self.look_up(name)?;
                }
            }
        }
        Ok(())
    }

    fn look_up(&self, name: &str) -> Result<Secret, Error> {
        let declared = self.config.secrets().get(name);
        let Some((variable, secret)) = declared.and_then(|it| Some((it.env().as_ref()?, it))) else {
            return Err(Error::Invalid(format!("the secret {name:?} is declared by no variable")));
        };
        let failed =
            |why: String| Error::Secret { name: name.to_owned(), origin: secret.origin().clone(), why };
        if !self.from_env {
            let why = format!(
                "it is in the variable {variable}, and `from_env` was not called",
                variable = variable.as_str()
            );
            return Err(failed(why));
        }
        match std::env::var(variable.as_str()) {
            Ok(text) if !text.is_empty() && !text.chars().any(char::is_control) => Ok(Secret::new(text)),
            Ok(_) => Err(failed(format!(
                "the variable {} is empty or holds a control character",
                variable.as_str()
            ))),
            Err(_) => Err(failed(format!("set the variable {}", variable.as_str()))),
        }
    }
}

impl Vault for Secrets<'_> {
    fn secret(&self, name: &str) -> Option<Secret> {
        if self.leads { self.look_up(name).ok() } else { Some(Secret::new("")) }
    }

    fn token(&self, _: Token) -> Option<Secret> {
        None
    }
}

#[cfg(test)]
mod tests {
    use paceline_ipc::group::GroupName;

    use super::*;

    #[test]
    fn a_group_may_be_called_the_same_in_code_and_in_a_file() {
        let long = "x".repeat(64);
        for name in [
            "default",
            "a",
            "0",
            "a.b_c-d",
            long.as_str(),
            "",
            "-a",
            ".a",
            "A",
            "ä",
            "a b",
            &format!("{long}x"),
        ] {
            let text = format!("[group]\nname = {name:?}\n");
            let declared = Draft::new([Source::named("f", text)]).unwrap().validate(&capabilities());
            assert_eq!(declared.is_ok(), name.parse::<GroupName>().is_ok(), "{name:?}");
        }
    }
}
