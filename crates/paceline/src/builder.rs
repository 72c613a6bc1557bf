//! Joining a group.

use std::{path::PathBuf, sync::Arc};

use paceline_ipc::{
    dirs::StateDir,
    group::{GroupName, InvalidGroupName},
};
use paceline_proto::{fetch::Declared, id::SessionId, message::Rank, program::Program};
use paceline_query::outbox::Rules;
use paceline_runtime::{Afterwards, Identity, Options, Runtime, StartError, drain::Sends};
use paceline_upstream::send::HttpSender;

use crate::{
    declared::{Declarations, Queries, items},
    error::Error,
    resource::Resource,
    session::{Session, block_on},
    upstream::Upstream,
};

/// What a session is joined with.
#[derive(Debug)]
pub struct Builder {
    name: String,
    principal: Option<String>,
    label: String,
    rank: Rank,
    state_dir: Option<PathBuf>,
    upstreams: Vec<Upstream>,
    resources: Vec<Resource>,
    signals: Option<Afterwards>,
    declarations: Declarations,
    program: Option<Program>,
}

/// What this build is.
pub(crate) fn program() -> Program {
    let schema = paceline_runtime::store_schema();
    Program {
        schema: schema.writes,
        min_reader: schema.min_reader,
        ..Program::new(concat!("paceline ", env!("CARGO_PKG_VERSION")), std::process::id())
    }
}

impl Builder {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            principal: None,
            label: String::new(),
            rank: Rank::Candidate,
            state_dir: None,
            upstreams: Vec::new(),
            resources: Vec::new(),
            signals: None,
            declarations: Declarations::default(),
            program: None,
        }
    }

    /// Whose account the group's wire belongs to; part of the group's identity. Default: none.
    #[must_use]
    pub fn principal(mut self, principal: impl Into<String>) -> Self {
        self.principal = Some(principal.into());
        self
    }

    /// A name for people, shown in listings. Default: the process id.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Never leads.
    #[must_use]
    pub fn observer(mut self) -> Self {
        self.rank = Rank::Observer;
        self
    }

    /// Leads in preference to others: the first heir, and handed the wire politely by a session that is not preferred.
    #[must_use]
    pub fn preferred(mut self) -> Self {
        self.rank = Rank::Preferred;
        self
    }

    /// Directory of the groups' state instead of the user's own. Sessions with different directories form different
    /// groups.
    #[must_use]
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// Reads `PACELINE_STATE_DIR`, the variables of [`VARIABLES`](crate::config::VARIABLES), and those that the
    /// secrets of a configuration name. The library reads no environment without this call.
    #[must_use]
    pub fn from_env(mut self) -> Self {
        self.declarations.from_env = true;
        if let Some(path) = std::env::var_os("PACELINE_STATE_DIR") {
            self.state_dir = Some(path.into());
        }
        self
    }

    /// Takes over SIGTERM, SIGINT, SIGHUP, SIGTSTP and SIGCONT of the process. Default: no, the library touches no signal.
    ///
    /// On SIGTERM, SIGINT and SIGHUP every session of the process that asked for it leaves politely, a primary hands over,
    /// and then the process exits with 128 and the signal's number; a second signal does not wait. On SIGTSTP a primary hands
    /// over before the process stops. On SIGCONT it looks whether it still leads before it does anything else. A SIGHUP that
    /// the process ignores, as under `nohup`, stays ignored. The handlers stay when the session has left.
    #[must_use]
    pub fn handle_signals(mut self, handle: bool) -> Self {
        self.signals = handle.then_some(Afterwards::Exit);
        self
    }

    /// As [`Builder::handle_signals`], but the program ends in its own way: it sees [`Error::RuntimeDead`] when the session
    /// left. A leave that takes seconds, or a second signal, still ends the process.
    #[must_use]
    pub fn leave_on_signals(mut self) -> Self {
        self.signals = Some(Afterwards::Return);
        self
    }

    /// Declares a live upstream. The session that leads opens it; every session of a group declares the same.
    #[must_use]
    pub fn upstream(mut self, upstream: impl Into<Upstream>) -> Self {
        self.upstreams.push(upstream.into());
        self
    }

    /// Declares a resource: rules for keys, and how this process fetches them.
    #[must_use]
    pub fn resource(mut self, resource: Resource) -> Self {
        self.resources.push(resource);
        self
    }

    /// Declares what the file at `path` says, in the language of `docs/CONFIG.md`. It counts as named by its user, and
    /// is read when the session joins; mistakes in it, and parts that this build lacks, are reported then. What is
    /// declared in code wins over what the file says under the same name; of several files the last one wins.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), paceline::Error> {
    /// let session = paceline::Session::builder("warehouse").config_file("paceline.toml").from_env().join().await?;
    /// # session.leave().await
    /// # }
    /// ```
    #[must_use]
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.declarations.files.push(path.into());
        self
    }

    /// Declares what a configuration says that the caller validated, against [`capabilities`](crate::capabilities).
    /// Then no other file counts.
    #[must_use]
    pub fn config(mut self, config: crate::config::Config) -> Self {
        self.declarations.validated = Some(config);
        self
    }

    /// Joins as another build would: what it speaks, and the schema of the stores it reads and writes, which then is the
    /// whole process's. For tests of builds that differ; nothing outside the program can ask for it.
    #[cfg(feature = "other-builds")]
    #[doc(hidden)]
    #[must_use]
    pub fn stand_for(mut self, change: impl FnOnce(&mut Program)) -> Self {
        let mut other = program();
        change(&mut other);
        paceline_runtime::stand_for(other.schema, other.min_reader);
        self.program = Some(other);
        self
    }

    /// Joins: resolves when Welcome and the first snapshot were received.
    ///
    /// # Errors
    /// Says who and why; nothing changed.
    pub async fn join(self) -> Result<Session, Error> {
        let runtime = self.start()?;
        Session::joined(runtime).await
    }

    /// [`Builder::join`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Builder::join`].
    pub fn join_blocking(self) -> Result<Session, Error> {
        block_on(self.join())
    }

    fn start(self) -> Result<Runtime, Error> {
        let name: GroupName =
            self.name.parse().map_err(|error: InvalidGroupName| Error::Name(error.to_string()))?;
        let config = self.declarations.read()?;
        let principal = self.principal.or_else(|| {
            let declared = config.as_ref()?.group().principal().as_ref()?;
            Some(declared.as_str().to_owned())
        });
        let dir = StateDir::open(&name, principal.as_deref(), self.state_dir.as_deref())?;
        let mut upstreams = self
            .upstreams
            .into_iter()
            .map(Upstream::build)
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::Invalid)?;
        if let Some(config) = &config {
            let mut declared = self.declarations.upstreams(config, self.rank)?;
            declared.retain(|declared| upstreams.iter().all(|coded| coded.name != declared.name));
            upstreams.extend(declared);
        }
        let queries = match &config {
            Some(config) => self.declarations.queries(config, self.rank, &dir)?,
            None => Queries::default(),
        };
        let configured = config.as_ref().map(paceline_config::Config::declared).unwrap_or_default();
        let label = if self.label.is_empty() { format!("pid {}", std::process::id()) } else { self.label };
        let program = self.program.unwrap_or_else(program);
        let Queries { defaults, resources: mut declared, mut fetchers, tokens, sender } = queries;
        let sender = sender.or_else(|| (self.rank != Rank::Observer).then(HttpSender::default));
        let sends = sender.map(|sender| Sends { rules: Rules::default(), sender: Arc::new(sender) });
        let coded = self.resources.into_iter().map(|resource| {
            let declared = declared.remove(resource.name());
            resource.build(declared, &mut fetchers)
        });
        let mut resources = coded.collect::<Result<Vec<_>, _>>()?;
        resources.extend(declared.into_values().map(|rules| Declared {
            fetches: fetchers.has(&rules.name),
            rules: rules.to_bytes().into(),
            name: rules.name,
        }));
        let (declared, items) = items(configured, &resources);
        let session = SessionId(paceline_runtime::unique());
        let identity = Identity { session, label, program, rank: self.rank, declared };
        let options =
            Options { dir, identity, upstreams, resources, items, defaults, fetchers, sends, tokens };
        let runtime = Runtime::start(options)?;
        if let Some(afterwards) = self.signals {
            runtime.handle_signals(afterwards).map_err(StartError::Signals)?;
        }
        Ok(runtime)
    }
}
