//! What the command line asks and what the daemon answers. `edgelink status --output json` prints [`Status`] as it stands.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::node::{NodeStatus, PeerStatus, Untrusted};
use meshdp::proto::wire::control::PublicKey;
use serde::{Deserialize, Serialize};

use crate::mapping::Picture;
use crate::netcheck::{Expected, Reach};

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Answered by [`Answer::Status`].
    Status,
    /// Answered by [`Answer::Stopping`]; the connection closes when the interface is gone.
    Down,
    /// Answered by [`Answer::KeyAccepted`]. `machine_key`: only if it is this one.
    AcceptKey { target: String, machine_key: Option<PublicKey> },
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
    KeyAccepted {
        node_id: NodeId,
        name: String,
        network: String,
        /// Trusted from now on.
        machine_key: PublicKey,
        /// Until now.
        before: PublicKey,
    },
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
    /// Names of the relays on the way; empty when it went directly.
    pub(crate) path: Vec<String>,
    /// The address that answered directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) direct: Option<SocketAddr>,
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
    /// Between this machine and what is not exempt; without password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<String>,
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
    /// Where this machine may be reached by UDP, best first; empty: direct paths are off, or nothing is known yet.
    pub(crate) endpoints: Vec<OwnEndpoint>,
    /// What the NAT before it does, in words.
    pub(crate) nat: String,
    /// The same as a class; `None`: not known.
    pub(crate) nat_class: Option<String>,
    /// What may be expected behind it.
    pub(crate) reach: Vec<Reach>,
    /// The router and what it maps to this machine; `None`: it is not asked.
    pub(crate) port_mapping: Option<Picture>,
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
    /// Whether a post-quantum secret is in the session's keys.
    pub(crate) post_quantum: Option<bool>,
    /// Why its keys are not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) untrusted: Option<Distrust>,
    /// Where packets go directly; `None`: by relays.
    pub(crate) direct: Option<SocketAddr>,
    /// What the address is: `lan`, `stun`, …
    pub(crate) direct_kind: Option<String>,
    /// The longest IP packet that the direct path is known to carry.
    pub(crate) direct_mtu: Option<u16>,
    /// What its NAT does, in words; `None`: it has not said yet.
    pub(crate) nat: Option<String>,
    /// What may be expected of the two NATs.
    pub(crate) expected: Option<Expected>,
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

/// An address of this machine, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OwnEndpoint {
    /// `lan`, `discovered`, `upnp`, `stun`, `observed` or `relay`
    pub(crate) kind: String,
    pub(crate) address: SocketAddr,
}

/// Why there is no session with a peer, in [`Peer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Distrust {
    /// `node_key_signature`, `machine_key_changed` or `post_quantum_key`
    pub(crate) reason: Untrusted,
    /// What the controller says.
    pub(crate) machine_key: Option<PublicKey>,
    /// The one that was pinned, when that is another.
    pub(crate) pinned_machine_key: Option<PublicKey>,
    /// For people: what happened.
    pub(crate) message: String,
    /// What to do; for a machine_key that has changed a command.
    pub(crate) advice: String,
}

impl Distrust {
    /// Of a peer that is not trusted.
    pub(crate) fn of(peer: &PeerStatus) -> Option<Self> {
        let reason = peer.untrusted?;
        let (message, advice) = match reason {
            Untrusted::MachineKeyChanged => (
                "the controller names another machine key for it than the one that this machine has known".to_owned(),
                format!(
                    "ask its owner for the machine key that `edgelink keys` shows there; if it is the new one: {}",
                    accept_command(peer)
                ),
            ),
            Untrusted::NodeKeySignature => (
                "its node key is not signed by its machine key".to_owned(),
                "somebody has tampered with it on the way, or the controller's database is damaged; the next sign-in of that machine puts it right"
                    .to_owned(),
            ),
            Untrusted::PostQuantumKey => (
                "one of the two machines publishes a post-quantum key, the other does not".to_owned(),
                "post_quantum has to be the same on all nodes of a network".to_owned(),
            ),
        };
        let (machine_key, pinned_machine_key) = (peer.machine_key, peer.pinned_machine_key);
        Some(Self { reason, machine_key, pinned_machine_key, message, advice })
    }
}

/// With the key: what is accepted is what was looked at.
fn accept_command(peer: &PeerStatus) -> String {
    let key = peer.machine_key.map(|key| format!(" --machine-key {key}")).unwrap_or_default();
    format!("edgelink keys accept {}{key}", peer.node_id)
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
    /// Its STUN server.
    pub(crate) stun: Option<SocketAddr>,
    /// Where that saw this machine; `None`: it has not answered.
    pub(crate) seen_as: Option<SocketAddr>,
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
        post_quantum: peer.post_quantum,
        untrusted: Distrust::of(peer),
        direct: peer.direct,
        direct_kind: peer.direct_kind.map(|kind| kind.name().to_owned()),
        direct_mtu: peer.direct_mtu,
        nat: peer.nat.map(|nat| nat.to_string()),
        expected: peer.nat.map(|nat| Expected::of(status.nat, nat)),
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
        stun: relay.stun,
        seen_as: relay.seen_as,
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
