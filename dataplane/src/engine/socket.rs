//! Sockets as the drivers want them: non-blocking, with typed errors that say what to do next.

mod round_trip;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

pub(super) use round_trip::round_trip;
use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::packet::offload::Write;

/// Connections that may wait to be accepted: bursts of reconnecting nodes after a relay restart.
const BACKLOG: i32 = 4096;

/// The firewall mark of what a node itself sends: rules of routing let it pass by the routes into the mesh, which carry everything else. One bit, so that
/// others' marks stay.
pub const OWN_TRAFFIC: u32 = 0x0100_0000;

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Somebody else listens there.
    #[error("{address} is in use: stop what listens there, or choose another address (see `ss -lntup`)")]
    InUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Ports below 1024, mostly.
    #[error("no permission to listen on {address}: use a port from 1024, or grant CAP_NET_BIND_SERVICE")]
    Permission {
        /// The address asked for.
        address: SocketAddr,
    },
    /// No interface has the address.
    #[error("{address} is not an address of this machine")]
    NotLocal {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

pub(super) fn explain(address: SocketAddr) -> impl Fn(io::Error) -> SocketError {
    move |source| match source.kind() {
        io::ErrorKind::AddrInUse => SocketError::InUse { address },
        io::ErrorKind::PermissionDenied => SocketError::Permission { address },
        io::ErrorKind::AddrNotAvailable => SocketError::NotLocal { address },
        _ => SocketError::Io { address, source },
    }
}

/// A listening TCP socket. With `shared` several workers listen on the same address and the kernel spreads connections over them; make the
/// first one without, so that a port that somebody else uses is noticed.
///
/// # Errors
/// See [`SocketError`].
pub fn tcp_listener(address: SocketAddr, shared: bool) -> Result<OwnedFd, SocketError> {
    let make = || -> io::Result<Socket> {
        let socket = bindable(address, Type::STREAM, Protocol::TCP)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&SockAddr::from(address))?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    make().map(OwnedFd::from).map_err(explain(address))
}

/// A bound UDP socket; `shared` as for [`tcp_listener`].
///
/// # Errors
/// See [`SocketError`].
pub fn udp_socket(address: SocketAddr, shared: bool) -> Result<OwnedFd, SocketError> {
    let make = || -> io::Result<Socket> {
        let socket = bindable(address, Type::DGRAM, Protocol::UDP)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&SockAddr::from(address))?;
        Ok(socket)
    };
    make().map(OwnedFd::from).map_err(explain(address))
}

/// Marks a socket as one that carries the mesh, rather than being carried by it. Without the right to (CAP_NET_ADMIN) nothing happens: there is no interface either.
pub fn keep_outside(socket: &impl AsFd) {
    if let Err(error) = socket2::SockRef::from(socket).set_mark(OWN_TRAFFIC) {
        tracing::debug!(%error, "a socket goes without a mark");
    }
}

/// A bound UDP socket of one family only, which carries the mesh.
pub(super) fn udp_socket_apart(address: SocketAddr) -> Result<OwnedFd, SocketError> {
    let make = || -> io::Result<Socket> {
        let socket = bindable(address, Type::DGRAM, Protocol::UDP)?;
        keep_outside(&socket);
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SockAddr::from(address))?;
        Ok(socket)
    };
    make().map(OwnedFd::from).map_err(explain(address))
}

/// The address a socket is bound to: the port that the system chose when 0 was asked for.
pub fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    socket2::SockRef::from(socket)
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// A TCP socket that carries the mesh and is connecting; writable when that is done.
pub(super) fn connecting(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    keep_outside(&socket);
    match socket.connect(&SockAddr::from(address)) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(OwnedFd::from(socket)),
    }
}

/// How a connection attempt ended.
pub(super) fn connect_result(socket: &OwnedFd) -> io::Result<()> {
    socket2::SockRef::from(socket).take_error()?.map_or(Ok(()), Err)
}

/// What every stream gets: output is coalesced above, so nothing is gained by waiting.
pub(super) fn prepare_stream(socket: &OwnedFd) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_nonblocking(true)?;
    match socket.set_tcp_nodelay(true) {
        // Unix sockets have no such thing.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// The address of the other end.
pub(super) fn peer(socket: &OwnedFd) -> io::Result<SocketAddr> {
    socket2::SockRef::from(socket)
        .peer_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

fn bindable(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    if address.is_ipv6() {
        // A wildcard takes IPv4 too.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// Sends a datagram without waiting; false when the socket's buffer is full.
pub(super) fn send_to(socket: &OwnedFd, to: SocketAddr, datagram: &[u8]) -> io::Result<bool> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendto(socket, datagram, flags, &to) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::NOBUFS) => Ok(false),
        // An ICMP error about an earlier datagram: taken by this call, so once more.
        Err(Errno::CONNREFUSED) => Ok(rustix::net::sendto(socket, datagram, flags, &to).is_ok()),
        Err(error) => Err(error.into()),
    }
}

/// Writes a packet to a TUN device without waiting; false when it does not take it: full, or not up (EIO).
pub(super) fn write_packet(device: &OwnedFd, packet: &[u8]) -> io::Result<bool> {
    taken(rustix::io::write(device, packet))
}

/// The same behind a virtio-net header, if the device has those.
pub(super) fn write_offloaded(device: &OwnedFd, write: Write<'_>) -> io::Result<bool> {
    taken(rustix::io::writev(device, &[IoSlice::new(write.header), IoSlice::new(write.packet)]))
}

fn taken(written: Result<usize, Errno>) -> io::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::IO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
