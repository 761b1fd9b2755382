//! What a relay knows to be revoked (`docs/protocol.md` §5.3, §6): tokens by id until they would have ended anyway, and everything issued to a
//! node or relay before an instant.

use std::collections::BTreeMap;

use crate::proto::id::{IdMap, NodeId, RelayId};
use crate::proto::time::UnixTime;
use crate::proto::wire::control::server::{Revocations, RevokedNode, RevokedRelay, RevokedToken};

/// Grows by [`Self::extend`], shrinks by [`Self::prune`].
#[derive(Clone, Debug, Default)]
pub struct RevocationList {
    tokens: BTreeMap<String, u64>,
    nodes: IdMap<NodeId, u64>,
    relays: IdMap<RelayId, u64>,
}

impl RevocationList {
    /// Adds what is new. A date never moves back.
    pub fn extend(&mut self, revocations: &Revocations) {
        for RevokedToken { jti, expires } in &revocations.tokens {
            let until = self.tokens.entry(jti.clone()).or_default();
            *until = (*until).max(*expires);
        }
        for RevokedNode { node_id, before } in &revocations.nodes {
            let limit = self.nodes.entry(*node_id).or_default();
            *limit = (*limit).max(*before);
        }
        for RevokedRelay { relay_id, before } in &revocations.relays {
            let limit = self.relays.entry(*relay_id).or_default();
            *limit = (*limit).max(*before);
        }
    }

    /// Forgets token ids that ended more than `keep_s` seconds ago: as long as grace may still accept them.
    pub fn prune(&mut self, now: UnixTime, keep_s: u64) {
        self.tokens.retain(|_, expires| expires.saturating_add(keep_s) >= now.as_secs());
    }

    /// Whether a relay_token is void.
    pub fn covers_node(&self, node: NodeId, jti: &str, iat: u64) -> bool {
        self.nodes.get(&node).is_some_and(|&before| iat < before) || self.tokens.contains_key(jti)
    }

    /// Whether a mesh or server token is void.
    pub fn covers_relay(&self, relay: RelayId, jti: &str, iat: u64) -> bool {
        self.relays.get(&relay).is_some_and(|&before| iat < before) || self.tokens.contains_key(jti)
    }

    /// All of it, in order, for keeping on disk.
    pub fn to_revocations(&self) -> Revocations {
        let mut nodes: Vec<_> =
            self.nodes.iter().map(|(&node_id, &before)| RevokedNode { node_id, before }).collect();
        nodes.sort_unstable_by_key(|entry| entry.node_id);
        let mut relays: Vec<_> =
            self.relays.iter().map(|(&relay_id, &before)| RevokedRelay { relay_id, before }).collect();
        relays.sort_unstable_by_key(|entry| entry.relay_id);
        let tokens =
            self.tokens.iter().map(|(jti, &expires)| RevokedToken { jti: jti.clone(), expires }).collect();
        Revocations { tokens, nodes, relays }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_only_move_forward_and_ids_are_forgotten_after_their_end() {
        let mut list = RevocationList::default();
        let token = |expires| RevokedToken { jti: "a".into(), expires };
        let node = |before| RevokedNode { node_id: NodeId(9), before };
        list.extend(&Revocations { tokens: vec![token(100)], nodes: vec![node(50)], relays: vec![] });
        list.extend(&Revocations { tokens: vec![], nodes: vec![node(40)], relays: vec![] });
        assert!(list.covers_node(NodeId(9), "b", 49));
        assert!(!list.covers_node(NodeId(9), "b", 50));
        assert!(list.covers_node(NodeId(1), "a", 99));
        list.prune(UnixTime::from_secs(110), 10);
        assert!(list.covers_node(NodeId(1), "a", 99));
        list.prune(UnixTime::from_secs(111), 10);
        assert!(!list.covers_node(NodeId(1), "a", 99));
        assert!(list.covers_node(NodeId(9), "b", 49));
    }
}
