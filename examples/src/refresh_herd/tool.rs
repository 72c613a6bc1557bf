//! A session, with and without Paceline: the part of the example that uses it.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use paceline::{Session, Token};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines, Stdin},
    net::TcpStream,
};

use super::args::{GroupArgs, ToolArgs};
use crate::one_wire::control::say;

/// What a child says: that it came so far, or why not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    /// Why not.
    pub error: Option<String>,
}

/// Waits for others, as `paceline run --config F` does, until its parent ends it.
///
/// # Errors
/// When it cannot join.
pub async fn coordinator(args: GroupArgs) -> io::Result<()> {
    let builder = Session::builder("refresh-herd").state_dir(args.state_dir).config_file(args.config);
    match builder.label("coordinator").preferred().join().await {
        Ok(_session) => {
            say(&Said { error: None })?;
            std::future::pending().await
        }
        Err(error) => say(&Said { error: Some(error.to_string()) }),
    }
}

/// Holds the login while its access token ends, goes on when it is told to, and looks at the account when all did.
///
/// # Errors
/// When nobody listens to it.
pub async fn run(args: ToolArgs) -> io::Result<()> {
    let mut told = BufReader::new(tokio::io::stdin()).lines();
    match &args.state_dir {
        Some(dir) => with_paceline(args.address, dir, &mut told).await,
        None => alone(args.address, args.login, &mut told).await,
    }
}

/// One of many sessions: whoever finds that the token ended leads to a refresh, all others share what it brings.
async fn with_paceline(server: SocketAddr, dir: &Path, told: &mut Lines<BufReader<Stdin>>) -> io::Result<()> {
    // An observer never leads, and holds no refresh token.
    let joined = Session::builder("refresh-herd").state_dir(dir).observer().join().await;
    let session = joined.map_err(io::Error::other)?;
    let token: Token = session.token("login").map_err(io::Error::other)?;
    ready(told, &Ok(())).await?;
    let access = token.get().await.map_err(|error| error.to_string());
    ready(told, &access.as_ref().map(drop).map_err(Clone::clone)).await?;
    let seen = me(server, access.as_ref().map_or("none", |access| access.reveal())).await;
    say(&Said { error: seen.err() })
}

/// Keeps the login in a file, like any well-behaved client: looks for a newer one there, writes what it got there.
async fn alone(server: SocketAddr, file: PathBuf, told: &mut Lines<BufReader<Stdin>>) -> io::Result<()> {
    let mut login = read(&file)?;
    ready(told, &Ok(())).await?;
    let mut refreshed = Ok(());
    if me(server, text(&login, "access_token")).await.is_err() {
        match refresh(server, text(&login, "refresh_token")).await {
            Ok(newer) => {
                login = newer;
                let new = file.with_extension(std::process::id().to_string());
                std::fs::write(&new, login.to_string())?;
                std::fs::rename(&new, &file)?;
            }
            Err(error) => refreshed = Err(error),
        }
    }
    ready(told, &refreshed).await?;
    // Another one may have had more luck.
    let newest = read(&file)?;
    let seen = me(server, text(&newest, "access_token")).await;
    say(&Said { error: seen.err() })
}

/// Says how far it came, and waits to be told to go on.
async fn ready(told: &mut Lines<BufReader<Stdin>>, came: &Result<(), String>) -> io::Result<()> {
    say(&Said { error: came.clone().err() })?;
    told.next_line()
        .await?
        .map(drop)
        .ok_or_else(|| io::Error::other("nobody waits for this process any more"))
}

fn read(file: &Path) -> io::Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}

fn text<'a>(login: &'a Value, member: &str) -> &'a str {
    login[member].as_str().unwrap_or_default()
}

/// Looks at the account.
async fn me(server: SocketAddr, access: &str) -> Result<Value, String> {
    let process = std::process::id();
    let headers = format!("Authorization: Bearer {access}\r\nX-Process: {process}\r\n");
    ask(server, "GET /me", &headers, "").await
}

async fn refresh(server: SocketAddr, token: &str) -> Result<Value, String> {
    let body = format!("grant_type=refresh_token&refresh_token={token}");
    let headers = format!(
        "X-Process: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
        std::process::id(),
        body.len()
    );
    ask(server, "POST /token", &headers, &body).await
}

/// One request over HTTP/1.1.
async fn ask(server: SocketAddr, request: &str, headers: &str, body: &str) -> Result<Value, String> {
    let asked = async {
        let mut stream = TcpStream::connect(server).await?;
        let text =
            format!("{request} HTTP/1.1\r\nHost: {server}\r\n{headers}Connection: close\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = asked.await.map_err(|error| format!("{request}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an answer without an end")?;
    match head.split(' ').nth(1) {
        Some("200") => serde_json::from_str(body).map_err(|error| error.to_string()),
        status => Err(format!("{request}: the server answered {}: {body}", status.unwrap_or("nothing"))),
    }
}
