//! What relays say to the controller on `/ws/server`, to nodes on `/ws/data` and to each other on `/ws/mesh` (`docs/protocol.md` §4, §5).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::secret::Secret;
use crate::proto::id::{NetworkId, NodeId, RelayId};

/// AUTH_REQUEST `relay` and `mesh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenAuth {
    /// relay_token or mesh_token.
    pub token: Secret,
    /// Of the software.
    #[serde(default)]
    pub version: String,
}

/// AUTH_RESPONSE `relay`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAuthorised {
    /// Whom the token names.
    pub node_id: NodeId,
    /// Who answers.
    pub relay_id: RelayId,
    /// The token's end, unix seconds.
    pub expires: u64,
}

/// AUTH_RESPONSE `mesh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayAuthorised {
    /// Who answers.
    pub relay_id: RelayId,
    /// Its own mesh_token for the relay that dialled: both ends prove who they are.
    #[serde(default)]
    pub token: Secret,
}

/// SERVER_REGISTER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRegister {
    /// server_token; absent for a relay built into the controller.
    #[serde(default)]
    pub token: Secret,
    /// Of the software.
    #[serde(default)]
    pub version: String,
    /// `relay`, `stun`
    pub capabilities: Vec<String>,
    /// Where nodes dial, when the relay knows.
    #[serde(default)]
    pub data_url: Option<String>,
    /// Where relays dial, when the relay knows.
    #[serde(default)]
    pub mesh_url: Option<String>,
    /// UDP.
    #[serde(default)]
    pub stun: Option<SocketAddr>,
    /// `sha256:` hex of its own certificate.
    #[serde(default)]
    pub tls_pin: Option<String>,
    /// What it has; 0: nothing.
    #[serde(default)]
    pub config_version: u64,
    /// Nodes connected to it now.
    #[serde(default)]
    pub nodes: Vec<NodeId>,
}

/// A public (or, for HS256, shared) key that tokens are checked with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKey {
    /// In the JWT's header.
    pub kid: String,
    /// EdDSA: base64 of 32 bytes. RS256: PEM. HS256: base64 of the secret, which is why it is treated as one.
    pub public: Secret,
}

/// The algorithms a controller may sign with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum TokenAlgorithm {
    /// Ed25519: relays hold only the public key.
    #[default]
    EdDSA,
    /// A shared secret.
    HS256,
    /// RSA PKCS#1 v1.5.
    RS256,
}

/// Keys, and the one algorithm that goes with all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKeys {
    /// Pinned: a token with another one is invalid.
    pub algorithm: TokenAlgorithm,
    /// At least one; two while a new one is brought in.
    pub keys: Vec<TokenKey>,
}

/// Another relay, as relays see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPeer {
    /// Its id.
    pub id: RelayId,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// `wss://host[:port]/ws/mesh`
    pub mesh_url: Option<String>,
    /// As in a node's configuration.
    #[serde(default)]
    pub tls_pin: Option<String>,
    /// To show there.
    #[serde(default)]
    pub mesh_token: Option<Secret>,
}

/// Where a node is: the whole list, replacing what was known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLocation {
    /// The node.
    pub node_id: NodeId,
    /// Its network.
    pub network_id: NetworkId,
    /// Relays that it is connected to; empty: offline.
    #[serde(default)]
    pub relays: Vec<RelayId>,
}

/// SERVER_NODE_LOC, both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeLocations {
    /// Controller → relay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<NodeLocation>,
    /// Controller → relay: nodes that are no more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<NodeId>,
    /// Relay → controller.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connected: Vec<NodeId>,
    /// Relay → controller.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disconnected: Vec<NodeId>,
}

/// A revoked token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedToken {
    /// Its id.
    pub jti: String,
    /// Unix seconds: after that it need not be remembered.
    pub expires: u64,
}

/// Everything issued to a node before an instant is void.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedNode {
    /// The node.
    pub node_id: NodeId,
    /// Unix seconds: tokens with a smaller `iat`.
    pub before: u64,
}

/// The same for a relay's server and mesh tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRelay {
    /// The relay.
    pub relay_id: RelayId,
    /// Unix seconds.
    pub before: u64,
}

/// SERVER_BLACKLIST, and part of a relay's CONFIG.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Revocations {
    /// By token.
    pub tokens: Vec<RevokedToken>,
    /// By node.
    pub nodes: Vec<RevokedNode>,
    /// By relay.
    pub relays: Vec<RevokedRelay>,
}

/// What the operator set for all relays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerSettings {
    /// Seconds between LATENCY_REPORTs.
    pub latency_report_s: u64,
    /// Seconds that a token is accepted past its end while no controller is heard.
    pub token_grace_s: u64,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { latency_report_s: 30, token_grace_s: 86_400 }
    }
}

/// CONFIG for a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerConfig {
    /// Grows with every change.
    pub version: u64,
    /// Who the receiver is.
    pub relay_id: RelayId,
    /// Unix seconds at the controller.
    #[serde(default)]
    pub server_time: u64,
    /// For checking tokens.
    pub token_keys: TokenKeys,
    /// The other relays.
    #[serde(default)]
    pub relays: Vec<MeshPeer>,
    /// All nodes.
    #[serde(default)]
    pub nodes: Vec<NodeLocation>,
    /// All revocations that still matter.
    #[serde(default)]
    pub revocations: Revocations,
    /// What the operator set.
    #[serde(default)]
    pub settings: ServerSettings,
}

/// CONFIG_UPDATE for a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerConfigUpdate {
    /// After it.
    pub version: u64,
    /// Before it.
    pub base: u64,
    /// In order.
    pub changes: Vec<ServerChange>,
}

/// One change for a relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs, reason = "fields are documented at their types")]
pub enum ServerChange {
    RelaySet { relay: MeshPeer },
    RelayRemove { relay_id: RelayId },
    KeysSet { token_keys: TokenKeys },
    ServerToken { token: Secret },
    SettingsSet { settings: ServerSettings },
}
