//! What HUP does: reads the configuration again, takes over what can change while nodes are connected, and says what changed and what has to wait for
//! a restart. A configuration that cannot be read changes nothing.

use std::sync::Arc;

use meshdp::engine::relay::{Listener, RelayHandle};

use crate::args::Args;
use crate::config::{self, Settings};
use crate::log::{self, Log};

/// What came of it, by names of keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Holds from now on.
    pub(crate) changed: Vec<&'static str>,
    /// Differs from what runs, and waits.
    pub(crate) restart: Vec<&'static str>,
}

impl Outcome {
    /// To the log.
    pub(crate) fn tell(&self) {
        let changed = if self.changed.is_empty() { "nothing".to_owned() } else { self.changed.join(", ") };
        tracing::info!(changed, "configuration was read again");
        if !self.restart.is_empty() {
            let keys = self.restart.join(", ");
            tracing::warn!(keys, "these changes need a restart, until then what was started with holds");
        }
    }
}

/// Reads file, environment and flags again, and applies what can be applied. `running` holds what runs afterwards.
pub(crate) fn reload(
    args: &Args,
    running: &mut Settings,
    relay: &RelayHandle,
    log: &Log,
) -> anyhow::Result<Outcome> {
    let new = config::load(args, &|name| std::env::var(name).ok())?;
    // The one thing that can still be wrong comes before the first change.
    let filter = log::filter(&new.log_level)?;
    let outcome = compare(running, &new);
    for key in &outcome.changed {
        match *key {
            "limits" => relay.set_limits(&new.relay.limits),
            "relay.tls" => {
                if let Some(tls) = new.relay.listeners.iter().find_map(|listener| listener.tls.as_ref()) {
                    relay.set_tls(tls);
                }
            }
            "relay.trusted_proxies, relay.client_address" => {
                relay.set_trust(&Arc::new(new.relay.trust.clone()));
            }
            "log.level" => log.set_filter(filter.clone())?,
            _ => {}
        }
    }
    running.relay.limits = new.relay.limits;
    running.relay.trust = new.relay.trust;
    running.certificate = new.certificate;
    running.log_level = new.log_level;
    running.drain = new.drain;
    Ok(outcome)
}

fn compare(old: &Settings, new: &Settings) -> Outcome {
    let mut outcome = Outcome::default();
    let (before, after) = (&old.relay, &new.relay);
    for (differs, key) in [
        (before.limits != after.limits, "limits"),
        (old.certificate != new.certificate, "relay.tls"),
        (before.trust != after.trust, "relay.trusted_proxies, relay.client_address"),
        (old.log_level != new.log_level, "log.level"),
        (old.drain != new.drain, "limits.drain_s"),
    ] {
        if differs {
            outcome.changed.push(key);
        }
    }
    let door = |listener: &Listener| {
        (listener.address, listener.tls.is_some(), listener.behind_proxy, listener.proxy_protocol)
    };
    let doors = |listeners: &[Listener]| listeners.iter().map(door).collect::<Vec<_>>();
    let (was, is) = (&before.settings, &after.settings);
    let register = |settings: &Settings| {
        let register = &settings.relay.settings.register;
        (register.data_url.clone(), register.mesh_url.clone(), register.capabilities.clone())
    };
    for (differs, key) in [
        (doors(&before.listeners) != doors(&after.listeners), "relay.listen"),
        (
            (&before.data_path, &before.mesh_path) != (&after.data_path, &after.mesh_path),
            "relay.ws_data, relay.ws_mesh",
        ),
        (before.workers != after.workers, "relay.workers"),
        (before.driver != after.driver, "relay.driver"),
        (was.relay_id != is.relay_id, "relay.id"),
        (register(old) != register(new), "relay.data_url, relay.mesh_url"),
        (was.register.token != is.register.token, "controller.token"),
        (old.controller != new.controller, "controller"),
        (was.token_keys != is.token_keys, "jwt"),
        (before.proxies != after.proxies, "proxy, no_proxy"),
        (was.mesh_peers != is.mesh_peers || before.mesh_roots != after.mesh_roots, "mesh"),
        (before.queue != after.queue, "limits.queue_bytes, limits.queue_total_bytes, limits.queue_age_ms"),
        (before.stun != after.stun || was.register.stun != is.register.stun, "stun"),
        (before.state_dir != after.state_dir, "state_dir"),
        (old.admin != new.admin, "admin"),
        (old.log_format != new.log_format, "log.format"),
    ] {
        if differs {
            outcome.restart.push(key);
        }
    }
    outcome
}
