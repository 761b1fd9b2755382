//! Worker and queues together: many senders, few receivers that cannot take it all.

use std::collections::VecDeque;

use super::*;
use crate::proto::relay::queue::{Backlog, Queue, QueuePolicy, Queues};

/// What the engine's outbox is, with one frame a message.
#[derive(Default)]
struct Outbox {
    data: VecDeque<(Vec<u8>, Instant)>,
    reserved: Option<(Vec<u8>, Instant)>,
    bytes: usize,
}

impl Backlog for Outbox {
    fn queued(&self) -> usize {
        self.bytes
    }
    fn reserve(&mut self, len: usize, at: Instant) -> Option<&mut [u8]> {
        Some(self.reserved.insert((vec![0; len], at)).0.as_mut_slice())
    }
    fn commit(&mut self, len: usize, _: usize) {
        self.data.extend(self.reserved.take());
        self.bytes += len;
    }
    fn push_urgent(&mut self, _: &[u8], _: Instant) -> bool {
        false
    }
    fn drop_oldest(&mut self) -> usize {
        let Some((frame, _)) = self.data.pop_front() else { return 0 };
        self.bytes -= frame.len();
        1
    }
    fn drop_older_than(&mut self, before: Instant) -> usize {
        let mut dropped = 0;
        while self.data.front().is_some_and(|(_, at)| *at < before) {
            dropped += self.drop_oldest();
        }
        dropped
    }
}

/// A relay whose receivers take a given number of bytes per millisecond. Node `n` is on connection `n`; all are in one network.
struct Room {
    rig: Rig,
    queues: Queues,
    lines: BTreeMap<u32, (Queue, Outbox)>,
    next: u64,
    /// Bytes arrived, by (source, destination).
    arrived: BTreeMap<(u32, u32), u64>,
    /// Numbers sent and not yet arrived or dropped, and those arrived.
    sent: BTreeMap<u64, (u32, u32)>,
}

impl Room {
    fn new(nodes: impl Iterator<Item = u32>, policy: QueuePolicy) -> Self {
        let mut rig = Rig::new(1);
        nodes.for_each(|node| rig.node(0, node, node, 1 + node / 1000));
        Self {
            rig,
            queues: Queues::new(policy),
            lines: BTreeMap::new(),
            next: 0,
            arrived: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    fn send(&mut self, source: u32, destination: u32, len: usize) {
        self.next += 1;
        self.sent.insert(self.next, (source, destination));
        let mut payload =
            Route { source: NodeId(source), destination: NodeId(destination) }.to_bytes().to_vec();
        payload.extend_from_slice(&self.next.to_be_bytes());
        payload.resize(len.max(16), 0);
        let now = self.rig.now;
        let Self { rig, queues, lines, .. } = self;
        rig.workers[0].handle_message(
            ConnId(source),
            &frame(FrameType::Data, &payload),
            now,
            |verdict, frame| {
                let Verdict::Local(conn) = verdict else { panic!("{verdict:?}") };
                let (queue, outbox) = lines.entry(conn.0).or_default();
                queues.admit(queue, outbox, frame, now.instant);
            },
        );
    }

    /// What `receiver` takes now, checked frame by frame.
    fn take(&mut self, receiver: u32, mut budget: usize) {
        let Some((queue, outbox)) = self.lines.get_mut(&receiver) else { return };
        loop {
            self.queues.refill(queue, outbox, self.rig.now.instant);
            let Some((frame, _)) = outbox.data.pop_front_if(|(frame, _)| frame.len() <= budget) else {
                return;
            };
            outbox.bytes -= frame.len();
            budget -= frame.len();
            self.queues.sent(queue, outbox, self.rig.now.instant);
            let number = u64::from_be_bytes(frame[13..21].try_into().unwrap());
            let route = crate::proto::wire::data::route(&frame).unwrap();
            let sent = self.sent.remove(&number);
            assert_eq!(sent, Some((route.source.0, route.destination.0)), "at most once, unchanged");
            assert_eq!(route.destination.0, receiver, "and to the right node");
            *self.arrived.entry((route.source.0, receiver)).or_default() += frame.len() as u64;
        }
    }

    fn run(&mut self, ms: u64, mut offer: impl FnMut(&mut Self, u64), receivers: &[(u32, usize)]) {
        for at in 0..ms {
            self.rig.advance(Duration::from_millis(1));
            offer(self, at);
            for (receiver, budget) in receivers {
                self.take(*receiver, *budget);
            }
        }
    }

    fn of(&self, source: u32, destination: u32) -> u64 {
        self.arrived.get(&(source, destination)).copied().unwrap_or(0)
    }
}

/// Jain's index of fairness: 1 when all are equal, 1/n when one has it all.
fn jain(shares: &[u64]) -> f64 {
    let (sum, squares) =
        shares.iter().fold((0.0, 0.0), |(sum, squares), &x| (sum + x as f64, squares + (x as f64).powi(2)));
    sum * sum / (squares * shares.len() as f64)
}

#[test]
fn others_lose_nothing_while_one_sends_a_hundred_times_its_share() {
    let mut room = Room::new(1..=20, QueuePolicy::default());
    // 100 Mbit/s to node 1; each of 18 has a 20th of that, node 2 a hundred times as much.
    let share = 12_500 / 20;
    let mut sent = 0u64;
    room.run(
        1_000,
        |room, ms| {
            for source in 3..=20 {
                if ms % 2 == u64::from(source) % 2 {
                    room.send(source, 1, 2 * share - 5);
                    sent += u64::from(source == 3) * 2 * share as u64;
                }
            }
            for _ in 0..50 {
                room.send(2, 1, 1250 - 5);
            }
        },
        &[(1, 12_500)],
    );
    for source in 3..=20 {
        let lost = 1.0 - room.of(source, 1) as f64 / sent as f64;
        assert!(lost <= 0.01, "{source} lost {lost}");
    }
    assert!(room.of(2, 1) > 1_000 * share as u64, "and the greedy one has the rest");
    assert!(room.queues.drops().of(DropReason::QueueFull) > 30_000);
}

#[test]
fn a_hundred_equal_senders_to_one_receiver_get_equal_shares_over_short_times_too() {
    let mut room = Room::new(1..=101, QueuePolicy::default());
    let mut before = vec![0; 100];
    for round in 0..6 {
        room.run(
            300,
            |room, ms| {
                let due = |source: &u32| (ms + u64::from(*source)).is_multiple_of(3);
                (2..=101).filter(due).for_each(|source| room.send(source, 1, 1400));
            },
            &[(1, 20_000)],
        );
        let now: Vec<u64> = (2..=101).map(|source| room.of(source, 1)).collect();
        let shares: Vec<u64> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
        // While the queue fills for the first time, who came first has more.
        assert!(round == 0 || jain(&shares) >= 0.98, "{} in round {round}: {shares:?}", jain(&shares));
        before = now;
    }
    assert!(jain(&before) >= 0.995, "{}", jain(&before));
}

#[test]
fn a_slow_receiver_holds_up_nobody_who_sends_to_another() {
    let mut room = Room::new(1..=10, QueuePolicy::default());
    room.run(
        2_000,
        |room, _| {
            for source in 3..=10 {
                room.send(source, 1, 1400);
                room.send(source, 2, 1400);
            }
        },
        &[(1, 500), (2, 20_000)],
    );
    for source in 3..=10 {
        assert_eq!(room.of(source, 2), 2_000 * 1405);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn whatever_is_sent_frames_arrive_at_most_once_at_the_right_node_and_backlogged_senders_are_equal(
        senders in 2u32..50,
        receivers in 1u32..3,
        budget in 3_000usize..8_000,
        sizes in proptest::collection::vec(40usize..1500, 50),
        excess in proptest::collection::vec(1.5f64..10.0, 50),
    ) {
        let policy = QueuePolicy { max_age: Duration::from_secs(10), ..QueuePolicy::default() };
        let mut room = Room::new((1..=receivers).chain(101..=100 + senders), policy);
        let takers: Vec<(u32, usize)> = (1..=receivers).map(|receiver| (receiver, budget)).collect();
        // Long enough for a hundred turns each. Everyone offers at least half more than an equal share to every receiver, some ten times as much.
        let fair = budget as f64 / f64::from(senders);
        let mut credit = vec![0.0; senders as usize];
        let mut before = BTreeMap::new();
        for part in 0..2 {
            room.run(
                if part == 0 { 150 } else { 2_400 },
                |room, _| {
                    for sender in 0..senders as usize {
                        credit[sender] += (fair * excess[sender]).min(40_000.0);
                        while credit[sender] > 0.0 {
                            for receiver in 1..=receivers {
                                room.send(101 + sender as u32, receiver, sizes[sender]);
                            }
                            credit[sender] -= (sizes[sender] + 5) as f64;
                        }
                    }
                },
                &takers,
            );
            if part == 0 {
                before = room.arrived.clone();
            }
        }
        for receiver in 1..=receivers {
            let share = |sender: u32| room.of(sender, receiver) - before.get(&(sender, receiver)).copied().unwrap_or(0);
            let shares: Vec<u64> = (101..=100 + senders).map(share).collect();
            prop_assert!(jain(&shares) >= 0.98, "{}: {shares:?}", jain(&shares));
        }
        let dropped: u64 = room.queues.drops().iter().map(|(_, n)| n).sum();
        let waiting: usize = room.lines.values().map(|(queue, outbox)| outbox.data.len() + queue.frames()).sum();
        prop_assert_eq!(room.sent.len() as u64, dropped + waiting as u64, "what did not arrive waits or was counted");
    }
}
