//! Opening listeners and starting worker threads, and noticing when one of them ends that should not.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use rand_chacha::ChaCha20Rng;

use super::clock::Clock;
use super::config::{self, per_worker};
use super::worker::door::Door;
use super::worker::{Seat, Shell};
use super::{HubInput, Mailbox, RelayConfig, StartError, fork, lane};
use crate::engine::connection::ServerOptions;
use crate::engine::driver::{Driver, Waker};
use crate::engine::socket::{SocketError, local_address};
use crate::engine::{Opened, open};
use crate::proto::relay::WorkerId;
use crate::proto::relay::worker::{MAX_STRANGERS_MESSAGE, Worker};

/// The relay's threads.
#[derive(Debug, Default)]
pub(super) struct Threads {
    running: Vec<JoinHandle<()>>,
    failure: Failure,
}

/// Why a thread ended that should not have; the first reason stays.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<std::sync::Mutex<Option<String>>>);

impl Failure {
    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, reason: String) {
        tracing::error!(reason, "the relay has failed");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }
}

/// Tells when the thread that holds it unwinds.
struct Watch {
    name: String,
    failure: Failure,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failure.set(format!("thread {} panicked", self.name));
        }
    }
}

impl Threads {
    /// `run` is not to end before the relay is stopped.
    pub(super) fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), StartError> {
        let watch = Watch { name: name.to_owned(), failure: self.failure.clone() };
        let body = move || {
            if let Err(error) = run() {
                watch.failure.set(format!("thread {} ended: {error}", watch.name));
            }
        };
        let thread =
            std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StartError::Thread)?;
        self.running.push(thread);
        Ok(())
    }

    pub(super) fn failure(&self) -> &Failure {
        &self.failure
    }

    pub(super) fn join(&mut self) {
        for thread in self.running.drain(..) {
            // Who panicked has been reported.
            let _ = thread.join();
        }
    }
}

/// Workers whose drivers are open and who wait for the word to listen: each other's wakers.
#[derive(Debug, Default)]
pub(super) struct Workers {
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) starts: Vec<Sender<Vec<Waker>>>,
    pub(super) addresses: Vec<SocketAddr>,
}

pub(super) fn start_workers(
    config: &RelayConfig,
    clock: Clock,
    hub_input: &Sender<HubInput>,
    rng: &mut ChaCha20Rng,
    threads: &mut Threads,
) -> Result<Workers, StartError> {
    let count = config.worker_count();
    let mut workers = Workers::default();
    let paths = config.leak_paths();
    let mut doors: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    for listener in &config.listeners {
        let sockets = config::listeners(listener.address, count, config.take_over)?;
        for (doors, socket) in doors.iter_mut().zip(sockets) {
            let io = |source| SocketError::Io { address: listener.address, source };
            let address = local_address(&socket).map_err(io)?;
            if !workers.addresses.contains(&address) {
                workers.addresses.push(address);
            }
            let server =
                ServerOptions { tls: listener.tls.clone(), paths, max_message: MAX_STRANGERS_MESSAGE };
            let (behind_proxy, proxy_protocol) = (listener.behind_proxy, listener.proxy_protocol);
            let twin = socket.try_clone().map_err(io)?;
            doors.push((socket, Door { socket: twin, server, behind_proxy, proxy_protocol }));
        }
    }
    let trust = Arc::new(config.trust.clone());
    let limits = per_worker(&config.limits, count);
    let (lanes_in, lanes_out) = lane::between(count);
    let seats = doors.into_iter().zip(lanes_in).zip(lanes_out).enumerate();
    for (index, ((listeners, lanes_in), lanes_out)) in seats {
        let id = WorkerId(index as u16);
        let (inbox_sender, inbox) = channel();
        let (ready, opened) = channel();
        let (start, wakers) = channel::<Vec<Waker>>();
        let machine = Worker::new(id, limits.clone());
        let seat = Seat {
            machine: if count == 1 { machine.alone() } else { machine },
            id,
            listeners,
            trust: Arc::clone(&trust),
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
        threads.spawn(&format!("relay-{index}"), move || match open(prefer) {
            Ok(Opened::Uring(driver)) => run(driver, seat, &ready, &wakers),
            Ok(Opened::Epoll(driver)) => run(driver, seat, &ready, &wakers),
            Err(error) => {
                let _ = ready.send(Err(error));
                Ok(())
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
fn run<D: Driver>(
    driver: D,
    mut seat: Seat,
    ready: &Sender<std::io::Result<Waker>>,
    wakers: &Receiver<Vec<Waker>>,
) -> std::io::Result<()> {
    let _ = ready.send(Ok(driver.waker()));
    match wakers.recv() {
        Ok(wakers) => seat.wakers = wakers,
        // The start failed elsewhere.
        Err(_) => return Ok(()),
    }
    Shell::new(driver, seat)?.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_or_fails_is_a_failure_of_the_relay_and_one_that_ends_is_none() {
        let mut threads = Threads::default();
        threads.spawn("fine", || Ok(())).unwrap();
        threads.join();
        assert_eq!(threads.failure().get(), None);
        threads.spawn("relay-3", || panic!("on purpose")).unwrap();
        threads.join();
        assert_eq!(threads.failure().get().unwrap(), "thread relay-3 panicked");
        let mut threads = Threads::default();
        threads.spawn("relay-0", || Err(std::io::Error::other("no ring"))).unwrap();
        threads.join();
        assert_eq!(threads.failure().get().unwrap(), "thread relay-0 ended: no ring");
    }
}
