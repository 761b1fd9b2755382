//! Answers one command each.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use meshdp::proto::node::{AcceptedKey, NodeStatus, PeerStatus};
use tokio::time::{Instant, sleep_until};

use super::{Shared, view};
use crate::host::Summary;
use crate::ipc::message::{Answer, Probe, Request, relay_name};
use crate::ipc::server::Client;

/// The shortest time between two echoes.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// The longest a ping may wait for one answer.
const MAX_TIMEOUT: Duration = Duration::from_mins(1);

/// Serves `client` beside everything else. `host`: what the daemon has done to the machine now.
pub(super) fn spawn(mut client: Client, shared: Rc<Shared>, host: Summary) {
    shared.clients.set(shared.clients.get() + 1);
    tokio::task::spawn_local(async move {
        let served = serve(&mut client, &shared, host).await;
        match served {
            Ok(Then::Close) => {}
            Ok(Then::Stop) => drop(shared.stop.send(client).await),
            Err(error) => {
                tracing::debug!(%error, "a command failed");
                let _ = client.answer(&Answer::Error { message: format!("{error:#}") }).await;
            }
        }
        shared.clients.set(shared.clients.get() - 1);
    });
}

enum Then {
    Close,
    /// The client's connection closes when everything is down.
    Stop,
}

async fn serve(client: &mut Client, shared: &Shared, host: Summary) -> anyhow::Result<Then> {
    match client.request().await? {
        Request::Status => {
            let node = shared.data.status().await?;
            let status = view::status(shared, &node, host);
            client.answer(&Answer::Status(Box::new(status))).await?;
        }
        Request::Down => {
            client.answer(&Answer::Stopping).await?;
            return Ok(Then::Stop);
        }
        Request::AcceptKey { target, machine_key } => {
            let node = shared.data.status().await?;
            let peer = find_peer(&node, &target)?;
            let accepted =
                shared.data.accept_key(peer.node_id, machine_key).await.with_context(|| peer.name.clone())?;
            let (name, network) = (peer.name.clone(), peer.network.clone());
            tracing::warn!(peer = name, machine_key = %accepted.machine_key, before = %accepted.before, "accepted another machine key");
            let AcceptedKey { machine_key, before } = accepted;
            client
                .answer(&Answer::KeyAccepted { node_id: peer.node_id, name, network, machine_key, before })
                .await?;
        }
        Request::Ping { target, count, interval_ms, timeout_ms } => {
            let interval = Duration::from_millis(interval_ms).max(MIN_INTERVAL);
            let limit = Duration::from_millis(timeout_ms).min(MAX_TIMEOUT);
            ping(client, shared, &target, count, interval, limit).await?;
        }
    }
    Ok(Then::Close)
}

async fn ping(
    client: &mut Client,
    shared: &Shared,
    target: &str,
    count: u32,
    interval: Duration,
    limit: Duration,
) -> anyhow::Result<()> {
    let node = shared.data.status().await?;
    let peer = find_peer(&node, target)?;
    client
        .answer(&Answer::PingTarget {
            node_id: peer.node_id,
            name: peer.name.clone(),
            network: peer.network.clone(),
            addresses: peer.addresses.clone(),
        })
        .await?;
    let mut next = Instant::now();
    for sequence in 1..=count {
        tokio::select! {
            () = sleep_until(next) => {}
            () = client.gone() => return Ok(()),
        }
        next = Instant::now() + interval;
        let mut probe = Probe { sequence, rtt_ms: None, path: Vec::new(), direct: None, error: None };
        match shared.data.echo(peer.node_id, limit).await {
            Ok(Some(echo)) => {
                probe.rtt_ms = Some(echo.rtt.as_secs_f64() * 1000.0);
                probe.direct = echo.direct;
                probe.path = echo.path.iter().map(|&id| relay_name(&node, id)).collect();
            }
            Ok(None) => {}
            Err(error) => probe.error = Some(error.to_string()),
        }
        client.answer(&Answer::Probe(probe)).await?;
    }
    Ok(())
}

/// By node id, address, name, or `name.network` where a name is in several networks.
fn find_peer<'a>(node: &'a NodeStatus, target: &str) -> anyhow::Result<&'a PeerStatus> {
    let named = |peer: &&PeerStatus| {
        peer.name.eq_ignore_ascii_case(target)
            || format!("{}.{}", peer.name, peer.network).eq_ignore_ascii_case(target)
    };
    let found: Vec<&PeerStatus> = if let Ok(address) = target.parse::<std::net::IpAddr>() {
        node.peers.iter().filter(|peer| peer.addresses.contains(&address)).collect()
    } else if let Ok(id) = target.parse::<u32>() {
        node.peers.iter().filter(|peer| peer.node_id.0 == id || named(peer)).collect()
    } else {
        node.peers.iter().filter(named).collect()
    };
    match found.as_slice() {
        [peer] => Ok(peer),
        [] => bail!("{}", unknown_peer(node, target)),
        several => {
            let names: Vec<String> =
                several.iter().map(|peer| format!("{}.{}", peer.name, peer.network)).collect();
            bail!("{target:?} is the name of several peers: say which with {}", names.join(" or "))
        }
    }
}

fn unknown_peer(node: &NodeStatus, target: &str) -> String {
    let own = node.memberships.iter().any(|membership| {
        membership.name.eq_ignore_ascii_case(target)
            || membership.node_id.to_string() == target
            || membership.addresses.iter().any(|address| address.addr().to_string() == target)
    });
    if own {
        return format!("{target} is this machine itself");
    }
    if node.peers.is_empty() {
        return "this machine has no peers yet: `edgelink status` says how things stand".to_owned();
    }
    let nearest = node
        .peers
        .iter()
        .map(|peer| (strsim::damerau_levenshtein(&peer.name, target), &peer.name))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    match nearest {
        Some((_, name)) => format!("no peer {target:?}; did you mean {name:?}?"),
        None => format!("no peer {target:?}: `edgelink status` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use meshdp::proto::id::NodeId;
    use meshdp::proto::node::MembershipStatus;
    use meshdp::proto::wire::control::Base64;

    use super::*;

    fn peer(id: u32, name: &str, network: &str) -> PeerStatus {
        PeerStatus {
            node_id: NodeId(id),
            name: name.to_owned(),
            network: network.to_owned(),
            addresses: vec![std::net::IpAddr::from([10, 0, 1, id as u8])],
            routes: Vec::new(),
            routes_down: Vec::new(),
            silent: false,
            online: true,
            session: "none",
            session_age_s: None,
            cipher: None,
            post_quantum: None,
            machine_key: None,
            pinned_machine_key: None,
            untrusted: None,
            path: Vec::new(),
            direct: None,
            direct_kind: None,
            direct_mtu: None,
            nat: None,
            rtt_ms: None,
            tx_bytes: 0,
            tx_packets: 0,
            rx_bytes: 0,
            rx_packets: 0,
            last_heard_s: None,
        }
    }

    fn node() -> NodeStatus {
        NodeStatus {
            config_version: 1,
            machine_key: Base64([0; 32]),
            mtu: 1400,
            memberships: vec![MembershipStatus {
                node_id: NodeId(1),
                name: "laptop".to_owned(),
                network: "home".to_owned(),
                addresses: vec!["10.0.1.1/24".parse().unwrap()],
            }],
            peers: vec![peer(2, "server", "home"), peer(3, "server", "work"), peer(4, "printer", "home")],
            relays: Vec::new(),
            nat: meshdp::proto::path::nat::NatBehaviour::default(),
            drops: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn peers_are_found_by_id_address_and_name() {
        let node = node();
        for target in ["4", "10.0.1.4", "printer", "Printer", "printer.home"] {
            assert_eq!(find_peer(&node, target).unwrap().node_id, NodeId(4), "{target}");
        }
        assert_eq!(find_peer(&node, "server.work").unwrap().node_id, NodeId(3));
    }

    #[test]
    fn peers_that_are_not_found_get_a_hint() {
        let node = node();
        let hint = |target| find_peer(&node, target).unwrap_err().to_string();
        assert!(hint("server").contains("server.home or server.work"));
        assert!(hint("pritner").contains("\"printer\""));
        assert!(hint("10.0.1.1").contains("this machine itself") && hint("laptop").contains("itself"));
        assert!(hint("elsewhere").contains("edgelink status"));
    }
}
