//! Where the headers of a whole TCP or UDP packet are, over IPv4 (RFC 791) or IPv6 (RFC 8200).
//!
//! Offsets in a [`Layout`] were checked against the packet they were read from; code that has one may index with them. IPv6 hop-by-hop and destination options are
//! walked over; fragments and other extension headers have no layout, and go as they are.

use super::checksum::Sum;

const IPV4_MIN: usize = 20;
const IPV6_LEN: usize = 40;
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DESTINATION_OPTIONS: u8 = 60;
/// More extension headers than honest packets have.
const MAX_EXTENSIONS: usize = 8;
const TCP_MIN: usize = 20;
const UDP_LEN: usize = 8;

/// The transports that have offloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// See the module's doc.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) v6: bool,
    pub(super) protocol: Transport,
    /// Where the transport header begins.
    pub(super) transport: usize,
    /// Where the payload begins.
    pub(super) payload: usize,
    /// Where the packet ends by its own account.
    pub(super) total: usize,
}

/// The bytes are no whole TCP or UDP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoLayout;

impl Layout {
    /// Reads the headers.
    pub(super) fn of(packet: &[u8]) -> Result<Self, NoLayout> {
        let (v6, protocol, transport, total) = match packet.first().ok_or(NoLayout)? >> 4 {
            4 => v4(packet)?,
            6 => v6(packet)?,
            _ => return Err(NoLayout),
        };
        if total > packet.len() {
            return Err(NoLayout);
        }
        let (protocol, header) = match protocol {
            TCP => (Transport::Tcp, usize::from(packet.get(transport + 12).ok_or(NoLayout)? >> 4) * 4),
            UDP => (Transport::Udp, UDP_LEN),
            _ => return Err(NoLayout),
        };
        let payload = transport + header;
        if payload > total || (protocol == Transport::Tcp && header < TCP_MIN) {
            return Err(NoLayout);
        }
        Ok(Self { v6, protocol, transport, payload, total })
    }

    /// Where the transport checksum is.
    pub(super) const fn checksum_field(&self) -> usize {
        self.transport + self.checksum_offset()
    }

    /// The same, from the transport header.
    pub(super) const fn checksum_offset(&self) -> usize {
        match self.protocol {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    /// Whether the transport header follows the fixed IPv6 header, or any IPv4 header: where a receiver looks for it.
    pub(super) const fn is_direct(&self) -> bool {
        !self.v6 || self.transport == IPV6_LEN
    }

    /// The sum of the pseudo header, but for the length.
    pub(super) fn pseudo_header(&self, packet: &[u8]) -> Sum {
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let protocol = match self.protocol {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        Sum::default().bytes(&packet[addresses]).number(u16::from(protocol))
    }
}

type Network = (bool, u8, usize, usize);

fn v4(packet: &[u8]) -> Result<Network, NoLayout> {
    let head = packet.first_chunk::<IPV4_MIN>().ok_or(NoLayout)?;
    let header = usize::from(head[0] & 0x0F) * 4;
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3FFF != 0;
    if header < IPV4_MIN || fragment {
        return Err(NoLayout);
    }
    Ok((false, head[9], header, total))
}

fn v6(packet: &[u8]) -> Result<Network, NoLayout> {
    let head = packet.first_chunk::<IPV6_LEN>().ok_or(NoLayout)?;
    let total = IPV6_LEN + usize::from(u16::from_be_bytes([head[4], head[5]]));
    let (mut next, mut at) = (head[6], IPV6_LEN);
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(next, HOP_BY_HOP | DESTINATION_OPTIONS) {
            return Ok((true, next, at, total));
        }
        let [following, length] = *packet.get(at..).and_then(|rest| rest.first_chunk()).ok_or(NoLayout)?;
        (next, at) = (following, at + (usize::from(length) + 1) * 8);
    }
    Err(NoLayout)
}
