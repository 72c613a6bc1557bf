//! Resources of a configuration file, fetched from a real server, alone and together with resources in code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../paceline-upstream/tests/server/mod.rs"]
mod server;

use std::path::PathBuf;

use paceline::{Builder, Error, FailureKind, Freshness, Query, Resource, Session, Staleness, key};
use serde_json::{Value, json};
use server::{Server, answer};
use tempfile::TempDir;

/// A group of its own and a file.
struct Bench {
    dir: TempDir,
    file: PathBuf,
}

impl Bench {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("paceline.toml");
        std::fs::write(&file, text).unwrap();
        Self { dir, file }
    }

    /// A session without the file.
    fn bare(&self) -> Builder {
        let state = self.dir.path().join("state");
        std::fs::create_dir_all(&state).unwrap();
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        Session::builder("test").state_dir(state)
    }

    fn builder(&self) -> Builder {
        self.bare().config_file(&self.file).from_env()
    }
}

/// A file with one server, whose requests carry what the variable PATH holds, which every process has.
fn file(base: &str, more: &str) -> Bench {
    Bench::new(&format!(
        "[secrets.api]\nenv = \"PATH\"\n\
         [http.main]\nbase = \"{base}\"\nheaders = {{ Authorization = \"Bearer {{secret:api}}\" }}\n{more}"
    ))
}

const PACKAGES: &str = r#"
[resources.packages]
key = ["packages", "{id}"]
stale_time = "1h"
fetch = { http = "main", path = "/packages/{id}", query = { part = "all" }, etag = true }
"#;

async fn value(query: &Query, fresh: Freshness) -> (Value, bool) {
    let fetched = query.fetch::<Value>(fresh).await.unwrap();
    (fetched.value().clone(), fetched.is_cached)
}

async fn failure(query: &Query) -> (FailureKind, String) {
    match query.fetch::<Value>(Freshness::by_rules()).await {
        Err(Error::Fetch(failure)) => (failure.kind, failure.why),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_is_all_that_sessions_need_to_share_requests() {
    let mut server = Server::start(|asked| match asked.headers.get("if-none-match") {
        Some(_) => answer("304 Not Modified", &[], ""),
        None => answer("200 OK", &["ETag: \"v1\""], "{\"id\":7}"),
    })
    .await;
    let bench = file(&server.base, PACKAGES);
    let one = bench.builder().join().await.unwrap();
    let two = bench.builder().join().await.unwrap();
    let observer = bench.bare().observer().join().await.unwrap();
    let of = |session: &Session| session.query(key!["packages", 7]);
    assert_eq!(value(&of(&two), Freshness::by_rules()).await, (json!({"id":7}), false));
    for session in [&one, &two, &observer] {
        assert_eq!(value(&of(session), Freshness::by_rules()).await, (json!({"id":7}), true));
    }
    let asked = server.asked.recv().await.unwrap();
    assert_eq!(asked.line, "GET /packages/7?part=all");
    assert_eq!(asked.headers["authorization"], format!("Bearer {}", std::env::var("PATH").unwrap()));
    assert!(asked.headers.contains_key("traceparent"));
    // Asked for anew, the server says that nothing changed.
    let again = of(&one).refetch::<Value>().await.unwrap();
    assert_eq!((again.value(), again.is_cached), (&json!({"id":7}), false));
    assert_eq!(server.asked.recv().await.unwrap().headers["if-none-match"], "\"v1\"");
    assert!(server.asked.try_recv().is_err(), "two requests in all");
}

#[tokio::test]
async fn what_a_server_refuses_reaches_the_caller_with_what_to_do() {
    let server = Server::start(|_| answer("404 Not Found", &[], "{}")).await;
    let bench = file(&server.base, PACKAGES);
    let session = bench.builder().join().await.unwrap();
    let (kind, why) = failure(&session.query(key!["packages", 7])).await;
    assert_eq!(kind, FailureKind::Status(404));
    let words = format!("fetch \"packages\": GET {}/packages/7: 404 Not Found; check the path", server.base);
    assert!(why.starts_with(&words), "{why}");
}

#[tokio::test]
async fn a_secret_that_is_missing_is_told_to_those_who_may_fetch_only() {
    let bench = Bench::new(
        "[secrets.api]\nenv = \"PACELINE_TEST_NO_SUCH_VARIABLE\"\n\
         [http.main]\nbase = \"http://127.0.0.1:9\"\nheaders = { Authorization = \"{secret:api}\" }\n\
         [http.unused]\nbase = \"http://127.0.0.1:9\"\nheaders = { Authorization = \"{secret:api}\" }\n\
         [resources.a]\nfetch = { http = \"main\", path = \"/a\" }\n",
    );
    match bench.builder().join().await {
        Err(Error::Secret { name, why, .. }) => {
            assert_eq!(
                (name.as_str(), why.as_str()),
                ("api", "set the variable PACELINE_TEST_NO_SUCH_VARIABLE")
            );
        }
        other => panic!("{other:?}"),
    }
    let _leads = bench.bare().join().await.unwrap();
    let observer = bench.builder().observer().join().await.unwrap();
    let (kind, _) = failure(&observer.query(key!["a"])).await;
    assert_eq!(kind, FailureKind::NoFetcher);
}

#[tokio::test]
async fn rules_of_a_file_and_a_closure_in_code_are_one_resource() {
    let bench = Bench::new(
        "[resources.packages]\nkey = [\"p\", \"{id}\", \"..\"]\nstale_time = \"1h\"\nfetch = \"closure\"\n",
    );
    let packages = Resource::new("packages").fetch(|cx| {
        let id = cx.bound("id").cloned();
        async move { Ok(json!({ "id": id })) }
    });
    let session = bench.builder().resource(packages).join().await.unwrap();
    let query = session.query(key!["p", 7]);
    assert_eq!(value(&query, Freshness::by_rules()).await, (json!({"id":7}), false));
    assert_eq!(value(&query, Freshness::by_rules()).await, (json!({"id":7}), true), "fresh for an hour");
}

#[tokio::test]
async fn code_wins_over_a_file_rule_by_rule() {
    let mut server = Server::start(|_| answer("200 OK", &[], "1")).await;
    let bench = file(&server.base, PACKAGES);
    // Always stale in code; the request is the file's.
    let always = Resource::new("packages").stale(Staleness::Always);
    let session = bench.builder().resource(always).join().await.unwrap();
    let query = session.query(key!["packages", 7]);
    for _ in 0..2 {
        assert_eq!(value(&query, Freshness::by_rules()).await, (json!(1), false));
        server.asked.recv().await.unwrap();
    }
    session.leave().await.unwrap();

    // A function of the value decides, of a request of the file too.
    let bench = file(&server.base, &PACKAGES.replace("1h", "0s"));
    let of_data = Resource::new("packages").stale_of(|data| match data {
        Value::Number(_) => Staleness::Never,
        _ => Staleness::Always,
    });
    let session = bench.builder().resource(of_data).join().await.unwrap();
    let query = session.query(key!["packages", 7]);
    assert_eq!(value(&query, Freshness::by_rules()).await, (json!(1), false));
    assert_eq!(value(&query, Freshness::by_rules()).await, (json!(1), true));
    server.asked.recv().await.unwrap();
    session.leave().await.unwrap();

    // A closure in code is asked instead of the server.
    let bench = file(&server.base, PACKAGES);
    let closure = Resource::new("packages").fetch(|_| async { Ok("code") });
    let session = bench.builder().resource(closure).join().await.unwrap();
    let query = session.query(key!["packages", 7]);
    assert_eq!(value(&query, Freshness::by_rules()).await, (json!("code"), false));
    assert!(server.asked.try_recv().is_err());
}

#[tokio::test]
async fn a_closure_is_told_the_validator_of_what_is_held() {
    use paceline::Found;

    let bench = Bench::new("");
    let resource = Resource::new("packages").stale(Staleness::Never).fetch_conditional(|cx| {
        let held = cx.etag().to_owned();
        async move {
            Ok(match held.as_str() {
                "" => Found::value(1).etag("v1"),
                "v1" => Found::unchanged(),
                other => Found::value(2).etag(other),
            })
        }
    });
    let session = bench.bare().resource(resource).join().await.unwrap();
    let query = session.query(key!["packages", 7]);
    assert_eq!(value(&query, Freshness::by_rules()).await, (json!(1), false));
    let again = query.refetch::<Value>().await.unwrap();
    assert_eq!((again.value(), again.is_cached), (&json!(1), false));
    let third = query.refetch::<Value>().await.unwrap();
    assert_eq!(third.value(), &json!(1), "the validator is kept");
}
