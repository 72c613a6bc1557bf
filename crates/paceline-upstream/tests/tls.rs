//! TLS against the system's roots: a server whose root is installed is accepted, any other is not.
//!
//! The roots are those of the process, read once, so each case runs in a process of its own, with its own
//! `SSL_CERT_FILE`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use paceline_channel::{
    protocol::{CloseInfo, ConnectRequest, Frame, Transport},
    template::{NoSecrets, Setting, Template},
};
use paceline_proto::{
    fetch::FetchOutcome,
    id::{Epoch, Trace},
};
use paceline_query::{condition::Bindings, key};
use paceline_upstream::{
    fetch::{FetchContext, Fetcher},
    http::{HttpClient, HttpFetcher, HttpRequest, Method},
    websocket::connect,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    join,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{accept_async, tungstenite::Message};

/// In the child: the address to connect to, where the host `localhost` is what the certificate names.
const URL: &str = "PACELINE_TEST_TLS_URL";

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn server_config(authority: &CertifiedIssuer<'static, KeyPair>) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

/// Runs the ignored test of this file in a process that trusts the roots in `roots`; what it said.
fn run_child(roots: &Path, url: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", roots)
        .env_remove("SSL_CERT_DIR")
        .env(URL, url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Serves one TLS connection to a child that connects to `host`, by a WebSocket (`wss`) or a request (`https`).
async fn serve(scheme: &str, trusted: bool, host: &str) -> String {
    let installed = authority("installed");
    let other = authority("other");
    let config = server_config(if trusted { &installed } else { &other });
    let directory = tempfile::tempdir().unwrap();
    let roots = directory.path().join("roots.pem");
    fs::write(&roots, installed.pem()).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port());
    let server = async {
        let (tcp, _) = listener.accept().await.unwrap();
        // A client that does not trust the certificate says so and goes.
        let Ok(tls) = TlsAcceptor::from(config).accept(tcp).await else { return };
        if scheme == "wss" { speak(tls).await } else { respond(tls).await }
    };
    let child = tokio::task::spawn_blocking(move || run_child(&roots, &url));
    join!(server, child).1.unwrap()
}

/// Says hello over a WebSocket.
async fn speak(tls: TlsStream<TcpStream>) {
    let Ok(mut server) = accept_async(tls).await else { return };
    server.send(Message::text("hello")).await.unwrap();
    server.close(None).await.unwrap();
    while server.next().await.is_some() {}
}

/// Answers a request with a greeting.
async fn respond(tls: TlsStream<TcpStream>) {
    let mut server = BufReader::new(tls);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if server.read_line(&mut line).await.unwrap_or_default() == 0 {
            return;
        }
    }
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n\"hello\"").await.unwrap();
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_server_of_an_installed_root_is_accepted() {
    assert!(serve("wss", true, "localhost").await.contains("received hello"));
    assert!(serve("https", true, "localhost").await.contains("received \"hello\""));
}

#[tokio::test]
async fn a_server_of_another_root_is_refused() {
    for scheme in ["wss", "https"] {
        let said = serve(scheme, false, "localhost").await;
        assert!(said.contains("refused") && said.contains("UnknownIssuer"), "{said}");
    }
}

#[tokio::test]
async fn a_server_with_another_name_is_refused() {
    for scheme in ["wss", "https"] {
        let said = serve(scheme, true, "127.0.0.1").await;
        assert!(said.contains("refused") && said.contains("not valid for name"), "{said}");
    }
}

/// Not a test of its own: the other end of those above, in a process of its own.
#[tokio::test]
#[ignore = "runs as the child of the tests above"]
#[expect(clippy::print_stdout, reason = "its parent reads it")]
async fn child() {
    let url = std::env::var(URL).unwrap();
    if url.starts_with("https") {
        match fetch(url).await {
            FetchOutcome::Value { value, .. } => println!("received {}", String::from_utf8_lossy(&value)),
            other => println!("refused: {other:?}"),
        }
        return;
    }
    let request =
        ConnectRequest { max_message: 1024, ..ConnectRequest::new(Transport::WebSocket(Vec::new()), url) };
    match connect(&request).await {
        Ok((mut socket, _remote)) => match socket.next().await.0.as_slice() {
            [Frame::Text(text)] => println!("received {}", String::from_utf8_lossy(text)),
            other => println!("received {other:?}"),
        },
        Err(CloseInfo { reason, .. }) => println!("refused: {reason}"),
    }
}

async fn fetch(base: String) -> FetchOutcome {
    let request = HttpRequest {
        resource: "greeting".to_owned(),
        method: Method::GET,
        base,
        path: Template::new("/", Setting::Url).unwrap(),
        query: Vec::new(),
        form: Vec::new(),
        headers: Vec::new(),
        etag: false,
        timeout: Duration::from_secs(20),
    };
    let context = FetchContext {
        key: key!["greeting"],
        bound: Bindings::new(),
        etag: "".into(),
        deadline: Duration::from_secs(20),
        background: false,
        trace: Trace::NONE,
        epoch: Epoch(1),
    };
    HttpFetcher::new(request, Arc::new(NoSecrets), HttpClient::default()).fetch(context).await
}
