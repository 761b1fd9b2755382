//! A running relay: worker threads, a hub thread, and the handle that programs hold.
//!
//! [`RelayHandle`] is the whole interface, for the `edgelink-relay` binary as for C and Python: whoever embeds a relay carries its
//! control messages ([`RelayHandle::control`] in, [`RelayHandle::next_event`] out) over whatever link to a controller it has, or over none. The
//! rules are in [`crate::proto::relay`]; here are threads, sockets, clocks and files:
//!
//! - `worker`: one thread per core with a listener of its own (SO_REUSEPORT), share-nothing; frames for another worker go over a `lane`;
//! - `hub_thread`: carries reports of workers to the hub and its commands back, starts dials ([`dial`]), writes state (`state`).
//!
//! The hub is behind a lock that forwarding never takes.

mod clock;
mod config;
pub mod dial;
mod hub_thread;
mod lane;
mod state;
mod stats;
mod worker;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

pub use config::{RelayConfig, StartError};
pub use state::StateError;
pub use stats::{QueuedConnection, RelayStats, WorkerStats};

use crate::engine::connection::ServerOptions;
use crate::engine::driver::Waker;
use crate::engine::socket::{SocketError, local_address};
use crate::engine::stun::StunServer;
use crate::engine::{Opened, open};
use crate::proto::id::RelayId;
use crate::proto::relay::hub::{ControlError, Hub, HubCommand};
use crate::proto::relay::worker::Worker;
use crate::proto::relay::{FromWorker, Limits, ToWorker, WorkerId};
use crate::proto::time::Now;
use crate::proto::wire::frame::FrameType;
use clock::Clock;
use config::per_worker;
use worker::{Seat, Shell, ToShell};

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
    data_addr: Option<SocketAddr>,
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
        let stun = config.stun.map(StunServer::start).transpose()?;
        let mut hub = Hub::new(config.settings.clone(), saved, fork(&mut rng), clock.now())
            .map_err(StartError::TokenKeys)?;
        if config.settings.register.stun.is_none() && stun.is_none() {
            tracing::debug!("no STUN server");
        }
        hub.controller_connected();
        let (hub_input, input) = channel();
        let mut threads = Threads::default();
        let mut workers = Workers::default();
        if let Some(listen) = config.listen {
            workers = start_workers(&config, listen, clock, &hub_input, &mut rng, &mut threads)?;
        }
        let shared = Arc::new(Shared {
            hub: Mutex::new(hub),
            mailboxes: workers.mailboxes,
            hub_input,
            changed: Condvar::new(),
            clock,
            stopped: AtomicBool::new(false),
        });
        let thread = hub_thread::HubThread::new(&shared, input, &config);
        threads.spawn("relay-hub", move || thread.run())?;
        // Who this relay is, before the first connection.
        shared.with_hub(|_, _| ());
        let wakers: Vec<Waker> = shared.mailboxes.iter().map(|mailbox| mailbox.waker.clone()).collect();
        for start in workers.starts {
            let _ = start.send(wakers.clone());
        }
        let handle = Self { shared, threads, data_addr: workers.address, stun };
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

    /// Where nodes and relays connect; the port that the system chose when 0 was configured. `None` without a relay (STUN only).
    pub fn data_addr(&self) -> Option<SocketAddr> {
        self.data_addr
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

    /// A new certificate for connections from now on.
    pub fn set_tls(&self, config: &Arc<rustls::ServerConfig>) {
        for mailbox in &self.shared.mailboxes {
            mailbox.post(ToShell::Tls(Arc::clone(config)));
        }
    }

    /// Says GOAWAY to everyone, takes no more connections, and returns after `grace` or when nobody is left.
    pub fn drain(&self, grace: Duration) {
        for mailbox in &self.shared.mailboxes {
            mailbox.post(ToShell::StopListening);
        }
        self.shared.with_hub(|hub, _| hub.all(ToWorker::Drain { grace }));
        let until = self.shared.clock.instant() + grace;
        while self.shared.clock.instant() < until {
            std::thread::sleep(Duration::from_millis(50).min(until - self.shared.clock.instant()));
            if self.stats().workers.iter().map(|worker| worker.open).sum::<usize>() == 0 {
                return;
            }
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
            [&counters.answered, &counters.refused, &counters.dropped]
                .map(|counter| counter.load(Ordering::Relaxed))
        });
        let hub = self.shared.hub();
        RelayStats {
            relay_id: hub.relay_id(),
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

/// The relay's threads.
#[derive(Debug, Default)]
struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(StartError::Thread)?;
        self.0.push(thread);
        Ok(())
    }

    fn join(&mut self) {
        for thread in self.0.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a relay thread panicked");
            }
        }
    }
}

/// Workers whose drivers are open and who wait for the word to listen: each other's wakers.
#[derive(Debug, Default)]
struct Workers {
    mailboxes: Vec<Mailbox>,
    starts: Vec<Sender<Vec<Waker>>>,
    address: Option<SocketAddr>,
}

fn start_workers(
    config: &RelayConfig,
    listen: SocketAddr,
    clock: Clock,
    hub_input: &Sender<HubInput>,
    rng: &mut ChaCha20Rng,
    threads: &mut Threads,
) -> Result<Workers, StartError> {
    let count = config.worker_count();
    let listeners = config::listeners(listen, count)?;
    let mut workers = Workers::default();
    let paths = config.leak_paths();
    let server = ServerOptions { tls: config.tls.clone(), paths, max_message: MAX_MESSAGE };
    let limits = per_worker(&config.limits, count);
    let (lanes_in, lanes_out) = lane::between(count);
    let seats = listeners.into_iter().zip(lanes_in).zip(lanes_out).enumerate();
    for (index, ((listener, lanes_in), lanes_out)) in seats {
        let io = |source| SocketError::Io { address: listen, source };
        workers.address = Some(local_address(&listener).map_err(io)?);
        let id = WorkerId(index as u16);
        let (inbox_sender, inbox) = channel();
        let (ready, opened) = channel();
        let (start, wakers) = channel::<Vec<Waker>>();
        let seat = Seat {
            machine: Worker::new(id, limits.clone()),
            id,
            listener: Some(listener),
            server: server.clone(),
            data_path: paths[0],
            policy: config.queue,
            clock,
            rng: fork(rng),
            inbox,
            hub: hub_input.clone(),
            lanes_in,
            lanes_out,
            wakers: Vec::new(),
        };
        let prefer = config.driver;
        threads.spawn(&format!("relay-{index}"), move || {
            let result = match open(prefer) {
                Ok(Opened::Uring(driver)) => run(driver, seat, &ready, &wakers),
                Ok(Opened::Epoll(driver)) => run(driver, seat, &ready, &wakers),
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            if let Err(error) = result {
                tracing::error!(%error, worker = index, "worker ended");
            }
        })?;
        let ended = || StartError::Driver(std::io::Error::other("worker thread ended"));
        let waker = opened.recv().map_err(|_| ended())?.map_err(StartError::Driver)?;
        workers.mailboxes.push(Mailbox { inbox: inbox_sender, waker });
        workers.starts.push(start);
    }
    Ok(workers)
}

/// A worker's thread, once its driver is open.
fn run<D: crate::engine::driver::Driver>(
    driver: D,
    mut seat: Seat,
    ready: &Sender<std::io::Result<Waker>>,
    wakers: &std::sync::mpsc::Receiver<Vec<Waker>>,
) -> std::io::Result<()> {
    let _ = ready.send(Ok(driver.waker()));
    match wakers.recv() {
        Ok(wakers) => seat.wakers = wakers,
        // The start failed elsewhere.
        Err(_) => return Ok(()),
    }
    Shell::new(driver, seat)?.run()
}

fn fork(rng: &mut ChaCha20Rng) -> ChaCha20Rng {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    ChaCha20Rng::from_seed(seed)
}
