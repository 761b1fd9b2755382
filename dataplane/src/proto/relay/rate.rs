//! How much a node, or an address, may send and be sent.
//!
//! A [`TokenBucket`] is one number: the moment at which it would be full again (GCRA, ITU-T I.371). Taking moves that moment on by the time that the amount
//! takes at the rate; what would move it further than the burst into the future exceeds the limit. There is nothing to refill, so an idle
//! bucket costs nothing and the time is only ever an argument.

use std::time::Duration;

use crate::proto::time::Instant;
use crate::proto::wire::frame::MAX_FRAME;

/// A limit; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second, frame headers included.
    pub bytes_per_s: u64,
    /// Frames a second.
    pub frames_per_s: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { bytes_per_s: 0, frames_per_s: 0 };

    /// Whether it limits nothing.
    pub const fn is_unlimited(&self) -> bool {
        self.bytes_per_s == 0 && self.frames_per_s == 0
    }
}

/// See the module's doc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenBucket {
    full_at: Instant,
}

impl TokenBucket {
    /// Takes `amount` when `rate` (a second, not 0) and `burst` allow it. A burst shorter than one unit's time is as long as that.
    pub fn take(&mut self, amount: usize, rate: u64, burst: Duration, now: Instant) -> bool {
        match self.after(amount, rate, burst, now) {
            Some(full_at) => {
                self.full_at = full_at;
                true
            }
            None => false,
        }
    }

    /// Whether nothing is missing in it.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    fn after(self, amount: usize, rate: u64, burst: Duration, now: Instant) -> Option<Instant> {
        let nanos = (amount as u64).saturating_mul(1_000_000_000) / rate.max(1);
        let full_at = self.full_at.max(now) + Duration::from_nanos(nanos);
        // Whatever the burst, one of that size passes when the bucket is full.
        (full_at - now <= burst.max(Duration::from_nanos(nanos))).then_some(full_at)
    }
}

/// Which number of a [`Rate`] was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// Bytes a second.
    Bytes(u64),
    /// Frames a second.
    Frames(u64),
}

/// One direction of one node or address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    rate: Rate,
    bytes: TokenBucket,
    frames: TokenBucket,
}

impl Meter {
    /// A new limit. What was taken under the old one still counts.
    pub fn set(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// The limit.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one frame, of both numbers or of none.
    ///
    /// # Errors
    /// Which number it exceeds.
    pub fn take(&mut self, len: usize, burst: Duration, now: Instant) -> Result<(), Exceeded> {
        let Rate { bytes_per_s, frames_per_s } = self.rate;
        let mut bytes = self.bytes;
        if bytes_per_s > 0 && !bytes.take(len, bytes_per_s, burst, now) {
            return Err(Exceeded::Bytes(bytes_per_s));
        }
        if frames_per_s > 0 && !self.frames.take(1, frames_per_s, burst, now) {
            return Err(Exceeded::Frames(frames_per_s));
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Whether it has nothing to remember.
    pub fn is_full(&self, now: Instant) -> bool {
        self.bytes.is_full(now) && self.frames.is_full(now)
    }
}

const _: () = assert!((MAX_FRAME as u64).checked_mul(1_000_000_000).is_some());

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BURST: Duration = Duration::from_millis(250);

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(micros * 1000)
    }

    #[test]
    fn a_burst_passes_then_the_rate_and_a_pause_gives_the_burst_back() {
        let mut meter = Meter::default();
        meter.set(Rate { bytes_per_s: 1_000_000, frames_per_s: 0 });
        let take = |meter: &mut Meter, from: u64, to: u64| {
            (from..to).filter(|ms| meter.take(10_000, BURST, at(ms * 1000)).is_ok()).count()
        };
        assert_eq!((0..100).filter(|_| meter.take(10_000, BURST, at(0)).is_ok()).count(), 25);
        assert_eq!(meter.take(10_000, BURST, at(0)), Err(Exceeded::Bytes(1_000_000)));
        assert_eq!(take(&mut meter, 1, 1001), 100, "one in ten milliseconds");
        assert!(!meter.is_full(at(1_000_000)) && meter.is_full(at(1_300_000)));
    }

    #[test]
    fn a_frame_over_one_number_is_not_counted_in_the_other() {
        let mut meter = Meter::default();
        meter.set(Rate { bytes_per_s: 1_000_000, frames_per_s: 100 });
        let passed = (0..1000).filter(|_| meter.take(1, BURST, at(0)).is_ok()).count();
        assert_eq!(passed, 25);
        assert_eq!(meter.take(1, BURST, at(0)), Err(Exceeded::Frames(100)));
        assert!(meter.bytes.is_full(at(26)), "25 bytes are 25 us");
    }

    #[test]
    fn any_frame_passes_a_slow_limit_when_nothing_went_before() {
        let mut meter = Meter::default();
        meter.set(Rate { bytes_per_s: 1, frames_per_s: 0 });
        assert_eq!(meter.take(MAX_FRAME, BURST, at(0)), Ok(()));
        assert!(meter.take(1, BURST, at(3_600_000_000)).is_err());
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_pass_and_never_much_less_when_more_is_offered(
            rate in 1_000u64..200_000_000,
            steps in proptest::collection::vec((1usize..1500, 0u64..2_000), 1..500),
        ) {
            let mut bucket = TokenBucket::default();
            let (mut now, mut passed) = (0, 0u64);
            for (amount, wait) in steps {
                now += wait;
                if bucket.take(amount, rate, BURST, at(now)) {
                    passed += amount as u64;
                }
            }
            let allowed = rate as f64 * (now as f64 / 1e6 + 0.25) + 1500.0;
            prop_assert!(passed as f64 <= allowed * 1.001, "{passed} of {allowed}");
        }
    }
}
