//! How a process asks the API: one request over HTTP/1.1.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What the API refuses with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It could not be asked, or its answer makes no sense.
    #[error("ask the API: {0}")]
    Io(#[from] io::Error),
    /// The quota is used up.
    #[error("the API answered 429 and asks to wait {} s", .0.as_secs())]
    Quota(Duration),
    /// Another status.
    #[error("the API answered {0}")]
    Status(u16),
}

/// Asks for what is left of the account's budget.
///
/// # Errors
/// [`ApiError`].
pub async fn budget(api: SocketAddr) -> Result<Value, ApiError> {
    let mut stream = TcpStream::connect(api).await?;
    let process = std::process::id();
    let request =
        format!("GET /budget HTTP/1.1\r\nHost: {api}\r\nX-Process: {process}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    read(&answer)
}

fn read(answer: &str) -> Result<Value, ApiError> {
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| odd("its answer has no end"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    match status.ok_or_else(|| odd("its answer has no status"))? {
        200 => serde_json::from_str(body).map_err(|error| odd(&error.to_string()).into()),
        429 => {
            let wait = head.lines().find_map(|line| line.strip_prefix("Retry-After: ")?.parse().ok());
            Err(ApiError::Quota(Duration::from_secs(wait.ok_or_else(|| odd("429 without Retry-After"))?)))
        }
        status => Err(ApiError::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_value_a_wait_or_a_status() {
        assert_eq!(read("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{\"left\":3}").unwrap()["left"], 3);
        let refused = |answer| read(answer).unwrap_err().to_string();
        assert!(refused("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\n\r\n").ends_with("wait 2 s"));
        assert!(refused("HTTP/1.1 429 Too Many Requests\r\n\r\n").contains("without Retry-After"));
        assert!(refused("HTTP/1.1 500 Oh\r\n\r\n").ends_with("500"));
        assert!(refused("HTTP/1.1 200").contains("no end"));
    }
}
