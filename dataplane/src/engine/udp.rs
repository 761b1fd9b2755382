//! UDP sockets of the data path: many datagrams per system call, each way.
//!
//! - Out: datagrams of one length for one destination lie behind one another and go in one call (`UDP_SEGMENT`, udp(7)); the last may be
//!   shorter. That was worth a factor of fifteen per datagram on a veth (3.2 to 0.2 µs, 2 vCPU Sapphire Rapids guest, Linux 6.18). Where a
//!   route's device refuses (EIO without checksum offload), its destination is remembered for a while and gets them one by one.
//! - In: what the kernel or network card has put together (`UDP_GRO`) comes as it is, with the length of each and the local address it came to.
//! - Nothing is fragmented on the way (`IP_PMTUDISC_PROBE`): what is longer than the interface's MTU is EMSGSIZE, and the path's MTU is for the caller to find out. ECN bits stay
//!   as they are: zero out, unread in.
//!
//! [`Bundles`] collects datagrams for such sends. Socket options, control messages and their alignment are quinn-udp's work. `control`
//! reads what io_uring leaves in a buffer, which that crate cannot.

mod bundle;

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::net::sockopt;

pub use self::bundle::{Bundles, BundlesFull};
use super::socket::{SocketError, explain, local_address, udp_socket, udp_socket_apart};

/// What a socket of the data path should hold each way: at 5 Gbit/s, 16 ms. Smaller ones lose what comes while the thread does something else.
pub const BUFFER: usize = 10 << 20;
/// The longest UDP payload over IPv4 (and IPv6, where 20 more would fit).
const MAX_PAYLOAD: usize = 65_507;
/// How long a destination gets datagrams one by one after its device has refused a batch.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Destinations that are remembered.
const MAX_REMEMBERED: usize = 256;

/// A bound socket, for [`super::driver::Driver::udp`].
#[derive(Debug)]
pub struct UdpSocket {
    pub(super) descriptor: OwnedFd,
    pub(super) state: Udp,
}

/// What a driver keeps beside the descriptor.
#[derive(Debug)]
pub(super) struct Udp {
    socket: UdpSocketState,
    /// IPv4 goes as mapped addresses.
    v6: bool,
    without_gso: BTreeMap<IpAddr, Instant>,
}

/// Datagrams for one destination.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// From which of this machine's addresses; the system chooses when there is none.
    pub from: Option<IpAddr>,
    /// How long each is, but for the last, which may be shorter.
    pub segment: usize,
    /// All of them, one behind the other.
    pub bytes: &'a [u8],
}

/// What was received, and where its bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Received {
    pub(super) from: SocketAddr,
    pub(super) local: Option<IpAddr>,
    pub(super) segment: usize,
    pub(super) len: usize,
}

impl UdpSocket {
    /// Binds it. `shared` as for [`super::socket::tcp_listener`]. A wildcard IPv6 address takes IPv4 too, which is shown and given as such.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(address: SocketAddr, shared: bool) -> Result<Self, SocketError> {
        Self::new(udp_socket(address, shared)?, address)
    }

    /// Binds it; a wildcard IPv6 address leaves IPv4 to a socket of its own, on the same port if need be.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind_apart(address: SocketAddr) -> Result<Self, SocketError> {
        Self::new(udp_socket_apart(address)?, address)
    }

    fn new(descriptor: OwnedFd, address: SocketAddr) -> Result<Self, SocketError> {
        let socket = UdpSocketState::new(UdpSockRef::from(&descriptor)).map_err(explain(address))?;
        let state = Udp { socket, v6: address.is_ipv6(), without_gso: BTreeMap::new() };
        Ok(Self { descriptor, state })
    }

    /// The address it is bound to: the port that the system chose when 0 was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        local_address(&self.descriptor)
    }

    /// Makes room for `bytes` each way; with CAP_NET_ADMIN beyond the system's limits. Without, what is missing is returned as advice.
    pub fn set_buffers(&self, bytes: usize) -> Option<BufferAdvice> {
        let socket = &self.descriptor;
        if sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(socket, bytes);
        }
        if sockopt::set_socket_send_buffer_size_force(socket, bytes).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(socket, bytes);
        }
        // The kernel doubles what it is asked for, for its own bookkeeping.
        let receive = sockopt::socket_recv_buffer_size(socket).unwrap_or(0) / 2;
        let send = sockopt::socket_send_buffer_size(socket).unwrap_or(0) / 2;
        (receive < bytes || send < bytes).then_some(BufferAdvice { wanted: bytes, receive, send })
    }

    /// The same with [`BUFFER`], the advice going to the log.
    pub fn enlarge_buffers(&self) {
        if let Some(advice) = self.set_buffers(BUFFER) {
            tracing::warn!("{advice}");
        }
    }
}

/// The system's limits are lower than what a socket should hold. Its text says what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "UDP sockets hold {} KiB to receive and {} KiB to send here, bursts need {} KiB: sysctl -w {}",
    receive >> 10, send >> 10, wanted >> 10, self.settings()
)]
pub struct BufferAdvice {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes that may wait to be read.
    pub receive: usize,
    /// Bytes that may wait to be sent.
    pub send: usize,
}

impl BufferAdvice {
    /// What to set, as sysctl(8) takes it.
    pub fn settings(&self) -> String {
        let settings = [("rmem", self.receive), ("wmem", self.send)];
        let missing = settings.iter().filter(|&&(_, have)| have < self.wanted);
        let texts: Vec<String> =
            missing.map(|(name, _)| format!("net.core.{name}_max={}", self.wanted)).collect();
        texts.join(" ")
    }
}

impl Udp {
    /// Sends without waiting; says how many datagrams the socket took.
    pub(super) fn send(&mut self, socket: &OwnedFd, batch: &Batch<'_>) -> io::Result<usize> {
        let segments = self.socket.max_gso_segments();
        self.send_by(batch, segments, Instant::now, |state, transmit| {
            state.try_send(UdpSockRef::from(socket), transmit)
        })
    }

    fn send_by(
        &mut self,
        batch: &Batch<'_>,
        segments: usize,
        now: impl Fn() -> Instant,
        mut send: impl FnMut(&UdpSocketState, &Transmit<'_>) -> io::Result<()>,
    ) -> io::Result<usize> {
        let Batch { to, from, segment, bytes } = *batch;
        let (destination, address) = (self.outward(to), to.ip().to_canonical());
        let fits = (MAX_PAYLOAD / segment.max(1)).clamp(1, segments.max(1));
        let mut together = if self.is_refused(address, &now) { 1 } else { fits };
        let (mut taken, mut refused) = (0, false);
        let mut rest = bytes;
        while !rest.is_empty() && segment > 0 {
            let (part, tail) = rest.split_at(rest.len().min(together * segment));
            let segment_size = (part.len() > segment).then_some(segment);
            let transmit = Transmit { destination, ecn: None, contents: part, segment_size, src_ip: from };
            match send(&self.socket, &transmit) {
                Ok(()) => {
                    taken += part.len().div_ceil(segment);
                    rest = tail;
                    if std::mem::take(&mut refused) {
                        self.remember(address, now() + REMEMBERED);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS) => return Ok(taken),
                    // No offload on this route, or no such kernel: if they go one by one, that was it.
                    Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP) if segment_size.is_some() => {
                        (together, refused) = (1, true);
                    }
                    _ if taken > 0 => return Ok(taken),
                    _ => return Err(error),
                },
            }
        }
        Ok(taken)
    }

    /// Receives into `place` without waiting.
    pub(super) fn receive(&self, socket: &OwnedFd, place: &mut [u8]) -> io::Result<Received> {
        let mut meta = [RecvMeta::default()];
        self.socket.recv(UdpSockRef::from(socket), &mut [IoSliceMut::new(place)], &mut meta)?;
        let [RecvMeta { addr, len, stride, dst_ip, .. }] = meta;
        Ok(Received::new(addr, dst_ip, Some(stride), len))
    }

    /// An address as this socket's family has it.
    fn outward(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(ip) if self.v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
            _ => to,
        }
    }

    /// Whether batches for this destination are refused, as far as is known.
    fn is_refused(&mut self, address: IpAddr, now: impl Fn() -> Instant) -> bool {
        match self.without_gso.get(&address) {
            Some(&until) if until > now() => true,
            Some(_) => {
                self.without_gso.remove(&address);
                false
            }
            None => false,
        }
    }

    fn remember(&mut self, address: IpAddr, until: Instant) {
        if self.without_gso.len() >= MAX_REMEMBERED {
            self.without_gso.pop_first();
        }
        tracing::debug!(%address, "no segmentation offload on the way to this address");
        self.without_gso.insert(address, until);
    }
}

impl Received {
    pub(super) fn new(from: SocketAddr, local: Option<IpAddr>, segment: Option<usize>, len: usize) -> Self {
        let from = match from.ip().to_canonical() {
            // A link-local address is nothing without its scope.
            IpAddr::V6(_) => from,
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, from.port()),
        };
        let segment = segment.filter(|&segment| segment > 0 && segment < len).unwrap_or(len);
        Self { from, local: local.map(|ip| ip.to_canonical()), segment, len }
    }
}

/// Bytes that control messages of a received batch take: room for those that are asked for, and some.
pub(super) const CONTROL_LEN: usize = 128;

/// Reads the control messages of a received batch (cmsg(3)): local address, length of each datagram.
pub(super) fn control(mut bytes: &[u8]) -> (Option<IpAddr>, Option<usize>) {
    /// length ‖ level (4) ‖ type (4) ‖ data, then up to the next multiple of a word
    const WORD: usize = size_of::<usize>();
    const HEADER: usize = (WORD + 8).next_multiple_of(WORD);
    let (mut local, mut segment) = (None, None);
    while let Some((head, _)) = bytes.split_at_checked(HEADER) {
        let length = head.first_chunk().map_or(0, |length| usize::from_ne_bytes(*length));
        let number = |at: usize| head.get(at..).and_then(<[u8]>::first_chunk).map(|n| i32::from_ne_bytes(*n));
        let Some(data) = bytes.get(HEADER..length) else { break };
        match (number(WORD), number(WORD + 4)) {
            (Some(libc::SOL_UDP), Some(libc::UDP_GRO)) => {
                let size = data.first_chunk().map(|size| i32::from_ne_bytes(*size));
                segment = size.and_then(|size| usize::try_from(size).ok());
            }
            // in_pktinfo: interface (4) ‖ local address (4) ‖ destination (4)
            (Some(libc::IPPROTO_IP), Some(libc::IP_PKTINFO)) => {
                local = data.get(8..).and_then(<[u8]>::first_chunk::<4>).map(|ip| Ipv4Addr::from(*ip).into());
            }
            // in6_pktinfo: destination (16) ‖ interface (4)
            (Some(libc::IPPROTO_IPV6), Some(libc::IPV6_PKTINFO)) => {
                local = data.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip).into());
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(WORD)..).unwrap_or_default();
    }
    (local, segment)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn socket(address: &str) -> UdpSocket {
        UdpSocket::bind(address.parse().unwrap(), false).unwrap()
    }

    /// Sends `count` datagrams of 1000 bytes through a device that answers `error` to batches.
    fn send(
        udp: &mut Udp,
        to: &str,
        count: usize,
        now: Instant,
        error: Option<i32>,
    ) -> (io::Result<usize>, Vec<usize>) {
        let bytes = vec![0; count * 1000 - 10];
        let batch = Batch { to: to.parse().unwrap(), from: None, segment: 1000, bytes: &bytes };
        let mut sends = Vec::new();
        let outcome = udp.send_by(
            &batch,
            64,
            || now,
            |_, transmit| match error {
                Some(error) if transmit.segment_size.is_some() => Err(io::Error::from_raw_os_error(error)),
                _ => {
                    sends.push(transmit.contents.len());
                    Ok(())
                }
            },
        );
        (outcome, sends)
    }

    #[test]
    fn batches_keep_to_what_one_send_carries() {
        let mut udp = socket("127.0.0.1:0").state;
        let (outcome, sends) = send(&mut udp, "192.0.2.1:9", 130, Instant::now(), None);
        assert_eq!((outcome.unwrap(), sends), (130, vec![64_000, 64_000, 1990]));
        let bytes = vec![0; 90_000];
        let batch = Batch { to: "192.0.2.1:9".parse().unwrap(), from: None, segment: 1441, bytes: &bytes };
        let mut longest = 0;
        udp.send_by(&batch, 64, Instant::now, |_, transmit| {
            longest = longest.max(transmit.contents.len());
            Ok(())
        })
        .unwrap();
        assert_eq!(longest, 45 * 1441);
    }

    #[test]
    fn a_route_without_offload_is_remembered_and_tried_again_later() {
        let mut udp = socket("[::1]:0").state;
        let now = Instant::now();
        let one_by_one = vec![1000, 1000, 990];
        let (outcome, sends) = send(&mut udp, "192.0.2.1:9", 3, now, Some(libc::EIO));
        assert_eq!((outcome.unwrap(), sends), (3, one_by_one.clone()));
        let (_, sends) = send(&mut udp, "192.0.2.1:10", 3, now, None);
        assert_eq!(sends, one_by_one, "no batch was tried");
        let (_, sends) = send(&mut udp, "192.0.2.2:9", 3, now, None);
        assert_eq!(sends, [2990], "other destinations have other routes");
        let (_, sends) = send(&mut udp, "192.0.2.1:9", 3, now + REMEMBERED, None);
        assert_eq!(sends, [2990]);
        for n in 0..1000 {
            send(&mut udp, &format!("10.0.{}.{}:9", n / 250, n % 250), 2, now, Some(libc::EINVAL)).0.unwrap();
        }
        assert_eq!(udp.without_gso.len(), MAX_REMEMBERED);
    }

    #[test]
    fn an_error_that_single_datagrams_meet_too_is_no_matter_of_offload() {
        let mut udp = socket("127.0.0.1:0").state;
        let batch =
            Batch { to: "192.0.2.1:9".parse().unwrap(), from: None, segment: 5, bytes: b"0123456789" };
        for (error, expected) in [
            (libc::EMSGSIZE, Err(Some(libc::EMSGSIZE))),
            (libc::EIO, Err(Some(libc::EIO))),
            (libc::EAGAIN, Ok(0)),
        ] {
            let outcome =
                udp.send_by(&batch, 64, Instant::now, |_, _| Err(io::Error::from_raw_os_error(error)));
            assert_eq!(outcome.map_err(|error| error.raw_os_error()), expected);
        }
        assert!(udp.without_gso.is_empty());
    }

    #[test]
    fn advice_names_what_is_too_low() {
        let advice = BufferAdvice { wanted: 10 << 20, receive: 212_992, send: 10 << 20 };
        assert_eq!(
            advice.to_string(),
            "UDP sockets hold 208 KiB to receive and 10240 KiB to send here, bursts need 10240 KiB: sysctl -w net.core.rmem_max=10485760"
        );
        let socket = socket("127.0.0.1:0");
        assert_eq!(socket.set_buffers(4096), None);
        if let Some(advice) = socket.set_buffers(1 << 30) {
            assert!(
                advice.to_string().contains("net.core.rmem_max=1073741824 net.core.wmem_max=1073741824"),
                "{advice}"
            );
        }
    }

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let length = size_of::<usize>() + 8 + data.len();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&level.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(length.next_multiple_of(size_of::<usize>()), 0);
        bytes
    }

    #[test]
    fn control_messages_are_read_in_any_order() {
        let size = message(libc::SOL_UDP, libc::UDP_GRO, &1200i32.to_ne_bytes());
        let other = message(libc::IPPROTO_IP, libc::IP_TOS, &[2]);
        let four = message(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1, 0, 0, 0, 9, 9, 9, 9, 192, 0, 2, 7]);
        let mut six = Ipv6Addr::LOCALHOST.octets().to_vec();
        six.extend_from_slice(&[1, 0, 0, 0]);
        let six = message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &six);
        assert_eq!(control(&[&size[..], &other, &four].concat()), (Some([192, 0, 2, 7].into()), Some(1200)));
        assert_eq!(control(&[six, other, size].concat()), (Some(Ipv6Addr::LOCALHOST.into()), Some(1200)));
        assert_eq!(control(&[]), (None, None));
    }

    proptest! {
        #[test]
        fn any_control_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), length in 0usize..100) {
            control(&bytes);
            control(&[&length.to_ne_bytes()[..], &bytes].concat());
        }
    }
}
