//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::LogFormat;

/// EdgeLink's relay and STUN server.
#[derive(Clone, Default, Parser)]
#[command(name = "edgelink-relay", version, about, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// What else than running.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Configuration file, .json or .toml
    #[arg(long, short, value_name = "FILE", env = "EDGELINK_RELAY_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// For trying out: make (and keep) a self-signed certificate
    #[arg(long)]
    pub(crate) dev: bool,
    /// Where nodes connect, like 0.0.0.0:443
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<String>,
    /// wss://controller/ws/server
    #[arg(long, value_name = "URL")]
    pub(crate) controller: Option<String>,
    /// The token that `edgelink-ctl server add` printed (others on this machine can see it; better EDGELINK_CONTROLLER_TOKEN)
    #[arg(long, value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Share the ports with a relay of the same user that runs already, so that it can be stopped afterwards without a gap
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Where metrics and health are served
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) admin: Option<String>,
    /// Where state and the --dev certificate are kept
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// How log lines look
    #[arg(long, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
}

/// Other things to do.
#[derive(Clone, Subcommand)]
pub(crate) enum Command {
    /// Check a configuration and everything it names, without starting; say what the system should be told
    Check {
        /// Configuration file, .json or .toml
        #[arg(value_name = "CONFIG", required_unless_present = "file")]
        config: Option<PathBuf>,
        /// The same
        #[arg(long = "config", short = 'c', value_name = "FILE", conflicts_with = "config")]
        file: Option<PathBuf>,
        /// As for running
        #[arg(long)]
        dev: bool,
    },
    /// Measure on loopback what this machine can relay: starts a relay in this process, pushes frames through it, prints a table
    Bench(BenchOptions),
}

/// How to measure.
#[derive(Clone, clap::Args)]
pub(crate) struct BenchOptions {
    /// Pairs of nodes, one sending and one receiving
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pairs: u32,
    /// Seconds to measure for
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
    /// Bytes of each packet
    #[arg(long, default_value_t = 1400, value_parser = clap::value_parser!(u32).range(16..=60000))]
    pub(crate) size: u32,
    /// Threads of the relay
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,
    /// io_uring, epoll or auto
    #[arg(long, default_value = "auto")]
    pub(crate) driver: String,
    /// Without TLS, as behind a proxy
    #[arg(long)]
    pub(crate) plain: bool,
    /// table or json
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// For whom.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}
