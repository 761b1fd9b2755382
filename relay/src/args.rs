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
    /// Check a configuration and everything it names, without starting
    Check {
        /// Configuration file, .json or .toml
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
        /// As for running
        #[arg(long)]
        dev: bool,
    },
}
