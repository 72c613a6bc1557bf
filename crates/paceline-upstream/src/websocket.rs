//! WebSocket over TCP, with or without TLS. One value owns the connection; whoever polls it gets frames.

#[cfg(unix)]
use std::os::fd::{AsFd, OwnedFd};
use std::{fmt, time::Duration};

use futures_util::{FutureExt, SinkExt, StreamExt};
use paceline_channel::protocol::{CloseInfo, ConnectRequest, Frame, Head, Outgoing, TOO_LONG, Transport};
use rustix::net::{self, sockopt};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        error::CapacityError,
        handshake::client::Request,
        http::{HeaderName, HeaderValue, Uri, header},
        protocol::WebSocketConfig,
    },
};

use crate::{
    http::{head, retry_after},
    tls,
    transport::{CLOSE_TIMEOUT, CONNECT_TIMEOUT, Command, OUTGOING_MAX, Remote, failed, invalid, unless},
};

/// A frame that the server does not take for so long ends the connection.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames handed out at once.
const BATCH: usize = 64;

/// An open WebSocket. Dropped, its TCP connection ends at once, also for those who hold a duplicate of its socket.
pub struct WebSocket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    commands: mpsc::Receiver<Command>,
    head: Head,
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket").finish_non_exhaustive()
    }
}

/// Opens a WebSocket within 20 s. The addresses of a host are tried in turn. Redirects are not followed: the secrets in
/// the headers are for this address.
///
/// # Errors
/// Why not: the status of a refusal and the server's `Retry-After` in seconds, or in words. Nothing stays open. Status
/// 400 also stands for a request that cannot be made, which trying again does not help.
pub async fn connect(request: &ConnectRequest) -> Result<(WebSocket, Remote), CloseInfo> {
    timeout(CONNECT_TIMEOUT, open(request))
        .await
        .unwrap_or_else(|_| Err(failed(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))))
}

/// [`connect`], given up a moment after `given_up` is done. The moment is for an attempt that the server has accepted
/// already: it is closed politely like any other connection, which a server that admits one consumer needs to hear.
///
/// # Errors
/// As [`connect`].
pub async fn connect_unless(
    request: &ConnectRequest,
    given_up: impl Future<Output = ()>,
) -> Result<(WebSocket, Remote), CloseInfo> {
    let attempt = connect(request);
    unless(attempt, given_up).await
}

async fn open(request: &ConnectRequest) -> Result<(WebSocket, Remote), CloseInfo> {
    let handshake = handshake(request)?;
    let (host, port, secure) = target(handshake.uri())?;
    let connector = if secure {
        let config =
            tokio::task::spawn_blocking(tls::client_config).await.map_err(failed)?.map_err(failed)?;
        Connector::Rustls(config)
    } else {
        Connector::Plain
    };
    let tcp = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| failed(format!("connect to {host}:{port}: {error}")))?;
    tune(&tcp).map_err(|error| failed(format!("set up the connection to {host}:{port}: {error}")))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(request.max_message))
        .max_frame_size(Some(request.max_message));
    let (stream, response) = client_async_tls_with_config(handshake, tcp, Some(config), Some(connector))
        .await
        .map_err(|error| refused(&error))?;
    let head = head(response.status().as_u16(), response.headers());
    let (sender, commands) = mpsc::channel(OUTGOING_MAX);
    Ok((WebSocket { stream, commands, head }, Remote(sender)))
}

fn handshake(request: &ConnectRequest) -> Result<Request, CloseInfo> {
    let mut handshake = request.url.as_str().into_client_request().map_err(|error| {
        invalid(format!("the address {:?} cannot be used: {error}", without_query(&request.url)))
    })?;
    for (name, value) in &request.headers {
        let header = HeaderName::try_from(name.as_str())
            .map_err(|_| invalid(format!("{name:?} is no name of a header")))?;
        let mut value = HeaderValue::try_from(value.reveal()).map_err(|_| {
            invalid(format!("the value of the header {name} has characters that are not allowed"))
        })?;
        value.set_sensitive(true);
        handshake.headers_mut().append(header, value);
    }
    if let Transport::WebSocket(subprotocols) = &request.transport
        && !subprotocols.is_empty()
    {
        let value = HeaderValue::try_from(subprotocols.join(", "))
            .map_err(|_| invalid("a subprotocol has characters that are not allowed"))?;
        handshake.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(handshake)
}

/// Queries may carry tokens.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

fn target(uri: &Uri) -> Result<(String, u16, bool), CloseInfo> {
    let secure = match uri.scheme_str() {
        Some("ws") => false,
        Some("wss") => true,
        _ => return Err(invalid("the address must begin with ws:// or wss://")),
    };
    let host = uri.host().ok_or_else(|| invalid("the address names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, uri.port_u16().unwrap_or(if secure { 443 } else { 80 }), secure))
}

/// Small messages at once; a peer that vanished is noticed by the kernel too.
fn tune(tcp: &TcpStream) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    #[cfg(target_os = "linux")]
    {
        sockopt::set_tcp_keepidle(tcp, Duration::from_secs(30))?;
        sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(tcp, 3)?;
        sockopt::set_tcp_user_timeout(tcp, 30_000)?;
    }
    Ok(())
}

fn refused(error: &tungstenite::Error) -> CloseInfo {
    let tungstenite::Error::Http(response) = error else { return failed(error) };
    CloseInfo {
        status: Some(response.status().as_u16()),
        retry_after: retry_after(response.headers()),
        reason: format!("the server refused with status {}", response.status()),
        ..CloseInfo::default()
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        // Closing a descriptor ends nothing while a duplicate of it exists.
        if let Err(error) = net::shutdown(self.stream.get_ref().get_ref(), net::Shutdown::Both) {
            tracing::trace!(%error, "the connection had ended already");
        }
    }
}

impl WebSocket {
    /// What the server answered.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// A second descriptor of the TCP socket, closed on exec. Whoever holds it can end the connection with `shutdown`
    /// while this process is stopped, and keeps nothing alive: it ends with this value all the same.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    #[cfg(unix)]
    pub fn duplicate_socket(&self) -> std::io::Result<OwnedFd> {
        self.stream.get_ref().get_ref().as_fd().try_clone_to_owned()
    }

    /// Waits for a frame and returns all that are there, at most 64, and why the connection ended if it did behind
    /// them. Sends what [`Remote`] queued meanwhile. Must not be dropped half-way: it owns the connection's progress.
    pub async fn next(&mut self) -> (Vec<Frame>, Option<CloseInfo>) {
        let mut frames = Vec::new();
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => {
                    let end = match command {
                        Some(Command::Send(frame)) => self.send(frame).await,
                        Some(Command::Close) | None => Some(self.close().await),
                    };
                    if end.is_some() {
                        return (frames, end);
                    }
                }
                message = self.stream.next() => {
                    let mut message = Some(message);
                    while let Some(found) = message {
                        match frame(found) {
                            Ok(frame) => frames.push(frame),
                            Err(close) => return (frames, Some(close)),
                        }
                        message = if frames.len() < BATCH { self.stream.next().now_or_never() } else { None };
                    }
                    return (frames, None);
                }
            }
        }
    }

    async fn send(&mut self, frame: Outgoing) -> Option<CloseInfo> {
        let message = match frame {
            Outgoing::Text(text) => Message::text(text),
            Outgoing::Hidden(text) => Message::text(text.reveal()),
            Outgoing::Ping => Message::Ping(bytes::Bytes::new()),
        };
        match timeout(SEND_TIMEOUT, self.stream.send(message)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(failed(error)),
            Err(_) => Some(failed(format!("the server took nothing for {} s", SEND_TIMEOUT.as_secs()))),
        }
    }

    async fn close(&mut self) -> CloseInfo {
        let farewell = async {
            self.stream.close(None).await?;
            while let Some(message) = self.stream.next().await {
                message?;
            }
            Ok::<(), tungstenite::Error>(())
        };
        // A server that does not answer sees the end of the TCP connection, which follows in any case.
        match timeout(CLOSE_TIMEOUT, farewell).await {
            Ok(Ok(())) | Err(_) => failed("closed by this side"),
            Ok(Err(error)) => failed(error),
        }
    }
}

fn frame(message: Option<Result<Message, tungstenite::Error>>) -> Result<Frame, CloseInfo> {
    match message {
        Some(Ok(Message::Text(text))) => Ok(Frame::Text(bytes::Bytes::from(text))),
        Some(Ok(Message::Binary(bytes))) => Ok(Frame::Binary(bytes)),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(Frame::Alive),
        Some(Ok(Message::Close(close))) => Err(match close {
            Some(close) => CloseInfo {
                code: Some(close.code.into()),
                reason: close.reason.to_string(),
                ..CloseInfo::default()
            },
            None => failed("the server closed the connection"),
        }),
        Some(Err(tungstenite::Error::Capacity(CapacityError::MessageTooLong { size, max_size }))) => {
            let reason = format!("a message of {size} bytes or more came, at most {max_size} are allowed");
            Err(CloseInfo { code: Some(TOO_LONG), ..failed(reason) })
        }
        Some(Err(error)) => Err(failed(error)),
        None => Err(failed("the server ended the connection")),
    }
}
