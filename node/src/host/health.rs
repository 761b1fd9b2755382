//! Whether this machine reaches the subnets that it advertises: by its routes and carriers at once, and by probes of hosts there where the user has named some.
//!
//! A subnet is down when no route leads to it but by the mesh itself, when the interface that leads to it has lost its carrier, when it had a route of its own
//! and only the default route is left, when it is not behind the interface that the user has named, or when its probe goes unanswered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use meshdp::proto::routing::exit::is_wide;

use super::kernel::Routes;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Health {
    subnets: Vec<Subnet>,
    lan: Option<String>,
}

#[derive(Debug)]
struct Subnet {
    net: IpNet,
    /// A route that is not the default one has led there.
    had_route: bool,
    dead: BTreeSet<IpAddr>,
}

/// What there is to say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Picture {
    /// Subnets that cannot be reached.
    pub(super) down: Vec<IpNet>,
    /// Interfaces that lead to the others.
    pub(super) lans: BTreeSet<String>,
}

impl Health {
    /// `lan`: the only interface that counts.
    pub(super) fn new(subnets: impl IntoIterator<Item = IpNet>, lan: Option<String>) -> Self {
        let new = |net| Subnet { net, had_route: false, dead: BTreeSet::new() };
        Self { subnets: subnets.into_iter().map(new).collect(), lan }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.subnets.is_empty()
    }

    /// A host answers, or does not any more: it stands for the longest subnet that it is in.
    pub(super) fn probed(&mut self, host: IpAddr, alive: bool) {
        let within = self.subnets.iter_mut().filter(|subnet| subnet.net.contains(&host));
        let Some(subnet) = within.max_by_key(|subnet| subnet.net.prefix_len()) else { return };
        if alive {
            subnet.dead.remove(&host);
        } else {
            subnet.dead.insert(host);
        }
    }

    /// What the kernel's routes say, with names of interfaces by number; `own`: the mesh's.
    pub(super) fn look(
        &mut self,
        routes: &Routes,
        links: &BTreeMap<u32, String>,
        own: Option<u32>,
    ) -> Picture {
        let mut picture = Picture::default();
        for subnet in &mut self.subnets {
            match subnet.way(routes, links, own, self.lan.as_deref()) {
                Way::Lan(lan) if subnet.dead.is_empty() => drop(picture.lans.insert(lan.clone())),
                Way::Here if subnet.dead.is_empty() => {}
                _ => picture.down.push(subnet.net),
            }
        }
        picture
    }
}

/// What leads to a subnet.
enum Way<'a> {
    /// This interface.
    Lan(&'a String),
    /// Nothing: this machine has its addresses.
    Here,
    /// Nothing.
    None,
}

impl Subnet {
    fn way<'a>(
        &mut self,
        routes: &Routes,
        links: &'a BTreeMap<u32, String>,
        own: Option<u32>,
        lan: Option<&str>,
    ) -> Way<'a> {
        let others = || routes.others.iter().filter(|route| Some(route.interface) != own);
        let route = if is_wide(self.net) {
            // Not through the mesh: another exit of the network is of no use here.
            others()
                .filter(|route| route.live && route.net.prefix_len() == 0 && same_family(route.net, self.net))
                .min_by_key(|r| r.metric)
        } else {
            routes.lookup(inside(self.net)).filter(|route| Some(route.interface) != own)
        };
        let Some(route) = route else { return Way::None };
        if route.local {
            return Way::Here;
        }
        let specific = route.net.prefix_len() > 0;
        if self.had_route && !specific {
            return Way::None;
        }
        self.had_route |= specific;
        let name = links.get(&route.interface);
        name.filter(|name| lan.is_none_or(|lan| lan == *name)).map_or(Way::None, Way::Lan)
    }
}

const fn same_family(one: IpNet, other: IpNet) -> bool {
    matches!((one, other), (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_)))
}

/// An address in a subnet: its first host.
fn inside(net: IpNet) -> IpAddr {
    net.hosts().next().unwrap_or_else(|| net.network())
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Other;
    use super::*;

    const OWN: u32 = 9;

    fn route(net: &str, interface: u32, live: bool) -> Other {
        Other { net: net.parse().unwrap(), interface, local: false, live, metric: 0 }
    }

    fn look(health: &mut Health, others: Vec<Other>) -> (Vec<String>, Vec<String>) {
        let links =
            BTreeMap::from([(1, "eth0".to_owned()), (2, "eth1".to_owned()), (OWN, "edge0".to_owned())]);
        let mut routes = Routes::default();
        routes.others = others;
        let picture = health.look(&routes, &links, Some(OWN));
        (picture.down.iter().map(ToString::to_string).collect(), picture.lans.into_iter().collect())
    }

    fn health(nets: &[&str]) -> Health {
        Health::new(nets.iter().map(|net| net.parse().unwrap()), None)
    }

    const NONE: [String; 0] = [];

    #[test]
    fn a_subnet_is_down_without_carrier_route_or_interface() {
        let mut health = health(&["192.168.7.0/24"]);
        let default = || route("0.0.0.0/0", 1, true);
        let lan = |live| route("192.168.7.0/24", 2, live);
        assert_eq!(look(&mut health, vec![default(), lan(true)]), (NONE.into(), vec!["eth1".to_owned()]));
        for broken in [
            vec![default(), lan(false)],
            vec![default()],
            vec![],
            vec![default(), route("192.168.7.0/24", OWN, true)],
        ] {
            assert_eq!(look(&mut health, broken), (vec!["192.168.7.0/24".to_owned()], NONE.into()));
        }
        assert_eq!(look(&mut health, vec![default(), lan(true)]).0, NONE);
    }

    #[test]
    fn a_subnet_behind_the_default_route_is_up_as_long_as_that_is() {
        let mut health = health(&["10.77.0.0/16", "0.0.0.0/0", "::/0"]);
        let up = look(&mut health, vec![route("0.0.0.0/0", 1, true)]);
        assert_eq!(up, (vec!["::/0".to_owned()], vec!["eth0".to_owned()]));
        assert_eq!(look(&mut health, vec![route("0.0.0.0/0", 1, false)]).0.len(), 3);
        assert_eq!(look(&mut health, vec![route("0.0.0.0/0", OWN, true)]).0.len(), 3, "not through the mesh");
    }

    #[test]
    fn an_address_of_this_machine_needs_no_lan() {
        let mut health = health(&["10.50.0.0/24"]);
        let local = Other { local: true, ..route("10.50.0.0/24", 3, true) };
        assert_eq!(look(&mut health, vec![local]), (NONE.into(), NONE.into()));
    }

    #[test]
    fn only_the_named_interface_counts() {
        let mut health = Health::new(["192.168.7.0/24".parse().unwrap()], Some("eth1".to_owned()));
        assert_eq!(look(&mut health, vec![route("192.168.0.0/16", 1, true)]).0.len(), 1);
        assert_eq!(look(&mut health, vec![route("192.168.0.0/16", 2, true)]).0, NONE);
    }

    #[test]
    fn a_host_that_does_not_answer_takes_its_own_subnet_down_and_no_wider_one() {
        let mut health = health(&["192.168.0.0/16", "192.168.7.0/24"]);
        let routes = || vec![route("192.168.0.0/16", 2, true)];
        health.probed("192.168.7.1".parse().unwrap(), false);
        assert_eq!(look(&mut health, routes()).0, ["192.168.7.0/24"]);
        health.probed("192.168.7.1".parse().unwrap(), true);
        assert_eq!(look(&mut health, routes()).0, NONE);
        health.probed("172.16.0.1".parse().unwrap(), false);
        assert_eq!(look(&mut health, routes()).0, NONE);
    }
}
