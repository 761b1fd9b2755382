//! `edgelink status`: what the daemon knows.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{bytes, duration, lines, milliseconds, print_json, table};
use crate::args::{Output, StatusArgs};
use crate::ipc::client::Daemon;
use crate::ipc::message::{Answer, Peer, Relay, Request, Status};

/// A redraw takes longer than this.
const FASTEST: f64 = 0.1;

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let Some(seconds) = args.watch else {
        return match args.output.output {
            Output::Json => print_json(&ask(args)?),
            Output::Table => {
                print!("{}", text(&*ask(args)?));
                Ok(())
            }
        };
    };
    // The first one says whether there is a daemon at all; one that is restarted later is waited for.
    let mut status = Ok(ask(args)?);
    let pause = Duration::try_from_secs_f64(seconds.max(FASTEST)).context("--watch SECONDS")?;
    loop {
        show(args.output.output, &status).context("cannot print")?;
        std::thread::sleep(pause);
        status = ask(args);
    }
}

fn ask(args: &StatusArgs) -> anyhow::Result<Box<Status>> {
    let mut daemon = Daemon::find(&args.client)?;
    daemon.ask(&Request::Status)?;
    match daemon.answer()? {
        Some(Answer::Status(status)) => Ok(status),
        _ => bail!("the daemon gave no status: are this program and the daemon of the same version?"),
    }
}

/// One picture of many: over the last one on a terminal, below it elsewhere; a document on a line for programs.
fn show(output: Output, status: &anyhow::Result<Box<Status>>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match (output, status) {
        (Output::Json, Ok(status)) => {
            serde_json::to_writer(&mut out, status)?;
            writeln!(out)?;
        }
        (Output::Json, Err(error)) => eprintln!("{error:#}"),
        (Output::Table, status) => {
            let text = match status {
                Ok(status) => text(status),
                Err(error) => format!("{error:#}\n"),
            };
            if out.is_terminal() {
                write!(out, "{}", redraw(&text))?;
            } else {
                writeln!(out, "{text}")?;
            }
        }
    }
    out.flush()
}

/// From the top left, each line cleared to its end, then everything below: nothing flickers.
fn redraw(text: &str) -> String {
    let lines: String = text.lines().flat_map(|line| [line, "\x1b[K\n"]).collect();
    format!("\x1b[H{lines}\x1b[J")
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let controller = &status.controller;
    let _ = write!(
        out,
        "{} on {}, up {}, MTU {}, {}\ncontroller {}: {} for {}\n",
        status.hostname,
        status.interface,
        duration(status.uptime_s),
        status.mtu,
        status.driver,
        controller.url,
        controller.state.label(),
        duration(controller.since_s)
    );
    if let Some(message) = &controller.message {
        let _ = writeln!(out, "  {message}");
    }
    if let Some(proxy) = &status.proxy {
        let _ = writeln!(out, "through the proxy {proxy}");
    }
    let _ = write!(out, "\n{}", memberships(status));
    if !status.peers.is_empty() {
        let _ = write!(out, "\n{}", peers(&status.peers));
    }
    for peer in &status.peers {
        let Some(distrust) = &peer.untrusted else { continue };
        let _ = writeln!(out, "\n{} is not trusted: {}", peer.name, distrust.message);
        if let (Some(now), Some(known)) = (distrust.machine_key, distrust.pinned_machine_key) {
            let _ = writeln!(out, "  known {known}\n  now   {now}");
        }
        let _ = writeln!(out, "  {}", distrust.advice);
    }
    if !status.relays.is_empty() {
        let _ = write!(out, "\n{}", relays(&status.relays));
    }
    if !status.routes.is_empty() {
        let routes: Vec<String> = status.routes.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "\nroutes into {}: {}", status.interface, routes.join(", "));
    }
    if !status.endpoints.is_empty() {
        let kinds: Vec<String> =
            status.endpoints.iter().map(|e| format!("{} ({})", e.address, e.kind)).collect();
        let _ = writeln!(out, "\nreachable at {}; {}", kinds.join(", "), status.nat);
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
        let _ = writeln!(out, "\ndropped: {}", drops.join(", "));
    }
    out
}

fn memberships(status: &Status) -> String {
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
    lines(rows)
}

fn peers(peers: &[Peer]) -> String {
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
        let path = match (peer.direct, peer.path_names.as_slice()) {
            (Some(address), _) => format!("direct {address}"),
            (None, []) => "-".to_owned(),
            (None, relays) => relays.join(" > "),
        };
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
    lines(rows)
}

fn relays(relays: &[Relay]) -> String {
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
    lines(rows)
}

fn join<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redraw_leaves_nothing_of_longer_lines_and_of_more_of_them() {
        assert_eq!(redraw("a\nbc\n"), "\x1b[Ha\x1b[K\nbc\x1b[K\n\x1b[J");
        assert_eq!(redraw(""), "\x1b[H\x1b[J");
    }
}
