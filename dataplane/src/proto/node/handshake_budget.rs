//! How many handshake messages are looked at (`docs/protocol.md` §2.2).
//!
//! One costs public-key operations, also when it is forged or replayed. So each peer has a bucket for each way that its messages may come, and each
//! relay, as well as all datagrams together, one in all: a relay that makes messages up, or repeats them, uses up what is its own, and handshakes
//! by other ways go on.

use std::time::Duration;

use super::direct::Origin;
use crate::proto::id::RelayId;
use crate::proto::time::Instant;

/// Of one peer by one way: in a row, and how often one more.
const PEER: (u32, Duration) = (10, Duration::from_millis(200));
/// By one way in all: all peers of a hub that restarts are served within seconds, and a flood costs a twentieth of a core.
const WAY: (u32, Duration) = (512, Duration::from_millis(4));
/// Ways that a peer's buckets are kept for; relays of the configuration, so more are rare.
const MAX_WAYS: usize = 32;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    left: u32,
    burst: u32,
    interval: Duration,
    refilled: Instant,
}

impl Bucket {
    /// For one way in all.
    pub(super) fn for_way(now: Instant) -> Self {
        Self::new(WAY, now)
    }

    const fn new((burst, interval): (u32, Duration), now: Instant) -> Self {
        Self { left: burst, burst, interval, refilled: now }
    }

    /// Whether one more may be looked at.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_since(self.refilled).as_nanos() / self.interval.as_nanos();
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(self.burst);
            self.refilled = now;
        }
        self.left.checked_sub(1).map(|left| self.left = left).is_some()
    }
}

/// Of one peer, by way; `None`: datagrams.
#[derive(Debug, Default)]
pub(super) struct PeerBuckets {
    ways: Vec<(Option<RelayId>, Bucket)>,
}

impl PeerBuckets {
    /// Whether one more that came by this way may be looked at.
    pub(super) fn take(&mut self, origin: Origin, now: Instant) -> bool {
        let way = origin.relay();
        if let Some((_, bucket)) = self.ways.iter_mut().find(|(known, _)| *known == way) {
            return bucket.take(now);
        }
        if self.ways.len() == MAX_WAYS {
            // Of a relay that has gone from the configuration since.
            self.ways.remove(0);
        }
        let mut bucket = Bucket::new(PEER, now);
        let taken = bucket.take(now);
        self.ways.push((way, bucket));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_relay_that_floods_in_a_peers_name_leaves_what_comes_by_another_way() {
        let mut buckets = PeerBuckets::default();
        let [one, two] = [1, 2].map(|id| Origin::Relay(RelayId(id)));
        let taken = (0..1000).filter(|_| buckets.take(one, at(0))).count();
        assert_eq!(taken, 10);
        assert!(buckets.take(two, at(0)));
        assert!(!buckets.take(one, at(199)) && buckets.take(one, at(200)) && !buckets.take(one, at(201)));
        let in_a_second = (0..1000).filter(|n| buckets.take(one, at(1200 + n))).count();
        assert_eq!(in_a_second, 9, "five waited, four more came");
    }

    #[test]
    fn buckets_are_bounded_in_number_and_content() {
        let mut buckets = PeerBuckets::default();
        for id in 1..1000 {
            assert!(buckets.take(Origin::Relay(RelayId(id)), at(0)));
        }
        assert_eq!(buckets.ways.len(), MAX_WAYS);
        let mut all = Bucket::for_way(at(0));
        assert_eq!((0..5000).filter(|_| all.take(at(0))).count(), 512);
        assert_eq!((0..5000).filter(|_| all.take(at(3_600_000))).count(), 512);
    }
}
