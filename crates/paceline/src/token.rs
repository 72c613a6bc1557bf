//! Tokens that rotate: one session refreshes, all may read.

use std::sync::atomic::{AtomicU64, Ordering};

use paceline_channel::protocol::Secret;
use paceline_ipc::token::TokenFile;
use paceline_proto::{
    fetch::{FetchFailure, Fetched, Want},
    message::{Answer, Ask},
};
use paceline_query::{key::QueryKey, rules};
use paceline_runtime::token::{moment, recorded};
use serde_json::Value;

use crate::{
    error::Error,
    query::{Query, Subscription},
    session::{Session, block_on, new_trace},
};

/// A token of a session: kept valid for the group while this is held.
///
/// ```no_run
/// # struct Reply { status: u16 }
/// # async fn call(_: &str) -> Reply { Reply { status: 200 } }
/// # async fn run(session: paceline::Session) -> Result<(), paceline::Error> {
/// let login = session.token("login")?;
/// let mut access = login.get().await?;
/// if call(access.reveal()).await.status == 401 {
///     access = login.rejected(&access).await?; // of all who say so at once, one leads to a refresh
///     call(access.reveal()).await;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Token {
    name: String,
    key: QueryKey,
    query: Query,
    file: TokenFile,
    /// The generation that was found to be durable.
    durable: AtomicU64,
    /// Somebody looks at it: it is refreshed before it ends.
    _subscription: Subscription<Value>,
}

/// An access token. Its `Debug` does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    generation: u64,
    secret: Secret,
}

impl AccessToken {
    /// The token, for the request that needs it.
    pub fn reveal(&self) -> &str {
        self.secret.reveal()
    }

    /// Grows by one with each refresh.
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

impl Session {
    /// The token of the resource `name`, which a configuration declares with `kind = "token"`. A session that declares nothing
    /// may ask for it as well.
    ///
    /// # Errors
    /// [`Error::Invalid`] when this can be the name of no resource.
    pub fn token(&self, name: &str) -> Result<Token, Error> {
        let invalid = |why: String| Error::Invalid(why);
        rules::Resource::new(name).map_err(|error| invalid(error.to_string()))?;
        let file = self.runtime().token_file(name).map_err(|error| invalid(error.to_string()))?;
        let segments: Vec<Value> = name.split('.').map(Value::from).collect();
        let key = QueryKey::new(&segments).map_err(|error| invalid(error.to_string()))?;
        let query = self.query(&key);
        let subscription = query.subscribe();
        let durable = AtomicU64::new(0);
        Ok(Token { name: name.to_owned(), key, query, file, durable, _subscription: subscription })
    }
}

impl Token {
    /// A valid access token: at once where there is one, whoever leads and whether anybody does; else when it was refreshed.
    ///
    /// # Errors
    /// [`Error::NeedsAuth`]; [`Error::Fetch`] when it could not be refreshed for now; [`Error::Refused`] when its file
    /// cannot be read; [`Error::RuntimeDead`].
    pub async fn get(&self) -> Result<AccessToken, Error> {
        let (generation, valid) = self.read()?;
        match valid {
            Some(access) => Ok(access),
            None => self.or_signed_in(generation).await,
        }
    }

    /// A younger token than one that the server did not take. Of all sessions that say so of the same token, one leads to a
    /// refresh; whoever comes later gets what that brought.
    ///
    /// # Errors
    /// As [`Token::get`].
    pub async fn rejected(&self, access: &AccessToken) -> Result<AccessToken, Error> {
        let (generation, valid) = self.read()?;
        match valid.filter(|_| generation > access.generation) {
            Some(access) => Ok(access),
            None => self.or_signed_in(access.generation.min(generation)).await,
        }
    }

    /// [`Token::get`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Token::get`].
    pub fn get_blocking(&self) -> Result<AccessToken, Error> {
        block_on(self.get())
    }

    /// [`Token::rejected`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Token::get`].
    pub fn rejected_blocking(&self, access: &AccessToken) -> Result<AccessToken, Error> {
        block_on(self.rejected(access))
    }

    async fn or_signed_in(&self, generation: u64) -> Result<AccessToken, Error> {
        match self.younger_than(generation).await {
            // This process may have been started with a new seed before one was needed.
            Err(Error::NeedsAuth { .. }) if self.query.runtime.sign_in(&self.name) => {
                self.younger_than(generation).await
            }
            got => got,
        }
    }

    /// Has a token younger than the generation made, by whoever can.
    async fn younger_than(&self, generation: u64) -> Result<AccessToken, Error> {
        let mut segments = self.key.segments();
        segments.push(generation.into());
        let key = QueryKey::new(&segments).map_err(|error| Error::Invalid(error.to_string()))?;
        // That there was one is remembered by the group; what was remembered may be gone from the disk.
        for want in [Want::Fresh { max_age_ms: None, max_wait_ms: None }, Want::New] {
            let ask = Ask::Fetch { key: key.to_key(), want };
            match self.query.runtime.ask(ask, new_trace()).await? {
                Answer::Fetched(Fetched::Value { .. }) => {}
                Answer::Fetched(Fetched::Failed(failure)) => return Err(self.failed(failure)),
                Answer::Refused(why) => return Err(Error::Refused(why)),
                _ => return Err(Error::unexpected()),
            }
            if let (_, Some(access)) = self.read()?
                && access.generation > generation
            {
                return Ok(access);
            }
        }
        let why =
            format!("the token {:?} ended as it came; is the life that its server gives right?", self.name);
        Err(Error::Refused(why))
    }

    fn failed(&self, failure: FetchFailure) -> Error {
        match recorded(&self.file) {
            Ok(record) => match record.as_ref().and_then(|record| record.needs_auth()) {
                Some(why) => Error::NeedsAuth { name: self.name.clone(), why: why.to_owned() },
                None => Error::Fetch(failure),
            },
            Err(why) => Error::Refused(why),
        }
    }

    /// The generation on record, and the access token if it is valid.
    fn read(&self) -> Result<(u64, Option<AccessToken>), Error> {
        let Some(record) = recorded(&self.file).map_err(Error::Refused)? else { return Ok((0, None)) };
        let generation = record.generation();
        let valid = record.access(moment()).map(|secret| AccessToken { generation, secret });
        if valid.is_some() && self.durable.swap(generation, Ordering::Relaxed) != generation {
            // Whoever wrote it may have died before it was durable.
            self.file.sync().map_err(|error| Error::Refused(error.to_string()))?;
        }
        Ok((generation, valid))
    }
}
