//! The relay as machines without I/O (`docs/protocol.md` §4, §5): one [`worker::Worker`] per core, one [`hub::Hub`] for the whole.
//!
//! ```text
//!  controller ⇄ Hub ── ToWorker ──▶ Worker 0 ⇄ connections (nodes, other relays)
//!                │ ◀── FromWorker ── Worker 0 ── frames ──▶ Worker 1 …
//!                └── dial ──▶ shell
//! ```
//!
//! A worker owns connections and decides about every frame from tables of its own: [`directory`] says where a node is. The hub owns what is
//! true for the relay: which worker has which node, the [`mesh`] of relays, the controller's configuration. Workers never wait for the
//! hub; it tells them what changed and they catch up. Two workers that sign in one node at the same moment are put in order by the hub.
//!
//! Invariants: a frame's source is a node authenticated on the connection it came from, or lies behind the mesh link it came from; both ends
//! are in one network; what came from a mesh link is only delivered here. Forwarding allocates nothing and takes no lock.

mod addresses;
pub mod calendar;
pub mod delay;
pub mod directory;
pub mod error_limit;
mod fair_queue;
mod frame_fifo;
pub mod hub;
pub mod mesh;
pub mod queue;
pub mod rate;
pub mod source_limit;
pub mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::proto::drop_reason::DropReason;
use crate::proto::id::{NetworkId, NodeId, RelayId};
use crate::proto::token::TokenVerifier;
use crate::proto::wire::control::Secret;
use crate::proto::wire::control::server::{NodeLocation, Revocations};
pub use addresses::Arrivals;
use calendar::Calendar;
use rate::Rate;

/// One connection of one worker: a small number that the shell chooses and reuses after the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u32);

/// One worker of a relay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkerId(pub u16);

/// One mesh link, for good: which worker made it, and its how-manieth it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkSerial(pub u64);

/// What another worker is to do with a frame that was already checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop {
    /// Deliver to the destination's connection.
    Deliver,
    /// Send over the link to that relay.
    Mesh(RelayId),
}

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To a node's connection of this worker.
    Local(ConnId),
    /// To a mesh link of this worker.
    MeshLink(ConnId),
    /// To another worker.
    Worker(WorkerId, Hop),
    /// Nowhere; counted.
    Drop(DropReason),
}

/// What may be configured about the machine. Numbers are per worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From accepting a connection to its first authentication.
    pub handshake_timeout: Duration,
    /// Connections of all kinds.
    pub max_connections: usize,
    /// Of these, such as have not authenticated anything.
    pub max_unauthenticated: usize,
    /// Of these, from one address.
    pub max_unauthenticated_per_address: usize,
    /// Memberships on one connection.
    pub max_memberships: usize,
    /// Connections from one address.
    pub max_connections_per_address: usize,
    /// New connections from one address.
    pub arrivals: Arrivals,
    /// What nodes and addresses may send and be sent.
    pub rates: Rates,
}

/// Limits of rate. A node's own token may say otherwise for its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// What one node may send.
    pub node_up: Rate,
    /// What one node is sent.
    pub node_down: Rate,
    /// What all nodes behind one address may send.
    pub address_up: Rate,
    /// What they are sent.
    pub address_down: Rate,
    /// How long a sender that was silent may exceed its rate without limit.
    pub burst: Duration,
}

impl Default for Rates {
    fn default() -> Self {
        let [node_up, node_down, address_up, address_down] = [Rate::UNLIMITED; 4];
        // A round trip around the world: less would hold TCP below the rate.
        Self { node_up, node_down, address_up, address_down, burst: Duration::from_millis(250) }
    }
}

impl Rates {
    /// Whether any of them limits anything.
    pub fn any(&self) -> bool {
        [self.node_up, self.node_down, self.address_up, self.address_down]
            .iter()
            .any(|rate| !rate.is_unlimited())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            max_connections: 100_000,
            max_unauthenticated: 4_096,
            max_unauthenticated_per_address: 256,
            max_memberships: 64,
            max_connections_per_address: usize::MAX,
            arrivals: Arrivals::default(),
            rates: Rates::default(),
        }
    }
}

/// From the hub to workers. Cheap to clone: one goes to each.
#[derive(Clone, Debug)]
pub enum ToWorker {
    /// Who this relay is and what it checks tokens with; `None`: nothing yet, sign-ins get 4002.
    Identity {
        /// 0 until it is known.
        relay_id: RelayId,
        /// From the controller's keys.
        verifier: Option<Arc<TokenVerifier>>,
    },
    /// New limits.
    Limits(Limits),
    /// What time the controller says it is.
    Calendar(Calendar),
    /// What this relay shows to others that dial it, by their ids.
    MeshTokens(Arc<BTreeMap<RelayId, Secret>>),
    /// How long past `exp` tokens are good: not zero while the controller is away.
    Grace(Duration),
    /// Locations by relay, from the controller.
    Locations {
        /// `set` is all there is.
        whole: bool,
        /// New or changed.
        set: Arc<[NodeLocation]>,
        /// Exist no more.
        remove: Arc<[NodeId]>,
    },
    /// To be added to what is known.
    Revoke(Arc<Revocations>),
    /// The hub has taken note of a [`FromWorker::NodeUp`] of that worker.
    NodeAt {
        /// Which.
        node: NodeId,
        /// Its network, from its token.
        network: NetworkId,
        /// Where it is now.
        worker: WorkerId,
    },
    /// The same for a [`FromWorker::NodeDown`] that was the last word.
    NodeGone {
        /// Which.
        node: NodeId,
    },
    /// The link to a relay is there.
    LinkAt {
        /// Which relay.
        relay: RelayId,
        /// Where the link is.
        worker: WorkerId,
        /// Which link.
        serial: LinkSerial,
    },
    /// That link is no more.
    LinkGone {
        /// Which relay.
        relay: RelayId,
        /// Which link.
        serial: LinkSerial,
    },
    /// The relay at its other end is about to stop: what can go another way does.
    LinkLeaving {
        /// Which relay.
        relay: RelayId,
        /// Which link.
        serial: LinkSerial,
    },
    /// Replaced by another link, or its relay was removed: close it.
    CloseLink {
        /// Which relay.
        relay: RelayId,
        /// Which link.
        serial: LinkSerial,
        /// For GOAWAY.
        reason: &'static str,
    },
    /// Say GOAWAY to everyone.
    Drain {
        /// Until the shell closes.
        grace: Duration,
    },
}

/// From a worker to the hub, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromWorker {
    /// A node signed in.
    NodeUp {
        /// Which.
        node: NodeId,
        /// From its token.
        network: NetworkId,
    },
    /// Its connection ended.
    NodeDown {
        /// Which.
        node: NodeId,
    },
    /// A mesh link is authenticated.
    LinkUp {
        /// With whom.
        relay: RelayId,
        /// Which.
        serial: LinkSerial,
    },
    /// Its other end said GOAWAY.
    LinkLeaving {
        /// With whom.
        relay: RelayId,
        /// Which.
        serial: LinkSerial,
    },
    /// It ended.
    LinkDown {
        /// With whom.
        relay: RelayId,
        /// Which.
        serial: LinkSerial,
    },
    /// A round trip was measured on a link.
    LinkRtt {
        /// With whom.
        relay: RelayId,
        /// How long.
        rtt: Duration,
    },
    /// What became of the frames for a link, since the last report.
    LinkLoss {
        /// With whom.
        relay: RelayId,
        /// Handed to it.
        frames: u64,
        /// Of these, dropped from its queue.
        lost: u64,
    },
    /// A link that was being dialled did not come to be.
    DialFailed {
        /// With whom.
        relay: RelayId,
    },
}

#[cfg(test)]
mod tests;
