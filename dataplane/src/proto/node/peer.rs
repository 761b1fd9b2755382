//! All the node knows of one peer.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::api::{Target, Untrusted};
use super::direct::Origin;
use super::gateway::{PROBE_AFTER, Watch};
use super::handshake_budget::PeerBuckets;
use super::lan::Neighbour;
use super::queue::PacketQueue;
use crate::proto::crypto::keys::key_id;
use crate::proto::id::{NodeId, RelayId};
use crate::proto::path::choice::{Advice, Path, PathChoice};
use crate::proto::path::direct::Direct;
use crate::proto::routing::source::AllowedAddresses;
use crate::proto::session::handshake::ExpectResponse;
use crate::proto::session::registry::SessionSet;
use crate::proto::session::rekey::KEEP_NODE_KEY;
use crate::proto::time::{Instant, UnixTime};
use crate::proto::wire::control::PublicKey;
use crate::proto::wire::control::node::{self, SignedNodeKey};

/// Something came that deserves an answer, and none went out for so long: an empty packet says that we are there.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);
/// Something went out and nothing came for so long: the peer may have lost the session.
pub(super) const SILENCE: Duration = Duration::from_secs(8);
/// A gateway that was heard so recently is there, whatever the controller says.
const HEARD_RECENTLY: Duration = Duration::from_secs(30);
/// A relay that said that the peer is not there is avoided for so long.
pub(super) const AVOID: Duration = Duration::from_secs(5);
/// Relays avoided at a time.
const MAX_AVOIDED: usize = 8;

/// Whether a peer's keys are believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trust {
    /// It has none yet.
    NoKey,
    /// Signed by the pinned machine_key.
    Verified,
    /// Not.
    Refused(Untrusted),
}

/// The node_keys of a peer, verified.
#[derive(Debug, Default)]
pub(super) struct PeerKeys {
    current: Option<(Arc<SignedNodeKey>, u32)>,
    previous: Option<(Arc<SignedNodeKey>, u32, Instant)>,
}

impl PeerKeys {
    /// Takes a verified key; true when it replaces another one.
    pub(super) fn set(&mut self, key: SignedNodeKey, now: Instant) -> bool {
        let id = key_id(&key.public);
        let replaced = self.current.replace((Arc::new(key), id));
        let Some((replaced, replaced_id)) = replaced.filter(|(_, old)| *old != id) else { return false };
        self.previous = Some((replaced, replaced_id, now + KEEP_NODE_KEY));
        true
    }

    /// The present one.
    pub(super) fn current(&self) -> Option<&Arc<SignedNodeKey>> {
        self.current.as_ref().map(|(key, _)| key)
    }

    /// Id of the present one; 0 when there is none.
    pub(super) fn current_id(&self) -> u32 {
        self.current.as_ref().map_or(0, |(_, id)| *id)
    }

    /// The one with this id.
    pub(super) fn find(&self, id: u32, now: Instant) -> Option<&Arc<SignedNodeKey>> {
        let current = self.current.as_ref().filter(|(_, current)| *current == id).map(|(key, _)| key);
        let previous = self.previous.as_ref().filter(|(_, previous, until)| *previous == id && now < *until);
        current.or(previous.map(|(key, ..)| key))
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A handshake that this node has begun, or wants to.
#[derive(Debug)]
pub(super) struct Pending {
    /// Since when.
    pub(super) since: Instant,
    /// The next attempt.
    pub(super) next: Instant,
    /// Attempts made.
    pub(super) tries: u32,
    /// Those whose answers may still come.
    pub(super) attempts: VecDeque<ExpectResponse>,
}

impl Pending {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, next: now, tries: 0, attempts: VecDeque::new() }
    }
}

/// IP packets and their bytes; echoes and keepalives are not counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    pub(super) tx_packets: u64,
    pub(super) tx_bytes: u64,
    pub(super) rx_packets: u64,
    pub(super) rx_bytes: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Peer {
    /// Its id.
    pub(super) id: NodeId,
    /// The membership of ours in its network.
    pub(super) own: NodeId,
    /// For people.
    pub(super) name: String,
    /// Its own.
    pub(super) addresses: Vec<IpAddr>,
    /// Enabled ones behind it.
    pub(super) routes: Vec<IpNet>,
    /// Sources that its packets may carry.
    pub(super) allowed: AllowedAddresses,
    /// What the controller sees.
    pub(super) online: bool,
    /// Where it is connected.
    pub(super) relays: Vec<RelayId>,
    /// What the controller thinks of paths.
    pub(super) advice: Advice,
    /// As the controller says.
    pub(super) machine_key: Option<PublicKey>,
    /// Whether its keys are believed.
    pub(super) trust: Trust,
    /// Those that are.
    pub(super) keys: PeerKeys,
    /// Sessions with it.
    pub(super) sessions: SessionSet,
    /// A handshake under way.
    pub(super) pending: Option<Pending>,
    /// The greatest timestamp of its SESSION_INITs.
    pub(super) last_init: Option<UnixTime>,
    /// How many of its SESSION_INITs are still looked at.
    pub(super) inits: PeerBuckets,
    /// And of its SESSION_RESPONSEs.
    pub(super) responses: PeerBuckets,
    /// Over relays.
    pub(super) path: PathChoice,
    /// Beside them.
    pub(super) direct: Direct,
    /// On an own network.
    pub(super) lan: Neighbour,
    avoided: Vec<(RelayId, Instant)>,
    /// As a gateway.
    pub(super) watch: Watch,
    /// Packets that wait for a session.
    pub(super) queue: PacketQueue,
    /// Counts.
    pub(super) traffic: Traffic,
    /// Last measured.
    pub(super) rtt: Option<Duration>,
    /// When something authentic came.
    pub(super) heard: Option<Instant>,
    /// Something was sent then, and nothing has come since.
    pub(super) unanswered: Option<Instant>,
    /// Something came then, and nothing was sent since.
    pub(super) owed: Option<Instant>,
    /// The next packet after this starts a new session.
    pub(super) renew_at: Instant,
    /// A new session is started then even without a packet (a node_key changed).
    pub(super) renew_timer: Option<Instant>,
    /// Several attempts went unanswered.
    pub(super) unresponsive: bool,
    /// When a packet for a session that is no more last made us start one.
    pub(super) nudged: Option<Instant>,
    /// When its timer goes off.
    pub(super) armed: Option<Instant>,
}

impl Peer {
    /// Without keys: those are checked first.
    pub(super) fn new(id: NodeId, own: NodeId, now: Instant) -> Self {
        Self {
            id,
            own,
            name: String::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            allowed: AllowedAddresses::default(),
            online: false,
            relays: Vec::new(),
            advice: Advice::default(),
            machine_key: None,
            trust: Trust::NoKey,
            keys: PeerKeys::default(),
            sessions: SessionSet::default(),
            pending: None,
            last_init: None,
            inits: PeerBuckets::default(),
            responses: PeerBuckets::default(),
            path: PathChoice::default(),
            direct: Direct::default(),
            lan: Neighbour::default(),
            avoided: Vec::new(),
            watch: Watch::default(),
            queue: PacketQueue::default(),
            traffic: Traffic::default(),
            rtt: None,
            heard: None,
            unanswered: None,
            owed: None,
            renew_at: now,
            renew_timer: None,
            unresponsive: false,
            nudged: None,
            armed: None,
        }
    }

    /// What is not keys.
    pub(super) fn describe(&mut self, peer: &node::Peer) {
        self.name.clone_from(&peer.name);
        self.addresses.clone_from(&peer.addresses);
        self.online = peer.online;
        self.relays.clone_from(&peer.relays);
        self.advice = Advice {
            best: peer.path.best.as_deref().and_then(Path::from_list),
            second: peer.path.second.as_deref().and_then(Path::from_list),
        };
        self.allow();
    }

    /// Renews what it may send from its addresses and routes.
    pub(super) fn allow(&mut self) {
        self.allowed = AllowedAddresses::new(self.addresses.iter().copied(), self.routes.iter().copied());
    }

    /// Whether packets for what lies behind it should go to it rather than to another gateway.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        let heard = self.heard.is_some_and(|heard| now.saturating_since(heard) < HEARD_RECENTLY);
        self.trust == Trust::Verified
            && !self.unresponsive
            && !self.watch.is_silent()
            && (self.online || heard)
    }

    /// An authentic packet came; `relay`: by that one.
    pub(super) fn note_heard(&mut self, relay: Option<RelayId>, now: Instant) {
        self.heard = Some(now);
        self.unanswered = None;
        self.unresponsive = false;
        self.watch.note_heard();
        if !self.avoided.is_empty() {
            self.avoided.retain(|(avoided, _)| Some(*avoided) != relay);
        }
    }

    /// A packet was sealed; the time at which its timer has to go off, when it is armed later than that.
    pub(super) fn note_sent(&mut self, now: Instant) -> Option<Instant> {
        self.owed = None;
        if self.unanswered.is_some() {
            return None;
        }
        self.unanswered = Some(now);
        self.wants_timer(now + if self.routes.is_empty() { SILENCE } else { PROBE_AFTER })
    }

    /// A packet came that deserves an answer; as [`Peer::note_sent`].
    pub(super) fn note_owed(&mut self, now: Instant) -> Option<Instant> {
        if self.owed.is_some() {
            return None;
        }
        self.owed = Some(now);
        self.wants_timer(now + KEEPALIVE)
    }

    pub(super) fn wants_timer(&mut self, at: Instant) -> Option<Instant> {
        if self.armed.is_some_and(|armed| armed <= at) {
            return None;
        }
        self.armed = Some(at);
        Some(at)
    }

    /// What a frame of so many bytes is sent on: the direct path, where it fits that; else the relays'; else the direct path all the same.
    pub(super) fn target(&self, frame: usize) -> Option<Target> {
        let direct = self.direct.target(frame).map(Target::Direct);
        direct
            .or_else(|| self.path.path().map(Target::from))
            .or_else(|| self.direct.info().map(|info| Target::Direct(info.place)))
    }

    /// `relay` cannot reach it at the moment.
    pub(super) fn avoid(&mut self, relay: RelayId, now: Instant) {
        self.avoided.retain(|(avoided, until)| *avoided != relay && *until > now);
        if self.avoided.len() < MAX_AVOIDED {
            self.avoided.push((relay, now + AVOID));
        }
    }

    /// Whether `relay` said that it cannot reach it.
    pub(super) fn avoids(&self, relay: RelayId, now: Instant) -> bool {
        self.avoided.iter().any(|(avoided, until)| *avoided == relay && *until > now)
    }

    /// When a relay is no longer avoided.
    pub(super) fn avoid_until(&self) -> Option<Instant> {
        self.avoided.iter().map(|(_, until)| *until).min()
    }

    /// Forgets what is over; true when something was.
    pub(super) fn forget_avoided(&mut self, now: Instant) -> bool {
        let before = self.avoided.len();
        self.avoided.retain(|(_, until)| *until > now);
        before != self.avoided.len()
    }

    /// Whether handshakes may come from there: relays know who sends, datagrams only count from where the peer is known to be.
    pub(super) fn may_shake_hands(&self, origin: Origin, now: Instant) -> bool {
        match origin {
            Origin::Relay(_) => true,
            Origin::Direct(place) => self.direct.knows(place) || self.lan.is_at(place.remote, now),
        }
    }
}
