//! What must hold for any bytes, for the property tests and the fuzz target `offload`. Checksums are made here once more, the slow way.

use std::collections::BTreeMap;

use super::headers::{Layout, Transport};
use super::{Coalescer, Fill, Format, MAX_SEGMENTS, MAX_SUPER, Write, complete};
use crate::proto::node::Checksum;

/// A queue with everything.
pub const FORMAT: Format = Format::Vnet { uso: true };

/// Takes apart what one read of a queue might have given.
pub fn segment(read: &[u8]) {
    let Ok(whole) = FORMAT.read(read) else { return };
    let packet = &read[FORMAT.header_len()..];
    let mut payload = Vec::new();
    for fill in [Fill::Complete, Fill::Partial] {
        payload.clear();
        for index in 0..whole.count() {
            let mut written = vec![0xA5; whole.len_of(index)];
            assert!(written.len() <= whole.len_of(0), "the first is the longest");
            let checksum = whole.write(index, fill, &mut written);
            assert!(fill == Fill::Partial || checksum == Checksum::Complete);
            if whole.count() == 1 {
                continue;
            }
            let layout = Layout::of(&written).expect("it has headers");
            assert_eq!(layout.total, written.len(), "its length is its own");
            payload.extend_from_slice(&written[layout.payload..]);
            if checksum == Checksum::Partial {
                complete(&mut written);
            }
            assert_eq!(transport_sum(&written, &layout), 0xFFFF, "its checksum is right");
        }
        if whole.count() > 1 {
            let layout = Layout::of(packet).expect("it was cut");
            assert_eq!(payload, packet[layout.payload..], "nothing is lost");
        }
    }
}

/// Puts packets together and takes them apart again: each flow's come out as they went in. Says how many writes it took.
pub fn round_trip(packets: &[(Vec<u8>, Checksum)]) -> usize {
    let mut coalescer = Coalescer::new(FORMAT);
    let (mut writes, mut before, mut after) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (packet, checksum) in packets {
        let mut packet = packet.clone();
        let mut checksum = *checksum;
        if checksum == Checksum::Partial && !make_partial(&mut packet) {
            checksum = Checksum::Complete;
        }
        coalescer.push(&mut packet, checksum, |write| writes.push(write.to_vec()));
        let mut complete_packet = packet;
        if checksum == Checksum::Partial {
            complete(&mut complete_packet);
        }
        note(&mut before, complete_packet);
    }
    coalescer.flush(|write| writes.push(write.to_vec()));
    assert!(coalescer.is_empty());
    for (write, count) in &writes {
        let whole = FORMAT.read(write).expect("it is well formed");
        assert_eq!(whole.count(), *count);
        assert!(
            whole.count() <= MAX_SEGMENTS
                && (write.len() <= MAX_SUPER + FORMAT.header_len() || whole.count() == 1)
        );
        for index in 0..whole.count() {
            let mut packet = vec![0; whole.len_of(index)];
            whole.write(index, Fill::Complete, &mut packet);
            note(&mut after, packet);
        }
    }
    assert_eq!(before, after);
    writes.len()
}

impl Write<'_> {
    /// What the queue is given, and how many packets that is.
    pub(super) fn to_vec(self) -> (Vec<u8>, usize) {
        ([self.header, self.packet].concat(), self.count)
    }
}

/// Puts a packet to its flow's, without what may change on the way: the identification of a packet that is never fragmented, and which of its two forms a
/// checksum of zero has.
fn note(flows: &mut BTreeMap<Vec<u8>, Vec<Vec<u8>>>, mut packet: Vec<u8>) {
    let mut flow = Vec::new();
    if let Ok(layout) = Layout::of(&packet) {
        let addresses = if layout.v6 { 8..40 } else { 12..20 };
        flow.extend_from_slice(&packet[addresses]);
        flow.extend_from_slice(&packet[layout.transport..layout.transport + 4]);
        flow.push(u8::from(layout.protocol == Transport::Tcp));
        let field = layout.checksum_field();
        if transport_sum(&packet, &layout) == 0xFFFF && packet[field..field + 2] == [0xFF, 0xFF] {
            packet[field..field + 2].fill(0);
        }
        let right = !layout.v6 && naive(&packet[..layout.transport]) == 0xFFFF;
        if right && packet[6] & 0x40 != 0 {
            packet[4..6].fill(0);
        }
        if right {
            packet[10..12].fill(0);
        }
    }
    flows.entry(flow).or_default().push(packet);
}

/// Leaves the checksum to be completed, as a kernel would. `false`: nobody would here.
fn make_partial(packet: &mut [u8]) -> bool {
    let Ok(layout) = Layout::of(packet) else { return false };
    if !layout.is_direct() || layout.total != packet.len() {
        return false;
    }
    let field = layout.checksum_field();
    let sum = naive(&pseudo_header(packet, &layout));
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

fn pseudo_header(packet: &[u8], layout: &Layout) -> Vec<u8> {
    let addresses = if layout.v6 { 8..40 } else { 12..20 };
    let protocol = if layout.protocol == Transport::Tcp { 6 } else { 17 };
    let length = ((layout.total - layout.transport) as u32).to_be_bytes();
    [&packet[addresses], &length, &[0, 0, 0, protocol]].concat()
}

/// The sum of a transport's pseudo header, header and payload: 0xFFFF when its checksum is right.
fn transport_sum(packet: &[u8], layout: &Layout) -> u16 {
    naive(&[&pseudo_header(packet, layout)[..], &packet[layout.transport..layout.total]].concat())
}

/// The one's complement sum, word by word.
pub(super) fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}
