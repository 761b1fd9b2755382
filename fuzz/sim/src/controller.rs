//! A controller that does just what the protocol asks of one: ids, addresses, tokens, configurations and deltas. No sign-in, no database.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use meshdp::proto::id::{NetworkId, NodeId, RelayId, RouteId};
use meshdp::proto::time::Now;
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{MeshSubject, RelaySubject, Subject, Token};
use meshdp::proto::wire::control::node::{
    Change, Config, ConfigUpdate, Membership, Network, Paths, Peer, Relay, Route, Settings, SignedNodeKey,
};
use meshdp::proto::wire::control::server::{
    MeshPeer, NodeLocation, NodeLocations, Revocations, ServerConfig, ServerSettings, TokenKeys,
};
use meshdp::proto::wire::control::{PublicKey, Secret};

/// A membership, as the controller knows it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which machine.
    pub machine: usize,
    /// Which network.
    pub network: NetworkId,
    /// IPv4 and IPv6.
    pub addresses: [IpAddr; 2],
    /// Of the machine.
    pub machine_key: PublicKey,
    /// Of the machine.
    pub node_key: SignedNodeKey,
    /// Where it is connected.
    pub relays: BTreeSet<RelayId>,
}

/// See the [module](self).
pub struct Controller {
    signer: TokenSigner,
    /// All memberships.
    pub members: BTreeMap<NodeId, Member>,
    /// All relays.
    pub relays: BTreeSet<RelayId>,
    /// STUN servers, by relay.
    pub stun: BTreeMap<RelayId, std::net::SocketAddr>,
    /// Subnet routes.
    pub routes: BTreeMap<NodeId, Vec<Route>>,
    /// Best paths by (from, to), when a scenario sets some.
    pub paths: BTreeMap<(NodeId, NodeId), Paths>,
    /// Networks by id, with their second octet.
    networks: BTreeMap<NetworkId, u8>,
    version: u64,
    serial: u64,
    /// For nodes.
    pub settings: Settings,
}

impl Default for Controller {
    /// # Panics
    /// Never: any 32 bytes are a seed.
    fn default() -> Self {
        Self {
            signer: TokenSigner::eddsa("k1", &[42; 32]).expect("any 32 bytes are a seed"),
            members: BTreeMap::new(),
            relays: BTreeSet::new(),
            stun: BTreeMap::new(),
            routes: BTreeMap::new(),
            paths: BTreeMap::new(),
            networks: BTreeMap::new(),
            version: 1,
            serial: 0,
            settings: Settings::default(),
        }
    }
}

impl Controller {
    /// A network 10.`octet`.0.0/16.
    pub fn add_network(&mut self, octet: u8) -> NetworkId {
        let id = NetworkId(self.networks.len() as u32 + 1);
        self.networks.insert(id, octet);
        id
    }

    /// A machine joins a network.
    pub fn join(
        &mut self,
        machine: usize,
        network: NetworkId,
        key: PublicKey,
        node_key: SignedNodeKey,
    ) -> NodeId {
        let id = NodeId(self.members.len() as u32 + 1);
        let octet = self.networks.get(&network).copied().unwrap_or_default();
        let addresses = [
            IpAddr::from(Ipv4Addr::new(10, octet, 0, id.0 as u8)),
            IpAddr::from(Ipv6Addr::new(0xfd12, 0x3456, 0x789a, u16::from(octet), 0, 0, 0, id.0 as u16)),
        ];
        let member =
            Member { machine, network, addresses, machine_key: key, node_key, relays: BTreeSet::new() };
        self.members.insert(id, member);
        self.version += 1;
        id
    }

    /// Memberships of a machine.
    pub fn of_machine(&self, machine: usize) -> Vec<NodeId> {
        self.members.iter().filter(|(_, member)| member.machine == machine).map(|(id, _)| *id).collect()
    }

    fn token<S: Subject>(&mut self, subject: S, life: u64, now: Now) -> String {
        self.serial += 1;
        let iat = now.unix.as_secs();
        let token =
            Token { subject, jti: format!("t{}", self.serial), iat, exp: iat + life, not_after: None };
        self.signer.sign(&token).expect("Ed25519 signs anything")
    }

    fn relay_token(&mut self, node_id: NodeId, network_id: NetworkId, now: Now) -> (Secret, u64) {
        let subject = RelaySubject { node_id, network_id, ..RelaySubject::default() };
        (self.token(subject, 5400, now).into(), now.unix.as_secs() + 5400)
    }

    /// A peer as `from` sees it.
    pub fn peer(&self, from: NodeId, id: NodeId) -> Option<Peer> {
        let member = self.members.get(&id)?;
        Some(Peer {
            node_id: id,
            name: format!("node-{id}"),
            machine_key: member.machine_key,
            node_key: Some(member.node_key.clone()),
            addresses: member.addresses.to_vec(),
            online: true,
            relays: member.relays.iter().copied().collect(),
            path: self.paths.get(&(from, id)).cloned().unwrap_or_default(),
            endpoints: Vec::new(),
        })
    }

    /// The configuration of a machine, with fresh tokens.
    pub fn config(&mut self, machine: usize, now: Now) -> Config {
        let memberships =
            self.of_machine(machine).into_iter().filter_map(|id| self.membership(id, now)).collect();
        let relays = self
            .relays
            .iter()
            .map(|id| Relay {
                id: *id,
                name: format!("relay-{id}"),
                region: String::new(),
                data_url: Some(format!("wss://relay-{id}.example/ws/data")),
                more_urls: Vec::new(),
                tls_pin: None,
                stun: self.stun.get(id).copied(),
            })
            .collect();
        Config { version: self.version, memberships, relays, settings: self.settings.clone() }
    }

    fn membership(&mut self, id: NodeId, now: Now) -> Option<Membership> {
        let member = self.members.get(&id)?.clone();
        let octet = self.networks.get(&member.network).copied()?;
        let subnet4 = IpNet::new(Ipv4Addr::new(10, octet, 0, 0).into(), 16).ok();
        let subnet6 =
            IpNet::new(Ipv6Addr::new(0xfd12, 0x3456, 0x789a, u16::from(octet), 0, 0, 0, 0).into(), 64).ok();
        let lengths = [16, 64];
        let addresses =
            member.addresses.iter().zip(lengths).filter_map(|(a, l)| IpNet::new(*a, l).ok()).collect();
        let others: Vec<_> = self
            .members
            .iter()
            .filter(|(other, info)| **other != id && info.network == member.network)
            .map(|(other, _)| *other)
            .collect();
        let routes = others
            .iter()
            .chain([&id])
            .flat_map(|other| self.routes.get(other).cloned().unwrap_or_default())
            .collect();
        let peers = others.into_iter().filter_map(|other| self.peer(id, other)).collect();
        let (relay_token, relay_token_expires) = self.relay_token(id, member.network, now);
        Some(Membership {
            node_id: id,
            name: format!("node-{id}"),
            network: Network { id: member.network, name: format!("net-{octet}"), subnet4, subnet6 },
            addresses,
            relay_token,
            relay_token_expires,
            peers,
            routes,
        })
    }

    /// Fresh tokens for a machine.
    pub fn tokens(&mut self, machine: usize, now: Now) -> ConfigUpdate {
        let mut changes = Vec::new();
        for node_id in self.of_machine(machine) {
            if let Some(network) = self.members.get(&node_id).map(|member| member.network) {
                let (relay_token, relay_token_expires) = self.relay_token(node_id, network, now);
                changes.push(Change::TokenSet { node_id, relay_token, relay_token_expires });
            }
        }
        ConfigUpdate { version: self.version, base: self.version, changes }
    }

    /// What the others are told when something about `id` changed: the delta per machine. Not versioned, as everyone gets it here.
    pub fn about(&self, id: NodeId) -> Vec<(usize, ConfigUpdate)> {
        let Some(subject) = self.members.get(&id) else { return Vec::new() };
        let others = self.members.iter().filter(|(other, m)| **other != id && m.network == subject.network);
        others
            .filter_map(|(other, member)| {
                let peer = Box::new(self.peer(*other, id)?);
                let changes = vec![Change::PeerSet { node_id: *other, peer }];
                let update = ConfigUpdate { version: self.version, base: self.version, changes };
                Some((member.machine, update))
            })
            .collect()
    }

    /// A route behind a node.
    pub fn add_route(&mut self, node_id: NodeId, cidr: IpNet, priority: u16, weight: u16) {
        let count: usize = self.routes.values().map(Vec::len).sum();
        let route = Route { id: RouteId(count as u32 + 1), node_id, cidr, priority, weight, enabled: true };
        self.routes.entry(node_id).or_default().push(route);
        self.version += 1;
    }

    /// A machine has a new node_key.
    pub fn set_node_key(&mut self, machine: usize, key: &SignedNodeKey) {
        for member in self.members.values_mut().filter(|member| member.machine == machine) {
            member.node_key = key.clone();
        }
    }

    /// The configuration of a relay.
    pub fn relay_config(&mut self, id: RelayId, now: Now) -> ServerConfig {
        let others: Vec<_> = self.relays.iter().copied().filter(|other| *other != id).collect();
        let relays = others
            .into_iter()
            .map(|other| {
                let mesh_token = self.token(MeshSubject { server_id: id, peer_id: other }, 86_400 * 30, now);
                MeshPeer {
                    id: other,
                    name: format!("relay-{other}"),
                    mesh_url: Some(format!("wss://relay-{other}.example/ws/mesh")),
                    tls_pin: None,
                    mesh_token: Some(mesh_token.into()),
                }
            })
            .collect();
        ServerConfig {
            version: self.version,
            relay_id: id,
            server_time: now.unix.as_secs(),
            token_keys: TokenKeys {
                algorithm: self.signer.algorithm(),
                keys: vec![self.signer.verification_key()],
            },
            relays,
            nodes: self.members.keys().filter_map(|node| self.location(*node)).collect(),
            revocations: Revocations::default(),
            settings: ServerSettings::default(),
        }
    }

    fn location(&self, node_id: NodeId) -> Option<NodeLocation> {
        let member = self.members.get(&node_id)?;
        Some(NodeLocation {
            node_id,
            network_id: member.network,
            relays: member.relays.iter().copied().collect(),
        })
    }

    /// A relay says who came and went; what the others are to be told.
    pub fn located(&mut self, relay: RelayId, said: &NodeLocations) -> (NodeLocations, Vec<NodeId>) {
        for node in &said.connected {
            if let Some(member) = self.members.get_mut(node) {
                member.relays.insert(relay);
            }
        }
        for node in &said.disconnected {
            if let Some(member) = self.members.get_mut(node) {
                member.relays.remove(&relay);
            }
        }
        let changed: Vec<_> = said.connected.iter().chain(&said.disconnected).copied().collect();
        let set = changed.iter().filter_map(|node| self.location(*node)).collect();
        (NodeLocations { set, ..NodeLocations::default() }, changed)
    }

    /// A relay registers: exactly `nodes` are connected to it.
    pub fn registered(&mut self, relay: RelayId, nodes: &[NodeId]) -> Vec<NodeId> {
        let mut changed = Vec::new();
        for (id, member) in &mut self.members {
            let here = nodes.contains(id);
            let moved = if here { member.relays.insert(relay) } else { member.relays.remove(&relay) };
            if moved {
                changed.push(*id);
            }
        }
        changed
    }
}
