//! What goes into a [`super::Node`] and what comes out, as values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::proto::crypto::keys::{MachineKey, NodeKey};
use crate::proto::drop_reason::DropReason;
use crate::proto::id::{NetworkId, NodeId, RelayId};
use crate::proto::path::candidate::Kind;
use crate::proto::path::choice::Path;
use crate::proto::path::direct::Place;
use crate::proto::path::nat::NatBehaviour;
use crate::proto::wire::control::PublicKey;
use crate::proto::wire::control::node::{AdvertisedRoute, Endpoint, LatencyReport, Relay};

/// What a [`super::Node`] is made from.
pub struct NodeSettings {
    /// The machine's identity.
    pub machine: MachineKey,
    /// The key for sessions.
    pub node_key: NodeKey,
    /// When `node_key` was made, unix seconds.
    pub node_key_created: u64,
    /// The key before it and until when (unix seconds) it still answers: what [`super::Node::previous_node_key`] said before a restart.
    pub previous_node_key: Option<(NodeKey, u64)>,
    /// Whether this CPU has AES instructions: then AES-256-GCM is offered.
    pub aes: bool,
    /// 32 random bytes, fresh on every start: all randomness of the node is drawn from them.
    pub seed: [u8; 32],
    /// Of the software, told to relays.
    pub version: String,
    /// Subnets that this machine offers: packets for them are let in.
    pub advertised: Vec<AdvertisedRoute>,
    /// Machine keys seen for node ids before: what [`super::Node::pins`] said before a restart.
    pub pins: Vec<(NodeId, PublicKey)>,
}

impl fmt::Debug for NodeSettings {
    /// Leaves secrets out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSettings")
            .field("machine", &self.machine)
            .field("node_key", &self.node_key)
            .field("aes", &self.aes)
            .finish_non_exhaustive()
    }
}

/// Whether the transport checksum inside a packet is complete. `Partial`: as the kernel hands over a packet with `NEEDS_CSUM`
/// (`docs/protocol.md` §1.3 PARTIAL_CSUM).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksum {
    /// As it should arrive.
    #[default]
    Complete,
    /// Only the pseudo header is summed; whoever delivers it completes it.
    Partial,
}

/// What became of a frame from a relay.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// An IP packet for the TUN device, inside the frame's buffer.
    Packet {
        /// Version, addresses and lengths are checked.
        packet: &'a mut [u8],
        /// What is left to do about its checksum.
        checksum: Checksum,
        /// Who sent it.
        from: NodeId,
        /// Own membership that it is for.
        to: NodeId,
    },
    /// The node dealt with it; there may be something to transmit and events.
    Consumed,
    /// Counted.
    Dropped(DropReason),
}

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// On the connection to a relay.
    Relay {
        /// The connection.
        relay: RelayId,
        /// `Some`: wrap it in VIA for this relay (`wire::data::via_header`); several frames for the same two relays may share one VIA.
        via: Option<RelayId>,
    },
    /// In a datagram of its own, from a UDP socket.
    Direct(Place),
}

impl From<Path> for Target {
    fn from(path: Path) -> Self {
        Self::Relay { relay: path.relay, via: path.via }
    }
}

/// The UDP side of the machine, as the shell knows it: see [`super::Node::set_endpoints`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalEndpoints {
    /// Port of the IPv4 socket, if there is one.
    pub port4: Option<u16>,
    /// Port of the IPv6 socket, if there is one.
    pub port6: Option<u16>,
    /// Addresses of the interfaces with their networks, without the TUN device's.
    pub addresses: Vec<IpNet>,
    /// Addresses that UPnP-IGD, NAT-PMP or PCP has mapped to the sockets.
    pub mapped: Vec<SocketAddr>,
    /// Sockets that may be opened for a search among random ports; 0: none.
    pub extra_sockets: u16,
    /// Whether the own networks are told where this node is ([`Event::Announce`]).
    pub lan_discovery: bool,
}

/// A subnet behind peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubnetRoute {
    /// The subnet.
    pub net: IpNet,
    /// Own membership in the network of its gateways: packets have to carry an address of that one.
    pub own: NodeId,
}

/// The peer that takes everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitStatus {
    /// Its id.
    pub node_id: NodeId,
    /// Own membership in its network.
    pub own: NodeId,
    /// Its name.
    pub name: String,
    /// The wide routes that it offers and the operator has enabled.
    pub routes: Vec<IpNet>,
}

/// What became of a packet from the TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// Sealed: send `buffer[frame]`.
    Send {
        /// Where it goes.
        target: Target,
        /// One whole DATA frame within the buffer.
        frame: Range<usize>,
    },
    /// Copied; it goes out by `poll_transmit` when the session is there.
    Queued,
    /// Counted.
    Dropped(DropReason),
}

/// What the shell has to do or may want to know.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Open a connection to this relay's `data_url`. Answer with `relay_connected` or `relay_closed`; the node asks again by itself.
    DialRelay {
        /// With URL and certificate pin.
        relay: Relay,
    },
    /// Close the connection (or stop dialling). Nothing more may be reported about that connection, not even that it closed.
    DropRelay {
        /// Which one.
        id: RelayId,
        /// Why, for the log.
        reason: &'static str,
    },
    /// A network was joined: its addresses belong on the TUN device.
    MembershipAdded {
        /// Own id there.
        node: NodeId,
        /// The network.
        network: NetworkId,
        /// Its name.
        name: String,
        /// Own addresses with the subnet's prefix length.
        addresses: Vec<IpNet>,
    },
    /// A network was left.
    MembershipRemoved {
        /// Own id there.
        node: NodeId,
        /// The network.
        network: NetworkId,
        /// Its name.
        name: String,
        /// To be taken off the TUN device.
        addresses: Vec<IpNet>,
        /// From the controller, or why it was refused.
        reason: String,
    },
    /// A network was not joined because its addresses overlap with another one's.
    NetworkRefused {
        /// The one that was refused.
        network: String,
        /// The one that it overlaps with.
        other: String,
    },
    /// The subnets to route into the TUN device, all of them, sorted.
    RoutesChanged {
        /// Enabled routes behind peers, without own networks' subnets and without wide ones.
        routes: Vec<SubnetRoute>,
    },
    /// What there is of the exit that this machine wants; `None`: nothing, or no exit is wanted.
    ExitChanged {
        /// The exit.
        exit: Option<ExitStatus>,
    },
    /// The TUN device's MTU is another one.
    MtuChanged {
        /// Bytes.
        mtu: u16,
    },
    /// A peer's keys do not verify: it has no session (`docs/protocol.md` §2.1).
    PeerUntrusted {
        /// The peer.
        peer: NodeId,
        /// What is wrong.
        reason: Untrusted,
    },
    /// Packets flow under a new session.
    SessionEstablished {
        /// The peer.
        peer: NodeId,
        /// Name of the cipher.
        cipher: &'static str,
    },
    /// The path to a peer changed.
    PathChanged {
        /// The peer.
        peer: NodeId,
        /// Relays to go by, as in the configuration; empty: none left.
        path: Vec<RelayId>,
    },
    /// Packets to a peer take a direct path from now on, or no longer.
    DirectChanged {
        /// The peer.
        peer: NodeId,
        /// Its address; `None`: packets take the relays.
        address: Option<SocketAddr>,
    },
    /// Where this node may be reached, all of it: tell the controller (NODE_UPDATE `endpoints`).
    EndpointsChanged {
        /// Best first.
        endpoints: Vec<Endpoint>,
        /// What the NAT does, as far as it is known.
        nat: NatBehaviour,
    },
    /// Tell the network that this address of ours is in: send it to the group of [`crate::proto::path::beacon`].
    Announce {
        /// The own address.
        from: IpAddr,
        /// What to send.
        datagram: Vec<u8>,
    },
    /// A relay is ready for at least one membership, or no longer.
    RelayState {
        /// Which one.
        relay: RelayId,
        /// Whether packets can be sent on it.
        ready: bool,
    },
    /// Send this to the controller.
    LatencyReport(LatencyReport),
    /// Ask the controller for new tokens (NODE_UPDATE `refresh_tokens`).
    NeedTokens,
    /// The answer to [`super::Node::echo`].
    EchoReply {
        /// Who answered.
        from: NodeId,
        /// As given.
        id: u64,
        /// Round trip.
        rtt: Duration,
        /// Relays that the answer's way began with, seen from here; empty when it came directly.
        path: Vec<RelayId>,
        /// The address that it came from, when it came directly.
        direct: Option<SocketAddr>,
    },
}

/// Why a peer's keys are not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Untrusted {
    /// The node_key is not signed by the machine_key.
    NodeKeySignature,
    /// The machine_key is another one than was pinned for this node id.
    MachineKeyChanged,
    /// One end publishes a post-quantum key, the other does not.
    PostQuantumKey,
}

/// A machine_key that took the place of the pinned one: see [`super::Node::accept_machine_key`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AcceptedKey {
    /// Pinned from now on.
    pub machine_key: PublicKey,
    /// Until now.
    pub before: PublicKey,
}

/// Why a peer's machine_key was not accepted.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcceptError {
    /// No such peer.
    #[error("no such peer")]
    UnknownPeer,
    /// It is the one that is pinned.
    #[error("its machine key is the one that is known: there is nothing to accept")]
    NotChanged,
    /// It is not the one that was meant to be accepted.
    #[error("its machine key is now {0}, not the one that was given: ask its owner which one is right")]
    Another(PublicKey),
}

/// A delta does not fit: ask for everything (NODE_UPDATE `resync`).
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("update is based on configuration {base}, this node has {have}")]
pub struct NeedResync {
    /// What it has.
    pub have: u64,
    /// What the update assumes.
    pub base: u64,
}

/// Why an echo was not sent.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EchoError {
    /// No such peer.
    #[error("no such peer")]
    UnknownPeer,
    /// Longer than the MTU.
    #[error("longer than the MTU")]
    TooBig,
    /// Too many are waiting for their answers.
    #[error("too many echoes under way")]
    TooMany,
    /// The peer's keys are missing or do not verify.
    #[error("the peer has no trusted key")]
    Untrusted,
    /// No relay to send it on.
    #[error("no relay connection")]
    NoPath,
}

/// A picture of the node for people and for `edgelink status --output json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeStatus {
    /// Version of the configuration; 0: none yet.
    pub config_version: u64,
    /// Text form.
    pub machine_key: PublicKey,
    /// Of the TUN device.
    pub mtu: u16,
    /// Networks.
    pub memberships: Vec<MembershipStatus>,
    /// Peers of all networks, by id.
    pub peers: Vec<PeerStatus>,
    /// Relays, by id.
    pub relays: Vec<RelayStatus>,
    /// What is known of the NAT in front of this node (IPv4).
    pub nat: NatBehaviour,
    /// Packets and frames dropped, by reason; zeros left out.
    pub drops: std::collections::BTreeMap<&'static str, u64>,
}

/// One network of [`NodeStatus`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MembershipStatus {
    /// Own id.
    pub node_id: NodeId,
    /// Own name.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// Own addresses.
    pub addresses: Vec<IpNet>,
}

/// One peer of [`NodeStatus`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Its id.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Subnets behind it that are enabled.
    pub routes: Vec<IpNet>,
    /// Those of them that it cannot reach at the moment.
    pub routes_down: Vec<IpNet>,
    /// It has routes and does not answer: other gateways are taken.
    pub silent: bool,
    /// What the controller says.
    pub online: bool,
    /// `none`, `handshake`, `established` or `untrusted`.
    pub session: &'static str,
    /// Seconds since the session was made.
    pub session_age_s: Option<f64>,
    /// Name of the cipher.
    pub cipher: Option<&'static str>,
    /// Whether a post-quantum secret is in the session's keys.
    pub post_quantum: Option<bool>,
    /// What the controller says.
    pub machine_key: Option<PublicKey>,
    /// The one that was pinned, when that is another.
    pub pinned_machine_key: Option<PublicKey>,
    /// Why its keys are not believed.
    pub untrusted: Option<Untrusted>,
    /// Relays in use, as in the configuration; empty: none.
    pub path: Vec<RelayId>,
    /// The peer's address, while packets take a direct path.
    pub direct: Option<SocketAddr>,
    /// What sort of address that is.
    pub direct_kind: Option<Kind>,
    /// The longest IP packet that the direct path is known to carry whole, headers of the path included.
    pub direct_mtu: Option<u16>,
    /// What the peer says of its NAT.
    pub nat: Option<NatBehaviour>,
    /// Last measured round trip to the peer, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Bytes of IP packets sent.
    pub tx_bytes: u64,
    /// IP packets sent.
    pub tx_packets: u64,
    /// Bytes of IP packets received.
    pub rx_bytes: u64,
    /// IP packets received.
    pub rx_packets: u64,
    /// Seconds since something authenticated came.
    pub last_heard_s: Option<f64>,
}

/// One relay of [`NodeStatus`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RelayStatus {
    /// Its id.
    pub id: RelayId,
    /// Its name.
    pub name: String,
    /// `waiting`, `dialling`, `authenticating`, `ready` or `draining`.
    pub state: &'static str,
    /// Smoothed round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The relay's last word when it refused us.
    pub error: Option<String>,
    /// Its STUN server.
    pub stun: Option<SocketAddr>,
    /// Where the STUN server saw this node last; `None`: it has not answered, or was not asked.
    pub seen_as: Option<SocketAddr>,
}
