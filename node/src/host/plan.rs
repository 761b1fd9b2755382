//! Which routes and rules of the kernel make packets go where they should: from what is wanted to a list, without touching anything.
//!
//! ```text
//! rule   first + 0   not ours   ► SUBNETS   a subnet behind a peer ► interface; a network of this machine within one ► throw (the next rule)
//!        first + 1   to own networks, link-local, outside ► main                                                     ┐
//!        first + 2   any ► main, but not its default route       where the LAN stays reachable                       │ with an exit
//!        first + 3   not ours   ► EXIT      everything ► interface; below it: unreachable, so that nothing leaks     ┘
//! ```
//!
//! "Not ours" are packets without [`OWN_TRAFFIC`]: the daemon's own sockets pass all of this by, so that relays, controller and peers are
//! reached over the wire even when a subnet, or the exit, would take them. Tables and priorities follow from the interface's name, so that two daemons
//! keep apart and a later one recognises what a killed one left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
#[cfg(doc)]
use meshdp::engine::socket::OWN_TRAFFIC;

/// Behind those that people write by hand (up to 5000, often) and before main's 32766.
const FIRST_PRIORITY: u32 = 5200;
/// Numbers that nothing else is known to use (see /etc/iproute2/rt_tables).
const FIRST_TABLE: u32 = 57_000;
const SLOTS: u32 = 1000;
/// Rules have so many priorities each.
pub(super) const PRIORITIES: u32 = 10;
/// The kernel's own table.
pub(super) const MAIN: u32 = 254;
/// Their own wire goes first, what leads nowhere last.
pub(super) const THROW_METRIC: u32 = 10;
pub(super) const DEVICE_METRIC: u32 = 100;
pub(super) const UNREACHABLE_METRIC: u32 = u32::MAX;

/// What belongs to one interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Numbers {
    /// The first of [`PRIORITIES`].
    pub(super) priority: u32,
    /// Subnets behind peers.
    pub(super) subnets: u32,
    /// Everything.
    pub(super) exit: u32,
}

impl Numbers {
    pub(crate) fn of(interface: &str) -> Self {
        // FNV-1a: the same for ever, whatever the toolchain.
        let hash = interface
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let slot = hash % SLOTS;
        let table = FIRST_TABLE + 2 * slot;
        Self { priority: FIRST_PRIORITY + PRIORITIES * slot, subnets: table, exit: table + 1 }
    }
}

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wanted {
    /// Subnets behind peers, with the address that packets there carry.
    pub(super) subnets: BTreeMap<IpNet, Option<IpAddr>>,
    /// Own networks.
    pub(super) mesh: BTreeSet<IpNet>,
    /// All traffic.
    pub(super) exit: Option<Exit>,
}

/// All traffic goes out at a peer, or nowhere.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Exit {
    /// Wide routes that the peer has, with the address that packets carry; none: it is not there.
    pub(super) routes: BTreeMap<IpNet, Option<IpAddr>>,
    /// Destinations that stay outside.
    pub(super) outside: BTreeSet<IpNet>,
    /// Whether the networks that this machine is on stay reachable.
    pub(super) lan: bool,
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum To {
    /// The interface, with this source address.
    Interface(Option<IpAddr>),
    /// The next rule.
    Throw,
    /// Nowhere, and the sender is told.
    Unreachable,
}

/// A route in one of our tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Route {
    pub(super) table: u32,
    pub(super) net: IpNet,
    pub(super) to: To,
}

/// A rule of ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rule {
    pub(super) priority: u32,
    pub(super) six: bool,
    pub(super) destination: Option<IpNet>,
    /// Not for the daemon's own packets.
    pub(super) others_only: bool,
    pub(super) table: u32,
    /// A default route that is found does not count.
    pub(super) no_default: bool,
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Plan {
    pub(super) routes: BTreeSet<Route>,
    pub(super) rules: BTreeSet<Rule>,
}

/// `own`: networks that the main table leads to without the interface.
pub(super) fn plan(numbers: Numbers, wanted: &Wanted, own: &[IpNet]) -> Plan {
    let mut plan = Plan::default();
    plan_subnets(&mut plan, numbers, wanted, own);
    if let Some(exit) = &wanted.exit {
        plan_exit(&mut plan, numbers, wanted, exit);
    }
    plan
}

fn plan_subnets(plan: &mut Plan, numbers: Numbers, wanted: &Wanted, own: &[IpNet]) {
    let table = numbers.subnets;
    for net in wanted.subnets.keys() {
        let within = own.iter().chain(&wanted.mesh).filter(|own| net.contains(*own));
        plan.routes.extend(within.map(|own| Route { table, net: own.trunc(), to: To::Throw }));
    }
    let thrown: BTreeSet<IpNet> = plan.routes.iter().map(|route| route.net).collect();
    for (&net, &source) in wanted.subnets.iter().filter(|(net, _)| !thrown.contains(*net)) {
        plan.routes.insert(Route { table, net, to: To::Interface(source) });
    }
    for six in [false, true] {
        if wanted.subnets.keys().any(|net| is_six(*net) == six) {
            let priority = numbers.priority;
            plan.rules.insert(Rule {
                priority,
                six,
                destination: None,
                others_only: true,
                table,
                no_default: false,
            });
        }
    }
}

fn plan_exit(plan: &mut Plan, numbers: Numbers, wanted: &Wanted, exit: &Exit) {
    let local = ["fe80::/10", "ff02::/16"].map(|net| net.parse().expect("a network"));
    for net in wanted.mesh.iter().chain(&exit.outside).copied().chain(local) {
        let rule = Rule {
            priority: numbers.priority + 1,
            six: is_six(net),
            destination: Some(net.trunc()),
            others_only: false,
            table: MAIN,
            no_default: false,
        };
        plan.rules.insert(rule);
    }
    let table = numbers.exit;
    for six in [false, true] {
        let rule = |offset: u32, table: u32, no_default: bool| Rule {
            priority: numbers.priority + offset,
            six,
            destination: None,
            others_only: !no_default,
            table,
            no_default,
        };
        if exit.lan {
            plan.rules.insert(rule(2, MAIN, true));
        }
        plan.rules.insert(rule(3, table, false));
        let all = if six { "::/0" } else { "0.0.0.0/0" };
        plan.routes.insert(Route { table, net: all.parse().expect("a network"), to: To::Unreachable });
    }
    plan.routes.extend(exit.routes.iter().map(|(&net, &source)| Route {
        table,
        net,
        to: To::Interface(source),
    }));
}

pub(super) const fn is_six(net: IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: Numbers = Numbers { priority: 100, subnets: 1, exit: 2 };

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn subnets(nets: &[&str]) -> Wanted {
        Wanted { subnets: nets.iter().map(|text| (net(text), None)).collect(), ..Wanted::default() }
    }

    fn way<'a>(plan: &'a Plan, table: u32, text: &str) -> Vec<&'a To> {
        plan.routes.iter().filter(|r| r.table == table && r.net == net(text)).map(|r| &r.to).collect()
    }

    #[test]
    fn numbers_are_the_same_on_every_run_and_differ_between_interfaces() {
        let edge0 = Numbers::of("edge0");
        assert_eq!(edge0, Numbers::of("edge0"));
        assert_eq!((edge0.priority - FIRST_PRIORITY) / PRIORITIES * 2, edge0.subnets - FIRST_TABLE);
        assert!(edge0.priority + PRIORITIES < 32_766 && edge0.exit == edge0.subnets + 1);
        assert_ne!(edge0, Numbers::of("edge1"));
    }

    #[test]
    fn nothing_wanted_is_nothing_done() {
        assert_eq!(plan(NUMBERS, &Wanted::default(), &[net("10.0.0.0/8")]), Plan::default());
    }

    #[test]
    fn own_networks_within_a_subnet_keep_their_wire() {
        let wanted = Wanted {
            mesh: [net("10.1.0.0/24")].into(),
            ..subnets(&["10.0.0.0/8", "192.168.1.0/24", "fd01::/64"])
        };
        let own = [net("10.2.0.0/16"), net("192.168.1.0/24"), net("192.168.0.0/16"), net("172.16.0.0/12")];
        let plan = plan(NUMBERS, &wanted, &own);
        assert_eq!(way(&plan, 1, "10.2.0.0/16"), [&To::Throw]);
        assert_eq!(way(&plan, 1, "10.1.0.0/24"), [&To::Throw], "the mesh itself");
        assert_eq!(way(&plan, 1, "192.168.1.0/24"), [&To::Throw], "this machine is on that wire");
        assert_eq!(way(&plan, 1, "10.0.0.0/8"), [&To::Interface(None)]);
        assert_eq!(way(&plan, 1, "fd01::/64"), [&To::Interface(None)]);
        assert!(way(&plan, 1, "192.168.0.0/16").is_empty() && way(&plan, 1, "172.16.0.0/12").is_empty());
        assert_eq!(plan.rules.len(), 2);
        assert!(plan.rules.iter().all(|rule| rule.others_only && rule.table == 1 && rule.priority == 100));
    }

    #[test]
    fn without_its_exit_a_machine_that_wants_one_reaches_nothing() {
        let wanted = Wanted { exit: Some(Exit::default()), ..Wanted::default() };
        let plan = plan(NUMBERS, &wanted, &[]);
        assert_eq!(way(&plan, 2, "0.0.0.0/0"), [&To::Unreachable]);
        assert_eq!(way(&plan, 2, "::/0"), [&To::Unreachable]);
        for six in [false, true] {
            let all = plan.rules.iter().filter(|rule| rule.six == six && rule.destination.is_none());
            assert_eq!(
                all.map(|rule| (rule.priority, rule.table, rule.others_only)).collect::<Vec<_>>(),
                [(103, 2, true)]
            );
        }
    }

    #[test]
    fn what_stays_outside_is_looked_up_before_the_exit() {
        let source: IpAddr = "10.1.0.5".parse().unwrap();
        let exit = Exit {
            routes: [(net("0.0.0.0/0"), Some(source))].into(),
            outside: [net("203.0.113.0/24")].into(),
            lan: true,
        };
        let wanted =
            Wanted { mesh: [net("10.1.0.0/24")].into(), exit: Some(exit), ..subnets(&["10.9.0.0/16"]) };
        let plan = plan(NUMBERS, &wanted, &[]);
        assert_eq!(way(&plan, 2, "0.0.0.0/0"), [&To::Interface(Some(source)), &To::Unreachable]);
        assert_eq!(way(&plan, 2, "::/0"), [&To::Unreachable], "the other family does not leak");
        let four: Vec<_> = plan
            .rules
            .iter()
            .filter(|rule| !rule.six)
            .map(|r| (r.priority, r.destination, r.table))
            .collect();
        assert_eq!(
            four,
            [
                (100, None, 1),
                (101, Some(net("10.1.0.0/24")), MAIN),
                (101, Some(net("203.0.113.0/24")), MAIN),
                (102, None, MAIN),
                (103, None, 2),
            ]
        );
    }
}
