//! The virtio-net header before each packet of a TUN queue that was opened with `IFF_VNET_HDR`.
//!
//! It is `struct virtio_net_hdr` of `linux/virtio_net.h` (virtio 1.2 §5.1.6), ten bytes in the machine's own byte order, which is what a TUN device speaks unless
//! told otherwise. `hdr_len` is written, because some kernels want a sensible one, and never believed: how long the headers are follows from `csum_start` and the
//! TCP header itself ([`super::SuperPacket`]).

use std::num::NonZeroU16;

/// Bytes of the header.
pub const VNET_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What stands in the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VnetHeader {
    /// The transport checksum is to be completed (`NEEDS_CSUM`): its field holds the sum of the pseudo header.
    pub checksum: Option<PartialChecksum>,
    /// The packet stands for several.
    pub gso: Option<Gso>,
    /// How long all headers of the packet are together. Zero without `gso`.
    pub header_len: u16,
}

/// Where a checksum is to be completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// The first byte that is summed: the transport header's.
    pub start: u16,
    /// Where the two bytes of the sum are, counted from `start`.
    pub offset: u16,
}

/// How a super-packet is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// What it is.
    pub kind: GsoKind,
    /// Payload bytes of each packet, but for the last.
    pub size: NonZeroU16,
    /// TCP with CWR set (RFC 3168 §6.1.2): it belongs to the first packet alone.
    pub ecn: bool,
}

/// What a super-packet is cut into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GsoKind {
    /// TCP segments over IPv4.
    TcpV4,
    /// TCP segments over IPv6.
    TcpV6,
    /// UDP datagrams over either.
    Udp,
}

/// A header that the kernel would not have written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VnetError {
    /// Fewer bytes than a header has.
    #[error("shorter than a virtio-net header")]
    Truncated,
    /// A kind of offload that was not asked for (UDP fragmentation, tunnels).
    #[error("unknown gso type {0:#x}")]
    GsoType(u8),
    /// A super-packet that is cut into pieces of nothing.
    #[error("gso size of zero")]
    GsoSize,
}

impl VnetHeader {
    /// Takes the header off what was read from the queue.
    ///
    /// # Errors
    /// See [`VnetError`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), VnetError> {
        let (head, packet) = bytes.split_first_chunk::<VNET_LEN>().ok_or(VnetError::Truncated)?;
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1] = *head;
        let checksum = (flags & NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: u16::from_ne_bytes([c0, c1]),
            offset: u16::from_ne_bytes([o0, o1]),
        });
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => return Err(VnetError::GsoType(gso_type)),
        };
        let gso = match kind {
            None => None,
            Some(kind) => Some(Gso {
                kind,
                size: NonZeroU16::new(u16::from_ne_bytes([s0, s1])).ok_or(VnetError::GsoSize)?,
                ecn: gso_type & GSO_ECN != 0,
            }),
        };
        let header_len = if gso.is_some() { u16::from_ne_bytes([h0, h1]) } else { 0 };
        Ok((Self { checksum, gso, header_len }, packet))
    }

    /// The ten bytes.
    pub fn to_bytes(self) -> [u8; VNET_LEN] {
        let (flags, at) = match self.checksum {
            Some(at) => (NEEDS_CSUM, at),
            None => (0, PartialChecksum { start: 0, offset: 0 }),
        };
        let (gso_type, size) = match self.gso {
            None => (GSO_NONE, 0),
            Some(gso) => {
                let kind = match gso.kind {
                    GsoKind::TcpV4 => GSO_TCPV4,
                    GsoKind::TcpV6 => GSO_TCPV6,
                    GsoKind::Udp => GSO_UDP_L4,
                };
                (kind | if gso.ecn { GSO_ECN } else { 0 }, gso.size.get())
            }
        };
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [s0, s1] = size.to_ne_bytes();
        let [c0, c1] = at.start.to_ne_bytes();
        let [o0, o1] = at.offset.to_ne_bytes();
        // flags ‖ gso_type ‖ hdr_len (2) ‖ gso_size (2) ‖ csum_start (2) ‖ csum_offset (2)
        [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = VnetHeader> {
        let checksum = proptest::option::of(
            (any::<u16>(), any::<u16>()).prop_map(|(start, offset)| PartialChecksum { start, offset }),
        );
        let kind = prop_oneof![Just(GsoKind::TcpV4), Just(GsoKind::TcpV6), Just(GsoKind::Udp)];
        let gso = proptest::option::of((kind, 1..=u16::MAX, any::<bool>(), any::<u16>()));
        (checksum, gso).prop_map(|(checksum, gso)| VnetHeader {
            checksum,
            gso: gso.and_then(|(kind, size, ecn, _)| Some(Gso { kind, size: NonZeroU16::new(size)?, ecn })),
            header_len: gso.map_or(0, |(.., header_len)| header_len),
        })
    }

    #[test]
    fn what_the_kernel_would_not_write_is_refused() {
        assert_eq!(VnetHeader::parse(&[0; 9]), Err(VnetError::Truncated));
        assert_eq!(VnetHeader::parse(&[0, 3, 0, 0, 1, 1, 0, 0, 0, 0]), Err(VnetError::GsoType(3)));
        assert_eq!(VnetHeader::parse(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Err(VnetError::GsoSize));
        let plain = VnetHeader::parse(&[0; 12]).unwrap();
        assert_eq!(plain, (VnetHeader::default(), &[0, 0][..]), "the packet follows");
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(header in headers(), packet in proptest::collection::vec(any::<u8>(), 0..9)) {
            let bytes = [&header.to_bytes()[..], &packet].concat();
            prop_assert_eq!(VnetHeader::parse(&bytes), Ok((header, &packet[..])));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = VnetHeader::parse(&bytes);
        }
    }
}
