//! What the hub says changes a worker's tables, and may end connections.

use std::sync::Arc;

use super::{LinkPlace, Membership, Role, Worker};
use crate::proto::error::ErrorCode;
use crate::proto::id::NodeId;
use crate::proto::relay::directory::Place;
use crate::proto::relay::{ConnId, ToWorker};
use crate::proto::time::Now;
use crate::proto::wire::control::server::Revocations;

impl Worker {
    /// Takes one message of the hub's.
    pub fn handle_hub(&mut self, message: &ToWorker, now: Now) {
        match message {
            ToWorker::Identity { relay_id, verifier } => {
                self.relay_id = *relay_id;
                self.verifier.clone_from(verifier);
            }
            ToWorker::Limits(limits) => self.set_limits(limits),
            ToWorker::Calendar(calendar) => self.calendar = *calendar,
            ToWorker::MeshTokens(tokens) => self.mesh_tokens = Arc::clone(tokens),
            ToWorker::Grace(grace) => {
                self.grace = *grace;
                for conn in self.data_connections() {
                    self.check_expiry(conn, now);
                }
            }
            ToWorker::Locations { whole, set, remove } => {
                if *whole {
                    self.directory.locate_all(set);
                } else {
                    set.iter().for_each(|location| self.directory.locate(location));
                }
                for node in remove.iter() {
                    if let Place::Here(conn) = self.directory.remove(*node) {
                        let message = "node was removed".into();
                        self.fail(conn, ErrorCode::TokenRevoked, message, Some(*node));
                    }
                }
            }
            ToWorker::Revoke(revocations) => self.revoke(revocations, now),
            ToWorker::NodeAt { node, network, worker } => {
                if let Some(old) = self.directory.confirmed(*node, *network, *worker, self.id) {
                    self.replaced(old, *node);
                }
                if *worker == self.id {
                    self.announced(*node);
                }
            }
            ToWorker::NodeGone { node } => self.directory.gone(*node),
            ToWorker::LinkAt { relay, worker, serial } => {
                if *worker != self.id {
                    // Ours, if there is one, is the older: the hub has us close it.
                    self.links.insert(*relay, LinkPlace::Worker(*worker, *serial));
                }
            }
            ToWorker::LinkLeaving { relay, serial } => {
                let known = self.links.get(relay).map(|place| place.serial());
                if known == Some(*serial) {
                    self.leaving.insert(*relay, *serial);
                }
            }
            ToWorker::LinkGone { relay, serial } => {
                self.stays(*relay, *serial);
                if matches!(self.links.get(relay), Some(LinkPlace::Worker(_, known)) if known == serial) {
                    self.links.remove(relay);
                }
            }
            ToWorker::CloseLink { serial, reason, .. } => {
                let found = self.conns.iter().position(|conn| {
                    matches!(conn.as_ref().map(|conn| &conn.role), Some(Role::Mesh(link)) if link.serial == *serial)
                });
                if let Some(slot) = found {
                    self.close_link(ConnId(slot as u32), reason);
                }
            }
            ToWorker::Drain { grace } => {
                self.draining = true;
                for slot in 0..self.conns.len() {
                    let conn = ConnId(slot as u32);
                    match self.conn(conn).map(|conn| &conn.role) {
                        Some(Role::Data(_) | Role::Mesh(_)) => self.go_away(conn, "drain", *grace),
                        Some(_) => self.close(conn, 1001),
                        None => {}
                    }
                }
            }
        }
    }

    /// Cuts every connection that is authenticated by a token which is now void.
    fn revoke(&mut self, revocations: &Revocations, now: Now) {
        self.revoked.prune(self.calendar.earliest(now), 86_400);
        self.revoked.extend(revocations);
        for slot in 0..self.conns.len() {
            let conn = ConnId(slot as u32);
            let void = |token: &&Membership| self.revoked.covers_node(token.node, &token.jti, token.iat);
            let hit: Option<Option<NodeId>> = match self.conn(conn).map(|conn| &conn.role) {
                Some(Role::Data(memberships)) => memberships.iter().find(void).map(|token| Some(token.node)),
                Some(Role::Mesh(link)) => {
                    let (jti, iat) = &link.token;
                    self.revoked.covers_relay(link.relay, jti, *iat).then_some(None)
                }
                _ => None,
            };
            if let Some(node) = hit {
                self.fail(conn, ErrorCode::TokenRevoked, "token revoked".into(), node);
            }
        }
    }

    fn data_connections(&self) -> Vec<ConnId> {
        let is_data = |slot: &usize| matches!(self.conns[*slot].as_ref().map(|conn| &conn.role), Some(Role::Data(all)) if !all.is_empty());
        (0..self.conns.len()).filter(is_data).map(|slot| ConnId(slot as u32)).collect()
    }
}
