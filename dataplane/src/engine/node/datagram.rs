//! UDP sockets of the data thread: one per family, opened when the control side says where, for direct paths (`docs/protocol.md` §8).
//!
//! Datagrams are handed to the machine in the driver's memory and opened there. Those that go out are sealed where they are sent from, one behind the other, and leave
//! together ([`crate::engine::udp`]): those of a super-packet at once, single ones at the end of a round of events. What the socket's buffer does not
//! take is lost, as on any network. What is too long for the interface is told to the machine, whose search for the path's MTU goes on from there.

use std::net::SocketAddr;

use super::api::{Endpoints, Report};
use super::flow::deliver;
use super::thread::Worker;
use crate::engine::driver::{Driver, RecvBuffer, Token};
use crate::engine::udp::{Batch, UdpSocket};
use crate::proto::drop_reason::DropReason;
use crate::proto::node::{LocalEndpoints, Received};
use crate::proto::path::direct::{Place, SocketId};
use crate::proto::time::Now;

/// The only socket of a family, so far.
pub(super) const FIRST: SocketId = SocketId(0);

/// One socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenSocket {
    token: Token,
    /// As asked for: the same again leaves it open.
    bind: SocketAddr,
    port: u16,
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
        (self.report)(Report::Sockets { port4, port6 });
        let Endpoints { addresses, mapped, lan_discovery, .. } = endpoints;
        let local = LocalEndpoints { port4, port6, addresses, mapped, extra_sockets: 0, lan_discovery };
        self.node.set_endpoints(local, now);
    }

    fn open_udp(&mut self, bind: SocketAddr) -> Option<OpenSocket> {
        let opened = UdpSocket::bind_apart(bind).map_err(std::io::Error::other).and_then(|socket| {
            socket.enlarge_buffers();
            let port = socket.local_address()?.port();
            Ok(OpenSocket { token: self.driver.udp(socket)?, bind, port })
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

    /// Datagrams of one sender, one behind the other, each of `segment` bytes but the last.
    pub(super) fn handle_datagrams(
        &mut self,
        from: SocketAddr,
        segment: usize,
        buffer: RecvBuffer,
        now: Now,
    ) {
        let place = Place { socket: FIRST, remote: from };
        for datagram in self.driver.bytes(&buffer).chunks_mut(segment.max(1)) {
            let received = self.node.handle_datagram(place, datagram, now);
            if let Received::Packet { packet, checksum, .. } = received {
                deliver(self.port.as_mut(), &mut self.drops, packet, checksum);
            }
        }
        self.driver.recycle(buffer);
    }

    /// Sends the datagrams that were sealed since the last time.
    pub(super) fn send_bundles(&mut self, now: Now) {
        let mut bundles = std::mem::take(&mut self.bundles);
        bundles.flush(|batch| self.send_batch(&batch, now));
        self.bundles = bundles;
    }

    /// Sends what is in `scratch`.
    pub(super) fn send_scratch(&mut self, place: Place, now: Now) {
        let scratch = std::mem::take(&mut self.scratch);
        if place.socket == FIRST {
            self.send_batch(
                &Batch { to: place.remote, from: None, segment: scratch.len(), bytes: &scratch },
                now,
            );
        } else {
            self.drops.count(DropReason::NoPath);
        }
        self.scratch = scratch;
    }

    fn send_batch(&mut self, batch: &Batch<'_>, now: Now) {
        let count = batch.bytes.len().div_ceil(batch.segment.max(1)) as u64;
        let Some(socket) = self.udp[usize::from(batch.to.is_ipv6())] else {
            return self.drops.add(DropReason::NoPath, count);
        };
        match self.driver.send_batch(socket.token, batch) {
            Ok(taken) => self.drops.add(DropReason::QueueFull, count - taken as u64),
            Err(error) => {
                if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) {
                    let place = Place { socket: FIRST, remote: batch.to };
                    self.node.datagram_refused(place, batch.segment, now);
                }
                self.drops.add(DropReason::WriteError, count);
            }
        }
    }
}
