//! The STUN server: a thread that answers Binding requests on one address, or on four for NAT behaviour discovery (RFC 5780; `docs/protocol.md` §7).
//!
//! Answers are made by [`crate::proto::wire::stun`]; here are sockets, and how often one source may ask. With a second IP address there are four
//! sockets, so that an answer can come from the face that was asked for. Where the server listens on all addresses, the four are beside the
//! one that takes the rest: the kernel prefers the socket that fits best.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::engine::relay::free_address;
use crate::engine::socket::{SocketError, local_address, udp_socket};
use crate::proto::relay::source_limit::SourceLimit;
use crate::proto::time::Instant;
use crate::proto::wire::stun::{
    Face, Faces, FacesError, MAX_REQUEST, MAX_RESPONSE, Outcome, Reply, respond_at,
};

/// How long a stop may take.
const STOP_INTERVAL: Duration = Duration::from_millis(200);
/// A burst of requests.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Datagrams read from one socket before the next one has its turn.
const TURN: usize = 64;
/// Requests per second and address. A node asks every 25 s or so; thousands of them behind one NAT fit.
pub const REQUESTS_PER_SECOND: u32 = 100;

/// Where to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StunConfig {
    /// A wildcard of IPv6 serves IPv4 too.
    pub listen: SocketAddr,
    /// For NAT behaviour discovery.
    pub second: Option<SecondAddress>,
    /// Of one source address, on average; twice as many at once. 0: no limit.
    pub requests_per_second: u32,
    /// Share the port with a server that runs already.
    pub take_over: bool,
}

/// What RFC 5780 needs besides the first address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondAddress {
    /// Both addresses of this machine, first and second: what sockets are bound to.
    pub local: [IpAddr; 2],
    /// The same as clients see them.
    pub public: [IpAddr; 2],
    /// The other port on both.
    pub port: u16,
}

impl From<SocketAddr> for StunConfig {
    fn from(listen: SocketAddr) -> Self {
        Self { listen, second: None, requests_per_second: REQUESTS_PER_SECOND, take_over: false }
    }
}

/// Why there is no STUN server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StunStartError {
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Addresses or ports are the same.
    #[error("STUN: {0}")]
    Faces(#[from] FacesError),
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// What the server has seen.
#[derive(Debug, Default)]
pub struct StunCounters {
    /// Binding requests answered with an address.
    pub answered: AtomicU64,
    /// Requests answered with 400 or 420.
    pub refused: AtomicU64,
    /// Datagrams that were not answered: not STUN, indications, wrong fingerprints.
    pub dropped: AtomicU64,
    /// Datagrams of addresses that asked too often.
    pub limited: AtomicU64,
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct StunServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    counters: Arc<StunCounters>,
    threads: Vec<JoinHandle<()>>,
}

impl StunServer {
    /// Opens the sockets and starts the thread.
    ///
    /// # Errors
    /// What is wrong; the message says what to do.
    pub fn start(config: impl Into<StunConfig>) -> Result<Self, StunStartError> {
        let config = config.into();
        let listen = free_address(config.listen, config.take_over, udp_socket)?;
        let mut sockets = Vec::new();
        let mut faces = None;
        if let Some(SecondAddress { local, public, port }) = config.second {
            let ports = [listen.port(), if port == 0 { free_port(local)? } else { port }];
            faces = Some(Faces::new(public, ports)?);
            // In the order of `Face::ALL`.
            for (ip, port) in local.into_iter().flat_map(|ip| ports.map(|port| (ip, port))) {
                sockets.push(open(SocketAddr::new(ip, port))?);
            }
        }
        if config.second.is_none_or(|second| second.local[0] != listen.ip()) {
            sockets.push(open(listen)?);
        }
        let mut seed = [0; 16];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| StunStartError::Random)?;
        let [low, high] = [&seed[..8], &seed[8..]]
            .map(|half| half.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        let rate = config.requests_per_second;
        let limit = (rate > 0).then(|| SourceLimit::new(rate, rate.saturating_mul(2), [low, high]));
        let (stop, counters) = (Arc::new(AtomicBool::new(false)), Arc::new(StunCounters::default()));
        let server = Server {
            sockets,
            faces,
            limit,
            stop: Arc::clone(&stop),
            counters: Arc::clone(&counters),
            started: std::time::Instant::now(),
        };
        let io = |source| SocketError::Io { address: listen, source };
        let thread =
            std::thread::Builder::new().name("stun".into()).spawn(move || server.run()).map_err(io)?;
        Ok(Self { address: listen, stop, counters, threads: vec![thread] })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen.
    pub fn counters(&self) -> Arc<StunCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for StunServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Shared, so that a successor can take the port over.
fn open(address: SocketAddr) -> Result<UdpSocket, SocketError> {
    let socket = udp_socket(address, true)?;
    // As much as the system grants.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
    Ok(UdpSocket::from(socket))
}

/// A port that is free on both, for tests.
fn free_port([first, second]: [IpAddr; 2]) -> Result<u16, SocketError> {
    let io = |source| SocketError::Io { address: SocketAddr::new(first, 0), source };
    let mut tries = 20;
    loop {
        let probe: OwnedFd = udp_socket(SocketAddr::new(first, 0), false)?;
        let port = local_address(&probe).map_err(io)?.port();
        match udp_socket(SocketAddr::new(second, port), false) {
            Ok(_) => return Ok(port),
            Err(SocketError::InUse { .. }) if tries > 0 => tries -= 1,
            Err(error) => return Err(error),
        }
    }
}

struct Server {
    /// With faces: theirs first, in the order of [`Face::ALL`].
    sockets: Vec<UdpSocket>,
    faces: Option<Faces>,
    limit: Option<SourceLimit>,
    stop: Arc<AtomicBool>,
    counters: Arc<StunCounters>,
    started: std::time::Instant,
}

impl Server {
    fn run(mut self) {
        let sockets = std::mem::take(&mut self.sockets);
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(STOP_INTERVAL.subsec_nanos()) };
        let mut answer = Vec::with_capacity(MAX_RESPONSE.max(MAX_REQUEST));
        while !self.stop.load(Ordering::Relaxed) {
            let mut polled: Vec<_> =
                sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
            if poll(&mut polled, Some(&timeout)).is_err() {
                // Interrupted, or memory that is short for a moment.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let ready: Vec<_> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            for index in ready.iter().enumerate().filter(|(_, ready)| **ready).map(|(index, _)| index) {
                self.serve(&sockets, index, &mut answer);
            }
        }
    }

    fn serve(&mut self, sockets: &[UdpSocket], index: usize, answer: &mut Vec<u8>) {
        let Some(socket) = sockets.get(index) else { return };
        let mut request = [0; MAX_REQUEST + 1];
        for _ in 0..TURN {
            let (length, from) = match socket.recv_from(&mut request) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error about an earlier answer.
                Err(_) => continue,
            };
            let now = Instant::from_nanos(self.started.elapsed().as_nanos() as u64);
            if self.limit.as_mut().is_some_and(|limit| !limit.admit(from.ip(), now)) {
                self.counters.limited.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let at = self.faces.as_ref().zip(Face::ALL.get(index).copied());
            let request = request.get(..length).unwrap_or_default();
            let Reply { outcome, to, face } = respond_at(request, from, at, answer);
            let counter = match outcome {
                Outcome::Success => &self.counters.answered,
                Outcome::Error(_) => &self.counters.refused,
                Outcome::Ignored | Outcome::NotStun => &self.counters.dropped,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            if !answer.is_empty() {
                let socket = face.and_then(|face| sockets.get(face.index())).unwrap_or(socket);
                // Whoever does not get it asks again.
                let _ = socket.send_to(answer, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::stun::{binding_request, parse_response};

    fn client(local: &str) -> UdpSocket {
        let client = UdpSocket::bind(local).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client
    }

    #[test]
    fn a_client_on_v4_and_one_on_v6_learn_their_addresses() {
        for (listen, local) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::]:0", "[::1]:0"), ("[::]:0", "127.0.0.1:0")]
        {
            // A machine without IPv6 has nothing to test there.
            let Ok(server) = StunServer::start(listen.parse::<SocketAddr>().unwrap()) else { continue };
            let client = client(local);
            let to = SocketAddr::new(client.local_addr().unwrap().ip(), server.address().port());
            let (mut request, mut answer) = (Vec::new(), [0; 300]);
            client.send_to(b"not STUN", to).unwrap();
            binding_request([9; 12], &mut request);
            client.send_to(&request, to).unwrap();
            let (length, _) = client.recv_from(&mut answer).unwrap();
            assert_eq!(parse_response(&answer[..length], &[9; 12]), Ok(client.local_addr().unwrap()));
            assert_eq!(server.counters().dropped.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn answers_come_from_the_face_that_was_asked_for_beside_a_wildcard_too() {
        for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
            let local = ["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().unwrap());
            let second = Some(SecondAddress { local, public: local, port: 0 });
            let config = StunConfig { second, ..StunConfig::from(listen.parse::<SocketAddr>().unwrap()) };
            let server = StunServer::start(config).unwrap();
            let (client, port) = (client("127.0.0.1:0"), server.address().port());
            for (flags, ip, same_port) in [
                (0, "127.0.0.1", true),
                (2, "127.0.0.1", false),
                (4, "127.0.0.2", true),
                (6, "127.0.0.2", false),
            ] {
                let mut request = vec![0, 1, 0, 8, 0x21, 0x12, 0xA4, 0x42];
                request.extend_from_slice(&[7; 12]);
                request.extend_from_slice(&[0, 3, 0, 4, 0, 0, 0, flags]);
                client.send_to(&request, ("127.0.0.1", port)).unwrap();
                let mut answer = [0; 300];
                let (length, from) = client.recv_from(&mut answer).unwrap();
                assert_eq!(parse_response(&answer[..length], &[7; 12]), Ok(client.local_addr().unwrap()));
                assert_eq!((from.ip().to_string().as_str(), from.port() == port), (ip, same_port));
            }
        }
    }

    #[test]
    fn who_asks_too_often_hears_nothing_while_others_do() {
        let config =
            StunConfig { requests_per_second: 1, ..StunConfig::from(SocketAddr::from(([127, 0, 0, 1], 0))) };
        let server = StunServer::start(config).unwrap();
        let (greedy, modest) = (client("127.0.0.1:0"), client("127.0.0.3:0"));
        let mut request = Vec::new();
        binding_request([9; 12], &mut request);
        for _ in 0..50 {
            greedy.send_to(&request, server.address()).unwrap();
        }
        modest.send_to(&request, server.address()).unwrap();
        modest.recv_from(&mut [0; 300]).unwrap();
        let limited = server.counters().limited.load(Ordering::Relaxed);
        assert!((45..=48).contains(&limited), "{limited}: two at once, and one a second");
    }
}
