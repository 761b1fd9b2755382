//! Control messages: the JSON payloads of control frames (`docs/protocol.md` §3 to §5), defined once.
//!
//! [`node`] is what nodes and the controller say to each other, [`server`] what relays, the controller and other relays say. Unknown fields are
//! ignored, so that a newer peer may add some; missing or mistyped ones are an error that names the field.

pub mod bytes;
pub mod node;
pub mod secret;
pub mod server;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::frame::FrameType;
use crate::proto::error::ErrorCode;
use crate::proto::id::NodeId;
pub use bytes::{Base64, KEM_PUBLIC_LEN, KemPublicKey, PublicKey, Signature};
pub use secret::Secret;

/// Why a payload is not the message it should be.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("{kind:?} message: {what}")]
pub struct MessageError {
    /// The frame's type.
    pub kind: FrameType,
    /// What is wrong and where, from the JSON parser.
    pub what: String,
}

impl MessageError {
    /// The code to answer with.
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::Malformed
    }
}

/// Reads a payload as `T`.
///
/// # Errors
/// What is missing or mistyped, with line and column.
pub fn parse<T: DeserializeOwned>(kind: FrameType, payload: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(payload).map_err(|error| MessageError { kind, what: error.to_string() })
}

/// The payload of `message`.
pub fn to_payload<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("control messages have string keys and no fallible serializers")
}

/// ERROR 0xFF, `docs/protocol.md` §1.4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// What class of error.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The node it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The sender closes the connection after this.
    #[serde(default)]
    pub fatal: bool,
    /// With 4003, when frames are dropped because of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitNotice>,
}

/// Which limit of rate is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitNotice {
    /// Whose.
    pub scope: LimitScope,
    /// Which way.
    pub direction: LimitDirection,
    /// Of what.
    pub unit: LimitUnit,
    /// How many a second are allowed.
    pub per_second: u64,
}

/// Whose limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    /// The node's.
    Node,
    /// That of all nodes behind one address.
    Address,
}

/// As the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitDirection {
    /// What it sends.
    Up,
    /// What it is sent.
    Down,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitUnit {
    /// Bytes of frames, headers included.
    Bytes,
    /// Frames.
    Frames,
}

impl ErrorMessage {
    /// With the code's own text.
    pub fn new(code: ErrorCode) -> Self {
        Self::with(code, code.message())
    }

    /// With a text of its own; fatal when the code closes the connection.
    pub fn with(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), node: None, fatal: code.close_code().is_some(), limit: None }
    }

    /// About a node.
    #[must_use]
    pub fn about(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }
}

/// GOAWAY 0x23: this end is going.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// `drain`, `replaced`, …
    pub reason: String,
    /// Milliseconds until the sender closes.
    #[serde(default)]
    pub grace_ms: u32,
}

/// AUTH_REQUEST, all kinds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AuthRequest {
    /// A node at the controller.
    Machine(Box<node::MachineAuth>),
    /// A node at a relay.
    Relay(server::TokenAuth),
    /// A relay at a relay.
    Mesh(server::TokenAuth),
}

/// AUTH_RESPONSE, all kinds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AuthResponse {
    /// From the controller.
    Machine(node::MachineAuthorised),
    /// From a relay to a node.
    Relay(server::NodeAuthorised),
    /// From a relay to a relay.
    Mesh(server::RelayAuthorised),
}

/// Who sends a message: CONFIG and its kin have another shape for relays than for nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    /// `/ws/control`
    Control,
    /// `/ws/server`
    Server,
    /// `/ws/data`
    Data,
    /// `/ws/mesh`
    Mesh,
}

/// Checks that `payload` is the message that `kind` promises on `channel`; for ends that keep the JSON itself (the Python controller).
///
/// # Errors
/// As [`parse`]; also when `kind` carries no JSON or has no business on `channel`.
pub fn validate(channel: Channel, kind: FrameType, payload: &[u8]) -> Result<(), MessageError> {
    fn check<T: DeserializeOwned>(kind: FrameType, payload: &[u8]) -> Result<(), MessageError> {
        parse::<T>(kind, payload).map(drop)
    }
    match (kind, channel) {
        (FrameType::Error, _) => check::<ErrorMessage>(kind, payload),
        (FrameType::GoAway, Channel::Data | Channel::Mesh) => check::<GoAway>(kind, payload),
        (FrameType::AuthRequest, _) => check::<AuthRequest>(kind, payload),
        (FrameType::AuthResponse, _) => check::<AuthResponse>(kind, payload),
        (FrameType::AuthChallenge, Channel::Control) => check::<node::AuthChallenge>(kind, payload),
        (FrameType::Config, Channel::Control) => check::<node::Config>(kind, payload),
        (FrameType::ConfigUpdate, Channel::Control) => check::<node::ConfigUpdate>(kind, payload),
        (FrameType::NodeUpdate, Channel::Control) => check::<node::NodeUpdate>(kind, payload),
        (FrameType::LatencyReport, Channel::Control | Channel::Server) => {
            check::<node::LatencyReport>(kind, payload)
        }
        (FrameType::Config, Channel::Server) => check::<server::ServerConfig>(kind, payload),
        (FrameType::ConfigUpdate, Channel::Server) => check::<server::ServerConfigUpdate>(kind, payload),
        (FrameType::ServerRegister, Channel::Server) => check::<server::ServerRegister>(kind, payload),
        (FrameType::ServerNodeLoc, Channel::Server) => check::<server::NodeLocations>(kind, payload),
        (FrameType::ServerBlacklist, Channel::Server) => check::<server::Revocations>(kind, payload),
        _ => Err(MessageError { kind, what: format!("carries no JSON on {channel:?}") }),
    }
}
