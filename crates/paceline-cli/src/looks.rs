//! Looks into all sessions of a group at once.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use paceline::{Look, Seen, SessionId, SessionInfo, Standing};

use crate::{
    failure::Failure,
    group::{self, Joined},
    promote::find,
    settings::Settings,
};

/// A session that does not answer for so long is left out, and named.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sessions to look into, in turn, each from where the last look ended.
#[derive(Debug)]
pub struct Looks {
    only: Option<SessionId>,
    written: BTreeMap<SessionId, u64>,
}

/// What was seen of a session.
#[derive(Debug)]
pub struct Sight {
    /// The session.
    pub info: SessionInfo,
    /// What it answered; `None` = nothing in time.
    pub seen: Option<Seen>,
}

impl Looks {
    /// Looks into all sessions but the own one, or into the one whose id begins or ends so.
    pub async fn new(settings: &Settings, joined: &Joined, only: Option<&str>) -> Result<Self, Failure> {
        let only = match only {
            Some(wanted) => Some(find(&sessions(settings, joined).await?, wanted)?),
            None => None,
        };
        Ok(Self { only, written: BTreeMap::new() })
    }

    /// Looks into each once more. `look` makes the question from how much was seen before.
    pub async fn again(
        &mut self,
        settings: &Settings,
        joined: &Joined,
        look: impl Fn(u64) -> Look,
    ) -> Result<Vec<Sight>, Failure> {
        let mut infos = sessions(settings, joined).await?;
        infos.retain(|info| {
            info.standing != Standing::Awaited
                && info.member.session != joined.session.id()
                && self.only.is_none_or(|only| only == info.member.session)
        });
        let group = joined.session.group();
        let asked = infos.into_iter().map(|info| {
            let session = info.member.session;
            let question = look(self.written.get(&session).copied().unwrap_or_default());
            let group = group.clone();
            async move {
                let answer = tokio::time::timeout(PATIENCE, group.look(session, question)).await;
                // One that left meanwhile is like one that does not answer.
                Sight { info, seen: answer.ok().and_then(Result::ok) }
            }
        });
        let sights = join_all(asked).await;
        for sight in &sights {
            if let Some(Seen::Trace { written, .. } | Seen::Events { written, .. }) = &sight.seen {
                self.written.insert(sight.info.member.session, *written);
            }
        }
        Ok(sights)
    }
}

async fn sessions(settings: &Settings, joined: &Joined) -> Result<Vec<SessionInfo>, Failure> {
    group::answer(settings, joined.session.group().sessions()).await
}

/// The sessions that did not answer.
pub fn silent(sights: &[Sight]) -> Vec<&SessionInfo> {
    sights.iter().filter(|sight| sight.seen.is_none()).map(|sight| &sight.info).collect()
}
