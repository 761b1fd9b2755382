//! An internet of UDP: hosts behind NATs modelled by RFC 4787, firewalls, STUN servers, datagrams that get lost.
//!
//! A NAT is its mapping, its filtering, how it chooses ports, how long it remembers, and whether it hairpins. Packets walk as in the real
//! thing: out through the sender's NAT (a mapping is made or refreshed), over the wire, in through the receiver's (or nowhere).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meshdp::proto::path::nat::{Filtering, Mapping, NatBehaviour, Ports};
use meshdp::proto::time::Instant;
use meshdp::proto::wire::stun::{self, Face, Faces};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

/// How a NAT chooses ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortChoice {
    /// The inner port when it is free, else the next free one.
    Preserving,
    /// The last one plus this.
    Counting(i16),
    /// Any.
    Random,
}

/// What a NAT does.
#[derive(Clone, Copy, Debug)]
pub struct NatKind {
    /// RFC 4787 §4.1; `Direct`: a firewall, nothing is translated.
    pub mapping: Mapping,
    /// RFC 4787 §5.
    pub filtering: Filtering,
    /// Of a new mapping.
    pub ports: PortChoice,
    /// A mapping that nothing went out by for so long is forgotten.
    pub lifetime: Duration,
    /// Whether inner hosts reach each other by outer addresses.
    pub hairpin: bool,
}

impl NatKind {
    /// The classes of the matrix, with ports drawn at random, or counting where they are symmetric and `step` is given.
    pub const fn of_class(class: usize, step: Option<i16>) -> Self {
        let (mapping, filtering) = match class {
            0 => (Mapping::EndpointIndependent, Filtering::EndpointIndependent),
            1 => (Mapping::EndpointIndependent, Filtering::AddressDependent),
            2 => (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent),
            _ => (Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent),
        };
        let ports = match step {
            Some(step) => PortChoice::Counting(step),
            None => PortChoice::Random,
        };
        Self { mapping, filtering, ports, lifetime: Duration::from_secs(120), hairpin: false }
    }

    /// What a node should find out.
    pub fn behaviour(&self) -> NatBehaviour {
        let symmetric = matches!(self.mapping, Mapping::AddressDependent | Mapping::AddressAndPortDependent);
        let ports = match self.ports {
            PortChoice::Preserving => Ports::Preserving,
            PortChoice::Counting(step) if symmetric => Ports::Counting(step),
            PortChoice::Random if symmetric => Ports::Random,
            _ => Ports::Unknown,
        };
        NatBehaviour { mapping: Some(self.mapping), filtering: Some(self.filtering), ports }
    }
}

/// One mapping of a NAT.
#[derive(Clone, Debug)]
struct Mapped {
    inner: SocketAddr,
    key: (Option<IpAddr>, Option<u16>),
    outer: u16,
    used: Instant,
    sent_to: BTreeSet<SocketAddr>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Nat {
    /// What it does.
    pub kind: NatKind,
    /// Its outer address.
    pub outer: IpAddr,
    mapped: Vec<Mapped>,
    last: u16,
}

impl Nat {
    /// Without mappings.
    pub fn new(kind: NatKind, outer: IpAddr, rng: &mut ChaCha20Rng) -> Self {
        Self { kind, outer, mapped: Vec::new(), last: 20_000 + (rng.next_u32() % 20_000) as u16 }
    }

    /// Forgets everything, as after a restart.
    pub fn reboot(&mut self) {
        self.mapped.clear();
    }

    /// A datagram leaves: its outer source.
    fn out(&mut self, inner: SocketAddr, to: SocketAddr, rng: &mut ChaCha20Rng, now: Instant) -> SocketAddr {
        let lifetime = self.kind.lifetime;
        self.mapped.retain(|mapped| now.saturating_since(mapped.used) < lifetime);
        let key = match self.kind.mapping {
            Mapping::Direct | Mapping::EndpointIndependent => (None, None),
            Mapping::AddressDependent => (Some(to.ip()), None),
            Mapping::AddressAndPortDependent => (Some(to.ip()), Some(to.port())),
        };
        let at = self.mapped.iter().position(|mapped| mapped.inner == inner && mapped.key == key);
        let at = at.unwrap_or_else(|| {
            let outer = self.choose(inner.port(), rng);
            self.mapped.push(Mapped { inner, key, outer, used: now, sent_to: BTreeSet::new() });
            self.mapped.len() - 1
        });
        let mapped = &mut self.mapped[at];
        mapped.used = now;
        mapped.sent_to.insert(to);
        if self.kind.mapping == Mapping::Direct { inner } else { SocketAddr::new(self.outer, mapped.outer) }
    }

    fn choose(&mut self, inner: u16, rng: &mut ChaCha20Rng) -> u16 {
        let mut port = inner;
        loop {
            port = match self.kind.ports {
                _ if self.kind.mapping == Mapping::Direct => return inner,
                PortChoice::Preserving => port,
                PortChoice::Counting(step) => self.last.wrapping_add_signed(step),
                PortChoice::Random => 1024 + (rng.next_u32() % 64_512) as u16,
            };
            self.last = port;
            if port >= 1024 && self.mapped.iter().all(|mapped| mapped.outer != port) {
                return port;
            }
            if self.kind.ports == PortChoice::Preserving {
                port = port.checked_add(1).unwrap_or(1024);
            }
        }
    }

    /// A datagram comes: the inner host it is for, if it is let in.
    fn inside(&self, from: SocketAddr, to: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let mapped = self.mapped.iter().find(|mapped| {
            let known = if self.kind.mapping == Mapping::Direct {
                mapped.inner == to
            } else {
                mapped.outer == to.port()
            };
            known && now.saturating_since(mapped.used) < self.kind.lifetime
        })?;
        let lets_in = match self.kind.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => mapped.sent_to.iter().any(|sent| sent.ip() == from.ip()),
            Filtering::AddressAndPortDependent => mapped.sent_to.contains(&from),
        };
        lets_in.then_some(mapped.inner)
    }
}

/// A machine's place in the internet.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its own address.
    pub ip: IpAddr,
    /// The NAT in front of it; `None`: none.
    pub nat: Option<usize>,
}

/// Where a datagram came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// At a machine's socket, from there.
    Host {
        /// The machine.
        machine: usize,
        /// Port of its socket.
        port: u16,
        /// As the machine sees it.
        from: SocketAddr,
    },
    /// At a STUN server's face.
    Stun {
        /// The server.
        server: usize,
        /// The face.
        face: Face,
        /// As the server sees it.
        from: SocketAddr,
    },
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Internet {
    /// By machine.
    pub hosts: BTreeMap<usize, Host>,
    /// By number.
    pub nats: Vec<Nat>,
    /// STUN servers, with two addresses each.
    pub servers: Vec<Faces>,
    /// Datagrams with more bytes of UDP payload than this are lost.
    pub mtu: usize,
    /// Hosts behind one NAT do not reach each other's own addresses.
    pub isolated: bool,
    /// Pairs of machines between which nothing passes.
    pub cut: BTreeSet<(usize, usize)>,
}

impl Internet {
    /// A datagram is sent; where it comes out, if anywhere.
    pub fn route(
        &mut self,
        machine: usize,
        port: u16,
        to: SocketAddr,
        length: usize,
        rng: &mut ChaCha20Rng,
        now: Instant,
    ) -> Option<Arrival> {
        if self.mtu > 0 && length > self.mtu {
            return None;
        }
        let host = self.hosts.get(&machine)?.clone();
        if host.ip.is_ipv4() != to.is_ipv4() {
            return None;
        }
        let inner = SocketAddr::new(host.ip, port);
        // On the same network: directly.
        let neighbour = self.hosts.iter().find(|(_, other)| other.ip == to.ip() && other.nat == host.nat);
        if let Some((&other, _)) = neighbour.filter(|_| !self.isolated) {
            return self.arrive(machine, other, to.port(), inner);
        }
        let from = match host.nat {
            Some(nat) => self.nats[nat].out(inner, to, rng, now),
            None => inner,
        };
        for (server, faces) in self.servers.iter().enumerate() {
            if let Some(face) = Face::ALL.into_iter().find(|face| faces.address(*face) == to) {
                return Some(Arrival::Stun { server, face, from });
            }
        }
        self.come_in(Some(machine), host.nat, from, to, now)
    }

    /// A STUN server answers.
    pub fn answer(
        &self,
        server: usize,
        face: Face,
        from: SocketAddr,
        request: &[u8],
        now: Instant,
    ) -> Option<(Arrival, SocketAddr, Vec<u8>)> {
        let faces = self.servers.get(server)?;
        let mut answer = Vec::new();
        let reply = stun::respond_at(request, from, Some((faces, face)), &mut answer);
        let source = faces.address(reply.face?);
        let arrival = self.come_in(None, None, source, reply.to, now).filter(|_| !answer.is_empty())?;
        Some((arrival, source, answer))
    }

    /// A datagram from the public side.
    fn come_in(
        &self,
        sender: Option<usize>,
        sender_nat: Option<usize>,
        from: SocketAddr,
        to: SocketAddr,
        now: Instant,
    ) -> Option<Arrival> {
        // A private address leads nowhere from outside.
        if is_private(to.ip()) {
            return None;
        }
        let inner = self
            .nats
            .iter()
            .enumerate()
            .find(|(_, nat)| nat.kind.mapping != Mapping::Direct && nat.outer == to.ip());
        let (to, nat) = if let Some((number, nat)) = inner {
            if sender_nat == Some(number) && !nat.kind.hairpin {
                return None;
            }
            (nat.inside(from, to, now)?, Some(number))
        } else {
            let host = self.hosts.values().find(|host| host.ip == to.ip())?;
            match host.nat {
                Some(number) => (self.nats[number].inside(from, to, now)?, Some(number)),
                None => (to, None),
            }
        };
        let (&machine, _) = self.hosts.iter().find(|(_, host)| host.ip == to.ip() && host.nat == nat)?;
        self.arrive(sender.unwrap_or(usize::MAX), machine, to.port(), from)
    }

    fn arrive(&self, sender: usize, machine: usize, port: u16, from: SocketAddr) -> Option<Arrival> {
        let cut = self.cut.contains(&(sender.min(machine), sender.max(machine)));
        (!cut).then_some(Arrival::Host { machine, port, from })
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}
