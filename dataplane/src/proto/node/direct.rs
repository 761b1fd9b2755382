//! Direct paths in the node: datagrams in, probes and CALLs sealed and sent (`docs/protocol.md` §8).
//!
//! [`crate::proto::path::direct`] decides; this file gives it what the session has authenticated and seals what it wants to say. Handshakes go over
//! relays, which say who sends; directly only while there is no relay, between addresses that are known to be the peer's ([`super::lan`] among others).

use std::time::Duration;

use super::Node;
use super::api::{Event, Received, Target};
use crate::proto::drop_reason::DropReason;
use crate::proto::id::RelayId;
use crate::proto::path::direct::{Context, Direct, Output, Place, Settings};
use crate::proto::path::message::Inner;
use crate::proto::routing::table::PeerKey;
use crate::proto::time::Now;
use crate::proto::wire::data::{DATA_HEADROOM, DATA_OVERHEAD, Route, TAG_LEN};
use crate::proto::wire::frame::{Flags, FrameHeader, FrameType};

/// Where a frame came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// A relay, which has checked who sent it.
    Relay(RelayId),
    /// A datagram from anybody.
    Direct(Place),
}

impl Origin {
    pub(super) const fn relay(self) -> Option<RelayId> {
        match self {
            Self::Relay(relay) => Some(relay),
            Self::Direct(_) => None,
        }
    }

    /// The same way back.
    pub(super) const fn back(self) -> Target {
        match self {
            Self::Relay(relay) => Target::Relay { relay, via: None },
            Self::Direct(place) => Target::Direct(place),
        }
    }
}

impl Node {
    /// One datagram of a UDP socket: a STUN answer, or one frame, opened in place. What is neither costs a look at its header.
    pub fn handle_datagram<'a>(&mut self, place: Place, datagram: &'a mut [u8], now: Now) -> Received<'a> {
        if self.handle_stun(place, datagram, now) {
            return Received::Consumed;
        }
        let header = FrameHeader::parse(datagram).ok().filter(|header| header.frame_len() == datagram.len());
        let origin = Origin::Direct(place);
        let received = match header.map(|header| (header.kind, header.flags)) {
            Some((FrameType::Data, flags)) => self.receive_data(origin, flags, datagram, now),
            Some((FrameType::SessionInit, _)) => {
                self.receive_init(origin, datagram, now).map(|()| Received::Consumed)
            }
            Some((FrameType::SessionResponse, _)) => {
                self.receive_response(origin, datagram, now).map(|()| Received::Consumed)
            }
            _ => Err(DropReason::Malformed),
        };
        received.unwrap_or_else(|reason| {
            self.drops.count(reason);
            Received::Dropped(reason)
        })
    }

    /// The system would not send a datagram of so many bytes: the path carries less.
    pub fn datagram_refused(&mut self, place: Place, size: usize, now: Now) {
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        for key in self.directory.keys() {
            self.with_direct(key, now, |direct, _| direct.datagram_refused(place, size, now.instant));
        }
    }

    /// A session is there: a direct path is wanted.
    pub(super) fn start_direct(&mut self, key: PeerKey, now: Now) {
        let settings = self.config.as_ref().map_or_else(Settings::default, |config| Settings {
            keepalive: Duration::from_secs(config.settings.keepalive_s),
            wanted: config.settings.mtu.saturating_add(DATA_OVERHEAD as u16),
        });
        self.with_direct(key, now, |direct, context| {
            direct.configure(settings);
            direct.start(context);
        });
    }

    /// Does what is due on a peer's direct paths.
    pub(super) fn direct_due(&mut self, key: PeerKey, now: Now) {
        let due = self.directory.get(key).and_then(|peer| peer.direct.poll_timeout());
        if due.is_some_and(|at| at <= now.instant) {
            self.with_direct(key, now, Direct::handle_timeout);
        }
    }

    /// A peer's packet was opened that came directly.
    pub(super) fn heard_directly(&mut self, key: PeerKey, place: Place, newest: bool, text: &[u8], now: Now) {
        let data = !Inner::is_about_paths(text);
        let Some(peer) = self.directory.get_mut(key) else { return };
        let mut context = Context { local: &self.net.local, rng: &mut self.rng, now: now.instant };
        peer.direct.note_heard(place, newest, data, &mut context);
        if peer.direct.has_output() {
            self.drain_direct(key, now);
            self.arm(key);
        }
    }

    /// PROBE, PROBE_ACK or CALL.
    pub(super) fn receive_path_message(
        &mut self,
        key: PeerKey,
        origin: Origin,
        text: &[u8],
        size: usize,
        now: Now,
    ) -> Result<(), DropReason> {
        let message = Inner::parse(text).ok_or(DropReason::UnknownInner)?;
        self.with_direct(key, now, |direct, context| match (message, origin) {
            (Inner::Probe(probe), Origin::Direct(place)) => direct.handle_probe(place, probe, size, context),
            (Inner::ProbeAck(ack), Origin::Direct(place)) => direct.handle_ack(place, ack, context),
            (Inner::Call(call), _) => direct.handle_call(&call, context),
            // On a relay there is nothing to probe.
            (Inner::Probe(_) | Inner::ProbeAck(_), Origin::Relay(_)) => {}
        });
        self.arm(key);
        Ok(())
    }

    /// Has a peer's machine do something, and does what it wants.
    pub(super) fn with_direct(
        &mut self,
        key: PeerKey,
        now: Now,
        act: impl FnOnce(&mut Direct, &mut Context<'_>),
    ) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let mut context = Context { local: &self.net.local, rng: &mut self.rng, now: now.instant };
        act(&mut peer.direct, &mut context);
        self.drain_direct(key, now);
    }

    pub(super) fn drain_direct(&mut self, key: PeerKey, now: Now) {
        while let Some(peer) = self.directory.get_mut(key)
            && let Some(output) = peer.direct.poll_output()
        {
            match output {
                Output::Send { place, message, datagram } => {
                    self.send_inner(key, Target::Direct(place), &message, datagram, now);
                }
                Output::Call(call) => {
                    if let Some(target) = peer.path.path().map(Target::from).or_else(|| peer.target(0)) {
                        self.send_inner(key, target, &Inner::Call(call), 0, now);
                    }
                }
                Output::Refresh => self.refresh_mapped(now),
                Output::Selected(place) => {
                    let (peer, address) = (peer.id, place.map(|place| place.remote));
                    self.outbox.events.push_back(Event::DirectChanged { peer, address });
                    if address.is_some() {
                        self.flush_queue(key, false, now);
                    }
                }
            }
        }
    }

    /// Seals an inner message and sends it; `datagram`: padded to so many bytes.
    fn send_inner(&mut self, key: PeerKey, target: Target, message: &Inner, datagram: u16, now: Now) {
        let Some(peer) = self.directory.get_mut(key) else { return };
        let route = Route { source: peer.own, destination: peer.id };
        let mut buffer = vec![0; DATA_HEADROOM];
        message.write(&mut buffer);
        let length = buffer.len().max(usize::from(datagram).saturating_sub(TAG_LEN)) + TAG_LEN;
        buffer.resize(length, 0);
        let session = peer.sessions.sealing(now.instant);
        if session.is_some_and(|session| session.seal(route, Flags::NONE, &mut buffer).is_ok()) {
            // A path that is kept needs a session, also while nobody uses it.
            let renew = now.instant >= peer.renew_at && peer.direct.info().is_some();
            self.outbox.send(&mut self.relays, target, buffer, now.instant);
            if renew {
                self.want_session(key, now);
            }
        }
    }
}
