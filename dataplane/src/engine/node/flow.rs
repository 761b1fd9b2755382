//! Frames and packets on their way through the data thread.
//!
//! A read of the TUN queue may stand for many packets, which are sealed one by one; those that come are put together again until the end of a round of events
//! ([`crate::packet::offload`]). What waits for a relay is bounded in bytes and in age; when the outbox in use fills, reading from the TUN queue pauses, so that the kernel's own queue
//! discipline decides what to drop.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;

use super::api::Report;
use super::datagram::FIRST;
use super::relay::{Links, Phase};
use super::thread::{Port, Worker};
use crate::engine::connection::Incoming;
use crate::engine::driver::{Driver, RecvBuffer, Token};
use crate::engine::socket;
use crate::engine::udp::Bundles;
use crate::packet::offload::{Fill, SuperPacket, Write};
use crate::proto::drop_reason::{DropCounters, DropReason};
use crate::proto::error::FrameError;
use crate::proto::id::RelayId;
use crate::proto::node::{Checksum, Event, Node, Outgoing, Received, Target};
use crate::proto::path::direct::Place;
use crate::proto::time::{Instant, Now};
use crate::proto::wire::data::{DATA_HEADROOM, DATA_OVERHEAD, VIA_PREFIX_LEN, via_header};
use crate::proto::wire::frame::{FrameHeader, FrameType, HEADER_LEN};

/// Header and relay id of a VIA frame.
const VIA_LEN: usize = HEADER_LEN + VIA_PREFIX_LEN;

/// Where the next packet probably goes: where the last one went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guess {
    /// By this relay, and over the mesh to the other one.
    Relay(RelayId, Option<RelayId>),
    /// In a datagram.
    Direct(SocketAddr),
}

impl Guess {
    /// Whether it is by `relay`.
    pub(super) fn is_by(self, relay: RelayId) -> bool {
        matches!(self, Self::Relay(first, _) if first == relay)
    }
}

impl<D: Driver, F: FnMut(Report)> Worker<D, F> {
    /// What one read of the TUN queue gave: each packet of it is copied once, into the outbox where it is sealed.
    pub(super) fn handle_packet(&mut self, buffer: RecvBuffer, now: Now) {
        let Some(port) = &self.port else { return self.driver.recycle(buffer) };
        let mut many = false;
        match port.format.read(self.driver.bytes(&buffer)) {
            Ok(whole) => {
                let mut outgoing = Sealing {
                    node: &mut self.node,
                    links: &mut self.links,
                    guess: &mut self.guess,
                    scratch: &mut self.scratch,
                    drops: &mut self.drops,
                    bundles: &mut self.bundles,
                };
                (0..whole.count()).for_each(|index| outgoing.packet(&whole, index, now));
                many = whole.count() > 1;
            }
            Err(error) => {
                tracing::trace!(%error, "dropped what the TUN queue gave");
                self.drops.count(DropReason::Malformed);
            }
        }
        self.driver.recycle(buffer);
        if many {
            // While it is in the cache.
            self.send_bundles(now);
        }
        self.press_back();
    }

    /// Stops reading packets while the relay in use has a quarter of its limit waiting.
    pub(super) fn press_back(&mut self) {
        let Some(Guess::Relay(relay, _)) = self.guess else { return };
        let queued = self.links.of_relay(relay).map_or(0, |link| link.outbox.queued());
        if let Some(port) = self.port.as_mut().filter(|port| !port.paused && queued > self.limits.queue / 4) {
            port.paused = true;
            self.driver.pause(port.token);
        }
    }

    pub(super) fn handle_received(&mut self, token: Token, buffer: RecvBuffer, now: Now) {
        let Some(link) = self.links.get(token) else { return self.driver.recycle(buffer) };
        let (relay, live) = (link.relay, link.is_live());
        let (node, drops) = (&mut self.node, &mut self.drops);
        let mut port = self.port.as_mut();
        let mut upgraded = false;
        let mut failure = None;
        let result = link.connection.receive(self.driver.bytes(&buffer), &mut |incoming| match incoming {
            _ if !live || failure.is_some() => {}
            Incoming::Upgraded(_) => {
                upgraded = true;
                node.relay_connected(relay, now);
            }
            Incoming::Message(frames) => {
                let walked = walk(node, port.as_deref_mut(), drops, relay, frames, now);
                failure = walked.err().map(|error| error.to_string());
            }
            Incoming::Closed { code } => {
                failure = Some(code.map_or_else(
                    || "it closed the connection".to_owned(),
                    |code| format!("it closed the connection with code {code}"),
                ));
            }
        });
        self.driver.recycle(buffer);
        if upgraded {
            link.phase = Phase::Open;
        }
        let failure = result.err().map(|error| error.to_string()).or(failure);
        if let Some(what) = failure.filter(|_| live) {
            let (name, what) = (link.name.clone(), link.explain(what));
            self.node.relay_closed(relay, now);
            self.begin_close(token, "connection failed", now);
            self.relay_failed(relay, name, what);
        }
    }

    /// Takes everything that the machine has to say.
    pub(super) fn drain(&mut self, now: Now) {
        loop {
            self.scratch.clear();
            let Some(target) = self.node.poll_transmit(&mut self.scratch) else { break };
            let relay = match target {
                Target::Relay { relay, .. } => relay,
                Target::Direct(place) => {
                    self.send_scratch(place, now);
                    continue;
                }
            };
            let Some(link) = self.links.of_relay(relay) else { continue };
            let pushed = if is_bulk(&self.scratch) {
                link.outbox.push(&self.scratch, now.instant)
            } else {
                link.outbox.push_urgent(&self.scratch, now.instant)
            };
            if pushed.is_err() {
                self.drops.count(DropReason::QueueFull);
            }
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::DialRelay { relay } if self.stopping.is_none() => self.start_dial(relay, now),
                Event::DialRelay { .. } => {}
                Event::DropRelay { id, reason } => {
                    self.dials.retain(|dial| dial.relay.id != id);
                    if let Some(token) = self.links.of_relay(id).map(|link| link.token) {
                        self.begin_close(token, reason, now);
                    }
                }
                other => (self.report)(Report::Node(other)),
            }
        }
    }

    /// Writes what was put together for the TUN queue.
    pub(super) fn flush_port(&mut self) {
        if let Some(port) = &mut self.port {
            port.incoming.flush(write_to(&port.writer, &mut self.drops));
        }
    }

    /// Gives every stream that can take one its next buffer.
    pub(super) fn flush(&mut self, now: Now) {
        let oldest =
            Instant::from_nanos(now.instant.as_nanos().saturating_sub(self.limits.age.as_nanos() as u64));
        let mut most_queued = 0;
        let mut failed = Vec::new();
        for link in self.links.iter() {
            if self.driver.can_send(link.token) {
                match link.connection.take_output(&mut link.outbox) {
                    Ok(Some(buffer)) => self.driver.send(link.token, buffer),
                    Ok(None) => {
                        if let Phase::Closing { shut, .. } = &mut link.phase
                            && !*shut
                            && link.connection.is_finished()
                        {
                            *shut = true;
                            self.driver.shutdown(link.token);
                        }
                    }
                    Err(error) => failed.push((link.token, error.to_string())),
                }
            } else if link.outbox.queued() > 0 {
                let dropped = link.outbox.drop_older_than(oldest);
                self.drops.add(DropReason::QueueAge, dropped.frames as u64);
            }
            most_queued = most_queued.max(link.outbox.queued());
        }
        for (token, error) in failed {
            self.driver.close(token);
            if let Some(link) = self.links.remove(token) {
                self.lost(*link, error, now);
            }
        }
        if let Some(port) =
            self.port.as_mut().filter(|port| port.paused && most_queued <= self.limits.queue / 8)
        {
            port.paused = false;
            self.driver.resume(port.token);
        }
    }
}

/// What packets of the TUN queue need on their way to an outbox or a datagram.
struct Sealing<'a> {
    node: &'a mut Node,
    links: &'a mut Links,
    guess: &'a mut Option<Guess>,
    scratch: &'a mut Vec<u8>,
    drops: &'a mut DropCounters,
    bundles: &'a mut Bundles,
}

impl Sealing<'_> {
    /// Packet `index` of `whole`, its checksum left to the receiver where that is possible.
    fn packet(&mut self, whole: &SuperPacket<'_>, index: usize, now: Now) {
        let guess = *self.guess;
        let elsewhere = match guess {
            Some(Guess::Relay(relay, via)) => self.seal_in_outbox(whole, index, relay, via, now),
            Some(Guess::Direct(to)) => self.seal_in_bundle(whole, index, to, now),
            None => self.seal_in_scratch(whole, index, now),
        };
        match elsewhere {
            Some(Target::Relay { relay, via }) => {
                *self.guess = Some(Guess::Relay(relay, via));
                self.push_scratch(relay, via, now);
            }
            Some(Target::Direct(place)) if place.socket == FIRST => {
                *self.guess = Some(Guess::Direct(place.remote));
                match self.bundles.reserve(place.remote, None, self.scratch.len()) {
                    Ok(room) => {
                        room.copy_from_slice(self.scratch);
                        self.bundles.commit(self.scratch.len());
                    }
                    Err(_) => self.drops.count(DropReason::QueueFull),
                }
            }
            Some(Target::Direct(_)) => self.drops.count(DropReason::NoPath),
            None => {}
        }
    }

    /// Seals it where the relay's connection takes it from; if it has to go elsewhere, it is in `scratch`, and the target comes back.
    fn seal_in_outbox(
        &mut self,
        whole: &SuperPacket<'_>,
        index: usize,
        relay: RelayId,
        via: Option<RelayId>,
        now: Now,
    ) -> Option<Target> {
        let lead = if via.is_some() { VIA_LEN } else { 0 };
        let room = DATA_OVERHEAD + whole.len_of(index);
        let Some(link) = self.links.of_relay(relay) else { return self.seal_in_scratch(whole, index, now) };
        let Ok(space) = link.outbox.reserve(lead + room, now.instant) else {
            return self.seal_in_scratch(whole, index, now);
        };
        let (head, body) = space.split_at_mut(lead);
        let (target, frame) = seal(self.node, whole, index, body, now)?;
        if target != (Target::Relay { relay, via }) || frame.start != 0 {
            self.scratch.clear();
            self.scratch.extend_from_slice(&body[frame]);
            return Some(target);
        }
        if let Some(Ok(header)) = via.map(|id| via_header(id, frame.len())) {
            head.copy_from_slice(&header);
        }
        link.outbox.commit(lead + frame.end);
        None
    }

    /// The same behind the last datagram for `to`.
    fn seal_in_bundle(
        &mut self,
        whole: &SuperPacket<'_>,
        index: usize,
        to: SocketAddr,
        now: Now,
    ) -> Option<Target> {
        let Ok(body) = self.bundles.reserve(to, None, DATA_OVERHEAD + whole.len_of(index)) else {
            return self.seal_in_scratch(whole, index, now);
        };
        let (target, frame) = seal(self.node, whole, index, body, now)?;
        if target != Target::Direct(Place { socket: FIRST, remote: to }) || frame.start != 0 {
            self.scratch.clear();
            self.scratch.extend_from_slice(&body[frame]);
            return Some(target);
        }
        self.bundles.commit(frame.end);
        None
    }

    /// Seals it in `scratch`.
    fn seal_in_scratch(&mut self, whole: &SuperPacket<'_>, index: usize, now: Now) -> Option<Target> {
        self.scratch.clear();
        self.scratch.resize(DATA_OVERHEAD + whole.len_of(index), 0);
        let (target, frame) = seal(self.node, whole, index, self.scratch, now)?;
        self.scratch.truncate(frame.end);
        self.scratch.drain(..frame.start);
        Some(target)
    }

    /// Sends the frame in `scratch` to `relay`.
    fn push_scratch(&mut self, relay: RelayId, via: Option<RelayId>, now: Now) {
        let Some(link) = self.links.of_relay(relay) else { return self.drops.count(DropReason::NoPath) };
        let lead = if via.is_some() { VIA_LEN } else { 0 };
        let Ok(room) = link.outbox.reserve(lead + self.scratch.len(), now.instant) else {
            return self.drops.count(DropReason::QueueFull);
        };
        let (head, body) = room.split_at_mut(lead);
        if let Some(id) = via {
            let Ok(header) = via_header(id, self.scratch.len()) else {
                return self.drops.count(DropReason::TooBig);
            };
            head.copy_from_slice(&header);
        }
        body.copy_from_slice(self.scratch);
        link.outbox.commit(lead + self.scratch.len());
    }
}

/// Writes packet `index` of `whole` into `body` and seals it there.
fn seal(
    node: &mut Node,
    whole: &SuperPacket<'_>,
    index: usize,
    body: &mut [u8],
    now: Now,
) -> Option<(Target, Range<usize>)> {
    let place = body.get_mut(DATA_HEADROOM..DATA_HEADROOM + whole.len_of(index))?;
    let checksum = whole.write(index, Fill::Partial, place);
    match node.handle_packet(body, checksum, now) {
        Outgoing::Send { target, frame } => Some((target, frame)),
        Outgoing::Queued | Outgoing::Dropped(_) => None,
    }
}

/// Writes to the TUN queue, and counts what it does not take.
fn write_to<'a>(queue: &'a OwnedFd, drops: &'a mut DropCounters) -> impl FnMut(Write<'_>) + 'a {
    |write| {
        if !matches!(socket::write_offloaded(queue, write), Ok(true)) {
            drops.add(DropReason::TunFull, write.count as u64);
        }
    }
}

/// Hands the frames of one message to the machine, and the packets in them towards the TUN queue.
fn walk(
    node: &mut Node,
    mut port: Option<&mut Port>,
    drops: &mut DropCounters,
    relay: RelayId,
    mut rest: &mut [u8],
    now: Now,
) -> Result<(), FrameError> {
    if rest.is_empty() {
        return Err(FrameError::Truncated { have: 0, need: HEADER_LEN });
    }
    while !rest.is_empty() {
        let need = FrameHeader::parse(rest)?.frame_len();
        let have = rest.len();
        let (frame, tail) = rest.split_at_mut_checked(need).ok_or(FrameError::Truncated { have, need })?;
        if let Received::Packet { packet, checksum, .. } = node.handle_relay_frame(relay, frame, now) {
            deliver(port.as_deref_mut(), drops, packet, checksum);
        }
        rest = tail;
    }
    Ok(())
}

/// Hands a packet on towards the TUN queue.
pub(super) fn deliver(
    port: Option<&mut Port>,
    drops: &mut DropCounters,
    packet: &mut [u8],
    checksum: Checksum,
) {
    match port {
        Some(port) => port.incoming.push(packet, checksum, write_to(&port.writer, drops)),
        None => drops.count(DropReason::TunFull),
    }
}

/// Whether `frames` are user data, which waits behind handshakes and probes.
fn is_bulk(frames: &[u8]) -> bool {
    let kind = |bytes: &[u8]| FrameHeader::parse(bytes).map(|header| header.kind);
    match kind(frames) {
        Ok(FrameType::Data) => true,
        Ok(FrameType::Via) => frames.get(VIA_LEN..).is_some_and(|inner| kind(inner) == Ok(FrameType::Data)),
        _ => false,
    }
}
