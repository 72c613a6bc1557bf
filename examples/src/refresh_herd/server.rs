//! The server: gives out tokens, takes each refresh token once, and ends the login when one comes twice (RFC 9700, section
//! 4.14.2). Every request is written down before it is answered.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::args::ServerArgs;
use crate::{api_budget::server::Listening, one_wire::control::say};

/// How long an answer takes.
const LATENCY: Duration = Duration::from_millis(50);

/// A line of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// What was asked.
    pub request: String,
    /// The process that asked, where it said so.
    pub process: String,
    /// What it was answered.
    pub status: u16,
}

/// The first pair, of the sign-in. Its access token has ended.
pub fn first_login() -> Value {
    json!({ "access_token": "access-0", "refresh_token": "refresh-0" })
}

/// One login.
struct Login {
    /// The number of the pair that is good.
    current: u64,
    /// A refresh token came twice.
    ended: bool,
    log: std::fs::File,
}

/// What the server looks at.
#[derive(Debug, Default)]
struct Request {
    line: String,
    process: String,
    authorization: String,
    body: String,
}

/// Serves until the process ends.
///
/// # Errors
/// When the log or the socket cannot be made.
pub async fn run(args: ServerArgs) -> io::Result<()> {
    let log = std::fs::File::create(&args.log)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let login = Arc::new(Mutex::new(Login { current: 0, ended: false, log }));
    say(&Listening { listening: listener.local_addr()? })?;
    loop {
        let (stream, _) = listener.accept().await?;
        let login = login.clone();
        tokio::spawn(async move {
            // A client that goes away early has its line in the log.
            let _ = serve(stream, &login).await;
        });
    }
}

async fn serve(stream: TcpStream, login: &Mutex<Login>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let request = read(&mut stream).await?;
    let answer = login.lock().answer(&request)?;
    sleep(LATENCY).await;
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Request> {
    let mut request = Request::default();
    stream.read_line(&mut request.line).await?;
    request.line = request.line.trim_end_matches(" HTTP/1.1\r\n").to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "x-process" => value.clone_into(&mut request.process),
            "authorization" => value.clone_into(&mut request.authorization),
            "content-length" => length = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    stream.take(length).read_to_string(&mut request.body).await?;
    Ok(request)
}

impl Login {
    /// Decides, writes it down, and gives the answer.
    fn answer(&mut self, request: &Request) -> io::Result<String> {
        let (status, head, body) = match request.line.as_str() {
            "POST /token" => self.refresh(&request.body),
            "GET /me" if request.authorization == format!("Bearer access-{}", self.valid()) => {
                (200, "200 OK", json!({ "name": "me" }))
            }
            "GET /me" => (401, "401 Unauthorized", json!({ "error": "invalid_token" })),
            _ => (404, "404 Not Found", json!({ "error": "only /token and /me are here" })),
        };
        let (line, process) = (request.line.clone(), request.process.clone());
        let mut line = serde_json::to_vec(&Logged { request: line, process, status })?;
        line.push(b'\n');
        self.log.write_all(&line)?;
        let body = body.to_string();
        let length = body.len();
        Ok(format!(
            "HTTP/1.1 {head}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
    }

    fn refresh(&mut self, form: &str) -> (u16, &'static str, Value) {
        let token = form.split('&').find_map(|field| field.strip_prefix("refresh_token="));
        if token != Some(&format!("refresh-{}", self.current)) {
            self.ended = true;
        }
        if self.ended {
            return (400, "400 Bad Request", json!({ "error": "invalid_grant" }));
        }
        self.current += 1;
        let (access, refresh) = (format!("access-{}", self.current), format!("refresh-{}", self.current));
        (200, "200 OK", json!({ "access_token": access, "refresh_token": refresh, "expires_in": 3600 }))
    }

    /// The access token of the sign-in has ended, and all of a login that was ended have.
    fn valid(&self) -> String {
        if self.ended || self.current == 0 { "none".to_owned() } else { self.current.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_token_that_comes_twice_ends_the_login_and_what_it_gave() {
        let log = std::fs::File::create("/dev/null").unwrap();
        let mut login = Login { current: 0, ended: false, log };
        let mut ask = |line: &str, authorization: &str, body: &str| {
            let request = Request {
                line: line.into(),
                authorization: authorization.into(),
                body: body.into(),
                ..Request::default()
            };
            login.answer(&request).unwrap()
        };
        assert!(ask("GET /me", "Bearer access-0", "").contains("401"));
        assert!(ask("POST /token", "", "a=b&refresh_token=refresh-0").contains("access-1"));
        assert!(ask("GET /me", "Bearer access-1", "").contains("200 OK"));
        assert!(ask("POST /token", "", "refresh_token=refresh-0").contains("invalid_grant"));
        assert!(ask("GET /me", "Bearer access-1", "").contains("401"));
        assert!(ask("POST /token", "", "refresh_token=refresh-1").contains("invalid_grant"));
    }
}
