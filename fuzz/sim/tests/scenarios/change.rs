//! Keys, tokens and sessions that change under traffic.

use edgelink_sim::run;

use crate::{all_pairs, mesh, ms, secs};

#[test]
fn a_node_key_rotation_under_traffic_loses_nothing() {
    run(5, |seed| {
        let (mut world, nodes) = mesh(seed, 2, 3);
        for round in 0..400 {
            if round == 50 {
                world.rotate(0);
            }
            if round == 120 {
                world.rotate(1);
                world.rotate(2);
            }
            all_pairs(&mut world, &nodes);
            world.run_for(ms(50));
        }
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
    });
}

#[test]
fn a_first_session_right_after_a_rotation_does_not_wait_for_the_controller() {
    let (mut world, nodes) = mesh(0, 1, 2);
    let key = edgelink_sim::machine::Machine::make_node_key(0, 99);
    let (now, created) = (world.now, world.now.unix.as_secs());
    // The controller never hears of it.
    world.machines[0].node.as_mut().unwrap().rotate_node_key(key, created, now);
    world.send(nodes[0], nodes[1], false);
    world.run_for(secs(3));
    assert_eq!(world.model.counts(), (1, 1));
}

#[test]
fn rekeying_under_traffic_loses_nothing() {
    run(2, |seed| {
        let (mut world, nodes) = mesh(seed, 1, 2);
        for _ in 0..2_000 {
            all_pairs(&mut world, &nodes);
            world.run_for(ms(500));
        }
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
        let age = world.machines[0].node().status(world.now.instant).peers[0].session_age_s.unwrap();
        assert!(age < 125.0, "the session is {age} s old");
    });
}

#[test]
fn a_week_of_rotations_tokens_and_rekeys_loses_nothing() {
    let (mut world, nodes) = mesh(0, 1, 2);
    for hour in 0..7 * 24 {
        if hour % 24 == 3 {
            world.rotate(0);
            world.rotate(1);
        }
        // A burst every ten minutes: sessions run out in between and are made anew.
        for _ in 0..6 {
            for _ in 0..3 {
                all_pairs(&mut world, &nodes);
                world.run_for(secs(1));
            }
            world.run_for(secs(597));
        }
    }
    world.run_for(secs(1));
    let (sent, delivered) = world.model.counts();
    assert_eq!(sent, delivered);
    assert_eq!(sent, 7 * 24 * 6 * 3 * 4);
}

#[test]
fn a_node_whose_controller_is_gone_goes_on_from_its_disk() {
    let (mut world, nodes) = mesh(0, 1, 2);
    all_pairs(&mut world, &nodes);
    world.run_for(secs(1));
    world.controller_up = false;
    world.stop(0);
    world.run_for(secs(1));
    world.start(0);
    world.run_for(secs(2));
    // What goes under the session that died with the old process is lost, and brings a new one about.
    all_pairs(&mut world, &nodes);
    world.run_for(secs(2));
    world.model.forget();
    for _ in 0..60 {
        all_pairs(&mut world, &nodes);
        world.run_for(secs(60));
    }
    assert_eq!(world.model.lost(), 0);
    assert_eq!(world.machines[0].node().version(), world.machines[1].node().version());
}
