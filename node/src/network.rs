//! The machine's own addresses, word of every change of them, and the routers that it is behind, over rtnetlink(7).
//!
//! What counts: addresses of interfaces that are up and connected, but for loopback, link-local ones, and the node's own interface, whose
//! packets this is all about. One change of a network is many messages: they are let come in for a moment.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

/// Messages of one change come within.
const SETTLE: Duration = Duration::from_millis(100);
/// They may go on coming; one who waits gets to know after so long.
const AT_MOST: Duration = Duration::from_millis(500);
/// Without any message, so often: what was missed when the kernel had more to say than its buffer holds.
const LOOK: Duration = Duration::from_mins(1);

/// An address of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    /// With its network.
    pub(crate) net: IpNet,
    /// The index of its interface.
    pub(crate) link: u32,
}

/// The router behind which everything else is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// Its address; an IPv6 one is mostly link-local.
    pub(crate) ip: IpAddr,
    /// The index of the interface that it is behind.
    pub(crate) link: u32,
}

/// The addresses now, and from then on; it ends with the last receiver. `own` is the index of the interface that does not count. In a tokio runtime with a local set.
pub(crate) async fn watch(own: u32) -> anyhow::Result<watch::Receiver<BTreeSet<Address>>> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, netlink, mut messages) =
        new_multicast_connection(&groups).context("cannot watch the network over netlink")?;
    tokio::spawn(connection);
    let (out, addresses) = watch::channel(addresses(&netlink, own).await?);
    tokio::task::spawn_local(async move {
        loop {
            tokio::select! {
                message = messages.next() => if message.is_none() { break },
                () = sleep(LOOK) => {}
                () = out.closed() => break,
            }
            let end = Instant::now() + AT_MOST;
            while let Ok(Some(_)) = timeout_at(end.min(Instant::now() + SETTLE), messages.next()).await {}
            match self::addresses(&netlink, own).await {
                Ok(now) => {
                    out.send_if_modified(|known| now != std::mem::replace(known, now.clone()));
                }
                Err(error) => tracing::debug!("{error:#}"),
            }
        }
    });
    Ok(addresses)
}

/// All that count.
async fn addresses(netlink: &Handle, own: u32) -> anyhow::Result<BTreeSet<Address>> {
    let links = netlink.link().get().execute().try_collect::<Vec<_>>().await.context("cannot list links")?;
    let connected: BTreeSet<u32> = links
        .iter()
        .map(|link| &link.header)
        .filter(|link| link.index != own && link.flags.contains(LinkFlags::Up | LinkFlags::LowerUp))
        .filter(|link| !link.flags.contains(LinkFlags::Loopback))
        .map(|link| link.index)
        .collect();
    let addresses = netlink.address().get().execute().try_collect::<Vec<_>>().await;
    let addresses = addresses.context("cannot list addresses")?;
    Ok(addresses
        .iter()
        .filter(|message| connected.contains(&message.header.index))
        .filter_map(|message| Some(Address { net: usable(message)?, link: message.header.index }))
        .collect())
}

/// The addresses now. In a tokio runtime.
pub(crate) async fn look() -> anyhow::Result<BTreeSet<Address>> {
    let (connection, netlink, _) = new_connection().context("cannot talk to the kernel over netlink")?;
    let connection = tokio::spawn(connection);
    let found = addresses(&netlink, 0).await;
    connection.abort();
    found
}

/// The default routers for IPv4 and IPv6, the preferred one of each, but for those behind interface `own`. In a tokio runtime.
pub(crate) async fn gateways(own: u32) -> anyhow::Result<Vec<Gateway>> {
    let (connection, netlink, _) = new_connection().context("cannot talk to the kernel over netlink")?;
    let connection = tokio::spawn(connection);
    let all4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let all6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut found = Vec::new();
    for all in [all4, all6] {
        let routes = netlink.route().get(all).execute().try_collect::<Vec<_>>().await;
        let routes = routes.context("cannot list routes")?;
        let best = routes.iter().filter_map(default_route).filter(|(_, gateway)| gateway.link != own);
        found.extend(best.min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway));
    }
    connection.abort();
    Ok(found)
}

/// The metric and the gateway, if a route of the main table is a default route by way of one.
fn default_route(message: &RouteMessage) -> Option<(u32, Gateway)> {
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut metric, mut ip, mut link) = (0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(of) => metric = *of,
            RouteAttribute::Oif(of) => link = Some(*of),
            RouteAttribute::Gateway(RouteAddress::Inet(of)) => ip = Some(IpAddr::V4(*of)),
            RouteAttribute::Gateway(RouteAddress::Inet6(of)) => ip = Some(IpAddr::V6(*of)),
            _ => {}
        }
    }
    Some((metric, Gateway { ip: ip?, link: link? }))
}

/// An address that others may reach, with its network.
fn usable(message: &AddressMessage) -> Option<IpNet> {
    if !matches!(message.header.scope, AddressScope::Universe | AddressScope::Site) {
        return None;
    }
    let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link the other one is the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(of) => flags = *of,
            _ => {}
        }
    }
    let not_now = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let ip: IpAddr = local.or(address).filter(|_| !flags.intersects(not_now))?;
    IpNet::new(ip, message.header.prefix_len).ok()
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::AddressFamily;

    use super::*;

    fn message(scope: AddressScope, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 24;
        message.header.scope = scope;
        message.attributes = attributes;
        message
    }

    #[test]
    fn own_end_of_a_link_counts_and_what_is_not_ready_does_not() {
        let (own, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let both = vec![AddressAttribute::Address(other), AddressAttribute::Local(own)];
        assert_eq!(
            usable(&message(AddressScope::Universe, both.clone())),
            Some("10.0.0.1/24".parse().unwrap())
        );
        assert_eq!(usable(&message(AddressScope::Link, both.clone())), None);
        for flag in [AddressFlags::Tentative, AddressFlags::Deprecated, AddressFlags::Dadfailed] {
            let mut attributes = both.clone();
            attributes.push(AddressAttribute::Flags(flag | AddressFlags::Permanent));
            assert_eq!(usable(&message(AddressScope::Universe, attributes)), None);
        }
        assert_eq!(usable(&message(AddressScope::Universe, Vec::new())), None);
    }

    #[test]
    fn a_default_route_counts_when_it_has_a_gateway_and_is_in_the_main_table() {
        let router = Ipv4Addr::new(192, 168, 1, 1);
        let route = |length| {
            let net = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(7).priority(600);
            net.destination_prefix(Ipv4Addr::UNSPECIFIED, length)
        };
        let gateway = Gateway { ip: router.into(), link: 7 };
        assert_eq!(default_route(&route(0).gateway(router).build()), Some((600, gateway)));
        assert_eq!(default_route(&route(8).gateway(router).build()), None);
        assert_eq!(default_route(&route(0).build()), None);
        assert_eq!(default_route(&route(0).gateway(router).table_id(52).build()), None);
    }
}
