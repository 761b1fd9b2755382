//! The node: memberships, peers, sessions, relays and routes joined into one machine.
//!
//! It opens no socket and reads no clock. The shell feeds it and then drains it, in this order, after every input:
//!
//! ```text
//! handle_* / apply_* / relay_*     one input
//! loop poll_transmit               frames, each for one relay connection
//! loop poll_event                  dial, drop, addresses, reports
//! poll_timeout                     when handle_timeout wants to be called
//! ```
//!
//! Data in and out ([`Node::handle_packet`], [`Node::handle_relay_frame`]) is sealed and opened in place in the caller's buffer, without a lock and
//! without an allocation; a packet is copied only when it has to wait for a handshake. What the node leaves to the shell: sockets, TLS,
//! the control channel (whose messages it gets as values), TUN, and keeping [`Node::config`], [`Node::pins`] and the keys on disk.
//!
//! From `docs/protocol.md` §2, §3.2, §3.3, §3.5 and §4.

mod api;

pub use api::{
    Checksum, EchoError, Event, MembershipStatus, NeedResync, NodeSettings, NodeStatus, Outgoing, PeerStatus,
    Received, RelayStatus, Untrusted,
};

use crate::proto::crypto::keys::NodeKey;
use crate::proto::id::{NodeId, RelayId};
use crate::proto::time::{Instant, Now};
use crate::proto::wire::control::PublicKey;
use crate::proto::wire::control::node::{Config, ConfigUpdate, SignedNodeKey};

/// See the [module](self).
#[derive(Debug)]
pub struct Node {
    settings: NodeSettings,
}

impl Node {
    /// A node without configuration: [`Node::apply_config`] is next, from disk or from the controller.
    pub fn new(settings: NodeSettings, _now: Now) -> Self {
        Self { settings }
    }

    /// Takes a whole configuration: from the controller, or at start from disk.
    pub fn apply_config(&mut self, _config: Config, _now: Now) {}

    /// Takes a delta.
    ///
    /// # Errors
    /// [`NeedResync`] when it builds on another version than the node has; nothing is changed then.
    pub fn apply_update(&mut self, update: ConfigUpdate, _now: Now) -> Result<(), NeedResync> {
        Err(NeedResync { have: 0, base: update.base })
    }

    /// Version of the configuration; 0: none yet.
    pub fn version(&self) -> u64 {
        0
    }

    /// The configuration with all deltas merged, to be kept on disk; it holds tokens (file mode 0600).
    pub fn config(&self) -> Option<&Config> {
        None
    }

    /// Machine keys by node id, to be kept on disk: a peer that comes with another one later is refused.
    pub fn pins(&self) -> impl Iterator<Item = (NodeId, PublicKey)> + '_ {
        std::iter::empty()
    }

    /// Own node_key with its signature, for AUTH_REQUEST.
    pub fn signed_node_key(&self) -> SignedNodeKey {
        self.settings.machine.sign_node_key(self.settings.node_key.public(), self.settings.node_key_created)
    }

    /// The node_key before the last rotation and until when (unix seconds) it answers, to be kept on disk beside the current one.
    pub fn previous_node_key(&self) -> Option<(&NodeKey, u64)> {
        None
    }

    /// Takes a new node_key; what comes back goes to the controller by NODE_UPDATE. Only of use while the controller is there: peers
    /// learn the key from it, and the old one is dropped after 5 minutes.
    pub fn rotate_node_key(&mut self, key: NodeKey, created: u64, _now: Now) -> SignedNodeKey {
        self.settings.machine.sign_node_key(key.public(), created)
    }

    /// The WebSocket to `relay` is open.
    pub fn relay_connected(&mut self, _relay: RelayId, _now: Now) {}

    /// The connection to `relay` closed, or dialling failed.
    pub fn relay_closed(&mut self, _relay: RelayId, _now: Now) {}

    /// One whole frame from `relay` (walk a WebSocket message with `wire::frame`); packets are opened in place.
    pub fn handle_relay_frame<'a>(
        &mut self,
        _relay: RelayId,
        _frame: &'a mut [u8],
        _now: Now,
    ) -> Received<'a> {
        Received::Consumed
    }

    /// One IP packet from the TUN device. `buffer` is exactly `DATA_HEADROOM` bytes, the packet, `TAG_LEN` bytes.
    pub fn handle_packet(&mut self, _buffer: &mut [u8], _checksum: Checksum, _now: Now) -> Outgoing {
        Outgoing::Queued
    }

    /// Does what is due. Calling it early is harmless.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// When [`Node::handle_timeout`] wants to be called, and for what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }

    /// Appends one or more whole frames to `out`; they go to the relay that comes back.
    pub fn poll_transmit(&mut self, _out: &mut Vec<u8>) -> Option<RelayId> {
        None
    }

    /// What the shell has to do or may want to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Asks a peer for an answer of `size` bytes; it comes as [`Event::EchoReply`] with `id`.
    ///
    /// # Errors
    /// See [`EchoError`].
    pub fn echo(&mut self, _to: NodeId, _id: u64, _size: usize, _now: Now) -> Result<(), EchoError> {
        Err(EchoError::UnknownPeer)
    }

    /// A picture for people.
    pub fn status(&self, _now: Instant) -> NodeStatus {
        NodeStatus {
            config_version: 0,
            machine_key: self.settings.machine.public(),
            mtu: 1400,
            memberships: Vec::new(),
            peers: Vec::new(),
            relays: Vec::new(),
            drops: std::collections::BTreeMap::new(),
        }
    }
}
