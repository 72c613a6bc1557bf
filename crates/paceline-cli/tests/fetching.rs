//! Commands about values that a file says how to fetch: the coordinator asks a real server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../paceline-upstream/tests/server/mod.rs"]
mod server;

mod common;

use common::{Scratch, check};
use serde_json::json;
use server::{Server, answer};

/// A user's own file, which every command reads, about resources of this server.
fn scratch(base: &str) -> Scratch {
    let scratch = Scratch::new();
    let directory = scratch.path().join("config").join("paceline");
    std::fs::create_dir_all(&directory).unwrap();
    let file = format!(
        r#"[group]
profile = "still"
[http.main]
base = "{base}"
[resources.packages]
key = ["packages", "{{id}}"]
stale_time = "0s"
retry = {{ times = 0 }}
fetch = {{ http = "main", path = "/packages/{{id}}" }}
[resources.report]
depends_on = [{{ key = ["packages"] }}]
[profiles.still]
resources = {{ packages = {{ stale_time = "never" }} }}
"#
    );
    std::fs::write(directory.join("paceline.toml"), file).unwrap();
    scratch
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_fetched_once_by_the_coordinator_and_anew_when_asked_to() {
    let mut server = Server::start(|asked| match asked.line.as_str() {
        "GET /packages/8" => answer("503 Service Unavailable", &["Retry-After: 0"], "{}"),
        _ => answer("200 OK", &[], "{\"id\":7}"),
    })
    .await;
    let scratch = scratch(&server.base);
    let _coordinator = scratch.coordinator();
    let got = scratch.run(&["get", "packages/7"]);
    assert_eq!((got.code, got.out.as_str()), (0, "{\"id\":7}\n"), "{}", got.err);
    assert_eq!(scratch.run(&["get", "packages/7"]).out, "{\"id\":7}\n");
    server.asked.recv().await.unwrap();
    assert!(server.asked.try_recv().is_err(), "the profile calls it fresh for ever");

    assert_eq!(scratch.run(&["get", "packages/7", "--max-age", "0s"]).code, 0);
    server.asked.recv().await.unwrap();
    let refetched = scratch.json(&["refetch", "packages"]);
    check("refetch", &refetched);
    assert_eq!((&refetched["ok"], &refetched["failed"]), (&json!(1), &json!(0)));
    server.asked.recv().await.unwrap();

    let failed = scratch.run(&["refetch", "packages/8", "--json"]);
    let document = serde_json::from_str(&failed.out).unwrap();
    check("refetch", &document);
    assert_eq!((failed.code, &document["failed"]), (1, &json!(1)), "{}", failed.err);
    let why = document["failures"][0]["why"].as_str().unwrap();
    assert!(why.contains("/packages/8: 503 Service Unavailable"), "{why}");

    let missing = scratch.run(&["get", "nothing"]);
    assert_eq!((missing.code, missing.out.as_str()), (1, ""));
    assert!(missing.err.contains("no session can fetch nothing"), "{}", missing.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_shows_what_an_invalidation_reaches_and_changes_nothing() {
    let server = Server::start(|_| answer("200 OK", &[], "1")).await;
    let scratch = scratch(&server.base);
    let _coordinator = scratch.coordinator();
    assert_eq!(scratch.run(&["get", "packages/7"]).code, 0);
    assert_eq!(scratch.run(&["set", "report/1", "2"]).code, 0);
    let preview = scratch.json(&["invalidate", "packages/7", "--preview"]);
    check("preview", &preview);
    let reached: Vec<_> =
        preview["reached"].as_array().unwrap().iter().map(|line| (&line["depth"], &line["key"])).collect();
    assert_eq!(reached, [(&json!(0), &json!(["packages", 7])), (&json!(1), &json!(["report", 1]))]);
    let shown = scratch.run(&["invalidate", "packages", "--preview"]).out;
    assert!(shown.contains("packages/7  marked\n") && shown.contains("\n  report/1  marked  by "), "{shown}");
    assert_eq!(scratch.json(&["get", "packages/7"])["stale"], false, "nothing was marked");
}
