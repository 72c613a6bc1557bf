//! What a file that was found in a working directory may not set.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use paceline_config::{Capabilities, Draft, ProblemKind, Reason, Source, Untrusted};

const USER: &str = r#"
[secrets.api]
env = "API"
[upstreams.feed]
protocol = "websocket"
url = "wss://api.example.com/ws"
headers = { Authorization = "Bearer {secret:api}" }
[http.main]
base = "https://api.example.com/v1"
headers = { Authorization = "Bearer {secret:api}" }
[http.open]
base = "https://open.example.com"
"#;

fn asked(found: &str) -> Vec<Untrusted> {
    Draft::new([Source::user("user.toml", USER), Source::found("paceline.toml", found)]).unwrap().untrusted()
}

fn keys(found: &str) -> Vec<(String, Reason)> {
    asked(found).into_iter().map(|it| (it.key, it.why)).collect()
}

#[test]
fn a_found_file_asks_for_commands_credentials_and_servers() {
    use Reason::{Command, Credential, Server};
    let cases: [(&str, &[(&str, Reason)]); 15] = [
        ("[secrets.x]\ncommand = [\"rm\"]\n", &[("secrets.x.command", Command)]),
        ("[secrets.x]\nenv = \"AWS_SECRET\"\n", &[("secrets.x.env", Credential)]),
        ("[secrets.api]\nenv = \"OTHER\"\n", &[("secrets.api.env", Credential)]),
        ("[upstreams.x]\nprotocol = \"websocket\"\nurl = \"wss://evil/\"\n", &[("upstreams.x.url", Server)]),
        ("[upstreams.feed]\nurl = \"wss://evil/\"\n", &[("upstreams.feed.url", Server)]),
        ("[upstreams.feed]\nurl = \"ws://api.example.com/ws\"\n", &[("upstreams.feed.url", Server)]),
        ("[upstreams.feed]\nurl = \"wss://api.example.com:444/ws\"\n", &[("upstreams.feed.url", Server)]),
        ("[http.main]\nbase = \"https://open.example.com\"\n", &[("http.main.base", Server)]),
        (
            "[upstreams.feed]\nheaders = { X = \"{secret:api}\" }\n",
            &[("upstreams.feed.headers.X", Credential)],
        ),
        ("[http.open]\nheaders = { X = \"{token.access}\" }\n", &[("http.open.headers.X", Credential)]),
        (
            "[upstreams.p]\nprotocol = \"pusher\"\nkey = \"k\"\nhost = \"evil\"\nport = 1\nforce_tls = false\nauth = { endpoint = \"https://evil/\" }\n",
            &[
                ("upstreams.p.host", Server),
                ("upstreams.p.port", Server),
                ("upstreams.p.force_tls", Server),
                ("upstreams.p.auth.endpoint", Server),
            ],
        ),
        (
            "[upstreams.p]\nprotocol = \"pusher\"\nkey = \"k\"\ncluster = \"eu\"\n",
            &[("upstreams.p.cluster", Server)],
        ),
        (
            "[resources.x]\nfetch = { http = \"main\", method = \"DELETE\", path = \"/account\" }\n",
            &[("resources.x.fetch", Credential)],
        ),
        (
            "[tags.x]\nmode = \"batch\"\npost = { http = \"main\", path = \"/a\" }\n",
            &[("tags.x.post", Credential)],
        ),
        ("[resources.t]\ntoken = { seed = \"{secret:api}\" }\n", &[("resources.t.token.seed", Credential)]),
    ];
    for (found, expected) in cases {
        let expected: Vec<(String, Reason)> =
            expected.iter().map(|(key, why)| ((*key).to_owned(), *why)).collect();
        assert_eq!(keys(found), expected, "{found}");
    }
}

#[test]
fn a_found_file_may_set_the_rest() {
    for found in [
        "[group]\nname = \"other\"\n",
        "[upstreams.feed]\nurl = \"wss://API.example.com:443/other?x=1\"\nexclusive = false\nheaders = { X = \"plain\" }\n",
        "[secrets.api]\nenv = \"API\"\n",
        "[http.main]\nbase = \"https://api.example.com/v2\"\n",
        "[resources.x]\nstale_time = \"1m\"\nfetch = { http = \"open\", path = \"/x\" }\n",
        "[resources.x]\nfetch = \"closure\"\n",
        "[[routes]]\nupstream = \"feed\"\nmerge = [{ key = [\"a\"], value = \"{secret:api}\" }]\n",
        "[outbox]\nattempts = 2\n[preferences]\nperiodic_sync = false\n",
    ] {
        assert_eq!(keys(found), [], "{found}");
    }
}

#[test]
fn an_untrusted_value_is_refused_with_what_to_do_and_a_trusted_file_is_not() {
    let text = "[secrets.x]\ncommand = [\"rm\"]\n";
    let error = Draft::new([Source::found("dir/paceline.toml", text)])
        .unwrap()
        .validate(&Capabilities::all())
        .unwrap_err();
    assert_eq!(error.problems.len(), 1);
    assert_eq!(error.problems[0].kind, ProblemKind::Untrusted);
    let told = error.to_string();
    assert!(told.contains("dir/paceline.toml:2:11: secrets.x.command: runs a command"), "{told}");
    assert!(told.contains("run `paceline trust dir/paceline.toml`"), "{told}");
    let named = Draft::new([Source::named("dir/paceline.toml", text)]).unwrap();
    assert!(named.validate(&Capabilities::all()).is_ok() && named.untrusted().is_empty());
}

#[test]
fn trust_is_for_these_values_and_no_others() {
    let base = "[secrets.x]\ncommand = [\"pass\", \"x\"]\n[upstreams.y]\nprotocol = \"websocket\"\nurl = \"wss://h/a\"\n";
    let digest = |text: &str| Untrusted::digest(&asked(text));
    let other_places =
        format!("# moved\n\n{base}[group]\nspawn = false\n[resources.r]\nstale_time = \"1s\"\n");
    assert_eq!(digest(base), digest(&other_places));
    assert_eq!(digest(base), digest(&base.replace("/a", "/b")), "the same server");
    for (from, to) in [("\"x\"]", "\"y\"]"), ("secrets.x", "secrets.z"), ("//h/", "//i/"), ("wss:", "ws:")] {
        assert_ne!(digest(base), digest(&base.replace(from, to)), "{from} {to}");
    }
}
