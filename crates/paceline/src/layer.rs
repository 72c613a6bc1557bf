//! Optimistic layers: what a change that is under way would make of a key.

use bytes::Bytes;
use paceline_proto::{id::Key, message::Operation};
use paceline_runtime::{Laid, Runtime};
use serde::Serialize;

use crate::{
    error::Error,
    session::{Receipt, block_on, encode, new_trace, received},
};

/// A layer that this session laid, from [`Session::optimistic`](crate::Session::optimistic). Dropping it takes it back.
#[derive(Debug)]
#[must_use = "dropping a layer takes it back"]
pub struct Layer {
    runtime: Runtime,
    key: Key,
    patch: Bytes,
    laid: Laid,
}

impl Layer {
    pub(crate) async fn lay(runtime: &Runtime, key: Key, patch: Bytes) -> Result<Self, Error> {
        let laid = runtime.lay(key.clone(), patch.clone()).await?.map_err(Error::Rejected)?;
        Ok(Self { runtime: runtime.clone(), key, patch, laid })
    }

    /// The change is done: its patch becomes part of the value, in the place of the layer and in one step for every reader.
    ///
    /// # Errors
    /// [`Error::Rejected`] when the patch does not fit the value as it is now: the layer is taken back, the value is what it
    /// was. [`Error::RuntimeDead`]: unknown.
    pub async fn commit(self) -> Result<Receipt, Error> {
        let operation = Operation::Merge { key: self.key.clone(), patch: self.patch.clone() };
        self.end(operation).await
    }

    /// The change is done, and this is the value now, as the server answered.
    ///
    /// # Errors
    /// [`Error::Encode`]: the layer is taken back. [`Error::RuntimeDead`]: unknown.
    pub async fn commit_with(self, value: &impl Serialize) -> Result<Receipt, Error> {
        let operation = Operation::Set { key: self.key.clone(), value: encode(value)? };
        self.end(operation).await
    }

    /// The change failed, or the value has it already, from elsewhere: the layer goes, here at once, and nothing else.
    pub fn roll_back(self) {}

    /// [`Layer::commit`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Layer::commit`].
    pub fn commit_blocking(self) -> Result<Receipt, Error> {
        block_on(self.commit())
    }

    /// [`Layer::commit_with`] for callers without an executor.
    ///
    /// # Errors
    /// As [`Layer::commit_with`].
    pub fn commit_with_blocking(self, value: &impl Serialize) -> Result<Receipt, Error> {
        block_on(self.commit_with(value))
    }

    async fn end(self, operation: Operation) -> Result<Receipt, Error> {
        let trace = new_trace();
        received(self.runtime.commit(&self.laid, operation, trace).await?, trace)
    }
}
