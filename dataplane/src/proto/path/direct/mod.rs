//! Direct paths to one peer: opened, watched, chosen, left (`docs/protocol.md` §8).
//!
//! The machine sends nothing and seals nothing. The node feeds it authenticated messages and drains it:
//!
//! ```text
//! start, handle_call, handle_probe, handle_ack, note_heard, note_sent, local_changed, moved
//! loop poll_output       probes to seal and send on a path, CALLs to seal and send over the relay
//! poll_timeout           when handle_timeout wants to be called
//! target                 the path that a datagram of some length takes; None: the relay
//! ```
//!
//! Invariants:
//! - Only what the session has authenticated comes in here, so nothing else moves a path.
//! - A path carries data when a probe of ours on it was answered on it: then it works in both directions. Each end finds that out by itself.
//! - Make before break: packets are taken from wherever they come, always; a change of path is only a change of where the next one is sent. So
//!   a planned change loses nothing, and what arrives twice is stopped by the session's window of counters.
//! - What is remembered is bounded: candidates, probes, paths.

mod api;
pub mod keepalive;
pub mod mtu;
mod punch;
mod select;
#[cfg(test)]
mod tests;
mod track;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand_core::RngCore;

use self::keepalive::{Keepalive, Lifetime};
use self::punch::{Punch, State};
use self::select::{HOLD, rank};
use self::track::{Due, Purpose, Track};
use super::backoff::jitter;
use super::candidate::{Candidate, Kind};
use super::message::{Call, Inner, Probe, ProbeAck};
use super::nat::NatBehaviour;
use crate::proto::time::Instant;

pub use api::{Context, Local, Output, PathInfo, Place, Settings, SocketId};
pub use punch::{MAX_EXTRA_SOCKETS, PAUSE, TRIES, TRY};
pub use track::{DEAD, PROBE_INTERVAL, SILENCE};

/// Paths that are kept ready.
const MAX_TRACKS: usize = 8;
/// Probes whose answers may still come: a search and all else.
const MAX_ASKED: usize = 1536;
/// An answer that comes later is not waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Addresses that were asked because the peer was heard from there, remembered for so long.
const ASKED_BACK: Duration = Duration::from_millis(100);
const MAX_ASKED_BACK: usize = 8;
/// Announcing a move: so many probes on each path.
const MOVED_PROBES: u32 = 4;

/// A probe whose answer may come.
#[derive(Clone, Copy, Debug)]
struct Asked {
    id: u64,
    place: Place,
    kind: Kind,
    purpose: Purpose,
    sent: Instant,
}

/// The peer's packets began to come from an address that is not known.
#[derive(Clone, Copy, Debug)]
struct Follow {
    place: Place,
    since: Instant,
    /// The peer says that it has moved.
    moved: bool,
}

/// The path in use.
#[derive(Clone, Copy, Debug)]
struct Selected {
    place: Place,
    since: Instant,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Direct {
    /// When it was last called.
    clock: Instant,
    settings: Settings,
    punch: Punch,
    tracks: Vec<Track>,
    selected: Option<Selected>,
    asked: VecDeque<Asked>,
    asked_back: VecDeque<(Place, Instant)>,
    follow: Option<Follow>,
    lifetime: Lifetime,
    /// Where a move is still to be told, how often, and when.
    telling: Vec<(Place, u32, Instant)>,
    outputs: VecDeque<Output>,
}

impl Direct {
    /// How paths are made from now on.
    pub const fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What the controller says of the peer's addresses: they are asked until the peer itself tells.
    pub fn announced(&mut self, candidates: impl Iterator<Item = Candidate>) {
        self.punch.announced(candidates);
    }

    /// The peer was heard on an own network, at one more address. `session`: there is one, so that it can be asked at once.
    pub fn discovered(&mut self, address: SocketAddr, session: bool, context: &mut Context<'_>) {
        let place = Place { socket: SocketId(0), remote: address };
        if self.punch.discovered(address) && session && self.track_mut(place).is_none() {
            self.ask(place, Kind::Discovered, Purpose::Search, context);
        }
    }

    /// Whether the peer is known to be there.
    pub fn knows(&self, place: Place) -> bool {
        self.tracks.iter().any(|track| track.place == place)
    }

    /// Whether [`Direct::poll_output`] has something.
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// A path is wanted: there is a session.
    pub fn start(&mut self, context: &mut Context<'_>) {
        if !context.local.candidates.is_empty() && self.selected.is_none() {
            self.punch.start(context.now);
            self.handle_timeout(context);
        }
    }

    /// All paths are given up, by intent: packets take the relay from now on. What is on its way still arrives.
    pub fn stop(&mut self) {
        self.tracks.clear();
        self.asked.clear();
        self.telling.clear();
        self.follow = None;
        self.punch.reset();
        if self.selected.take().is_some() {
            self.outputs.push_back(Output::Selected(None));
        }
    }

    /// The path for a datagram of so many bytes; `None`: the relay.
    pub fn target(&self, datagram: usize) -> Option<Place> {
        let selected = self.selected?;
        let track = self.tracks.iter().find(|track| track.place == selected.place)?;
        (datagram <= usize::from(track.mtu.good())).then_some(selected.place)
    }

    /// The path in use.
    pub fn info(&self) -> Option<PathInfo> {
        let selected = self.selected?;
        let track = self.tracks.iter().find(|track| track.place == selected.place)?;
        let (place, kind) = (track.place, track.kind);
        Some(PathInfo { place, kind, rtt: track.rtt.value(), datagram: track.mtu.good() })
    }

    /// What the peer has said of its NAT.
    pub fn remote_nat(&self) -> Option<NatBehaviour> {
        self.punch.called.then_some(self.punch.remote_nat)
    }

    /// The idle time after which a NAT on the way was found to forget, if one did.
    pub const fn learned_lifetime(&self) -> Option<Duration> {
        self.lifetime.longest()
    }

    /// A datagram was sent on the path in use; when [`Direct::handle_timeout`] wants to be called now, if that is earlier than it was.
    pub fn note_sent(&mut self, place: Place, now: Instant) -> Option<Instant> {
        self.track_mut(place)?.note_sent(now)
    }

    /// Something authentic came by `place`. `newest`: nothing that the peer sent later was here before. `data`: it was no probe.
    pub fn note_heard(&mut self, place: Place, newest: bool, data: bool, context: &mut Context<'_>) {
        let now = context.now;
        if let Some(track) = self.track_mut(place) {
            track.note_heard(now);
            if newest {
                track.newest = Some(now);
            }
            return;
        }
        if data && newest && self.selected.is_some() {
            self.follow_to(place, false, now);
        }
        if data {
            self.ask_back(place, context);
        }
    }

    /// The peer asks whether a path works. `size`: bytes of the datagram.
    pub fn handle_probe(&mut self, place: Place, probe: Probe, size: usize, context: &mut Context<'_>) {
        if context.local.candidates.is_empty() {
            return;
        }
        let ack =
            ProbeAck { id: probe.id, size: u16::try_from(size).unwrap_or(u16::MAX), observed: place.remote };
        self.outputs.push_back(Output::Send { place, message: Inner::ProbeAck(ack), datagram: 0 });
        if self.track_mut(place).is_none() {
            if probe.moved {
                self.follow_to(place, true, context.now);
            }
            self.ask_back(place, context);
        }
    }

    /// The peer answers a probe. One that comes back another way than the probe went proves nothing about either.
    pub fn handle_ack(&mut self, place: Place, ack: ProbeAck, context: &mut Context<'_>) {
        let now = context.now;
        let Some(at) = self.asked.iter().position(|asked| asked.id == ack.id) else { return };
        let Some(asked) = self.asked.remove(at) else { return };
        if asked.place != place {
            return self.ask_back(place, context);
        }
        self.telling.retain(|(announced, ..)| *announced != place);
        let rtt = now.saturating_since(asked.sent);
        if self.track_mut(place).is_none() {
            self.add_track(place, asked.kind, context);
        }
        if let Some(track) = self.track_mut(place) {
            track.answered(asked.purpose, rtt, now);
        }
        self.handle_timeout(context);
    }

    /// The peer tells its addresses and asks ours.
    pub fn handle_call(&mut self, call: &Call, context: &mut Context<'_>) {
        let (local, now) = (context.local, context.now);
        if local.candidates.is_empty() {
            return;
        }
        if call.reply {
            if call.round == self.punch.round {
                self.punch.heard_call(call, local, now);
            }
        } else {
            self.punch.heard_call(call, local, now);
            // While the newest port is looked for, that answers all who asked.
            if self.punch.sample(local, Some(call.round), now) {
                self.outputs.push_back(Output::Refresh);
            }
        }
        self.handle_timeout(context);
    }

    /// Own addresses or what is known of the NAT have changed, or a refresh is over.
    pub fn local_changed(&mut self, new_addresses: bool, context: &mut Context<'_>) {
        let now = context.now;
        if context.local.candidates.is_empty() {
            return self.stop();
        }
        match self.punch.state {
            State::Sampling { .. } => self.punch.sampled(now),
            State::Trying { .. } if new_addresses => self.call(None, context),
            State::Trying { .. } => {}
            // The peer should know.
            _ if new_addresses => self.punch.restart(now),
            _ => {}
        }
        self.handle_timeout(context);
    }

    /// The system would not send a datagram of so many bytes on a path.
    pub fn datagram_refused(&mut self, place: Place, size: u16, now: Instant) {
        if let Some(track) = self.track_mut(place) {
            track.mtu.refused(size, now);
        }
    }

    /// This node is on another network: the peer is told on every path, and each must show that it still works.
    pub fn moved(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        self.telling.clear();
        for track in &mut self.tracks {
            track.doubt(now);
            self.telling.push((track.place, MOVED_PROBES, now));
        }
        if !context.local.candidates.is_empty() {
            self.punch.restart(now);
        }
        self.handle_timeout(context);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, context: &mut Context<'_>) {
        self.clock = context.now;
        self.expire(context);
        self.announce(context);
        self.watch(context);
        if self.select(context.now) {
            // What is used is watched more closely.
            self.watch(context);
            self.select(context.now);
        }
        self.drive(context);
    }

    /// When [`Direct::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let now = self.clock;
        let asked = self.asked.front().map(|asked| asked.sent + ANSWER_WITHIN);
        let used = self.selected.map(|selected| selected.place);
        let tracks = self.tracks.iter().map(|track| track.next(used == Some(track.place), now)).min();
        let announced = self.telling.iter().map(|(.., at)| *at).min();
        // A faster path may be taken when the present one was held for long enough.
        let held =
            self.selected.filter(|_| self.tracks.len() > 1).map(|s| s.since + HOLD).filter(|at| *at > now);
        [asked, tracks, announced, held, self.punch.next()].into_iter().flatten().min()
    }

    /// What the node has to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn track_mut(&mut self, place: Place) -> Option<&mut Track> {
        self.tracks.iter_mut().find(|track| track.place == place)
    }

    fn add_track(&mut self, place: Place, kind: Kind, context: &mut Context<'_>) {
        let now = context.now;
        if self.tracks.len() == MAX_TRACKS {
            let used = self.selected.map(|selected| selected.place);
            let worst = self.tracks.iter().enumerate().filter(|(_, track)| Some(track.place) != used);
            let worst = worst.max_by_key(|(_, track)| rank(track)).map(|(at, _)| at);
            let Some(at) = worst else { return };
            self.tracks.swap_remove(at);
        }
        self.lifetime.came_back(now);
        let kind = if context.local.is_near(place.remote.ip()) { Kind::Lan } else { kind };
        let keepalive = Keepalive::new(self.settings.keepalive, &self.lifetime);
        self.tracks.push(Track::new(place, kind, keepalive, self.settings.wanted, now));
    }

    /// Asks an address from which the peer was heard.
    fn ask_back(&mut self, place: Place, context: &mut Context<'_>) {
        let now = context.now;
        self.asked_back.retain(|(_, at)| now.saturating_since(*at) < ASKED_BACK);
        if self.asked_back.len() == MAX_ASKED_BACK || self.asked_back.iter().any(|(known, _)| *known == place)
        {
            return;
        }
        self.asked_back.push_back((place, now));
        self.ask(place, Kind::Observed, Purpose::Search, context);
    }

    fn follow_to(&mut self, place: Place, moved: bool, now: Instant) {
        match &mut self.follow {
            Some(follow) if follow.place == place => follow.moved |= moved,
            _ => self.follow = Some(Follow { place, since: now, moved }),
        }
    }

    fn ask(&mut self, place: Place, kind: Kind, purpose: Purpose, context: &mut Context<'_>) {
        // A search leaves room for what watches the paths that there are.
        let room = if purpose == Purpose::Search { MAX_ASKED - MAX_ASKED / 8 } else { MAX_ASKED };
        if self.asked.len() >= room {
            return;
        }
        let id = context.rng.next_u64();
        let moved = self.telling.iter().any(|(announced, ..)| *announced == place);
        self.asked.push_back(Asked { id, place, kind, purpose, sent: context.now });
        let datagram = if let Purpose::Size(size) = purpose { size } else { 0 };
        self.outputs.push_back(Output::Send { place, message: Inner::Probe(Probe { id, moved }), datagram });
    }

    /// Probes that nobody answered.
    fn expire(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        while let Some(asked) = self.asked.pop_front_if(|asked| now >= asked.sent + ANSWER_WITHIN) {
            let Some(track) = self.track_mut(asked.place) else { continue };
            let idle = track.idle();
            if track.lost(asked.purpose, now) {
                if asked.purpose == Purpose::Keepalive {
                    self.lifetime.went_down(idle, now);
                }
                self.drop_track(asked.place, context);
            }
        }
    }

    /// Tells the peer of a move, a few times on each path.
    fn announce(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let due: Vec<Place> =
            self.telling.iter().filter(|(.., at)| *at <= now).map(|(place, ..)| *place).collect();
        for place in due {
            self.ask(place, Kind::Observed, Purpose::Live, context);
        }
        for (_, left, at) in self.telling.iter_mut().filter(|(.., at)| *at <= now) {
            *left -= 1;
            *at = now + PROBE_INTERVAL;
        }
        self.telling.retain(|(_, left, _)| *left > 0);
    }

    /// Does what is due on the paths that there are.
    fn watch(&mut self, context: &mut Context<'_>) {
        let used = self.selected.map(|selected| selected.place);
        let places: Vec<(Place, Kind)> = self.tracks.iter().map(|track| (track.place, track.kind)).collect();
        for (place, kind) in places {
            while let Some(due) =
                self.track_mut(place).and_then(|track| track.poll(used == Some(place), context.now))
            {
                match due {
                    Due::Probe(purpose) => self.ask(place, kind, purpose, context),
                    Due::Dead => self.drop_track(place, context),
                }
            }
        }
    }

    /// A path is down. When it was the one in use, the others have to show that they are not.
    fn drop_track(&mut self, place: Place, context: &mut Context<'_>) {
        self.tracks.retain(|track| track.place != place);
        if self.selected.is_none_or(|selected| selected.place != place) {
            return;
        }
        self.leave();
        let others: Vec<(Place, Kind)> =
            self.tracks.drain(..).map(|track| (track.place, track.kind)).collect();
        for (place, kind) in others {
            self.ask(place, kind, Purpose::Search, context);
        }
        self.punch.restart(context.now);
    }

    fn leave(&mut self) {
        if self.selected.take().is_some() {
            self.outputs.push_back(Output::Selected(None));
        }
    }

    /// Does what is due of the punch.
    fn drive(&mut self, context: &mut Context<'_>) {
        let (local, now) = (context.local, context.now);
        while let Some(due) = self.punch.poll(now) {
            match due {
                punch::Due::Try if local.candidates.is_empty() => self.punch.over(true, Duration::ZERO, now),
                punch::Due::Try => {
                    if self.punch.begin_try(local, now) {
                        self.outputs.push_back(Output::Refresh);
                    }
                }
                punch::Due::Call { answer } => {
                    self.punch.called_out(answer.is_some(), now);
                    self.call(answer, context);
                }
                punch::Due::Again => self.call(None, context),
                punch::Due::Probe => self.search(context),
                punch::Due::Over => {
                    let jitter = jitter(context.rng, punch::JITTER);
                    self.punch.over(self.selected.is_some(), jitter, now);
                }
            }
        }
        if self.selected.is_some() {
            self.punch.birthday = None;
        }
        if let Some(birthday) = &mut self.punch.birthday {
            for remote in birthday.batch(context.rng, now) {
                self.ask(Place { socket: SocketId(0), remote }, Kind::Stun, Purpose::Search, context);
            }
        }
    }

    fn call(&mut self, answer: Option<u32>, context: &Context<'_>) {
        let mut candidates = context.local.candidates.clone();
        if let Some(earlier) = self.punch.earlier().filter(|_| context.local.nat.step().is_some()) {
            candidates.add(earlier);
        }
        self.outputs.push_back(Output::Call(Call {
            round: answer.unwrap_or(self.punch.round),
            reply: answer.is_some(),
            nat: context.local.nat,
            candidates: candidates.iter().copied().collect(),
        }));
    }

    fn search(&mut self, context: &mut Context<'_>) {
        let targets = self.punch.targets(context.local);
        if !targets.is_empty() {
            self.punch.note_asked(context.local);
        }
        for (place, kind) in targets {
            if self.track_mut(place).is_none() {
                self.ask(place, kind, Purpose::Search, context);
            }
        }
    }
}
