//! Which path to take to one peer.
//!
//! The controller knows the round trips of both ends and of the mesh, the node only its own, and those sooner. So paths come in ranks:
//!
//! ```text
//! 0  the controller's best, while our leg of it has not become far worse than it was when we took it
//! 1  the controller's second
//! 2  a relay that both ends are connected to, by our round trip to it
//! 3  any relay: it forwards over the mesh if it can
//! ```
//!
//! A path that cannot be used is left at once. A better one is taken only when the present one was held for [`HOLD`], and within a rank only
//! when it is faster by [`FASTER_BY`] and a tenth: measurements that waver move nothing.

use std::time::Duration;

use crate::proto::id::RelayId;
use crate::proto::time::Instant;

/// How long a path is kept while it works.
pub const HOLD: Duration = Duration::from_secs(10);
/// A path of the same rank must be faster by this, and by a tenth.
pub const FASTER_BY: Duration = Duration::from_millis(5);
/// Our leg of the controller's path has become far worse: more than twice as slow, and by so much.
pub const DEGRADED_BY: Duration = Duration::from_millis(50);

/// A path that degraded ranks last for so long.
pub const DEMOTE: Duration = Duration::from_mins(1);

/// Relays to go by, from the sender's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The connection to send on.
    pub relay: RelayId,
    /// `Some`: ask that relay to deliver by this one.
    pub via: Option<RelayId>,
}

impl Path {
    /// From the form of the configuration; `None` for none, or for more hops than there can be.
    pub fn from_list(list: &[RelayId]) -> Option<Self> {
        match *list {
            [relay] => Some(Self { relay, via: None }),
            [relay, via] => Some(Self { relay, via: Some(via) }),
            _ => None,
        }
    }

    /// In the form of the configuration.
    pub fn to_list(self) -> Vec<RelayId> {
        std::iter::once(self.relay).chain(self.via).collect()
    }
}

/// A relay connection that can be used for the peer.
#[derive(Clone, Copy, Debug)]
pub struct Usable {
    /// The relay.
    pub relay: RelayId,
    /// Own round trip to it.
    pub rtt: Option<Duration>,
    /// Whether the peer is connected to it too.
    pub common: bool,
}

/// What the controller thinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Advice {
    /// Best path.
    pub best: Option<Path>,
    /// When that one fails.
    pub second: Option<Path>,
}

/// The path in use for one peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct PathChoice {
    chosen: Option<Chosen>,
    demoted: Option<(Path, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Chosen {
    path: Path,
    since: Instant,
    rtt_then: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    path: Path,
    rank: u8,
    rtt: Option<Duration>,
}

impl PathChoice {
    /// The path in use.
    pub fn path(&self) -> Option<Path> {
        self.chosen.map(|chosen| chosen.path)
    }

    /// Chooses anew among what is usable now; true when the path is another one than before.
    pub fn update(&mut self, usable: &[Usable], advice: Advice, now: Instant) -> bool {
        let before = self.path();
        if let Some(degraded) = self.degraded(usable) {
            self.demoted = Some((degraded, now + DEMOTE));
        }
        self.demoted = self.demoted.filter(|(_, until)| now < *until);
        let best = self
            .candidates(usable, advice)
            .min_by_key(|c| (c.rank, c.rtt.unwrap_or(Duration::MAX), c.path.relay));
        let present = before.and_then(|path| self.candidates(usable, advice).find(|c| c.path == path));
        self.chosen = match (best, present, self.chosen) {
            (None, ..) => None,
            (Some(best), Some(present), Some(chosen)) if !worth_it(best, present, chosen, now) => {
                // The round trip to compare with is the best that this path has had.
                let rtt_then = [chosen.rtt_then, present.rtt].into_iter().flatten().min();
                Some(Chosen { rtt_then, ..chosen })
            }
            (Some(best), ..) => Some(Chosen { path: best.path, since: now, rtt_then: best.rtt }),
        };
        self.path() != before
    }

    /// The path in use, when our leg of it has become far worse than it was.
    fn degraded(&self, usable: &[Usable]) -> Option<Path> {
        let chosen = self.chosen?;
        let now = usable.iter().find(|usable| usable.relay == chosen.path.relay)?.rtt?;
        let then = chosen.rtt_then?;
        (now > then * 2 && now > then + DEGRADED_BY).then_some(chosen.path)
    }

    fn candidates<'a>(&self, usable: &'a [Usable], advice: Advice) -> impl Iterator<Item = Candidate> + 'a {
        let demoted = self.demoted;
        let advised = [(0, advice.best), (1, advice.second)].into_iter().filter_map(move |(rank, path)| {
            let path = path?;
            let first = usable.iter().find(|usable| usable.relay == path.relay)?;
            let rank = if demoted.is_some_and(|(demoted, _)| demoted == path) { 3 } else { rank };
            Some(Candidate { path, rank, rtt: first.rtt })
        });
        let direct = usable.iter().map(|usable| Candidate {
            path: Path { relay: usable.relay, via: None },
            rank: if usable.common { 2 } else { 3 },
            rtt: usable.rtt,
        });
        advised.chain(direct)
    }
}

fn worth_it(best: Candidate, present: Candidate, chosen: Chosen, now: Instant) -> bool {
    if best.path == present.path || now < chosen.since + HOLD {
        return false;
    }
    if best.rank != present.rank {
        return best.rank < present.rank;
    }
    match (best.rtt, present.rtt) {
        (Some(best), Some(present)) => best + FASTER_BY <= present && best <= present * 9 / 10,
        (Some(_), None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(relay: u16, rtt_ms: u64, common: bool) -> Usable {
        Usable { relay: RelayId(relay), rtt: Some(Duration::from_millis(rtt_ms)), common }
    }

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    fn path(list: &[u16]) -> Option<Path> {
        Path::from_list(&list.iter().map(|&id| RelayId(id)).collect::<Vec<_>>())
    }

    fn best(list: &[u16]) -> Advice {
        Advice { best: path(list), second: None }
    }

    #[test]
    fn without_advice_the_fastest_common_relay_is_taken() {
        let mut choice = PathChoice::default();
        choice.update(
            &[usable(1, 5, false), usable(2, 30, true), usable(3, 20, true)],
            Advice::default(),
            at(0),
        );
        assert_eq!(choice.path(), path(&[3]));
    }

    #[test]
    fn a_little_faster_is_not_worth_a_change_and_much_faster_is_after_the_hold() {
        let mut choice = PathChoice::default();
        let none = Advice::default();
        choice.update(&[usable(1, 30, true)], none, at(0));
        for (one, two) in [(30, 26), (200, 181), (30, 29)] {
            assert!(!choice.update(&[usable(1, one, true), usable(2, two, true)], none, at(100)));
        }
        let much = [usable(1, 30, true), usable(2, 20, true)];
        assert!(!choice.update(&much, none, at(9)));
        assert!(choice.update(&much, none, at(10)));
        assert_eq!(choice.path(), path(&[2]));
    }

    #[test]
    fn a_dead_relay_is_left_at_once_whatever_the_hold() {
        let mut choice = PathChoice::default();
        choice.update(&[usable(1, 30, true), usable(2, 50, true)], Advice::default(), at(0));
        assert!(choice.update(&[usable(2, 50, true)], Advice::default(), at(0)));
        assert_eq!(choice.path(), path(&[2]));
        assert!(choice.update(&[], Advice::default(), at(0)));
        assert_eq!(choice.path(), None);
    }

    #[test]
    fn the_controllers_best_is_followed_even_over_two_hops() {
        let mut choice = PathChoice::default();
        let all = [usable(1, 10, true), usable(2, 40, true)];
        choice.update(&all, best(&[2, 1]), at(0));
        assert_eq!(choice.path(), path(&[2, 1]));
        let advice = Advice { best: path(&[9]), second: path(&[2]) };
        choice.update(&all, advice, at(20));
        assert_eq!(choice.path(), path(&[2]), "the second when the best cannot be used");
    }

    #[test]
    fn the_controllers_best_is_left_when_our_leg_of_it_degrades() {
        let mut choice = PathChoice::default();
        choice.update(&[usable(1, 40, true), usable(2, 20, true)], best(&[2]), at(0));
        assert!(!choice.update(&[usable(1, 40, true), usable(2, 60, true)], best(&[2]), at(20)));
        assert!(choice.update(&[usable(1, 40, true), usable(2, 120, true)], best(&[2]), at(30)));
        assert_eq!(choice.path(), path(&[1]));
        assert!(
            !choice.update(&[usable(1, 40, true), usable(2, 120, true)], best(&[2]), at(50)),
            "not back at once"
        );
        assert!(choice.update(&[usable(1, 40, true), usable(2, 20, true)], best(&[2]), at(95)));
    }
}
