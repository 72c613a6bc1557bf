//! Outgoing half of a connection: messages are gathered in one buffer, written inline while the socket takes them, and
//! finished in the background when it does not.

use std::{io, sync::Arc};

use bytes::{Buf, BytesMut};
use paceline_ipc::{
    codec::{self, CodecError},
    socket::WriteHalf,
};
use paceline_proto::{
    hub::Part,
    limits::WRITE_TIMEOUT,
    message::{Shared, ToSession},
};
use serde::Serialize;

/// The sending side of a link.
#[derive(Debug)]
pub(crate) struct Outbound {
    half: Option<WriteHalf>,
    gathered: BytesMut,
}

/// What `Outbound::write` did.
pub(crate) enum Progress<F> {
    /// Everything gathered is with the kernel.
    Done,
    /// A background write is under way; nothing was started.
    Busy,
    /// The rest is written by this future, which gives the half back for `Outbound::resume`.
    Rest(F),
    /// The connection is broken.
    Broken(io::Error),
}

impl Outbound {
    pub(crate) fn new(half: WriteHalf) -> Self {
        Self { half: Some(half), gathered: BytesMut::new() }
    }

    /// Bytes gathered and not yet with the kernel or the background write.
    pub(crate) fn gathered(&self) -> usize {
        self.gathered.len()
    }

    /// Whether nothing is gathered and no background write is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.half.is_some() && self.gathered.is_empty()
    }

    /// Adds a message.
    pub(crate) fn push<T: Serialize>(&mut self, message: &T) -> Result<(), CodecError> {
        codec::encode_into(message, &mut self.gathered)
    }

    /// Adds a part of the hub's output. Shared frames are encoded by the first link that needs them.
    pub(crate) fn push_part(&mut self, part: &Part) -> Result<(), CodecError> {
        match part {
            Part::Message(message) => self.push(message),
            Part::Batch { header, frames } => {
                self.push(&ToSession::Batch(header.clone()))?;
                for shared in frames {
                    self.gathered.extend_from_slice(encoded(shared)?);
                }
                Ok(())
            }
        }
    }

    /// Writes what the socket takes now.
    pub(crate) fn write(&mut self) -> Progress<impl Future<Output = io::Result<WriteHalf>> + use<>> {
        let Some(mut half) = self.half.take() else { return Progress::Busy };
        while !self.gathered.is_empty() {
            match half.try_write(&self.gathered) {
                Ok(0) => {
                    let rest = self.gathered.split();
                    return Progress::Rest(write_rest(half, rest));
                }
                Ok(n) => self.gathered.advance(n),
                Err(error) => return Progress::Broken(error),
            }
        }
        self.half = Some(half);
        Progress::Done
    }

    /// Takes the half back after a background write.
    pub(crate) fn resume(&mut self, half: WriteHalf) {
        self.half = Some(half);
    }
}

/// The length-prefixed encoding of a shared frame, made once.
fn encoded(shared: &Arc<Shared>) -> Result<&[u8], CodecError> {
    if let Some(bytes) = shared.encoded.get() {
        return Ok(bytes);
    }
    let bytes = codec::encode_frame(&ToSession::Frame(shared.frame.clone()))?;
    Ok(shared.encoded.get_or_init(|| bytes))
}

async fn write_rest(mut half: WriteHalf, mut rest: BytesMut) -> io::Result<WriteHalf> {
    // The bound is on progress: a slow reader that takes something in each period stays.
    while !rest.is_empty() {
        match half.try_write(&rest)? {
            0 => tokio::time::timeout(WRITE_TIMEOUT, half.writable()).await.map_err(|_| took_nothing())??,
            n => rest.advance(n),
        }
    }
    Ok(half)
}

fn took_nothing() -> io::Error {
    let seconds = WRITE_TIMEOUT.as_secs();
    io::Error::new(io::ErrorKind::TimedOut, format!("the peer took nothing for {seconds} s"))
}

impl Drop for Outbound {
    fn drop(&mut self) {
        // The reader shares the socket: closing it for both is what ends the link.
        if let Some(half) = self.half.take() {
            half.close();
        }
    }
}
