//! The peers of all memberships: by number, by id, by session, by address.
//!
//! A peer keeps its number ([`PeerKey`]) as long as it is known; what is looked up per packet goes by numbers.

use std::collections::BTreeMap;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

use super::peer::Peer;
use crate::proto::id::{IdMap, NodeId, SessionIndex};
use crate::proto::routing::table::{PeerKey, RouteTable};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Directory {
    slots: Vec<Option<Box<Peer>>>,
    free: Vec<u32>,
    by_id: BTreeMap<NodeId, PeerKey>,
    by_session: IdMap<SessionIndex, PeerKey>,
    /// Addresses and routes.
    pub(super) routes: RouteTable,
}

impl Directory {
    /// Adds a peer whose id is not there.
    pub(super) fn insert(&mut self, peer: Peer) -> PeerKey {
        let id = peer.id;
        let key = PeerKey(self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        }));
        if let Some(slot) = self.slots.get_mut(key.0 as usize) {
            *slot = Some(Box::new(peer));
        }
        self.by_id.insert(id, key);
        key
    }

    /// Takes a peer out. Its sessions' indices must be released before.
    pub(super) fn remove(&mut self, key: PeerKey) -> Option<Box<Peer>> {
        let peer = self.slots.get_mut(key.0 as usize)?.take()?;
        self.by_id.remove(&peer.id);
        self.free.push(key.0);
        Some(peer)
    }

    /// By number.
    pub(super) fn get(&self, key: PeerKey) -> Option<&Peer> {
        self.slots.get(key.0 as usize)?.as_deref()
    }

    /// By number.
    pub(super) fn get_mut(&mut self, key: PeerKey) -> Option<&mut Peer> {
        self.slots.get_mut(key.0 as usize)?.as_deref_mut()
    }

    /// The number of an id.
    pub(super) fn key_of(&self, id: NodeId) -> Option<PeerKey> {
        self.by_id.get(&id).copied()
    }

    /// Whose session or handshake attempt an index is.
    pub(super) fn by_session(&self, index: SessionIndex) -> Option<PeerKey> {
        self.by_session.get(&index).copied()
    }

    /// A new index for a session of `key`: not 0, not in use, not to be guessed.
    pub(super) fn new_session(&mut self, key: PeerKey, rng: &mut ChaCha20Rng) -> SessionIndex {
        loop {
            let index = SessionIndex(rng.next_u32());
            if index.0 != 0 && !self.by_session.contains_key(&index) {
                self.by_session.insert(index, key);
                return index;
            }
        }
    }

    /// Gives indices back.
    pub(super) fn release(&mut self, gone: &mut Vec<SessionIndex>) {
        for index in gone.drain(..) {
            self.by_session.remove(&index);
        }
    }

    /// All numbers, in the order of ids.
    pub(super) fn keys(&self) -> Vec<PeerKey> {
        self.by_id.values().copied().collect()
    }

    /// All peers, in the order of ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values().filter_map(|key| self.get(*key))
    }

    /// How many sessions and attempts there are.
    #[cfg(test)]
    pub(super) fn session_count(&self) -> usize {
        self.by_session.len()
    }
}
