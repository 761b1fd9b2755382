//! Keeps sessions: begins handshakes, answers them, renews and ends sessions (`docs/protocol.md` §2.2).
//!
//! ```text
//! a packet and no session ─► want_session ─► attempt ─1 s─► attempt … 30 s ─► given up
//!                                  SESSION_RESPONSE ─► established: send what waited
//! SESSION_INIT ─► answered ─► first packet under it ─► confirmed: send what waited
//! ```

use std::collections::BTreeMap;

use super::Node;
use super::api::{Event, Target};
use super::connection::Connection;
use super::data::{drop_attempts, is_due};
use super::direct::Origin;
use super::handshake_budget::Bucket;
use super::peer::{KEEPALIVE, Pending, SILENCE, Trust};
use super::timer::Timer;
use crate::proto::drop_reason::DropReason;
use crate::proto::id::{RelayId, SessionIndex};
use crate::proto::path::backoff::jitter;
use crate::proto::routing::table::PeerKey;
use crate::proto::session::handshake::{self, Ends, HandshakeError, Randomness};
use crate::proto::session::rekey;
use crate::proto::time::{Instant, Now, UnixTime};
use crate::proto::wire::control::node::SignedNodeKey;
use crate::proto::wire::handshake::{SessionInit, SessionResponse};

/// Attempts whose answers are waited for: round trips of up to 4 s.
const MAX_ATTEMPTS: usize = 4;
/// The first attempts to reach a gateway are this far apart, with jitter: there may be others.
const GATEWAY_RETRY: std::time::Duration = std::time::Duration::from_millis(400);
const GATEWAY_JITTER: std::time::Duration = std::time::Duration::from_millis(100);
/// After so many it is left.
const GATEWAY_TRIES: u32 = 2;
/// After so many attempts without an answer a gateway counts as not there.
const UNRESPONSIVE_AFTER: u32 = 4;
/// A renewal that failed is tried again after this, while the old session lasts.
const RENEW_AGAIN: std::time::Duration = std::time::Duration::from_secs(10);

impl Node {
    /// Begins a handshake, unless one is under way.
    pub(super) fn want_session(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        if peer.pending.is_some() || peer.trust != Trust::Verified {
            return;
        }
        peer.pending = Some(Pending::new(now.instant));
        self.attempt(key, now);
        self.arm(key);
    }

    /// Asks for a new session at `at`, even if no packet does.
    pub(super) fn renew_session(&mut self, key: PeerKey, at: Instant) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        if peer.sessions.current().is_some() {
            peer.renew_at = at;
            peer.renew_timer = Some(at);
            self.arm(key);
        }
    }

    /// Sends a SESSION_INIT, or gives up.
    fn attempt(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let Some(pending) = &mut peer.pending else { return };
        if now.instant.saturating_since(pending.since) >= rekey::GIVE_UP {
            self.give_up(key, now.instant);
            return;
        }
        let hurry = pending.tries < GATEWAY_TRIES && !peer.routes.is_empty();
        let (retry, spread) =
            if hurry { (GATEWAY_RETRY, GATEWAY_JITTER) } else { (rekey::RETRY, rekey::RETRY_JITTER) };
        pending.next = now.instant + retry + jitter(&mut self.rng, spread);
        // Over a relay, where there is one: it says who sends.
        let target = peer
            .path
            .path()
            .map(Target::from)
            .or_else(|| peer.direct.info().map(|i| Target::Direct(i.place)));
        // Else where it was heard on an own network.
        let targets: Vec<Target> = target.map_or_else(|| peer.lan.places(now.instant), |target| vec![target]);
        let Some(peer_key) = peer.keys.current().filter(|_| !targets.is_empty()).cloned() else { return };
        // Peers hear of a new key from the controller, which may take longer than the first attempt: without a session that could wait,
        // every other attempt is made with the key that they know.
        let has_session = peer.sessions.sealing(now.instant).is_some();
        let previous = self.keys.previous().filter(|_| !has_session && pending.tries % 2 == 1);
        let previous = previous.filter(|(key, _)| key.kem().is_some() == peer_key.kem.is_some());
        let ends = Ends {
            own: peer.own,
            own_key: previous.map_or(self.keys.current(), |(key, _)| key),
            peer: peer.id,
            peer_key: &peer_key.public,
            peer_kem: peer_key.kem.as_deref(),
        };
        pending.tries += 1;
        let again = pending.tries > GATEWAY_TRIES;
        peer.unresponsive |= pending.tries > UNRESPONSIVE_AFTER;
        if pending.attempts.len() == MAX_ATTEMPTS {
            self.gone.extend(pending.attempts.pop_front().map(|attempt| attempt.local()));
        }
        self.last_timestamp = now.unix.as_micros().max(self.last_timestamp + 1);
        let timestamp = UnixTime::from_micros(self.last_timestamp);
        self.directory.release(&mut self.gone);
        let local = self.directory.new_session(key, &mut self.rng);
        let mut random = Randomness::new(&mut self.secrets);
        let begun = handshake::initiate(&ends, self.offer, local, timestamp, &mut random, now.instant);
        let Ok((state, frame)) = begun else {
            // A key that X25519 or ML-KEM does not take: the peer signed it, so nobody else is to blame.
            self.gone.push(local);
            self.directory.release(&mut self.gone);
            return self.give_up(key, now.instant);
        };
        if let Some(pending) = self.directory.get_mut(key).and_then(|peer| peer.pending.as_mut()) {
            pending.attempts.push_back(state);
        }
        for target in targets {
            self.outbox.send(&mut self.relays, target, frame.clone(), now.instant);
        }
        if again && !has_session {
            self.leave_gateway(key, now);
        }
    }

    fn give_up(&mut self, key: PeerKey, now: Instant) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        drop_attempts(peer, &mut self.gone);
        peer.pending = None;
        peer.unanswered = None;
        peer.renew_at = peer.renew_at.max(now + RENEW_AGAIN);
        let dropped = peer.queue.clear(&mut self.queued_bytes);
        self.drops.add(DropReason::HandshakeQueue, dropped);
        self.directory.release(&mut self.gone);
    }

    /// A SESSION_INIT came; the answer goes back the same way.
    pub(super) fn receive_init(&mut self, origin: Origin, frame: &[u8], now: Now) -> Result<(), DropReason> {
        let init = SessionInit::parse(frame).map_err(|_| DropReason::Malformed)?;
        let key = self.directory.key_of(init.route.source).ok_or(DropReason::UnknownDestination)?;
        let peer = self.directory.get_mut(key).ok_or(DropReason::UnknownDestination)?;
        if peer.own != init.route.destination {
            return Err(DropReason::UnknownDestination);
        }
        if peer.trust != Trust::Verified {
            return Err(DropReason::UntrustedKey);
        }
        let under_way = peer.pending.as_ref().is_some_and(|pending| !pending.attempts.is_empty());
        if under_way && peer.own > peer.id {
            // Both began: ours goes on, the other end answers it.
            return Ok(());
        }
        if !peer.may_shake_hands(origin, now.instant) {
            return Err(DropReason::HandshakeRate);
        }
        let own_key = self.keys.find(init.receiver_key, now.instant).ok_or(DropReason::BadHandshake)?;
        let found = peer.keys.find(init.sender_key, now.instant).cloned();
        let SignedNodeKey { public, kem, .. } = &*found.ok_or(DropReason::UntrustedKey)?;
        // All that was cheap; the rest is public-key work.
        if !peer.inits.take(origin, now.instant) || !take(&mut self.relays, &mut self.datagrams, origin, now)
        {
            return Err(DropReason::HandshakeRate);
        }
        let ends = Ends { own: peer.own, own_key, peer: peer.id, peer_key: public, peer_kem: kem.as_deref() };
        let last = peer.last_init;
        let local = self.directory.new_session(key, &mut self.rng);
        let mut random = Randomness::new(&mut self.secrets);
        let responded = handshake::respond(&ends, self.offer, local, &init, last, &mut random, now.instant);
        let responded = responded.map_err(|error| {
            self.gone.push(local);
            self.directory.release(&mut self.gone);
            match error {
                HandshakeError::NotNewer => DropReason::HandshakeReplayed,
                _ => DropReason::BadHandshake,
            }
        })?;
        let peer = self.directory.get_mut(key).ok_or(DropReason::UnknownDestination)?;
        peer.last_init = Some(responded.timestamp);
        peer.note_heard(origin.relay(), now.instant);
        peer.sessions.made_as_responder(responded.session, &mut self.gone);
        drop_attempts(peer, &mut self.gone);
        if let Some(pending) = &mut peer.pending {
            // If the other end does not go on, we do.
            pending.next = now.instant + rekey::RETRY + jitter(&mut self.rng, rekey::RETRY_JITTER);
        }
        self.directory.release(&mut self.gone);
        self.outbox.send(&mut self.relays, origin.back(), responded.frame, now.instant);
        self.arm(key);
        Ok(())
    }

    /// A SESSION_RESPONSE came.
    pub(super) fn receive_response(
        &mut self,
        origin: Origin,
        frame: &[u8],
        now: Now,
    ) -> Result<(), DropReason> {
        let response = SessionResponse::parse(frame).map_err(|_| DropReason::Malformed)?;
        let key = self.directory.by_session(response.receiver).ok_or(DropReason::UnknownSession)?;
        let peer = self.directory.get_mut(key).ok_or(DropReason::UnknownSession)?;
        if response.route.source != peer.id || response.route.destination != peer.own {
            return Err(DropReason::SpoofedSource);
        }
        if !peer.may_shake_hands(origin, now.instant) {
            return Err(DropReason::HandshakeRate);
        }
        let pending = peer.pending.as_mut().ok_or(DropReason::UnknownSession)?;
        let at = pending.attempts.iter().position(|attempt| attempt.local() == response.receiver);
        if at.is_some()
            && !(peer.responses.take(origin, now.instant)
                && take(&mut self.relays, &mut self.datagrams, origin, now))
        {
            return Err(DropReason::HandshakeRate);
        }
        let attempt = at.and_then(|at| pending.attempts.remove(at)).ok_or(DropReason::UnknownSession)?;
        let sent = attempt.sent();
        let session = match attempt.read(&response, now.instant) {
            Ok(session) => session,
            Err(rejected) => {
                pending.attempts.push_front(rejected.state);
                return Err(DropReason::BadHandshake);
            }
        };
        peer.rtt = Some(now.instant.saturating_since(sent));
        peer.note_heard(origin.relay(), now.instant);
        peer.sessions.made_as_initiator(session, now.instant, &mut self.gone);
        self.session_ready(key, true, now);
        Ok(())
    }

    /// The first packet under a session that we answered.
    pub(super) fn session_confirmed(&mut self, key: PeerKey, local: SessionIndex, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        if peer.sessions.confirm(local, now.instant, &mut self.gone) {
            self.session_ready(key, false, now);
        }
    }

    /// The peer has a new current session.
    fn session_ready(&mut self, key: PeerKey, initiator: bool, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        drop_attempts(peer, &mut self.gone);
        peer.pending = None;
        peer.renew_timer = None;
        peer.unresponsive = false;
        let (own_key, peer_key) = (self.keys.current_id(), peer.keys.current_id());
        if let Some(session) = peer.sessions.current() {
            peer.renew_at = session.made() + rekey::rekey_after(session.role());
            let cipher = session.cipher().name();
            self.outbox.events.push_back(Event::SessionEstablished { peer: peer.id, cipher });
            if session.key_ids() != (own_key, peer_key) {
                // Made with a key that has been replaced: once more, when the other end has heard of it.
                let at = now.instant + RENEW_AGAIN;
                peer.renew_at = at;
                peer.renew_timer = Some(at);
            }
        }
        self.directory.release(&mut self.gone);
        self.flush_queue(key, initiator, now);
        self.start_direct(key, now);
        self.greet_with_routes(key, now);
        self.arm(key);
    }

    /// The peer's timer went off.
    pub(super) fn peer_due(&mut self, key: PeerKey, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        peer.armed = None;
        peer.sessions.expire(now.instant, &mut self.gone);
        self.directory.release(&mut self.gone);
        let Some(peer) = self.directory.get_mut(key) else { return };
        if is_due(peer.owed.map(|since| since + KEEPALIVE), now.instant) {
            peer.owed = None;
            self.send_keepalive(key, now);
        }
        let Some(peer) = self.directory.get_mut(key) else { return };
        if is_due(peer.pending.as_ref().map(|pending| pending.next), now.instant) {
            self.attempt(key, now);
        }
        let Some(peer) = self.directory.get_mut(key) else { return };
        let silent = is_due(peer.unanswered.map(|since| since + SILENCE), now.instant);
        let renew = peer.renew_timer.take_if(|at| *at <= now.instant).is_some();
        if silent {
            peer.unanswered = None;
        }
        if (silent || renew) && peer.sessions.sealing(now.instant).is_some() {
            self.want_session(key, now);
        }
        let Some(peer) = self.directory.get_mut(key) else { return };
        if peer.forget_avoided(now.instant) {
            self.refresh_path(key, now.instant);
        }
        self.direct_due(key, now);
        self.watch_due(key, now);
        self.arm(key);
    }

    /// Sets the peer's timer to what is due first.
    pub(super) fn arm(&mut self, key: PeerKey) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let next = [
            peer.pending.as_ref().map(|pending| pending.next),
            peer.sessions.next_expiry(),
            peer.owed.map(|since| since + KEEPALIVE),
            peer.unanswered.map(|since| since + SILENCE),
            peer.renew_timer,
            peer.avoid_until(),
            peer.direct.poll_timeout(),
            peer.watch_at(),
        ];
        match next.into_iter().flatten().min() {
            Some(at) if peer.armed != Some(at) => {
                peer.armed = Some(at);
                self.timers.set(Timer::Peer(key), at);
            }
            Some(_) => {}
            None => {
                peer.armed = None;
                self.timers.clear(Timer::Peer(key));
            }
        }
    }
}

/// Whether one more handshake message by this way, whoever it is from, may be looked at.
fn take(
    relays: &mut BTreeMap<RelayId, Connection>,
    datagrams: &mut Bucket,
    origin: Origin,
    now: Now,
) -> bool {
    match origin {
        Origin::Relay(relay) => relays.get_mut(&relay).is_some_and(|way| way.handshakes.take(now.instant)),
        Origin::Direct(_) => datagrams.take(now.instant),
    }
}
