//! Datagrams in the world: from machines' sockets over the internet of [`crate::nat`], to machines and STUN servers.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use meshdp::proto::node::{LocalEndpoints, Received};
use meshdp::proto::path::direct::{Place, SocketId};
use meshdp::proto::wire::stun::Faces;

use super::{Happening, World};
use crate::link::{below, unit};
use crate::nat::{Arrival, Host, Nat, NatKind};

/// The port of every machine's socket 0; further ones count up.
pub const PORT: u16 = 41_641;

impl World {
    /// Adds a STUN server with two addresses and tells everyone by way of a relay.
    ///
    /// # Panics
    /// When there are more servers than relays.
    pub fn add_stun_server(&mut self) {
        let number = self.internet.servers.len();
        let ips = [1, 2].map(|last| IpAddr::from([198, 51, 100 + number as u8, last]));
        let faces = Faces::new(ips, [3478, 3479]).expect("two addresses, two ports");
        self.internet.servers.push(faces);
        let relay = *self.controller.relays.iter().nth(number).expect("a relay for each STUN server");
        self.controller.stun.insert(relay, SocketAddr::new(ips[0], 3478));
    }

    /// Adds a NAT.
    pub fn add_nat(&mut self, kind: NatKind) -> usize {
        let number = self.internet.nats.len();
        let outer = IpAddr::from([203, 0, 113, number as u8 + 1]);
        let nat = Nat::new(kind, outer, &mut self.rng);
        self.internet.nats.push(nat);
        number
    }

    /// Puts a machine behind a NAT, or in the open, with an address that ends in `last`; it is told when it runs.
    pub fn place(&mut self, machine: usize, nat: Option<usize>, last: u8) {
        let ip = match nat {
            Some(number)
                if self.internet.nats[number].kind.mapping != meshdp::proto::path::nat::Mapping::Direct =>
            {
                IpAddr::from([192, 168, number as u8, last])
            }
            Some(number) => IpAddr::from([192, 0, 10 + number as u8, last]),
            None => IpAddr::from([192, 0, 2, last]),
        };
        self.internet.hosts.insert(machine, Host { ip, nat });
        self.tell_endpoints(machine);
    }

    /// What a machine's shell says of its interfaces.
    pub fn tell_endpoints(&mut self, machine: usize) {
        let Some(host) = self.internet.hosts.get(&machine) else { return };
        let endpoints = LocalEndpoints {
            port4: Some(PORT),
            port6: None,
            addresses: vec![IpNet::new(host.ip, 24).expect("24 fits")],
            mapped: Vec::new(),
            extra_sockets: self.extra_sockets,
            lan_discovery: false,
        };
        if let Some(node) = &mut self.machines[machine].node {
            node.set_endpoints(endpoints, self.now);
            self.drain_machine(machine);
        }
    }

    /// Hands a datagram to a machine as if it had come from `from` now.
    pub fn inject_datagram(&mut self, machine: usize, from: SocketAddr, bytes: Vec<u8>) {
        self.datagram_arrives(Arrival::Host { machine, port: PORT, from }, bytes);
    }

    /// A machine sends a datagram.
    pub(super) fn send_datagram(&mut self, machine: usize, place: Place, bytes: Vec<u8>) {
        self.datagrams += 1;
        let port = PORT + place.socket.0;
        let now = self.now.instant;
        let arrival = self.internet.route(machine, port, place.remote, bytes.len(), &mut self.rng, now);
        if let Some(arrival) = arrival {
            self.fly(arrival, bytes);
        }
    }

    fn fly(&mut self, arrival: Arrival, mut bytes: Vec<u8>) {
        if let Some(tap) = &mut self.tap {
            tap(&mut bytes);
        }
        let quality = self.udp_quality;
        let copies = 1 + usize::from(unit(&mut self.rng) < quality.duplication);
        for _ in 0..copies {
            if unit(&mut self.rng) >= quality.loss {
                let delay = quality.delay + below(&mut self.rng, quality.jitter);
                self.later(delay, Happening::Datagram { arrival, bytes: bytes.clone() });
            }
        }
    }

    pub(super) fn datagram_arrives(&mut self, arrival: Arrival, mut bytes: Vec<u8>) {
        let now = self.now;
        match arrival {
            Arrival::Stun { server, face, from } => {
                let answer = self.internet.answer(server, face, from, &bytes, now.instant);
                if let Some((arrival, _, bytes)) = answer {
                    self.fly(arrival, bytes);
                }
            }
            Arrival::Host { machine, port, from } => {
                let Some(socket) = port.checked_sub(PORT).map(SocketId) else { return };
                let Some(node) = &mut self.machines[machine].node else { return };
                let place = Place { socket, remote: from };
                if let Received::Packet { packet, from, to, .. } =
                    node.handle_datagram(place, &mut bytes, now)
                {
                    self.model.delivered(packet, from, to);
                }
                self.drain_machine(machine);
            }
        }
    }
}
