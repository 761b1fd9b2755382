//! The short way: where a frame between nodes goes (`docs/protocol.md` §4.2, §4.3), without allocation.

use super::{LinkPlace, MAX_COUNTED_NETWORKS, Role, Worker};
use crate::proto::drop_reason::DropReason;
use crate::proto::error::{ErrorCode, FrameError};
use crate::proto::id::{NetworkId, NodeId, RelayId};
use crate::proto::relay::directory::Place;
use crate::proto::relay::{ConnId, Hop, Verdict};
use crate::proto::time::{Instant, Now};
use crate::proto::wire::control::ErrorMessage;
use crate::proto::wire::data;
use crate::proto::wire::frame::{Frame, FrameType, Frames};

/// The longest run: it fits one message of one TLS record.
const MAX_RUN: usize = (16 << 10) - 64;

/// DATA frames of one message with the same two ends, one behind the other.
struct Run<'a> {
    route: data::Route,
    verdict: Verdict,
    rest: &'a [u8],
    len: usize,
    frames: u64,
}

impl Worker {
    /// As [`Worker::handle_message`], but `forward` gets DATA frames between the same two nodes together while they follow each other: they are looked
    /// up, counted and copied once. Under rate limits each goes by itself.
    pub fn handle_runs(
        &mut self,
        conn: ConnId,
        message: &[u8],
        now: Now,
        mut forward: impl FnMut(Verdict, &[u8]),
    ) {
        self.link_heard(conn, now.instant);
        let mut run: Option<Run<'_>> = None;
        let mut rest = message;
        for frame in Frames::new(message) {
            let here = rest;
            let len = frame.as_ref().map_or(0, |frame| frame.bytes.len());
            rest = rest.get(len..).unwrap_or_default();
            if let (Ok(frame), Some(run)) = (&frame, &mut run)
                && frame.header.kind == FrameType::Data
                && run.len + len <= MAX_RUN
                && data::route(frame.bytes).is_ok_and(|route| route == run.route)
            {
                (run.len, run.frames) = (run.len + len, run.frames + 1);
                continue;
            }
            self.end_run(&mut run, &mut forward);
            let handled = frame.and_then(|frame| {
                if frame.header.kind == FrameType::Data && !self.metered {
                    let verdict = self.route(conn, frame.bytes, now.instant)?;
                    if let Verdict::Drop(reason) = verdict {
                        self.say_dropped(conn, reason, frame.bytes, now.instant);
                        return Ok(());
                    }
                    run = Some(Run { route: data::route(frame.bytes)?, verdict, rest: here, len, frames: 1 });
                    Ok(())
                } else if frame.header.kind.is_routed() {
                    self.forward(conn, frame.bytes, now.instant, &mut forward)
                } else if frame.header.kind == FrameType::Via {
                    self.forward_via(conn, frame, now.instant, &mut forward)
                } else {
                    self.handle_frame(conn, frame, now)
                }
            });
            if let Err(error) = handled {
                self.fail(conn, error.code(), error.to_string(), None);
            }
            if self.conn(conn).is_none() {
                return;
            }
        }
        self.end_run(&mut run, &mut forward);
    }

    /// Forwards a run; its first frame has been counted.
    fn end_run(&mut self, run: &mut Option<Run<'_>>, forward: &mut impl FnMut(Verdict, &[u8])) {
        let Some(Run { route, verdict, rest, len, frames }) = run.take() else { return };
        let bytes = rest.get(..len).unwrap_or_default();
        let first = Frames::new(bytes).next().and_then(Result::ok).map_or(0, |frame| frame.bytes.len());
        let (more, more_bytes) = (frames - 1, len.saturating_sub(first));
        self.counters.frames_in += more;
        self.counters.bytes_in += more_bytes as u64;
        self.count(verdict, route.source, more, more_bytes);
        forward(verdict, bytes);
    }

    /// Says where a frame goes that came in on `conn`. Drops are counted; no error is sent. `frame` is a whole DATA or SESSION frame.
    ///
    /// # Errors
    /// The frame has no room for its ids, or the connection may not forward yet.
    pub fn route(&mut self, conn: ConnId, frame: &[u8], now: Instant) -> Result<Verdict, FrameError> {
        let route = data::route(frame)?;
        self.counters.frames_in += 1;
        self.counters.bytes_in += frame.len() as u64;
        let verdict = match self.conn_mut(conn).map(|conn| &mut conn.role) {
            Some(Role::Data(memberships)) if !memberships.is_empty() => {
                let verdict = self.route_data(conn, route, None);
                self.metered(verdict, Some(conn), route, frame.len(), now)
            }
            Some(Role::Mesh(link)) => {
                link.active = true;
                let relay = link.relay;
                let verdict = self.route_mesh(relay, route);
                if verdict == Verdict::Drop(DropReason::SpoofedSource) {
                    self.link_lied(conn);
                }
                self.metered(verdict, None, route, frame.len(), now)
            }
            _ => return Err(FrameError::UnexpectedType(frame.get(1).copied().unwrap_or_default())),
        };
        self.count(verdict, route.source, 1, frame.len());
        Ok(verdict)
    }

    /// Says what to do with a frame that another worker has checked and handed over. Drops are counted.
    pub fn route_handed_over(&mut self, hop: Hop, frame: &[u8], now: Instant) -> Verdict {
        let Ok(route) = data::route(frame) else { return Verdict::Drop(DropReason::Malformed) };
        let verdict = match hop {
            Hop::Deliver => match self.directory.find(route.destination).map(|entry| entry.place) {
                Some(Place::Here(conn)) => Verdict::Local(conn),
                // It has signed in elsewhere while the frame was under way.
                Some(Place::Worker(_)) => Verdict::Drop(DropReason::Replaced),
                _ => Verdict::Drop(DropReason::DestinationOffline),
            },
            Hop::Mesh(relay) => match self.links.get(&relay) {
                Some(&LinkPlace::Here(conn, _)) => Verdict::MeshLink(conn),
                _ => Verdict::Drop(DropReason::MeshLinkDown),
            },
        };
        let verdict = self.metered(verdict, None, route, frame.len(), now);
        self.count(verdict, route.source, 1, frame.len());
        verdict
    }

    pub(super) fn forward(
        &mut self,
        conn: ConnId,
        frame: &[u8],
        now: Instant,
        forward: &mut impl FnMut(Verdict, &[u8]),
    ) -> Result<(), FrameError> {
        match self.route(conn, frame, now)? {
            Verdict::Drop(reason) => self.say_dropped(conn, reason, frame, now),
            verdict => forward(verdict, frame),
        }
        Ok(())
    }

    pub(super) fn forward_via(
        &mut self,
        conn: ConnId,
        via: Frame<'_>,
        now: Instant,
        forward: &mut impl FnMut(Verdict, &[u8]),
    ) -> Result<(), FrameError> {
        let unexpected = FrameError::UnexpectedType(FrameType::Via as u8);
        if !matches!(self.conn(conn).map(|conn| &conn.role), Some(Role::Data(all)) if !all.is_empty()) {
            return Err(unexpected);
        }
        let (relay, inner) = data::split_via(via.payload())?;
        for frame in Frames::new(inner) {
            let frame = frame?;
            if !frame.header.kind.is_routed() {
                return Err(FrameError::UnexpectedType(frame.header.kind as u8));
            }
            let route = data::route(frame.bytes)?;
            self.counters.frames_in += 1;
            self.counters.bytes_in += frame.bytes.len() as u64;
            let verdict = self.route_data(conn, route, Some(relay));
            let verdict = self.metered(verdict, Some(conn), route, frame.bytes.len(), now);
            self.count(verdict, route.source, 1, frame.bytes.len());
            match verdict {
                Verdict::Drop(reason) => self.say_dropped(conn, reason, frame.bytes, now),
                verdict => forward(verdict, frame.bytes),
            }
        }
        Ok(())
    }

    /// §4.2 and, with `via`, §4.3. A source that is `Here(conn)` proves that it was authenticated on this very connection.
    fn route_data(&mut self, conn: ConnId, route: data::Route, via: Option<RelayId>) -> Verdict {
        let source = match self.directory.find(route.source) {
            Some(entry) if entry.place == Place::Here(conn) => entry,
            _ => return Verdict::Drop(DropReason::SpoofedSource),
        };
        let Some(destination) = self.directory.find(route.destination) else {
            return Verdict::Drop(DropReason::UnknownDestination);
        };
        if destination.network != source.network {
            return Verdict::Drop(DropReason::OtherNetwork);
        }
        if let Some(relay) = via.filter(|relay| *relay != self.relay_id) {
            let known = |place: Place| place != Place::Nowhere;
            if let Some(&place) = self.links.get(&relay)
                && !(self.leaves(relay) && known(destination.place))
            {
                return over(relay, place);
            }
            return match destination.place {
                Place::Nowhere => Verdict::Drop(DropReason::MeshLinkDown),
                place => deliver(place),
            };
        }
        if destination.place != Place::Nowhere {
            return deliver(destination.place);
        }
        let linked = || destination.relays.iter().filter_map(|relay| Some((*relay, *self.links.get(relay)?)));
        let link = linked().find(|(relay, _)| self.leaving.is_empty() || !self.leaves(*relay));
        match link.or_else(|| linked().next()) {
            Some((relay, place)) => over(relay, place),
            None if destination.relays.iter().all(|relay| *relay == self.relay_id) => {
                Verdict::Drop(DropReason::DestinationOffline)
            }
            None => Verdict::Drop(DropReason::MeshLinkDown),
        }
    }

    /// From a mesh link frames go to nodes of this relay only, and only when the location table puts their source behind that link.
    fn route_mesh(&self, relay: RelayId, route: data::Route) -> Verdict {
        let source = match self.directory.find(route.source) {
            Some(entry) if entry.relays.contains(&relay) => entry,
            _ => return Verdict::Drop(DropReason::SpoofedSource),
        };
        match self.directory.find(route.destination) {
            Some(entry) if entry.network != source.network => Verdict::Drop(DropReason::OtherNetwork),
            Some(entry) if entry.place != Place::Nowhere => deliver(entry.place),
            _ => Verdict::Drop(DropReason::MeshNotLocal),
        }
    }

    fn count(&mut self, verdict: Verdict, source: NodeId, frames: u64, length: usize) {
        match verdict {
            Verdict::Drop(reason) => {
                self.drops.count(reason);
                // A spoofed source says nothing about whose traffic it was.
                if reason != DropReason::SpoofedSource
                    && let Some(entry) = self.directory.find(source)
                {
                    let network = entry.network;
                    let room = self.network_drops.len() < MAX_COUNTED_NETWORKS
                        || self.network_drops.contains_key(&network);
                    let key = if room { network } else { NetworkId(0) };
                    self.network_drops.entry(key).or_default().count(reason);
                }
                return;
            }
            Verdict::MeshLink(conn) => {
                self.counters.mesh_frames_out += frames;
                if let Some(Role::Mesh(link)) = self.conn_mut(conn).map(|conn| &mut conn.role) {
                    link.active = true;
                    link.frames += frames;
                }
            }
            Verdict::Local(_) | Verdict::Worker(..) => {}
        }
        self.counters.frames_out += frames;
        self.counters.bytes_out += length as u64;
    }

    /// The ERROR that goes with a dropped frame, at most once a second.
    fn say_dropped(&mut self, conn: ConnId, reason: DropReason, frame: &[u8], now: Instant) {
        let code = match reason {
            DropReason::UnknownDestination | DropReason::OtherNetwork => ErrorCode::UnknownDestination,
            DropReason::DestinationOffline | DropReason::MeshLinkDown => ErrorCode::DestinationOffline,
            _ => return,
        };
        let Ok(route) = data::route(frame) else { return };
        let Some(state) = self.conn_mut(conn) else { return };
        if matches!(state.role, Role::Data(_)) && state.error_limit.allow(route.destination, now) {
            self.send_error(conn, &ErrorMessage::new(code).about(route.destination));
        }
    }
}

fn over(relay: RelayId, place: LinkPlace) -> Verdict {
    match place {
        LinkPlace::Here(conn, _) => Verdict::MeshLink(conn),
        LinkPlace::Worker(worker, _) => Verdict::Worker(worker, Hop::Mesh(relay)),
    }
}

fn deliver(place: Place) -> Verdict {
    match place {
        Place::Here(conn) => Verdict::Local(conn),
        Place::Worker(worker) => Verdict::Worker(worker, Hop::Deliver),
        Place::Nowhere => Verdict::Drop(DropReason::DestinationOffline),
    }
}
