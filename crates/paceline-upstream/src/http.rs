//! Declared HTTP requests that fetch a value.
//!
//! Where a request goes is decided by the declaration alone: names are filled in percent-encoded behind the host,
//! redirects to another origin and proxies of the environment are not followed. Secrets stand in headers and form fields,
//! which nothing shows.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use paceline_channel::{
    protocol::{Call, CloseInfo, ConnectRequest, Head, Reply, Secret},
    template::{FillError, Template, Vault, percent_encode},
};
use paceline_proto::{
    fetch::{FailureKind, FetchFailure, FetchOutcome},
    id::{Trace, Version},
    limits::VALUE_MAX,
};
use paceline_query::condition::Bindings;
use reqwest::{
    Client,
    header::{HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::sync::OnceCell;

use crate::{
    fetch::{FetchContext, Fetcher, Fetching, failure},
    tls,
    transport::{failed, invalid},
};

pub use reqwest::Method;
pub(crate) use reqwest::{Error as RequestError, Response, StatusCode, Url, header};

/// Look-up, connect and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that vanished is noticed by the kernel too.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Idle connections kept per server: one for the background, one for who waits.
const IDLE_MAX: usize = 2;
/// Redirects followed within an origin.
const REDIRECTS_MAX: usize = 5;
/// Bytes of an answer without success that are kept for who asked.
const DETAIL_MAX: usize = 16 << 10;
/// Longest wait that a server can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Connections to servers, shared by the fetchers of a session. Connects to nobody before the first request.
#[derive(Clone, Default)]
pub struct HttpClient(Arc<Clients>);

#[derive(Default)]
struct Clients {
    plain: OnceCell<Client>,
    secure: OnceCell<Client>,
    plain_exact: OnceCell<Client>,
    secure_exact: OnceCell<Client>,
}

/// A request for the values of one resource.
#[derive(Clone)]
pub struct HttpRequest {
    /// Its name, for errors.
    pub resource: String,
    /// The method.
    pub method: Method,
    /// `http://` or `https://`, host, and what stands before every path.
    pub base: String,
    /// Path behind it.
    pub path: Template,
    /// Parameters of the URL.
    pub query: Vec<(String, Template)>,
    /// Fields of the form that is sent, if there are any.
    pub form: Vec<(String, Template)>,
    /// Headers; of two of the same name the later one counts.
    pub headers: Vec<(String, Template)>,
    /// Asks only for what changed, if the value that is held came with a validator.
    pub etag: bool,
    /// The answer must be there by then.
    pub timeout: Duration,
}

/// Makes a declared request.
#[derive(Clone)]
pub struct HttpFetcher {
    request: Arc<HttpRequest>,
    vault: Arc<dyn Vault + Send + Sync>,
    client: HttpClient,
}

impl HttpFetcher {
    /// A fetcher that makes `request` over the connections of `client`, with secrets of `vault`.
    pub fn new(request: HttpRequest, vault: Arc<dyn Vault + Send + Sync>, client: HttpClient) -> Self {
        Self { request: Arc::new(request), vault, client }
    }

    /// The same request with other secrets.
    #[must_use]
    pub fn with_vault(&self, vault: Arc<dyn Vault + Send + Sync>) -> Self {
        Self { vault, ..self.clone() }
    }

    /// Makes the request where it matters whether the server may have seen it. Does not end by itself.
    pub async fn once(&self, context: &FetchContext) -> Once {
        let not_sent = |failed| Once::NotSent(failed);
        let call = match Exchange::new(&self.request, context, &*self.vault) {
            Ok(call) => call,
            Err(failed) => return not_sent(failed),
        };
        let client = match self.client.get(call.url.scheme() == "https").await {
            Ok(client) => client,
            Err(why) => return not_sent(call.failed(FailureKind::Network, &why)),
        };
        let response = match call.request(client).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() || error.is_builder() => return not_sent(call.broken(&error)),
            Err(error) => return Once::Unknown(call.broken(&error)),
        };
        call.answered(response).await.unwrap_or_else(Once::Unknown)
    }
}

/// What became of a request that must not be repeated lightly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Once {
    /// The server answered.
    Answered {
        /// The status.
        status: u16,
        /// All of it, at most [`ANSWER_MAX`].
        body: Bytes,
        /// It asks to wait so long.
        retry_after: Option<Duration>,
    },
    /// The server never saw it.
    NotSent(FetchFailure),
    /// The server may have seen it.
    Unknown(FetchFailure),
}

/// Longest body of a [`Once`]: a few tokens with what belongs to them.
pub const ANSWER_MAX: usize = 32 << 10;

impl Fetcher for HttpFetcher {
    fn fetch(&self, context: FetchContext) -> Fetching {
        let this = self.clone();
        Box::pin(async move { this.run(&context).await.unwrap_or_else(FetchOutcome::Failed) })
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

impl HttpClient {
    pub(crate) async fn get(&self, secure: bool) -> Result<&Client, String> {
        let cell = if secure { &self.0.secure } else { &self.0.plain };
        cell.get_or_try_init(|| Self::make(secure, same_origin())).await
    }

    /// For requests that go to one address only.
    pub(crate) async fn without_redirects(&self, secure: bool) -> Result<&Client, String> {
        let cell = if secure { &self.0.secure_exact } else { &self.0.plain_exact };
        cell.get_or_try_init(|| Self::make(secure, redirect::Policy::none())).await
    }

    async fn make(secure: bool, redirects: redirect::Policy) -> Result<Client, String> {
        if secure {
            // Reads the system's roots, some milliseconds the first time.
            let config = tokio::task::spawn_blocking(tls::client_config).await;
            client((*config.map_err(|error| error.to_string())??).clone(), redirects)
        } else {
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            client(config, redirects)
        }
    }
}

fn same_origin() -> redirect::Policy {
    redirect::Policy::custom(|attempt| {
        let from = attempt.previous().first().map(Url::origin);
        if from != Some(attempt.url().origin()) {
            attempt.stop()
        } else if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error(format!("more than {REDIRECTS_MAX} redirects"))
        } else {
            attempt.follow()
        }
    })
}

fn client(tls: ClientConfig, redirects: redirect::Policy) -> Result<Client, String> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirects)
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("paceline/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEPALIVE)
        .pool_max_idle_per_host(IDLE_MAX)
        .build()
        .map_err(|error| format!("the HTTP client cannot be set up: {}", cause(&error)))
}

impl HttpFetcher {
    async fn run(&self, context: &FetchContext) -> Result<FetchOutcome, FetchFailure> {
        let call = Exchange::new(&self.request, context, &*self.vault)?;
        let exchange = async {
            let client = self
                .client
                .get(call.url.scheme() == "https")
                .await
                .map_err(|why| call.failed(FailureKind::Network, &why))?;
            let response = call.request(client).send().await.map_err(|error| call.broken(&error))?;
            call.read(response).await
        };
        let timeout = self.request.timeout;
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            let why =
                format!("no whole answer within {timeout:?}; raise `timeout` if the server needs longer");
            Err(call.failed(FailureKind::Timeout, &why))
        })
    }
}

/// A request that is filled in.
struct Exchange<'a> {
    resource: &'a str,
    method: Method,
    url: Url,
    headers: HeaderMap,
    form: Option<Secret>,
    conditional: bool,
}

impl<'a> Exchange<'a> {
    fn new(
        request: &'a HttpRequest,
        context: &FetchContext,
        vault: &dyn Vault,
    ) -> Result<Self, FetchFailure> {
        let invalid = |what: &dyn fmt::Display| {
            failure(FailureKind::Invalid, format!("fetch {:?}: {what}", request.resource))
        };
        let url = url(request, &context.bound).map_err(|error| invalid(&error))?;
        let fill = |name: &str, template: &Template| {
            template
                .fill_secret(&context.bound, vault)
                .map_err(|error| invalid(&format!("fill {name}: {error}")))
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        for (name, template) in &request.headers {
            let value = fill(&format!("the header {name}"), template)?;
            let name = HeaderName::try_from(name.as_str())
                .map_err(|_| invalid(&format!("{name:?} is no name of a header")))?;
            let mut value = HeaderValue::try_from(value.reveal()).map_err(|_| {
                invalid(&format!("the value of the header {name} has characters that are not allowed"))
            })?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let etag = request.etag.then(|| HeaderValue::try_from(&*context.etag).ok()).flatten();
        let etag = etag.filter(|etag| !etag.is_empty());
        let conditional = etag.is_some();
        if let Some(etag) = etag {
            headers.insert(header::IF_NONE_MATCH, etag);
        }
        if let Some(parent) = traceparent(context.trace) {
            headers.insert(HeaderName::from_static("traceparent"), parent);
        }
        let mut form = Vec::new();
        for (name, template) in &request.form {
            let value = fill(&format!("the field {name}"), template)?;
            form.push(format!("{}={}", percent_encode(name), percent_encode(value.reveal())));
        }
        let form = (!form.is_empty()).then(|| Secret::new(form.join("&")));
        if form.is_some() {
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.entry(header::CONTENT_TYPE).or_insert(kind);
        }
        let method = request.method.clone();
        Ok(Self { resource: &request.resource, method, url, headers, form, conditional })
    }

    fn request(&self, client: &Client) -> reqwest::RequestBuilder {
        let request = client.request(self.method.clone(), self.url.clone()).headers(self.headers.clone());
        match &self.form {
            Some(form) => request.body(form.reveal().to_owned()),
            None => request,
        }
    }

    async fn answered(&self, mut response: Response) -> Result<Once, FetchFailure> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(&error))? {
            if body.len() + chunk.len() > ANSWER_MAX {
                let why = format!("the answer has more than {ANSWER_MAX} bytes");
                return Err(self.failed(FailureKind::Invalid, &why));
            }
            body.extend_from_slice(&chunk);
        }
        let (status, retry_after) = (response.status().as_u16(), retry_after(response.headers()));
        Ok(Once::Answered { status, body: body.freeze(), retry_after })
    }

    async fn read(&self, mut response: Response) -> Result<FetchOutcome, FetchFailure> {
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && self.conditional {
            return Ok(FetchOutcome::NotModified);
        }
        if !status.is_success() {
            return Err(self.refused(response).await);
        }
        let etag = response.headers().get(header::ETAG).and_then(|value| value.to_str().ok());
        let etag: Arc<str> = etag.unwrap_or_default().into();
        let too_long = |found: u64| {
            let why = format!("the answer has {found} bytes or more, at most {VALUE_MAX} are allowed");
            self.failed(FailureKind::Invalid, &why)
        };
        if let Some(length) = response.content_length().filter(|length| *length > VALUE_MAX as u64) {
            return Err(too_long(length));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(&error))? {
            if body.len() + chunk.len() > VALUE_MAX {
                return Err(too_long((body.len() + chunk.len()) as u64));
            }
            body.extend_from_slice(&chunk);
        }
        let value = match status {
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT => Bytes::from_static(b"null"),
            _ => body.freeze(),
        };
        if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&value) {
            let why = format!("{status}, and the answer is not JSON: {error}");
            let detail = value.slice(..value.len().min(DETAIL_MAX));
            return Err(FetchFailure { detail, ..self.failed(FailureKind::Invalid, &why) });
        }
        Ok(FetchOutcome::Value { value, version: Version::None, etag, hints: Bytes::new() })
    }

    async fn refused(&self, mut response: Response) -> FetchFailure {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let mut why = status.to_string();
        if status.is_redirection()
            && let Some(to) = response.headers().get(header::LOCATION)
        {
            let to = to.to_str().ok().and_then(|to| self.url.join(to).ok());
            let origin = to
                .map_or_else(|| "an address that is none".to_owned(), |to| to.origin().ascii_serialization());
            why += &format!(" to {origin}, which is not followed: name that server in `base` if it is right");
        }
        why += match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "; check the credentials in `headers`",
            StatusCode::NOT_FOUND | StatusCode::GONE => "; check the path and the key",
            StatusCode::METHOD_NOT_ALLOWED => "; check the method",
            _ => "",
        };
        if let Some(wait) = retry_after {
            why += &format!("; the server asks to wait {} s", wait.as_secs());
        }
        let mut detail = BytesMut::new();
        // What follows the status is for people: half of it, or none, is no failure of its own.
        while detail.len() < DETAIL_MAX
            && let Ok(Some(chunk)) = response.chunk().await
        {
            detail.extend_from_slice(&chunk[..chunk.len().min(DETAIL_MAX - detail.len())]);
        }
        FetchFailure {
            retry_after_ms: retry_after.map(|wait| wait.as_millis() as u64),
            detail: detail.freeze(),
            ..self.failed(FailureKind::Status(status.as_u16()), &why)
        }
    }

    /// The exchange did not come to its end.
    fn broken(&self, error: &reqwest::Error) -> FetchFailure {
        let kind = if error.is_timeout() { FailureKind::Timeout } else { FailureKind::Network };
        self.failed(kind, &cause(error))
    }

    fn failed(&self, kind: FailureKind, why: &str) -> FetchFailure {
        let mut shown = self.url.clone();
        // Parameters may be confidential, and are many.
        shown.set_query(None);
        failure(kind, format!("fetch {:?}: {} {shown}: {why}", self.resource, self.method))
    }
}

/// Why a URL cannot be made of a request and what is bound.
#[derive(Debug, thiserror::Error)]
enum UrlError {
    #[error("fill {0}: {1}")]
    Fill(String, FillError),
    #[error("the path {0:?} leads out of itself; a segment of the key is `.` or `..`")]
    Dots(String),
    #[error("the address of the server cannot be used: {0}")]
    Base(String),
}

fn url(request: &HttpRequest, bound: &Bindings) -> Result<Url, UrlError> {
    let path = request.path.fill(bound).map_err(|error| UrlError::Fill("the path".to_owned(), error))?;
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(UrlError::Dots(path));
    }
    let mut text = format!("{}{path}", request.base);
    for (n, (name, template)) in request.query.iter().enumerate() {
        let fill = |error| UrlError::Fill(format!("the parameter {name}"), error);
        let value = template.fill(bound).map_err(fill)?;
        text.push(if n == 0 { '?' } else { '&' });
        text += &percent_encode(name);
        text.push('=');
        literal(&value, &mut text);
    }
    Url::parse(&text).map_err(|error| UrlError::Base(error.to_string()))
}

/// What is filled in is percent-encoded already; of the text around it, what would end the value is.
fn literal(value: &str, out: &mut String) {
    for piece in value.split_inclusive(['&', '#', '+', ' ']) {
        let end = piece.strip_suffix(['&', '#', '+', ' ']).map_or(piece.len(), str::len);
        out.push_str(&piece[..end]);
        out.push_str(&percent_encode(&piece[end..]));
    }
}

/// As the W3C's Trace Context has it.
fn traceparent(trace: Trace) -> Option<HeaderValue> {
    if trace.trace == 0 || trace.span == 0 {
        return None;
    }
    HeaderValue::try_from(format!("00-{:032x}-{:016x}-01", trace.trace, trace.span)).ok()
}

/// `Retry-After` in seconds, or as a date, which is compared with the server's own clock: no clock of this machine takes
/// part.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let value = text(header::RETRY_AFTER)?;
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = httpdate::parse_http_date(value).ok()?;
            let now = httpdate::parse_http_date(text(header::DATE)?).ok()?;
            until.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The beginning of an answer, as protocols see it.
pub(crate) fn head(status: u16, headers: &HeaderMap) -> Head {
    let texts = headers.iter().filter_map(|(name, value)| {
        let text = std::str::from_utf8(value.as_bytes()).ok()?;
        Some((name.as_str().to_owned(), text.to_owned()))
    });
    Head { status, headers: texts.collect(), retry_after: retry_after(headers) }
}

/// Headers with values that nothing shows. The error names the one that cannot be sent.
fn secret_headers(headers: &[(String, Secret)]) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let header =
            HeaderName::try_from(name.as_str()).map_err(|_| format!("{name:?} is no name of a header"))?;
        let mut value = HeaderValue::try_from(value.reveal().as_bytes())
            .map_err(|_| format!("the value of the header {name} has characters that are not allowed"))?;
        value.set_sensitive(true);
        map.insert(header, value);
    }
    Ok(map)
}

/// The body of an answer, as it comes. Dropped, its connection ends.
pub(crate) struct Body(Response);

impl Body {
    /// The next bytes; `None` = the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        self.0.chunk().await.map_err(|error| cause(&error))
    }
}

/// Asks for a stream, and waits for the answer to begin.
pub(crate) async fn stream(client: &HttpClient, request: &ConnectRequest) -> Result<(Body, Head), CloseInfo> {
    let url = Url::parse(&request.url)
        .map_err(|error| invalid(format!("the address of the stream cannot be used: {error}")))?;
    let secure = match url.scheme() {
        "http" => false,
        "https" => true,
        _ => return Err(invalid("the address of a stream must begin with http:// or https://")),
    };
    let headers = secret_headers(&request.headers).map_err(invalid)?;
    let client = client.get(secure).await.map_err(failed)?;
    let response = client.get(url).headers(headers).send().await.map_err(|error| {
        // Asking again leads around the same circle.
        if error.is_redirect() { invalid(cause(&error)) } else { failed(cause(&error)) }
    })?;
    let status = response.status();
    let head = head(status.as_u16(), response.headers());
    if status.is_success() {
        return Ok((Body(response), head));
    }
    Err(CloseInfo {
        status: Some(status.as_u16()),
        retry_after: head.retry_after,
        ..failed(format!("the server refused with status {status}"))
    })
}

/// Makes the call of a protocol. Redirects are followed as for a declared request.
///
/// # Errors
/// In words, when no whole answer came in time or the body is too long. Secrets and the URL's parameters are not in them.
pub async fn call(client: &HttpClient, call: &Call) -> Result<Reply, String> {
    let exchange = async {
        let url = Url::parse(&call.url).map_err(|error| format!("the address cannot be used: {error}"))?;
        let client = client.get(url.scheme() == "https").await?;
        let method = if call.body.is_some() { Method::POST } else { Method::GET };
        let mut request = client.request(method, url).headers(secret_headers(&call.headers)?);
        if let Some(body) = &call.body {
            request = request.body(body.reveal().to_owned());
        }
        let mut response = request.send().await.map_err(|error| cause(&error))?;
        let head = head(response.status().as_u16(), response.headers());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
            if body.len() + chunk.len() > call.max_body {
                return Err(format!("the answer has more than {} bytes", call.max_body));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { head, body: body.freeze() })
    };
    let late = |_| Err(format!("no whole answer within {:?}", call.timeout));
    tokio::time::timeout(call.timeout, exchange).await.unwrap_or_else(late)
}

/// The innermost cause; what is around it repeats the URL with its parameters.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
