//! Gateways (`docs/protocol.md` §2.5): which of a peer's routes can be used, and what this node tells of its own.
//!
//! ```text
//! sent, nothing heard ─300 ms─► echoes, 100 ms apart, by turns on every way ─1 s─► left ── heard again ──► used again
//!                                                                                   └─ asked every second
//! ROUTES_DOWN from it ─► those subnets are not sent to it, until it says otherwise or falls silent about it for 30 s
//! ```
//!
//! Only peers with routes are watched like this: for a peer's own address there is no other way to take. The controller is not asked; that it is away makes
//! nothing offline.

use std::time::Duration;

use ipnet::IpNet;

use super::Node;
use super::api::{Checksum, Outgoing};
use super::data::{ECHO_REQUEST, echo_buffer, is_due};
use super::peer::Peer;
use super::timer::Timer;
use crate::proto::drop_reason::DropReason;
use crate::proto::routing::health::{Down, RoutesDown};
use crate::proto::routing::packet::Addresses;
use crate::proto::routing::table::PeerKey;
use crate::proto::time::{Instant, Now};
use crate::proto::wire::data::{DATA_HEADROOM, TAG_LEN};

/// A packet went to a gateway and nothing came: the first echo.
pub(super) const PROBE_AFTER: Duration = Duration::from_millis(300);
/// From one echo to the next.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// It is left after this long and two round trips,
const PATIENCE: Duration = Duration::from_secs(1);
/// but no later than this.
const MAX_PATIENCE: Duration = Duration::from_millis(2500);
/// One that was left is asked this often at first,
const RETURN: Duration = Duration::from_secs(1);
/// and this often after so many times.
const SLOW_RETURN: Duration = Duration::from_secs(30);
const QUICK_RETURNS: u32 = 60;
/// What a gateway said of its subnets holds for so long,
const HOLD: Duration = Duration::from_secs(30);
/// and is said again this often,
const REPEAT: Duration = Duration::from_secs(10);
/// twice soon after a change,
const SOON: Duration = Duration::from_millis(200);
const SOON_REPEATS: u8 = 2;
/// and to a peer that goes on sending there, no more often than this.
const REMIND: Duration = Duration::from_millis(500);

/// What this node knows of a peer as a gateway.
#[derive(Debug)]
pub(super) struct Watch {
    /// It did not answer: others are preferred until it is heard.
    silent: bool,
    /// Echoes since it was last heard.
    probes: u32,
    probe_at: Option<Instant>,
    down: Down,
    down_until: Option<Instant>,
    /// Of its last message.
    time: u64,
    /// When it was told of our own subnets.
    told: Option<Instant>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            silent: false,
            probes: 0,
            probe_at: None,
            down: Down::Some(Vec::new()),
            down_until: None,
            time: 0,
            told: None,
        }
    }
}

impl Watch {
    /// Whether it has been left.
    pub(super) const fn is_silent(&self) -> bool {
        self.silent
    }

    /// Leaves it; when there is something to do about that, unless it had been left before.
    pub(super) fn leave(&mut self, now: Instant) -> Option<Instant> {
        if std::mem::replace(&mut self.silent, true) {
            return None;
        }
        self.probes = 0;
        self.probe_at = Some(now);
        self.probe_at
    }

    /// Something authentic came.
    pub(super) const fn note_heard(&mut self) {
        self.silent = false;
        self.probes = 0;
        self.probe_at = None;
    }

    /// A new session: times of the one before, perhaps by another clock, are of no interest.
    pub(super) const fn note_session(&mut self) {
        self.time = 0;
    }

    /// Whether the peer says that it reaches `net`, one of its routes.
    pub(super) fn reaches(&self, net: IpNet) -> bool {
        !self.down.contains(net)
    }
}

impl Peer {
    /// When its watch has something to do.
    pub(super) fn watch_at(&self) -> Option<Instant> {
        let watch = &self.watch;
        let probe = match self.unanswered {
            _ if self.routes.is_empty() => None,
            _ if watch.silent => watch.probe_at,
            Some(since) => Some(watch.probe_at.unwrap_or(since + PROBE_AFTER).min(since + self.patience())),
            None => None,
        };
        [probe, watch.down_until].into_iter().flatten().min()
    }

    /// How long it may be silent.
    fn patience(&self) -> Duration {
        (PATIENCE + self.rtt.unwrap_or_default() * 2).min(MAX_PATIENCE)
    }
}

/// What this node says of its own subnets.
#[derive(Debug, Default)]
pub(super) struct OwnRoutes {
    down: Vec<IpNet>,
    time: u64,
    repeats: u8,
}

impl OwnRoutes {
    /// Whether there is something to tell.
    pub(super) const fn any_down(&self) -> bool {
        !self.down.is_empty()
    }
}

impl Node {
    /// Of the subnets that this machine advertises, those that it cannot reach at the moment: its peers take other gateways to them.
    pub fn set_routes_down(&mut self, mut down: Vec<IpNet>, now: Now) {
        for net in &mut down {
            *net = net.trunc();
        }
        down.sort_unstable();
        down.dedup();
        if down == self.own_routes.down {
            return;
        }
        self.own_routes.down = down;
        self.own_routes.repeats = SOON_REPEATS;
        self.tell_routes(now);
        self.timers.set(Timer::Routes, now.instant + SOON);
    }

    /// Time to say it again.
    pub(super) fn routes_due(&mut self, now: Now) {
        self.tell_routes(now);
        if self.own_routes.repeats > 0 {
            self.own_routes.repeats -= 1;
            self.timers.set(Timer::Routes, now.instant + SOON * 2);
        } else if !self.own_routes.down.is_empty() {
            self.timers.set(Timer::Routes, now.instant + REPEAT);
        }
    }

    fn tell_routes(&mut self, now: Now) {
        for key in self.directory.keys() {
            self.tell_routes_to(key, now);
        }
    }

    /// A session is there: its end may not have heard.
    pub(super) fn greet_with_routes(&mut self, key: PeerKey, now: Now) {
        if let Some(peer) = self.directory.get_mut(key) {
            peer.watch.note_session();
        }
        if !self.own_routes.down.is_empty() {
            self.tell_routes_to(key, now);
        }
    }

    /// A packet came from a peer: it may be for a subnet that it should not be sent to.
    pub(super) fn remind(&mut self, key: PeerKey, addresses: Addresses, now: Now) {
        let astray = self.own_routes.down.iter().any(|net| net.contains(&addresses.destination));
        let told = self.directory.get(key).and_then(|peer| peer.watch.told);
        if astray && told.is_none_or(|told| now.instant.saturating_since(told) >= REMIND) {
            self.tell_routes_to(key, now);
        }
    }

    fn tell_routes_to(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        if peer.sessions.sealing(now.instant).is_none() {
            return;
        }
        peer.watch.told = Some(now.instant);
        self.own_routes.time = now.unix.as_micros().max(self.own_routes.time + 1);
        let message = RoutesDown { time: self.own_routes.time, down: Down::of(&self.own_routes.down) };
        let mut buffer = vec![0; DATA_HEADROOM];
        message.write(&mut buffer);
        buffer.resize(buffer.len() + TAG_LEN, 0);
        self.send_sealed(key, buffer, false, now);
    }

    /// ROUTES_DOWN.
    pub(super) fn receive_routes_down(
        &mut self,
        key: PeerKey,
        text: &[u8],
        now: Now,
    ) -> Result<(), DropReason> {
        let message = RoutesDown::parse(text).ok_or(DropReason::Malformed)?;
        let Some(peer) = self.directory.get_mut(key) else { return Ok(()) };
        if message.time <= peer.watch.time {
            return Ok(());
        }
        peer.watch.time = message.time;
        peer.watch.down_until = (!message.down.is_empty()).then(|| now.instant + HOLD);
        peer.watch.down = message.down;
        self.show_routes(key);
        self.note_owed(key, now);
        self.arm(key);
        Ok(())
    }

    /// Writes into the table what the peer said of its subnets.
    fn show_routes(&mut self, key: PeerKey) {
        let Some(peer) = self.directory.get(key) else { return };
        let ups: Vec<_> = peer.routes.iter().map(|net| (*net, peer.watch.reaches(*net))).collect();
        for (net, up) in ups {
            self.directory.routes.set_up(net, key, up);
        }
    }

    /// Does what is due on a peer's watch.
    pub(super) fn watch_due(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        if is_due(peer.watch.down_until, now.instant) {
            peer.watch.down_until = None;
            peer.watch.down = Down::Some(Vec::new());
            self.show_routes(key);
        }
        let Some(peer) = self.directory.get_mut(key) else { return };
        if peer.routes.is_empty() {
            return;
        }
        let patience = peer.patience();
        match peer.unanswered {
            _ if peer.watch.silent && !is_due(peer.watch.probe_at, now.instant) => {}
            _ if peer.watch.silent => {
                let quick = peer.watch.probes < QUICK_RETURNS;
                peer.watch.probe_at = Some(now.instant + if quick { RETURN } else { SLOW_RETURN });
                self.reroute(key, now);
                self.probe_gateway(key, now);
            }
            Some(since) if is_due(Some(since + patience), now.instant) => self.leave_gateway(key, now),
            Some(since) if is_due(Some(peer.watch.probe_at.unwrap_or(since + PROBE_AFTER)), now.instant) => {
                peer.watch.probe_at = Some(now.instant + PROBE_INTERVAL);
                self.probe_gateway(key, now);
            }
            _ => {}
        }
    }

    /// An echo, by turns on the path in use and on the relays': a dead path is not a dead gateway.
    fn probe_gateway(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let other_way = peer.watch.probes % 2 == 1;
        peer.watch.probes = peer.watch.probes.saturating_add(1);
        if peer.sessions.sealing(now.instant).is_none() {
            self.want_session(key, now);
            return;
        }
        self.send_sealed(key, echo_buffer(ECHO_REQUEST, 0, 0), other_way, now);
    }

    /// Seals and sends an inner message; `by_relay`: over relays, where there are any.
    fn send_sealed(&mut self, key: PeerKey, mut buffer: Vec<u8>, by_relay: bool, now: Now) {
        let Ok(Some(target)) = self.seal_for(key, &mut buffer, Checksum::Complete, now) else { return };
        let relayed = self.directory.get(key).and_then(|peer| peer.path.path()).map(Into::into);
        let target = relayed.filter(|_| by_relay).unwrap_or(target);
        self.outbox.send(&mut self.relays, target, buffer, now.instant);
    }

    /// It does not answer: packets, also those that wait for it, take other gateways where there are any.
    pub(super) fn leave_gateway(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        if !peer.routes.is_empty() && peer.watch.leave(now.instant).is_some() {
            self.arm(key);
        }
    }

    /// Looks for other gateways for what waits.
    fn reroute(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let mut waiting = Vec::new();
        while let Some(packet) = peer.queue.pop(&mut self.queued_bytes) {
            waiting.push(packet);
        }
        for mut packet in waiting {
            let ip = packet.buffer.get(DATA_HEADROOM).is_some_and(|first| matches!(first >> 4, 4 | 6));
            if !ip {
                self.enqueue(key, packet.buffer, packet.checksum, now);
            } else if let Outgoing::Send { target, .. } =
                self.handle_packet(&mut packet.buffer, packet.checksum, now)
            {
                self.outbox.send(&mut self.relays, target, packet.buffer, now.instant);
            }
        }
    }
}
