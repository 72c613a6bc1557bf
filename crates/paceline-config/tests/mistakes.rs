//! What is told of mistakes: the place, the key, what was found, what is allowed, what comes nearest, and what to do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use paceline_config::{Capabilities, ConfigError, Draft, Problem, ProblemKind, Source};

fn problems(text: &str) -> Vec<Problem> {
    let read = Draft::new([Source::named("f", text)]).and_then(|draft| draft.validate(&Capabilities::all()));
    match read {
        Ok(_) => Vec::new(),
        Err(ConfigError { problems }) => problems,
    }
}

/// The one problem of a text, as it is shown.
fn told(text: &str) -> String {
    let problems = problems(text);
    assert_eq!(problems.len(), 1, "{text}\n{problems:#?}");
    problems[0].to_string()
}

const FEED: &str = "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"wss://h/ws\"\n";

fn feed(more: &str) -> String {
    format!("{FEED}{more}")
}

fn route(more: &str) -> String {
    feed(&format!("[[routes]]\nupstream = \"feed\"\n{more}"))
}

#[test]
fn keys_and_words_are_told_their_nearest() {
    let cases = [
        ("[grup]\n", "f:1:2: grup: unknown key\n    did you mean `group`?\n"),
        (
            "[upstreams.feed]\nurl = \"wss://h/\"\n",
            "f:1:1: upstreams.feed.protocol: the key `protocol` is missing\n    allowed: `websocket`, `sse`, `pusher`",
        ),
        (
            "[upstreams.feed]\nprotocol = \"websockets\"\n",
            "f:2:12: upstreams.feed.protocol: does not take \"websockets\"\n    did you mean `websocket`?",
        ),
        (
            "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"https://h/ws\"\n",
            "f:3:7: upstreams.feed.url: is a URL of the scheme \"https\"\n    did you mean `wss://h/ws`?",
        ),
        (
            "[group]\nprofile = \"prd\"\n[profiles.prod]\n",
            "f:2:11: group.profile: refers to \"prd\", and no [profiles.prd] is declared\n    did you mean `prod`?\n    allowed: prod",
        ),
        ("[upstreams.Feed]\n", "f:1:12: upstreams.Feed: \"Feed\" is no name\n    did you mean `feed`?"),
        (
            "[preferences]\nbattery_saver_below = 20\n",
            "f:2:23: preferences.battery_saver_below: does not take the number 20\n    allowed: number from 0.0 to 1.0",
        ),
        (
            "[outbox]\nkeep_done = 7\n",
            "f:2:13: outbox.keep_done: the number 7 has no unit\n    did you mean `\"7s\"`?",
        ),
        (
            "[periodic.x]\nmin_interval = \"1h\"\nrun = [\"outbox-cleanpu\"]\n",
            "f:3:8: periodic.x.run[0]: does not take \"outbox-cleanpu\"\n    did you mean `outbox-cleanup`?",
        ),
        (
            "[periodic.x]\nmin_interval = \"1h\"\nrun = [\"refresh:contnt\"]\n[resources.content]\n",
            "f:3:8: periodic.x.run[0]: refers to \"contnt\", and no [resources.contnt] is declared\n    did you mean `content`?",
        ),
        (
            "[periodic.x]\nmin_interval = \"1h\"\nrun = [\"outbox-cleanup\"]\nallow_if = \"periodic_sync_\"\n",
            "f:4:12: periodic.x.allow_if: does not take \"periodic_sync_\"\n    did you mean `periodic_sync`?",
        ),
        ("schema = 2\n", "f:1:10: schema: does not take the number 2\n    allowed: 1"),
        (
            "[resources.a]\nfetch = { http = \"main\", path = \"/x\" }\n",
            "f:2:18: resources.a.fetch.http: refers to \"main\", and no [http.main] is declared\n    allowed: none is declared",
        ),
        (
            "[profiles.dev]\nresources = { proces = { stale_time = \"1m\" } }\n[resources.process]\n",
            "f:2:24: profiles.dev.resources.proces: changes the resource \"proces\", and no [resources.proces] is declared\n    did you mean `process`?",
        ),
    ];
    for (text, expected) in cases {
        let told = told(text);
        assert!(told.starts_with(expected), "{text}\n{told}\n{expected}");
    }
}

#[test]
fn an_action_without_quotes_is_told_how_to_write_it() {
    let told = told("[resources.process.list]\nstale_time = \"1m\"\n");
    assert!(told.ends_with("to do: an action is written [resources.\"process.list\"]"), "{told}");
}

#[test]
fn names_that_nothing_binds_are_told_what_is_bound() {
    let cases = [
        (route("channel = \"org.{org}\"\ninvalidate = [{ key = [\"labels\", \"{ogr}\"] }]\n"), "f:7:23: routes[0].invalidate[0].key: fills in {ogr}, and nothing binds it\n    did you mean `org`?"),
        (route("channel = \"org.{org}\"\nwhen = \"key.id == 1\"\nevent = { stream = \"x\" }\n"), "f:7:8: routes[0].when: asks for key.id, and nothing binds \"id\"\n    allowed: org"),
        (route("when = \"error\"\nevent = { stream = \"x\" }\n"), "f:6:8: routes[0].when: asks for `error`, and no message is the error of a fetch"),
        (feed("headers = { X = \"{licence}\" }\nper = [\"license\"]\n"), "f:4:17: upstreams.feed.headers.X: fills in {licence}, and nothing binds it\n    did you mean `license`?"),
        ("[http.m]\nbase = \"https://h\"\n[resources.a]\nkey = [\"a\", \"{id}\"]\nfetch = { http = \"m\", path = \"/a/{di}\" }\n".to_owned(), "f:5:30: resources.a.fetch.path: fills in {di}, and the resource's key does not bind it\n    did you mean `id`?"),
        ("[resources.a]\nkey = [\"a\", \"{filter}\"]\npoll = { rules = [{ when = 'key.filte == 1', stop = true }], otherwise = \"1s\" }\n".to_owned(), "f:3:28: resources.a.poll.rules[0].when: asks for key.filte, and nothing binds \"filte\"\n    did you mean `filter`?"),
        ("[resources.a]\ntags = [\"licence\"]\ndepends_on = [{ tag = \"license\" }]\n".to_owned(), "f:3:23: resources.a.depends_on[0].tag: refers to the tag \"license\", which no resource has\n    did you mean `licence`?"),
        ("[resources.a]\nkey = [\"a\", \"{id}\"]\ndepends_on = [{ key = [\"b\", \"{di}\"] }]\n".to_owned(), "f:3:23: resources.a.depends_on[0].key: fills in {di}, and the resource's key does not bind it\n    did you mean `id`?"),
        ("[resources.a]\nkey = [\"a\", \"{id}\"]\ndepends_on = [{ key = [\"b\", \"x{id}\"] }]\n".to_owned(), "f:3:23: resources.a.depends_on[0].key: \"x{id}\" is neither a text without braces nor a whole segment\n    to do: fill in a segment as a whole"),
        ("[resources.a]\nkey = [\"a\", \"{id}\"]\ndepends_on = [{ key = [\"b\", { of = \"{id}\" }] }]\n".to_owned(), "f:3:23: resources.a.depends_on[0].key: \"{id}\" is neither a text without braces nor a whole segment"),
        ("[resources.a]\ndepends_on = [{ key = [\"$.id\"] }]\n".to_owned(), "f:2:23: resources.a.depends_on[0].key: takes \"$.id\" for a path, and there is no message"),
        (feed("headers = { X = \"{secret:api}\" }\n[secrets.app]\nenv = \"X\"\n"), "f:4:17: upstreams.feed.headers.X: refers to \"api\", and no [secrets.api] is declared\n    did you mean `app`?"),
        (feed("fallback = [\"fed_sse\"]\n[upstreams.feed_sse]\nprotocol = \"sse\"\nurl = \"https://h/\"\n"), "f:4:13: upstreams.feed.fallback[0]: refers to \"fed_sse\", and no [upstreams.fed_sse] is declared\n    did you mean `feed_sse`?"),
    ];
    for (text, expected) in cases {
        let found = problems(&text);
        let told = found.first().map(ToString::to_string).unwrap_or_default();
        assert!(told.starts_with(expected), "{text}\n{found:#?}\n{expected}");
    }
}

#[test]
fn a_relation_names_both_places() {
    let cases = [
        (feed("heartbeat = { every = \"30s\", dead_after = \"30s\" }\n"), "upstreams.feed.heartbeat.dead_after", "upstreams.feed.heartbeat.every"),
        (feed("backoff = { base = \"31s\" }\n"), "upstreams.feed.backoff.base", "upstreams.feed.backoff.cap"),
        (feed("position = { offset = \"$.n\", resume_query = \"since\" }\n"), "upstreams.feed.position.resume_query", "upstreams.feed.position.continuity"),
        (feed("position = { offset = \"$.n\", continuity = \"proven\" }\n"), "upstreams.feed.position.resume_query", "upstreams.feed.position.continuity"),
        ("[defaults]\nretry = { base = \"2s\", cap = \"1s\" }\n".to_owned(), "defaults.retry.base", "defaults.retry.cap"),
        ("[defaults]\nrefresh = { concurrent = 6 }\n".to_owned(), "defaults.refresh.concurrent", "defaults.refresh.batch"),
        ("[defaults]\nrefresh = { retry_interval = \"29s\" }\n".to_owned(), "defaults.refresh.retry_interval", "defaults.refresh.check_interval"),
        ("[outbox]\nbackoff = { cap = \"500ms\" }\n".to_owned(), "outbox.backoff.cap", "outbox.backoff.base"),
        ("[preferences]\npoll_background = \"4s\"\n".to_owned(), "preferences.poll_background", "preferences.poll_active"),
        ("[secrets.a]\nenv = \"A\"\ncommand = [\"a\"]\n".to_owned(), "secrets.a.command", "secrets.a.env"),
        ("[upstreams.p]\nprotocol = \"pusher\"\nkey = \"k\"\ncluster = \"eu\"\nhost = \"h\"\n".to_owned(), "upstreams.p.host", "upstreams.p.cluster"),
        ("[upstreams.p]\nprotocol = \"pusher\"\nkey = \"k\"\ncluster = \"eu\"\n[[routes]]\nupstream = \"p\"\nchannel = \"private-x\"\nevent = { stream = \"s\" }\n".to_owned(), "routes[0].channel", "upstreams.p"),
        ("[resources.a]\npoll = { otherwise = \"60s\", background = \"30s\" }\n".to_owned(), "resources.a.poll.background", "resources.a.poll.otherwise"),
        ("[resources.a]\npoll = { otherwise = \"60s\", idle_after = \"5m\" }\n".to_owned(), "resources.a.poll.idle_after", "resources.a.poll.mode"),
        ("[resources.a]\npoll = { rules = [{ when = \"error\", stop = true, every = \"1s\" }] }\n".to_owned(), "resources.a.poll.rules[0].every", "resources.a.poll.rules[0].stop"),
        ("[http.m]\nbase = \"https://h\"\n[tags.t]\nmode = \"batch\"\npost = { http = \"m\", path = \"/x\", field = \"f\" }\n".to_owned(), "tags.t.post.field", "tags.t.mode"),
        ("[resources.a]\nkey = [\"x\", \"{a}\"]\n[resources.b]\nkey = [\"x\", \"{b}\"]\n".to_owned(), "resources.b.key", "resources.a.key"),
        ("[upstreams.a]\nprotocol = \"sse\"\nurl = \"https://h/\"\nfallback = [\"b\"]\n[upstreams.b]\nprotocol = \"sse\"\nurl = \"https://h/b\"\nfallback = [\"a\"]\n".to_owned(), "upstreams.a.fallback[0]", "upstreams.b.fallback"),
    ];
    for (text, key, related) in cases {
        let found = problems(&text);
        let problem = found.first().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(problem.key, key, "{text}\n{found:#?}");
        assert_eq!(problem.related.first().map(|(key, _)| key.as_str()), Some(related), "{text}\n{found:#?}");
        assert!(problem.origin.place().is_some(), "{problem}");
    }
}

#[test]
fn just_inside_a_relation_nothing_is_wrong() {
    for text in [
        feed("heartbeat = { every = \"30s\", dead_after = \"31s\" }\n"),
        feed("backoff = { base = \"30s\" }\n"),
        feed("position = { offset = \"$.n\", resume_query = \"since\", continuity = \"unproven\" }\n"),
        "[defaults]\nrefresh = { concurrent = 5, retry_interval = \"30s\" }\n".to_owned(),
        "[preferences]\npoll_background = \"5s\"\n".to_owned(),
        "[upstreams.p]\nprotocol = \"pusher\"\nkey = \"k\"\ncluster = \"eu\"\nauth = { endpoint = \"https://h/a\" }\n[[routes]]\nupstream = \"p\"\nchannel = \"private-x\"\nevent = { stream = \"s\" }\n".to_owned(),
        "[resources.a]\npoll = { otherwise = \"60s\", background = \"60s\" }\n".to_owned(),
        "[resources.a]\npoll = { mode = \"smart\", otherwise = \"60s\", idle_after = \"5m\" }\n".to_owned(),
        "[resources.a]\nkey = [\"x\", \"{a}\"]\n[resources.b]\nkey = [\"x\", \"{b}\", \"..\"]\n".to_owned(),
    ] {
        assert_eq!(problems(&text), [], "{text}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_their_order() {
    let text = "[group]\nnmae = \"x\"\nspawn = \"yes\"\n[outbox]\nattempts = 0\n[outbox.backoff]\nbase = \"40s\"\njitter = \"fulll\"\n[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"wss://h\"\nurll = 1\n";
    let found: Vec<(String, usize)> = problems(text)
        .iter()
        .map(|problem| (problem.key.clone(), problem.origin.place().unwrap().0))
        .collect();
    let expected = [
        ("group.nmae", 2),
        ("group.spawn", 3),
        ("outbox.attempts", 5),
        ("outbox.backoff.base", 7),
        ("outbox.backoff.jitter", 8),
        ("upstreams.feed.urll", 12),
    ];
    let expected: Vec<(String, usize)> =
        expected.iter().map(|(key, line)| ((*key).to_owned(), *line)).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_could_not_be_read_makes_no_second_problem() {
    for text in [
        feed("heartbeat = { every = \"x\", dead_after = \"1s\" }\n"),
        feed("backoff = { cap = \"x\", base = \"60s\" }\n"),
        route("set = [{ key = \"x\" }]\n"),
        "[resources.a]\nstale_time = 5\n[periodic.p]\nmin_interval = \"1h\"\nrun = [\"refresh:a\"]\n"
            .to_owned(),
        "[resources.a]\ntags = [\"x\"]\ngc_time = 5\n[resources.b]\ndepends_on = [{ tag = \"x\" }]\n"
            .to_owned(),
        "[secrets.a]\nenv = 5\n".to_owned(),
        "[resources.a]\npoll = { otherwise = 5 }\n".to_owned(),
    ] {
        told(&text);
    }
}

#[test]
fn the_same_thing_twice_is_told() {
    let twice = told("[defaults]\nrefetch_on = [\"focus\", \"focus\"]\n");
    assert!(
        twice.starts_with(
            "f:2:24: defaults.refetch_on[1]: names \"focus\" again\n    see defaults.refetch_on[0] at f:2:15"
        ),
        "{twice}"
    );
    let table = problems("[group]\nname = \"a\"\n[group]\n");
    assert_eq!(table[0].kind, ProblemKind::Duplicate);
    assert_eq!(
        table[0].to_string(),
        "f:3:2: group: is here for the second time\n    see group at f:1:2\n    to do: leave one out, or merge them"
    );
}

#[test]
fn no_message_shows_a_credential() {
    for text in [
        feed("headers = { Authorization = \"hunter2\\n\" }\n"),
        feed("headers = { Authorization = \"hunter2 {secret:NO}\" }\n"),
        feed("headers = { Authorization = \"hunter2 {token.x}\" }\n"),
        feed("headers = { Authorization = \"hunter2 {secret:none}\" }\n"),
        feed("headers = { Authorization = [\"hunter2\"] }\n"),
        "[http.m]\nbase = \"https://me:hunter2@h\"\n".to_owned(),
    ] {
        let shown = format!("{} {:?}", told(&text), problems(&text));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn no_listing_shows_a_literal_credential() {
    let text = feed("headers = { Authorization = \"Bearer hunter2\", X-Client = \"me\" }\n");
    let config = Draft::new([Source::named("f", text)]).unwrap().validate(&Capabilities::all()).unwrap();
    let shown: Vec<String> =
        config.entries().into_iter().map(|entry| format!("{} = {}", entry.key, entry.value)).collect();
    assert!(shown.contains(&"upstreams.feed.headers.Authorization = \"(hidden)\"".to_owned()), "{shown:?}");
    assert!(shown.contains(&"upstreams.feed.headers.X-Client = \"me\"".to_owned()), "{shown:?}");
    assert!(!format!("{shown:?} {config:?}").contains("hunter2"));
}

#[test]
fn tokens_are_clear() {
    let token = "[http.m]\nbase = \"https://h\"\n[secrets.s]\nenv = \"S\"\n[resources.a]\nkind = \"token\"\n\
        fetch = { http = \"m\", method = \"POST\", path = \"/t\" }\ntoken = { seed = \"{secret:s}\" }\n";
    let user = "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"wss://h/ws\"\nheaders = { A = \"{token.access}\" }\n";
    assert_eq!(problems(&format!("{token}{user}")), []);
    assert!(told(user).contains("asks for {token.access}, and no resource is a token"));
    let second = token.split_once("[resources.a]").map(|(_, rest)| format!("[resources.b]{rest}")).unwrap();
    let unclear = told(&format!("{token}{second}{user}"));
    assert!(
        unclear.contains("not clear of which token") && unclear.contains("see resources.a at"),
        "{unclear}"
    );
    for seed in ["{token.refresh}", "{secret:s}{id}"] {
        let told = told(&token.replace("{secret:s}", seed));
        assert!(told.contains("resources.a.token.seed: "), "{told}");
    }
    for (more, what) in [
        ("poll = { otherwise = \"1s\" }\n", "a token has no `poll`"),
        ("persist = {}\n", "a token has no `persist`"),
        ("key = [\"b\", \"{c}\"]\n", "a token has no `key`"),
        ("stale_time = \"1s\"\n", "a token has no `stale_time`"),
    ] {
        let text = token.replace("kind = \"token\"\n", &format!("kind = \"token\"\n{more}"));
        assert!(told(&text).contains(what), "{text}");
    }
}
