//! nginx with nchan: one channel as Server-Sent Events, by long poll and over a WebSocket, with a buffer that forgets.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, Scratch};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// The server; it ends with this value.
#[derive(Debug)]
pub struct Nchan {
    /// `http://HOST:PORT`.
    pub base: String,
    address: String,
    published: u64,
    child: Child,
    _scratch: Scratch,
}

impl Nchan {
    /// Starts one that keeps the last `buffer` messages. `None` where it is not installed, which is said.
    ///
    /// # Panics
    /// When it is installed and does not start.
    #[expect(clippy::print_stderr, reason = "what is left out is said")]
    pub fn start(buffer: u32) -> Option<Self> {
        if !Path::new(MODULE).exists() {
            eprintln!(
                "skipped: nginx with nchan is not installed (nginx-light and libnginx-mod-nchan of Debian)"
            );
            return None;
        }
        let scratch = Scratch::new("nchan");
        let directory = scratch.path().display();
        // Taken again at once by the server below.
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|it| it.local_addr()).expect("a port").port();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {directory}/{kind};"))
            .concat();
        let location = |path: &str, kind: &str| {
            format!(
                "location = /{path} {{ nchan_subscriber {kind}; nchan_channel_id feed; \
                 nchan_subscriber_first_message newest; nchan_subscriber_timeout 20s; }}"
            )
        };
        let text = format!(
            "load_module {MODULE}; user root; daemon off; worker_processes 1; pid {directory}/pid; \
             error_log stderr error; events {{ worker_connections 256; }} \
             http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; \
             location = /publish {{ nchan_publisher; nchan_channel_id feed; nchan_message_timeout 10m; \
             nchan_message_buffer_length {buffer}; }} {} {} {} }} }}",
            location("sse", "eventsource"),
            location("poll", "longpoll"),
            location("ws", "websocket"),
        );
        let file = scratch.path().join("nginx.conf");
        std::fs::write(&file, text).expect("write its configuration");
        let child = Command::new("/usr/sbin/nginx")
            .args(["-p", &directory.to_string(), "-c", &file.display().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start nginx");
        let address = format!("127.0.0.1:{port}");
        let mut server =
            Self { base: format!("http://{address}"), address, published: 0, child, _scratch: scratch };
        server.wait();
        Some(server)
    }

    #[expect(clippy::disallowed_methods, reason = "how long to wait is the test's own affair")]
    fn wait(&mut self) {
        let end = std::time::Instant::now() + PATIENCE;
        while TcpStream::connect(&self.address).is_err() {
            assert!(self.child.try_wait().is_ok_and(|it| it.is_none()), "nginx ended");
            assert!(std::time::Instant::now() < end, "nginx does not listen");
            std::thread::park_timeout(std::time::Duration::from_millis(5));
        }
    }

    /// Publishes `{"n": N}` with the next number, from 1, and returns the number.
    ///
    /// # Panics
    /// When the server does not take it.
    pub fn publish(&mut self) -> u64 {
        self.published += 1;
        let body = format!("{{\"n\":{}}}", self.published);
        let mut stream = TcpStream::connect(&self.address).expect("connect to nginx");
        write!(
            stream,
            "POST /publish HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("publish");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
        self.published
    }
}

impl Drop for Nchan {
    fn drop(&mut self) {
        // Its workers end with it only if it is asked to end.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
