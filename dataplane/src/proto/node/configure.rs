//! Configurations and deltas (`docs/protocol.md` §3.2, §3.3), and what they mean for memberships, peers, keys, routes and relays.
//!
//! A delta is merged into the configuration, which the shell keeps on disk, and applied to what it touches. Keys are believed only when they verify: a
//! controller can leave a peer without a session, never put another machine in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;

use super::api::{Event, ExitStatus, NeedResync, SubnetRoute};
use super::connection::Connection;
use super::endpoint::candidate_of;
use super::peer::Peer;
use super::relay_link::RENEW_TOKEN;
use super::timer::Timer;
use super::{Membership, Node};
use crate::proto::id::{NodeId, RelayId};
use crate::proto::routing::exit::{self, is_wide};
use crate::proto::routing::source::AllowedAddresses;
use crate::proto::routing::table::{Gateway, PeerKey};
use crate::proto::time::Now;
use crate::proto::wire::control::Secret;
use crate::proto::wire::control::node::{self, Change, Config, ConfigUpdate, Relay};

impl Node {
    /// Takes a whole configuration: from the controller, or at start from disk.
    pub fn apply_config(&mut self, config: Config, now: Now) {
        let before = self.config.take().map(|config| config.settings);
        if before.as_ref().map(|settings| settings.mtu) != Some(config.settings.mtu) {
            self.outbox.events.push_back(Event::MtuChanged { mtu: config.settings.mtu });
        }
        let accepted = self.accept_memberships(&config);
        let gone: Vec<_> = self.memberships.keys().filter(|id| !accepted.contains(id)).copied().collect();
        for id in gone {
            self.remove_membership(id, "no longer in the configuration");
        }
        let joined = accepted.iter().any(|id| !self.memberships.contains_key(id));
        for membership in config.memberships.iter().filter(|m| accepted.contains(&m.node_id)) {
            self.set_membership(membership, now);
        }
        let gone: Vec<_> = self
            .relays
            .keys()
            .filter(|id| config.relays.iter().all(|relay| relay.id != **id))
            .copied()
            .collect();
        for id in gone {
            self.remove_relay(id, now);
        }
        for relay in &config.relays {
            self.set_relay(relay, now);
        }
        self.config = Some(config);
        self.settings_changed(now);
        self.after_change();
        self.ask_servers(now);
        if joined {
            self.wake_relays(now);
        }
        self.relays_due(now);
    }

    /// Takes a delta.
    ///
    /// # Errors
    /// [`NeedResync`] when it builds on another version than the node has; nothing is changed then.
    pub fn apply_update(&mut self, update: ConfigUpdate, now: Now) -> Result<(), NeedResync> {
        let have = self.version();
        let versioned = update.base != update.version;
        let Some(config) = self.config.as_mut().filter(|_| !versioned || update.base == have) else {
            return Err(NeedResync { have, base: update.base });
        };
        if versioned {
            config.version = update.version;
        }
        let mut whole = false;
        for change in &update.changes {
            whole |= merge(config, change);
        }
        if whole {
            if let Some(config) = self.config.clone() {
                self.apply_config(config, now);
            }
            return Ok(());
        }
        for change in update.changes {
            self.apply_change(change, now);
        }
        self.after_change();
        Ok(())
    }

    /// What is left of a change after it has been merged into the configuration.
    fn apply_change(&mut self, change: Change, now: Now) {
        match change {
            Change::PeerSet { node_id, peer } => {
                let new = self.directory.key_of(peer.node_id).is_none();
                if self.memberships.contains_key(&node_id) {
                    self.set_peer(node_id, &peer, now);
                }
                if new {
                    self.set_routes(node_id);
                }
            }
            Change::PeerRemove { node_id, peer_id } => {
                if let Some(key) = self.peer_of(node_id, peer_id) {
                    self.remove_peer(key);
                }
            }
            Change::RouteSet { node_id, .. } | Change::RouteRemove { node_id, .. } => {
                self.set_routes(node_id);
            }
            Change::RelaySet { relay } => {
                self.set_relay(&relay, now);
                self.ask_servers(now);
                self.relays_due(now);
            }
            Change::RelayRemove { relay_id } => self.remove_relay(relay_id, now),
            Change::TokenSet { node_id, relay_token, relay_token_expires } => {
                self.set_token(node_id, relay_token, relay_token_expires, now);
            }
            // These make it a whole configuration, see `merge`.
            Change::MembershipSet { .. } | Change::MembershipRemove { .. } | Change::SettingsSet { .. } => {}
        }
    }

    /// Which memberships can be had at the same time: the networks on one machine must not overlap. Those that are had already come first.
    fn accept_memberships(&mut self, config: &Config) -> BTreeSet<NodeId> {
        let mut ordered: Vec<_> = config.memberships.iter().collect();
        ordered.sort_by_key(|membership| !self.memberships.contains_key(&membership.node_id));
        let mut accepted: Vec<&node::Membership> = Vec::new();
        for membership in ordered {
            match accepted.iter().find(|other| overlap(other, membership)) {
                None => accepted.push(membership),
                Some(other) => self.outbox.events.push_back(Event::NetworkRefused {
                    network: membership.network.name.clone(),
                    other: other.network.name.clone(),
                }),
            }
        }
        accepted.into_iter().map(|membership| membership.node_id).collect()
    }

    fn set_membership(&mut self, membership: &node::Membership, now: Now) {
        let id = membership.node_id;
        let same = self.memberships.get(&id).is_some_and(|known| {
            known.addresses == membership.addresses && known.network == membership.network.id
        });
        if !same {
            if self.memberships.contains_key(&id) {
                self.remove_membership(id, "its addresses changed");
            }
            self.memberships.insert(id, self.new_membership(membership));
            self.outbox.events.push_back(Event::MembershipAdded {
                node: id,
                network: membership.network.id,
                name: membership.network.name.clone(),
                addresses: membership.addresses.clone(),
            });
            let relays: Vec<_> = self.relays.keys().copied().collect();
            for relay in relays {
                self.sign_in(relay, now);
            }
        }
        self.set_token(id, membership.relay_token.clone(), membership.relay_token_expires, now);
        let gone: Vec<_> = self
            .directory
            .iter()
            .filter(|peer| peer.own == id && membership.peers.iter().all(|p| p.node_id != peer.id))
            .filter_map(|peer| self.directory.key_of(peer.id))
            .collect();
        for key in gone {
            self.remove_peer(key);
        }
        for peer in &membership.peers {
            self.set_peer(id, peer, now);
        }
        self.replace_routes(id, &membership.routes);
    }

    fn new_membership(&self, membership: &node::Membership) -> Membership {
        Membership {
            name: membership.name.clone(),
            network: membership.network.id,
            network_name: membership.network.name.clone(),
            addresses: membership.addresses.clone(),
            token: membership.relay_token.clone(),
            token_expires: membership.relay_token_expires,
            accepts: self.accepts(membership.node_id, &membership.addresses, &membership.routes),
        }
    }

    /// Own addresses, what this machine offers, and what the controller has enabled of it.
    fn accepts(&self, own: NodeId, addresses: &[IpNet], routes: &[node::Route]) -> AllowedAddresses {
        let enabled = routes.iter().filter(|route| route.node_id == own && route.enabled).map(|r| r.cidr);
        // What is wide waits for the operator's word.
        let offered = self.advertised.iter().map(|route| route.cidr).filter(|net| !is_wide(*net));
        AllowedAddresses::new(addresses.iter().map(IpNet::addr), enabled.chain(offered))
    }

    fn remove_membership(&mut self, id: NodeId, reason: &str) {
        let Some(membership) = self.memberships.remove(&id) else { return };
        let peers: Vec<_> = self
            .directory
            .iter()
            .filter(|peer| peer.own == id)
            .filter_map(|peer| self.directory.key_of(peer.id))
            .collect();
        for key in peers {
            self.remove_peer(key);
        }
        for connection in self.relays.values_mut() {
            connection.refused.remove(&id);
            if let Some(open) = connection.opened_mut() {
                open.asked.remove(&id);
                open.ready.remove(&id);
            }
        }
        self.outbox.events.push_back(Event::MembershipRemoved {
            node: id,
            network: membership.network,
            name: membership.network_name,
            addresses: membership.addresses,
            reason: reason.to_owned(),
        });
    }

    fn set_token(&mut self, own: NodeId, token: Secret, expires: u64, now: Now) {
        let Some(membership) = self.memberships.get_mut(&own) else { return };
        membership.token_expires = expires;
        if membership.token != token {
            membership.token = token;
            self.show_token(own, now);
        }
        self.watch_tokens(now);
    }

    /// Sets the timer that asks for tokens before the first one runs out.
    fn watch_tokens(&mut self, now: Now) {
        let Some(first) = self.memberships.values().map(|membership| membership.token_expires).min() else {
            self.timers.clear(Timer::Tokens);
            return;
        };
        let left = Duration::from_secs(first.saturating_sub(now.unix.as_secs()));
        self.timers.set(Timer::Tokens, now.instant + left.saturating_sub(RENEW_TOKEN));
    }

    fn peer_of(&self, own: NodeId, peer: NodeId) -> Option<PeerKey> {
        let key = self.directory.key_of(peer)?;
        self.directory.get(key).filter(|peer| peer.own == own).map(|_| key)
    }

    fn set_peer(&mut self, own: NodeId, info: &node::Peer, now: Now) {
        if self.memberships.contains_key(&info.node_id) {
            return;
        }
        let key = match self.directory.key_of(info.node_id) {
            Some(key) if self.directory.get(key).is_some_and(|peer| peer.own == own) => key,
            // The same id in two networks: ids are unique, so the first one stays.
            Some(_) => return,
            None => self.directory.insert(Peer::new(info.node_id, own, now.instant)),
        };
        let Some(peer) = self.directory.get_mut(key) else { return };
        let before = std::mem::take(&mut peer.addresses);
        peer.describe(info);
        peer.direct.announced(info.endpoints.iter().filter_map(candidate_of));
        for address in before.iter().filter(|address| !info.addresses.contains(address)) {
            self.directory.routes.remove(IpNet::from(*address), key);
        }
        for address in &info.addresses {
            let gateway = Gateway::own_address(key, info.node_id);
            self.directory.routes.insert(IpNet::from(*address), gateway);
        }
        self.set_keys(key, info, now);
        self.refresh_path(key, now.instant);
    }

    fn remove_peer(&mut self, key: PeerKey) {
        self.forget_sessions(key);
        self.timers.clear(Timer::Peer(key));
        let Some(peer) = self.directory.remove(key) else { return };
        let hosts = peer.addresses.iter().map(|address| IpNet::from(*address));
        for net in hosts.chain(peer.routes.iter().copied()) {
            self.directory.routes.remove(net, key);
        }
    }

    /// Brings a membership's routes in line with the configuration.
    fn set_routes(&mut self, own: NodeId) {
        let membership =
            self.config.as_ref().and_then(|config| config.memberships.iter().find(|m| m.node_id == own));
        if let Some(routes) = membership.map(|membership| membership.routes.clone()) {
            self.replace_routes(own, &routes);
        }
    }

    fn replace_routes(&mut self, own: NodeId, routes: &[node::Route]) {
        let Some(addresses) = self.memberships.get(&own).map(|m| m.addresses.clone()) else { return };
        let accepts = self.accepts(own, &addresses, routes);
        if let Some(membership) = self.memberships.get_mut(&own) {
            membership.accepts = accepts;
        }
        let mut by_gateway: BTreeMap<NodeId, Vec<&node::Route>> = BTreeMap::new();
        let exit = self.exit.node;
        let used =
            |route: &&node::Route| route.enabled && (!is_wide(route.cidr) || exit == Some(route.node_id));
        for route in routes.iter().filter(used) {
            by_gateway.entry(route.node_id).or_default().push(route);
        }
        for key in self.directory.keys() {
            let Some(peer) = self.directory.get_mut(key).filter(|peer| peer.own == own) else { continue };
            let id = peer.id;
            let mine = by_gateway.remove(&id).unwrap_or_default();
            if mine.is_empty() && peer.routes.is_empty() {
                continue;
            }
            let nets: Vec<_> = mine.iter().map(|route| route.cidr.trunc()).collect();
            let before = std::mem::replace(&mut peer.routes, nets.clone());
            let reached: Vec<_> = nets.iter().filter(|net| peer.watch.reaches(**net)).copied().collect();
            peer.allow();
            let hosts: Vec<_> = peer.addresses.iter().map(|address| IpNet::from(*address)).collect();
            for net in before.into_iter().filter(|net| !nets.contains(net) && !hosts.contains(net)) {
                self.directory.routes.remove(net, key);
            }
            for route in mine.into_iter().filter(|route| !hosts.contains(&route.cidr.trunc())) {
                let gateway = Gateway {
                    peer: key,
                    node: id,
                    priority: route.priority,
                    weight: route.weight,
                    up: reached.contains(&route.cidr.trunc()),
                    own: false,
                };
                self.directory.routes.insert(route.cidr, gateway);
            }
        }
    }

    fn set_relay(&mut self, relay: &Relay, now: Now) {
        if relay.data_url.is_none() {
            self.remove_relay(relay.id, now);
            return;
        }
        if let Some(known) = self.relays.get_mut(&relay.id) {
            let addresses =
                |relay: &Relay| (relay.data_url.clone(), relay.more_urls.clone(), relay.tls_pin.clone());
            let same = addresses(&known.info) == addresses(relay);
            if same {
                known.info.clone_from(relay);
                return;
            }
            self.remove_relay(relay.id, now);
        }
        self.relays.insert(relay.id, Connection::new(relay.clone(), now.instant));
    }

    fn remove_relay(&mut self, id: RelayId, now: Now) {
        if self.relays.contains_key(&id) {
            self.drop_relay(id, "no longer in the configuration", now);
            self.relays.remove(&id);
        }
    }

    fn settings_changed(&mut self, now: Now) {
        let interval = self.measurement_interval();
        for connection in self.relays.values_mut() {
            if let Some(open) = connection.opened_mut() {
                open.liveness.set_interval(interval);
            }
        }
        let report = self.config.as_ref().map_or(30, |config| config.settings.latency_report_s);
        self.timers.set(Timer::Latency, now.instant + Duration::from_secs(report.max(1)));
    }

    /// Chooses the exit: the peer that the user has named, by name, `name.network`, address or id. None: wide routes are used from nobody.
    pub fn set_exit(&mut self, wanted: Option<String>) {
        self.exit.wanted = wanted;
        self.after_change();
    }

    /// Whom the user means; nobody when that could be two.
    fn find_exit(&self) -> Option<NodeId> {
        let wanted = self.exit.wanted.as_deref()?;
        let config = self.config.as_ref()?;
        let joined = config.memberships.iter().filter(|m| self.memberships.contains_key(&m.node_id));
        let mut named = joined.flat_map(|membership| {
            let network = membership.network.name.as_str();
            membership.peers.iter().filter(move |peer| exit::names(wanted, peer, network))
        });
        let first = named.next()?;
        named.all(|other| other.node_id == first.node_id).then_some(first.node_id)
    }

    /// What there is of the exit.
    fn exit_status(&self) -> Option<ExitStatus> {
        let peer = self.directory.get(self.directory.key_of(self.exit.node?)?)?;
        let routes = peer.routes.iter().copied().filter(|net| is_wide(*net)).collect();
        Some(ExitStatus { node_id: peer.id, own: peer.own, name: peer.name.clone(), routes })
    }

    /// Tells the subnets to route when they are others than before, and the exit.
    fn after_change(&mut self) {
        let exit = self.find_exit();
        if std::mem::replace(&mut self.exit.node, exit) != exit {
            for own in self.memberships.keys().copied().collect::<Vec<_>>() {
                self.set_routes(own);
            }
        }
        let exit = self.exit_status();
        if exit != self.exit.told {
            self.exit.told.clone_from(&exit);
            self.outbox.events.push_back(Event::ExitChanged { exit });
        }
        let mut routes: Vec<_> = self
            .directory
            .iter()
            .flat_map(|peer| peer.routes.iter().map(|net| SubnetRoute { net: *net, own: peer.own }))
            .filter(|route| !is_wide(route.net))
            .collect();
        routes.sort_unstable();
        // In two networks: the one joined first.
        routes.dedup_by_key(|route| route.net);
        if routes != self.routes {
            self.routes.clone_from(&routes);
            self.outbox.events.push_back(Event::RoutesChanged { routes });
        }
    }
}

/// Writes a change into the configuration; true when it is better applied as a whole.
fn merge(config: &mut Config, change: &Change) -> bool {
    let membership =
        |config: &'_ mut Config, id: NodeId| config.memberships.iter().position(|m| m.node_id == id);
    match change {
        Change::PeerSet { node_id, peer } => {
            if let Some(at) = membership(config, *node_id) {
                set_by(&mut config.memberships[at].peers, (**peer).clone(), |peer| peer.node_id);
            }
        }
        Change::PeerRemove { node_id, peer_id } => {
            if let Some(at) = membership(config, *node_id) {
                config.memberships[at].peers.retain(|peer| peer.node_id != *peer_id);
            }
        }
        Change::RouteSet { node_id, route } => {
            if let Some(at) = membership(config, *node_id) {
                set_by(&mut config.memberships[at].routes, route.clone(), |route| route.id);
            }
        }
        Change::RouteRemove { node_id, route_id } => {
            if let Some(at) = membership(config, *node_id) {
                config.memberships[at].routes.retain(|route| route.id != *route_id);
            }
        }
        Change::RelaySet { relay } => set_by(&mut config.relays, relay.clone(), |relay| relay.id),
        Change::RelayRemove { relay_id } => config.relays.retain(|relay| relay.id != *relay_id),
        Change::TokenSet { node_id, relay_token, relay_token_expires } => {
            if let Some(at) = membership(config, *node_id) {
                config.memberships[at].relay_token.clone_from(relay_token);
                config.memberships[at].relay_token_expires = *relay_token_expires;
            }
        }
        Change::MembershipSet { membership } => {
            set_by(&mut config.memberships, (**membership).clone(), |membership| membership.node_id);
            return true;
        }
        Change::MembershipRemove { node_id, .. } => {
            config.memberships.retain(|membership| membership.node_id != *node_id);
            return true;
        }
        Change::SettingsSet { settings } => {
            config.settings = settings.clone();
            return true;
        }
    }
    false
}

/// Replaces the element with the same id, or appends.
fn set_by<T, I: PartialEq>(list: &mut Vec<T>, new: T, id: impl Fn(&T) -> I) {
    match list.iter_mut().find(|old| id(old) == id(&new)) {
        Some(old) => *old = new,
        None => list.push(new),
    }
}

/// Whether two networks have an address in common.
fn overlap(one: &node::Membership, other: &node::Membership) -> bool {
    let nets = |membership: &node::Membership| -> Vec<IpNet> {
        let subnets = [membership.network.subnet4, membership.network.subnet6].into_iter().flatten();
        subnets.chain(membership.addresses.iter().copied()).map(|net| net.trunc()).collect()
    };
    let others = nets(other);
    nets(one).iter().any(|a| others.iter().any(|b| a.contains(b) || b.contains(a)))
}
