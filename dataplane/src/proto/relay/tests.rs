//! The relay's machines together: workers and hub in one process, without sockets and with a clock of their own.

mod clocks;
mod fairness;
mod forwarding;
mod hub;
mod limits;
mod mesh;
mod model;
mod sign_in;

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
use crate::proto::wire::control::{ErrorMessage, GoAway, LimitNotice, parse, to_payload};
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
    discarded: Vec<(WorkerId, ConnId, DropReason)>,
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
            discarded: vec![],
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
                        Command::Discard { conn, reason } => self.discarded.push((id, conn, reason)),
                        Command::Welcome { .. } => {}
                        Command::Cut { conn } => self.closed.push((id, conn, 0)),
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
                ..RelaySubject::default()
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
        let token = self.mesh_token(relay, 1);
        self.authenticate(worker, conn, "mesh", &token);
    }

    /// With it relay `from` proves who it is to relay `to`.
    fn mesh_token(&self, from: u16, to: u16) -> String {
        let subject = MeshSubject { server_id: RelayId(from), peer_id: RelayId(to) };
        let token = Token { subject, jti: format!("m{from}-{to}"), iat: T, exp: T + 86_400, not_after: None };
        self.signer.sign(&token).unwrap()
    }

    /// A relay that we dialled answers.
    fn mesh_answer(&mut self, worker: u16, conn: u32, id: u16, token: &str) {
        let answer = serde_json::json!({"kind": "mesh", "relay_id": id, "token": token}).to_string();
        self.message(worker, conn, &frame(FrameType::AuthResponse, answer.as_bytes()));
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

    /// What nodes were told of limits: to whom, about which node, what.
    fn notices(&mut self) -> Vec<(ConnId, u32, LimitNotice)> {
        let errors = self.sent.drain(..).filter(|(_, _, kind, _)| *kind == FrameType::Error);
        let notice = |(_, conn, kind, payload): (_, _, _, Vec<u8>)| {
            let error: ErrorMessage = parse(kind, &payload).unwrap();
            assert!(error.code == ErrorCode::Overloaded && !error.fatal, "{error:?}");
            (conn, error.node.unwrap().0, error.limit.unwrap())
        };
        errors.map(notice).collect()
    }

    fn limit(&mut self, limits: Limits) {
        self.hub.all(ToWorker::Limits(limits));
        self.settle();
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
