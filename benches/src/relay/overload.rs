//! More than fits: goodput, what others lose to one that is greedy, and how even the shares are.

use std::time::Duration;

use meshdp::proto::id::NodeId;

use super::client::sign_in_all;
use super::contender::{Contender, Running};
use super::delay::fate;
use super::engine::{Engine, Flow, Pace};
use super::row::{Bench, Sample};
use super::setup::{Span, Traffic, batch, interval, pairs, receiver};

const DRAIN: Duration = Duration::from_millis(700);
/// Peak and overload take turns, because a machine that others use changes its speed.
const TURNS: usize = 2;
const PAIRS: u32 = 16;
const WINDOW: u64 = 128;
/// Times the peak.
const OFFERED: f64 = 3.0;
/// Times what each of the others sends.
const GREED: f64 = 100.0;
/// Flows that are compared.
const FLOWS: u32 = 100;

/// Delivered under three times the load that fits, percent of the peak, both on the same server.
pub(super) fn goodput(bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        let traffic = Traffic::batched(contender);
        let mut engine = pairs(&server, bench.tls(true), 0, PAIRS, traffic)?;
        engine.shorten_queues()?;
        let (mut peaks, mut overs) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let peak = peak(bench, &server, &mut engine)?;
            let offered = interval(OFFERED * peak.frames_per_second(), PAIRS as usize, traffic.batch);
            engine.pace_all(Pace::Every(offered));
            engine.run_for(bench.warm_up)?;
            overs.push(Span::watch(&mut engine, &server, bench.time / 2)?);
            engine.drain(DRAIN)?;
            peaks.push(peak);
        }
        let percent = |of: &dyn Fn(&Span) -> f64| {
            overs.iter().map(of).sum::<f64>() / peaks.iter().map(of).sum::<f64>() * 100.0
        };
        let per_cpu = percent(&Span::frames_per_cpu_second);
        let note = format!("{per_cpu:.0} % per second of the server's CPU; {}", fate(&engine));
        Ok(vec![Sample::of(percent(&Span::frames_per_second)).busy(&overs[TURNS - 1]).note(&note)])
    })
}

fn peak(bench: &Bench, server: &Running, engine: &mut Engine) -> anyhow::Result<Span> {
    engine.pace_all(Pace::Window(WINDOW));
    engine.run_for(bench.warm_up)?;
    let peak = Span::watch(engine, server, bench.time / 2)?;
    engine.drain(DRAIN)?;
    Ok(peak)
}

/// Fifteen pairs send what would be half of the peak if there were sixteen of them; the sixteenth sends a hundred times as much, to the receiver of
/// one of the others. Frames of the fifteen that did not arrive (refused by a socket when they were due, or lost), percent.
pub(super) fn greedy(bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        let traffic = Traffic { batch: 8, ..Traffic::batched(contender) };
        let mut engine = with_a_shared_receiver(bench, &server, traffic)?;
        let peak = peak(bench, &server, &mut engine)?.frames_per_second();
        let before = fates(&engine);
        let share = peak / 2.0 / f64::from(PAIRS);
        engine.pace_all(Pace::Every(interval(share, 1, traffic.batch)));
        engine.pace(0, Pace::Every(interval(share * GREED, 1, traffic.batch)));
        engine.run_for(bench.warm_up)?;
        let span = Span::watch(&mut engine, &server, bench.time)?;
        engine.drain(3 * DRAIN)?;
        let (mut offered, mut delivered) = (0, 0);
        for (after, before) in fates(&engine).iter().zip(before).skip(1) {
            offered += after.0 - before.0;
            delivered += after.1 - before.1;
        }
        let loss = offered.saturating_sub(delivered) as f64 / offered.max(1) as f64 * 100.0;
        Ok(vec![Sample::of(loss).used(&span)])
    })
}

/// Offered and delivered frames of each flow.
fn fates(engine: &Engine) -> Vec<(u64, u64)> {
    let fate = |flow: usize| {
        let Flow { sent, refused, .. } = engine.flows[flow];
        (sent + refused, engine.delivered(flow))
    };
    (0..engine.flows.len()).map(fate).collect()
}

/// Sixteen senders and fifteen receivers: flows 0 and 1 go to the same one.
fn with_a_shared_receiver(bench: &Bench, server: &Running, traffic: Traffic) -> anyhow::Result<Engine> {
    let (sender, own) = (|flow: u32| NodeId(2 * flow + 1), |flow: u32| NodeId(2 * flow.max(1) + 2));
    let head = |flow| server.dialect.head(sender(flow), own(flow), traffic.payload);
    let mut wanted = Vec::new();
    for flow in 0..PAIRS {
        wanted.push((sender(flow), receiver(server, Vec::new(), traffic)));
    }
    for flow in 1..PAIRS {
        let heads = if flow == 1 { vec![head(1), head(0)] } else { vec![head(flow)] };
        wanted.push((own(flow), receiver(server, heads, traffic)));
    }
    let clients = sign_in_all(server, bench.tls(true), wanted)?;
    let flow = |flow: u32| {
        let to = (PAIRS + flow.max(1) - 1) as usize;
        let source = usize::from(flow == 0);
        Flow::new(flow as usize, to, source, batch(server, traffic, sender(flow), own(flow)))
    };
    Engine::new(clients, (0..PAIRS).map(flow).collect())
}

/// Every flow sends as much as its socket takes; Jain's index of what they deliver: 1 when all deliver the same, 1/100 when one delivers all.
pub(super) fn evenness(bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        let mut engine = pairs(&server, bench.tls(true), 0, FLOWS, Traffic::batched(contender))?;
        engine.pace_all(Pace::Flood);
        engine.run_for(2 * bench.warm_up)?;
        let delivered = |engine: &Engine| -> Vec<u64> {
            (0..engine.flows.len()).map(|flow| engine.delivered(flow)).collect()
        };
        let before = delivered(&engine);
        let span = Span::watch(&mut engine, &server, 2 * bench.time)?;
        let shares: Vec<f64> =
            delivered(&engine).iter().zip(before).map(|(after, before)| (after - before) as f64).collect();
        Ok(vec![Sample::of(jain(&shares)).busy(&span)])
    })
}

fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares > 0.0 { sum * sum / (shares.len() as f64 * squares) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_one_for_equals_and_small_for_one_alone() {
        assert!((jain(&[5.0; 100]) - 1.0).abs() < 1e-9);
        let mut alone = [0.0; 100];
        alone[3] = 7.0;
        assert!((jain(&alone) - 0.01).abs() < 1e-9);
        assert!(jain(&[0.0; 3]).abs() < 1e-9);
    }
}
