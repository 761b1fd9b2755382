//! The clock, what is on its way, and the shells' work for every machine and relay.
//!
//! [`World::run_for`] takes the next thing that happens (a frame arrives, a timer goes off), lets the machine concerned act, and carries away what it
//! puts out, until the time is up. Everything is drawn from one generator, in a fixed order: the same seed gives the same run.

mod carriage;
pub mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use meshdp::proto::drop_reason::DropReason;
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::node::{Checksum, Event, Outgoing, Target};
use meshdp::proto::time::{Instant, Now, UnixTime};
use meshdp::proto::wire::control::node::{AdvertisedRoute, ConfigUpdate};
use meshdp::proto::wire::control::server::{NodeLocations, ServerRegister};
use meshdp::proto::wire::control::{Secret, parse, to_payload};
use meshdp::proto::wire::data::{DATA_HEADROOM, TAG_LEN, via_header};
use meshdp::proto::wire::frame::FrameType;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

use crate::controller::Controller;
use crate::link::{Connection, End, Quality};
use crate::machine::Machine;
use crate::model::Model;
use crate::nat::{Arrival, Internet};
use crate::packet;
use crate::relay_host::{RelayHost, Task};

/// When the virtual world begins.
const BEGINNING: UnixTime = UnixTime::from_secs(1_770_000_000);
/// From anyone to the controller or back.
const CONTROL_DELAY: Duration = Duration::from_millis(20);
/// So much may happen without time passing; more is a busy loop.
const MAX_WITHOUT_TIME: u32 = 200_000;

/// Something that will happen.
#[derive(Debug)]
enum Happening {
    Frame { connection: u64, side: usize, bytes: Vec<u8> },
    Closed { connection: u64, side: usize },
    Dialled { machine: usize, relay: RelayId, start: u64 },
    MeshDialled { from: RelayId, to: RelayId, token: Secret },
    RelayToController { relay: RelayId, kind: FrameType, payload: Vec<u8> },
    ControllerToRelay { relay: RelayId, kind: FrameType, payload: Vec<u8> },
    Update { machine: usize, update: Box<ConfigUpdate> },
    WholeConfig { machine: usize },
    Datagram { arrival: Arrival, bytes: Vec<u8> },
}

/// See the [module](self).
pub struct World {
    /// Both clocks.
    pub now: Now,
    /// Machines, by number.
    pub machines: Vec<Machine>,
    /// Relays.
    pub relays: BTreeMap<RelayId, RelayHost>,
    /// The controller.
    pub controller: Controller,
    /// What may arrive.
    pub model: Model,
    /// Of connections made from now on.
    pub quality: Quality,
    /// UDP.
    pub internet: Internet,
    /// Of datagrams.
    pub udp_quality: Quality,
    /// Sockets that machines offer for a search.
    pub extra_sockets: u16,
    /// How many datagrams were sent.
    pub datagrams: u64,
    /// False: the controller says and hears nothing.
    pub controller_up: bool,
    /// Called for every frame between nodes that a link carries; may change it.
    pub tap: Option<Tap>,
    blocked: BTreeSet<(usize, RelayId)>,
    connections: BTreeMap<u64, Connection>,
    queue: BTreeMap<(Instant, u64), Happening>,
    serial: u64,
    next_packet: u64,
    key_serials: BTreeMap<usize, u64>,
    rng: ChaCha20Rng,
}

/// See [`World::tap`].
pub type Tap = Box<dyn FnMut(&mut Vec<u8>)>;

impl World {
    /// Empty, over clean links of 10 ms.
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        Self {
            now: Now { instant: Instant::ZERO, unix: BEGINNING },
            machines: Vec::new(),
            relays: BTreeMap::new(),
            controller: Controller::default(),
            model: Model::default(),
            quality: Quality::clean(Duration::from_millis(10)),
            internet: Internet::default(),
            udp_quality: Quality::clean(Duration::from_millis(5)),
            extra_sockets: 0,
            datagrams: 0,
            controller_up: true,
            tap: None,
            blocked: BTreeSet::new(),
            connections: BTreeMap::new(),
            queue: BTreeMap::new(),
            serial: 0,
            next_packet: 0,
            key_serials: BTreeMap::new(),
            rng: ChaCha20Rng::from_seed(bytes),
        }
    }

    /// A random number.
    pub fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Adds a relay and starts it.
    pub fn add_relay(&mut self) -> RelayId {
        let id = RelayId(self.relays.len() as u16 + 1);
        self.controller.relays.insert(id);
        self.relays.insert(id, self.new_relay_host());
        for id in self.relays.keys().copied().collect::<Vec<_>>() {
            self.register_relay(id);
        }
        id
    }

    fn new_relay_host(&self) -> RelayHost {
        RelayHost::new(self.rng.clone(), self.now)
    }

    /// Adds a machine, stopped and in no network.
    pub fn add_machine(&mut self, aes: bool, advertised: Vec<AdvertisedRoute>) -> usize {
        let number = self.machines.len();
        self.machines.push(Machine::new(number, aes, self.now.unix.as_secs(), advertised));
        number
    }

    /// Has a machine join a network; its peers are told.
    pub fn join(&mut self, machine: usize, network: NetworkId) -> NodeId {
        let key = self.machines[machine].machine_key();
        let serial = self.key_serials.get(&machine).copied().unwrap_or(0);
        let node_key = Machine::make_node_key(machine, serial);
        let node_key = key.sign_node_key(&node_key, self.now.unix.as_secs());
        let id = self.controller.join(machine, network, key.public(), node_key);
        self.everyone_anew();
        id
    }

    /// Everyone gets a whole configuration.
    pub fn everyone_anew(&mut self) {
        for machine in 0..self.machines.len() {
            self.later(CONTROL_DELAY, Happening::WholeConfig { machine });
        }
        for id in self.relays.keys().copied().collect::<Vec<_>>() {
            self.configure_relay(id);
        }
    }

    /// Starts a machine; the controller sends it its configuration.
    pub fn start(&mut self, machine: usize) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        self.machines[machine].start(seed, self.now);
        self.tell_endpoints(machine);
        self.later(CONTROL_DELAY, Happening::WholeConfig { machine });
        self.drain_machine(machine);
    }

    /// Starts all machines.
    pub fn start_all(&mut self) {
        for machine in 0..self.machines.len() {
            self.start(machine);
        }
    }

    /// Kills a machine: what it had saved survives.
    pub fn stop(&mut self, machine: usize) {
        self.machines[machine].save();
        self.machines[machine].node = None;
        for connection in std::mem::take(&mut self.machines[machine].connections).into_values() {
            self.close(connection, 0);
        }
    }

    /// Kills a relay: its connections break.
    pub fn kill_relay(&mut self, relay: RelayId) {
        let Some(host) = self.relays.get_mut(&relay) else { return };
        host.up = false;
        for (conn, connection) in std::mem::take(&mut host.connections) {
            let side = self.side_of(connection, End::Relay(relay, conn));
            self.close(connection, side);
        }
    }

    /// Starts a killed relay, without any memory.
    pub fn restart_relay(&mut self, relay: RelayId) {
        let host = self.new_relay_host();
        self.relays.insert(relay, host);
        self.register_relay(relay);
    }

    /// The controller is gone: it says and hears nothing.
    pub fn lose_controller(&mut self) {
        self.controller_up = false;
    }

    /// It is back: relays and machines sign in anew.
    pub fn find_controller(&mut self) {
        self.controller_up = true;
        for relay in self.relays.keys().copied().collect::<Vec<_>>() {
            self.register_relay(relay);
        }
        self.everyone_anew();
    }

    /// A relay's calendar jumps by so many seconds.
    pub fn jump(&mut self, relay: RelayId, seconds: i64) {
        if let Some(host) = self.relays.get_mut(&relay) {
            host.clock_error += seconds;
        }
    }

    /// From now on nothing passes on a relay's connections, and nobody is told.
    pub fn swallow(&mut self, relay: RelayId) {
        for connection in self.connections.values_mut() {
            if connection.ends.iter().any(|end| matches!(end, End::Relay(id, _) if *id == relay)) {
                connection.black_hole = true;
            }
        }
        if let Some(host) = self.relays.get_mut(&relay) {
            host.up = false;
        }
    }

    /// From now on nothing passes on a machine's connections, and nobody is told.
    pub fn mute(&mut self, machine: usize) {
        for number in self.machines[machine].connections.values() {
            if let Some(connection) = self.connections.get_mut(number) {
                connection.black_hole = true;
            }
        }
    }

    /// From now on a machine cannot connect to a relay.
    pub fn block(&mut self, machine: usize, relay: RelayId) {
        self.blocked.insert((machine, relay));
        let host = self.relays.get_mut(&relay);
        let number = self.machines[machine].connections.get(&relay).copied();
        let (Some(host), Some(number)) = (host, number) else { return };
        let conn = host.connections.iter().find(|(_, other)| **other == number).map(|(conn, _)| *conn);
        if let Some(conn) = conn {
            host.connections.remove(&conn);
            host.worker.closed(conn);
            self.close(number, 1);
            self.drain_relay(relay);
        }
    }

    /// Has a machine ask a node for an answer; its round trip will be in [`Machine::echoes`].
    ///
    /// # Panics
    /// When the machine is stopped, or will not.
    pub fn echo(&mut self, machine: usize, to: NodeId, id: u64, size: usize) {
        let node = self.machines[machine].node.as_mut().expect("the machine runs");
        node.echo(to, id, size, self.now).expect("the node sends the echo");
        self.drain_machine(machine);
    }

    /// A gateway loses subnets behind it, or has them back.
    pub fn routes_down(&mut self, machine: usize, down: Vec<ipnet::IpNet>) {
        if let Some(node) = &mut self.machines[machine].node {
            node.set_routes_down(down, self.now);
        }
        self.drain_machine(machine);
    }

    /// Changes links that are there and those to come.
    pub fn set_quality(&mut self, quality: Quality) {
        self.quality = quality;
        for connection in self.connections.values_mut() {
            connection.quality = quality;
        }
    }

    /// Changes a machine's link to one relay.
    pub fn set_link(&mut self, machine: usize, relay: RelayId, quality: Quality) {
        let number = self.machines[machine].connections.get(&relay);
        if let Some(connection) = number.and_then(|number| self.connections.get_mut(number)) {
            connection.quality = quality;
        }
    }

    /// Gives a machine a new node_key; the controller spreads it.
    pub fn rotate(&mut self, machine: usize) {
        let serial = self.key_serials.entry(machine).or_default();
        *serial += 1;
        let key = Machine::make_node_key(machine, *serial);
        let created = self.now.unix.as_secs();
        let Some(node) = &mut self.machines[machine].node else { return };
        let signed = node.rotate_node_key(key.clone(), created, self.now);
        self.machines[machine].keep_node_key(key, created);
        self.machines[machine].save();
        self.controller.set_node_key(machine, &signed);
        for id in self.controller.of_machine(machine) {
            self.spread(id, CONTROL_DELAY * 2);
        }
        self.drain_machine(machine);
    }

    /// Tells everyone about a node.
    pub fn spread(&mut self, id: NodeId, delay: Duration) {
        for (machine, update) in self.controller.about(id) {
            self.later(delay, Happening::Update { machine, update: Box::new(update) });
        }
    }

    /// Sends a numbered packet from one node to another's address; the model expects it there.
    pub fn send(&mut self, from: NodeId, to: NodeId, six: bool) -> u64 {
        let destination = self.controller.members[&to].addresses[usize::from(six)];
        self.send_to(from, destination, Some(to), 1000)
    }

    /// Sends a numbered packet to any address; `expected`: where it may arrive.
    pub fn send_to(&mut self, from: NodeId, destination: IpAddr, expected: Option<NodeId>, port: u16) -> u64 {
        let source = self.controller.members[&from].addresses[usize::from(destination.is_ipv6())];
        self.send_as(from, source, destination, expected, port)
    }

    /// Sends a numbered packet with any source.
    pub fn send_as(
        &mut self,
        from: NodeId,
        source: IpAddr,
        destination: IpAddr,
        expected: Option<NodeId>,
        port: u16,
    ) -> u64 {
        self.next_packet += 1;
        let id = self.next_packet;
        let padding = (self.rng.next_u64() % 1200) as usize;
        let bytes = packet::udp(source, destination, (port, 9), id, padding);
        self.model.sent(id, bytes.clone(), from, expected);
        let machine = self.controller.members[&from].machine;
        let mut buffer = [&[0; DATA_HEADROOM], bytes.as_slice(), &[0; TAG_LEN]].concat();
        let Some(node) = &mut self.machines[machine].node else { return id };
        match node.handle_packet(&mut buffer, Checksum::Complete, self.now) {
            Outgoing::Send { target: Target::Relay { relay, via }, frame } => {
                let frame = &buffer[frame];
                let message = match via.and_then(|via| via_header(via, frame.len()).ok()) {
                    Some(header) => [header.as_slice(), frame].concat(),
                    None => frame.to_vec(),
                };
                self.transmit(machine, relay, &message);
            }
            Outgoing::Send { target: Target::Direct(place), frame } => {
                self.send_datagram(machine, place, buffer[frame].to_vec());
            }
            Outgoing::Queued | Outgoing::Dropped(_) => {}
        }
        self.drain_machine(machine);
        id
    }

    /// Hands a frame to a machine as if `relay` had delivered it now.
    pub fn inject(&mut self, machine: usize, relay: RelayId, mut frame: Vec<u8>) {
        self.deliver_to_machine(machine, relay, &mut frame);
        self.drain_machine(machine);
    }

    /// How often a machine dropped something for a reason.
    pub fn drops(&self, machine: usize, reason: DropReason) -> u64 {
        self.machines[machine].node().drops().of(reason)
    }

    /// Lets time pass.
    ///
    /// # Panics
    /// When something happens over and over without time passing.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now.instant + time;
        let mut without_time = 0;
        while let Some((next, why)) = self.next().filter(|(next, _)| *next <= end) {
            if next > self.now.instant {
                self.pass_to(next);
                without_time = 0;
            }
            without_time += 1;
            assert!(without_time < MAX_WITHOUT_TIME, "busy loop at {:?}: {why}", self.now.instant);
            self.act();
        }
        self.pass_to(end);
    }

    fn pass_to(&mut self, instant: Instant) {
        let passed = instant.saturating_since(self.now.instant);
        self.now = Now { instant: self.now.instant + passed, unix: self.now.unix + passed };
    }

    fn next(&self) -> Option<(Instant, &'static str)> {
        let queued = self.queue.keys().next().map(|(at, _)| (*at, "on its way"));
        let nodes = self.machines.iter().filter_map(|machine| machine.node.as_ref()?.poll_timeout());
        let relays = self.relays.values().filter(|host| host.up).filter_map(RelayHost::poll_timeout);
        nodes.chain(relays.map(|at| (at, "relay"))).chain(queued).min()
    }

    fn act(&mut self) {
        let now = self.now.instant;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= now) {
            let happening = entry.remove();
            self.happen(happening);
        }
        for machine in 0..self.machines.len() {
            let Some(node) = &mut self.machines[machine].node else { continue };
            if node.poll_timeout().is_some_and(|(at, _)| at <= now) {
                node.handle_timeout(self.now);
                self.drain_machine(machine);
            }
        }
        for relay in self.relays.keys().copied().collect::<Vec<_>>() {
            let Some(host) = self.relays.get_mut(&relay).filter(|host| host.up) else { continue };
            if host.poll_timeout().is_some_and(|at| at <= now) {
                host.worker.handle_timeout(host.clocks(self.now));
                self.drain_relay(relay);
            }
        }
    }

    fn later(&mut self, delay: Duration, happening: Happening) {
        self.serial += 1;
        self.queue.insert((self.now.instant + delay, self.serial), happening);
    }

    fn happen(&mut self, happening: Happening) {
        let by_controller = matches!(
            happening,
            Happening::RelayToController { .. }
                | Happening::ControllerToRelay { .. }
                | Happening::Update { .. }
                | Happening::WholeConfig { .. }
        );
        if by_controller && !self.controller_up {
            return;
        }
        match happening {
            Happening::Datagram { arrival, bytes } => self.datagram_arrives(arrival, bytes),
            Happening::Frame { connection, side, bytes } => self.frame_arrives(connection, side, bytes),
            Happening::Closed { connection, side } => self.close_arrives(connection, side),
            Happening::Dialled { machine, relay, start } => self.dialled(machine, relay, start),
            Happening::MeshDialled { from, to, token } => self.mesh_dialled(from, to, token),
            Happening::RelayToController { relay, kind, payload } => {
                self.controller_hears(relay, kind, &payload);
            }
            Happening::ControllerToRelay { relay, kind, payload } => {
                if let Some(host) = self.relays.get_mut(&relay).filter(|host| host.up) {
                    let now = host.clocks(self.now);
                    host.hub.handle_control(kind, &payload, now).expect("the controller speaks the protocol");
                    self.drain_relay(relay);
                }
            }
            Happening::Update { machine, update } => {
                if let Some(node) = &mut self.machines[machine].node {
                    if node.apply_update(*update, self.now).is_err() {
                        self.later(CONTROL_DELAY * 2, Happening::WholeConfig { machine });
                    }
                    self.drain_machine(machine);
                }
            }
            Happening::WholeConfig { machine } => {
                let config = self.controller.config(machine, self.now);
                if let Some(node) = &mut self.machines[machine].node {
                    node.apply_config(config, self.now);
                    self.machines[machine].save();
                    self.drain_machine(machine);
                }
            }
        }
    }

    /// Carries away what a machine has put out.
    pub fn drain_machine(&mut self, machine: usize) {
        let mut buffer = Vec::new();
        while let Some(target) = self.machines[machine].node.as_mut().and_then(|node| {
            buffer.clear();
            node.poll_transmit(&mut buffer)
        }) {
            match target {
                Target::Relay { relay, .. } => self.transmit(machine, relay, &buffer),
                Target::Direct(place) => self.send_datagram(machine, place, buffer.clone()),
            }
        }
        while let Some(event) =
            self.machines[machine].node.as_mut().and_then(meshdp::proto::node::Node::poll_event)
        {
            match event {
                Event::DialRelay { relay } => {
                    let start = self.machines[machine].starts;
                    let delay = self.quality.delay * 4;
                    self.later(delay, Happening::Dialled { machine, relay: relay.id, start });
                }
                Event::DropRelay { id, .. } => {
                    if let Some(connection) = self.machines[machine].connections.remove(&id) {
                        self.close(connection, 0);
                    }
                    self.machines[machine].note(event);
                }
                Event::NeedTokens => {
                    let update = Box::new(self.controller.tokens(machine, self.now));
                    self.later(CONTROL_DELAY * 2, Happening::Update { machine, update });
                }
                other => self.machines[machine].note(other),
            }
        }
    }

    fn drain_relay(&mut self, relay: RelayId) {
        let Some(host) = self.relays.get_mut(&relay).filter(|host| host.up) else { return };
        for task in host.tasks(self.now) {
            match task {
                Task::Send(conn, frame) => self.relay_sends(relay, conn, frame),
                Task::Close(conn) => {
                    let connection =
                        self.relays.get_mut(&relay).and_then(|host| host.connections.remove(&conn));
                    if let Some(connection) = connection {
                        let side = self.side_of(connection, End::Relay(relay, conn));
                        self.close(connection, side);
                    }
                }
                Task::Dial(dial) => {
                    let happening = Happening::MeshDialled { from: relay, to: dial.relay, token: dial.token };
                    self.later(self.quality.delay * 4, happening);
                }
                Task::Control(kind, payload) => {
                    self.later(CONTROL_DELAY, Happening::RelayToController { relay, kind, payload });
                }
            }
        }
    }

    fn register_relay(&mut self, relay: RelayId) {
        self.configure_relay(relay);
        if let Some(host) = self.relays.get_mut(&relay) {
            host.hub.controller_connected();
        }
        self.drain_relay(relay);
    }

    fn configure_relay(&mut self, relay: RelayId) {
        let config = self.controller.relay_config(relay, self.now);
        let happening =
            Happening::ControllerToRelay { relay, kind: FrameType::Config, payload: to_payload(&config) };
        self.later(CONTROL_DELAY, happening);
    }

    fn controller_hears(&mut self, relay: RelayId, kind: FrameType, payload: &[u8]) {
        let changed: BTreeSet<NodeId> = match kind {
            FrameType::ServerRegister => {
                let said: ServerRegister = parse(kind, payload).expect("relays speak the protocol");
                self.controller.registered(relay, &said.nodes).into_iter().collect()
            }
            FrameType::ServerNodeLoc => {
                let said: NodeLocations = parse(kind, payload).expect("relays speak the protocol");
                let (tell, changed) = self.controller.located(relay, &said);
                for other in self.relays.keys().copied().collect::<Vec<_>>() {
                    let payload = to_payload(&tell);
                    let kind = FrameType::ServerNodeLoc;
                    self.later(CONTROL_DELAY, Happening::ControllerToRelay { relay: other, kind, payload });
                }
                changed.into_iter().collect()
            }
            _ => return,
        };
        for id in changed {
            self.spread(id, CONTROL_DELAY);
        }
    }
}
