//! Ordered event streams: every event once, in order, or a gap that says so.

use std::{marker::PhantomData, sync::Arc};

use bytes::Bytes;
use paceline_proto::{
    id::{Position, Stream},
    message::Gap,
};
use paceline_runtime::{
    Runtime,
    replica::{Delivery, EventQueue},
};
use serde::de::DeserializeOwned;

use crate::error::Error;

/// A stream of a session, to be subscribed to.
#[derive(Debug, Clone)]
pub struct Events {
    pub(crate) runtime: Runtime,
    pub(crate) stream: Stream,
}

impl Events {
    /// Subscribes from now on. Dropping the handle unsubscribes.
    pub fn subscribe<T: DeserializeOwned>(&self) -> EventSubscription<T> {
        let queue = self.runtime.subscribe_stream(&self.stream);
        EventSubscription {
            runtime: self.runtime.clone(),
            stream: self.stream.clone(),
            queue,
            of: PhantomData,
        }
    }
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event<T> {
    /// The decoded data.
    pub data: T,
    /// The data as it came, JSON.
    pub raw: Bytes,
    /// Its position in its channel.
    pub position: Position,
}

/// Why `next` returned no event. The subscription goes on after the first two.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// Events may be missing here; the next ones follow.
    #[error("events of channel {} may be missing ({:?})", .0.channel.0, .0.why)]
    Gap(Gap),
    /// The event does not decode as the type asked for; its bytes are given.
    #[error("{error}")]
    Decode {
        /// What is wrong.
        error: Error,
        /// The event as it came.
        raw: Bytes,
    },
    /// The runtime ended.
    #[error("{0}")]
    RuntimeDead(Error),
}

/// A subscription to an ordered stream. Never coalesced; a reader that is too slow gets a gap.
#[derive(Debug)]
pub struct EventSubscription<T> {
    runtime: Runtime,
    stream: Stream,
    queue: Arc<EventQueue>,
    of: PhantomData<fn() -> T>,
}

impl<T> Drop for EventSubscription<T> {
    fn drop(&mut self) {
        self.runtime.unsubscribe_stream(&self.stream, &self.queue);
    }
}

impl<T: DeserializeOwned> EventSubscription<T> {
    /// The next event. Cancel-safe. Events that had arrived before the runtime ended are still returned.
    ///
    /// # Errors
    /// [`EventError::Gap`] where events may be missing, [`EventError::Decode`] for one that is not a `T`,
    /// [`EventError::RuntimeDead`] when the runtime ended.
    pub async fn next(&mut self) -> Result<Event<T>, EventError> {
        loop {
            match self.queue.pop() {
                Some(Delivery::Gap(gap)) => return Err(EventError::Gap(gap)),
                Some(Delivery::Event(event)) => {
                    let position = event.origin.1;
                    return match serde_json::from_slice(&event.data) {
                        Ok(data) => Ok(Event { data, raw: event.data, position }),
                        Err(error) => {
                            Err(EventError::Decode { error: Error::decode(&error), raw: event.data })
                        }
                    };
                }
                None => self
                    .queue
                    .arrived_or_dead(self.runtime.death())
                    .await
                    .map_err(|end| EventError::RuntimeDead(Error::dead(&end)))?,
            }
        }
    }

    /// [`EventSubscription::next`] for callers without an executor.
    ///
    /// # Errors
    /// As [`EventSubscription::next`].
    pub fn next_blocking(&mut self) -> Result<Event<T>, EventError> {
        crate::session::block_on(self.next())
    }
}
