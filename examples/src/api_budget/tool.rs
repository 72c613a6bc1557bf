//! The short-lived process, with and without Paceline: the part of the example that uses it.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use paceline::{FetchError, Freshness, Resource, Session, key};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::sleep;

use super::{
    api::{self, ApiError},
    args::{GroupArgs, ToolArgs},
};
use crate::one_wire::control::say;

/// Requests of a process that asks for itself, the first one included.
const ATTEMPTS: u32 = 3;

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(60);

/// What a child says: that it has what it wants, or not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    /// Why not.
    pub error: Option<String>,
}

/// Waits for others, as `paceline run` does, until its parent ends it.
///
/// # Errors
/// When it cannot join.
pub async fn coordinator(args: GroupArgs) -> io::Result<()> {
    let joined =
        Session::builder("api-budget").state_dir(args.state_dir).label("coordinator").preferred().join();
    match joined.await {
        Ok(_session) => {
            say(&Said { error: None })?;
            std::future::pending().await
        }
        Err(error) => say(&Said { error: Some(error.to_string()) }),
    }
}

/// Gets what it wants, says whether it did, and ends.
///
/// # Errors
/// When nobody listens to it.
pub async fn run(args: ToolArgs) -> io::Result<()> {
    let got = match &args.state_dir {
        Some(dir) => with_paceline(args.address, dir).await.map_err(|error| error.to_string()),
        None => alone(args.address).await.map_err(|error| error.to_string()),
    };
    say(&Said { error: got.err() })
}

/// One of many sessions: whoever asks first leads to a request, all others share what it brings.
async fn with_paceline(api: SocketAddr, dir: &Path) -> Result<Value, paceline::Error> {
    let budget = Resource::new("budget").stale_time(FRESH).fetch(move |_| async move {
        api::budget(api).await.map_err(|error| match error {
            ApiError::Quota(wait) => FetchError::status(429, error.to_string()).retry_after(wait),
            ApiError::Status(status) => FetchError::status(status, error.to_string()),
            ApiError::Io(_) => FetchError::network(error.to_string()),
        })
    });
    // An observer never leads: what ends in a moment should not hold the group.
    let session = Session::builder("api-budget").state_dir(dir).observer().resource(budget).join().await?;
    let found = session.query(key!["budget"]).fetch(Freshness::by_rules()).await?;
    session.leave().await?;
    Ok(found.into_inner())
}

/// Asks for itself, and waits as long as it is asked to, like any well-behaved client.
async fn alone(api: SocketAddr) -> Result<Value, ApiError> {
    let mut attempt = 1;
    loop {
        match api::budget(api).await {
            Err(ApiError::Quota(wait)) if attempt < ATTEMPTS => sleep(wait).await,
            result => return result,
        }
        attempt += 1;
    }
}
