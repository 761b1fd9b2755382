//! What scenarios have in common: pairs of clients, what happens between two instants, and a load that goes on in the background.

use std::sync::Arc;
use std::sync::mpsc::{Receiver as Inbox, Sender, TryRecvError, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use meshdp::proto::id::NodeId;
use rustls::ClientConfig;

use super::client::{Client, sign_in_all};
use super::contender::{Contender, Running};
use super::dialect::{Batch, Packing};
use super::engine::{Engine, Flow, Pace};
use super::receiver::Receiver;
use crate::process::{own_cpu, work_when_idle};

/// For the first frame.
const PATIENCE: Duration = Duration::from_secs(3);
/// Commands to a load in the background are noticed after so long.
const TURN: Duration = Duration::from_millis(5);

/// What the clients of one engine send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// Bytes of a frame after its header.
    pub(super) payload: u16,
    /// Frames that leave a sender in one write.
    pub(super) batch: u32,
    /// How they are packed.
    pub(super) packing: Packing,
    /// Frames say when they were sent. One frame in a batch, then.
    pub(super) stamped: bool,
}

impl Traffic {
    /// 1400 bytes, 32 frames a write.
    pub(super) const fn batched(contender: &Contender) -> Self {
        Self { payload: 1400, batch: 32, packing: contender.packing, stamped: false }
    }
}

/// Signs in `count` senders and as many receivers; ids begin after `first`.
pub(super) fn pairs(
    server: &Running,
    tls: Option<&Arc<ClientConfig>>,
    first: u32,
    count: u32,
    traffic: Traffic,
) -> anyhow::Result<Engine> {
    let node = |index: u32| NodeId(first + index + 1);
    let wanted = (0..2 * count).map(|own| {
        let heads = vec![server.dialect.head(node(own ^ 1), node(own), traffic.payload)];
        (node(own), receiver(server, heads, traffic))
    });
    let clients = sign_in_all(server, tls, wanted.collect())?;
    let flow = |pair: u32| {
        let (from, to) = (2 * pair as usize, 2 * pair as usize + 1);
        let flow = Flow::new(from, to, 0, batch(server, traffic, node(2 * pair), node(2 * pair + 1)));
        if traffic.stamped { flow.stamped() } else { flow }
    };
    Engine::new(clients, (0..count).map(flow).collect())
}

/// For a client that expects frames with these heads.
pub(super) fn receiver(server: &Running, heads: Vec<Vec<u8>>, traffic: Traffic) -> Receiver {
    Receiver::new(server.dialect, heads, server.dialect.whole(traffic.payload), traffic.stamped)
}

/// What one send of a flow writes.
pub(super) fn batch(server: &Running, traffic: Traffic, source: NodeId, destination: NodeId) -> Batch {
    Batch::new(server.dialect, traffic.packing, source, destination, traffic.payload, traffic.batch)
}

/// What happened between two instants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    /// Frames received.
    pub(super) frames: u64,
    /// How long it was.
    pub(super) wall: Duration,
    /// Nanoseconds of the server.
    pub(super) server_cpu: u64,
    /// Nanoseconds of ours.
    pub(super) client_cpu: u64,
}

impl Span {
    /// Runs `engine` for `time`, or until there is something to tell, and watches.
    pub(super) fn watch(engine: &mut Engine, server: &Running, time: Duration) -> anyhow::Result<Self> {
        let (from, frames, server_cpu, client_cpu) =
            (Instant::now(), engine.received(), server.process.cpu()?, own_cpu()?);
        engine.run_for(time)?;
        // Somebody else may have had the cores.
        engine.run_until(from + time + PATIENCE, |engine| engine.received() > frames)?;
        let span = Self {
            frames: engine.received() - frames,
            wall: from.elapsed(),
            server_cpu: server.process.cpu()? - server_cpu,
            client_cpu: own_cpu()? - client_cpu,
        };
        if span.frames == 0 {
            bail!("no frame arrived");
        }
        Ok(span)
    }

    /// Server CPU per frame.
    pub(super) fn cpu_ns_per_frame(&self) -> f64 {
        self.server_cpu as f64 / self.frames as f64
    }

    /// Throughput of a core: frames per second of the server's CPU time, which is a second of the clock for as long as the server is busy. So a
    /// neighbour that takes half of the core away does not halve the figure.
    pub(super) fn frames_per_cpu_second(&self) -> f64 {
        self.frames as f64 * 1e9 / self.server_cpu as f64
    }

    /// Frames per second of the clock.
    pub(super) fn frames_per_second(&self) -> f64 {
        self.frames as f64 / self.wall.as_secs_f64()
    }

    /// Share of a core that the server used, percent.
    pub(super) fn server_percent(&self) -> f64 {
        percent(self.server_cpu, self.wall)
    }

    /// Share of a core that the clients used, percent.
    pub(super) fn client_percent(&self) -> f64 {
        percent(self.client_cpu, self.wall)
    }
}

fn percent(cpu_ns: u64, wall: Duration) -> f64 {
    cpu_ns as f64 / wall.as_nanos() as f64 * 100.0
}

/// The time from one batch to the next when one of `flows` has its part of `frames_per_second`.
pub(super) fn interval(frames_per_second: f64, flows: usize, batch: u32) -> Duration {
    Duration::from_secs_f64(f64::from(batch) * flows as f64 / frames_per_second.max(1.0))
}

/// The value below which `percent` of them are, in microseconds; `None` without any.
pub(super) fn quantile_us(delays: &mut [u64], percent: usize) -> Option<f64> {
    let last = delays.len().checked_sub(1)?;
    let (_, value, _) = delays.select_nth_unstable((last * percent + 50) / 100);
    Some(*value as f64 / 1000.0)
}

/// A load on a thread that gives way to whoever else wants the core, so that it is not in the way of those that look at the clock.
pub(super) struct Background<'scope> {
    orders: Sender<Pace>,
    thread: ScopedJoinHandle<'scope, anyhow::Result<Engine>>,
}

impl<'scope> Background<'scope> {
    /// Lets `engine` run.
    pub(super) fn run<'env>(scope: &'scope Scope<'scope, 'env>, engine: Engine) -> Self {
        let (orders, inbox) = channel();
        Self { orders, thread: scope.spawn(move || obey(engine, &inbox)) }
    }

    /// How fast all its flows go from now on.
    pub(super) fn pace_all(&self, pace: Pace) -> anyhow::Result<()> {
        self.orders.send(pace).ok().context("the load in the background ended")
    }

    /// Ends it.
    pub(super) fn end(self) -> anyhow::Result<Engine> {
        drop(self.orders);
        self.thread.join().ok().context("the load in the background ended badly")?
    }
}

fn obey(mut engine: Engine, inbox: &Inbox<Pace>) -> anyhow::Result<Engine> {
    work_when_idle()?;
    loop {
        match inbox.try_recv() {
            Ok(pace) => engine.pace_all(pace),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(engine),
        }
        engine.run_for(TURN)?;
    }
}

/// Clients without anything to send, to be kept.
pub(super) fn silent(
    server: &Running,
    tls: Option<&Arc<ClientConfig>>,
    first: u32,
    count: u32,
    traffic: Traffic,
) -> anyhow::Result<Vec<Client>> {
    let wanted = (1..=count).map(|index| (NodeId(first + index), receiver(server, Vec::new(), traffic)));
    sign_in_all(server, tls, wanted.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_per_frame_and_per_second_of_cpu() {
        let span = Span {
            frames: 1_000_000,
            wall: Duration::from_secs(2),
            server_cpu: 1_900_000_000,
            client_cpu: 1_000_000_000,
        };
        assert!((span.cpu_ns_per_frame() - 1900.0).abs() < 1e-9);
        assert!((span.frames_per_cpu_second() * 1.9 - 1_000_000.0).abs() < 1e-3);
        assert!((span.frames_per_second() - 500_000.0).abs() < 1e-3);
        assert!((span.server_percent() - 95.0).abs() < 1e-9);
        assert!((span.client_percent() - 50.0).abs() < 1e-9);
    }

    #[test]
    fn all_flows_together_have_the_rate() {
        assert_eq!(interval(3200.0, 10, 32), Duration::from_millis(100));
    }

    #[test]
    fn quantiles_are_in_microseconds() {
        let mut delays: Vec<u64> = (0..=100).rev().map(|us| us * 1000).collect();
        assert_eq!(quantile_us(&mut delays, 50), Some(50.0));
        assert_eq!(quantile_us(&mut delays, 99), Some(99.0));
        assert_eq!(quantile_us(&mut [], 99), None);
    }
}
