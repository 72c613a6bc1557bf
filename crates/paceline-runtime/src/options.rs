//! What a session is started with.

use paceline_ipc::dirs::StateDir;
use paceline_proto::{
    fetch::Declared,
    id::SessionId,
    message::{DeclaredItem, Rank},
    program::Program,
};
use paceline_query::rules::Defaults;

use crate::{drain::Sends, fetcher::Fetchers, socket::Upstream, token::Keeper};

/// Who this session is, as others see it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its id.
    pub session: SessionId,
    /// A name for people.
    pub label: String,
    /// Its program.
    pub program: Program,
    /// Whether it leads.
    pub rank: Rank,
    /// Digest of all that it declares for the group; zero for nothing.
    pub declared: u64,
}

/// Everything a runtime needs. It reads no file and no environment beyond this.
#[derive(Debug)]
pub struct Options {
    /// The group's directory, checked.
    pub dir: StateDir,
    /// Who joins.
    pub identity: Identity,
    /// Live upstreams that this session opens when it leads.
    pub upstreams: Vec<Upstream>,
    /// Resources that this session knows: told to every owner.
    pub resources: Vec<Declared>,
    /// All that this session declares for the group: told where sessions declare differently.
    pub items: Vec<DeclaredItem>,
    /// What holds for keys that no resource says anything about, while this session leads.
    pub defaults: Defaults,
    /// What this session can fetch.
    pub fetchers: Fetchers,
    /// What this session sends when it leads; without it what is stored waits for another.
    pub sends: Option<Sends>,
    /// Tokens among it: their refreshes are waited for when the session leaves.
    pub tokens: Vec<Keeper>,
}
