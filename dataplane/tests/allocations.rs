//! The hot paths allocate nothing: a node that seals and opens packets, super-packets that are cut and put together, a relay that says where frames go, and its queues when a receiver is behind.
//!
//! Allocations are counted by thread, so that the test harness and the other test do not disturb.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its machines has failed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use meshdp::packet::offload::vnet::{Gso, GsoKind, PartialChecksum};
use meshdp::packet::offload::{Coalescer, Fill, Format, VnetHeader};
use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::drop_reason::DropReason;
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::node::{Checksum, Node, NodeSettings, Outgoing, Received, Target};
use meshdp::proto::path::direct::{Place, SocketId};
use meshdp::proto::relay::queue::{Backlog, Queue, QueuePolicy, Queues};
use meshdp::proto::relay::worker::{Purpose, Worker};
use meshdp::proto::relay::{ConnId, Limits, ToWorker, Verdict, WorkerId};
use meshdp::proto::time::{Instant, Now, UnixTime};
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{RelaySubject, Token, TokenVerifier};
use meshdp::proto::wire::control::node::{Config, Membership, Network, Paths, Peer, Relay, Settings};
use meshdp::proto::wire::control::server::{NodeAuthorised, TokenAlgorithm, TokenAuth, TokenKeys};
use meshdp::proto::wire::control::{AuthRequest, AuthResponse, to_payload};
use meshdp::proto::wire::data::{DATA_HEADROOM, Route, TAG_LEN};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // Fails only while the thread ends.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local cell that never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `pointer` came from the system's allocator with `layout`, because all of ours do.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and reallocations of this thread while `work` ran.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

const T: u64 = 1_770_000_000;
const RELAY: RelayId = RelayId(1);

fn at(ms: u64) -> Now {
    let passed = Duration::from_millis(ms);
    Now { instant: Instant::ZERO + passed, unix: UnixTime::from_secs(T) + passed }
}

fn machine(n: u8) -> MachineKey {
    MachineKey::from_seed(&[n; 32]).unwrap()
}

fn node_key(n: u8) -> NodeKey {
    static KEM: LazyLock<KemKey> = LazyLock::new(|| KemKey::generate().unwrap());
    NodeKey::from_private([n; 32]).unwrap().with_kem(KEM.clone())
}

fn config(own: u8, other: u8) -> Config {
    let peer = Peer {
        node_id: NodeId(other.into()),
        name: "other".into(),
        machine_key: machine(other).public(),
        node_key: Some(machine(other).sign_node_key(&node_key(other), 1)),
        addresses: vec![[10, 0, 0, other].into()],
        online: true,
        relays: vec![RELAY],
        path: Paths::default(),
        endpoints: Vec::new(),
    };
    let membership = Membership {
        node_id: NodeId(own.into()),
        name: "own".into(),
        network: Network {
            id: NetworkId(1),
            name: "default".into(),
            subnet4: Some("10.0.0.0/24".parse().unwrap()),
            subnet6: None,
        },
        addresses: vec![format!("10.0.0.{own}/24").parse().unwrap()],
        relay_token: "token".into(),
        relay_token_expires: T + 5400,
        peers: vec![peer],
        routes: Vec::new(),
    };
    let relay = Relay {
        id: RELAY,
        name: "relay".into(),
        region: String::new(),
        data_url: Some("wss://relay/ws/data".into()),
        more_urls: Vec::new(),
        tls_pin: None,
        stun: None,
    };
    Config { version: 1, memberships: vec![membership], relays: vec![relay], settings: Settings::default() }
}

/// A node that is signed in at the relay.
fn node(own: u8, other: u8, aes: bool) -> Node {
    let settings = NodeSettings {
        machine: machine(own),
        node_key: node_key(own),
        node_key_created: 1,
        previous_node_key: None,
        aes,
        seed: [own; 32],
        version: String::new(),
        advertised: Vec::new(),
        pins: Vec::new(),
    };
    let mut node = Node::new(settings, at(0));
    node.apply_config(config(own, other), at(0));
    node.relay_connected(RELAY, at(0));
    let answer = NodeAuthorised { node_id: NodeId(own.into()), relay_id: RELAY, expires: T + 5400 };
    let mut frame = Vec::new();
    let payload = to_payload(&AuthResponse::Relay(answer));
    write_frame(FrameType::AuthResponse, Flags::NONE, &payload, &mut frame).unwrap();
    node.handle_relay_frame(RELAY, &mut frame, at(0));
    node
}

/// Carries what waits on either side to the other until nothing does.
fn carry(nodes: &mut [Node; 2], now: Now) {
    let mut buffer = Vec::new();
    let mut moved = true;
    while std::mem::take(&mut moved) {
        for from in 0..2 {
            while nodes[from].poll_transmit(&mut buffer).is_some() {
                let frames: Vec<_> =
                    Frames::new(&buffer).map(|frame| frame.unwrap().bytes.to_vec()).collect();
                buffer.clear();
                for mut frame in frames {
                    if FrameType::Data as u8 & 0xf0 == frame[1] & 0xf0 {
                        moved = true;
                        nodes[1 - from].handle_relay_frame(RELAY, &mut frame, now);
                    }
                }
            }
        }
    }
}

/// One packet there and one back, in the buffer they lie in.
fn there_and_back(nodes: &mut [Node; 2], buffers: &mut [Vec<u8>; 2], now: Now) {
    for from in 0..2 {
        let buffer = &mut buffers[from];
        let packet = &mut buffer[DATA_HEADROOM..];
        packet[..12].copy_from_slice(&[0x45, 0, 0x05, 0x14, 0, 0, 0, 0, 64, 17, 0, 0]);
        packet[12..16].copy_from_slice(&[10, 0, 0, from as u8 + 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2 - from as u8]);
        let outgoing = nodes[from].handle_packet(buffer, Checksum::Complete, now);
        let Outgoing::Send { target: Target::Relay { relay: RELAY, via: None }, frame } = outgoing else {
            panic!("{outgoing:?}")
        };
        let received = nodes[1 - from].handle_relay_frame(RELAY, &mut buffer[frame], now);
        assert!(matches!(received, Received::Packet { .. }), "{received:?}");
    }
}

#[test]
fn allocations_are_counted() {
    let mut text = std::hint::black_box(Vec::with_capacity(1));
    assert_eq!(allocations(|| text.extend_from_slice(&[1; 100])), 1, "one that grows");
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(text.len())))), 1, "and a new one");
}

#[test]
fn a_node_seals_and_opens_without_allocating() {
    for aes in [false, true] {
        let mut nodes = [node(1, 2, aes), node(2, 1, aes)];
        let mut buffers = [(); 2].map(|()| vec![0; DATA_HEADROOM + 1300 + TAG_LEN]);
        let mut first = vec![0; DATA_HEADROOM + 20 + TAG_LEN];
        first[DATA_HEADROOM..DATA_HEADROOM + 20]
            .copy_from_slice(&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(nodes[0].handle_packet(&mut first, Checksum::Complete, at(1)), Outgoing::Queued);
        carry(&mut nodes, at(1));
        for _ in 0..10 {
            there_and_back(&mut nodes, &mut buffers, at(2));
        }
        let allocated = allocations(|| {
            for ms in 0..1000 {
                there_and_back(&mut nodes, &mut buffers, at(3 + ms));
            }
        });
        assert_eq!(allocated, 0, "with AES: {aes}");
    }
}

#[test]
fn datagrams_of_strangers_cost_look_ups_and_neither_memory_nor_an_answer() {
    let mut nodes = [node(1, 2, true), node(2, 1, true)];
    let mut first = vec![0; DATA_HEADROOM + 20 + TAG_LEN];
    first[DATA_HEADROOM..DATA_HEADROOM + 20]
        .copy_from_slice(&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    assert_eq!(nodes[0].handle_packet(&mut first, Checksum::Complete, at(1)), Outgoing::Queued);
    // A genuine SESSION_INIT, overheard; no key operation comes without memory of its own.
    let mut waiting = Vec::new();
    while nodes[0].poll_transmit(&mut waiting).is_some() {}
    let overheard = Frames::new(&waiting).map(|frame| frame.unwrap().bytes.to_vec());
    let overheard = overheard.into_iter().find(|frame| frame[1] == FrameType::SessionInit as u8).unwrap();
    let mut relayed = overheard.clone();
    let relayed = allocations(|| {
        assert_eq!(nodes[1].handle_relay_frame(RELAY, &mut relayed, at(1)), Received::Consumed);
    });
    assert!(relayed > 10, "a handshake is seen here: {relayed}");
    let mut garbage = vec![overheard.clone(), vec![], vec![0xFF; 1400], vec![1, 0x10, 0, 0, 0]];
    for kind in [FrameType::Data, FrameType::SessionInit, FrameType::SessionResponse, FrameType::Error] {
        // In the name of a peer.
        let mut frame = Vec::new();
        write_frame(kind, Flags::NONE, &[&[0, 0, 0, 1, 0, 0, 0, 2][..], &[7; 1200]].concat(), &mut frame)
            .unwrap();
        garbage.push(frame);
    }
    while nodes[1].poll_transmit(&mut Vec::new()).is_some() {}
    let stranger = Place { socket: SocketId(0), remote: ([192, 0, 2, 66], 666).into() };
    let allocated = allocations(|| {
        for n in 0..1000 {
            let datagram = &mut garbage[n % 8];
            let received = nodes[1].handle_datagram(stranger, datagram, at(2));
            assert!(matches!(received, Received::Dropped(_)), "{received:?}");
        }
    });
    assert_eq!(allocated, 0);
    assert_eq!(nodes[1].poll_transmit(&mut Vec::new()), None);
}

#[test]
fn segments_are_cut_and_put_together_without_allocating() {
    let format = Format::Vnet { uso: true };
    let header = VnetHeader {
        checksum: Some(PartialChecksum { start: 20, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::TcpV4, size: 1300.try_into().unwrap(), ecn: false }),
        header_len: 40,
    };
    let mut read = [&header.to_bytes()[..], &vec![0; 40 + 50_000]].concat();
    let length = ((read.len() - 10) as u16).to_be_bytes();
    read[10..34].copy_from_slice(&[
        0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4,
    ]);
    read[42..44].copy_from_slice(&[0x50, 0x10]);
    let (mut coalescer, mut packet) = (Coalescer::new(format), vec![0; 1340]);
    let mut round = |fill| {
        let whole = format.read(&read).unwrap();
        let (mut writes, mut packets) = (0, 0);
        for index in 0..whole.count() {
            let packet = &mut packet[..whole.len_of(index)];
            let checksum = whole.write(index, fill, packet);
            coalescer.push(packet, checksum, |write| (writes, packets) = (writes + 1, packets + write.count));
        }
        coalescer.flush(|write| (writes, packets) = (writes + 1, packets + write.count));
        assert_eq!((writes, packets), (1, 39));
    };
    round(Fill::Partial);
    for fill in [Fill::Partial, Fill::Complete] {
        assert_eq!(allocations(|| (0..10).for_each(|_| round(fill))), 0, "{fill:?}");
    }
}

#[test]
fn a_relay_says_where_frames_go_without_allocating() {
    let signer = TokenSigner::eddsa("k1", &[7; 32]).unwrap();
    let keys = TokenKeys { algorithm: TokenAlgorithm::EdDSA, keys: vec![signer.verification_key()] };
    let mut worker = Worker::new(WorkerId(0), Limits::default());
    let verifier = Some(Arc::new(TokenVerifier::new(&keys).unwrap()));
    worker.handle_hub(&ToWorker::Identity { relay_id: RELAY, verifier }, at(0));
    for (conn, node) in [(0, 17), (1, 18)] {
        worker.open(ConnId(conn), IpAddr::V4(Ipv4Addr::LOCALHOST), at(0).instant).unwrap();
        worker.upgraded(ConnId(conn), Purpose::Data);
        let token = Token {
            subject: RelaySubject {
                node_id: NodeId(node),
                network_id: NetworkId(1),
                ..RelaySubject::default()
            },
            jti: format!("t{node}"),
            iat: T,
            exp: T + 5400,
            not_after: None,
        };
        let token = signer.sign(&token).unwrap().into();
        let payload = to_payload(&AuthRequest::Relay(TokenAuth { token, version: String::new() }));
        let mut frame = Vec::new();
        write_frame(FrameType::AuthRequest, Flags::NONE, &payload, &mut frame).unwrap();
        worker.handle_message(ConnId(conn), &frame, at(0), |_, _| {});
        while worker.poll_command().is_some() {}
    }
    let mut frame = Vec::new();
    let mut payload = Route { source: NodeId(17), destination: NodeId(18) }.to_bytes().to_vec();
    payload.extend_from_slice(&[0xAB; 1300]);
    write_frame(FrameType::Data, Flags::NONE, &payload, &mut frame).unwrap();
    assert_eq!(worker.route(ConnId(0), &frame, at(1).instant), Ok(Verdict::Local(ConnId(1))));
    let allocated = allocations(|| {
        for _ in 0..1000 {
            assert_eq!(worker.route(ConnId(0), &frame, at(1).instant), Ok(Verdict::Local(ConnId(1))));
            worker.handle_message(ConnId(0), &frame, at(1), |verdict, forwarded| {
                assert_eq!((verdict, forwarded), (Verdict::Local(ConnId(1)), frame.as_slice()));
            });
        }
    });
    assert_eq!(allocated, 0);
}

/// A backlog with room for one send.
struct OneSend {
    bytes: Vec<u8>,
    filled: usize,
}

impl Backlog for OneSend {
    fn queued(&self) -> usize {
        self.filled
    }
    fn reserve(&mut self, len: usize, _: Instant) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.filled..self.filled + len)
    }
    fn commit(&mut self, len: usize, _: usize) {
        self.filled += len;
    }
    fn push_urgent(&mut self, _: &[u8], _: Instant) -> bool {
        false
    }
    fn drop_oldest(&mut self) -> usize {
        0
    }
    fn drop_older_than(&mut self, _: Instant) -> usize {
        0
    }
}

#[test]
fn a_congested_receiver_is_served_without_allocating() {
    let mut queues = Queues::new(QueuePolicy { high: 100 << 10, ..QueuePolicy::default() });
    let mut queue = Queue::default();
    let mut backlog = OneSend { bytes: vec![0; 256 << 10], filled: 0 };
    let frames: Vec<Vec<u8>> = (1..=20)
        .map(|source| {
            let mut payload = Route { source: NodeId(source), destination: NodeId(18) }.to_bytes().to_vec();
            payload.extend_from_slice(&[0xAB; 1300]);
            let mut frame = Vec::new();
            write_frame(FrameType::Data, Flags::NONE, &payload, &mut frame).unwrap();
            frame
        })
        .collect();
    let mut round = |ms: u64| {
        let now = at(ms).instant;
        // Twice what it takes: the queue is full, and drops for each.
        for frame in frames.iter().cycle().take(100) {
            queues.admit(&mut queue, &mut backlog, frame, now);
        }
        queues.refill(&mut queue, &mut backlog, now);
        backlog.filled = 0;
        queues.sent(&mut queue, &backlog, now);
    };
    (0..100).for_each(&mut round);
    let allocated = allocations(|| (100..600).for_each(&mut round));
    assert_eq!(allocated, 0);
    assert!(queue.is_congested() && queues.drops().of(DropReason::QueueFull) > 10_000);
}
