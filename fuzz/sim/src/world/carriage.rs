//! Connections in the world: dialled, carrying frames, ending.

use meshdp::proto::id::RelayId;
use meshdp::proto::node::Received;
use meshdp::proto::relay::worker::Purpose;
use meshdp::proto::relay::{ConnId, Verdict};
use meshdp::proto::wire::control::Secret;
use meshdp::proto::wire::frame::{FrameHeader, FrameType, Frames};

use super::{Happening, World};
use crate::link::{Connection, End, Quality, below, unit};

impl World {
    pub(super) fn transmit(&mut self, machine: usize, relay: RelayId, message: &[u8]) {
        let Some(connection) = self.machines[machine].connections.get(&relay).copied() else { return };
        for frame in Frames::new(message) {
            let frame = frame.expect("nodes send whole frames").bytes.to_vec();
            self.carry(connection, 0, frame);
        }
    }

    pub(super) fn relay_sends(&mut self, relay: RelayId, conn: ConnId, frame: Vec<u8>) {
        let connection = self.relays.get(&relay).and_then(|host| host.connections.get(&conn).copied());
        if let Some(connection) = connection {
            let side = self.side_of(connection, End::Relay(relay, conn));
            self.carry(connection, side, frame);
        }
    }

    /// Puts a frame on a link.
    pub(super) fn carry(&mut self, number: u64, side: usize, mut bytes: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(&number).filter(|connection| !connection.black_hole)
        else {
            return;
        };
        let kind = FrameHeader::parse(&bytes).expect("only frames travel").kind;
        let Quality { delay, loss, duplication, jitter } = connection.quality;
        if !kind.is_routed() && kind != FrameType::Via {
            let at = (self.now.instant + delay).max(connection.last[side]);
            connection.last[side] = at;
            let delay = at.saturating_since(self.now.instant);
            return self.later(delay, Happening::Frame { connection: number, side, bytes });
        }
        if let Some(tap) = &mut self.tap {
            tap(&mut bytes);
        }
        let copies = 1 + usize::from(unit(&mut self.rng) < duplication);
        for _ in 0..copies {
            if unit(&mut self.rng) >= loss {
                let delay = delay + below(&mut self.rng, jitter);
                self.later(delay, Happening::Frame { connection: number, side, bytes: bytes.clone() });
            }
        }
    }

    /// One side ends a connection; the other hears of it after all that was sent before.
    pub(super) fn close(&mut self, number: u64, side: usize) {
        let Some(connection) = self.connections.get(&number) else { return };
        if connection.black_hole {
            return;
        }
        let Quality { delay, jitter, .. } = connection.quality;
        self.later(delay + jitter, Happening::Closed { connection: number, side });
    }

    pub(super) fn side_of(&self, number: u64, end: End) -> usize {
        usize::from(self.connections.get(&number).is_none_or(|connection| connection.ends[0] != end))
    }

    pub(super) fn frame_arrives(&mut self, number: u64, side: usize, mut bytes: Vec<u8>) {
        let Some(connection) = self.connections.get(&number).filter(|c| !c.black_hole) else { return };
        match connection.ends[1 - side] {
            End::Machine(machine) => {
                let End::Relay(relay, _) = connection.ends[side] else { return };
                if self.machines[machine].connections.get(&relay) == Some(&number) {
                    self.deliver_to_machine(machine, relay, &mut bytes);
                    self.drain_machine(machine);
                }
            }
            End::Relay(relay, conn) => {
                let Some(host) = self.relays.get_mut(&relay).filter(|host| host.up) else { return };
                if host.connections.get(&conn) != Some(&number) {
                    return;
                }
                let mut forwarded = Vec::new();
                let now = host.clocks(self.now);
                host.worker.handle_message(conn, &bytes, now, |verdict, frame| match verdict {
                    Verdict::Local(conn) | Verdict::MeshLink(conn) => forwarded.push((conn, frame.to_vec())),
                    Verdict::Worker(..) | Verdict::Drop(_) => {}
                });
                for (conn, frame) in forwarded {
                    self.relay_sends(relay, conn, frame);
                }
                self.drain_relay(relay);
            }
        }
    }

    pub(super) fn deliver_to_machine(&mut self, machine: usize, relay: RelayId, bytes: &mut [u8]) {
        let Some(node) = &mut self.machines[machine].node else { return };
        if let Received::Packet { packet, from, to, .. } = node.handle_relay_frame(relay, bytes, self.now) {
            self.model.delivered(packet, from, to);
        }
    }

    pub(super) fn close_arrives(&mut self, number: u64, side: usize) {
        let Some(connection) = self.connections.remove(&number) else { return };
        match connection.ends[1 - side] {
            End::Machine(machine) => {
                let End::Relay(relay, _) = connection.ends[side] else { return };
                let machine_state = &mut self.machines[machine];
                if machine_state.connections.get(&relay) == Some(&number) {
                    machine_state.connections.remove(&relay);
                    if let Some(node) = &mut machine_state.node {
                        node.relay_closed(relay, self.now);
                        self.drain_machine(machine);
                    }
                }
            }
            End::Relay(relay, conn) => {
                let Some(host) = self.relays.get_mut(&relay).filter(|host| host.up) else { return };
                if host.connections.get(&conn) == Some(&number) {
                    host.connections.remove(&conn);
                    host.worker.closed(conn);
                    self.drain_relay(relay);
                }
            }
        }
    }

    pub(super) fn dialled(&mut self, machine: usize, relay: RelayId, start: u64) {
        if self.machines[machine].starts != start || self.machines[machine].node.is_none() {
            return;
        }
        let conn = if self.blocked.contains(&(machine, relay)) { None } else { self.accept(relay) };
        let Some(node) = &mut self.machines[machine].node else { return };
        let Some(conn) = conn else {
            node.relay_closed(relay, self.now);
            return self.drain_machine(machine);
        };
        let number = self.connect(End::Machine(machine), End::Relay(relay, conn));
        if let Some(host) = self.relays.get_mut(&relay) {
            host.connections.insert(conn, number);
            host.worker.upgraded(conn, Purpose::Data);
        }
        self.machines[machine].connections.insert(relay, number);
        if let Some(node) = &mut self.machines[machine].node {
            node.relay_connected(relay, self.now);
        }
        self.drain_machine(machine);
        self.drain_relay(relay);
    }

    pub(super) fn mesh_dialled(&mut self, from: RelayId, to: RelayId, token: Secret) {
        if !self.relays.get(&from).is_some_and(|host| host.up) {
            return;
        }
        let accepted = self.accept(to);
        let (Some(accepted), Some(dialled)) = (accepted, self.accept(from)) else {
            if let Some(host) = self.relays.get_mut(&from) {
                host.hub.dial_failed(to, self.now.instant);
            }
            return self.drain_relay(from);
        };
        let number = self.connect(End::Relay(from, dialled), End::Relay(to, accepted));
        let purposes =
            [(from, dialled, Purpose::MeshOut { relay: to, token }), (to, accepted, Purpose::MeshIn)];
        for (relay, conn, purpose) in purposes {
            if let Some(host) = self.relays.get_mut(&relay) {
                host.connections.insert(conn, number);
                host.worker.upgraded(conn, purpose);
            }
        }
        self.drain_relay(from);
        self.drain_relay(to);
    }

    /// A relay's name for a connection, if it runs and takes it.
    pub(super) fn accept(&mut self, relay: RelayId) -> Option<ConnId> {
        let host = self.relays.get_mut(&relay).filter(|host| host.up)?;
        let conn = host.new_conn();
        host.worker.open(conn, [192, 0, 2, 1].into(), self.now.instant).ok()?;
        Some(conn)
    }

    pub(super) fn connect(&mut self, one: End, other: End) -> u64 {
        self.serial += 1;
        let connection = Connection {
            ends: [one, other],
            quality: self.quality,
            last: [self.now.instant; 2],
            black_hole: false,
        };
        self.connections.insert(self.serial, connection);
        self.serial
    }
}
