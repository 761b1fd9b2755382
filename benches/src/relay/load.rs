//! The closed loop: pairs of clients, one sending and one receiving, with a window each so that the server is never offered more than it can
//! carry and never idle. One thread, one epoll.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConfig;

use meshdp::proto::id::NodeId;
use meshdp::proto::wire::control::server::TokenAuth;
use meshdp::proto::wire::control::{AuthRequest, ErrorMessage, parse, to_payload};
use meshdp::proto::wire::data::Route;
use meshdp::proto::wire::frame::{Flags, FrameType, write_frame};

use super::contender::{Packing, Running};
use super::stream::{Receiver, data_frame, write_masked};
use super::transport::{Reading, SCRATCH, Transport};
use crate::process::own_cpu;

/// A pair that has received nothing for so long has lost what it waits for.
const STALL: Duration = Duration::from_millis(300);
/// After the window, for what is still on its way.
const DRAIN: Duration = Duration::from_secs(3);
/// Batches that a pair sends before another one gets its turn.
const BATCHES_PER_TURN: u32 = 4;

/// What is offered to a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Senders, and as many receivers.
    pub(super) pairs: u32,
    /// Bytes of a frame after its header.
    pub(super) payload: u16,
    /// Frames that leave a sender in one write.
    pub(super) batch: u32,
    /// How they are packed.
    pub(super) packing: Packing,
    /// Frames of one pair that may be on their way.
    pub(super) window: u32,
    /// Before anything is measured.
    pub(super) warm_up: Duration,
    /// What is measured.
    pub(super) measured: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outcome {
    /// Frames received while it was measured.
    pub(super) frames: u64,
    /// How long that was.
    pub(super) wall: Duration,
    /// Nanoseconds of the server.
    pub(super) server_cpu: u64,
    /// Nanoseconds of ours.
    pub(super) client_cpu: u64,
    /// Frames sent and never received, warm-up and drain included.
    pub(super) lost: u64,
}

impl Outcome {
    /// Server CPU per frame.
    pub(super) fn cpu_ns_per_frame(&self) -> f64 {
        self.server_cpu as f64 / self.frames as f64
    }

    /// Throughput of a core: frames per second of the server's CPU time, which is a second of the clock for as long as the server is busy. So a
    /// neighbour that takes half of the core away does not halve the figure.
    pub(super) fn frames_per_second(&self) -> f64 {
        self.frames as f64 * 1e9 / self.server_cpu as f64
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

struct Client {
    transport: Transport,
    receiver: Receiver,
    /// In the queue of those to be read from.
    ready: bool,
}

struct Pair {
    /// What one send writes.
    batch: Vec<u8>,
    sent: u64,
    /// Given up, so that the window does not stay shut.
    lost: u64,
    /// For noticing a stall.
    seen: u64,
    seen_at: Instant,
    /// In the queue of those that may send.
    queued: bool,
}

/// Connects all clients to `server`, offers `load`, and measures.
pub(super) fn run(load: &Load, server: &Running, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<Outcome> {
    let mut engine = Engine::connect(load, server, tls)?;
    let start = Instant::now();
    engine.turn_until(start + load.warm_up, true)?;
    let (from, frames, server_cpu, client_cpu) =
        (Instant::now(), engine.received(), server.process.cpu()?, own_cpu()?);
    engine.turn_until(from + load.measured, true)?;
    let mut outcome = Outcome {
        frames: engine.received() - frames,
        wall: from.elapsed(),
        server_cpu: server.process.cpu()? - server_cpu,
        client_cpu: own_cpu()? - client_cpu,
        lost: 0,
    };
    engine.turn_until(Instant::now() + DRAIN, false)?;
    outcome.lost = engine.lost();
    if outcome.frames == 0 {
        bail!("no frame arrived");
    }
    Ok(outcome)
}

struct Engine {
    poll: Poll,
    events: Events,
    /// Pair `p` sends at `2 p` and receives at `2 p + 1`.
    clients: Vec<Client>,
    pairs: Vec<Pair>,
    readable: VecDeque<usize>,
    sendable: VecDeque<usize>,
    scratch: Vec<u8>,
    load: Load,
}

impl Engine {
    fn connect(load: &Load, server: &Running, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut clients = Vec::new();
        let mut pairs = Vec::new();
        for pair in 0..load.pairs {
            let (source, destination) = (NodeId(2 * pair + 1), NodeId(2 * pair + 2));
            for (own, other) in [(source, destination), (destination, source)] {
                let mut client = sign_in(load, server, tls.cloned(), own, other)
                    .with_context(|| format!("client {own} of {}", 2 * load.pairs))?;
                let interest = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut client.transport.socket, Token(clients.len()), interest)?;
                clients.push(client);
            }
            pairs.push(Pair {
                batch: batch(load, Route { source, destination }),
                sent: 0,
                lost: 0,
                seen: 0,
                seen_at: Instant::now(),
                queued: true,
            });
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(256),
            readable: VecDeque::new(),
            sendable: (0..pairs.len()).collect(),
            clients,
            pairs,
            scratch: vec![0; SCRATCH],
            load: *load,
        })
    }

    /// Runs until `end`, or until all has arrived when nothing is to be sent.
    fn turn_until(&mut self, end: Instant, sending: bool) -> anyhow::Result<()> {
        let mut check_at = Instant::now() + STALL;
        loop {
            let now = Instant::now();
            if now >= end || (!sending && self.lost() == 0) {
                return Ok(());
            }
            if now >= check_at {
                self.give_up_stalled(now);
                check_at = now + STALL;
            }
            let busy = !self.readable.is_empty() || (sending && !self.sendable.is_empty());
            let timeout = if busy { Duration::ZERO } else { Duration::from_millis(20) };
            self.events(timeout)?;
            // As many turns as there are now; those that come back wait for the next.
            for _ in 0..self.readable.len() {
                self.read_one()?;
            }
            if sending {
                for _ in 0..self.sendable.len() {
                    self.send_one()?;
                }
            }
        }
    }

    fn events(&mut self, timeout: Duration) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error).context("epoll"),
        }
        for event in &self.events {
            let index = event.token().0;
            let client = &mut self.clients[index];
            if event.is_writable() && client.transport.blocked() && client.transport.flush()? {
                queue_sender(&mut self.pairs, &mut self.sendable, index / 2);
            }
            if event.is_readable() && !client.ready {
                client.ready = true;
                self.readable.push_back(index);
            }
        }
        Ok(())
    }

    fn read_one(&mut self) -> anyhow::Result<()> {
        let Some(index) = self.readable.pop_front() else { return Ok(()) };
        let Client { transport, receiver, ready } = &mut self.clients[index];
        let before = receiver.frames;
        match transport.receive(&mut self.scratch, &mut |bytes| receiver.push(bytes))? {
            Reading::Drained => *ready = false,
            Reading::More => self.readable.push_back(index),
        }
        for (kind, payload) in receiver.notes.drain(..) {
            note(kind, &payload)?;
        }
        if receiver.frames > before {
            queue_sender(&mut self.pairs, &mut self.sendable, index / 2);
        }
        Ok(())
    }

    fn send_one(&mut self) -> anyhow::Result<()> {
        let Some(index) = self.sendable.pop_front() else { return Ok(()) };
        let pair = &mut self.pairs[index];
        let received = self.clients[2 * index + 1].receiver.frames;
        let sender = &mut self.clients[2 * index].transport;
        let batch = u64::from(self.load.batch);
        pair.queued = false;
        let writes = BATCHES_PER_TURN * (32 / self.load.batch.clamp(1, 32));
        // What was given up may have been late only.
        pair.lost = pair.lost.min(pair.sent.saturating_sub(received));
        for _ in 0..writes {
            let on_the_way = pair.sent.saturating_sub(pair.lost).saturating_sub(received);
            if on_the_way + batch > u64::from(self.load.window) || sender.blocked() {
                return Ok(());
            }
            sender.send(&pair.batch, &mut self.scratch)?;
            pair.sent += batch;
        }
        queue_sender(&mut self.pairs, &mut self.sendable, index);
        Ok(())
    }

    /// A pair whose frames do not come gets its window back; what did not come is lost.
    fn give_up_stalled(&mut self, now: Instant) {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let received = self.clients[2 * index + 1].receiver.frames;
            if received != pair.seen {
                (pair.seen, pair.seen_at) = (received, now);
            } else if now - pair.seen_at >= STALL && pair.sent > pair.lost + received {
                pair.lost = pair.sent - received;
                if !pair.queued {
                    pair.queued = true;
                    self.sendable.push_back(index);
                }
            }
        }
    }

    fn received(&self) -> u64 {
        self.clients.iter().map(|client| client.receiver.frames).sum()
    }

    fn lost(&self) -> u64 {
        let sent: u64 = self.pairs.iter().map(|pair| pair.sent).sum();
        sent.saturating_sub(self.received())
    }
}

fn queue_sender(pairs: &mut [Pair], sendable: &mut VecDeque<usize>, index: usize) {
    if !std::mem::replace(&mut pairs[index].queued, true) {
        sendable.push_back(index);
    }
}

/// What one send writes.
fn batch(load: &Load, route: Route) -> Vec<u8> {
    let frame = data_frame(route, load.payload);
    let mut out = Vec::new();
    match load.packing {
        Packing::OneMessage => write_masked(&frame.repeat(load.batch as usize), &mut out),
        Packing::MessageEach => (0..load.batch).for_each(|_| write_masked(&frame, &mut out)),
    }
    out
}

fn sign_in(
    load: &Load,
    server: &Running,
    tls: Option<Arc<ClientConfig>>,
    own: NodeId,
    other: NodeId,
) -> anyhow::Result<Client> {
    let mut receiver = Receiver::new(other, own, load.payload);
    let mut transport =
        Transport::connect(server.address, tls, "/ws/data", &mut |bytes| receiver.push(bytes))?;
    let request = AuthRequest::Relay(TokenAuth {
        token: (server.token)(own)?.into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    let (mut frame, mut message) = (Vec::new(), Vec::new());
    write_frame(FrameType::AuthRequest, Flags::NONE, &to_payload(&request), &mut frame)?;
    write_masked(&frame, &mut message);
    transport.send_patiently(&message)?;
    transport.receive_until("AUTH_RESPONSE", |bytes| {
        receiver.push(bytes)?;
        for (kind, payload) in receiver.notes.drain(..) {
            if kind == FrameType::AuthResponse {
                return Ok(Some(()));
            }
            note(kind, &payload)?;
        }
        Ok(None)
    })?;
    Ok(Client { transport, receiver, ready: false })
}

/// A frame that is not DATA: an error ends the measurement, anything else is the server's own business.
fn note(kind: FrameType, payload: &[u8]) -> anyhow::Result<()> {
    if kind == FrameType::Error {
        let error: ErrorMessage = parse(kind, payload)?;
        bail!("the server answered: {:?} {}", error.code, error.message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Route = Route { source: NodeId(1), destination: NodeId(2) };

    fn load(batch: u32, packing: Packing) -> Load {
        Load {
            pairs: 1,
            payload: 1400,
            batch,
            packing,
            window: 64,
            warm_up: Duration::ZERO,
            measured: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_batch_is_one_message_or_one_for_each_frame() {
        let one = batch(&load(32, Packing::OneMessage), ROUTE);
        let each = batch(&load(32, Packing::MessageEach), ROUTE);
        assert_eq!(one.len(), 8 + 32 * 1405);
        assert_eq!(each.len(), 32 * (8 + 1405));
        assert_eq!(batch(&load(1, Packing::OneMessage), ROUTE), batch(&load(1, Packing::MessageEach), ROUTE));
    }

    #[test]
    fn figures_are_per_frame_and_per_second_of_cpu() {
        let outcome = Outcome {
            frames: 1_000_000,
            wall: Duration::from_secs(2),
            server_cpu: 1_900_000_000,
            client_cpu: 1_000_000_000,
            lost: 0,
        };
        assert!((outcome.cpu_ns_per_frame() - 1900.0).abs() < 1e-9);
        assert!((outcome.frames_per_second() * 1.9 - 1_000_000.0).abs() < 1e-3);
        assert!((outcome.server_percent() - 95.0).abs() < 1e-9);
        assert!((outcome.client_percent() - 50.0).abs() < 1e-9);
    }
}
