//! TUN devices: [`linux`] opens one in the kernel, [`memory`] is a pair of ends for tests and examples.
//!
//! A device is a descriptor that gives and takes one IP packet per read and write, or a super-packet behind a virtio-net header where it has offloads
//! ([`crate::packet::offload::Format`] says which). Its addresses and routes are set by whoever owns it
//! (the node), its packets go through [`crate::engine::driver::Driver::packets`] and [`crate::engine::driver::Driver::write_packet`]. The batch
//! form below is for those who have no driver: it moves what is there without waiting.

pub mod linux;
pub mod memory;

use std::io;

use crate::packet::offload::{Format, MAX_SUPER, VNET_LEN};

/// The longest read.
pub const MAX_READ: usize = MAX_SUPER + VNET_LEN;

/// Packets without waiting, several at a time.
pub trait Tun {
    /// What is read and written.
    fn format(&self) -> Format {
        Format::Plain
    }

    /// Hands packets to `sink` until there is none or `max` were read; says how many.
    fn read_batch(&mut self, max: usize, sink: &mut dyn FnMut(&mut [u8])) -> io::Result<usize>;

    /// Writes packets in order; says how many the device took before it was full.
    fn write_batch(&mut self, packets: &[&[u8]]) -> io::Result<usize>;
}

/// Reads packets with `read` until it would block or `max` were read. `buffer` takes the longest read and is kept for the next batch.
fn read_until_empty(
    buffer: &mut Vec<u8>,
    max: usize,
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
    sink: &mut dyn FnMut(&mut [u8]),
) -> io::Result<usize> {
    buffer.resize(MAX_READ, 0);
    for count in 0..max {
        match read(buffer) {
            Ok(len) => sink(&mut buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Ok(max)
}

/// Writes packets with `write` until it would block.
fn write_until_full(
    packets: &[&[u8]],
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    for (count, packet) in packets.iter().enumerate() {
        match write(packet) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error),
        }
    }
    Ok(packets.len())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests wait, and carry packets on a thread")]
pub(crate) mod tests;
