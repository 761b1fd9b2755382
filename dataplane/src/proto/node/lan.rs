//! Peers on own networks: announces this node there, and takes what peers announce as one more address to ask (`docs/protocol.md` §8.7).
//!
//! With a relay that saves nothing but time, for peers tell each other their addresses anyway. Without one, and without a controller, it is how they find each other:
//! the handshake goes straight to where the peer was heard, and paths are made from there as ever.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::rand_core::RngCore as _;

use super::Node;
use super::api::{Event, Target};
use super::peer::Trust;
use super::timer::Timer;
use crate::proto::drop_reason::DropReason;
use crate::proto::path::beacon::{Announcement, Budget, Schedule, announce};
use crate::proto::path::candidate::may_be_asked;
use crate::proto::path::direct::{Place, SocketId};
use crate::proto::routing::table::PeerKey;
use crate::proto::time::{Instant, Now, UnixTime};

/// Own addresses that are announced.
const MAX_ANNOUNCED: usize = 8;
/// Addresses of a peer that are remembered.
const MAX_PLACES: usize = 4;
/// A peer that was not heard for so long is no longer taken to be there: three announcements.
const FORGET: Duration = Duration::from_mins(3);
/// Announcements looked at, at once and each second.
const LOOKS: Budget = Budget::new(64, 32);
/// Peers whose tag is tried: with 10,000 peers that is twenty announcements in the first second, and some 20 ms of work.
const TRIES: Budget = Budget::new(200_000, 50_000);
/// Signatures verified.
const SIGNATURES: Budget = Budget::new(32, 16);

/// What is announced and looked at.
#[derive(Debug)]
pub(super) struct Lan {
    schedule: Schedule,
    looks: Budget,
    tries: Budget,
    signatures: Budget,
    /// Times grow even when the clock does not.
    last_time: u64,
}

impl Default for Lan {
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            looks: LOOKS,
            tries: TRIES,
            signatures: SIGNATURES,
            last_time: 0,
        }
    }
}

/// Where a peer was heard on own networks.
#[derive(Debug, Default)]
pub(super) struct Neighbour {
    /// Of its newest announcement, by its clock.
    time: UnixTime,
    places: Vec<Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    address: SocketAddr,
    /// By the peer's clock.
    time: UnixTime,
    at: Instant,
}

impl Neighbour {
    /// Whether an announcement is no copy and not outrun by a newer one. Those of several addresses are made at one time.
    fn is_news(&self, address: SocketAddr, time: UnixTime) -> bool {
        let same = |heard: &Heard| heard.address == address && heard.time == time;
        time > self.time || (time == self.time && !self.places.iter().any(same))
    }

    /// Notes an address; true: it was not there lately.
    fn heard(&mut self, address: SocketAddr, time: UnixTime, now: Instant) -> bool {
        self.time = time;
        self.places.retain(|heard| heard.is_recent(now));
        let before = self.places.len();
        self.places.retain(|heard| heard.address != address);
        let new = self.places.len() == before;
        if self.places.len() == MAX_PLACES {
            self.places.remove(0);
        }
        self.places.push(Heard { address, time, at: now });
        new
    }

    /// Whether it was heard at an address lately.
    pub(super) fn is_at(&self, address: SocketAddr, now: Instant) -> bool {
        self.places.iter().any(|heard| heard.address == address && heard.is_recent(now))
    }

    /// Where it was heard lately.
    pub(super) fn places(&self, now: Instant) -> Vec<Target> {
        let place = |heard: &Heard| Place { socket: SocketId(0), remote: heard.address };
        let lately = self.places.iter().filter(|heard| heard.is_recent(now));
        lately.map(|heard| Target::Direct(place(heard))).collect()
    }
}

impl Heard {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_since(self.at) < FORGET
    }
}

impl Node {
    /// An announcement of anybody on an own network: a peer is there, or it is nothing to us.
    pub fn handle_announcement(&mut self, datagram: &[u8], now: Now) {
        if !self.lan.schedule.is_on() {
            return;
        }
        match self.read_announcement(datagram, now) {
            Err(reason) => self.drops.count(reason),
            Ok((peers, read)) => {
                for key in peers {
                    self.discovered(key, &read, now);
                }
            }
        }
    }

    /// The peers that an announcement is of: a machine is one in each network that it shares with this one. None: it is a stranger's.
    fn read_announcement<'a>(
        &mut self,
        datagram: &'a [u8],
        now: Now,
    ) -> Result<(Vec<PeerKey>, Announcement<'a>), DropReason> {
        let keys = self.directory.keys();
        let tries = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        if !self.lan.looks.take(1, now.instant) || !self.lan.tries.take(tries, now.instant) {
            return Err(DropReason::AnnouncementRate);
        }
        let read = Announcement::parse(datagram).ok_or(DropReason::BadAnnouncement)?;
        let machine_key = |key: &PeerKey| {
            let peer = self.directory.get(*key).filter(|peer| peer.trust == Trust::Verified)?;
            self.pins.get(&peer.id).copied()
        };
        let named = |key: &PeerKey| machine_key(key).is_some_and(|machine_key| read.names(&machine_key));
        let peers: Vec<PeerKey> = keys.into_iter().filter(named).collect();
        let Some(machine_key) = peers.first().and_then(machine_key) else { return Ok((peers, read)) };
        let news = |key: &PeerKey| {
            self.directory.get(*key).is_some_and(|peer| peer.lan.is_news(read.address, read.time))
        };
        if !peers.iter().all(news) {
            return Err(DropReason::BadAnnouncement);
        }
        if !self.lan.signatures.take(1, now.instant) {
            return Err(DropReason::AnnouncementRate);
        }
        if !read.is_signed_by(&machine_key) {
            return Err(DropReason::BadAnnouncement);
        }
        Ok((peers, read))
    }

    /// A peer is there. Only on own networks: a copy that was carried elsewhere leads nobody anywhere.
    fn discovered(&mut self, key: PeerKey, read: &Announcement<'_>, now: Now) {
        let address = read.address;
        let local = &self.net.local;
        let near = local.networks.iter().any(|network| network.contains(&address.ip()));
        let own = self.net.endpoints.addresses.iter().any(|net| net.addr() == address.ip());
        // Another node on this machine has its interface here: a path into the mesh would be one by way of itself.
        let mesh = self.memberships.values().flat_map(|membership| &membership.addresses);
        let inside = mesh.into_iter().any(|net| net.contains(&address.ip()));
        if !near || own || inside || !may_be_asked(address, local.loopback) {
            return;
        }
        let Some(peer) = self.directory.get_mut(key) else { return };
        if peer.lan.heard(address, read.time, now.instant) {
            let chance = self.rng.next_u32();
            self.lan.schedule.answer(chance, now.instant);
            self.arm_announcing();
        }
        let Some(peer) = self.directory.get_mut(key) else { return };
        let session = peer.sessions.sealing(now.instant).is_some();
        if let Some(pending) = peer.pending.as_mut().filter(|_| peer.path.path().is_none()) {
            // It was waiting for a way.
            pending.next = pending.next.min(now.instant);
        }
        self.with_direct(key, now, |direct, context| direct.discovered(address, session, context));
        self.arm(key);
    }

    /// The sockets or interfaces are others, or announcing was turned on or off.
    pub(super) fn start_announcing(&mut self, now: Now) {
        if self.net.endpoints.lan_discovery {
            self.lan.schedule.start(now.instant);
        } else {
            self.lan.schedule.stop();
        }
        self.arm_announcing();
    }

    /// Announces each own address, with the port of its socket.
    pub(super) fn announce_due(&mut self, now: Now) {
        if self.lan.schedule.take_due(now.instant) {
            let endpoints = &self.net.endpoints;
            let port = |ip: IpAddr| if ip.is_ipv4() { endpoints.port4 } else { endpoints.port6 };
            let with_port = |net: &ipnet::IpNet| Some(SocketAddr::new(net.addr(), port(net.addr())?));
            let addresses: Vec<SocketAddr> =
                endpoints.addresses.iter().filter_map(with_port).take(MAX_ANNOUNCED).collect();
            self.lan.last_time = now.unix.as_micros().max(self.lan.last_time + 1);
            let time = UnixTime::from_micros(self.lan.last_time);
            for address in addresses {
                let nonce = self.rng.next_u64().to_be_bytes();
                let datagram = announce(&self.machine, nonce, time, address);
                self.outbox.events.push_back(Event::Announce { from: address.ip(), datagram });
            }
        }
        self.arm_announcing();
    }

    fn arm_announcing(&mut self) {
        match self.lan.schedule.next() {
            Some(at) => self.timers.set(Timer::Announce, at),
            None => self.timers.clear(Timer::Announce),
        }
    }
}
