//! Where a worker's frames wait: an outbox per connection, a lane per other worker.

use crate::engine::driver::Waker;
use crate::engine::outbox::{Framing, Outbox};
use crate::engine::relay::lane::LaneSender;
use crate::packet::pool::Pool;
use crate::proto::drop_reason::{DropCounters, DropReason};
use crate::proto::relay::queue::{Backlog, QueuePolicy, is_urgent};
use crate::proto::relay::{ConnId, Verdict};
use crate::proto::time::Instant;
use crate::proto::wire::frame::FrameType;
use crate::proto::wire::websocket::Role;

#[derive(Debug)]
struct Output {
    outbox: Outbox,
    marked: bool,
}

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Outputs {
    policy: QueuePolicy,
    slots: Vec<Option<Output>>,
    /// Slots with something new to send.
    marked: Vec<usize>,
    lanes: Vec<Option<LaneSender>>,
    wakers: Vec<Waker>,
    to_wake: Vec<bool>,
    drops: DropCounters,
}

impl Outputs {
    pub(super) fn new(policy: QueuePolicy, lanes: Vec<Option<LaneSender>>, wakers: Vec<Waker>) -> Self {
        let to_wake = vec![false; lanes.len()];
        Self {
            policy,
            slots: Vec::new(),
            marked: Vec::new(),
            lanes,
            wakers,
            to_wake,
            drops: DropCounters::default(),
        }
    }

    pub(super) fn open(
        &mut self,
        slot: usize,
        role: Role,
        framing: Framing,
        pool: &Pool,
        mask_seed: [u8; 32],
    ) {
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        let outbox = Outbox::new(role, framing, self.policy.max_bytes, pool, mask_seed);
        self.slots[slot] = Some(Output { outbox, marked: false });
    }

    pub(super) fn close(&mut self, slot: usize) {
        if let Some(output) = self.slots.get_mut(slot) {
            *output = None;
        }
    }

    /// Puts a frame where the machine says.
    pub(super) fn deliver(&mut self, verdict: Verdict, frame: &[u8], now: Instant) {
        match verdict {
            Verdict::Local(conn) | Verdict::MeshLink(conn) => {
                let urgent = frame.get(1).copied().and_then(FrameType::from_byte).is_some_and(is_urgent);
                self.admit(conn, frame, urgent, now);
            }
            Verdict::Worker(worker, hop) => {
                let index = usize::from(worker.0);
                let sent = self
                    .lanes
                    .get_mut(index)
                    .and_then(Option::as_mut)
                    .is_some_and(|lane| lane.push(hop, frame));
                if sent {
                    self.to_wake[index] = true;
                } else {
                    self.drops.count(DropReason::WorkerQueueFull);
                }
            }
            Verdict::Drop(_) => {}
        }
    }

    /// A frame of the relay's own.
    pub(super) fn urgent(&mut self, conn: ConnId, frame: &[u8], now: Instant) {
        self.admit(conn, frame, true, now);
    }

    /// There may be something to send.
    pub(super) fn mark(&mut self, slot: usize) {
        if let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut)
            && !std::mem::replace(&mut output.marked, true)
        {
            self.marked.push(slot);
        }
    }

    pub(super) fn next_marked(&mut self) -> Option<usize> {
        let slot = self.marked.pop()?;
        if let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            output.marked = false;
        }
        Some(slot)
    }

    /// The outbox without what is too old.
    pub(super) fn fresh(&mut self, slot: usize, now: Instant) -> Option<&mut Outbox> {
        let output = self.slots.get_mut(slot)?.as_mut()?;
        if output.outbox.queued() > 0 {
            self.policy.expire(&mut output.outbox, now, &mut self.drops);
        }
        Some(&mut output.outbox)
    }

    /// Once per round, whatever number of frames.
    pub(super) fn wake_others(&mut self) {
        for (wake, waker) in self.to_wake.iter_mut().zip(&self.wakers) {
            if std::mem::take(wake) {
                waker.wake();
            }
        }
    }

    pub(super) fn queued(&self, slot: usize) -> usize {
        self.slots.get(slot).and_then(Option::as_ref).map_or(0, |output| output.outbox.queued())
    }

    pub(super) fn drops(&self) -> &DropCounters {
        &self.drops
    }

    fn admit(&mut self, conn: ConnId, frame: &[u8], urgent: bool, now: Instant) {
        let slot = conn.0 as usize;
        let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        self.policy.admit(&mut output.outbox, frame, urgent, now, &mut self.drops);
        if !std::mem::replace(&mut output.marked, true) {
            self.marked.push(slot);
        }
    }
}

impl Backlog for Outbox {
    fn queued(&self) -> usize {
        Outbox::queued(self)
    }

    fn push(&mut self, frame: &[u8], now: Instant) -> bool {
        Outbox::push(self, frame, now).is_ok()
    }

    fn push_urgent(&mut self, frame: &[u8], now: Instant) -> bool {
        Outbox::push_urgent(self, frame, now).is_ok()
    }

    fn drop_oldest(&mut self) -> usize {
        Outbox::drop_oldest(self).map_or(0, |dropped| dropped.frames)
    }

    fn drop_older_than(&mut self, before: Instant) -> usize {
        Outbox::drop_older_than(self, before).frames
    }
}
