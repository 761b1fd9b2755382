//! A TUN device in memory, for tests and examples: what is written to one end is read from the other.
//!
//! It is a pair of datagram sockets, so each end is a descriptor that a driver takes like a device, packet boundaries and a bounded queue
//! included.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use super::Tun;
use crate::packet::offload::Format;

/// One end.
#[derive(Debug)]
pub struct End {
    socket: UnixDatagram,
    format: Format,
    buffer: Vec<u8>,
}

/// Two ends, non-blocking, without offloads.
pub fn pair() -> io::Result<(End, End)> {
    pair_of(Format::Plain)
}

/// The same, as a device with offloads would be: whoever holds the other end is the kernel.
pub fn pair_of(format: Format) -> io::Result<(End, End)> {
    let (a, b) = UnixDatagram::pair()?;
    let end = |socket: UnixDatagram| -> io::Result<End> {
        socket.set_nonblocking(true)?;
        Ok(End { socket, format, buffer: Vec::new() })
    };
    Ok((end(a)?, end(b)?))
}

impl Tun for End {
    fn format(&self) -> Format {
        self.format
    }

    fn read_batch(&mut self, max: usize, sink: &mut dyn FnMut(&mut [u8])) -> io::Result<usize> {
        super::read_until_empty(&mut self.buffer, max, |bytes| self.socket.recv(bytes), sink)
    }

    fn write_batch(&mut self, packets: &[&[u8]]) -> io::Result<usize> {
        super::write_until_full(packets, |packet| self.socket.send(packet))
    }
}

impl From<End> for OwnedFd {
    /// For [`crate::engine::driver::Driver::packets`].
    fn from(end: End) -> Self {
        end.socket.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_keep_their_boundaries_and_order() {
        let (mut a, mut b) = pair().unwrap();
        assert_eq!(a.write_batch(&[b"one", b"", b"three"]).unwrap(), 3);
        let mut got = Vec::new();
        assert_eq!(b.read_batch(2, &mut |packet| got.push(packet.to_vec())).unwrap(), 2);
        assert_eq!(b.read_batch(9, &mut |packet| got.push(packet.to_vec())).unwrap(), 1);
        assert_eq!(got, [&b"one"[..], b"", b"three"]);
        assert_eq!(b.read_batch(9, &mut |_| panic!("nothing is left")).unwrap(), 0);
    }

    #[test]
    fn a_full_end_takes_no_more() {
        let (mut a, _b) = pair().unwrap();
        let packet = [0; 1400];
        let taken = a.write_batch(&vec![&packet[..]; 10_000]).unwrap();
        assert!((1..10_000).contains(&taken));
    }
}
