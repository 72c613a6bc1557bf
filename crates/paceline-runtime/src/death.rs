//! The end of a session's runtime, seen from every handle.

use std::sync::Arc;

use tokio::sync::watch;

/// Why a runtime is no longer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The session left.
    Left,
    /// A part panicked; the text names it.
    Panicked(Arc<str>),
    /// The session cannot go on; the text says why and what to do.
    Failed(Arc<str>),
}

/// Shared flag: set once, seen by all handles, even by those that wait.
#[derive(Debug, Clone)]
pub struct Death(Arc<watch::Sender<Option<End>>>);

impl Default for Death {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Death {
    /// Declares the runtime dead. The first cause stays.
    pub fn declare(&self, end: End) {
        self.0.send_if_modified(|state| {
            let first = state.is_none();
            if first {
                *state = Some(end);
            }
            first
        });
    }

    /// The cause, if the runtime is dead.
    pub fn get(&self) -> Option<End> {
        self.0.borrow().clone()
    }

    /// Waits for the end. Cancel-safe.
    pub async fn wait(&self) -> End {
        let mut watched = self.0.subscribe();
        loop {
            if let Some(end) = watched.borrow_and_update().clone() {
                return end;
            }
            if watched.changed().await.is_err() {
                return End::Failed("the runtime went away".into());
            }
        }
    }
}
