//! The node: memberships, peers, sessions, relays and routes joined into one machine.
//!
//! It opens no socket and reads no clock. The shell feeds it and then drains it, in this order, after every input:
//!
//! ```text
//! handle_* / apply_* / relay_* / set_*   one input
//! loop poll_transmit               frames for one relay connection, or one datagram
//! loop poll_event                  dial, drop, addresses, reports
//! poll_timeout                     when handle_timeout wants to be called
//! ```
//!
//! Data in and out ([`Node::handle_packet`], [`Node::handle_relay_frame`], [`Node::handle_datagram`]) is sealed and opened in place in the caller's buffer, without a lock and
//! without an allocation; a packet is copied only when it has to wait for a handshake. What the node leaves to the shell: sockets, TLS,
//! the control channel (whose messages it gets as values), TUN, and keeping [`Node::config`], [`Node::pins`] and the keys on disk.
//!
//! From `docs/protocol.md` §2, §3.2, §3.3, §3.5 and §4.

mod api;
mod configure;
mod connection;
mod data;
mod direct;
mod directory;
mod endpoint;
mod gateway;
mod handshake_budget;
mod lan;
mod own_key;
mod peer;
mod queue;
mod relay_link;
mod session_keeper;
mod status;
#[cfg(test)]
mod tests;
mod timer;
mod trust;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipnet::IpNet;
use rand_chacha::ChaCha20Rng;

use self::connection::Connection;
use self::directory::Directory;
use self::endpoint::Net;
use self::gateway::OwnRoutes;
use self::handshake_budget::Bucket;
use self::lan::Lan;
use self::own_key::OwnKeys;
use self::timer::{Timer, Timers};
use crate::proto::crypto::keys::{MachineKey, NodeKey};
use crate::proto::crypto::random::ErasingRandom;
use crate::proto::crypto::suite::CipherOffer;
use crate::proto::drop_reason::DropCounters;
use crate::proto::id::{NetworkId, NodeId, RelayId, SessionIndex};
use crate::proto::path::backoff::jitter;
use crate::proto::path::choice::{Advice, Path, Usable};
use crate::proto::routing::source::AllowedAddresses;
use crate::proto::routing::table::PeerKey;
use crate::proto::time::{Instant, Now};
use crate::proto::wire::control::node::{
    AdvertisedRoute, Config, End, LatencyReport, LatencySample, SignedNodeKey,
};
use crate::proto::wire::control::{PublicKey, Secret};
use crate::proto::wire::data::via_header;

pub use api::{
    AcceptError, AcceptedKey, Checksum, EchoError, Event, ExitStatus, LocalEndpoints, MembershipStatus,
    NeedResync, NodeSettings, NodeStatus, Outgoing, PeerStatus, Received, RelayStatus, SubnetRoute, Target,
    Untrusted,
};

/// One output of [`Node::poll_transmit`] grows no further than this: it becomes one WebSocket message.
const MAX_TRANSMIT: usize = 32 << 10;
/// Peers hear of a new node_key from the controller; own handshakes wait this long for it, and are spread over as much again.
const KEY_SPREAD: Duration = Duration::from_secs(2);

/// See the [module](self).
pub struct Node {
    machine: MachineKey,
    keys: OwnKeys,
    offer: CipherOffer,
    version: String,
    advertised: Vec<AdvertisedRoute>,
    pins: BTreeMap<NodeId, PublicKey>,
    /// For jitter and indices.
    rng: ChaCha20Rng,
    /// For ephemeral keys.
    secrets: ErasingRandom,
    config: Option<Config>,
    memberships: BTreeMap<NodeId, Membership>,
    directory: Directory,
    relays: BTreeMap<RelayId, Connection>,
    routes: Vec<SubnetRoute>,
    timers: Timers,
    outbox: Outbox,
    drops: DropCounters,
    echoes: BTreeMap<u64, Echo>,
    /// Timestamps of SESSION_INITs grow even when the clock does not.
    last_timestamp: u64,
    /// In all packet queues.
    queued_bytes: usize,
    /// Indices of sessions that were just dropped; empty between calls.
    gone: Vec<SessionIndex>,
    tokens_asked: Option<Instant>,
    net: Net,
    own_routes: OwnRoutes,
    /// Who may have wide routes: as the user said it, and whom that means.
    exit: Exit,
    /// Handshake messages in datagrams that are still looked at.
    datagrams: Bucket,
    lan: Lan,
}

/// A network that this node is in.
struct Membership {
    name: String,
    network: NetworkId,
    network_name: String,
    addresses: Vec<IpNet>,
    token: Secret,
    token_expires: u64,
    /// Destinations that are let in.
    accepts: AllowedAddresses,
}

/// What waits to be polled.
#[derive(Debug, Default)]
struct Outbox {
    transmits: VecDeque<(Target, Vec<u8>)>,
    events: VecDeque<Event>,
}

/// See [`crate::proto::routing::exit`].
#[derive(Debug, Default)]
struct Exit {
    wanted: Option<String>,
    node: Option<NodeId>,
    /// As last told.
    told: Option<ExitStatus>,
}

/// An echo whose answer has not come.
#[derive(Clone, Copy, Debug)]
struct Echo {
    to: NodeId,
    sent: Instant,
}

impl Node {
    /// A node without configuration: [`Node::apply_config`] is next, from disk or from the controller.
    pub fn new(settings: NodeSettings, now: Now) -> Self {
        let keys =
            OwnKeys::new(settings.node_key, settings.node_key_created, settings.previous_node_key, now);
        let mut secrets = ErasingRandom::new(settings.seed);
        let mut timers = Timers::default();
        if let Some(until) = keys.previous_until() {
            timers.set(Timer::PreviousKey, until);
        }
        Self {
            machine: settings.machine,
            keys,
            offer: CipherOffer::new(settings.aes),
            version: settings.version,
            advertised: settings.advertised,
            pins: settings.pins.into_iter().collect(),
            rng: secrets.generator(),
            secrets,
            config: None,
            memberships: BTreeMap::new(),
            directory: Directory::default(),
            relays: BTreeMap::new(),
            routes: Vec::new(),
            timers,
            outbox: Outbox::default(),
            drops: DropCounters::default(),
            echoes: BTreeMap::new(),
            last_timestamp: 0,
            queued_bytes: 0,
            gone: Vec::new(),
            tokens_asked: None,
            net: Net::default(),
            own_routes: OwnRoutes::default(),
            exit: Exit::default(),
            datagrams: Bucket::for_way(now.instant),
            lan: Lan::default(),
        }
    }

    /// Takes a new node_key; what comes back goes to the controller by NODE_UPDATE. Only of use while the controller is there: peers
    /// learn the key from it, and the old one is dropped after 5 minutes.
    pub fn rotate_node_key(&mut self, key: NodeKey, created: u64, now: Now) -> SignedNodeKey {
        let until = self.keys.rotate(key, created, now);
        self.timers.set(Timer::PreviousKey, until);
        for key in self.directory.keys() {
            let spread = KEY_SPREAD + jitter(&mut self.rng, KEY_SPREAD);
            self.renew_session(key, now.instant + spread);
        }
        self.signed_node_key()
    }

    /// Does what is due. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        self.relays_due(now);
        while let Some(timer) = self.timers.pop(now.instant) {
            match timer {
                Timer::Peer(key) => self.peer_due(key, now),
                Timer::Latency => self.report_latency(now),
                Timer::PreviousKey => self.keys.expire(now.instant),
                Timer::Tokens => self.need_tokens(now),
                Timer::Stun => self.stun_due(now),
                Timer::Routes => self.routes_due(now),
                Timer::Announce => self.announce_due(now),
            }
        }
    }

    /// Appends one or more whole frames for a relay to `out` (never with a `via`: they are wrapped), or one datagram.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> Option<Target> {
        let (target, first) = self.outbox.transmits.pop_front()?;
        out.extend_from_slice(&first);
        if matches!(target, Target::Direct(_)) {
            return Some(target);
        }
        while let Some((_, more)) = self
            .outbox
            .transmits
            .pop_front_if(|(to, more)| *to == target && out.len() + more.len() <= MAX_TRANSMIT)
        {
            out.extend_from_slice(&more);
        }
        Some(target)
    }

    /// What the shell has to do or may want to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.outbox.events.pop_front()
    }

    /// When [`Node::handle_timeout`] wants to be called, and for what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let timer = self.timers.next().map(|(at, timer)| (at, timer.name()));
        let relay = self.relays.values().map(|connection| (connection.next(), "relay")).min();
        [timer, relay].into_iter().flatten().min()
    }

    /// Version of the configuration; 0: none yet.
    pub fn version(&self) -> u64 {
        self.config.as_ref().map_or(0, |config| config.version)
    }

    /// The configuration with all deltas merged, to be kept on disk; it holds tokens (file mode 0600).
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// Machine keys by node id, to be kept on disk: a peer that comes with another one later is refused.
    pub fn pins(&self) -> impl Iterator<Item = (NodeId, PublicKey)> + '_ {
        self.pins.iter().map(|(id, key)| (*id, *key))
    }

    /// Own node_key with its signature, for AUTH_REQUEST.
    pub fn signed_node_key(&self) -> SignedNodeKey {
        self.machine.sign_node_key(self.keys.current(), self.keys.created())
    }

    /// Own identity, to sign the controller's challenge with.
    pub const fn machine_key(&self) -> &MachineKey {
        &self.machine
    }

    /// The node_key before the last rotation and until when (unix seconds) it answers, to be kept on disk beside the current one.
    pub fn previous_node_key(&self) -> Option<(&NodeKey, u64)> {
        self.keys.previous()
    }

    /// Counts of what was dropped.
    pub const fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// Chooses the path of every peer anew: a relay came, went, or was measured.
    fn refresh_paths(&mut self, now: Instant) {
        for key in self.directory.keys() {
            self.refresh_path(key, now);
        }
    }

    /// Chooses the path of one peer anew.
    fn refresh_path(&mut self, key: PeerKey, now: Instant) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let ready = || self.relays.iter().filter(|(_, connection)| connection.is_ready_for(peer.own));
        let usable = |avoided: bool, draining: bool| -> Vec<Usable> {
            ready()
                .filter_map(|(id, connection)| {
                    let open = connection.opened()?;
                    let fits = (avoided || !peer.avoids(*id, now)) && (draining || !open.draining);
                    let rtt = open.liveness.rtt().value();
                    fits.then(|| Usable { relay: *id, rtt, common: peer.relays.contains(id) })
                })
                .collect()
        };
        // What is avoided or going away is still better than nothing.
        let usable = [(false, false), (false, true), (true, true)]
            .into_iter()
            .map(|(avoided, draining)| usable(avoided, draining))
            .find(|usable| !usable.is_empty())
            .unwrap_or_default();
        // Nor by way of a relay that is about to stop.
        let stays = |path: &Path| {
            let via = path.via.and_then(|via| self.relays.get(&via)).and_then(Connection::opened);
            via.is_none_or(|open| !open.draining)
        };
        // Every relay says that it is not there, and no other way leads to it.
        let unreachable = !peer.routes.is_empty()
            && peer.direct.info().is_none()
            && ready().next().is_some()
            && ready().all(|(id, _)| peer.avoids(*id, now));
        let advice =
            Advice { best: peer.advice.best.filter(stays), second: peer.advice.second.filter(stays) };
        let changed = peer.path.update(&usable, advice, now);
        if unreachable && let Some(at) = peer.watch.leave(now).and_then(|at| peer.wants_timer(at)) {
            self.timers.set(Timer::Peer(key), at);
        }
        if !changed {
            return;
        }
        if let Some(pending) = &mut peer.pending {
            // What went over the old path may be lost.
            pending.next = now;
            self.timers.set(Timer::Peer(key), now);
            peer.armed = Some(now);
        }
        if peer.pending.is_some() || peer.sessions.current().is_some() {
            let path = peer.path.path().map(Path::to_list).unwrap_or_default();
            self.outbox.events.push_back(Event::PathChanged { peer: peer.id, path });
        }
    }

    fn report_latency(&mut self, now: Now) {
        let Some(config) = &self.config else { return };
        let interval = Duration::from_secs(config.settings.latency_report_s.max(1));
        self.timers.set(Timer::Latency, now.instant + interval);
        for own in self.memberships.keys() {
            let samples: Vec<_> = self
                .relays
                .iter()
                .filter(|(_, connection)| connection.is_ready_for(*own))
                .filter_map(|(id, connection)| {
                    let rtt_ms = connection.opened()?.liveness.rtt().millis()?;
                    Some(LatencySample { to: End::Relay(*id), rtt_ms, loss: None })
                })
                .collect();
            if !samples.is_empty() {
                let report = LatencyReport { from: End::Node(*own), samples };
                self.outbox.events.push_back(Event::LatencyReport(report));
            }
        }
    }
}

impl std::fmt::Debug for Node {
    /// Leaves keys, tokens and packets out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("machine", &self.machine)
            .field("version", &self.version())
            .field("memberships", &self.memberships.keys())
            .finish_non_exhaustive()
    }
}

impl Outbox {
    /// Queues a frame for a target, wrapped in VIA where that asks for it.
    fn send(
        &mut self,
        relays: &mut BTreeMap<RelayId, Connection>,
        target: Target,
        frame: Vec<u8>,
        now: Instant,
    ) {
        let Target::Relay { relay, via } = target else {
            self.transmits.push_back((target, frame));
            return;
        };
        if let Some(connection) = relays.get_mut(&relay) {
            connection.note_sent(now);
        }
        let whole = Target::Relay { relay, via: None };
        let Some(via) = via else {
            self.transmits.push_back((whole, frame));
            return;
        };
        // A frame so long that it does not fit a VIA goes without: the relay forwards it over the mesh by itself.
        let wrapped = match via_header(via, frame.len()) {
            Ok(header) => [header.as_slice(), &frame].concat(),
            Err(_) => frame,
        };
        self.transmits.push_back((whole, wrapped));
    }
}
