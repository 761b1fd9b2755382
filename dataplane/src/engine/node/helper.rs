//! Helper threads that connect: [`Outbound::connect`] blocks until somebody answers or its limit is over.
//!
//! A dial is known by its ticket. The data thread gives up after its own time limit and forgets the ticket; a helper that comes back later than that
//! brings a socket that is closed unseen. The number of helpers is bounded.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use crate::engine::dial::{Connected, DialError, Host, Outbound};
use crate::engine::driver::Waker;

/// Helpers at work at once.
const MAX_HELPERS: usize = 64;

/// A dial under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

type Done = (Ticket, Result<Connected, DialError>);

/// Starts helpers and collects what they bring.
#[derive(Debug)]
pub(super) struct Helpers {
    next: u64,
    /// Started and not yet collected.
    at_work: usize,
    done: SyncSender<Done>,
    inbox: Receiver<Done>,
    waker: Waker,
}

impl Helpers {
    pub(super) fn new(waker: Waker) -> Self {
        // As many as there are helpers: none ever waits to put its result down.
        let (done, inbox) = sync_channel(MAX_HELPERS);
        Self { next: 0, at_work: 0, done, inbox, waker }
    }

    /// Starts a helper.
    pub(super) fn dial(
        &mut self,
        outbound: &Arc<Outbound>,
        hosts: Vec<Host>,
        limit: Duration,
    ) -> io::Result<Ticket> {
        if self.at_work >= MAX_HELPERS {
            return Err(io::Error::other("too many connection attempts are under way"));
        }
        self.next += 1;
        let ticket = Ticket(self.next);
        let (done, waker, outbound) = (self.done.clone(), self.waker.clone(), Arc::clone(outbound));
        let spawned = std::thread::Builder::new()
            .name("edgelink-dial".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                let result = outbound.connect(&hosts, limit);
                // The place in the queue is ours until the count goes down, which is when the result is taken out.
                let _ = done.try_send((ticket, result));
                waker.wake();
            });
        spawned?;
        self.at_work += 1;
        Ok(ticket)
    }

    /// A finished dial.
    pub(super) fn poll(&mut self) -> Option<Done> {
        let done = self.inbox.try_recv().ok()?;
        self.at_work -= 1;
        Some(done)
    }
}
