//! One or two nodes, with the relay played by hand. Whole meshes are in `fuzz/sim`.

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::proto::crypto::kem::KemKey;
use crate::proto::drop_reason::DropReason;
use crate::proto::error::ErrorCode;
use crate::proto::time::UnixTime;
use crate::proto::wire::control::node::{
    Change, ConfigUpdate, Membership as Joined, Network, Paths, Peer, Relay, Route, Settings,
};
use crate::proto::wire::control::server::NodeAuthorised;
use crate::proto::wire::control::{AuthRequest, AuthResponse, ErrorMessage, GoAway, parse, to_payload};
use crate::proto::wire::data::{DATA_HEADROOM, TAG_LEN};
use crate::proto::wire::frame::{Flags, FrameType, Frames, HEADER_LEN, write_frame};

mod direct;
mod gateway;
mod handshake;
mod lan;

const ONE: RelayId = RelayId(1);
const TWO: RelayId = RelayId(2);

fn at(ms: u64) -> Now {
    let passed = Duration::from_millis(ms);
    Now { instant: Instant::ZERO + passed, unix: UnixTime::from_secs(1_770_000_000) + passed }
}

fn machine(n: u8) -> MachineKey {
    MachineKey::from_seed(&[n; 32]).unwrap()
}

fn node_key(n: u8) -> NodeKey {
    static KEM: Mutex<BTreeMap<u8, KemKey>> = Mutex::new(BTreeMap::new());
    let mut kem = KEM.lock().unwrap();
    let kem = kem.entry(n).or_insert_with(|| KemKey::generate().unwrap()).clone();
    NodeKey::from_private([n; 32]).unwrap().with_kem(kem)
}

fn node(n: u8) -> Node {
    Node::new(
        NodeSettings {
            machine: machine(n),
            node_key: node_key(n),
            node_key_created: 1,
            previous_node_key: None,
            aes: true,
            seed: [n; 32],
            version: "test".into(),
            advertised: Vec::new(),
            pins: Vec::new(),
        },
        at(0),
    )
}

fn peer(n: u8) -> Peer {
    Peer {
        node_id: NodeId(n.into()),
        name: format!("node-{n}"),
        machine_key: machine(n).public(),
        node_key: Some(machine(n).sign_node_key(&node_key(n), 1)),
        addresses: vec![[10, 0, 0, n].into()],
        online: true,
        relays: vec![ONE, TWO],
        path: Paths::default(),
        endpoints: Vec::new(),
    }
}

fn config(n: u8, peers: &[u8]) -> Config {
    let relay = |id| Relay {
        id,
        name: format!("relay-{id}"),
        region: String::new(),
        data_url: Some(format!("wss://relay-{id}/ws/data")),
        more_urls: Vec::new(),
        tls_pin: None,
        stun: None,
    };
    Config {
        version: 10,
        memberships: vec![Joined {
            node_id: NodeId(n.into()),
            name: format!("node-{n}"),
            network: Network {
                id: NetworkId(1),
                name: "default".into(),
                subnet4: Some("10.0.0.0/24".parse().unwrap()),
                subnet6: None,
            },
            addresses: vec![IpNet::new([10, 0, 0, n].into(), 24).unwrap()],
            relay_token: "first".into(),
            relay_token_expires: 1_770_005_400,
            peers: peers.iter().map(|n| peer(*n)).collect(),
            routes: Vec::new(),
        }],
        relays: vec![relay(ONE), relay(TWO)],
        settings: Settings::default(),
    }
}

fn events(node: &mut Node) -> Vec<Event> {
    std::iter::from_fn(|| node.poll_event()).collect()
}

/// All frames that wait, with their relay.
fn frames(node: &mut Node) -> Vec<(RelayId, Vec<u8>)> {
    let mut all = Vec::new();
    let mut buffer = Vec::new();
    while let Some(target) = node.poll_transmit(&mut buffer) {
        let Target::Relay { relay, via: None } = target else { panic!("{target:?}") };
        all.extend(Frames::new(&buffer).map(|frame| (relay, frame.unwrap().bytes.to_vec())));
        buffer.clear();
    }
    all
}

fn tell(node: &mut Node, relay: RelayId, kind: FrameType, payload: &[u8], now: Now) {
    let mut frame = Vec::new();
    write_frame(kind, Flags::NONE, payload, &mut frame).unwrap();
    node.handle_relay_frame(relay, &mut frame, now);
}

fn fail(node: &mut Node, relay: RelayId, error: &ErrorMessage, now: Now) {
    tell(node, relay, FrameType::Error, &to_payload(error), now);
}

/// Connects a node to a relay and answers its sign-in.
fn connect(node: &mut Node, own: u8, relay: RelayId, now: Now) {
    node.relay_connected(relay, now);
    let answer = NodeAuthorised { node_id: NodeId(own.into()), relay_id: relay, expires: 0 };
    tell(node, relay, FrameType::AuthResponse, &to_payload(&AuthResponse::Relay(answer)), now);
}

/// Two nodes that know each other, on one relay, with nothing waiting.
fn pair(now: Now) -> [Node; 2] {
    [(1, 2), (2, 1)].map(|(own, other)| {
        let mut node = node(own);
        node.apply_config(config(own, &[other]), now);
        connect(&mut node, own, ONE, now);
        frames(&mut node);
        events(&mut node);
        node
    })
}

/// Carries frames between nodes to and fro until nothing moves; packets that came out.
fn carry(nodes: &mut [Node; 2], now: Now) -> Vec<(Vec<u8>, Checksum)> {
    let mut packets = Vec::new();
    loop {
        let mut moved = false;
        for from in 0..2 {
            for (relay, mut frame) in frames(&mut nodes[from]) {
                if frame[1] & 0xf0 == 0x10 {
                    moved = true;
                    let to = &mut nodes[1 - from];
                    if let Received::Packet { packet, checksum, .. } =
                        to.handle_relay_frame(relay, &mut frame, now)
                    {
                        packets.push((packet.to_vec(), checksum));
                    }
                }
            }
        }
        if !moved {
            return packets;
        }
    }
}

fn packet(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&to);
    packet.extend_from_slice(&[1, 2, 3, 4]);
    packet
}

fn send(node: &mut Node, packet: &[u8], checksum: Checksum, now: Now) -> (Outgoing, Vec<u8>) {
    let mut buffer = [&[0; DATA_HEADROOM], packet, &[0; TAG_LEN]].concat();
    let outgoing = node.handle_packet(&mut buffer, checksum, now);
    (outgoing, buffer)
}

#[test]
fn the_first_packet_waits_for_the_handshake_and_the_next_goes_out_in_place() {
    let mut nodes = pair(at(0));
    let first = packet([10, 0, 0, 1], [10, 0, 0, 2]);
    assert_eq!(send(&mut nodes[0], &first, Checksum::Partial, at(0)).0, Outgoing::Queued);
    assert_eq!(carry(&mut nodes, at(1)), [(first.clone(), Checksum::Partial)]);
    let (outgoing, mut buffer) = send(&mut nodes[0], &first, Checksum::Complete, at(2));
    assert_eq!(
        outgoing,
        Outgoing::Send { target: Target::Relay { relay: ONE, via: None }, frame: 0..first.len() + 41 }
    );
    let received = nodes[1].handle_relay_frame(ONE, &mut buffer, at(2));
    let Received::Packet { packet, checksum, from, to } = received else { panic!("{received:?}") };
    assert_eq!((&*packet, checksum, from, to), (&*first, Checksum::Complete, NodeId(1), NodeId(2)));
}

#[test]
fn what_a_peer_may_not_send_is_dropped_with_its_reason() {
    let mut nodes = pair(at(0));
    send(&mut nodes[0], &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, at(0));
    carry(&mut nodes, at(0));
    let mut arrive = |bytes: &[u8]| {
        let peer = nodes[0].directory.key_of(NodeId(2)).unwrap();
        let mut buffer = [&[0; DATA_HEADROOM], bytes, &[0; TAG_LEN]].concat();
        nodes[0].seal_for(peer, &mut buffer, Checksum::Complete, at(1)).unwrap().unwrap();
        match nodes[1].handle_relay_frame(ONE, &mut buffer, at(1)) {
            Received::Dropped(reason) => Some(reason),
            _ => None,
        }
    };
    assert_eq!(arrive(&packet([10, 0, 0, 1], [10, 0, 0, 2])), None);
    assert_eq!(arrive(&packet([10, 0, 0, 9], [10, 0, 0, 2])), Some(DropReason::SourceAddress));
    assert_eq!(arrive(&packet([10, 0, 0, 1], [192, 168, 0, 1])), Some(DropReason::DestinationAddress));
    assert_eq!(arrive(&[0x45; 10]), Some(DropReason::Malformed));
    assert_eq!(arrive(&[0x77; 30]), Some(DropReason::UnknownInner));
    assert_eq!(arrive(&[0x0f; 30]), Some(DropReason::UnknownInner));
    assert_eq!(arrive(&[0x01; 5]), Some(DropReason::Malformed));
}

#[test]
fn ip_packets_are_counted_and_echoes_are_not() {
    let mut nodes = pair(at(0));
    nodes[0].echo(NodeId(2), 1, 100, at(0)).unwrap(); // waits for the handshake
    carry(&mut nodes, at(0));
    nodes[1].echo(NodeId(1), 2, 100, at(1)).unwrap();
    carry(&mut nodes, at(1));
    let replies = |node: &mut Node| {
        events(node).iter().filter(|event| matches!(event, Event::EchoReply { .. })).count()
    };
    assert_eq!(nodes.each_mut().map(replies), [1, 1]);
    let traffic = |node: &Node, other: u32| {
        let traffic = node.directory.get(node.directory.key_of(NodeId(other)).unwrap()).unwrap().traffic;
        (traffic.tx_packets, traffic.tx_bytes, traffic.rx_packets, traffic.rx_bytes)
    };
    assert_eq!([traffic(&nodes[0], 2), traffic(&nodes[1], 1)], [(0, 0, 0, 0); 2]);
    let bytes = packet([10, 0, 0, 1], [10, 0, 0, 2]);
    let (_, mut buffer) = send(&mut nodes[0], &bytes, Checksum::Complete, at(2));
    nodes[1].handle_relay_frame(ONE, &mut buffer, at(2));
    assert_eq!([traffic(&nodes[0], 2), traffic(&nodes[1], 1)], [(1, 24, 0, 0), (0, 0, 1, 24)]);
}

#[test]
fn waiting_packets_are_bounded_and_the_oldest_go() {
    let mut nodes = pair(at(0));
    let bytes = packet([10, 0, 0, 1], [10, 0, 0, 2]);
    for _ in 0..200 {
        send(&mut nodes[0], &bytes, Checksum::Complete, at(0));
    }
    assert_eq!(nodes[0].drops.of(DropReason::HandshakeQueue), 72);
    assert_eq!(carry(&mut nodes, at(1)).len(), 128);
    assert_eq!(nodes[0].queued_bytes, 0);
}

#[test]
fn attempts_are_made_each_second_for_half_a_minute() {
    let mut nodes = pair(at(0));
    send(&mut nodes[0], &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, at(0));
    let mut inits = Vec::new();
    for ms in 0..120_000 {
        nodes[0].handle_timeout(at(ms));
        for (_, frame) in frames(&mut nodes[0]) {
            match frame[1] {
                0x11 => inits.push(ms),
                0x20 => tell(&mut nodes[0], ONE, FrameType::Pong, &frame[HEADER_LEN..], at(ms)),
                _ => {}
            }
        }
    }
    assert!((23..=31).contains(&inits.len()), "{} attempts", inits.len());
    assert!(inits.windows(2).all(|pair| (1000..=1300).contains(&(pair[1] - pair[0]))), "{inits:?}");
    assert!(*inits.last().unwrap() <= 30_000);
    assert_eq!(nodes[0].directory.session_count(), 0);
    assert_eq!(nodes[0].drops.of(DropReason::HandshakeQueue), 1);
}

#[test]
fn a_delta_fits_its_version_or_asks_for_everything() {
    let mut node = node(1);
    let update = |base, version| ConfigUpdate {
        version,
        base,
        changes: vec![Change::PeerSet { node_id: NodeId(1), peer: Box::new(peer(3)) }],
    };
    assert_eq!(node.apply_update(update(0, 1), at(0)), Err(NeedResync { have: 0, base: 0 }));
    node.apply_config(config(1, &[2]), at(0));
    assert_eq!(node.apply_update(update(9, 11), at(0)), Err(NeedResync { have: 10, base: 9 }));
    assert_eq!(node.config().unwrap().memberships[0].peers.len(), 1);
    assert_eq!(node.apply_update(update(10, 11), at(0)), Ok(()));
    assert_eq!((node.version(), node.config().unwrap().memberships[0].peers.len()), (11, 2));
    assert_eq!(node.apply_update(update(5, 5), at(0)), Ok(()), "what is not versioned fits always");
    assert_eq!(node.version(), 11);
}

#[test]
fn a_configuration_applied_twice_changes_nothing() {
    let mut nodes = pair(at(0));
    send(&mut nodes[0], &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, at(0));
    carry(&mut nodes, at(0));
    events(&mut nodes[0]);
    let sessions = nodes[0].directory.session_count();
    nodes[0].apply_config(config(1, &[2]), at(1));
    assert_eq!(events(&mut nodes[0]), []);
    assert_eq!(nodes[0].directory.session_count(), sessions);
    assert_eq!(frames(&mut nodes[0]), []);
}

#[test]
fn leaving_a_network_leaves_nothing_behind() {
    let mut nodes = pair(at(0));
    send(&mut nodes[0], &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, at(0));
    carry(&mut nodes, at(0));
    events(&mut nodes[0]);
    let change = Change::MembershipRemove { node_id: NodeId(1), reason: "revoked".into() };
    nodes[0].apply_update(ConfigUpdate { version: 11, base: 10, changes: vec![change] }, at(1)).unwrap();
    let removed = events(&mut nodes[0]);
    assert!(
        matches!(&removed[..], [Event::MembershipRemoved { name, .. }] if name == "default"),
        "{removed:?}"
    );
    assert_eq!(nodes[0].directory.session_count(), 0);
    let outgoing = send(&mut nodes[0], &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, at(1)).0;
    assert_eq!(outgoing, Outgoing::Dropped(DropReason::NoRoute));
}

#[test]
fn routes_are_told_as_a_whole_when_they_change() {
    let mut node = node(1);
    node.apply_config(config(1, &[2]), at(0));
    events(&mut node);
    let lan: IpNet = "192.168.1.0/24".parse().unwrap();
    let route = |enabled| Route {
        id: crate::proto::id::RouteId(3),
        node_id: NodeId(2),
        cidr: lan,
        priority: 100,
        weight: 100,
        enabled,
    };
    let mut set = |enabled| {
        let change = Change::RouteSet { node_id: NodeId(1), route: route(enabled) };
        let version = node.version();
        node.apply_update(ConfigUpdate { version: version + 1, base: version, changes: vec![change] }, at(0))
            .unwrap();
        events(&mut node)
    };
    let route = SubnetRoute { net: lan, own: NodeId(1) };
    assert_eq!(set(true), [Event::RoutesChanged { routes: vec![route] }]);
    assert_eq!(set(true), []);
    assert_eq!(set(false), [Event::RoutesChanged { routes: vec![] }]);
}

#[test]
fn a_refused_token_is_not_shown_again_until_there_is_a_new_one() {
    let mut node = node(1);
    node.apply_config(config(1, &[2]), at(0));
    connect(&mut node, 1, ONE, at(0));
    events(&mut node);
    let error = ErrorMessage::new(ErrorCode::TokenExpired);
    fail(&mut node, ONE, &error, at(10));
    assert!(events(&mut node).contains(&Event::NeedTokens));
    node.relay_closed(ONE, at(11));
    frames(&mut node);
    for ms in 11..10_000 {
        node.handle_timeout(at(ms));
    }
    let dials = |events: Vec<Event>| {
        events.iter().filter(|event| matches!(event, Event::DialRelay { relay } if relay.id == ONE)).count()
    };
    assert_eq!(dials(events(&mut node)), 0);
    let token = Change::TokenSet {
        node_id: NodeId(1),
        relay_token: "second".into(),
        relay_token_expires: 1_770_010_000,
    };
    node.apply_update(ConfigUpdate { version: 10, base: 10, changes: vec![token] }, at(10_000)).unwrap();
    assert_eq!(dials(events(&mut node)), 1);
    node.relay_connected(ONE, at(10_100));
    let (_, auth) = frames(&mut node).into_iter().find(|(_, frame)| frame[1] == 0x01).unwrap();
    let auth: AuthRequest = parse(FrameType::AuthRequest, &auth[HEADER_LEN..]).unwrap();
    assert!(matches!(auth, AuthRequest::Relay(auth) if auth.token.reveal() == "second"));
}

#[test]
fn refusals_of_nodes_that_we_are_not_leave_no_trace() {
    let mut node = node(1);
    node.apply_config(config(1, &[2]), at(0));
    connect(&mut node, 1, ONE, at(0));
    events(&mut node);
    for id in 2..1000 {
        let error = ErrorMessage { node: Some(NodeId(id)), ..ErrorMessage::new(ErrorCode::TokenRevoked) };
        fail(&mut node, ONE, &error, at(10));
    }
    let connection = &node.relays[&ONE];
    assert!(connection.refused.is_empty() && connection.error.is_none());
    assert!(connection.opened().unwrap().ready.contains(&NodeId(1)));
    assert_eq!(events(&mut node), []);
    let error = ErrorMessage { node: Some(NodeId(1)), ..ErrorMessage::new(ErrorCode::TokenRevoked) };
    fail(&mut node, ONE, &error, at(11));
    assert!(node.relays[&ONE].refused.keys().eq([&NodeId(1)]));
}

#[test]
fn tokens_are_asked_for_a_quarter_of_an_hour_before_they_run_out() {
    let mut node = node(1);
    node.apply_config(config(1, &[2]), at(0));
    events(&mut node);
    let asked = |node: &mut Node| events(node).iter().filter(|event| **event == Event::NeedTokens).count();
    node.handle_timeout(at((5400 - 901) * 1000));
    assert_eq!(asked(&mut node), 0);
    node.handle_timeout(at((5400 - 900) * 1000));
    assert_eq!(asked(&mut node), 1);
    node.handle_timeout(at((5400 - 870) * 1000));
    assert_eq!(asked(&mut node), 1, "again until they have come");
}

#[test]
fn a_relay_that_cannot_reach_the_peer_or_is_going_is_left_for_another() {
    let mut nodes = pair(at(0));
    connect(&mut nodes[0], 1, TWO, at(0));
    let path = |node: &Node| node.status(at(0).instant).peers[0].path.clone();
    let before = path(&nodes[0])[0];
    let other = if before == ONE { TWO } else { ONE };
    let offline = ErrorMessage::new(ErrorCode::DestinationOffline).about(NodeId(2));
    fail(&mut nodes[0], before, &offline, at(1));
    assert_eq!(path(&nodes[0]), [other]);
    let drain = GoAway { reason: "drain".into(), grace_ms: 1000 };
    nodes[0].handle_timeout(at(6000));
    tell(&mut nodes[0], other, FrameType::GoAway, &to_payload(&drain), at(6001));
    assert_eq!(path(&nodes[0]), [before]);
}

#[test]
fn a_path_by_way_of_a_relay_that_is_going_is_left_too() {
    let mut node = node(1);
    let mut config = config(1, &[2]);
    config.memberships[0].peers[0].path = Paths { best: Some(vec![TWO, ONE]), ..Paths::default() };
    node.apply_config(config, at(0));
    connect(&mut node, 1, ONE, at(0));
    connect(&mut node, 1, TWO, at(0));
    let path = |node: &Node| node.status(at(0).instant).peers[0].path.clone();
    // The first connection was all there was; what the controller thinks best is taken when that was held for a while.
    node.handle_timeout(at(11_000));
    connect(&mut node, 1, ONE, at(11_001));
    connect(&mut node, 1, TWO, at(11_002));
    assert_eq!(path(&node), [TWO, ONE]);
    let drain = GoAway { reason: "drain".into(), grace_ms: 1000 };
    tell(&mut node, ONE, FrameType::GoAway, &to_payload(&drain), at(11_003));
    assert_eq!(path(&node), [TWO]);
}

#[test]
fn a_node_that_was_replaced_does_not_come_back_at_once() {
    let mut nodes = pair(at(0));
    let replaced = GoAway { reason: "replaced".into(), grace_ms: 0 };
    tell(&mut nodes[0], ONE, FrameType::GoAway, &to_payload(&replaced), at(1));
    assert!(events(&mut nodes[0]).iter().any(|event| matches!(event, Event::DropRelay { id: ONE, .. })));
    nodes[0].handle_timeout(at(4000));
    assert_eq!(events(&mut nodes[0]), []);
}

#[test]
fn a_relay_that_breaks_the_protocol_is_dropped_and_dialled_again() {
    for bytes in [&[2, 0x10, 0, 0, 0][..], &[1, 0x10, 0, 0, 9], &[1, 0x03, 0, 0, 0], &[1, 0xff, 0, 0, 0]] {
        let mut nodes = pair(at(0));
        let mut bytes = bytes.to_vec();
        let received = nodes[0].handle_relay_frame(ONE, &mut bytes, at(1));
        assert_eq!(received, Received::Dropped(DropReason::Malformed));
        nodes[0].handle_timeout(at(500));
        let events = events(&mut nodes[0]);
        assert!(events.iter().any(|event| matches!(event, Event::DropRelay { id: ONE, .. })));
        assert!(events.iter().any(|event| matches!(event, Event::DialRelay { relay } if relay.id == ONE)));
    }
}

#[test]
fn an_index_that_was_not_handed_out_asks_for_a_session_at_most_once_a_second() {
    let mut nodes = pair(at(0));
    let mut frame = vec![1, 0x10, 0, 0, 36, 0, 0, 0, 2, 0, 0, 0, 1];
    frame.resize(41, 7);
    for ms in 0..1500 {
        let mut frame = frame.clone();
        let received = nodes[0].handle_relay_frame(ONE, &mut frame, at(ms));
        assert_eq!(received, Received::Dropped(DropReason::UnknownSession));
    }
    let inits = frames(&mut nodes[0]).iter().filter(|(_, frame)| frame[1] == 0x11).count();
    assert_eq!(inits, 1);
}
