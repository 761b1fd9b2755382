//! Frames in the order they came, in blocks that are used again: what one source has waiting for one destination.
//!
//! ```text
//! length (4) ‖ arrival (8) ‖ frame ‖ length (4) ‖ …     over blocks of 2 KiB, cut anywhere
//! ```
//!
//! [`Blocks`] is a worker's stock: blocks come from it and go back to it, so that a queue in steady state allocates nothing, an idle one holds
//! nothing, and all queues together hold no more than a limit.

use std::collections::VecDeque;

use crate::proto::time::Instant;

/// Two kilobytes: a full packet and its head. What a source wastes at most is one of these.
pub(super) const BLOCK: usize = 2 << 10;
const HEAD: usize = 12;
/// Idle blocks that are kept; what is over goes back to the allocator.
const KEPT: usize = (1 << 20) / BLOCK;

type Block = Box<[u8; BLOCK]>;

/// A worker's blocks.
#[derive(Debug)]
pub(super) struct Blocks {
    idle: Vec<Block>,
    used: usize,
    limit: usize,
}

impl Blocks {
    /// At most `limit` bytes in use at a time.
    pub(super) fn new(limit: usize) -> Self {
        Self { idle: Vec::new(), used: 0, limit: limit / BLOCK }
    }

    /// Blocks in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    fn has(&self, count: usize) -> bool {
        self.used + count <= self.limit
    }

    fn take(&mut self) -> Block {
        self.used += 1;
        self.idle.pop().unwrap_or_else(|| Box::new([0; BLOCK]))
    }

    fn give(&mut self, block: Block) {
        self.used -= 1;
        if self.idle.len() < KEPT {
            self.idle.push(block);
        }
    }
}

/// What is known of the frame at the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) at: Instant,
}

/// See the module's doc.
#[derive(Debug, Default)]
pub(super) struct FrameFifo {
    blocks: VecDeque<Block>,
    /// Where the front frame's bytes begin in the first block: its head has been read.
    read: usize,
    /// Bytes free at the end of the last block.
    room: usize,
    front: Head,
    frames: usize,
    bytes: usize,
}

impl FrameFifo {
    /// Bytes of frames.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that a frame of `len` would add.
    pub(super) fn blocks_for(&self, len: usize) -> usize {
        (HEAD + len).saturating_sub(self.room).div_ceil(BLOCK)
    }

    /// Appends a frame. False when there are not enough blocks: nothing is changed then.
    pub(super) fn push(&mut self, frame: &[u8], at: Instant, stock: &mut Blocks) -> bool {
        let Ok(len) = u32::try_from(frame.len()) else { return false };
        if !stock.has(self.blocks_for(frame.len())) {
            return false;
        }
        self.append(&len.to_be_bytes(), stock);
        self.append(&at.as_nanos().to_be_bytes(), stock);
        self.append(frame, stock);
        self.frames += 1;
        self.bytes += frame.len();
        if self.frames == 1 {
            self.read_head(stock);
        }
        true
    }

    /// The frame that is next.
    pub(super) fn front(&self) -> Option<Head> {
        (self.frames > 0).then_some(self.front)
    }

    /// Takes the front frame out; `out` is as long as it.
    pub(super) fn pop(&mut self, out: &mut [u8], stock: &mut Blocks) {
        debug_assert_eq!(out.len(), self.front.len, "the caller has looked at the front");
        self.read(out, stock);
        self.popped(stock);
    }

    /// Throws the front frame away.
    pub(super) fn discard(&mut self, stock: &mut Blocks) {
        self.skip(self.front.len, stock);
        self.popped(stock);
    }

    /// Throws everything away.
    pub(super) fn clear(&mut self, stock: &mut Blocks) {
        self.blocks.drain(..).for_each(|block| stock.give(block));
        let blocks = std::mem::take(&mut self.blocks);
        *self = Self { blocks, ..Self::default() };
    }

    fn popped(&mut self, stock: &mut Blocks) {
        self.frames -= 1;
        self.bytes -= self.front.len;
        if self.frames == 0 {
            self.clear(stock);
        } else {
            self.read_head(stock);
        }
    }

    fn read_head(&mut self, stock: &mut Blocks) {
        let mut head = [0; HEAD];
        self.read(&mut head, stock);
        let [l0, l1, l2, l3, at @ ..] = head;
        self.front = Head {
            len: u32::from_be_bytes([l0, l1, l2, l3]) as usize,
            at: Instant::from_nanos(u64::from_be_bytes(at)),
        };
    }

    fn append(&mut self, mut bytes: &[u8], stock: &mut Blocks) {
        while !bytes.is_empty() {
            if self.room == 0 {
                self.blocks.push_back(stock.take());
                self.room = BLOCK;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.room));
            if let Some(block) = self.blocks.back_mut() {
                block[BLOCK - self.room..][..now.len()].copy_from_slice(now);
            }
            self.room -= now.len();
            bytes = later;
        }
    }

    fn read(&mut self, mut out: &mut [u8], stock: &mut Blocks) {
        while !out.is_empty() {
            let Some(block) = self.blocks.front() else { return };
            let part = out.len().min(BLOCK - self.read);
            let (now, later) = out.split_at_mut(part);
            now.copy_from_slice(&block[self.read..][..part]);
            out = later;
            self.skip(part, stock);
        }
    }

    fn skip(&mut self, len: usize, stock: &mut Blocks) {
        self.read += len;
        while self.read >= BLOCK {
            self.read -= BLOCK;
            if let Some(block) = self.blocks.pop_front() {
                stock.give(block);
            }
        }
        if self.blocks.is_empty() {
            self.room = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::wire::frame::MAX_FRAME;

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_and_blocks_go_back(
            steps in proptest::collection::vec((prop_oneof![4 => 1usize..2100, 1 => 1usize..=MAX_FRAME], 0u8..4), 1..200),
        ) {
            let mut stock = Blocks::new(64 * BLOCK);
            let (mut fifo, mut model) = (FrameFifo::default(), VecDeque::new());
            for (number, (len, then)) in steps.into_iter().enumerate() {
                let frame = vec![number as u8; len];
                let at = Instant::from_nanos(number as u64);
                if fifo.push(&frame, at, &mut stock) {
                    model.push_back((frame, at));
                }
                prop_assert_eq!(stock.used(), fifo.blocks());
                prop_assert!(stock.used() <= 64);
                for _ in 1..then {
                    let Some((frame, at)) = model.pop_front() else { break };
                    prop_assert_eq!(fifo.front(), Some(Head { len: frame.len(), at }));
                    if then == 2 {
                        fifo.discard(&mut stock);
                    } else {
                        let mut out = vec![0; frame.len()];
                        fifo.pop(&mut out, &mut stock);
                        prop_assert_eq!(out, frame);
                    }
                }
                let waiting: usize = model.iter().map(|(frame, _)| frame.len()).sum();
                prop_assert_eq!((fifo.frames(), fifo.bytes()), (model.len(), waiting));
            }
            fifo.clear(&mut stock);
            prop_assert_eq!((stock.used(), fifo.front()), (0, None));
        }
    }
}
