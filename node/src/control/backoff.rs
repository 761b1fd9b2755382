//! How long to wait before dialling again: 0.2 s, doubling to 10 s, with full jitter (`docs/protocol.md` §3.6).

use std::time::Duration;

use rand_core::RngCore;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(10);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After another failure: somewhere between nothing and the current ceiling, so that a thousand nodes do not come back together.
    pub(crate) fn next(&mut self, random: &mut impl RngCore) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(16)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        // 53 bits of the generator as a fraction below 1.
        let fraction = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        ceiling.mul_f64(fraction)
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn ceilings_double_to_ten_seconds_and_waits_fill_them() {
        let mut random = ChaCha20Rng::from_seed([7; 32]);
        let mut longest = [Duration::ZERO; 8];
        for _ in 0..500 {
            let mut backoff = Backoff::default();
            for longest in &mut longest {
                *longest = backoff.next(&mut random).max(*longest);
            }
        }
        for (n, longest) in longest.into_iter().enumerate() {
            let ceiling = Duration::from_millis(200 << n).min(LAST);
            assert!(longest <= ceiling && longest > ceiling.mul_f64(0.9), "{n}: {longest:?} of {ceiling:?}");
        }
    }

    #[test]
    fn success_starts_over() {
        let mut random = ChaCha20Rng::from_seed([7; 32]);
        let mut backoff = Backoff::default();
        for _ in 0..1000 {
            backoff.next(&mut random);
        }
        backoff.reset();
        assert!(backoff.next(&mut random) <= FIRST);
    }
}
