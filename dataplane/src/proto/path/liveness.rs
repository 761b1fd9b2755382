//! Whether a relay connection still lives, and how long its round trip is.
//!
//! ```text
//! nothing sent or heard for 20 s                    → a PING (a CDN cuts at 60 s)
//! a measurement is due                              → a PING
//! sent, and nothing heard for 3 s                   → three PINGs, 300 ms apart → 300 ms later still nothing → dead
//! anything heard                                    → all is well
//! ```
//!
//! The hot path only notes that something was sent or heard.

use std::time::Duration;

use super::rtt::SmoothedRtt;
use crate::proto::time::Instant;

/// A quiet connection is touched after this.
pub const IDLE: Duration = Duration::from_secs(20);
/// Something was sent and nothing heard for so long: probing begins.
pub const SILENCE: Duration = Duration::from_secs(3);
/// Between probes, and after the last.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(300);
/// Probes before a connection counts as dead.
pub const PROBES: u32 = 3;
/// The first measurements follow each other so fast: a path is chosen soon after a start.
const FIRST_MEASUREMENTS: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];
/// PINGs whose answer may still come.
const MAX_IN_FLIGHT: usize = 8;

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Send a PING with this number.
    Ping(u64),
    /// Give the connection up.
    Dead,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Liveness {
    heard: Instant,
    sent: Instant,
    /// When something was first sent that nothing has followed.
    waiting: Option<Instant>,
    probes: u32,
    next_probe: Instant,
    next_measurement: Instant,
    measured: usize,
    interval: Duration,
    number: u64,
    in_flight: std::collections::VecDeque<(u64, Instant)>,
    rtt: SmoothedRtt,
}

impl Liveness {
    /// For a connection that was just made; `interval` between measurements.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            heard: now,
            sent: now,
            waiting: None,
            probes: 0,
            next_probe: now,
            next_measurement: now,
            measured: 0,
            interval,
            number: 0,
            in_flight: std::collections::VecDeque::with_capacity(MAX_IN_FLIGHT),
            rtt: SmoothedRtt::default(),
        }
    }

    /// Something was sent.
    pub const fn note_sent(&mut self, now: Instant) {
        self.sent = now;
        if self.waiting.is_none() {
            self.waiting = Some(now);
        }
    }

    /// Something came.
    pub const fn note_heard(&mut self, now: Instant) {
        self.heard = now;
        self.waiting = None;
        self.probes = 0;
    }

    /// A PONG with this number came; the round trip, if it was asked for.
    pub fn pong(&mut self, number: u64, now: Instant) -> Option<Duration> {
        let at = self.in_flight.iter().position(|(asked, _)| *asked == number)?;
        let (_, sent) = self.in_flight.remove(at)?;
        // Those before it are lost or late: their round trips would say little.
        self.in_flight.drain(..at);
        let rtt = now.saturating_since(sent);
        self.rtt.update(rtt);
        Some(rtt)
    }

    /// What is due, one at a time.
    pub fn poll(&mut self, now: Instant) -> Option<Due> {
        if self.waiting.is_some_and(|since| now >= since + SILENCE) {
            if self.probes > 0 && now < self.next_probe {
                return None;
            }
            if self.probes == PROBES {
                return Some(Due::Dead);
            }
            self.probes += 1;
            self.next_probe = now + PROBE_INTERVAL;
            return Some(self.ping(now));
        }
        if now >= self.next_measurement {
            let wait = FIRST_MEASUREMENTS.get(self.measured).copied().unwrap_or(self.interval);
            self.measured = self.measured.saturating_add(1);
            self.next_measurement = now + wait;
            return Some(self.ping(now));
        }
        (now >= self.idle_at()).then(|| self.ping(now))
    }

    /// When [`Liveness::poll`] has something to say.
    pub fn next(&self) -> Instant {
        match self.waiting {
            Some(since) if self.probes > 0 => self.next_probe.max(since + SILENCE),
            Some(since) => (since + SILENCE).min(self.next_measurement).min(self.idle_at()),
            None => self.next_measurement.min(self.idle_at()),
        }
    }

    /// Smoothed.
    pub const fn rtt(&self) -> SmoothedRtt {
        self.rtt
    }

    /// Time between measurements.
    pub const fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    fn idle_at(&self) -> Instant {
        self.heard.max(self.sent) + IDLE
    }

    fn ping(&mut self, now: Instant) -> Due {
        self.number += 1;
        if self.in_flight.len() == MAX_IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back((self.number, now));
        self.note_sent(now);
        Due::Ping(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    /// What is due until `end`, with the time of each; `answer` says which PINGs are answered at once.
    fn run(liveness: &mut Liveness, end: u64, answer: impl Fn(u64) -> bool) -> Vec<(u64, Due)> {
        let mut all = Vec::new();
        while liveness.next() <= at(end) {
            let now = liveness.next();
            while let Some(due) = liveness.poll(now) {
                all.push((now.as_nanos() / 1_000_000, due));
                match due {
                    Due::Dead => return all,
                    Due::Ping(number) if answer(number) => {
                        liveness.note_heard(now);
                        liveness.pong(number, now);
                    }
                    Due::Ping(_) => {}
                }
            }
        }
        all
    }

    #[test]
    fn a_silent_relay_is_dead_after_three_seconds_and_three_probes() {
        let mut liveness = Liveness::new(Duration::from_secs(15), at(0));
        run(&mut liveness, 5_000, |_| true);
        liveness.note_sent(at(6_000));
        let due = run(&mut liveness, 60_000, |_| false);
        let times: Vec<_> = due.iter().map(|(time, _)| *time).collect();
        assert_eq!(times, [9_000, 9_300, 9_600, 9_900]);
        assert_eq!(due.last().unwrap().1, Due::Dead);
    }

    #[test]
    fn one_answer_to_a_probe_ends_the_alarm() {
        let mut liveness = Liveness::new(Duration::from_secs(15), at(0));
        run(&mut liveness, 5_000, |_| true);
        liveness.note_sent(at(6_000));
        let due = run(&mut liveness, 9_400, |_| false);
        liveness.note_heard(at(9_500));
        assert_eq!(due.len(), 2);
        assert!(run(&mut liveness, 60_000, |_| true).iter().all(|(_, due)| *due != Due::Dead));
    }

    #[test]
    fn an_idle_connection_is_measured_and_never_quiet_for_longer_than_twenty_seconds() {
        let mut liveness = Liveness::new(Duration::from_mins(10), at(0));
        let times: Vec<_> = run(&mut liveness, 100_000, |_| true).into_iter().map(|(time, _)| time).collect();
        assert_eq!(times, [0, 300, 1_300, 21_300, 41_300, 61_300, 81_300]);
    }

    #[test]
    fn only_pings_that_were_sent_give_a_round_trip() {
        let mut liveness = Liveness::new(Duration::from_secs(15), at(0));
        let Some(Due::Ping(number)) = liveness.poll(at(0)) else { panic!("a measurement is due at once") };
        assert_eq!(liveness.pong(number + 1, at(40)), None);
        assert_eq!(liveness.pong(number, at(40)), Some(Duration::from_millis(40)));
        assert_eq!(liveness.pong(number, at(50)), None, "an answer counts once");
        assert_eq!(liveness.rtt().value(), Some(Duration::from_millis(40)));
    }
}
