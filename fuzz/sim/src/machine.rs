//! A node and what its shell keeps for it: keys and configuration on disk, connections, what it was told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::node::{Event, Node, NodeSettings};
use meshdp::proto::time::Now;
use meshdp::proto::wire::control::PublicKey;
use meshdp::proto::wire::control::node::{AdvertisedRoute, Config};

/// Events kept for scenarios to look at.
const MAX_EVENTS: usize = 10_000;

/// See the [module](self).
pub struct Machine {
    /// `None` while it is stopped.
    pub node: Option<Node>,
    /// Connection numbers, by relay.
    pub connections: BTreeMap<RelayId, u64>,
    /// All but dialling.
    pub events: VecDeque<Event>,
    /// Round trips of echoes, by their ids.
    pub echoes: BTreeMap<u64, Duration>,
    /// Counts starts.
    pub starts: u64,
    disk: Disk,
}

/// What survives a restart.
struct Disk {
    machine_seed: [u8; 32],
    node_key: NodeKey,
    node_key_created: u64,
    previous: Option<(NodeKey, u64)>,
    config: Option<Config>,
    pins: Vec<(NodeId, PublicKey)>,
    aes: bool,
    advertised: Vec<AdvertisedRoute>,
}

impl Machine {
    /// Stopped, with keys made from `number`.
    pub fn new(number: usize, aes: bool, created: u64, advertised: Vec<AdvertisedRoute>) -> Self {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        Self {
            node: None,
            connections: BTreeMap::new(),
            events: VecDeque::new(),
            echoes: BTreeMap::new(),
            starts: 0,
            disk: Disk {
                machine_seed: seed,
                node_key: Self::make_node_key(number, 0),
                node_key_created: created,
                previous: None,
                config: None,
                pins: Vec::new(),
                aes,
                advertised,
            },
        }
    }

    /// A node_key for `number`, its `serial`th.
    ///
    /// # Panics
    /// Never: any 32 bytes are a key.
    pub fn make_node_key(number: usize, serial: u64) -> NodeKey {
        // Made once for each: they cannot be drawn from a seed, and nothing that a run does depends on their bytes.
        static KEM: Mutex<BTreeMap<(usize, u64), KemKey>> = Mutex::new(BTreeMap::new());
        let mut private = [7; 32];
        private[..8].copy_from_slice(&(number as u64).to_be_bytes());
        private[8..16].copy_from_slice(&serial.to_be_bytes());
        let mut kem = KEM.lock().expect("nobody panics with it");
        let kem = kem.entry((number, serial));
        let kem = kem.or_insert_with(|| KemKey::generate().expect("there is randomness")).clone();
        NodeKey::from_private(private).expect("any 32 bytes are an X25519 key").with_kem(kem)
    }

    /// Its identity.
    ///
    /// # Panics
    /// Never: any 32 bytes are a seed.
    pub fn machine_key(&self) -> MachineKey {
        MachineKey::from_seed(&self.disk.machine_seed).expect("any 32 bytes are an Ed25519 seed")
    }

    /// Starts it from disk.
    pub fn start(&mut self, seed: [u8; 32], now: Now) {
        let disk = &self.disk;
        let settings = NodeSettings {
            machine: self.machine_key(),
            node_key: disk.node_key.clone(),
            node_key_created: disk.node_key_created,
            previous_node_key: disk.previous.clone(),
            aes: disk.aes,
            seed,
            version: "sim".into(),
            advertised: disk.advertised.clone(),
            pins: disk.pins.clone(),
        };
        let mut node = Node::new(settings, now);
        if let Some(config) = disk.config.clone() {
            node.apply_config(config, now);
        }
        self.node = Some(node);
        self.starts += 1;
    }

    /// Writes what a shell would have written to disk.
    pub fn save(&mut self) {
        if let Some(node) = &self.node {
            self.disk.config = node.config().cloned();
            self.disk.pins = node.pins().collect();
            self.disk.previous = node.previous_node_key().map(|(key, until)| (key.clone(), until));
        }
    }

    /// Writes a new node_key to disk.
    pub fn keep_node_key(&mut self, key: NodeKey, created: u64) {
        self.disk.node_key = key;
        self.disk.node_key_created = created;
    }

    /// Notes an event that the world does not act upon.
    pub fn note(&mut self, event: Event) {
        if let Event::EchoReply { id, rtt, .. } = event {
            self.echoes.insert(id, rtt);
        }
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The running node.
    ///
    /// # Panics
    /// When it is stopped: a fault of the scenario.
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("the machine runs")
    }
}
