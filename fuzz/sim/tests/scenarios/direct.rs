//! Direct paths through every sort of NAT: found where they can be, left in time, without a packet twice.

use std::net::SocketAddr;
use std::time::Duration;

use edgelink_sim::nat::{Nat, NatKind, PortChoice};
use edgelink_sim::{Quality, World, run};
use meshdp::proto::id::NodeId;
use meshdp::proto::path::candidate::Kind;
use meshdp::proto::path::nat::NatBehaviour;
use meshdp::proto::path::nat::matrix::{Expectation, expectation};

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

const CONE: NatKind = NatKind::of_class(2, None);

/// A pair that is direct.
fn connected(seed: u64, kinds: [Option<NatKind>; 2], quality: Quality) -> (World, Vec<NodeId>) {
    let (mut world, nodes) = pair(seed, kinds, quality);
    world.run_for(secs(12));
    until_direct(&mut world, &nodes, secs(22)).expect("it can be reached");
    talk(&mut world, &nodes, secs(2));
    (world, nodes)
}

#[test]
fn a_path_that_goes_silent_is_left_within_a_second_and_a_half_and_taken_again() {
    run(20, |seed| {
        let (mut world, nodes) = connected(seed, [Some(CONE); 2], Quality::clean(ms(5 + seed)));
        let jitter = Duration::from_micros(world.random() % 10_000);
        world.run_for(jitter);
        world.internet.cut.insert((0, 1));
        let cut = world.now.instant;
        while (0..2).any(|machine| direct(&world, machine).is_some()) {
            talk(&mut world, &nodes, ms(10));
            assert!(world.now.instant.saturating_since(cut) <= ms(1520), "seed {seed}");
        }
        world.run_for(ms(200));
        world.model.forget();
        talk(&mut world, &nodes, secs(2));
        world.run_for(ms(200));
        assert_eq!(world.model.lost(), 0, "the relay carries everything");
        world.internet.cut.clear();
        until_direct(&mut world, &nodes, secs(60)).expect("it is looked for again");
    });
}

#[test]
fn going_up_and_going_down_by_intent_loses_nothing_of_100_mbit_a_second() {
    run(5, |seed| {
        let quality = Quality { jitter: ms(2), ..Quality::clean(ms(3)) };
        let (mut world, nodes) = pair(seed, [Some(CONE); 2], quality);
        world.run_for(secs(12));
        // 9,000 packets a second, from the first moment of the session on.
        world.send(nodes[0], nodes[1], false);
        world.run_for(ms(50));
        assert_eq!(direct(&world, 0), None);
        let mut went_up = false;
        for _ in 0..6_000 {
            world.send(nodes[0], nodes[1], false);
            world.run_for(Duration::from_micros(111));
            went_up |= direct(&world, 0).is_some();
        }
        assert!(went_up);
        let node = world.machines[0].node.as_mut().unwrap();
        node.set_endpoints(meshdp::proto::node::LocalEndpoints::default(), world.now);
        world.drain_machine(0);
        assert_eq!(direct(&world, 0), None);
        for _ in 0..2_000 {
            world.send(nodes[0], nodes[1], false);
            world.run_for(Duration::from_micros(111));
        }
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
    });
}

#[test]
fn a_machine_that_moves_is_followed_within_a_second() {
    run(20, |seed| {
        let quality =
            Quality { loss: if seed % 2 == 0 { 0.0 } else { 0.03 }, ..Quality::clean(ms(10 + seed)) };
        let (mut world, nodes) = connected(seed, [Some(CONE), Some(NatKind::of_class(0, None))], quality);
        let elsewhere = if seed % 3 == 0 {
            None
        } else {
            Some(world.add_nat(NatKind::of_class(seed as usize % 3, None)))
        };
        world.place(0, elsewhere, 77);
        let outer = elsewhere.map_or([192, 0, 2, 77].into(), |nat| world.internet.nats[nat].outer);
        let begin = world.now.instant;
        while direct(&world, 1).map(|address| address.ip()) != Some(outer) {
            talk(&mut world, &nodes, ms(10));
            assert!(
                world.now.instant.saturating_since(begin) <= secs(1),
                "seed {seed}: {:?}",
                direct(&world, 1)
            );
        }
        assert!(direct(&world, 0).is_some());
        world.run_for(ms(500));
        world.model.forget();
        talk(&mut world, &nodes, secs(3));
        world.run_for(ms(500));
        assert!(quality.loss > 0.0 || world.model.lost() == 0, "{} lost", world.model.lost());
    });
}

#[test]
fn a_nat_that_gives_another_port_is_followed_though_its_machine_does_not_know() {
    run(20, |seed| {
        // The other end lets in what comes from anywhere: the machine's packets simply come from another address.
        let kinds = [Some(NatKind::of_class(0, None)), Some(NatKind::of_class(0, None))];
        let (mut world, nodes) = connected(seed, kinds, Quality::clean(ms(10)));
        let before = direct(&world, 1);
        world.internet.nats[0].reboot();
        let begin = world.now.instant;
        while direct(&world, 1) == before || direct(&world, 1).is_none() {
            talk(&mut world, &nodes, ms(10));
            assert!(world.now.instant.saturating_since(begin) <= ms(200), "seed {seed}");
        }
        world.run_for(ms(100));
        world.model.forget();
        talk(&mut world, &nodes, secs(3));
        world.run_for(ms(100));
        assert_eq!(world.model.lost(), 0);
        assert!(both_direct(&world));
    });
}

#[test]
fn an_idle_path_outlives_nats_that_forget_and_their_memory_is_learned() {
    for (lifetime, learns) in [(300, false), (90, false), (45, true), (30, true)] {
        let kind = NatKind { lifetime: secs(lifetime), ..CONE };
        let (mut world, nodes) = connected(lifetime, [Some(kind); 2], Quality::clean(ms(10)));
        // An hour with a packet now and then: the path is there when it is wanted, but for the times in which the memory was learned.
        let mut relayed = 0;
        for minute in 0..60 {
            world.run_for(secs(60));
            relayed += u32::from(!both_direct(&world));
            if minute % 10 == 9 {
                talk(&mut world, &nodes, ms(500));
                world.run_for(secs(1));
            }
            if minute == 29 {
                // What was sent while a NAT had forgotten, and nobody knew, is lost; not any more from here on.
                world.model.forget();
            }
        }
        assert!(relayed <= if learns { 3 } else { 0 }, "lifetime {lifetime}: {relayed} minutes on the relay");
        assert!(both_direct(&world));
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
    }
}

#[test]
fn neighbours_use_their_own_network_and_hairpin_where_they_may_not() {
    for (isolated, hairpin, expected) in
        [(false, false, Some(Kind::Lan)), (true, true, Some(Kind::Stun)), (true, false, None)]
    {
        let (mut world, nodes) =
            pair(1, [Some(NatKind { hairpin, ..CONE }), Some(CONE)], Quality::clean(ms(5)));
        world.internet.isolated = isolated;
        world.place(1, Some(0), 11);
        world.run_for(secs(12));
        talk(&mut world, &nodes, secs(3));
        let status = world.machines[0].node().status(world.now.instant);
        // Over the NAT, an answer may have come before the question.
        let kind =
            status.peers[0].direct_kind.map(|kind| if kind == Kind::Observed { Kind::Stun } else { kind });
        assert_eq!(kind, expected, "isolated {isolated}, hairpin {hairpin}");
        world.run_for(ms(200));
        assert_eq!(world.model.lost(), 0);
    }
}

#[test]
fn packets_too_long_for_the_path_take_the_relay_and_a_black_hole_is_noticed() {
    run(5, |seed| {
        let (mut world, nodes) = pair(seed, [Some(CONE); 2], Quality::clean(ms(10)));
        world.internet.mtu = 1300;
        world.run_for(secs(12));
        until_direct(&mut world, &nodes, secs(5)).expect("the base passes");
        // Packets of up to 1,250 bytes: with 41 around them some do not fit.
        talk(&mut world, &nodes, secs(15));
        world.run_for(ms(200));
        assert_eq!(world.model.lost(), 0, "what does not fit goes elsewhere");
        let (mut world, nodes) = connected(seed, [Some(CONE); 2], Quality::clean(ms(10)));
        world.internet.mtu = 1250;
        talk(&mut world, &nodes, secs(16));
        world.run_for(ms(200));
        assert!(world.model.lost() > 0, "long ones are lost at first");
        world.model.forget();
        talk(&mut world, &nodes, secs(20));
        world.run_for(ms(200));
        assert_eq!(world.model.lost(), 0);
        assert!(both_direct(&world));
    });
}

#[test]
fn who_sends_a_copy_from_elsewhere_moves_nothing() {
    use std::cell::RefCell;
    use std::rc::Rc;
    run(5, |seed| {
        let (mut world, nodes) = connected(seed, [Some(CONE); 2], Quality::clean(ms(20)));
        let before = [direct(&world, 0), direct(&world, 1)];
        let caught = Rc::new(RefCell::new(Vec::new()));
        let copies = Rc::clone(&caught);
        world.tap = Some(Box::new(move |bytes| copies.borrow_mut().push(bytes.clone())));
        let stranger: SocketAddr = "6.6.6.6:41641".parse().unwrap();
        for round in 0..200 {
            world.send(nodes[0], nodes[1], false);
            // The copy is there first, from another address; or much later.
            let copies: Vec<_> = caught.borrow_mut().drain(..).collect();
            for copy in copies {
                if round % 2 == 0 {
                    world.inject_datagram(1, stranger, copy);
                } else {
                    world.run_for(ms(30));
                    world.inject_datagram(1, stranger, copy);
                }
            }
            world.inject_datagram(1, stranger, vec![1, 0x10, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 9, 9]);
            world.run_for(ms(10));
        }
        assert_eq!([direct(&world, 0), direct(&world, 1)], before);
        world.tap = None;
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
    });
}

#[test]
fn a_search_among_random_ports_is_bounded_whether_it_wins_or_not() {
    let won = std::cell::Cell::new(0);
    run(6, |seed| {
        let kinds = [Some(NatKind::of_class(3, None)), Some(NatKind::of_class(2, None))];
        let (mut world, nodes) = pair(seed, kinds, Quality::clean(ms(10)));
        world.extra_sockets = 256;
        world.tell_endpoints(0);
        world.tell_endpoints(1);
        world.run_for(secs(12));
        let before = world.datagrams;
        let took = until_direct(&mut world, &nodes, secs(5));
        won.set(won.get() + u32::from(took.is_some()));
        let data = 2 * 500;
        // 256 sockets ask four times a second, and the other end 1,024 ports.
        assert!(world.datagrams - before < 256 * 20 + 1024 + 400 + data, "{}", world.datagrams - before);
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
    });
    println!("{} of the searches won", won.get());
}

#[test]
fn chaos_ends_on_the_best_path_and_never_delivers_twice() {
    run(60, |seed| {
        let kinds = kinds();
        let mut world = World::new(seed);
        let pick = |world: &mut World| kinds[world.random() as usize % kinds.len()];
        let (one, other) = (pick(&mut world), pick(&mut world));
        let (mut world, nodes) = pair(seed, [Some(one), Some(other)], Quality::clean(ms(10)));
        let mut now = [one, other];
        world.run_for(secs(12));
        for _ in 0..8 {
            world.udp_quality = Quality {
                delay: ms(5 + world.random() % 80),
                loss: (world.random() % 20) as f64 / 100.0,
                duplication: (world.random() % 30) as f64 / 100.0,
                jitter: ms(world.random() % 60),
            };
            let machine = world.random() as usize % 2;
            match world.random() % 5 {
                0 => {
                    world.internet.cut.insert((0, 1));
                }
                1 => world.internet.nats.iter_mut().for_each(Nat::reboot),
                2 => {
                    let kind = pick(&mut world);
                    let nat = world.add_nat(kind);
                    now[machine] = kind;
                    let last = 20 + (world.random() % 100) as u8;
                    world.place(machine, Some(nat), last);
                }
                3 => world.internet.cut.clear(),
                _ => {}
            }
            let time = ms(500 + world.random() % 8000);
            talk(&mut world, &nodes, time);
        }
        world.internet.cut.clear();
        world.udp_quality = Quality::clean(ms(10));
        let [one, other] = now.map(|kind| kind.behaviour());
        // Two that count meet at the first try, before anything else has used up ports and addresses to look at them from.
        let both = one.is_symmetric() && other.is_symmetric();
        if !both && expectation(&one, &other) == Expectation::Direct {
            // A rest may be under way, or a NAT may have to forget what it made for an earlier try.
            let begin = world.now.instant;
            while !both_direct(&world) && world.now.instant.saturating_since(begin) < secs(900) {
                world.send(nodes[0], nodes[1], false);
                world.run_for(ms(500));
            }
            assert!(both_direct(&world), "{now:?} {:?}", [found(&world, 0), found(&world, 1)]);
        }
        world.run_for(secs(2));
        world.model.forget();
        talk(&mut world, &nodes, secs(1));
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
    });
}

#[test]
fn other_ways_to_choose_ports_and_to_filter_are_crossed_too() {
    use meshdp::proto::path::nat::{Filtering, Mapping};
    let all: Vec<NatKind> = [Mapping::Direct, Mapping::EndpointIndependent, Mapping::AddressDependent]
        .into_iter()
        .flat_map(|mapping| {
            [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent]
                .map(|filtering| NatKind { mapping, filtering, ports: PortChoice::Preserving, ..CONE })
        })
        .collect();
    run((all.len() * all.len()) as u64, |seed| {
        let [one, other] = [seed as usize / all.len() % all.len(), seed as usize % all.len()].map(|n| all[n]);
        let (mut world, nodes) = pair(seed, [Some(one), Some(other)], Quality::clean(ms(10)));
        world.run_for(secs(12));
        // A NAT that keeps the inner port whatever the destination gives the port that STUN saw.
        let expected = expectation(&found(&world, 0), &found(&world, 1));
        let took = until_direct(&mut world, &nodes, secs(8));
        assert!(took.is_some() || expected != Expectation::Direct, "{one:?} {other:?}");
    });
}
