//! Two nodes, and a relay between them that does what it likes: holds frames back, alters, repeats and invents them, answers sign-ins or not.
//!
//! Whatever it does, a packet that comes out of a node was put in by the other one and comes out once. Input: a list of [`Op`]s, see there.
#![no_main]

use std::collections::{BTreeMap, VecDeque};
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::node::{Checksum, Event, Node, NodeSettings, Outgoing, Received, Target};
use meshdp::proto::time::{Instant, Now, UnixTime};
use meshdp::proto::wire::control::node::{
    Config, Membership, Network, Paths, Peer, Relay, Settings, SignedNodeKey,
};
use meshdp::proto::wire::control::server::NodeAuthorised;
use meshdp::proto::wire::control::{AuthResponse, Channel, parse, to_payload, validate};
use meshdp::proto::wire::data::{DATA_HEADROOM, TAG_LEN};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};

const RELAYS: [RelayId; 2] = [RelayId(1), RelayId(2)];
const IDS: [NodeId; 2] = [NodeId(17), NodeId(18)];
const UNIX: u64 = 1_770_000_000;
/// Frames that the relay may hold.
const HELD: usize = 64;
const MAX_OPS: usize = 400;

/// The first byte says which, the following ones are its arguments; what is missing is zero.
enum Op<'a> {
    /// Milliseconds (2), quadratic, so that hours can pass.
    Wait(u16),
    /// The oldest held frame of a node arrives as it is.
    Deliver(usize),
    /// … with one byte changed: position (2), change (1).
    Alter(usize, u16, u8),
    /// … and is kept to arrive again.
    Repeat(usize),
    /// … never.
    Lose(usize),
    /// A frame of any type: type (1), flags (1), length (1), payload.
    Invent(usize, FrameType, u8, &'a [u8]),
    /// Bytes that need not be a frame: length (1), bytes.
    Garbage(usize, &'a [u8]),
    /// An IPv4 packet to the other node: length (1).
    Packet(usize, u8),
    /// Anything on the TUN device: length (1), bytes.
    Tun(usize, &'a [u8]),
    /// Relay (1).
    Close(usize, RelayId),
    /// Relay (1).
    Connect(usize, RelayId),
    /// JSON of a delta: length (2), text.
    Update(usize, &'a [u8]),
    /// A new node_key; the other one hears of it, or not.
    Rotate(usize, u8),
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn op(&mut self) -> Option<Op<'a>> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        let node = usize::from(first >> 7);
        Some(match first & 0x7f {
            0..=9 => Op::Wait(self.short()),
            10..=59 => Op::Deliver(node),
            60..=64 => Op::Alter(node, self.short(), self.byte()),
            65..=69 => Op::Repeat(node),
            70..=74 => Op::Lose(node),
            75..=84 => {
                let kind = FrameType::ALL[usize::from(self.byte()) % FrameType::ALL.len()];
                let (flags, length) = (self.byte() & 0x0f, self.byte());
                Op::Invent(node, kind, flags, self.bytes(usize::from(length)))
            }
            85..=89 => {
                let length = self.byte();
                Op::Garbage(node, self.bytes(usize::from(length)))
            }
            90..=104 => Op::Packet(node, self.byte()),
            105..=109 => {
                let length = self.byte();
                Op::Tun(node, self.bytes(usize::from(length)))
            }
            110..=114 => Op::Close(node, RELAYS[usize::from(self.byte()) % 2]),
            115..=119 => Op::Connect(node, RELAYS[usize::from(self.byte()) % 2]),
            120..=123 => {
                let length = self.short();
                Op::Update(node, self.bytes(usize::from(length)))
            }
            _ => Op::Rotate(node, self.byte()),
        })
    }
}

fuzz_target!(|input: &[u8]| {
    let mut world = World::new();
    let mut input = Input(input);
    // Half of the runs begin with a session.
    if input.byte() % 2 == 0 {
        world.packet(0, 60);
        (0..20).for_each(|turn| world.deliver(turn % 2));
        assert!(world.received > 0, "an honest relay carries a packet");
    }
    for _ in 0..MAX_OPS {
        let Some(op) = input.op() else { break };
        world.apply(op);
    }
});

struct World {
    nodes: [Node; 2],
    now: Now,
    /// By receiving node: what the relay holds for it, and the connection that it arrives on.
    held: [VecDeque<(RelayId, Vec<u8>)>; 2],
    /// By receiving node: packets that were put in for it and did not come out, with how often.
    sent: [BTreeMap<Vec<u8>, u32>; 2],
    serial: u32,
    received: u32,
    /// Rotations so far.
    keys: u8,
}

impl World {
    fn new() -> Self {
        let now = Now { instant: Instant::from_nanos(1_000_000_000), unix: UnixTime::from_secs(UNIX) };
        let machine = |index: usize| MachineKey::from_seed(&[index as u8 + 1; 32]).expect("any seed does");
        let node_key = |index: usize| node_key(index as u8 + 11);
        let nodes = [0, 1].map(|index| {
            let mut node = Node::new(
                NodeSettings {
                    machine: machine(index),
                    node_key: node_key(index),
                    node_key_created: UNIX,
                    previous_node_key: None,
                    aes: index == 0,
                    seed: [index as u8; 32],
                    version: String::new(),
                    advertised: Vec::new(),
                    pins: Vec::new(),
                },
                now,
            );
            let other = 1 - index;
            let signed = machine(other).sign_node_key(&node_key(other), UNIX);
            node.apply_config(config(index, machine(other), signed), now);
            node
        });
        let mut world = Self {
            nodes,
            now,
            held: Default::default(),
            sent: Default::default(),
            serial: 0,
            received: 0,
            keys: 100,
        };
        for index in 0..2 {
            for relay in RELAYS {
                world.nodes[index].relay_connected(relay, now);
            }
            world.drain(index);
            (0..4).for_each(|_| world.deliver(index));
        }
        world
    }

    fn apply(&mut self, op: Op<'_>) {
        match op {
            Op::Wait(time) => self.wait(Duration::from_millis(u64::from(time) * u64::from(time) / 64)),
            Op::Deliver(to) => self.deliver(to),
            Op::Alter(to, position, change) => {
                if let Some((relay, mut frame)) = self.held[to].pop_front() {
                    let position = usize::from(position) % frame.len();
                    frame[position] ^= change;
                    self.arrive(to, relay, frame);
                }
            }
            Op::Repeat(to) => {
                if let Some((relay, frame)) = self.held[to].pop_front() {
                    self.hold(to, relay, frame.clone());
                    self.arrive(to, relay, frame);
                }
            }
            Op::Lose(to) => drop(self.held[to].pop_front()),
            Op::Invent(to, kind, flags, payload) => {
                let mut frame = Vec::new();
                write_frame(kind, Flags::from_bits(flags), payload, &mut frame).expect("short");
                self.arrive(to, RELAYS[0], frame);
            }
            Op::Garbage(to, bytes) => self.arrive(to, RELAYS[0], bytes.to_vec()),
            Op::Packet(from, length) => self.packet(from, u16::from(length) * 5),
            Op::Tun(from, bytes) => self.send(from, bytes),
            Op::Close(node, relay) => {
                self.nodes[node].relay_closed(relay, self.now);
                self.drain(node);
            }
            Op::Connect(node, relay) => {
                self.nodes[node].relay_connected(relay, self.now);
                self.drain(node);
            }
            Op::Update(node, text) => {
                if validate(Channel::Control, FrameType::ConfigUpdate, text).is_ok() {
                    let update = parse(FrameType::ConfigUpdate, text).expect("it was validated");
                    let _ = self.nodes[node].apply_update(update, self.now);
                    self.drain(node);
                }
            }
            Op::Rotate(node, heard) => self.rotate(node, heard % 2 == 0),
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix = self.now.unix + time;
        for index in 0..2 {
            // Once does all that is due: a shell that calls it when it asks must not spin.
            self.nodes[index].handle_timeout(self.now);
            if let Some((at, reason)) = self.nodes[index].poll_timeout() {
                assert!(at > self.now.instant, "wants to be called again at once for {reason}");
            }
            self.drain(index);
        }
    }

    /// A packet that is like no other.
    fn packet(&mut self, from: usize, length: u16) {
        self.serial += 1;
        let length = length.max(24);
        let mut packet = vec![0; usize::from(length)];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[8] = 64;
        packet[9] = 253;
        packet[12..16].copy_from_slice(&[10, 0, 1, 5 + from as u8]);
        packet[16..20].copy_from_slice(&[10, 0, 1, 6 - from as u8]);
        packet[20..24].copy_from_slice(&self.serial.to_be_bytes());
        self.send(from, &packet);
    }

    fn send(&mut self, from: usize, packet: &[u8]) {
        let mut buffer = vec![0; DATA_HEADROOM];
        buffer.extend_from_slice(packet);
        buffer.resize(buffer.len() + TAG_LEN, 0);
        match self.nodes[from].handle_packet(&mut buffer, Checksum::Complete, self.now) {
            Outgoing::Send { target: Target::Relay { relay, .. }, frame } => {
                *self.sent[1 - from].entry(packet.to_vec()).or_default() += 1;
                self.hold(1 - from, relay, buffer[frame].to_vec());
            }
            Outgoing::Send { target, .. } => panic!("{target:?} without a socket"),
            Outgoing::Queued => *self.sent[1 - from].entry(packet.to_vec()).or_default() += 1,
            Outgoing::Dropped(_) => {}
        }
        self.drain(from);
    }

    fn rotate(&mut self, index: usize, heard: bool) {
        self.keys = self.keys.wrapping_add(1);
        let created = self.now.unix.as_secs();
        let key = node_key(self.keys.max(1));
        let signed = self.nodes[index].rotate_node_key(key, created, self.now);
        if heard {
            let machine = MachineKey::from_seed(&[index as u8 + 1; 32]).expect("any seed does");
            self.nodes[1 - index].apply_config(config(1 - index, machine, signed), self.now);
            self.drain(1 - index);
        }
        self.drain(index);
    }

    fn deliver(&mut self, to: usize) {
        if let Some((relay, frame)) = self.held[to].pop_front() {
            self.arrive(to, relay, frame);
        }
    }

    fn arrive(&mut self, to: usize, relay: RelayId, mut frame: Vec<u8>) {
        if let Received::Packet { packet, from, to: own, .. } =
            self.nodes[to].handle_relay_frame(relay, &mut frame, self.now)
        {
            assert_eq!((from, own), (IDS[1 - to], IDS[to]));
            let left = self.sent[to].get_mut(packet).expect("the other node sent it");
            *left = left.checked_sub(1).expect("it came out more often than it went in");
            self.received += 1;
        }
        self.drain(to);
    }

    /// What a node wants to send is given to the relay; what it wants done is not.
    fn drain(&mut self, from: usize) {
        let mut out = Vec::new();
        while let Some(target) = self.nodes[from].poll_transmit(&mut out) {
            let Target::Relay { relay, .. } = target else { panic!("{target:?} without a socket") };
            for frame in Frames::new(&out) {
                let frame = frame.expect("a node writes whole frames");
                self.relay(from, relay, frame.header.kind, frame.bytes, frame.payload());
            }
            out.clear();
        }
        while let Some(event) = self.nodes[from].poll_event() {
            if let Event::LatencyReport(report) = event {
                to_payload(&report);
            }
        }
    }

    fn relay(&mut self, from: usize, relay: RelayId, kind: FrameType, bytes: &[u8], payload: &[u8]) {
        let mut answer = Vec::new();
        let written = match kind {
            FrameType::Ping => write_frame(FrameType::Pong, Flags::NONE, payload, &mut answer),
            FrameType::AuthRequest => {
                let authorised = NodeAuthorised { node_id: IDS[from], relay_id: relay, expires: UNIX + 5400 };
                let payload = to_payload(&AuthResponse::Relay(authorised));
                write_frame(FrameType::AuthResponse, Flags::NONE, &payload, &mut answer)
            }
            _ if kind.is_routed() => return self.hold(1 - from, relay, bytes.to_vec()),
            _ => return,
        };
        written.expect("short");
        self.hold(from, relay, answer);
    }

    fn hold(&mut self, to: usize, relay: RelayId, frame: Vec<u8>) {
        if self.held[to].len() < HELD {
            self.held[to].push_back((relay, frame));
        }
    }
}

/// One post-quantum key for all of them: making one costs more than all the rest of a run.
fn node_key(n: u8) -> NodeKey {
    static KEM: LazyLock<KemKey> = LazyLock::new(|| KemKey::generate().expect("there is randomness"));
    NodeKey::from_private([n; 32]).expect("not zero").with_kem(KEM.clone())
}

fn config(index: usize, other_machine: MachineKey, other_key: SignedNodeKey) -> Config {
    let other = 1 - index;
    let host = |index: usize| format!("10.0.1.{}", 5 + index);
    Config {
        version: 1,
        memberships: vec![Membership {
            node_id: IDS[index],
            name: String::new(),
            network: Network {
                id: NetworkId(1),
                name: "default".to_owned(),
                subnet4: Some("10.0.1.0/24".parse().expect("a subnet")),
                subnet6: None,
            },
            addresses: vec![format!("{}/24", host(index)).parse().expect("an address")],
            relay_token: "token".into(),
            relay_token_expires: UNIX + 5400,
            peers: vec![Peer {
                node_id: IDS[other],
                name: String::new(),
                machine_key: other_machine.public(),
                node_key: Some(other_key),
                addresses: vec![host(other).parse().expect("an address")],
                online: true,
                relays: RELAYS.to_vec(),
                path: Paths::default(),
                endpoints: Vec::new(),
            }],
            routes: Vec::new(),
        }],
        relays: RELAYS
            .iter()
            .map(|&id| Relay {
                id,
                name: String::new(),
                region: String::new(),
                data_url: Some(format!("wss://relay-{id}.example/ws/data")),
                more_urls: Vec::new(),
                tls_pin: None,
                stun: None,
            })
            .collect(),
        settings: Settings::default(),
    }
}
