//! Direct paths through every sort of NAT: found where they can be, left in time, without a packet twice.

use std::net::SocketAddr;
use std::time::Duration;

use edgelink_sim::nat::{NatKind, PortChoice};
use edgelink_sim::{Quality, World, run};
use meshdp::proto::id::NodeId;
use meshdp::proto::node::Event;
use meshdp::proto::path::candidate::Kind;
use meshdp::proto::path::nat::matrix::{Expectation, expectation};
use meshdp::proto::path::nat::{Filtering, Mapping, NatBehaviour};

use crate::{ms, secs};

/// Two machines behind NATs (`None`: in the open), two relays with a STUN server each.
pub(crate) fn pair(seed: u64, kinds: [Option<NatKind>; 2], quality: Quality) -> (World, Vec<NodeId>) {
    let mut world = World::new(seed);
    world.udp_quality = quality;
    for _ in 0..2 {
        world.add_relay();
        world.add_stun_server();
    }
    let network = world.controller.add_network(1);
    let mut nodes = Vec::new();
    for (number, kind) in kinds.into_iter().enumerate() {
        let machine = world.add_machine(number == 0, Vec::new());
        let nat = kind.map(|kind| world.add_nat(kind));
        world.place(machine, nat, number as u8 + 10);
        nodes.push(world.join(machine, network));
    }
    world.start_all();
    (world, nodes)
}

/// The address that a machine sends to, when that is direct.
fn direct(world: &World, machine: usize) -> Option<SocketAddr> {
    world.machines[machine].node().status(world.now.instant).peers[0].direct
}

fn both_direct(world: &World) -> bool {
    (0..2).all(|machine| direct(world, machine).is_some())
}

/// Sends both ways every 10 ms.
fn talk(world: &mut World, nodes: &[NodeId], time: Duration) {
    for _ in 0..time.as_millis() / 10 {
        world.send(nodes[0], nodes[1], false);
        world.send(nodes[1], nodes[0], false);
        world.run_for(ms(10));
    }
}

/// Talks until both ends are direct; how long that took.
fn until_direct(world: &mut World, nodes: &[NodeId], limit: Duration) -> Option<Duration> {
    let begin = world.now.instant;
    while world.now.instant.saturating_since(begin) < limit {
        if both_direct(world) {
            return Some(world.now.instant.saturating_since(begin));
        }
        talk(world, nodes, ms(10));
    }
    both_direct(world).then_some(limit)
}

/// What a node has found out about its NAT.
fn found(world: &World, machine: usize) -> NatBehaviour {
    world.machines[machine].node().reachability().0
}

/// Every NAT of the matrix: ports at random, counting up and down, keeping.
fn kinds() -> Vec<NatKind> {
    let mut kinds: Vec<_> = (0..4).map(|class| NatKind::of_class(class, None)).collect();
    kinds.extend([1, -1, 2].map(|step| NatKind::of_class(3, Some(step))));
    kinds
}

#[test]
fn every_pair_of_the_matrix_gets_the_best_path_that_is_possible() {
    let kinds = kinds();
    let pairs = (kinds.len() * kinds.len()) as u64;
    // Each pair four times.
    run(pairs * 4, |seed| {
        let [one, other] =
            [seed % pairs / kinds.len() as u64, seed % kinds.len() as u64].map(|n| kinds[n as usize]);
        let quality = match seed / pairs % 4 {
            0 => Quality::clean(ms(5)),
            1 => Quality { jitter: ms(20), ..Quality::clean(ms(30)) },
            2 => Quality { loss: 0.05, duplication: 0.05, jitter: ms(10), delay: ms(10) },
            _ => Quality { loss: 0.02, duplication: 0.2, jitter: ms(40), delay: ms(60) },
        };
        let (mut world, nodes) = pair(seed, [Some(one), Some(other)], quality);
        // The NATs are known by now.
        world.run_for(secs(15));
        if quality.loss == 0.0 {
            assert_eq!([0, 1].map(|machine| found(&world, machine)), [one, other].map(|nat| nat.behaviour()));
        }
        let expected = expectation(&one.behaviour(), &other.behaviour());
        let limit = if expected == Expectation::Direct { secs(22) } else { secs(8) };
        let took = until_direct(&mut world, &nodes, limit);
        if expected == Expectation::Direct {
            let took = took.unwrap_or_else(|| panic!("{one:?} and {other:?} stay on the relay"));
            assert!(quality.loss > 0.0 || took <= secs(1), "{one:?} and {other:?} took {took:?}");
        }
        world.run_for(secs(1));
        // Nothing was lost on the way up, where links lose nothing; the model has seen that nothing came twice.
        if quality.loss == 0.0 {
            assert_eq!(world.model.lost(), 0, "{one:?} and {other:?}");
        }
        assert!(world.model.loss() < 0.15);
    });
}

#[test]
fn a_path_is_up_within_half_a_second_of_the_first_packet() {
    let mut times = Vec::new();
    for seed in 0..21 {
        let kinds = [Some(NatKind::of_class(2, None)); 2];
        let (mut world, nodes) = pair(seed, kinds, Quality::clean(ms(10 + seed)));
        world.run_for(secs(10));
        times.push(until_direct(&mut world, &nodes, secs(5)).expect("two port-restricted NATs are easy"));
    }
    times.sort();
    assert!(times[10] <= ms(500), "{times:?}");
}
