//! Segmentation and checksum offload: what the kernel leaves to a TUN device's other end, done here.
//!
//! A queue that was opened with offloads gives and takes packets of up to 64 KiB, each behind a virtio-net header ([`vnet`]) that says how it is to be cut and
//! whether its checksum is still to be completed. One such read is a [`SuperPacket`], whose packets are written one by one where they are sealed. On the way in a
//! [`Coalescer`] makes super-packets of what was opened, one write each. A queue without offloads has the same two ends: every read is one packet, and what is
//! written has its checksum completed ([`Format::Plain`]).
//!
//! Nothing here does I/O or allocates per packet, and no bytes make it panic: lengths, kinds and places are checked against the packet before anything is
//! touched. It comes from virtio 1.2 §5.1.6, RFC 1071, RFC 9293 §3.1 and Linux' GSO and GRO.

#![forbid(unsafe_code)]

mod checksum;
mod coalesce;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod headers;
mod segment;
pub mod vnet;

#[cfg(test)]
mod tests;

pub use checksum::complete;
pub use coalesce::{Coalescer, MAX_SEGMENTS, MAX_SUPER, Write};
pub use segment::{Fill, SegmentError, SuperPacket};
pub use vnet::{VNET_LEN, VnetError, VnetHeader};

/// What a packet queue reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Whole packets with complete checksums.
    #[default]
    Plain,
    /// A virtio-net header, then a packet or super-packet.
    Vnet {
        /// UDP super-packets are taken (Linux 6.2 and newer).
        uso: bool,
    },
}

/// What was read from a queue makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OffloadError {
    /// The virtio-net header.
    #[error(transparent)]
    Vnet(#[from] VnetError),
    /// The packet behind it.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

impl Format {
    /// Bytes before each packet.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Vnet { .. } => VNET_LEN,
        }
    }

    /// What one read gave.
    ///
    /// # Errors
    /// See [`OffloadError`].
    pub fn read(self, bytes: &[u8]) -> Result<SuperPacket<'_>, OffloadError> {
        match self {
            Self::Plain => Ok(SuperPacket::plain(bytes)),
            Self::Vnet { .. } => {
                let (header, packet) = VnetHeader::parse(bytes)?;
                Ok(SuperPacket::new(&header, packet)?)
            }
        }
    }
}
