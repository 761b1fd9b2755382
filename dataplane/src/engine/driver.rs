//! What relay and node see of the kernel: operations go in, events come out.
//!
//! A driver owns every descriptor it is given and drives all of them from one thread. It is completion-style, because that is what
//! io_uring is and what epoll can imitate: bytes arrive in buffers of the driver's, output buffers are the driver's until they come back.
//! [`super::uring`] and [`super::epoll`] implement it and pass the same tests.
//!
//! The loop of a worker (generic over `D: Driver`, chosen once by [`super::open`]):
//!
//! ```text
//! loop {
//!     driver.wait(machine.poll_timeout())?;
//!     while let Some(event) = driver.next_event() {
//!         match event {
//!             Event::Received { token, buffer } => {
//!                 machine.handle(token, driver.bytes(&buffer));
//!                 driver.recycle(buffer);             // soon: they are few, and what is in flight should fit the cache
//!             }
//!             Event::Sent { token, .. } => {}          // the stream can take the next buffer
//!             …
//!         }
//!     }
//!     for (token, buffer) in machine.outputs(|token| driver.can_send(token)) { driver.send(token, buffer); }
//! }
//! ```
//!
//! Invariants: after [`Event::Closed`] or [`Driver::close`] a token is dead, no event carries it any more and every call with it does
//! nothing; a slot is reused only under a new generation. Memory that the kernel may write to or read from is not freed before it has
//! let go of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::udp::{Batch, UdpSocket};
pub use crate::packet::pool::Buffer as SendBuffer;

/// Names one descriptor of a driver. Copies outlive what they name: a stale one is harmless.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl Token {
    /// The number of the slot: small, dense, reused. Good as an index beside [`Token`] equality.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Received bytes that still lie in the driver's memory. Read with [`Driver::bytes`]; give back with [`Driver::recycle`].
#[derive(Debug)]
#[must_use = "a receive buffer that is not recycled is lost to its driver"]
pub struct RecvBuffer {
    pub(super) group: u16,
    pub(super) index: u16,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl RecvBuffer {
    /// How many bytes were received.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether none were (an empty datagram).
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection came in. It belongs to the caller: pass it to [`Driver::stream`], of this driver or another worker's.
    Accepted {
        /// The listener it came in on.
        listener: Token,
        /// The new connection, non-blocking.
        socket: OwnedFd,
        /// The other end.
        peer: SocketAddr,
    },
    /// [`Driver::connect`] has succeeded.
    Connected {
        /// The stream.
        token: Token,
    },
    /// Bytes of a stream.
    Received {
        /// The stream.
        token: Token,
        /// Never empty.
        buffer: RecvBuffer,
    },
    /// One datagram.
    Datagram {
        /// The UDP socket.
        token: Token,
        /// Who sent it.
        from: SocketAddr,
        /// May be empty.
        buffer: RecvBuffer,
    },
    /// Datagrams of one sender ([`Driver::udp`]), one behind the other.
    Datagrams {
        /// The UDP socket.
        token: Token,
        /// Who sent them.
        from: SocketAddr,
        /// The address of this machine that they came to, where the system tells.
        local: Option<IpAddr>,
        /// How long each is, but for the last, which may be shorter. Zero when there is but an empty one.
        segment: usize,
        /// All of them.
        buffer: RecvBuffer,
    },
    /// One packet of a TUN device, or what one read of it gives.
    Packet {
        /// The device.
        token: Token,
        /// The packet.
        buffer: RecvBuffer,
    },
    /// All of a buffer has been handed to the network; the stream can take the next.
    Sent {
        /// The stream.
        token: Token,
        /// The buffer, emptied; dropping it gives it back to its pool.
        buffer: SendBuffer,
    },
    /// The other end has finished, or the descriptor has failed. The token is dead, a buffer that was being sent is gone.
    Closed {
        /// What it was.
        token: Token,
        /// `None` for an orderly end.
        error: Option<io::Error>,
    },
    /// A [`Waker`] was used, once or more often.
    Woken,
}

/// Connections that come ([`Event::Accepted`]) and go ([`Event::Closed`]) between two waits.
pub const LATER: usize = 32;

/// Reads of [`Driver::newcomer`]s between two waits: a step of a handshake takes 100 us.
pub const NEWCOMERS: usize = 2;

/// One thread's descriptors. See the module's doc for the loop and the invariants.
pub trait Driver {
    /// Accepts connections on a listening socket until closed. Errors that pass (too many open files, connections aborted in the
    /// queue) are logged and retried, not reported.
    fn listen(&mut self, socket: OwnedFd) -> io::Result<Token>;

    /// Takes over a connected stream socket and starts receiving. Sets `TCP_NODELAY`: output is coalesced above.
    fn stream(&mut self, socket: OwnedFd) -> io::Result<Token>;

    /// The same for a connection that nobody knows yet: what it says is read behind everything else, [`NEWCOMERS`] at a time, until
    /// [`Driver::welcome`]. A crowd of handshakes then delays nobody by more than a few.
    fn newcomer(&mut self, socket: OwnedFd) -> io::Result<Token>;

    /// It is one of us.
    fn welcome(&mut self, token: Token);

    /// Connects a new stream to `address`: [`Event::Connected`] or [`Event::Closed`] follows. Timeouts are the caller's (close it).
    fn connect(&mut self, address: SocketAddr) -> io::Result<Token>;

    /// Takes over a bound UDP socket and starts receiving.
    fn datagram(&mut self, socket: OwnedFd) -> io::Result<Token>;

    /// Takes over a UDP socket of the data path and starts receiving: [`Event::Datagrams`].
    fn udp(&mut self, socket: UdpSocket) -> io::Result<Token>;

    /// Takes over a TUN queue (see [`crate::tun`]) and starts reading, several times per wake, of at most `max_packet` bytes each.
    fn packets(&mut self, device: OwnedFd, max_packet: usize) -> io::Result<Token>;

    /// Sends the buffer's filled bytes, all of them, then reports [`Event::Sent`]. One buffer per stream at a time, and only after
    /// [`Event::Connected`]: another one while [`Driver::can_send`] is false ends the stream with `InvalidInput`. On a dead token the
    /// buffer goes back to its pool.
    fn send(&mut self, token: Token, buffer: SendBuffer);

    /// Whether `token` is a live, connected stream with no buffer in flight.
    fn can_send(&self, token: Token) -> bool;

    /// Sends one datagram now. `Ok(false)`: the socket's buffer is full or the token is dead; the datagram is lost.
    fn send_to(&mut self, token: Token, to: SocketAddr, datagram: &[u8]) -> io::Result<bool>;

    /// Sends the datagrams of a batch now, over a socket given to [`Driver::udp`]; says how many it took. The others are lost, unless they are tried again: its
    /// buffer is full, or the token is dead.
    ///
    /// # Errors
    /// The first was refused: EMSGSIZE is what is longer than the way out takes.
    fn send_batch(&mut self, token: Token, batch: &Batch<'_>) -> io::Result<usize>;

    /// Writes one packet to a TUN device now. `Ok(false)`: the device did not take it or the token is dead; the packet is lost.
    fn write_packet(&mut self, token: Token, packet: &[u8]) -> io::Result<bool>;

    /// Stops receiving (accepting, reading): back-pressure. A few events that are already under way may still come.
    fn pause(&mut self, token: Token);

    /// Takes [`Driver::pause`] back.
    fn resume(&mut self, token: Token);

    /// Tells the other end of a stream that no more will be sent, after the buffer in flight. Receiving goes on, so that what was
    /// sent is not lost to a reset: discard what comes until [`Event::Closed`], and [`Driver::close`] when that takes too long.
    fn shutdown(&mut self, token: Token);

    /// Ends it at once; a buffer in flight goes back to its pool when the kernel has let go of it. No event follows.
    fn close(&mut self, token: Token);

    /// Wakes this driver's [`Driver::wait`] from another thread.
    fn waker(&self) -> Waker;

    /// Waits for something to happen, at most `timeout` (`None`: for ever); returns at once when events are left over, and may return
    /// early without any. Submits what was asked for since the last call.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// The same, but lets events collect for `gather` first (fewer, larger rounds), unless some are left over.
    fn wait_gathering(&mut self, timeout: Option<Duration>, gather: Option<Duration>) -> io::Result<()>;

    /// The next event, until there is none: then [`Driver::wait`] again. What is not urgent comes last, and not more than [`LATER`] of it at a time
    /// (connections that come and go: thousands at once would hold up all others). When all receive buffers are out, events that need one stay
    /// inside until some are recycled.
    fn next_event(&mut self) -> Option<Event>;

    /// The received bytes, to be decrypted and unmasked in place.
    fn bytes(&mut self, buffer: &RecvBuffer) -> &mut [u8];

    /// Gives a receive buffer back.
    fn recycle(&mut self, buffer: RecvBuffer);

    /// Its name in logs and metrics: `io_uring` or `epoll`.
    fn name(&self) -> &'static str;
}

/// Wakes a driver from any thread. Clones are cheap; many calls before the driver wakes cost one system call.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
    pending: Arc<AtomicBool>,
}

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event: Arc::new(event), pending: Arc::default() })
    }

    /// Makes the driver report [`Event::Woken`].
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // The counter cannot be full: one write is outstanding at most.
            let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
        }
    }

    /// Empties the counter. Whoever calls `wake` after this causes another event.
    pub(super) fn drain(&self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&*self.event, &mut counter);
        self.pending.store(false, Ordering::Release);
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.event
    }
}
