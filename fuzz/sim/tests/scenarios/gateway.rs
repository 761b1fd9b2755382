//! Subnets behind several gateways: flows stick, weights hold, and a gateway that dies or loses its LAN is left in time.

use std::time::Duration;

use edgelink_sim::{Model, World, run};
use ipnet::IpNet;
use meshdp::proto::id::{NodeId, RouteId};
use meshdp::proto::wire::control::node::{AdvertisedRoute, Route};

use crate::{ms, secs};

const LAN: &str = "192.168.7.0/24";

/// A client (the last machine) and gateways to [`LAN`], each with a priority and a weight.
fn gateways(seed: u64, offers: &[(u16, u16)]) -> (World, Vec<NodeId>, NodeId) {
    let mut world = World::new(seed);
    world.add_relay();
    world.add_relay();
    let network = world.controller.add_network(1);
    let cidr: IpNet = LAN.parse().unwrap();
    let nodes: Vec<NodeId> = offers
        .iter()
        .map(|&(priority, weight)| {
            let machine = world.add_machine(true, vec![AdvertisedRoute { cidr, priority, weight }]);
            world.join(machine, network)
        })
        .collect();
    let client = world.add_machine(true, Vec::new());
    let client = world.join(client, network);
    for (n, (&node_id, &(priority, weight))) in nodes.iter().zip(offers).enumerate() {
        let route = Route { id: RouteId(n as u32 + 1), node_id, cidr, priority, weight, enabled: true };
        world.controller.routes.insert(node_id, vec![route]);
    }
    world.model = Model::anywhere();
    world.start_all();
    world.run_for(secs(5));
    (world, nodes, client)
}

fn send(world: &mut World, from: NodeId, to: NodeId, port: u16) -> u64 {
    world.send_to(from, "192.168.7.9".parse().unwrap(), Some(to), port)
}

/// Sends a packet each 10 ms until three in a row have arrived after having been lost; how long that was.
fn outage(world: &mut World, client: NodeId, to: NodeId, port: u16) -> Duration {
    let begun = world.now.instant;
    let mut sent = Vec::new();
    for _ in 0..1000 {
        sent.push((world.now.instant, send(world, client, to, port)));
        world.run_for(ms(10));
    }
    world.run_for(secs(1));
    let last_lost = sent.iter().rev().find(|(_, id)| !world.model.arrived(*id)).map(|(at, _)| *at);
    last_lost.map_or(Duration::ZERO, |at| at.saturating_since(begun))
}

#[test]
fn flows_spread_by_weight_and_stick() {
    let (mut world, nodes, client) = gateways(1, &[(100, 300), (100, 100)]);
    for port in 0..20 {
        send(&mut world, client, nodes[0], port);
    }
    world.run_for(secs(5));
    let sent = |world: &World| -> Vec<u64> {
        world.machines[2].node().status(world.now.instant).peers.iter().map(|peer| peer.tx_packets).collect()
    };
    let before = sent(&world);
    for _ in 0..3 {
        for port in 0..400 {
            send(&mut world, client, nodes[0], port);
        }
        world.run_for(secs(1));
    }
    assert_eq!(world.model.lost(), 0);
    let shares: Vec<u64> = sent(&world).iter().zip(before).map(|(now, then)| now - then).collect();
    assert_eq!(shares.iter().sum::<u64>(), 1200);
    assert!(shares.iter().all(|share| share % 3 == 0), "every flow went one way thrice: {shares:?}");
    assert!((810..990).contains(&shares[0]), "{shares:?}");
}

#[test]
fn a_killed_gateway_is_left_within_two_seconds_without_a_controller() {
    run(10, |seed| {
        let (mut world, nodes, client) = gateways(seed, &[(200, 100), (100, 100)]);
        for port in 0..10 {
            send(&mut world, client, nodes[0], port);
            world.run_for(ms(50));
        }
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
        world.lose_controller();
        world.stop(0);
        let lost = outage(&mut world, client, nodes[1], 5);
        assert!(lost < ms(1500), "{lost:?} without a gateway");
        // It comes back, and is taken again.
        world.start(0);
        world.run_for(secs(8));
        world.model.forget();
        let before = world.machines[2].node().status(world.now.instant).peers[0].tx_packets;
        for port in 0..10 {
            send(&mut world, client, nodes[0], port);
            world.run_for(ms(50));
        }
        world.run_for(secs(1));
        assert_eq!(world.model.lost(), 0);
        assert_eq!(world.machines[2].node().status(world.now.instant).peers[0].tx_packets - before, 10);
    });
}

#[test]
fn a_gateway_that_was_never_spoken_to_and_is_dead_delays_the_first_packets_only() {
    run(10, |seed| {
        let (mut world, nodes, client) = gateways(seed, &[(200, 100), (100, 100)]);
        world.lose_controller();
        world.stop(0);
        let lost = outage(&mut world, client, nodes[1], 5);
        assert_eq!(lost, Duration::ZERO, "what waited was sent to the other one");
    });
}

#[test]
fn a_gateway_without_its_lan_is_left_at_once_and_taken_again() {
    run(10, |seed| {
        let (mut world, nodes, client) = gateways(seed, &[(200, 100), (100, 100)]);
        for port in 0..10 {
            send(&mut world, client, nodes[0], port);
            world.run_for(ms(50));
        }
        let sent_to = |world: &World, gateway: usize| {
            world.machines[2].node().status(world.now.instant).peers[gateway].tx_packets
        };
        world.lose_controller();
        for (down, to) in [(vec![LAN.parse().unwrap()], 1), (vec![], 0)] {
            world.routes_down(0, down);
            world.run_for(secs(1));
            let before = sent_to(&world, to);
            for port in 0..10 {
                send(&mut world, client, nodes[to], port);
                world.run_for(ms(20));
            }
            world.run_for(secs(2));
            assert_eq!(sent_to(&world, to) - before, 10);
        }
        assert_eq!(world.model.lost(), 0);
    });
}

#[test]
fn gateways_on_lossy_links_are_not_left_for_nothing() {
    run(5, |seed| {
        let (mut world, nodes, client) = gateways(seed, &[(200, 100), (100, 100)]);
        world.set_quality(edgelink_sim::Quality {
            delay: ms(60),
            loss: 0.05,
            duplication: 0.0,
            jitter: ms(20),
        });
        for port in 0..1000 {
            send(&mut world, client, nodes[0], port);
            world.run_for(ms(60));
        }
        let status = world.machines[2].node().status(world.now.instant);
        assert!(
            status.peers[1].tx_packets <= 20,
            "{} packets took the other gateway",
            status.peers[1].tx_packets
        );
    });
}

#[test]
fn a_gateway_that_falls_silent_is_left_within_one_and_a_half_seconds() {
    run(10, |seed| {
        let (mut world, nodes, client) = gateways(seed, &[(200, 100), (100, 100)]);
        for port in 0..10 {
            send(&mut world, client, nodes[0], port);
            world.run_for(ms(50));
        }
        world.run_for(secs(1));
        world.lose_controller();
        world.mute(0);
        let lost = outage(&mut world, client, nodes[1], 5);
        assert!((ms(500)..ms(1500)).contains(&lost), "{lost:?} without a gateway");
    });
}
