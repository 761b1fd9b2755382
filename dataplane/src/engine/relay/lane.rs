//! Frames from one worker to another: a ring of bytes with one writer and one reader, no lock and no allocation per frame.
//!
//! ```text
//! length (4) ‖ relay id (2), 0: deliver ‖ frame
//! ```
//!
//! A lane that is full drops the newest frame: the reader is behind, and waiting would make its slowness ours.

use rtrb::{Consumer, Producer, RingBuffer};

use crate::proto::id::RelayId;
use crate::proto::relay::Hop;
use crate::proto::wire::frame::MAX_FRAME;

const HEAD: usize = 6;
/// Bytes under way between two workers: 64 of the largest messages of a node, 6 ms of 10 Gbit/s.
const CAPACITY: usize = 8 << 20;

/// The writing end.
#[derive(Debug)]
pub(super) struct LaneSender(Producer<u8>);

/// The reading end.
#[derive(Debug)]
pub(super) struct LaneReceiver {
    ring: Consumer<u8>,
    /// For frames that the end of the ring cuts in two.
    scratch: Vec<u8>,
}

fn lane() -> (LaneSender, LaneReceiver) {
    let (producer, ring) = RingBuffer::new(CAPACITY);
    (LaneSender(producer), LaneReceiver { ring, scratch: Vec::new() })
}

/// What each of `count` workers reads from, and what it writes to (by the reader's number; none to itself).
pub(super) fn between(count: usize) -> (Vec<Vec<LaneReceiver>>, Vec<Vec<Option<LaneSender>>>) {
    let mut receivers: Vec<Vec<LaneReceiver>> = (0..count).map(|_| Vec::new()).collect();
    let mut senders: Vec<Vec<Option<LaneSender>>> = (0..count).map(|_| Vec::new()).collect();
    for (from, writer) in senders.iter_mut().enumerate() {
        for (to, reader) in receivers.iter_mut().enumerate() {
            writer.push((from != to).then(|| {
                let (sender, receiver) = lane();
                reader.push(receiver);
                sender
            }));
        }
    }
    (receivers, senders)
}

impl LaneSender {
    /// Whether there was room.
    pub(super) fn push(&mut self, hop: Hop, frame: &[u8]) -> bool {
        if self.0.slots() < HEAD + frame.len() {
            return false;
        }
        let relay = match hop {
            Hop::Deliver => 0,
            Hop::Mesh(relay) => relay.0,
        };
        let [l0, l1, l2, l3] = (frame.len() as u32).to_be_bytes();
        let [r0, r1] = relay.to_be_bytes();
        self.0.push_entire_slice(&[l0, l1, l2, l3, r0, r1]).is_ok() && self.0.push_entire_slice(frame).is_ok()
    }
}

impl LaneReceiver {
    /// Hands the next frame to `take`. False when there is none.
    pub(super) fn pop(&mut self, take: impl FnOnce(Hop, &[u8])) -> bool {
        let mut head = [0; HEAD];
        let Ok(chunk) = self.ring.read_chunk(HEAD) else { return false };
        let (first, second) = chunk.as_slices();
        head.iter_mut().zip(first.iter().chain(second)).for_each(|(to, from)| *to = *from);
        let [l0, l1, l2, l3, r0, r1] = head;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        debug_assert!(length <= MAX_FRAME, "frames were checked before");
        // The head may be there a moment before the frame: the sender's wake-up comes after both.
        let Ok(chunk) = self.ring.read_chunk(HEAD + length) else { return false };
        let hop = match u16::from_be_bytes([r0, r1]) {
            0 => Hop::Deliver,
            relay => Hop::Mesh(RelayId(relay)),
        };
        match chunk.as_slices() {
            (first, []) => take(hop, first.get(HEAD..).unwrap_or_default()),
            (first, second) => {
                self.scratch.clear();
                self.scratch.extend_from_slice(first);
                self.scratch.extend_from_slice(second);
                take(hop, self.scratch.get(HEAD..).unwrap_or_default());
            }
        }
        chunk.commit_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_all_sizes_come_out_as_they_went_in_while_the_ring_wraps() {
        let (mut sender, mut receiver) = lane();
        let mut sent = 0u32;
        let mut received = 0u32;
        for round in 0..600usize {
            let frame = vec![round as u8; 13 + (round * 997) % (MAX_FRAME - 13)];
            let hop = if round % 3 == 0 { Hop::Mesh(RelayId(round as u16 | 1)) } else { Hop::Deliver };
            assert!(sender.push(hop, &frame));
            sent += 1;
            let check = |got: Hop, bytes: &[u8]| {
                assert_eq!(got, hop);
                assert_eq!(bytes, frame);
            };
            assert!(receiver.pop(check));
            received += 1;
        }
        assert_eq!(sent, received);
        assert!(!receiver.pop(|_, _| ()));
    }

    #[test]
    fn a_full_lane_refuses_and_recovers() {
        let (mut sender, mut receiver) = lane();
        let frame = vec![0; MAX_FRAME];
        let mut pushed = 0;
        while sender.push(Hop::Deliver, &frame) {
            pushed += 1;
        }
        assert_eq!(pushed, CAPACITY / (MAX_FRAME + HEAD));
        assert!(receiver.pop(|_, _| ()));
        assert!(sender.push(Hop::Deliver, &frame));
    }
}
