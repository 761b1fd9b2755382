//! How often an idle path is touched, so that no NAT forgets it.
//!
//! ```text
//! 25 s ──ten answers in a row──► 55 s ──one lost──► 25 s          three lost in a row: the path is down
//! ```
//!
//! A path that went down after an idle time and works again as soon as it is punched was forgotten by a NAT: from then on it is touched after
//! three quarters of that time at the latest (`Lifetime`).

use std::time::Duration;

use crate::proto::time::Instant;

/// Between touches at first, unless the controller says otherwise.
pub const SHORT: Duration = Duration::from_secs(25);
/// Between touches when they have been answered for a while.
pub const LONG: Duration = Duration::from_secs(55);
/// Never more often.
pub const SHORTEST: Duration = Duration::from_secs(5);
/// Answers in a row before it grows.
const GROW_AFTER: u32 = 10;
/// Losses in a row that mean "down".
const DOWN_AFTER: u32 = 3;
/// A path that comes back so soon after it went down was only forgotten.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(15);

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    short: Duration,
    long: Duration,
    interval: Duration,
    answered: u32,
    lost: u32,
}

impl Keepalive {
    /// Not longer than what a NAT is known to remember.
    pub(super) fn new(short: Duration, lifetime: &Lifetime) -> Self {
        let most = lifetime.longest.unwrap_or(LONG).max(SHORTEST);
        let short = short.clamp(SHORTEST, LONG).min(most);
        Self { short, long: LONG.min(most), interval: short, answered: 0, lost: 0 }
    }

    /// The idle time after which the path is touched.
    pub(super) const fn interval(&self) -> Duration {
        self.interval
    }

    /// Something was answered.
    pub(super) fn answered(&mut self) {
        self.lost = 0;
        self.answered = self.answered.saturating_add(1);
        if self.answered >= GROW_AFTER {
            self.interval = self.long;
        }
    }

    /// Something was not; true: the path is down.
    pub(super) const fn lost(&mut self) -> bool {
        self.answered = 0;
        self.lost += 1;
        self.interval = self.short;
        self.lost >= DOWN_AFTER
    }

    /// It waits for an answer that it had not got at the first try.
    pub(super) const fn is_troubled(&self) -> bool {
        self.lost > 0
    }
}

/// What has been learned of the time that the NATs to one peer remember.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lifetime {
    longest: Option<Duration>,
    suspicion: Option<(Duration, Instant)>,
}

impl Lifetime {
    /// A path went down after it had been idle for so long.
    pub(super) const fn went_down(&mut self, idle: Duration, now: Instant) {
        self.suspicion = Some((idle, now));
    }

    /// A path was found.
    pub(super) fn came_back(&mut self, now: Instant) {
        if let Some((idle, then)) = self.suspicion.take()
            && now.saturating_since(then) <= FORGOTTEN_WITHIN
        {
            let shorter = (idle * 3 / 4).max(SHORTEST);
            self.longest = Some(self.longest.map_or(shorter, |known| known.min(shorter)));
        }
    }

    /// The idle time that no path to the peer is to exceed, if any was learned.
    pub(super) const fn longest(&self) -> Option<Duration> {
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn grows_to_55_s_after_ten_answers_and_back_to_25_on_a_loss() {
        let mut keepalive = Keepalive::new(SHORT, &Lifetime::default());
        for _ in 0..9 {
            keepalive.answered();
            assert_eq!(keepalive.interval(), S(25));
        }
        keepalive.answered();
        assert_eq!(keepalive.interval(), S(55));
        assert!(!keepalive.lost());
        assert_eq!(keepalive.interval(), S(25));
        keepalive.answered();
        assert_eq!(keepalive.interval(), S(25), "ten in a row again");
    }

    #[test]
    fn three_losses_in_a_row_are_the_end() {
        let mut keepalive = Keepalive::new(SHORT, &Lifetime::default());
        assert!(!keepalive.lost() && !keepalive.lost());
        keepalive.answered();
        assert!(!keepalive.lost() && !keepalive.lost() && keepalive.lost());
    }

    #[test]
    fn what_a_nat_forgets_is_learned_only_when_the_path_comes_back_at_once() {
        let at = |secs| Instant::ZERO + S(secs);
        let mut lifetime = Lifetime::default();
        lifetime.went_down(S(55), at(100));
        lifetime.came_back(at(500));
        assert_eq!(lifetime.longest(), None, "the peer was away");
        lifetime.went_down(S(55), at(600));
        lifetime.came_back(at(602));
        assert_eq!(lifetime.longest(), Some(S(55) * 3 / 4));
        let mut keepalive = Keepalive::new(SHORT, &lifetime);
        (0..10).for_each(|_| keepalive.answered());
        assert_eq!(keepalive.interval(), S(55) * 3 / 4);
        for n in 0..20 {
            lifetime.went_down(lifetime.longest().unwrap(), at(700 + n));
            lifetime.came_back(at(701 + n));
        }
        assert_eq!(Keepalive::new(SHORT, &lifetime).interval(), SHORTEST);
    }
}
