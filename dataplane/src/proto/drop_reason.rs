//! Why a packet or frame was dropped. A refusal is not an error: it is counted, one counter per reason.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)+) => {
        /// Why something was dropped. [`DropReason::label`] is the value of the `reason` label in the metrics.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)+ }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name in metrics and logs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The source id is not authenticated on this connection (relay), or not behind that mesh link.
    SpoofedSource => "spoofed_source",
    /// Destination id unknown.
    UnknownDestination => "unknown_destination",
    /// Destination is in another network.
    OtherNetwork => "other_network",
    /// Destination known and connected nowhere.
    DestinationOffline => "destination_offline",
    /// A frame from a mesh link whose destination is not connected here.
    MeshNotLocal => "mesh_not_local",
    /// The mesh link it should take is down.
    MeshLinkDown => "mesh_link_down",
    /// The queue of the receiver was full: the oldest went.
    QueueFull => "queue_full",
    /// It waited in a queue for too long.
    QueueAge => "queue_age",
    /// The queue between two workers was full.
    WorkerQueueFull => "worker_queue_full",
    /// Malformed frame or packet.
    Malformed => "malformed",
    /// A session index that we did not hand out, or whose session is gone.
    UnknownSession => "unknown_session",
    /// The counter was seen before.
    Replayed => "replayed",
    /// The counter is older than the replay window.
    TooOld => "too_old",
    /// The AEAD tag does not match.
    BadTag => "bad_tag",
    /// A handshake message that does not verify.
    BadHandshake => "bad_handshake",
    /// A handshake message with a timestamp that is not newer than the last.
    HandshakeReplayed => "handshake_replayed",
    /// The inner source address is not the sender's.
    SourceAddress => "source_address",
    /// No peer and no route for the inner destination address.
    NoRoute => "no_route",
    /// The peer's node_key is missing or its signature does not verify.
    UntrustedKey => "untrusted_key",
    /// Waited for a handshake that did not finish, or too many waited.
    HandshakeQueue => "handshake_queue",
    /// No relay connection to send on.
    NoPath => "no_path",
    /// Longer than the MTU.
    TooBig => "too_big",
    /// Not an IP packet and not a known inner message.
    UnknownInner => "unknown_inner",
    /// The TUN device did not take it.
    TunFull => "tun_full",
    /// The inner destination address is neither this machine's nor behind a route that it offers.
    DestinationAddress => "destination_address",
    /// Too many handshake messages from one peer.
    HandshakeRate => "handshake_rate",
    /// More than the node may send, or be sent.
    RateNode => "rate_node",
    /// More than its address may send, or be sent.
    RateAddress => "rate_address",
    /// It waited for a connection that ended.
    WriteError => "write_error",
    /// A datagram of a direct path that was routed into the mesh: it would go round and round.
    OwnDatagram => "own_datagram",
    /// An announcement on the own network that is malformed, not signed by the peer that it names, or not newer than the last.
    BadAnnouncement => "bad_announcement",
    /// More announcements than are looked at.
    AnnouncementRate => "announcement_rate",
    /// It waited for a connection that the same node has replaced.
    Replaced => "replaced",
}

/// One counter per reason.
#[derive(Clone, Debug)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Counts `n`.
    pub fn add(&mut self, reason: DropReason, n: u64) {
        self.0[reason as usize] += n;
    }

    /// How many so far.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// All of them, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.of(reason)))
    }

    /// Adds another's counts (one per worker → one per process).
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_label() {
        let mut counters = DropCounters::default();
        for (number, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, number);
            counters.add(reason, number as u64 + 1);
        }
        assert!(counters.iter().enumerate().all(|(number, (_, n))| n == number as u64 + 1));
        let labels: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), DropReason::ALL.len());
    }
}
