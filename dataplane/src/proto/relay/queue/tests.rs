//! The queues of a worker under a virtual clock, over a backlog of the simplest kind.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::proto::id::NodeId;
use crate::proto::wire::data::Route;
use crate::proto::wire::frame::{Flags, write_frame};

/// The simplest backlog there could be.
#[derive(Default)]
struct Model {
    data: VecDeque<(Vec<u8>, Instant)>,
    urgent: VecDeque<Vec<u8>>,
    reserved: Option<(Vec<u8>, Instant)>,
}

impl Backlog for Model {
    fn queued(&self) -> usize {
        self.data.iter().map(|(frame, _)| frame.len()).sum()
    }
    fn reserve(&mut self, len: usize, at: Instant) -> Option<&mut [u8]> {
        Some(self.reserved.insert((vec![0; len], at)).0.as_mut_slice())
    }
    fn commit(&mut self, _: usize, _: usize) {
        self.data.extend(self.reserved.take());
    }
    fn push_urgent(&mut self, frame: &[u8], _: Instant) -> bool {
        let room = self.urgent.len() < 64;
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

/// A receiver: its queue, its backlog, and what has arrived.
#[derive(Default)]
struct Receiver {
    queue: Queue,
    backlog: Model,
}

impl Receiver {
    fn give(&mut self, queues: &mut Queues, frame: &[u8], now: Instant) {
        queues.admit(&mut self.queue, &mut self.backlog, frame, now);
    }

    /// As the engine does when a send is done: refill, take up to `most` bytes.
    fn take(&mut self, queues: &mut Queues, most: usize, now: Instant) -> Vec<Vec<u8>> {
        queues.refill(&mut self.queue, &mut self.backlog, now);
        let mut out: Vec<Vec<u8>> = self.backlog.urgent.drain(..).collect();
        let mut taken = 0;
        while let Some((frame, _)) = self.backlog.data.front() {
            taken += frame.len();
            if taken > most {
                break;
            }
            out.extend(self.backlog.data.pop_front().map(|(frame, _)| frame));
        }
        if !out.is_empty() {
            queues.sent(&mut self.queue, &self.backlog, now);
        }
        out
    }

    fn waiting(&self) -> usize {
        self.backlog.data.len()
            + self.backlog.urgent.len()
            + self.queue.fair.as_ref().map_or(0, |fair| fair.frames())
    }
}

fn frame(kind: FrameType, source: u32, number: u32, len: usize) -> Vec<u8> {
    let mut payload = Route { source: NodeId(source), destination: NodeId(1) }.to_bytes().to_vec();
    payload.extend_from_slice(&number.to_be_bytes());
    payload.resize(len.max(12), 0);
    let mut out = Vec::new();
    write_frame(kind, Flags::NONE, &payload, &mut out).unwrap();
    out
}

fn data(source: u32, number: u32, len: usize) -> Vec<u8> {
    frame(FrameType::Data, source, number, len)
}

fn source_and_number(frame: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    (word(5), word(13))
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos((1000 + ms) * 1_000_000)
}

#[test]
fn who_keeps_up_never_sees_the_fair_queue() {
    let (mut queues, mut receiver) = (Queues::new(QueuePolicy::default()), Receiver::default());
    for ms in 0..1000 {
        for n in 0..80 {
            receiver.give(&mut queues, &data(7, n, 1400), at(ms));
        }
        assert!(!receiver.queue.is_congested());
        assert_eq!(receiver.take(&mut queues, usize::MAX, at(ms)).len(), 80);
    }
    assert_eq!((queues.congested(), queues.stock.used()), (0, 0));
    assert_eq!(queues.delays().count(), 1000, "one sample in each round");
}

#[test]
fn what_comes_at_once_for_a_connection_that_is_free_goes_the_short_way() {
    let (mut queues, mut receiver) = (Queues::new(QueuePolicy::default()), Receiver::default());
    // Two receives of 256 KiB, in a round in which the first 64 KiB are sent between them.
    for round in 0..10 {
        for n in 0..360 {
            if n == 180 {
                receiver.take(&mut queues, 64 << 10, at(round));
            }
            receiver.give(&mut queues, &data(7, n, 1400), at(round));
        }
        assert!(!receiver.queue.is_congested(), "round {round}");
        while !receiver.take(&mut queues, 64 << 10, at(round)).is_empty() {}
    }
    receiver.give(&mut queues, &data(7, 0, 1400), at(10));
    receiver.take(&mut queues, 64 << 10, at(10));
    for n in 0..100 {
        receiver.give(&mut queues, &data(7, n, 1400), at(11));
    }
    assert!(receiver.queue.is_congested(), "a send has been under way for a round");
}

#[test]
fn the_fair_path_begins_above_the_high_mark_and_ends_when_it_is_empty() {
    let (mut queues, mut receiver) = (Queues::new(QueuePolicy::default()), Receiver::default());
    let mut changes = 0;
    let mut before = false;
    // 10 ms on, 10 ms off, 20 % more than the receiver takes, on the whole less.
    for ms in 0..1000u64 {
        if ms % 20 < 10 {
            for n in 0..30 {
                receiver.give(&mut queues, &data(7, n, 1400), at(ms));
            }
        }
        receiver.take(&mut queues, 25 * 1417, at(ms));
        changes += usize::from(receiver.queue.is_congested() != before);
        before = receiver.queue.is_congested();
    }
    assert_eq!(changes, 0, "a ripple below the mark changes nothing");
    for n in 0..500 {
        receiver.give(&mut queues, &data(7, n, 1400), at(1000));
    }
    assert!(receiver.queue.is_congested());
    assert!(receiver.backlog.queued() <= queues.policy().burst);
    let mut out = Vec::new();
    for ms in 1000..1100 {
        receiver.give(&mut queues, &data(7, 500 + (ms - 1000) as u32, 1400), at(ms));
        out.extend(
            receiver.take(&mut queues, 10 * 1417, at(ms)).iter().map(|frame| source_and_number(frame).1),
        );
        changes += usize::from(receiver.queue.is_congested() != before);
        before = receiver.queue.is_congested();
    }
    assert_eq!(changes, 2, "congested once, free again once");
    assert_eq!(out, (0..600).collect::<Vec<_>>(), "and in order all the way");
}

#[test]
fn what_is_too_old_goes_frame_by_frame_and_a_standstill_is_noticed() {
    let (mut queues, mut receiver) = (Queues::new(QueuePolicy::default()), Receiver::default());
    // A trickle to a receiver that stands still for two seconds.
    for n in 0..200 {
        receiver.give(&mut queues, &data(7, n, 100), at(u64::from(n) * 10));
    }
    assert!(receiver.queue.is_congested(), "by age, with few bytes");
    let out: Vec<u32> = receiver
        .take(&mut queues, usize::MAX, at(2000))
        .iter()
        .map(|frame| source_and_number(frame).1)
        .collect();
    assert_eq!(out, (100..200).collect::<Vec<_>>());
    assert_eq!(queues.drops().of(DropReason::QueueAge), 100);
    assert!(!receiver.queue.is_congested());
}

#[test]
fn many_receivers_that_take_nothing_get_no_more_memory_than_there_is_and_one_that_takes_is_served() {
    let policy = QueuePolicy { max_total: 4 << 20, ..QueuePolicy::default() };
    let mut queues = Queues::new(policy);
    let mut deaf: Vec<Receiver> = (0..100).map(|_| Receiver::default()).collect();
    let mut quick = Receiver::default();
    let mut arrived = 0;
    for n in 0..200 {
        for receiver in &mut deaf {
            receiver.give(&mut queues, &data(7, n, 1400), at(u64::from(n)));
        }
        receiver_round(&mut queues, &mut quick, n, &mut arrived);
        assert!(queues.held() < 7 << 20, "{}", queues.held());
    }
    assert_eq!(arrived, 200);
    for receiver in &mut deaf {
        queues.discard(&mut receiver.queue, &mut receiver.backlog, DropReason::WriteError);
    }
    assert_eq!((queues.held(), queues.congested()), (0, 0));
}

fn receiver_round(queues: &mut Queues, receiver: &mut Receiver, n: u32, arrived: &mut usize) {
    receiver.give(queues, &data(7, n, 1400), at(u64::from(n)));
    *arrived += receiver.take(queues, usize::MAX, at(u64::from(n))).len();
}

#[test]
fn handshakes_overtake_data_until_somebody_floods_with_them() {
    let (mut queues, mut receiver) = (Queues::new(QueuePolicy::default()), Receiver::default());
    for n in 0..500 {
        receiver.give(&mut queues, &data(7, n, 1400), at(0));
    }
    receiver.give(&mut queues, &frame(FrameType::SessionInit, 8, 1, 200), at(0));
    let first = receiver.take(&mut queues, 20_000, at(1));
    assert_eq!(source_and_number(&first[0]), (8, 1));
    // Node 9 sends nothing but handshakes, twice what the receiver takes.
    let mut arrived = BTreeMap::<u32, usize>::new();
    for ms in 1..3000 {
        for n in 0..20 {
            receiver.give(&mut queues, &frame(FrameType::SessionInit, 9, n, 1400), at(ms));
        }
        for n in 0..5 {
            receiver.give(&mut queues, &data(7, n, 1400), at(ms));
        }
        for frame in receiver.take(&mut queues, 10 * 1417, at(ms)) {
            *arrived.entry(source_and_number(&frame).0).or_default() += 1;
        }
    }
    assert!(arrived[&7] >= 14_000, "data of others still flows: {arrived:?}");
}

#[test]
fn what_waited_for_a_connection_that_ends_is_counted() {
    let (mut queues, mut receiver) = (Queues::new(QueuePolicy::default()), Receiver::default());
    for n in 0..300 {
        receiver.give(&mut queues, &data(7, n, 1400), at(0));
    }
    queues.admit_urgent(&mut receiver.queue, &mut receiver.backlog, b"goaway", at(0));
    queues.discard(&mut receiver.queue, &mut receiver.backlog, DropReason::Replaced);
    assert_eq!((queues.drops().of(DropReason::Replaced), receiver.queue.dropped()), (300, 300));
    assert_eq!(receiver.take(&mut queues, usize::MAX, at(0)), [b"goaway"], "it is still told why");
    assert_eq!((queues.stock.used(), queues.congested()), (0, 0));
}

#[test]
fn the_delay_that_is_counted_is_the_one_that_frames_had() {
    let (mut queues, mut receiver) = (Queues::new(QueuePolicy::default()), Receiver::default());
    // 1000 frames at once, ten taken each millisecond: they wait up to 100 ms.
    for n in 0..700 {
        receiver.give(&mut queues, &data(7, n, 1400), at(0));
    }
    for ms in 0..100 {
        receiver.take(&mut queues, 10 * 1417, at(ms));
    }
    assert_eq!(receiver.waiting(), 0);
    let counted = queues.delays();
    let above = |ms: u64| {
        let below = counted
            .cumulative()
            .take_while(|(bound, _)| bound.is_some_and(|b| b <= Duration::from_millis(ms)));
        counted.count() - below.last().map_or(0, |(_, n)| n)
    };
    assert!(counted.count() > 5 && above(32) > 0 && above(132) == 0, "{counted:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Data { source: u32, len: usize },
    Handshake { source: u32 },
    Urgent,
    Take { most: usize },
    Wait(u64),
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1u32..6, 12usize..3000).prop_map(|(source, len)| Step::Data { source, len }),
        2 => (1u32..6).prop_map(|source| Step::Handshake { source }),
        1 => Just(Step::Urgent),
        6 => (0usize..6000).prop_map(|most| Step::Take { most }),
        4 => (0u64..200).prop_map(Step::Wait),
        1 => Just(Step::End),
    ]
}

proptest! {
    #[test]
    fn queues_stay_bounded_in_order_and_every_frame_is_sent_or_counted(steps in proptest::collection::vec(step(), 0..300)) {
        let policy = QueuePolicy {
            max_bytes: 20_000,
            max_age: Duration::from_millis(500),
            max_total: 60_000,
            high: 5_000,
            burst: 8_000,
            low: 2_500,
        };
        let (mut queues, mut receiver) = (Queues::new(policy), Receiver::default());
        let (mut ms, mut pushed, mut sent) = (0, 0u64, 0u64);
        let mut last = BTreeMap::<u32, u32>::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Data { source, len } => {
                    pushed += 1;
                    receiver.give(&mut queues, &data(source, number as u32, len), at(ms));
                }
                Step::Handshake { source } => {
                    pushed += 1;
                    receiver.give(&mut queues, &frame(FrameType::SessionInit, source, number as u32, 200), at(ms));
                }
                Step::Urgent => {
                    pushed += 1;
                    queues.admit_urgent(&mut receiver.queue, &mut receiver.backlog, b"urgent", at(ms));
                }
                Step::Take { most } => {
                    for frame in receiver.take(&mut queues, most, at(ms)) {
                        sent += 1;
                        if frame.get(1) == Some(&(FrameType::Data as u8)) {
                            let (source, number) = source_and_number(&frame);
                            prop_assert!(last.insert(source, number).is_none_or(|last| last < number), "in order");
                        }
                    }
                }
                Step::Wait(more) => ms += more,
                Step::End => queues.discard(&mut receiver.queue, &mut receiver.backlog, DropReason::WriteError),
            }
            prop_assert!(receiver.backlog.queued() <= policy.burst.max(policy.low + 3017));
            prop_assert!(receiver.queue.queued() <= policy.max_bytes);
            prop_assert_eq!(queues.congested(), usize::from(receiver.queue.is_congested()));
            let dropped: u64 = queues.drops().iter().map(|(_, n)| n).sum();
            prop_assert_eq!(pushed, sent + dropped + receiver.waiting() as u64);
        }
    }
}
