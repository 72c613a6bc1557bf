//! The transport against a real WebSocket server on loopback.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use paceline_channel::protocol::{CloseInfo, ConnectRequest, Frame, Outgoing, Secret};
use paceline_upstream::websocket::{WebSocket, connect};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

fn request(port: u16) -> ConnectRequest {
    ConnectRequest {
        url: format!("ws://127.0.0.1:{port}/feed?since=4"),
        headers: vec![("X-Token".into(), Secret::new("s3cret"))],
        subprotocols: Vec::new(),
        max_message: 1024,
    }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Accepts one connection, or refuses it with a status.
#[expect(clippy::result_large_err, reason = "the shape of the library's callback")]
async fn accept(listener: TcpListener, refuse: Option<u16>) -> (Option<WebSocketStream<TcpStream>>, Vec<String>) {
    let (tcp, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    let check = |request: &Request, response: Response| {
        seen.push(request.uri().to_string());
        seen.push(request.headers()["x-token"].to_str().unwrap().to_owned());
        match refuse {
            None => Ok(response),
            Some(status) => {
                let mut refusal = ErrorResponse::new(None);
                *refusal.status_mut() = status.try_into().unwrap();
                refusal.headers_mut().insert("Retry-After", "7".parse().unwrap());
                Err(refusal)
            }
        }
    };
    let server = accept_hdr_async(tcp, check).await.ok();
    (server, seen)
}

/// All frames until the connection ends, and why it did.
async fn drain(mut socket: WebSocket) -> (Vec<Frame>, CloseInfo) {
    let mut all = Vec::new();
    loop {
        let (frames, end) = socket.next().await;
        all.extend(frames);
        if let Some(end) = end {
            return (all, end);
        }
    }
}

#[tokio::test]
async fn frames_come_in_order_and_the_close_code_behind_them() {
    let (listener, port) = listen().await;
    let server = tokio::task::spawn(async move {
        let (server, seen) = accept(listener, None).await;
        let mut server = server.unwrap();
        for n in 0..200 {
            server.send(Message::text(n.to_string())).await.unwrap();
        }
        let close = CloseFrame { code: CloseCode::Library(4200), reason: "restart".into() };
        server.close(Some(close)).await.unwrap();
        while server.next().await.is_some() {}
        seen
    });
    let (socket, remote) = connect(&request(port)).await.unwrap();
    let (frames, end) = drain(socket).await;
    drop(remote);
    let expected: Vec<Frame> = (0..200).map(|n| Frame::Text(n.to_string().into())).collect();
    assert_eq!(frames, expected);
    assert_eq!((end.code, end.reason.as_str()), (Some(4200), "restart"));
    assert_eq!(server.await.unwrap(), ["/feed?since=4", "s3cret"]);
}

#[tokio::test]
async fn a_refusal_gives_its_status_and_what_the_server_asks_for() {
    let (listener, port) = listen().await;
    let server = tokio::task::spawn(accept(listener, Some(409)));
    let refused = connect(&request(port)).await.unwrap_err();
    assert_eq!((refused.status, refused.retry_after), (Some(409), Some(Duration::from_secs(7))));
    server.await.unwrap();
}

#[tokio::test]
async fn a_message_over_the_bound_ends_the_connection_and_one_at_the_bound_does_not() {
    let (listener, port) = listen().await;
    let server = tokio::task::spawn(async move {
        let mut server = accept(listener, None).await.0.unwrap();
        server.send(Message::text("x".repeat(1024))).await.unwrap();
        server.send(Message::text("x".repeat(1025))).await.unwrap();
        // Until the client gives up.
        while let Some(Ok(_)) = server.next().await {}
    });
    let (socket, remote) = connect(&request(port)).await.unwrap();
    let (frames, end) = drain(socket).await;
    drop(remote);
    assert_eq!(frames.len(), 1);
    assert!(end.reason.contains("1024"), "{end:?}");
    server.await.unwrap();
}

#[tokio::test]
async fn what_is_sent_arrives_and_a_close_is_seen_by_the_server_first() {
    let (listener, port) = listen().await;
    let server = tokio::task::spawn(async move {
        let mut server = accept(listener, None).await.0.unwrap();
        let mut seen = Vec::new();
        while let Some(Ok(message)) = server.next().await {
            seen.push(message);
        }
        seen
    });
    let (socket, remote) = connect(&request(port)).await.unwrap();
    assert!(remote.send(Outgoing::Text("subscribe".into())));
    remote.close();
    let (_, end) = drain(socket).await;
    assert_eq!(end.reason, "closed by this side");
    let seen = server.await.unwrap();
    assert_eq!(seen[0], Message::text("subscribe"));
    assert!(matches!(seen[1], Message::Close(_)), "{seen:?}");
}

#[tokio::test]
async fn what_cannot_be_an_address_is_said_without_its_query() {
    for (url, said) in [("http://h/", "ws://"), ("ws://", "cannot be used"), ("ws://a b/?token=x", "cannot be used")] {
        let request = ConnectRequest { url: url.into(), ..request(1) };
        let refused = connect(&request).await.unwrap_err();
        assert!(refused.reason.contains(said) && !refused.reason.contains("token"), "{url}: {refused:?}");
        assert_eq!(refused.status, Some(400));
    }
    let (listener, port) = listen().await;
    drop(listener);
    let refused = connect(&request(port)).await.unwrap_err();
    assert!(refused.status.is_none() && refused.reason.contains(&port.to_string()), "{refused:?}");
}
