//! GraphQL subscriptions over `graphql-transport-ws`.
//!
//! A message, as routes see it, is `{"type": SUBSCRIPTION, "data": DATA}`, with `errors` where the server has some. There are no
//! positions: every reconnect is a gap. Channels are subscriptions by the names they are declared under.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{hub::Resume, id::Position, limits::VALUE_MAX, time::Time};
use serde_json::{Map, Value, json};

use crate::protocol::{
    Adapter, COMPLAINT_FLOOR, Caps, CloseAction, CloseInfo, ConnectRequest, Frame, Head, Out, Outgoing,
    Protocol, Secret, Transport,
};

/// The server's word that the connection is accepted must be there by then.
const ACK_TIMEOUT: Duration = Duration::from_secs(20);
/// Silence after which the server is pinged.
const IDLE: Duration = Duration::from_secs(30);
/// The answer, or anything else, must be there by then.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// One subscription.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// The document.
    pub query: String,
    /// Its variables.
    pub variables: Map<String, Value>,
}

/// A GraphQL upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphQlSpec {
    /// `ws://` or `wss://`.
    pub url: String,
    /// Headers of the handshake.
    pub headers: Vec<(String, Secret)>,
    /// Sent with `connection_init`: names and values.
    pub init: Vec<(String, Secret)>,
    /// Subscriptions, by name.
    pub operations: BTreeMap<Arc<str>, Operation>,
    /// Longest message taken, bytes.
    pub max_message: usize,
}

impl GraphQlSpec {
    /// An upstream at `url`, without a subscription.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            init: Vec::new(),
            operations: BTreeMap::new(),
            max_message: VALUE_MAX,
        }
    }
}

impl Adapter for GraphQlSpec {
    fn machine(&self) -> Box<dyn Protocol> {
        Box::new(GraphQl::new(self.clone()))
    }
}

/// The machine.
#[derive(Debug)]
pub struct GraphQl {
    spec: GraphQlSpec,
    acknowledged: bool,
    /// Subscriptions that the server has not ended.
    running: Vec<Arc<str>>,
    heard: Time,
    pinged: bool,
    check: Option<Time>,
}

impl GraphQl {
    /// Not connected.
    pub const fn new(spec: GraphQlSpec) -> Self {
        Self { spec, acknowledged: false, running: Vec::new(), heard: Time::ZERO, pinged: false, check: None }
    }

    fn message(&mut self, raw: &Bytes, out: &mut Vec<Out>) {
        let frame: Value = match serde_json::from_slice(raw) {
            Ok(frame) => frame,
            Err(error) => return out.push(Out::Unusable(format!("a message is not JSON: {error}"))),
        };
        let id = frame.get("id").and_then(Value::as_str).unwrap_or_default();
        match frame.get("type").and_then(Value::as_str).unwrap_or_default() {
            "connection_ack" if !self.acknowledged => self.subscribe(out),
            "ping" => out.push(text(&json!({ "type": "pong" }))),
            "next" => {
                let payload = frame.get("payload").cloned().unwrap_or_default();
                let mut value =
                    json!({ "type": id, "data": payload.get("data").cloned().unwrap_or_default() });
                if let Some(errors) = payload.get("errors") {
                    value["errors"] = errors.clone();
                }
                let raw = Bytes::from(value.to_string());
                out.push(Out::Message { value, raw, position: None, live: true });
            }
            "error" => {
                self.end(id);
                let why = frame.get("payload").map(ToString::to_string).unwrap_or_default();
                out.push(Out::Unusable(format!("the subscription {id:?} is refused: {why}")));
            }
            "complete" if self.end(id) => {
                let why = format!("the server ended the subscription {id:?}");
                out.push(Out::Drop(CloseInfo { code: Some(COMPLETED), ..CloseInfo::because(why) }));
            }
            _ => {}
        }
    }

    fn subscribe(&mut self, out: &mut Vec<Out>) {
        self.acknowledged = true;
        self.check = Some(self.heard + IDLE);
        out.push(Out::Joined { resumed: false });
        for (name, operation) in &self.spec.operations {
            let payload = json!({ "query": operation.query, "variables": operation.variables });
            out.push(text(&json!({ "type": "subscribe", "id": &**name, "payload": payload })));
            self.running.push(name.clone());
        }
        out.push(Out::Live);
    }

    fn end(&mut self, id: &str) -> bool {
        let before = self.running.len();
        self.running.retain(|running| **running != *id);
        self.running.len() != before
    }
}

/// Of this side: a subscription that was to go on came to its end.
const COMPLETED: u16 = 3000;

fn text(frame: &Value) -> Out {
    Out::Send(Outgoing::Text(frame.to_string()))
}

impl Protocol for GraphQl {
    fn caps(&self) -> Caps {
        Caps::of(Resume::None)
    }

    fn transport(&self) -> &'static str {
        "graphql"
    }

    fn request(&mut self, _: Option<&Position>) -> ConnectRequest {
        ConnectRequest {
            headers: self.spec.headers.clone(),
            max_message: self.spec.max_message,
            ..ConnectRequest::new(
                Transport::WebSocket(vec!["graphql-transport-ws".to_owned()]),
                &self.spec.url,
            )
        }
    }

    fn on_open(&mut self, now: Time, _: &Head, out: &mut Vec<Out>) {
        self.heard = now;
        self.check = Some(now + ACK_TIMEOUT);
        let mut init = json!({ "type": "connection_init" });
        if !self.spec.init.is_empty() {
            let payload = self.spec.init.iter().map(|(name, value)| (name.clone(), value.reveal().into()));
            init["payload"] = Value::Object(payload.collect());
        }
        out.push(Out::Send(Outgoing::Hidden(Secret::new(init.to_string()))));
    }

    fn on_frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Out>) {
        self.heard = now;
        self.pinged = false;
        match frame {
            Frame::Text(raw) | Frame::Binary(raw) => self.message(&raw, out),
            Frame::Alive | Frame::Chunk(_) | Frame::Answer(_) => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.check
    }

    fn on_deadline(&mut self, now: Time, out: &mut Vec<Out>) {
        if self.check.is_none_or(|check| now < check) {
            return;
        }
        if !self.acknowledged {
            self.check = None;
            return out
                .push(Out::Drop(CloseInfo::because("the server did not accept the connection in time")));
        }
        let idle = self.heard + IDLE;
        let dead = idle + PONG_TIMEOUT;
        if now >= dead {
            self.check = None;
            return out.push(Out::Drop(CloseInfo::because("the server was silent for too long")));
        }
        if now >= idle && !std::mem::replace(&mut self.pinged, true) {
            out.push(text(&json!({ "type": "ping" })));
        }
        self.check = Some(if now >= idle { dead } else { idle });
    }

    fn on_close(&mut self, close: &CloseInfo) -> CloseAction {
        self.acknowledged = false;
        self.running.clear();
        self.pinged = false;
        self.check = None;
        let said = if close.reason.is_empty() { "it does not say why" } else { &close.reason };
        match close.code {
            Some(COMPLETED) => CloseAction::Backoff(COMPLAINT_FLOOR),
            Some(code @ (4400 | 4401 | 4403 | 4406 | 4409 | 4004 | 4005 | 4500)) => {
                let what = match code {
                    4401 | 4403 => "refused the credentials",
                    4406 => "does not speak graphql-transport-ws",
                    4409 => "says that a subscription runs already",
                    4500 => "failed",
                    _ => "does not understand what is asked",
                };
                CloseAction::Stop(format!("the server {what} (code {code}): {said}"))
            }
            // The handshake took too long; too many requests to begin.
            Some(4408 | 4429) => CloseAction::Backoff(COMPLAINT_FLOOR),
            _ => close.action(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> GraphQlSpec {
        let operation = |field: &str| Operation {
            query: format!("subscription {{ {field} }}"),
            variables: Map::from_iter([("id".to_owned(), json!(7))]),
        };
        let operations = ["price", "stock"].map(|name| (Arc::from(name), operation(name)));
        GraphQlSpec {
            init: vec![("token".into(), Secret::new("s3cret"))],
            operations: BTreeMap::from(operations),
            ..GraphQlSpec::new("ws://h/graphql")
        }
    }

    fn frame(machine: &mut GraphQl, now: u64, frame: &Value) -> Vec<Out> {
        let mut out = Vec::new();
        machine.on_frame(
            Time::ZERO + Duration::from_secs(now),
            Frame::Text(frame.to_string().into()),
            &mut out,
        );
        out
    }

    fn sent(out: &Out) -> Value {
        match out {
            Out::Send(Outgoing::Text(text)) => serde_json::from_str(text).unwrap(),
            Out::Send(Outgoing::Hidden(text)) => serde_json::from_str(text.reveal()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn accepted() -> GraphQl {
        let mut machine = GraphQl::new(spec());
        let mut out = Vec::new();
        machine.on_open(Time::ZERO, &Head::default(), &mut out);
        assert_eq!(sent(&out[0]), json!({ "type": "connection_init", "payload": { "token": "s3cret" } }));
        assert!(!format!("{out:?} {machine:?}").contains("s3cret"));
        let out = frame(&mut machine, 1, &json!({ "type": "connection_ack" }));
        assert_eq!((&out[0], &out[3], out.len()), (&Out::Joined { resumed: false }, &Out::Live, 4));
        let payload = json!({ "query": "subscription { price }", "variables": { "id": 7 } });
        assert_eq!(sent(&out[1]), json!({ "type": "subscribe", "id": "price", "payload": payload }));
        assert_eq!(sent(&out[2])["id"], "stock");
        machine
    }

    #[test]
    fn subscriptions_are_asked_for_once_the_connection_is_accepted_and_what_comes_is_a_message() {
        let mut machine = accepted();
        assert_eq!(
            machine.request(None).transport,
            Transport::WebSocket(vec!["graphql-transport-ws".into()])
        );
        let next = json!({ "type": "next", "id": "price", "payload": { "data": { "price": 4 } } });
        let out = frame(&mut machine, 2, &next);
        let [Out::Message { value, raw, position: None, live: true }] = out.as_slice() else {
            panic!("{out:?}")
        };
        assert_eq!(*value, json!({ "type": "price", "data": { "price": 4 } }));
        assert_eq!(serde_json::from_slice::<Value>(raw).unwrap(), *value);
        let next = json!({ "type": "next", "id": "price", "payload": { "data": null, "errors": [{ "message": "no" }] } });
        let out = frame(&mut machine, 2, &next);
        assert!(matches!(&out[0], Out::Message { value, .. } if value["errors"][0]["message"] == "no"));
        assert_eq!(sent(&frame(&mut machine, 3, &json!({ "type": "ping" }))[0]), json!({ "type": "pong" }));
        for odd in
            [json!({ "type": "connection_ack" }), json!({ "type": "pong" }), json!({ "type": 7 }), json!([])]
        {
            assert_eq!(frame(&mut machine, 3, &odd), [], "{odd}");
        }
    }

    #[test]
    fn a_refused_subscription_is_told_and_an_ended_one_is_asked_for_again() {
        let mut machine = accepted();
        let out = frame(
            &mut machine,
            2,
            &json!({ "type": "error", "id": "price", "payload": [{ "message": "no" }] }),
        );
        assert!(
            matches!(out.as_slice(), [Out::Unusable(why)] if why.contains("\"price\"") && why.contains("no"))
        );
        assert_eq!(frame(&mut machine, 2, &json!({ "type": "complete", "id": "price" })), []);
        let out = frame(&mut machine, 2, &json!({ "type": "complete", "id": "stock" }));
        let [Out::Drop(close)] = out.as_slice() else { panic!("{out:?}") };
        assert_eq!(machine.on_close(close), CloseAction::Backoff(COMPLAINT_FLOOR));
    }

    #[test]
    fn silence_is_answered_by_a_ping_and_then_ends_the_connection() {
        let mut machine = accepted();
        let mut out = Vec::new();
        for (second, ping) in [(31, true), (51, false)] {
            let at = Time::ZERO + Duration::from_secs(second);
            assert_eq!(machine.deadline(), Some(at));
            machine.on_deadline(at, &mut out);
            match out.as_slice() {
                [asked] if ping => assert_eq!(sent(asked), json!({ "type": "ping" })),
                [Out::Drop(_)] if !ping => {}
                other => panic!("{second}: {other:?}"),
            }
            out.clear();
        }
        let mut machine = GraphQl::new(spec());
        machine.on_open(Time::ZERO, &Head::default(), &mut out);
        out.clear();
        machine.on_deadline(Time::ZERO + ACK_TIMEOUT, &mut out);
        assert!(matches!(out.as_slice(), [Out::Drop(_)]), "no acknowledgement: {out:?}");
    }

    #[test]
    fn each_close_code_decides_what_follows() {
        let mut machine = GraphQl::new(spec());
        let mut close =
            |code| machine.on_close(&CloseInfo { code: Some(code), ..CloseInfo::because("says so") });
        for code in [4400, 4401, 4403, 4406, 4409, 4004, 4005, 4500] {
            assert!(matches!(close(code), CloseAction::Stop(why) if why.contains("says so")), "{code}");
        }
        for code in [4408, 4429, 1012] {
            assert_eq!(close(code), CloseAction::Backoff(COMPLAINT_FLOOR), "{code}");
        }
        for code in [1000, 1001, 1006, 4499] {
            assert_eq!(close(code), CloseAction::Backoff(Duration::ZERO), "{code}");
        }
    }
}
