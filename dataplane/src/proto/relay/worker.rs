//! One worker's connections: who is on them, where their frames go, when they end (`docs/protocol.md` §4, §5.4).
//!
//! The shell's loop: [`Worker::open`] when a connection is accepted, [`Worker::upgraded`] when its HTTP upgrade is done, [`Worker::handle_message`] for
//! each WebSocket message, [`Worker::closed`] at its end; [`Worker::handle_hub`] for what the hub says and [`Worker::handle_timeout`] when
//! [`Worker::poll_timeout`] says so. After each of these, drain [`Worker::poll_command`].
//!
//! Frames between nodes take the short way: [`Worker::route`] reads 13 bytes and looks at two directory entries, and the caller's closure gets the
//! frame as it lies there. That is in `forward`, limits of rate in `limit`. All else (sign-in, pings, errors) is slow path and goes through commands. Who
//! gets a place is in `admission`, sign-in in `sign_in`, what the hub says in `from_hub`, mesh links in `link`; what goes in and out is in `api`.

mod admission;
mod api;
mod forward;
mod from_hub;
mod limit;
mod link;
mod sign_in;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::addresses::{AddressId, Addresses};
use super::calendar::Calendar;
use super::directory::Directory;
use super::error_limit::ErrorLimit;
use super::{ConnId, FromWorker, Limits, LinkSerial, Verdict, WorkerId};
use crate::proto::drop_reason::{DropCounters, DropReason};
use crate::proto::error::{ErrorCode, FrameError};
use crate::proto::id::{IdMap, NetworkId, NodeId, RelayId};
use crate::proto::time::{Instant, Now, UnixTime};
use crate::proto::token::TokenVerifier;
use crate::proto::token::revocation::RevocationList;
use crate::proto::wire::control::{ErrorMessage, GoAway, Secret, parse, to_payload};
use crate::proto::wire::frame::{Flags, Frame, FrameType, Frames, MAX_PING, write_frame};
use crate::proto::wire::reassembly::Reassembler;
pub use api::{Command, ConnectionInfo, Counters, LinkInfo, Purpose, Refusal};

/// The longest control message from a node or relay: an AUTH_REQUEST with the longest token, three times over.
const MAX_CONTROL: usize = 16 << 10;
/// The longest WebSocket message of somebody who has not signed in: a control message, and a PING or two. Many strangers may each send all but the
/// end of one.
pub const MAX_STRANGERS_MESSAGE: usize = 2 * MAX_CONTROL;
/// Networks that drops are counted for one by one; those beyond share the last counter.
const MAX_COUNTED_NETWORKS: usize = 1024;

/// One worker.
#[derive(Debug)]
pub struct Worker {
    id: WorkerId,
    /// There is no other worker.
    alone: bool,
    relay_id: RelayId,
    verifier: Option<Arc<TokenVerifier>>,
    revoked: RevocationList,
    grace: Duration,
    limits: Limits,
    draining: bool,
    directory: Directory,
    conns: Vec<Option<Conn>>,
    open: usize,
    unauthenticated: usize,
    addresses: Addresses,
    /// Somebody's rate is limited.
    metered: bool,
    calendar: Calendar,
    mesh_tokens: Arc<BTreeMap<RelayId, Secret>>,
    links: IdMap<RelayId, LinkPlace>,
    /// Of these, such as lead to a relay that is about to stop.
    leaving: IdMap<RelayId, LinkSerial>,
    next_serial: u64,
    /// Each connection has one timer at most; its moment is in [`Conn::timer`] too.
    timers: BTreeSet<(Instant, ConnId)>,
    commands: VecDeque<Command>,
    drops: DropCounters,
    network_drops: IdMap<NetworkId, DropCounters>,
    counters: Counters,
}

#[derive(Debug)]
struct Conn {
    role: Role,
    peer: IpAddr,
    /// Where its places and rates are counted; `None` while `peer` is a proxy's, which stands for nobody.
    address: Option<AddressId>,
    accepted: Instant,
    timer: Option<Instant>,
    reassembler: Reassembler,
    error_limit: ErrorLimit,
}

#[derive(Debug)]
enum Role {
    /// Accepted; no HTTP upgrade yet. `None` for one that we dialled.
    Opening,
    /// A node's, with what is authenticated on it.
    Data(Vec<Membership>),
    /// Waits for AUTH_REQUEST.
    MeshExpectRequest,
    /// Waits for AUTH_RESPONSE from this relay.
    MeshExpectResponse(RelayId),
    /// A mesh link.
    Mesh(link::Link),
}

impl Role {
    fn is_authenticated(&self) -> bool {
        match self {
            Self::Data(memberships) => !memberships.is_empty(),
            Self::Mesh(_) => true,
            _ => false,
        }
    }
}

/// A node authenticated on a connection, and the dates of its token.
#[derive(Debug)]
struct Membership {
    node: NodeId,
    jti: String,
    iat: u64,
    exp: u64,
    not_after: Option<u64>,
    /// Bytes a second by its token: up, down.
    rates: [Option<u64>; 2],
    /// AUTH_RESPONSE waits until the hub has told all workers: who has it can be reached from everywhere.
    answer_due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkPlace {
    Here(ConnId, LinkSerial),
    Worker(WorkerId, LinkSerial),
}

impl LinkPlace {
    const fn serial(self) -> LinkSerial {
        match self {
            Self::Here(_, serial) | Self::Worker(_, serial) => serial,
        }
    }
}

impl Worker {
    /// Without keys: until the hub says who this relay is, sign-ins are answered with 4002.
    pub fn new(id: WorkerId, limits: Limits) -> Self {
        let metered = limits.rates.any();
        Self {
            id,
            alone: false,
            relay_id: RelayId(0),
            verifier: None,
            revoked: RevocationList::default(),
            grace: Duration::ZERO,
            limits,
            draining: false,
            directory: Directory::default(),
            conns: Vec::new(),
            open: 0,
            unauthenticated: 0,
            addresses: Addresses::default(),
            metered,
            calendar: Calendar::default(),
            mesh_tokens: Arc::default(),
            links: IdMap::default(),
            leaving: IdMap::default(),
            next_serial: 0,
            timers: BTreeSet::new(),
            commands: VecDeque::new(),
            drops: DropCounters::default(),
            network_drops: IdMap::default(),
            counters: Counters::default(),
        }
    }

    /// The relay's only worker: who signs in is answered at once, since no other worker has to hear of it first.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// The HTTP upgrade is done: frames may come.
    pub fn upgraded(&mut self, conn: ConnId, purpose: Purpose) {
        let Some(state) = self.conn_mut(conn) else { return };
        match purpose {
            Purpose::Data => state.role = Role::Data(Vec::new()),
            Purpose::MeshIn => state.role = Role::MeshExpectRequest,
            Purpose::MeshOut { relay, token } => {
                state.role = Role::MeshExpectResponse(relay);
                self.request_mesh(conn, token);
            }
        }
    }

    /// The connection has ended, for whatever reason.
    pub fn closed(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(conn.0 as usize).and_then(Option::take) else { return };
        self.open -= 1;
        if let Some(at) = state.timer {
            self.timers.remove(&(at, conn));
        }
        let authenticated = state.role.is_authenticated();
        if !authenticated {
            self.unauthenticated -= 1;
        }
        if let Some(address) = state.address {
            self.addresses.leave(address, authenticated);
        }
        match state.role {
            Role::Data(memberships) => {
                for membership in memberships {
                    if self.directory.signed_out(membership.node, conn) {
                        self.report(FromWorker::NodeDown { node: membership.node });
                    }
                }
            }
            Role::MeshExpectResponse(relay) => self.report(FromWorker::DialFailed { relay }),
            Role::Mesh(link) => self.link_ended(conn, link.relay, link.serial),
            Role::Opening | Role::MeshExpectRequest => {}
        }
    }

    /// Takes one WebSocket message. `forward` gets each frame that goes on, with where to ([`Verdict::Drop`] never reaches it).
    pub fn handle_message(
        &mut self,
        conn: ConnId,
        message: &[u8],
        now: Now,
        mut forward: impl FnMut(Verdict, &[u8]),
    ) {
        self.handle_runs(conn, message, now, |verdict, run| {
            Frames::new(run).flatten().for_each(|frame| forward(verdict, frame.bytes));
        });
    }

    /// The shell dropped frames itself (queues).
    pub fn count_drops(&mut self, reason: DropReason, frames: u64) {
        self.drops.add(reason, frames);
    }

    /// The shell's queues count straight into this.
    pub fn drops_mut(&mut self) -> &mut DropCounters {
        &mut self.drops
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(&(at, conn)) = self.timers.first() {
            if at > now.instant {
                return;
            }
            self.set_timer(conn, None);
            match self.conn(conn).map(|conn| &conn.role) {
                Some(Role::Data(memberships)) if !memberships.is_empty() => self.check_expiry(conn, now),
                Some(Role::Mesh(_)) => self.ping_link(conn, now.instant),
                // Before the upgrade there is no frame to say it with.
                Some(Role::Opening) => {
                    self.counters.handshake_timeouts += 1;
                    self.cut(conn);
                }
                Some(_) => {
                    self.counters.handshake_timeouts += 1;
                    self.fail(
                        conn,
                        ErrorCode::InvalidToken,
                        "no token within the handshake time".into(),
                        None,
                    );
                }
                None => {}
            }
        }
    }

    /// When [`Self::handle_timeout`] has something to do, and what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let &(at, conn) = self.timers.first()?;
        let reason = match self.conn(conn).map(|conn| &conn.role) {
            Some(Role::Data(memberships)) if !memberships.is_empty() => "token expiry",
            Some(Role::Mesh(_)) => "mesh ping",
            _ => "handshake",
        };
        Some((at, reason))
    }

    /// What is to be done; call until `None`.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Drops so far.
    pub fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// Drops of frames whose sender's network is known, by that network.
    pub fn network_drops(&self) -> impl Iterator<Item = (NetworkId, &DropCounters)> {
        self.network_drops.iter().map(|(id, drops)| (*id, drops))
    }

    /// Counts so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections, and how many of them have not authenticated.
    pub fn connections(&self) -> (usize, usize) {
        (self.open, self.unauthenticated)
    }

    /// Nodes in the directory.
    pub fn known_nodes(&self) -> usize {
        self.directory.len()
    }

    /// Every connection, for people. At most `limit`.
    pub fn connection_infos(&self, now: Instant, limit: usize) -> Vec<ConnectionInfo> {
        let info = |(slot, conn): (usize, &Option<Conn>)| {
            let conn = conn.as_ref()?;
            let (kind, nodes, relay) = match &conn.role {
                Role::Opening => ("opening", Vec::new(), None),
                Role::Data(all) => ("data", all.iter().map(|membership| membership.node).collect(), None),
                Role::MeshExpectRequest => ("mesh", Vec::new(), None),
                Role::MeshExpectResponse(relay) => ("mesh", Vec::new(), Some(*relay)),
                Role::Mesh(link) => ("mesh", Vec::new(), Some(link.relay)),
            };
            let age = now - conn.accepted;
            Some(ConnectionInfo { conn: ConnId(slot as u32), kind, peer: conn.peer, nodes, relay, age })
        };
        self.conns.iter().enumerate().filter_map(info).take(limit).collect()
    }

    /// Everything that is not forwarded.
    fn handle_frame(&mut self, conn: ConnId, frame: Frame<'_>, now: Now) -> Result<(), FrameError> {
        let kind = frame.header.kind;
        let Some(state) = self.conn_mut(conn) else { return Ok(()) };
        match (kind, &mut state.role) {
            (FrameType::Ping, _) if frame.payload().len() <= MAX_PING => {
                self.send(conn, FrameType::Pong, frame.payload());
                Ok(())
            }
            (FrameType::Ping | FrameType::Pong, _) if frame.payload().len() > MAX_PING => {
                Err(FrameError::PayloadLength { kind: kind as u8, length: frame.payload().len() })
            }
            (FrameType::Pong, Role::Mesh(_)) => {
                self.pong(conn, frame.payload(), now.instant);
                Ok(())
            }
            (FrameType::GoAway, Role::Mesh(link)) => {
                let drains = parse::<GoAway>(FrameType::GoAway, frame.payload())
                    .is_ok_and(|message| message.reason == "drain");
                let (relay, serial) = (link.relay, link.serial);
                if drains {
                    self.leaving.insert(relay, serial);
                    self.report(FromWorker::LinkLeaving { relay, serial });
                }
                Ok(())
            }
            // A node may keep its connection alive with either; what it says about its own troubles needs no answer.
            (FrameType::Pong | FrameType::Error | FrameType::GoAway, _) => Ok(()),
            (FrameType::AuthRequest, Role::Data(_) | Role::MeshExpectRequest)
            | (FrameType::AuthResponse, Role::MeshExpectResponse(_)) => {
                if let Some(message) = state.reassembler.push(frame)? {
                    self.sign_in(conn, &message.payload, now);
                }
                Ok(())
            }
            _ => Err(FrameError::UnexpectedType(kind as u8)),
        }
    }

    /// Sends an ERROR and closes: the machine is done with the connection.
    fn fail(&mut self, conn: ConnId, code: ErrorCode, message: String, node: Option<NodeId>) {
        if self.conn(conn).is_none() {
            return;
        }
        let mut error = ErrorMessage::with(code, message);
        error.node = node;
        self.send_error(conn, &error);
        self.close(conn, code.close_code().unwrap_or(1000));
    }

    fn close(&mut self, conn: ConnId, code: u16) {
        self.closed(conn);
        self.commands.push_back(Command::Close { conn, code });
    }

    fn cut(&mut self, conn: ConnId) {
        self.closed(conn);
        self.commands.push_back(Command::Cut { conn });
    }

    fn go_away(&mut self, conn: ConnId, reason: &str, grace: Duration) {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.send(conn, FrameType::GoAway, &to_payload(&GoAway { reason: reason.into(), grace_ms }));
    }

    fn send_error(&mut self, conn: ConnId, error: &ErrorMessage) {
        if let Some(counter) = ErrorCode::ALL
            .iter()
            .position(|code| *code == error.code)
            .and_then(|at| self.counters.errors.get_mut(at))
        {
            *counter += 1;
        }
        self.send(conn, FrameType::Error, &to_payload(error));
    }

    fn send(&mut self, conn: ConnId, kind: FrameType, payload: &[u8]) {
        let mut frame = Vec::new();
        if write_frame(kind, Flags::NONE, payload, &mut frame).is_ok() {
            self.commands.push_back(Command::Send { conn, frame });
        }
    }

    fn report(&mut self, report: FromWorker) {
        self.commands.push_back(Command::Report(report));
    }

    fn conn(&self, conn: ConnId) -> Option<&Conn> {
        self.conns.get(conn.0 as usize)?.as_ref()
    }

    fn conn_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn.0 as usize)?.as_mut()
    }

    fn set_timer(&mut self, conn: ConnId, at: Option<Instant>) {
        let Some(state) = self.conns.get_mut(conn.0 as usize).and_then(Option::as_mut) else { return };
        if let Some(old) = state.timer.take() {
            self.timers.remove(&(old, conn));
        }
        state.timer = at;
        if let Some(at) = at {
            self.timers.insert((at, conn));
        }
    }
}

/// The moment on the monotonic clock at which the calendar shows `until`.
fn instant_of(until: UnixTime, now: Now) -> Instant {
    now.instant + Duration::from_micros(until.as_micros().saturating_sub(now.unix.as_micros()))
}
