//! From packets as they came to what one write into a TUN queue takes (GRO).
//!
//! Packets of one flow that a sender could have handed to its kernel as one piece are put together again: consecutive TCP segments that differ in nothing but
//! sequence, length and checksum, or UDP datagrams of one length. The rules are those of Linux (`net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`):
//!
//! - IPv4 without options and with a right header checksum, IPv6 without extension headers; type of service, time to live, flow label and don't-fragment agree, and an IPv4 identification that
//!   may matter (don't-fragment is clear, RFC 6864) counts up. No fragments.
//! - TCP: acknowledgement, window, options and flags agree; nothing but ACK, PSH, FIN, ECE and CWR is set. PSH, FIN and a shorter segment end a group, CWR begins one.
//! - UDP: a shorter datagram ends a group; without a checksum there is none.
//! - What is put together gets a partial checksum, so every part must have had a right one: it verifies here, or it is partial already and came under a key.
//!
//! What cannot be put together goes as it is, after what came before it in its flow. Flows do not keep order among each other. Nothing stays longer than until
//! [`Coalescer::flush`], which belongs at the end of every batch.

use std::num::NonZeroU16;

use super::Format;
use super::checksum::{Sum, complete, verifies};
use super::headers::{Layout, Transport};
use super::segment::write_ipv4;
use super::vnet::{Gso, GsoKind, PartialChecksum, VnetHeader};
use crate::proto::node::Checksum;

/// The longest that packets are put together to: what an IPv4 length can say.
pub const MAX_SUPER: usize = u16::MAX as usize;
/// The most packets in one: what Linux before 6.9 takes apart again for a UDP socket (`UDP_MAX_SEGMENTS`).
pub const MAX_SEGMENTS: usize = 64;
/// Flows that are collected at a time; another one sends the one that began first on its way.
const GROUPS: usize = 8;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// See the module's doc. Keeps its memory, 64 KiB per flow that it has seen at a time.
#[derive(Debug)]
pub struct Coalescer {
    format: Format,
    groups: Vec<Group>,
    /// How many groups have begun.
    begun: u64,
}

/// What goes into a queue with one write: the header, then the packet.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The virtio-net header; empty for a plain queue.
    pub header: &'a [u8],
    /// A packet or super-packet.
    pub packet: &'a [u8],
    /// How many packets it stands for.
    pub count: usize,
}

/// Packets of one flow that are being put together; none when `count` is zero.
#[derive(Debug)]
struct Group {
    flow: Flow,
    begun: u64,
    layout: Layout,
    /// The first packet, then payload.
    bytes: Vec<u8>,
    /// Payload of the first packet.
    size: usize,
    count: usize,
    checksum: Checksum,
    verified: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flow {
    v6: bool,
    protocol: Transport,
    addresses: [u8; 32],
    ports: [u8; 4],
}

impl Coalescer {
    /// For a queue of this format.
    pub const fn new(format: Format) -> Self {
        Self { format, groups: Vec::new(), begun: 0 }
    }

    /// Takes one packet; `write` gets what is to be written now.
    pub fn push(&mut self, packet: &mut [u8], checksum: Checksum, mut write: impl FnMut(Write<'_>)) {
        let Format::Vnet { uso } = self.format else {
            if checksum == Checksum::Partial {
                complete(packet);
            }
            return write(Write { header: &[], packet, count: 1 });
        };
        let packet = &*packet;
        let Ok(layout) = Layout::of(packet) else {
            let header = &VnetHeader::default().to_bytes();
            return write(Write { header, packet, count: 1 });
        };
        let flow = Flow::of(packet, &layout);
        let present = self.groups.iter().position(|group| group.count > 0 && group.flow == flow);
        let suits = suits(packet, &layout, checksum, uso);
        if let Some(group) = present.and_then(|n| self.groups.get_mut(n)) {
            if suits && group.takes(packet, &layout) && group.verify() && verifies(packet, &layout, checksum)
            {
                if group.append(packet, &layout) {
                    group.finish(&mut write);
                }
                return;
            }
            group.finish(&mut write);
        }
        if suits && !ends_group(packet, &layout) {
            self.begin(present, flow, packet, layout, checksum, &mut write);
        } else {
            let header = &single(&layout, checksum).to_bytes();
            write(Write { header, packet, count: 1 });
        }
    }

    /// Hands out everything that was collected.
    pub fn flush(&mut self, mut write: impl FnMut(Write<'_>)) {
        for group in self.groups.iter_mut().filter(|group| group.count > 0) {
            group.finish(&mut write);
        }
    }

    /// Whether nothing waits for [`Coalescer::flush`].
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.count == 0)
    }

    fn begin(
        &mut self,
        place: Option<usize>,
        flow: Flow,
        packet: &[u8],
        layout: Layout,
        checksum: Checksum,
        write: &mut impl FnMut(Write<'_>),
    ) {
        let place = place.or_else(|| self.groups.iter().position(|group| group.count == 0));
        let oldest = || (0..self.groups.len()).min_by_key(|&n| self.groups[n].begun);
        let place = match place {
            Some(place) => place,
            None if self.groups.len() < GROUPS => self.groups.len(),
            None => oldest().unwrap_or_default(),
        };
        if place == self.groups.len() {
            self.groups.push(Group {
                flow,
                begun: 0,
                layout,
                bytes: Vec::with_capacity(MAX_SUPER),
                size: 0,
                count: 0,
                checksum,
                verified: false,
            });
        }
        self.begun += 1;
        let group = &mut self.groups[place];
        if group.count > 0 {
            group.finish(write);
        }
        group.bytes.clear();
        group.bytes.extend_from_slice(packet);
        group.size = layout.total - layout.payload;
        group.verified = checksum == Checksum::Partial;
        (group.flow, group.begun, group.layout, group.count) = (flow, self.begun, layout, 1);
        group.checksum = checksum;
    }
}

impl Flow {
    fn of(packet: &[u8], layout: &Layout) -> Self {
        let mut addresses = [0; 32];
        if layout.v6 {
            addresses.copy_from_slice(&packet[8..40]);
        } else {
            addresses[..8].copy_from_slice(&packet[12..20]);
        }
        let mut ports = [0; 4];
        ports.copy_from_slice(&packet[layout.transport..layout.transport + 4]);
        Self { v6: layout.v6, protocol: layout.protocol, addresses, ports }
    }
}

/// Whether a packet may be part of a group at all.
fn suits(packet: &[u8], layout: &Layout, checksum: Checksum, uso: bool) -> bool {
    let network = if layout.v6 {
        layout.is_direct()
    } else {
        layout.transport == 20 && Sum::default().bytes(&packet[..20]).verifies()
    };
    let header = &packet[layout.transport..layout.payload];
    let transport = match layout.protocol {
        Transport::Tcp => header[13] & ACK != 0 && header[13] & !(ACK | PSH | FIN | ECE | CWR) == 0,
        Transport::Udp => {
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let summed = checksum == Checksum::Partial || header[6..8] != [0, 0];
            uso && summed && length == layout.total - layout.transport
        }
    };
    network && transport && layout.total == packet.len() && layout.payload < layout.total
}

/// Whether nothing may come after this packet in its group.
fn ends_group(packet: &[u8], layout: &Layout) -> bool {
    layout.protocol == Transport::Tcp && packet[layout.transport + 13] & (PSH | FIN) != 0
}

/// The header of a packet that goes alone.
fn single(layout: &Layout, checksum: Checksum) -> VnetHeader {
    let partial = checksum == Checksum::Partial;
    VnetHeader { checksum: partial.then(|| place(layout)), ..VnetHeader::default() }
}

fn place(layout: &Layout) -> PartialChecksum {
    PartialChecksum { start: layout.transport as u16, offset: layout.checksum_offset() as u16 }
}

impl Group {
    /// Whether `packet`, which suits a group of this flow, is the next of this one.
    fn takes(&self, packet: &[u8], layout: &Layout) -> bool {
        let length = layout.total - layout.payload;
        let room = self.bytes.len() + length <= MAX_SUPER && self.count < MAX_SEGMENTS && length <= self.size;
        room && layout.transport == self.layout.transport
            && layout.payload == self.layout.payload
            && self.network_agrees(packet)
            && self.transport_agrees(packet)
    }

    fn network_agrees(&self, packet: &[u8]) -> bool {
        let first = &self.bytes;
        if self.layout.v6 {
            return first[..4] == packet[..4] && first[7] == packet[7];
        }
        let identification = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
        let expected = identification(first).wrapping_add(self.count as u16);
        let may_fragment = packet[6] & 0x40 == 0;
        first[1] == packet[1]
            && first[6..9] == packet[6..9]
            && (!may_fragment || identification(packet) == expected)
    }

    fn transport_agrees(&self, packet: &[u8]) -> bool {
        if self.layout.protocol == Transport::Udp {
            return true;
        }
        let range = self.layout.transport..self.layout.payload;
        let (first, next) = (&self.bytes[range.clone()], &packet[range]);
        let sequence = |header: &[u8]| u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let expected = sequence(first).wrapping_add((self.bytes.len() - self.layout.payload) as u32);
        let flags = first[13] ^ next[13];
        sequence(next) == expected
            && first[8..13] == next[8..13]
            && flags & !(PSH | FIN | CWR) == 0
            && next[13] & CWR == 0
            && first[14..16] == next[14..16]
            && first[18..] == next[18..]
    }

    /// Whether the first packet's checksum is right; looked at when there is a second.
    fn verify(&mut self) -> bool {
        self.verified = self.verified || verifies(&self.bytes, &self.layout, self.checksum);
        self.verified
    }

    /// Says whether it was the last.
    fn append(&mut self, packet: &[u8], layout: &Layout) -> bool {
        self.bytes.extend_from_slice(&packet[layout.payload..layout.total]);
        self.count += 1;
        let ends = ends_group(packet, layout);
        if ends {
            let flags = self.layout.transport + 13;
            self.bytes[flags] |= packet[flags] & (PSH | FIN);
        }
        ends || layout.total - layout.payload < self.size || self.count == MAX_SEGMENTS
    }

    /// Hands it out.
    fn finish(&mut self, write: &mut impl FnMut(Write<'_>)) {
        let header = match NonZeroU16::new(self.size as u16) {
            Some(size) if self.count > 1 => self.complete_headers(size),
            _ => single(&self.layout, self.checksum),
        };
        let count = std::mem::take(&mut self.count);
        write(Write { header: &header.to_bytes(), packet: &self.bytes, count });
    }

    /// Makes the first packet's headers those of the whole.
    fn complete_headers(&mut self, size: NonZeroU16) -> VnetHeader {
        let Layout { v6, protocol, transport, payload, .. } = self.layout;
        let total = self.bytes.len();
        let pseudo = self.layout.pseudo_header(&self.bytes).number((total - transport) as u16);
        let (network, header) = self.bytes.split_at_mut(transport);
        if v6 {
            network[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        } else {
            let identification = u16::from_be_bytes([network[4], network[5]]);
            write_ipv4(network, total as u16, identification);
        }
        let (kind, ecn) = match protocol {
            Transport::Tcp if v6 => (GsoKind::TcpV6, header[13] & CWR != 0),
            Transport::Tcp => (GsoKind::TcpV4, header[13] & CWR != 0),
            Transport::Udp => {
                header[4..6].copy_from_slice(&((total - transport) as u16).to_be_bytes());
                (GsoKind::Udp, false)
            }
        };
        let field = self.layout.checksum_offset();
        header[field..field + 2].copy_from_slice(&pseudo.folded());
        VnetHeader {
            checksum: Some(place(&self.layout)),
            gso: Some(Gso { kind, size, ecn }),
            header_len: payload as u16,
        }
    }
}
