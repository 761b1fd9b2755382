//! The driver on epoll: the fallback where io_uring is forbidden, and its control in benchmarks.
//!
//! Descriptors are registered once, edge-triggered both ways. Those that are ready wait in a list; [`Driver::next_event`] reads one of them
//! into the receive buffer used last, so one 256 KiB buffer stays hot while a worker recycles what it gets. Sends are tried at once, what
//! the socket does not take waits for its edge.

mod read;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use super::driver::{Driver, Event, LATER, NEWCOMERS, RecvBuffer, SendBuffer, Token, Waker};
use super::slab::Slab;
use super::socket;
use super::udp::{Batch, Udp, UdpSocket};
use crate::tun::MAX_READ;

/// Size of a receive buffer: one receive takes as much as there is.
const BUFFER: usize = 256 << 10;
/// How many there are. Whoever recycles promptly touches but one.
const BUFFERS: u16 = 8;
/// Readiness reports taken per wait.
const BATCH: usize = 256;
/// The waker's mark among tokens.
const WAKER: u64 = u64::MAX;
/// Bytes received between two waits, a read counting at least [`LEAST`]: what came for others meanwhile waits no longer.
const ROUND: usize = 256 << 10;
const LEAST: usize = 2 << 10;
/// How long a listener rests when the process is out of descriptors or memory.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// See the module's doc.
pub struct Epoll {
    poller: OwnedFd,
    slots: Slab<Slot>,
    reports: Vec<epoll::Event>,
    /// Descriptors that may have something to read; each at most once ([`Slot::queued`]).
    ready: VecDeque<Token>,
    /// The same for listeners, and for those who are not welcome yet.
    doors: VecDeque<Token>,
    newcomers: VecDeque<Token>,
    newcomers_left: usize,
    /// How many bytes until the next wait. Who always has more must not keep others from being noticed.
    left: usize,
    /// Listeners that failed for want of resources: tried again after the next wait.
    resting: Vec<Token>,
    /// Events that are known already.
    known: VecDeque<Event>,
    /// Connections that went.
    later: VecDeque<Event>,
    /// How many connections may come and go until the next wait.
    later_left: usize,
    waker: Waker,
    memory: Box<[u8]>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Slot {
    fd: OwnedFd,
    kind: Kind,
    readable: bool,
    queued: bool,
    paused: bool,
    newcomer: bool,
    /// The other end has finished or failed: reading must go on until it shows.
    hung_up: bool,
    sending: Option<SendBuffer>,
    send_error: Option<io::Error>,
    /// Of a socket of the data path.
    udp: Option<Box<Udp>>,
    shutdown: bool,
    /// [`Event::Closed`] waits to be reported.
    dead: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Listener,
    Connecting,
    Stream,
    Datagram,
    Packets { max: usize },
}

impl Epoll {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = Waker::new()?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&poller, waker.descriptor(), epoll::EventData::new_u64(WAKER), flags)?;
        Ok(Self {
            poller,
            slots: Slab::new(),
            reports: Vec::with_capacity(BATCH),
            ready: VecDeque::new(),
            doors: VecDeque::new(),
            newcomers: VecDeque::new(),
            newcomers_left: 0,
            left: 0,
            resting: Vec::new(),
            known: VecDeque::new(),
            later: VecDeque::new(),
            later_left: 0,
            waker,
            memory: vec![0; BUFFER * usize::from(BUFFERS)].into_boxed_slice(),
            free: (0..BUFFERS).rev().collect(),
        })
    }

    fn add(&mut self, fd: OwnedFd, kind: Kind, udp: Option<Box<Udp>>) -> io::Result<Token> {
        let token = self.slots.insert(Slot {
            fd,
            kind,
            readable: false,
            queued: false,
            paused: false,
            newcomer: false,
            hung_up: false,
            sending: None,
            send_error: None,
            udp,
            shutdown: false,
            dead: false,
        });
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let slot = self.slots.get(token).expect("just inserted");
        let data = epoll::EventData::new_u64(u64::from(token.generation) << 32 | u64::from(token.slot));
        if let Err(error) = epoll::add(&self.poller, &slot.fd, data, flags) {
            self.slots.remove(token);
            return Err(error.into());
        }
        Ok(token)
    }

    fn report(&mut self, token: Token, flags: epoll::EventFlags) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        let ended =
            flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if slot.kind == Kind::Connecting {
            if flags.contains(epoll::EventFlags::OUT) || ended {
                match socket::connect_result(&slot.fd) {
                    Ok(()) => {
                        slot.kind = Kind::Stream;
                        self.known.push_back(Event::Connected { token });
                    }
                    Err(error) => return self.fail(token, Some(error)),
                }
            } else {
                return;
            }
        }
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.hung_up |= ended;
        if ended || flags.contains(epoll::EventFlags::IN) {
            slot.readable = true;
            self.enqueue(token);
        }
        if flags.contains(epoll::EventFlags::OUT) || ended {
            self.flush(token);
        }
    }

    fn enqueue(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token)
            && slot.readable
            && !slot.queued
            && !slot.dead
            && (!slot.paused || slot.send_error.is_some())
        {
            slot.queued = true;
            let queue = match slot.kind {
                Kind::Listener => &mut self.doors,
                _ if slot.newcomer => &mut self.newcomers,
                _ => &mut self.ready,
            };
            queue.push_back(token);
        }
    }

    /// The descriptor is of no use: reported once what is known before has been.
    fn fail(&mut self, token: Token, error: Option<io::Error>) {
        if let Some(slot) = self.slots.get_mut(token)
            && !slot.dead
        {
            slot.dead = true;
            slot.sending = None;
            self.later.push_back(Event::Closed { token, error });
        }
    }

    fn flush(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        let Some(buffer) = slot.sending.as_mut() else { return };
        while !buffer.is_empty() {
            match rustix::net::send(&slot.fd, buffer.filled(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => buffer.consume(sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    // What the other end sent before it went may still be read: the read side reports the end.
                    slot.sending = None;
                    slot.send_error = Some(error.into());
                    slot.readable = true;
                    return self.enqueue(token);
                }
            }
        }
        if let Some(buffer) = slot.sending.take() {
            if slot.shutdown {
                let _ = rustix::net::shutdown(&slot.fd, Shutdown::Write);
            }
            self.known.push_back(Event::Sent { token, buffer });
        }
    }
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").field("slots", &self.slots).field("free", &self.free).finish_non_exhaustive()
    }
}

impl Driver for Epoll {
    fn listen(&mut self, socket: OwnedFd) -> io::Result<Token> {
        self.add(socket, Kind::Listener, None)
    }

    fn stream(&mut self, socket: OwnedFd) -> io::Result<Token> {
        socket::prepare_stream(&socket)?;
        self.add(socket, Kind::Stream, None)
    }

    fn newcomer(&mut self, socket: OwnedFd) -> io::Result<Token> {
        let token = self.stream(socket)?;
        if let Some(slot) = self.slots.get_mut(token) {
            slot.newcomer = true;
        }
        Ok(token)
    }

    fn welcome(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.newcomer = false;
        }
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<Token> {
        let socket = socket::connecting(address)?;
        socket::prepare_stream(&socket)?;
        self.add(socket, Kind::Connecting, None)
    }

    fn datagram(&mut self, socket: OwnedFd) -> io::Result<Token> {
        self.add(socket, Kind::Datagram, None)
    }

    fn udp(&mut self, socket: UdpSocket) -> io::Result<Token> {
        self.add(socket.descriptor, Kind::Datagram, Some(Box::new(socket.state)))
    }

    fn packets(&mut self, device: OwnedFd, max_packet: usize) -> io::Result<Token> {
        if max_packet > MAX_READ {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "packets are limited to 64 KiB"));
        }
        self.add(device, Kind::Packets { max: max_packet }, None)
    }

    fn send(&mut self, token: Token, buffer: SendBuffer) {
        if self.can_send(token) {
            if let Some(slot) = self.slots.get_mut(token) {
                slot.sending = Some(buffer);
            }
            self.flush(token);
        } else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "a send before the last one was done");
            self.fail(token, Some(error));
        }
    }

    fn can_send(&self, token: Token) -> bool {
        self.slots.get(token).is_some_and(|slot| {
            slot.kind == Kind::Stream
                && slot.sending.is_none()
                && slot.send_error.is_none()
                && !slot.shutdown
                && !slot.dead
        })
    }

    fn send_to(&mut self, token: Token, to: SocketAddr, datagram: &[u8]) -> io::Result<bool> {
        let Some(slot) = self.slots.get(token) else { return Ok(false) };
        socket::send_to(&slot.fd, to, datagram)
    }

    fn send_batch(&mut self, token: Token, batch: &Batch<'_>) -> io::Result<usize> {
        let Some(Slot { fd, udp: Some(udp), .. }) = self.slots.get_mut(token) else { return Ok(0) };
        udp.send(fd, batch)
    }

    fn write_packet(&mut self, token: Token, packet: &[u8]) -> io::Result<bool> {
        let Some(slot) = self.slots.get(token) else { return Ok(false) };
        socket::write_packet(&slot.fd, packet)
    }

    fn pause(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.paused = true;
        }
    }

    fn resume(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.paused = false;
            self.enqueue(token);
        }
    }

    fn shutdown(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.shutdown = true;
            if slot.sending.is_none() {
                let _ = rustix::net::shutdown(&slot.fd, Shutdown::Write);
            }
        }
    }

    fn close(&mut self, token: Token) {
        if let Some(slot) = self.slots.remove(token) {
            // Dropping it is not enough when the caller holds a duplicate.
            let _ = epoll::delete(&self.poller, &slot.fd);
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.wait_gathering(timeout, None)
    }

    fn wait_gathering(&mut self, timeout: Option<Duration>, gather: Option<Duration>) -> io::Result<()> {
        let to_read = !self.ready.is_empty() || !self.newcomers.is_empty();
        let left_over = !self.known.is_empty()
            || !self.later.is_empty()
            || !self.doors.is_empty()
            || (to_read && !self.free.is_empty());
        if let Some(gather) = gather
            && !left_over
        {
            std::thread::sleep(gather);
        }
        let timeout = match timeout {
            _ if left_over => Some(Duration::ZERO),
            Some(timeout) if !self.resting.is_empty() => Some(timeout.min(ACCEPT_REST)),
            None if !self.resting.is_empty() => Some(ACCEPT_REST),
            timeout => timeout,
        };
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut reports = std::mem::take(&mut self.reports);
        reports.clear();
        let outcome = epoll::wait(&self.poller, spare_capacity(&mut reports), timeout.as_ref());
        for report in &reports {
            let (data, flags) = (report.data.u64(), report.flags);
            if data == WAKER {
                self.waker.drain();
                self.known.push_back(Event::Woken);
            } else {
                self.report(Token { slot: data as u32, generation: (data >> 32) as u32 }, flags);
            }
        }
        self.reports = reports;
        self.left = ROUND;
        (self.later_left, self.newcomers_left) = (LATER, NEWCOMERS);
        for listener in std::mem::take(&mut self.resting) {
            self.enqueue(listener);
        }
        match outcome {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            while let Some(event) = self.known.pop_front() {
                match &event {
                    Event::Sent { token, .. } | Event::Connected { token }
                        if self.slots.get(*token).is_none() => {}
                    _ => return Some(event),
                }
            }
            if !self.free.is_empty()
                && self.left > 0
                && let Some(token) = self.ready.pop_front()
            {
                let event = self.read(token);
                let len = match &event {
                    Some(
                        Event::Received { buffer, .. }
                        | Event::Datagram { buffer, .. }
                        | Event::Packet { buffer, .. },
                    ) => buffer.len(),
                    _ => 0,
                };
                self.left = self.left.saturating_sub(len.max(LEAST));
                if event.is_some() {
                    return event;
                }
                continue;
            }
            if self.later_left > 0 {
                self.later_left -= 1;
                if let Some(event) = self.later.pop_front() {
                    if let Event::Closed { token, .. } = event
                        && self.slots.get(token).is_some()
                    {
                        self.close(token);
                        return Some(event);
                    }
                    continue;
                }
                if let Some(door) = self.doors.pop_front() {
                    if let Some(event) = self.read(door) {
                        return Some(event);
                    }
                    continue;
                }
            }
            if self.free.is_empty() || self.newcomers_left == 0 {
                return None;
            }
            let token = self.newcomers.pop_front()?;
            if let Some(event) = self.read(token) {
                self.newcomers_left -= 1;
                return Some(event);
            }
        }
    }

    fn bytes(&mut self, buffer: &RecvBuffer) -> &mut [u8] {
        &mut place(&mut self.memory, buffer.index)[..buffer.len()]
    }

    fn recycle(&mut self, buffer: RecvBuffer) {
        self.free.push(buffer.index);
    }

    fn name(&self) -> &'static str {
        "epoll"
    }
}

fn place(memory: &mut [u8], index: u16) -> &mut [u8] {
    &mut memory[usize::from(index) * BUFFER..][..BUFFER]
}

fn received(index: u16, len: usize) -> RecvBuffer {
    RecvBuffer { group: 0, index, offset: 0, len: len as u32 }
}
