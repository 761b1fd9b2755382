//! Relays and nodes that die and come back.

use edgelink_sim::{Quality, run};
use meshdp::proto::id::RelayId;

use crate::{all_pairs, mesh, ms, secs};

#[test]
fn a_killed_relay_costs_what_was_on_its_way_and_traffic_moves_at_once() {
    run(5, |seed| {
        let (mut world, nodes) = mesh(seed, 2, 3);
        for round in 0..300 {
            if round == 100 {
                let status = world.machines[0].node().status(world.now.instant);
                let in_use = status.peers[0].path[0];
                world.kill_relay(in_use);
            }
            if round == 200 {
                for relay in [RelayId(1), RelayId(2)] {
                    if !world.relays[&relay].up {
                        world.restart_relay(relay);
                    }
                }
            }
            all_pairs(&mut world, &nodes);
            world.run_for(ms(10));
        }
        world.run_for(secs(20));
        let (sent, delivered) = world.model.counts();
        // 12 packets per 10 ms: at most 100 ms of them.
        assert!(sent - delivered <= 120, "{} lost", sent - delivered);
        for machine in &world.machines {
            let status = machine.node().status(world.now.instant);
            assert!(status.relays.iter().all(|relay| relay.state == "ready"), "{:?}", status.relays);
        }
    });
}

#[test]
fn a_relay_that_falls_silent_is_left_after_four_seconds() {
    run(5, |seed| {
        let (mut world, nodes) = mesh(seed, 2, 2);
        all_pairs(&mut world, &nodes);
        world.run_for(secs(1));
        let in_use = world.machines[0].node().status(world.now.instant).peers[0].path[0];
        world.swallow(in_use);
        for _ in 0..43 {
            all_pairs(&mut world, &nodes);
            world.run_for(ms(100));
        }
        world.model.forget();
        world.run_for(ms(100));
        for _ in 0..10 {
            all_pairs(&mut world, &nodes);
            world.run_for(ms(100));
        }
        assert_eq!(world.model.lost(), 0);
    });
}

#[test]
fn a_restarted_node_is_reached_again_without_waiting_for_a_rekey() {
    run(5, |seed| {
        let (mut world, nodes) = mesh(seed, 1, 2);
        all_pairs(&mut world, &nodes);
        world.run_for(secs(2));
        world.stop(1);
        world.run_for(secs(1));
        world.start(1);
        world.run_for(secs(1));
        world.send(nodes[0], nodes[1], false);
        world.run_for(secs(1));
        world.model.forget();
        all_pairs(&mut world, &nodes);
        world.run_for(secs(1));
        assert_eq!(world.model.counts(), (4, 4));
    });
}

#[test]
fn a_peer_connected_to_another_relay_only_is_reached_over_the_mesh() {
    let (mut world, nodes) = mesh(0, 2, 2);
    world.block(0, RelayId(2));
    world.block(1, RelayId(1));
    world.run_for(secs(1));
    for _ in 0..10 {
        all_pairs(&mut world, &nodes);
        world.run_for(secs(1));
    }
    assert_eq!(world.model.lost(), 0);
    let path =
        |machine: usize| world.machines[machine].node().status(world.now.instant).peers[0].path.clone();
    assert_eq!((path(0), path(1)), (vec![RelayId(1)], vec![RelayId(2)]));
}

#[test]
fn the_nearer_relay_is_used_and_left_when_it_becomes_far() {
    let (mut world, nodes) = mesh(0, 2, 2);
    let near = Quality::clean(ms(5));
    let far = Quality::clean(ms(80));
    for machine in 0..2 {
        world.set_link(machine, RelayId(1), far);
        world.set_link(machine, RelayId(2), near);
    }
    world.run_for(secs(300));
    all_pairs(&mut world, &nodes);
    let path = |world: &edgelink_sim::World| {
        world.machines[0].node().status(world.now.instant).peers[0].path.clone()
    };
    assert_eq!(path(&world), [RelayId(2)]);
    for machine in 0..2 {
        world.set_link(machine, RelayId(1), near);
        world.set_link(machine, RelayId(2), far);
    }
    world.run_for(secs(300));
    assert_eq!(path(&world), [RelayId(1)]);
    all_pairs(&mut world, &nodes);
    world.run_for(secs(2));
    assert_eq!(world.model.lost(), 0);
}

#[test]
fn two_hours_without_the_controller_and_clocks_that_jump_cost_nobody_a_packet() {
    const DAY: i64 = 86_400;
    run(5, |seed| {
        let (mut world, nodes) = mesh(seed, 2, 3);
        world.lose_controller();
        let [one, two] = [1, 2].map(RelayId);
        // Tokens end after 90 minutes; a machine that is started again has nothing but what it had saved.
        for minute in 0..120 {
            match minute {
                20 => world.jump(one, 2 * DAY),
                30 | 50 | 70 | 100 => {
                    assert_eq!(world.model.lost(), 0, "before minute {minute}");
                    world.stop(2);
                    world.start(2);
                    world.run_for(secs(5));
                    // The first packets for it are sealed for the session that it has lost.
                    all_pairs(&mut world, &nodes);
                    world.run_for(secs(5));
                    world.model.forget();
                }
                40 => world.jump(one, -4 * DAY),
                60 => world.jump(two, -3 * DAY),
                80 => world.jump(two, 6 * DAY),
                _ => {}
            }
            all_pairs(&mut world, &nodes);
            world.run_for(secs(60));
        }
        world.find_controller();
        for _ in 0..5 {
            world.run_for(secs(60));
            all_pairs(&mut world, &nodes);
        }
        world.run_for(secs(5));
        assert_eq!(world.model.lost(), 0);
        for machine in &world.machines {
            let status = machine.node().status(world.now.instant);
            assert!(status.relays.iter().all(|relay| relay.state == "ready"), "{:?}", status.relays);
        }
        let refused = |relay: RelayId| world.relays[&relay].worker.counters().errors.iter().sum::<u64>();
        assert_eq!((refused(one), refused(two)), (0, 0));
    });
}
