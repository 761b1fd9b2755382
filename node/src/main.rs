//! `edgelink`: EdgeLink's node, the daemon and its command line in one program.
//!
//! [`args`] reads the command line, [`command`] has a file per command. `up` runs the [`daemon`]: [`config`] and [`keys`] from disk, the [`control`] link to the
//! controller, the data thread of `meshdp::engine::node` for the packets, and [`system`] for the interface, [`host`] for routes, forwarding and the like, [`names`] for the resolver. The other commands talk
//! to the daemon over [`ipc`].

mod args;
mod command;
mod config;
mod control;
mod daemon;
mod discovery;
mod host;
mod ipc;
mod keys;
mod mapping;
mod names;
mod netcheck;
mod network;
mod system;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Up(args) => command::up::run(args),
        Command::Down(args) => command::down::run(args),
        Command::Status(args) => command::status::run(args),
        Command::Ping(args) => command::ping::run(args),
        Command::Netcheck(args) => command::netcheck::run(args),
        Command::Keys(args) => command::keys::run(args),
        Command::Version(args) => command::version::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
