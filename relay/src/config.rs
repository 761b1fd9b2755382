//! What an operator may say: a file (JSON or TOML), `EDGELINK_` variables over it, flags over both.
//!
//! [`mod@file`] is the file as it stands, [`Settings`] what comes out of [`mod@resolve`]: checked, with defaults, ready to start with. Secrets are never printed.

mod file;
mod resolve;

use std::net::SocketAddr;
use std::time::Duration;

use meshdp::engine::dial::Outbound;
use meshdp::engine::relay::RelayConfig;
use meshdp::engine::relay::dial::WsUrl;
use meshdp::engine::tls::Pin;

use crate::args::Args;
pub(crate) use file::LogFormat;
use file::{File, apply_environment, apply_flags};
use resolve::resolve;

/// The link to the controller.
#[derive(Clone, PartialEq)]
pub(crate) struct ControllerSettings {
    pub(crate) url: WsUrl,
    pub(crate) outbound: Outbound,
    pub(crate) pin: Option<Pin>,
}

/// What to run with.
pub(crate) struct Settings {
    pub(crate) relay: RelayConfig,
    pub(crate) controller: Option<ControllerSettings>,
    pub(crate) admin: Option<SocketAddr>,
    /// The pin of the listeners' certificate.
    pub(crate) certificate: Option<Pin>,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
    pub(crate) drain: Duration,
    /// What an operator should know before the first connection, in order.
    pub(crate) notes: Vec<String>,
}

/// Reads file, environment and flags. `environment` looks a variable up.
pub(crate) fn load(args: &Args, environment: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Settings> {
    let mut file = match &args.config {
        Some(path) => meshdp::config::load::<File>(path)?,
        None => File::default(),
    };
    apply_environment(&mut file, environment)?;
    apply_flags(&mut file, args);
    resolve(file, args, environment)
}

#[cfg(test)]
mod tests;
