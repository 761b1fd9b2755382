//! A running relay: worker threads, a hub thread, and the handle that programs hold.
//!
//! [`RelayHandle`] is the whole interface, for the `edgelink-relay` binary as for C and Python: whoever embeds a relay carries its
//! control messages ([`RelayHandle::control`] in, [`RelayHandle::next_event`] out) over whatever link to a controller it has, or over none. The
//! rules are in [`crate::proto::relay`]; here are threads, sockets, clocks and files:
//!
//! - `start`: opens listeners and starts threads, and notices when one ends that should not;
//! - `worker`: one thread per core with a listener of its own (SO_REUSEPORT), share-nothing; frames for another worker go over a `lane`;
//! - `hub_thread`: carries reports of workers to the hub and its commands back, starts dials ([`dial`]), writes state (`state`).
//!
//! The hub is behind a lock that forwarding never takes.

mod clock;
mod config;
pub mod dial;
mod hub_thread;
mod lane;
mod start;
mod state;
mod stats;
mod worker;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

pub(super) use config::free_address;
pub use config::{Listener, RelayConfig, StartError};
pub use state::StateError;
pub use stats::{QueuedConnection, RelayStats, WorkerStats};

use crate::engine::driver::Waker;
use crate::engine::stun::{StunConfig, StunServer};
use crate::proto::id::RelayId;
use crate::proto::relay::hub::{ControlError, Hub, HubCommand};
use crate::proto::relay::{FromWorker, Limits, ToWorker, WorkerId};
use crate::proto::time::Now;
use crate::proto::wire::forwarded::Trust;
use crate::proto::wire::frame::FrameType;
use clock::Clock;
use config::per_worker;
use start::{Threads, Workers, start_workers};
use worker::ToShell;

/// A worker that does not answer within that time is left out of the numbers.
const STATS_TIME: Duration = Duration::from_millis(500);
/// The longest WebSocket message from a node or relay: several of the longest frames.
const MAX_MESSAGE: usize = 256 << 10;

/// To the hub's thread.
#[derive(Debug)]
enum HubInput {
    Worker(WorkerId, FromWorker),
    DialFailed(RelayId),
    /// Something slow that another thread's call has led to.
    Execute(HubCommand),
    /// The hub's next timeout may have changed.
    Wake,
    Stop,
}

/// The mailbox of one worker.
#[derive(Clone, Debug)]
struct Mailbox {
    inbox: Sender<ToShell>,
    waker: Waker,
}

impl Mailbox {
    fn post(&self, message: ToShell) {
        // A worker that is gone needs no mail.
        if self.inbox.send(message).is_ok() {
            self.waker.wake();
        }
    }
}

#[derive(Debug)]
struct Shared {
    hub: Mutex<Hub>,
    mailboxes: Vec<Mailbox>,
    hub_input: Sender<HubInput>,
    /// Something may wait for the controller.
    changed: Condvar,
    clock: Clock,
    stopped: AtomicBool,
    draining: AtomicBool,
    hurry: AtomicBool,
}

impl Shared {
    fn hub(&self) -> MutexGuard<'_, Hub> {
        // A panic elsewhere leaves tables that are whole: they are changed by single calls.
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To every worker. The one that a node has signed in at answers it when it reads this, so it is told last.
    fn post_all(&self, message: &ToWorker) {
        let last = match message {
            ToWorker::NodeAt { worker, .. } => Some(usize::from(worker.0)),
            _ => None,
        };
        let others = self.mailboxes.iter().enumerate().filter(|(index, _)| Some(*index) != last);
        let last = last.and_then(|index| self.mailboxes.get(index));
        for mailbox in others.map(|(_, mailbox)| mailbox).chain(last) {
            mailbox.post(ToShell::Hub(message.clone()));
        }
    }

    /// Lets `change` change the hub and passes on what that leads to. Workers have their mail when this returns (and read it before the next frame);
    /// what is slow is left to the hub's thread.
    fn with_hub<T>(&self, change: impl FnOnce(&mut Hub, Now) -> T) -> T {
        let now = self.clock.now();
        let mut hub = self.hub();
        let result = change(&mut hub, now);
        // Under the lock, so that all workers hear the same order.
        while let Some(command) = hub.poll_command(now) {
            match command {
                HubCommand::All(message) => self.post_all(&message),
                HubCommand::One(worker, message) => {
                    if let Some(mailbox) = self.mailboxes.get(usize::from(worker.0)) {
                        mailbox.post(ToShell::Hub(message));
                    }
                }
                slow => {
                    // Its thread ends last.
                    let _ = self.hub_input.send(HubInput::Execute(slow));
                }
            }
        }
        drop(hub);
        self.changed.notify_all();
        result
    }
}

/// A relay that runs. Stops when dropped.
#[derive(Debug)]
pub struct RelayHandle {
    shared: Arc<Shared>,
    threads: Threads,
    addresses: Vec<SocketAddr>,
    stun: Option<StunServer>,
}

impl RelayHandle {
    /// Opens sockets, reads kept state, starts threads. When it returns, connections are accepted.
    ///
    /// # Errors
    /// What is wrong and what to do about it; nothing runs then.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a relay has its configuration for good; callers build one for it"
    )]
    pub fn start(config: RelayConfig) -> Result<Self, StartError> {
        let clock = Clock::start();
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).map_err(|_| StartError::Random)?;
        let mut rng = ChaCha20Rng::from_seed(seed);
        let saved = match &config.state_dir {
            Some(directory) => state::load(directory)?,
            None => None,
        };
        let stun = config.stun.map(|stun| StunConfig { take_over: config.take_over, ..stun });
        let stun = stun.map(StunServer::start).transpose()?;
        let mut hub = Hub::new(config.settings.clone(), saved, fork(&mut rng), clock.now())
            .map_err(StartError::TokenKeys)?;
        if config.settings.register.stun.is_none() && stun.is_none() {
            tracing::debug!("no STUN server");
        }
        hub.controller_connected();
        let (hub_input, input) = channel();
        let mut threads = Threads::default();
        let mut workers = Workers::default();
        if !config.listeners.is_empty() {
            workers = start_workers(&config, clock, &hub_input, &mut rng, &mut threads)?;
        }
        let shared = Arc::new(Shared {
            hub: Mutex::new(hub),
            mailboxes: workers.mailboxes,
            hub_input,
            changed: Condvar::new(),
            clock,
            stopped: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
        });
        let thread = hub_thread::HubThread::new(&shared, input, &config);
        threads.spawn("relay-hub", move || {
            thread.run();
            Ok(())
        })?;
        // Who this relay is, before the first connection.
        shared.with_hub(|_, _| ());
        let wakers: Vec<Waker> = shared.mailboxes.iter().map(|mailbox| mailbox.waker.clone()).collect();
        for start in workers.starts {
            let _ = start.send(wakers.clone());
        }
        let handle = Self { shared, threads, addresses: workers.addresses, stun };
        Ok(handle)
    }

    /// Takes one whole control message of the controller's: CONFIG, CONFIG_UPDATE, SERVER_NODE_LOC, SERVER_BLACKLIST. PING and PONG count as a sign
    /// of life, which an embedding controller owes at least every 30 s: after 60 s without any, grace begins.
    ///
    /// # Errors
    /// The message changes nothing. On [`ControlError::OutOfStep`] call [`Self::controller_connected`]: the SERVER_REGISTER that follows asks for
    /// everything.
    pub fn control(&self, kind: FrameType, payload: &[u8]) -> Result<(), ControlError> {
        let result = self.shared.with_hub(|hub, now| hub.handle_control(kind, payload, now));
        self.wake_hub();
        result
    }

    /// The link to the controller was made anew: the next event is SERVER_REGISTER again.
    pub fn controller_connected(&self) {
        self.shared.with_hub(|hub, _| hub.controller_connected());
    }

    /// The next message for the controller: SERVER_REGISTER first, then SERVER_NODE_LOC and LATENCY_REPORT. `None` after `timeout`, and at once
    /// when the relay has stopped. Blocks.
    pub fn next_event(&self, timeout: Duration) -> Option<(FrameType, Vec<u8>)> {
        let until = self.shared.clock.instant() + timeout;
        let mut hub = self.shared.hub();
        loop {
            if self.shared.stopped.load(Ordering::Relaxed) {
                return None;
            }
            let now = self.shared.clock.now();
            if let Some(event) = hub.poll_control(now) {
                return Some(event);
            }
            if now.instant >= until {
                return None;
            }
            let next = hub.poll_control_timeout().map_or(until, |at| at.min(until));
            // A report that is due and has nothing to say moves on by itself.
            let wait = (next - now.instant).max(Duration::from_millis(1));
            hub = self.shared.changed.wait_timeout(hub, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Numbers. Blocks for as long as the slowest worker takes to answer, half a second at most.
    pub fn stats(&self) -> RelayStats {
        self.collect(false)
    }

    /// The same with a list of connections.
    pub fn stats_with_connections(&self) -> RelayStats {
        self.collect(true)
    }

    /// Where nodes and relays connect (the first of [`Self::addresses`]). `None` without a relay (STUN only).
    pub fn data_addr(&self) -> Option<SocketAddr> {
        self.addresses.first().copied()
    }

    /// All addresses where they connect, in the order of the configuration; with the port that the system chose when 0 was configured.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Why the relay does not work any more, if so: a thread of it has panicked, or lost its ring. It does not mend itself: stop it, and
    /// start another.
    pub fn failure(&self) -> Option<String> {
        self.threads.failure().get()
    }

    /// Where STUN is answered.
    pub fn stun_addr(&self) -> Option<SocketAddr> {
        self.stun.as_ref().map(StunServer::address)
    }

    /// New limits (for the whole relay), from now on.
    pub fn set_limits(&self, limits: &Limits) {
        let limits = per_worker(limits, self.shared.mailboxes.len());
        self.shared.with_hub(|hub, _| hub.all(ToWorker::Limits(limits)));
    }

    /// Which proxies are believed, for connections from now on.
    pub fn set_trust(&self, trust: &Arc<Trust>) {
        for mailbox in &self.shared.mailboxes {
            mailbox.post(ToShell::Trust(Arc::clone(trust)));
        }
    }

    /// A new certificate for connections from now on, on every listener with TLS.
    pub fn set_tls(&self, config: &Arc<rustls::ServerConfig>) {
        for mailbox in &self.shared.mailboxes {
            mailbox.post(ToShell::Tls(Arc::clone(config)));
        }
    }

    /// Says GOAWAY to everyone, takes no more connections, and returns after `grace` or when nobody is left.
    pub fn drain(&self, grace: Duration) {
        self.shared.draining.store(true, Ordering::Relaxed);
        for mailbox in &self.shared.mailboxes {
            mailbox.post(ToShell::StopListening);
        }
        // Who hears GOAWAY may come back at once, to whoever has the port then: all workers have stopped listening when they have answered.
        let _ = self.stats();
        self.shared.with_hub(|hub, _| hub.all(ToWorker::Drain { grace }));
        let until = self.shared.clock.instant() + grace;
        while self.shared.clock.instant() < until && !self.shared.hurry.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50).min(until - self.shared.clock.instant()));
            if self.stats().workers.iter().map(|worker| worker.open).sum::<usize>() == 0 {
                return;
            }
        }
    }

    /// Ends a [`Self::drain`] that is under way, or lets one that begins later end at once.
    pub fn hurry(&self) {
        self.shared.hurry.store(true, Ordering::Relaxed);
    }

    /// Lets the first worker's thread panic: for tests of what happens then.
    #[doc(hidden)]
    pub fn __panic_worker(&self) {
        if let Some(mailbox) = self.shared.mailboxes.first() {
            mailbox.post(ToShell::Panic);
        }
    }

    /// Closes what is open and ends all threads.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn wake_hub(&self) {
        let _ = self.shared.hub_input.send(HubInput::Wake);
    }

    fn collect(&self, connections: bool) -> RelayStats {
        let (reply, answers) = channel();
        for mailbox in &self.shared.mailboxes {
            mailbox.post(ToShell::Stats { connections, reply: reply.clone() });
        }
        drop(reply);
        let until = std::time::Instant::now() + STATS_TIME;
        let mut workers = Vec::new();
        while workers.len() < self.shared.mailboxes.len() {
            match answers.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
                Ok(stats) => workers.push(stats),
                Err(_) => break,
            }
        }
        workers.sort_by_key(|stats: &WorkerStats| stats.worker);
        let stun = self.stun.as_ref().map(|server| {
            let counters = server.counters();
            [&counters.answered, &counters.refused, &counters.dropped, &counters.limited]
                .map(|counter| counter.load(Ordering::Relaxed))
        });
        let hub = self.shared.hub();
        RelayStats {
            relay_id: hub.relay_id(),
            draining: self.shared.draining.load(Ordering::Relaxed),
            ready: hub.is_ready(),
            in_grace: hub.in_grace(),
            config_version: hub.version(),
            connected_nodes: hub.connected_nodes(),
            links: hub.links().collect(),
            stun,
            workers,
        }
    }

    fn shut_down(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        for mailbox in &self.shared.mailboxes {
            mailbox.post(ToShell::Stop);
        }
        let _ = self.shared.hub_input.send(HubInput::Stop);
        self.threads.join();
        self.stun = None;
    }
}

impl Drop for RelayHandle {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn fork(rng: &mut ChaCha20Rng) -> ChaCha20Rng {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    ChaCha20Rng::from_seed(seed)
}
