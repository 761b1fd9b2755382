//! The loop of the data thread.
//!
//! Inputs are handled one by one, then the machine is drained, then every connection that has something to say and can say it gets one buffer. What
//! waits for a relay is bounded in bytes and in age; when the outboxes fill, reading from the TUN queue pauses, so that the kernel's own queue
//! discipline decides what to drop.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use rustls::ClientConfig;

use super::api::{Command, Inbox, Limits, Options, Ready, Report};
use super::checksum::complete;
use super::dial::{Dialler, Ticket};
use super::relay::{Link, Links, Phase, Target, parse_pin};
use crate::engine::connection::{ClientOptions, Connection, Incoming};
use crate::engine::driver::{Driver, Event, RecvBuffer, Token};
use crate::engine::outbox::Outbox;
use crate::engine::tls::{Pin, Roots, TlsError, client_config};
use crate::engine::{Opened, open};
use crate::packet::Pool;
use crate::proto::drop_reason::{DropCounters, DropReason};
use crate::proto::error::FrameError;
use crate::proto::id::RelayId;
use crate::proto::node::{self, Checksum, Node, Outgoing, Received};
use crate::proto::time::{Instant, Now, UnixTime};
use crate::proto::wire::control::node::Relay;
use crate::proto::wire::data::{DATA_HEADROOM, DATA_OVERHEAD, VIA_PREFIX_LEN, via_header};
use crate::proto::wire::frame::{FrameHeader, FrameType, HEADER_LEN, MAX_FRAME};
use crate::proto::wire::websocket::Role;

/// Header and relay id of a VIA frame.
const VIA_LEN: usize = HEADER_LEN + VIA_PREFIX_LEN;
/// The longest WebSocket message that a relay may send: a full frame and others beside it.
const MAX_MESSAGE: usize = 4 * MAX_FRAME;
/// The longest packet that is read from the TUN queue.
const MAX_PACKET: usize = u16::MAX as usize;
/// Between two looks at the outboxes while the TUN queue is paused.
const PAUSED_TICK: Duration = Duration::from_millis(20);
/// Commands taken between two looks at the network.
const COMMAND_BATCH: usize = 64;

/// Both clocks.
struct Clock(std::time::Instant);

impl Clock {
    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            instant: Instant::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)),
            unix: UnixTime::from_micros(u64::try_from(unix.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

/// The TUN queue: the driver reads it, packets are written to it while the driver's receive buffer is in use.
struct Port {
    token: Token,
    writer: OwnedFd,
    paused: bool,
}

struct Dial {
    ticket: Ticket,
    relay: Relay,
    target: Target,
    deadline: Instant,
}

struct Worker<D, F> {
    driver: D,
    node: Node,
    clock: Clock,
    inbox: Inbox,
    report: F,
    port: Option<Port>,
    links: Links,
    dials: Vec<Dial>,
    dialler: Dialler,
    roots: Roots,
    tls: BTreeMap<Option<Pin>, Arc<ClientConfig>>,
    limits: Limits,
    pool: Pool,
    random: ChaCha20Rng,
    /// Where the last packet went: the next one is sealed right into that relay's outbox.
    guess: Option<(RelayId, Option<RelayId>)>,
    scratch: Vec<u8>,
    drops: DropCounters,
    stopping: Option<Instant>,
}

/// The thread's body.
pub(super) fn main<F: FnMut(Report)>(
    options: Options,
    port: Option<OwnedFd>,
    inbox: Inbox,
    report: F,
    ready: &Ready,
) {
    match open(options.driver) {
        Ok(Opened::Uring(driver)) => start(driver, options, port, inbox, report, ready),
        Ok(Opened::Epoll(driver)) => start(driver, options, port, inbox, report, ready),
        Err(error) => drop(ready.send(Err(error))),
    }
}

fn start<D: Driver, F: FnMut(Report)>(
    mut driver: D,
    options: Options,
    port: Option<OwnedFd>,
    inbox: Inbox,
    report: F,
    ready: &Ready,
) {
    let attached = port.map(|device| {
        let writer = device.try_clone()?;
        Ok(Port { token: driver.packets(device, MAX_PACKET)?, writer, paused: false })
    });
    let port = match attached.transpose() {
        Ok(port) => port,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let (waker, name) = (driver.waker(), driver.name());
    let clock = Clock(std::time::Instant::now());
    // A stream of its own: the machine draws from the seed itself.
    let mut random = ChaCha20Rng::from_seed(options.node.seed);
    random.set_stream(1);
    let mut worker = Worker {
        node: Node::new(options.node, clock.now()),
        clock,
        inbox,
        report,
        port,
        links: Links::default(),
        dials: Vec::new(),
        dialler: Dialler::new(waker.clone()),
        roots: options.roots,
        tls: BTreeMap::new(),
        limits: Limits::default(),
        pool: Pool::new(),
        random,
        guess: None,
        scratch: Vec::new(),
        drops: DropCounters::default(),
        stopping: None,
        driver,
    };
    if ready.send(Ok((waker, name))).is_err() {
        return;
    }
    if let Some(config) = options.config {
        let now = worker.clock.now();
        worker.node.apply_config(config, now);
        (worker.report)(Report::Applied { version: worker.node.version() });
    }
    // A panic ends this node, with a word to whoever runs it; not the program that it is part of.
    let end = std::panic::catch_unwind(AssertUnwindSafe(|| worker.run()));
    let end = match end {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the data thread panicked; this is a bug, please report it with the log".to_owned()),
    };
    (worker.report)(Report::Stopped(end));
}

impl<D: Driver, F: FnMut(Report)> Worker<D, F> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let now = self.clock.now();
            self.handle_commands(now);
            self.handle_dials(now);
            self.handle_deadlines(now);
            self.drain(now);
            self.flush(now);
            if self
                .stopping
                .is_some_and(|deadline| deadline <= now.instant || self.links.iter().next().is_none())
            {
                return Ok(());
            }
            let timeout = self.timeout(self.clock.now().instant);
            self.driver.wait(timeout)?;
            let now = self.clock.now();
            while let Some(event) = self.driver.next_event() {
                self.handle_event(event, now)?;
            }
        }
    }

    /// How long nothing has to be done.
    fn timeout(&mut self, now: Instant) -> Option<Duration> {
        let machine = self.node.poll_timeout().map(|(at, reason)| {
            tracing::trace!(reason, "next timer");
            at
        });
        let paused = self.port.as_ref().is_some_and(|port| port.paused).then_some(now + PAUSED_TICK);
        let dials = self.dials.iter().map(|dial| dial.deadline).min();
        let links = self.links.iter().filter_map(|link| link.deadline()).min();
        [machine, paused, dials, links, self.stopping]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_since(now))
    }

    fn handle_event(&mut self, event: Event, now: Now) -> io::Result<()> {
        match event {
            Event::Packet { buffer, .. } => self.handle_packet(buffer, now),
            Event::Received { token, buffer } => self.handle_received(token, buffer, now),
            Event::Closed { token, error } => {
                if self.port.as_ref().is_some_and(|port| port.token == token) {
                    self.port = None;
                    return Err(error.unwrap_or_else(|| io::Error::other("the interface was removed")));
                }
                if let Some(link) = self.links.remove(token) {
                    let what = error
                        .map_or_else(|| "it closed the connection".to_owned(), |error| error.to_string());
                    self.lost(*link, what, now);
                }
            }
            // Each pass of the loop looks after commands, dials and output anyway.
            _ => {}
        }
        Ok(())
    }

    fn handle_commands(&mut self, now: Now) {
        for _ in 0..COMMAND_BATCH {
            let Ok(command) = self.inbox.try_recv() else { return };
            self.handle_command(command, now);
        }
        // There may be more: come back without waiting.
        self.driver.waker().wake();
    }

    fn handle_command(&mut self, command: Command, now: Now) {
        match command {
            Command::Config(config) => {
                self.node.apply_config(*config, now);
                (self.report)(Report::Applied { version: self.node.version() });
            }
            Command::Update(update) => {
                let report = match self.node.apply_update(*update, now) {
                    Ok(()) => Report::Applied { version: self.node.version() },
                    Err(error) => {
                        tracing::info!(%error, "asking for the whole configuration");
                        Report::NeedResync
                    }
                };
                (self.report)(report);
            }
            Command::RotateNodeKey { key, created } => {
                let signed = self.node.rotate_node_key(key, created, now);
                (self.report)(Report::KeyRotated(signed));
            }
            Command::Echo { to, id, size } => {
                if let Err(error) = self.node.echo(to, id, size, now) {
                    (self.report)(Report::EchoRefused { id, error });
                }
            }
            Command::Status { id } => {
                let mut status = self.node.status(now.instant);
                for (reason, count) in self.drops.iter().filter(|&(_, count)| count > 0) {
                    *status.drops.entry(reason.label()).or_default() += count;
                }
                (self.report)(Report::Status { id, status: Box::new(status) });
            }
            Command::Snapshot => {
                let config = self.node.config().cloned().map(Box::new);
                let pins = self.node.pins().collect();
                (self.report)(Report::Snapshot { config, pins });
            }
            Command::Stop => {
                self.stopping.get_or_insert(now.instant + self.limits.linger);
                self.dials.clear();
                let tokens: Vec<Token> = self.links.iter().map(|link| link.token).collect();
                tokens.into_iter().for_each(|token| self.begin_close(token, "node stops", now));
            }
        }
    }

    /// A packet from the TUN queue, copied once: into the outbox where it is sealed.
    fn handle_packet(&mut self, buffer: RecvBuffer, now: Now) {
        let packet = &*self.driver.bytes(&buffer);
        let mut elsewhere = None;
        let length = packet.len();
        let lead = if self.guess.is_some_and(|(_, via)| via.is_some()) { VIA_LEN } else { 0 };
        if let Some(guess) = self.guess
            && let Some(link) = self.links.of_relay(guess.0)
            && let Ok(space) = link.outbox.reserve(lead + DATA_OVERHEAD + length, now.instant)
        {
            let (head, body) = space.split_at_mut(lead);
            body[DATA_HEADROOM..DATA_HEADROOM + length].copy_from_slice(packet);
            match self.node.handle_packet(body, Checksum::Complete, now) {
                Outgoing::Send { relay: chosen, via: through, frame } => {
                    let header = through.map(|id| via_header(id, frame.len()));
                    if (chosen, through) == guess && frame.start == 0 {
                        if let Some(Ok(header)) = header {
                            head.copy_from_slice(&header);
                        }
                        link.outbox.commit(lead + frame.end);
                    } else {
                        self.scratch.clear();
                        self.scratch.extend_from_slice(&body[frame]);
                        elsewhere = Some((chosen, through));
                    }
                }
                Outgoing::Queued | Outgoing::Dropped(_) => {}
            }
        } else {
            self.scratch.clear();
            self.scratch.resize(DATA_OVERHEAD + length, 0);
            self.scratch[DATA_HEADROOM..DATA_HEADROOM + length].copy_from_slice(packet);
            if let Outgoing::Send { relay, via, frame } =
                self.node.handle_packet(&mut self.scratch, Checksum::Complete, now)
            {
                self.scratch.truncate(frame.end);
                self.scratch.drain(..frame.start);
                elsewhere = Some((relay, via));
            }
        }
        self.driver.recycle(buffer);
        if let Some((relay, via)) = elsewhere {
            self.guess = Some((relay, via));
            self.push_scratch(relay, via, now);
        }
        self.press_back();
    }

    /// Sends the frame in `scratch` to `relay`.
    fn push_scratch(&mut self, relay: RelayId, via: Option<RelayId>, now: Now) {
        let Some(link) = self.links.of_relay(relay) else { return self.drops.count(DropReason::NoPath) };
        let lead = if via.is_some() { VIA_LEN } else { 0 };
        let Ok(room) = link.outbox.reserve(lead + self.scratch.len(), now.instant) else {
            return self.drops.count(DropReason::QueueFull);
        };
        let (head, body) = room.split_at_mut(lead);
        if let Some(id) = via {
            let Ok(header) = via_header(id, self.scratch.len()) else {
                return self.drops.count(DropReason::TooBig);
            };
            head.copy_from_slice(&header);
        }
        body.copy_from_slice(&self.scratch);
        link.outbox.commit(lead + self.scratch.len());
    }

    /// Stops reading packets while the relay in use has a quarter of its limit waiting.
    fn press_back(&mut self) {
        let Some((relay, _)) = self.guess else { return };
        let queued = self.links.of_relay(relay).map_or(0, |link| link.outbox.queued());
        if let Some(port) = self.port.as_mut().filter(|port| !port.paused && queued > self.limits.queue / 4) {
            port.paused = true;
            self.driver.pause(port.token);
        }
    }

    fn handle_received(&mut self, token: Token, buffer: RecvBuffer, now: Now) {
        let Some(link) = self.links.get(token) else { return self.driver.recycle(buffer) };
        let (relay, live) = (link.relay, link.is_live());
        let (node, port, drops) = (&mut self.node, self.port.as_ref(), &mut self.drops);
        let mut upgraded = false;
        let mut failure = None;
        let result = link.connection.receive(self.driver.bytes(&buffer), &mut |incoming| match incoming {
            _ if !live || failure.is_some() => {}
            Incoming::Upgraded(_) => {
                upgraded = true;
                node.relay_connected(relay, now);
            }
            Incoming::Message(frames) => {
                failure = walk(node, port, drops, relay, frames, now).err().map(|error| error.to_string());
            }
            Incoming::Closed { code } => {
                failure = Some(code.map_or_else(
                    || "it closed the connection".to_owned(),
                    |code| format!("it closed the connection with code {code}"),
                ));
            }
        });
        self.driver.recycle(buffer);
        if upgraded {
            link.phase = Phase::Open;
        }
        let failure = result.err().map(|error| error.to_string()).or(failure);
        if let Some(what) = failure.filter(|_| live) {
            let name = link.name.clone();
            self.node.relay_closed(relay, now);
            self.begin_close(token, "connection failed", now);
            (self.report)(Report::RelayFailed { relay: name, error: what });
        }
    }

    /// Starts the closing handshake; the machine already knows, or is told by the caller.
    fn begin_close(&mut self, token: Token, reason: &str, now: Now) {
        self.links.forget(token);
        let Some(link) = self.links.get(token).filter(|link| link.is_live()) else { return };
        link.connection.close(1000, reason);
        link.phase = Phase::Closing { deadline: now.instant + self.limits.linger, shut: false };
        if self.guess.is_some_and(|(relay, _)| relay == link.relay) {
            self.guess = None;
        }
    }

    /// A connection is gone without our doing.
    fn lost(&mut self, link: Link, what: String, now: Now) {
        if link.is_live() {
            self.node.relay_closed(link.relay, now);
            (self.report)(Report::RelayFailed { relay: link.name, error: what });
        }
        if self.guess.is_some_and(|(relay, _)| relay == link.relay) {
            self.guess = None;
        }
    }

    fn handle_deadlines(&mut self, now: Now) {
        if self.node.poll_timeout().is_some_and(|(at, _)| at <= now.instant) {
            self.node.handle_timeout(now);
        }
        let due: Vec<Token> = self
            .links
            .iter()
            .filter(|link| link.deadline().is_some_and(|at| at <= now.instant))
            .map(|link| link.token)
            .collect();
        for token in due {
            self.driver.close(token);
            if let Some(link) = self.links.remove(token) {
                self.lost(*link, "TLS and upgrade took too long".to_owned(), now);
            }
        }
    }

    fn handle_dials(&mut self, now: Now) {
        while let Some((ticket, result)) = self.dialler.poll() {
            let Some(n) = self.dials.iter().position(|dial| dial.ticket == ticket) else { continue };
            let dial = self.dials.swap_remove(n);
            let (id, name) = (dial.relay.id, dial.relay.name.clone());
            let opened = result
                .map_err(|error| error.to_string())
                .and_then(|socket| self.open_link(dial, socket, now));
            if let Err(error) = opened {
                self.dial_failed(id, name, error, now);
            }
        }
        while let Some(n) = self.dials.iter().position(|dial| dial.deadline <= now.instant) {
            let dial = self.dials.swap_remove(n);
            self.dial_failed(
                dial.relay.id,
                dial.relay.name,
                format!("no connection to {} in time", dial.target.authority),
                now,
            );
        }
    }

    fn dial_failed(&mut self, id: RelayId, relay: String, error: String, now: Now) {
        self.node.relay_closed(id, now);
        (self.report)(Report::RelayFailed { relay, error });
    }

    fn start_dial(&mut self, relay: Relay, now: Now) {
        let started =
            relay.data_url.as_deref().ok_or_else(|| "it has no address for nodes".to_owned()).and_then(
                |url| {
                    let target = Target::parse(url)?;
                    let ticket = self
                        .dialler
                        .dial(target.host.clone(), target.port, self.limits.dial)
                        .map_err(|error| error.to_string())?;
                    Ok((target, ticket))
                },
            );
        match started {
            Ok((target, ticket)) => {
                // Helpers keep the limit themselves, unless name resolution hangs.
                let deadline = now.instant + self.limits.dial + Duration::from_millis(500);
                self.dials.push(Dial { ticket, relay, target, deadline });
            }
            Err(error) => self.dial_failed(relay.id, relay.name, error, now),
        }
    }

    fn open_link(&mut self, dial: Dial, socket: OwnedFd, now: Now) -> Result<(), String> {
        let Dial { relay, target, .. } = dial;
        let tls = if target.tls {
            Some((self.tls_config(relay.tls_pin.as_deref())?, target.server_name()?))
        } else {
            None
        };
        let options =
            ClientOptions { tls, host: target.authority, path: target.path, max_message: MAX_MESSAGE };
        let (mut upgrade_seed, mut mask_seed) = ([0; 16], [0; 32]);
        self.random.fill_bytes(&mut upgrade_seed);
        self.random.fill_bytes(&mut mask_seed);
        let connection =
            Connection::client(&options, &self.pool, upgrade_seed).map_err(|error| error.to_string())?;
        let token = self.driver.stream(socket).map_err(|error| error.to_string())?;
        let outbox = Outbox::new(Role::Client, self.limits.queue, &self.pool, mask_seed);
        let phase = Phase::Opening { deadline: now.instant + self.limits.upgrade };
        self.links.insert(Link { relay: relay.id, name: relay.name, token, connection, outbox, phase });
        Ok(())
    }

    fn tls_config(&mut self, pin: Option<&str>) -> Result<Arc<ClientConfig>, String> {
        let pin = pin.map(parse_pin).transpose()?;
        if let Some(config) = self.tls.get(&pin) {
            return Ok(Arc::clone(config));
        }
        let config = match client_config(&self.roots, pin) {
            // A machine without a certificate store can still talk to pinned relays.
            Err(TlsError::NoRoots) if pin.is_some() => client_config(&Roots::None, pin),
            other => other,
        };
        let config = config.map_err(|error| error.to_string())?;
        self.tls.insert(pin, Arc::clone(&config));
        Ok(config)
    }

    /// Takes everything that the machine has to say.
    fn drain(&mut self, now: Now) {
        loop {
            self.scratch.clear();
            let Some(relay) = self.node.poll_transmit(&mut self.scratch) else { break };
            let Some(link) = self.links.of_relay(relay) else { continue };
            let pushed = if is_bulk(&self.scratch) {
                link.outbox.push(&self.scratch, now.instant)
            } else {
                link.outbox.push_urgent(&self.scratch, now.instant)
            };
            if pushed.is_err() {
                self.drops.count(DropReason::QueueFull);
            }
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                node::Event::DialRelay { relay } if self.stopping.is_none() => self.start_dial(relay, now),
                node::Event::DialRelay { .. } => {}
                node::Event::DropRelay { id, reason } => {
                    self.dials.retain(|dial| dial.relay.id != id);
                    if let Some(token) = self.links.of_relay(id).map(|link| link.token) {
                        self.begin_close(token, reason, now);
                    }
                }
                other => (self.report)(Report::Node(other)),
            }
        }
    }

    /// Gives every stream that can take one its next buffer.
    fn flush(&mut self, now: Now) {
        let oldest =
            Instant::from_nanos(now.instant.as_nanos().saturating_sub(self.limits.age.as_nanos() as u64));
        let mut most_queued = 0;
        let mut failed = Vec::new();
        for link in self.links.iter() {
            if self.driver.can_send(link.token) {
                match link.connection.take_output(&mut link.outbox) {
                    Ok(Some(buffer)) => self.driver.send(link.token, buffer),
                    Ok(None) => {
                        if let Phase::Closing { shut, .. } = &mut link.phase
                            && !*shut
                            && link.connection.is_finished()
                        {
                            *shut = true;
                            self.driver.shutdown(link.token);
                        }
                    }
                    Err(error) => failed.push((link.token, error.to_string())),
                }
            } else if link.outbox.queued() > 0 {
                let dropped = link.outbox.drop_older_than(oldest);
                self.drops.add(DropReason::QueueAge, dropped.frames as u64);
            }
            most_queued = most_queued.max(link.outbox.queued());
        }
        for (token, error) in failed {
            self.driver.close(token);
            if let Some(link) = self.links.remove(token) {
                self.lost(*link, error, now);
            }
        }
        if let Some(port) =
            self.port.as_mut().filter(|port| port.paused && most_queued <= self.limits.queue / 8)
        {
            port.paused = false;
            self.driver.resume(port.token);
        }
    }
}

/// Hands the frames of one message to the machine, and the packets in them to the TUN queue.
fn walk(
    node: &mut Node,
    port: Option<&Port>,
    drops: &mut DropCounters,
    relay: RelayId,
    mut rest: &mut [u8],
    now: Now,
) -> Result<(), FrameError> {
    if rest.is_empty() {
        return Err(FrameError::Truncated { have: 0, need: HEADER_LEN });
    }
    while !rest.is_empty() {
        let need = FrameHeader::parse(rest)?.frame_len();
        let have = rest.len();
        let (frame, tail) = rest.split_at_mut_checked(need).ok_or(FrameError::Truncated { have, need })?;
        if let Received::Packet { packet, checksum, .. } = node.handle_relay_frame(relay, frame, now) {
            if checksum == Checksum::Partial {
                complete(packet);
            }
            let written = port.map(|port| rustix::io::write(&port.writer, packet));
            if !matches!(written, Some(Ok(_))) {
                drops.count(DropReason::TunFull);
            }
        }
        rest = tail;
    }
    Ok(())
}

/// Whether `frames` are user data, which waits behind handshakes and probes.
fn is_bulk(frames: &[u8]) -> bool {
    let kind = |bytes: &[u8]| FrameHeader::parse(bytes).map(|header| header.kind);
    match kind(frames) {
        Ok(FrameType::Data) => true,
        Ok(FrameType::Via) => frames.get(VIA_LEN..).is_some_and(|inner| kind(inner) == Ok(FrameType::Data)),
        _ => false,
    }
}
