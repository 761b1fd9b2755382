//! Descriptors that found no provided buffer: read one after the other by plain system calls, each right before it is handled.
//!
//! A multishot receive takes buffers for as long as there is data, so under load the first stream to be started again would take all of them, and those behind
//! it would starve in turns that nobody decides (among a hundred flooding senders some got a tenth of what others did). So a stream that starves leaves the ring and
//! queues here; it gets one read per turn, in the order they came, and goes back to the ring when a read has emptied its socket. What is read is in the cache
//! when it is handled. Streams that say little never come here: the ring's buffers are left to them, and each round looks at the ring again after
//! [`ROUND`] bytes. Newcomers queue apart from them and come last, a few in each round.
//!
//! A TUN queue or a UDP socket of the data path that starves stays here until it is empty: of small packets a read gives one, the ring has buffers for a few, and
//! what is read here goes out in larger batches (a flood of 64 byte packets: 150,000 to 180,000 a second came through a node by the ring alone, 270,000 to 290,000 by epoll).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::Uring;
use super::buffers::BufferGroup;
use super::slot::Kind;
use crate::engine::driver::{Event, NEWCOMERS, RecvBuffer, Token};
use crate::engine::udp::{Received, Udp};

/// The one buffer's size.
const BUFFER: usize = 256 << 10;
/// Bytes read in one round, a read counting at least [`LEAST`]: what came for others meanwhile waits no longer.
const ROUND: usize = 256 << 10;
const LEAST: usize = 2 << 10;
/// The group that its buffer says it is from.
pub(super) const GROUP: u16 = u16::MAX;

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Direct {
    memory: Box<[u8]>,
    out: bool,
    ready: VecDeque<Token>,
    newcomers: VecDeque<Token>,
    /// Bytes that this round may still read, and how many newcomers.
    left: usize,
    newcomers_left: usize,
}

impl Direct {
    pub(super) fn new() -> Self {
        Self {
            memory: vec![0; BUFFER].into_boxed_slice(),
            out: false,
            ready: VecDeque::new(),
            newcomers: VecDeque::new(),
            left: 0,
            newcomers_left: 0,
        }
    }

    /// `token` has data, or its end, to be read.
    pub(super) fn queue(&mut self, token: Token) {
        self.ready.push_back(token);
    }

    /// The same for one that is not welcome yet.
    pub(super) fn queue_newcomer(&mut self, token: Token) {
        self.newcomers.push_back(token);
    }

    /// A round begins.
    pub(super) const fn begin(&mut self) {
        (self.left, self.newcomers_left) = (ROUND, NEWCOMERS);
    }

    /// Whether there is something to read, and where to.
    pub(super) fn is_ready(&self) -> bool {
        let to_read = !self.ready.is_empty() || !self.newcomers.is_empty();
        to_read && !self.out
    }

    /// The bytes of the buffer, while it is out.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        if self.out { &mut self.memory } else { &mut [] }
    }

    pub(super) const fn recycle(&mut self) {
        self.out = false;
    }

    /// Whose turn it is, in this round.
    fn next(&mut self) -> Option<Token> {
        if self.out || self.left == 0 { None } else { self.ready.pop_front() }
    }

    fn next_newcomer(&mut self) -> Option<Token> {
        if self.out || self.newcomers_left == 0 { None } else { self.newcomers.pop_front() }
    }

    /// Who has waited longest, while the buffer is out: the caller keeps it, and may have room in the ring's.
    fn pop_waiting(&mut self) -> Option<Token> {
        if self.out { self.ready.pop_front() } else { None }
    }

    fn read(&mut self, socket: impl AsFd) -> Result<usize, Errno> {
        let (len, _) = rustix::net::recv(socket, &mut *self.memory, RecvFlags::DONTWAIT)?;
        self.note(len);
        Ok(len)
    }

    fn read_packet(&mut self, device: impl AsFd, max: usize) -> Result<usize, Errno> {
        let place = self.memory.get_mut(..max).unwrap_or_default();
        let len = rustix::io::read(device, place)?;
        self.note(len);
        Ok(len)
    }

    fn read_batch(&mut self, socket: &OwnedFd, udp: &Udp) -> Result<Received, Errno> {
        let received = udp.receive(socket, &mut self.memory);
        let received = received.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // An empty datagram takes the buffer as well.
        self.note(received.len);
        self.out = true;
        Ok(received)
    }

    /// Also when nothing comes of it: a round ends.
    fn note(&mut self, len: usize) {
        self.left = self.left.saturating_sub(len.max(LEAST));
        self.out = len > 0;
    }
}

impl Uring {
    /// One read of the descriptor whose turn it is.
    pub(super) fn read_directly(&mut self) -> Option<Event> {
        loop {
            let token = self.direct.next()?;
            if let Some(event) = self.read_one(token) {
                return Some(event);
            }
        }
    }

    /// The same for the newcomer whose turn it is.
    pub(super) fn read_newcomer(&mut self) -> Option<Event> {
        loop {
            let token = self.direct.next_newcomer()?;
            if let Some(event) = self.read_one(token) {
                self.direct.newcomers_left -= 1;
                return Some(event);
            }
        }
    }

    fn read_one(&mut self, token: Token) -> Option<Event> {
        let slot = self.slots.get_mut(token)?;
        let held = slot.paused && slot.send_error.is_none();
        if slot.closing || slot.dead || held {
            // Resuming starts it again.
            slot.starved = false;
            return None;
        }
        match (slot.kind, &slot.udp) {
            (Kind::Packets { max, .. }, _) => {
                let read = self.direct.read_packet(&slot.fd, max as usize);
                return self.read_on(token, read.map(|len| packet(token, len)));
            }
            (Kind::Datagram { .. }, Some(udp)) => {
                let read = self.direct.read_batch(&slot.fd, udp);
                return self.read_on(token, read.map(|received| Some(datagrams(token, received))));
            }
            _ => {}
        }
        match self.direct.read(&slot.fd) {
            Ok(0) => {
                slot.starved = false;
                let error = slot.send_error.take();
                self.fail(token, error);
                None
            }
            Ok(len) => {
                if len == BUFFER && !slot.newcomer {
                    self.direct.queue(token);
                } else {
                    // Emptied, mostly; what is there or comes next is the ring's to notice.
                    self.back_to_the_ring(token);
                }
                Some(received(token, len))
            }
            Err(Errno::INTR | Errno::AGAIN) => {
                self.back_to_the_ring(token);
                None
            }
            Err(error) => {
                slot.starved = false;
                let error = slot.send_error.take().unwrap_or_else(|| io::Error::from(error));
                self.fail(token, Some(error));
                None
            }
        }
    }

    /// A TUN queue or UDP socket stays until it is empty.
    fn read_on(&mut self, token: Token, read: Result<Option<Event>, Errno>) -> Option<Event> {
        match read {
            Ok(event) => {
                self.direct.queue(token);
                event
            }
            Err(Errno::AGAIN) => {
                self.back_to_the_ring(token);
                None
            }
            // An ICMP error about an earlier datagram; the next read gives what came.
            Err(Errno::INTR | Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                self.direct.queue(token);
                None
            }
            Err(error) => {
                if let Some(slot) = self.slots.get_mut(token) {
                    slot.starved = false;
                }
                self.fail(token, Some(error.into()));
                None
            }
        }
    }

    /// When the buffer has not come back since the last round, the ring's buffers serve: as many streams as it has of them.
    pub(super) fn feed_waiting(&mut self) {
        let available = self.groups.first().map_or(0, BufferGroup::available);
        for _ in 0..available {
            let Some(token) = self.direct.pop_waiting() else { return };
            self.back_to_the_ring(token);
        }
    }

    fn back_to_the_ring(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.starved = false;
        }
        if let Err(error) = self.receive(token) {
            self.fail(token, Some(error));
        }
    }
}

const fn received(token: Token, len: usize) -> Event {
    Event::Received { token, buffer: buffer(len) }
}

/// What one read of a TUN queue gave; nothing is no packet.
fn packet(token: Token, len: usize) -> Option<Event> {
    (len > 0).then(|| Event::Packet { token, buffer: buffer(len) })
}

const fn datagrams(token: Token, received: Received) -> Event {
    let Received { from, local, segment, len } = received;
    Event::Datagrams { token, from, local, segment, buffer: buffer(len) }
}

const fn buffer(len: usize) -> RecvBuffer {
    RecvBuffer { group: GROUP, index: 0, offset: 0, len: len as u32 }
}
