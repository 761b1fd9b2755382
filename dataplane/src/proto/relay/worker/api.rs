//! What goes into a [`super::Worker`] and what comes out, as values.

use std::net::IpAddr;
use std::time::Duration;

use crate::proto::drop_reason::DropReason;
use crate::proto::error::ErrorCode;
use crate::proto::id::{NodeId, RelayId};
use crate::proto::relay::{ConnId, FromWorker};
use crate::proto::wire::control::Secret;

/// What a connection is for: the path of its HTTP upgrade says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `/ws/data`: a node.
    Data,
    /// `/ws/mesh`: another relay that dialled us.
    MeshIn,
    /// `/ws/mesh` of another relay that we dialled.
    MeshOut {
        /// Who should answer.
        relay: RelayId,
        /// To show there.
        token: Secret,
    },
}

/// Why a connection is not taken.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// All places are taken.
    #[error("too many connections")]
    Connections,
    /// Too many that have not authenticated.
    #[error("too many unauthenticated connections")]
    Unauthenticated,
    /// Too many of them from this address.
    #[error("too many unauthenticated connections from one address")]
    Address,
    /// Too many connections from this address.
    #[error("too many connections from one address")]
    AddressConnections,
    /// Too many new connections from this address in a short time.
    #[error("too many new connections from one address")]
    AddressRate,
    /// The relay is about to stop.
    #[error("draining")]
    Draining,
    /// It had the most time to sign in, and made place for a newer one.
    #[error("cut for a newer connection")]
    Displaced,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::Connections,
        Self::Unauthenticated,
        Self::Address,
        Self::AddressConnections,
        Self::AddressRate,
        Self::Draining,
        Self::Displaced,
    ];

    /// The name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Unauthenticated => "unauthenticated",
            Self::Address => "address_unauthenticated",
            Self::AddressConnections => "address_connections",
            Self::AddressRate => "address_rate",
            Self::Draining => "draining",
            Self::Displaced => "displaced",
        }
    }
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Send a frame before any data that waits.
    Send {
        /// On which connection.
        conn: ConnId,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// Close after what was sent; the machine has forgotten the connection already. [`super::Worker::closed`] may still be called.
    Close {
        /// Which.
        conn: ConnId,
        /// WebSocket close code.
        code: u16,
    },
    /// The data that waits for a connection is for nobody any more: drop it. What is urgent still goes.
    Discard {
        /// Which.
        conn: ConnId,
        /// To be counted as.
        reason: DropReason,
    },
    /// It has authenticated something: messages may be as long as they get. Before, [`super::MAX_STRANGERS_MESSAGE`] is enough.
    Welcome {
        /// Which.
        conn: ConnId,
    },
    /// End it at once, without a word; the machine has forgotten it already.
    Cut {
        /// Which.
        conn: ConnId,
    },
    /// Tell the hub.
    Report(FromWorker),
}

/// A mesh link, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Who is at the other end.
    pub relay: RelayId,
    /// Frames handed to it.
    pub frames: u64,
    /// Of these, dropped from its queue.
    pub lost: u64,
    /// Frames that came from it with a source that is not behind it.
    pub spoofed: u64,
}

/// What a worker counts, besides drops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received to be forwarded.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames handed to a connection or another worker.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Of these, over the mesh.
    pub mesh_frames_out: u64,
    /// Sign-ins that succeeded.
    pub sign_ins: u64,
    /// ERROR frames, by their code's place in [`ErrorCode::ALL`].
    pub errors: [u64; ErrorCode::ALL.len()],
    /// Connections not taken, or cut for newer ones.
    pub refused: u64,
    /// The same by reason, by its place in [`Refusal::ALL`].
    pub refusals: [u64; Refusal::ALL.len()],
    /// Cut because nothing was authenticated in time.
    pub handshake_timeouts: u64,
}

impl Counters {
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.refused += 1;
        let place = Refusal::ALL.iter().position(|known| *known == refusal);
        if let Some(count) = place.and_then(|place| self.refusals.get_mut(place)) {
            *count += 1;
        }
    }
}

/// For `/debug/connections`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its number.
    pub conn: ConnId,
    /// `opening`, `data` or `mesh`
    pub kind: &'static str,
    /// The client, as far as it is known: behind a proxy that says nothing, the proxy.
    pub peer: IpAddr,
    /// Nodes authenticated on it.
    pub nodes: Vec<NodeId>,
    /// The relay at the other end.
    pub relay: Option<RelayId>,
    /// Since it was accepted.
    pub age: Duration,
}
