//! A network with faults: a TCP proxy whose every connection ends in one, drawn from a seed.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::net::sockopt;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Accepted and reset.
    Refused,
    /// Accepted, and silent for a while before it is reset.
    Silent,
    /// Reset after some bytes.
    Reset,
    /// Ended after some bytes.
    Ended,
    /// Some bytes, then nothing, while the connection stays: what the server sends is lost.
    Stalled,
    /// Byte by byte, and ended in the middle of something.
    Sliced,
    /// Late, by another time for each piece, and then reset.
    Late,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Refused, Self::Silent, Self::Reset, Self::Ended, Self::Stalled, Self::Sliced, Self::Late];
}

/// The proxy. Its threads end with the process.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    met: Arc<Mutex<BTreeMap<Fault, u64>>>,
}

impl Proxy {
    /// A proxy to `upstream` (`HOST:PORT`).
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(upstream: &str, seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("it has an address");
        let met: Arc<Mutex<BTreeMap<Fault, u64>>> = Arc::default();
        let (upstream, counted) = (upstream.to_owned(), met.clone());
        std::thread::spawn(move || {
            for (n, client) in listener.incoming().map_while(Result::ok).enumerate() {
                let draw = Draw::new(seed, n as u64);
                let (upstream, counted) = (upstream.clone(), counted.clone());
                std::thread::spawn(move || {
                    let fault = draw.fault();
                    // Whoever goes first ends the connection; that is no failure of the proxy.
                    let _ = serve(client, &upstream, fault, draw);
                    *counted.lock().entry(fault).or_default() += 1;
                });
            }
        });
        Self { address, met }
    }

    /// How many connections met which fault.
    pub fn met(&self) -> BTreeMap<Fault, u64> {
        self.met.lock().clone()
    }
}

/// Numbers from a seed and the number of a connection.
#[derive(Debug, Clone, Copy)]
struct Draw(u64);

impl Draw {
    fn new(seed: u64, connection: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(connection))
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn fault(mut self) -> Fault {
        let n = usize::try_from(self.below(Fault::ALL.len() as u64)).unwrap_or_default();
        Fault::ALL[n]
    }
}

/// Bytes of a head, and some more.
const HEAD: usize = 200;
/// Silence before a reset.
const SILENCE: Duration = Duration::from_millis(50);

fn serve(mut client: TcpStream, upstream: &str, fault: Fault, mut draw: Draw) -> std::io::Result<()> {
    draw.next();
    if fault == Fault::Refused {
        return reset(client);
    }
    if fault == Fault::Silent {
        std::thread::park_timeout(SILENCE);
        return reset(client);
    }
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect(upstream)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let requests = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    // The head of an answer and some messages, or less.
    let mut left = usize::try_from(draw.below(600)).unwrap_or_default() + 20;
    if fault == Fault::Stalled {
        // Behind the head of an answer: for that alone a client waits twenty seconds.
        left += HEAD;
    }
    let mut piece = [0; 256];
    loop {
        let read = server.read(&mut piece)?;
        let passed = &piece[..read.min(left)];
        if fault == Fault::Sliced {
            for byte in passed {
                client.write_all(std::slice::from_ref(byte))?;
            }
        } else {
            if fault == Fault::Late {
                std::thread::park_timeout(Duration::from_millis(draw.below(8)));
            }
            client.write_all(passed)?;
        }
        left -= passed.len();
        if read == 0 || left == 0 {
            break;
        }
    }
    match fault {
        Fault::Reset | Fault::Late => {
            // A reset needs the last descriptor of the connection.
            client.shutdown(Shutdown::Read)?;
            let _ = requests.join();
            reset(client)
        }
        Fault::Stalled => {
            // Until the other end has enough of it.
            while server.read(&mut piece)? > 0 {}
            Ok(())
        }
        Fault::Ended | Fault::Sliced | Fault::Refused | Fault::Silent => client.shutdown(Shutdown::Both),
    }
}

fn reset(client: TcpStream) -> std::io::Result<()> {
    sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
    drop(client);
    Ok(())
}
