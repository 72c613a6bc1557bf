//! Sending one mutation: an attempt, and whether the server may have seen it.
//!
//! A request goes to the address in its record and nowhere else: redirects and proxies of the environment are not followed.
//! Credentials belong to exact origins, are filled in here, and are stored nowhere.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use crate::http::{
    HttpClient, Method, RequestError, Response, StatusCode, Url, cause,
    header::{self, HeaderMap, HeaderName, HeaderValue},
    retry_after,
};
use paceline_channel::template::{Template, Vault};
use paceline_query::{
    condition::Bindings,
    outbox::{Answer, Record},
};

/// The header that carries the key of a mutation, where no other is named (IETF draft `idempotency-key-header`).
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The answer must be there by then.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an answer that are kept for people.
const TEXT_MAX: usize = 512;

/// One attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// What to send.
    pub record: Record,
    /// The key under which the server applies it once.
    pub key: String,
    /// Without the condition on the version it was made from.
    pub unconditional: bool,
}

/// An attempt under way. Not to be dropped before its end: what becomes of it is then unknown.
pub type Sending = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Sends mutations.
pub trait Sender: Send + Sync {
    /// Makes one attempt. Ends by itself.
    fn send(&self, outgoing: Outgoing) -> Sending;
}

impl fmt::Debug for dyn Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dyn Sender")
    }
}

/// What is added to requests of one origin.
#[derive(Clone)]
pub struct Origin {
    /// `http://` or `https://`, host, and what stands before every path.
    pub base: String,
    /// Headers, with secrets.
    pub headers: Vec<(String, Template)>,
    /// Those secrets, or why they are not there.
    pub vault: Result<Arc<dyn Vault + Send + Sync>, Arc<str>>,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("base", &self.base).finish_non_exhaustive()
    }
}

/// Sends over HTTP.
#[derive(Debug, Clone, Default)]
pub struct HttpSender {
    client: HttpClient,
    origins: Arc<[Origin]>,
}

impl HttpSender {
    /// Sends over the connections of `client`, with what `origins` say of theirs.
    pub fn new(client: HttpClient, origins: impl Into<Arc<[Origin]>>) -> Self {
        Self { client, origins: origins.into() }
    }

    async fn run(&self, outgoing: &Outgoing) -> Answer {
        let prepared = match self.prepare(outgoing) {
            Ok(prepared) => prepared,
            // No attempt will ever be possible: this is the answer to all of them.
            Err(Unsendable::Ever(text)) => {
                return Answer::Response { status: 400, retry_after: None, version: None, text };
            }
            Err(Unsendable::Now(why)) => return Answer::NotSent { why },
        };
        let client = match self.client.without_redirects(prepared.url.scheme() == "https").await {
            Ok(client) => client,
            Err(why) => return Answer::NotSent { why },
        };
        let mut request = client.request(prepared.method, prepared.url).headers(prepared.headers);
        if let Some(body) = prepared.body {
            request = request.body(body);
        }
        match tokio::time::timeout(TIMEOUT, async { Ok(answer(request.send().await?).await) }).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => broken(&error),
            Err(_) => Answer::Lost { why: format!("no answer within {TIMEOUT:?}") },
        }
    }

    fn prepare(&self, outgoing: &Outgoing) -> Result<Prepared, Unsendable> {
        let record = &outgoing.record;
        let url = Url::parse(&record.url).map_err(|error| format!("{:?} is no URL: {error}", record.url))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(format!("{url} is no address of a server; it begins with https://").into());
        }
        let method = Method::try_from(record.method.as_str()).map_err(|error| error.to_string())?;
        let body = record.body.bytes().map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        if let paceline_query::outbox::Body::Json(_) = record.body {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in &record.headers {
            let value = HeaderValue::try_from(value)
                .map_err(|_| format!("the value of the header {name} has characters that are not allowed"))?;
            headers.insert(named(name)?, value);
        }
        for origin in self.origins.iter().filter(|origin| origin.covers(&url)) {
            origin.add_to(&mut headers).map_err(Unsendable::Now)?;
        }
        if let Some(base) = record.base.as_ref().filter(|_| !outgoing.unconditional) {
            let base = HeaderValue::try_from(base)
                .map_err(|_| "the base version has characters that are not allowed".to_owned())?;
            headers.insert(header::IF_MATCH, base);
        }
        if let Some(parent) = record.trace.as_ref().and_then(|trace| HeaderValue::try_from(trace).ok()) {
            headers.insert(HeaderName::from_static("traceparent"), parent);
        }
        let key = HeaderValue::try_from(&outgoing.key).map_err(|error| error.to_string())?;
        headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY), key);
        Ok(Prepared { method, url, headers, body })
    }
}

impl Sender for HttpSender {
    fn send(&self, outgoing: Outgoing) -> Sending {
        let this = self.clone();
        Box::pin(async move { this.run(&outgoing).await })
    }
}

/// Why a record makes no request.
enum Unsendable {
    /// It never will.
    Ever(String),
    /// Something that it needs is missing.
    Now(String),
}

impl From<String> for Unsendable {
    fn from(why: String) -> Self {
        Self::Ever(why)
    }
}

struct Prepared {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<bytes::Bytes>,
}

impl Origin {
    fn covers(&self, url: &Url) -> bool {
        Url::parse(&self.base)
            .is_ok_and(|base| base.origin() == url.origin() && url.path().starts_with(base.path()))
    }

    fn add_to(&self, headers: &mut HeaderMap) -> Result<(), String> {
        if self.headers.is_empty() {
            return Ok(());
        }
        let vault = self.vault.as_ref().map_err(|why| why.to_string())?;
        for (name, template) in &self.headers {
            let value = template.fill_secret(&Bindings::new(), &**vault);
            let value = value.map_err(|error| format!("fill the header {name}: {error}"))?;
            let mut value = HeaderValue::try_from(value.reveal())
                .map_err(|_| format!("the value of the header {name} has characters that are not allowed"))?;
            value.set_sensitive(true);
            headers.insert(named(name)?, value);
        }
        Ok(())
    }
}

fn named(name: &str) -> Result<HeaderName, String> {
    HeaderName::try_from(name).map_err(|_| format!("{name:?} is no name of a header"))
}

async fn answer(mut response: Response) -> Answer {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let version =
        response.headers().get(header::ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut text = Vec::new();
    if !status.is_success() {
        // The status is the answer; half of what follows it, or none, is no failure of its own.
        while text.len() < TEXT_MAX
            && let Ok(Some(chunk)) = response.chunk().await
        {
            text.extend_from_slice(&chunk[..chunk.len().min(TEXT_MAX - text.len())]);
        }
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if status.is_redirection() {
        text = "a redirect, which a mutation does not follow: send it to where it leads".to_owned();
    }
    if status == StatusCode::UNAUTHORIZED && text.is_empty() {
        text = "check the credentials of this server".to_owned();
    }
    Answer::Response { status: status.as_u16(), retry_after, version, text }
}

fn broken(error: &RequestError) -> Answer {
    let why = cause(error);
    if error.is_connect() || error.is_builder() { Answer::NotSent { why } } else { Answer::Lost { why } }
}
