//! One worker's thread: a driver, a machine, and the connections between them.
//!
//! The loop runs to completion: what was received is opened, routed and appended to the receivers' outboxes while it lies in the driver's buffer;
//! when all events are handled every connection with something to send sends it, coalesced. The machine ([`Worker`]) says where
//! frames go and what is to be done; this file moves bytes and keeps no rules of its own, except two: how long a close may take, and that
//! a connection which is being closed is not listened to any more.

pub(super) mod door;
mod look;
mod outputs;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

use super::clock::Clock;
use super::dial::Dialled;
use super::lane::{LaneReceiver, LaneSender};
use super::stats::WorkerStats;
use super::{HubInput, MAX_MESSAGE};
use crate::engine::connection::{Connection, Incoming};
use crate::engine::driver::{Driver, Event, RecvBuffer, Token, Waker};
use crate::engine::moderation::{Moderation, Pace};
use crate::engine::socket::round_trip;
use crate::packet::pool::Pool;
use crate::proto::error::ErrorCode;
use crate::proto::id::RelayId;
use crate::proto::relay::queue::QueuePolicy;
use crate::proto::relay::worker::{Command, Purpose, Worker};
use crate::proto::relay::{ConnId, ToWorker, Verdict, WorkerId};
use crate::proto::time::{Instant, Now};
use crate::proto::wire::control::{ErrorMessage, Secret, to_payload};
use crate::proto::wire::forwarded::Trust;
use crate::proto::wire::frame::{Flags, FrameType, write_frame};
use crate::proto::wire::websocket::Role;
use door::{Door, Origins};
use look::Traffic;
use outputs::Outputs;

/// From the end of a connection as the machine sees it to its end as TCP sees it.
const CLOSE_TIME: Duration = Duration::from_secs(3);
/// What was sent and not acknowledged for that long ends a mesh link (`docs/protocol.md` §5.4).
const MESH_USER_TIMEOUT: Duration = Duration::from_secs(3);
/// The same for a node's connection: mobile links stall for longer.
const NODE_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent connection is asked at the TCP level; nodes send a PING every 20 s, so only dead ones get here.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Bytes that the system takes beyond what the receiver's window lets out: what waits should wait in our queues, where it gets turns and grows old. Up to
/// 4 MiB would go into the system's buffer otherwise. No row of
/// `make bench-relay` is dearer with it (2 vCPU Sapphire Rapids guest, Linux 6.18).
const NOT_SENT: u32 = 128 << 10;
/// A connection whose round trip is shorter than this is given [`NEAR_BUFFER`]: 1 Gbit/s and more.
const NEAR: Duration = Duration::from_millis(1);
/// What the system may receive ahead of us on such a connection, besides as much again of its own. It would let a window of megabytes open, which is of
/// use where the way is long; on a short one what waits in it is only what we have not come to, and goes cold meanwhile: 5 to 9 % of a frame's cost at
/// 1 to 64 pairs, and at three times the load that fits 97 % of the peak against 69 %.
const NEAR_BUFFER: usize = 128 << 10;
/// Received bytes after which output is sent, events left or not: it is still in the cache, and its buffers serve the next.
const FLUSH_AFTER: usize = 64 << 10;
/// When rounds wait for more.
const PACE: Pace =
    Pace { gather: Duration::from_micros(80), rates: (100_000.0, 50_000.0), plenty: FLUSH_AFTER };
/// Close codes (RFC 6455 §7.4.1 and its registry).
const NORMAL: u16 = 1000;
const TRY_AGAIN_LATER: u16 = 1013;

/// To a worker, from other threads. Followed by a wake-up.
#[derive(Debug)]
pub(super) enum ToShell {
    Hub(ToWorker),
    Dialled(Box<Dialled>),
    Tls(Arc<rustls::ServerConfig>),
    Trust(Arc<Trust>),
    Stats {
        connections: bool,
        reply: Sender<WorkerStats>,
    },
    StopListening,
    Stop,
    /// For tests.
    Panic,
}

/// What a worker's thread is given.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) machine: Worker,
    pub(super) id: WorkerId,
    pub(super) listeners: Vec<(OwnedFd, Door)>,
    pub(super) trust: Arc<Trust>,
    pub(super) data_path: &'static str,
    pub(super) policy: QueuePolicy,
    pub(super) clock: Clock,
    pub(super) rng: ChaCha20Rng,
    pub(super) inbox: Receiver<ToShell>,
    pub(super) hub: Sender<HubInput>,
    pub(super) lanes_in: Vec<LaneReceiver>,
    pub(super) lanes_out: Vec<Option<LaneSender>>,
    pub(super) wakers: Vec<Waker>,
}

#[derive(Debug)]
struct Peer {
    token: Token,
    connection: Connection,
    origins: Origins,
    traffic: Traffic,
    /// Dialled, and not upgraded yet.
    dialling: Option<(RelayId, Secret)>,
    closing: bool,
    shut: bool,
}

/// See the module's doc.
pub(super) struct Shell<D> {
    driver: D,
    machine: Worker,
    id: WorkerId,
    listeners: Vec<(Token, Door)>,
    trust: Arc<Trust>,
    data_path: &'static str,
    clock: Clock,
    rng: ChaCha20Rng,
    pool: Pool,
    inbox: Receiver<ToShell>,
    hub: Sender<HubInput>,
    lanes_in: Vec<LaneReceiver>,
    outputs: Outputs,
    peers: Vec<Option<Peer>>,
    closing: VecDeque<(Instant, Token)>,
    /// Bytes received since output was sent.
    unsent: usize,
    stopping: bool,
}

impl<D: Driver> Shell<D> {
    pub(super) fn new(mut driver: D, seat: Seat) -> io::Result<Self> {
        let listeners = seat.listeners.into_iter().map(|(socket, door)| Ok((driver.listen(socket)?, door)));
        let listeners = listeners.collect::<io::Result<_>>()?;
        Ok(Self {
            driver,
            machine: seat.machine,
            id: seat.id,
            listeners,
            trust: seat.trust,
            data_path: seat.data_path,
            clock: seat.clock,
            rng: seat.rng,
            pool: Pool::new(),
            inbox: seat.inbox,
            hub: seat.hub,
            lanes_in: seat.lanes_in,
            outputs: Outputs::new(seat.policy, seat.lanes_out, seat.wakers),
            peers: Vec::new(),
            closing: VecDeque::new(),
            unsent: 0,
            stopping: false,
        })
    }

    /// Until told to stop.
    pub(super) fn run(mut self) -> io::Result<()> {
        // Short waits are meant: by default the kernel may stretch each by 50 µs.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
        let mut moderation = Moderation::new(PACE, self.clock.instant());
        let mut gather = None;
        while !self.stopping {
            self.driver.wait_gathering(self.timeout(), gather)?;
            let now = self.clock.now();
            // First what other threads say: a token key, a revocation, holds for the frames behind it.
            self.read_inbox(now);
            let mut received = 0;
            while let Some(event) = self.driver.next_event() {
                if let Event::Received { buffer, .. } = &event {
                    received += buffer.len();
                }
                self.handle(event, now);
            }
            gather = moderation.gather(now.instant, self.machine.counters().frames_in, received);
            self.machine.handle_timeout(now);
            self.obey(now.instant);
            self.end_closing(now.instant);
            self.flush(now.instant);
            while let Some((link, frames)) = self.outputs.next_loss() {
                self.machine.link_lost(link, frames);
            }
            self.outputs.wake_others();
        }
        self.say_goodbye()
    }

    fn timeout(&self) -> Option<Duration> {
        let machine = self.machine.poll_timeout().map(|(at, _)| at);
        let closing = self.closing.front().map(|(at, _)| *at);
        let at = [machine, closing].into_iter().flatten().min()?;
        Some(at - self.clock.instant())
    }

    fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Accepted { listener, socket, peer } => {
                self.accept(listener, socket, peer.ip(), now.instant);
            }
            Event::Received { token, buffer } => {
                let mut taken = 0;
                while taken < buffer.len() {
                    let piece = self.receive(token, &buffer, taken, now).max(1);
                    taken += piece;
                    self.unsent += piece;
                    if self.unsent >= FLUSH_AFTER {
                        self.obey(now.instant);
                        self.flush(now.instant);
                    }
                }
                self.driver.recycle(buffer);
            }
            Event::Sent { token, buffer } => {
                drop(buffer);
                self.flush_one(token.slot(), now.instant);
            }
            Event::Closed { token, error } => {
                tracing::trace!(worker = self.id.0, ?token, ?error, "connection ended");
                self.forget(token);
            }
            // Once more: what was posted since the start of the round may have counted on this very wake-up.
            Event::Woken => self.read_inbox(now),
            Event::Datagram { buffer, .. } | Event::Packet { buffer, .. } => self.driver.recycle(buffer),
            _ => {}
        }
        self.obey(now.instant);
    }

    fn take_dialled(&mut self, dialled: Dialled, now: Instant) {
        let Dialled { relay, token: mesh_token, socket, address, options } = dialled;
        set_timeouts(&socket, MESH_USER_TIMEOUT);
        let mut seed = [0; 16];
        self.rng.fill_bytes(&mut seed);
        let made = Connection::client(&options, &self.pool, seed)
            .map_err(|error| error.to_string())
            .and_then(|connection| {
                let token = self.driver.stream(socket).map_err(|error| error.to_string())?;
                Ok((connection, token))
            });
        let (connection, token) = match made {
            Ok(made) => made,
            Err(error) => {
                tracing::warn!(%relay, %error, "mesh link cannot be set up");
                return self.tell_hub(HubInput::DialFailed(relay));
            }
        };
        if self.machine.open_dialled(conn_id(token), address, now).is_err() {
            self.driver.close(token);
            return self.tell_hub(HubInput::DialFailed(relay));
        }
        let origins = Origins { peer: address, nearest: address, prelude: None };
        self.seat(token, connection, Role::Client, Some((relay, mesh_token)), origins);
    }

    fn seat(
        &mut self,
        token: Token,
        connection: Connection,
        role: Role,
        dialling: Option<(RelayId, Secret)>,
        origins: Origins,
    ) {
        let slot = token.slot();
        if slot >= self.peers.len() {
            self.peers.resize_with(slot + 1, || None);
        }
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        self.outputs.open(slot, role, connection.framing(), &self.pool, seed);
        let traffic = Traffic::default();
        let peer = Peer { token, connection, origins, traffic, dialling, closing: false, shut: false };
        self.peers[slot] = Some(peer);
        self.outputs.mark(slot);
    }

    /// Takes received bytes from `start` on, [`FLUSH_AFTER`] or a little more; says how many.
    fn receive(&mut self, token: Token, buffer: &RecvBuffer, start: usize, now: Now) -> usize {
        let conn = conn_id(token);
        let rest = buffer.len() - start;
        let Some(peer) = self.peers.get_mut(token.slot()).and_then(Option::as_mut) else { return rest };
        if peer.token != token || peer.closing {
            return rest;
        }
        if peer.origins.prelude.is_some() {
            return self.read_prelude(token, buffer, now.instant).unwrap_or(rest);
        }
        let Self { driver, machine, outputs, data_path, trust, .. } = self;
        let Peer { connection, dialling, origins, traffic, .. } = peer;
        let mut ended = None;
        let bytes = driver.bytes(buffer).get_mut(start..).unwrap_or_default();
        let outcome = connection.receive_some(bytes, FLUSH_AFTER, &mut |incoming| match incoming {
            Incoming::Message(message) => {
                machine.handle_runs(conn, message, now, |verdict, frames| {
                    outputs.deliver(verdict, frames, now.instant);
                });
            }
            Incoming::Upgraded(request) => {
                let purpose = match (request, dialling.take()) {
                    (None, Some((relay, token))) => Purpose::MeshOut { relay, token },
                    (Some(request), _) if request.path == *data_path => Purpose::Data,
                    _ => Purpose::MeshIn,
                };
                if origins.identify(trust, request, conn, machine, now.instant) {
                    machine.upgraded(conn, purpose);
                } else {
                    ended = Some(TRY_AGAIN_LATER);
                }
            }
            Incoming::Closed { .. } => ended = Some(NORMAL),
        });
        outputs.mark(token.slot());
        match outcome {
            Ok(taken) => {
                traffic.received += taken as u64;
                if let Some(code) = ended {
                    machine.closed(conn);
                    self.begin_close(token, code, now.instant);
                }
                taken
            }
            Err(error) => {
                tracing::debug!(worker = self.id.0, %error, "connection broken");
                let code = error.error_code();
                if let Some(code) = code {
                    let mut frame = Vec::new();
                    let message = to_payload(&ErrorMessage::with(code, error.to_string()));
                    if write_frame(FrameType::Error, Flags::NONE, &message, &mut frame).is_ok() {
                        self.outputs.urgent(conn, &frame, now.instant);
                    }
                }
                self.machine.closed(conn);
                let close = code.and_then(ErrorCode::close_code).unwrap_or(1002);
                self.begin_close(token, close, now.instant);
                rest
            }
        }
    }

    /// Does what the machine asks for.
    fn obey(&mut self, now: Instant) {
        while let Some(command) = self.machine.poll_command() {
            match command {
                Command::Send { conn, frame } => self.outputs.urgent(conn, &frame, now),
                Command::Close { conn, code } => {
                    if let Some(token) = self.token_of(conn) {
                        self.begin_close(token, code, now);
                    }
                }
                Command::Discard { conn, reason } => self.outputs.discard(conn.0 as usize, reason),
                Command::Welcome { conn } => {
                    if let Some(peer) = self.peers.get_mut(conn.0 as usize).and_then(Option::as_mut) {
                        self.driver.welcome(peer.token);
                        peer.connection.set_max_message(MAX_MESSAGE);
                    }
                }
                Command::Cut { conn } => {
                    if let Some(token) = self.token_of(conn) {
                        self.driver.close(token);
                        self.forget(token);
                    }
                }
                Command::Report(report) => self.tell_hub(HubInput::Worker(self.id, report)),
            }
        }
    }

    fn read_inbox(&mut self, now: Now) {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                ToShell::Hub(message) => {
                    self.machine.handle_hub(&message, now);
                    self.obey(now.instant);
                }
                ToShell::Dialled(dialled) => self.take_dialled(*dialled, now.instant),
                ToShell::Tls(config) => {
                    for tls in self.listeners.iter_mut().filter_map(|(_, door)| door.server.tls.as_mut()) {
                        *tls = Arc::clone(&config);
                    }
                }
                ToShell::Trust(trust) => self.trust = trust,
                ToShell::Stats { connections, reply } => {
                    // Whoever asked may have lost patience.
                    let _ = reply.send(self.stats(connections, now.instant));
                }
                ToShell::StopListening => self.stop_listening(),
                ToShell::Stop => self.stopping = true,
                ToShell::Panic => panic!("asked for"),
            }
        }
        let Self { machine, outputs, lanes_in, .. } = self;
        for lane in lanes_in {
            while lane.pop(|hop, frame| match machine.route_handed_over(hop, frame, now.instant) {
                Verdict::Worker(..) | Verdict::Drop(_) => {}
                verdict => outputs.deliver(verdict, frame, now.instant),
            }) {}
        }
    }

    fn flush(&mut self, now: Instant) {
        self.unsent = 0;
        while let Some(slot) = self.outputs.next_marked() {
            self.flush_one(slot, now);
        }
    }

    /// Sends until the socket takes no more at once, or nothing is left.
    fn flush_one(&mut self, slot: usize, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot).and_then(Option::as_mut) else { return };
        while self.driver.can_send(peer.token) {
            let Some(outbox) = self.outputs.fresh(slot, now) else { return };
            match peer.connection.take_output(outbox) {
                Ok(Some(buffer)) => {
                    peer.traffic.sent += buffer.len() as u64;
                    self.driver.send(peer.token, buffer);
                    self.outputs.sent(slot, now);
                }
                Ok(None) => {
                    if peer.connection.is_finished() && !peer.shut {
                        peer.shut = true;
                        self.driver.shutdown(peer.token);
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(worker = self.id.0, %error, "connection broken");
                    let token = peer.token;
                    self.driver.close(token);
                    return self.forget(token);
                }
            }
        }
    }

    fn begin_close(&mut self, token: Token, code: u16, now: Instant) {
        let Some(peer) = self.peers.get_mut(token.slot()).and_then(Option::as_mut) else { return };
        if peer.token != token || std::mem::replace(&mut peer.closing, true) {
            return;
        }
        peer.connection.close(code, "");
        self.outputs.mark(token.slot());
        self.closing.push_back((now + CLOSE_TIME, token));
    }

    fn end_closing(&mut self, now: Instant) {
        while let Some(&(at, token)) = self.closing.front() {
            if at > now {
                return;
            }
            self.closing.pop_front();
            if self.peers.get(token.slot()).and_then(Option::as_ref).is_some_and(|peer| peer.token == token) {
                self.driver.close(token);
                self.forget(token);
            }
        }
    }

    /// The token is dead.
    fn forget(&mut self, token: Token) {
        let Some(place) = self.peers.get_mut(token.slot()) else { return };
        if place.as_ref().is_none_or(|peer| peer.token != token) {
            return;
        }
        let peer = place.take();
        self.outputs.close(token.slot());
        self.machine.closed(conn_id(token));
        if let Some((relay, _)) = peer.and_then(|peer| peer.dialling) {
            self.tell_hub(HubInput::DialFailed(relay));
        }
    }

    fn say_goodbye(mut self) -> io::Result<()> {
        let now = self.clock.instant();
        self.stop_listening();
        let tokens: Vec<Token> = self.peers.iter().flatten().map(|peer| peer.token).collect();
        for token in tokens {
            self.begin_close(token, 1001, now);
        }
        self.flush(now);
        let end = now + Duration::from_millis(300);
        while self.peers.iter().any(Option::is_some) && self.clock.instant() < end {
            self.driver.wait(Some(end - self.clock.instant()))?;
            while let Some(event) = self.driver.next_event() {
                match event {
                    Event::Sent { token, .. } => self.flush_one(token.slot(), now),
                    Event::Closed { token, .. } => self.forget(token),
                    Event::Received { buffer, .. } => self.driver.recycle(buffer),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn token_of(&self, conn: ConnId) -> Option<Token> {
        self.peers.get(conn.0 as usize)?.as_ref().map(|peer| peer.token)
    }

    fn tell_hub(&self, input: HubInput) {
        // The hub ends last; after it nothing matters.
        let _ = self.hub.send(input);
    }
}

fn conn_id(token: Token) -> ConnId {
    ConnId(token.slot() as u32)
}

fn set_timeouts(socket: &OwnedFd, user_timeout: Duration) {
    let socket = socket2::SockRef::from(socket);
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(10));
    // Only tuning: a socket that does not take it works all the same.
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(user_timeout));
    let _ = socket.set_tcp_notsent_lowat(NOT_SENT);
    if round_trip(&*socket).is_some_and(|time| time < NEAR) {
        let _ = socket.set_recv_buffer_size(NEAR_BUFFER);
    }
}
