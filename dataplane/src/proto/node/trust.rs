//! Which keys of peers are believed: pins and signatures (`docs/protocol.md` §2.1).

use std::time::Duration;

use super::Node;
use super::api::{AcceptError, AcceptedKey, Event, Untrusted};
use super::peer::Trust;
use crate::proto::crypto::keys::verify_node_key;
use crate::proto::id::NodeId;
use crate::proto::path::backoff::jitter;
use crate::proto::routing::table::PeerKey;
use crate::proto::time::Now;
use crate::proto::wire::control::PublicKey;
use crate::proto::wire::control::node;

/// Handshakes after a peer's key change are spread over this.
const PEER_KEY_SPREAD: Duration = Duration::from_secs(1);

impl Node {
    /// Takes the machine_key that the configuration has for a peer, in place of the one that was pinned: somebody has made sure that it is the
    /// peer's. `expected`: only if it is this one. Keep [`Node::pins`] on disk afterwards.
    ///
    /// # Errors
    /// See [`AcceptError`]; nothing has changed then.
    pub fn accept_machine_key(
        &mut self,
        peer: NodeId,
        expected: Option<PublicKey>,
        now: Now,
    ) -> Result<AcceptedKey, AcceptError> {
        let key = self.directory.key_of(peer).ok_or(AcceptError::UnknownPeer)?;
        let memberships = self.config.iter().flat_map(|config| &config.memberships);
        let info = memberships.flat_map(|membership| &membership.peers).find(|info| info.node_id == peer);
        let info = info.cloned().ok_or(AcceptError::UnknownPeer)?;
        let machine_key = info.machine_key;
        if expected.is_some_and(|expected| expected != machine_key) {
            return Err(AcceptError::Another(machine_key));
        }
        let pinned = self.pins.get_mut(&peer).filter(|pinned| **pinned != machine_key);
        let before = std::mem::replace(pinned.ok_or(AcceptError::NotChanged)?, machine_key);
        self.set_keys(key, &info, now);
        self.refresh_path(key, now.instant);
        Ok(AcceptedKey { machine_key, before })
    }

    /// Believes a peer's keys, or does not.
    pub(super) fn set_keys(&mut self, key: PeerKey, info: &node::Peer, now: Now) {
        let pinned = *self.pins.entry(info.node_id).or_insert(info.machine_key);
        let Some(peer) = self.directory.get_mut(key) else { return };
        peer.machine_key = Some(info.machine_key);
        let known = peer.keys.current().map(|key| &**key);
        let verdict = match &info.node_key {
            _ if pinned != info.machine_key => Trust::Refused(Untrusted::MachineKeyChanged),
            None => Trust::NoKey,
            Some(new) if known == Some(new) => Trust::Verified,
            // All or nothing: whoever could strip one end's key would strip the other's.
            Some(new) if new.kem.is_some() != self.keys.current().kem().is_some() => {
                Trust::Refused(Untrusted::PostQuantumKey)
            }
            Some(new) if verify_node_key(&pinned, new).is_err() => {
                Trust::Refused(Untrusted::NodeKeySignature)
            }
            Some(_) => Trust::Verified,
        };
        let changed = std::mem::replace(&mut peer.trust, verdict) != verdict;
        match (verdict, &info.node_key) {
            (Trust::Verified, Some(new)) => {
                // An older one, though signed, may have been stolen since: never back to it.
                let newer = known.is_none_or(|known| new.created >= known.created);
                if newer && known != Some(new) && peer.keys.set(new.clone(), now.instant) {
                    let spread = jitter(&mut self.rng, PEER_KEY_SPREAD);
                    self.renew_session(key, now.instant + spread);
                }
            }
            (Trust::Refused(reason), _) => {
                peer.keys.clear();
                let peer = peer.id;
                self.forget_sessions(key);
                if changed {
                    self.outbox.events.push_back(Event::PeerUntrusted { peer, reason });
                }
            }
            _ => {
                peer.keys.clear();
                self.forget_sessions(key);
            }
        }
    }
}
