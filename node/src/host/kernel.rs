//! Reads and writes the kernel's routes and rules over rtnetlink, and hears of changes.
//!
//! What is ours is recognised by table, priority and [`PROTOCOL`]; nothing is kept in memory, so what somebody else has removed comes back with the next
//! change, and what a killed daemon left goes with the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use futures_util::stream::StreamExt as _;
use ipnet::IpNet;
use meshdp::engine::socket::OWN_TRAFFIC;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

use super::plan::{
    DEVICE_METRIC, MAIN, Numbers, PRIORITIES, Plan, Route, Rule, THROW_METRIC, To, UNREACHABLE_METRIC, is_six,
};

/// Marks our routes in `ip route` (an unassigned number; see /etc/iproute2/rt_protos).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0xE1);
/// The kernel's table of own addresses.
const LOCAL: u32 = 255;

/// The kernel of the current network namespace.
#[derive(Clone)]
pub(super) struct Kernel {
    netlink: Handle,
}

/// All of its routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Ours.
    ours: Vec<(Route, RouteMessage)>,
    /// Those of the main and the local table.
    pub(super) others: Vec<Other>,
}

/// A route that is not ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Other {
    pub(super) net: IpNet,
    /// Out of this interface.
    pub(super) interface: u32,
    /// To this machine itself.
    pub(super) local: bool,
    /// Whether the interface has a carrier.
    pub(super) live: bool,
    pub(super) metric: u32,
}

impl Kernel {
    /// In a tokio runtime. The second value changes with links, addresses and routes.
    pub(super) fn open() -> anyhow::Result<(Self, watch::Receiver<u64>)> {
        let (connection, netlink, _) =
            rtnetlink::new_connection().context("cannot talk to the kernel over netlink")?;
        tokio::spawn(connection);
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (told, changes) = watch::channel(0);
        let (connection, _, mut news) = rtnetlink::new_multicast_connection(&groups)
            .context("cannot listen to the kernel over netlink")?;
        tokio::spawn(connection);
        tokio::spawn(async move {
            while news.next().await.is_some() {
                told.send_modify(|count| *count += 1);
            }
        });
        Ok((Self { netlink }, changes))
    }

    /// All routes, ours by `numbers`; `index`: of our interface, if it is there.
    pub(super) async fn routes(&self, numbers: Numbers, index: Option<u32>) -> anyhow::Result<Routes> {
        let mut routes = Routes::default();
        for message in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut all = self.netlink.route().get(message).execute();
            while let Some(message) = all.try_next().await.context("cannot list routes")? {
                let Some(seen) = Seen::of(&message) else { continue };
                if seen.table == numbers.subnets || seen.table == numbers.exit {
                    routes.ours.push((seen.ours(index), message));
                } else if let Some(other) = seen.other() {
                    routes.others.push(other);
                }
            }
        }
        Ok(routes)
    }

    /// Names and carriers of interfaces, by number.
    pub(super) async fn links(&self) -> anyhow::Result<BTreeMap<u32, String>> {
        let mut links = BTreeMap::new();
        let mut all = self.netlink.link().get().execute();
        while let Some(message) = all.try_next().await.context("cannot list interfaces")? {
            let name = message.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            links.extend(name.map(|name| (message.header.index, name)));
        }
        Ok(links)
    }

    /// Makes rules and routes of ours what `plan` says; `index` is the interface's. Says what did not work and goes on.
    pub(super) async fn apply(
        &self,
        numbers: Numbers,
        plan: &Plan,
        present: &Routes,
        index: Option<u32>,
    ) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        let rules = match self.rules(numbers).await {
            Ok(rules) => rules,
            Err(error) => return vec![error],
        };
        for (_, message) in
            rules.iter().filter(|(rule, _)| rule.is_none_or(|rule| !plan.rules.contains(&rule)))
        {
            if let Err(error) = self.netlink.rule().del(message.clone()).execute().await {
                errors.push(anyhow::anyhow!("cannot remove a rule: {error}"));
            }
        }
        for (route, message) in present.ours.iter().filter(|(route, _)| !plan.routes.contains(route)) {
            if let Err(error) = self.netlink.route().del(message.clone()).execute().await {
                errors.push(anyhow::anyhow!("cannot remove the route to {}: {error}", route.net));
            } else {
                tracing::info!(route = %route.net, to = ?route.to, "removed route");
            }
        }
        let there: BTreeSet<Route> = present.ours.iter().map(|(route, _)| *route).collect();
        // What leads nowhere first: nothing gets out in between.
        for route in plan.routes.difference(&there).collect::<Vec<_>>().into_iter().rev() {
            match self.netlink.route().add(message_of(route, index)).execute().await {
                Ok(()) => tracing::info!(route = %route.net, to = ?route.to, "added route"),
                Err(error) => errors.push(anyhow::anyhow!("cannot add the route to {}: {error}", route.net)),
            }
        }
        let there: BTreeSet<Rule> = rules.iter().filter_map(|(rule, _)| *rule).collect();
        for rule in plan.rules.difference(&there) {
            let mut request = self.netlink.rule().add();
            *request.message_mut() = rule_message(rule);
            if let Err(error) = request.execute().await {
                errors.push(anyhow::anyhow!("cannot add the rule {rule:?}: {error}"));
            }
        }
        errors
    }

    /// Whether there are rules of ours.
    pub(super) async fn has_rules(&self, numbers: Numbers) -> anyhow::Result<bool> {
        Ok(!self.rules(numbers).await?.is_empty())
    }

    /// Rules of ours; `None`: one that no plan has.
    async fn rules(&self, numbers: Numbers) -> anyhow::Result<Vec<(Option<Rule>, RuleMessage)>> {
        let mut rules = Vec::new();
        for (version, six) in [(IpVersion::V4, false), (IpVersion::V6, true)] {
            let mut all = self.netlink.rule().get(version).execute();
            while let Some(message) = all.try_next().await.context("cannot list rules")? {
                let ours = message.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
                    && priority(&message)
                        .is_some_and(|p| (numbers.priority..numbers.priority + PRIORITIES).contains(&p));
                if ours {
                    rules.push((read_rule(&message, six), message));
                }
            }
        }
        Ok(rules)
    }
}

impl Routes {
    /// Whether none is ours.
    pub(super) const fn is_clean(&self) -> bool {
        self.ours.is_empty()
    }

    /// Networks that are reached without `index`.
    pub(super) fn own(&self, index: Option<u32>) -> Vec<IpNet> {
        let own = self
            .others
            .iter()
            .filter(|r| !r.local && r.live && Some(r.interface) != index && r.net.prefix_len() > 0);
        own.map(|route| route.net).collect()
    }

    /// The route that a packet takes when nothing of ours interferes.
    pub(super) fn lookup(&self, address: IpAddr) -> Option<&Other> {
        let live = self.others.iter().filter(|route| route.live && route.net.contains(&address));
        live.max_by_key(|route| (route.local, route.net.prefix_len(), std::cmp::Reverse(route.metric)))
    }
}

/// The parts of a message that matter.
struct Seen {
    table: u32,
    net: IpNet,
    kind: RouteType,
    interface: u32,
    source: Option<IpAddr>,
    metric: u32,
    live: bool,
}

impl Seen {
    fn of(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let six = header.address_family == AddressFamily::Inet6;
        let mut seen = Self {
            table: u32::from(header.table),
            net: if six { "::/0" } else { "0.0.0.0/0" }.parse().ok()?,
            kind: header.kind,
            interface: 0,
            source: None,
            metric: 0,
            live: !header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(table) => seen.table = *table,
                RouteAttribute::Destination(to) => {
                    seen.net = IpNet::new(address(to)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Oif(interface) => seen.interface = *interface,
                RouteAttribute::PrefSource(source) => seen.source = address(source),
                RouteAttribute::Priority(metric) => seen.metric = *metric,
                RouteAttribute::MultiPath(hops) => {
                    seen.interface = hops.first().map_or(0, |hop| hop.interface_index);
                }
                _ => {}
            }
        }
        Some(seen)
    }

    fn ours(&self, index: Option<u32>) -> Route {
        let to = match self.kind {
            RouteType::Throw => To::Throw,
            RouteType::Unicast if Some(self.interface) == index => To::Interface(self.source),
            _ => To::Unreachable,
        };
        Route { table: self.table, net: self.net, to }
    }

    fn other(&self) -> Option<Other> {
        let local = self.table == LOCAL && self.kind == RouteType::Local;
        let main = self.table == MAIN && self.kind == RouteType::Unicast;
        (local || main).then_some(Other {
            net: self.net,
            interface: self.interface,
            local,
            live: self.live,
            metric: self.metric,
        })
    }
}

const fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn message_of(route: &Route, index: Option<u32>) -> RouteMessage {
    let mut message = match route.net {
        IpNet::V4(net) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .build(),
    };
    message.header.protocol = PROTOCOL;
    message.attributes.push(RouteAttribute::Table(route.table));
    let (kind, metric) = match route.to {
        To::Interface(source) => {
            message.attributes.extend(index.map(RouteAttribute::Oif));
            message.attributes.extend(source.map(|source| {
                RouteAttribute::PrefSource(match source {
                    IpAddr::V4(source) => RouteAddress::Inet(source),
                    IpAddr::V6(source) => RouteAddress::Inet6(source),
                })
            }));
            (RouteType::Unicast, DEVICE_METRIC)
        }
        To::Throw => (RouteType::Throw, THROW_METRIC),
        To::Unreachable => (RouteType::Unreachable, UNREACHABLE_METRIC),
    };
    message.header.kind = kind;
    message.header.scope = match (route.net, kind) {
        (IpNet::V4(_), RouteType::Unicast) => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.six { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    if let Some(to) = rule.destination {
        message.header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(to.network()));
    }
    if rule.others_only {
        message.header.flags = RuleFlags::Invert;
        message.attributes.extend([RuleAttribute::FwMark(OWN_TRAFFIC), RuleAttribute::FwMask(OWN_TRAFFIC)]);
    }
    if rule.no_default {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    message
}

fn priority(message: &RuleMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

fn read_rule(message: &RuleMessage, six: bool) -> Option<Rule> {
    let mut rule = Rule {
        priority: priority(message)?,
        six,
        destination: None,
        others_only: message.header.flags.contains(RuleFlags::Invert),
        table: u32::from(message.header.table),
        no_default: false,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Destination(to) => {
                rule.destination = Some(IpNet::new(*to, message.header.dst_len).ok()?);
            }
            RuleAttribute::SuppressPrefixLen(0) => rule.no_default = true,
            RuleAttribute::FwMark(mark) | RuleAttribute::FwMask(mark) if *mark != OWN_TRAFFIC => return None,
            _ => {}
        }
    }
    debug_assert!(rule.destination.is_none_or(|to| is_six(to) == six));
    Some(rule)
}
