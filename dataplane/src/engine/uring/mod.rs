//! The driver on io_uring: the default.
//!
//! Each descriptor has at most one receiving operation (multishot: it goes on until it is cancelled or runs out of buffers) and at most one send.
//! Received bytes land in [`buffers`] that the kernel picks; 512 KiB of them are in flight at most, which was worth a third of a frame's
//! cost at 64 busy pairs (864 to 610 ns, 2 vCPU Sapphire Rapids guest, Linux 6.18). One system call submits what was asked for and waits.
//!
//! Ownership is the proof: a send buffer and a message header move into the slot when their operation starts and leave it when its last
//! completion has come; a slot is freed when no operation of it is left; the ring is dropped before the buffers' memory, after everything
//! in flight has been cancelled. The operations of a slot are told apart by [`Op`] in their user data.

mod buffers;
mod ring;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::types::{Fd, RecvMsgOut};
use io_uring::{cqueue, opcode, squeue};
use rustix::net::Shutdown;

use self::buffers::BufferGroup;
use self::ring::{Completion, Ring, unsupported};
use super::driver::{Driver, Event, RecvBuffer, SendBuffer, Token, Waker};
use super::slab::Slab;
use super::socket;

/// Buffers for streams: two TLS records each, 512 KiB together.
const STREAM_BUFFERS: (u16, usize) = (16, 32 << 10);
/// Buffers for datagrams: an Ethernet frame's worth, with room for the header that the kernel puts before it.
const DATAGRAM_BUFFERS: (u16, usize) = (64, 4 << 10);
/// Bytes of packet buffers, split by the largest packet.
const PACKET_MEMORY: usize = 256 << 10;
/// How long a listener rests when the process is out of descriptors or memory.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// See the module's doc.
#[derive(Debug)]
pub struct Uring {
    // Dropped before `groups`.
    ring: Ring,
    groups: Vec<BufferGroup>,
    datagram_group: Option<u16>,
    slots: Slab<Slot>,
    /// Descriptors whose receiving stopped for want of buffers.
    starved: VecDeque<Token>,
    resting: Vec<Token>,
    known: VecDeque<Event>,
    completions: Vec<Completion>,
    waker: Waker,
    /// Operations whose last completion has not come.
    in_flight: usize,
}

#[derive(Debug)]
struct Slot {
    fd: OwnedFd,
    kind: Kind,
    /// Operations of this slot whose last completion has not come.
    operations: u32,
    receiving: bool,
    polling: bool,
    starved: bool,
    paused: bool,
    shutdown: bool,
    /// [`Event::Closed`] is among the known events.
    dead: bool,
    /// Dead to the outside; waits for its operations.
    closing: bool,
    sending: Option<SendBuffer>,
    send_error: Option<io::Error>,
    /// What a datagram's receive operation refers to.
    message: Option<Box<libc::msghdr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Listener,
    Connecting,
    Stream,
    Datagram { group: u16 },
    Packets { group: u16, max: u32 },
}

/// What an operation is, in the upper half of its user data; the lower half is the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Op {
    Receive = 1,
    Send = 2,
    Poll = 3,
    Cancel = 4,
    Wake = 5,
}

impl Op {
    const fn user_data(self, token: Token) -> u64 {
        (self as u64) << 32 | token.slot as u64
    }

    const fn of(user_data: u64) -> Option<Self> {
        match user_data >> 32 {
            1 => Some(Self::Receive),
            2 => Some(Self::Send),
            3 => Some(Self::Poll),
            4 => Some(Self::Cancel),
            5 => Some(Self::Wake),
            _ => None,
        }
    }
}

const NO_SLOT: Token = Token { slot: u32::MAX, generation: 0 };

impl Uring {
    /// Opens it, in the thread that will use it, and tries out what it needs.
    ///
    /// # Errors
    /// io_uring is forbidden (seccomp, sysctl) or the kernel is older than 6.0.
    pub fn open() -> io::Result<Self> {
        let mut ring = Ring::open()?;
        let (count, size) = STREAM_BUFFERS;
        let streams = BufferGroup::new(&mut ring, 0, count, size)?;
        let mut driver = Self {
            ring,
            groups: vec![streams],
            datagram_group: None,
            slots: Slab::new(),
            starved: VecDeque::new(),
            resting: Vec::new(),
            known: VecDeque::new(),
            completions: Vec::new(),
            waker: Waker::new()?,
            in_flight: 0,
        };
        driver.arm_waker()?;
        driver.try_out()?;
        Ok(driver)
    }

    /// Probing tells operations, not their flags: one multishot receive shows that they are there.
    fn try_out(&mut self) -> io::Result<()> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let token = self.stream(ours.into())?;
        theirs.write_all(b"?")?;
        self.wait(Some(Duration::from_secs(1)))?;
        let works = match self.next_event() {
            Some(Event::Received { token: from, buffer }) => {
                self.recycle(buffer);
                from == token && self.slots.get(token).is_some_and(|slot| slot.receiving)
            }
            _ => false,
        };
        self.close(token);
        // Nothing of this is left for the first wait: one operation stays, the waker's.
        while self.in_flight > 1 {
            self.wait(Some(Duration::from_millis(20)))?;
        }
        if works { Ok(()) } else { Err(unsupported("multishot receive")) }
    }

    /// Starts an operation. What `entry` names must be owned by the slot (or be the driver's) until it completes.
    #[expect(unsafe_code, reason = "hands addresses to the kernel")]
    fn start(&mut self, entry: squeue::Entry, op: Op, token: Token) -> io::Result<()> {
        let entry = entry.user_data(op.user_data(token));
        // SAFETY: operations here name either nothing, the provided buffers (unmapped after the ring is gone), or the slot's boxed message header or
        // send buffer, which stay in the slot until `operations` is zero; a slot with operations is never removed, and Drop waits
        // for all of them or leaks the slots.
        unsafe { self.ring.push(&entry)? };
        if op != Op::Cancel {
            self.in_flight += 1;
            if let Some(slot) = self.slots.get_mut(token) {
                slot.operations += 1;
            }
        }
        Ok(())
    }

    fn arm_waker(&mut self) -> io::Result<()> {
        let fd = Fd(self.waker.descriptor().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        self.start(entry, Op::Wake, NO_SLOT)
    }

    fn add(&mut self, fd: OwnedFd, kind: Kind, message: Option<Box<libc::msghdr>>) -> io::Result<Token> {
        let token = self.slots.insert(Slot {
            fd,
            kind,
            operations: 0,
            receiving: false,
            polling: false,
            starved: false,
            paused: false,
            shutdown: false,
            dead: false,
            closing: false,
            sending: None,
            send_error: None,
            message,
        });
        let outcome =
            if kind == Kind::Connecting { self.poll(token, libc::POLLOUT) } else { self.receive(token) };
        if let Err(error) = outcome {
            self.slots.remove(token);
            return Err(error);
        }
        Ok(token)
    }

    /// Starts receiving, if it may and does not already.
    fn receive(&mut self, token: Token) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        let held = (slot.paused && slot.send_error.is_none()) || slot.closing || slot.dead;
        if held || slot.receiving || slot.polling {
            return Ok(());
        }
        let fd = Fd(slot.fd.as_raw_fd());
        let entry = match slot.kind {
            Kind::Connecting => return Ok(()),
            Kind::Listener => {
                opcode::AcceptMulti::new(fd).flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC).build()
            }
            Kind::Stream => opcode::RecvMulti::new(fd, 0).build(),
            Kind::Datagram { group } => match &slot.message {
                Some(message) => opcode::RecvMsgMulti::new(fd, &raw const **message, group).build(),
                None => return Ok(()),
            },
            Kind::Packets { group, .. } if self.ring.read_multishot => {
                // No length: the kernel takes that of the buffer it picks.
                opcode::ReadMulti::new(fd, 0, group).build()
            }
            Kind::Packets { group, max } => opcode::Read::new(fd, std::ptr::null_mut(), max)
                .buf_group(group)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
        };
        slot.receiving = true;
        self.start(entry, Op::Receive, token)
    }

    /// Waits for readiness: of a connection attempt, or of a device that does not wait by itself.
    fn poll(&mut self, token: Token, events: libc::c_short) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        slot.polling = true;
        let entry = opcode::PollAdd::new(Fd(slot.fd.as_raw_fd()), u32::from(events.cast_unsigned())).build();
        self.start(entry, Op::Poll, token)
    }

    /// Starts sending what is left of the slot's buffer.
    fn flush(&mut self, token: Token) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        let Some(buffer) = &slot.sending else { return Ok(()) };
        let bytes = buffer.filled();
        // MSG_WAITALL: the kernel goes on by itself after a partial send.
        let entry = opcode::Send::new(Fd(slot.fd.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.start(entry, Op::Send, token)
    }

    fn complete(&mut self, completion: Completion) -> io::Result<()> {
        let Completion { user_data, result, flags } = completion;
        let last = !cqueue::more(flags);
        let op = Op::of(user_data);
        if op == Some(Op::Cancel) {
            return Ok(());
        }
        if last {
            self.in_flight -= 1;
        }
        if op == Some(Op::Wake) {
            self.waker.drain();
            self.known.push_back(Event::Woken);
            return if last && result >= 0 { self.arm_waker() } else { Ok(()) };
        }
        let Some(token) = self.slots.token_at(user_data as u32) else { return Ok(()) };
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        if last {
            slot.operations -= 1;
            match op {
                Some(Op::Receive) => slot.receiving = false,
                Some(Op::Poll) => slot.polling = false,
                _ => {}
            }
        }
        let kind = slot.kind;
        let buffer = cqueue::buffer_select(flags).map(|index| (group_of(kind), index));
        if let Some((group, index)) = buffer
            && let Some(group) = self.groups.get_mut(usize::from(group))
        {
            group.take(index);
        }
        if slot.closing {
            if kind == Kind::Listener && op == Some(Op::Receive) && result >= 0 {
                drop(owned(result));
            }
            self.give_back(buffer);
            self.retire(token);
            return Ok(());
        }
        match op {
            Some(Op::Send) => self.sent(token, result),
            Some(Op::Poll) => self.polled(token),
            _ => self.received(token, kind, result, buffer),
        }
    }

    fn received(
        &mut self,
        token: Token,
        kind: Kind,
        result: i32,
        buffer: Option<(u16, u16)>,
    ) -> io::Result<()> {
        if result < 0 {
            self.give_back(buffer);
            return self.not_received(token, kind, -result);
        }
        match (kind, buffer) {
            (Kind::Listener, _) => {
                let socket = owned(result);
                // It may be gone again already.
                if let Ok(peer) = socket::peer(&socket) {
                    self.known.push_back(Event::Accepted { listener: token, socket, peer });
                }
            }
            (Kind::Stream, _) if result == 0 => {
                self.give_back(buffer);
                let error = self.slots.get_mut(token).and_then(|slot| slot.send_error.take());
                self.fail(token, error);
                return Ok(());
            }
            (_, Some((group, index))) => {
                let received = RecvBuffer { group, index, offset: 0, len: result.cast_unsigned() };
                match kind {
                    Kind::Stream => self.known.push_back(Event::Received { token, buffer: received }),
                    Kind::Datagram { .. } => self.datagram_received(token, received),
                    _ if result == 0 => self.give_back(buffer),
                    _ => self.known.push_back(Event::Packet { token, buffer: received }),
                }
            }
            _ => {}
        }
        self.receive(token)
    }

    fn datagram_received(&mut self, token: Token, received: RecvBuffer) {
        let parsed = self.slots.get(token).and_then(|slot| slot.message.as_deref()).and_then(|message| {
            let bytes = self.groups.get_mut(usize::from(received.group))?.bytes(received.index);
            let bytes = bytes.get(..received.len())?;
            let parsed = RecvMsgOut::parse(bytes, message).ok()?;
            let payload = parsed.payload_data();
            let offset = payload.as_ptr() as usize - bytes.as_ptr() as usize;
            Some((address(parsed.name_data())?, offset, payload.len()))
        });
        match parsed {
            Some((from, offset, len)) => {
                let buffer = RecvBuffer { offset: offset as u32, len: len as u32, ..received };
                self.known.push_back(Event::Datagram { token, from, buffer });
            }
            None => self.recycle(received),
        }
    }

    fn not_received(&mut self, token: Token, kind: Kind, errno: i32) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        match (kind, errno) {
            (_, libc::ENOBUFS) if kind != Kind::Listener => {
                if !slot.starved {
                    slot.starved = true;
                    self.starved.push_back(token);
                }
                Ok(())
            }
            (Kind::Listener, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                tracing::warn!(
                    "cannot accept a connection: out of file descriptors or memory (see ulimit -n)"
                );
                self.resting.push(token);
                Ok(())
            }
            (Kind::Packets { .. }, libc::EAGAIN) => self.poll(token, libc::POLLIN),
            // Paused and resumed, a signal, or an ICMP error about an earlier datagram.
            (_, libc::ECANCELED | libc::EINTR | libc::EAGAIN) => self.receive(token),
            (Kind::Datagram { .. }, libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH) => {
                self.receive(token)
            }
            (Kind::Listener, libc::ECONNABORTED | libc::EPROTO | libc::EPERM) => self.receive(token),
            (_, errno) => {
                let error = slot.send_error.take().unwrap_or_else(|| io::Error::from_raw_os_error(errno));
                self.fail(token, Some(error));
                Ok(())
            }
        }
    }

    fn sent(&mut self, token: Token, result: i32) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        let Some(buffer) = slot.sending.as_mut() else { return Ok(()) };
        if result >= 0 {
            buffer.consume(result.unsigned_abs() as usize);
        } else if !matches!(-result, libc::EINTR | libc::EAGAIN) {
            // What the other end sent before it went may still be read: the read side reports the end.
            slot.sending = None;
            slot.send_error = Some(io::Error::from_raw_os_error(-result));
            return self.receive(token);
        }
        if !buffer.is_empty() {
            return self.flush(token);
        }
        if slot.shutdown {
            let _ = rustix::net::shutdown(&slot.fd, Shutdown::Write);
        }
        if let Some(buffer) = slot.sending.take() {
            self.known.push_back(Event::Sent { token, buffer });
        }
        Ok(())
    }

    fn polled(&mut self, token: Token) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        if slot.kind == Kind::Connecting {
            match socket::connect_result(&slot.fd) {
                Ok(()) => {
                    slot.kind = Kind::Stream;
                    self.known.push_back(Event::Connected { token });
                }
                Err(error) => {
                    self.fail(token, Some(error));
                    return Ok(());
                }
            }
        }
        self.receive(token)
    }

    /// The descriptor is of no use: reported once what is known before has been.
    fn fail(&mut self, token: Token, error: Option<io::Error>) {
        if let Some(slot) = self.slots.get_mut(token)
            && !slot.dead
        {
            slot.dead = true;
            self.known.push_back(Event::Closed { token, error });
        }
    }

    /// Frees a closing slot when nothing of it is left in the kernel.
    fn retire(&mut self, token: Token) {
        if self.slots.get(token).is_some_and(|slot| slot.closing && slot.operations == 0) {
            self.slots.remove(token);
        }
    }

    fn cancel(&mut self, op: Op, token: Token) {
        let entry = opcode::AsyncCancel::new(op.user_data(token)).build();
        if let Err(error) = self.start(entry, Op::Cancel, token) {
            tracing::warn!(%error, "cannot cancel an io_uring operation");
        }
    }

    fn give_back(&mut self, buffer: Option<(u16, u16)>) {
        if let Some((group, index)) = buffer
            && let Some(group) = self.groups.get_mut(usize::from(group))
        {
            group.provide(index);
        }
    }

    fn live(&self, token: Token) -> Option<&Slot> {
        self.slots.get(token).filter(|slot| !slot.closing)
    }

    fn new_group(&mut self, count: u16, size: usize) -> io::Result<u16> {
        let id = u16::try_from(self.groups.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.groups.push(BufferGroup::new(&mut self.ring, id, count, size)?);
        Ok(id)
    }

    /// Starts those again that stopped for want of buffers, no more than there are buffers.
    fn feed_starved(&mut self) -> io::Result<()> {
        for _ in 0..self.starved.len() {
            let Some(token) = self.starved.pop_front() else { break };
            let Some(slot) = self.slots.get_mut(token) else { continue };
            let group = usize::from(group_of(slot.kind));
            if self.groups.get(group).is_none_or(|group| group.available() == 0) {
                self.starved.push_back(token);
                continue;
            }
            slot.starved = false;
            self.receive(token)?;
        }
        Ok(())
    }
}

impl Driver for Uring {
    fn listen(&mut self, socket: OwnedFd) -> io::Result<Token> {
        self.add(socket, Kind::Listener, None)
    }

    fn stream(&mut self, socket: OwnedFd) -> io::Result<Token> {
        socket::prepare_stream(&socket)?;
        self.add(socket, Kind::Stream, None)
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<Token> {
        let socket = socket::connecting(address)?;
        socket::prepare_stream(&socket)?;
        self.add(socket, Kind::Connecting, None)
    }

    #[expect(unsafe_code, reason = "msghdr has private padding on some targets")]
    fn datagram(&mut self, socket: OwnedFd) -> io::Result<Token> {
        let group = match self.datagram_group {
            Some(group) => group,
            None => {
                let (count, size) = DATAGRAM_BUFFERS;
                let group = self.new_group(count, size)?;
                self.datagram_group = Some(group);
                group
            }
        };
        // SAFETY: msghdr is plain data for which all zeros (no name, no vectors) is a valid value.
        let mut message: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        message.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
        self.add(socket, Kind::Datagram { group }, Some(message))
    }

    fn packets(&mut self, device: OwnedFd, max_packet: usize) -> io::Result<Token> {
        let size = max_packet.next_multiple_of(64);
        if max_packet == 0 || max_packet > 64 << 10 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "packets are limited to 64 KiB"));
        }
        let count = (PACKET_MEMORY / size).clamp(4, 128) + 1;
        let count = (count.next_power_of_two() / 2) as u16;
        let group = match self.groups.iter().find(|group| group.size() == size && group.id() > 0) {
            Some(group) if Some(group.id()) != self.datagram_group => group.id(),
            _ => self.new_group(count, size)?,
        };
        self.add(device, Kind::Packets { group, max: max_packet as u32 }, None)
    }

    fn send(&mut self, token: Token, buffer: SendBuffer) {
        if !self.can_send(token) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "a send before the last one was done");
            return self.fail(token, Some(error));
        }
        if buffer.is_empty() {
            return self.known.push_back(Event::Sent { token, buffer });
        }
        if let Some(slot) = self.slots.get_mut(token) {
            slot.sending = Some(buffer);
        }
        if let Err(error) = self.flush(token) {
            if let Some(slot) = self.slots.get_mut(token) {
                slot.sending = None;
            }
            self.fail(token, Some(error));
        }
    }

    fn can_send(&self, token: Token) -> bool {
        self.live(token).is_some_and(|slot| {
            slot.kind == Kind::Stream
                && slot.sending.is_none()
                && slot.send_error.is_none()
                && !slot.shutdown
                && !slot.dead
        })
    }

    fn send_to(&mut self, token: Token, to: SocketAddr, datagram: &[u8]) -> io::Result<bool> {
        let Some(slot) = self.live(token) else { return Ok(false) };
        socket::send_to(&slot.fd, to, datagram)
    }

    fn write_packet(&mut self, token: Token, packet: &[u8]) -> io::Result<bool> {
        let Some(slot) = self.live(token) else { return Ok(false) };
        socket::write_packet(&slot.fd, packet)
    }

    fn pause(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token)
            && !slot.closing
            && !slot.paused
        {
            slot.paused = true;
            if slot.receiving {
                self.cancel(Op::Receive, token);
            }
        }
    }

    fn resume(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token) {
            slot.paused = false;
            if let Err(error) = self.receive(token) {
                self.fail(token, Some(error));
            }
        }
    }

    fn shutdown(&mut self, token: Token) {
        if let Some(slot) = self.slots.get_mut(token)
            && !slot.closing
        {
            slot.shutdown = true;
            if slot.sending.is_none() {
                let _ = rustix::net::shutdown(&slot.fd, Shutdown::Write);
            }
        }
    }

    fn close(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        if std::mem::replace(&mut slot.closing, true) {
            return;
        }
        let (receiving, polling, sending) = (slot.receiving, slot.polling, slot.sending.is_some());
        for (op, running) in [(Op::Receive, receiving), (Op::Poll, polling), (Op::Send, sending)] {
            if running {
                self.cancel(op, token);
            }
        }
        self.retire(token);
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.feed_starved()?;
        let timeout = match timeout {
            _ if !self.known.is_empty() => Some(Duration::ZERO),
            Some(timeout) if !self.resting.is_empty() => Some(timeout.min(ACCEPT_REST)),
            None if !self.resting.is_empty() => Some(ACCEPT_REST),
            timeout => timeout,
        };
        self.ring.enter(timeout)?;
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.completions(&mut completions);
        let outcome = completions.drain(..).try_for_each(|completion| self.complete(completion));
        self.completions = completions;
        for listener in std::mem::take(&mut self.resting) {
            self.receive(listener)?;
        }
        outcome
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            let event = self.known.pop_front()?;
            let token = match &event {
                Event::Woken => return Some(event),
                Event::Accepted { listener, .. } => *listener,
                Event::Connected { token }
                | Event::Received { token, .. }
                | Event::Datagram { token, .. }
                | Event::Packet { token, .. }
                | Event::Sent { token, .. }
                | Event::Closed { token, .. } => *token,
            };
            if self.live(token).is_some() {
                if matches!(event, Event::Closed { .. }) {
                    self.close(token);
                }
                return Some(event);
            }
            // The caller has closed it since.
            if let Event::Received { buffer, .. }
            | Event::Datagram { buffer, .. }
            | Event::Packet { buffer, .. } = event
            {
                self.recycle(buffer);
            }
        }
    }

    fn bytes(&mut self, buffer: &RecvBuffer) -> &mut [u8] {
        let bytes = match self.groups.get_mut(usize::from(buffer.group)) {
            Some(group) => group.bytes(buffer.index),
            None => &mut [],
        };
        bytes
            .get_mut(buffer.offset as usize..)
            .and_then(|rest| rest.get_mut(..buffer.len()))
            .unwrap_or_default()
    }

    fn recycle(&mut self, buffer: RecvBuffer) {
        self.give_back(Some((buffer.group, buffer.index)));
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.ring.cancel_all();
        // Cancelled operations complete at once; the bound is for a kernel that has one stuck.
        for _ in 0..50 {
            if self.in_flight == 0 {
                return;
            }
            let _ = self.ring.enter(Some(Duration::from_millis(20)));
            let mut completions = Vec::new();
            self.ring.completions(&mut completions);
            for completion in completions {
                let listener = self
                    .slots
                    .token_at(completion.user_data as u32)
                    .and_then(|token| self.slots.get(token))
                    .is_some_and(|slot| slot.kind == Kind::Listener);
                if listener && Op::of(completion.user_data) == Some(Op::Receive) && completion.result >= 0 {
                    drop(owned(completion.result));
                }
                if Op::of(completion.user_data) != Some(Op::Cancel) && !cqueue::more(completion.flags) {
                    self.in_flight -= 1;
                }
            }
        }
        tracing::error!(
            operations = self.in_flight,
            "io_uring operations did not end; their memory is leaked"
        );
        std::mem::forget(std::mem::take(&mut self.groups));
        std::mem::forget(std::mem::replace(&mut self.slots, Slab::new()));
    }
}

fn group_of(kind: Kind) -> u16 {
    match kind {
        Kind::Datagram { group } | Kind::Packets { group, .. } => group,
        _ => 0,
    }
}

/// The descriptor that an accept has made.
#[expect(unsafe_code, reason = "takes ownership of a raw descriptor")]
fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it for this completion, which is seen once, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Reads a `sockaddr_in` or `sockaddr_in6`.
fn address(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*name.first_chunk()?));
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = *name.get(4..)?.first_chunk()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(octets)), port))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = *name.get(8..)?.first_chunk()?;
            let scope =
                name.get(24..).and_then(<[u8]>::first_chunk).map_or(0, |scope| u32::from_ne_bytes(*scope));
            Some(std::net::SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into())
        }
        _ => None,
    }
}
