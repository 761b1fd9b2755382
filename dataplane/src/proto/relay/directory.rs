//! Where nodes are, as one worker knows it.
//!
//! Two sources: sign-ins on this relay (here, or on another worker as the hub says) and the controller's locations (on which relays). An entry
//! stays when its node disconnects, so that "offline" (3002) and "unknown" (3001) can be told apart.

use super::rate::{Meter, Rate};
use super::{ConnId, WorkerId};
use crate::proto::id::{IdMap, NetworkId, NodeId, RelayId};
use crate::proto::time::Instant;
use crate::proto::wire::control::server::NodeLocation;

/// Where on this relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// Not connected to it.
    #[default]
    Nowhere,
    /// This worker's connection.
    Here(ConnId),
    /// Another worker's.
    Worker(WorkerId),
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Its network; 0 is in none.
    pub network: NetworkId,
    /// Where on this relay.
    pub place: Place,
    /// The relays it is connected to, by the controller; may name this one.
    pub relays: Box<[RelayId]>,
    /// Sign-ins here that the hub has not confirmed: until then what it says of other workers is older than what is known here.
    unconfirmed: u32,
    /// `None`: unlimited.
    rates: Option<Box<NodeRates>>,
}

/// What one node has sent and been sent, when that is limited. Survives its connections.
#[derive(Clone, Debug, Default)]
pub struct NodeRates {
    /// What it sends.
    pub up: Meter,
    /// What it is sent.
    pub down: Meter,
    /// When it was last told that it exceeds a limit.
    pub told: Option<Instant>,
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Directory {
    entries: IdMap<NodeId, Entry>,
}

impl Directory {
    /// Looks a node up.
    pub fn find(&self, node: NodeId) -> Option<&Entry> {
        self.entries.get(&node)
    }

    /// Limits a node from now on.
    pub fn limit(&mut self, node: NodeId, up: Rate, down: Rate) {
        let Some(entry) = self.entries.get_mut(&node) else { return };
        if up.is_unlimited() && down.is_unlimited() {
            entry.rates = None;
        } else {
            let rates = entry.rates.get_or_insert_default();
            rates.up.set(up);
            rates.down.set(down);
        }
    }

    /// A node's rates; `None` when it is not limited.
    pub fn rates(&mut self, node: NodeId) -> Option<&mut NodeRates> {
        self.entries.get_mut(&node)?.rates.as_deref_mut()
    }

    /// A node signed in on `conn` with a token for `network`. Returns where it was.
    pub fn signed_in(&mut self, node: NodeId, network: NetworkId, conn: ConnId) -> Place {
        let entry = self.entries.entry(node).or_default();
        entry.network = network;
        entry.unconfirmed = entry.unconfirmed.saturating_add(1);
        std::mem::replace(&mut entry.place, Place::Here(conn))
    }

    /// A node is no longer authenticated on `conn`. Whether it was.
    pub fn signed_out(&mut self, node: NodeId, conn: ConnId) -> bool {
        match self.entries.get_mut(&node) {
            Some(entry) if entry.place == Place::Here(conn) => {
                entry.place = Place::Nowhere;
                true
            }
            _ => false,
        }
    }

    /// The hub says that `node` is on `worker`; `me` asks. Returns the connection of ours that it has been replaced on.
    pub fn confirmed(
        &mut self,
        node: NodeId,
        network: NetworkId,
        worker: WorkerId,
        me: WorkerId,
    ) -> Option<ConnId> {
        let entry = self.entries.entry(node).or_default();
        if worker == me {
            entry.unconfirmed = entry.unconfirmed.saturating_sub(1);
            return None;
        }
        if entry.unconfirmed > 0 {
            // Our own sign-in comes later in the hub's order.
            return None;
        }
        entry.network = network;
        match std::mem::replace(&mut entry.place, Place::Worker(worker)) {
            Place::Here(conn) => Some(conn),
            _ => None,
        }
    }

    /// The hub says that no worker has `node`.
    pub fn gone(&mut self, node: NodeId) {
        if let Some(entry) = self.entries.get_mut(&node)
            && matches!(entry.place, Place::Worker(_))
        {
            entry.place = Place::Nowhere;
        }
    }

    /// The controller's word on one node.
    pub fn locate(&mut self, location: &NodeLocation) {
        let entry = self.entries.entry(location.node_id).or_default();
        entry.network = location.network_id;
        entry.relays = location.relays.as_slice().into();
    }

    /// The controller's word on all nodes: those that it does not name are forgotten, unless they are connected here.
    pub fn locate_all(&mut self, locations: &[NodeLocation]) {
        self.entries.retain(|_, entry| {
            entry.relays = Box::default();
            entry.place != Place::Nowhere || entry.unconfirmed > 0
        });
        for location in locations {
            self.locate(location);
        }
    }

    /// The node exists no more. Returns where it was.
    pub fn remove(&mut self, node: NodeId) -> Place {
        self.entries.remove(&node).map_or(Place::Nowhere, |entry| entry.place)
    }

    /// Nodes known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
