//! A group behind a Pusher server that checks every signature: the events of a warehouse, from a file, as Laravel Echo
//! would listen to them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../paceline-upstream/tests/server/mod.rs"]
mod server;

use std::{fmt::Write as _, time::Duration};

use futures_util::{SinkExt, StreamExt};
use paceline::{Pusher, Route, Session, key};
use serde_json::{Value, json};
use server::{Server, answer};
use sha2::{Digest, Sha256};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, tungstenite::Message};

/// A wait that takes longer is a hang.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the vendor's own examples.
const KEY: &str = "278d425bdf160c739803";
const SECRET: &[u8] = b"7ad3773142a6692b25b8";

/// HMAC-SHA256 in hexadecimal digits.
fn sign(text: &str) -> String {
    let mut pad = [0_u8; 64];
    pad[..SECRET.len()].copy_from_slice(SECRET);
    let inner = Sha256::new().chain_update(pad.map(|byte| byte ^ 0x36)).chain_update(text).finalize();
    let outer = Sha256::new().chain_update(pad.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize();
    outer.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

#[test]
fn signatures_are_those_of_the_vendors_library() {
    let who = r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#;
    for (text, signature) in [
        (
            "1234.1234:private-foobar".to_owned(),
            "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4",
        ),
        (
            format!("1234.1234:presence-foobar:{who}"),
            "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
        ),
    ] {
        assert_eq!(sign(&text), signature);
    }
}

/// The endpoint of the application: who has the right header may join everything.
async fn endpoint() -> Server {
    Server::start(|asked| {
        if asked.headers.get("authorization").map(String::as_str) != Some("Bearer s3cret") {
            return answer("403 Forbidden", &[], "{}");
        }
        let field = |name: &str| {
            let fields = asked.body.split('&').filter_map(|field| field.split_once('='));
            fields.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value.to_owned()).unwrap()
        };
        let signature = sign(&format!("{}:{}", field("socket_id"), field("channel_name")));
        answer("200 OK", &[], json!({ "auth": format!("{KEY}:{signature}") }).to_string())
    })
    .await
}

/// A connection as the server sees it.
struct Wire {
    socket_id: String,
    frames: WebSocketStream<TcpStream>,
}

impl Wire {
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    async fn accept(listener: &TcpListener, socket_id: &str) -> Self {
        use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
        let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("a session connects").unwrap();
        let look = |request: &Request, response: Response| {
            assert_eq!(request.uri().path(), format!("/app/{KEY}"));
            assert!(request.uri().query().unwrap().starts_with("protocol=7&"));
            Ok(response)
        };
        let mut frames = accept_hdr_async(stream, look).await.unwrap();
        let greeting = json!({ "socket_id": socket_id, "activity_timeout": 30 }).to_string();
        let greeting = json!({ "event": "pusher:connection_established", "data": greeting });
        frames.send(Message::text(greeting.to_string())).await.unwrap();
        Self { socket_id: socket_id.to_owned(), frames }
    }

    async fn next(&mut self) -> Value {
        let frame = timeout(PATIENCE, self.frames.next()).await.expect("a frame comes").unwrap().unwrap();
        serde_json::from_str(frame.to_text().unwrap()).unwrap()
    }

    /// Takes so many subscriptions, checks their signatures and confirms them; the channels, sorted.
    async fn joins(&mut self, count: usize) -> Vec<String> {
        let mut channels = Vec::new();
        for _ in 0..count {
            let frame = self.next().await;
            assert_eq!(frame["event"], "pusher:subscribe", "{frame}");
            let channel = frame["data"]["channel"].as_str().unwrap().to_owned();
            if channel.starts_with("private-") {
                let expected = format!("{KEY}:{}", sign(&format!("{}:{channel}", self.socket_id)));
                assert_eq!(frame["data"]["auth"], expected, "{frame}");
            }
            let confirmed = json!({ "event": "pusher_internal:subscription_succeeded", "channel": channel });
            self.frames.send(Message::text(confirmed.to_string())).await.unwrap();
            channels.push(channel);
        }
        channels.sort();
        channels
    }

    async fn publish(&mut self, channel: &str, event: &str, data: Value) {
        let frame = json!({ "event": event, "channel": channel, "data": data.to_string() });
        self.frames.send(Message::text(frame.to_string())).await.unwrap();
    }
}

async fn shows(
    subscription: &mut paceline::Subscription<Value>,
    fits: impl Fn(&paceline::View<Value>) -> bool,
) {
    let shown = async {
        while !fits(&subscription.current()) {
            subscription.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, shown).await.expect("it is shown");
}

#[tokio::test]
async fn the_events_of_a_warehouse_reach_every_session_by_channels_that_follow_what_is_subscribed() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = endpoint().await;
    let file = dir.path().join("paceline.toml");
    let port = listener.local_addr().unwrap().port();
    let text = format!(
        r#"
[upstreams.echo]
protocol = "pusher"
key = "{KEY}"
host = "127.0.0.1"
port = {port}
force_tls = false
namespace = 'App\Events'
auth = {{ endpoint = "{base}/broadcasting/auth", headers = {{ Authorization = "Bearer s3cret" }} }}
[[routes]]
upstream = "echo"
channel = "private-org.{{org}}"
name = ["LabelApproved", "LabelRejected"]
invalidate = [{{ key = ["labels", "{{org}}"] }}]
event = {{ stream = "labels", data = "$.data" }}
[[routes]]
upstream = "echo"
channel = "private-org.{{org}}.inventory"
name = ["InventoryUpdated"]
invalidate = [{{ key = ["packages", "{{org}}", "$.data.license"] }}]
[[routes]]
upstream = "echo"
channel = "private-transfer.{{id}}"
name = ["PackageCheckedIn", "TransferCompleted"]
invalidate = [{{ key = ["transfer", "{{id}}"] }}]
[[routes]]
upstream = "echo"
channel = "private-job.{{id}}"
name = ["JobProgressUpdated"]
merge = [{{ key = ["job", "{{id}}"], value = {{ progress = "$.data.progress" }} }}]
[[routes]]
upstream = "echo"
channel = "private-job.{{id}}"
name = ["JobCompleted"]
merge = [{{ key = ["job", "{{id}}"], value = {{ status = "completed", result = "$.data.result" }} }}]
[[routes]]
upstream = "echo"
channel = "private-job.{{id}}"
name = ["JobFailed"]
merge = [{{ key = ["job", "{{id}}"], value = {{ status = "failed", error = "$.data.error" }} }}]
"#,
        base = endpoint.base
    );
    std::fs::write(&file, text).unwrap();
    let state = dir.path().join("state");
    let join =
        |label: &str| Session::builder("test").state_dir(&state).label(label).config_file(&file).join();
    let one = join("one").await.unwrap();
    let mut wire = Wire::accept(&listener, "1234.1").await;
    let two = join("two").await.unwrap();

    let mut notices = two.events("labels").subscribe::<Value>();
    let mut labels = two.query(key!["labels", 7]).subscribe::<Value>();
    assert_eq!(wire.joins(1).await, ["private-org.7"]);
    let mut again = one.query(key!["labels", 7]).subscribe::<Value>();
    one.set(key!["labels", 7], &json!(["old"])).await.unwrap();
    shows(&mut again, |view| view.data() == Some(&json!(["old"]))).await;
    for name in ["LabelApproved", "LabelRejected"] {
        wire.publish("private-org.7", &format!("App\\Events\\{name}"), json!({ "name": name })).await;
        assert_eq!(timeout(PATIENCE, notices.next()).await.unwrap().unwrap().data, json!({ "name": name }));
    }
    shows(&mut labels, |view| view.is_stale()).await;

    // Another parameter is another channel; the first one is left when nobody wants it any more.
    drop(again);
    drop(labels);
    assert_eq!(
        wire.next().await,
        json!({ "event": "pusher:unsubscribe", "data": { "channel": "private-org.7" } })
    );
    let _labels = two.query(key!["labels", 8]).subscribe::<Value>();
    assert_eq!(wire.joins(1).await, ["private-org.8"]);

    let mut packages = two.query(key!["packages", 8, "A-1"]).subscribe::<Value>();
    let mut transfer = two.query(key!["transfer", 3]).subscribe::<Value>();
    let mut jobs = [5, 6].map(|id| two.query(key!["job", id]).subscribe::<Value>());
    assert_eq!(
        wire.joins(4).await,
        ["private-job.5", "private-job.6", "private-org.8.inventory", "private-transfer.3"]
    );
    for (channel, name, subscription, key) in [
        ("private-org.8.inventory", "InventoryUpdated", &mut packages, key!["packages", 8, "A-1"]),
        ("private-transfer.3", "PackageCheckedIn", &mut transfer, key!["transfer", 3]),
    ] {
        two.set(&key, &json!(1)).await.unwrap();
        shows(subscription, |view| view.data().is_some()).await;
        wire.publish(channel, &format!("App\\Events\\{name}"), json!({ "license": "A-1" })).await;
        shows(subscription, |view| view.is_stale()).await;
    }
    two.set(key!["transfer", 3], &json!(2)).await.unwrap();
    shows(&mut transfer, |view| view.data() == Some(&json!(2)) && !view.is_stale()).await;
    wire.publish("private-transfer.3", "App\\Events\\TransferCompleted", json!({})).await;
    shows(&mut transfer, |view| view.is_stale()).await;

    wire.publish("private-job.5", "App\\Events\\JobProgressUpdated", json!({ "progress": 40 })).await;
    shows(&mut jobs[0], |view| view.data() == Some(&json!({ "progress": 40 }))).await;
    wire.publish("private-job.5", "App\\Events\\JobCompleted", json!({ "result": [1] })).await;
    let completed = json!({ "progress": 40, "status": "completed", "result": [1] });
    shows(&mut jobs[0], |view| view.data() == Some(&completed)).await;
    wire.publish("private-job.6", "App\\Events\\JobFailed", json!({ "error": "no" })).await;
    shows(&mut jobs[1], |view| view.data() == Some(&json!({ "status": "failed", "error": "no" }))).await;
    // The same names outside the namespace are other events.
    wire.publish("private-job.6", "JobCompleted", json!({ "result": [2] })).await;

    // The heir has a socket of its own, so every channel is authorised anew.
    let goes_on = async {
        while wire.frames.next().await.is_some_and(|frame| frame.is_ok()) {}
        let mut wire = Wire::accept(&listener, "1234.2").await;
        let all = wire.joins(5).await;
        wire.publish("private-job.5", "App\\Events\\JobProgressUpdated", json!({ "progress": 50 })).await;
        (wire, all)
    };
    let (left, (_wire, all)) = tokio::join!(one.leave(), goes_on);
    left.unwrap();
    let mut expected =
        ["private-job.5", "private-job.6", "private-org.8", "private-org.8.inventory", "private-transfer.3"];
    expected.sort_unstable();
    assert_eq!(all, expected);
    shows(&mut jobs[0], |view| view.data().is_some_and(|data| data["progress"] == 50)).await;
    assert_eq!(jobs[1].current().data(), Some(&json!({ "status": "failed", "error": "no" })));
    let gap = timeout(PATIENCE, notices.next()).await.unwrap();
    assert!(matches!(gap, Err(paceline::EventError::Gap(_))), "a reconnect may have lost events: {gap:?}");
    two.leave().await.unwrap();
}

#[tokio::test]
async fn echo_declared_in_code_joins_what_stands_in_its_routes() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let echo = Pusher::new("echo", KEY, "127.0.0.1")
        .port(listener.local_addr().unwrap().port())
        .force_tls(false)
        .namespace("App.Events")
        .route(Route::channel("news").named(["Posted", ".raw.name"]).emit("news", "$.data"));
    let session = Session::builder("test").state_dir(dir.path()).upstream(echo).join().await.unwrap();
    let mut news = session.events("news").subscribe::<Value>();
    // What comes later on the link is answered later.
    session.set(key!["subscribed"], &true).await.unwrap();
    let mut wire = Wire::accept(&listener, "1.1").await;
    assert_eq!(wire.joins(1).await, ["news"]);
    for (event, data) in [("Posted", 0), ("App\\Events\\Posted", 1), ("raw.name", 2)] {
        wire.publish("news", event, json!(data)).await;
    }
    for expected in [1, 2] {
        assert_eq!(timeout(PATIENCE, news.next()).await.unwrap().unwrap().data, json!(expected));
    }
    session.leave().await.unwrap();
}
