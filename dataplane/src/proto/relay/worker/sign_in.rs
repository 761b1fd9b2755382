//! Tokens become memberships and mesh links; memberships run out.

use std::time::Duration;

use super::{Command, Membership, Role, Worker, instant_of};
use crate::proto::drop_reason::DropReason;
use crate::proto::error::ErrorCode;
use crate::proto::id::{NodeId, RelayId};
use crate::proto::relay::directory::Place;
use crate::proto::relay::{ConnId, FromWorker};
use crate::proto::time::{Now, UnixTime};
use crate::proto::token::{LEEWAY, RelaySubject, Token, TokenError, accepted_until};
use crate::proto::wire::control::server::{NodeAuthorised, RelayAuthorised, TokenAuth};
use crate::proto::wire::control::{AuthRequest, AuthResponse, parse, to_payload};
use crate::proto::wire::frame::FrameType;

/// How often a token that has run out by one clock and not by the other is looked at again.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

impl Worker {
    /// A whole AUTH_REQUEST or AUTH_RESPONSE, on a connection that expects it.
    pub(super) fn sign_in(&mut self, conn: ConnId, payload: &[u8], now: Now) {
        let Some(state) = self.conn(conn) else { return };
        if let Role::MeshExpectResponse(relay) = state.role {
            return self.mesh_answered(conn, relay, payload, now);
        }
        let for_mesh = matches!(state.role, Role::MeshExpectRequest);
        let request = match parse::<AuthRequest>(FrameType::AuthRequest, payload) {
            Ok(request) => request,
            Err(error) => return self.fail(conn, error.code(), error.to_string(), None),
        };
        match request {
            AuthRequest::Relay(auth) if !for_mesh => self.sign_in_node(conn, &auth, now),
            AuthRequest::Mesh(auth) if for_mesh => self.sign_in_relay(conn, &auth, now),
            _ => {
                let message = "this kind of sign-in has no business on this path".into();
                self.fail(conn, ErrorCode::Malformed, message, None);
            }
        }
    }

    fn sign_in_node(&mut self, conn: ConnId, auth: &TokenAuth, now: Now) {
        let Some(verifier) = self.verifier.clone().filter(|_| self.relay_id.0 != 0) else {
            return self.fail(conn, ErrorCode::Unavailable, "relay has no token keys yet".into(), None);
        };
        let verify =
            |unix| verifier.verify_relay(auth.token.reveal(), self.relay_id, &self.revoked, unix, self.grace);
        match self.by_either_clock(now, verify) {
            Ok(token) => self.admit(conn, token, now),
            Err(error) => self.fail(conn, error.code(), error.to_string(), None),
        }
    }

    fn admit(&mut self, conn: ConnId, token: Token<RelaySubject>, now: Now) {
        let (node, network) = (token.subject.node_id, token.subject.network_id);
        let limit = self.limits.max_memberships;
        let Some(Role::Data(memberships)) = self.conn_mut(conn).map(|conn| &mut conn.role) else { return };
        let (first, full) = (memberships.is_empty(), memberships.len() >= limit);
        let rates = Membership::claimed(&token.subject);
        let Token { jti, iat, exp, not_after, .. } = token;
        let membership = Membership { node, jti, iat, exp, not_after, rates, answer_due: false };
        match memberships.iter_mut().find(|known| known.node == node) {
            Some(known) => *known = Membership { answer_due: known.answer_due, ..membership },
            None if full => {
                let message = "too many memberships on one connection".into();
                return self.fail(conn, ErrorCode::Overloaded, message, Some(node));
            }
            None => memberships.push(membership),
        }
        if first {
            self.authenticated(conn, true);
        }
        self.counters.sign_ins += 1;
        if self.directory.find(node).is_none_or(|entry| entry.place != Place::Here(conn)) {
            if let Place::Here(old) = self.directory.signed_in(node, network, conn) {
                self.replaced(old, node);
            }
            self.report(FromWorker::NodeUp { node, network });
            if self.alone {
                self.answer(conn, node, exp);
            } else {
                self.mark_answer_due(conn, node);
            }
        } else {
            self.answer(conn, node, exp);
        }
        self.limit_node(node, rates);
        self.schedule_expiry(conn, now);
    }

    /// The hub has told everyone that `node` is on this worker.
    pub(super) fn announced(&mut self, node: NodeId) {
        let Some(&Place::Here(conn)) = self.directory.find(node).map(|entry| &entry.place) else { return };
        if let Some(membership) = self.membership(conn, node)
            && std::mem::take(&mut membership.answer_due)
        {
            let exp = membership.exp;
            self.answer(conn, node, exp);
        }
    }

    fn answer(&mut self, conn: ConnId, node: NodeId, expires: u64) {
        let answer = NodeAuthorised { node_id: node, relay_id: self.relay_id, expires };
        self.send(conn, FrameType::AuthResponse, &to_payload(&AuthResponse::Relay(answer)));
    }

    fn mark_answer_due(&mut self, conn: ConnId, node: NodeId) {
        if let Some(membership) = self.membership(conn, node) {
            membership.answer_due = true;
        }
    }

    fn membership(&mut self, conn: ConnId, node: NodeId) -> Option<&mut Membership> {
        match self.conn_mut(conn).map(|conn| &mut conn.role) {
            Some(Role::Data(memberships)) => memberships.iter_mut().find(|known| known.node == node),
            _ => None,
        }
    }

    /// `node` is now on another connection. The old one hears of it when nothing is left on it: other memberships go on.
    pub(super) fn replaced(&mut self, old: ConnId, node: NodeId) {
        let Some(Role::Data(memberships)) = self.conn_mut(old).map(|conn| &mut conn.role) else { return };
        memberships.retain(|membership| membership.node != node);
        if memberships.is_empty() {
            // Counted as unauthenticated for the moment it takes to close it.
            self.authenticated(old, false);
            self.commands.push_back(Command::Discard { conn: old, reason: DropReason::Replaced });
            self.go_away(old, "replaced", Duration::ZERO);
            self.close(old, 1000);
        }
    }

    fn sign_in_relay(&mut self, conn: ConnId, auth: &TokenAuth, now: Now) {
        let Some(verifier) = self.verifier.clone().filter(|_| self.relay_id.0 != 0) else {
            return self.fail(conn, ErrorCode::Unavailable, "relay has no token keys yet".into(), None);
        };
        let verify =
            |unix| verifier.verify_mesh(auth.token.reveal(), self.relay_id, &self.revoked, unix, self.grace);
        match self.by_either_clock(now, verify) {
            Ok(token) => {
                let relay = token.subject.server_id;
                let own = self.mesh_tokens.get(&relay).cloned().unwrap_or_default();
                let answer = RelayAuthorised { relay_id: self.relay_id, token: own };
                self.send(conn, FrameType::AuthResponse, &to_payload(&AuthResponse::Mesh(answer)));
                self.link_up(conn, relay, (token.jti, token.iat), now);
            }
            Err(error) => self.fail(conn, error.code(), error.to_string(), None),
        }
    }

    /// A token's dates are right when they are by our clock or by the controller's.
    fn by_either_clock<T>(
        &self,
        now: Now,
        verify: impl Fn(UnixTime) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        match verify(now.unix) {
            Err(error @ (TokenError::Expired | TokenError::NotYetValid)) => {
                let other = self.calendar.controllers(now.instant);
                other
                    .filter(|other| other.as_secs().abs_diff(now.unix.as_secs()) > LEEWAY.as_secs())
                    .map_or(Err(error), verify)
            }
            outcome => outcome,
        }
    }

    /// The relay that we dialled proves who it is as we have: with a token for the two of us.
    fn mesh_answered(&mut self, conn: ConnId, expected: RelayId, payload: &[u8], now: Now) {
        let answer = match parse::<AuthResponse>(FrameType::AuthResponse, payload) {
            Ok(AuthResponse::Mesh(answer)) if answer.relay_id == expected => answer,
            Ok(_) => {
                return self.fail(conn, ErrorCode::Malformed, format!("this is not relay {expected}"), None);
            }
            Err(error) => return self.fail(conn, error.code(), error.to_string(), None),
        };
        let Some(verifier) = self.verifier.clone() else {
            return self.fail(conn, ErrorCode::Unavailable, "relay has no token keys yet".into(), None);
        };
        let verify = |unix| {
            verifier.verify_mesh(answer.token.reveal(), self.relay_id, &self.revoked, unix, self.grace)
        };
        match self.by_either_clock(now, verify) {
            Ok(token) if token.subject.server_id == expected => {
                self.link_up(conn, expected, (token.jti, token.iat), now);
            }
            Ok(_) => {
                self.fail(conn, ErrorCode::InvalidToken, format!("not a token of relay {expected}"), None);
            }
            Err(error) => self.fail(conn, error.code(), error.to_string(), None),
        }
    }

    /// Ends the connection when a token on it has run out, else waits for the next that will.
    pub(super) fn check_expiry(&mut self, conn: ConnId, now: Now) {
        let (grace, unix) = (self.grace, self.calendar.earliest(now));
        let Some(Role::Data(memberships)) = self.conn(conn).map(|conn| &conn.role) else { return };
        let ended = memberships.iter().find(|token| unix > accepted_until(token.exp, token.not_after, grace));
        match ended.map(|membership| membership.node) {
            Some(node) => self.fail(conn, ErrorCode::TokenExpired, "token expired".into(), Some(node)),
            None => self.schedule_expiry(conn, now),
        }
    }

    pub(super) fn schedule_expiry(&mut self, conn: ConnId, now: Now) {
        let grace = self.grace;
        let Some(Role::Data(memberships)) = self.conn(conn).map(|conn| &conn.role) else { return };
        let first = memberships
            .iter()
            .map(|membership| accepted_until(membership.exp, membership.not_after, grace))
            .min();
        let latest = Now { unix: self.calendar.latest(now), ..now };
        let at = first.map(|until| {
            // One second more, so that "past it" is true then; unless the clocks differ, and one of them may come to its senses any time.
            let at = instant_of(until + Duration::from_secs(1), latest);
            if at > now.instant { at } else { now.instant + CLOCKS_DIFFER }
        });
        self.set_timer(conn, at);
    }
}
