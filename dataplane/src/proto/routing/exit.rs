//! Which routes would take everything, and which peer may have them (`docs/protocol.md` §2.5).
//!
//! A route as wide as the internet, or a sizeable part of it, is of use only from the one peer that this machine has chosen as its exit. From any other peer it
//! is as if it were not there, whatever the controller says: nobody can draw a machine's traffic to himself.

use ipnet::IpNet;

use crate::proto::id::NodeId;
use crate::proto::wire::control::node::Peer;

/// Shorter prefixes than these are wide: 10.0.0.0/8 and fd00::/8 are subnets that people have, anything wider is (half) the internet.
const SUBNET_LEN: u8 = 8;

/// Whether a route is so wide that only an exit may have it.
pub fn is_wide(net: IpNet) -> bool {
    net.prefix_len() < SUBNET_LEN
}

/// Whether `wanted` names this peer: by `name`, `name.network`, address or id.
pub fn names(wanted: &str, peer: &Peer, network: &str) -> bool {
    let qualified = wanted.strip_prefix(peer.name.as_str()).and_then(|rest| rest.strip_prefix('.'));
    peer.name.eq_ignore_ascii_case(wanted)
        || qualified.is_some_and(|rest| rest.eq_ignore_ascii_case(network))
        || wanted.parse().is_ok_and(|address| peer.addresses.contains(&address))
        || wanted.parse().map(NodeId) == Ok(peer.node_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::control::Base64;
    use crate::proto::wire::control::node::Paths;

    #[test]
    fn what_covers_much_of_the_internet_is_wide() {
        for wide in ["0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3", "fc00::/7"] {
            assert!(is_wide(wide.parse().unwrap()), "{wide}");
        }
        for subnet in ["10.0.0.0/8", "fd00::/8", "192.168.1.0/24", "10.1.2.3/32"] {
            assert!(!is_wide(subnet.parse().unwrap()), "{subnet}");
        }
    }

    #[test]
    fn a_peer_is_named_by_name_network_address_or_id() {
        let peer = Peer {
            node_id: NodeId(7),
            name: "exit".into(),
            machine_key: Base64([0; 32]),
            node_key: None,
            addresses: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            online: true,
            relays: Vec::new(),
            path: Paths::default(),
            endpoints: Vec::new(),
        };
        for name in ["exit", "EXIT", "exit.home", "10.0.0.7", "fd00:0::7", "7"] {
            assert!(names(name, &peer, "home"), "{name}");
        }
        for name in ["exi", "exit.work", "exit.", "10.0.0.8", "8", ""] {
            assert!(!names(name, &peer, "home"), "{name}");
        }
    }
}
