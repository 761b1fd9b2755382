//! What is between this machine and others, put together for people: `edgelink netcheck`.
//!
//! The facts come from the daemon's status, or from STUN servers asked without one ([`crate::command::netcheck`]); what may be expected of two NATs is
//! [`meshdp::proto::path::nat::matrix`]'s to say. Nothing here asks or sends anything.

use std::fmt::Write as _;
use std::net::SocketAddr;

use meshdp::proto::path::nat::matrix::{Expectation, expectation};
use meshdp::proto::path::nat::{Filtering, Mapping, NatBehaviour, NatClass, Ports};
use serde::{Deserialize, Serialize};

use crate::command::{lines, milliseconds, table};
use crate::ipc::message::{OwnEndpoint, Status};
use crate::mapping::Picture;

/// A daemon that is up for so long has heard from every STUN server that answers at all.
const SETTLED_S: f64 = 5.0;

/// What may be expected of two NATs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expected {
    /// A direct path.
    Direct,
    /// A direct path by luck, else the relays.
    ByChance,
    /// The relays.
    Relay,
}

impl Expected {
    /// For two NATs.
    pub(crate) const fn of(one: NatBehaviour, other: NatBehaviour) -> Self {
        match expectation(&one, &other) {
            Expectation::Direct => Self::Direct,
            Expectation::Perhaps => Self::ByChance,
        }
    }

    /// In words.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::ByChance => "relay, direct by luck",
            Self::Relay => "relay",
        }
    }
}

/// A row of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reach {
    /// The peer's NAT, in words.
    pub(crate) nat: String,
    /// What to expect.
    pub(crate) expected: Expected,
}

/// What a class is called.
pub(crate) const fn class_name(class: NatClass) -> &'static str {
    match class {
        NatClass::FullCone => "full cone",
        NatClass::Restricted => "restricted",
        NatClass::PortRestricted => "port-restricted",
        NatClass::Symmetric => "symmetric",
    }
}

/// What works with peers behind each sort of NAT. `mapped`: the router lets everybody in by a port of its own.
pub(crate) fn reach(own: NatBehaviour, mapped: bool) -> Vec<Reach> {
    let cone = |filtering| NatBehaviour {
        mapping: Some(Mapping::EndpointIndependent),
        filtering: Some(filtering),
        ports: Ports::Unknown,
    };
    let symmetric = |ports| NatBehaviour {
        mapping: Some(Mapping::AddressAndPortDependent),
        filtering: Some(Filtering::AddressAndPortDependent),
        ports,
    };
    let rows = [
        ("none, or open to anyone (full cone)", cone(Filtering::EndpointIndependent)),
        ("open to addresses that were sent to (restricted)", cone(Filtering::AddressDependent)),
        (
            "open to addresses and ports that were sent to (port-restricted; most homes)",
            cone(Filtering::AddressAndPortDependent),
        ),
        ("another port for each destination, in order (symmetric, counting)", symmetric(Ports::Counting(1))),
        (
            "another port for each destination, at random (symmetric; many offices and carriers)",
            symmetric(Ports::Random),
        ),
    ];
    rows.into_iter()
        .map(|(nat, other)| Reach {
            nat: nat.to_owned(),
            expected: if mapped { Expected::Direct } else { Expected::of(own, other) },
        })
        .collect()
}

/// Whether UDP gets out and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Udp {
    /// A STUN server has answered.
    Works,
    /// Servers were asked and none has answered.
    Silent,
    /// None could be asked, or not long enough ago.
    Unknown,
    /// Direct paths are off.
    Off,
}

/// A relay, or a STUN server that was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// Of the connection; `None`: it is a STUN server only.
    pub(crate) state: Option<String>,
    pub(crate) rtt_ms: Option<f64>,
    /// The STUN server.
    pub(crate) stun: Option<SocketAddr>,
    /// Where that saw this machine.
    pub(crate) seen_as: Option<SocketAddr>,
    /// What the kernel knows of the way there: the interface's, or less where a router has complained.
    pub(crate) path_mtu: Option<u32>,
}

/// A peer and the way to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) network: String,
    /// In words; `None`: it has not said.
    pub(crate) nat: Option<String>,
    pub(crate) expected: Option<Expected>,
    /// The address of the direct path; `None`: packets take the relays.
    pub(crate) direct: Option<SocketAddr>,
    pub(crate) rtt_ms: Option<f64>,
    /// Measured on the direct path.
    pub(crate) path_mtu: Option<u16>,
}

/// `edgelink netcheck --output json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) udp: Udp,
    /// In words.
    pub(crate) nat: String,
    /// `full cone`, `restricted`, `port-restricted` or `symmetric`; `None`: not known.
    pub(crate) nat_class: Option<String>,
    /// An address of this machine that others reach by IPv6, or that it uses towards them.
    pub(crate) ipv6: Option<SocketAddr>,
    /// `None`: it is not asked.
    pub(crate) router: Option<Picture>,
    /// Where this machine may be reached, best first.
    pub(crate) endpoints: Vec<OwnEndpoint>,
    pub(crate) servers: Vec<Server>,
    /// What works with whom.
    pub(crate) reach: Vec<Reach>,
    pub(crate) peers: Vec<Peer>,
}

impl Report {
    /// From what a daemon says; `path_mtu`: towards a server.
    pub(crate) fn of(status: Status, path_mtu: impl Fn(SocketAddr) -> Option<u32>) -> Self {
        let servers: Vec<Server> = status
            .relays
            .into_iter()
            .map(|relay| Server {
                name: relay.name,
                state: Some(relay.state),
                rtt_ms: relay.rtt_ms,
                stun: relay.stun,
                seen_as: relay.seen_as,
                path_mtu: relay.stun.and_then(&path_mtu),
            })
            .collect();
        let udp = if status.endpoints.is_empty() && status.uptime_s > SETTLED_S {
            Udp::Off
        } else {
            udp(&servers, status.uptime_s > SETTLED_S)
        };
        let peers = status.peers.into_iter().map(|peer| Peer {
            name: peer.name,
            network: peer.network,
            nat: peer.nat,
            expected: peer.expected,
            direct: peer.direct,
            rtt_ms: peer.rtt_ms,
            path_mtu: peer.direct_mtu,
        });
        Self {
            udp,
            nat: status.nat,
            nat_class: status.nat_class,
            ipv6: ipv6(&status.endpoints),
            router: status.port_mapping,
            reach: if udp == Udp::Silent { by_relay(status.reach) } else { status.reach },
            endpoints: status.endpoints,
            servers,
            peers: peers.collect(),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let asked = self.servers.iter().filter(|server| server.stun.is_some()).count();
        let answered = self.servers.iter().filter(|server| server.seen_as.is_some()).count();
        let mut line = |name: &str, what: &str| {
            let _ = writeln!(out, "{name:<10} {what}");
        };
        line(
            "UDP",
            &match self.udp {
                Udp::Works => format!("works ({answered} of {asked} STUN servers answered)"),
                Udp::Silent => format!(
                    "seems to be blocked: none of {asked} STUN servers answered. Packets take the relays, over TCP"
                ),
                Udp::Unknown if asked == 0 => "not known: no relay with a STUN server is known".to_owned(),
                Udp::Unknown => "not known yet: ask again in a moment".to_owned(),
                Udp::Off => {
                    "not used: direct paths are off (p2p.enabled), or this machine has no address".to_owned()
                }
            },
        );
        line(
            "NAT",
            &self
                .nat_class
                .as_ref()
                .map_or_else(|| self.nat.clone(), |class| format!("{class}: {}", self.nat)),
        );
        line("IPv6", &self.ipv6.map_or_else(|| "none that others could reach".to_owned(), |a| a.to_string()));
        line(
            "router",
            &self.router.as_ref().map_or_else(|| "not asked (p2p.port_mapping)".to_owned(), router),
        );
        for (n, endpoint) in self.endpoints.iter().enumerate() {
            let name = if n == 0 { "addresses" } else { "" };
            line(name, &format!("{} ({})", endpoint.address, endpoint.kind));
        }
        if !self.servers.is_empty() {
            let _ = write!(out, "\n{}", lines(self.server_table()));
        }
        if !self.reach.is_empty() {
            let mut rows = table(&["A PEER WHOSE NAT IS", "IS REACHED"]);
            for row in &self.reach {
                rows.add_row([row.nat.as_str(), row.expected.words()]);
            }
            let _ = write!(out, "\n{}", lines(rows));
        }
        if !self.peers.is_empty() {
            let mut rows = table(&["PEER", "NETWORK", "PATH", "RTT", "MTU", "EXPECTED", "ITS NAT"]);
            for peer in &self.peers {
                rows.add_row([
                    peer.name.clone(),
                    peer.network.clone(),
                    peer.direct.map_or_else(|| "relay".to_owned(), |address| format!("direct {address}")),
                    milliseconds(peer.rtt_ms),
                    dash(peer.path_mtu),
                    peer.expected.map_or("-", Expected::words).to_owned(),
                    dash(peer.nat.as_ref()),
                ]);
            }
            let _ = write!(out, "\n{}", lines(rows));
        }
        out
    }

    fn server_table(&self) -> comfy_table::Table {
        let with_state = self.servers.iter().any(|server| server.state.is_some());
        let mut rows = if with_state {
            table(&["RELAY", "STATE", "RTT", "STUN", "SEES US AS", "MTU"])
        } else {
            table(&["SERVER", "RTT", "STUN", "SEES US AS", "MTU"])
        };
        for server in &self.servers {
            let mut row = vec![server.name.clone()];
            if with_state {
                row.push(dash(server.state.as_ref()));
            }
            let seen = match (server.stun, server.seen_as) {
                (_, Some(address)) => address.to_string(),
                (Some(_), None) => "no answer".to_owned(),
                (None, None) => "-".to_owned(),
            };
            row.extend([milliseconds(server.rtt_ms), dash(server.stun), seen, dash(server.path_mtu)]);
            rows.add_row(row);
        }
        rows
    }
}

/// From the servers that were asked; `settled`: long enough ago.
pub(crate) fn udp(servers: &[Server], settled: bool) -> Udp {
    if servers.iter().any(|server| server.seen_as.is_some()) {
        Udp::Works
    } else if settled && servers.iter().any(|server| server.stun.is_some()) {
        Udp::Silent
    } else {
        Udp::Unknown
    }
}

/// Without UDP nothing else is left.
pub(crate) fn by_relay(rows: Vec<Reach>) -> Vec<Reach> {
    rows.into_iter().map(|row| Reach { expected: Expected::Relay, ..row }).collect()
}

/// The best address of that family that is not of a private network.
pub(crate) fn ipv6(endpoints: &[OwnEndpoint]) -> Option<SocketAddr> {
    let public = |endpoint: &&OwnEndpoint| {
        endpoint.address.is_ipv6()
            && !meshdp::proto::path::candidate::is_private(endpoint.address.ip())
            && !endpoint.address.ip().is_loopback()
    };
    endpoints.iter().find(public).map(|endpoint| endpoint.address)
}

fn router(picture: &Picture) -> String {
    let Some(router) = picture.router else { return "no default route".to_owned() };
    let known = |name: &str, speaks: Option<bool>| match speaks {
        Some(true) => format!("{name} yes"),
        Some(false) => format!("{name} no"),
        None => format!("{name} ?"),
    };
    let services =
        [known("PCP", picture.pcp), known("NAT-PMP", picture.nat_pmp), known("UPnP", picture.upnp)];
    let mut text = format!("{router}: {}", services.join(", "));
    for mapped in &picture.mapped {
        let _ = write!(text, "; maps {} to us ({})", mapped.external, mapped.protocol);
        if meshdp::proto::path::candidate::is_private(mapped.external.ip()) {
            text.push_str(", behind another NAT");
        }
    }
    text
}

fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Mapped, Protocol};

    fn symmetric(ports: Ports) -> NatBehaviour {
        NatBehaviour {
            mapping: Some(Mapping::AddressAndPortDependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ports,
        }
    }

    fn server(seen_as: Option<&str>) -> Server {
        Server {
            name: "relay-1".to_owned(),
            state: Some("ready".to_owned()),
            rtt_ms: Some(12.34),
            stun: Some("192.0.2.1:3478".parse().unwrap()),
            seen_as: seen_as.map(|address| address.parse().unwrap()),
            path_mtu: Some(1500),
        }
    }

    fn report(seen_as: Option<&str>, router: Option<Picture>) -> Report {
        let servers = vec![server(seen_as)];
        let nat = symmetric(Ports::Random);
        Report {
            udp: udp(&servers, true),
            nat: nat.to_string(),
            nat_class: Some(class_name(nat.class()).to_owned()),
            ipv6: None,
            reach: reach(nat, router.as_ref().is_some_and(|picture| !picture.mapped.is_empty())),
            router,
            endpoints: vec![OwnEndpoint {
                kind: "stun".to_owned(),
                address: "203.0.113.7:4242".parse().unwrap(),
            }],
            servers,
            peers: vec![Peer {
                name: "server".to_owned(),
                network: "home".to_owned(),
                nat: Some("no NAT".to_owned()),
                expected: Some(Expected::Direct),
                direct: Some("198.51.100.7:41641".parse().unwrap()),
                rtt_ms: Some(5.0),
                path_mtu: Some(1469),
            }],
        }
    }

    #[test]
    fn what_works_with_whom_follows_the_matrix() {
        use Expected::{ByChance as C, Direct as D};
        let expected = |own: NatBehaviour| -> Vec<Expected> {
            reach(own, false).iter().map(|row| row.expected).collect()
        };
        let home = NatBehaviour {
            mapping: Some(Mapping::EndpointIndependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ports: Ports::Preserving,
        };
        assert_eq!(expected(home), [D, D, D, D, C]);
        assert_eq!(expected(symmetric(Ports::Random)), [D, D, C, C, C]);
        assert_eq!(expected(symmetric(Ports::Counting(1))), [D, D, D, D, C]);
        assert!(reach(symmetric(Ports::Random), true).iter().all(|row| row.expected == D));
    }

    #[test]
    fn people_read_what_the_network_does_and_what_to_expect() {
        let text = report(Some("203.0.113.7:4242"), None).text();
        for words in [
            "works (1 of 1 STUN servers answered)",
            "symmetric: NAT with an outer port for each destination, with random ports",
            "none that others could reach",
            "not asked (p2p.port_mapping)",
            "203.0.113.7:4242 (stun)",
            "relay, direct by luck",
            "12.3 ms",
            "direct 198.51.100.7:41641",
            "1469",
        ] {
            assert!(text.contains(words), "no {words:?} in\n{text}");
        }
        assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    }

    #[test]
    fn a_network_without_udp_is_called_so() {
        let mut report = report(None, None);
        assert_eq!(report.udp, Udp::Silent);
        report.reach = by_relay(report.reach);
        let text = report.text();
        assert!(text.contains("seems to be blocked: none of 1 STUN servers answered"), "{text}");
        assert!(text.contains("no answer") && !text.contains("direct by luck"), "{text}");
        assert_eq!(udp(&[server(None)], false), Udp::Unknown, "it was asked a moment ago");
    }

    #[test]
    fn a_router_that_maps_a_port_is_shown_with_how_it_does() {
        let mapped = |external: &str| Picture {
            router: Some([192, 168, 1, 1].into()),
            pcp: Some(true),
            nat_pmp: Some(true),
            upnp: None,
            mapped: vec![Mapped {
                protocol: Protocol::Pcp,
                port: 41641,
                external: external.parse().unwrap(),
            }],
        };
        let text = report(Some("203.0.113.7:4242"), Some(mapped("203.0.113.7:41641"))).text();
        let words = "192.168.1.1: PCP yes, NAT-PMP yes, UPnP ?; maps 203.0.113.7:41641 to us (PCP)\n";
        assert!(text.contains(words), "{text}");
        assert!(!text.contains("by luck"), "{text}");
        assert!(router(&mapped("100.64.3.4:41641")).ends_with("behind another NAT"));
        assert_eq!(router(&Picture::default()), "no default route");
    }
}
