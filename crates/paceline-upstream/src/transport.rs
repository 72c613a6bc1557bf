//! What a protocol asks to open: a WebSocket, a stream, or nothing. One value owns the connection; whoever polls it gets
//! frames.

use std::{fmt, future::Future, pin::pin, time::Duration};

use paceline_channel::protocol::{self, CloseInfo, ConnectRequest, Frame, Head, Outgoing};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    http::HttpClient,
    stream::{self, Stream},
    websocket::{self, WebSocket},
};

/// Look-up, connect, TLS and handshake together.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The server's answer to our Close is waited for this long, so that it has seen the end before a successor connects.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
/// Unsent frames of ours: subscriptions and heartbeats; a server that takes none of them is dead.
pub(crate) const OUTGOING_MAX: usize = 1024;
/// Status of a request that cannot be made: a mistake in the declaration, as if the server had refused it.
const BAD_REQUEST: u16 = 400;

/// An open transport.
#[derive(Debug)]
pub struct Transport(Kind);

#[expect(
    clippy::large_enum_variant,
    reason = "one value for each upstream, moved once for each batch of frames"
)]
#[derive(Debug)]
enum Kind {
    WebSocket(WebSocket),
    Stream(Stream),
    Calls(mpsc::Receiver<Command>),
}

#[derive(Debug)]
pub(crate) enum Command {
    Send(Outgoing),
    Close,
}

/// Sends on an open transport and closes it, while another holder polls it.
#[derive(Debug)]
pub struct Remote(pub(crate) mpsc::Sender<Command>);

impl Remote {
    /// Queues a frame. False when the connection is gone or takes nothing.
    pub fn send(&self, frame: Outgoing) -> bool {
        self.0.try_send(Command::Send(frame)).is_ok()
    }

    /// Closes politely: `next` reports the end when the server has seen it, or after a bounded time.
    pub fn close(&self) {
        if self.0.try_send(Command::Close).is_err() {
            tracing::debug!("the connection to close is gone or takes nothing");
        }
    }
}

/// Opens what the request asks for, within 20 s; given up a moment after `given_up` is done. The moment is for an attempt
/// that the server has accepted already: it is closed politely like any other connection, which a server that admits one
/// consumer needs to hear.
///
/// # Errors
/// Why not: the status of a refusal and the server's `Retry-After`, or in words. Nothing stays open. Status 400 also
/// stands for a request that cannot be made, which trying again does not help.
pub async fn connect_unless(
    client: &HttpClient,
    request: &ConnectRequest,
    given_up: impl Future<Output = ()>,
) -> Result<(Transport, Remote), CloseInfo> {
    match &request.transport {
        protocol::Transport::WebSocket(_) => {
            let (socket, remote) = websocket::connect_unless(request, given_up).await?;
            Ok((Transport(Kind::WebSocket(socket)), remote))
        }
        protocol::Transport::Stream => {
            let (stream, remote) = unless(stream::connect(client, request), given_up).await?;
            Ok((Transport(Kind::Stream(stream)), remote))
        }
        protocol::Transport::Calls => {
            let (sender, commands) = mpsc::channel(OUTGOING_MAX);
            Ok((Transport(Kind::Calls(commands)), Remote(sender)))
        }
    }
}

pub(crate) async fn unless<T>(
    attempt: impl Future<Output = Result<T, CloseInfo>>,
    given_up: impl Future<Output = ()>,
) -> Result<T, CloseInfo> {
    let mut attempt = pin!(attempt);
    tokio::select! {
        result = &mut attempt => return result,
        () = given_up => {}
    }
    timeout(CLOSE_TIMEOUT, attempt)
        .await
        .unwrap_or_else(|_| Err(failed("the attempt was given up by this side")))
}

pub(crate) fn failed(reason: impl fmt::Display) -> CloseInfo {
    CloseInfo::because(reason.to_string())
}

/// Trying again does not help.
pub(crate) fn invalid(reason: impl fmt::Display) -> CloseInfo {
    CloseInfo { status: Some(BAD_REQUEST), ..failed(reason) }
}

impl Transport {
    /// What the server answered.
    pub fn head(&self) -> Head {
        match &self.0 {
            Kind::WebSocket(socket) => socket.head().clone(),
            Kind::Stream(stream) => stream.head().clone(),
            Kind::Calls(_) => Head::default(),
        }
    }

    /// Waits for frames and returns those that are there, and why the connection ended if it did behind them. Sends what
    /// [`Remote`] queued meanwhile. Must not be dropped half-way: it owns the connection's progress.
    pub async fn next(&mut self) -> (Vec<Frame>, Option<CloseInfo>) {
        match &mut self.0 {
            Kind::WebSocket(socket) => socket.next().await,
            Kind::Stream(stream) => stream.next().await,
            Kind::Calls(commands) => {
                while let Some(Command::Send(_)) = commands.recv().await {
                    tracing::debug!("nothing can be sent where nothing is open");
                }
                (Vec::new(), Some(failed("closed by this side")))
            }
        }
    }
}
