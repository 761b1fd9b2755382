//! What a TUN queue gives, taken apart, and packets of peers, put together and taken apart again. Input: kind (1), then
//! - 0: one read of the queue: virtio-net header (10) ‖ packet;
//! - otherwise packets: length (2, little-endian) ‖ partial checksum? (1) ‖ bytes, the last as long as there are bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshdp::packet::offload::fuzzing::{round_trip, segment};
use meshdp::proto::node::Checksum;

/// A flow fills its group with these.
const MAX_PACKETS: usize = 200;

fuzz_target!(|input: &[u8]| {
    let Some((kind, mut rest)) = input.split_first() else { return };
    if *kind == 0 {
        return segment(rest);
    }
    let mut packets = Vec::new();
    while let [l0, l1, partial, bytes @ ..] = rest
        && packets.len() < MAX_PACKETS
    {
        let length = usize::from(u16::from_le_bytes([*l0, *l1])).min(bytes.len());
        let (packet, tail) = bytes.split_at(length);
        let checksum = if partial & 1 == 0 { Checksum::Complete } else { Checksum::Partial };
        packets.push((packet.to_vec(), checksum));
        rest = tail;
    }
    round_trip(&packets);
});
