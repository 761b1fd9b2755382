//! What the mesh must do, told as stories under a virtual clock.

#![allow(clippy::unwrap_used, reason = "a scenario that cannot go on has failed")]

mod change;
mod chaos;
mod direct;
mod failure;
mod gateway;
mod hostile;
mod traffic;

use std::time::Duration;

use edgelink_sim::World;
use meshdp::proto::id::NodeId;

/// Seconds.
pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Milliseconds.
pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One network with so many relays and nodes, up for five seconds.
pub(crate) fn mesh(seed: u64, relays: usize, nodes: usize) -> (World, Vec<NodeId>) {
    let mut world = World::new(seed);
    for _ in 0..relays {
        world.add_relay();
    }
    let network = world.controller.add_network(1);
    let nodes = (0..nodes)
        .map(|n| {
            let machine = world.add_machine(n % 3 != 2, Vec::new());
            world.join(machine, network)
        })
        .collect();
    world.start_all();
    world.run_for(secs(5));
    (world, nodes)
}

/// Every node sends to every other, both families.
pub(crate) fn all_pairs(world: &mut World, nodes: &[NodeId]) {
    for &from in nodes {
        for &to in nodes.iter().filter(|&&to| to != from) {
            world.send(from, to, false);
            world.send(from, to, true);
        }
    }
}
