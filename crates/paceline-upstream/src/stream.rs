//! The body of an HTTP answer as it comes, over the connections of [`HttpClient`].

use std::fmt;

use paceline_channel::protocol::{CloseInfo, ConnectRequest, Frame, Head};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    http::{self, Body, HttpClient},
    transport::{CONNECT_TIMEOUT, Command, OUTGOING_MAX, Remote, failed},
};

/// An open stream. Dropped, its connection ends.
pub(crate) struct Stream {
    body: Body,
    commands: mpsc::Receiver<Command>,
    head: Head,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// Asks for a stream, and waits 20 s for the answer to begin. Redirects are followed within the origin.
pub(crate) async fn connect(
    client: &HttpClient,
    request: &ConnectRequest,
) -> Result<(Stream, Remote), CloseInfo> {
    let (body, head) = timeout(CONNECT_TIMEOUT, http::stream(client, request))
        .await
        .unwrap_or_else(|_| Err(failed(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))))?;
    let (sender, commands) = mpsc::channel(OUTGOING_MAX);
    Ok((Stream { body, commands, head }, Remote(sender)))
}

impl Stream {
    pub(crate) const fn head(&self) -> &Head {
        &self.head
    }

    /// Waits for bytes, or for the end.
    pub(crate) async fn next(&mut self) -> (Vec<Frame>, Option<CloseInfo>) {
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Close) | None => return (Vec::new(), Some(failed("closed by this side"))),
                    Some(Command::Send(_)) => tracing::debug!("nothing can be sent on a stream"),
                },
                chunk = self.body.chunk() => return match chunk {
                    Ok(Some(chunk)) => (vec![Frame::Chunk(chunk)], None),
                    Ok(None) => (Vec::new(), Some(failed("the server ended the stream"))),
                    Err(error) => (Vec::new(), Some(failed(error))),
                },
            }
        }
    }
}
