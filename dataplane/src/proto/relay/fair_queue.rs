//! What waits for one congested destination, fair between those who send to it.
//!
//! Every source has a FIFO of its own. Sources take turns by deficit round robin (Shreedhar and Varghese 1995): a turn adds [`QUANTUM`] bytes to what a
//! source may send, and it sends while its next frame fits; what is left is kept for its next turn, and lost when it has nothing more to send. When the whole
//! is full the source with the most bytes waiting loses its oldest frame: whoever sends too much drops its own.
//!
//! ```text
//! push:  while it does not fit: drop the front of the longest source;  append to the source's FIFO
//! next:  the source whose turn it is, with quantum; its front if that fits, else the next source's turn
//! ```
//!
//! With one source this is a plain FIFO. The longest source is found by classes of length, four per doubling, in lists that every change of length keeps
//! right: no scan, however many sources there are. It is never more than a fifth shorter than the very longest.

use std::collections::VecDeque;

use super::frame_fifo::{BLOCK, Blocks, FrameFifo, Head};
use crate::proto::id::{IdMap, NodeId};
use crate::proto::time::Instant;

/// Bytes of a turn: three full frames. It has to be less than what a source may have waiting, or shares follow the backlogs instead of the turns; at
/// 16 KiB that would be so from 64 sources on.
pub(super) const QUANTUM: usize = 4 << 10;
/// No flow.
const NONE: u32 = u32::MAX;
/// Classes of length: up to 256 bytes, then four per doubling, up to 16 MiB.
const CLASSES: usize = 64;

#[derive(Debug)]
struct Flow {
    source: NodeId,
    fifo: FrameFifo,
    /// Bytes it may still send in this turn.
    deficit: usize,
    /// The quantum of this turn is not added yet.
    fresh: bool,
    class: usize,
    /// Neighbours in the list of its class.
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// See the module's doc.
#[derive(Debug)]
pub(super) struct FairQueue {
    flows: Vec<Flow>,
    /// Of these, without frames.
    spare: Vec<u32>,
    by_source: IdMap<NodeId, u32>,
    turns: VecDeque<u32>,
    classes: [List; CLASSES],
    /// Bit by class: its list is not empty.
    occupied: u64,
    bytes: usize,
    frames: usize,
    blocks: usize,
}

impl Default for FairQueue {
    fn default() -> Self {
        Self {
            flows: Vec::new(),
            spare: Vec::new(),
            by_source: IdMap::default(),
            turns: VecDeque::new(),
            classes: [List { first: NONE, last: NONE }; CLASSES],
            occupied: 0,
            bytes: 0,
            frames: 0,
            blocks: 0,
        }
    }
}

impl FairQueue {
    /// Bytes of frames that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Flows that memory is kept for, used or not.
    pub(super) fn capacity(&self) -> usize {
        self.flows.len()
    }

    /// Appends a frame of `source`, in at most `max_bytes` for all sources (and twice that in blocks). Returns how many frames were dropped for it,
    /// itself included when there is no way to fit it in.
    pub(super) fn push(
        &mut self,
        source: NodeId,
        frame: &[u8],
        at: Instant,
        max_bytes: usize,
        stock: &mut Blocks,
    ) -> usize {
        let mut dropped = 0;
        while !self.append(source, frame, at, max_bytes, stock) {
            if !self.drop_from_longest(stock) {
                return dropped + 1;
            }
            dropped += 1;
        }
        dropped
    }

    /// The frame that is next, by turns.
    pub(super) fn front(&mut self) -> Option<Head> {
        loop {
            let flow = self.flows.get_mut(*self.turns.front()? as usize)?;
            if std::mem::take(&mut flow.fresh) {
                flow.deficit += QUANTUM;
            }
            let head = flow.fifo.front()?;
            if head.len <= flow.deficit {
                return Some(head);
            }
            flow.fresh = true;
            self.turns.rotate_left(1);
        }
    }

    /// Takes out what [`Self::front`] has shown; `out` is as long as it.
    pub(super) fn pop(&mut self, out: &mut [u8], stock: &mut Blocks) {
        let Some(&index) = self.turns.front() else { return };
        let flow = &mut self.flows[index as usize];
        flow.deficit = flow.deficit.saturating_sub(out.len());
        let before = flow.fifo.blocks();
        flow.fifo.pop(out, stock);
        self.blocks -= before - flow.fifo.blocks();
        self.took(index, out.len());
    }

    /// Drops what [`Self::front`] has shown.
    pub(super) fn discard(&mut self, stock: &mut Blocks) {
        if let Some(&index) = self.turns.front() {
            self.drop_front(index, stock);
        }
    }

    /// Drops everything. Returns how many frames.
    pub(super) fn clear(&mut self, stock: &mut Blocks) -> usize {
        let frames = self.frames;
        while let Some(&index) = self.turns.front() {
            let flow = &mut self.flows[index as usize];
            let (bytes, frames) = (flow.fifo.bytes(), flow.fifo.frames());
            self.blocks -= flow.fifo.blocks();
            flow.fifo.clear(stock);
            self.frames -= frames.saturating_sub(1);
            self.took(index, bytes);
        }
        frames
    }

    fn append(
        &mut self,
        source: NodeId,
        frame: &[u8],
        at: Instant,
        max_bytes: usize,
        stock: &mut Blocks,
    ) -> bool {
        if self.bytes + frame.len() > max_bytes {
            return false;
        }
        let index = match self.by_source.get(&source) {
            Some(&index) => index,
            None => self.idle_flow(),
        };
        let Some(flow) = self.flows.get_mut(index as usize) else { return false };
        let before = flow.fifo.blocks();
        let was_empty = flow.fifo.frames() == 0;
        let fits = (self.blocks + flow.fifo.blocks_for(frame.len())) * BLOCK <= 2 * max_bytes
            && flow.fifo.push(frame, at, stock);
        if !fits {
            if was_empty {
                self.spare.push(index);
            }
            return false;
        }
        self.blocks += flow.fifo.blocks() - before;
        self.bytes += frame.len();
        self.frames += 1;
        if was_empty {
            flow.source = source;
            (flow.deficit, flow.fresh) = (0, true);
            self.by_source.insert(source, index);
            self.turns.push_back(index);
            self.enlist(index);
        } else {
            self.relist(index);
        }
        true
    }

    fn idle_flow(&mut self) -> u32 {
        if let Some(index) = self.spare.pop() {
            return index;
        }
        let fifo = FrameFifo::default();
        let flow =
            Flow { source: NodeId(0), fifo, deficit: 0, fresh: true, class: 0, before: NONE, after: NONE };
        self.flows.push(flow);
        self.flows.len() as u32 - 1
    }

    fn drop_from_longest(&mut self, stock: &mut Blocks) -> bool {
        let Some(class) = self.occupied.checked_ilog2() else { return false };
        self.drop_front(self.classes[class as usize].first, stock);
        true
    }

    fn drop_front(&mut self, index: u32, stock: &mut Blocks) {
        let Some(flow) = self.flows.get_mut(index as usize) else { return };
        let Some(Head { len, .. }) = flow.fifo.front() else { return };
        let before = flow.fifo.blocks();
        flow.fifo.discard(stock);
        self.blocks -= before - flow.fifo.blocks();
        self.took(index, len);
    }

    /// A frame of `len` has left that flow.
    fn took(&mut self, index: u32, len: usize) {
        self.bytes -= len;
        self.frames -= 1;
        let flow = &self.flows[index as usize];
        if flow.fifo.frames() > 0 {
            return self.relist(index);
        }
        self.by_source.remove(&flow.source);
        self.delist(index);
        self.spare.push(index);
        // Nearly always the one whose turn it is; only a drop from the longest empties another, when that has a single frame.
        if let Some(turn) = self.turns.iter().position(|turn| *turn == index) {
            self.turns.remove(turn);
        }
    }

    fn relist(&mut self, index: u32) {
        let flow = &self.flows[index as usize];
        if class_of(flow.fifo.bytes()) != flow.class {
            self.delist(index);
            self.enlist(index);
        }
    }

    fn enlist(&mut self, index: u32) {
        let class = class_of(self.flows[index as usize].fifo.bytes());
        let last = std::mem::replace(&mut self.classes[class].last, index);
        let flow = &mut self.flows[index as usize];
        (flow.class, flow.before, flow.after) = (class, last, NONE);
        match self.flows.get_mut(last as usize) {
            Some(last) => last.after = index,
            None => self.classes[class].first = index,
        }
        self.occupied |= 1 << class;
    }

    fn delist(&mut self, index: u32) {
        let &Flow { class, before, after, .. } = &self.flows[index as usize];
        match self.flows.get_mut(before as usize) {
            Some(before) => before.after = after,
            None => self.classes[class].first = after,
        }
        match self.flows.get_mut(after as usize) {
            Some(after) => after.before = before,
            None => self.classes[class].last = before,
        }
        if self.classes[class].first == NONE {
            self.occupied &= !(1 << class);
        }
    }
}

/// Four classes per doubling: the two bits after the highest one.
fn class_of(bytes: usize) -> usize {
    match bytes.checked_ilog2() {
        Some(log) if log >= 8 => (4 * (log as usize - 8) + (bytes >> (log - 2) & 3) + 1).min(CLASSES - 1),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 20;

    /// A frame of `len` that knows its source and number.
    fn frame(source: u32, number: u32, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len.max(8)];
        frame[..4].copy_from_slice(&source.to_be_bytes());
        frame[4..8].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn take(queue: &mut FairQueue, stock: &mut Blocks) -> Option<(u32, u32, usize)> {
        let head = queue.front()?;
        let mut out = vec![0; head.len];
        queue.pop(&mut out, stock);
        let word = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
        Some((word(0), word(4), head.len))
    }

    /// Jain's index of fairness: 1 when all are equal, 1/n when one has it all.
    fn jain(shares: impl Iterator<Item = f64>) -> f64 {
        let (sum, squares, n) =
            shares.fold((0.0, 0.0, 0.0), |(sum, squares, n), x| (sum + x, squares + x * x, n + 1.0));
        sum * sum / (n * squares)
    }

    #[test]
    fn classes_grow_with_length_and_are_a_fifth_wide_at_most() {
        let mut from = 0;
        for bytes in 1..200_000 {
            let (class, last) = (class_of(bytes), class_of(bytes - 1));
            assert!(class == last || class == last + 1, "{bytes}");
            if class != last {
                assert!(last == 0 || (bytes - from) * 5 <= bytes + 5, "{from}..{bytes}");
                from = bytes;
            }
        }
        assert_eq!(class_of(usize::MAX), CLASSES - 1);
    }

    #[test]
    fn one_source_alone_is_a_plain_fifo_that_loses_its_oldest() {
        let (mut queue, mut stock) = (FairQueue::default(), Blocks::new(8 * MAX));
        let dropped: usize = (0..20)
            .map(|n| queue.push(NodeId(7), &frame(7, n, 1000), Instant::ZERO, 10_000, &mut stock))
            .sum();
        assert_eq!((dropped, queue.frames(), queue.bytes()), (10, 10, 10_000));
        let out: Vec<u32> = std::iter::from_fn(|| take(&mut queue, &mut stock)).map(|(_, n, _)| n).collect();
        assert_eq!(out, (10..20).collect::<Vec<_>>());
        assert_eq!(stock.used(), 0, "an empty queue holds nothing");
    }

    #[test]
    fn a_greedy_source_drops_its_own_and_takes_nothing_from_the_others() {
        let (mut queue, mut stock) = (FairQueue::default(), Blocks::new(8 * MAX));
        let mut sent = BTreeMap::<u32, u64>::new();
        let mut arrived = BTreeMap::<u32, u64>::new();
        // Ten sources at 9 % of what the destination takes, and one at a hundred times that.
        for round in 0..2_000 {
            for source in 1..=10 {
                let frames = if source == 1 { 100 } else { 1 };
                for n in 0..frames {
                    let bytes = frame(source, round * 100 + n, 1400);
                    queue.push(NodeId(source), &bytes, Instant::ZERO, MAX, &mut stock);
                    *sent.entry(source).or_default() += 1;
                }
            }
            for _ in 0..11 {
                let Some((source, ..)) = take(&mut queue, &mut stock) else { break };
                *arrived.entry(source).or_default() += 1;
            }
        }
        for source in 2..=10 {
            assert!(sent[&source] - arrived[&source] <= 3, "{source}: {arrived:?}");
        }
        assert!(arrived[&1] >= 3_900, "and it still has what the others leave: {arrived:?}");
    }

    #[test]
    fn a_hundred_backlogged_sources_of_all_frame_sizes_get_equal_shares() {
        let (mut queue, mut stock) = (FairQueue::default(), Blocks::new(8 * MAX));
        let mut arrived = vec![0u64; 100];
        let size = |source: u32| [60, 300, 900, 1400, 1427][source as usize % 5];
        for round in 0..3_000 {
            for source in 0..100 {
                // Each more than its share, some a hundred times as much.
                let bytes = if source % 10 == 0 { 20_000 } else { 400 + 37 * (source as usize % 7) };
                for n in 0..bytes.div_ceil(size(source)) {
                    let bytes = frame(source, n as u32, size(source));
                    queue.push(NodeId(source), &bytes, Instant::from_nanos(round), MAX, &mut stock);
                }
            }
            let mut taken_now = 0;
            while taken_now < 20_000 {
                let Some((source, _, len)) = take(&mut queue, &mut stock) else { break };
                arrived[source as usize] += len as u64;
                taken_now += len;
            }
        }
        let index = jain(arrived.iter().map(|bytes| *bytes as f64));
        assert!(index >= 0.99, "{index}: {arrived:?}");
    }

    #[test]
    fn what_all_queues_hold_together_is_bounded() {
        let mut stock = Blocks::new(MAX);
        let mut queues: Vec<FairQueue> = (0..10).map(|_| FairQueue::default()).collect();
        for n in 0..10_000u32 {
            let queue = &mut queues[n as usize % 10];
            queue.push(NodeId(n % 50), &frame(n % 50, n, 1000), Instant::ZERO, MAX, &mut stock);
        }
        assert!(stock.used() * BLOCK <= MAX);
        assert!(queues.iter().all(|queue| queue.frames() > 0), "each still has some");
        let frames: usize = queues.iter().map(FairQueue::frames).sum();
        assert_eq!(queues.iter_mut().map(|queue| queue.clear(&mut stock)).sum::<usize>(), frames);
        assert_eq!(stock.used(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { source: u32, len: usize },
        Take,
        Discard,
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = prop_oneof![8 => 8usize..1500, 1 => 8usize..60_000];
        prop_oneof![
            12 => (0u32..6, len).prop_map(|(source, len)| Step::Push { source, len }),
            6 => Just(Step::Take),
            2 => Just(Step::Discard),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_is_taken_once_and_in_its_sources_order_or_counted(steps in proptest::collection::vec(step(), 1..400)) {
            let (mut queue, mut stock) = (FairQueue::default(), Blocks::new(100_000));
            let (mut pushed, mut gone, mut taken) = (0usize, 0usize, 0usize);
            let mut last = BTreeMap::<u32, u32>::new();
            for (number, step) in steps.into_iter().enumerate() {
                let number = number as u32 + 1;
                match step {
                    Step::Push { source, len } => {
                        pushed += 1;
                        let bytes = frame(source, number, len);
                        gone += queue.push(NodeId(source), &bytes, Instant::ZERO, 80_000, &mut stock);
                    }
                    Step::Take => {
                        if let Some((source, number, _)) = take(&mut queue, &mut stock) {
                            taken += 1;
                            prop_assert!(last.insert(source, number).is_none_or(|last| last < number));
                        }
                    }
                    Step::Discard => {
                        gone += usize::from(queue.front().is_some());
                        queue.discard(&mut stock);
                    }
                    Step::Clear => gone += queue.clear(&mut stock),
                }
                prop_assert_eq!(pushed, gone + taken + queue.frames());
                prop_assert!(queue.bytes() <= 80_000 && stock.used() * BLOCK <= 100_000);
                prop_assert_eq!(queue.blocks, stock.used());
                prop_assert_eq!(queue.occupied == 0, queue.is_empty());
            }
            while take(&mut queue, &mut stock).is_some() {}
            prop_assert_eq!((queue.bytes(), queue.frames(), stock.used(), queue.turns.len()), (0, 0, 0, 0));
        }
    }
}
