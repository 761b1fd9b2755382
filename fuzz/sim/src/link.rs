//! Connections between machines and relays, and what happens to frames on them.
//!
//! A connection is TCP: sign-in, pings and errors arrive in order. Frames between nodes are what relays may drop from full queues and what will one
//! day travel as datagrams: they may be lost, doubled and overtaken.

use std::time::Duration;

use meshdp::proto::id::RelayId;
use meshdp::proto::relay::ConnId;
use meshdp::proto::time::Instant;
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

/// What a link does to frames between nodes.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// One way.
    pub delay: Duration,
    /// Share lost, 0 to 1.
    pub loss: f64,
    /// Share that comes twice.
    pub duplication: f64,
    /// Up to so much is added to the delay, frame by frame: later ones overtake.
    pub jitter: Duration,
}

impl Quality {
    /// Loses nothing, keeps the order.
    pub const fn clean(delay: Duration) -> Self {
        Self { delay, loss: 0.0, duplication: 0.0, jitter: Duration::ZERO }
    }
}

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A machine, by number.
    Machine(usize),
    /// A relay, and what it calls the connection.
    Relay(RelayId, ConnId),
}

/// A connection. Side 0 dialled, side 1 accepted.
#[derive(Debug)]
pub struct Connection {
    /// Both ends.
    pub ends: [End; 2],
    /// What it does to frames.
    pub quality: Quality,
    /// When the last ordered frame arrives, by the side that sent it.
    pub last: [Instant; 2],
    /// Nothing passes, and nobody is told.
    pub black_hole: bool,
}

/// A random number between 0 and 1.
pub fn unit(rng: &mut ChaCha20Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A random duration below `limit`.
pub fn below(rng: &mut ChaCha20Rng, limit: Duration) -> Duration {
    limit.mul_f64(unit(rng))
}
