//! From the machine's wish for a relay to a connection in the table: a helper connects, then TLS and upgrade go on in the data thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rand_core::RngCore as _;
use rustls::ClientConfig;

use super::api::Report;
use super::helper::Ticket;
use super::relay::{Link, Phase, Target};
use super::thread::Worker;
use crate::engine::connection::{ClientOptions, Connection};
use crate::engine::driver::Driver;
use crate::engine::outbox::Outbox;
use crate::engine::tls::{Roots, TlsError, client_config, parse_pin};
use crate::proto::id::RelayId;
use crate::proto::time::{Instant, Now};
use crate::proto::wire::control::node::Relay;
use crate::proto::wire::frame::MAX_FRAME;
use crate::proto::wire::websocket::Role;

/// The longest WebSocket message that a relay may send: a full frame and others beside it.
const MAX_MESSAGE: usize = 4 * MAX_FRAME;

/// A connection that a helper is making.
pub(super) struct Dial {
    pub ticket: Ticket,
    pub relay: Relay,
    pub target: Target,
    pub deadline: Instant,
}

impl<D: Driver, F: FnMut(Report)> Worker<D, F> {
    pub(super) fn handle_dials(&mut self, now: Now) {
        while let Some((ticket, result)) = self.helpers.poll() {
            let Some(n) = self.dials.iter().position(|dial| dial.ticket == ticket) else { continue };
            let dial = self.dials.swap_remove(n);
            let (id, name) = (dial.relay.id, dial.relay.name.clone());
            let opened = result
                .map_err(|error| error.to_string())
                .and_then(|socket| self.open_link(dial, socket, now));
            if let Err(error) = opened {
                self.dial_failed(id, name, error, now);
            }
        }
        while let Some(n) = self.dials.iter().position(|dial| dial.deadline <= now.instant) {
            let dial = self.dials.swap_remove(n);
            self.dial_failed(
                dial.relay.id,
                dial.relay.name,
                format!("no connection to {} in time", dial.target.authority),
                now,
            );
        }
    }

    pub(super) fn dial_failed(&mut self, id: RelayId, relay: String, error: String, now: Now) {
        self.node.relay_closed(id, now);
        (self.report)(Report::RelayFailed { relay, error });
    }

    pub(super) fn start_dial(&mut self, relay: Relay, now: Now) {
        let started =
            relay.data_url.as_deref().ok_or_else(|| "it has no address for nodes".to_owned()).and_then(
                |url| {
                    let target = Target::parse(url)?;
                    let ticket = self
                        .helpers
                        .dial(target.host.clone(), target.port, self.limits.dial)
                        .map_err(|error| error.to_string())?;
                    Ok((target, ticket))
                },
            );
        match started {
            Ok((target, ticket)) => {
                // Helpers keep the limit themselves, unless name resolution hangs.
                let deadline = now.instant + self.limits.dial + Duration::from_millis(500);
                self.dials.push(Dial { ticket, relay, target, deadline });
            }
            Err(error) => self.dial_failed(relay.id, relay.name, error, now),
        }
    }

    pub(super) fn open_link(&mut self, dial: Dial, socket: OwnedFd, now: Now) -> Result<(), String> {
        let Dial { relay, target, .. } = dial;
        let tls = if target.tls {
            Some((self.tls_config(relay.tls_pin.as_deref())?, target.server_name()?))
        } else {
            None
        };
        let options =
            ClientOptions { tls, host: target.authority, path: target.path, max_message: MAX_MESSAGE };
        let (mut upgrade_seed, mut mask_seed) = ([0; 16], [0; 32]);
        self.random.fill_bytes(&mut upgrade_seed);
        self.random.fill_bytes(&mut mask_seed);
        let connection =
            Connection::client(&options, &self.pool, upgrade_seed).map_err(|error| error.to_string())?;
        let token = self.driver.stream(socket).map_err(|error| error.to_string())?;
        let outbox =
            Outbox::new(Role::Client, connection.framing(), self.limits.queue, &self.pool, mask_seed);
        let phase = Phase::Opening { deadline: now.instant + self.limits.upgrade };
        self.links.insert(Link { relay: relay.id, name: relay.name, token, connection, outbox, phase });
        Ok(())
    }

    pub(super) fn tls_config(&mut self, pin: Option<&str>) -> Result<Arc<ClientConfig>, String> {
        let pin = pin.map(parse_pin).transpose().map_err(|error| error.to_string())?;
        if let Some(config) = self.tls.get(&pin) {
            return Ok(Arc::clone(config));
        }
        let config = match client_config(&self.roots, pin) {
            // A machine without a certificate store can still talk to pinned relays.
            Err(TlsError::NoRoots) if pin.is_some() => client_config(&Roots::None, pin),
            other => other,
        };
        let config = config.map_err(|error| error.to_string())?;
        self.tls.insert(pin, Arc::clone(&config));
        Ok(config)
    }
}
