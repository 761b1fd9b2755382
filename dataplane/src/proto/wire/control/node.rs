//! What nodes and the controller say to each other on `/ws/control` (`docs/protocol.md` §3).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::bytes::{Base64, KemPublicKey, PublicKey, Signature};
use super::secret::Secret;
use crate::proto::id::{NetworkId, NodeId, RelayId, RouteId};

/// AUTH_CHALLENGE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthChallenge {
    /// To be signed.
    pub nonce: Base64<32>,
    /// Unix seconds at the controller.
    pub server_time: u64,
}

/// A node_key as its owner publishes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedNodeKey {
    /// X25519.
    pub public: PublicKey,
    /// ML-KEM-768; whose record has one has no sessions without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kem: Option<Box<KemPublicKey>>,
    /// Unix seconds.
    pub created: u64,
    /// By the machine_key, `docs/protocol.md` §2.1.
    pub signature: Signature,
}

/// A subnet that a node offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertisedRoute {
    /// The subnet.
    pub cidr: IpNet,
    /// Higher wins.
    #[serde(default = "default_hundred")]
    pub priority: u16,
    /// Share among equals, 1 to 65,535.
    #[serde(default = "default_hundred")]
    pub weight: u16,
}

const fn default_hundred() -> u16 {
    100
}

const fn default_true() -> bool {
    true
}

/// AUTH_REQUEST `machine`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineAuth {
    /// Ed25519.
    pub machine_key: PublicKey,
    /// From the challenge.
    pub nonce: Base64<32>,
    /// Over label, nonce and the hash of `controller`.
    pub signature: Signature,
    /// The host name that the node dialled.
    pub controller: String,
    /// The key for sessions.
    pub node_key: SignedNodeKey,
    /// For people.
    #[serde(default)]
    pub hostname: String,
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// `x86_64`
    #[serde(default)]
    pub arch: String,
    /// Of the software.
    #[serde(default)]
    pub version: String,
    /// Names of networks to join; empty: those it is in, else the default one.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Authorises at once where the operator made such a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment_key: Option<Secret>,
    /// What the node has; 0: nothing.
    #[serde(default)]
    pub config_version: u64,
    /// Subnets it offers.
    #[serde(default)]
    pub routes: Vec<AdvertisedRoute>,
}

/// Whether a membership may talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthState {
    /// Yes.
    Authorised,
    /// Waits for an operator.
    Pending,
}

/// One membership in an AUTH_RESPONSE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// Its id.
    pub node_id: NodeId,
    /// Where.
    pub network_id: NetworkId,
    /// The network's name.
    pub network: String,
    /// Whether it may talk.
    pub state: AuthState,
}

/// AUTH_RESPONSE `machine`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineAuthorised {
    /// `authorised` when any membership is.
    pub state: AuthState,
    /// All memberships.
    pub nodes: Vec<NodeState>,
    /// For REST calls as this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<Secret>,
    /// Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_token_expires: Option<u64>,
    /// Seconds between PINGs.
    #[serde(default = "default_heartbeat")]
    pub heartbeat_s: u32,
}

const fn default_heartbeat() -> u32 {
    15
}

/// CONFIG for a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Grows with every change that concerns this machine.
    pub version: u64,
    /// One per network.
    pub memberships: Vec<Membership>,
    /// All relays.
    pub relays: Vec<Relay>,
    /// What the operator set.
    #[serde(default)]
    pub settings: Settings,
}

/// A network, as its members see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// IPv4 subnet.
    pub subnet4: Option<IpNet>,
    /// IPv6 ULA subnet.
    pub subnet6: Option<IpNet>,
}

/// One membership with all it needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Membership {
    /// Own id in this network.
    pub node_id: NodeId,
    /// Own name.
    pub name: String,
    /// The network.
    pub network: Network,
    /// Own addresses with the subnet's prefix length.
    pub addresses: Vec<IpNet>,
    /// For `/ws/data`.
    pub relay_token: Secret,
    /// Unix seconds.
    pub relay_token_expires: u64,
    /// The others.
    pub peers: Vec<Peer>,
    /// Subnets behind peers.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// Another node of the same network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// Pinned at first sight.
    pub machine_key: PublicKey,
    /// `None`: it never signed in.
    pub node_key: Option<SignedNodeKey>,
    /// Its addresses, without prefix length.
    pub addresses: Vec<IpAddr>,
    /// Whether the controller sees it.
    #[serde(default)]
    pub online: bool,
    /// Relays that it is connected to.
    #[serde(default)]
    pub relays: Vec<RelayId>,
    /// What the controller thinks best.
    #[serde(default)]
    pub path: Paths,
    /// Where it says that it may be reached directly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
}

/// Relays to go by, from the sender's end: `[1]` is one hop, `[2, 1]` is relay 2 with VIA 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// The best.
    #[serde(default)]
    pub best: Option<Vec<RelayId>>,
    /// When that one fails.
    #[serde(default)]
    pub second: Option<Vec<RelayId>>,
}

/// A subnet behind a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its id.
    pub id: RouteId,
    /// The gateway.
    pub node_id: NodeId,
    /// The subnet.
    pub cidr: IpNet,
    /// Higher wins.
    #[serde(default = "default_hundred")]
    pub priority: u16,
    /// Share among equals.
    #[serde(default = "default_hundred")]
    pub weight: u16,
    /// Off: as if it were not there.
    #[serde(default = "default_true")]
    pub enabled: bool,
}

/// A relay, as nodes see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Its id.
    pub id: RelayId,
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub region: String,
    /// `wss://host[:port]/ws/data`; `None`: STUN only.
    pub data_url: Option<String>,
    /// Other names and addresses of the same relay, tried beside `data_url`; at most seven are looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_urls: Vec<String>,
    /// `sha256:` and the hex of the certificate's digest: accepted beside the usual roots.
    #[serde(default)]
    pub tls_pin: Option<String>,
    /// UDP address.
    #[serde(default)]
    pub stun: Option<SocketAddr>,
}

/// What the operator set for all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Of the TUN device, bytes.
    pub mtu: u16,
    /// Seconds between node_key rotations.
    pub node_key_rotate_s: u64,
    /// Seconds between LATENCY_REPORTs.
    pub latency_report_s: u64,
    /// Seconds between keepalives on direct paths.
    pub keepalive_s: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { mtu: 1400, node_key_rotate_s: 86_400, latency_report_s: 30, keepalive_s: 25 }
    }
}

/// CONFIG_UPDATE for a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigUpdate {
    /// After it.
    pub version: u64,
    /// Before it; equal to `version` for what is not versioned.
    pub base: u64,
    /// In order.
    pub changes: Vec<Change>,
}

/// One change. `node_id` is the receiver's own membership.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs, reason = "fields are documented at their types")]
pub enum Change {
    PeerSet {
        node_id: NodeId,
        peer: Box<Peer>,
    },
    PeerRemove {
        node_id: NodeId,
        peer_id: NodeId,
    },
    RouteSet {
        node_id: NodeId,
        route: Route,
    },
    RouteRemove {
        node_id: NodeId,
        route_id: RouteId,
    },
    RelaySet {
        relay: Relay,
    },
    RelayRemove {
        relay_id: RelayId,
    },
    MembershipSet {
        membership: Box<Membership>,
    },
    MembershipRemove {
        node_id: NodeId,
        #[serde(default)]
        reason: String,
    },
    TokenSet {
        node_id: NodeId,
        relay_token: Secret,
        relay_token_expires: u64,
    },
    SettingsSet {
        settings: Settings,
    },
}

/// An address at which a node may be reached directly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `lan`, `discovered`, `upnp`, `stun`, `observed`, `relay`
    pub kind: String,
    /// UDP.
    pub address: SocketAddr,
}

/// NODE_UPDATE: any of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeUpdate {
    /// A rotated key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_key: Option<SignedNodeKey>,
    /// All subnets it offers from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<AdvertisedRoute>>,
    /// All endpoints from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<Endpoint>>,
    /// Send a CONFIG.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub resync: bool,
    /// Send new tokens.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refresh_tokens: bool,
}

/// Either end of a latency sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "snake_case")]
pub enum End {
    /// A node.
    Node(NodeId),
    /// A relay.
    Relay(RelayId),
}

/// One measured round trip.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencySample {
    /// The far end.
    pub to: End,
    /// Milliseconds.
    pub rtt_ms: f64,
    /// Share of frames that were dropped on the way, 0 to 1, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

/// LATENCY_REPORT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Who measured.
    pub from: End,
    /// What it measured.
    pub samples: Vec<LatencySample>,
}
