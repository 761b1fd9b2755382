//! Just enough of IPv4 (RFC 791) and IPv6 (RFC 8200) to route a packet: addresses, and what makes a flow.
//!
//! Reads are bounded by the packet; what is missing or contradicts itself is [`NotIp`]. IPv6 extension headers are walked up to
//! eight; a flow whose ports cannot be found is told apart by addresses and protocol alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// More extension headers than honest packets have.
const MAX_EXTENSIONS: usize = 8;
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// The bytes are no whole IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a whole IPv4 or IPv6 packet")]
pub struct NotIp;

/// Where a packet comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// From.
    pub source: IpAddr,
    /// To. Of the same family.
    pub destination: IpAddr,
}

/// What the packets of one flow have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct FiveTuple {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// Of the transport; 0 when it was not found.
    pub protocol: u8,
    /// Source and destination port; 0 where there are none (fragments, ICMP, ...).
    pub ports: (u16, u16),
}

impl Addresses {
    /// Reads and checks the fixed header.
    ///
    /// # Errors
    /// [`NotIp`]: another version, shorter than its header says, or longer lengths than there are bytes.
    pub fn of(packet: &[u8]) -> Result<Self, NotIp> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => v4(packet),
            Some(6) => v6(packet),
            _ => Err(NotIp),
        }
    }
}

/// The source port of a UDP packet without options, extension headers or a fragment offset; what has those is told by [`FiveTuple::of`].
pub fn udp_source_port(packet: &[u8]) -> Option<u16> {
    let transport = match packet.first()? {
        0x45 if packet.get(9) == Some(&UDP) && !is_later_fragment(packet) => 20,
        first if first >> 4 == 6 && packet.get(6) == Some(&UDP) => 40,
        _ => return None,
    };
    packet.get(transport..)?.first_chunk().map(|port| u16::from_be_bytes(*port))
}

/// Whether an IPv4 packet is a fragment without the transport's header.
fn is_later_fragment(packet: &[u8]) -> bool {
    packet.get(6..8).is_none_or(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]) & 0x1fff != 0)
}

fn v4(packet: &[u8]) -> Result<Addresses, NotIp> {
    let head = packet.first_chunk::<20>().ok_or(NotIp)?;
    let header_len = usize::from(head[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if header_len < 20 || total < header_len || total > packet.len() {
        return Err(NotIp);
    }
    Ok(Addresses {
        source: Ipv4Addr::new(head[12], head[13], head[14], head[15]).into(),
        destination: Ipv4Addr::new(head[16], head[17], head[18], head[19]).into(),
    })
}

fn v6(packet: &[u8]) -> Result<Addresses, NotIp> {
    let head = packet.first_chunk::<40>().ok_or(NotIp)?;
    if usize::from(u16::from_be_bytes([head[4], head[5]])) + 40 > packet.len() {
        return Err(NotIp);
    }
    let address = |at: usize| -> Result<IpAddr, NotIp> {
        let bytes: [u8; 16] = head.get(at..at + 16).and_then(|b| b.try_into().ok()).ok_or(NotIp)?;
        Ok(Ipv6Addr::from(bytes).into())
    };
    Ok(Addresses { source: address(8)?, destination: address(24)? })
}

impl FiveTuple {
    /// Reads what makes the flow; `addresses` are the packet's own.
    pub fn of(packet: &[u8], addresses: Addresses) -> Self {
        let (protocol, transport) = match addresses.source {
            IpAddr::V4(_) => v4_transport(packet),
            IpAddr::V6(_) => v6_transport(packet),
        };
        let ports = match (protocol, transport.and_then(|bytes| bytes.first_chunk::<4>())) {
            (TCP | UDP | SCTP | UDP_LITE, Some(&[a, b, c, d])) => {
                (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            _ => (0, 0),
        };
        Self { source: addresses.source, destination: addresses.destination, protocol, ports }
    }
}

/// Protocol and transport header; the latter not in fragments, where only the first would have ports.
fn v4_transport(packet: &[u8]) -> (u8, Option<&[u8]>) {
    let Some(head) = packet.first_chunk::<20>() else { return (0, None) };
    let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    let transport = packet.get(usize::from(head[0] & 0x0f) * 4..);
    (head[9], if fragment { None } else { transport })
}

fn v6_transport(packet: &[u8]) -> (u8, Option<&[u8]>) {
    let Some(mut next) = packet.get(6).copied() else { return (0, None) };
    let mut at = 40;
    for _ in 0..MAX_EXTENSIONS {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                packet.get(at + 1).map(|&n| (usize::from(n) + 1) * 8)
            }
            FRAGMENT => return (packet.get(at).copied().unwrap_or(0), None),
            _ => return (next, packet.get(at..)),
        };
        let (Some(length), Some(&following)) = (length, packet.get(at)) else { break };
        next = following;
        at += length;
    }
    (0, None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4_packet(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend_from_slice(rest);
        let length = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&length);
        packet
    }

    fn v6_packet(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 64];
        packet.extend_from_slice(&"fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&"fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(rest);
        packet
    }

    fn tuple(packet: &[u8]) -> FiveTuple {
        FiveTuple::of(packet, Addresses::of(packet).unwrap())
    }

    #[test]
    fn the_quick_look_at_a_udp_port_agrees_with_the_thorough_one() {
        let ports = [0x12, 0x34, 0, 53, 0, 8, 0, 0];
        assert_eq!(udp_source_port(&v4_packet(UDP, &ports)), Some(0x1234));
        assert_eq!(udp_source_port(&v4_packet(TCP, &ports)), None);
        let mut fragment = v4_packet(UDP, &ports);
        fragment[7] = 1;
        assert_eq!(udp_source_port(&fragment), None, "no header in there");
        let mut v6 = vec![0x60, 0, 0, 0, 0, 8, UDP, 64];
        v6.resize(40, 1);
        assert_eq!(udp_source_port(&v6), None);
        v6.extend_from_slice(&ports);
        assert_eq!(udp_source_port(&v6), Some(0x1234));
    }

    #[test]
    fn finds_addresses_and_ports_of_both_families() {
        let four = tuple(&v4_packet(TCP, &[0, 80, 1, 2, 9]));
        assert_eq!((four.source, four.ports), ("10.0.0.1".parse().unwrap(), (80, 258)));
        let six = tuple(&v6_packet(UDP, &[0, 53, 3, 4]));
        assert_eq!((six.destination, six.protocol, six.ports), ("fd00::2".parse().unwrap(), UDP, (53, 772)));
    }

    #[test]
    fn walks_extension_headers_and_stops_at_fragments() {
        let extended = v6_packet(HOP_BY_HOP, &[TCP, 0, 0, 0, 0, 0, 0, 0, 0, 22, 0, 23]);
        assert_eq!(tuple(&extended).ports, (22, 23));
        let fragment = v6_packet(FRAGMENT, &[UDP, 0, 0, 8, 0, 0, 0, 1, 0, 22, 0, 23]);
        assert_eq!((tuple(&fragment).protocol, tuple(&fragment).ports), (UDP, (0, 0)));
        let mut four = v4_packet(UDP, &[0, 22, 0, 23]);
        four[6] = 0x20;
        assert_eq!(tuple(&four).ports, (0, 0), "a first fragment and the others belong to one flow");
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let good = v4_packet(UDP, &[0; 8]);
        assert!(Addresses::of(&good).is_ok());
        assert_eq!(Addresses::of(&good[..27]), Err(NotIp));
        let mut short_header = good.clone();
        short_header[0] = 0x44;
        assert_eq!(Addresses::of(&short_header), Err(NotIp));
        assert_eq!(Addresses::of(&v6_packet(UDP, &[0; 8])[..47]), Err(NotIp));
        assert_eq!(Addresses::of(&[]), Err(NotIp));
        assert_eq!(Addresses::of(&[0x50; 60]), Err(NotIp));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1..120), six: bool) {
            bytes[0] = if six { 0x60 } else { 0x45 };
            if let Ok(addresses) = Addresses::of(&bytes) {
                let tuple = FiveTuple::of(&bytes, addresses);
                prop_assert_eq!(tuple.source, addresses.source);
            }
        }
    }
}
