//! Asks hosts on the LAN of a gateway whether they are there: a ping, or a TCP connection, which also counts when it is refused.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use meshdp::engine::socket::keep_outside;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// From one question to the next; an answer has as long.
const INTERVAL: Duration = Duration::from_millis(300);
/// So many unanswered in a row: it is gone. So many answered: it is back.
const ENOUGH: u32 = 3;
/// Echo request, in ICMP (RFC 792) and ICMPv6 (RFC 4443).
const ECHO4: u8 = 8;
const ECHO6: u8 = 128;

/// Whom to ask, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Probe {
    Ping(IpAddr),
    Tcp(SocketAddr),
}

impl Probe {
    pub(crate) const fn host(self) -> IpAddr {
        match self {
            Self::Ping(host) => host,
            Self::Tcp(address) => address.ip(),
        }
    }
}

impl FromStr for Probe {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let ping = text.parse().map(Self::Ping);
        ping.or_else(|_| text.parse().map(Self::Tcp)).with_context(|| {
            format!("{text:?}: expected an address (to ping) or address:port (to connect to)")
        })
    }
}

/// Asks for ever; says `(host, alive)` when that changes.
pub(super) async fn watch(probe: Probe, told: mpsc::Sender<(IpAddr, bool)>) {
    let mut clock = interval(INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = State::default();
    let mut sequence = 0u16;
    loop {
        clock.tick().await;
        sequence = sequence.wrapping_add(1);
        let answered = match probe {
            Probe::Ping(host) => timeout(INTERVAL, ping(host, sequence)).await,
            Probe::Tcp(address) => timeout(INTERVAL, connect(address)).await,
        };
        let answered = matches!(answered, Ok(Ok(())));
        if let Some(alive) = state.note(answered) {
            tracing::info!(host = %probe.host(), alive, "probe of the LAN");
            if told.send((probe.host(), alive)).await.is_err() {
                return;
            }
        }
    }
}

/// Alive until it was silent for a while, dead until it has answered for a while.
#[derive(Debug, Default)]
struct State {
    dead: bool,
    /// In a row, against the present state.
    against: u32,
}

impl State {
    /// `Some`: the new state.
    fn note(&mut self, answered: bool) -> Option<bool> {
        self.against = if answered == self.dead { self.against + 1 } else { 0 };
        if self.against < ENOUGH {
            return None;
        }
        self.against = 0;
        self.dead = !answered;
        Some(answered)
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    keep_outside(&socket);
    match socket.connect(address).await {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => Err(error),
        _ => Ok(()),
    }
}

/// One echo. Sockets for pings need no right where the system permits them to groups, raw ones need CAP_NET_RAW.
async fn ping(host: IpAddr, sequence: u16) -> std::io::Result<()> {
    let (domain, protocol, kind) = match host {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, ECHO4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, ECHO6),
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol))
        .or_else(|_| Socket::new(domain, Type::RAW.nonblocking(), Some(protocol)))?;
    keep_outside(&socket);
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(SocketAddr::new(host, 0)).await?;
    let id = (std::process::id() as u16).to_be_bytes();
    let [high, low] = sequence.to_be_bytes();
    let mut question = [kind, 0, 0, 0, id[0], id[1], high, low, b'e', b'd', b'g', b'e'];
    // The kernel does it for ICMPv6, and on sockets for pings.
    let sum = checksum(&question).to_be_bytes();
    question[2..4].copy_from_slice(&sum);
    socket.send(&question).await?;
    let mut buffer = [0; 256];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        // A raw IPv4 socket hands over the IP header as well.
        let skip = if answer.first().is_some_and(|first| first >> 4 == 4) {
            usize::from(answer[0] & 15) * 4
        } else {
            0
        };
        let body = answer.get(skip..).unwrap_or_default();
        let reply = match host {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => ECHO6 + 1,
        };
        if body.first() == Some(&reply) && body.get(6..) == question.get(6..) {
            return Ok(());
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_an_address_to_ping_or_a_port_to_connect_to() {
        assert_eq!("192.168.7.1".parse::<Probe>().unwrap(), Probe::Ping("192.168.7.1".parse().unwrap()));
        assert_eq!("[fd00::1]:443".parse::<Probe>().unwrap(), Probe::Tcp("[fd00::1]:443".parse().unwrap()));
        assert!("router".parse::<Probe>().unwrap_err().to_string().contains("expected an address"));
    }

    #[test]
    fn three_in_a_row_decide() {
        let mut state = State::default();
        let notes: Vec<_> =
            [false, false, true, false, false, false, false, true, true, false, true, true, true]
                .map(|answered| state.note(answered))
                .into_iter()
                .enumerate()
                .filter_map(|(n, news)| Some((n, news?)))
                .collect();
        assert_eq!(notes, [(5, false), (12, true)]);
    }

    #[test]
    fn the_checksum_is_that_of_the_internet() {
        let mut packet = [8, 0, 0, 0, 0x12, 0x34, 0, 1, b'e'];
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&packet), 0);
    }

    #[tokio::test]
    async fn a_refused_connection_is_an_answer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        connect(address).await.unwrap();
        drop(listener);
        connect(address).await.unwrap();
    }
}
