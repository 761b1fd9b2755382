//! Who is linked with whom (`docs/protocol.md` §5.4): a relay dials every relay with a larger id, keeps one link per pair, and dials again when
//! it ends. Pinging happens where the link is ([`super::worker`]); here its round trips are kept for the report.

use std::collections::BTreeMap;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

use super::{LinkSerial, WorkerId};
use crate::proto::id::RelayId;
use crate::proto::time::Instant;
use crate::proto::wire::control::Secret;
use crate::proto::wire::control::server::MeshPeer;

/// First wait after a failure; doubles to [`MAX_BACKOFF`], with full jitter, as nodes do at the controller (§3.6).
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// An attempt that has come to nothing by then is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// What to dial.
#[derive(Clone, PartialEq, Eq)]
pub struct Dial {
    /// Who should answer.
    pub relay: RelayId,
    /// `wss://host[:port]/path`
    pub url: String,
    /// To show there.
    pub token: Secret,
    /// `sha256:` hex, accepted beside the usual roots.
    pub tls_pin: Option<String>,
}

impl std::fmt::Debug for Dial {
    /// Leaves the token out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").field("relay", &self.relay).field("url", &self.url).finish_non_exhaustive()
    }
}

/// A link to be closed.
pub type Replaced = (WorkerId, LinkSerial);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Dial at that moment, if it is ours to dial.
    Idle { at: Instant },
    /// Under way; given up at that moment.
    Dialling { until: Instant },
    /// There.
    Up { worker: WorkerId, serial: LinkSerial },
}

#[derive(Debug)]
struct Peer {
    info: MeshPeer,
    state: State,
    failures: u32,
    rtt: Option<Duration>,
    /// Frames for the link and how many of them were lost, since the last report.
    traffic: (u64, u64),
}

/// A link that is up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkState {
    /// With whom.
    pub relay: RelayId,
    /// Its last round trip.
    pub rtt: Option<Duration>,
    /// Share of the frames for it that were dropped instead of sent, since the last report; `None` without traffic.
    pub loss: Option<f64>,
}

/// The mesh as one relay sees it.
#[derive(Debug)]
pub struct Mesh {
    me: RelayId,
    peers: BTreeMap<RelayId, Peer>,
    /// From this relay's own configuration: they stay whatever the controller says, and their URL wins.
    fixed: Vec<MeshPeer>,
    rng: ChaCha20Rng,
}

impl Mesh {
    /// With peers from the operator's configuration.
    pub fn new(fixed: Vec<MeshPeer>, rng: ChaCha20Rng) -> Self {
        let mut mesh = Self { me: RelayId(0), peers: BTreeMap::new(), fixed: Vec::new(), rng };
        for peer in &fixed {
            mesh.set(peer.clone(), Instant::ZERO);
        }
        mesh.fixed = fixed;
        mesh
    }

    /// This relay's own id; 0 until it is known: nothing is dialled before.
    pub fn set_me(&mut self, me: RelayId) {
        self.me = me;
    }

    /// All relays, from CONFIG. Returns the links of relays that are no more.
    pub fn set_all(&mut self, peers: &[MeshPeer], now: Instant) -> Vec<(RelayId, Replaced)> {
        let gone: Vec<RelayId> =
            self.peers.keys().copied().filter(|id| !peers.iter().any(|peer| peer.id == *id)).collect();
        let closed = gone.into_iter().filter_map(|id| self.remove(id).map(|link| (id, link))).collect();
        for peer in peers {
            self.set(peer.clone(), now);
        }
        closed
    }

    /// A new or changed relay.
    pub fn set(&mut self, mut info: MeshPeer, now: Instant) {
        if let Some(fixed) = self.fixed.iter().find(|fixed| fixed.id == info.id) {
            info.mesh_url = fixed.mesh_url.clone().or(info.mesh_url);
            info.tls_pin = fixed.tls_pin.clone().or(info.tls_pin);
            info.mesh_token = info.mesh_token.or_else(|| fixed.mesh_token.clone());
        }
        if let Some(peer) = self.peers.get_mut(&info.id) {
            // Something to try at once, rather than after the backoff of what did not work before.
            if peer.info != info && matches!(peer.state, State::Idle { .. }) {
                peer.failures = 0;
                peer.state = State::Idle { at: now };
            }
            peer.info = info;
        } else {
            let peer = Peer { state: State::Idle { at: now }, failures: 0, rtt: None, traffic: (0, 0), info };
            self.peers.insert(peer.info.id, peer);
        }
    }

    /// A relay is no more. Returns its link.
    pub fn remove(&mut self, relay: RelayId) -> Option<Replaced> {
        if self.fixed.iter().any(|fixed| fixed.id == relay) {
            return None;
        }
        match self.peers.remove(&relay)?.state {
            State::Up { worker, serial } => Some((worker, serial)),
            _ => None,
        }
    }

    /// Whether `relay` belongs to the mesh.
    pub fn contains(&self, relay: RelayId) -> bool {
        self.peers.contains_key(&relay)
    }

    /// A link is authenticated. Returns the one that it replaces. A relay that no list names may link up all the same: its token was good, and the
    /// controller's list is on its way.
    pub fn link_up(&mut self, relay: RelayId, worker: WorkerId, serial: LinkSerial) -> Option<Replaced> {
        let peer = self.peers.entry(relay).or_insert_with(|| Peer {
            info: MeshPeer {
                id: relay,
                name: String::new(),
                mesh_url: None,
                tls_pin: None,
                mesh_token: None,
            },
            state: State::Idle { at: Instant::ZERO },
            failures: 0,
            rtt: None,
            traffic: (0, 0),
        });
        peer.failures = 0;
        match std::mem::replace(&mut peer.state, State::Up { worker, serial }) {
            State::Up { worker, serial: old } if old != serial => Some((worker, old)),
            _ => None,
        }
    }

    /// A link ended. Whether it was the one in use.
    pub fn link_down(&mut self, relay: RelayId, serial: LinkSerial, now: Instant) -> bool {
        let in_use = self
            .peers
            .get(&relay)
            .is_some_and(|peer| matches!(peer.state, State::Up { serial: up, .. } if up == serial));
        if in_use {
            self.back_off(relay, now);
        }
        in_use
    }

    /// An attempt failed.
    pub fn dial_failed(&mut self, relay: RelayId, now: Instant) {
        let dialling =
            self.peers.get(&relay).is_some_and(|peer| matches!(peer.state, State::Dialling { .. }));
        if dialling {
            self.back_off(relay, now);
        }
    }

    /// A round trip was measured.
    pub fn measured(&mut self, relay: RelayId, rtt: Duration) {
        if let Some(peer) = self.peers.get_mut(&relay) {
            peer.rtt = Some(rtt);
        }
    }

    /// What became of frames for a link.
    pub fn carried(&mut self, relay: RelayId, frames: u64, lost: u64) {
        if let Some(peer) = self.peers.get_mut(&relay) {
            peer.traffic.0 = peer.traffic.0.saturating_add(frames);
            peer.traffic.1 = peer.traffic.1.saturating_add(lost);
        }
    }

    /// The links that are up; what is told of their loss begins anew.
    pub fn report(&mut self) -> Vec<LinkState> {
        let link = |(id, peer): (&RelayId, &mut Peer)| {
            let State::Up { .. } = peer.state else { return None };
            let (frames, lost) = std::mem::take(&mut peer.traffic);
            // What was lost may have been handed over before the last report.
            let loss = (frames + lost > 0).then(|| (lost as f64 / frames.max(1) as f64).min(1.0));
            Some(LinkState { relay: *id, rtt: peer.rtt, loss })
        };
        self.peers.iter_mut().filter_map(link).collect()
    }

    /// What this relay shows to others, by their ids.
    pub fn tokens(&self) -> BTreeMap<RelayId, Secret> {
        let token = |(id, peer): (&RelayId, &Peer)| Some((*id, peer.info.mesh_token.clone()?));
        self.peers.iter().filter_map(token).collect()
    }

    /// What to dial now; call until `None`.
    pub fn poll_dial(&mut self, now: Instant) -> Option<Dial> {
        let late: Vec<RelayId> = self
            .peers
            .iter()
            .filter(|(_, peer)| matches!(peer.state, State::Dialling { until } if until <= now))
            .map(|(id, _)| *id)
            .collect();
        for relay in late {
            self.back_off(relay, now);
        }
        let me = self.me;
        let (relay, peer) = self.peers.iter_mut().find(|(id, peer)| {
            matches!(peer.state, State::Idle { at } if at <= now) && peer.dials(me, **id)
        })?;
        peer.state = State::Dialling { until: now + DIAL_TIMEOUT };
        Some(Dial {
            relay: *relay,
            url: peer.info.mesh_url.clone()?,
            token: peer.info.mesh_token.clone()?,
            tls_pin: peer.info.tls_pin.clone(),
        })
    }

    /// When [`Self::poll_dial`] has something again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers
            .iter()
            .filter_map(|(id, peer)| match peer.state {
                State::Idle { at } if peer.dials(self.me, *id) => Some(at),
                State::Dialling { until } => Some(until),
                _ => None,
            })
            .min()
    }

    /// Links that are up, and their last round trip.
    pub fn links(&self) -> impl Iterator<Item = (RelayId, WorkerId, LinkSerial, Option<Duration>)> + '_ {
        self.peers.iter().filter_map(|(id, peer)| match peer.state {
            State::Up { worker, serial } => Some((*id, worker, serial, peer.rtt)),
            _ => None,
        })
    }

    fn back_off(&mut self, relay: RelayId, now: Instant) {
        let random = self.rng.next_u32();
        if let Some(peer) = self.peers.get_mut(&relay) {
            let ceiling = (MIN_BACKOFF * 2u32.saturating_pow(peer.failures.min(6))).min(MAX_BACKOFF);
            peer.failures = peer.failures.saturating_add(1);
            peer.rtt = None;
            let wait = ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX));
            peer.state = State::Idle { at: now + wait };
        }
    }
}

impl Peer {
    /// The smaller id dials.
    fn dials(&self, me: RelayId, id: RelayId) -> bool {
        me.0 != 0 && me < id && self.info.mesh_url.is_some() && self.info.mesh_token.is_some()
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    fn peer(id: u16) -> MeshPeer {
        MeshPeer {
            id: RelayId(id),
            name: String::new(),
            mesh_url: Some(format!("wss://r{id}/ws/mesh")),
            tls_pin: None,
            mesh_token: Some("t".into()),
        }
    }

    fn mesh(me: u16, fixed: Vec<MeshPeer>) -> Mesh {
        let mut mesh = Mesh::new(fixed, ChaCha20Rng::from_seed([1; 32]));
        mesh.set_me(RelayId(me));
        mesh
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn the_smaller_id_dials_and_nobody_dials_before_it_knows_who_it_is() {
        let mut two = mesh(2, vec![]);
        two.set_all(&[peer(1), peer(2), peer(3)], at(0));
        assert_eq!(two.poll_dial(at(0)).map(|dial| dial.relay), Some(RelayId(3)));
        assert_eq!(two.poll_dial(at(0)), None);
        let mut nobody = mesh(0, vec![peer(3)]);
        assert_eq!((nobody.poll_dial(at(0)), nobody.poll_timeout()), (None, None));
    }

    #[test]
    fn failures_back_off_to_ten_seconds_and_a_new_address_is_tried_at_once() {
        let mut one = mesh(1, vec![]);
        one.set(peer(2), at(0));
        let mut now = at(0);
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            assert!(one.poll_dial(now).is_some());
            one.dial_failed(RelayId(2), now);
            let next = one.poll_timeout().unwrap();
            longest = longest.max(next - now);
            now = next;
        }
        assert!(longest > Duration::from_secs(5) && longest <= MAX_BACKOFF, "{longest:?}");
        one.poll_dial(now);
        one.dial_failed(RelayId(2), now);
        one.set(MeshPeer { mesh_url: Some("wss://elsewhere/ws/mesh".into()), ..peer(2) }, now);
        assert_eq!(one.poll_dial(now).map(|dial| dial.url), Some("wss://elsewhere/ws/mesh".into()));
        assert!(one.poll_dial(now + DIAL_TIMEOUT).is_none(), "given up, waits again");
        assert!(one.poll_dial(now + DIAL_TIMEOUT + MIN_BACKOFF).is_some());
    }

    #[test]
    fn one_link_per_pair_is_kept_and_only_its_own_end_matters() {
        let mut one = mesh(1, vec![]);
        one.set(peer(2), at(0));
        let (first, second) = (LinkSerial(1), LinkSerial(2));
        assert_eq!(one.link_up(RelayId(2), WorkerId(0), first), None);
        assert_eq!(one.link_up(RelayId(2), WorkerId(1), second), Some((WorkerId(0), first)));
        assert!(!one.link_down(RelayId(2), first, at(5)), "the replaced link's end changes nothing");
        assert_eq!(one.poll_dial(at(5)), None);
        assert!(one.link_down(RelayId(2), second, at(5)));
        assert!(one.poll_dial(at(300)).is_some());
    }

    #[test]
    fn fixed_peers_outlive_the_controllers_list() {
        let mut one = mesh(1, vec![MeshPeer { mesh_url: Some("wss://mine/ws/mesh".into()), ..peer(2) }]);
        one.set_all(&[peer(3)], at(0));
        assert!(one.contains(RelayId(2)) && one.contains(RelayId(3)));
        one.set_all(&[peer(2)], at(0));
        assert!(!one.contains(RelayId(3)));
        assert_eq!(one.poll_dial(at(0)).map(|dial| dial.url), Some("wss://mine/ws/mesh".into()));
    }
}
