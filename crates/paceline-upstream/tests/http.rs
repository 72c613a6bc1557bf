//! Declared requests against a real server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use paceline_channel::{
    protocol::Secret,
    template::{Setting, Template, Token, Vault},
};
use paceline_proto::{
    fetch::{FailureKind, FetchFailure, FetchOutcome},
    id::{Epoch, Trace, Version},
    limits::VALUE_MAX,
};
use paceline_query::{condition::Bindings, key};
use paceline_upstream::{
    fetch::{FetchContext, Fetcher},
    http::{HttpClient, HttpFetcher, HttpRequest, Method},
};
use serde_json::json;
use server::{Asked, Say, Server, answer, chunked, silence};

/// Knows one secret.
struct Known;

impl Vault for Known {
    fn secret(&self, name: &str) -> Option<Secret> {
        (name == "api").then(|| Secret::new("s3cret"))
    }

    fn token(&self, _: Token) -> Option<Secret> {
        None
    }
}

fn url(text: &str) -> Template {
    Template::new(text, Setting::Url).unwrap()
}

fn credential(text: &str) -> Template {
    Template::new(text, Setting::Credential).unwrap()
}

fn request(base: &str) -> HttpRequest {
    HttpRequest {
        resource: "packages".to_owned(),
        method: Method::GET,
        base: base.to_owned(),
        path: url("/packages/{id}"),
        query: Vec::new(),
        form: Vec::new(),
        headers: vec![("Authorization".to_owned(), credential("Bearer {secret:api}"))],
        etag: true,
        timeout: Duration::from_secs(20),
    }
}

fn context(id: serde_json::Value) -> FetchContext {
    FetchContext {
        key: key!["packages", id.clone()],
        bound: Bindings::from([("id".to_owned(), id)]),
        etag: "".into(),
        deadline: Duration::from_secs(60),
        background: false,
        trace: Trace::NONE,
        epoch: Epoch(1),
    }
}

async fn fetch(request: HttpRequest, context: FetchContext) -> FetchOutcome {
    HttpFetcher::new(request, Arc::new(Known), HttpClient::default()).fetch(context).await
}

/// The failure of a fetch, whose words show neither secrets nor parameters.
async fn failure(request: HttpRequest, context: FetchContext) -> FetchFailure {
    match fetch(request, context).await {
        FetchOutcome::Failed(failed) => {
            let shown = format!("{failed:?}");
            assert!(failed.why.starts_with("fetch \"packages\": "), "{shown}");
            assert!(!shown.contains("s3cret") && !shown.contains("confidential"), "{shown}");
            failed
        }
        other => panic!("{other:?}"),
    }
}

fn value(text: &str, etag: &str) -> FetchOutcome {
    FetchOutcome::Value {
        value: Bytes::copy_from_slice(text.as_bytes()),
        version: Version::None,
        etag: etag.into(),
        hints: Bytes::new(),
    }
}

#[tokio::test]
async fn a_request_is_what_was_declared_with_the_key_filled_in() {
    let mut server = Server::start(|_| answer("200 OK", &["ETag: \"v1\""], "{\"id\": 7}")).await;
    let mut request = request(&format!("{}/api", server.base));
    request.query = vec![("filter[a]".to_owned(), url("is {id}&more")), ("sort".to_owned(), url("name"))];
    request.headers.push(("X-Key".to_owned(), credential("id {id}")));
    let trace = Trace { trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span: 0xb7ad_6b71_6920_3331 };
    let asked_for = FetchContext { trace, ..context(json!("a/b ü?")) };
    assert_eq!(fetch(request, asked_for).await, value("{\"id\": 7}", "\"v1\""));
    let Asked { line, headers, body, .. } = server.asked.recv().await.unwrap();
    let filled = "a%2Fb%20%C3%BC%3F";
    assert_eq!(line, format!("GET /api/packages/{filled}?filter%5Ba%5D=is%20{filled}%26more&sort=name"));
    assert_eq!(headers["authorization"], "Bearer s3cret");
    assert_eq!(headers["accept"], "application/json");
    assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert!(headers["user-agent"].starts_with("paceline/"), "{headers:?}");
    assert!(!headers.contains_key("if-none-match") && !headers.contains_key("referer"), "{headers:?}");
    assert_eq!(headers["x-key"].as_bytes(), "id a/b ü?".as_bytes());
    assert_eq!(body, "");
}

#[tokio::test]
async fn a_form_is_sent_with_secrets_filled_in() {
    let mut server = Server::start(|_| answer("200 OK", &[], "1")).await;
    let request = HttpRequest {
        method: Method::POST,
        path: url("/oauth/token"),
        form: vec![
            ("grant_type".to_owned(), credential("refresh_token")),
            ("refresh_token".to_owned(), credential("{secret:api}&{id}")),
        ],
        ..request(&server.base)
    };
    assert_eq!(fetch(request, context(json!(7))).await, value("1", ""));
    let asked = server.asked.recv().await.unwrap();
    assert_eq!(asked.line, "POST /oauth/token");
    assert_eq!(asked.headers["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(asked.body, "grant_type=refresh_token&refresh_token=s3cret%267");
    assert!(!asked.headers.contains_key("traceparent"), "there is no cause to tell");
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    let mut server = Server::start(|asked| match asked.headers.get("if-none-match") {
        Some(tag) if tag == "\"v1\"" => answer("304 Not Modified", &["ETag: \"v1\""], ""),
        _ => answer("200 OK", &["ETag: \"v2\""], "2"),
    })
    .await;
    let held = |etag: &str| FetchContext { etag: etag.into(), ..context(json!(7)) };
    assert_eq!(fetch(request(&server.base), held("\"v1\"")).await, FetchOutcome::NotModified);
    assert_eq!(fetch(request(&server.base), held("\"v0\"")).await, value("2", "\"v2\""));
    let plain = HttpRequest { etag: false, ..request(&server.base) };
    assert_eq!(fetch(plain, held("\"v1\"")).await, value("2", "\"v2\""));
    let asked = [server.asked.recv().await.unwrap(), server.asked.recv().await.unwrap()];
    assert_eq!(asked.map(|asked| asked.headers["if-none-match"].clone()), ["\"v1\"", "\"v0\""]);
    assert!(!server.asked.recv().await.unwrap().headers.contains_key("if-none-match"));

    let server = Server::start(|_| answer("304 Not Modified", &[], "")).await;
    let unasked = failure(request(&server.base), context(json!(7))).await;
    assert_eq!(unasked.kind, FailureKind::Status(304), "nobody asked for what changed only");
}

#[tokio::test]
async fn a_refusal_tells_status_address_what_to_do_and_what_the_server_said() {
    let server = Server::start(|asked| {
        let status = asked.line.split(['/', '?']).nth(2).unwrap();
        let status = if status == "404" { "404 Not Found" } else { "401 Unauthorized" };
        answer(status, &[], "{\"error\":\"x\"}")
    })
    .await;
    for (status, words) in [(404, "check the path"), (401, "check the credentials")] {
        let mut request = request(&server.base);
        request.query = vec![("token".to_owned(), url("confidential"))];
        let failed = failure(request, context(json!(status))).await;
        assert_eq!(failed.kind, FailureKind::Status(status));
        assert_eq!(failed.detail, "{\"error\":\"x\"}");
        assert_eq!(failed.retry_after_ms, None);
        let address = format!("GET {}/packages/{status}: {status} ", server.base);
        assert!(failed.why.contains(&address) && failed.why.contains(words), "{}", failed.why);
    }
    let endless = Server::start(|_| {
        let mut say = chunked(&[vec![b'x'; 1000]], true);
        say.pieces[0] = b"HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        say
    })
    .await;
    let failed = failure(request(&endless.base), context(json!(1))).await;
    assert_eq!((failed.kind, failed.detail.len()), (FailureKind::Status(500), 16 << 10));
}

#[tokio::test]
async fn a_wait_that_the_server_asks_for_is_told_in_seconds_and_as_a_date() {
    let date =
        |seconds: u64| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds));
    for (headers, expected) in [
        (vec!["Retry-After: 2".to_owned()], Some(2_000)),
        (vec!["Retry-After: 0".to_owned()], Some(0)),
        (vec![format!("Date: {}", date(0)), format!("Retry-After: {}", date(90))], Some(90_000)),
        (vec![format!("Date: {}", date(90)), format!("Retry-After: {}", date(0))], Some(0)),
        (
            vec![
                "Date: Sunday, 06-Nov-94 08:49:37 GMT".to_owned(),
                "Retry-After: Sun Nov  6 08:50:37 1994".to_owned(),
            ],
            Some(60_000),
        ),
        (vec![format!("Retry-After: {}", date(90))], None),
        (vec!["Retry-After: soon".to_owned()], None),
        (vec!["Retry-After: -1".to_owned()], None),
        (vec!["Retry-After: 86400".to_owned()], Some(86_400_000)),
        (vec!["Retry-After: 18446744073709551615".to_owned()], Some(86_400_000)),
        (Vec::new(), None),
    ] {
        let shown = format!("{headers:?}");
        let server = Server::start(move |_| {
            let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
            answer("429 Too Many Requests", &headers, "")
        })
        .await;
        let failed = failure(request(&server.base), context(json!(7))).await;
        assert_eq!((failed.kind, failed.retry_after_ms), (FailureKind::Status(429), expected), "{shown}");
        assert_eq!(failed.why.contains("asks to wait"), expected.is_some(), "{}", failed.why);
    }
}

#[tokio::test]
async fn a_value_at_the_bound_is_taken_and_one_byte_more_is_not() {
    fn of(len: usize) -> Vec<u8> {
        let mut text = vec![b'"'];
        text.resize(len - 1, b'x');
        text.push(b'"');
        text
    }
    let server = Server::start(|asked| {
        let more = usize::from(asked.line.contains("more"));
        let body = of(VALUE_MAX + more);
        if asked.line.contains("announced") { answer("200 OK", &[], body) } else { chunked(&[body], false) }
    })
    .await;
    for way in ["announced", "chunked"] {
        let fits = fetch(request(&server.base), context(json!(way))).await;
        assert!(matches!(&fits, FetchOutcome::Value { value, .. } if value.len() == VALUE_MAX), "{way}");
        let failed = failure(request(&server.base), context(json!(format!("{way} more")))).await;
        assert_eq!(failed.kind, FailureKind::Invalid);
        assert!(failed.why.contains("at most 1048576 are allowed"), "{}", failed.why);
    }
    let mut endless = Server::start(|_| chunked(&[vec![b' '; 64 << 10]], true)).await;
    let failed = failure(request(&endless.base), context(json!(1))).await;
    assert_eq!(failed.kind, FailureKind::Invalid);
    assert_eq!(endless.closed.recv().await, Some(0), "nothing more is read");
}

#[tokio::test]
async fn what_is_no_json_is_no_value() {
    let server = Server::start(|asked| match asked.line.as_str() {
        "GET /packages/html" => answer("200 OK", &[], "<html>"),
        "GET /packages/empty" => answer("200 OK", &[], ""),
        "GET /packages/two" => answer("200 OK", &[], "{} {}"),
        "GET /packages/half" => chunked(&[b"{\"a\":".to_vec()], false),
        _ => answer("204 No Content", &[], ""),
    })
    .await;
    for (id, detail) in [("html", "<html>"), ("empty", ""), ("two", "{} {}"), ("half", "{\"a\":")] {
        let failed = failure(request(&server.base), context(json!(id))).await;
        assert_eq!((failed.kind, &*failed.detail), (FailureKind::Invalid, detail.as_bytes()));
        assert!(failed.why.contains("is not JSON"), "{}", failed.why);
    }
    assert_eq!(fetch(request(&server.base), context(json!("none"))).await, value("null", ""));
}

#[tokio::test]
async fn redirects_are_followed_within_an_origin_only() {
    let mut other = Server::start(|_| answer("200 OK", &[], "\"other\"")).await;
    let elsewhere = format!("Location: {}/x?a=confidential", other.base);
    let mut server = Server::start(move |asked| match asked.line.as_str() {
        "GET /packages/near" => answer("302 Found", &["Location: /there"], ""),
        "GET /packages/far" => answer("307 Temporary Redirect", &[&elsewhere], ""),
        "GET /there" => answer("200 OK", &[], "\"there\""),
        _ => answer("302 Found", &["Location: /packages/round"], ""),
    })
    .await;
    assert_eq!(fetch(request(&server.base), context(json!("near"))).await, value("\"there\"", ""));
    server.asked.recv().await.unwrap();
    assert_eq!(server.asked.recv().await.unwrap().headers["authorization"], "Bearer s3cret");
    let failed = failure(request(&server.base), context(json!("far"))).await;
    assert_eq!(failed.kind, FailureKind::Status(307));
    let words = format!("to {}, which is not followed", other.base);
    assert!(failed.why.contains(&words), "{}", failed.why);
    assert!(other.asked.try_recv().is_err(), "it was not asked");
    let failed = failure(request(&server.base), context(json!("round"))).await;
    assert!(failed.why.contains("more than 5 redirects"), "{}", failed.why);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_or_does_not_answer_is_told_as_such() {
    let mut server = Server::start(|_| silence()).await;
    let impatient = HttpRequest { timeout: Duration::from_millis(50), ..request(&server.base) };
    let failed = failure(impatient, context(json!(7))).await;
    assert_eq!(failed.kind, FailureKind::Timeout);
    assert!(failed.why.contains("within 50ms") && failed.why.contains("`timeout`"), "{}", failed.why);
    assert_eq!(server.closed.recv().await, Some(0));

    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{".to_vec();
    let mut server = Server::start(move |_| Say { pieces: vec![half.clone()], endless: false }).await;
    let impatient = HttpRequest { timeout: Duration::from_millis(50), ..request(&server.base) };
    assert_eq!(failure(impatient, context(json!(7))).await.kind, FailureKind::Timeout);
    assert_eq!(server.closed.recv().await, Some(0));

    // Bound and never listening: nobody else gets the port, and nobody answers.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let base = format!("http://{}", socket.local_addr().unwrap());
    let failed = failure(request(&base), context(json!(7))).await;
    assert_eq!(failed.kind, FailureKind::Network);
    assert!(failed.why.contains("refused"), "{}", failed.why);
}

#[tokio::test]
async fn a_key_cannot_lead_out_of_the_path_or_break_the_request() {
    let mut server = Server::start(|_| answer("200 OK", &[], "1")).await;
    for id in [json!(".."), json!("."), json!(null), json!([1])] {
        let failed = failure(request(&server.base), context(id)).await;
        assert_eq!(failed.kind, FailureKind::Invalid);
    }
    let mut broken = request(&server.base);
    broken.headers.push(("X-Key".to_owned(), credential("{id}")));
    broken.path = url("/packages");
    assert_eq!(failure(broken, context(json!("a\r\nb: c"))).await.kind, FailureKind::Invalid);
    let mut unknown = request(&server.base);
    unknown.headers.push(("X-Key".to_owned(), credential("{secret:other}")));
    let failed = failure(unknown, context(json!(1))).await;
    assert!(failed.why.contains("the secret \"other\" is not known here"), "{}", failed.why);
    assert!(server.asked.try_recv().is_err(), "nothing was asked");
    assert_eq!(fetch(request(&server.base), context(json!("%2e%2e"))).await, value("1", ""));
    assert_eq!(server.asked.recv().await.unwrap().line, "GET /packages/%252e%252e");
}

#[tokio::test]
async fn a_connection_is_used_again_and_given_up_with_its_fetch() {
    let mut server =
        Server::start(
            |asked| {
                if asked.line.ends_with("slow") { silence() } else { answer("200 OK", &[], "1") }
            },
        )
        .await;
    let fetcher = HttpFetcher::new(request(&server.base), Arc::new(Known), HttpClient::default());
    for _ in 0..3 {
        assert_eq!(fetcher.fetch(context(json!(7))).await, value("1", ""));
        assert_eq!(server.asked.recv().await.unwrap().connection, 0);
    }
    let mut slow = fetcher.fetch(context(json!("slow")));
    tokio::select! {
        outcome = &mut slow => panic!("{outcome:?}"),
        asked = server.asked.recv() => assert_eq!(asked.unwrap().line, "GET /packages/slow"),
    }
    drop(slow);
    assert_eq!(server.closed.recv().await, Some(0));
}

/// In the child: the server to ask.
const BASE: &str = "PACELINE_TEST_HTTP_BASE";

#[tokio::test]
async fn proxies_of_the_environment_are_not_used() {
    let mut proxy = Server::start(|_| answer("200 OK", &[], "\"proxy\"")).await;
    let server = Server::start(|_| answer("200 OK", &[], "\"server\"")).await;
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--ignored", "--nocapture"]).env(BASE, &server.base);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(name, &proxy.base);
    }
    child.env_remove("no_proxy").env_remove("NO_PROXY").env_remove("REQUEST_METHOD");
    let output = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("\"server\""), "{said}");
    assert!(proxy.asked.try_recv().is_err());
}

/// Not a test of its own: the client of the one above, in a process of its own.
#[tokio::test]
#[ignore = "runs as the child of a test above"]
#[expect(clippy::print_stdout, reason = "its parent reads it")]
async fn child() {
    match fetch(request(&std::env::var(BASE).unwrap()), context(json!(7))).await {
        FetchOutcome::Value { value, .. } => println!("{}", String::from_utf8_lossy(&value)),
        other => println!("{other:?}"),
    }
}
