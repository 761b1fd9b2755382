//! What `edgelink status` shows beyond the machine's own picture.

use meshdp::proto::node::NodeStatus;
use meshdp::proto::wire::control::node::{AuthState, Endpoint, NodeState, Settings as NetworkSettings};
use tokio::time::Instant;

use super::Shared;
use crate::config::Settings;
use crate::host::Summary;
use crate::ipc::message::{
    Controller, ControllerState, Exit, Membership, OwnEndpoint, Pending, Status, rows,
};
use crate::mapping::Picture;
use crate::netcheck;

/// How things stand with the controller.
#[derive(Debug)]
pub(crate) struct View {
    started: Instant,
    url: String,
    state: ControllerState,
    since: Instant,
    message: Option<String>,
    /// From the last AUTH_RESPONSE.
    pub(crate) memberships: Vec<NodeState>,
    endpoints: Vec<Endpoint>,
    /// `None`: the router is not asked.
    mapping: Option<Picture>,
}

impl View {
    pub(crate) fn new(settings: &Settings) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            url: settings.controller.url.to_string(),
            state: ControllerState::Connecting,
            since: now,
            message: None,
            memberships: Vec::new(),
            endpoints: Vec::new(),
            mapping: None,
        }
    }

    /// Where this machine may be reached by UDP.
    pub(crate) fn reachable(&mut self, endpoints: &[Endpoint]) {
        self.endpoints = endpoints.to_vec();
    }

    /// The same, best first.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// What the router does for this machine.
    pub(crate) fn mapping(&mut self, picture: Option<Picture>) {
        self.mapping = picture;
    }

    /// Notes a new state of the control link.
    pub(crate) fn controller(&mut self, state: ControllerState, message: Option<String>) {
        if self.state != state {
            self.since = Instant::now();
        }
        self.state = state;
        // While dialling again, the reason why the last try failed is what people want to read.
        if state != ControllerState::Connecting {
            self.message = message;
        }
    }

    /// What went wrong, or what to do.
    pub(crate) fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    pub(crate) const fn state(&self) -> ControllerState {
        self.state
    }
}

/// Everything together.
pub(crate) fn status(shared: &Shared, node: &NodeStatus, host: Summary) -> Status {
    let view = shared.view.borrow();
    let identity = shared.identity.borrow();
    let (peers, relays) = rows(node);
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_s: view.started.elapsed().as_secs_f64(),
        interface: shared.settings.interface.clone(),
        // Before the first configuration the machine knows of none.
        mtu: if node.mtu == 0 {
            shared.settings.mtu.unwrap_or(NetworkSettings::default().mtu)
        } else {
            node.mtu
        },
        driver: shared.data.driver().to_owned(),
        hostname: shared.settings.hostname.clone(),
        machine_key: node.machine_key.to_string(),
        node_key: identity.keys.node().public().to_string(),
        node_key_created: identity.keys.created(),
        controller: Controller {
            url: view.url.clone(),
            state: view.state,
            since_s: view.since.elapsed().as_secs_f64(),
            message: view.message.clone(),
        },
        proxy: shared.settings.proxies.proxy.as_ref().map(ToString::to_string),
        config_version: node.config_version,
        memberships: node
            .memberships
            .iter()
            .map(|membership| Membership {
                node_id: membership.node_id,
                name: membership.name.clone(),
                network: membership.network.clone(),
                addresses: membership.addresses.clone(),
            })
            .collect(),
        pending: pending(&view),
        peers,
        relays,
        routes: host.subnets,
        routes_down: host.down,
        exit: host.exit.map(|(name, routes)| Exit { name, routes }),
        endpoints: view
            .endpoints
            .iter()
            .map(|endpoint| OwnEndpoint { kind: endpoint.kind.clone(), address: endpoint.address })
            .collect(),
        nat: node.nat.to_string(),
        nat_class: node.nat.mapping.map(|_| netcheck::class_name(node.nat.class()).to_owned()),
        reach: netcheck::reach(
            node.nat,
            view.mapping.as_ref().is_some_and(|picture| !picture.mapped.is_empty()),
        ),
        port_mapping: view.mapping.clone(),
        drops: node.drops.iter().map(|(&reason, &count)| (reason.to_owned(), count)).collect(),
    }
}

/// What only the controller's answer names.
fn pending(view: &View) -> Vec<Pending> {
    let waiting = view.memberships.iter().filter(|membership| membership.state == AuthState::Pending);
    waiting
        .map(|membership| Pending { node_id: membership.node_id, network: membership.network.clone() })
        .collect()
}
