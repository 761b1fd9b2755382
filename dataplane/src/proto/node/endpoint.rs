//! Where this node may be reached: what the shell says of its interfaces, and what STUN servers see (`docs/protocol.md` §8.1, §8.2).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::Node;
use super::api::{Event, LocalEndpoints};
use super::timer::Timer;
use crate::proto::path::candidate::{Candidate, Candidates, Kind, may_be_asked};
use crate::proto::path::direct::{Direct, Local, MAX_EXTRA_SOCKETS, Place, SocketId};
use crate::proto::path::nat::{Discovery, NatBehaviour};
use crate::proto::routing::table::PeerKey;
use crate::proto::time::Now;
use crate::proto::wire::control::node::Endpoint;

/// What all peers' paths have in common.
#[derive(Debug, Default)]
pub(super) struct Net {
    pub(super) local: Local,
    pub(super) endpoints: LocalEndpoints,
    servers: Vec<SocketAddr>,
    discoveries: Vec<Discovery>,
    /// What the controller was told.
    told: Vec<Endpoint>,
}

impl Net {
    /// Where a STUN server saw this node last.
    pub(super) fn seen_by(&self, server: SocketAddr) -> Option<SocketAddr> {
        self.discoveries.iter().find_map(|discovery| discovery.seen_by(server))
    }

    /// Whether a socket of ours has this port; nobody else can then.
    pub(super) fn is_own_port(&self, port: u16) -> bool {
        self.endpoints.port4 == Some(port) || self.endpoints.port6 == Some(port)
    }
}

impl Node {
    /// The UDP sockets and interfaces as they are now; nothing in it turns direct paths off. When an address has gone, this node has moved: peers
    /// are told on every path.
    pub fn set_endpoints(&mut self, endpoints: LocalEndpoints, now: Now) {
        if endpoints == self.net.endpoints {
            return;
        }
        let only_mapped = LocalEndpoints { mapped: self.net.endpoints.mapped.clone(), ..endpoints.clone() };
        if only_mapped == self.net.endpoints {
            self.net.endpoints = endpoints;
            return self.local_changed(now);
        }
        let ips = |endpoints: &LocalEndpoints| -> BTreeSet<IpAddr> {
            endpoints.addresses.iter().map(ipnet::IpNet::addr).collect()
        };
        let before = ips(&self.net.endpoints);
        let moved = !before.is_empty() && !before.is_subset(&ips(&endpoints));
        let local = &mut self.net.local;
        local.networks =
            endpoints.addresses.iter().map(ipnet::IpNet::trunc).filter(|net| net.prefix_len() > 0).collect();
        local.loopback = endpoints.addresses.iter().any(|net| net.addr().is_loopback());
        local.has_v4 = endpoints.port4.is_some();
        local.has_v6 = endpoints.port6.is_some();
        local.extra_sockets = endpoints.extra_sockets.min(MAX_EXTRA_SOCKETS);
        local.mapped_at = None;
        self.net.endpoints = endpoints;
        self.net.servers.clear();
        self.net.discoveries.clear();
        self.local_changed(now);
        self.ask_servers(now);
        self.start_announcing(now);
        if moved {
            for key in self.connected() {
                self.with_direct(key, now, Direct::moved);
                self.arm(key);
            }
        }
    }

    /// What is known of the NAT in front of this node (IPv4), and where it may be reached.
    pub fn reachability(&self) -> (NatBehaviour, Vec<Candidate>) {
        (self.net.local.nat, self.net.local.candidates.iter().copied().collect())
    }

    /// Asks the STUN servers of the configuration, if they are others than before.
    pub(super) fn ask_servers(&mut self, now: Now) {
        let Some(config) = &self.config else { return };
        let servers: Vec<SocketAddr> = config.relays.iter().filter_map(|relay| relay.stun).collect();
        if servers == self.net.servers {
            return;
        }
        let local: Vec<IpAddr> = self.net.endpoints.addresses.iter().map(ipnet::IpNet::addr).collect();
        self.net.discoveries.clear();
        for (port, v4) in [(self.net.endpoints.port4, true), (self.net.endpoints.port6, false)] {
            let servers: Vec<_> = servers.iter().copied().filter(|server| server.is_ipv4() == v4).collect();
            if let Some(port) = port.filter(|_| !servers.is_empty()) {
                let discovery = Discovery::new(&servers, local.clone(), port, &mut self.rng, now.instant);
                self.net.discoveries.push(discovery);
            }
        }
        self.net.servers = servers;
        self.drain_stun(now);
    }

    /// The mapped addresses are wanted as they are now.
    pub(super) fn refresh_mapped(&mut self, now: Now) {
        for discovery in &mut self.net.discoveries {
            discovery.refresh(&mut self.rng, now.instant);
        }
        self.drain_stun(now);
    }

    pub(super) fn stun_due(&mut self, now: Now) {
        for discovery in &mut self.net.discoveries {
            if discovery.poll_timeout().is_some_and(|at| at <= now.instant) {
                discovery.handle_timeout(&mut self.rng, now.instant);
            }
        }
        self.drain_stun(now);
    }

    /// Whether a datagram was an answer that was waited for.
    pub(super) fn handle_stun(&mut self, place: Place, datagram: &[u8], now: Now) -> bool {
        let taken = self.net.discoveries.iter_mut().any(|discovery| {
            !discovery.is_idle()
                && discovery.handle_datagram(place.remote, datagram, &mut self.rng, now.instant)
        });
        if taken {
            self.drain_stun(now);
        }
        taken
    }

    fn drain_stun(&mut self, now: Now) {
        let mut changed = false;
        for discovery in &mut self.net.discoveries {
            while let Some((remote, datagram)) = discovery.poll_transmit() {
                let place = Place { socket: SocketId(0), remote };
                self.outbox.transmits.push_back((super::Target::Direct(place), datagram));
            }
            changed |= discovery.take_change();
        }
        match self.net.discoveries.iter().filter_map(Discovery::poll_timeout).min() {
            Some(at) => self.timers.set(Timer::Stun, at),
            None => self.timers.clear(Timer::Stun),
        }
        if changed {
            let seen = self.net.discoveries.iter().any(|discovery| discovery.mapped().is_some());
            self.net.local.mapped_at = seen.then_some(now.instant);
            self.local_changed(now);
        }
    }

    /// Lists the candidates anew and tells whom it concerns.
    fn local_changed(&mut self, now: Now) {
        let endpoints = &self.net.endpoints;
        let port = |ip: IpAddr| if ip.is_ipv4() { endpoints.port4 } else { endpoints.port6 };
        let lan = endpoints.addresses.iter().filter_map(|net| {
            Some(Candidate::new(Kind::Lan, SocketAddr::new(net.addr(), port(net.addr())?)))
        });
        let mapped = endpoints.mapped.iter().map(|address| Candidate::new(Kind::Mapped, *address));
        let seen = self.net.discoveries.iter().filter_map(Discovery::mapped);
        let seen = seen.map(|address| Candidate::new(Kind::Stun, address));
        let loopback = self.net.local.loopback;
        let list: Candidates =
            lan.chain(mapped).chain(seen).filter(|c| may_be_asked(c.address, loopback)).collect();
        // A port that is another one for every destination is news to nobody.
        let nat = self.net.discoveries.iter().find(|d| d.mapped().is_some_and(|mapped| mapped.is_ipv4()));
        let nat = nat.map_or_else(NatBehaviour::default, Discovery::behaviour);
        let news = |list: &Candidates| -> Vec<Endpoint> {
            let fleeting = |c: &Candidate| c.kind == Kind::Stun && c.address.is_ipv4() && nat.is_symmetric();
            list.iter().filter(|candidate| !fleeting(candidate)).map(endpoint_of).collect()
        };
        let endpoints = news(&list);
        let new = endpoints != self.net.told || nat != self.net.local.nat;
        self.net.local.candidates = list;
        self.net.local.nat = nat;
        if new {
            self.net.told.clone_from(&endpoints);
            self.outbox.events.push_back(Event::EndpointsChanged { endpoints, nat });
        }
        for key in self.connected() {
            self.with_direct(key, now, |direct, context| {
                direct.local_changed(new, context);
                direct.start(context);
            });
            self.arm(key);
        }
    }

    /// Peers with which there is a session.
    fn connected(&self) -> Vec<PeerKey> {
        let keys = self.directory.keys();
        let there = |key: &PeerKey| self.directory.get(*key).is_some_and(|p| p.sessions.current().is_some());
        keys.into_iter().filter(there).collect()
    }
}

fn endpoint_of(candidate: &Candidate) -> Endpoint {
    Endpoint { kind: candidate.kind.name().to_owned(), address: candidate.address }
}

/// What the controller says of a peer; kinds that this version does not know are passed over.
pub(super) fn candidate_of(endpoint: &Endpoint) -> Option<Candidate> {
    Kind::from_name(&endpoint.kind).map(|kind| Candidate::new(kind, endpoint.address))
}
