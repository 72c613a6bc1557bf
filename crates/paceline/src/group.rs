//! The group as this session sees it.

use std::sync::Arc;

use paceline_proto::{
    id::{Key, SessionId, Trace},
    look::{KeyInfo, Look, ReignStats, Seen, SessionInfo},
    message::{Answer, Ask, ItemConflict},
};
use paceline_runtime::{Runtime, replica::GroupView};

use crate::error::Error;

/// The group a session joined.
#[derive(Debug, Clone)]
pub struct Group {
    pub(crate) runtime: Runtime,
}

impl Group {
    /// Role, epoch, members and upstream connections as last known.
    pub fn current(&self) -> Arc<GroupView> {
        self.runtime.replica().group().borrow().clone()
    }

    /// Follows the changes of [`Group::current`].
    pub fn watch(&self) -> GroupWatch {
        let watch = self.runtime.replica().group();
        GroupWatch { runtime: self.runtime.clone(), watch, first: true }
    }

    /// Hands the wire over to `to`, or to the first heir. Resolves when the handover is done or refused.
    ///
    /// # Errors
    /// [`Error::Rejected`] when no such heir is ready; nothing changed.
    pub async fn promote(&self, to: Option<SessionId>) -> Result<(), Error> {
        match self.runtime.ask(Ask::Promote(to), Trace::NONE).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Asks the primary who is in the group and how far each session is; the primary comes first.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::RuntimeDead`]. Waits as long as no session leads.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        match self.runtime.ask(Ask::Sessions, Trace::NONE).await? {
            Answer::Sessions(sessions) => Ok(sessions),
            other => Err(unexpected(other)),
        }
    }

    /// Asks the primary what sessions declare differently: whose declaration counts, and whose does not. Of very many, the
    /// first.
    ///
    /// # Errors
    /// As [`Group::sessions`].
    pub async fn conflicts(&self) -> Result<Vec<ItemConflict>, Error> {
        match self.runtime.ask(Ask::Conflicts, Trace::NONE).await? {
            Answer::Conflicts(conflicts) => Ok(conflicts),
            other => Err(unexpected(other)),
        }
    }

    /// Asks the primary for the keys that have a value, in the order of their canonical bytes. What is set meanwhile may
    /// or may not be among them.
    ///
    /// # Errors
    /// As [`Group::sessions`].
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, Error> {
        let mut all: Vec<KeyInfo> = Vec::new();
        loop {
            let (keys, more) = self.keys_after(all.last()).await?;
            let more = more && !keys.is_empty();
            all.extend(keys);
            if !more {
                return Ok(all);
            }
        }
    }

    /// One answer's worth of the keys behind one, or of the first ones; and whether there are more.
    ///
    /// # Errors
    /// As [`Group::sessions`].
    pub async fn keys_after(&self, after: Option<&KeyInfo>) -> Result<(Vec<KeyInfo>, bool), Error> {
        let after = after.map(|info| info.key.clone());
        match self.runtime.ask(Ask::Keys { after }, Trace::NONE).await? {
            Answer::Keys { keys, more } => Ok((keys, more)),
            other => Err(unexpected(other)),
        }
    }

    /// Asks the primary over which keys optimistic layers lie, and how many, in the order of the keys' canonical bytes.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the primary's build knows no layers; else as [`Group::sessions`].
    pub async fn layers(&self) -> Result<Vec<(Key, u64)>, Error> {
        let mut all: Vec<(Key, u64)> = Vec::new();
        loop {
            let after = all.last().map(|(key, _)| key.clone());
            match self.runtime.ask(Ask::Layers { after }, Trace::NONE).await? {
                Answer::Layers { keys, more } => {
                    let more = more && !keys.is_empty();
                    all.extend(keys);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Asks the primary for the counters of its reign.
    ///
    /// # Errors
    /// As [`Group::sessions`].
    pub async fn stats(&self) -> Result<ReignStats, Error> {
        match self.runtime.ask(Ask::Stats, Trace::NONE).await? {
            Answer::Stats(stats) => Ok(stats),
            other => Err(unexpected(other)),
        }
    }

    /// Looks into a session of the group: its trace ring, its observable events, its debug lines. Waits as long as the
    /// session does not answer.
    ///
    /// # Errors
    /// [`Error::Rejected`] when it is not connected; else as [`Group::sessions`].
    pub async fn look(&self, at: SessionId, look: Look) -> Result<Seen, Error> {
        match self.runtime.ask(Ask::Look { at, look }, Trace::NONE).await? {
            Answer::Seen(seen) => Ok(seen),
            other => Err(unexpected(other)),
        }
    }

    /// How often each kind of observable event happened in this session.
    pub fn event_counts(&self) -> std::collections::BTreeMap<&'static str, u64> {
        self.runtime.observer().counts()
    }
}

fn unexpected(answer: Answer) -> Error {
    match answer {
        Answer::Refused(why) => Error::Rejected(why),
        _ => Error::Rejected("the owner answered another question".to_owned()),
    }
}

/// Follows the group: latest state, never a backlog.
#[derive(Debug)]
pub struct GroupWatch {
    runtime: Runtime,
    watch: paceline_runtime::replica::GroupReceiver,
    first: bool,
}

impl GroupWatch {
    /// The next state that this watch has not returned yet; completes at once on the first call. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::RuntimeDead`] when the runtime ended.
    pub async fn changed(&mut self) -> Result<Arc<GroupView>, Error> {
        if !std::mem::take(&mut self.first) {
            paceline_runtime::replica::changed_or_dead(&mut self.watch, self.runtime.death())
                .await
                .map_err(|end| Error::dead(&end))?;
        }
        Ok(self.watch.borrow_and_update().clone())
    }

    /// Waits until [`GroupWatch::changed`] has a state to return. Cancel-safe.
    ///
    /// # Errors
    /// As [`GroupWatch::changed`].
    pub async fn peek_changed(&mut self) -> Result<(), Error> {
        if self.first || self.watch.has_changed().unwrap_or(false) {
            return Ok(());
        }
        paceline_runtime::replica::changed_or_dead(&mut self.watch, self.runtime.death())
            .await
            .map_err(|end| Error::dead(&end))?;
        self.watch.mark_changed();
        Ok(())
    }

    /// [`GroupWatch::changed`] for callers without an executor.
    ///
    /// # Errors
    /// As [`GroupWatch::changed`].
    pub fn changed_blocking(&mut self) -> Result<Arc<GroupView>, Error> {
        crate::session::block_on(self.changed())
    }
}
