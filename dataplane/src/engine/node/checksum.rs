//! Completing a partial transport checksum where the TUN device has no offloads (`docs/protocol.md` §1.3 PARTIAL_CSUM).
//!
//! The sender's kernel left the sum of the pseudo header in the checksum field. Folding it together with the sum of everything from the transport header on,
//! that field included, gives the complete one's complement sum (RFC 1071).

/// TCP and UDP, with the place of the checksum in their headers.
const TCP: (u8, usize) = (6, 16);
const UDP: (u8, usize) = (17, 6);

/// Completes the checksum of a TCP or UDP packet in place; anything else stays as it is.
pub(super) fn complete(packet: &mut [u8]) {
    let Some((start, protocol)) = transport(packet) else { return };
    let field = match protocol {
        p if p == TCP.0 => start + TCP.1,
        p if p == UDP.0 => start + UDP.1,
        _ => return,
    };
    if packet.len() < field + 2 {
        return;
    }
    let mut sum = 0u32;
    for pair in packet[start..].chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    let value = match !(sum as u16) {
        // Zero would say "no checksum" (RFC 768).
        0 if protocol == UDP.0 => 0xFFFF,
        value => value,
    };
    packet[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// Where the transport header starts, and its protocol. IPv6 extension headers do not come with a partial checksum here.
fn transport(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        4 => Some((usize::from(packet[0] & 0x0F) * 4, *packet.get(9)?)),
        6 => Some((40, *packet.get(6)?)),
        _ => None,
    }
    .filter(|&(start, _)| start < packet.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u16 {
        let mut sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
            .sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum as u16
    }

    /// What a kernel hands over with NEEDS_CSUM, and its pseudo header.
    fn partial(v6: bool, protocol: u8, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (field, header) = if protocol == TCP.0 { (TCP.1, 20) } else { (UDP.1, 8) };
        let length = (header + payload.len()) as u16;
        let (mut packet, mut pseudo) = (Vec::new(), Vec::new());
        if v6 {
            packet.extend_from_slice(&[0x60, 0, 0, 0, (length >> 8) as u8, length as u8, protocol, 64]);
            packet.extend((0..32).map(|n| n * 7));
            pseudo.extend_from_slice(&packet[8..40]);
        } else {
            packet.extend_from_slice(&[
                0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 1, 5, 10, 0, 1, 6,
            ]);
            pseudo.extend_from_slice(&packet[12..20]);
        }
        pseudo.extend_from_slice(&[0, protocol]);
        pseudo.extend_from_slice(&length.to_be_bytes());
        let start = packet.len();
        packet.extend((0..header as u8).map(|n| n ^ 0x5A));
        packet.extend_from_slice(payload);
        packet[start + field..start + field + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
        (packet, pseudo)
    }

    #[test]
    fn completed_checksums_verify() {
        for v6 in [false, true] {
            for protocol in [TCP.0, UDP.0] {
                for length in [0, 1, 2, 999] {
                    let (mut packet, pseudo) = partial(v6, protocol, &vec![0xA7; length]);
                    complete(&mut packet);
                    let start = if v6 { 40 } else { 20 };
                    assert_eq!(
                        sum(&[pseudo, packet[start..].to_vec()].concat()),
                        0xFFFF,
                        "v6 {v6}, protocol {protocol}, {length}"
                    );
                }
            }
        }
    }

    #[test]
    fn cut_or_other_packets_stay_as_they_are() {
        for length in 0..60 {
            let (mut packet, _) = partial(false, UDP.0, b"");
            packet.truncate(length);
            complete(&mut packet);
        }
        let mut icmp = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 1, 5, 10, 0, 1, 6, 8, 0, 0, 0];
        let before = icmp.clone();
        complete(&mut icmp);
        assert_eq!(icmp, before);
    }
}
