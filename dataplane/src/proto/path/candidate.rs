//! Addresses at which a node may be reached directly: where they come from, which are tried first, and how many are kept.
//!
//! ```text
//! priority  = kind (LAN > mapped, STUN, seen by a peer > seen by a relay), then IPv6 before IPv4
//! ```
//!
//! Peers are told by the controller (`docs/protocol.md` §3.2) and, always, by CALL inside the session (§8.3). What a peer says is
//! bounded and filtered here: an address that nobody can have, or that only its owner can reach, is never asked.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Candidates kept of one node.
pub const MAX_CANDIDATES: usize = 32;

/// Where a candidate comes from. The order is that of first tries; the number is the one in CALL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// An interface of the node.
    Lan = 0,
    /// Found by LAN discovery.
    Discovered = 1,
    /// Mapped by UPnP-IGD, NAT-PMP or PCP.
    #[serde(rename = "upnp")]
    Mapped = 2,
    /// Seen by a STUN server.
    Stun = 3,
    /// Where an authenticated packet of the peer came from.
    Observed = 4,
    /// Seen by a relay.
    Relay = 5,
}

impl Kind {
    /// All, in the order of first tries.
    pub const ALL: [Self; 6] =
        [Self::Lan, Self::Discovered, Self::Mapped, Self::Stun, Self::Observed, Self::Relay];

    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its name in the controller's messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Discovered => "discovered",
            Self::Mapped => "upnp",
            Self::Stun => "stun",
            Self::Observed => "observed",
            Self::Relay => "relay",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it is on a network of the node's own.
    pub const fn is_lan(self) -> bool {
        matches!(self, Self::Lan | Self::Discovered)
    }

    /// Of first tries: what has the same one is tried together.
    const fn tier(self) -> u8 {
        match self {
            Self::Lan | Self::Discovered => 0,
            Self::Mapped | Self::Stun | Self::Observed => 1,
            Self::Relay => 2,
        }
    }
}

/// One address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Candidate {
    /// Where it comes from.
    pub kind: Kind,
    /// UDP.
    pub address: SocketAddr,
}

impl Candidate {
    /// With the address in its plain form: `::ffff:a.b.c.d` is an IPv4 address.
    pub fn new(kind: Kind, address: SocketAddr) -> Self {
        Self { kind, address: SocketAddr::new(address.ip().to_canonical(), address.port()) }
    }

    /// What comes first is tried first.
    pub fn priority(&self) -> (u8, bool, Kind, SocketAddr) {
        (self.kind.tier(), self.address.is_ipv4(), self.kind, self.address)
    }
}

/// Whether packets may be sent to an address that a peer has named. `loopback`: whether this node itself is at home there, as in a test on one machine.
pub fn may_be_asked(address: SocketAddr, loopback: bool) -> bool {
    let ip = address.ip().to_canonical();
    let special = match ip {
        IpAddr::V4(ip) => {
            ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0
        }
        // Link-local addresses mean nothing without the interface, which nobody else can name.
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local(),
    };
    !special && address.port() != 0 && (loopback || !ip.is_loopback())
}

/// Whether an address is of a private network: reached from within, or not at all.
pub const fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // The last: shared address space, RFC 6598, behind a carrier's NAT.
            ip.is_private() || ip.is_link_local() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64)
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// A bounded list without repetition, best first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Adds one; an address that is there keeps its better kind. The worst goes when there is no more room. True when the list changed.
    pub fn add(&mut self, candidate: Candidate) -> bool {
        if let Some(known) = self.0.iter_mut().find(|known| known.address == candidate.address) {
            if known.priority() <= candidate.priority() {
                return false;
            }
            *known = candidate;
        } else {
            if self.0.len() == MAX_CANDIDATES
                && self.0.last().is_some_and(|last| last.priority() <= candidate.priority())
            {
                return false;
            }
            self.0.push(candidate);
        }
        self.0.sort_by_key(Candidate::priority);
        self.0.truncate(MAX_CANDIDATES);
        true
    }

    /// All of them, best first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Candidate> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The kind of an address, if it is in the list.
    pub fn kind_of(&self, address: SocketAddr) -> Option<Kind> {
        self.0.iter().find(|candidate| candidate.address == address).map(|candidate| candidate.kind)
    }
}

impl FromIterator<Candidate> for Candidates {
    fn from_iter<T: IntoIterator<Item = Candidate>>(iter: T) -> Self {
        let mut candidates = Self::default();
        iter.into_iter().for_each(|candidate| {
            candidates.add(candidate);
        });
        candidates
    }
}

/// Whether an address lies in one of the networks that this node is connected to.
pub fn is_near(ip: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(kind: Kind, address: &str) -> Candidate {
        Candidate::new(kind, address.parse().unwrap())
    }

    #[test]
    fn lan_comes_first_then_what_servers_saw_then_what_a_relay_saw_and_v6_before_v4() {
        let list: Candidates = [
            candidate(Kind::Relay, "203.0.113.1:1"),
            candidate(Kind::Stun, "203.0.113.1:2"),
            candidate(Kind::Mapped, "203.0.113.1:3"),
            candidate(Kind::Stun, "[2001:db8::1]:2"),
            candidate(Kind::Lan, "192.168.1.2:4"),
            candidate(Kind::Lan, "[::ffff:192.168.1.2]:4"),
        ]
        .into_iter()
        .collect();
        let ports: Vec<_> = list.iter().map(|candidate| candidate.address.to_string()).collect();
        assert_eq!(
            ports,
            ["192.168.1.2:4", "[2001:db8::1]:2", "203.0.113.1:3", "203.0.113.1:2", "203.0.113.1:1"]
        );
    }

    #[test]
    fn a_list_is_bounded_and_keeps_the_best() {
        let mut list = Candidates::default();
        for port in 1..100 {
            list.add(candidate(Kind::Relay, &format!("203.0.113.1:{port}")));
        }
        assert_eq!(list.iter().len(), MAX_CANDIDATES);
        assert!(!list.add(candidate(Kind::Relay, "203.0.113.1:200")));
        assert!(list.add(candidate(Kind::Lan, "192.168.1.2:4")));
        assert_eq!(list.iter().len(), MAX_CANDIDATES);
        assert_eq!(list.kind_of("192.168.1.2:4".parse().unwrap()), Some(Kind::Lan));
        assert!(!list.add(candidate(Kind::Stun, "192.168.1.2:4")), "it is known as something better");
    }

    #[test]
    fn nobody_is_made_to_send_to_addresses_that_are_no_nodes() {
        for bad in ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "[ff02::1]:1", "[::]:1", "[fe80::1]:1"] {
            assert!(!may_be_asked(bad.parse().unwrap(), true), "{bad}");
        }
        assert!(!may_be_asked("203.0.113.1:0".parse().unwrap(), true));
        assert!(!may_be_asked("127.0.0.1:5".parse().unwrap(), false));
        assert!(!may_be_asked("[::ffff:127.0.0.1]:5".parse().unwrap(), false));
        assert!(may_be_asked("127.0.0.1:5".parse().unwrap(), true));
        assert!(may_be_asked("192.168.1.1:5".parse().unwrap(), false));
    }

    #[test]
    fn kinds_have_fixed_numbers_and_names() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!((kind as usize, Kind::from_number(number as u8)), (number, Some(kind)));
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        assert_eq!((Kind::from_number(6), Kind::from_name("wan")), (None, None));
    }
}
