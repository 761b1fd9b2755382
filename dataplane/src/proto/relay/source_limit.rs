//! How often one source address may ask, in memory that no flood can make grow.
//!
//! A token bucket for each of `SLOTS` places; an address has the place that a keyed hash gives it (of IPv6 the first 64 bits: who has one address
//! there has all). Nothing is stored about addresses and nothing is evicted, so spoofed sources push nobody out; two addresses that share a place
//! share its rate, and nobody outside can find out which do.

use std::net::IpAddr;
use std::time::Duration;

use crate::proto::time::Instant;

/// With 8 bytes each: half a MiB.
const SLOTS: usize = 1 << 16;

/// See the module's doc.
pub struct SourceLimit {
    /// For each place the moment at which its bucket will be full again, in nanoseconds (the generic cell rate algorithm of ITU-T I.371: one number says all).
    full_at: Box<[u64]>,
    key: [u64; 2],
    /// Between two of a steady stream.
    interval: Duration,
    burst: u32,
}

impl SourceLimit {
    /// `per_second` on average (1 or more), `burst` at once; `seed` keys the hash.
    pub fn new(per_second: u32, burst: u32, seed: [u64; 2]) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { full_at: vec![0; SLOTS].into_boxed_slice(), key: seed, interval, burst }
    }

    /// Whether `source` may ask once more, now.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        let place = self.place(source);
        let (now, interval) = (now.as_nanos(), self.interval.as_nanos() as u64);
        let Some(full_at) = self.full_at.get_mut(place) else { return false };
        let next = (*full_at).max(now).saturating_add(interval);
        let admitted = next - now <= interval.saturating_mul(u64::from(self.burst));
        if admitted {
            *full_at = next;
        }
        admitted
    }

    fn place(&self, source: IpAddr) -> usize {
        let (kind, address) = match source.to_canonical() {
            IpAddr::V4(ip) => (4, u64::from(u32::from(ip))),
            IpAddr::V6(ip) => (6, (u128::from(ip) >> 64) as u64),
        };
        let product = u128::from(address ^ self.key[0]) * u128::from(self.key[1] | 1) + kind;
        // Folded twice: the key of 64 bits goes into all of the result.
        let folded = (product >> 64) as u64 ^ product as u64;
        let again = u128::from(folded) * u128::from(self.key[0] | 1);
        ((again >> 64) as u64 ^ again as u64) as usize % SLOTS
    }
}

impl std::fmt::Debug for SourceLimit {
    /// Leaves buckets and key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceLimit")
            .field("interval", &self.interval)
            .field("burst", &self.burst)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const SEED: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03];

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(0) + Duration::from_millis(ms)
    }

    fn v4(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0A00_0000 + n).into()
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate_and_others_theirs() {
        let mut limit = SourceLimit::new(10, 20, SEED);
        let passed = |limit: &mut SourceLimit, source, from: u64, to: u64| {
            (from..to).filter(|ms| limit.admit(source, at(*ms))).count()
        };
        assert_eq!(passed(&mut limit, v4(1), 0, 100), 20, "a hundred within 100 ms");
        let later = passed(&mut limit, v4(1), 100, 5100);
        assert!((49..=51).contains(&later), "{later} in five seconds");
        assert_eq!(passed(&mut limit, v4(2), 5100, 5110), 10);
        assert_eq!(passed(&mut limit, v4(1), 100_000, 100_030), 20, "rested");
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_a_mapped_address_is_the_same_as_its_own() {
        let mut limit = SourceLimit::new(1, 2, SEED);
        let mut admit = |source: &str| limit.admit(source.parse().unwrap(), at(0));
        assert!(admit("2001:db8::1") && admit("2001:db8::2") && !admit("2001:db8::3"));
        assert!(admit("203.0.113.7") && admit("::ffff:203.0.113.7") && !admit("203.0.113.7"));
    }

    #[test]
    fn addresses_spread_over_the_places() {
        let limit = SourceLimit::new(1, 1, SEED);
        let mut used = vec![0u8; SLOTS];
        (0..SLOTS as u32).for_each(|n| used[limit.place(v4(n))] = 1);
        let taken = used.iter().map(|used| usize::from(*used)).sum::<usize>();
        // Random places would take 1 - 1/e of them.
        assert!(taken > SLOTS / 2, "{taken} of {SLOTS}");
    }

    proptest! {
        #[test]
        fn no_pattern_of_asking_gets_more_than_burst_and_rate(gaps in proptest::collection::vec(0u64..400, 1..200), rate in 1u32..50, burst in 1u32..50) {
            let mut limit = SourceLimit::new(rate, burst, SEED);
            let (mut now, mut passed) = (0, 0u64);
            for gap in gaps {
                now += gap;
                passed += u64::from(limit.admit(v4(1), at(now)));
            }
            prop_assert!(passed <= u64::from(burst) + now * u64::from(rate) / 1000 + 1);
        }
    }
}
