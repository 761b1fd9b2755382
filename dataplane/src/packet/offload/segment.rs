//! From what one read of a TUN queue gave to the packets it stands for (TSO, USO).
//!
//! A super-packet has one set of headers and the payload of many packets. Each packet gets a copy of the headers with its own lengths, IPv4 identification and
//! checksum (RFC 791), TCP sequence number, and flags: CWR on the first alone (RFC 3168 §6.1.2), PSH and FIN on the last alone. Its transport checksum is complete, or partial as the
//! kernel's was: then the receiving kernel, or its network card, completes it.
//!
//! Where headers end is read from the packet and has to agree with `csum_start`; `hdr_len` is not looked at.

use super::checksum::{self, Sum, complete_at};
use super::headers::{Layout, NoLayout, Transport};
use super::vnet::{Gso, GsoKind, PartialChecksum, VnetHeader};
use crate::proto::node::Checksum;

const CWR: u8 = 0x80;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;

/// A packet that cannot be what its virtio-net header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// A super-packet that is no whole TCP or UDP packet, is a fragment, or has extension headers that are not known here.
    #[error("a super-packet without known headers")]
    Headers,
    /// It is not of the kind that the header says.
    #[error("a super-packet of another kind than announced")]
    Kind,
    /// There are bytes after its end.
    #[error("bytes after the end of a super-packet")]
    Trailing,
    /// The checksum's place is not where the transport has it, or not in the packet.
    #[error("the checksum is not where the virtio-net header says")]
    ChecksumPlace,
}

impl From<NoLayout> for SegmentError {
    fn from(_: NoLayout) -> Self {
        Self::Headers
    }
}

/// What a written packet's transport checksum should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Complete.
    Complete,
    /// Left to the receiver where that is possible.
    Partial,
}

/// One read of a TUN queue: a packet, or several in one.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket<'a> {
    packet: &'a [u8],
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Goes as it is.
    Single,
    /// Goes as it is, but for its checksum.
    Unsummed { at: PartialChecksum, layout: Option<Layout> },
    /// To be cut.
    Many(Cut),
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    layout: Layout,
    size: usize,
    count: usize,
    /// Sum of the pseudo header, but for the length.
    pseudo: Sum,
}

impl<'a> SuperPacket<'a> {
    /// Looks at `packet` by what the virtio-net header says of it.
    ///
    /// # Errors
    /// See [`SegmentError`]. A packet that needs nothing done is not looked at.
    pub fn new(header: &VnetHeader, packet: &'a [u8]) -> Result<Self, SegmentError> {
        let shape = match (header.gso, header.checksum) {
            (None, None) => Shape::Single,
            (None, Some(at)) => unsummed(packet, at)?,
            (Some(gso), at) => Shape::Many(cut(packet, gso, at)?),
        };
        Ok(Self { packet, shape })
    }

    /// A packet of a queue without virtio-net headers.
    pub const fn plain(packet: &'a [u8]) -> Self {
        Self { packet, shape: Shape::Single }
    }

    /// How many packets it stands for: at least one.
    pub const fn count(&self) -> usize {
        match &self.shape {
            Shape::Many(cut) => cut.count,
            _ => 1,
        }
    }

    /// The length of packet `index`. The longest is the first.
    pub fn len_of(&self, index: usize) -> usize {
        match &self.shape {
            Shape::Many(cut) => cut.layout.payload + cut.range(index).len(),
            _ => self.packet.len(),
        }
    }

    /// Writes packet `index` to `into`, which is [`SuperPacket::len_of`] it long, and says what its checksum is.
    ///
    /// # Panics
    /// When `into` has another length, or there is no such packet.
    pub fn write(&self, index: usize, fill: Fill, into: &mut [u8]) -> Checksum {
        match &self.shape {
            Shape::Single => {
                into.copy_from_slice(self.packet);
                Checksum::Complete
            }
            Shape::Unsummed { at, layout } => {
                into.copy_from_slice(self.packet);
                if fill == Fill::Partial && layout.is_some_and(|layout| layout.is_direct()) {
                    return Checksum::Partial;
                }
                let protocol = layout.map_or(Transport::Tcp, |layout| layout.protocol);
                let end = layout.map_or(into.len(), |layout| layout.total);
                complete_at(&mut into[usize::from(at.start)..end], usize::from(at.offset), protocol);
                Checksum::Complete
            }
            Shape::Many(cut) => cut.write(self.packet, index, fill, into),
        }
    }
}

/// A packet whose checksum is to be completed. Only where it is the transport's own can that be left to the receiver, who has to find it.
fn unsummed(packet: &[u8], at: PartialChecksum) -> Result<Shape, SegmentError> {
    let (start, offset) = (usize::from(at.start), usize::from(at.offset));
    if start + offset + 2 > packet.len() {
        return Err(SegmentError::ChecksumPlace);
    }
    let layout = Layout::of(packet)
        .ok()
        .filter(|layout| layout.transport == start && layout.checksum_offset() == offset);
    Ok(Shape::Unsummed { at, layout })
}

fn cut(packet: &[u8], gso: Gso, at: Option<PartialChecksum>) -> Result<Cut, SegmentError> {
    let layout = Layout::of(packet)?;
    let fits = match gso.kind {
        GsoKind::TcpV4 => layout.protocol == Transport::Tcp && !layout.v6,
        GsoKind::TcpV6 => layout.protocol == Transport::Tcp && layout.v6,
        GsoKind::Udp => layout.protocol == Transport::Udp,
    };
    if !fits {
        return Err(SegmentError::Kind);
    }
    if layout.total != packet.len() {
        return Err(SegmentError::Trailing);
    }
    let misplaced = |at: PartialChecksum| {
        usize::from(at.start) != layout.transport || usize::from(at.offset) != layout.checksum_offset()
    };
    if at.is_some_and(misplaced) {
        return Err(SegmentError::ChecksumPlace);
    }
    let size = usize::from(gso.size.get());
    let count = (layout.total - layout.payload).div_ceil(size).max(1);
    Ok(Cut { layout, size, count, pseudo: layout.pseudo_header(packet) })
}

impl Cut {
    /// Which bytes packet `index` carries.
    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let start = self.layout.payload + index * self.size;
        start..(start + self.size).min(self.layout.total)
    }

    fn write(&self, packet: &[u8], index: usize, fill: Fill, into: &mut [u8]) -> Checksum {
        let Layout { v6, protocol, transport, payload, .. } = self.layout;
        let (headers, body) = into.split_at_mut(payload);
        headers.copy_from_slice(&packet[..payload]);
        body.copy_from_slice(&packet[self.range(index)]);
        let length = payload + body.len();
        let (network, header) = headers.split_at_mut(transport);
        if v6 {
            network[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        } else {
            let identification = u16::from_be_bytes([network[4], network[5]]).wrapping_add(index as u16);
            write_ipv4(network, length as u16, identification);
        }
        let segment = (length - transport) as u16;
        let field = self.layout.checksum_offset();
        match protocol {
            Transport::Tcp => {
                let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let sequence = sequence.wrapping_add((index * self.size) as u32);
                header[4..8].copy_from_slice(&sequence.to_be_bytes());
                if index > 0 {
                    header[13] &= !CWR;
                }
                if index + 1 < self.count {
                    header[13] &= !(PSH | FIN);
                }
            }
            Transport::Udp => header[4..6].copy_from_slice(&segment.to_be_bytes()),
        }
        let pseudo = self.pseudo.number(segment);
        if fill == Fill::Partial && self.layout.is_direct() {
            header[field..field + 2].copy_from_slice(&pseudo.folded());
            return Checksum::Partial;
        }
        header[field..field + 2].fill(0);
        let value = pseudo.bytes(header).bytes(body).inverted();
        header[field..field + 2].copy_from_slice(&checksum::not_zero(value, protocol));
        Checksum::Complete
    }
}

/// Puts a length and an identification into an IPv4 header, and its checksum.
pub(super) fn write_ipv4(header: &mut [u8], total: u16, identification: u16) {
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[10..12].fill(0);
    let sum = Sum::default().bytes(header).inverted();
    header[10..12].copy_from_slice(&sum);
}
