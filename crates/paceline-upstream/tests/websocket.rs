//! The transport against a real WebSocket server on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, SinkExt, StreamExt};
use paceline_channel::{
    backoff::{Backoff, BackoffSpec},
    connection::{Connection, Effect, Input},
    protocol::{CloseInfo, ConnectRequest, Frame, Head, Outgoing, Secret, Transport},
    random::Random,
    websocket::{Heartbeat, WebSocketJson, WebSocketSpec},
};
use paceline_proto::time::Time;
use paceline_upstream::websocket::{WebSocket, connect, connect_unless};
use tokio::{
    join,
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::{
            CloseFrame,
            frame::{
                Frame as Piece,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};

fn request(port: u16) -> ConnectRequest {
    ConnectRequest {
        url: format!("ws://127.0.0.1:{port}/feed?since=4"),
        headers: vec![("X-Token".into(), Secret::new("s3cret"))],
        transport: Transport::WebSocket(Vec::new()),
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
async fn accept(
    listener: TcpListener,
    refuse: Option<u16>,
) -> (Option<WebSocketStream<TcpStream>>, Vec<String>) {
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

/// A message in pieces.
fn fragments(pieces: &[&str]) -> Vec<Message> {
    let piece = |(n, text): (usize, &&str)| {
        let kind = if n == 0 { Data::Text } else { Data::Continue };
        Message::Frame(Piece::message(text.to_string(), OpCode::Data(kind), n + 1 == pieces.len()))
    };
    pieces.iter().enumerate().map(piece).collect()
}

/// Connects and reads to the end.
async fn read_all(port: u16) -> (Vec<Frame>, CloseInfo) {
    let (socket, _remote) = connect(&request(port)).await.unwrap();
    drain(socket).await
}

/// The clock stands still but for what is waited for, so that only the wait that is meant can end.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_given_up_ends_soon() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let request = request(listener.local_addr().unwrap().port());
    let begun = tokio::time::Instant::now();
    let end = connect_unless(&request, async {}).await.map(|_| ()).unwrap_err();
    assert_eq!(end.reason, "the attempt was given up by this side");
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(1), "{taken:?} of virtual time, as if it were waited for");
    let never = connect_unless(&request, std::future::pending()).await.map(|_| ()).unwrap_err();
    assert_eq!(never.reason, "no connection within 20 s");
}

#[tokio::test]
async fn frames_come_in_order_and_the_close_code_behind_them() {
    let (listener, port) = listen().await;
    let server = async {
        let (server, seen) = accept(listener, None).await;
        let mut server = server.unwrap();
        for n in 0..200 {
            server.send(Message::text(n.to_string())).await.unwrap();
        }
        let close = CloseFrame { code: CloseCode::Library(4200), reason: "restart".into() };
        server.close(Some(close)).await.unwrap();
        while server.next().await.is_some() {}
        seen
    };
    let (seen, (frames, end)) = join!(server, read_all(port));
    let expected: Vec<Frame> = (0..200).map(|n| Frame::Text(n.to_string().into())).collect();
    assert_eq!(frames, expected);
    assert_eq!((end.code, end.reason.as_str()), (Some(4200), "restart"));
    assert_eq!(seen, ["/feed?since=4", "s3cret"]);
}

#[tokio::test]
async fn a_refusal_gives_its_status_and_what_the_server_asks_for() {
    for status in [409, 503, 301] {
        let (listener, port) = listen().await;
        let (request, after) = (request(port), Duration::from_secs(7));
        let (_, refused) = join!(accept(listener, Some(status)), connect(&request));
        let refused = refused.unwrap_err();
        assert_eq!((refused.status, refused.retry_after), (Some(status), Some(after)));
    }
}

#[tokio::test]
async fn pieces_make_one_message_also_around_a_ping() {
    let (listener, port) = listen().await;
    let server = async {
        let mut server = accept(listener, None).await.0.unwrap();
        let mut pieces = fragments(&["{\"a\":", "\"ä", "ö\"}"]);
        pieces.insert(1, Message::Ping("now".into()));
        for piece in pieces {
            server.send(piece).await.unwrap();
        }
        let pong = server.next().await.unwrap().unwrap();
        server.close(None).await.unwrap();
        while server.next().await.is_some() {}
        pong
    };
    let (pong, (frames, _)) = join!(server, read_all(port));
    assert_eq!(frames, [Frame::Alive, Frame::Text("{\"a\":\"äö\"}".into())]);
    assert_eq!(pong, Message::Pong("now".into()));
}

#[tokio::test]
async fn a_message_over_the_bound_ends_the_connection_and_one_at_the_bound_does_not() {
    let half = "x".repeat(512);
    let whole = "x".repeat(1024);
    for (at, over) in [(vec![Message::text(whole.clone())], vec![Message::text(whole.clone() + "x")]), {
        (fragments(&[&half, &half]), fragments(&[&half, &half, "x"]))
    }] {
        let (listener, port) = listen().await;
        let server = async {
            let mut server = accept(listener, None).await.0.unwrap();
            for message in at.into_iter().chain(over) {
                server.send(message).await.unwrap();
            }
            // Until the client gives up.
            while let Some(Ok(_)) = server.next().await {}
        };
        let ((), (frames, end)) = join!(server, read_all(port));
        assert_eq!(frames, [Frame::Text(whole.clone().into())]);
        assert_eq!(end.code, Some(1009), "{end:?}");
        assert!(end.reason.contains("1024"), "{end:?}");
    }
}

#[tokio::test]
async fn what_is_sent_arrives_and_a_close_is_seen_by_the_server_first() {
    let (listener, port) = listen().await;
    let server = async {
        let mut server = accept(listener, None).await.0.unwrap();
        let mut seen = Vec::new();
        while let Some(Ok(message)) = server.next().await {
            seen.push(message);
        }
        seen
    };
    let client = async {
        let (socket, remote) = connect(&request(port)).await.unwrap();
        assert!(remote.send(Outgoing::Text("subscribe".into())));
        assert!(remote.send(Outgoing::Ping));
        remote.close();
        drain(socket).await.1
    };
    let (seen, end) = join!(server, client);
    assert_eq!(end.reason, "closed by this side");
    assert_eq!(seen[..2], [Message::text("subscribe"), Message::Ping("".into())]);
    assert!(matches!(seen[2], Message::Close(_)), "{seen:?}");
}

#[tokio::test]
async fn a_subprotocol_is_offered_and_one_that_was_not_is_refused() {
    for (offered, chosen, is_fine) in
        [(vec!["v2.json", "v1.json"], "v1.json", true), (vec![], "v1.json", false)]
    {
        let (listener, port) = listen().await;
        let request = ConnectRequest {
            transport: Transport::WebSocket(offered.iter().map(ToString::to_string).collect()),
            ..request(port)
        };
        let server = async {
            let mut seen = String::new();
            #[expect(clippy::result_large_err, reason = "the shape of the library's callback")]
            let check = |request: &Request, mut response: Response| {
                let header = request.headers().get("sec-websocket-protocol");
                seen.push_str(header.map_or("", |header| header.to_str().unwrap()));
                response.headers_mut().insert("sec-websocket-protocol", chosen.parse().unwrap());
                Ok(response)
            };
            let accepted = accept_hdr_async(listener.accept().await.unwrap().0, check).await;
            (seen, accepted)
        };
        let ((seen, _server), made) = join!(server, connect(&request));
        assert_eq!(seen, offered.join(", "));
        assert_eq!(made.is_ok(), is_fine, "{made:?}");
    }
}

/// A server whose process is stopped, or whose cable is cut: the connection stays open and nothing comes. The machine
/// decides, in its own time; the transport then ends without the server's help.
#[tokio::test]
async fn a_server_that_falls_silent_is_given_up_by_the_machine() {
    let mut spec = WebSocketSpec::new("ws://unused/");
    let (every, dead_after) = (Duration::from_secs(20), Duration::from_secs(30));
    spec.heartbeat = Some(Heartbeat { send: None, every, dead_after });
    let backoff = Backoff::new(BackoffSpec::default(), Random::new(1));
    let mut machine = Connection::new(Arc::from("feed"), Box::new(WebSocketJson::new(spec)), backoff);
    let mut tell = |now: Time, input: Input| {
        let mut out = Vec::new();
        machine.handle(now, input, &mut out);
        (out, machine.deadline())
    };

    let (listener, port) = listen().await;
    let (done, finished) = oneshot::channel::<()>();
    let server = async {
        let (server, _) = accept(listener, None).await;
        // Neither reads nor writes from here on.
        finished.await.unwrap();
        drop(server);
    };
    let client = async {
        let (mut socket, remote) = connect(&request(port)).await.unwrap();
        let (out, _) = tell(Time(0), Input::Open { resume: None });
        let attempt = out.iter().find_map(|effect| match effect {
            Effect::Connect { attempt, .. } => Some(*attempt),
            _ => None,
        });
        let (_, mut due) = tell(Time(0), Input::Opened { attempt: attempt.unwrap(), head: Head::default() });
        let mut given_up = None;
        while given_up.is_none() {
            assert!(socket.next().now_or_never().is_none(), "the transport sees nothing");
            let now = due.unwrap();
            let (out, later) = tell(now, Input::Deadline);
            due = later;
            for effect in out {
                match effect {
                    Effect::Send(frame) => assert!(remote.send(frame)),
                    Effect::Drop { .. } => given_up = Some(now),
                    _ => {}
                }
            }
        }
        assert_eq!(given_up, Some(Time(0) + dead_after));
        remote.close();
        assert_eq!(drain(socket).await.1.reason, "closed by this side");
        done.send(()).unwrap();
    };
    join!(server, client);
}

/// The heir of a stopped owner holds a duplicate: it can end the connection, and does not keep it alive.
#[cfg(unix)]
#[tokio::test]
async fn a_duplicate_of_the_socket_ends_the_connection_and_keeps_nothing_alive() {
    for by_duplicate in [true, false] {
        let (listener, port) = listen().await;
        let server = async {
            let mut server = accept(listener, None).await.0.unwrap();
            server.next().await.unwrap().unwrap_err().to_string()
        };
        let client = async {
            let (socket, _remote) = connect(&request(port)).await.unwrap();
            let duplicate = socket.duplicate_socket().unwrap();
            if by_duplicate {
                rustix::net::shutdown(&duplicate, rustix::net::Shutdown::Both).unwrap();
                (Some(socket), duplicate)
            } else {
                drop(socket);
                (None, duplicate)
            }
        };
        let (end, _both_alive_until_here) = join!(server, client);
        assert!(end.contains("without closing handshake"), "{end}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_the_handshake_is_not_waited_for() {
    let (listener, port) = listen().await;
    let refused = connect(&request(port)).await.unwrap_err();
    assert_eq!((refused.status, refused.reason.as_str()), (None, "no connection within 20 s"));
    drop(listener);
}

#[tokio::test]
async fn what_cannot_be_an_address_is_said_without_its_query() {
    for (url, said) in
        [("http://h/", "ws://"), ("ws://", "cannot be used"), ("ws://a b/?token=x", "cannot be used")]
    {
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
