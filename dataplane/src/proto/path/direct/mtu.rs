//! How long a datagram may be on one path: packetization-layer path MTU discovery as RFC 8899 has it.
//!
//! ```text
//! new ─► asks for the base and for what is wanted, both at once
//!           wanted answered ─────────────────────────► done
//!           base answered, wanted lost three times ──► halves the gap until 16 bytes are left ─► done; again after 10 minutes
//!           base lost three times ───────────────────► the path carries no packets
//! in use ─► asks for the present size every 10 s; lost three times: a black hole ─► back to the base, and search anew
//! ```
//!
//! Sizes are those of UDP payloads. The base is what an IPv6 packet of 1,280 bytes holds, also over IPv4. From RFC 8899 §4 and §5.

use std::time::Duration;

use crate::proto::time::Instant;

/// 1,280 bytes without the headers of IPv6 and UDP.
pub const BASE: u16 = 1232;
/// Probes of one size before it counts as too long (`MAX_PROBES`).
const TRIES: u32 = 3;
/// A gap that is not worth a probe.
const NEAR: u16 = 16;
/// Between two looks whether a size still passes.
const CONFIRM: Duration = Duration::from_secs(10);
/// Between two looks whether more passes (`PMTU_RAISE_TIMER`).
const RAISE: Duration = Duration::from_mins(10);

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub(super) struct MtuSearch {
    wanted: u16,
    /// Passes; 0: not known yet.
    good: u16,
    /// Does not.
    bad: Option<u16>,
    base: Question,
    question: Question,
    next: Instant,
    raise: Instant,
}

/// A size that is being asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    None,
    /// To be asked; the losses so far.
    Ask(u16, u32),
    /// Asked.
    Asked(u16, u32),
}

impl Question {
    fn take(&mut self) -> Option<u16> {
        let Self::Ask(size, lost) = *self else { return None };
        *self = Self::Asked(size, lost);
        Some(size)
    }

    /// True: it was lost for the last time.
    fn lost(&mut self, size: u16) -> bool {
        let Self::Asked(asked, lost) = *self else { return false };
        if asked != size {
            return false;
        }
        let over = lost + 1 >= TRIES;
        *self = if over { Self::None } else { Self::Ask(size, lost + 1) };
        over
    }
}

impl MtuSearch {
    /// `wanted`: what the longest packet takes.
    pub(super) fn new(wanted: u16, now: Instant) -> Self {
        let wanted = wanted.max(BASE);
        let question = if wanted > BASE { Question::Ask(wanted, 0) } else { Question::None };
        Self { wanted, good: 0, bad: None, base: Question::Ask(BASE, 0), question, next: now, raise: now }
    }

    /// The longest datagram that is known to pass; 0: none.
    pub(super) const fn good(&self) -> u16 {
        self.good
    }

    /// Whether not even the base passes.
    pub(super) const fn is_hopeless(&self) -> bool {
        self.good == 0 && matches!(self.base, Question::None)
    }

    /// A size to ask for now.
    pub(super) fn poll(&mut self, in_use: bool, now: Instant) -> Option<u16> {
        if let Some(size) = self.base.take().or_else(|| self.question.take()) {
            return Some(size);
        }
        if now < self.next || self.is_asking() || self.good == 0 || !in_use {
            return None;
        }
        if self.bad.is_some() && now >= self.raise {
            self.bad = None;
            self.question = Question::Ask(self.wanted, 0);
        } else {
            self.next = self.next.max(now) + CONFIRM;
            self.question = Question::Ask(self.good, 0);
        }
        self.question.take()
    }

    /// When [`MtuSearch::poll`] has something to ask; `None`: it waits for an answer, or for traffic.
    pub(super) fn next(&self, in_use: bool) -> Option<Instant> {
        let asks = |question| matches!(question, Question::Ask(..));
        if asks(self.base) || asks(self.question) {
            return Some(Instant::ZERO);
        }
        (in_use && self.good > 0 && !self.is_asking()).then_some(self.next)
    }

    /// A datagram of this size arrived.
    pub(super) fn answered(&mut self, size: u16, now: Instant) {
        self.good = self.good.max(size);
        if self.good >= BASE {
            self.base = Question::None;
        }
        if matches!(self.question, Question::Asked(asked, _) | Question::Ask(asked, _) if asked <= self.good)
        {
            self.question = Question::None;
            self.go_on(now);
        }
    }

    /// A datagram of this size did not; true: the longest one that passes is another one now.
    pub(super) fn lost(&mut self, size: u16, now: Instant) -> bool {
        self.base.lost(size);
        if !self.question.lost(size) {
            return false;
        }
        let before = self.good;
        self.bad = Some(self.bad.map_or(size, |bad| bad.min(size)));
        if size <= self.good {
            // It used to pass: a black hole.
            self.good = 0;
            self.base = Question::Ask(BASE, 0);
        }
        self.go_on(now);
        before != self.good
    }

    /// The system would not send so much.
    pub(super) fn refused(&mut self, size: u16, now: Instant) {
        if size > BASE && (self.question == Question::Asked(size, 0) || size <= self.good) {
            self.bad = Some(size);
            self.good = self.good.min(BASE);
            self.question = Question::None;
            self.go_on(now);
        }
    }

    const fn is_asking(&self) -> bool {
        !matches!((self.base, self.question), (Question::None, Question::None))
    }

    /// The next size of the search.
    fn go_on(&mut self, now: Instant) {
        self.next = now + CONFIRM;
        self.raise = now + RAISE;
        let Some(bad) = self.bad else { return };
        let low = self.good.max(BASE);
        if bad > low + NEAR {
            let middle = (low + (bad - low) / 2) / 8 * 8;
            self.question = Question::Ask(middle.max(low + 1), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search over a path that carries `limit` bytes; returns what was asked.
    fn run(search: &mut MtuSearch, limit: u16, now: Instant) -> Vec<u16> {
        let mut asked = Vec::new();
        while let Some(size) = search.poll(false, now) {
            asked.push(size);
            assert!(asked.len() < 100, "it does not end: {asked:?}");
            if size <= limit {
                search.answered(size, now);
            } else {
                search.lost(size, now);
            }
        }
        asked
    }

    #[test]
    fn what_is_wanted_is_asked_for_first_and_is_enough() {
        let mut search = MtuSearch::new(1441, Instant::ZERO);
        assert_eq!(run(&mut search, 1472, Instant::ZERO), [BASE, 1441]);
        assert_eq!(search.good(), 1441);
    }

    #[test]
    fn every_limit_is_found_within_a_few_bytes_and_never_exceeded() {
        for limit in BASE..1441 {
            let mut search = MtuSearch::new(1441, Instant::ZERO);
            let asked = run(&mut search, limit, Instant::ZERO);
            assert!(search.good() <= limit && search.good() + NEAR + 8 >= limit, "{limit}: {asked:?}");
        }
    }

    #[test]
    fn a_path_below_the_base_carries_nothing() {
        let mut search = MtuSearch::new(1441, Instant::ZERO);
        run(&mut search, 1000, Instant::ZERO);
        assert_eq!(search.good(), 0);
        assert!(search.is_hopeless());
    }

    #[test]
    fn a_black_hole_is_noticed_and_what_still_passes_found() {
        let mut search = MtuSearch::new(1441, Instant::ZERO);
        run(&mut search, 1472, Instant::ZERO);
        let mut now = Instant::ZERO + CONFIRM;
        assert_eq!(search.next(false), None, "nobody is using it");
        assert_eq!(search.poll(true, now), Some(1441));
        for _ in 0..2 {
            assert!(!search.lost(1441, now));
            assert_eq!(search.poll(true, now), Some(1441));
        }
        assert!(search.lost(1441, now));
        assert_eq!(search.good(), 0, "until the base has been answered");
        run(&mut search, 1300, now);
        assert!((1276..=1300).contains(&search.good()));
        now += RAISE;
        assert_eq!(search.poll(true, now), Some(1441), "it may be back");
        search.answered(1441, now);
        assert_eq!(search.good(), 1441);
    }

    #[test]
    fn one_lost_answer_changes_nothing() {
        let mut search = MtuSearch::new(1441, Instant::ZERO);
        run(&mut search, 1472, Instant::ZERO);
        let now = Instant::ZERO + CONFIRM;
        assert_eq!(search.poll(true, now), Some(1441));
        search.lost(1441, now);
        assert_eq!(search.poll(true, now), Some(1441));
        search.answered(1441, now);
        assert_eq!(search.good(), 1441);
    }
}
