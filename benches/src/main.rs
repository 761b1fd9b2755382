//! Whole-system benchmarks: EdgeLink's real binaries beside what a user would pick instead, in one run.
//!
//! `edgelink-bench relay` measures a relay ([`relay`]), `edgelink-bench node` a tunnel between two nodes ([`node`]); `edgelink-bench plain` is the
//! rival that needs no installation ([`plain`]), and is started by the first. Figures go to `target/bench/`, the table to stdout, progress to stderr.

mod machine;
mod node;
mod plain;
mod plot;
mod process;
mod relay;
mod report;
mod stats;

use clap::{Parser, Subcommand};

/// Where figures go.
const FOLDER: &str = "target/bench";

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// CPU time and throughput of relays under load on loopback: the server on one core, the clients on another.
    Relay(relay::Options),
    /// Throughput, CPU time, delay and memory of tunnels between two network namespaces: ours and WireGuard's in user space.
    Node(node::Options),
    /// A plain WebSocket forwarder on tokio: the rival. Ends when stdin does.
    Plain(plain::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Relay(options) => relay::run(&options),
        Command::Node(options) => node::run(&options),
        Command::Plain(options) => plain::run(&options),
    }
}
