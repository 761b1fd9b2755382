//! Ten thousand clients lose their connection at once and come back, while sixteen pairs go on. The pairs' clock has precedence on the
//! clients' core: those that come back run only when nothing else wants to, and before they go a thread that does nothing keeps the core
//! as busy as they will.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::client::{Client, sign_in_all_on};
use super::contender::{Contender, Running};
use super::engine::{Engine, Pace};
use super::row::{Bench, Sample};
use super::setup::{Span, Traffic, pairs, quantile_us, receiver, silent};
use crate::process::work_when_idle;

const DRAIN: Duration = Duration::from_secs(2);
const PAIRS: u32 = 16;
const EVERY: Duration = Duration::from_millis(2);
/// Ids of those that come back begin here.
const FROM: u32 = 1000;
/// Handshakes under way at once.
const AT_ONCE: usize = 64;
/// For all to come back.
const PATIENCE: Duration = Duration::from_secs(120);

/// Rise of the pairs' p99 delay, percent.
pub(super) fn measure(bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        let traffic = Traffic { batch: 1, stamped: true, ..Traffic::batched(contender) };
        let mut probes = pairs(&server, bench.tls(true), 0, PAIRS, traffic)?;
        let clients = silent(&server, bench.tls(true), FROM, bench.many, traffic)?;
        probes.sleepy = true;
        probes.pace_all(Pace::Every(EVERY));
        let quiet = quiet(bench, &server, &mut probes)?;
        let (stormy, took) = stormy(bench, &server, &mut probes, clients, traffic)?;
        let rise = (stormy / quiet - 1.0) * 100.0;
        let note = format!("p99 {quiet:.0} and {stormy:.0} us; back after {:.1} s", took.as_secs_f64());
        probes.drain(DRAIN)?;
        Ok(vec![Sample::of(rise).note(&note).lost(probes.missing())])
    })
}

fn quiet(bench: &Bench, server: &Running, probes: &mut Engine) -> anyhow::Result<f64> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if work_when_idle().is_ok() {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        });
        let result = probes.run_for(bench.warm_up).and_then(|()| {
            probes.delays.clear();
            Span::watch(probes, server, 2 * bench.time)
        });
        over.store(true, Ordering::Relaxed);
        result
    })?;
    quantile_us(&mut std::mem::take(&mut probes.delays), 99).context("no frame came back")
}

fn stormy(
    bench: &Bench,
    server: &Running,
    probes: &mut Engine,
    clients: Vec<Client>,
    traffic: Traffic,
) -> anyhow::Result<(f64, Duration)> {
    let nodes: Vec<_> = clients.iter().map(|client| client.node).collect();
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let back = std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let result = work_when_idle().and_then(|()| {
                drop(clients);
                let wanted = nodes.iter().map(|&node| (node, receiver(server, Vec::new(), traffic)));
                sign_in_all_on(AT_ONCE, server, bench.tls(true), wanted.collect())
            });
            over.store(true, Ordering::Relaxed);
            result
        });
        let result = probes.run_until(begun + PATIENCE, |_| over.load(Ordering::Relaxed));
        let back = storm.join().ok().context("the storm ended badly")?;
        result.and(back)
    })?;
    let took = begun.elapsed();
    if took > PATIENCE {
        bail!("not all were back after {PATIENCE:?}");
    }
    drop(back);
    let p99 = quantile_us(&mut std::mem::take(&mut probes.delays), 99).context("no frame came back")?;
    Ok((p99, took))
}
