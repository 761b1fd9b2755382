//! Looking up names on threads: `getaddrinfo` blocks for as long as it likes. One that hangs is left behind; how many may do so is bounded.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::MAX_HOSTS;
use crate::engine::driver::Waker;

/// Threads in this process that look up a name, those that hang included.
const MAX_AT_WORK: usize = 64;
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

type Found = (usize, io::Result<Vec<SocketAddr>>);

/// The look-ups of one dial.
pub(super) struct Lookups {
    found: Receiver<Found>,
    finder: SyncSender<Found>,
    waker: Waker,
    missing: BTreeSet<usize>,
}

impl Lookups {
    pub(super) fn new() -> io::Result<Self> {
        // As many as there are hosts: none ever waits to put its result down.
        let (finder, found) = sync_channel(MAX_HOSTS);
        Ok(Self { found, finder, waker: Waker::new()?, missing: BTreeSet::new() })
    }

    /// Starts to look up `name`; [`Lookups::poll`] gives the result with `n`.
    pub(super) fn start(&mut self, n: usize, name: &str, port: u16) -> io::Result<()> {
        let permit = Permit::take()?;
        let (finder, waker, name) = (self.finder.clone(), self.waker.clone(), name.to_owned());
        std::thread::Builder::new().name("edgelink-name".to_owned()).stack_size(256 << 10).spawn(
            move || {
                let result = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
                drop(permit);
                let _ = finder.try_send((n, result));
                waker.wake();
            },
        )?;
        self.missing.insert(n);
        Ok(())
    }

    pub(super) fn poll(&mut self) -> Option<Found> {
        self.waker.drain();
        let (n, result) = self.found.try_recv().ok()?;
        self.missing.remove(&n);
        Some((n, result))
    }

    /// Which have not been found.
    pub(super) fn missing(&self) -> impl Iterator<Item = usize> {
        self.missing.iter().copied()
    }

    /// Readable when [`Lookups::poll`] has something.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.waker.descriptor().as_fd()
    }
}

/// To be one of [`MAX_AT_WORK`].
struct Permit;

impl Permit {
    fn take() -> io::Result<Self> {
        let taken = AT_WORK
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < MAX_AT_WORK).then_some(n + 1));
        taken.map(|_| Self).map_err(|_| io::Error::other("too many look-ups hang; see /etc/resolv.conf"))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::Relaxed);
    }
}
