//! One pair of addresses that is known to work in both directions: whether it still does, how fast it is, how much it loses.
//!
//! ```text
//! data was sent and nothing heard for 500 ms   → probes 250 ms apart → 1.5 s after the data: dead
//! nothing sent, or nothing heard, for a while  → a keepalive; three lost in a row: dead
//! in use                                       → measured every 5 s, more often when measurements get lost
//! ```
//!
//! From `docs/protocol.md` §8.5.

use std::time::Duration;

use super::Place;
use super::keepalive::Keepalive;
use super::mtu::MtuSearch;
use crate::proto::path::candidate::Kind;
use crate::proto::path::rtt::SmoothedRtt;
use crate::proto::time::Instant;

/// Data was sent and nothing heard for so long: probing begins.
pub const SILENCE: Duration = Duration::from_millis(500);
/// Between probes then.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// Data was sent and nothing heard for so long: the path is left.
pub const DEAD: Duration = Duration::from_millis(1500);
/// Between measurements of a path in use.
const MEASURE: Duration = Duration::from_secs(5);
/// Between measurements while some get lost.
const MEASURE_TROUBLED: Duration = Duration::from_millis(500);
/// A new answer or loss weighs one over this.
const LOSS_GAIN: f32 = 8.0;
/// A path that loses more is left for another one, or the relay.
const LOSSY: f32 = 0.4;
/// It is good again when it loses less.
const CLEAN: f32 = 0.1;

/// What a probe is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Looking for a path.
    Search,
    /// Touching an idle one.
    Keepalive,
    /// Whether a silent one lives.
    Live,
    /// Its round trip and loss.
    Measure,
    /// Whether a datagram of this size passes.
    Size(u16),
}

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Probe(Purpose),
    Dead,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Track {
    pub(super) place: Place,
    pub(super) kind: Kind,
    pub(super) rtt: SmoothedRtt,
    pub(super) keepalive: Keepalive,
    pub(super) mtu: MtuSearch,
    /// When the peer's newest packet last came by it.
    pub(super) newest: Option<Instant>,
    lossy: bool,
    loss: f32,
    heard: Instant,
    sent: Instant,
    /// When something was first sent that nothing has followed.
    waiting: Option<Instant>,
    next_live: Instant,
    measure: Option<Instant>,
    measured: Instant,
    touching: bool,
    touch_now: bool,
    idle: Duration,
}

impl Track {
    pub(super) fn new(place: Place, kind: Kind, keepalive: Keepalive, wanted: u16, now: Instant) -> Self {
        Self {
            place,
            kind,
            rtt: SmoothedRtt::default(),
            keepalive,
            mtu: MtuSearch::new(wanted, now),
            newest: None,
            lossy: false,
            loss: 0.0,
            heard: now,
            sent: now,
            waiting: None,
            next_live: now,
            measure: None,
            measured: now,
            touching: false,
            touch_now: false,
            idle: Duration::ZERO,
        }
    }

    /// Data was sent; when something has become due by that.
    pub(super) fn note_sent(&mut self, now: Instant) -> Option<Instant> {
        self.sent = now;
        let every = if self.loss > CLEAN { MEASURE_TROUBLED } else { MEASURE };
        let armed = self.measure.is_none().then(|| *self.measure.insert((self.measured + every).max(now)));
        if self.waiting.is_none() {
            self.waiting = Some(now);
            self.next_live = now + SILENCE;
            return Some(armed.map_or(self.next_live, |at| at.min(self.next_live)));
        }
        armed
    }

    /// Something authentic came by it.
    pub(super) const fn note_heard(&mut self, now: Instant) {
        self.heard = now;
        self.waiting = None;
    }

    /// From now on silence counts, though nothing was sent.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
        self.next_live = now;
    }

    /// A probe was answered.
    pub(super) fn answered(&mut self, purpose: Purpose, rtt: Duration, now: Instant) {
        self.note_heard(now);
        match purpose {
            Purpose::Size(size) => self.mtu.answered(size, now),
            Purpose::Keepalive => {
                self.touching = false;
                self.touch_now = false;
                self.keepalive.answered();
            }
            Purpose::Measure | Purpose::Live | Purpose::Search => self.measured = now,
        }
        if !matches!(purpose, Purpose::Size(_)) {
            self.rtt.update(rtt);
            self.weigh(0.0);
        }
    }

    /// A probe was not. True: the path is down.
    pub(super) fn lost(&mut self, purpose: Purpose, now: Instant) -> bool {
        match purpose {
            Purpose::Size(size) => {
                self.mtu.lost(size, now);
                return self.mtu.is_hopeless();
            }
            Purpose::Keepalive => {
                self.touching = false;
                self.touch_now = true;
                self.weigh(1.0);
                return self.keepalive.lost();
            }
            Purpose::Measure => {
                self.weigh(1.0);
                self.measure = Some(now);
            }
            Purpose::Live | Purpose::Search => {}
        }
        false
    }

    fn weigh(&mut self, sample: f32) {
        self.loss += (sample - self.loss) / LOSS_GAIN;
        self.lossy = if self.lossy { self.loss > CLEAN } else { self.loss > LOSSY };
    }

    /// Whether packets may take it.
    pub(super) const fn is_usable(&self) -> bool {
        !self.lossy && self.mtu.good() > 0
    }

    /// How long it had been idle before the keepalive that was not answered.
    pub(super) const fn idle(&self) -> Duration {
        self.idle
    }

    /// What is due, one at a time.
    pub(super) fn poll(&mut self, used: bool, now: Instant) -> Option<Due> {
        if let Some(since) = self.waiting.filter(|_| used) {
            if now >= since + DEAD {
                return Some(Due::Dead);
            }
            if now >= self.next_live {
                self.next_live = now + PROBE_INTERVAL;
                return Some(Due::Probe(Purpose::Live));
            }
        }
        if !self.touching && now >= self.touch_at() {
            self.touching = true;
            self.touch_now = false;
            if !self.keepalive.is_troubled() {
                self.idle = now.saturating_since(self.sent.max(self.heard));
            }
            self.sent = now;
            return Some(Due::Probe(Purpose::Keepalive));
        }
        // One that is left for its losses is watched, so that it can be taken again.
        let watched = self.lossy && now >= self.measured + MEASURE_TROUBLED * 2;
        if self.measure.is_some_and(|at| at <= now) || watched {
            self.measure = None;
            self.measured = now;
            return Some(Due::Probe(Purpose::Measure));
        }
        self.mtu.poll(self.in_use(used, now), now).map(|size| Due::Probe(Purpose::Size(size)))
    }

    /// When something is due.
    pub(super) fn next(&self, used: bool, now: Instant) -> Instant {
        let live = self.waiting.filter(|_| used).map(|since| self.next_live.min(since + DEAD));
        let touch = (!self.touching).then(|| self.touch_at());
        let watched = self.lossy.then(|| self.measured + MEASURE_TROUBLED * 2);
        let mtu = self.mtu.next(self.in_use(used, now));
        [live, touch, self.measure, watched, mtu].into_iter().flatten().min().unwrap_or(now + MEASURE)
    }

    fn touch_at(&self) -> Instant {
        if self.touch_now { Instant::ZERO } else { self.sent.min(self.heard) + self.keepalive.interval() }
    }

    fn in_use(&self, used: bool, now: Instant) -> bool {
        used && now.saturating_since(self.sent) < MEASURE
    }
}
