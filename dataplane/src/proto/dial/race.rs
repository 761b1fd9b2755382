//! The order in which the addresses of a host, or of several hosts that are equally good, are tried: RFC 8305 ("happy eyeballs").
//!
//! ```text
//! addresses come in, per target, in the resolver's order (RFC 6724)
//!   └─ one is tried; 250 ms later, or as soon as one fails, the next: the other family in turn, and in a family each target's first before anybody's second
//!        └─ the first that is connected wins; whoever asked closes the others
//! ```
//!
//! Pure: [`Race::handle_addresses`] and [`Race::handle_failure`] go in, [`Race::poll_attempt`] and [`Race::poll_timeout`] come out. Names are resolved
//! by the system's resolver, which answers for both families at once, so there is no resolution delay (§3) to wait for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::proto::time::Instant;

/// Between two attempts, while none of them fails (RFC 8305 §5).
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one target that are tried; who has more has them for spreading load.
pub const MAX_ADDRESSES: usize = 16;

/// Somewhere to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which of the targets has it.
    pub target: usize,
    /// Where.
    pub address: SocketAddr,
}

/// See the module's doc.
#[derive(Clone, Debug)]
pub struct Race {
    /// IPv6 and IPv4, each by place in its target's list, then by target.
    waiting: [BTreeMap<(usize, usize), SocketAddr>; 2],
    /// Whose turn it is; the resolver's first answer says who begins.
    turn: Option<Family>,
    /// Targets whose addresses have not come.
    unresolved: usize,
    /// Attempts that have neither failed nor won.
    under_way: usize,
    /// The next attempt is not made before.
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V6,
    V4,
}

impl Family {
    const fn of(address: &SocketAddr) -> Self {
        if address.is_ipv6() { Self::V6 } else { Self::V4 }
    }

    const fn other(self) -> Self {
        match self {
            Self::V6 => Self::V4,
            Self::V4 => Self::V6,
        }
    }
}

impl Race {
    /// Between this many targets: [`Race::handle_addresses`] has to be called once for each.
    pub const fn new(targets: usize) -> Self {
        Self {
            waiting: [BTreeMap::new(), BTreeMap::new()],
            turn: None,
            unresolved: targets,
            under_way: 0,
            not_before: Instant::ZERO,
        }
    }

    /// The addresses of a target are known, best first; none: it has none, or nobody knows them.
    pub fn handle_addresses(&mut self, target: usize, addresses: &[SocketAddr]) {
        self.unresolved = self.unresolved.saturating_sub(1);
        for address in addresses.iter().take(MAX_ADDRESSES) {
            let family = Family::of(address);
            self.turn.get_or_insert(family);
            let waiting = self.waiting_of(family);
            let mine = waiting.iter().filter(|((_, whose), _)| *whose == target);
            if mine.clone().all(|(_, known)| known != address) {
                let place = mine.count();
                waiting.insert((place, target), *address);
            }
        }
    }

    /// An attempt has failed: the next one need not wait.
    pub const fn handle_failure(&mut self, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        self.not_before = now;
    }

    /// Whom to try now. Ask until there is nobody.
    pub fn poll_attempt(&mut self, now: Instant) -> Option<Candidate> {
        if self.under_way > 0 && now < self.not_before {
            return None;
        }
        let turn = self.turn?;
        let (family, ((_, target), address)) = [turn, turn.other()]
            .into_iter()
            .find_map(|family| self.waiting_of(family).pop_first().map(|first| (family, first)))?;
        self.turn = Some(family.other());
        self.under_way += 1;
        self.not_before = now + ATTEMPT_DELAY;
        Some(Candidate { target, address })
    }

    /// When to ask [`Race::poll_attempt`] again, if nothing fails before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.iter().any(|waiting| !waiting.is_empty()).then_some(self.not_before)
    }

    /// Everything was tried and has failed.
    pub fn is_lost(&self) -> bool {
        self.unresolved == 0 && self.under_way == 0 && self.waiting.iter().all(BTreeMap::is_empty)
    }

    const fn waiting_of(&mut self, family: Family) -> &mut BTreeMap<(usize, usize), SocketAddr> {
        let [v6, v4] = &mut self.waiting;
        match family {
            Family::V6 => v6,
            Family::V4 => v4,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    fn v4(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 443).into()
    }

    fn v6(n: u16) -> SocketAddr {
        ([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 443).into()
    }

    /// Everything that is tried while nobody answers, with its time in milliseconds.
    fn run(race: &mut Race, from: u64) -> Vec<(u64, Candidate)> {
        let mut now = at(from);
        let mut tried = Vec::new();
        loop {
            while let Some(candidate) = race.poll_attempt(now) {
                tried.push((now.as_nanos() / 1_000_000, candidate));
            }
            let Some(next) = race.poll_timeout() else { return tried };
            assert!(next > now, "the clock goes on");
            now = next;
        }
    }

    #[test]
    fn families_take_turns_a_quarter_of_a_second_apart() {
        let mut race = Race::new(1);
        race.handle_addresses(0, &[v6(1), v6(2), v6(3), v4(1), v4(2)]);
        let tried: Vec<_> = run(&mut race, 0).into_iter().map(|(ms, who)| (ms, who.address)).collect();
        assert_eq!(tried, [(0, v6(1)), (250, v4(1)), (500, v6(2)), (750, v4(2)), (1000, v6(3))]);
        assert!(!race.is_lost(), "five are under way");
        for _ in 0..5 {
            race.handle_failure(at(2000));
        }
        assert!(race.is_lost());
    }

    #[test]
    fn the_resolver_says_which_family_begins() {
        let mut race = Race::new(1);
        race.handle_addresses(0, &[v4(1), v6(1)]);
        let tried: Vec<_> = run(&mut race, 0).into_iter().map(|(_, who)| who.address).collect();
        assert_eq!(tried, [v4(1), v6(1)]);
    }

    #[test]
    fn a_failure_brings_the_next_at_once() {
        let mut race = Race::new(1);
        race.handle_addresses(0, &[v6(1), v4(1), v4(2)]);
        assert_eq!(race.poll_attempt(at(0)).unwrap().address, v6(1));
        assert_eq!(race.poll_attempt(at(10)), None);
        race.handle_failure(at(10));
        assert_eq!(race.poll_attempt(at(10)).unwrap().address, v4(1));
        assert_eq!(race.poll_attempt(at(259)), None);
        assert_eq!(race.poll_attempt(at(260)).unwrap().address, v4(2));
        assert_eq!(race.poll_timeout(), None);
    }

    #[test]
    fn every_name_gets_its_first_address_tried_before_any_its_second() {
        let mut race = Race::new(2);
        race.handle_addresses(0, &[v4(1), v4(2)]);
        race.handle_addresses(1, &[v4(3), v6(3)]);
        let tried: Vec<_> = run(&mut race, 0).into_iter().map(|(_, who)| (who.target, who.address)).collect();
        assert_eq!(tried, [(0, v4(1)), (1, v6(3)), (1, v4(3)), (0, v4(2))]);
    }

    #[test]
    fn a_name_that_resolves_late_is_still_tried() {
        let mut race = Race::new(2);
        race.handle_addresses(0, &[v4(1)]);
        assert!(race.poll_attempt(at(0)).is_some());
        race.handle_failure(at(5));
        assert_eq!((race.poll_attempt(at(5)), race.poll_timeout(), race.is_lost()), (None, None, false));
        race.handle_addresses(1, &[v4(9)]);
        assert_eq!(race.poll_attempt(at(900)).unwrap(), Candidate { target: 1, address: v4(9) });
        race.handle_failure(at(901));
        assert!(race.is_lost());
    }

    #[test]
    fn nothing_resolved_is_a_lost_race() {
        let mut race = Race::new(2);
        race.handle_addresses(0, &[]);
        assert!(!race.is_lost());
        race.handle_addresses(1, &[]);
        assert!(race.is_lost() && race.poll_attempt(at(0)).is_none());
    }

    proptest! {
        #[test]
        fn each_address_is_tried_once_and_never_two_within_the_delay(
            lists in proptest::collection::vec(proptest::collection::vec((any::<bool>(), 0u8..12), 0..8), 1..5),
            failures in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let mut race = Race::new(lists.len());
            let mut wanted = Vec::new();
            for (target, list) in lists.iter().enumerate() {
                let addresses: Vec<_> = list.iter().map(|&(six, n)| if six { v6(n.into()) } else { v4(n) }).collect();
                race.handle_addresses(target, &addresses);
                for address in addresses {
                    if !wanted.contains(&(target, address)) {
                        wanted.push((target, address));
                    }
                }
            }
            let mut now = at(0);
            let mut tried = Vec::new();
            let (mut last, mut failed) = (None, false);
            let mut failures = failures.into_iter().cycle();
            while let Some(next) = race.poll_timeout() {
                now = now.max(next);
                let Some(who) = race.poll_attempt(now) else { continue };
                prop_assert!(failed || last.is_none_or(|last| now - last >= ATTEMPT_DELAY));
                tried.push((who.target, who.address));
                (last, failed) = (Some(now), failures.next().unwrap_or_default());
                if failed {
                    race.handle_failure(now);
                }
            }
            for list in [&mut tried, &mut wanted] {
                list.sort();
            }
            prop_assert_eq!(tried, wanted);
        }
    }
}
