//! The hot path: packets out and in, sealed and opened in the caller's buffer; and the inner messages beside them (`docs/protocol.md` §2.3).

use std::time::Duration;

use super::api::{Checksum, EchoError, Event, Outgoing, Received, Target};
use super::direct::Origin;
use super::peer::{Peer, Trust};
use super::queue::Waiting;
use super::timer::Timer;
use super::{Echo, Node};
use crate::proto::drop_reason::DropReason;
use crate::proto::id::{NodeId, SessionIndex};
use crate::proto::path::choice::Path;
use crate::proto::routing::health::ROUTES_DOWN;
use crate::proto::routing::packet::{Addresses, udp_source_port};
use crate::proto::routing::table::PeerKey;
use crate::proto::session::registry::Standing;
use crate::proto::session::rekey;
use crate::proto::session::transport::MAX_PACKET;
use crate::proto::time::{Instant, Now};
use crate::proto::wire::data::{DATA_HEADROOM, DATA_OVERHEAD, Nonce, Route, TAG_LEN, route};
use crate::proto::wire::frame::Flags;

/// Inner message: answer this.
pub(super) const ECHO_REQUEST: u8 = 0x01;
/// Inner message: the answer.
const ECHO_REPLY: u8 = 0x02;
/// type (1) ‖ id (8)
const ECHO_LEN: usize = 9;
/// Echoes under way at a time.
const MAX_ECHOES: usize = 256;
/// An answer that comes later is not waited for.
const ECHO_TIMEOUT: Duration = Duration::from_secs(30);

impl Node {
    /// One IP packet from the TUN device. `buffer` is exactly `DATA_HEADROOM` bytes, the packet, `TAG_LEN` bytes.
    pub fn handle_packet(&mut self, buffer: &mut [u8], checksum: Checksum, now: Now) -> Outgoing {
        self.route_packet(buffer, checksum, now).unwrap_or_else(|reason| {
            self.drops.count(reason);
            Outgoing::Dropped(reason)
        })
    }

    fn route_packet(
        &mut self,
        buffer: &mut [u8],
        checksum: Checksum,
        now: Now,
    ) -> Result<Outgoing, DropReason> {
        let length = buffer.len().checked_sub(DATA_OVERHEAD).ok_or(DropReason::Malformed)?;
        if length > MAX_PACKET {
            return Err(DropReason::TooBig);
        }
        let packet = buffer.get(DATA_HEADROOM..DATA_HEADROOM + length).ok_or(DropReason::Malformed)?;
        let addresses = Addresses::of(packet).map_err(|_| DropReason::Malformed)?;
        if udp_source_port(packet).is_some_and(|port| self.net.is_own_port(port))
            && self.memberships.values().any(|own| own.accepts.has_host(addresses.source))
        {
            return Err(DropReason::OwnDatagram);
        }
        let directory = &self.directory;
        let usable = |key| directory.get(key).is_some_and(|peer| peer.is_usable(now.instant));
        let key = directory.routes.lookup(packet, addresses, usable).ok_or(DropReason::NoRoute)?;
        let Some(target) = self.seal_for(key, buffer, checksum, now)? else {
            self.enqueue(key, buffer.to_vec(), checksum, now);
            return Ok(Outgoing::Queued);
        };
        if let Target::Relay { relay, .. } = target
            && let Some(connection) = self.relays.get_mut(&relay)
        {
            connection.note_sent(now.instant);
        }
        Ok(Outgoing::Send { target, frame: 0..buffer.len() })
    }

    /// Seals what is in `buffer` for a peer; `None`: there is no session to do it with.
    pub(super) fn seal_for(
        &mut self,
        key: PeerKey,
        buffer: &mut [u8],
        checksum: Checksum,
        now: Now,
    ) -> Result<Option<Target>, DropReason> {
        let peer = self.directory.get_mut(key).ok_or(DropReason::NoRoute)?;
        if peer.trust != Trust::Verified {
            return Err(DropReason::UntrustedKey);
        }
        let route = Route { source: peer.own, destination: peer.id };
        let target = peer.target(buffer.len());
        let Some(session) = peer.sessions.sealing(now.instant) else { return Ok(None) };
        let target = target.ok_or(DropReason::NoPath)?;
        let counted = buffer.get(DATA_HEADROOM).is_some_and(|first| matches!(first >> 4, 4 | 6));
        session.seal(route, flags(checksum), buffer).map_err(|_| DropReason::TooBig)?;
        let renew = now.instant >= peer.renew_at || session.sealed() >= rekey::REKEY_PACKETS;
        if counted {
            peer.traffic.tx_packets += 1;
            peer.traffic.tx_bytes += (buffer.len() - DATA_OVERHEAD) as u64;
        }
        if let Some(at) = peer.note_sent(now.instant) {
            self.timers.set(Timer::Peer(key), at);
        }
        if let Target::Direct(place) = target
            && let Some(at) = peer.direct.note_sent(place, now.instant).and_then(|at| peer.wants_timer(at))
        {
            self.timers.set(Timer::Peer(key), at);
        }
        if renew {
            self.want_session(key, now);
        }
        Ok(Some(target))
    }

    /// Keeps a packet until there is a session, and asks for one.
    pub(super) fn enqueue(&mut self, key: PeerKey, buffer: Vec<u8>, checksum: Checksum, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let waiting = Waiting { buffer, checksum, since: now.instant };
        let dropped = peer.queue.push(waiting, &mut self.queued_bytes);
        self.drops.add(DropReason::HandshakeQueue, dropped);
        self.want_session(key, now);
    }

    /// Sends what waited for a session. An initiator sends an empty packet if nothing did, so that the responder may send too.
    pub(super) fn flush_queue(&mut self, key: PeerKey, keepalive: bool, now: Now) {
        // A session that was made without a relay waits for its first path.
        if self.directory.get(key).is_some_and(|peer| peer.target(0).is_none()) {
            return;
        }
        let mut sent = false;
        while let Some(mut waiting) =
            self.directory.get_mut(key).and_then(|peer| peer.queue.pop(&mut self.queued_bytes))
        {
            if now.instant.saturating_since(waiting.since) > super::queue::MAX_AGE {
                self.drops.count(DropReason::QueueAge);
                continue;
            }
            match self.seal_for(key, &mut waiting.buffer, waiting.checksum, now) {
                Ok(Some(target)) => {
                    self.outbox.send(&mut self.relays, target, waiting.buffer, now.instant);
                    sent = true;
                }
                Ok(None) => self.drops.count(DropReason::HandshakeQueue),
                Err(reason) => self.drops.count(reason),
            }
        }
        if keepalive && !sent {
            self.send_keepalive(key, now);
        }
    }

    /// An empty packet. It deserves no answer.
    pub(super) fn send_keepalive(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let route = Route { source: peer.own, destination: peer.id };
        let Some(target) = peer.target(DATA_OVERHEAD) else { return };
        let mut buffer = vec![0; DATA_OVERHEAD];
        let sealed = peer.sessions.sealing(now.instant).map(|s| s.seal(route, Flags::NONE, &mut buffer));
        if sealed == Some(Ok(())) {
            peer.owed = None;
            self.outbox.send(&mut self.relays, target, buffer, now.instant);
        }
    }

    /// One DATA frame.
    pub(super) fn receive_data<'a>(
        &mut self,
        origin: Origin,
        flags: Flags,
        frame: &'a mut [u8],
        now: Now,
    ) -> Result<Received<'a>, DropReason> {
        let route = route(frame).map_err(|_| DropReason::Malformed)?;
        let nonce = Nonce::of_frame(frame).map_err(|_| DropReason::Malformed)?;
        let (index, size) = (nonce.index, frame.len());
        let Some(key) = self.directory.by_session(index) else {
            // Anybody can send datagrams; of relays the sender is known.
            if origin.relay().is_some() {
                self.session_lost(route, now);
            }
            return Err(DropReason::UnknownSession);
        };
        let peer = self.directory.get_mut(key).ok_or(DropReason::UnknownSession)?;
        if route.source != peer.id {
            return Err(DropReason::SpoofedSource);
        }
        if route.destination != peer.own {
            return Err(DropReason::UnknownDestination);
        }
        let (standing, session) = peer.sessions.find(index).ok_or(DropReason::UnknownSession)?;
        let text = session.open(frame)?;
        let newest = session.is_newest(nonce.counter) && standing != Standing::Old;
        peer.note_heard(origin.relay(), now.instant);
        if let Origin::Direct(place) = origin {
            self.heard_directly(key, place, newest, text, now);
        }
        if standing == Standing::Unconfirmed {
            self.session_confirmed(key, index, now);
        }
        let checksum =
            if flags.contains(Flags::PARTIAL_CSUM) { Checksum::Partial } else { Checksum::Complete };
        match text.first().map(|first| first >> 4) {
            None => Ok(Received::Consumed),
            Some(4 | 6) => {
                self.admit(key, text, now)?;
                Ok(Received::Packet { packet: text, checksum, from: route.source, to: route.destination })
            }
            Some(0) => {
                self.receive_inner(key, origin, text, size, now)?;
                Ok(Received::Consumed)
            }
            Some(_) => Err(DropReason::UnknownInner),
        }
    }

    /// Checks the addresses of a packet that came from a peer, and counts it.
    fn admit(&mut self, key: PeerKey, packet: &[u8], now: Now) -> Result<(), DropReason> {
        let addresses = Addresses::of(packet).map_err(|_| DropReason::Malformed)?;
        let peer = self.directory.get(key).ok_or(DropReason::UnknownSession)?;
        let own = self.memberships.get(&peer.own).ok_or(DropReason::UnknownDestination)?;
        if !peer.allowed.has_host(addresses.source) {
            // Behind a route of its: but never another node's own address, nor ours.
            let behind = peer.allowed.contains(addresses.source)
                && !self.directory.routes.has_host(addresses.source)
                && !own.accepts.has_host(addresses.source);
            if !behind {
                return Err(DropReason::SourceAddress);
            }
        }
        if !own.accepts.contains(addresses.destination) {
            return Err(DropReason::DestinationAddress);
        }
        let peer = self.directory.get_mut(key).ok_or(DropReason::UnknownSession)?;
        peer.traffic.rx_packets += 1;
        peer.traffic.rx_bytes += packet.len() as u64;
        self.note_owed(key, now);
        if self.own_routes.any_down() {
            self.remind(key, addresses, now);
        }
        Ok(())
    }

    /// Something came that deserves an answer.
    pub(super) fn note_owed(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let renew = now.instant >= peer.renew_at;
        if let Some(at) = peer.note_owed(now.instant) {
            self.timers.set(Timer::Peer(key), at);
        }
        if renew {
            self.want_session(key, now);
        }
    }

    /// An inner message: type (1) ‖ id (8) ‖ padding.
    fn receive_inner(
        &mut self,
        key: PeerKey,
        origin: Origin,
        text: &[u8],
        size: usize,
        now: Now,
    ) -> Result<(), DropReason> {
        let (&kind, rest) = text.split_first().ok_or(DropReason::UnknownInner)?;
        let id = rest.first_chunk().map(|id| u64::from_be_bytes(*id));
        match (kind, id) {
            (ECHO_REQUEST, Some(id)) => {
                self.note_owed(key, now);
                let mut buffer = echo_buffer(ECHO_REPLY, id, text.len());
                if let Some(target) = self.seal_for(key, &mut buffer, Checksum::Complete, now)? {
                    self.outbox.send(&mut self.relays, target, buffer, now.instant);
                }
                Ok(())
            }
            (ECHO_REPLY, Some(id)) => {
                self.note_owed(key, now);
                let Some(peer) = self.directory.get_mut(key) else { return Ok(()) };
                if self.echoes.get(&id).is_some_and(|echo| echo.to == peer.id) {
                    let echo = self.echoes.remove(&id).expect("it was there a line ago");
                    let rtt = now.instant.saturating_since(echo.sent);
                    peer.rtt = Some(rtt);
                    let (path, direct) = match origin {
                        Origin::Relay(relay) => {
                            (peer.path.path().map_or_else(|| vec![relay], Path::to_list), None)
                        }
                        Origin::Direct(place) => (Vec::new(), Some(place.remote)),
                    };
                    self.outbox.events.push_back(Event::EchoReply { from: peer.id, id, rtt, path, direct });
                }
                Ok(())
            }
            (ECHO_REQUEST | ECHO_REPLY, None) => Err(DropReason::Malformed),
            (ROUTES_DOWN, _) => self.receive_routes_down(key, text, now),
            _ => self.receive_path_message(key, origin, text, size, now),
        }
    }

    /// Asks a peer for an answer of `size` bytes; it comes as [`Event::EchoReply`] with `id`.
    ///
    /// # Errors
    /// See [`EchoError`].
    pub fn echo(&mut self, to: NodeId, id: u64, size: usize, now: Now) -> Result<(), EchoError> {
        let key = self.directory.key_of(to).ok_or(EchoError::UnknownPeer)?;
        let mtu = self.config.as_ref().map_or(0, |config| usize::from(config.settings.mtu));
        let size = size.max(ECHO_LEN);
        if size > mtu {
            return Err(EchoError::TooBig);
        }
        self.echoes.retain(|_, echo| now.instant.saturating_since(echo.sent) < ECHO_TIMEOUT);
        if self.echoes.len() >= MAX_ECHOES {
            return Err(EchoError::TooMany);
        }
        let mut buffer = echo_buffer(ECHO_REQUEST, id, size);
        match self.seal_for(key, &mut buffer, Checksum::Complete, now) {
            Ok(Some(target)) => self.outbox.send(&mut self.relays, target, buffer, now.instant),
            Ok(None) => self.enqueue(key, buffer, Checksum::Complete, now),
            Err(DropReason::NoPath) => return Err(EchoError::NoPath),
            Err(_) => return Err(EchoError::Untrusted),
        }
        self.echoes.insert(id, Echo { to, sent: now.instant });
        Ok(())
    }

    /// A packet for a session that we do not know: the peer goes on with one that we lost. If we have none with it, we make one, at most once
    /// a second.
    fn session_lost(&mut self, route: Route, now: Now) {
        let Some(key) = self.directory.key_of(route.source) else { return };
        let Some(peer) = self.directory.get_mut(key).filter(|peer| peer.own == route.destination) else {
            return;
        };
        let none = peer.sessions.sealing(now.instant).is_none();
        if none && peer.nudged.is_none_or(|then| now.instant.saturating_since(then) >= rekey::RETRY) {
            peer.nudged = Some(now.instant);
            self.want_session(key, now);
        }
    }

    /// Forgets all of a peer's sessions, handshakes and packets.
    pub(super) fn forget_sessions(&mut self, key: PeerKey) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        peer.sessions.clear(&mut self.gone);
        drop_attempts(peer, &mut self.gone);
        peer.pending = None;
        peer.renew_timer = None;
        peer.direct.stop();
        let dropped = peer.queue.clear(&mut self.queued_bytes);
        self.drops.add(DropReason::HandshakeQueue, dropped);
        self.directory.release(&mut self.gone);
    }
}

/// The attempts of a handshake are no longer waited for.
pub(super) fn drop_attempts(peer: &mut Peer, gone: &mut Vec<SessionIndex>) {
    if let Some(pending) = &mut peer.pending {
        gone.extend(pending.attempts.drain(..).map(|attempt| attempt.local()));
    }
}

const fn flags(checksum: Checksum) -> Flags {
    match checksum {
        Checksum::Complete => Flags::NONE,
        Checksum::Partial => Flags::PARTIAL_CSUM,
    }
}

/// An inner message with room around it, as `Session::seal` takes it.
pub(super) fn echo_buffer(kind: u8, id: u64, size: usize) -> Vec<u8> {
    let mut buffer = vec![0; DATA_HEADROOM + size.max(ECHO_LEN) + TAG_LEN];
    if let Some(head) = buffer.get_mut(DATA_HEADROOM..DATA_HEADROOM + ECHO_LEN) {
        head[0] = kind;
        head[1..].copy_from_slice(&id.to_be_bytes());
    }
    buffer
}

/// Whether `at` has come.
pub(super) fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}
