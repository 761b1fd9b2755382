//! One read (or accept) of one descriptor, and what its outcome means. Whose turn it is, the parent decides.

use std::net::SocketAddr;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags};

use super::{BUFFER, Epoll, Kind, place, received};
use crate::engine::driver::{Event, Token};
use crate::engine::udp::Received;

impl Epoll {
    /// One read (or accept) of a ready descriptor. `None`: nothing came of it.
    pub(super) fn read(&mut self, token: Token) -> Option<Event> {
        let slot = self.slots.get_mut(token)?;
        slot.queued = false;
        if !slot.readable || slot.dead || (slot.paused && slot.send_error.is_none()) {
            return None;
        }
        match slot.kind {
            Kind::Connecting => None,
            Kind::Listener => self.accept(token),
            Kind::Stream => self.read_stream(token),
            Kind::Datagram if slot.udp.is_some() => self.read_batch(token),
            Kind::Datagram => self.read_datagram(token),
            Kind::Packets { max } => self.read_packet(token, max),
        }
    }

    fn accept(&mut self, listener: Token) -> Option<Event> {
        let slot = self.slots.get_mut(listener)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let outcome = rustix::net::acceptfrom_with(&slot.fd, flags);
        if let Err(Errno::AGAIN) = outcome {
            slot.readable = false;
            return None;
        }
        if let Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) = outcome {
            tracing::warn!("cannot accept a connection: out of file descriptors or memory (see ulimit -n)");
            self.resting.push(listener);
            return None;
        }
        self.enqueue(listener);
        match outcome {
            Ok((socket, peer)) => {
                let peer = SocketAddr::try_from(peer?).ok()?;
                Some(Event::Accepted { listener, socket, peer })
            }
            Err(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => {
                self.fail(listener, outcome.err().map(Into::into));
                None
            }
            // The connection failed before it was accepted (accept(2) passes its errors on), or a signal came.
            Err(_) => None,
        }
    }

    fn read_stream(&mut self, token: Token) -> Option<Event> {
        let index = *self.free.last()?;
        let slot = self.slots.get_mut(token)?;
        let place = place(&mut self.memory, index);
        match rustix::net::recv(&slot.fd, &mut *place, RecvFlags::DONTWAIT) {
            Ok((0, _)) => {
                let error = slot.send_error.take();
                self.fail(token, error);
                None
            }
            Ok((len, _)) => {
                // A short read has emptied the socket; the next bytes bring a new edge.
                slot.readable = len == BUFFER || slot.hung_up || slot.send_error.is_some();
                self.enqueue(token);
                self.free.pop();
                Some(Event::Received { token, buffer: received(index, len) })
            }
            Err(error) => self.not_read(token, error),
        }
    }

    fn read_datagram(&mut self, token: Token) -> Option<Event> {
        let index = *self.free.last()?;
        let slot = self.slots.get_mut(token)?;
        let place = place(&mut self.memory, index);
        match rustix::net::recvfrom(&slot.fd, &mut *place, RecvFlags::DONTWAIT) {
            Ok((len, _, from)) => {
                self.enqueue(token);
                let from = SocketAddr::try_from(from?).ok()?;
                self.free.pop();
                Some(Event::Datagram { token, from, buffer: received(index, len) })
            }
            // An ICMP error about an earlier datagram.
            Err(Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                self.enqueue(token);
                None
            }
            Err(error) => self.not_read(token, error),
        }
    }

    fn read_batch(&mut self, token: Token) -> Option<Event> {
        let index = *self.free.last()?;
        let slot = self.slots.get_mut(token)?;
        match slot.udp.as_ref()?.receive(&slot.fd, place(&mut self.memory, index)) {
            Ok(Received { from, local, segment, len }) => {
                self.enqueue(token);
                self.free.pop();
                Some(Event::Datagrams { token, from, local, segment, buffer: received(index, len) })
            }
            Err(error) => {
                let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                self.not_read(token, error)
            }
        }
    }

    fn read_packet(&mut self, token: Token, max: usize) -> Option<Event> {
        let index = *self.free.last()?;
        let slot = self.slots.get_mut(token)?;
        let place = place(&mut self.memory, index);
        match rustix::io::read(&slot.fd, &mut place[..max]) {
            Ok(len) => {
                self.enqueue(token);
                if len == 0 {
                    return None;
                }
                self.free.pop();
                Some(Event::Packet { token, buffer: received(index, len) })
            }
            Err(error) => self.not_read(token, error),
        }
    }

    fn not_read(&mut self, token: Token, error: Errno) -> Option<Event> {
        let slot = self.slots.get_mut(token)?;
        match error {
            Errno::AGAIN if slot.send_error.is_some() => {
                let error = slot.send_error.take();
                self.fail(token, error);
            }
            Errno::AGAIN => slot.readable = false,
            Errno::INTR => self.enqueue(token),
            error => self.fail(token, Some(error.into())),
        }
        None
    }
}
