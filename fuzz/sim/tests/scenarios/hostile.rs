//! Relays and controllers that are not to be trusted.

use std::cell::RefCell;
use std::rc::Rc;

use edgelink_sim::machine::Machine;
use edgelink_sim::{World, run};
use meshdp::proto::crypto::keys::MachineKey;
use meshdp::proto::drop_reason::DropReason;
use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::node::{Event, Untrusted};
use meshdp::proto::wire::control::node::{Change, ConfigUpdate, Peer};

use crate::{all_pairs, mesh, ms, secs};

/// Tells machine 0 a changed story about node `about`.
fn tell(world: &mut World, own: NodeId, about: NodeId, change: impl Fn(&mut Peer)) {
    let mut peer = world.controller.peer(own, about).unwrap();
    change(&mut peer);
    let changes = vec![Change::PeerSet { node_id: own, peer: Box::new(peer) }];
    let now = world.now;
    let node = world.machines[0].node.as_mut().unwrap();
    let version = node.version();
    node.apply_update(ConfigUpdate { version, base: version, changes }, now).unwrap();
    world.drain_machine(0);
}

fn untrusted(world: &World) -> Vec<Untrusted> {
    let events = world.machines[0].events.iter();
    events
        .filter_map(|event| match event {
            Event::PeerUntrusted { reason, .. } => Some(*reason),
            _ => None,
        })
        .collect()
}

#[test]
fn a_substituted_node_key_is_refused_and_the_real_one_taken_back() {
    let (mut world, nodes) = mesh(0, 1, 2);
    all_pairs(&mut world, &nodes);
    world.run_for(secs(1));
    world.model.forget();
    // The controller puts in a key of its own, with the old signature.
    let evil = Machine::make_node_key(66, 0).public();
    tell(&mut world, nodes[0], nodes[1], |peer| peer.node_key.as_mut().unwrap().public = evil);
    world.run_for(ms(10));
    let there = world.controller.members[&nodes[1]].addresses[0];
    world.send_to(nodes[0], there, None, 1);
    world.run_for(secs(2));
    assert_eq!(untrusted(&world), [Untrusted::NodeKeySignature]);
    assert_eq!(world.drops(0, DropReason::UntrustedKey), 1);
    tell(&mut world, nodes[0], nodes[1], |_| {});
    world.send(nodes[0], nodes[1], false);
    world.run_for(secs(2));
    assert_eq!(world.model.counts(), (1, 1));
}

#[test]
fn another_machine_key_for_a_known_node_is_refused_even_after_a_restart() {
    let (mut world, nodes) = mesh(0, 1, 2);
    world.stop(0);
    world.start(0);
    world.run_for(secs(3));
    // Key and signature fit each other, but not what was pinned.
    let machine = MachineKey::from_seed(&[66; 32]).unwrap();
    let key = machine.sign_node_key(&Machine::make_node_key(66, 0), 1_770_000_100);
    let evil = |peer: &mut Peer| {
        peer.machine_key = machine.public();
        peer.node_key = Some(key.clone());
    };
    tell(&mut world, nodes[0], nodes[1], evil);
    assert_eq!(untrusted(&world), [Untrusted::MachineKeyChanged]);
    let there = world.controller.members[&nodes[1]].addresses[1];
    world.send_to(nodes[0], there, None, 1);
    assert_eq!(world.drops(0, DropReason::UntrustedKey), 1);
}

#[test]
fn an_older_node_key_never_comes_back() {
    let (mut world, nodes) = mesh(0, 1, 2);
    let old = world.controller.members[&nodes[1]].node_key.clone();
    world.run_for(secs(10));
    world.rotate(1);
    world.run_for(secs(1));
    tell(&mut world, nodes[0], nodes[1], |peer| peer.node_key = Some(old.clone()));
    world.run_for(secs(301));
    world.send(nodes[0], nodes[1], false);
    world.run_for(secs(2));
    assert_eq!(world.model.counts(), (1, 1), "the handshake was made with the newer key");
}

#[test]
fn replayed_and_late_frames_are_dropped_and_counted() {
    let (mut world, nodes) = mesh(0, 1, 2);
    let recorded: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
    let tape = Rc::clone(&recorded);
    world.tap = Some(Box::new(move |frame: &mut Vec<u8>| tape.borrow_mut().push(frame.clone())));
    world.send(nodes[0], nodes[1], false);
    world.run_for(secs(1));
    for _ in 0..2_100 {
        world.send(nodes[0], nodes[1], false);
    }
    world.run_for(secs(1));
    world.tap = None;
    assert_eq!(world.model.lost(), 0);
    let to_peer = |frame: &&Vec<u8>| frame[9..13] == nodes[1].0.to_be_bytes();
    let frames: Vec<_> = recorded.borrow().iter().filter(to_peer).cloned().collect();
    let inits: Vec<_> = frames.iter().filter(|frame| frame[1] == 0x11).cloned().collect();
    let data: Vec<_> = frames.iter().filter(|frame| frame[1] == 0x10).cloned().collect();
    world.inject(1, RelayId(1), data.last().unwrap().clone());
    assert_eq!(world.drops(1, DropReason::Replayed), 1);
    world.inject(1, RelayId(1), data[0].clone());
    assert_eq!(world.drops(1, DropReason::TooOld), 1);
    world.inject(1, RelayId(1), inits[0].clone());
    assert_eq!(world.drops(1, DropReason::HandshakeReplayed), 1);
    let mut forged = data.last().unwrap().clone();
    *forged.last_mut().unwrap() ^= 1;
    forged[24] ^= 0x40;
    world.inject(1, RelayId(1), forged);
    assert_eq!(world.drops(1, DropReason::BadTag), 1);
    world.send(nodes[0], nodes[1], false);
    world.run_for(secs(1));
    assert_eq!(world.model.lost(), 0, "none of it disturbs the session");
}

#[test]
fn a_flood_of_handshakes_is_cut_short() {
    let (mut world, nodes) = mesh(0, 1, 2);
    let recorded: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
    let tape = Rc::clone(&recorded);
    world.tap = Some(Box::new(move |frame: &mut Vec<u8>| tape.borrow_mut().push(frame.clone())));
    world.send(nodes[0], nodes[1], false);
    world.run_for(secs(1));
    world.tap = None;
    let init = recorded.borrow().iter().find(|frame| frame[1] == 0x11).cloned().unwrap();
    for _ in 0..1000 {
        world.inject(1, RelayId(1), init.clone());
    }
    assert!(world.drops(1, DropReason::HandshakeReplayed) <= 10);
    assert!(world.drops(1, DropReason::HandshakeRate) >= 990);
}

#[test]
fn a_source_address_that_is_not_the_senders_is_dropped_and_counted() {
    let (mut world, nodes) = mesh(0, 1, 3);
    let to = world.controller.members[&nodes[1]].addresses;
    let other = world.controller.members[&nodes[2]].addresses;
    world.send(nodes[0], nodes[1], false);
    world.run_for(secs(1));
    world.send_as(nodes[0], other[0], to[0], None, 1);
    world.send_as(nodes[0], "203.0.113.9".parse().unwrap(), to[0], None, 1);
    world.send_as(nodes[0], other[1], to[1], None, 1);
    world.run_for(secs(1));
    assert_eq!(world.drops(1, DropReason::SourceAddress), 3);
    assert_eq!(world.model.counts(), (1, 1));
}

#[test]
fn any_frames_from_a_relay_are_survived() {
    run(20, |seed| {
        let (mut world, nodes) = mesh(seed, 2, 2);
        all_pairs(&mut world, &nodes);
        world.run_for(secs(1));
        for _ in 0..300 {
            let mut bytes = vec![0; (world.random() % 200) as usize + 5];
            for byte in &mut bytes {
                *byte = world.random() as u8;
            }
            let kinds = [0x01, 0x02, 0x10, 0x11, 0x12, 0x14, 0x20, 0x21, 0x23, 0xff, 0x03];
            let length = (bytes.len() as u16 - 5).to_be_bytes();
            bytes[..5].copy_from_slice(&[
                1,
                kinds[world.random() as usize % kinds.len()],
                0,
                length[0],
                length[1],
            ]);
            if bytes.len() > 13 {
                bytes[5..9].copy_from_slice(&nodes[1].0.to_be_bytes());
                bytes[9..13].copy_from_slice(&nodes[0].0.to_be_bytes());
            }
            let relay = RelayId((world.random() % 2) as u16 + 1);
            world.inject(0, relay, bytes);
        }
        world.run_for(secs(60));
        world.model.forget();
        all_pairs(&mut world, &nodes);
        world.run_for(secs(5));
        assert_eq!(world.model.lost(), 0);
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let story = || {
        let (mut world, nodes) = mesh(77, 2, 3);
        world.set_quality(edgelink_sim::Quality {
            delay: ms(20),
            loss: 0.1,
            duplication: 0.1,
            jitter: ms(30),
        });
        for _ in 0..50 {
            all_pairs(&mut world, &nodes);
            world.run_for(ms(40));
        }
        (world.model.counts(), world.random())
    };
    assert_eq!(story(), story());
}
