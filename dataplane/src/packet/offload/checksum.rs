//! The Internet checksum (RFC 1071), eight bytes at a time.
//!
//! One's complement addition does not care about byte order nor about how many 16-bit words are added at once, so words of 64 bits are added as two of 32, in the
//! machine's order, and folded at the end. An accumulator of 64 bits takes 2^32 such words before it can overflow: more than any packet has.
//!
//! A partial checksum is what a kernel leaves to be completed: the field holds the folded sum of the pseudo header, not inverted. Adding up everything from the
//! transport header on, that field included, gives the complete one.

use crate::proto::node::Checksum;

use super::headers::{Layout, Transport};

/// A sum that is being made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even distance from the first ones; only the last may be odd in number.
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let (mut low, mut high) = (0, 0);
        for word in words {
            let word = u64::from_ne_bytes(*word);
            low += word & 0xFFFF_FFFF;
            high += word >> 32;
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            let last = u64::from_ne_bytes(last);
            low += last & 0xFFFF_FFFF;
            high += last >> 32;
        }
        self.plus(low).plus(high)
    }

    /// Adds a number of 16 bits.
    pub(super) fn number(self, number: u16) -> Self {
        self.plus(u64::from(u16::from_ne_bytes(number.to_be_bytes())))
    }

    /// The two bytes, not inverted.
    pub(super) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The two bytes as they go into a header.
    pub(super) fn inverted(self) -> [u8; 2] {
        let [first, second] = self.folded();
        [!first, !second]
    }

    /// Whether what was added contained its own right checksum.
    pub(super) fn verifies(self) -> bool {
        self.folded() == [0xFF, 0xFF]
    }

    const fn plus(self, addend: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(addend);
        Self(sum + carry as u64)
    }
}

/// Completes the checksum of a TCP or UDP packet whose field holds the sum of its pseudo header; anything else stays as it is. For devices without
/// offloads (`docs/protocol.md` §2.3, PARTIAL_CSUM).
pub fn complete(packet: &mut [u8]) {
    if let Ok(layout) = Layout::of(packet) {
        let (start, field) = (layout.transport, layout.checksum_field());
        complete_at(&mut packet[start..layout.total], field - start, layout.protocol);
    }
}

/// The same for `bytes` from the transport header on, whose checksum is at `field`. Both were checked by the caller.
pub(super) fn complete_at(bytes: &mut [u8], field: usize, protocol: Transport) {
    let value = not_zero(Sum::default().bytes(bytes).inverted(), protocol);
    bytes[field..field + 2].copy_from_slice(&value);
}

/// In UDP zero would say "no checksum" (RFC 768); its other form means the same sum.
pub(super) fn not_zero(value: [u8; 2], protocol: Transport) -> [u8; 2] {
    if value == [0, 0] && protocol == Transport::Udp { [0xFF, 0xFF] } else { value }
}

/// Whether the transport checksum of a whole packet may be left to whoever receives it next: it verifies, or it is partial and was carried here under
/// a key. UDP without a checksum does not.
pub(super) fn verifies(packet: &[u8], layout: &Layout, checksum: Checksum) -> bool {
    if checksum == Checksum::Partial {
        return true;
    }
    let field = layout.checksum_field();
    let none = layout.protocol == Transport::Udp && packet.get(field..field + 2) == Some(&[0, 0][..]);
    let Some(transport) = packet.get(layout.transport..layout.total) else { return false };
    !none && layout.pseudo_header(packet).number(transport.len() as u16).bytes(transport).verifies()
}
