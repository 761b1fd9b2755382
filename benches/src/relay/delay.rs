//! How long a frame takes: from just before its sender writes it to just after its receiver has read it, on one clock. Frames that the
//! sender's socket does not take when they are due are not sent, and have no delay.

use std::time::Duration;

use anyhow::Context;

use super::contender::{self, Contender};
use super::engine::{Engine, Pace};
use super::row::{Bench, Sample};
use super::setup::{Background, Span, Traffic, interval, pairs, quantile_us};
use crate::stats::Summary;

const DRAIN: Duration = Duration::from_secs(2);
/// Each pair sends 500 a second.
const EVERY: Duration = Duration::from_millis(2);
/// Pairs without other load.
const PAIRS: u32 = 16;
/// Pairs that look while others load, and their frames' payload.
const PROBES: u32 = 4;
const PROBE_PAYLOAD: u16 = 64;
/// Pairs that load.
const LOADERS: u32 = 16;
/// Ids of those begin here.
const LOADERS_FROM: u32 = 1000;
/// Of the load, percent.
const LEVELS: [u32; 2] = [50, 150];
/// How often a full load is measured.
const PEAKS: usize = 3;
/// Each level is looked at so often, in turns, and the median counts: a hiccup of the machine is not the figure.
const TURNS: usize = 5;

/// Nothing but the frames that are timed: p50 and p99, microseconds.
pub(super) fn alone(bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        let traffic = Traffic { batch: 1, stamped: true, ..Traffic::batched(contender) };
        let mut engine = pairs(&server, bench.tls(true), 0, PAIRS, traffic)?;
        engine.pace_all(Pace::Every(EVERY));
        engine.run_for(bench.warm_up)?;
        engine.delays.clear();
        let span = Span::watch(&mut engine, &server, 2 * bench.time)?;
        let quantile =
            |delays: &mut [u64], percent| quantile_us(delays, percent).context("no frame came back");
        let half = quantile(&mut engine.delays, 50)?;
        let most = quantile(&mut engine.delays, 99)?;
        engine.drain(DRAIN)?;
        let sample = |value| Sample::of(value).used(&span).lost(engine.missing());
        Ok(vec![sample(half), sample(most)])
    })
}

/// What a full load is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FullLoad {
    /// The peak of the plain forwarder in this run.
    Plain,
    /// The contender's own peak.
    Own,
}

/// p99 at 150 percent of a load, over that at 50 percent.
pub(super) fn under_load(
    bench: &Bench,
    contender: &Contender,
    full: FullLoad,
) -> anyhow::Result<Vec<Sample>> {
    let full = match full {
        FullLoad::Plain => bench.plain_peak()?,
        FullLoad::Own => peak(bench, contender)?,
    };
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        let tls = bench.tls(true);
        let traffic = Traffic::batched(contender);
        let load = pairs(&server, tls, LOADERS_FROM, LOADERS, traffic)?;
        load.shorten_queues()?;
        let traffic = Traffic { payload: PROBE_PAYLOAD, batch: 1, stamped: true, ..traffic };
        let mut probes = pairs(&server, tls, 0, PROBES, traffic)?;
        probes.sleepy = true;
        probes.pace_all(Pace::Every(EVERY));
        let mut tails: [Vec<f64>; LEVELS.len()] = Default::default();
        let mut last = None;
        let load = std::thread::scope(|scope| {
            let load = Background::run(scope, load);
            for _ in 0..TURNS {
                for (level, tails) in LEVELS.iter().zip(&mut tails) {
                    let rate = full * f64::from(*level) / 100.0;
                    load.pace_all(Pace::Every(interval(rate, LOADERS as usize, 32)))?;
                    probes.run_for(bench.warm_up / 3)?;
                    probes.delays.clear();
                    last = Some(Span::watch(&mut probes, &server, bench.time / 3)?);
                    tails.push(quantile_us(&mut probes.delays, 99).context("no frame came back")?);
                }
            }
            load.end()
        })?;
        let [low, high] = tails.map(|tails| Summary::of(&tails).map_or(f64::NAN, |tails| tails.median));
        let mut sample = Sample::of(high / low).note(&format!("p99 {low:.0} and {high:.0} us"));
        if let Some(span) = last {
            sample = sample.used_by_server(&span);
        }
        Ok(vec![sample.note(&fate(&load))])
    })
}

/// Frames a second of the clock in the closed loop of 16 pairs.
pub(super) fn peak(bench: &Bench, contender: &Contender) -> anyhow::Result<f64> {
    let mut peaks = Vec::new();
    for _ in 0..PEAKS {
        let server = contender.start(bench.setting, true, 1)?;
        peaks.push(server.saying(|| {
            let mut engine = pairs(&server, bench.tls(true), 0, LOADERS, Traffic::batched(contender))?;
            engine.pace_all(Pace::Window(128));
            engine.run_for(bench.warm_up)?;
            Ok(Span::watch(&mut engine, &server, bench.time / 2)?.frames_per_second())
        })?);
    }
    Summary::of(&peaks).map(|peaks| peaks.median).context("no peak")
}

/// What a full load is for everybody.
pub(super) fn plain_peak(bench: &Bench) -> anyhow::Result<f64> {
    peak(bench, &contender::plain()).context("the peak of the plain forwarder")
}

/// Where the frames of a load went.
pub(super) fn fate(engine: &Engine) -> String {
    let sent: u64 = engine.flows.iter().map(|flow| flow.sent).sum();
    let refused: u64 = engine.flows.iter().map(|flow| flow.refused).sum();
    let percent = |part: u64| part as f64 / (sent + refused).max(1) as f64 * 100.0;
    format!("of the load {:.0} % refused, {:.0} % lost", percent(refused), percent(engine.missing()))
}
