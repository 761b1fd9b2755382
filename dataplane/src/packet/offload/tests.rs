//! Super-packets of every kind, and what must never become one.

use proptest::prelude::*;

use super::checksum::{Sum, complete_at};
use super::fuzzing::{self, FORMAT, naive, round_trip};
use super::headers::Transport;
use super::vnet::{Gso, GsoKind, PartialChecksum};
use super::*;
use crate::proto::node::Checksum;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;
const ECE: u8 = 0x40;

/// A packet to be, with a right checksum.
#[derive(Clone, Debug)]
struct Draft {
    v6: bool,
    tcp: bool,
    port: u16,
    sequence: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    traffic_class: u8,
    hops: u8,
    identification: u16,
    dont_fragment: bool,
    payload: Vec<u8>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            v6: false,
            tcp: true,
            port: 4000,
            sequence: 7,
            flags: ACK,
            window: 500,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            traffic_class: 0,
            hops: 64,
            identification: 99,
            dont_fragment: true,
            payload: Vec::new(),
        }
    }
}

impl Draft {
    fn transport(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn headers(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    fn build(&self) -> Vec<u8> {
        let length = self.headers() - self.transport() + self.payload.len();
        let protocol = if self.tcp { 6 } else { 17 };
        let mut packet = if self.v6 {
            let class = self.traffic_class;
            let mut head = vec![0x60 | class >> 4, class << 4, 0, 5];
            head.extend_from_slice(&(length as u16).to_be_bytes());
            head.extend_from_slice(&[protocol, self.hops]);
            head.extend((0..32).map(|n| n * 7));
            head
        } else {
            let mut head = vec![0x45, self.traffic_class];
            head.extend_from_slice(&(length as u16 + 20).to_be_bytes());
            head.extend_from_slice(&self.identification.to_be_bytes());
            head.extend_from_slice(&[u8::from(self.dont_fragment) << 6, 0, self.hops, protocol, 0, 0]);
            head.extend_from_slice(&[10, 0, 1, 5, 10, 0, 1, 6]);
            let sum = !naive(&head);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            head
        };
        let mut pseudo = packet[if self.v6 { 8..40 } else { 12..20 }].to_vec();
        pseudo.extend_from_slice(&[0, protocol]);
        pseudo.extend_from_slice(&(length as u16).to_be_bytes());
        let at = packet.len();
        packet.extend_from_slice(&self.port.to_be_bytes());
        packet.extend_from_slice(&5201u16.to_be_bytes());
        if self.tcp {
            packet.extend_from_slice(&self.sequence.to_be_bytes());
            packet.extend_from_slice(&1234u32.to_be_bytes());
            packet.extend_from_slice(&[((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
            packet.extend_from_slice(&self.window.to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0, 0]);
            packet.extend_from_slice(&self.options);
        } else {
            packet.extend_from_slice(&(length as u16).to_be_bytes());
            packet.extend_from_slice(&[0, 0]);
        }
        packet.extend_from_slice(&self.payload);
        let sum = !naive(&[&pseudo, &packet[at..]].concat());
        let field = at + if self.tcp { 16 } else { 6 };
        let sum = if sum == 0 && !self.tcp { 0xFFFF } else { sum };
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// The same as a kernel hands it over to be cut.
    fn super_packet(&self, size: u16) -> Vec<u8> {
        let mut packet = self.build();
        let (at, offset) = (self.transport(), if self.tcp { 16 } else { 6 });
        let length = packet.len() - at;
        let mut pseudo = packet[if self.v6 { 8..40 } else { 12..20 }].to_vec();
        pseudo.extend_from_slice(&[0, if self.tcp { 6 } else { 17 }]);
        pseudo.extend_from_slice(&(length as u16).to_be_bytes());
        packet[at + offset..at + offset + 2].copy_from_slice(&naive(&pseudo).to_be_bytes());
        let kind = match (self.tcp, self.v6) {
            (true, false) => GsoKind::TcpV4,
            (true, true) => GsoKind::TcpV6,
            (false, _) => GsoKind::Udp,
        };
        let header = VnetHeader {
            checksum: Some(PartialChecksum { start: at as u16, offset: offset as u16 }),
            gso: Some(Gso { kind, size: size.try_into().unwrap(), ecn: self.flags & CWR != 0 }),
            // A lie, as some kernels tell it.
            header_len: 0,
        };
        [&header.to_bytes()[..], &packet].concat()
    }
}

fn segments(read: &[u8], fill: Fill) -> Vec<(Vec<u8>, Checksum)> {
    let whole = FORMAT.read(read).unwrap();
    (0..whole.count())
        .map(|index| {
            let mut packet = vec![0; whole.len_of(index)];
            let checksum = whole.write(index, fill, &mut packet);
            (packet, checksum)
        })
        .collect()
}

fn coalesced(packets: &[(Vec<u8>, Checksum)]) -> Vec<Vec<u8>> {
    let (mut coalescer, mut writes) = (Coalescer::new(FORMAT), Vec::new());
    for (packet, checksum) in packets {
        coalescer.push(&mut packet.clone(), *checksum, |write| writes.push(write.to_vec().0));
    }
    coalescer.flush(|write| writes.push(write.to_vec().0));
    writes
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|n| ((n * 31) >> 3) as u8).collect()
}

#[test]
fn tcp_segments_have_their_own_sequence_flags_and_lengths() {
    for v6 in [false, true] {
        let draft = Draft { v6, flags: ACK | PSH | FIN | CWR, payload: bytes(3000), ..Draft::default() };
        let got = segments(&draft.super_packet(1300), Fill::Complete);
        let part = |n: usize, flags, range: std::ops::Range<usize>| {
            let part = Draft {
                flags,
                sequence: draft.sequence + range.start as u32,
                identification: draft.identification + n as u16,
                payload: draft.payload[range].to_vec(),
                ..draft.clone()
            };
            (part.build(), Checksum::Complete)
        };
        let expected =
            [part(0, ACK | CWR, 0..1300), part(1, ACK, 1300..2600), part(2, ACK | PSH | FIN, 2600..3000)];
        assert_eq!(got, expected, "v6: {v6}");
    }
}

#[test]
fn datagrams_have_their_own_lengths() {
    for v6 in [false, true] {
        let draft = Draft { v6, tcp: false, payload: bytes(2500), ..Draft::default() };
        let got = segments(&draft.super_packet(1200), Fill::Complete);
        assert_eq!(got.len(), 3);
        for (n, ((packet, _), payload)) in got.iter().zip(draft.payload.chunks(1200)).enumerate() {
            let identification = draft.identification + n as u16;
            let expected = Draft { identification, payload: payload.to_vec(), ..draft.clone() };
            assert_eq!(packet, &expected.build());
        }
    }
}

#[test]
fn a_partial_checksum_is_completed_by_whoever_must() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        for length in [1, 2, 999, 4000] {
            let draft = Draft { v6, tcp, payload: bytes(length), ..Draft::default() };
            let (partial, complete_ones) = (
                segments(&draft.super_packet(1000), Fill::Partial),
                segments(&draft.super_packet(1000), Fill::Complete),
            );
            for ((mut packet, checksum), (expected, _)) in partial.into_iter().zip(complete_ones) {
                assert_eq!(checksum, Checksum::Partial);
                complete(&mut packet);
                assert_eq!(packet, expected);
            }
        }
    }
}

#[test]
fn a_packet_that_needs_only_its_checksum_gets_it() {
    let draft = Draft { payload: bytes(77), ..Draft::default() };
    let mut read = draft.super_packet(1000);
    read[1..6].fill(0);
    assert_eq!(segments(&read, Fill::Complete), [(draft.build(), Checksum::Complete)]);
    assert_eq!(segments(&read, Fill::Partial), [(read[VNET_LEN..].to_vec(), Checksum::Partial)]);
    // Not where a receiver would look for it: it has to be complete.
    let mut tunnel = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 47, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    tunnel.extend(bytes(40));
    let header =
        VnetHeader { checksum: Some(PartialChecksum { start: 30, offset: 16 }), ..VnetHeader::default() };
    let got = segments(&[&header.to_bytes()[..], &tunnel].concat(), Fill::Partial);
    let mut expected = tunnel.clone();
    complete_at(&mut expected[30..], 16, Transport::Tcp);
    assert_eq!(got, [(expected, Checksum::Complete)]);
}

#[test]
fn a_packet_without_offloads_goes_as_it_is() {
    let odd = [&[0; VNET_LEN][..], b"no packet at all"].concat();
    assert_eq!(segments(&odd, Fill::Partial), [(b"no packet at all".to_vec(), Checksum::Complete)]);
    let whole = Format::Plain.read(b"anything").unwrap();
    assert_eq!((whole.count(), whole.len_of(0), Format::Plain.header_len()), (1, 8, 0));
}

#[test]
fn what_contradicts_its_header_is_refused() {
    let good = Draft { payload: bytes(3000), ..Draft::default() }.super_packet(1000);
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut read = good.clone();
        change(&mut read);
        FORMAT.read(&read).err()
    };
    assert_eq!(refused(&|_| {}), None);
    let segment = |error| Some(OffloadError::Segment(error));
    assert_eq!(refused(&|read| read[1] = 4), segment(SegmentError::Kind));
    assert_eq!(refused(&|read| read[1] = 5), segment(SegmentError::Kind));
    assert_eq!(refused(&|read| read.push(0)), segment(SegmentError::Trailing));
    assert_eq!(refused(&|read| read.truncate(read.len() - 1)), segment(SegmentError::Headers));
    assert_eq!(refused(&|read| read[6] = 21), segment(SegmentError::ChecksumPlace));
    assert_eq!(refused(&|read| read[8] = 6), segment(SegmentError::ChecksumPlace));
    assert_eq!(refused(&|read| read[10 + 20 + 12] = 0x40), segment(SegmentError::Headers), "data offset");
    assert_eq!(refused(&|read| read[10 + 6] = 0x20), segment(SegmentError::Headers), "a fragment");
    let single = refused(&|read| {
        read[1] = 0;
        read[6..8].copy_from_slice(&3100u16.to_ne_bytes());
    });
    assert_eq!(single, segment(SegmentError::ChecksumPlace));
}

#[test]
fn what_was_cut_is_put_together_again() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        for flags in [ACK, ACK | PSH, ACK | FIN | ECE, ACK | CWR] {
            let draft = Draft { v6, tcp, flags, payload: bytes(50_500), ..Draft::default() };
            let before = draft.super_packet(1000);
            for fill in [Fill::Partial, Fill::Complete] {
                let writes = coalesced(&segments(&before, fill));
                assert_eq!(writes.len(), 1, "v6 {v6}, tcp {tcp}, flags {flags:#x}, {fill:?}");
                // But for the length of the headers, which is right now.
                let mut expected = before.clone();
                expected[2..4].copy_from_slice(&(draft.headers() as u16).to_ne_bytes());
                expected[1] &= if tcp { 0xFF } else { 0x7F };
                assert!(writes[0] == expected);
            }
        }
    }
}

#[test]
fn flows_are_put_together_beside_each_other() {
    let mut packets = Vec::new();
    let flows: Vec<Vec<_>> = (0..6)
        .map(|port| {
            let draft = Draft { port, v6: port % 2 == 0, payload: bytes(20_000), ..Draft::default() };
            segments(&draft.super_packet(1000), Fill::Partial)
        })
        .collect();
    for n in 0..20 {
        packets.extend(flows.iter().map(|flow| flow[n].clone()));
    }
    assert_eq!(coalesced(&packets).len(), 6);
    assert_eq!(round_trip(&packets), 6);
}

#[test]
fn more_flows_than_there_is_room_for_lose_nothing() {
    let packets: Vec<_> = (0..400u32)
        .map(|n| {
            let (port, sequence) = ((n % 40) as u16, n / 40 * 100);
            let draft = Draft { port, sequence, payload: bytes(100), ..Draft::default() };
            (draft.build(), Checksum::Complete)
        })
        .collect();
    assert_eq!(round_trip(&packets), 400, "each flow's next packet comes when its group is gone");
}

/// What makes one packet differ from another.
type Change = fn(&mut Draft);

#[test]
fn packets_that_differ_stay_apart() {
    let first = Draft { payload: bytes(1000), ..Draft::default() };
    let second = Draft { sequence: first.sequence + 1000, identification: 100, ..first.clone() };
    let together = |first: Draft, second: Draft| {
        coalesced(&[(first.build(), Checksum::Complete), (second.build(), Checksum::Complete)]).len() == 1
    };
    assert!(together(first.clone(), second.clone()));
    let changes: [(&str, Change); 13] = [
        ("sequence", |d| d.sequence += 1),
        ("window", |d| d.window += 1),
        ("options", |d| d.options[11] ^= 1),
        ("length of options", |d| d.options.truncate(8)),
        ("type of service", |d| d.traffic_class = 4),
        ("congestion experienced", |d| d.traffic_class = 3),
        ("time to live", |d| d.hops -= 1),
        ("don't fragment", |d| d.dont_fragment = false),
        ("flags", |d| d.flags |= ECE),
        ("CWR", |d| d.flags |= CWR),
        ("SYN", |d| d.flags |= 2),
        ("URG", |d| d.flags |= 0x20),
        ("longer", |d| d.payload.push(0)),
    ];
    for (what, change) in changes {
        for v6 in [false, true] {
            let (first, mut second) = (Draft { v6, ..first.clone() }, Draft { v6, ..second.clone() });
            change(&mut second);
            let apart = v6 && what == "don't fragment" || !together(first, second);
            assert!(apart, "{what}, v6 {v6}");
        }
    }
    for flags in [ACK | PSH, ACK | FIN] {
        assert!(!together(Draft { flags, ..first.clone() }, second.clone()), "nothing follows {flags:#x}");
    }
    let loose = |identification| Draft { dont_fragment: false, identification, ..second.clone() };
    let first = Draft { dont_fragment: false, ..first.clone() };
    assert!(together(first.clone(), loose(100)) && !together(first, loose(101)), "identifications count");
}

#[test]
fn a_short_one_ends_its_group() {
    let draft = |sequence, length| {
        (Draft { sequence, payload: bytes(length), ..Draft::default() }.build(), Checksum::Complete)
    };
    let packets = [draft(0, 100), draft(100, 100), draft(200, 50), draft(250, 100), draft(350, 100)];
    assert_eq!(round_trip(&packets), 2);
}

#[test]
fn a_wrong_checksum_is_left_for_the_kernel_to_see() {
    for tcp in [false, true] {
        for wrong in 0..3usize {
            let packets: Vec<_> = (0..3)
                .map(|n| {
                    let sequence = n as u32 * 100;
                    let mut packet = Draft { tcp, sequence, payload: bytes(100), ..Draft::default() }.build();
                    if n == wrong {
                        *packet.last_mut().unwrap() ^= 1;
                    }
                    (packet, Checksum::Complete)
                })
                .collect();
            let writes = coalesced(&packets);
            assert!(writes.iter().any(|write| write[VNET_LEN..] == packets[wrong].0));
            round_trip(&packets);
        }
    }
    let mut header = Draft { payload: bytes(100), ..Draft::default() }.build();
    header[10] ^= 1;
    assert_eq!(coalesced(&[(header.clone(), Checksum::Complete), (header, Checksum::Complete)]).len(), 2);
}

#[test]
fn datagrams_without_checksum_are_never_put_together() {
    let mut packet = Draft { tcp: false, payload: bytes(100), ..Draft::default() }.build();
    packet[26..28].fill(0);
    assert_eq!(
        coalesced(&vec![(packet.clone(), Checksum::Complete); 3]),
        vec![[&[0; 10][..], &packet].concat(); 3]
    );
}

#[test]
fn a_kernel_without_udp_segmentation_gets_single_datagrams() {
    let packet = Draft { tcp: false, payload: bytes(100), ..Draft::default() }.build();
    let (mut coalescer, mut writes) = (Coalescer::new(Format::Vnet { uso: false }), 0);
    for _ in 0..3 {
        coalescer.push(&mut packet.clone(), Checksum::Complete, |_| writes += 1);
    }
    assert!(writes == 3 && coalescer.is_empty());
}

#[test]
fn a_plain_queue_gets_complete_packets_at_once() {
    let draft = Draft { payload: bytes(100), ..Draft::default() };
    let mut partial = draft.super_packet(1000).split_off(VNET_LEN);
    let mut written = Vec::new();
    let mut coalescer = Coalescer::new(Format::Plain);
    coalescer.push(&mut partial, Checksum::Partial, |write| written.push(write.to_vec().0));
    assert_eq!(written, [draft.build()]);
}

#[test]
fn groups_end_at_64_kib_and_at_the_most_segments() {
    let run = |length: usize, count: u32| {
        let packets: Vec<_> = (0..count)
            .map(|n| {
                let sequence = n * length as u32;
                (Draft { sequence, payload: bytes(length), ..Draft::default() }.build(), Checksum::Partial)
            })
            .collect();
        round_trip(&packets)
    };
    assert_eq!(run(1368, 47), 1);
    assert_eq!(run(1368, 48), 2, "52 bytes of headers and 48 x 1368 are more than 65,535");
    assert_eq!(run(100, 64), 1);
    assert_eq!(run(100, 129), 3);
}

#[test]
fn nothing_is_allocated_again_for_a_flow_that_goes_on() {
    let mut coalescer = Coalescer::new(FORMAT);
    let draft = Draft { payload: bytes(1300), ..Draft::default() };
    let mut packet = draft.build();
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..100 {
        coalescer.push(&mut packet, Checksum::Complete, |_| {});
        coalescer.flush(|write| {
            places.insert(write.packet.as_ptr() as usize);
        });
    }
    assert_eq!(places.len(), 1);
}

#[test]
fn cut_packets_have_no_checksum_to_complete() {
    for draft in [Draft::default(), Draft { v6: true, tcp: false, ..Draft::default() }] {
        let packet = draft.build();
        for length in 0..packet.len() {
            let mut cut = packet[..length].to_vec();
            complete(&mut cut);
            assert_eq!(cut, packet[..length]);
        }
    }
    let mut icmp = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 1, 5, 10, 0, 1, 6, 8, 0, 0, 0];
    let before = icmp.clone();
    complete(&mut icmp);
    assert_eq!(icmp, before);
}

/// Packets of three flows, mostly in sequence, sometimes odd.
fn traffic() -> impl Strategy<Value = Vec<(Vec<u8>, Checksum)>> {
    let length = prop_oneof![6 => Just(500usize), 1 => 0usize..1500];
    let flags = prop_oneof![8 => Just(ACK), 1 => Just(ACK | PSH), 1 => any::<u8>()];
    let odd = prop_oneof![12 => Just(None), 1 => any::<(u16, u8)>().prop_map(Some)];
    let packet = (0u16..3, length, flags, any::<bool>(), odd);
    proptest::collection::vec(packet, 0..80).prop_map(|packets| {
        let mut sequences = [u32::MAX - 9000, 5, 9];
        packets
            .into_iter()
            .enumerate()
            .map(|(n, (port, length, flags, partial, odd))| {
                let draft = Draft {
                    v6: port == 1,
                    tcp: port != 2,
                    port,
                    flags,
                    sequence: sequences[usize::from(port)],
                    identification: n as u16,
                    payload: bytes(length),
                    ..Draft::default()
                };
                sequences[usize::from(port)] = draft.sequence.wrapping_add(length as u32);
                let mut packet = draft.build();
                if let Some((at, value)) = odd {
                    let at = usize::from(at) % packet.len();
                    packet[at] ^= value;
                }
                (packet, if partial { Checksum::Partial } else { Checksum::Complete })
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn sums_are_those_of_the_slow_way(bytes in proptest::collection::vec(any::<u8>(), 0..3000), start: u16) {
        let sum = Sum::default().number(start).bytes(&bytes);
        let slow = naive(&[&start.to_be_bytes()[..], &bytes].concat());
        prop_assert_eq!(sum.folded(), slow.to_be_bytes());
    }

    #[test]
    fn any_traffic_comes_out_as_it_went_in(packets in traffic()) {
        round_trip(&packets);
    }

    #[test]
    fn what_was_cut_anywhere_is_whole_again(
        (v6, tcp) in any::<(bool, bool)>(), length in 1usize..60_000, size in 900u16..2000, sequence: u32, identification: u16, partial: bool,
    ) {
        let draft = Draft { v6, tcp, sequence, identification, payload: bytes(length), ..Draft::default() };
        let read = draft.super_packet(size);
        fuzzing::segment(&read);
        let fill = if partial { Fill::Partial } else { Fill::Complete };
        let parts = segments(&read, fill);
        let writes = coalesced(&parts);
        prop_assert_eq!(writes.len(), parts.len().div_ceil(MAX_SEGMENTS));
        let payload: Vec<u8> = writes.iter().flat_map(|write| write[VNET_LEN + draft.headers()..].to_vec()).collect();
        prop_assert!(payload == draft.payload);
    }

    #[test]
    fn any_bytes_are_taken_without_panic(
        header in proptest::collection::vec(any::<u8>(), VNET_LEN), change in proptest::collection::vec(any::<(u16, u8)>(), 0..4),
        (v6, tcp) in any::<(bool, bool)>(), kind in 0u8..6, size in 1u16..600, cut in 0usize..900,
    ) {
        let mut read = Draft { v6, tcp, payload: bytes(800), ..Draft::default() }.super_packet(size);
        if kind < 3 {
            read[..VNET_LEN].copy_from_slice(&header);
        }
        for (at, value) in change {
            let at = usize::from(at) % 90;
            read[at] ^= value;
        }
        read.truncate(read.len().saturating_sub(cut * usize::from(kind % 2)));
        fuzzing::segment(&read);
        let packets = vec![(read.split_off(read.len().min(VNET_LEN)), Checksum::Complete); 3];
        round_trip(&packets);
    }
}
