//! Anything at any time; then peace, in which everything must work again.

use edgelink_sim::{Quality, World, run};
use meshdp::proto::id::RelayId;

use crate::{all_pairs, mesh, ms, secs};

const RELAYS: u16 = 3;
const MACHINES: usize = 4;

fn relay(world: &mut World) -> RelayId {
    RelayId((world.random() % u64::from(RELAYS)) as u16 + 1)
}

/// One thing goes wrong, or right again.
fn something(world: &mut World) {
    let machine = (world.random() % MACHINES as u64) as usize;
    match world.random() % 10 {
        0 => {
            let relay = relay(world);
            world.kill_relay(relay);
        }
        1 => {
            let relay = relay(world);
            world.swallow(relay);
        }
        2 | 3 => {
            let relay = relay(world);
            if !world.relays[&relay].up {
                world.restart_relay(relay);
            }
        }
        4 => {
            if world.machines[machine].node.is_some() {
                world.stop(machine);
            }
        }
        5 | 6 => {
            if world.machines[machine].node.is_none() {
                world.start(machine);
            }
        }
        7 => world.rotate(machine),
        8 => {
            let loss = (world.random() % 30) as f64 / 100.0;
            let jitter = ms(world.random() % 100);
            world.set_quality(Quality { delay: ms(15), loss, duplication: loss / 2.0, jitter });
        }
        _ => world.everyone_anew(),
    }
}

#[test]
fn after_any_disorder_everyone_reaches_everyone_again() {
    run(12, |seed| {
        let (mut world, nodes) = mesh(seed, RELAYS.into(), MACHINES);
        for _ in 0..60 {
            something(&mut world);
            for _ in 0..10 {
                all_pairs(&mut world, &nodes);
                let pause = world.random() % 1500;
                world.run_for(ms(pause));
            }
        }
        let (sent, delivered) = world.model.counts();
        assert!(delivered > sent / 10 && delivered < sent, "{delivered} of {sent}: disorder, not silence");
        world.set_quality(Quality::clean(ms(15)));
        for id in 1..=RELAYS {
            if !world.relays[&RelayId(id)].up {
                world.restart_relay(RelayId(id));
            }
        }
        for machine in 0..MACHINES {
            if world.machines[machine].node.is_none() {
                world.start(machine);
            }
        }
        for _ in 0..30 {
            all_pairs(&mut world, &nodes);
            world.run_for(secs(1));
        }
        world.model.forget();
        for _ in 0..30 {
            all_pairs(&mut world, &nodes);
            world.run_for(secs(1));
        }
        assert_eq!(world.model.lost(), 0);
    });
}
