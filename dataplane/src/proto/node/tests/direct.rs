//! Datagrams beside frames of relays.

use super::*;
use crate::proto::path::direct::{Place, SocketId};

/// A packet with room around it.
fn room(packet: &[u8]) -> Vec<u8> {
    [&[0; DATA_HEADROOM], packet, &[0; TAG_LEN]].concat()
}

/// A pair with UDP sockets whose packets go directly.
fn direct_pair() -> ([Node; 2], [Place; 2]) {
    let mut nodes = pair(at(0));
    let places = [1, 2].map(|n| Place { socket: SocketId(0), remote: ([192, 0, 2, n], 41_641).into() });
    for (node, place) in nodes.iter_mut().zip(places) {
        let endpoints = LocalEndpoints {
            port4: Some(41_641),
            addresses: vec![IpNet::new(place.remote.ip(), 24).unwrap()],
            ..LocalEndpoints::default()
        };
        node.set_endpoints(endpoints, at(0));
    }
    let mut first = room(&packet([10, 0, 0, 1], [10, 0, 0, 2]));
    nodes[0].handle_packet(&mut first, Checksum::Complete, at(0));
    for ms in 0..2_000 {
        for from in 0..2 {
            let mut buffer = Vec::new();
            while let Some(target) = nodes[from].poll_transmit(&mut buffer) {
                let mut bytes = std::mem::take(&mut buffer);
                match target {
                    Target::Relay { relay, .. } => {
                        let frames: Vec<_> =
                            Frames::new(&bytes).map(|frame| frame.unwrap().bytes.to_vec()).collect();
                        for mut frame in frames.into_iter().filter(|frame| frame[1] & 0xf0 == 0x10) {
                            nodes[1 - from].handle_relay_frame(relay, &mut frame, at(ms));
                        }
                    }
                    Target::Direct(place) => {
                        assert_eq!(place, places[1 - from]);
                        nodes[1 - from].handle_datagram(places[from], &mut bytes, at(ms));
                    }
                }
            }
        }
        for node in &mut nodes {
            node.handle_timeout(at(ms));
        }
    }
    (nodes, places)
}

#[test]
fn a_frame_that_comes_by_relay_and_directly_is_delivered_once() {
    let (mut nodes, places) = direct_pair();
    assert_eq!(nodes[0].status(at(2_000).instant).peers[0].direct, Some(places[1].remote));
    for directly_first in [true, false] {
        let mut frame = room(&packet([10, 0, 0, 1], [10, 0, 0, 2]));
        let outgoing = nodes[0].handle_packet(&mut frame, Checksum::Complete, at(2_000));
        assert!(
            matches!(outgoing, Outgoing::Send { target: Target::Direct(place), .. } if place == places[1])
        );
        let mut taken = 0;
        for directly in [directly_first, !directly_first] {
            let mut copy = frame.clone();
            let received = if directly {
                nodes[1].handle_datagram(places[0], &mut copy, at(2_000))
            } else {
                nodes[1].handle_relay_frame(ONE, &mut copy, at(2_000))
            };
            taken += usize::from(matches!(received, Received::Packet { .. }));
        }
        assert_eq!(taken, 1);
    }
    assert_eq!(nodes[1].drops().of(DropReason::Replayed), 2);
}

#[test]
fn garbage_from_strangers_costs_no_answer_and_no_handshake() {
    let (mut nodes, _) = direct_pair();
    let stranger = Place { socket: SocketId(0), remote: ([6, 6, 6, 6], 666).into() };
    frames_of_any(&mut nodes[1]);
    let mut garbage: Vec<Vec<u8>> =
        vec![vec![], vec![0], vec![0xFF; 1400], b"\x01\x10\x00\x00\x04abcd".to_vec()];
    // A DATA frame, a handshake and a relay's message in another's name.
    for kind in [0x10, 0x11, 0x12, 0x02, 0xFF] {
        let mut frame = vec![1, kind, 0, 0, 120, 0, 0, 0, 1, 0, 0, 0, 2];
        frame.resize(125, 7);
        garbage.push(frame);
    }
    for mut datagram in garbage {
        let received = nodes[1].handle_datagram(stranger, &mut datagram, at(2_000));
        assert!(matches!(received, Received::Dropped(_)), "{received:?}");
        assert_eq!(frames_of_any(&mut nodes[1]), 0);
    }
    assert_eq!(
        events(&mut nodes[1]).iter().filter(|event| matches!(event, Event::DropRelay { .. })).count(),
        0
    );
}

/// How many outputs wait; they are thrown away.
fn frames_of_any(node: &mut Node) -> usize {
    std::iter::from_fn(|| node.poll_transmit(&mut Vec::new())).count()
}

#[test]
fn a_datagram_of_ours_that_was_routed_into_the_mesh_goes_nowhere() {
    let (mut nodes, _) = direct_pair();
    let mut udp = packet([10, 0, 0, 1], [10, 0, 0, 2]);
    udp[9] = 17;
    udp.truncate(20);
    for (port, own) in [(41_641u16, true), (41_642, false)] {
        let mut datagram = udp.clone();
        datagram.extend_from_slice(&port.to_be_bytes());
        datagram.extend_from_slice(&[0, 53, 0, 8, 0, 0]);
        let length = (datagram.len() as u16).to_be_bytes();
        datagram[2..4].copy_from_slice(&length);
        let outgoing = nodes[0].handle_packet(&mut room(&datagram), Checksum::Complete, at(2_000));
        assert_eq!(outgoing == Outgoing::Dropped(DropReason::OwnDatagram), own, "{outgoing:?}");
    }
}
