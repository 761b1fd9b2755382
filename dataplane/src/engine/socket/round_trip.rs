//! What TCP has measured of a connection (tcp(7), TCP_INFO): no crate that we use gives it.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// The smoothed round trip; that of the handshake when the connection is new. `None` where the system does not say.
#[expect(unsafe_code, reason = "getsockopt fills a struct")]
pub(crate) fn round_trip(socket: impl AsFd) -> Option<Duration> {
    // SAFETY: tcp_info is plain data for which all zeros is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the whole call, and the kernel writes at most `len` bytes, which is the struct's size.
    let outcome = unsafe {
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw mut info).cast(), &raw mut len)
    };
    let micros = u64::from(info.tcpi_rtt);
    (outcome == 0 && micros > 0).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn a_fresh_connection_has_one_and_a_datagram_socket_has_none() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let measured = round_trip(&accepted).unwrap();
        assert!(measured < Duration::from_secs(5), "{measured:?}");
        assert_eq!(round_trip(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()), None);
    }
}
