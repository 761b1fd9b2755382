//! One relay connection, as far as it is not bytes: when to dial, who is signed in, whether it lives (`docs/protocol.md` §4).
//!
//! ```text
//! Waiting ──time──► Dialling ──relay_connected──► Open (AUTH per membership; ready when one is answered)
//!    ▲                  └──relay_closed, time──┐     │
//!    └──────────── backoff ────────────────────┴─────┘ relay_closed, silence, refusal
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::handshake_budget::Bucket;
use crate::proto::id::NodeId;
use crate::proto::path::backoff::Backoff;
use crate::proto::path::liveness::Liveness;
use crate::proto::time::Instant;
use crate::proto::wire::control::node::Relay;
use crate::proto::wire::reassembly::Reassembler;

/// A dial that takes longer has failed.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// An open connection on which nothing is signed in by then is dropped.
pub(super) const AUTH_TIMEOUT: Duration = Duration::from_secs(10);
/// A token that was refused is not shown again for so long, unless it is replaced.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(30);
/// Relays say little: nothing of theirs needs more.
const MAX_CONTROL: usize = 64 << 10;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Connection {
    /// From the configuration.
    pub(super) info: Relay,
    /// Where it stands.
    pub(super) state: State,
    /// For the next dial.
    pub(super) backoff: Backoff,
    /// Memberships whose token it refused, and until when that is remembered.
    pub(super) refused: BTreeMap<NodeId, Instant>,
    /// Its last word when it refused us.
    pub(super) error: Option<String>,
    /// Handshake messages from it that are still looked at.
    pub(super) handshakes: Bucket,
}

/// Where a connection stands.
#[derive(Debug)]
pub(super) enum State {
    /// To be dialled at this time.
    Waiting(Instant),
    /// The shell is at it; given up at this time.
    Dialling(Instant),
    /// There.
    Open(Box<Open>),
}

/// What is known of an open connection.
#[derive(Debug)]
pub(super) struct Open {
    /// Whether it lives, and its round trip.
    pub(super) liveness: Liveness,
    /// AUTH_REQUEST sent, not yet answered.
    pub(super) asked: BTreeSet<NodeId>,
    /// Signed in.
    pub(super) ready: BTreeSet<NodeId>,
    /// It said GOAWAY: used only when there is nothing else.
    pub(super) draining: bool,
    /// Something must be signed in by then.
    pub(super) auth_until: Instant,
    /// Control frames may come in fragments.
    pub(super) reassembler: Reassembler,
}

impl Connection {
    /// To be dialled now.
    pub(super) fn new(info: Relay, now: Instant) -> Self {
        Self {
            info,
            state: State::Waiting(now),
            backoff: Backoff::default(),
            refused: BTreeMap::new(),
            error: None,
            handshakes: Bucket::for_way(now),
        }
    }

    /// The WebSocket is there.
    pub(super) fn open(&mut self, measure_every: Duration, now: Instant) {
        self.state = State::Open(Box::new(Open {
            liveness: Liveness::new(measure_every, now),
            asked: BTreeSet::new(),
            ready: BTreeSet::new(),
            draining: false,
            auth_until: now + AUTH_TIMEOUT,
            reassembler: Reassembler::with_limit(MAX_CONTROL),
        }));
    }

    /// If it is open.
    pub(super) fn opened(&self) -> Option<&Open> {
        match &self.state {
            State::Open(open) => Some(open),
            _ => None,
        }
    }

    /// If it is open.
    pub(super) fn opened_mut(&mut self) -> Option<&mut Open> {
        match &mut self.state {
            State::Open(open) => Some(open),
            _ => None,
        }
    }

    /// Whether packets of membership `own` can be sent on it.
    pub(super) fn is_ready_for(&self, own: NodeId) -> bool {
        self.opened().is_some_and(|open| open.ready.contains(&own))
    }

    /// Something goes out on it.
    pub(super) fn note_sent(&mut self, now: Instant) {
        if let State::Open(open) = &mut self.state {
            open.liveness.note_sent(now);
        }
    }

    /// Whether the token of `own` may be shown to it.
    pub(super) fn may_ask(&self, own: NodeId, now: Instant) -> bool {
        self.refused.get(&own).is_none_or(|until| *until <= now)
    }

    /// When something is due.
    pub(super) fn next(&self) -> Instant {
        match &self.state {
            State::Waiting(at) | State::Dialling(at) => *at,
            State::Open(open) if open.ready.is_empty() => open.liveness.next().min(open.auth_until),
            State::Open(open) => open.liveness.next(),
        }
    }

    /// For the status.
    pub(super) fn state_name(&self) -> &'static str {
        match &self.state {
            State::Waiting(_) => "waiting",
            State::Dialling(_) => "dialling",
            State::Open(open) if open.draining => "draining",
            State::Open(open) if open.ready.is_empty() => "authenticating",
            State::Open(_) => "ready",
        }
    }
}
