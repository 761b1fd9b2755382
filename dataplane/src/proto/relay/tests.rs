//! The relay's machines together: workers and hub in one process, without sockets and with a clock of their own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::hub::{ControlError, Hub, HubCommand, SavedState, Settings};
use super::worker::{Command, Purpose, Refusal, Worker};
use super::*;
use crate::proto::error::ErrorCode;
use crate::proto::time::{Instant, Now, UnixTime};
use crate::proto::token::sign::TokenSigner;
use crate::proto::token::{MeshSubject, RelaySubject, Token};
use crate::proto::wire::control::server::{
    MeshPeer, NodeLocations, RevokedNode, RevokedToken, ServerConfig, ServerRegister, ServerSettings,
    TokenAlgorithm, TokenKeys,
};
use crate::proto::wire::control::{ErrorMessage, GoAway, parse, to_payload};
use crate::proto::wire::data::{Route, via_header};
use crate::proto::wire::frame::{Flags, FrameType, Frames, write_frame};

const T: u64 = 1_770_000_000;

/// A relay: hub, workers, and what they sent. Messages between them travel at once, unless held.
struct Rig {
    hub: Hub,
    workers: Vec<Worker>,
    signer: TokenSigner,
    now: Now,
    sent: Vec<(WorkerId, ConnId, FrameType, Vec<u8>)>,
    closed: Vec<(WorkerId, ConnId, u16)>,
    dialled: Vec<RelayId>,
    saved: Option<SavedState>,
    hold: bool,
    held: Vec<(WorkerId, FromWorker)>,
}

fn config(signer: &TokenSigner) -> ServerConfig {
    ServerConfig {
        version: 7,
        relay_id: RelayId(1),
        server_time: T,
        token_keys: TokenKeys { algorithm: TokenAlgorithm::EdDSA, keys: vec![signer.verification_key()] },
        relays: vec![],
        nodes: vec![],
        revocations: Revocations::default(),
        settings: ServerSettings::default(),
    }
}

impl Rig {
    fn bare(workers: u16) -> Self {
        let signer = TokenSigner::eddsa("k1", &[7; 32]).unwrap();
        let register = ServerRegister {
            token: "server".into(),
            version: String::new(),
            capabilities: vec!["relay".into()],
            data_url: None,
            mesh_url: None,
            stun: None,
            tls_pin: None,
            config_version: 0,
            nodes: vec![],
        };
        let settings = Settings {
            token_keys: None,
            relay_id: RelayId(0),
            mesh_peers: vec![],
            has_controller: true,
            register,
        };
        let now = Now { instant: Instant::from_nanos(1), unix: UnixTime::from_secs(T) };
        let hub = Hub::new(settings, None, ChaCha20Rng::from_seed([3; 32]), now).unwrap();
        let workers = (0..workers).map(|id| Worker::new(WorkerId(id), Limits::default())).collect();
        Self {
            hub,
            workers,
            signer,
            now,
            sent: vec![],
            closed: vec![],
            dialled: vec![],
            saved: None,
            hold: false,
            held: vec![],
        }
    }

    fn new(workers: u16) -> Self {
        let mut rig = Self::bare(workers);
        let config = config(&rig.signer);
        rig.control(FrameType::Config, &config).unwrap();
        rig
    }

    fn control<M: serde::Serialize>(&mut self, kind: FrameType, message: &M) -> Result<(), ControlError> {
        let result = self.hub.handle_control(kind, &to_payload(message), self.now);
        self.settle();
        result
    }

    /// Carries messages between hub and workers until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for index in 0..self.workers.len() {
                let id = WorkerId(index as u16);
                while let Some(command) = self.workers[index].poll_command() {
                    moved = true;
                    match command {
                        Command::Send { conn, frame } => {
                            for frame in Frames::new(&frame) {
                                let frame = frame.unwrap();
                                self.sent.push((id, conn, frame.header.kind, frame.payload().to_vec()));
                            }
                        }
                        Command::Close { conn, code } => self.closed.push((id, conn, code)),
                        Command::Report(report) if self.hold => self.held.push((id, report)),
                        Command::Report(report) => self.hub.handle_worker(id, report, self.now),
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
                    HubCommand::Dial(dial) => self.dialled.push(dial.relay),
                    HubCommand::Save(state) => self.saved = Some(*state),
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn release(&mut self) {
        self.hold = false;
        for (worker, report) in std::mem::take(&mut self.held) {
            self.hub.handle_worker(worker, report, self.now);
        }
        self.settle();
    }

    fn advance(&mut self, by: Duration) {
        self.now.instant += by;
        self.now.unix = self.now.unix + by;
        for worker in &mut self.workers {
            worker.handle_timeout(self.now);
        }
        self.settle();
    }

    fn token(node: u32, network: u32) -> Token<RelaySubject> {
        Token {
            subject: RelaySubject {
                node_id: NodeId(node),
                network_id: NetworkId(network),
                allowed_relays: vec![],
            },
            jti: format!("t{node}"),
            iat: T,
            exp: T + 5400,
            not_after: None,
        }
    }

    fn open(&mut self, worker: u16, conn: u32, purpose: Purpose) {
        let machine = &mut self.workers[usize::from(worker)];
        machine.open(ConnId(conn), IpAddr::V4(Ipv4Addr::LOCALHOST), self.now.instant).unwrap();
        machine.upgraded(ConnId(conn), purpose);
        self.settle();
    }

    fn authenticate(&mut self, worker: u16, conn: u32, kind: &str, token: &str) {
        let payload = serde_json::json!({"kind": kind, "token": token}).to_string();
        self.message(worker, conn, &frame(FrameType::AuthRequest, payload.as_bytes()));
    }

    /// A node on a connection of its own.
    fn node(&mut self, worker: u16, conn: u32, node: u32, network: u32) {
        self.open(worker, conn, Purpose::Data);
        let token = self.signer.sign(&Rig::token(node, network)).unwrap();
        self.authenticate(worker, conn, "relay", &token);
    }

    /// A link that another relay made to us.
    fn link(&mut self, worker: u16, conn: u32, relay: u16) {
        self.open(worker, conn, Purpose::MeshIn);
        let subject = MeshSubject { server_id: RelayId(relay), peer_id: RelayId(1) };
        let token = Token { subject, jti: "m".into(), iat: T, exp: T + 600, not_after: None };
        let token = self.signer.sign(&token).unwrap();
        self.authenticate(worker, conn, "mesh", &token);
    }

    fn message(&mut self, worker: u16, conn: u32, message: &[u8]) -> Vec<(Verdict, Vec<u8>)> {
        let mut out = Vec::new();
        self.workers[usize::from(worker)].handle_message(
            ConnId(conn),
            message,
            self.now,
            |verdict, frame| {
                out.push((verdict, frame.to_vec()));
            },
        );
        self.settle();
        out
    }

    fn data(&mut self, worker: u16, conn: u32, source: u32, destination: u32) -> Vec<Verdict> {
        let frame = data(source, destination);
        self.message(worker, conn, &frame).into_iter().map(|(verdict, _)| verdict).collect()
    }

    fn locate(&mut self, nodes: &[(u32, u32, &[u16])]) {
        let set = nodes
            .iter()
            .map(|(node, network, relays)| NodeLocation {
                node_id: NodeId(*node),
                network_id: NetworkId(*network),
                relays: relays.iter().map(|id| RelayId(*id)).collect(),
            })
            .collect();
        self.control(FrameType::ServerNodeLoc, &NodeLocations { set, ..NodeLocations::default() }).unwrap();
    }

    fn errors(&mut self) -> Vec<(ConnId, ErrorCode, Option<NodeId>)> {
        self.sent
            .drain(..)
            .filter(|(_, _, kind, _)| *kind == FrameType::Error)
            .map(|(_, conn, kind, payload)| {
                let error: ErrorMessage = parse(kind, &payload).unwrap();
                (conn, error.code, error.node)
            })
            .collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|worker| worker.drops().of(reason)).sum()
    }
}

fn frame(kind: FrameType, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(kind, Flags::NONE, payload, &mut out).unwrap();
    out
}

fn data(source: u32, destination: u32) -> Vec<u8> {
    let mut payload = Route { source: NodeId(source), destination: NodeId(destination) }.to_bytes().to_vec();
    payload.extend_from_slice(&[0xAB; 40]);
    frame(FrameType::Data, &payload)
}

fn via(relay: u16, inner: &[u8]) -> Vec<u8> {
    [via_header(RelayId(relay), inner.len()).unwrap().as_slice(), inner].concat()
}

#[test]
fn forwards_between_nodes_of_one_network_unchanged() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    let answers = rig.sent.iter().filter(|(_, _, kind, _)| *kind == FrameType::AuthResponse);
    let first = answers.map(|(.., payload)| String::from_utf8_lossy(payload).into_owned()).next().unwrap();
    assert_eq!(first, format!(r#"{{"kind":"relay","node_id":17,"relay_id":1,"expires":{}}}"#, T + 5400));
    let both = [data(17, 18), data(17, 18)].concat();
    let out = rig.message(0, 0, &both);
    assert_eq!(out, vec![(Verdict::Local(ConnId(1)), data(17, 18)); 2], "two frames of one message");
    for kind in [FrameType::SessionInit, FrameType::SessionResponse] {
        let mut other = data(18, 17);
        other[1] = kind as u8;
        assert_eq!(rig.message(0, 1, &other), vec![(Verdict::Local(ConnId(0)), other.clone())]);
    }
}

#[test]
fn a_source_that_is_not_authenticated_on_the_connection_is_dropped_and_counted() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.node(1, 0, 19, 1);
    for source in [18, 19, 99, 0] {
        assert_eq!(rig.data(0, 0, source, 17), [], "source {source}");
    }
    assert_eq!(rig.dropped(DropReason::SpoofedSource), 4);
    assert_eq!(rig.errors(), [], "whoever spoofs learns nothing");
    assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Local(ConnId(1))], "and the connection goes on");
}

#[test]
fn networks_do_not_see_each_other() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 2);
    rig.sent.clear();
    assert_eq!(rig.data(0, 0, 17, 18), []);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::UnknownDestination, Some(NodeId(18)))]);
    assert_eq!(rig.dropped(DropReason::OtherNetwork), 1);
    let by_network: BTreeMap<_, _> = rig.workers[0]
        .network_drops()
        .map(|(network, drops)| (network, drops.of(DropReason::OtherNetwork)))
        .collect();
    assert_eq!(by_network, BTreeMap::from([(NetworkId(1), 1)]));
}

#[test]
fn routing_errors_come_once_a_second_per_destination_and_never_close() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.locate(&[(20, 1, &[])]);
    rig.sent.clear();
    for _ in 0..10 {
        rig.data(0, 0, 17, 20);
        rig.data(0, 0, 17, 21);
    }
    let mut errors = rig.errors();
    errors.sort();
    let offline = (ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(20)));
    let unknown = (ConnId(0), ErrorCode::UnknownDestination, Some(NodeId(21)));
    assert_eq!(errors, [unknown, offline]);
    rig.advance(Duration::from_secs(1));
    rig.data(0, 0, 17, 20);
    assert_eq!(rig.errors(), [offline]);
    assert_eq!(rig.closed, []);
    assert_eq!(rig.dropped(DropReason::DestinationOffline), 11);
}

#[test]
fn several_memberships_share_a_connection() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    let second = rig.signer.sign(&Rig::token(27, 2)).unwrap();
    rig.authenticate(0, 0, "relay", &second);
    rig.node(0, 1, 18, 1);
    rig.node(0, 2, 28, 2);
    assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Local(ConnId(1))]);
    assert_eq!(rig.data(0, 0, 27, 28), [Verdict::Local(ConnId(2))]);
    assert_eq!(rig.data(0, 0, 17, 28), [], "isolation is by node, not by connection");
    for n in 100..200 {
        let token = rig.signer.sign(&Rig::token(n, 1)).unwrap();
        rig.authenticate(0, 0, "relay", &token);
    }
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1013)], "but not without end");
}

#[test]
fn nodes_on_other_workers_and_relays_are_reached_in_one_hop() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 18, 1);
    rig.locate(&[(30, 1, &[2]), (31, 1, &[3])]);
    rig.link(1, 5, 2);
    assert_eq!(rig.data(0, 0, 17, 18), [Verdict::Worker(WorkerId(1), Hop::Deliver)]);
    assert_eq!(rig.workers[1].route_handed_over(Hop::Deliver, &data(17, 18)), Verdict::Local(ConnId(0)));
    assert_eq!(rig.data(0, 0, 17, 30), [Verdict::Worker(WorkerId(1), Hop::Mesh(RelayId(2)))]);
    let handed_over = rig.workers[1].route_handed_over(Hop::Mesh(RelayId(2)), &data(17, 30));
    assert_eq!(handed_over, Verdict::MeshLink(ConnId(5)));
    assert_eq!(rig.data(1, 0, 18, 30), [Verdict::MeshLink(ConnId(5))]);
    rig.sent.clear();
    assert_eq!(rig.data(0, 0, 17, 31), []);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(31)))], "no link to 3");
    assert_eq!(rig.dropped(DropReason::MeshLinkDown), 1);
}

#[test]
fn from_a_mesh_link_frames_go_to_local_nodes_only_and_only_from_where_their_source_is() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 18, 2);
    rig.locate(&[(30, 1, &[2]), (31, 1, &[3]), (32, 2, &[2])]);
    rig.link(0, 5, 2);
    rig.link(1, 6, 3);
    assert_eq!(rig.data(0, 5, 30, 17), [Verdict::Local(ConnId(0))]);
    assert_eq!(rig.data(0, 5, 32, 18), [Verdict::Worker(WorkerId(1), Hop::Deliver)]);
    assert_eq!(rig.data(0, 5, 30, 31), [], "never from mesh to mesh");
    assert_eq!(rig.dropped(DropReason::MeshNotLocal), 1);
    assert_eq!(rig.data(0, 5, 31, 17), [], "31 is behind relay 3, not 2");
    assert_eq!(rig.data(0, 5, 17, 17), [], "17 is ours");
    assert_eq!(rig.dropped(DropReason::SpoofedSource), 2);
    assert_eq!(rig.data(0, 5, 30, 18), [], "other network");
    assert_eq!(rig.closed, []);
    rig.message(0, 5, &via(3, &data(30, 31)));
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(5), 1002)], "VIA has no business on a mesh link");
}

#[test]
fn via_goes_by_the_relay_that_it_names_and_falls_back_to_local_delivery() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.locate(&[(30, 1, &[2])]);
    rig.link(0, 5, 2);
    let inner = [data(17, 18), data(17, 30)].concat();
    let out = rig.message(0, 0, &via(2, &inner));
    let link = Verdict::MeshLink(ConnId(5));
    assert_eq!(out, [(link, data(17, 18)), (link, data(17, 30))], "also for a node that is here");
    assert_eq!(rig.message(0, 0, &via(1, &data(17, 18))), [(Verdict::Local(ConnId(1)), data(17, 18))]);
    assert_eq!(rig.message(0, 0, &via(2, &data(18, 17))), [], "checked as if its own");
    assert_eq!(rig.dropped(DropReason::SpoofedSource), 1);
    rig.workers[0].closed(ConnId(5));
    rig.settle();
    rig.sent.clear();
    assert_eq!(rig.message(0, 0, &via(2, &data(17, 18))), [(Verdict::Local(ConnId(1)), data(17, 18))]);
    assert_eq!(rig.message(0, 0, &via(2, &data(17, 30))), []);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(30)))]);
    for bad in
        [via(2, &frame(FrameType::Ping, b"")), via(2, &data(17, 18)[..20]), frame(FrameType::Via, &[0, 2])]
    {
        let mut rig = Rig::new(1);
        rig.node(0, 0, 17, 1);
        rig.message(0, 0, &bad);
        assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1002)]);
    }
}

#[test]
fn malformed_messages_get_their_code_and_close_only_their_connection() {
    for (message, code, close) in [
        (vec![2, 0x10, 0, 0, 0], ErrorCode::UnsupportedVersion, 1002),
        (vec![1, 0x77, 0, 0, 0], ErrorCode::Malformed, 1002),
        (vec![1, 0x10, 0, 0, 9, 1], ErrorCode::Malformed, 1002),
        (vec![], ErrorCode::Malformed, 1002),
        (frame(FrameType::Data, &[0; 7]), ErrorCode::Malformed, 1002),
        (frame(FrameType::Config, b"{}"), ErrorCode::Malformed, 1002),
        (frame(FrameType::Ping, &[0; 65]), ErrorCode::Malformed, 1002),
        (frame(FrameType::AuthRequest, b"{\"kind\": \"machine\"}"), ErrorCode::Malformed, 1002),
        (
            frame(FrameType::AuthRequest, b"{\"kind\": \"mesh\", \"token\": \"x\"}"),
            ErrorCode::Malformed,
            1002,
        ),
        (frame(FrameType::AuthRequest, &vec![b' '; 20_000]), ErrorCode::TooLarge, 1009),
        (
            frame(FrameType::AuthRequest, b"{\"kind\": \"relay\", \"token\": \"x\"}"),
            ErrorCode::InvalidToken,
            1008,
        ),
    ] {
        let mut rig = Rig::new(1);
        rig.node(0, 0, 17, 1);
        rig.node(0, 1, 18, 1);
        rig.sent.clear();
        rig.message(0, 0, &message);
        assert_eq!(rig.errors(), [(ConnId(0), code, None)], "{message:?}");
        assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), close)]);
        assert_eq!(rig.data(0, 1, 18, 18), [Verdict::Local(ConnId(1))]);
        assert_eq!(rig.workers[0].connections(), (1, 0));
    }
}

#[test]
fn nothing_is_forwarded_before_a_sign_in() {
    let mut rig = Rig::new(1);
    rig.node(0, 1, 18, 1);
    rig.open(0, 0, Purpose::Data);
    assert_eq!(rig.data(0, 0, 17, 18), []);
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1002)]);
    rig.open(0, 2, Purpose::MeshIn);
    assert_eq!(rig.data(0, 2, 17, 18), []);
    assert_eq!(rig.closed.len(), 2);
}

#[test]
fn silence_ends_at_the_handshake_time_and_places_are_given_back() {
    let mut rig = Rig::new(1);
    rig.open(0, 0, Purpose::Data);
    rig.open(0, 1, Purpose::MeshIn);
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    rig.workers[0].open(ConnId(2), localhost, rig.now.instant).unwrap();
    rig.node(0, 3, 17, 1);
    rig.sent.clear();
    rig.advance(Duration::from_millis(9_999));
    assert_eq!(rig.closed, []);
    rig.advance(Duration::from_millis(1));
    assert_eq!(
        rig.closed.iter().map(|(_, conn, code)| (conn.0, *code)).collect::<Vec<_>>(),
        [(0, 1008), (1, 1008), (2, 1008)]
    );
    assert!(rig.errors().iter().all(|(_, code, _)| *code == ErrorCode::InvalidToken));
    assert_eq!(rig.workers[0].connections(), (1, 0));
}

#[test]
fn unauthenticated_connections_are_limited_in_all_and_per_address() {
    let limits = Limits {
        max_unauthenticated: 5,
        max_unauthenticated_per_address: 3,
        max_connections: 6,
        ..Limits::default()
    };
    let mut rig = Rig::new(1);
    rig.hub.all(ToWorker::Limits(limits));
    rig.settle();
    let open = |rig: &mut Rig, conn, last| {
        rig.workers[0].open(ConnId(conn), IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), rig.now.instant)
    };
    for conn in 0..3 {
        assert_eq!(open(&mut rig, conn, 1), Ok(()));
    }
    assert_eq!(open(&mut rig, 3, 1), Err(Refusal::Address));
    assert_eq!(open(&mut rig, 3, 2), Ok(()));
    assert_eq!(open(&mut rig, 4, 2), Ok(()));
    assert_eq!(open(&mut rig, 5, 3), Err(Refusal::Unauthenticated));
    rig.workers[0].closed(ConnId(0));
    assert_eq!(open(&mut rig, 5, 1), Ok(()));
    assert_eq!(rig.workers[0].counters().refused, 2);
}

#[test]
fn ping_is_answered_at_once_even_before_the_sign_in() {
    let mut rig = Rig::new(1);
    rig.open(0, 0, Purpose::Data);
    rig.message(0, 0, &frame(FrameType::Ping, b"12345678"));
    assert_eq!(rig.sent, [(WorkerId(0), ConnId(0), FrameType::Pong, b"12345678".to_vec())]);
}

#[test]
fn a_token_that_runs_out_ends_the_connection_and_a_fresh_one_extends_it() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.node(0, 1, 18, 1);
    rig.sent.clear();
    rig.advance(Duration::from_secs(5000));
    // A word from the controller, so that grace is not in the way.
    rig.hub.handle_control(FrameType::Pong, b"", rig.now).unwrap();
    let fresh = Token { jti: "fresh".into(), iat: T + 5000, exp: T + 10_400, ..Rig::token(17, 1) };
    let fresh = rig.signer.sign(&fresh).unwrap();
    rig.authenticate(0, 0, "relay", &fresh);
    rig.hub.handle_control(FrameType::Pong, b"", rig.now).unwrap();
    rig.settle();
    for _ in 0..9 {
        rig.advance(Duration::from_secs(50));
        rig.hub.handle_control(FrameType::Pong, b"", rig.now).unwrap();
        rig.settle();
    }
    assert_eq!(rig.errors(), [(ConnId(1), ErrorCode::TokenExpired, Some(NodeId(18)))]);
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(1), 1008)]);
    assert_eq!(rig.data(0, 0, 17, 17), [Verdict::Local(ConnId(0))]);
}

#[test]
fn while_the_controller_is_away_tokens_last_longer_and_contact_ends_that() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.advance(Duration::from_secs(60));
    assert!(rig.hub.in_grace());
    rig.advance(Duration::from_secs(6000));
    assert_eq!(rig.closed, []);
    rig.node(0, 1, 18, 1);
    assert_eq!(rig.data(0, 1, 18, 17), [Verdict::Local(ConnId(0))], "an old token still opens");
    rig.hub.handle_control(FrameType::Ping, b"", rig.now).unwrap();
    rig.settle();
    assert_eq!(rig.closed.len(), 2);
    rig.advance(Duration::from_secs(61));
    rig.advance(Duration::from_secs(86_400));
    rig.sent.clear();
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::TokenExpired, None)], "not for ever");
}

#[test]
fn revocation_cuts_live_connections_on_every_worker_and_holds_afterwards() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 18, 1);
    rig.node(1, 1, 19, 1);
    rig.link(0, 5, 2);
    rig.sent.clear();
    let revocations = Revocations {
        tokens: vec![RevokedToken { jti: "t18".into(), expires: T + 5400 }],
        nodes: vec![RevokedNode { node_id: NodeId(17), before: T + 1 }],
        relays: vec![],
    };
    rig.control(FrameType::ServerBlacklist, &revocations).unwrap();
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1008), (WorkerId(1), ConnId(0), 1008)]);
    assert!(rig.errors().iter().all(|(_, code, _)| *code == ErrorCode::TokenRevoked));
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::TokenRevoked, None)]);
    let later = Token { iat: T + 1, jti: "new".into(), ..Rig::token(17, 1) };
    rig.open(0, 0, Purpose::Data);
    let later = rig.signer.sign(&later).unwrap();
    rig.authenticate(0, 0, "relay", &later);
    assert_eq!(rig.errors(), []);
    let relays =
        vec![crate::proto::wire::control::server::RevokedRelay { relay_id: RelayId(2), before: T + 1 }];
    rig.closed.clear();
    rig.control(FrameType::ServerBlacklist, &Revocations { relays, ..Revocations::default() }).unwrap();
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(5), 1008)]);
    let saved = rig.saved.clone().unwrap();
    assert_eq!(saved.config.revocations.tokens.len(), 1, "kept at once");
}

#[test]
fn a_second_connection_of_a_node_replaces_the_first_wherever_it_is() {
    let mut rig = Rig::new(2);
    rig.node(0, 0, 17, 1);
    rig.node(0, 9, 18, 1);
    for (worker, conn, old) in [(0, 1, (0, 0)), (1, 0, (0, 1)), (0, 2, (1, 0))] {
        rig.sent.clear();
        rig.closed.clear();
        rig.node(worker, conn, 17, 1);
        let gone = rig.sent.iter().find(|(_, _, kind, _)| *kind == FrameType::GoAway).unwrap();
        assert_eq!((gone.0, gone.1), (WorkerId(old.0), ConnId(old.1)));
        assert_eq!(parse::<GoAway>(FrameType::GoAway, &gone.3).unwrap().reason, "replaced");
        assert_eq!(rig.closed, [(WorkerId(old.0), ConnId(old.1), 1000)]);
        let expected = if worker == 0 {
            Verdict::Local(ConnId(conn))
        } else {
            Verdict::Worker(WorkerId(1), Hop::Deliver)
        };
        assert_eq!(rig.data(0, 9, 18, 17), [expected]);
        assert_eq!(rig.hub.connected_nodes(), 2);
    }
}

#[test]
fn two_workers_that_sign_in_a_node_at_the_same_moment_are_put_in_order() {
    let mut rig = Rig::new(2);
    rig.hold = true;
    rig.node(0, 0, 17, 1);
    rig.node(1, 0, 17, 1);
    rig.node(1, 9, 18, 1);
    rig.closed.clear();
    rig.release();
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(0), 1000)], "the hub saw worker 1 last");
    assert_eq!(rig.data(1, 9, 18, 17), [Verdict::Local(ConnId(0))]);
    rig.hold = true;
    rig.node(0, 1, 17, 1);
    rig.node(1, 1, 17, 1);
    rig.held.reverse();
    rig.release();
    let (zero, one) = (rig.data(0, 1, 17, 18), rig.data(1, 1, 17, 18));
    assert_eq!([zero.len(), one.len()].iter().sum::<usize>(), 1, "one of them has it: {zero:?} {one:?}");
}

#[test]
fn the_controller_hears_register_first_then_what_changed() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    let next = |rig: &mut Rig| {
        rig.hub.poll_control(rig.now).map(|(kind, payload)| (kind, String::from_utf8(payload).unwrap()))
    };
    let (kind, text) = next(&mut rig).unwrap();
    assert_eq!(kind, FrameType::ServerRegister);
    assert!(text.contains(r#""nodes":[17]"#) && text.contains(r#""config_version":7"#), "{text}");
    assert_eq!(next(&mut rig), None);
    rig.node(0, 1, 18, 1);
    rig.workers[0].closed(ConnId(0));
    rig.settle();
    let text = r#"{"connected":[18],"disconnected":[17]}"#.to_string();
    assert_eq!(next(&mut rig), Some((FrameType::ServerNodeLoc, text)));
    rig.hub.controller_connected();
    assert!(next(&mut rig).unwrap().1.contains(r#""nodes":[18]"#));
    rig.link(0, 5, 2);
    rig.message(0, 5, &frame(FrameType::Pong, &1u64.to_be_bytes()));
    rig.advance(Duration::from_secs(30));
    let (kind, text) = next(&mut rig).unwrap();
    assert_eq!(kind, FrameType::LatencyReport);
    assert!(text.contains(r#""from":{"kind":"relay","id":1}"#) && text.contains(r#""id":2"#), "{text}");
}

#[test]
fn links_are_pinged_measured_and_given_up_after_three_seconds_of_silence() {
    let mut rig = Rig::new(1);
    rig.link(0, 5, 2);
    let pings = |rig: &Rig| rig.sent.iter().filter(|(_, _, kind, _)| *kind == FrameType::Ping).count();
    assert_eq!(pings(&rig), 1);
    rig.advance(Duration::from_millis(20));
    rig.message(0, 5, &frame(FrameType::Pong, &1u64.to_be_bytes()));
    assert_eq!(rig.hub.links().collect::<Vec<_>>(), [(RelayId(2), Some(Duration::from_millis(20)))]);
    for _ in 0..29 {
        rig.advance(Duration::from_secs(1));
    }
    assert_eq!(pings(&rig), 1, "idle: 30 s apart");
    rig.locate(&[(30, 1, &[2])]);
    rig.node(0, 0, 17, 1);
    rig.data(0, 0, 17, 30);
    rig.advance(Duration::from_secs(1));
    assert_eq!(pings(&rig), 2, "traffic: every second");
    for _ in 0..3 {
        rig.advance(Duration::from_secs(1));
    }
    assert_eq!(rig.closed, [(WorkerId(0), ConnId(5), 1000)]);
    assert_eq!(rig.hub.links().count(), 0);
    assert_eq!(rig.data(0, 0, 17, 30), []);
}

#[test]
fn a_relay_dials_shows_its_token_and_checks_who_answers() {
    let mut rig = Rig::new(2);
    let peer = MeshPeer {
        id: RelayId(2),
        name: String::new(),
        mesh_url: Some("wss://r2/ws/mesh".into()),
        tls_pin: None,
        mesh_token: Some("shown".into()),
    };
    let mut config = config(&rig.signer);
    config.relays = vec![peer];
    rig.control(FrameType::Config, &config).unwrap();
    assert_eq!(rig.dialled, [RelayId(2)]);
    let answer =
        |id: u16| frame(FrameType::AuthResponse, format!(r#"{{"kind":"mesh","relay_id":{id}}}"#).as_bytes());
    rig.open(1, 4, Purpose::MeshOut { relay: RelayId(2), token: "shown".into() });
    assert!(rig.sent.iter().any(|(.., payload)| payload.windows(5).any(|window| window == b"shown")));
    rig.message(1, 4, &answer(3));
    assert_eq!(rig.closed, [(WorkerId(1), ConnId(4), 1002)], "somebody else answered");
    rig.advance(Duration::from_secs(1));
    assert_eq!(rig.dialled.len(), 2, "tried again");
    rig.open(1, 4, Purpose::MeshOut { relay: RelayId(2), token: "shown".into() });
    rig.message(1, 4, &answer(2));
    assert_eq!(rig.hub.links().count(), 1);
    rig.closed.clear();
    config.relays.clear();
    rig.control(FrameType::Config, &config).unwrap();
    assert_eq!(rig.closed, [(WorkerId(1), ConnId(4), 1000)], "removed from the list");
}

#[test]
fn a_bad_control_message_changes_nothing_and_a_gap_asks_for_everything() {
    let mut rig = Rig::new(1);
    let update = serde_json::json!({"version": 12, "base": 11, "changes": []});
    assert_eq!(
        rig.control(FrameType::ConfigUpdate, &update),
        Err(ControlError::OutOfStep { base: 11, have: 7 })
    );
    assert_eq!(rig.hub.version(), 0, "the next SERVER_REGISTER asks for all of it");
    let bad_keys =
        serde_json::json!({"version": 8, "relay_id": 1, "token_keys": {"algorithm": "EdDSA", "keys": []}});
    assert!(matches!(rig.control(FrameType::Config, &bad_keys), Err(ControlError::Keys(_))));
    assert!(matches!(rig.control(FrameType::Config, &"no"), Err(ControlError::Message(_))));
    assert_eq!(rig.control(FrameType::Data, &""), Err(ControlError::Unexpected(FrameType::Data)));
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.closed, [], "the keys that were there still hold");
}

#[test]
fn without_keys_sign_ins_are_told_to_come_back() {
    let mut rig = Rig::bare(1);
    assert!(!rig.hub.is_ready());
    rig.node(0, 0, 17, 1);
    assert_eq!(rig.errors(), [(ConnId(0), ErrorCode::Unavailable, None)]);
}

#[test]
fn a_kept_state_serves_until_the_controller_is_back() {
    let mut rig = Rig::new(1);
    rig.locate(&[(30, 1, &[2])]);
    rig.advance(Duration::from_secs(5));
    let saved = rig.saved.clone().unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    let saved: SavedState = serde_json::from_str(&text).unwrap();
    let mut again = Rig::bare(1);
    let settings = Settings {
        token_keys: None,
        relay_id: RelayId(0),
        mesh_peers: vec![],
        has_controller: true,
        register: serde_json::from_str(r#"{"capabilities": []}"#).unwrap(),
    };
    again.hub = Hub::new(settings, Some(saved), ChaCha20Rng::from_seed([4; 32]), again.now).unwrap();
    again.settle();
    again.node(0, 0, 17, 1);
    again.sent.clear();
    assert_eq!(again.data(0, 0, 17, 30), []);
    assert_eq!(
        again.errors(),
        [(ConnId(0), ErrorCode::DestinationOffline, Some(NodeId(30)))],
        "known, link down"
    );
    assert_eq!(again.hub.version(), 7);
}

#[test]
fn draining_says_goodbye_to_all_and_lets_nobody_in() {
    let mut rig = Rig::new(1);
    rig.node(0, 0, 17, 1);
    rig.link(0, 5, 2);
    rig.sent.clear();
    rig.hub.all(ToWorker::Drain { grace: Duration::from_secs(5) });
    rig.settle();
    let said: Vec<_> = rig.sent.iter().map(|(_, conn, kind, _)| (conn.0, *kind)).collect();
    assert_eq!(said, [(0, FrameType::GoAway), (5, FrameType::GoAway)]);
    let refused = rig.workers[0].open(ConnId(7), IpAddr::V4(Ipv4Addr::LOCALHOST), rig.now.instant);
    assert_eq!(refused, Err(Refusal::Draining));
    assert_eq!(rig.data(0, 0, 17, 17), [Verdict::Local(ConnId(0))], "until the end, frames still pass");
}

/// A step of the model test: nodes 1 to 6, odd ones in network 1, even ones in network 2; connections 0 to 3; relays 2 and 3.
#[derive(Clone, Debug)]
enum Step {
    SignIn { conn: u32, node: u32 },
    Hang { conn: u32 },
    Locate { node: u32, relays: Vec<u16> },
    Link { relay: u16, up: bool },
    Send { from: u32, source: u32, destination: u32, via: Option<u16> },
}

fn step() -> impl Strategy<Value = Step> {
    let relays = proptest::collection::vec(2u16..4, 0..3);
    prop_oneof![
        (0u32..4, 1u32..7).prop_map(|(conn, node)| Step::SignIn { conn, node }),
        (0u32..4).prop_map(|conn| Step::Hang { conn }),
        (1u32..7, relays).prop_map(|(node, relays)| Step::Locate { node, relays }),
        (2u16..4, any::<bool>()).prop_map(|(relay, up)| Step::Link { relay, up }),
        // Connections 10 and 11 are the links to relays 2 and 3.
        (prop_oneof![0u32..4, 10u32..12], 1u32..7, 1u32..7, proptest::option::of(2u16..4))
            .prop_map(|(from, source, destination, via)| Step::Send { from, source, destination, via }),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_a_frame_only_goes_where_a_simple_model_says(steps in proptest::collection::vec(step(), 1..60)) {
        let mut rig = Rig::new(1);
        let mut here: BTreeMap<u32, u32> = BTreeMap::new();
        let mut known: BTreeMap<u32, Vec<u16>> = BTreeMap::new();
        let mut links: Vec<u16> = Vec::new();
        let network = |node: u32| 1 + (node + 1) % 2;
        for step in steps {
            match step {
                Step::SignIn { conn, node } => {
                    if !here.values().any(|at| *at == conn) {
                        rig.workers[0].closed(ConnId(conn));
                        rig.settle();
                        rig.open(0, conn, Purpose::Data);
                    }
                    let token = rig.signer.sign(&Rig::token(node, network(node))).unwrap();
                    rig.authenticate(0, conn, "relay", &token);
                    here.insert(node, conn);
                    known.entry(node).or_default();
                }
                Step::Hang { conn } => {
                    rig.workers[0].closed(ConnId(conn));
                    rig.settle();
                    here.retain(|_, at| *at != conn);
                }
                Step::Locate { node, relays } => {
                    rig.locate(&[(node, network(node), &relays)]);
                    known.insert(node, relays);
                }
                Step::Link { relay, up } => {
                    let conn = 8 + u32::from(relay);
                    if up && !links.contains(&relay) {
                        rig.link(0, conn, relay);
                        links.push(relay);
                    } else if !up {
                        rig.workers[0].closed(ConnId(conn));
                        rig.settle();
                        links.retain(|id| *id != relay);
                    }
                }
                Step::Send { from, source, destination, via: by } => {
                    let from_mesh = (from >= 10).then(|| (from - 8) as u16);
                    let live = match from_mesh {
                        Some(relay) => links.contains(&relay),
                        None => here.values().any(|at| *at == from),
                    };
                    if !live {
                        continue;
                    }
                    let by = by.filter(|_| from_mesh.is_none());
                    let frame = data(source, destination);
                    let message = by.map_or(frame.clone(), |relay| via(relay, &frame));
                    let got: Vec<Verdict> = rig.message(0, from, &message).into_iter().map(|(verdict, _)| verdict).collect();
                    let allowed = match from_mesh {
                        Some(relay) => known.get(&source).is_some_and(|relays| relays.contains(&relay)),
                        None => here.get(&source) == Some(&from),
                    } && known.contains_key(&destination) && network(source) == network(destination);
                    let local = here.get(&destination).map(|conn| Verdict::Local(ConnId(*conn)));
                    let over = |relay: u16| links.contains(&relay).then(|| Verdict::MeshLink(ConnId(8 + u32::from(relay))));
                    let want = if !allowed {
                        None
                    } else if from_mesh.is_some() {
                        local
                    } else if let Some(relay) = by {
                        over(relay).or(local)
                    } else {
                        local.or_else(|| known[&destination].iter().find_map(|relay| over(*relay)))
                    };
                    prop_assert_eq!(got, want.into_iter().collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn any_message_is_taken_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), mesh in any::<bool>(), signed in any::<bool>()) {
        let mut rig = Rig::new(1);
        match (mesh, signed) {
            (false, true) => rig.node(0, 0, 17, 1),
            (true, true) => rig.link(0, 0, 2),
            (false, false) => rig.open(0, 0, Purpose::Data),
            (true, false) => rig.open(0, 0, Purpose::MeshIn),
        }
        rig.message(0, 0, &bytes);
        let mut framed = vec![1, bytes.first().copied().unwrap_or(0x10), 0, 0, bytes.len() as u8];
        framed.extend_from_slice(&bytes);
        rig.message(0, 0, &framed);
        let (open, unauthenticated) = rig.workers[0].connections();
        prop_assert!(open <= 1 && unauthenticated <= open);
    }
}
