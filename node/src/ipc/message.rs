//! What the command line asks and what the daemon answers. `edgelink status --output json` prints [`Status`] as it stands.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::node::NodeStatus;
use serde::{Deserialize, Serialize};

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Answered by [`Answer::Status`].
    Status,
    /// Answered by [`Answer::Stopping`]; the connection closes when the interface is gone.
    Down,
    /// Answered by [`Answer::PingTarget`], an [`Answer::Probe`] for each echo, and the end of the connection.
    Ping { target: String, count: u32, interval_ms: u64, timeout_ms: u64 },
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    Status(Box<Status>),
    Stopping,
    PingTarget {
        node_id: NodeId,
        name: String,
        network: String,
        addresses: Vec<IpAddr>,
    },
    Probe(Probe),
    /// The request cannot be served: what, and what to do.
    Error {
        message: String,
    },
}

/// What became of one echo.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// From 1.
    pub(crate) sequence: u32,
    /// `None`: no answer in time.
    pub(crate) rtt_ms: Option<f64>,
    /// Names of the relays on the way.
    pub(crate) path: Vec<String>,
    /// Why it was not even sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// How the daemon stands with the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControllerState {
    /// Dialling and signing in.
    Connecting,
    /// Signed in; nobody has authorised any membership yet.
    Pending,
    /// Signed in and authorised.
    Connected,
    /// Between two tries.
    Disconnected,
    /// The controller will not have us until somebody acts.
    Refused,
}

impl ControllerState {
    /// As in JSON.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Pending => "pending",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Refused => "refused",
        }
    }
}

/// The whole picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_s: f64,
    pub(crate) interface: String,
    pub(crate) mtu: u16,
    /// `io_uring` or `epoll`
    pub(crate) driver: String,
    pub(crate) hostname: String,
    pub(crate) machine_key: String,
    pub(crate) node_key: String,
    /// Unix seconds.
    pub(crate) node_key_created: u64,
    pub(crate) controller: Controller,
    /// 0: none yet.
    pub(crate) config_version: u64,
    pub(crate) memberships: Vec<Membership>,
    /// Wait for an operator.
    pub(crate) pending: Vec<Pending>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) relays: Vec<Relay>,
    /// Subnets behind peers that the system routes into the interface.
    pub(crate) routes: Vec<IpNet>,
    /// Own subnets that cannot be reached at the moment.
    pub(crate) routes_down: Vec<IpNet>,
    /// The exit node, when one is wanted.
    pub(crate) exit: Option<Exit>,
    /// Packets and frames dropped, by reason.
    pub(crate) drops: BTreeMap<String, u64>,
}

/// The exit node, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// As the user named it.
    pub(crate) name: String,
    /// What it takes; empty: it is not there, or the operator has not enabled it. Nothing leaves the machine then.
    pub(crate) routes: Vec<IpNet>,
}

/// The controller, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Controller {
    pub(crate) url: String,
    pub(crate) state: ControllerState,
    /// Seconds in this state.
    pub(crate) since_s: f64,
    /// What went wrong, or what to do.
    pub(crate) message: Option<String>,
}

/// A network that this machine is in, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) node_id: NodeId,
    /// Own name in it.
    pub(crate) name: String,
    pub(crate) network: String,
    pub(crate) addresses: Vec<IpNet>,
}

/// A network that this machine has asked to join, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) node_id: NodeId,
    pub(crate) network: String,
}

/// A peer, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    pub(crate) network: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) routes: Vec<IpNet>,
    /// Those that it cannot reach at the moment.
    pub(crate) routes_down: Vec<IpNet>,
    /// It has routes and does not answer.
    pub(crate) silent: bool,
    pub(crate) online: bool,
    /// `none`, `handshake`, `established` or `untrusted`
    pub(crate) session: String,
    pub(crate) session_age_s: Option<f64>,
    pub(crate) cipher: Option<String>,
    /// Relays in use, from this end; empty: none.
    pub(crate) path: Vec<RelayId>,
    /// Their names.
    pub(crate) path_names: Vec<String>,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) last_heard_s: Option<f64>,
}

/// A relay, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Relay {
    pub(crate) id: RelayId,
    pub(crate) name: String,
    /// `waiting`, `dialling`, `authenticating`, `ready` or `draining`
    pub(crate) state: String,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) error: Option<String>,
}

/// The rows that come from the machine.
pub(crate) fn rows(status: &NodeStatus) -> (Vec<Peer>, Vec<Relay>) {
    let names = |path: &[RelayId]| path.iter().map(|id| relay_name(status, *id)).collect::<Vec<_>>();
    let peers = status.peers.iter().map(|peer| Peer {
        node_id: peer.node_id,
        name: peer.name.clone(),
        network: peer.network.clone(),
        addresses: peer.addresses.clone(),
        routes: peer.routes.clone(),
        routes_down: peer.routes_down.clone(),
        silent: peer.silent,
        online: peer.online,
        session: peer.session.to_owned(),
        session_age_s: peer.session_age_s,
        cipher: peer.cipher.map(str::to_owned),
        path: peer.path.clone(),
        path_names: names(&peer.path),
        rtt_ms: peer.rtt_ms,
        tx_bytes: peer.tx_bytes,
        tx_packets: peer.tx_packets,
        rx_bytes: peer.rx_bytes,
        rx_packets: peer.rx_packets,
        last_heard_s: peer.last_heard_s,
    });
    let relays = status.relays.iter().map(|relay| Relay {
        id: relay.id,
        name: relay.name.clone(),
        state: relay.state.to_owned(),
        rtt_ms: relay.rtt_ms,
        error: relay.error.clone(),
    });
    (peers.collect(), relays.collect())
}

/// For people: a relay that is no longer in the configuration is shown by its number.
pub(crate) fn relay_name(status: &NodeStatus, id: RelayId) -> String {
    status
        .relays
        .iter()
        .find(|relay| relay.id == id)
        .map_or_else(|| format!("relay {id}"), |relay| relay.name.clone())
}
