//! The parent: runs both ways, one after the other, each with a server of its own.

use std::{collections::BTreeMap, io, path::Path};

use super::{
    args::RunArgs,
    report::{Arm, Document},
    server::{Logged, first_login},
    tool::Said,
};
use crate::{
    api_budget::{
        parent::{said, start, text},
        server::Listening,
    },
    one_wire::child::TempDir,
};

/// Steps after which all wait for each other: the login is held; the token was refreshed.
const STEPS: usize = 2;

/// Runs the whole example.
///
/// # Errors
/// When files or processes cannot be made, or a child says nothing. Sessions that are logged out are no error but counted.
pub async fn run(args: RunArgs) -> io::Result<Outcome> {
    let dir = TempDir::new("refresh-herd")?;
    let mut failures = BTreeMap::new();
    let without = arm(args, dir.path(), "without", &mut failures).await?;
    let with = if args.without { None } else { Some(arm(args, dir.path(), "with", &mut failures).await?) };
    Ok(Outcome { document: Document::new(with, without), failures })
}

/// What a run ended with.
#[derive(Debug)]
pub struct Outcome {
    /// The document.
    pub document: Document,
    /// What sessions were refused with, and how often.
    pub failures: BTreeMap<String, u32>,
}

async fn arm(args: RunArgs, dir: &Path, name: &str, failures: &mut BTreeMap<String, u32>) -> io::Result<Arm> {
    let log = dir.join(format!("{name}.log"));
    let (_server, mut lines) = start::<Listening>(&["server", "--log", text(&log)?])?;
    let address = said(&mut lines).await?.listening.to_string();
    let login = dir.join(format!("{name}.login"));
    std::fs::write(&login, first_login().to_string())?;
    let mut tool = vec!["tool", "--address", &address, "--login", text(&login)?];
    let (state, config) = (dir.join("state"), dir.join("paceline.toml"));
    let mut coordinator = None;
    if name == "with" {
        std::fs::create_dir(&state)?;
        std::fs::write(&config, configuration(&address))?;
        let group = ["coordinator", "--state-dir", text(&state)?, "--config", text(&config)?];
        let (child, mut lines) = start::<Said>(&group)?;
        if let Some(error) = said(&mut lines).await?.error {
            return Err(io::Error::other(error));
        }
        coordinator = Some(child);
        tool.extend(["--state-dir", text(&state)?]);
    }
    let mut started: Vec<_> = (0..args.processes).map(|_| start::<Said>(&tool)).collect::<io::Result<_>>()?;
    for step in 0..=STEPS {
        for (_, lines) in &mut started {
            if let Some(error) = said(lines).await?.error {
                *failures.entry(format!("{name}: {error}")).or_default() += 1;
            }
        }
        for (child, _) in &mut started {
            child.tell(&step).await;
        }
    }
    drop(coordinator);
    let logged = std::fs::read_to_string(&log)?;
    let logged: Vec<Logged> = logged.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(Arm::new(args.processes.into(), &logged))
}

/// The token as a group knows it. A real one names a variable instead of holding the first refresh token.
fn configuration(address: &str) -> String {
    let first = first_login();
    format!(
        "[http.auth]\nbase = \"http://{address}\"\n\n[resources.login]\nkind = \"token\"\nrefresh_before = \"60s\"\n\
         fetch = {{ http = \"auth\", method = \"POST\", path = \"/token\", \
         form = {{ grant_type = \"refresh_token\", refresh_token = \"{{token.refresh}}\" }} }}\n\
         token = {{ seed = {} }}\n",
        first["refresh_token"]
    )
}
