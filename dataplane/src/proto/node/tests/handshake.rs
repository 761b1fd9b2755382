//! Handshakes from those who mean harm, and what nodes make of post-quantum keys.

use super::*;

/// Two nodes on two relays.
fn pair_on_two() -> [Node; 2] {
    let mut nodes = pair(at(0));
    for (node, own) in nodes.iter_mut().zip([1, 2]) {
        connect(node, own, TWO, at(0));
        frames(node);
        events(node);
    }
    nodes
}

/// The SESSION_INIT of the first node, not delivered.
fn init(nodes: &mut [Node; 2], now: Now) -> Vec<u8> {
    send(&mut nodes[0], &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, now);
    let mut waiting = frames(&mut nodes[0]).into_iter();
    waiting.find(|(_, frame)| frame[1] == FrameType::SessionInit as u8).unwrap().1
}

#[test]
fn what_a_relay_makes_up_is_cut_short_and_costs_nobody_elses_handshake() {
    let mut nodes = pair_on_two();
    let real = init(&mut nodes, at(1));
    for n in 0..1000_u32 {
        let mut forged = real.clone();
        *forged.last_mut().unwrap() ^= (n % 255) as u8 + 1;
        nodes[1].handle_relay_frame(ONE, &mut forged, at(1));
    }
    let drops = nodes[1].drops();
    assert_eq!((drops.of(DropReason::BadHandshake), drops.of(DropReason::HandshakeRate)), (10, 990));
    assert_eq!(
        nodes[1].handle_relay_frame(ONE, &mut real.clone(), at(1)),
        Received::Dropped(DropReason::HandshakeRate)
    );
    assert_eq!(nodes[1].handle_relay_frame(TWO, &mut real.clone(), at(1)), Received::Consumed);
    for (relay, mut frame) in frames(&mut nodes[1]) {
        assert_eq!(relay, TWO, "the answer takes the same way");
        nodes[0].handle_relay_frame(relay, &mut frame, at(2));
    }
    assert_eq!(nodes[0].status(at(2).instant).peers[0].session, "established");
}

#[test]
fn what_names_no_key_of_ours_or_theirs_costs_look_ups_and_no_ones_budget() {
    let mut nodes = pair(at(0));
    let real = init(&mut nodes, at(1));
    // Ids of keys are at 18 and 22: sender's and receiver's.
    for (at_byte, reason) in [(18, DropReason::UntrustedKey), (22, DropReason::BadHandshake)] {
        for _ in 0..100 {
            let mut forged = real.clone();
            forged[at_byte] ^= 1;
            assert_eq!(nodes[1].handle_relay_frame(ONE, &mut forged, at(1)), Received::Dropped(reason));
        }
    }
    assert_eq!(nodes[1].handle_relay_frame(ONE, &mut real.clone(), at(1)), Received::Consumed);
}

#[test]
fn a_relay_has_a_limit_in_all_whatever_names_it_uses() {
    let peers: Vec<u8> = (2..102).collect();
    let mut hub = node(1);
    hub.apply_config(config(1, &peers), at(0));
    connect(&mut hub, 1, ONE, at(0));
    connect(&mut hub, 1, TWO, at(0));
    let mut floods = Vec::new();
    for n in &peers {
        let mut other = node(*n);
        other.apply_config(config(*n, &[1]), at(0));
        connect(&mut other, *n, ONE, at(0));
        frames(&mut other);
        send(&mut other, &packet([10, 0, 0, *n], [10, 0, 0, 1]), Checksum::Complete, at(0));
        floods.extend(frames(&mut other).into_iter().map(|(_, frame)| frame));
    }
    let (mut looked_at, real) = (0, floods[0].clone());
    for _ in 0..10 {
        for frame in &floods {
            let mut forged = frame.clone();
            *forged.last_mut().unwrap() ^= 1;
            let received = hub.handle_relay_frame(ONE, &mut forged, at(1));
            looked_at += u32::from(received == Received::Dropped(DropReason::BadHandshake));
        }
    }
    assert_eq!(looked_at, 512);
    assert_eq!(hub.handle_relay_frame(TWO, &mut real.clone(), at(1)), Received::Consumed);
}

#[test]
fn forged_answers_are_cut_short_too() {
    let mut nodes = pair_on_two();
    let mut real = init(&mut nodes, at(1));
    nodes[1].handle_relay_frame(TWO, &mut real, at(1));
    let answer = frames(&mut nodes[1]).remove(0).1;
    for _ in 0..100 {
        let mut forged = answer.clone();
        *forged.last_mut().unwrap() ^= 1;
        nodes[0].handle_relay_frame(ONE, &mut forged, at(1));
    }
    let drops = nodes[0].drops();
    assert_eq!((drops.of(DropReason::BadHandshake), drops.of(DropReason::HandshakeRate)), (10, 90));
    assert_eq!(nodes[0].handle_relay_frame(TWO, &mut answer.clone(), at(2)), Received::Consumed);
    assert_eq!(nodes[0].status(at(2).instant).peers[0].session, "established");
}

#[test]
fn a_peer_whose_record_lost_its_post_quantum_key_is_refused_though_its_machine_signed_it() {
    let mut node = node(1);
    let mut configured = config(1, &[2]);
    let plain = NodeKey::from_private([2; 32]).unwrap();
    configured.memberships[0].peers[0].node_key = Some(machine(2).sign_node_key(&plain, 2));
    node.apply_config(configured, at(0));
    let refused = Event::PeerUntrusted { peer: NodeId(2), reason: Untrusted::PostQuantumKey };
    assert!(events(&mut node).contains(&refused));
    assert_eq!(node.status(at(0).instant).peers[0].session, "untrusted");
    assert!(matches!(
        send(&mut node, &packet([10, 0, 0, 1], [10, 0, 0, 2]), Checksum::Complete, at(1)).0,
        Outgoing::Dropped(DropReason::UntrustedKey)
    ));
    node.apply_config(config(1, &[2]), at(2));
    assert_eq!(node.status(at(2).instant).peers[0].session, "none", "with the key it is welcome");
}
