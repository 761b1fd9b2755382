//! The node's timers: one documented variant each, and the table that says which is next.
//!
//! Relay connections are not in here: what is due on them changes with every packet, so they are asked directly.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::routing::table::PeerKey;
use crate::proto::time::Instant;

/// What can be due.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Timer {
    /// A peer's next handshake attempt, keepalive, renewal or expiry.
    Peer(PeerKey),
    /// Time for a LATENCY_REPORT.
    Latency,
    /// The node_key before the last rotation is dropped.
    PreviousKey,
    /// A relay token runs out soon.
    Tokens,
    /// A STUN server did not answer, or is to be asked again.
    Stun,
    /// Peers are told again which own subnets cannot be reached.
    Routes,
    /// The own network is told where this node is.
    Announce,
}

impl Timer {
    /// For the log of who woke the shell.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Peer(_) => "peer",
            Self::Latency => "latency report",
            Self::PreviousKey => "previous node_key",
            Self::Tokens => "relay tokens",
            Self::Stun => "stun",
            Self::Routes => "own routes",
            Self::Announce => "announce",
        }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, Timer)>,
    armed: BTreeMap<Timer, Instant>,
}

impl Timers {
    /// Sets `timer`, earlier or later than it was.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(before) = self.armed.insert(timer, at) {
            if before == at {
                return;
            }
            self.queue.remove(&(before, timer));
        }
        self.queue.insert((at, timer));
    }

    /// Unsets it.
    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(before) = self.armed.remove(&timer) {
            self.queue.remove(&(before, timer));
        }
    }

    /// The next one, whenever it is.
    pub(super) fn next(&self) -> Option<(Instant, Timer)> {
        self.queue.first().copied()
    }

    /// Takes out one that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = self.next()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_setting_of_a_timer_is_the_one_that_counts() {
        let at = Instant::from_nanos;
        let mut timers = Timers::default();
        timers.set(Timer::Latency, at(5));
        timers.set(Timer::Tokens, at(3));
        timers.set(Timer::Latency, at(2));
        timers.set(Timer::Tokens, at(9));
        assert_eq!(timers.pop(at(1)), None);
        assert_eq!(timers.pop(at(5)), Some(Timer::Latency));
        assert_eq!(timers.pop(at(5)), None);
        timers.clear(Timer::Tokens);
        assert_eq!(timers.next(), None);
    }
}
