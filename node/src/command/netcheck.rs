//! `edgelink netcheck`: what the daemon has found out, or what STUN servers say when there is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::time::Duration;

use anyhow::{Context as _, bail};
use meshdp::proto::path::nat::{Discovery, NatBehaviour};
use meshdp::proto::time::Instant as Moment;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng as _;
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{Instant, sleep_until};

use super::print_json;
use crate::args::{NetcheckArgs, Output};
use crate::ipc::client::Daemon;
use crate::ipc::message::{Answer, OwnEndpoint, Request};
use crate::keys::random_secret;
use crate::netcheck::{Report, Server, by_relay, class_name, ipv6, reach, udp};
use crate::{mapping, network};

/// The longest that servers are waited for: four of RFC 8489's seven requests, and the tests that follow an answer.
const PATIENCE: Duration = Duration::from_secs(12);
/// Servers asked; [`Discovery`] takes three of each family.
const MAX_SERVERS: usize = 6;

/// Runs the command.
pub(crate) fn run(args: &NetcheckArgs) -> anyhow::Result<()> {
    let report = if args.stun.is_empty() {
        let mut daemon = Daemon::find(&args.client).map_err(|error| {
            anyhow::anyhow!(
                "{error}\nWithout a daemon, name a STUN server: edgelink netcheck --stun relay.example:3478"
            )
        })?;
        daemon.ask(&Request::Status)?;
        let Some(Answer::Status(status)) = daemon.answer()? else {
            bail!("the daemon gave no status: are this program and the daemon of the same version?");
        };
        Report::of(*status, path_mtu)
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio::task::LocalSet::new().block_on(&runtime, ask(&args.stun))?
    };
    match args.output.output {
        Output::Json => print_json(&report),
        Output::Table => {
            print!("{}", report.text());
            Ok(())
        }
    }
}

/// What the kernel knows of the way to an address. Connecting a datagram socket sends nothing.
fn path_mtu(to: SocketAddr) -> Option<u32> {
    let socket = StdSocket::bind(any(to.is_ipv4())).ok()?;
    socket.connect(to).ok()?;
    match to {
        SocketAddr::V4(_) => rustix::net::sockopt::ip_mtu(&socket).ok(),
        SocketAddr::V6(_) => rustix::net::sockopt::ipv6_mtu(&socket).ok(),
    }
}

const fn any(v4: bool) -> SocketAddr {
    let ip = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(ip, 0)
}

/// Asks STUN servers and the router, from sockets of its own.
async fn ask(names: &[String]) -> anyhow::Result<Report> {
    let mut servers: Vec<Server> = Vec::new();
    for name in names {
        let name = if name.contains(':') { name.clone() } else { format!("{name}:3478") };
        let found = lookup_host(&name).await.with_context(|| format!("cannot find {name}"))?;
        for address in found {
            let same = servers.iter().any(|known| known.stun == Some(address));
            if !same && servers.len() < MAX_SERVERS {
                servers.push(Server {
                    name: name.clone(),
                    state: None,
                    rtt_ms: None,
                    stun: Some(address),
                    seen_as: None,
                    path_mtu: path_mtu(address),
                });
            }
        }
    }
    let local: Vec<IpAddr> = network::look().await?.iter().map(|address| address.net.addr()).collect();
    let addresses = |v4: bool| -> Vec<SocketAddr> {
        servers.iter().filter_map(|server| server.stun).filter(|address| address.is_ipv4() == v4).collect()
    };
    // For the router: nobody else gets this port meanwhile.
    let reserved = StdSocket::bind(any(true)).context("no UDP socket")?;
    let (four, six, router) = tokio::join!(
        discover(addresses(true), &local, true, PATIENCE),
        discover(addresses(false), &local, false, PATIENCE),
        mapping::probe(&reserved),
    );
    let mut endpoints = Vec::new();
    let mut nat = NatBehaviour::default();
    for (v4, found) in [(true, four), (false, six)] {
        // A machine without IPv6 has no such socket.
        let Ok(found) = found else { continue };
        if v4 {
            nat = found.behaviour;
        }
        for (address, seen_as, rtt) in found.seen {
            if let Some(server) = servers.iter_mut().find(|server| server.stun == Some(address)) {
                server.seen_as = Some(seen_as);
                server.rtt_ms = Some(rtt.as_secs_f64() * 1000.0);
            }
        }
        let lan = local.iter().filter(|ip| ip.is_ipv4() == v4);
        endpoints.extend(lan.map(|ip| endpoint("lan", SocketAddr::new(*ip, found.port))));
        let known = |address: SocketAddr| move |known: &OwnEndpoint| known.address == address;
        if let Some(mapped) = found.mapped.filter(|mapped| !endpoints.iter().any(known(*mapped))) {
            endpoints.push(endpoint("stun", mapped));
        }
    }
    let udp = udp(&servers, true);
    let maps = router.pcp == Some(true) || router.nat_pmp == Some(true) || router.upnp == Some(true);
    let rows = reach(nat, maps);
    Ok(Report {
        udp,
        nat: nat.to_string(),
        nat_class: nat.mapping.map(|_| class_name(nat.class()).to_owned()),
        ipv6: ipv6(&endpoints),
        router: Some(router),
        endpoints,
        reach: if udp == crate::netcheck::Udp::Silent { by_relay(rows) } else { rows },
        servers,
        peers: Vec::new(),
    })
}

fn endpoint(kind: &str, address: SocketAddr) -> OwnEndpoint {
    OwnEndpoint { kind: kind.to_owned(), address }
}

/// What the servers of one family said.
#[derive(Debug)]
struct Found {
    port: u16,
    behaviour: NatBehaviour,
    mapped: Option<SocketAddr>,
    /// Server, what it saw, round trip.
    seen: Vec<(SocketAddr, SocketAddr, Duration)>,
}

/// Runs [`Discovery`] on a socket until it has nothing more to ask.
async fn discover(
    servers: Vec<SocketAddr>,
    local: &[IpAddr],
    v4: bool,
    patience: Duration,
) -> anyhow::Result<Found> {
    let socket = UdpSocket::bind(any(v4)).await?;
    let port = socket.local_addr()?.port();
    let mut found = Found { port, behaviour: NatBehaviour::default(), mapped: None, seen: Vec::new() };
    if servers.is_empty() {
        return Ok(found);
    }
    let begun = Instant::now();
    let mut rng = ChaCha20Rng::from_seed(*random_secret());
    let mut discovery = Discovery::new(&servers, local.to_vec(), port, &mut rng, Moment::ZERO);
    let mut sent: Vec<(SocketAddr, Instant)> = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        while let Some((to, datagram)) = discovery.poll_transmit() {
            sent.retain(|(asked, _)| *asked != to);
            sent.push((to, Instant::now()));
            // One that cannot be sent is one that is not answered.
            let _ = socket.send_to(&datagram, to).await;
        }
        if discovery.is_idle() {
            break;
        }
        let next = discovery.poll_timeout().map_or(patience, |at| at.saturating_since(Moment::ZERO));
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An ICMP error belongs to a request that is not answered.
                let Ok((length, from)) = received else { continue };
                let now = Moment::ZERO + begun.elapsed();
                if discovery.handle_datagram(from, &buffer[..length], &mut rng, now)
                    && found.seen.iter().all(|(known, ..)| *known != from)
                    && let Some(seen_as) = discovery.seen_by(from)
                    && let Some((_, at)) = sent.iter().find(|(asked, _)| *asked == from)
                {
                    found.seen.push((from, seen_as, at.elapsed()));
                }
            }
            () = sleep_until(begun + next.min(patience)) => {
                if begun.elapsed() >= patience {
                    break;
                }
                discovery.handle_timeout(&mut rng, Moment::ZERO + begun.elapsed());
            }
        }
    }
    found.behaviour = discovery.behaviour();
    found.mapped = discovery.mapped();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_answers_is_seen_and_one_that_does_not_is_given_up() {
        use meshdp::proto::wire::stun;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let server = StdSocket::bind("127.0.0.1:0").unwrap();
            let address = server.local_addr().unwrap();
            let answering = std::thread::spawn(move || {
                let mut buffer = [0; 1500];
                let (length, from) = server.recv_from(&mut buffer).unwrap();
                let mut answer = Vec::new();
                stun::respond(&buffer[..length], from, &mut answer);
                server.send_to(&answer, from).unwrap();
            });
            let found =
                discover(vec![address], &[Ipv4Addr::LOCALHOST.into()], true, Duration::from_secs(1)).await;
            answering.join().unwrap();
            let found = found.unwrap();
            assert_eq!(found.mapped, Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), found.port)));
            assert_eq!(found.seen.len(), 1);

            let silent = StdSocket::bind("127.0.0.1:0").unwrap();
            let found = discover(vec![silent.local_addr().unwrap()], &[], true, Duration::from_secs(1))
                .await
                .unwrap();
            assert!(found.seen.is_empty() && found.mapped.is_none());
        });
    }
}
