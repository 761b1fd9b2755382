//! Announcements on the own network: anybody's bytes at a node that has peers, and one of ours with bytes changed.
//! Input: port (2) ‖ address (4) ‖ time (8) ‖ position (1) ‖ change (1) ‖ a datagram.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::id::{NetworkId, NodeId};
use meshdp::proto::node::{Checksum, Event, LocalEndpoints, Node, NodeSettings, Target};
use meshdp::proto::path::beacon::{Announcement, MAX_LEN, announce};
use meshdp::proto::time::{Instant, Now, UnixTime};
use meshdp::proto::wire::control::node::{Config, Membership, Network, Paths, Peer, Settings};
use meshdp::proto::wire::data::{DATA_HEADROOM, TAG_LEN};

const HOME: [u8; 4] = [192, 168, 1, 1];

fuzz_target!(|input: &[u8]| {
    let Some((head, datagram)) = input.split_first_chunk::<16>() else { return };
    let &[p0, p1, ip @ .., position, change] = head;
    let (ip, time): ([u8; 4], [u8; 8]) = (ip[..4].try_into().expect("4"), ip[4..].try_into().expect("8"));
    let peer = machine(2);
    let address = SocketAddr::new(IpAddr::from(ip), u16::from_be_bytes([p0, p1]));
    let time = UnixTime::from_micros(u64::from_be_bytes(time));

    let mut own = announce(&peer, [position; 8], time, address);
    assert!(own.len() <= MAX_LEN);
    let read = Announcement::parse(&own).expect("our own");
    assert!(read.names(&peer.public()) && read.is_signed_by(&peer.public()));
    assert_eq!((read.address, read.time), (address, time));

    let mut node = node();
    node.handle_announcement(datagram, at(0));
    let untouched = asked(&mut node, 0);
    let forged = Announcement::parse(datagram).is_some_and(|read| !read.is_signed_by(&peer.public()));
    assert!(!forged || untouched.is_empty(), "what the peer has not signed leads nowhere");

    let length = own.len();
    own[usize::from(position) % length] ^= change;
    node.handle_announcement(&own, at(1));
    for place in asked(&mut node, 1) {
        assert!(change == 0 || !untouched.is_empty(), "an altered one leads nowhere");
        let near = matches!(place.ip(), IpAddr::V4(ip) if ip.octets()[..3] == HOME[..3]);
        assert!(near && place.port() != 0, "{place} is not on the own network");
    }
    // A copy, and time that passes, add nothing.
    node.handle_announcement(&own, at(2));
    for second in 1..30 {
        node.handle_timeout(at(second * 1000));
        let announced = std::iter::from_fn(|| node.poll_event());
        assert!(announced.filter(|event| matches!(event, Event::Announce { .. })).count() <= 2);
    }
});

fn at(ms: u64) -> Now {
    let passed = Duration::from_millis(ms);
    Now { instant: Instant::ZERO + passed, unix: UnixTime::from_secs(1_770_000_000) + passed }
}

fn machine(n: u8) -> MachineKey {
    MachineKey::from_seed(&[n; 32]).expect("any seed is a key")
}

/// Where a packet for the peer makes the node knock.
fn asked(node: &mut Node, ms: u64) -> Vec<SocketAddr> {
    let mut packet = vec![0; DATA_HEADROOM + 24 + TAG_LEN];
    packet[DATA_HEADROOM..DATA_HEADROOM + 20]
        .copy_from_slice(&[0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let _ = node.handle_packet(&mut packet, Checksum::Complete, at(ms));
    node.handle_timeout(at(ms));
    let mut buffer = Vec::new();
    let targets = std::iter::from_fn(|| node.poll_transmit(&mut buffer));
    let direct = |target| match target {
        Target::Direct(place) => Some(place.remote),
        Target::Relay { .. } => None,
    };
    targets.filter_map(direct).collect()
}

fn node() -> Node {
    let key = |n| NodeKey::from_private([n; 32]).expect("any bytes are a key");
    let settings = NodeSettings {
        machine: machine(1),
        node_key: key(1),
        node_key_created: 1,
        previous_node_key: None,
        aes: true,
        seed: [1; 32],
        version: String::new(),
        advertised: Vec::new(),
        pins: Vec::new(),
    };
    let peer = Peer {
        node_id: NodeId(2),
        name: "two".to_owned(),
        machine_key: machine(2).public(),
        node_key: Some(machine(2).sign_node_key(key(2).public(), 1)),
        addresses: vec![[10, 0, 0, 2].into()],
        online: true,
        relays: Vec::new(),
        path: Paths::default(),
        endpoints: Vec::new(),
    };
    let network =
        Network { id: NetworkId(1), name: "one".to_owned(), subnet4: "10.0.0.0/24".parse().ok(), subnet6: None };
    let membership = Membership {
        node_id: NodeId(1),
        name: "one".to_owned(),
        network,
        addresses: vec!["10.0.0.1/24".parse().expect("a network")],
        relay_token: "token".into(),
        relay_token_expires: 1_770_005_400,
        peers: vec![peer],
        routes: Vec::new(),
    };
    let config =
        Config { version: 1, memberships: vec![membership], relays: Vec::new(), settings: Settings::default() };
    let mut node = Node::new(settings, at(0));
    node.apply_config(config, at(0));
    let endpoints = LocalEndpoints {
        port4: Some(41_641),
        addresses: vec![ipnet::IpNet::new(HOME.into(), 24).expect("24 fits")],
        lan_discovery: true,
        ..LocalEndpoints::default()
    };
    node.set_endpoints(endpoints, at(0));
    node
}
