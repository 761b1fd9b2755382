//! Everything at once for a long time: nodes that come and go on three relays with a mesh between them, relays that are killed, stopped and
//! reloaded, controllers that vanish, garbage; and the bystanders at the first relay, which lose nothing.
//!
//! What holds: every frame arrives at most once and only at the node that it names, in whose network its source is; memory, descriptors and connections of a relay
//! that was never killed stay where they were. What is done follows from a seed, which is printed; `SEED=… SOAK_SECONDS=…` do it again.

mod fleet;
mod ledger;
mod node;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::raw::*;
use crate::siege::*;
use crate::support::*;
use crate::websocket::garble;
use fleet::Fleet;
use ledger::Ledger;

const NODES: u32 = 36;

#[test]
fn a_quarter_of_a_minute_of_everything_at_once() {
    soak(Duration::from_secs(15));
}

#[test]
#[ignore = "takes as long as SOAK_SECONDS says: make soak"]
fn everything_at_once_for_a_long_time() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(600, |seconds| seconds.parse().unwrap());
    soak(Duration::from_secs(seconds));
}

/// What all threads of one soak share.
struct Shared {
    stop: AtomicBool,
    ledger: Ledger,
    lives: AtomicU64,
    garbage: AtomicU64,
}

fn soak(duration: Duration) {
    let seed: u64 = match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()) << 20 ^ now(),
    };
    println!("SEED={seed} SOAK_SECONDS={}", duration.as_secs());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        ledger: Ledger::new(NODES),
        lives: AtomicU64::new(0),
        garbage: AtomicU64::new(0),
    });
    let mut fleet = Fleet::start(&shared, NODES);
    let bystanders =
        Bystanders::start([fleet.relays[0].data; 2], Some(client_tls(&fleet.relays[0].directory)));
    bystanders.keep_on();
    let before = Vitals::of(&fleet.relays[0]);
    let nodes = {
        let (shared, addresses, seed) = (Arc::clone(&shared), fleet.addresses(), rng.next_u64());
        let tls = fleet.client_tls();
        std::thread::spawn(move || node::run_all(&shared, &addresses, &tls, NODES, seed))
    };
    let garbage = {
        let (shared, addresses, seed) = (Arc::clone(&shared), fleet.addresses(), rng.next_u64());
        std::thread::spawn(move || throw_garbage(&shared, &addresses, seed))
    };

    let started = Instant::now();
    let mut samples: Vec<Vitals> = Vec::new();
    let mut next_event = Instant::now() + Duration::from_secs(2);
    let mut next_report = Instant::now() + Duration::from_secs(10);
    while started.elapsed() < duration && shared.ledger.wrong().is_empty() {
        std::thread::sleep(Duration::from_millis(250));
        samples.push(Vitals::of(&fleet.relays[0]));
        bystanders.keep_on();
        if Instant::now() >= next_event {
            fleet.disturb(&mut rng);
            next_event = Instant::now() + Duration::from_millis(u64::from(300 + rng.next_u32() % 2500));
        }
        if Instant::now() >= next_report {
            next_report += Duration::from_secs(10);
            println!("{}", progress(started.elapsed(), &shared, &fleet, samples.last().unwrap()));
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    nodes.join().expect("nodes");
    garbage.join().expect("garbage");
    // Once more: memory is compared after the crowd has gone.
    let quiet = Vitals { rss: u64::MAX - SLACK, ..before };
    quiet.wait_for(&fleet.relays[0], SLACK);
    bystanders.keep_on();
    bystanders.end();
    fleet.wait_until_empty();
    let after = Vitals::of(&fleet.relays[0]);
    let summary =
        Summary { seed, duration, shared: &shared, fleet: &fleet, samples: &samples, before, after };
    summary.write();
    summary.check();
}

/// Connections that are nothing a relay knows.
fn throw_garbage(shared: &Shared, relays: &[std::net::SocketAddr], seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut held = std::collections::VecDeque::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let relay = relays[rng.next_u32() as usize % relays.len()];
        let source = address(rng.next_u32() as usize % 5000);
        std::thread::sleep(Duration::from_millis(u64::from(rng.next_u32() % 30)));
        // One that was just killed takes nobody.
        let Ok(mut stream) = connect_from(source, relay) else { continue };
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        shared.garbage.fetch_add(1, Ordering::Relaxed);
        let mut bytes = match rng.next_u32() % 4 {
            0 => Vec::new(),
            1 => {
                let mut noise = vec![0; rng.next_u32() as usize % 3000];
                rng.fill_bytes(&mut noise);
                noise
            }
            2 => request("/ws/data"),
            _ => crate::tls::tls12_hello(),
        };
        if rng.next_u32().is_multiple_of(2) && !bytes.is_empty() {
            garble(&mut bytes, &mut rng);
        }
        let _ = stream.write_all(&bytes);
        match rng.next_u32() % 3 {
            0 => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            1 => {
                held.push_back(stream);
                if held.len() > 100 {
                    held.pop_front();
                }
            }
            _ => {}
        }
    }
}

fn progress(elapsed: Duration, shared: &Shared, fleet: &Fleet, vitals: &Vitals) -> String {
    let frames = shared.ledger.totals();
    format!(
        "{:4} s: {} frames sent, {} arrived, {} forged; {} lives, {} garbage, {} disturbances; relay 1: {} connections, {} descriptors, {} MiB",
        elapsed.as_secs(),
        frames.sent,
        frames.arrived,
        frames.forged,
        shared.lives.load(Ordering::Relaxed),
        shared.garbage.load(Ordering::Relaxed),
        fleet.disturbances.values().sum::<u64>(),
        vitals.connections,
        vitals.descriptors,
        vitals.rss >> 20,
    )
}

/// What there is to say at the end.
struct Summary<'a> {
    seed: u64,
    duration: Duration,
    shared: &'a Shared,
    fleet: &'a Fleet,
    samples: &'a [Vitals],
    before: Vitals,
    after: Vitals,
}

impl Summary<'_> {
    /// Median memory in the second and in the last quarter: warm, and at the end.
    fn memory(&self) -> (u64, u64) {
        let median = |samples: &[Vitals]| {
            let mut all: Vec<_> = samples.iter().map(|vitals| vitals.rss).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let quarter = self.samples.len() / 4;
        (median(&self.samples[quarter..2 * quarter]), median(&self.samples[3 * quarter..]))
    }

    fn write(&self) {
        let (warm, last) = self.memory();
        let frames = self.shared.ledger.totals();
        let json = serde_json::json!({
            "seed": self.seed,
            "seconds": self.duration.as_secs(),
            "frames": {"sent": frames.sent, "arrived": frames.arrived, "forged": frames.forged},
            "wrong": self.shared.ledger.wrong().len(),
            "lives": self.shared.lives.load(Ordering::Relaxed),
            "garbage_connections": self.shared.garbage.load(Ordering::Relaxed),
            "disturbances": self.fleet.disturbances,
            "relay_1": {
                "rss_before": self.before.rss, "rss_warm": warm, "rss_last_quarter": last, "rss_after": self.after.rss,
                "descriptors_before": self.before.descriptors, "descriptors_after": self.after.descriptors,
                "connections_most": self.samples.iter().map(|vitals| vitals.connections).max(),
                "connections_after": self.after.connections,
            },
        });
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/soak.json");
        std::fs::write(&path, serde_json::to_string_pretty(&json).unwrap() + "\n").unwrap();
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        println!("\n{:<34}{:>14}", "soak", format!("{} s", self.duration.as_secs()));
        for (what, value) in [
            ("frames sent", frames.sent.to_string()),
            ("frames that arrived, each once", frames.arrived.to_string()),
            ("frames forged, none of which arrived", frames.forged.to_string()),
            ("twice, astray or changed", self.shared.ledger.wrong().len().to_string()),
            ("lives of nodes", self.shared.lives.load(Ordering::Relaxed).to_string()),
            ("garbage connections", self.shared.garbage.load(Ordering::Relaxed).to_string()),
            ("memory of relay 1: before", mib(self.before.rss)),
            ("  warm (second quarter)", mib(warm)),
            ("  last quarter", mib(last)),
            ("  after", mib(self.after.rss)),
            (
                "descriptors: before, after",
                format!("{}, {}", self.before.descriptors, self.after.descriptors),
            ),
        ] {
            println!("{what:<34}{value:>14}");
        }
        for (what, count) in &self.fleet.disturbances {
            println!("{:<34}{count:>14}", format!("disturbance: {what}"));
        }
    }

    fn check(&self) {
        let wrong = self.shared.ledger.wrong();
        assert!(wrong.is_empty(), "{} times: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
        let frames = self.shared.ledger.totals();
        assert!(frames.arrived > frames.sent / 4, "{} of {} arrived", frames.arrived, frames.sent);
        let (warm, last) = self.memory();
        assert!(last < warm + (12 << 20), "memory grows: {warm} when warm, {last} at the end");
        assert!(
            self.after.rss < warm + (12 << 20),
            "memory stays: {warm} when warm, {} after",
            self.after.rss
        );
    }
}
