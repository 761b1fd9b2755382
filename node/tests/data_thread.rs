//! Two data threads with TUN devices in memory, and a small relay between them, all on real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use meshdp::engine::Prefer;
use meshdp::engine::dial::Outbound;
use meshdp::engine::node::{Command, Endpoints, Handle, Options, Report, spawn};
use meshdp::engine::tls::Roots;
use meshdp::packet::offload::vnet::{Gso, GsoKind, PartialChecksum};
use meshdp::packet::offload::{Fill, Format, VNET_LEN, VnetHeader};
use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::node::{Event, NodeSettings, NodeStatus};
use meshdp::proto::wire::control::node::{Config, Membership, Network, Paths, Peer, Relay, Settings};
use meshdp::proto::wire::frame::FrameType;
use meshdp::tun::Tun as _;
use meshdp::tun::memory::{self, End};

use support::TestRelay;

/// Everything in these tests takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// A node without a network interface.
struct TestNode {
    id: u32,
    handle: Handle,
    reports: Receiver<Report>,
    tun: End,
}

impl TestNode {
    fn start(id: u32, config: Option<Config>, driver: Prefer) -> Self {
        Self::start_with(id, config, driver, Format::Plain)
    }

    fn start_with(id: u32, config: Option<Config>, driver: Prefer, format: Format) -> Self {
        let (inside, outside) = memory::pair_of(format).unwrap();
        let (out, reports) = channel();
        let options = Options {
            node: NodeSettings {
                machine: machine(id),
                node_key: node_key(id),
                node_key_created: 1_770_000_000,
                previous_node_key: None,
                aes: true,
                seed: [id as u8; 32],
                version: "test".to_owned(),
                advertised: Vec::new(),
                pins: Vec::new(),
            },
            config,
            driver,
            outbound: Outbound { roots: Roots::None, ..Outbound::default() },
        };
        let handle = spawn(options, Some(inside), move |report| drop(out.send(report))).unwrap();
        Self { id, handle, reports, tun: outside }
    }

    /// The first report that `pick` takes.
    fn wait<T>(&self, mut pick: impl FnMut(Report) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let report = self
                .reports
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("node {}: nothing of the kind came", self.id));
            if let Some(found) = pick(report) {
                return found;
            }
        }
    }

    fn wait_ready(&self, relay: u16) {
        self.wait(|report| {
            matches!(report, Report::Node(Event::RelayState { relay: id, ready: true }) if id == RelayId(relay)).then_some(())
        });
    }

    fn status(&self) -> NodeStatus {
        self.handle.send(Command::Status { id: 1 }).unwrap();
        self.wait(|report| match report {
            Report::Status { status, .. } => Some(*status),
            _ => None,
        })
    }

    fn send(&mut self, packet: &[u8]) {
        assert_eq!(self.tun.write_batch(&[packet]).unwrap(), 1);
    }

    /// Packets that come out of this node's TUN device until `enough` says so.
    fn receive(&mut self, enough: impl Fn(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
        let end = Instant::now() + LIMIT;
        let mut packets = Vec::new();
        while !enough(&packets) {
            assert!(Instant::now() < end, "node {}: only {} packets came", self.id, packets.len());
            if self.tun.read_batch(64, &mut |packet| packets.push(packet.to_vec())).unwrap() == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        packets
    }
}

fn machine(id: u32) -> MachineKey {
    MachineKey::from_seed(&[id as u8; 32]).unwrap()
}

fn node_key(id: u32) -> NodeKey {
    static KEM: LazyLock<KemKey> = LazyLock::new(|| KemKey::generate().unwrap());
    NodeKey::from_private([100 + id as u8; 32]).unwrap().with_kem(KEM.clone())
}

fn address(id: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, id as u8)
}

fn config(own: u32, other: u32, relays: &[&TestRelay]) -> Config {
    let ids: Vec<RelayId> = relays.iter().map(|relay| RelayId(relay.id)).collect();
    Config {
        version: 1,
        memberships: vec![Membership {
            node_id: NodeId(own),
            name: format!("node-{own}"),
            network: Network {
                id: NetworkId(1),
                name: "default".to_owned(),
                subnet4: Some("10.0.1.0/24".parse().unwrap()),
                subnet6: None,
            },
            addresses: vec![format!("{}/24", address(own)).parse().unwrap()],
            relay_token: own.to_string().into(),
            relay_token_expires: 4_000_000_000,
            peers: vec![Peer {
                node_id: NodeId(other),
                name: format!("node-{other}"),
                machine_key: machine(other).public(),
                node_key: Some(machine(other).sign_node_key(&node_key(other), 1_770_000_000)),
                addresses: vec![address(other).into()],
                online: true,
                relays: ids.clone(),
                path: Paths { best: ids.first().map(|&id| vec![id]), second: None },
                endpoints: Vec::new(),
            }],
            routes: Vec::new(),
        }],
        relays: relays.iter().map(|relay| relay.entry()).collect(),
        settings: Settings::default(),
    }
}

/// An IPv4 UDP packet without checksum.
fn packet(from: u32, to: u32, payload: &[u8]) -> Vec<u8> {
    let length = (28 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&address(from).octets());
    packet.extend_from_slice(&address(to).octets());
    let udp = length - 20;
    packet.extend_from_slice(&[0x30, 0x39, 0x30, 0x39, (udp >> 8) as u8, udp as u8, 0, 0]);
    packet.extend_from_slice(payload);
    packet
}

fn both_drivers(test: impl Fn(Prefer)) {
    test(Prefer::Epoll);
    match meshdp::engine::open(Prefer::Uring) {
        Ok(_) => test(Prefer::Uring),
        Err(error) => println!("SKIPPED with io_uring: {error}"),
    }
}

#[test]
fn packets_echoes_and_nothing_readable_go_over_the_relay() {
    both_drivers(|driver| {
        let relay = TestRelay::start(1);
        let mut one = TestNode::start(1, Some(config(1, 2, &[&relay])), driver);
        let mut two = TestNode::start(2, Some(config(2, 1, &[&relay])), driver);
        one.wait_ready(1);
        two.wait_ready(1);

        let secret = b"the quick brown fox jumps over the lazy dog";
        one.send(&packet(1, 2, secret));
        assert_eq!(two.receive(|packets| !packets.is_empty()), [packet(1, 2, secret)]);
        two.send(&packet(2, 1, secret));
        assert_eq!(one.receive(|packets| !packets.is_empty()), [packet(2, 1, secret)]);
        assert!(!relay.has_seen(secret) && relay.has_seen(b"\"kind\":\"relay\""));

        let many: Vec<Vec<u8>> =
            (0..100u32).map(|n| packet(1, 2, &[&n.to_be_bytes()[..], &[7; 1300]].concat())).collect();
        // The queue of a socket pair may hold as few as ten.
        for burst in many.chunks(5) {
            for packet in burst {
                one.send(packet);
            }
            assert_eq!(two.receive(|packets| packets.len() >= burst.len()), burst);
        }

        one.handle.send(Command::Echo { to: NodeId(2), id: 77, size: 64 }).unwrap();
        let rtt = one.wait(|report| match report {
            Report::Node(Event::EchoReply { id: 77, rtt, .. }) => Some(rtt),
            _ => None,
        });
        assert!(rtt < Duration::from_secs(1));
        let status = one.status();
        assert_eq!(status.peers[0].session, "established");
        assert_eq!(two.status().peers[0].rx_packets, 101);
        assert_eq!(status.relays[0].state, "ready");
        one.handle.stop();
        two.handle.stop();
    });
}

/// TCP segments of `size` bytes each in one, as a kernel hands them over.
fn segments(from: u32, to: u32, size: u16, payload: &[u8]) -> Vec<u8> {
    let length = (40 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 9, 0x40, 0, 64, 6, 0, 0];
    packet.extend_from_slice(&address(from).octets());
    packet.extend_from_slice(&address(to).octets());
    let header_sum = !sum(&packet);
    packet[10..12].copy_from_slice(&header_sum.to_be_bytes());
    let segment = (length - 20).to_be_bytes();
    let pseudo = sum(&[&packet[12..20], &[0, 6], &segment].concat());
    packet.extend_from_slice(&[0x30, 0x39, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0]);
    packet.extend_from_slice(&pseudo.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let header = VnetHeader {
        checksum: Some(PartialChecksum { start: 20, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::TcpV4, size: size.try_into().unwrap(), ecn: false }),
        header_len: 40,
    };
    [&header.to_bytes()[..], &packet].concat()
}

/// The one's complement sum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}

#[test]
fn segments_in_one_arrive_whole_with_and_without_offloads_at_the_other_end() {
    both_drivers(|driver| {
        for format in [Format::Vnet { uso: true }, Format::Plain] {
            let relay = TestRelay::start(1);
            let offloads = Format::Vnet { uso: true };
            let mut one = TestNode::start_with(1, Some(config(1, 2, &[&relay])), driver, offloads);
            let mut two = TestNode::start_with(2, Some(config(2, 1, &[&relay])), driver, format);
            one.wait_ready(1);
            two.wait_ready(1);
            // Without anything to do for the device; it makes the session too.
            one.send(&[&[0; VNET_LEN][..], &packet(1, 2, b"first")].concat());
            let first = two.receive(|reads| !reads.is_empty());
            assert_eq!(first[0][format.header_len()..], packet(1, 2, b"first"));

            let payload: Vec<u8> = (0..20_500u32).map(|n| ((n * 7) >> 4) as u8).collect();
            one.send(&segments(1, 2, 1000, &payload));
            let count = |reads: &[Vec<u8>]| -> usize {
                reads.iter().map(|read| format.read(read).unwrap().count()).sum()
            };
            let reads = two.receive(|reads| count(reads) >= 21);
            let mut arrived = Vec::new();
            for read in &reads {
                let whole = format.read(read).unwrap();
                for index in 0..whole.count() {
                    let mut packet = vec![0; whole.len_of(index)];
                    whole.write(index, Fill::Complete, &mut packet);
                    let length = ((packet.len() - 20) as u16).to_be_bytes();
                    let pseudo = [&packet[12..20], &[0, 6], &length].concat();
                    assert_eq!(sum(&[&pseudo, &packet[20..]].concat()), 0xFFFF, "its checksum is right");
                    assert_eq!(packet[24..28], (1 + arrived.len() as u32).to_be_bytes(), "in sequence");
                    arrived.extend_from_slice(&packet[40..]);
                }
            }
            assert!(arrived == payload);
            assert_eq!(two.status().peers[0].rx_packets, 22, "each was a packet on its way");

            // What cannot be is dropped and counted.
            one.send(&[1, 77, 0, 0, 0, 0, 0, 0, 0, 0, 0x45]);
            one.send(&segments(1, 2, 1000, &payload)[..2000]);
            let end = Instant::now() + LIMIT;
            while one.status().drops.get("malformed") != Some(&2) {
                assert!(Instant::now() < end, "{:?}", one.status().drops);
            }
        }
    });
}

#[test]
fn packets_take_the_direct_path_once_there_is_one_and_the_relay_when_it_is_taken_away() {
    both_drivers(|driver| {
        let relay = TestRelay::start(1);
        let mut one = TestNode::start(1, Some(config(1, 2, &[&relay])), driver);
        let mut two = TestNode::start(2, Some(config(2, 1, &[&relay])), driver);
        for (node, last) in [(&one, 11), (&two, 12)] {
            let address = Ipv4Addr::new(127, 0, 0, last);
            node.handle
                .send(Command::Endpoints(Endpoints {
                    bind4: Some((address, 0).into()),
                    addresses: vec![format!("{address}/8").parse().unwrap()],
                    ..Endpoints::default()
                }))
                .unwrap();
            node.wait_ready(1);
        }
        one.send(&packet(1, 2, b"over the relay"));
        two.receive(|packets| !packets.is_empty());
        let direct = |wanted: bool| {
            move |report| match report {
                Report::Node(Event::DirectChanged { address, .. }) => {
                    (address.is_some() == wanted).then_some(())
                }
                _ => None,
            }
        };
        one.wait(direct(true));
        two.wait(direct(true));
        let many: Vec<_> =
            (0..100u32).map(|n| packet(1, 2, &[&n.to_be_bytes()[..], &[7; 1300]].concat())).collect();
        for burst in many.chunks(5) {
            for packet in burst {
                one.send(packet);
            }
            assert_eq!(two.receive(|packets| packets.len() >= burst.len()), burst);
        }
        let peer = &one.status().peers[0];
        assert_eq!(peer.direct.map(|address| address.ip()), Some(Ipv4Addr::new(127, 0, 0, 12).into()));
        assert_eq!(peer.direct_kind, Some(meshdp::proto::path::candidate::Kind::Lan));

        one.handle.send(Command::Endpoints(Endpoints::default())).unwrap();
        one.wait(direct(false));
        one.send(&packet(1, 2, b"over the relay again"));
        two.receive(|packets| packets.contains(&packet(1, 2, b"over the relay again")));
    });
}

#[test]
fn a_packet_that_came_before_the_session_arrives_after_it() {
    let relay = TestRelay::start(1);
    let mut one = TestNode::start(1, Some(config(1, 2, &[&relay])), Prefer::Epoll);
    one.wait_ready(1);
    one.send(&packet(1, 2, b"early"));
    let mut two = TestNode::start(2, Some(config(2, 1, &[&relay])), Prefer::Epoll);
    assert_eq!(two.receive(|packets| !packets.is_empty()), [packet(1, 2, b"early")]);
}

#[test]
fn the_other_relay_takes_over_when_one_is_gone() {
    let first = TestRelay::start(1);
    let second = TestRelay::start(2);
    let mut one = TestNode::start(1, Some(config(1, 2, &[&first, &second])), Prefer::Epoll);
    let mut two = TestNode::start(2, Some(config(2, 1, &[&first, &second])), Prefer::Epoll);
    for node in [&one, &two] {
        let mut ready = 0;
        node.wait(|report| {
            ready += u32::from(matches!(report, Report::Node(Event::RelayState { ready: true, .. })));
            (ready == 2).then_some(())
        });
    }
    one.send(&packet(1, 2, b"before"));
    two.receive(|packets| !packets.is_empty());
    drop(first);
    let failed = one.wait(|report| match report {
        Report::RelayFailed { relay, .. } => Some(relay),
        _ => None,
    });
    assert_eq!(failed, "relay-1");
    one.send(&packet(1, 2, b"after"));
    assert_eq!(two.receive(|packets| !packets.is_empty()), [packet(1, 2, b"after")]);
    assert!(second.has_seen(&[FrameType::Data as u8]));
}

#[test]
fn a_relay_that_cannot_be_reached_is_reported_and_disturbs_nobody() {
    let relay = TestRelay::start(1);
    let mut config = config(1, 2, &[&relay]);
    for (id, url) in
        [(2, "wss://127.0.0.1:1/ws/data"), (3, "http://nonsense"), (4, "wss://no-such-host.invalid/ws/data")]
    {
        config.relays.push(Relay {
            id: RelayId(id),
            name: format!("relay-{id}"),
            data_url: Some(url.to_owned()),
            more_urls: Vec::new(),
            ..relay.entry()
        });
    }
    let node = TestNode::start(1, Some(config), Prefer::Epoll);
    let (mut failed, mut ready) = (std::collections::BTreeSet::new(), false);
    node.wait(|report| {
        match report {
            Report::RelayFailed { relay, .. } => drop(failed.insert(relay)),
            Report::Node(Event::RelayState { relay: RelayId(1), ready: true }) => ready = true,
            _ => {}
        }
        (failed.len() == 3 && ready).then_some(())
    });
}

#[test]
fn commands_are_answered_without_a_configuration_and_stopping_is_prompt() {
    let node = TestNode::start(1, None, Prefer::Epoll);
    assert_eq!(node.status().config_version, 0);
    node.handle.send(Command::Echo { to: NodeId(9), id: 5, size: 64 }).unwrap();
    node.wait(|report| matches!(report, Report::EchoRefused { id: 5, .. }).then_some(()));
    node.handle.send(Command::Snapshot).unwrap();
    node.wait(|report| matches!(report, Report::Snapshot { config: None, .. }).then_some(()));
    let begun = Instant::now();
    node.handle.stop();
    assert!(begun.elapsed() < Duration::from_secs(2));
    let last = node.reports.try_iter().last();
    assert!(matches!(last, Some(Report::Stopped(None))), "{last:?}");
}

#[test]
fn dropping_the_handle_ends_the_thread() {
    let node = TestNode::start(1, None, Prefer::Epoll);
    drop(node.handle);
    let last = std::iter::from_fn(|| node.reports.recv_timeout(LIMIT).ok()).last();
    assert!(matches!(last, Some(Report::Stopped(None))), "{last:?}");
}
