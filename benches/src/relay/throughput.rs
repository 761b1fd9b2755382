//! The closed loop: every pair has a window, so that the server is never offered more than it can carry and never idle.

use std::time::Duration;

use super::contender::Contender;
use super::engine::Pace;
use super::row::{Bench, Sample};
use super::setup::{Span, Traffic, pairs};

/// After what is measured, for what is still on its way; on a machine that others use it may take so long.
const DRAIN: Duration = Duration::from_secs(10);
/// Frames on their way from one peer, two batches; and between all of them together, however many there are: as many as few peers' windows let.
const PEER_WINDOW: u64 = 64;

/// What is offered to a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) pairs: u32,
    pub(super) payload: u16,
    pub(super) batch: u32,
    /// Frames of one pair that may be on their way.
    pub(super) window: u64,
    pub(super) tls: bool,
    /// What is told of it.
    pub(super) figure: Figure,
}

/// What a row says about a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Figure {
    CpuPerFrame,
    FramesPerSecond,
}

/// Figures of one server under `load`.
pub(super) fn measure(bench: &Bench, contender: &Contender, load: &Load) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, load.tls, 1)?;
    server.saying(|| {
        let traffic = Traffic { payload: load.payload, batch: load.batch, ..Traffic::batched(contender) };
        let mut engine = pairs(&server, bench.tls(load.tls), 0, load.pairs, traffic)?;
        engine.pace_all(Pace::Window(bench.window.unwrap_or(load.window).max(u64::from(load.batch))));
        engine.run_for(bench.warm_up)?;
        let span = Span::watch(&mut engine, &server, bench.time)?;
        engine.drain(DRAIN)?;
        let value = match load.figure {
            Figure::CpuPerFrame => span.cpu_ns_per_frame(),
            Figure::FramesPerSecond => span.frames_per_cpu_second(),
        };
        Ok(vec![Sample::of(value).busy(&span).lost(engine.missing())])
    })
}

/// Throughput with many peers, percent of that with few. All of them send in turn, and what is on its way at once is the same.
pub(super) fn many_peers(
    bench: &Bench,
    contender: &Contender,
    few: u32,
    many: u32,
) -> anyhow::Result<Vec<Sample>> {
    let with = |peers: u32| {
        let server = contender.start(bench.setting, true, 1)?;
        server.saying(|| {
            let mut engine = pairs(&server, bench.tls(true), 0, peers / 2, Traffic::batched(contender))?;
            engine.set_budget(PEER_WINDOW * u64::from(few / 2));
            engine.pace_all(Pace::Window(PEER_WINDOW));
            engine.run_for(bench.warm_up)?;
            let span = Span::watch(&mut engine, &server, bench.time)?;
            engine.drain(DRAIN)?;
            Ok((span, engine.missing()))
        })
    };
    let (base, _) = with(few)?;
    let (span, lost) = with(many)?;
    let percent = span.frames_per_cpu_second() / base.frames_per_cpu_second() * 100.0;
    let note = format!("{:.0} and {:.0} ns a frame", base.cpu_ns_per_frame(), span.cpu_ns_per_frame());
    Ok(vec![Sample::of(percent).busy(&span).lost(lost).note(&note)])
}
