//! Resolving and connecting, on a helper thread: `getaddrinfo` blocks for as long as it likes.
//!
//! A dial is known by its ticket. The data thread gives up after its own time limit and forgets the ticket; a helper that comes back later than that
//! brings a socket that is closed unseen. The number of helpers is bounded, those that hang included.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::engine::driver::Waker;
use crate::engine::socket::connect_outside;

/// Helpers at work at once.
const MAX_HELPERS: usize = 64;

/// A dial under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// Starts helpers and collects what they bring.
#[derive(Debug)]
pub(super) struct Helpers {
    next: u64,
    /// Started and not yet collected.
    at_work: usize,
    done: SyncSender<(Ticket, io::Result<OwnedFd>)>,
    inbox: Receiver<(Ticket, io::Result<OwnedFd>)>,
    waker: Waker,
}

impl Helpers {
    pub(super) fn new(waker: Waker) -> Self {
        // As many as there are helpers: none ever waits to put its result down.
        let (done, inbox) = sync_channel(MAX_HELPERS);
        Self { next: 0, at_work: 0, done, inbox, waker }
    }

    /// Starts a helper.
    pub(super) fn dial(&mut self, host: String, port: u16, limit: Duration) -> io::Result<Ticket> {
        if self.at_work >= MAX_HELPERS {
            return Err(io::Error::other("too many connection attempts hang in name resolution"));
        }
        self.next += 1;
        let ticket = Ticket(self.next);
        let (done, waker) = (self.done.clone(), self.waker.clone());
        let spawned = std::thread::Builder::new()
            .name("edgelink-dial".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                let result = connect(&host, port, limit);
                // The place in the queue is ours until the count goes down, which is when the result is taken out.
                let _ = done.try_send((ticket, result));
                waker.wake();
            });
        spawned?;
        self.at_work += 1;
        Ok(ticket)
    }

    /// A finished dial.
    pub(super) fn poll(&mut self) -> Option<(Ticket, io::Result<OwnedFd>)> {
        let done = self.inbox.try_recv().ok()?;
        self.at_work -= 1;
        Some(done)
    }
}

/// The first address that answers; IPv6 and IPv4 in the resolver's order, each with its share of the time.
fn connect(host: &str, port: u16, limit: Duration) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + limit;
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for (n, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - n) as u32;
        if share.is_zero() {
            break;
        }
        match connect_outside(*address, share) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                return Ok(stream.into());
            }
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}
