//! The driver on io_uring: the default.
//!
//! Each descriptor has at most one receiving operation (multishot: it goes on until it is cancelled or runs out of buffers) and at most one send.
//! Received bytes land in `buffers` that the kernel picks, or are read in turns (`direct`); 512 KiB of streams' bytes are in flight at most, which was worth a third of a frame's
//! cost at 64 busy pairs (864 to 610 ns, 2 vCPU Sapphire Rapids guest, Linux 6.18). One system call submits what was asked for and waits;
//! large output does not wait for it.
//!
//! Ownership is the proof: a send buffer and a message header move into the slot when their operation starts and leave it when its last
//! completion has come; a slot is freed when no operation of it is left; the ring is dropped before the buffers' memory, after everything
//! in flight has been cancelled. The operations of a slot are told apart by `slot::Op` in their user data.

mod buffers;
mod completion;
mod direct;
mod ring;
mod slot;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};
use rustix::net::{SendFlags, Shutdown};

use self::buffers::BufferGroup;
use self::completion::owned;
use self::direct::Direct;
use self::ring::{Completion, Ring, unsupported};
use self::slot::{Kind, NO_SLOT, Op, Slot};
use super::driver::{Driver, Event, LATER, RecvBuffer, SendBuffer, Token, Waker};
use super::slab::Slab;
use super::socket;
use super::udp::{Batch, CONTROL_LEN, UdpSocket};
use crate::tun::MAX_READ;

/// Buffers for streams: few and large, so that one receive takes as much as there is. More streams than these are read
/// in turns (`direct`), and what they receive meanwhile comes in one piece too. Against 16 of 32 KiB that was worth 15 % of a frame's cost with TLS and 40 % without (16
/// busy pairs); incremental buffers, which never run out, gave it all back.
const STREAM_BUFFERS: (u16, usize) = (2, 256 << 10);
/// Buffers from this on are sent by a system call of their own, at once: they are still in the cache, and the next one can use their memory.
const SEND_AT_ONCE: usize = 8 << 10;
/// Buffers for datagrams: an Ethernet frame's worth, with room for the header that the kernel puts before it.
const DATAGRAM_BUFFERS: (u16, usize) = (64, 4 << 10);
/// Buffers for datagrams that came together: 64 KiB of them, with room for the header and the control messages that the kernel puts before them.
const BATCH_BUFFERS: (u16, usize) = (16, (64 << 10) + 512);
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
    batch_group: Option<u16>,
    slots: Slab<Slot>,
    /// Datagram sockets and devices whose receiving stopped for want of buffers.
    starved: VecDeque<Token>,
    /// Streams for which that holds.
    direct: Direct,
    resting: Vec<Token>,
    known: VecDeque<Event>,
    /// Connections that came and went.
    later: VecDeque<Event>,
    /// How many of them until the next wait.
    later_left: usize,
    completions: Vec<Completion>,
    waker: Waker,
    /// Operations whose last completion has not come.
    in_flight: usize,
}

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
            batch_group: None,
            slots: Slab::new(),
            starved: VecDeque::new(),
            direct: Direct::new(),
            resting: Vec::new(),
            known: VecDeque::new(),
            later: VecDeque::new(),
            later_left: 0,
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
        self.add_slot(Slot::new(fd, kind, message))
    }

    fn add_slot(&mut self, slot: Slot) -> io::Result<Token> {
        let kind = slot.kind;
        let token = self.slots.insert(slot);
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
        if held || slot.receiving || slot.polling || slot.starved {
            return Ok(());
        }
        let fd = Fd(slot.fd.as_raw_fd());
        let entry = match slot.kind {
            Kind::Connecting => return Ok(()),
            Kind::Listener => {
                opcode::AcceptMulti::new(fd).flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC).build()
            }
            Kind::Stream if slot.newcomer => return self.poll(token, libc::POLLIN),
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

    /// The descriptor is of no use: reported once what is known before has been.
    fn fail(&mut self, token: Token, error: Option<io::Error>) {
        if let Some(slot) = self.slots.get_mut(token)
            && !slot.dead
        {
            slot.dead = true;
            self.later.push_back(Event::Closed { token, error });
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

    /// Starts those again that stopped for want of buffers: no more than there are buffers, since all of them have something to read and
    /// the rest would only fail once more.
    fn feed_starved(&mut self) -> io::Result<()> {
        let mut started = 0;
        for _ in 0..self.starved.len() {
            let Some(token) = self.starved.pop_front() else { break };
            let Some(slot) = self.slots.get_mut(token) else { continue };
            let group = usize::from(slot.kind.group());
            if self.groups.get(group).is_none_or(|group| group.available() <= started) {
                self.starved.push_back(token);
                continue;
            }
            slot.starved = false;
            self.receive(token)?;
            started += u16::from(self.slots.get(token).is_some_and(|slot| slot.receiving));
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

    fn newcomer(&mut self, socket: OwnedFd) -> io::Result<Token> {
        socket::prepare_stream(&socket)?;
        self.add_slot(Slot { newcomer: true, ..Slot::new(socket, Kind::Stream, None) })
    }

    fn welcome(&mut self, token: Token) {
        // What is under way for it, a poll or a turn, leads it to the ring.
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
        let group = match self.datagram_group {
            Some(group) => group,
            None => self.new_group(DATAGRAM_BUFFERS.0, DATAGRAM_BUFFERS.1)?,
        };
        self.datagram_group = Some(group);
        self.add(socket, Kind::Datagram { group }, Some(Box::new(message(0))))
    }

    fn udp(&mut self, socket: UdpSocket) -> io::Result<Token> {
        let group = match self.batch_group {
            Some(group) => group,
            None => self.new_group(BATCH_BUFFERS.0, BATCH_BUFFERS.1)?,
        };
        self.batch_group = Some(group);
        let UdpSocket { descriptor, state } = socket;
        let token = self.add(descriptor, Kind::Datagram { group }, Some(Box::new(message(CONTROL_LEN))))?;
        if let Some(slot) = self.slots.get_mut(token) {
            slot.udp = Some(Box::new(state));
        }
        Ok(token)
    }

    fn packets(&mut self, device: OwnedFd, max_packet: usize) -> io::Result<Token> {
        let size = max_packet.next_multiple_of(64);
        if max_packet == 0 || max_packet > MAX_READ {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "packets are limited to 64 KiB"));
        }
        let count = (PACKET_MEMORY / size).clamp(4, 128) + 1;
        let count = (count.next_power_of_two() / 2) as u16;
        let group = match self.groups.iter().find(|group| group.size() == size && group.id() > 0) {
            Some(group) if ![self.datagram_group, self.batch_group].contains(&Some(group.id())) => group.id(),
            _ => self.new_group(count, size)?,
        };
        self.add(device, Kind::Packets { group, max: max_packet as u32 }, None)
    }

    fn send(&mut self, token: Token, mut buffer: SendBuffer) {
        if !self.can_send(token) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "a send before the last one was done");
            return self.fail(token, Some(error));
        }
        if buffer.is_empty() {
            return self.known.push_back(Event::Sent { token, buffer });
        }
        if let Some(slot) = self.slots.get_mut(token) {
            // What the socket does not take now, and any error, is the ring's.
            if buffer.len() >= SEND_AT_ONCE
                && let Ok(sent) =
                    rustix::net::send(&slot.fd, buffer.filled(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            {
                buffer.consume(sent);
                if buffer.is_empty() {
                    return self.known.push_back(Event::Sent { token, buffer });
                }
            }
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

    fn send_batch(&mut self, token: Token, batch: &Batch<'_>) -> io::Result<usize> {
        match self.slots.get_mut(token) {
            Some(Slot { fd, udp: Some(udp), closing: false, .. }) => udp.send(fd, batch),
            _ => Ok(0),
        }
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
        self.wait_gathering(timeout, None)
    }

    fn wait_gathering(&mut self, timeout: Option<Duration>, gather: Option<Duration>) -> io::Result<()> {
        self.feed_starved()?;
        self.feed_waiting();
        let left_over = !self.known.is_empty() || !self.later.is_empty() || self.direct.is_ready();
        let gathered = match gather {
            Some(gather) if !left_over => self.ring.gather(gather)?,
            _ => false,
        };
        let timeout = match timeout {
            _ if left_over => Some(Duration::ZERO),
            Some(timeout) if !self.resting.is_empty() => Some(timeout.min(ACCEPT_REST)),
            None if !self.resting.is_empty() => Some(ACCEPT_REST),
            timeout => timeout,
        };
        if !gathered {
            self.ring.enter(timeout)?;
        }
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.completions(&mut completions);
        let outcome = completions.drain(..).try_for_each(|completion| self.complete(completion));
        self.completions = completions;
        self.direct.begin();
        self.later_left = LATER;
        for listener in std::mem::take(&mut self.resting) {
            self.receive(listener)?;
        }
        outcome
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            let event = self.known.pop_front().or_else(|| self.read_directly());
            let event = event.or_else(|| {
                self.later_left = self.later_left.checked_sub(1)?;
                self.later.pop_front()
            });
            let event = event.or_else(|| self.read_newcomer())?;
            let token = match &event {
                Event::Woken => return Some(event),
                Event::Accepted { listener, .. } => *listener,
                Event::Connected { token }
                | Event::Received { token, .. }
                | Event::Datagram { token, .. }
                | Event::Datagrams { token, .. }
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
            | Event::Datagrams { buffer, .. }
            | Event::Packet { buffer, .. } = event
            {
                self.recycle(buffer);
            }
        }
    }

    fn bytes(&mut self, buffer: &RecvBuffer) -> &mut [u8] {
        let bytes = match self.groups.get_mut(usize::from(buffer.group)) {
            None if buffer.group == direct::GROUP => self.direct.bytes(),
            Some(group) => group.bytes(buffer.index),
            None => &mut [],
        };
        bytes
            .get_mut(buffer.offset as usize..)
            .and_then(|rest| rest.get_mut(..buffer.len()))
            .unwrap_or_default()
    }

    fn recycle(&mut self, buffer: RecvBuffer) {
        if buffer.group == direct::GROUP {
            self.direct.recycle();
        } else {
            self.give_back(Some((buffer.group, buffer.index)));
        }
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

/// What a receive of datagrams refers to: where they come from, and `control` bytes of control messages.
#[expect(unsafe_code, reason = "msghdr has private padding on some targets")]
fn message(control: usize) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeros (no name, no vectors) is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
    message.msg_controllen = control as _;
    message
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
