//! The STUN server: a thread per socket that answers Binding requests (`docs/protocol.md` §7). Answers are made by [`crate::proto::wire::stun`].

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::engine::socket::{SocketError, local_address, udp_socket};
use crate::proto::wire::stun::{MAX_REQUEST, MAX_RESPONSE, Outcome, respond};

/// How long a stop may take.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// What the server has seen.
#[derive(Debug, Default)]
pub struct StunCounters {
    /// Binding requests answered with an address.
    pub answered: AtomicU64,
    /// Requests answered with 400 or 420.
    pub refused: AtomicU64,
    /// Datagrams that were not answered: not STUN, indications, wrong fingerprints.
    pub dropped: AtomicU64,
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
    /// Listens on `listen`; a wildcard of IPv6 serves IPv4 too.
    ///
    /// # Errors
    /// The socket cannot be had; the message says what to do.
    pub fn start(listen: SocketAddr) -> Result<Self, SocketError> {
        let socket = udp_socket(listen, false)?;
        let io = |source: io::Error| SocketError::Io { address: listen, source };
        let address = local_address(&socket).map_err(io)?;
        let socket = UdpSocket::from(socket);
        socket.set_nonblocking(false).map_err(io)?;
        socket.set_read_timeout(Some(STOP_INTERVAL)).map_err(io)?;
        let (stop, counters) = (Arc::new(AtomicBool::new(false)), Arc::new(StunCounters::default()));
        let (stopped, counts) = (Arc::clone(&stop), Arc::clone(&counters));
        let thread = std::thread::Builder::new()
            .name("stun".into())
            .spawn(move || serve(&socket, &stopped, &counts))
            .map_err(io)?;
        Ok(Self { address, stop, counters, threads: vec![thread] })
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

fn serve(socket: &UdpSocket, stop: &AtomicBool, counters: &StunCounters) {
    let mut request = [0; MAX_REQUEST + 1];
    let mut answer = Vec::with_capacity(MAX_RESPONSE);
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut request) {
            Ok((length, from)) => {
                let counter = match respond(request.get(..length).unwrap_or_default(), from, &mut answer) {
                    Outcome::Success => &counters.answered,
                    Outcome::Error(_) => &counters.refused,
                    Outcome::Ignored | Outcome::NotStun => &counters.dropped,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                if !answer.is_empty() {
                    // Whoever does not get it asks again.
                    let _ = socket.send_to(&answer, from);
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) => {}
            // An ICMP error about an earlier answer, or memory that is short for a moment.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::stun::{binding_request, parse_response};

    #[test]
    fn a_client_on_v4_and_one_on_v6_learn_their_addresses() {
        for (listen, local) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::]:0", "[::1]:0"), ("[::]:0", "127.0.0.1:0")]
        {
            // A machine without IPv6 has nothing to test there.
            let Ok(server) = StunServer::start(listen.parse().unwrap()) else { continue };
            let client = UdpSocket::bind(local).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
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
}
