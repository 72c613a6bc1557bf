//! The group as this session sees it.

use std::sync::Arc;

use paceline_proto::{
    id::{SessionId, Trace},
    message::{Answer, Ask},
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
            Answer::Refused(why) => Err(Error::Rejected(why)),
            Answer::Members(_) => Err(Error::Rejected("the owner answered another question".to_owned())),
        }
    }

    /// How often each kind of observable event happened in this session.
    pub fn event_counts(&self) -> std::collections::BTreeMap<&'static str, u64> {
        self.runtime.observer().counts()
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

    /// [`GroupWatch::changed`] for callers without an executor.
    ///
    /// # Errors
    /// As [`GroupWatch::changed`].
    pub fn changed_blocking(&mut self) -> Result<Arc<GroupView>, Error> {
        crate::session::block_on(self.changed())
    }
}
