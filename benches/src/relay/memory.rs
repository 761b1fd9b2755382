//! What a connection that does nothing costs in resident memory of the server, fresh and after it has carried something; and what the server
//! costs before anybody comes. The kernel's share of a connection is not in it.

use std::time::{Duration, Instant};

use anyhow::bail;
use meshdp::proto::id::NodeId;

use super::client::sign_in_all;
use super::contender::{Contender, Running};
use super::engine::{Engine, Flow, Pace};
use super::row::{Bench, Sample};
use super::setup::{Traffic, batch, receiver};

/// Each way.
const CARRIED: u64 = 240_000;
/// Until memory is read.
const SETTLE: Duration = Duration::from_millis(1500);
/// For all that is carried.
const CARRY_TIME: Duration = Duration::from_secs(90);
/// Frames on their way.
const ON_THE_WAY: u64 = 1024;
const BATCH: u32 = 4;
/// As many as a machine with eight cores has.
const WORKERS: u32 = 8;

/// Bytes a connection, fresh and after traffic.
pub(super) fn idle(bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        std::thread::sleep(SETTLE);
        let before = server.process.resident()?;
        let count = bench.many & !1;
        let mut engine = both_ways(bench, contender, &server, count)?;
        engine.run_for(SETTLE)?;
        let each = |resident: u64| resident.saturating_sub(before) as f64 / f64::from(count);
        let fresh = each(server.process.resident()?);
        engine.set_budget(ON_THE_WAY);
        engine.pace_all(Pace::Flood);
        let (wanted, end) = (u64::from(count) * frames(), Instant::now() + CARRY_TIME);
        engine.run_until(end, |engine| engine.received() >= wanted)?;
        if engine.received() < wanted {
            bail!("{} of {wanted} frames arrived within {CARRY_TIME:?}", engine.received());
        }
        engine.pace_all(Pace::Never);
        engine.run_for(SETTLE)?;
        let used = each(server.process.resident()?);
        let note = format!("{count} connections");
        Ok(vec![Sample::of(fresh).note(&note), Sample::of(used).note(&note)])
    })
}

/// So many whole batches as [`CARRIED`] needs.
fn frames() -> u64 {
    CARRIED.div_ceil(1400 * u64::from(BATCH)) * u64::from(BATCH)
}

/// Clients in pairs, each sending to the other.
fn both_ways(bench: &Bench, contender: &Contender, server: &Running, count: u32) -> anyhow::Result<Engine> {
    let traffic = Traffic { batch: BATCH, ..Traffic::batched(contender) };
    let node = |index: u32| NodeId(index + 1);
    let wanted = (0..count).map(|own| {
        let heads = vec![server.dialect.head(node(own ^ 1), node(own), traffic.payload)];
        (node(own), receiver(server, heads, traffic))
    });
    let clients = sign_in_all(server, bench.tls(true), wanted.collect())?;
    let flow = |from: u32| {
        let batch = batch(server, traffic, node(from), node(from ^ 1));
        Flow::new(from as usize, (from ^ 1) as usize, 0, batch).limited(frames())
    };
    Engine::new(clients, (0..count).map(flow).collect())
}

/// MiB of a relay with eight workers and no client.
pub(super) fn baseline(bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, WORKERS)?;
    std::thread::sleep(SETTLE);
    let mib = server.process.resident()? as f64 / f64::from(1 << 20);
    Ok(vec![Sample::of(mib)])
}
