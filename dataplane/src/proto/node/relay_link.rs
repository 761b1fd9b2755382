//! What happens on relay connections: dialling, signing in, measuring, and frames that come (`docs/protocol.md` §4).

use std::time::Duration;

use super::Node;
use super::api::{Event, Received, Target};
use super::connection::{DIAL_TIMEOUT, REFUSED_FOR, State};
use super::direct::Origin;
use super::timer::Timer;
use crate::proto::drop_reason::DropReason;
use crate::proto::error::ErrorCode;
use crate::proto::id::{NodeId, RelayId};
use crate::proto::path::liveness::Due;
use crate::proto::time::{Instant, Now};
use crate::proto::wire::control::server::TokenAuth;
use crate::proto::wire::control::{
    AuthRequest, AuthResponse, ErrorMessage, GoAway, Secret, parse, to_payload,
};
use crate::proto::wire::frame::{Flags, Frame, FrameHeader, FrameType, HEADER_LEN, MAX_PING, write_frame};
use crate::proto::wire::reassembly::write_control;

/// Tokens are asked for at most this often.
const ASK_TOKENS: Duration = Duration::from_secs(30);
/// A relay token with less than this left is renewed.
pub(super) const RENEW_TOKEN: Duration = Duration::from_mins(15);
/// Measured at least twice per report.
const MEASUREMENTS_PER_REPORT: u32 = 2;
const LONGEST_MEASUREMENT: Duration = Duration::from_secs(15);

impl Node {
    /// The WebSocket to `relay` is open.
    pub fn relay_connected(&mut self, relay: RelayId, now: Now) {
        let interval = self.measurement_interval();
        let Some(connection) = self.relays.get_mut(&relay) else {
            self.outbox.events.push_back(Event::DropRelay { id: relay, reason: "not in the configuration" });
            return;
        };
        connection.open(interval, now.instant);
        self.sign_in(relay, now);
        self.relays_due(now);
    }

    /// The connection to `relay` closed, or dialling failed.
    pub fn relay_closed(&mut self, relay: RelayId, now: Now) {
        self.connection_gone(relay, now);
        self.relays_due(now);
    }

    /// One whole frame from `relay` (walk a WebSocket message with `wire::frame`); packets are opened in place.
    pub fn handle_relay_frame<'a>(&mut self, relay: RelayId, frame: &'a mut [u8], now: Now) -> Received<'a> {
        let header = match FrameHeader::parse(frame) {
            Ok(header) if header.frame_len() == frame.len() => header,
            _ => {
                self.drops.count(DropReason::Malformed);
                self.misbehaved(relay, now);
                return Received::Dropped(DropReason::Malformed);
            }
        };
        let Some(open) = self.relays.get_mut(&relay).and_then(|connection| connection.opened_mut()) else {
            self.drops.count(DropReason::NoPath);
            return Received::Dropped(DropReason::NoPath);
        };
        open.liveness.note_heard(now.instant);
        let received = match header.kind {
            FrameType::Data => self.receive_data(Origin::Relay(relay), header.flags, frame, now),
            FrameType::SessionInit => {
                self.receive_init(Origin::Relay(relay), frame, now).map(|()| Received::Consumed)
            }
            FrameType::SessionResponse => {
                self.receive_response(Origin::Relay(relay), frame, now).map(|()| Received::Consumed)
            }
            _ => {
                self.receive_control(relay, Frame { header, bytes: frame }, now).map(|()| Received::Consumed)
            }
        };
        received.unwrap_or_else(|reason| {
            self.drops.count(reason);
            Received::Dropped(reason)
        })
    }

    fn receive_control(&mut self, relay: RelayId, frame: Frame<'_>, now: Now) -> Result<(), DropReason> {
        let payload = frame.payload();
        match frame.header.kind {
            FrameType::Pong => self.receive_pong(relay, payload, now),
            FrameType::Ping if payload.len() <= MAX_PING => {
                self.transmit(relay, FrameType::Pong, payload, now.instant);
                Ok(())
            }
            FrameType::AuthResponse => self.receive_auth_response(relay, frame, now),
            FrameType::Error => match parse::<ErrorMessage>(FrameType::Error, payload) {
                Ok(error) => {
                    self.receive_error(relay, &error, now);
                    Ok(())
                }
                Err(_) => self.protocol_error(relay, now),
            },
            FrameType::GoAway => match parse::<GoAway>(FrameType::GoAway, payload) {
                Ok(message) => {
                    self.receive_go_away(relay, &message, now);
                    Ok(())
                }
                Err(_) => self.protocol_error(relay, now),
            },
            _ => self.protocol_error(relay, now),
        }
    }

    fn receive_pong(&mut self, relay: RelayId, payload: &[u8], now: Now) -> Result<(), DropReason> {
        let number =
            <[u8; 8]>::try_from(payload).map(u64::from_be_bytes).map_err(|_| DropReason::Malformed)?;
        let open = self.relays.get_mut(&relay).and_then(|connection| connection.opened_mut());
        if open.and_then(|open| open.liveness.pong(number, now.instant)).is_some() {
            self.refresh_paths(now.instant);
        }
        Ok(())
    }

    fn receive_auth_response(
        &mut self,
        relay: RelayId,
        frame: Frame<'_>,
        now: Now,
    ) -> Result<(), DropReason> {
        let Some(connection) = self.relays.get_mut(&relay) else { return Ok(()) };
        let Some(open) = connection.opened_mut() else { return Ok(()) };
        let message = match open.reassembler.push(frame) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(()),
            Err(_) => return self.protocol_error(relay, now),
        };
        let Ok(AuthResponse::Relay(answer)) = parse(FrameType::AuthResponse, &message.payload) else {
            return self.protocol_error(relay, now);
        };
        if answer.relay_id != relay || !self.memberships.contains_key(&answer.node_id) {
            // Another relay than the configuration says, or a membership that has just been left.
            return if answer.relay_id == relay { Ok(()) } else { self.protocol_error(relay, now) };
        }
        open.asked.remove(&answer.node_id);
        let first = open.ready.is_empty();
        if open.ready.insert(answer.node_id) {
            connection.backoff.reset();
            connection.error = None;
            if first {
                self.outbox.events.push_back(Event::RelayState { relay, ready: true });
            }
            self.refresh_paths(now.instant);
        }
        Ok(())
    }

    fn receive_error(&mut self, relay: RelayId, error: &ErrorMessage, now: Now) {
        match error.code {
            ErrorCode::UnknownDestination | ErrorCode::DestinationOffline | ErrorCode::NoRoute => {
                let Some(key) = error.node.and_then(|node| self.directory.key_of(node)) else { return };
                let Some(peer) = self.directory.get_mut(key) else { return };
                peer.avoid(relay, now.instant);
                self.refresh_path(key, now.instant);
                self.arm(key);
            }
            ErrorCode::InvalidToken
            | ErrorCode::TokenExpired
            | ErrorCode::TokenRevoked
            | ErrorCode::NotAuthorised
            | ErrorCode::BadSignature => self.refused(relay, error, now),
            _ => {
                if let Some(connection) = self.relays.get_mut(&relay) {
                    connection.error = Some(error.message.clone());
                    if error.code == ErrorCode::Overloaded && error.fatal {
                        connection.backoff.saturate();
                    }
                }
            }
        }
    }

    /// The relay does not take a token: it is not shown again for a while, and new ones are asked for. What it says of a node that we are not
    /// is nothing to us: what is remembered does not grow with what a relay invents.
    fn refused(&mut self, relay: RelayId, error: &ErrorMessage, now: Now) {
        if error.node.is_some_and(|node| !self.memberships.contains_key(&node)) {
            return;
        }
        let Some(connection) = self.relays.get_mut(&relay) else { return };
        connection.error = Some(error.message.clone());
        let Some(open) = connection.opened_mut() else { return };
        let who: Vec<NodeId> = match error.node {
            Some(node) => vec![node],
            None if open.asked.is_empty() => open.ready.iter().copied().collect(),
            None => open.asked.iter().copied().collect(),
        };
        let mut refused = Vec::with_capacity(who.len());
        for node in who {
            open.asked.remove(&node);
            open.ready.remove(&node);
            refused.push(node);
        }
        connection.refused.extend(refused.into_iter().map(|node| (node, now.instant + REFUSED_FOR)));
        self.refresh_paths(now.instant);
        self.need_tokens(now);
    }

    fn receive_go_away(&mut self, relay: RelayId, message: &GoAway, now: Now) {
        let Some(connection) = self.relays.get_mut(&relay) else { return };
        if message.reason == "replaced" {
            // Another connection with our id: going back at once would take turns with it for ever.
            connection.backoff.saturate();
            self.drop_relay(relay, "replaced by another connection of this node", now);
        } else if let Some(open) = connection.opened_mut() {
            open.draining = true;
            self.refresh_paths(now.instant);
        }
    }

    /// Asks for new tokens, not too often, and again until they have come.
    pub(super) fn need_tokens(&mut self, now: Now) {
        let again = now.instant + ASK_TOKENS;
        if self.tokens_asked.is_none_or(|then| now.instant.saturating_since(then) >= ASK_TOKENS) {
            self.tokens_asked = Some(now.instant);
            self.outbox.events.push_back(Event::NeedTokens);
        }
        self.timers.set(Timer::Tokens, again);
    }

    /// Shows the tokens of all memberships that are not signed in, or whose token is a new one.
    pub(super) fn sign_in(&mut self, relay: RelayId, now: Now) {
        let Some(connection) = self.relays.get_mut(&relay) else { return };
        let mut requests = Vec::new();
        for (id, membership) in &self.memberships {
            let may_ask = connection.may_ask(*id, now.instant);
            let Some(open) = connection.opened_mut() else { return };
            if may_ask && !open.ready.contains(id) && open.asked.insert(*id) {
                requests.push(membership.token.clone());
            }
        }
        for token in requests {
            self.transmit_auth(relay, token, now.instant);
        }
    }

    /// A membership has a new token: it is shown wherever there is a connection.
    pub(super) fn show_token(&mut self, own: NodeId, now: Now) {
        let Some(token) = self.memberships.get(&own).map(|membership| membership.token.clone()) else {
            return;
        };
        let ids: Vec<_> = self.relays.keys().copied().collect();
        for id in ids {
            let Some(connection) = self.relays.get_mut(&id) else { continue };
            let was_refused = connection.refused.remove(&own).is_some();
            if let State::Waiting(at) = &mut connection.state
                && was_refused
            {
                *at = now.instant;
            }
            if let Some(open) = connection.opened_mut() {
                open.asked.insert(own);
                self.transmit_auth(id, token.clone(), now.instant);
            }
        }
        self.relays_due(now);
    }

    fn transmit_auth(&mut self, relay: RelayId, token: Secret, now: Instant) {
        let auth = AuthRequest::Relay(TokenAuth { token, version: self.version.clone() });
        self.transmit(relay, FrameType::AuthRequest, &to_payload(&auth), now);
    }

    fn transmit(&mut self, relay: RelayId, kind: FrameType, payload: &[u8], now: Instant) {
        let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
        let written = if kind.is_control() {
            write_control(kind, Flags::NONE, payload, &mut frame)
        } else {
            write_frame(kind, Flags::NONE, payload, &mut frame)
        };
        if written.is_ok() {
            if let Some(connection) = self.relays.get_mut(&relay) {
                connection.note_sent(now);
            }
            self.outbox.transmits.push_back((Target::Relay { relay, via: None }, frame));
        }
    }

    /// Does what is due on all relay connections.
    pub(super) fn relays_due(&mut self, now: Now) {
        let due: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, connection)| connection.next() <= now.instant)
            .map(|(id, _)| *id)
            .collect();
        for relay in due {
            self.relay_due(relay, now);
        }
    }

    fn relay_due(&mut self, relay: RelayId, now: Now) {
        let Some(connection) = self.relays.get_mut(&relay) else { return };
        match &mut connection.state {
            State::Waiting(_) => {
                let asked = self.memberships.keys().any(|own| connection.may_ask(*own, now.instant));
                if asked {
                    connection.state = State::Dialling(now.instant + DIAL_TIMEOUT);
                    let relay = connection.info.clone();
                    self.outbox.events.push_back(Event::DialRelay { relay });
                } else {
                    // Nobody to sign in: a membership or a token that comes ends the wait.
                    connection.state = State::Waiting(now.instant + REFUSED_FOR);
                }
            }
            State::Dialling(_) => self.drop_relay(relay, "dialling took too long", now),
            State::Open(open) => {
                if open.ready.is_empty() && open.auth_until <= now.instant {
                    self.drop_relay(relay, "did not answer the sign-in", now);
                    return;
                }
                while let Some(open) =
                    self.relays.get_mut(&relay).and_then(|connection| connection.opened_mut())
                {
                    match open.liveness.poll(now.instant) {
                        Some(Due::Ping(number)) => {
                            self.transmit(relay, FrameType::Ping, &number.to_be_bytes(), now.instant);
                        }
                        Some(Due::Dead) => self.drop_relay(relay, "silent", now),
                        None => return,
                    }
                }
            }
        }
    }

    /// There is somebody to sign in: relays need not wait any longer.
    pub(super) fn wake_relays(&mut self, now: Now) {
        for connection in self.relays.values_mut() {
            if let State::Waiting(at) = &mut connection.state {
                *at = (*at).min(now.instant);
            }
        }
        self.relays_due(now);
    }

    /// Has the shell close a connection, which is then gone.
    pub(super) fn drop_relay(&mut self, relay: RelayId, reason: &'static str, now: Now) {
        self.outbox.events.push_back(Event::DropRelay { id: relay, reason });
        self.connection_gone(relay, now);
    }

    /// Moves what went by `relay` elsewhere and plans the next dial.
    fn connection_gone(&mut self, relay: RelayId, now: Now) {
        let Some(connection) = self.relays.get_mut(&relay) else { return };
        if matches!(connection.state, State::Waiting(_)) {
            return;
        }
        let was_ready = connection.opened().is_some_and(|open| !open.ready.is_empty());
        connection.state = State::Waiting(now.instant + connection.backoff.next(&mut self.rng));
        let gone = Target::Relay { relay, via: None };
        self.outbox.transmits.retain(|(to, _)| *to != gone);
        if was_ready {
            self.outbox.events.push_back(Event::RelayState { relay, ready: false });
            self.refresh_paths(now.instant);
        }
    }

    fn protocol_error(&mut self, relay: RelayId, now: Now) -> Result<(), DropReason> {
        self.misbehaved(relay, now);
        Err(DropReason::Malformed)
    }

    fn misbehaved(&mut self, relay: RelayId, now: Now) {
        let open = self.relays.get(&relay).is_some_and(|connection| connection.opened().is_some());
        if open {
            self.drop_relay(relay, "does not follow the protocol", now);
        }
    }

    /// Time between measurements.
    pub(super) fn measurement_interval(&self) -> Duration {
        let report = self.config.as_ref().map_or(30, |config| config.settings.latency_report_s);
        (Duration::from_secs(report.max(2)) / MEASUREMENTS_PER_REPORT).min(LONGEST_MEASUREMENT)
    }
}
