//! A group whose upstream and routes stand in a file: two sessions, one connection, and the wire goes from one to the
//! other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::PathBuf, time::Duration};

use futures_util::{SinkExt, StreamExt};
use paceline::{
    Error, Session,
    config::{Part, ProblemKind},
    key,
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
    },
};

/// A wait that takes longer is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn write(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("paceline.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// What the server saw of a handshake.
struct Seen {
    query: String,
    authorization: String,
    socket: WebSocketStream<TcpStream>,
}

#[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
async fn accept(listener: &TcpListener) -> Seen {
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("a session connects").unwrap();
    let (mut query, mut authorization) = (String::new(), String::new());
    let look = |request: &Request, response: Response| {
        query = request.uri().query().unwrap_or_default().to_owned();
        let header = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        authorization = header.unwrap_or_default();
        Ok(response)
    };
    let socket = accept_hdr_async(stream, look).await.unwrap();
    Seen { query, authorization, socket }
}

async fn publish(seen: &mut Seen, message: Value) {
    seen.socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn shows(subscription: &mut paceline::Subscription<Value>, wanted: &Value) {
    let shown = async {
        while subscription.current().data() != Some(wanted) {
            subscription.changed().await.unwrap();
        }
    };
    timeout(PATIENCE, shown).await.unwrap_or_else(|_| panic!("{wanted} is not shown"));
}

#[tokio::test]
async fn two_sessions_share_the_upstream_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // PATH is a variable that every process has.
    let file = write(
        &dir,
        &format!(
            r#"
[secrets.api]
env = "PATH"
[upstreams.feed]
protocol = "websocket"
url = "ws://127.0.0.1:{port}/ws?v=1"
headers = {{ Authorization = "Bearer {{secret:api}}" }}
position = {{ epoch = "$.stream", offset = "$.seq", resume_query = "since", continuity = "proven" }}
envelope = {{ type = "$.kind", data = "$.data" }}
[[routes]]
upstream = "feed"
name = ["UPDATE"]
set = [{{ key = ["packages", "$.id"], version = "$.seq" }}]
event = {{ stream = "updates", data = "$.id" }}
[[routes]]
upstream = "feed"
when = '$.kind == "PROGRESS"'
merge = [{{ key = ["packages", "$.id"], value = {{ progress = "$.percent" }} }}]
"#
        ),
    );
    let join = |label: &str| {
        let state = dir.path().join("state");
        std::fs::create_dir_all(&state).unwrap();
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        Session::builder("test").state_dir(state).label(label).config_file(&file).from_env().join()
    };
    let one = join("one").await.unwrap();
    let mut server = accept(&listener).await;
    assert_eq!(server.query, "v=1");
    assert_eq!(server.authorization, format!("Bearer {}", std::env::var("PATH").unwrap()));
    let two = join("two").await.unwrap();
    let mut package = two.query(key!["packages", 7]).subscribe::<Value>();
    publish(&mut server, json!({"kind":"UPDATE","stream":"a","seq":1,"id":7,"data":{"status":"new"}})).await;
    shows(&mut package, &json!({"status":"new"})).await;
    publish(&mut server, json!({"kind":"PROGRESS","stream":"a","seq":2,"id":7,"percent":50})).await;
    shows(&mut package, &json!({"status":"new","progress":50})).await;

    // The first leaves; its heir goes on where the wire was.
    let goes_on = async {
        while server.socket.next().await.is_some_and(|frame| frame.is_ok()) {}
        drop(server);
        let mut server = accept(&listener).await;
        assert_eq!(server.query, "v=1&since=2");
        publish(&mut server, json!({"kind":"UPDATE","stream":"a","seq":3,"id":7,"data":{"status":"old"}}))
            .await;
        shows(&mut package, &json!({"status":"old"})).await;
    };
    let (left, ()) = tokio::join!(one.leave(), goes_on);
    left.unwrap();
    two.leave().await.unwrap();
}

#[tokio::test]
async fn what_this_build_lacks_is_refused_by_name_and_nothing_joins() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir,
        "[upstreams.events]\nprotocol = \"sse\"\nurl = \"https://api.example.com/\"\nconnect_when = \"subscribed\"\n\
         [outbox]\nattempts = 3\n",
    );
    let state = dir.path().join("state");
    let refused = Session::builder("test").state_dir(&state).config_file(&file).join().await;
    let Err(Error::Config(error)) = refused else { panic!("{refused:?}") };
    assert!(error.problems.iter().all(|problem| problem.kind == ProblemKind::Unbuilt), "{error}");
    let text = error.to_string();
    for part in ["needs a build with connecting on demand", "needs a build with the outbox"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.contains(&format!("{}:4:16: upstreams.events.connect_when", file.display())), "{text}");
    assert!(!state.exists(), "nothing was made");
}

#[tokio::test]
async fn the_complete_example_is_refused_for_each_part_that_is_not_built() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, include_str!("../../../examples/paceline.toml"));
    let refused = Session::builder("test").state_dir(dir.path()).config_file(&file).join().await;
    let text = refused.map(|_| ()).unwrap_err().to_string();
    let build = paceline::capabilities();
    let unused = [Part::SecretCommands, Part::Keyring, Part::UpstreamTokens];
    let lacking = Part::ALL.iter().filter(|part| !build.has(**part) && !unused.contains(part));
    let mut count = 0;
    for part in lacking {
        assert!(text.contains(&format!("needs a build with {part}\n")), "{part}: {text}");
        count += 1;
    }
    assert_eq!(text.matches("needs a build with").count(), count, "{text}");
}

#[tokio::test]
async fn a_file_or_secret_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.toml");
    let refused = Session::builder("test").state_dir(dir.path()).config_file(&missing).join().await;
    assert!(matches!(&refused, Err(Error::ConfigFile { path, .. }) if *path == missing), "{refused:?}");

    let text = "[secrets.api]\nenv = \"PACELINE_TEST_IS_NOT_SET\"\n[upstreams.feed]\nprotocol = \"websocket\"\n\
        url = \"ws://127.0.0.1:1/\"\nheaders = { Authorization = \"{secret:api}\" }\n";
    let file = write(&dir, text);
    let builder = || Session::builder("test").state_dir(dir.path()).config_file(&file);
    let refused = builder().join().await.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("`from_env` was not called"), "{refused}");
    let refused = builder().from_env().join().await.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("set the variable PACELINE_TEST_IS_NOT_SET"), "{refused}");
}
