//! Where a worker's frames wait: an outbox and a queue per connection, a lane per other worker.
//!
//! The rules are those of [`crate::proto::relay::queue`]; the outbox is the backlog that it fills.

use crate::engine::driver::Waker;
use crate::engine::outbox::{Framing, Outbox};
use crate::engine::relay::lane::LaneSender;
use crate::packet::pool::Pool;
use crate::proto::drop_reason::DropReason;
use crate::proto::relay::queue::{Backlog, Queue, QueuePolicy, Queues};
use crate::proto::relay::{ConnId, Verdict};
use crate::proto::time::Instant;
use crate::proto::wire::frame::Frames;
use crate::proto::wire::websocket::Role;

#[derive(Debug)]
struct Output {
    outbox: Outbox,
    queue: Queue,
    marked: bool,
    /// Of a mesh link: what it has dropped and nobody was told yet.
    link: Option<u64>,
}

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Outputs {
    queues: Queues,
    slots: Vec<Option<Output>>,
    /// Slots with something new to send.
    marked: Vec<usize>,
    /// Mesh links that have dropped something.
    lossy: Vec<usize>,
    lanes: Vec<Option<LaneSender>>,
    wakers: Vec<Waker>,
    to_wake: Vec<bool>,
}

impl Outputs {
    pub(super) fn new(policy: QueuePolicy, lanes: Vec<Option<LaneSender>>, wakers: Vec<Waker>) -> Self {
        let to_wake = vec![false; lanes.len()];
        // The limit of the whole relay; there is a lane, or a place for one, per worker.
        let policy = QueuePolicy { max_total: policy.max_total / lanes.len().max(1), ..policy };
        Self {
            queues: Queues::new(policy),
            slots: Vec::new(),
            marked: Vec::new(),
            lossy: Vec::new(),
            lanes,
            wakers,
            to_wake,
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
        let outbox = Outbox::new(role, framing, self.queues.policy().backlog_bytes(), pool, mask_seed);
        self.slots[slot] = Some(Output { outbox, queue: Queue::default(), marked: false, link: None });
    }

    /// The connection is gone; what waited for it is counted.
    pub(super) fn close(&mut self, slot: usize) {
        self.discard(slot, DropReason::WriteError);
        if let Some(output) = self.slots.get_mut(slot) {
            *output = None;
        }
    }

    /// Data that waits is not sent any more.
    pub(super) fn discard(&mut self, slot: usize, reason: DropReason) {
        if let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            self.queues.discard(&mut output.queue, &mut output.outbox, reason);
        }
    }

    /// Puts a frame, or a run of them, where the machine says.
    pub(super) fn deliver(&mut self, verdict: Verdict, frames: &[u8], now: Instant) {
        match verdict {
            Verdict::Local(conn) | Verdict::MeshLink(conn) => {
                let slot = conn.0 as usize;
                let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
                self.queues.admit_run(&mut output.queue, &mut output.outbox, frames, now);
                if matches!(verdict, Verdict::MeshLink(_)) {
                    output.link.get_or_insert(0);
                }
                self.changed(slot);
            }
            Verdict::Worker(worker, hop) => {
                let index = usize::from(worker.0);
                let Some(lane) = self.lanes.get_mut(index).and_then(Option::as_mut) else { return };
                for frame in Frames::new(frames).flatten() {
                    if lane.push(hop, frame.bytes) {
                        self.to_wake[index] = true;
                    } else {
                        self.queues.drops_mut().count(DropReason::WorkerQueueFull);
                    }
                }
            }
            Verdict::Drop(_) => {}
        }
    }

    /// A frame of the relay's own.
    pub(super) fn urgent(&mut self, conn: ConnId, frame: &[u8], now: Instant) {
        let slot = conn.0 as usize;
        let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        self.queues.admit_urgent(&mut output.queue, &mut output.outbox, frame, now);
        self.changed(slot);
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

    /// The outbox, filled up, without what is too old. When something was taken from it, say so by [`Self::sent`].
    pub(super) fn fresh(&mut self, slot: usize, now: Instant) -> Option<&mut Outbox> {
        let output = self.slots.get_mut(slot)?.as_mut()?;
        let dropped = output.queue.dropped();
        self.queues.refill(&mut output.queue, &mut output.outbox, now);
        if output.link.is_some() && output.queue.dropped() > dropped {
            self.lossy.push(slot);
        }
        Some(&mut output.outbox)
    }

    /// Bytes were taken out of that outbox.
    pub(super) fn sent(&mut self, slot: usize, now: Instant) {
        if let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            self.queues.sent(&mut output.queue, &output.outbox, now);
        }
    }

    /// Mesh links that have dropped frames since the last look, and how many.
    pub(super) fn next_loss(&mut self) -> Option<(ConnId, u64)> {
        loop {
            let slot = self.lossy.pop()?;
            if let Some(Output { queue, link: Some(told), .. }) =
                self.slots.get_mut(slot).and_then(Option::as_mut)
            {
                let lost = queue.dropped() - std::mem::replace(told, queue.dropped());
                if lost > 0 {
                    return Some((ConnId(slot as u32), lost));
                }
            }
        }
    }

    /// Once per round, whatever number of frames.
    pub(super) fn wake_others(&mut self) {
        for (wake, waker) in self.to_wake.iter_mut().zip(&self.wakers) {
            if std::mem::take(wake) {
                waker.wake();
            }
        }
    }

    /// Bytes that wait for a connection, and frames that were dropped from its queue.
    pub(super) fn queued(&self, slot: usize) -> (usize, u64) {
        let output = self.slots.get(slot).and_then(Option::as_ref);
        output
            .map_or((0, 0), |output| (output.outbox.queued() + output.queue.queued(), output.queue.dropped()))
    }

    pub(super) fn queues(&self) -> &Queues {
        &self.queues
    }

    fn changed(&mut self, slot: usize) {
        let Some(output) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        if !std::mem::replace(&mut output.marked, true) {
            self.marked.push(slot);
        }
        if output.link.is_some_and(|told| output.queue.dropped() > told) && self.lossy.last() != Some(&slot) {
            self.lossy.push(slot);
        }
    }
}

impl Backlog for Outbox {
    fn queued(&self) -> usize {
        Outbox::queued(self)
    }

    fn reserve(&mut self, len: usize, at: Instant) -> Option<&mut [u8]> {
        Outbox::reserve(self, len, at).ok()
    }

    fn commit(&mut self, len: usize, frames: usize) {
        Outbox::commit_frames(self, len, frames);
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
