//! Mesh links of one worker: authenticated, pinged, measured, replaced (`docs/protocol.md` §5.4).

use std::time::Duration;

use super::{Command, Conn, LinkInfo, LinkPlace, Role, Worker};
use crate::proto::id::RelayId;
use crate::proto::relay::{ConnId, FromWorker, LinkSerial};
use crate::proto::time::{Instant, Now};
use crate::proto::wire::control::server::TokenAuth;
use crate::proto::wire::control::{AuthRequest, Secret, to_payload};
use crate::proto::wire::frame::{Flags, FrameType};
use crate::proto::wire::reassembly::write_control;

/// Between PINGs while traffic flows.
const BUSY_PING: Duration = Duration::from_secs(1);
/// Between PINGs otherwise: the measurement.
const IDLE_PING: Duration = Duration::from_secs(30);
/// Nothing heard for that long after a PING ends the link: one that goes dead under traffic is found within 3 s.
const SILENCE: Duration = Duration::from_secs(2);
/// A PING that is not answered for that long does too, whatever else is heard.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// An authenticated link to another relay.
#[derive(Debug)]
pub(super) struct Link {
    /// Who is at the other end.
    pub(super) relay: RelayId,
    pub(super) serial: LinkSerial,
    /// Frames went over it since the last look.
    pub(super) active: bool,
    /// Id and date of the token that the other end has shown.
    pub(super) token: (String, u64),
    /// Handed to it, dropped from its queue, and what of that the hub knows.
    pub(super) frames: u64,
    lost: u64,
    reported: (u64, u64),
    /// Came from it with a source that is not behind it.
    spoofed: u64,
    pings: u64,
    /// The last PING, not answered yet.
    waiting: Option<Instant>,
    last_ping: Instant,
    heard: Instant,
}

impl Link {
    /// What the hub does not know yet.
    fn take_loss(&mut self) -> Option<FromWorker> {
        let (frames, lost) = std::mem::replace(&mut self.reported, (self.frames, self.lost));
        let (frames, lost) = (self.frames - frames, self.lost - lost);
        (frames + lost > 0).then_some(FromWorker::LinkLoss { relay: self.relay, frames, lost })
    }
}

impl Worker {
    /// Asks to be let in at the relay that we dialled.
    pub(super) fn request_mesh(&mut self, conn: ConnId, token: Secret) {
        let version = env!("CARGO_PKG_VERSION").into();
        let request = to_payload(&AuthRequest::Mesh(TokenAuth { token, version }));
        let mut frame = Vec::new();
        if write_control(FrameType::AuthRequest, Flags::NONE, &request, &mut frame).is_ok() {
            self.commands.push_back(Command::Send { conn, frame });
        }
    }

    pub(super) fn link_up(&mut self, conn: ConnId, relay: RelayId, token: (String, u64), now: Now) {
        self.next_serial += 1;
        let serial = LinkSerial(u64::from(self.id.0) << 48 | self.next_serial);
        let Some(state) = self.conn_mut(conn) else { return };
        state.role = Role::Mesh(Link {
            relay,
            serial,
            active: false,
            token,
            frames: 0,
            lost: 0,
            reported: (0, 0),
            spoofed: 0,
            pings: 0,
            waiting: None,
            last_ping: now.instant,
            heard: now.instant,
        });
        self.authenticated(conn, true);
        let old = self.links.insert(relay, LinkPlace::Here(conn, serial));
        self.report(FromWorker::LinkUp { relay, serial });
        if let Some(LinkPlace::Here(old, _)) = old {
            self.close_link(old, "replaced");
        }
        self.ping_link(conn, now.instant);
    }

    pub(super) fn close_link(&mut self, conn: ConnId, reason: &str) {
        self.go_away(conn, reason, Duration::ZERO);
        self.close(conn, 1000);
    }

    pub(super) fn link_ended(&mut self, conn: ConnId, relay: RelayId, serial: LinkSerial) {
        if self.links.get(&relay) == Some(&LinkPlace::Here(conn, serial)) {
            self.links.remove(&relay);
        }
        self.stays(relay, serial);
        self.report(FromWorker::LinkDown { relay, serial });
    }

    /// The link that was about to end has ended.
    pub(super) fn stays(&mut self, relay: RelayId, ended: LinkSerial) {
        if self.leaving.get(&relay) == Some(&ended) {
            self.leaving.remove(&relay);
        }
    }

    /// Whether frames to `relay` should go another way, if there is one.
    pub(super) fn leaves(&self, relay: RelayId) -> bool {
        let Some(place) = self.links.get(&relay) else { return false };
        self.leaving.get(&relay) == Some(&place.serial())
    }

    /// The link's timer: gives up, pings, or waits.
    pub(super) fn ping_link(&mut self, conn: ConnId, now: Instant) {
        let Some(Role::Mesh(link)) = self.conn_mut(conn).map(|conn| &mut conn.role) else { return };
        let silent = |since: Instant| now - since.max(link.heard) >= SILENCE || now - since >= PING_TIMEOUT;
        if link.waiting.is_some_and(silent) {
            return self.close_link(conn, "timeout");
        }
        let loss = link.take_loss();
        let interval = if std::mem::take(&mut link.active) { BUSY_PING } else { IDLE_PING };
        let due = link.pings == 0 || now - link.last_ping >= interval;
        if due && link.waiting.is_none() {
            link.pings += 1;
            link.waiting = Some(now);
            link.last_ping = now;
            let payload = link.pings.to_be_bytes();
            self.send(conn, FrameType::Ping, &payload);
        }
        if let Some(loss) = loss {
            self.report(loss);
        }
        // Looks once a second whether traffic flows: a link is one per relay, there are few.
        self.set_timer(conn, Some(now + BUSY_PING));
    }

    /// Something came on a connection; the other end of a link is there.
    pub(super) fn link_heard(&mut self, conn: ConnId, now: Instant) {
        if let Some(link) = self.link_mut(conn) {
            link.heard = now;
        }
    }

    /// A frame's source is not behind the link that it came from.
    pub(super) fn link_lied(&mut self, conn: ConnId) {
        if let Some(link) = self.link_mut(conn) {
            link.spoofed += 1;
        }
    }

    /// The shell has dropped frames from that link's queue.
    pub fn link_lost(&mut self, conn: ConnId, frames: u64) {
        if let Some(link) = self.link_mut(conn) {
            link.lost += frames;
        }
    }

    /// The links of this worker, for people.
    pub fn link_infos(&self) -> Vec<LinkInfo> {
        let info = |conn: &Conn| match &conn.role {
            Role::Mesh(Link { relay, frames, lost, spoofed, .. }) => {
                Some(LinkInfo { relay: *relay, frames: *frames, lost: *lost, spoofed: *spoofed })
            }
            _ => None,
        };
        self.conns.iter().flatten().filter_map(info).collect()
    }

    fn link_mut(&mut self, conn: ConnId) -> Option<&mut Link> {
        match self.conn_mut(conn).map(|conn| &mut conn.role) {
            Some(Role::Mesh(link)) => Some(link),
            _ => None,
        }
    }

    pub(super) fn pong(&mut self, conn: ConnId, payload: &[u8], now: Instant) {
        let Some(Role::Mesh(link)) = self.conn_mut(conn).map(|conn| &mut conn.role) else { return };
        if payload != link.pings.to_be_bytes() {
            return;
        }
        if let Some(since) = link.waiting.take() {
            let relay = link.relay;
            self.report(FromWorker::LinkRtt { relay, rtt: now - since });
        }
    }
}
