//! The node as people see it.

use super::Node;
use super::api::{MembershipStatus, NodeStatus, PeerStatus, RelayStatus};
use super::peer::{Peer, Trust};
use crate::proto::path::choice::Path;
use crate::proto::session::transport::Session;
use crate::proto::time::Instant;

impl Node {
    /// A picture for people.
    pub fn status(&self, now: Instant) -> NodeStatus {
        let memberships = self.memberships.iter().map(|(id, membership)| MembershipStatus {
            node_id: *id,
            name: membership.name.clone(),
            network: membership.network_name.clone(),
            addresses: membership.addresses.clone(),
        });
        let relays = self.relays.iter().map(|(id, connection)| RelayStatus {
            id: *id,
            name: connection.info.name.clone(),
            state: connection.state_name(),
            rtt_ms: connection.opened().and_then(|open| open.liveness.rtt().millis()),
            error: connection.error.clone(),
            stun: connection.info.stun,
            seen_as: connection.info.stun.and_then(|server| self.net.seen_by(server)),
        });
        NodeStatus {
            config_version: self.version(),
            machine_key: self.machine.public(),
            mtu: self.config.as_ref().map_or(0, |config| config.settings.mtu),
            memberships: memberships.collect(),
            peers: self.directory.iter().map(|peer| self.peer_status(peer, now)).collect(),
            relays: relays.collect(),
            nat: self.net.local.nat,
            drops: self.drops.iter().filter(|(_, n)| *n > 0).map(|(reason, n)| (reason.label(), n)).collect(),
        }
    }

    fn peer_status(&self, peer: &Peer, now: Instant) -> PeerStatus {
        let direct = peer.direct.info();
        let pinned = self.pins.get(&peer.id).copied();
        let session = peer.sessions.current().filter(|session| session.can_seal(now));
        let network = self.memberships.get(&peer.own).map(|membership| membership.network_name.clone());
        PeerStatus {
            node_id: peer.id,
            name: peer.name.clone(),
            network: network.unwrap_or_default(),
            addresses: peer.addresses.clone(),
            routes: peer.routes.clone(),
            routes_down: peer.routes.iter().filter(|net| !peer.watch.reaches(**net)).copied().collect(),
            silent: peer.watch.is_silent(),
            online: peer.online,
            session: match (peer.trust, session, &peer.pending) {
                (Trust::Refused(_), ..) => "untrusted",
                (_, Some(_), _) => "established",
                (_, None, Some(_)) => "handshake",
                (_, None, None) => "none",
            },
            session_age_s: session.map(|session| now.saturating_since(session.made()).as_secs_f64()),
            cipher: session.map(|session| session.cipher().name()),
            post_quantum: session.map(Session::post_quantum),
            machine_key: peer.machine_key,
            pinned_machine_key: pinned.filter(|pinned| peer.machine_key != Some(*pinned)),
            untrusted: match peer.trust {
                Trust::Refused(reason) => Some(reason),
                Trust::NoKey | Trust::Verified => None,
            },
            path: peer.path.path().map(Path::to_list).unwrap_or_default(),
            direct: direct.map(|info| info.place.remote),
            direct_kind: direct.map(|info| info.kind),
            direct_mtu: direct.map(|info| info.mtu()),
            nat: peer.direct.remote_nat(),
            rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            tx_bytes: peer.traffic.tx_bytes,
            tx_packets: peer.traffic.tx_packets,
            rx_bytes: peer.traffic.rx_bytes,
            rx_packets: peer.traffic.rx_packets,
            last_heard_s: peer.heard.map(|heard| now.saturating_since(heard).as_secs_f64()),
        }
    }
}
