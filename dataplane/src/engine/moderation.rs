//! When to let input collect before it is handled, as network cards moderate their interrupts.
//!
//! A thread that sleeps and wakes for every frame or packet pays more for waking up than for the work. While they come fast and in small lots, a round
//! therefore waits a moment for more of them: each then finds several, which go out in one record or one batch by one system call.
//! At low rates nothing is delayed, and when there is plenty to do rounds are long anyhow.

use std::time::Duration;

use crate::proto::time::Instant;

/// How often the rate is looked at.
const WINDOW: Duration = Duration::from_millis(2);

/// What a thread's rounds are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long a round waits for more: network cards choose 20 to 100 µs.
    pub(super) gather: Duration,
    /// Frames (or packets) a second from which on it waits, and below which it stops doing so.
    pub(super) rates: (f64, f64),
    /// A round that has received that many bytes was long enough.
    pub(super) plenty: usize,
}

/// See the module's doc.
#[derive(Debug)]
pub(super) struct Moderation {
    pace: Pace,
    since: Instant,
    frames: u64,
    on: bool,
}

impl Moderation {
    pub(super) const fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, since: now, frames: 0, on: false }
    }

    /// After a round that has received `received` bytes: how long to let input collect. `frames` is the count of all so far.
    pub(super) fn gather(&mut self, now: Instant, frames: u64, received: usize) -> Option<Duration> {
        let Pace { gather, rates: (on, off), plenty } = self.pace;
        let elapsed = now - self.since;
        if elapsed >= WINDOW {
            let rate = (frames - self.frames) as f64 / elapsed.as_secs_f64();
            self.on = rate >= if self.on { off } else { on };
            (self.since, self.frames) = (now, frames);
        }
        (self.on && received < plenty).then_some(gather)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATHER: Duration = Duration::from_micros(80);
    const PACE: Pace = Pace { gather: GATHER, rates: (100_000.0, 50_000.0), plenty: 64 << 10 };

    /// What is waited for at the end of a second of `rate` frames a second, a round every 100 µs.
    fn after_a_second_of(rate: u64, received: usize, moderation: &mut Moderation) -> Option<Duration> {
        let (start, frames) = (moderation.since, moderation.frames);
        let mut gather = None;
        for round in 1..=10_000 {
            let now = start + Duration::from_micros(100 * round);
            gather = moderation.gather(now, frames + rate * round / 10_000, received);
        }
        gather
    }

    #[test]
    fn only_fast_small_rounds_wait() {
        let mut moderation = Moderation::new(PACE, Instant::ZERO);
        assert_eq!(after_a_second_of(8_000, 1400, &mut moderation), None);
        assert_eq!(after_a_second_of(70_000, 1400, &mut moderation), None);
        assert_eq!(after_a_second_of(120_000, 20_000, &mut moderation), Some(GATHER));
        assert_eq!(after_a_second_of(1_500_000, 256 << 10, &mut moderation), None);
        // It does not stop at the first lull, and stops when it is over.
        assert_eq!(after_a_second_of(70_000, 1400, &mut moderation), Some(GATHER));
        assert_eq!(after_a_second_of(8_000, 1400, &mut moderation), None);
    }

    #[test]
    fn after_an_idle_hour_the_first_frame_is_not_delayed() {
        let mut moderation = Moderation::new(PACE, Instant::ZERO);
        assert_eq!(after_a_second_of(500_000, 1400, &mut moderation), Some(GATHER));
        let later = moderation.since + Duration::from_secs(3600);
        assert_eq!(moderation.gather(later, moderation.frames + 1, 1400), None);
    }
}
