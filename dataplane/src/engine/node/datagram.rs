//! UDP sockets of the data thread: one per family, opened when the control side says where, for direct paths (`docs/protocol.md` §8).
//!
//! A datagram is handed to the machine in the driver's memory and opened there; one that goes out is sent at once, or lost when the socket's buffer
//! is full, as on any network. What is too long for the interface is told to the machine, whose search for the path's MTU goes on from there.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::api::{Endpoints, Report};
use super::flow::deliver;
use super::thread::Worker;
use crate::engine::driver::{Driver, RecvBuffer, Token};
use crate::engine::socket::{keep_outside, udp_socket};
use crate::proto::drop_reason::DropReason;
use crate::proto::node::{LocalEndpoints, Received};
use crate::proto::path::direct::{Place, SocketId};
use crate::proto::time::Now;

/// One socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct UdpSocket {
    token: Token,
    /// As asked for: the same again leaves it open.
    bind: SocketAddr,
    port: u16,
}

/// Datagrams of one read of the TUN queue, which is the driver's until it is given back: they are sent after that.
#[derive(Debug, Default)]
pub(super) struct Burst {
    bytes: Vec<u8>,
    each: Vec<(Place, usize)>,
}

impl Burst {
    /// Adds one.
    pub(super) fn push(&mut self, place: Place, datagram: &[u8]) {
        self.bytes.extend_from_slice(datagram);
        self.each.push((place, datagram.len()));
    }
}

impl<D: Driver, F: FnMut(Report)> Worker<D, F> {
    /// Opens, keeps or closes the sockets, and tells the machine of them.
    pub(super) fn set_endpoints(&mut self, endpoints: Endpoints, now: Now) {
        self.udp = [endpoints.bind4, endpoints.bind6].map(|bind| {
            let known = self.udp.iter().flatten().find(|known| Some(known.bind) == bind).copied();
            known.or_else(|| self.open_udp(bind?))
        });
        for token in std::mem::take(&mut self.udp_tokens) {
            if self.udp.iter().flatten().all(|socket| socket.token != token) {
                self.driver.close(token);
            }
        }
        self.udp_tokens = self.udp.iter().flatten().map(|socket| socket.token).collect();
        let [port4, port6] = self.udp.map(|socket| socket.map(|socket| socket.port));
        let Endpoints { addresses, mapped, .. } = endpoints;
        self.node.set_endpoints(LocalEndpoints { port4, port6, addresses, mapped, extra_sockets: 0 }, now);
    }

    fn open_udp(&mut self, bind: SocketAddr) -> Option<UdpSocket> {
        let opened = udp_socket(bind, false).map_err(std::io::Error::other).and_then(|socket| {
            keep_outside(&socket);
            let bound = rustix::net::getsockname(socket.as_fd())?;
            let port = SocketAddr::try_from(bound).map_or(bind.port(), |address| address.port());
            Ok(UdpSocket { token: self.driver.datagram(socket)?, bind, port })
        });
        opened
            .inspect_err(|error| tracing::warn!(%bind, %error, "no UDP socket; packets of this family take the relays"))
            .ok()
    }

    /// Whether a token is one of these sockets; it is gone then.
    pub(super) fn lost_udp(&mut self, token: Token) -> bool {
        let lost = self.udp.iter_mut().find(|socket| socket.is_some_and(|socket| socket.token == token));
        lost.map(|socket| *socket = None).is_some()
    }

    pub(super) fn handle_datagram(&mut self, from: SocketAddr, buffer: RecvBuffer, now: Now) {
        // An IPv4 address in the form of a dual-stack socket would be another one to the machine.
        let remote = SocketAddr::new(from.ip().to_canonical(), from.port());
        let place = Place { socket: SocketId(0), remote };
        let received = self.node.handle_datagram(place, self.driver.bytes(&buffer), now);
        if let Received::Packet { packet, checksum, .. } = received {
            deliver(self.port.as_mut(), &mut self.drops, packet, checksum);
        }
        self.driver.recycle(buffer);
    }

    /// Sends what one read of the TUN queue gave for direct paths.
    pub(super) fn send_burst(&mut self, now: Now) {
        if self.burst.each.is_empty() {
            return;
        }
        let burst = std::mem::take(&mut self.burst);
        let mut rest = burst.bytes.as_slice();
        for &(place, length) in &burst.each {
            let Some((datagram, tail)) = rest.split_at_checked(length) else { break };
            rest = tail;
            self.send_datagram(place, datagram, now);
        }
        self.burst = burst;
        self.burst.bytes.clear();
        self.burst.each.clear();
    }

    /// Sends what is in `scratch`.
    pub(super) fn send_scratch(&mut self, place: Place, now: Now) {
        let scratch = std::mem::take(&mut self.scratch);
        self.send_datagram(place, &scratch, now);
        self.scratch = scratch;
    }

    fn send_datagram(&mut self, place: Place, datagram: &[u8], now: Now) {
        let socket = self.udp[usize::from(place.remote.is_ipv6())];
        let Some(socket) = socket.filter(|_| place.socket == SocketId(0)) else {
            return self.drops.count(DropReason::NoPath);
        };
        match self.driver.send_to(socket.token, place.remote, datagram) {
            Ok(true) => {}
            Ok(false) => self.drops.count(DropReason::QueueFull),
            Err(error) => {
                if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) {
                    self.node.datagram_refused(place, datagram.len(), now);
                }
                self.drops.count(DropReason::WriteError);
            }
        }
    }
}
