//! What waits for a slow receiver, and what is dropped first.
//!
//! Each connection has one backlog. Data is bounded in bytes and in age, and the oldest goes first: a receiver that falls behind sees a gap, then
//! fresh packets, and never holds up anyone else. Handshakes, PONG and errors are urgent: they overtake data and are bounded on their own. This module
//! is the policy; the backlog itself (buffers, coalescing) is the engine's, behind [`Backlog`].

use std::time::Duration;

use crate::proto::drop_reason::{DropCounters, DropReason};
use crate::proto::time::Instant;
use crate::proto::wire::frame::FrameType;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePolicy {
    /// Bytes of data. 1 MiB is 80 ms of 100 Mbit/s: more would be delay, not throughput.
    pub max_bytes: usize,
    /// How long data may wait. TCP has given a packet up, or sent it again, after a second.
    pub max_age: Duration,
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, max_age: Duration::from_secs(1) }
    }
}

/// Frames that wait for one connection.
pub trait Backlog {
    /// Bytes of data that wait.
    fn queued(&self) -> usize;
    /// Appends data. Whether there was room.
    fn push(&mut self, frame: &[u8], now: Instant) -> bool;
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

impl QueuePolicy {
    /// Puts a frame into a backlog, making room at the front when there is none at the end. What is dropped is counted.
    pub fn admit(
        &self,
        backlog: &mut impl Backlog,
        frame: &[u8],
        urgent: bool,
        now: Instant,
        drops: &mut DropCounters,
    ) {
        if urgent {
            if !backlog.push_urgent(frame, now) {
                drops.count(DropReason::QueueFull);
            }
            return;
        }
        while backlog.queued() + frame.len() > self.max_bytes {
            match backlog.drop_oldest() {
                0 => break,
                frames => drops.add(DropReason::QueueFull, frames as u64),
            }
        }
        while !backlog.push(frame, now) {
            match backlog.drop_oldest() {
                0 => return drops.count(DropReason::QueueFull),
                frames => drops.add(DropReason::QueueFull, frames as u64),
            }
        }
    }

    /// Before the next bytes are taken out: what has waited too long goes.
    pub fn expire(&self, backlog: &mut impl Backlog, now: Instant, drops: &mut DropCounters) {
        let age = u64::try_from(self.max_age.as_nanos()).unwrap_or(u64::MAX);
        if let Some(before) = now.as_nanos().checked_sub(age) {
            let frames = backlog.drop_older_than(Instant::from_nanos(before));
            drops.add(DropReason::QueueAge, frames as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// The simplest backlog there could be.
    #[derive(Default)]
    struct Model {
        data: VecDeque<(Vec<u8>, Instant)>,
        urgent: VecDeque<Vec<u8>>,
    }

    impl Backlog for Model {
        fn queued(&self) -> usize {
            self.data.iter().map(|(frame, _)| frame.len()).sum()
        }
        fn push(&mut self, frame: &[u8], now: Instant) -> bool {
            self.data.push_back((frame.to_vec(), now));
            true
        }
        fn push_urgent(&mut self, frame: &[u8], _: Instant) -> bool {
            let room = self.urgent.len() < 4;
            if room {
                self.urgent.push_back(frame.to_vec());
            }
            room
        }
        fn drop_oldest(&mut self) -> usize {
            self.data.pop_front().map_or(0, |_| 1)
        }
        fn drop_older_than(&mut self, before: Instant) -> usize {
            let keep = self.data.iter().position(|(_, at)| *at >= before).unwrap_or(self.data.len());
            self.data.drain(..keep).count()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Data(usize),
        Urgent,
        Take,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1usize..400).prop_map(Step::Data),
            Just(Step::Urgent),
            Just(Step::Take),
            (0u64..300).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn the_backlog_stays_bounded_in_order_and_every_frame_is_sent_or_counted(steps in proptest::collection::vec(step(), 0..200)) {
            let policy = QueuePolicy { max_bytes: 1000, max_age: Duration::from_millis(500) };
            let (mut backlog, mut drops) = (Model::default(), DropCounters::default());
            let (mut now, mut pushed, mut sent, mut last) = (Instant::ZERO, 0u64, 0u64, 0u64);
            for step in steps {
                match step {
                    Step::Data(length) => {
                        pushed += 1;
                        let mut frame = vec![0; length.max(8)];
                        frame[..8].copy_from_slice(&pushed.to_be_bytes());
                        policy.admit(&mut backlog, &frame, false, now, &mut drops);
                    }
                    Step::Urgent => {
                        pushed += 1;
                        policy.admit(&mut backlog, b"urgent", true, now, &mut drops);
                    }
                    Step::Take => {
                        policy.expire(&mut backlog, now, &mut drops);
                        if backlog.urgent.pop_front().is_some() {
                            sent += 1;
                        } else if let Some((frame, at)) = backlog.data.pop_front() {
                            sent += 1;
                            let number = u64::from_be_bytes(frame[..8].try_into().unwrap());
                            prop_assert!(number > last, "in order");
                            prop_assert!(now - at <= policy.max_age, "never stale");
                            last = number;
                        }
                    }
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                }
                prop_assert!(backlog.queued() <= policy.max_bytes);
                let waiting = (backlog.data.len() + backlog.urgent.len()) as u64;
                let dropped = drops.of(DropReason::QueueFull) + drops.of(DropReason::QueueAge);
                prop_assert_eq!(pushed, sent + dropped + waiting);
            }
        }
    }

    #[test]
    fn the_oldest_goes_first() {
        let policy = QueuePolicy { max_bytes: 20, max_age: Duration::from_secs(1) };
        let (mut backlog, mut drops) = (Model::default(), DropCounters::default());
        for byte in 0..4u8 {
            policy.admit(&mut backlog, &[byte; 8], false, Instant::ZERO, &mut drops);
        }
        assert_eq!(backlog.data.iter().map(|(frame, _)| frame[0]).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(drops.of(DropReason::QueueFull), 2);
    }
}
