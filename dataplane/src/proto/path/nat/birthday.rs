//! A search among random ports, for a NAT that draws them: bounded in number and in rate.
//!
//! One end has many sockets, each with a mapping that its NAT drew at random; the other asks random ports of that NAT. With 256 sockets and 1,024
//! probes one of them meets with 98 %, with one socket with 1.6 %. That is all that is ever sent for it: at most [`MAX_PROBES`] per
//! punch, at most [`BATCH`] in each [`INTERVAL`], so that nothing on the way takes it for a scan or loses anything else for it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

use crate::proto::time::Instant;

/// Probes per punch.
pub const MAX_PROBES: usize = 1024;
/// Probes sent together.
pub const BATCH: usize = 22;
/// Between two batches: all of them fit the 5 s of a punch.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// Ports below are not given to clients.
const FIRST: u64 = 1024;

/// See the [module](self).
#[derive(Debug)]
pub struct Birthday {
    target: IpAddr,
    asked: BTreeSet<u16>,
    next: Instant,
}

impl Birthday {
    /// A search at `target`, from `now` on.
    pub const fn new(target: IpAddr, now: Instant) -> Self {
        Self { target, asked: BTreeSet::new(), next: now }
    }

    /// When the next batch is due; `None`: it is over.
    pub fn next(&self) -> Option<Instant> {
        (self.asked.len() < MAX_PROBES).then_some(self.next)
    }

    /// The batch that is due, of ports that were not asked before.
    pub fn batch(&mut self, rng: &mut ChaCha20Rng, now: Instant) -> Vec<SocketAddr> {
        if self.next().is_none_or(|next| next > now) {
            return Vec::new();
        }
        self.next = now + INTERVAL;
        let end = (self.asked.len() + BATCH).min(MAX_PROBES);
        let mut batch = Vec::with_capacity(BATCH);
        while self.asked.len() < end {
            let port = FIRST + rng.next_u64() % (65_536 - FIRST);
            let port = u16::try_from(port).unwrap_or(u16::MAX);
            if self.asked.insert(port) {
                batch.push(SocketAddr::new(self.target, port));
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_search_is_bounded_in_number_and_rate_asks_no_port_twice_and_fits_a_punch() {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let target = IpAddr::from([198, 51, 100, 7]);
        let mut birthday = Birthday::new(target, Instant::ZERO);
        let (mut now, mut all) = (Instant::ZERO, Vec::new());
        while let Some(next) = birthday.next() {
            now = now.max(next);
            let batch = birthday.batch(&mut rng, now);
            assert!(batch.len() <= BATCH && !batch.is_empty());
            assert!(birthday.batch(&mut rng, now).is_empty(), "nothing more at the same time");
            all.extend(batch);
        }
        assert_eq!(all.len(), MAX_PROBES);
        assert!(all.iter().all(|address| address.ip() == target && address.port() >= 1024));
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), MAX_PROBES);
        assert!(now <= Instant::ZERO + Duration::from_secs(5));
    }
}
