//! Streams and calls against a server on loopback that says what it is told to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;

use std::{future::pending, time::Duration};

use bytes::Bytes;
use paceline_channel::{
    protocol::{
        Call, CloseAction, CloseInfo, ConnectRequest, Frame, Out, Outgoing, Protocol, Secret, Transport,
    },
    sse::{Sse, SseSpec},
};
use paceline_proto::{id::Position, time::Time};
use paceline_upstream::{
    http::{HttpClient, call},
    transport::{self, Remote, connect_unless},
};
use serde_json::json;
use server::{Say, Server, answer, silence};

fn stream(pieces: &[&str]) -> Say {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let pieces = [head].iter().chain(pieces).map(|piece| piece.as_bytes().to_vec()).collect();
    Say { pieces, endless: false }
}

async fn open(request: &ConnectRequest) -> Result<(transport::Transport, Remote), CloseInfo> {
    connect_unless(&HttpClient::default(), request, pending()).await
}

/// Everything a machine makes of what comes until the connection ends, and why it does; at most `count` findings.
async fn drain(
    machine: &mut dyn Protocol,
    mut transport: transport::Transport,
    count: usize,
) -> (Vec<Out>, Option<CloseInfo>) {
    let mut out = Vec::new();
    machine.on_open(Time::ZERO, &transport.head(), &mut out);
    while out.len() < count {
        let (frames, end) = transport.next().await;
        frames.into_iter().for_each(|frame| machine.on_frame(Time::ZERO, frame, &mut out));
        if end.is_some() {
            return (out, end);
        }
    }
    (out, None)
}

#[tokio::test]
async fn a_stream_is_asked_for_read_and_asked_for_again_behind_its_last_event() {
    let mut server = Server::start(|_| stream(&["id: 4\nda", "ta: 1\r", "\n\n"])).await;
    let mut spec = SseSpec::new(format!("{}/events?x=1", server.base));
    spec.headers.push(("X-Token".into(), Secret::new("s3cret")));
    let mut machine = Sse::new(spec);
    let (transport, _remote) = open(&machine.request(None)).await.unwrap();
    let (out, _) = drain(&mut machine, transport, 3).await;
    let at = Position::Opaque("4".into());
    let value = json!({"type": "message", "id": "4", "data": 1});
    let raw = Bytes::from(value.to_string());
    let message = Out::Message { value, raw, position: Some(at.clone()), live: true };
    assert_eq!(out, [Out::Joined { resumed: false }, Out::Live, message]);
    let asked = server.asked.recv().await.unwrap();
    assert_eq!(asked.line, "GET /events?x=1");
    assert_eq!(
        ["accept", "cache-control", "x-token"].map(|name| asked.headers[name].as_str()),
        ["text/event-stream", "no-store", "s3cret"]
    );
    assert!(!asked.headers.contains_key("last-event-id") && !asked.headers.contains_key("accept-encoding"));
    assert_eq!(server.closed.recv().await, Some(0), "the connection ends with its owner");

    let (_transport, _remote) = open(&machine.request(Some(&at))).await.unwrap();
    assert_eq!(server.asked.recv().await.unwrap().headers["last-event-id"], "4");
}

#[tokio::test]
async fn a_refusal_tells_its_status_and_what_the_server_asks_for() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /busy" => answer("503 Service Unavailable", &["Retry-After: 7"], ""),
        "GET /none" => answer("204 No Content", &[], ""),
        "GET /moved" => answer("307 Temporary Redirect", &["Location: /events"], ""),
        "GET /away" => answer("307 Temporary Redirect", &["Location: http://127.0.0.1:1/"], ""),
        "GET /circle" => answer("307 Temporary Redirect", &["Location: /circle"], ""),
        "GET /page" => answer("200 OK", &["Content-Type: text/html"], "<html>"),
        _ => stream(&["data: 1\n\n"]),
    })
    .await;
    let action = async |path: &str| {
        let mut machine = Sse::new(SseSpec::new(format!("{}{path}", server.base)));
        let close = match open(&machine.request(None)).await {
            Err(close) => close,
            Ok((transport, _remote)) => match drain(&mut machine, transport, 1).await.0.swap_remove(0) {
                Out::Drop(close) => close,
                other => return Err(other),
            },
        };
        Ok(machine.on_close(&close))
    };
    assert_eq!(action("/busy").await, Ok(CloseAction::Backoff(Duration::from_secs(7))));
    for (path, why) in [
        ("/none", "for good"),
        ("/away", "redirects (status 307)"),
        ("/circle", "refused with status 400"),
        ("/page", "text/html"),
    ] {
        let Ok(CloseAction::Stop(reason)) = action(path).await else { panic!("{path}") };
        assert!(reason.contains(why), "{path}: {reason}");
    }
    assert_eq!(action("/moved").await, Err(Out::Joined { resumed: false }), "followed within the origin");
    let invalid = open(&ConnectRequest::new(Transport::Stream, "ftp://h/")).await.unwrap_err();
    assert_eq!(invalid.status, Some(400));
}

#[tokio::test]
async fn an_endless_line_ends_within_its_bound() {
    let server = Server::start(|_| {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
        Say { pieces: vec![head, vec![b'x'; 10_000]], endless: true }
    })
    .await;
    let mut machine = Sse::new(SseSpec::new(&server.base));
    let (transport, _remote) = open(&machine.request(None)).await.unwrap();
    let (out, _) = drain(&mut machine, transport, 3).await;
    let [Out::Joined { .. }, Out::Live, Out::Drop(close)] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(close.reason, "an event of more than 1048576 bytes came");
}

#[tokio::test]
async fn a_stream_is_closed_by_its_remote_and_takes_nothing() {
    let mut server = Server::start(|_| stream(&[])).await;
    let request = ConnectRequest::new(Transport::Stream, &server.base);
    let (mut transport, remote) = open(&request).await.unwrap();
    assert!(remote.send(Outgoing::Ping));
    remote.close();
    let (frames, end) = transport.next().await;
    assert_eq!((frames, end.unwrap().reason), (vec![], "closed by this side".to_owned()));
    drop(transport);
    assert_eq!(server.closed.recv().await, Some(0));
}

#[tokio::test]
async fn an_attempt_that_is_given_up_ends() {
    let server = Server::start(|_| silence()).await;
    let request = ConnectRequest::new(Transport::Stream, &server.base);
    let end = connect_unless(&HttpClient::default(), &request, async {}).await.map(|_| ()).unwrap_err();
    assert_eq!(end.reason, "the attempt was given up by this side");
}

#[tokio::test]
async fn a_call_is_a_request_with_a_whole_answer() {
    let mut server = Server::start(|asked| match asked.line.as_str() {
        "POST /auth" => answer("403 Forbidden", &["X-Why: no"], "denied"),
        "GET /long" => answer("200 OK", &[], "x".repeat(101)),
        "GET /never" => silence(),
        _ => answer("200 OK", &[], "x".repeat(100)),
    })
    .await;
    let client = HttpClient::default();
    let ask = |path: &str, body: Option<&str>| Call {
        id: 1,
        url: format!("{}{path}", server.base),
        headers: vec![("X-Token".into(), Secret::new("s3cret"))],
        body: body.map(Secret::new),
        timeout: Duration::from_secs(if path == "/never" { 0 } else { 20 }),
        max_body: 100,
    };
    let reply = call(&client, &ask("/auth", Some("a=b"))).await.unwrap();
    assert_eq!(
        (reply.head.status, reply.head.header("x-why"), &reply.body[..]),
        (403, Some("no"), &b"denied"[..])
    );
    let asked = server.asked.recv().await.unwrap();
    assert_eq!((asked.headers["x-token"].as_str(), asked.body.as_str()), ("s3cret", "a=b"));
    assert_eq!(call(&client, &ask("/fits", None)).await.unwrap().body.len(), 100);
    assert_eq!(call(&client, &ask("/long", None)).await, Err("the answer has more than 100 bytes".into()));
    assert_eq!(call(&client, &ask("/never", None)).await, Err("no whole answer within 0ns".into()));
}

#[tokio::test]
async fn where_nothing_is_opened_there_is_nothing_to_wait_for() {
    let request = ConnectRequest::new(Transport::Calls, "");
    let (mut transport, remote) = open(&request).await.unwrap();
    remote.close();
    assert_eq!(transport.next().await.0, Vec::<Frame>::new());
}
