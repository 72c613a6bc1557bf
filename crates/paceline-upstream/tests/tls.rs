//! TLS against the system's roots: a server whose root is installed is accepted, any other is not.
//!
//! The roots are those of the process, read once, so each case runs in a process of its own, with its own
//! `SSL_CERT_FILE`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path, process::Command, sync::Arc};

use futures_util::{SinkExt, StreamExt};
use paceline_channel::protocol::{CloseInfo, ConnectRequest, Frame};
use paceline_upstream::websocket::connect;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{join, net::TcpListener};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{accept_async, tungstenite::Message};

/// In the child: the host to connect to, where `localhost` is what the certificate names.
const HOST: &str = "PACELINE_TEST_TLS_HOST";

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
fn run_child(roots: &Path, host: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", roots)
        .env_remove("SSL_CERT_DIR")
        .env(HOST, host)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Serves one TLS connection to a child that connects to `host`.
async fn serve(trusted: bool, host: &str) -> String {
    let installed = authority("installed");
    let other = authority("other");
    let config = server_config(if trusted { &installed } else { &other });
    let directory = tempfile::tempdir().unwrap();
    let roots = directory.path().join("roots.pem");
    fs::write(&roots, installed.pem()).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("{host}:{}", listener.local_addr().unwrap().port());
    let server = async {
        let (tcp, _) = listener.accept().await.unwrap();
        // A client that does not trust the certificate says so and goes.
        let Ok(tls) = TlsAcceptor::from(config).accept(tcp).await else { return };
        let Ok(mut server) = accept_async(tls).await else { return };
        server.send(Message::text("hello")).await.unwrap();
        server.close(None).await.unwrap();
        while server.next().await.is_some() {}
    };
    let child = tokio::task::spawn_blocking(move || run_child(&roots, &host));
    join!(server, child).1.unwrap()
}

#[tokio::test]
async fn a_server_of_an_installed_root_is_accepted() {
    assert!(serve(true, "localhost").await.contains("received hello"));
}

#[tokio::test]
async fn a_server_of_another_root_is_refused() {
    let said = serve(false, "localhost").await;
    assert!(said.contains("refused") && said.contains("UnknownIssuer"), "{said}");
}

#[tokio::test]
async fn a_server_with_another_name_is_refused() {
    let said = serve(true, "127.0.0.1").await;
    assert!(said.contains("refused") && said.contains("not valid for name"), "{said}");
}

/// Not a test of its own: the other end of those above, in a process of its own.
#[tokio::test]
#[ignore = "runs as the child of the tests above"]
#[expect(clippy::print_stdout, reason = "its parent reads it")]
async fn child() {
    let request = ConnectRequest {
        url: format!("wss://{}/", std::env::var(HOST).unwrap()),
        headers: Vec::new(),
        subprotocols: Vec::new(),
        max_message: 1024,
    };
    match connect(&request).await {
        Ok((mut socket, _remote)) => match socket.next().await.0.as_slice() {
            [Frame::Text(text)] => println!("received {}", String::from_utf8_lossy(text)),
            other => println!("received {other:?}"),
        },
        Err(CloseInfo { reason, .. }) => println!("refused: {reason}"),
    }
}
