//! What completions mean.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::cqueue;
use io_uring::types::RecvMsgOut;
use rustix::net::Shutdown;

use super::Uring;
use super::ring::Completion;
use super::slot::{Kind, Op};
use crate::engine::driver::{Driver, Event, RecvBuffer, Token};
use crate::engine::socket;
use crate::engine::udp::{Received, control};

impl Uring {
    pub(super) fn complete(&mut self, completion: Completion) -> io::Result<()> {
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
        let buffer = cqueue::buffer_select(flags).map(|index| (kind.group(), index));
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
                    self.later.push_back(Event::Accepted { listener: token, socket, peer });
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
        let Some(slot) = self.slots.get(token) else { return self.recycle(received) };
        let batch = slot.udp.is_some();
        let parsed = slot.message.as_deref().and_then(|message| {
            let bytes = self.groups.get_mut(usize::from(received.group))?.bytes(received.index);
            let bytes = bytes.get(..received.len())?;
            let parsed = RecvMsgOut::parse(bytes, message).ok()?;
            let payload = parsed.payload_data();
            let offset = payload.as_ptr() as usize - bytes.as_ptr() as usize;
            let told = if batch { control(parsed.control_data()) } else { (None, None) };
            Some((address(parsed.name_data())?, told, offset, payload.len()))
        });
        let Some((from, (local, segment), offset, len)) = parsed else { return self.recycle(received) };
        let buffer = RecvBuffer { offset: offset as u32, len: len as u32, ..received };
        self.known.push_back(if batch {
            let Received { from, local, segment, .. } = Received::new(from, local, segment, len);
            Event::Datagrams { token, from, local, segment, buffer }
        } else {
            Event::Datagram { token, from, buffer }
        });
    }

    fn not_received(&mut self, token: Token, kind: Kind, errno: i32) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        match (kind, errno) {
            (_, libc::ENOBUFS) if kind != Kind::Listener => {
                if !std::mem::replace(&mut slot.starved, true) {
                    match kind {
                        Kind::Datagram { .. } if slot.udp.is_none() => self.starved.push_back(token),
                        _ => self.direct.queue(token),
                    }
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
            // Paused and resumed, a signal, an ICMP error about an earlier datagram, a connection that failed in the queue.
            (_, libc::ECANCELED | libc::EINTR | libc::EAGAIN)
            | (Kind::Datagram { .. }, libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH)
            | (Kind::Listener, libc::ECONNABORTED | libc::EPROTO | libc::EPERM) => self.receive(token),
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
        let Some(slot) = self.slots.get_mut(token) else { return Ok(()) };
        if slot.newcomer && !std::mem::replace(&mut slot.starved, true) {
            self.direct.queue_newcomer(token);
        }
        self.receive(token)
    }
}

/// The descriptor that an accept has made.
#[expect(unsafe_code, reason = "takes ownership of a raw descriptor")]
pub(super) fn owned(descriptor: i32) -> OwnedFd {
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
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into())
        }
        _ => None,
    }
}
