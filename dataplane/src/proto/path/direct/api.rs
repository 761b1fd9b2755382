//! What goes into the machine of direct paths and what comes out, as values.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use rand_chacha::ChaCha20Rng;

use super::{keepalive, mtu};
use crate::proto::path::candidate::{Candidates, Kind};
use crate::proto::path::message::{Call, Inner};
use crate::proto::path::nat::NatBehaviour;
use crate::proto::time::Instant;

/// A UDP socket of the shell's: 0 is the one in use, further ones are opened for a search only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct SocketId(pub u16);

/// A socket and the address at the other end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Place {
    /// Ours.
    pub socket: SocketId,
    /// The peer's, or that of the NAT in front of it.
    pub remote: SocketAddr,
}

/// This node, as far as all its peers have it in common.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Own addresses; none: no direct paths.
    pub candidates: Candidates,
    /// What the NAT does to IPv4.
    pub nat: NatBehaviour,
    /// When a server last saw the mapped address.
    pub mapped_at: Option<Instant>,
    /// Networks that this node is connected to: what is in them is LAN.
    pub networks: Vec<IpNet>,
    /// Sockets that the shell would open for a search.
    pub extra_sockets: u16,
    /// Whether the loopback network counts as one, for tests on one machine.
    pub loopback: bool,
    /// Whether there is a socket for IPv4.
    pub has_v4: bool,
    /// Whether there is a socket for IPv6.
    pub has_v6: bool,
}

/// What most methods need.
#[derive(Debug)]
pub struct Context<'a> {
    /// This node.
    pub local: &'a Local,
    /// For ids of probes, and ports of a search.
    pub rng: &'a mut ChaCha20Rng,
    /// Now.
    pub now: Instant,
}

/// What the node has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Seal this and send it on a path. `datagram`: pad it to a datagram of so many bytes.
    Send {
        /// Where.
        place: Place,
        /// What.
        message: Inner,
        /// 0: no padding.
        datagram: u16,
    },
    /// Seal this and send it over the relay.
    Call(Call),
    /// Find out the mapped address as it is now, then call [`super::Direct::local_changed`].
    Refresh,
    /// Packets take another path from now on; `None`: the relay.
    Selected(Option<Place>),
}

/// What the paths to one peer are made with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between keepalives at first.
    pub keepalive: Duration,
    /// The longest datagram that is of use: the longest packet with all that is around it.
    pub wanted: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self { keepalive: keepalive::SHORT, wanted: mtu::BASE }
    }
}

/// A picture of the path in use, for people.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PathInfo {
    /// Where.
    pub place: Place,
    /// What sort of address it is.
    pub kind: Kind,
    /// Smoothed.
    pub rtt: Option<Duration>,
    /// The longest datagram.
    pub datagram: u16,
}

impl PathInfo {
    /// The longest IP packet: the datagram with the headers of UDP (8) and IP (20 or 40).
    pub const fn mtu(&self) -> u16 {
        self.datagram.saturating_add(if self.place.remote.is_ipv4() { 28 } else { 48 })
    }
}
