//! When to dial again: 0.2 s doubling to 10 s, with jitter.

use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;

/// The first wait, before jitter.
pub const FIRST: Duration = Duration::from_millis(200);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(10);

/// Waits between attempts. The half of each wait is drawn, so that many nodes that lost one relay do not come back in step, and none comes
/// back at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait before the next attempt.
    pub fn next(&mut self, rng: &mut ChaCha20Rng) -> Duration {
        let whole = (FIRST * (1 << self.failures.min(6))).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        whole / 2 + jitter(rng, whole / 2)
    }

    /// The next wait is the longest: whoever is at the other end asked for it.
    pub const fn saturate(&mut self) {
        self.failures = 6;
    }

    /// The attempt was a success: the next failure starts over.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random duration below `limit`.
pub fn jitter(rng: &mut ChaCha20Rng, limit: Duration) -> Duration {
    let nanos = limit.as_nanos() as u64;
    if nanos == 0 { Duration::ZERO } else { Duration::from_nanos(rng.next_u64() % nanos) }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_and_start_over_after_success() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let mut backoff = Backoff::default();
        for n in 0..20 {
            let whole = (FIRST * 2u32.pow(n.min(10))).min(LONGEST);
            let wait = backoff.next(&mut rng);
            assert!(wait >= whole / 2 && wait < whole, "attempt {n} waits {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) < FIRST);
    }
}
