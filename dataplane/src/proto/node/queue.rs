//! Packets that wait for a handshake: few, not for long, the oldest out first.

use std::collections::VecDeque;
use std::time::Duration;

use super::api::Checksum;
use crate::proto::time::Instant;

/// Packets that one peer's queue holds.
pub(super) const MAX_PACKETS: usize = 128;
/// Bytes that one peer's queue holds.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// Bytes that all queues together hold.
pub(super) const MAX_ALL_BYTES: usize = 16 << 20;
/// What waited longer than this is of no use to anyone.
pub(super) const MAX_AGE: Duration = Duration::from_secs(5);

/// A packet with room around it, as `Session::seal` takes it.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Head room ‖ packet ‖ tail room.
    pub(super) buffer: Vec<u8>,
    /// Of the packet.
    pub(super) checksum: Checksum,
    /// Since when.
    pub(super) since: Instant,
}

/// See the [module](self). `all_bytes`, which the methods take, is the sum over all queues.
#[derive(Debug, Default)]
pub(super) struct PacketQueue {
    packets: VecDeque<Waiting>,
    bytes: usize,
}

impl PacketQueue {
    /// Adds a packet; returns how many had to go for it.
    pub(super) fn push(&mut self, waiting: Waiting, all_bytes: &mut usize) -> u64 {
        let length = waiting.buffer.len();
        let mut dropped = 0;
        while !self.packets.is_empty()
            && (self.packets.len() >= MAX_PACKETS
                || self.bytes + length > MAX_BYTES
                || *all_bytes + length > MAX_ALL_BYTES)
        {
            self.pop(all_bytes);
            dropped += 1;
        }
        if length > MAX_BYTES || *all_bytes + length > MAX_ALL_BYTES {
            return dropped + 1;
        }
        self.bytes += length;
        *all_bytes += length;
        self.packets.push_back(waiting);
        dropped
    }

    /// The oldest.
    pub(super) fn pop(&mut self, all_bytes: &mut usize) -> Option<Waiting> {
        let waiting = self.packets.pop_front()?;
        self.bytes -= waiting.buffer.len();
        *all_bytes -= waiting.buffer.len();
        Some(waiting)
    }

    /// Empties it; returns how many were in it.
    pub(super) fn clear(&mut self, all_bytes: &mut usize) -> u64 {
        let count = self.packets.len() as u64;
        *all_bytes -= self.bytes;
        self.bytes = 0;
        self.packets.clear();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(length: usize, mark: u8) -> Waiting {
        Waiting { buffer: vec![mark; length], checksum: Checksum::Complete, since: Instant::ZERO }
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_packets_or_bytes() {
        let (mut queue, mut all) = (PacketQueue::default(), 0);
        let dropped: u64 = (0..130u8).map(|n| queue.push(waiting(100, n), &mut all)).sum();
        assert_eq!((dropped, queue.packets.len(), all), (2, 128, 12_800));
        assert_eq!(queue.push(waiting(MAX_BYTES, 200), &mut all), 128);
        assert_eq!(queue.push(waiting(MAX_BYTES + 1, 201), &mut all), 2, "itself included");
        assert_eq!((queue.bytes, all), (0, 0));
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let mut all = 0;
        let mut queues: Vec<_> = (0..100).map(|_| PacketQueue::default()).collect();
        for queue in &mut queues {
            queue.push(waiting(MAX_BYTES, 0), &mut all);
        }
        assert_eq!(all, MAX_ALL_BYTES);
        let held: u64 = queues.iter_mut().map(|queue| queue.clear(&mut all)).sum();
        assert_eq!((held, all), (64, 0));
    }
}
