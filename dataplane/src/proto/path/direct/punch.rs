//! Opening the way: both ends ask each other's addresses at the same time, until one of the questions is answered.
//!
//! ```text
//! try ─► (a look at the mapped address, if it may be another one) ─► CALL over the relay ─► CALL answered ─► probes every 250 ms
//!  ▲                                                                                               │ 5 s
//!  └──────────────── 2 s, three tries; then 15 s, doubling to 5 min ◄────── nothing ───────────────┤
//!                                                                            a path: done ◄────────┘
//! ```
//!
//! What is asked: predicted ports of a NAT that counts, in its order and before anything else, so that the n-th attempt of both ends meet; then
//! the peer's candidates, best first; then, where ports are drawn at random and there is nothing better, a bounded search
//! ([`super::super::nat::birthday`]). Everything but the private addresses of a network that is not ours is asked at once.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Local, Place, SocketId};
use crate::proto::path::candidate::{Candidate, Candidates, Kind, is_near, is_private, may_be_asked};
use crate::proto::path::message::Call;
use crate::proto::path::nat::birthday::Birthday;
use crate::proto::path::nat::predict::next_addresses;
use crate::proto::path::nat::{NatBehaviour, NatClass};
use crate::proto::time::Instant;

/// A try takes so long.
pub const TRY: Duration = Duration::from_secs(5);
/// Between tries.
pub const PAUSE: Duration = Duration::from_secs(2);
/// A wait may be so much longer.
pub(super) const JITTER: Duration = Duration::from_millis(500);
/// Tries in a row.
pub const TRIES: u32 = 3;
/// Between two rounds of probes.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// A CALL that nobody answered is said again.
const CALL_AGAIN: Duration = Duration::from_secs(1);
/// How long a look at the newest port may take.
const SAMPLE: Duration = Duration::from_secs(1);
/// A mapped address that was seen so recently is taken to be there still.
const FRESH: Duration = Duration::from_secs(10);
/// After three tries, doubling.
const REST: Duration = Duration::from_secs(15);
const LONGEST_REST: Duration = Duration::from_mins(5);
/// When there is a path, the others are asked for a little longer: there may be a better one.
const AFTERGLOW: Duration = Duration::from_secs(1);
/// Addresses asked in one round.
const MAX_TARGETS: usize = 64;
/// Addresses on own networks at which a peer was heard.
const MAX_DISCOVERED: usize = 4;
/// Earlier newest ports of a peer whose NAT counts.
const MAX_NEWEST: usize = 3;
/// Sockets that one end opens for a search at most.
pub const MAX_EXTRA_SOCKETS: u16 = 256;

/// Where a punch stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nothing to do.
    Idle,
    /// Waits for the newest port, then calls, or answers the round.
    Sampling { until: Instant, answer: Option<u32> },
    /// Probes.
    Trying { until: Instant, next: Instant },
    /// Between tries, or rests.
    Waiting { until: Instant },
}

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// The next try.
    Try,
    /// Call, or answer.
    Call { answer: Option<u32> },
    /// Call again: no answer.
    Again,
    /// Ask the targets.
    Probe,
    /// The try is over.
    Over,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Punch {
    pub(super) state: State,
    pub(super) round: u32,
    pub(super) birthday: Option<Birthday>,
    tries: u32,
    rests: u32,
    /// Until when this end was waiting when the peer called.
    resume: Option<Instant>,
    /// When to call again, while the peer has not answered.
    call_again: Option<Instant>,
    pub(super) remote: Candidates,
    /// Heard on an own network, newest first.
    discovered: VecDeque<Candidate>,
    pub(super) remote_nat: NatBehaviour,
    pub(super) called: bool,
    /// The peer's newest ports as it told them, newest first: what its NAT gave it for us after an earlier try is still there.
    newest: VecDeque<SocketAddr>,
    /// The peer's address that was asked first since it is that one, and the newest port of this node's NAT then: the mapping that was made
    /// for it follows that port, as long as tries keep it alive.
    asked_from: Option<(SocketAddr, Candidate)>,
}

impl Default for Punch {
    fn default() -> Self {
        Self {
            state: State::Idle,
            round: 0,
            birthday: None,
            tries: 0,
            rests: 0,
            resume: None,
            call_again: None,
            remote: Candidates::default(),
            discovered: VecDeque::new(),
            remote_nat: NatBehaviour::default(),
            called: false,
            newest: VecDeque::new(),
            asked_from: None,
        }
    }
}

impl Punch {
    /// Begins with the first of three tries, unless one is under way.
    pub(super) const fn start(&mut self, now: Instant) {
        if matches!(self.state, State::Idle) {
            self.tries = 0;
            self.state = State::Waiting { until: now };
        }
    }

    /// Begins anew, whatever is under way.
    pub(super) const fn restart(&mut self, now: Instant) {
        self.tries = 0;
        self.rests = 0;
        self.call_again = None;
        self.resume = None;
        self.state = State::Waiting { until: now };
    }

    /// Forgets all but the number of the round.
    pub(super) fn reset(&mut self) {
        *self = Self { round: self.round, ..Self::default() };
    }

    /// There is a path: it is looked for something better for a little longer.
    pub(super) fn succeeded(&mut self, now: Instant) {
        self.rests = 0;
        self.tries = 0;
        self.birthday = None;
        self.call_again = None;
        match &mut self.state {
            State::Trying { until, .. } => *until = (*until).min(now + AFTERGLOW),
            State::Waiting { .. } => self.state = State::Idle,
            _ => {}
        }
    }

    /// Begins a try: looks at the newest port first where that is needed. True: it is.
    pub(super) fn begin_try(&mut self, local: &Local, now: Instant) -> bool {
        self.round = self.round.wrapping_add(1);
        self.tries += 1;
        self.called = false;
        self.sample(local, None, now)
    }

    /// Waits for the mapped address as it is now: if this node's NAT counts, or may have forgotten.
    pub(super) fn sample(&mut self, local: &Local, answer: Option<u32>, now: Instant) -> bool {
        let stale = local.mapped_at.is_some_and(|at| now.saturating_since(at) > FRESH);
        let wanted = local.nat.step().is_some() || stale;
        let until = if wanted { now + SAMPLE } else { now };
        if let State::Waiting { until } = self.state
            && answer.is_some()
        {
            self.resume = Some(until);
        }
        self.state = State::Sampling { until, answer };
        wanted
    }

    /// The newest port is known.
    pub(super) const fn sampled(&mut self, now: Instant) {
        if let State::Sampling { until, .. } = &mut self.state {
            *until = now;
        }
    }

    /// The CALL is out: the asking begins.
    pub(super) fn called_out(&mut self, is_answer: bool, now: Instant) {
        self.state = State::Trying { until: now + TRY, next: now };
        self.call_again = (!is_answer).then_some(now + CALL_AGAIN);
    }

    /// The peer's CALL came.
    pub(super) fn heard_call(&mut self, call: &Call, local: &Local, now: Instant) {
        let candidates =
            call.candidates.iter().filter(|candidate| may_be_asked(candidate.address, local.loopback));
        self.remote = candidates.copied().collect();
        self.remote_nat = call.nat;
        self.called = true;
        if call.nat.step().is_some() {
            for candidate in self.remote.iter().filter(|candidate| is_counted(candidate)) {
                let address = candidate.address;
                self.newest.retain(|known| *known != address && known.ip() == address.ip());
                self.newest.push_front(address);
                self.newest.truncate(MAX_NEWEST);
            }
        }
        if call.reply {
            self.call_again = None;
            if let State::Trying { next, .. } = &mut self.state {
                *next = now;
            }
        }
        let public =
            |kind| self.remote.iter().find(|candidate| candidate.kind == kind && candidate.address.is_ipv4());
        let exact = local.nat.class() == NatClass::PortRestricted;
        let random = self.remote_nat.is_symmetric() && self.remote_nat.step().is_none();
        self.birthday = public(Kind::Stun)
            .filter(|_| exact && random)
            .map(|candidate| Birthday::new(candidate.address.ip(), now));
    }

    /// What the controller says, as long as the peer itself has said nothing.
    pub(super) fn announced(&mut self, candidates: impl Iterator<Item = Candidate>) {
        if !self.called {
            self.remote = candidates.filter(|candidate| may_be_asked(candidate.address, false)).collect();
        }
    }

    /// The peer was heard at an address on an own network; true: it was not known.
    pub(super) fn discovered(&mut self, address: SocketAddr) -> bool {
        let candidate = Candidate::new(Kind::Discovered, address);
        let new = !self.discovered.contains(&candidate);
        self.discovered.retain(|known| *known != candidate);
        self.discovered.push_front(candidate);
        self.discovered.truncate(MAX_DISCOVERED);
        new
    }

    /// The targets are about to be asked.
    pub(super) fn note_asked(&mut self, local: &Local) {
        let counted = |list: &Candidates| list.iter().copied().find(is_counted);
        if let (Some(theirs), Some(own)) = (counted(&self.remote), counted(&local.candidates))
            && local.nat.step().is_some()
            && self.asked_from.is_none_or(|(asked, _)| asked != theirs.address)
        {
            self.asked_from = Some((theirs.address, own));
        }
    }

    /// A port of this node's NAT after which the peer may find what was made for it at an earlier try.
    pub(super) fn earlier(&self) -> Option<Candidate> {
        self.asked_from.map(|(_, own)| own)
    }

    /// What is due, one at a time.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        match &mut self.state {
            State::Idle => None,
            State::Waiting { until } => (*until <= now).then_some(Due::Try),
            State::Sampling { until, answer } => (*until <= now).then_some(Due::Call { answer: *answer }),
            State::Trying { until, .. } if *until <= now => Some(Due::Over),
            State::Trying { next, .. } => {
                if self.call_again.is_some_and(|at| at <= now) {
                    self.call_again = Some(now + CALL_AGAIN);
                    return Some(Due::Again);
                }
                if *next <= now {
                    *next = now + PROBE_INTERVAL;
                    return Some(Due::Probe);
                }
                None
            }
        }
    }

    /// A try is over; `found`: there is a path. `jitter` keeps both ends from beginning the next one together, each with a port that the other
    /// one's beginning makes old.
    pub(super) fn over(&mut self, found: bool, jitter: Duration, now: Instant) {
        self.birthday = None;
        self.call_again = None;
        let resume = self.resume.take();
        self.state = if found {
            self.tries = 0;
            State::Idle
        } else if let Some(until) = resume {
            // It was the peer's try: what this end waited for goes on.
            State::Waiting { until: until.max(now + PAUSE) }
        } else if self.tries < TRIES {
            State::Waiting { until: now + PAUSE + jitter }
        } else {
            let rest = (REST * 2u32.saturating_pow(self.rests)).min(LONGEST_REST);
            self.rests = (self.rests + 1).min(8);
            self.tries = 0;
            State::Waiting { until: now + rest + jitter }
        };
    }

    /// When something is due.
    pub(super) fn next(&self) -> Option<Instant> {
        match self.state {
            State::Idle => None,
            State::Waiting { until } | State::Sampling { until, .. } => Some(until),
            State::Trying { until, next } => {
                let birthday = self.birthday.as_ref().and_then(Birthday::next);
                [Some(until), Some(next), self.call_again, birthday].into_iter().flatten().min()
            }
        }
    }

    /// Which addresses to ask, and from which sockets, in order.
    pub(super) fn targets(&self, local: &Local) -> Vec<(Place, Kind)> {
        let near = self.discovered.iter().filter(|candidate| local.may_ask(candidate));
        let mut near: Vec<(SocketAddr, Kind)> =
            near.map(|candidate| (candidate.address, candidate.kind)).collect();
        let place = |socket, remote| Place { socket: SocketId(socket), remote };
        // Old ports of a NAT that counts would only cost some of its next ones.
        if !self.called && (self.remote_nat.is_symmetric() || local.nat.step().is_some()) {
            return near.into_iter().map(|(remote, kind)| (place(0, remote), kind)).collect();
        }
        let foretold = self.remote_nat.step().filter(|_| local.nat.class() >= NatClass::PortRestricted);
        let is_foretold = |candidate: &Candidate| is_counted(candidate) && foretold.is_some();
        let mut addresses: Vec<(SocketAddr, Kind)> = Vec::new();
        for newest in self.newest.iter().filter(|_| foretold.is_some()) {
            let next = next_addresses(*newest, foretold.unwrap_or(1)).map(|address| (address, Kind::Stun));
            let new: Vec<_> = next.filter(|target| !addresses.contains(target)).collect();
            addresses.extend(new);
        }
        let asked =
            self.remote.iter().filter(|candidate| !is_foretold(candidate) && local.may_ask(candidate));
        addresses.extend(asked.map(|candidate| (candidate.address, candidate.kind)));
        near.retain(|(address, _)| addresses.iter().all(|(known, _)| known != address));
        addresses.truncate(MAX_TARGETS - near.len());
        addresses.extend(near);
        let mut targets: Vec<_> =
            addresses.into_iter().map(|(remote, kind)| (place(0, remote), kind)).collect();
        // This end draws ports at random: as many mappings as there are sockets, for the other end to find one.
        let random = local.nat.is_symmetric() && local.nat.step().is_none();
        if random && self.remote_nat.class() == NatClass::PortRestricted {
            let stun = self.remote.iter().filter(|candidate| candidate.kind == Kind::Stun);
            for candidate in stun.filter(|candidate| candidate.address.is_ipv4()).take(1) {
                let extra = 1..=local.extra_sockets.min(MAX_EXTRA_SOCKETS);
                targets.extend(extra.map(|socket| (place(socket, candidate.address), Kind::Stun)));
            }
        }
        targets
    }
}

/// Whether a candidate is the newest port of a NAT that may count.
fn is_counted(candidate: &Candidate) -> bool {
    candidate.kind == Kind::Stun && candidate.address.is_ipv4()
}

impl Local {
    /// Whether asking a candidate is of any use.
    fn may_ask(&self, candidate: &Candidate) -> bool {
        let ip = candidate.address.ip();
        let family = if ip.is_ipv4() { self.has_v4 } else { self.has_v6 };
        // A private address elsewhere costs a NAT that counts one of its next ports.
        family && (!is_private(ip) || !self.nat.is_symmetric() || self.is_near(ip))
    }

    /// Whether an address is on a network that this node is connected to.
    pub(super) fn is_near(&self, ip: IpAddr) -> bool {
        is_near(ip, &self.networks)
    }
}
