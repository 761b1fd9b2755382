//! Which source addresses a peer's packets may carry: its own and those behind its enabled routes (`docs/protocol.md` §2.3).
//!
//! The same structure, filled with own addresses and own routes, says which destinations this machine lets in.

use std::net::IpAddr;

use ipnet::IpNet;

/// Host addresses first: most packets match the first or second of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedAddresses {
    hosts: Vec<IpAddr>,
    nets: Vec<IpNet>,
}

impl AllowedAddresses {
    /// From host addresses and subnets.
    pub fn new(hosts: impl IntoIterator<Item = IpAddr>, nets: impl IntoIterator<Item = IpNet>) -> Self {
        let mut nets: Vec<_> = nets.into_iter().map(|net| net.trunc()).collect();
        nets.sort();
        nets.dedup();
        // What lies within another one adds nothing.
        let nets = IpNet::aggregate(&nets);
        Self { hosts: hosts.into_iter().collect(), nets }
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.hosts.contains(&address) || self.within_nets(address)
    }

    /// Whether `address` is one of the host addresses.
    pub fn has_host(&self, address: IpAddr) -> bool {
        self.hosts.contains(&address)
    }

    /// The aggregated subnets are sorted and disjoint: only the last one that begins at or before the address can hold it.
    fn within_nets(&self, address: IpAddr) -> bool {
        let after = self.nets.partition_point(|net| net.network() <= address);
        after.checked_sub(1).and_then(|at| self.nets.get(at)).is_some_and(|net| net.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_addresses_and_routes_pass_and_nothing_else() {
        let allowed = AllowedAddresses::new(
            ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            ["192.168.1.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()],
        );
        for yes in ["10.0.0.5", "fd00::5", "192.168.1.77", "fd01::1"] {
            assert!(allowed.contains(yes.parse().unwrap()), "{yes}");
        }
        for no in ["10.0.0.6", "fd00::6", "192.168.2.1", "fd01:0:0:1::1", "0.0.0.0"] {
            assert!(!allowed.contains(no.parse().unwrap()), "{no}");
        }
        assert!(!AllowedAddresses::default().contains("10.0.0.5".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            nets in proptest::collection::vec((any::<[u8; 4]>(), 0u8..=32), 0..20), address: [u8; 4], six: [u8; 16],
        ) {
            let mut nets: Vec<_> = nets.into_iter().map(|(a, l)| IpNet::new(a.into(), l).unwrap()).collect();
            nets.push("fd00::/8".parse().unwrap());
            let allowed = AllowedAddresses::new([], nets.clone());
            let firsts: Vec<IpAddr> = nets.iter().map(IpNet::addr).collect();
            for address in firsts.into_iter().chain([address.into(), six.into()]) {
                prop_assert_eq!(allowed.contains(address), nets.iter().any(|net| net.contains(&address)));
            }
        }
    }
}
