//! The loop of the data thread.
//!
//! Inputs are handled one by one, then the machine is drained, then every connection that has something to say and can say it gets one buffer
//! ([`super::flow`]). This file has the start, the order of things, commands, deadlines and the end of connections.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::api::{Command, Inbox, Limits, Options, Ready, Report};
use super::datagram::OpenSocket;
use super::dial::Dial;
use super::flow::Guess;
use super::helper::Helpers;
use super::relay::{Link, Links, Phase};
use crate::engine::dial::Outbound;
use crate::engine::driver::{Driver, Event, Token};
use crate::engine::moderation::{Moderation, Pace};
use crate::engine::tls::{ClientTls, Pin};
use crate::engine::udp::Bundles;
use crate::engine::{Opened, open};
use crate::packet::Pool;
use crate::packet::offload::{Coalescer, Format};
use crate::proto::drop_reason::DropCounters;
use crate::proto::id::RelayId;
use crate::proto::node::Node;
use crate::proto::time::{Instant, Now, UnixTime};
use crate::tun::MAX_READ;

/// Between two looks at the outboxes while the TUN queue is paused.
const PAUSED_TICK: Duration = Duration::from_millis(20);
/// When rounds wait for more: a tunnel that carries so much is no longer about the single packet. A round with half a super-packet in it is long enough.
const PACE: Pace = Pace { gather: Duration::from_micros(100), rates: (12_000.0, 6_000.0), plenty: 16 << 10 };
/// Commands taken between two looks at the network.
const COMMAND_BATCH: usize = 64;

/// Both clocks.
pub(super) struct Clock(std::time::Instant);

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
pub(super) struct Port {
    pub token: Token,
    pub writer: OwnedFd,
    pub paused: bool,
    pub format: Format,
    /// Packets for the queue, until the end of a round of events.
    pub incoming: Coalescer,
}

/// The thread's state; what it does is in this file, [`super::flow`] and [`super::dial`].
pub(super) struct Worker<D, F> {
    pub driver: D,
    pub node: Node,
    pub clock: Clock,
    pub inbox: Inbox,
    pub report: F,
    pub port: Option<Port>,
    pub links: Links,
    pub dials: Vec<Dial>,
    pub helpers: Helpers,
    pub outbound: Arc<Outbound>,
    pub tls: BTreeMap<RelayId, (Option<Pin>, ClientTls)>,
    /// Why relays could not be reached, the last time.
    pub errors: BTreeMap<RelayId, String>,
    pub limits: Limits,
    pub pool: Pool,
    pub random: ChaCha20Rng,
    /// Where the last packet went: the next one is sealed right there.
    pub guess: Option<Guess>,
    pub scratch: Vec<u8>,
    /// For IPv4 and IPv6.
    pub udp: [Option<OpenSocket>; 2],
    pub udp_tokens: Vec<Token>,
    pub bundles: Bundles,
    pub drops: DropCounters,
    pub stopping: Option<Instant>,
}

/// The thread's body.
pub(super) fn main<F: FnMut(Report)>(
    options: Options,
    port: Option<(Format, OwnedFd)>,
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
    port: Option<(Format, OwnedFd)>,
    inbox: Inbox,
    report: F,
    ready: &Ready,
) {
    let attached = port.map(|(format, device)| {
        let (writer, incoming) = (device.try_clone()?, Coalescer::new(format));
        Ok(Port { token: driver.packets(device, MAX_READ)?, writer, paused: false, format, incoming })
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
        helpers: Helpers::new(waker.clone()),
        outbound: Arc::new(options.outbound),
        tls: BTreeMap::new(),
        errors: BTreeMap::new(),
        limits: Limits::default(),
        pool: Pool::new(),
        random,
        guess: None,
        scratch: Vec::new(),
        udp: [None; 2],
        udp_tokens: Vec::new(),
        bundles: Bundles::default(),
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
    pub(super) fn run(&mut self) -> io::Result<()> {
        // Short waits are meant: by default the kernel may stretch each by 50 µs.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
        let mut moderation = Moderation::new(PACE, self.clock.now().instant);
        let (mut gather, mut inputs) = (None, 0);
        loop {
            let now = self.clock.now();
            self.handle_commands(now);
            self.handle_dials(now);
            self.handle_deadlines(now);
            self.drain(now);
            self.flush(now);
            if self.has_stopped(now.instant) {
                return Ok(());
            }
            let timeout = self.timeout(self.clock.now().instant);
            self.driver.wait_gathering(timeout, gather)?;
            let now = self.clock.now();
            let mut received = 0;
            while let Some(event) = self.driver.next_event() {
                if let Event::Packet { buffer, .. }
                | Event::Datagrams { buffer, .. }
                | Event::Received { buffer, .. } = &event
                {
                    received += buffer.len();
                    inputs += 1;
                }
                self.handle_event(event, now)?;
            }
            self.flush_port();
            self.send_bundles(now);
            gather = moderation.gather(now.instant, inputs, received);
        }
    }

    /// Whether the close frames are out, or it took too long to get them out.
    pub(super) fn has_stopped(&mut self, now: Instant) -> bool {
        self.stopping.is_some_and(|deadline| {
            deadline <= now
                || self.links.iter().all(|link| matches!(link.phase, Phase::Closing { shut: true, .. }))
        })
    }

    /// How long nothing has to be done.
    pub(super) fn timeout(&mut self, now: Instant) -> Option<Duration> {
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

    pub(super) fn handle_event(&mut self, event: Event, now: Now) -> io::Result<()> {
        match event {
            Event::Packet { buffer, .. } => self.handle_packet(buffer, now),
            Event::Datagrams { from, segment, buffer, .. } => {
                self.handle_datagrams(from, segment, buffer, now);
            }
            Event::Received { token, buffer } => self.handle_received(token, buffer, now),
            Event::Closed { token, error } => {
                if self.port.as_ref().is_some_and(|port| port.token == token) {
                    self.port = None;
                    return Err(error.unwrap_or_else(|| io::Error::other("the interface was removed")));
                }
                if self.lost_udp(token) {
                    tracing::warn!(?error, "a UDP socket is gone");
                } else if let Some(link) = self.links.remove(token) {
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

    pub(super) fn handle_commands(&mut self, now: Now) {
        for _ in 0..COMMAND_BATCH {
            let Ok(command) = self.inbox.try_recv() else { return };
            self.handle_command(command, now);
        }
        // There may be more: come back without waiting.
        self.driver.waker().wake();
    }

    pub(super) fn handle_command(&mut self, command: Command, now: Now) {
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
            Command::Endpoints(endpoints) => self.set_endpoints(endpoints, now),
            Command::Exit(wanted) => self.node.set_exit(wanted),
            Command::RoutesDown(down) => self.node.set_routes_down(down, now),
            Command::Announcement(datagram) => self.node.handle_announcement(&datagram, now),
            Command::Status { id } => {
                let mut status = self.node.status(now.instant);
                for (reason, count) in self.drops.iter().filter(|&(_, count)| count > 0) {
                    *status.drops.entry(reason.label()).or_default() += count;
                }
                self.explain(&mut status);
                (self.report)(Report::Status { id, status: Box::new(status) });
            }
            Command::AcceptKey { id, peer, expected } => {
                let accepted = self.node.accept_machine_key(peer, expected, now);
                (self.report)(Report::KeyAccepted { id, accepted });
                if accepted.is_ok() {
                    (self.report)(Report::Snapshot { config: None, pins: self.node.pins().collect() });
                }
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
                for token in tokens {
                    self.begin_close(token, "node stops", now);
                }
            }
        }
    }

    /// Starts the closing handshake; the machine already knows, or is told by the caller.
    pub(super) fn begin_close(&mut self, token: Token, reason: &str, now: Now) {
        self.links.forget(token);
        let Some(link) = self.links.get(token).filter(|link| link.is_live()) else { return };
        link.connection.close(1000, reason);
        link.phase = Phase::Closing { deadline: now.instant + self.limits.linger, shut: false };
        self.guess = self.guess.filter(|guess| !guess.is_by(link.relay));
    }

    /// A connection is gone without our doing.
    pub(super) fn lost(&mut self, link: Link, what: String, now: Now) {
        if link.is_live() {
            self.node.relay_closed(link.relay, now);
            let what = link.explain(what);
            self.relay_failed(link.relay, link.name, what);
        }
        self.guess = self.guess.filter(|guess| !guess.is_by(link.relay));
    }

    pub(super) fn handle_deadlines(&mut self, now: Now) {
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
}
