//! Peers that find each other on an own network, without a relay.

use std::net::SocketAddr;

use super::*;
use crate::proto::path::beacon::announce;
use crate::proto::path::direct::{Place, SocketId};

const PORT: u16 = 41_641;

/// Where node `n` is.
fn address(n: u8) -> SocketAddr {
    ([192, 168, 1, n], PORT).into()
}

/// A node that knows another from a kept configuration, on a network with it; no relay answers.
fn alone(own: u8, other: u8, lan_discovery: bool) -> Node {
    let mut node = node(own);
    node.apply_config(config(own, &[other]), at(0));
    let endpoints = LocalEndpoints {
        port4: Some(PORT),
        addresses: vec![IpNet::new(address(own).ip(), 24).unwrap()],
        lan_discovery,
        ..LocalEndpoints::default()
    };
    node.set_endpoints(endpoints, at(0));
    node
}

/// Announcements that wait to be sent.
fn announcements(node: &mut Node) -> Vec<Vec<u8>> {
    let announced = |event| match event {
        Event::Announce { datagram, .. } => Some(datagram),
        _ => None,
    };
    events(node).into_iter().filter_map(announced).collect()
}

/// Everything that two nodes on one wire do until `end`, in steps of a millisecond; packets that came out, and how many announcements there were.
fn live(nodes: &mut [Node; 2], from: u64, end: u64) -> (usize, usize) {
    let (mut packets, mut announced) = (0, 0);
    for now in (from..end).map(at) {
        for one in 0..2 {
            nodes[one].handle_timeout(now);
            for datagram in announcements(&mut nodes[one]) {
                announced += 1;
                nodes[1 - one].handle_announcement(&datagram, now);
            }
            let mut buffer = Vec::new();
            while let Some(target) = nodes[one].poll_transmit(&mut buffer) {
                let mut bytes = std::mem::take(&mut buffer);
                let Target::Direct(place) = target else { continue };
                assert_eq!(place.remote, address(2 - one as u8), "only the other one is asked");
                let place = Place { socket: SocketId(0), remote: address(1 + one as u8) };
                let received = nodes[1 - one].handle_datagram(place, &mut bytes, now);
                packets += usize::from(matches!(received, Received::Packet { .. }));
            }
        }
    }
    (packets, announced)
}

#[test]
fn without_relay_and_controller_neighbours_find_each_other_and_talk() {
    let mut nodes = [alone(1, 2, true), alone(2, 1, true)];
    let (_, announced) = live(&mut nodes, 0, 2_000);
    assert!((2..=6).contains(&announced), "{announced} announcements");
    let first = packet([10, 0, 0, 1], [10, 0, 0, 2]);
    assert_eq!(send(&mut nodes[0], &first, Checksum::Complete, at(2_000)).0, Outgoing::Queued);
    let (packets, _) = live(&mut nodes, 2_000, 2_100);
    assert_eq!(packets, 1, "the packet that began it has waited for the first path");
    for (n, node) in nodes.iter().enumerate() {
        let peer = &node.status(at(2_100).instant).peers[0];
        assert_eq!(peer.direct, Some(address(2 - n as u8)));
    }
}

#[test]
fn one_that_starts_later_is_told_at_once() {
    let mut nodes = [alone(1, 2, true), node(2)];
    live(&mut nodes, 0, 30_000);
    nodes[1] = alone(2, 1, true);
    let first = packet([10, 0, 0, 1], [10, 0, 0, 2]);
    send(&mut nodes[0], &first, Checksum::Complete, at(30_000));
    let (packets, _) = live(&mut nodes, 30_000, 32_500);
    assert_eq!(packets, 1);
}

#[test]
fn a_node_that_does_not_announce_does_not_listen_either() {
    let mut nodes = [alone(1, 2, true), alone(2, 1, false)];
    send(&mut nodes[1], &packet([10, 0, 0, 2], [10, 0, 0, 1]), Checksum::Complete, at(0));
    let (packets, announced) = live(&mut nodes, 0, 4_000);
    assert_eq!((packets, announced), (0, 3));
    assert_eq!(nodes[1].status(at(4_000).instant).peers[0].session, "handshake");
}

#[test]
fn copies_forgeries_and_addresses_elsewhere_lead_nowhere() {
    let mut node = alone(1, 2, true);
    let time = |ms| at(ms).unix;
    let refused = |node: &Node| node.drops().of(DropReason::BadAnnouncement);
    let known = |node: &mut Node, now| {
        send(node, &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, now);
        node.handle_timeout(now);
        let mut buffer = Vec::new();
        std::iter::from_fn(|| node.poll_transmit(&mut buffer)).count() > 0
    };

    let mut forged = announce(&machine(2), [1; 8], time(0), address(2));
    let last = forged.len() - 1;
    forged[last] ^= 1;
    node.handle_announcement(&forged, at(0));
    assert_eq!(refused(&node), 1);
    for elsewhere in ["203.0.113.9:41641", "192.168.1.1:41641", "192.168.1.2:0", "224.0.0.1:9"] {
        let datagram = announce(&machine(2), [2; 8], time(1), elsewhere.parse().unwrap());
        node.handle_announcement(&datagram, at(1));
    }
    node.handle_announcement(&announce(&machine(3), [3; 8], time(2), address(3)), at(2));
    assert!(!known(&mut node, at(3)), "nobody was found");

    let good = announce(&machine(2), [4; 8], time(1_000), address(2));
    node.handle_announcement(&good, at(1_000));
    assert!(known(&mut node, at(1_000)));
    let before = refused(&node);
    node.handle_announcement(&good, at(1_001));
    node.handle_announcement(&announce(&machine(2), [5; 8], time(999), address(2)), at(1_002));
    assert_eq!(refused(&node), before + 2, "a copy, and one that is older");
}

#[test]
fn a_flood_of_announcements_is_looked_at_sparingly() {
    let mut node = alone(1, 2, true);
    for n in 0..1_000u64 {
        let mut forged = announce(&machine(2), n.to_be_bytes(), at(n).unix, address(2));
        let last = forged.len() - 1;
        forged[last] ^= 1;
        node.handle_announcement(&forged, at(0));
    }
    assert!(node.drops().of(DropReason::AnnouncementRate) > 900);
    assert!(node.drops().of(DropReason::BadAnnouncement) <= 32, "signatures that were verified");
}
