//! What waits for a slow receiver, who gets its place, and what is dropped first.
//!
//! Each connection has a [`Queue`]. While its receiver keeps up, data goes straight into the connection's backlog (the engine's outbox: shallow, coalesced,
//! one copy) and nothing else happens. When more than [`QueuePolicy::high`] waits there behind a send, or anything waits too long, the connection is congested: from then
//! on data goes through a fair queue that gives every source its turn and refills the backlog up to [`QueuePolicy::low`] whenever something was sent. It is left when
//! it is empty, not before, so that a receiver at the edge does not flip to and fro. Data is bounded in bytes and in age, and the oldest goes first: a
//! receiver that falls behind sees a gap, then fresh packets, and never holds up anyone else; a sender is never stopped from being read.
//!
//! PONG, errors and session handshakes are urgent and overtake data; for handshakes that comes out of an allowance, because nodes choose how many
//! they send: what exceeds it waits in line with the sender's data.
//!
//! [`Queues`] is what the queues of one worker share: limits, memory, counters. The backlog is the engine's, behind [`Backlog`].

use std::time::Duration;

use super::delay::DelayHistogram;
use super::fair_queue::FairQueue;
use super::frame_fifo::{BLOCK, Blocks};
use super::rate::{Rate, TokenBucket};
use crate::proto::drop_reason::{DropCounters, DropReason};
use crate::proto::time::Instant;
use crate::proto::wire::data;
use crate::proto::wire::frame::{FrameType, Frames, MAX_FRAME};

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePolicy {
    /// Bytes of data per receiver, besides what the backlog holds. 1 MiB is 80 ms of 100 Mbit/s: more would be delay, not throughput.
    pub max_bytes: usize,
    /// How long data may wait. TCP has given a packet up, or sent it again, after a second.
    pub max_age: Duration,
    /// Bytes for all receivers of a worker together, and half as much again in their backlogs. When they are used up, a receiver gets more room only for
    /// what it drops.
    pub max_total: usize,
    /// A backlog with more than this makes a connection congested, when a send has been under way since an earlier round: two sends.
    pub high: usize,
    /// The same when nothing holds it up: what may be received for one connection before there is a chance to send any of it.
    pub burst: usize,
    /// Up to here a congested connection's backlog is refilled: one send, ready when the one before it is done.
    pub low: usize,
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 20,
            max_age: Duration::from_secs(1),
            max_total: 256 << 20,
            high: 128 << 10,
            burst: 640 << 10,
            low: 64 << 10,
        }
    }
}

impl QueuePolicy {
    /// What a backlog has to take: it is filled up to a mark, or over one by one frame.
    pub const fn backlog_bytes(&self) -> usize {
        self.burst + 2 * MAX_FRAME
    }

    /// What a backlog may have when memory is short: enough for who takes it at once.
    fn little(&self) -> usize {
        self.low / 4
    }

    /// What waits that long in a backlog tells that its connection does not move.
    fn stall(&self) -> Duration {
        self.max_age / 8
    }
}

/// Frames that wait for one connection.
pub trait Backlog {
    /// Bytes of data that wait.
    fn queued(&self) -> usize;
    /// Room for a frame of that length that arrived at `at`, to be written and then made to count by [`Self::commit`]; `None` when there is none.
    fn reserve(&mut self, len: usize, at: Instant) -> Option<&mut [u8]>;
    /// Counts what was reserved as that many frames.
    fn commit(&mut self, len: usize, frames: usize);
    /// Appends a frame that goes before all data. Whether there was room.
    fn push_urgent(&mut self, frame: &[u8], now: Instant) -> bool;
    /// Drops the oldest data (one frame or several); how many frames, 0 when there is none.
    fn drop_oldest(&mut self) -> usize;
    /// Drops data from before `before`; how many frames.
    fn drop_older_than(&mut self, before: Instant) -> usize;
}

/// Whether frames of this kind overtake data.
pub const fn is_urgent(kind: FrameType) -> bool {
    !matches!(kind, FrameType::Data)
}

/// What one receiver is sent of nodes' handshakes before data: 256 a second, and a node's with a thousand peers at once.
const HANDSHAKES: Rate = Rate { bytes_per_s: 64 << 10, frames_per_s: 0 };
const HANDSHAKE_BURST: Duration = Duration::from_secs(4);

/// One connection's queue. Empty until its receiver falls behind.
#[derive(Debug, Default)]
pub struct Queue {
    fair: Option<Box<FairQueue>>,
    /// Bytes ever put into the backlog.
    pushed: u64,
    /// Bytes in it when it was last looked at.
    staged: usize,
    probe: Option<Probe>,
    /// Since when the last send is under way.
    sending: Option<Instant>,
    handshakes: TokenBucket,
    dropped: u64,
}

/// One frame of the backlog that is watched until it is sent: samples the delay, and tells when nothing moves.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// It is out when that many bytes are.
    end: u64,
    at: Instant,
}

impl Queue {
    /// Bytes of data that wait beside the backlog.
    pub fn queued(&self) -> usize {
        self.fair.as_ref().map_or(0, |fair| fair.bytes())
    }

    /// Frames that wait beside the backlog.
    pub fn frames(&self) -> usize {
        self.fair.as_ref().map_or(0, |fair| fair.frames())
    }

    /// Whether data goes through the fair queue.
    pub fn is_congested(&self) -> bool {
        self.fair.is_some()
    }

    /// Frames dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn pushed(&mut self, len: usize, at: Instant) {
        self.pushed += len as u64;
        if self.probe.is_none() {
            self.probe = Some(Probe { end: self.pushed, at });
        }
    }
}

/// What the queues of one worker share.
#[derive(Debug)]
pub struct Queues {
    policy: QueuePolicy,
    stock: Blocks,
    #[allow(clippy::vec_box, reason = "they go to connections and come back as they are")]
    idle: Vec<Box<FairQueue>>,
    congested: usize,
    /// Bytes in all backlogs.
    staged: usize,
    drops: DropCounters,
    delays: DelayHistogram,
}

/// Fair queues kept for the next congestion, and how many flows one of them may have grown to.
const KEPT_QUEUES: usize = 16;
const KEPT_FLOWS: usize = 256;

impl Queues {
    /// None yet.
    pub fn new(policy: QueuePolicy) -> Self {
        Self {
            policy,
            stock: Blocks::new(policy.max_total),
            idle: Vec::new(),
            congested: 0,
            staged: 0,
            drops: DropCounters::default(),
            delays: DelayHistogram::default(),
        }
    }

    /// The limits.
    pub fn policy(&self) -> &QueuePolicy {
        &self.policy
    }

    /// Drops so far.
    pub fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// The same, for those who drop beside the queues.
    pub fn drops_mut(&mut self) -> &mut DropCounters {
        &mut self.drops
    }

    /// How long frames have waited.
    pub fn delays(&self) -> &DelayHistogram {
        &self.delays
    }

    /// Connections that are congested.
    pub fn congested(&self) -> usize {
        self.congested
    }

    /// Memory that waiting data takes, in bytes.
    pub fn held(&self) -> usize {
        self.stock.used() * BLOCK + self.staged
    }

    /// DATA frames of one node for another, one behind the other, in all no longer than a message: at once when the way is free, else one by one.
    pub fn admit_run(&mut self, queue: &mut Queue, backlog: &mut impl Backlog, frames: &[u8], now: Instant) {
        let data = frames.get(1).copied() == Some(FrameType::Data as u8);
        if data && queue.fair.is_none() && self.admit_free(queue, backlog, frames, now) {
            return;
        }
        for frame in Frames::new(frames).flatten() {
            self.admit(queue, backlog, frame.bytes, now);
        }
    }

    /// A frame of one node for another: straight into the backlog, or into its source's line. What is dropped for it is counted.
    pub fn admit(&mut self, queue: &mut Queue, backlog: &mut impl Backlog, frame: &[u8], now: Instant) {
        let kind = frame.get(1).copied().and_then(FrameType::from_byte);
        if kind.is_some_and(is_urgent) {
            let within = queue.handshakes.take(frame.len(), HANDSHAKES.bytes_per_s, HANDSHAKE_BURST, now);
            if within && backlog.push_urgent(frame, now) {
                return;
            }
        }
        if queue.fair.is_none() {
            if self.admit_free(queue, backlog, frame, now) {
                return;
            }
            self.congested += 1;
        }
        let Ok(route) = data::route(frame) else { return };
        let fair = queue.fair.get_or_insert_with(|| self.idle.pop().unwrap_or_default());
        let dropped = fair.push(route.source, frame, now, self.policy.max_bytes, &mut self.stock) as u64;
        queue.dropped += dropped;
        self.drops.add(DropReason::QueueFull, dropped);
        // One frame that is longer than all that may wait.
        self.release_if_empty(queue);
    }

    /// Whether it went straight into the backlog.
    fn admit_free(
        &mut self,
        queue: &mut Queue,
        backlog: &mut impl Backlog,
        frames: &[u8],
        now: Instant,
    ) -> bool {
        let moves = queue.probe.is_none_or(|probe| now - probe.at <= self.policy.stall());
        let high = match queue.sending {
            _ if self.is_short_of_memory() => self.policy.little(),
            Some(since) if since < now => self.policy.high,
            _ => self.policy.burst,
        };
        let free = moves && backlog.queued() + frames.len() <= high && put(backlog, frames, now);
        if free {
            queue.pushed(frames.len(), now);
            self.restage(queue, backlog);
        }
        free
    }

    /// A frame of the relay's own.
    pub fn admit_urgent(
        &mut self,
        queue: &mut Queue,
        backlog: &mut impl Backlog,
        frame: &[u8],
        now: Instant,
    ) {
        if !backlog.push_urgent(frame, now) {
            queue.dropped += 1;
            self.drops.count(DropReason::QueueFull);
        }
    }

    /// Before the next bytes are taken out of the backlog, the last send being done: what has waited too long goes, and those whose turn it is move up.
    pub fn refill(&mut self, queue: &mut Queue, backlog: &mut impl Backlog, now: Instant) {
        queue.sending = None;
        let before = now.before(self.policy.max_age);
        if let Some(before) = before.filter(|_| backlog.queued() > 0) {
            let frames = backlog.drop_older_than(before) as u64;
            queue.dropped += frames;
            self.drops.add(DropReason::QueueAge, frames);
        }
        let low = if self.is_short_of_memory() { self.policy.little() } else { self.policy.low };
        let Some(fair) = &mut queue.fair else { return self.restage(queue, backlog) };
        while backlog.queued() < low {
            let Some(head) = fair.front() else { break };
            if before.is_some_and(|before| head.at < before) {
                fair.discard(&mut self.stock);
                queue.dropped += 1;
                self.drops.count(DropReason::QueueAge);
                continue;
            }
            let Some(room) = backlog.reserve(head.len, head.at) else { break };
            fair.pop(room, &mut self.stock);
            backlog.commit(head.len, 1);
            queue.pushed += head.len as u64;
            let end = queue.pushed;
            queue.probe.get_or_insert(Probe { end, at: head.at });
        }
        self.release_if_empty(queue);
        self.restage(queue, backlog);
    }

    /// Bytes were taken out of the backlog and are being sent.
    pub fn sent(&mut self, queue: &mut Queue, backlog: &impl Backlog, now: Instant) {
        queue.sending = Some(now);
        self.restage(queue, backlog);
        let Some(probe) = queue.probe else { return };
        let left = backlog.queued() as u64;
        if left == 0 || queue.pushed.saturating_sub(left) >= probe.end {
            self.delays.record(now - probe.at);
            queue.probe = None;
        }
    }

    /// All data that waits is dropped for `reason`; urgent frames stay.
    pub fn discard(&mut self, queue: &mut Queue, backlog: &mut impl Backlog, reason: DropReason) {
        let mut frames = 0;
        loop {
            match backlog.drop_oldest() {
                0 => break,
                dropped => frames += dropped,
            }
        }
        if let Some(fair) = &mut queue.fair {
            frames += fair.clear(&mut self.stock);
        }
        self.release_if_empty(queue);
        self.restage(queue, backlog);
        queue.probe = None;
        queue.dropped += frames as u64;
        self.drops.add(reason, frames as u64);
    }

    fn is_short_of_memory(&self) -> bool {
        self.staged > self.policy.max_total / 2
    }

    fn restage(&mut self, queue: &mut Queue, backlog: &impl Backlog) {
        let now = backlog.queued();
        self.staged = self.staged - std::mem::replace(&mut queue.staged, now) + now;
    }

    fn release_if_empty(&mut self, queue: &mut Queue) {
        if let Some(fair) = queue.fair.take_if(|fair| fair.is_empty()) {
            self.congested -= 1;
            if self.idle.len() < KEPT_QUEUES && fair.capacity() <= KEPT_FLOWS {
                self.idle.push(fair);
            }
        }
    }
}

fn put(backlog: &mut impl Backlog, frames: &[u8], now: Instant) -> bool {
    let Some(room) = backlog.reserve(frames.len(), now) else { return false };
    room.copy_from_slice(frames);
    backlog.commit(frames.len(), Frames::new(frames).count());
    true
}

#[cfg(test)]
mod tests;
