//! Packets between nodes, over links good and bad.

use edgelink_sim::{Quality, World, run};
use meshdp::proto::id::RelayId;
use meshdp::proto::wire::control::node::{AdvertisedRoute, Paths};

use crate::{all_pairs, mesh, ms, secs};

#[test]
fn every_pair_reaches_each_other_over_both_families() {
    run(3, |seed| {
        let (mut world, nodes) = mesh(seed, 2, 4);
        for _ in 0..5 {
            all_pairs(&mut world, &nodes);
            world.run_for(ms(200));
        }
        world.run_for(secs(1));
        assert_eq!(world.model.counts(), (120, 120));
    });
}

#[test]
fn packets_sent_before_anything_is_connected_wait_and_arrive() {
    run(3, |seed| {
        let mut world = World::new(seed);
        world.add_relay();
        let network = world.controller.add_network(1);
        let nodes: Vec<_> = (0..2)
            .map(|_| {
                let machine = world.add_machine(true, Vec::new());
                world.join(machine, network)
            })
            .collect();
        world.start_all();
        world.run_for(ms(30));
        world.send(nodes[0], nodes[1], false);
        world.run_for(secs(4));
        assert_eq!(world.model.counts(), (1, 1));
    });
}

#[test]
fn loss_reordering_and_duplication_never_deliver_twice_or_wrongly() {
    run(4, |seed| {
        let (mut world, nodes) = mesh(seed, 2, 3);
        world.set_quality(Quality { delay: ms(20), loss: 0.2, duplication: 0.2, jitter: ms(60) });
        for _ in 0..200 {
            all_pairs(&mut world, &nodes);
            world.run_for(ms(50));
        }
        world.run_for(secs(1));
        // Two links each, 20 % loss, a fifth of the frames twice: about 0.3 is lost. The handshakes came through it too.
        let loss = world.model.loss();
        assert!((0.2..0.45).contains(&loss), "{loss} lost");
    });
}

#[test]
fn both_ends_starting_at_once_agree_on_one_session() {
    run(10, |seed| {
        let (mut world, nodes) = mesh(seed, 1, 2);
        world.send(nodes[0], nodes[1], false);
        world.send(nodes[1], nodes[0], false);
        world.run_for(secs(1));
        assert_eq!(world.model.counts(), (2, 2));
        for _ in 0..20 {
            all_pairs(&mut world, &nodes);
            world.run_for(ms(100));
        }
        world.run_for(secs(1));
        assert_eq!(world.model.counts(), (82, 82));
        let unknown = meshdp::proto::drop_reason::DropReason::UnknownSession;
        assert_eq!(world.drops(0, unknown) + world.drops(1, unknown), 0);
    });
}

#[test]
fn aes_is_used_where_both_have_it() {
    let (mut world, nodes) = mesh(0, 1, 3);
    all_pairs(&mut world, &nodes);
    world.run_for(secs(2));
    let cipher = |from: usize, to: usize| {
        let status = world.machines[from].node().status(world.now.instant);
        let peer = status.peers.into_iter().find(|peer| peer.node_id == nodes[to]).unwrap();
        (peer.session, peer.cipher.unwrap())
    };
    assert_eq!(cipher(0, 1), ("established", "aes-256-gcm"));
    assert_eq!(cipher(0, 2), ("established", "chacha20-poly1305"));
    assert_eq!(cipher(2, 1), ("established", "chacha20-poly1305"));
}

#[test]
fn an_echo_measures_the_round_trip() {
    let (mut world, nodes) = mesh(0, 1, 2);
    world.echo(0, nodes[1], 7, 100);
    world.run_for(secs(1));
    // Waited for the handshake: 40 ms more than the next one.
    assert_eq!(world.machines[0].echoes[&7], ms(80));
    world.echo(0, nodes[1], 8, 1400);
    world.run_for(secs(1));
    assert_eq!(world.machines[0].echoes[&8], ms(40));
    let now = world.now;
    let node = world.machines[0].node.as_mut().unwrap();
    assert_eq!(node.echo(nodes[1], 9, 1401, now), Err(meshdp::proto::node::EchoError::TooBig));
}

#[test]
fn a_path_over_two_relays_is_taken_on_the_controllers_advice() {
    let (mut world, nodes) = mesh(0, 2, 2);
    let path = vec![RelayId(2), RelayId(1)];
    world.controller.paths.insert((nodes[0], nodes[1]), Paths { best: Some(path.clone()), second: None });
    world.everyone_anew();
    world.run_for(secs(15));
    for _ in 0..10 {
        all_pairs(&mut world, &nodes);
        world.run_for(secs(1));
    }
    let status = world.machines[0].node().status(world.now.instant);
    assert_eq!(status.peers[0].path, path);
    assert_eq!(world.model.lost(), 0);
    assert!(world.relays[&RelayId(2)].worker.counters().mesh_frames_out >= 10);
}

#[test]
fn two_networks_do_not_see_each_other_and_one_machine_can_be_in_both() {
    run(3, |seed| {
        let mut world = World::new(seed);
        world.add_relay();
        let one = world.controller.add_network(1);
        let two = world.controller.add_network(2);
        let machines: Vec<_> = (0..3).map(|_| world.add_machine(true, Vec::new())).collect();
        let a = world.join(machines[0], one);
        let both_in_one = world.join(machines[1], one);
        let both_in_two = world.join(machines[1], two);
        let b = world.join(machines[2], two);
        world.start_all();
        world.run_for(secs(5));
        world.send(a, both_in_one, false);
        world.send(both_in_two, b, true);
        world.send(b, both_in_two, false);
        let there = world.controller.members[&b].addresses;
        for address in there {
            world.send_to(a, address, None, 1);
        }
        world.run_for(secs(2));
        assert_eq!(world.model.counts(), (3, 3));
        assert_eq!(world.drops(0, meshdp::proto::drop_reason::DropReason::NoRoute), 2);
    });
}

#[test]
fn overlapping_networks_are_refused_with_both_names() {
    let mut world = World::new(0);
    world.add_relay();
    let one = world.controller.add_network(1);
    let again = world.controller.add_network(1);
    let machine = world.add_machine(true, Vec::new());
    world.join(machine, one);
    world.join(machine, again);
    world.start_all();
    world.run_for(secs(2));
    let refused = world.machines[0].events.iter().find_map(|event| match event {
        meshdp::proto::node::Event::NetworkRefused { network, other } => {
            Some((network.clone(), other.clone()))
        }
        _ => None,
    });
    assert_eq!(refused, Some(("net-1".into(), "net-1".into())));
    assert_eq!(world.machines[0].node().status(world.now.instant).memberships.len(), 1);
}

#[test]
fn gateways_share_flows_by_weight_and_one_that_is_gone_is_left() {
    let mut world = World::new(0);
    world.add_relay();
    let network = world.controller.add_network(1);
    let lan: ipnet::IpNet = "192.168.7.0/24".parse().unwrap();
    let offered = vec![AdvertisedRoute { cidr: lan, priority: 100, weight: 100 }];
    let client = world.add_machine(true, Vec::new());
    let client = world.join(client, network);
    let gateways: Vec<_> = (0..2)
        .map(|_| {
            let machine = world.add_machine(true, offered.clone());
            world.join(machine, network)
        })
        .collect();
    world.controller.add_route(gateways[0], lan, 100, 300);
    world.controller.add_route(gateways[1], lan, 100, 100);
    world.start_all();
    world.run_for(secs(5));
    // The model asks for one place; weights are looked at by the gateways' own counts.
    let count = |world: &World, machine: usize| {
        world.machines[machine].node().status(world.now.instant).peers[0].rx_packets
    };
    world.model = edgelink_sim::model::Model::anywhere();
    for port in 0..400 {
        world.send_to(client, "192.168.7.9".parse().unwrap(), None, port);
        world.run_for(ms(5));
    }
    world.run_for(secs(1));
    let (first, second) = (count(&world, 1), count(&world, 2));
    assert_eq!(first + second, 400);
    assert!((270..330).contains(&first), "{first} of 400 flows");
    world.stop(1);
    for port in 0..400 {
        world.send_to(client, "192.168.7.9".parse().unwrap(), None, port);
        world.run_for(ms(100));
    }
    let moved = count(&world, 2) - second;
    assert!(moved > 250, "only {moved} packets after one gateway was gone");
}
