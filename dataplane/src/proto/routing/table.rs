//! The routing table: longest prefix first, then priority, then weight (`docs/protocol.md` §3.2 `routes`).
//!
//! ```text
//! longest prefix that has a usable gateway → its highest priority that has one → among equals, the flow's own (super::flow)
//! ```
//!
//! A gateway is usable when its subnet is [`Gateway::up`] and the caller says so of the peer; that is asked at every look-up, since it changes more often than the
//! table. The usual case, one gateway for a host address, is one look-up without any hashing.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::flow;
use super::packet::{Addresses, FiveTuple};
use crate::proto::id::NodeId;

/// The caller's number for a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PeerKey(pub u32);

/// One way to a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Behind this peer.
    pub peer: PeerKey,
    /// Its id, which flows are drawn to: it outlives restarts.
    pub node: NodeId,
    /// Higher wins.
    pub priority: u16,
    /// Share among equals; 0 counts as 1.
    pub weight: u16,
    /// Whether it reaches the subnet; it says so itself.
    pub up: bool,
    /// The prefix is the peer's own address: nobody else leads there.
    pub own: bool,
}

impl Gateway {
    /// A peer itself.
    pub const fn own_address(peer: PeerKey, node: NodeId) -> Self {
        Self { peer, node, priority: u16::MAX, weight: 1, up: true, own: true }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct RouteTable {
    v4: PrefixMap<Ipv4Net, Vec<Gateway>>,
    v6: PrefixMap<Ipv6Net, Vec<Gateway>>,
}

impl RouteTable {
    /// Adds a way; one for the same prefix and peer is replaced.
    pub fn insert(&mut self, prefix: IpNet, gateway: Gateway) {
        let gateways = match prefix.trunc() {
            IpNet::V4(prefix) => self.v4.entry(prefix).or_default(),
            IpNet::V6(prefix) => self.v6.entry(prefix).or_default(),
        };
        gateways.retain(|old| old.peer != gateway.peer);
        gateways.push(gateway);
        gateways.sort_by_key(|gateway| (!gateway.own, std::cmp::Reverse(gateway.priority), gateway.peer));
    }

    /// Notes whether a gateway reaches the prefix.
    pub fn set_up(&mut self, prefix: IpNet, peer: PeerKey, up: bool) {
        let gateways = match prefix.trunc() {
            IpNet::V4(prefix) => self.v4.get_mut(&prefix),
            IpNet::V6(prefix) => self.v6.get_mut(&prefix),
        };
        for gateway in gateways.into_iter().flatten().filter(|gateway| gateway.peer == peer) {
            gateway.up = up;
        }
    }

    /// Takes a way out.
    pub fn remove(&mut self, prefix: IpNet, peer: PeerKey) {
        let gateways = match prefix.trunc() {
            IpNet::V4(prefix) => self.v4.get_mut(&prefix),
            IpNet::V6(prefix) => self.v6.get_mut(&prefix),
        };
        let Some(gateways) = gateways else { return };
        gateways.retain(|gateway| gateway.peer != peer);
        if gateways.is_empty() {
            match prefix.trunc() {
                IpNet::V4(prefix) => drop(self.v4.remove(&prefix)),
                IpNet::V6(prefix) => drop(self.v6.remove(&prefix)),
            }
        }
    }

    /// Whether some peer has this very address.
    pub fn has_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains_key(&Ipv4Net::from(address)),
            IpAddr::V6(address) => self.v6.contains_key(&Ipv6Net::from(address)),
        }
    }

    /// The peer for a packet. When no gateway is usable, the one that would be taken if all were: it says better than nothing what is wrong.
    pub fn lookup(
        &self,
        packet: &[u8],
        addresses: Addresses,
        usable: impl Fn(PeerKey) -> bool,
    ) -> Option<PeerKey> {
        let usable = |gateway: &Gateway| gateway.up && usable(gateway.peer);
        match addresses.destination {
            IpAddr::V4(address) => {
                let host = Ipv4Net::from(address);
                let (_, gateways) = self.v4.get_lpm(&host)?;
                choose(gateways, packet, addresses, &usable)
                    .or_else(|| {
                        let covering = self.v4.cover_values(&host);
                        covering.filter_map(|g| choose(g, packet, addresses, &usable)).last()
                    })
                    .or_else(|| choose(gateways, packet, addresses, &|_| true))
            }
            IpAddr::V6(address) => {
                let host = Ipv6Net::from(address);
                let (_, gateways) = self.v6.get_lpm(&host)?;
                choose(gateways, packet, addresses, &usable)
                    .or_else(|| {
                        let covering = self.v6.cover_values(&host);
                        covering.filter_map(|g| choose(g, packet, addresses, &usable)).last()
                    })
                    .or_else(|| choose(gateways, packet, addresses, &|_| true))
            }
        }
    }
}

/// Among gateways sorted by priority, the highest first.
fn choose(
    gateways: &[Gateway],
    packet: &[u8],
    addresses: Addresses,
    usable: &impl Fn(&Gateway) -> bool,
) -> Option<PeerKey> {
    match gateways {
        [own, ..] if own.own => return Some(own.peer),
        [only] => return usable(only).then_some(only.peer),
        _ => {}
    }
    let first = gateways.iter().find(|gateway| usable(gateway))?;
    let equals = || gateways.iter().filter(|g| g.priority == first.priority && usable(g));
    if equals().nth(1).is_none() {
        return Some(first.peer);
    }
    let flow = flow::flow_hash(&FiveTuple::of(packet, addresses));
    let score = |gateway: &Gateway| flow::score(flow, gateway.node.0, gateway.weight.max(1));
    equals().max_by(|a, b| score(a).total_cmp(&score(b))).map(|gateway| gateway.peer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gateway(peer: u32, priority: u16, weight: u16) -> Gateway {
        Gateway { peer: PeerKey(peer), node: NodeId(peer), priority, weight, up: true, own: false }
    }

    fn to(destination: &str, port: u16) -> (Vec<u8>, Addresses) {
        let destination: IpAddr = destination.parse().unwrap();
        let source = match destination {
            IpAddr::V4(_) => "10.0.0.1".parse().unwrap(),
            IpAddr::V6(_) => "fd00::1".parse().unwrap(),
        };
        let mut packet = vec![0u8; 48];
        let at = if destination.is_ipv4() { 20 } else { 40 };
        packet[0] = if destination.is_ipv4() { 0x45 } else { 0x60 };
        packet[if destination.is_ipv4() { 9 } else { 6 }] = 17;
        packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
        (packet, Addresses { source, destination })
    }

    fn lookup(table: &RouteTable, destination: &str, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let (packet, addresses) = to(destination, 1);
        table.lookup(&packet, addresses, |peer| usable(peer.0)).map(|peer| peer.0)
    }

    #[test]
    fn the_longest_prefix_wins_then_priority() {
        let mut table = RouteTable::default();
        for (prefix, way) in [
            ("10.0.0.2/32", gateway(2, 100, 100)),
            ("10.0.0.0/8", gateway(3, 900, 100)),
            ("10.0.0.0/8", gateway(4, 901, 1)),
            ("0.0.0.0/0", gateway(5, 100, 100)),
            ("fd00::/16", gateway(6, 100, 100)),
        ] {
            table.insert(prefix.parse().unwrap(), way);
        }
        assert_eq!(lookup(&table, "10.0.0.2", |_| true), Some(2));
        assert_eq!(lookup(&table, "10.0.0.3", |_| true), Some(4));
        assert_eq!(lookup(&table, "8.8.8.8", |_| true), Some(5));
        assert_eq!(lookup(&table, "fd00::77", |_| true), Some(6));
        assert_eq!(lookup(&table, "fe00::77", |_| true), None);
        table.remove("10.0.0.0/8".parse().unwrap(), PeerKey(4));
        assert_eq!(lookup(&table, "10.0.0.3", |_| true), Some(3));
    }

    #[test]
    fn gateways_that_cannot_be_used_are_skipped_down_to_the_shorter_prefix() {
        let mut table = RouteTable::default();
        table.insert("192.168.1.0/24".parse().unwrap(), gateway(1, 200, 100));
        table.insert("192.168.1.0/24".parse().unwrap(), gateway(2, 100, 100));
        table.insert("192.168.0.0/16".parse().unwrap(), gateway(3, 100, 100));
        assert_eq!(lookup(&table, "192.168.1.9", |peer| peer != 1), Some(2));
        assert_eq!(lookup(&table, "192.168.1.9", |peer| peer == 3), Some(3));
        assert_eq!(lookup(&table, "192.168.1.9", |_| false), Some(1));
    }

    #[test]
    fn equal_gateways_share_flows_by_weight_and_a_flow_sticks() {
        let mut table = RouteTable::default();
        table.insert("192.168.1.0/24".parse().unwrap(), gateway(1, 100, 300));
        table.insert("192.168.1.0/24".parse().unwrap(), gateway(2, 100, 100));
        table.insert("192.168.1.0/24".parse().unwrap(), gateway(3, 50, 60_000));
        let mut counts = [0u32; 4];
        for port in 0..8_000 {
            let (packet, addresses) = to("192.168.1.9", port);
            let chosen = table.lookup(&packet, addresses, |_| true).unwrap();
            assert_eq!(table.lookup(&packet, addresses, |_| true), Some(chosen));
            counts[chosen.0 as usize] += 1;
        }
        assert_eq!(counts[3], 0, "lower priority carries nothing");
        assert!((5_800..6_200).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn a_gateway_whose_subnet_is_down_is_left_for_that_subnet_only() {
        let mut table = RouteTable::default();
        for net in ["192.168.1.0/24", "192.168.2.0/24"] {
            table.insert(net.parse().unwrap(), gateway(1, 200, 100));
            table.insert(net.parse().unwrap(), gateway(2, 100, 100));
        }
        table.set_up("192.168.1.0/24".parse().unwrap(), PeerKey(1), false);
        assert_eq!(lookup(&table, "192.168.1.9", |_| true), Some(2));
        assert_eq!(lookup(&table, "192.168.2.9", |_| true), Some(1));
        assert_eq!(lookup(&table, "192.168.1.9", |peer| peer == 1), Some(1), "better than nowhere");
        table.set_up("192.168.1.0/24".parse().unwrap(), PeerKey(1), true);
        assert_eq!(lookup(&table, "192.168.1.9", |_| true), Some(1));
    }

    proptest! {
        /// 10,000 flows: each gateway's share is within 5 % of what its weight says, or within chance (four standard deviations) where that is more.
        #[test]
        fn weights_hold_and_only_flows_of_a_gateway_that_goes_or_comes_move(
            weights in proptest::collection::vec(1u16..=1000, 2..6), gone: proptest::sample::Index, salt: u32,
        ) {
            const FLOWS: u32 = 10_000;
            let mut table = RouteTable::default();
            for (n, weight) in weights.iter().enumerate() {
                table.insert("0.0.0.0/0".parse().unwrap(), gateway(n as u32 + 1, 100, *weight));
            }
            let gone = gone.index(weights.len()) as u32 + 1;
            let mut counts = vec![0u32; weights.len()];
            for n in 0..FLOWS {
                let destination = std::net::Ipv4Addr::from_bits(salt.wrapping_add(n / 16).wrapping_mul(0x9E37_79B1));
                let (packet, addresses) = to(&destination.to_string(), (n % 16) as u16 + 1024);
                let chosen = table.lookup(&packet, addresses, |_| true).unwrap();
                counts[chosen.0 as usize - 1] += 1;
                let without = table.lookup(&packet, addresses, |peer| peer.0 != gone).unwrap();
                prop_assert_eq!(without == chosen, chosen.0 != gone);
            }
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let share = f64::from(*weight) / sum;
                let expected = share * f64::from(FLOWS);
                let chance = 4.0 * (expected * (1.0 - share)).sqrt();
                let off = (f64::from(*count) - expected).abs();
                prop_assert!(off <= (0.05 * expected).max(chance), "{counts:?} flows for weights {weights:?}");
            }
        }

        #[test]
        fn agrees_with_a_linear_search(
            routes in proptest::collection::vec((any::<[u8; 4]>(), 0u8..=32), 0..60),
            asked in proptest::collection::vec((any::<proptest::sample::Index>(), any::<[u8; 4]>()), 1..30),
        ) {
            let mut table = RouteTable::default();
            let mut list = Vec::new();
            for (peer, (address, length)) in routes.iter().enumerate() {
                let prefix = IpNet::new(IpAddr::from(*address), *length).unwrap().trunc();
                if list.iter().any(|(other, _)| *other == prefix) { continue }
                table.insert(prefix, gateway(peer as u32, 1, 1));
                list.push((prefix, peer as u32));
            }
            for (index, random) in asked {
                let near = if routes.is_empty() { random } else { index.get(&routes).0 };
                for address in [random, near] {
                    let destination = IpAddr::from(address);
                    let best = list.iter().filter(|(p, _)| p.contains(&destination)).max_by_key(|(p, _)| p.prefix_len());
                    prop_assert_eq!(lookup(&table, &destination.to_string(), |_| true), best.map(|b| b.1));
                }
            }
        }
    }
}
