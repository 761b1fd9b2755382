//! A relay's hub and two workers, with clients, other relays and a controller that send what they like.
//!
//! Whatever they send, a frame is forwarded only from a node that is signed in where it came from, only to where its destination is signed in
//! or to a mesh link, and never from one mesh link to another. Input: a list of operations, see [`World::step`].
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::relay::hub::{Hub, HubCommand, Settings};
use meshdp::proto::relay::worker::{Command, Purpose, Worker};
use meshdp::proto::relay::{ConnId, Hop, Limits, ToWorker, Verdict, WorkerId};
use meshdp::proto::time::{Instant, Now, UnixTime};
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{MeshSubject, RelaySubject, Token};
use meshdp::proto::wire::control::Secret;
use meshdp::proto::wire::control::server::{ServerRegister, TokenAlgorithm, TokenKeys};
use meshdp::proto::wire::data;
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const T: u64 = 1_770_000_000;
const ME: RelayId = RelayId(1);
const CONNECTIONS: u8 = 8;
const NODES: u8 = 8;
const MAX_OPS: usize = 300;
/// HS256: signing must not be what takes the time.
const SECRET: &[u8; 32] = b"a shared secret of 32 bytes size";

static SIGNER: LazyLock<TokenSigner> =
    LazyLock::new(|| TokenSigner::hs256("k1", SECRET).expect("long enough"));

fuzz_target!(|input: &[u8]| {
    let mut world = World::new();
    let mut input = Input(input);
    for _ in 0..MAX_OPS {
        if !world.step(&mut input) {
            break;
        }
    }
});

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, length: u16) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(usize::from(length).min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn long_bytes(&mut self) -> &'a [u8] {
        let length = u16::from_be_bytes([self.byte(), self.byte()]);
        self.bytes(length)
    }
}

struct World {
    hub: Hub,
    workers: [Worker; 2],
    now: Now,
}

impl World {
    fn new() -> Self {
        let register = ServerRegister {
            token: Secret::default(),
            version: String::new(),
            capabilities: Vec::new(),
            data_url: None,
            mesh_url: None,
            stun: None,
            tls_pin: None,
            config_version: 0,
            nodes: Vec::new(),
        };
        let settings = Settings {
            token_keys: Some(TokenKeys {
                algorithm: TokenAlgorithm::HS256,
                keys: vec![SIGNER.verification_key()],
            }),
            relay_id: ME,
            mesh_peers: Vec::new(),
            has_controller: true,
            register,
        };
        let now = Now { instant: Instant::from_nanos(1), unix: UnixTime::from_secs(T) };
        let hub = Hub::new(settings, None, ChaCha20Rng::from_seed([3; 32]), now).expect("good keys");
        let limits =
            Limits { max_connections: 6, max_unauthenticated: 4, max_memberships: 3, ..Limits::default() };
        let workers = [0, 1].map(|id| Worker::new(WorkerId(id), limits.clone()));
        let mut world = Self { hub, workers, now };
        world.settle();
        world
    }

    /// One operation; false when there is none left.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let Some((&first, rest)) = input.0.split_first() else { return false };
        input.0 = rest;
        let worker = usize::from(first >> 7);
        let conn = ConnId(u32::from(input.byte() % CONNECTIONS));
        match first & 0x7f {
            0..=14 => self.open(worker, conn, input.byte()),
            15..=34 => self.sign_in(worker, conn, input.byte(), input.byte()),
            35..=44 => self.sign_in_relay(worker, conn, input.byte()),
            45..=74 => {
                let (source, destination, times) =
                    (input.byte() % NODES, input.byte() % NODES, input.byte() % 4);
                let kinds = [FrameType::Data, FrameType::SessionInit, FrameType::SessionResponse];
                let mut message = Vec::new();
                for _ in 0..=times {
                    let route = data::Route {
                        source: NodeId(u32::from(source)),
                        destination: NodeId(u32::from(destination)),
                    };
                    let kind = kinds[usize::from(input.byte()) % kinds.len()];
                    write_frame(kind, Flags::NONE, &route.to_bytes(), &mut message).expect("short");
                }
                if input.byte() % 4 == 0 {
                    let relay = RelayId(u16::from(input.byte() % 4));
                    let header = data::via_header(relay, message.len()).expect("short");
                    message.splice(0..0, header);
                }
                self.message(worker, conn, &message);
            }
            75..=84 => {
                let kind = FrameType::ALL[usize::from(input.byte()) % FrameType::ALL.len()];
                let flags = Flags::from_bits(input.byte() & 0x0f);
                let mut message = Vec::new();
                write_frame(kind, flags, input.long_bytes(), &mut message).expect("it fits");
                self.message(worker, conn, &message);
            }
            85..=94 => {
                let bytes = input.long_bytes();
                self.message(worker, conn, bytes);
            }
            95..=102 => self.workers[worker].closed(conn),
            103..=114 => {
                let kind = FrameType::ALL[usize::from(input.byte()) % FrameType::ALL.len()];
                let _ = self.hub.handle_control(kind, input.long_bytes(), self.now);
            }
            115..=116 => self.hub.controller_connected(),
            117 => self.hub.all(ToWorker::Drain { grace: Duration::from_secs(5) }),
            _ => self.wait(Duration::from_millis(u64::from(input.byte()) * u64::from(input.byte()) * 10)),
        }
        self.settle();
        true
    }

    fn open(&mut self, worker: usize, conn: ConnId, purpose: u8) {
        let purpose = match purpose % 4 {
            0 | 1 => Purpose::Data,
            2 => Purpose::MeshIn,
            _ => Purpose::MeshOut { relay: RelayId(2), token: Secret::default() },
        };
        if self.workers[worker].open(conn, IpAddr::V4(Ipv4Addr::LOCALHOST), self.now.instant).is_ok() {
            self.workers[worker].upgraded(conn, purpose);
        }
    }

    /// With a good token; its network is its node's, but for some.
    fn sign_in(&mut self, worker: usize, conn: ConnId, node: u8, other: u8) {
        let node = u32::from(node % NODES);
        let network = if other % 8 == 0 { 3 } else { 1 + node % 2 };
        let subject = RelaySubject {
            node_id: NodeId(node),
            network_id: NetworkId(network),
            rate_up: (other % 5 == 0).then_some(u64::from(other)),
            ..RelaySubject::default()
        };
        let exp = T + 60 * (1 + u64::from(other));
        let token = Token { subject, jti: format!("t{other}"), iat: T, exp, not_after: None };
        self.show(worker, conn, "relay", &SIGNER.sign(&token).expect("it signs"));
    }

    fn sign_in_relay(&mut self, worker: usize, conn: ConnId, relay: u8) {
        let subject = MeshSubject { server_id: RelayId(u16::from(relay % 4)), peer_id: ME };
        let token = Token { subject, jti: "m".to_owned(), iat: T, exp: T + 600, not_after: None };
        self.show(worker, conn, "mesh", &SIGNER.sign(&token).expect("it signs"));
    }

    fn show(&mut self, worker: usize, conn: ConnId, kind: &str, token: &str) {
        let payload = serde_json::json!({ "kind": kind, "token": token }).to_string();
        let mut message = Vec::new();
        write_frame(FrameType::AuthRequest, Flags::NONE, payload.as_bytes(), &mut message).expect("short");
        self.message(worker, conn, &message);
    }

    fn message(&mut self, worker: usize, conn: ConnId, message: &[u8]) {
        let before = self.nodes(worker);
        let is_mesh = self.is_mesh(worker, conn);
        let mut forwarded = Vec::new();
        self.workers[worker].handle_message(conn, message, self.now, |verdict, frame| {
            forwarded.push((verdict, frame.to_vec()));
        });
        // A message may sign a node in, forward, and end the connection, all in one.
        let mut nodes = before;
        nodes.extend(self.nodes(worker));
        for (verdict, frame) in forwarded {
            let route = data::route(&frame).expect("it was looked at");
            assert!(Frames::new(&frame).count() == 1, "one whole frame at a time");
            if is_mesh {
                let onward = matches!(verdict, Verdict::MeshLink(_) | Verdict::Worker(_, Hop::Mesh(_)));
                assert!(!onward, "from one mesh link to another");
            } else if !self.is_mesh(worker, conn) {
                assert!(
                    nodes.contains(&(conn, route.source)),
                    "{route:?} from a connection without that node"
                );
            }
            match verdict {
                Verdict::Local(to) => {
                    assert!(nodes.contains(&(to, route.destination)), "{route:?} to {to:?}")
                }
                Verdict::Worker(to, hop) => {
                    assert!(usize::from(to.0) != worker);
                    self.hand_over(usize::from(to.0), hop, &frame);
                }
                Verdict::MeshLink(to) => assert!(self.is_mesh(worker, to) || self.gone(worker, to)),
                Verdict::Drop(_) => panic!("a drop is counted, not forwarded"),
            }
        }
    }

    fn hand_over(&mut self, worker: usize, hop: Hop, frame: &[u8]) {
        let route = data::route(frame).expect("it was looked at");
        match self.workers[worker].route_handed_over(hop, frame, self.now.instant) {
            Verdict::Local(to) => assert!(self.nodes(worker).contains(&(to, route.destination))),
            Verdict::MeshLink(to) => assert!(self.is_mesh(worker, to)),
            Verdict::Worker(..) => panic!("a frame goes from worker to worker once"),
            Verdict::Drop(_) => {}
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.unix = self.now.unix + time;
        for worker in &mut self.workers {
            worker.handle_timeout(self.now);
            if let Some((at, reason)) = worker.poll_timeout() {
                assert!(at > self.now.instant, "wants to be called again at once for {reason}");
            }
        }
    }

    /// Carries messages between hub and workers, and reads what they send.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut moved = false;
            for (index, worker) in self.workers.iter_mut().enumerate() {
                while let Some(command) = worker.poll_command() {
                    moved = true;
                    match command {
                        Command::Send { frame, .. } => {
                            assert!(Frames::new(&frame).all(|frame| frame.is_ok()), "whole frames");
                        }
                        Command::Close { code, .. } => assert!(code >= 1000),
                        Command::Discard { .. } | Command::Welcome { .. } | Command::Cut { .. } => {}
                        Command::Report(report) => {
                            self.hub.handle_worker(WorkerId(index as u16), report, self.now);
                        }
                    }
                }
            }
            while let Some(command) = self.hub.poll_command(self.now) {
                moved = true;
                match command {
                    HubCommand::All(message) => {
                        self.workers.iter_mut().for_each(|worker| worker.handle_hub(&message, self.now));
                    }
                    HubCommand::One(worker, message) => {
                        self.workers[usize::from(worker.0)].handle_hub(&message, self.now);
                    }
                    HubCommand::Dial(dial) => self.hub.dial_failed(dial.relay, self.now.instant),
                    HubCommand::Save(state) => drop(serde_json::to_vec(&state).expect("it can be kept")),
                }
            }
            while self.hub.poll_control(self.now).is_some() {}
            if !moved {
                return;
            }
        }
        panic!("hub and workers never come to rest");
    }

    fn nodes(&self, worker: usize) -> Vec<(ConnId, NodeId)> {
        let infos = self.workers[worker].connection_infos(self.now.instant, usize::MAX);
        infos.iter().flat_map(|info| info.nodes.iter().map(|&node| (info.conn, node))).collect()
    }

    fn is_mesh(&self, worker: usize, conn: ConnId) -> bool {
        let infos = self.workers[worker].connection_infos(self.now.instant, usize::MAX);
        infos.iter().any(|info| info.conn == conn && info.kind == "mesh")
    }

    fn gone(&self, worker: usize, conn: ConnId) -> bool {
        let infos = self.workers[worker].connection_infos(self.now.instant, usize::MAX);
        infos.iter().all(|info| info.conn != conn)
    }
}
