//! IP packets with a number in them.

use std::net::IpAddr;

/// UDP from `source` to `destination` with `id` and `padding` zeros. The checksum is not filled in: nothing in between looks at it.
///
/// # Panics
/// When the families differ: a fault of the scenario.
pub fn udp(source: IpAddr, destination: IpAddr, ports: (u16, u16), id: u64, padding: usize) -> Vec<u8> {
    let length = 8 + 8 + padding;
    let mut packet = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut head = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
            head[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
            head.extend_from_slice(&from.octets());
            head.extend_from_slice(&to.octets());
            head
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut head = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
            head[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            head.extend_from_slice(&from.octets());
            head.extend_from_slice(&to.octets());
            head
        }
        _ => panic!("a packet from {source} to {destination}"),
    };
    packet.extend_from_slice(&ports.0.to_be_bytes());
    packet.extend_from_slice(&ports.1.to_be_bytes());
    packet.extend_from_slice(&(length as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(&id.to_be_bytes());
    packet.resize(packet.len() + padding, 0);
    packet
}

/// The number in a packet of [`udp`].
pub fn id(packet: &[u8]) -> Option<u64> {
    let at = match packet.first()? >> 4 {
        4 => 28,
        6 => 48,
        _ => return None,
    };
    packet.get(at..at + 8).and_then(|id| id.try_into().ok()).map(u64::from_be_bytes)
}
