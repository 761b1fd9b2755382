//! `edgelink status`: what the daemon knows.

use anyhow::bail;

use super::{bytes, duration, milliseconds, print_json, print_table, table};
use crate::args::{Output, StatusArgs};
use crate::ipc::client::Daemon;
use crate::ipc::message::{Answer, Peer, Relay, Request, Status};

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let mut daemon = Daemon::find(&args.client)?;
    daemon.ask(&Request::Status)?;
    let Some(Answer::Status(status)) = daemon.answer()? else {
        bail!("the daemon gave no status: are this program and the daemon of the same version?");
    };
    match args.output.output {
        Output::Json => print_json(&status),
        Output::Table => {
            print(&status);
            Ok(())
        }
    }
}

fn print(status: &Status) {
    println!(
        "{} on {}, up {}, MTU {}, {}",
        status.hostname,
        status.interface,
        duration(status.uptime_s),
        status.mtu,
        status.driver
    );
    let controller = &status.controller;
    println!(
        "controller {}: {} for {}",
        controller.url,
        controller.state.label(),
        duration(controller.since_s)
    );
    if let Some(message) = &controller.message {
        println!("  {message}");
    }
    println!();
    print_memberships(status);
    if !status.peers.is_empty() {
        println!();
        print_peers(&status.peers);
    }
    if !status.relays.is_empty() {
        println!();
        print_relays(&status.relays);
    }
    if !status.routes.is_empty() {
        let routes: Vec<String> = status.routes.iter().map(ToString::to_string).collect();
        println!("\nroutes into {}: {}", status.interface, routes.join(", "));
    }
    if !status.routes_down.is_empty() {
        println!("\nadvertised, and cannot be reached from here: {}", join(&status.routes_down));
    }
    if let Some(exit) = &status.exit {
        if exit.routes.is_empty() {
            println!(
                "\nexit node {}: not there, or not enabled by the operator. Nothing leaves this machine",
                exit.name
            );
        } else {
            println!("\nexit node {}: takes {}", exit.name, join(&exit.routes));
        }
    }
    if !status.drops.is_empty() {
        let drops: Vec<String> =
            status.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        println!("\ndropped: {}", drops.join(", "));
    }
}

fn print_memberships(status: &Status) {
    let mut rows = table(&["NETWORK", "NODE", "NAME", "STATE", "ADDRESSES"]);
    for membership in &status.memberships {
        rows.add_row([
            membership.network.clone(),
            membership.node_id.to_string(),
            membership.name.clone(),
            "member".to_owned(),
            join(&membership.addresses),
        ]);
    }
    for pending in &status.pending {
        let (network, node) = (pending.network.clone(), pending.node_id.to_string());
        rows.add_row([network, node, "-".to_owned(), "pending".to_owned(), "-".to_owned()]);
    }
    print_table(rows);
}

fn print_peers(peers: &[Peer]) {
    let mut rows =
        table(&["PEER", "NODE", "NETWORK", "ADDRESSES", "STATE", "PATH", "RTT", "SENT", "RECEIVED"]);
    for peer in peers {
        let state = match (peer.session.as_str(), peer.online) {
            _ if peer.silent => "silent",
            ("established", _) => "connected",
            ("none", true) => "online",
            ("none", false) => "offline",
            (other, _) => other,
        };
        let path = if peer.path.is_empty() { "-".to_owned() } else { peer.path_names.join(" > ") };
        rows.add_row([
            peer.name.clone(),
            peer.node_id.to_string(),
            peer.network.clone(),
            join(&peer.addresses),
            state.to_owned(),
            path,
            milliseconds(peer.rtt_ms),
            bytes(peer.tx_bytes),
            bytes(peer.rx_bytes),
        ]);
    }
    print_table(rows);
}

fn print_relays(relays: &[Relay]) {
    let mut rows = table(&["RELAY", "ID", "STATE", "RTT", "SAYS"]);
    for relay in relays {
        rows.add_row([
            relay.name.clone(),
            relay.id.to_string(),
            relay.state.clone(),
            milliseconds(relay.rtt_ms),
            relay.error.clone().unwrap_or_default(),
        ]);
    }
    print_table(rows);
}

fn join<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}
