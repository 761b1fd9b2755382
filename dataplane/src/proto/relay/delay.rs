//! How long frames wait in queues: counts by powers of two of microseconds.

use std::time::Duration;

/// The last bucket takes what waits longer than 2^22 µs, four seconds: nothing does, data is dropped before.
const BUCKETS: usize = 24;

/// See the module's doc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelayHistogram {
    counts: [u64; BUCKETS],
    sum_nanos: u64,
}

impl DelayHistogram {
    /// Counts one frame.
    pub fn record(&mut self, delay: Duration) {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let bucket = nanos.div_ceil(1000).saturating_sub(1).checked_ilog2().map_or(0, |log| log as usize + 1);
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(other.sum_nanos);
    }

    /// Upper bounds, and how many waited no longer than that (cumulative, as Prometheus wants it); `None` is no bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let mut sum = 0;
        self.counts.iter().enumerate().map(move |(bucket, count)| {
            sum += count;
            ((bucket + 1 < BUCKETS).then(|| Duration::from_micros(1 << bucket)), sum)
        })
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos)
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_counted_under_the_next_power_of_two_and_above() {
        for (micros, bound) in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1000, 1024), (1024, 1024)] {
            let mut histogram = DelayHistogram::default();
            histogram.record(Duration::from_micros(micros));
            let first = histogram.cumulative().find(|(_, count)| *count == 1).unwrap().0;
            assert_eq!(first, Some(Duration::from_micros(bound)), "{micros}");
        }
        let mut histogram = DelayHistogram::default();
        histogram.record(Duration::from_nanos(1001));
        histogram.record(Duration::from_secs(3600));
        let mut both = DelayHistogram::default();
        both.merge(&histogram);
        assert_eq!(both.cumulative().last(), Some((None, 2)));
        assert_eq!((both.count(), both.sum()), (2, Duration::from_nanos(3_600_000_001_001)));
    }
}
