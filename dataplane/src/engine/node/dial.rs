//! From the machine's wish for a relay to a connection in the table: a helper connects, then TLS and upgrade go on in the data thread.

use std::sync::Arc;
use std::time::Duration;

use rand_core::RngCore as _;

use super::api::Report;
use super::helper::Ticket;
use super::relay::{Link, Phase, Target};
use super::thread::Worker;
use crate::engine::connection::{ClientOptions, Connection};
use crate::engine::dial::{Connected, MAX_HOSTS};
use crate::engine::driver::Driver;
use crate::engine::outbox::Outbox;
use crate::engine::tls::{ClientTls, parse_pin};
use crate::proto::id::RelayId;
use crate::proto::node::NodeStatus;
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
    /// Whichever answers first.
    pub targets: Vec<Target>,
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
                .and_then(|connected| self.open_link(dial, connected, now));
            if let Err(error) = opened {
                self.dial_failed(id, name, error, now);
            }
        }
        while let Some(n) = self.dials.iter().position(|dial| dial.deadline <= now.instant) {
            let dial = self.dials.swap_remove(n);
            let hosts: Vec<&str> = dial.targets.iter().map(|target| target.authority.as_str()).collect();
            let error = format!("no connection to {} in time", hosts.join(" or "));
            self.dial_failed(dial.relay.id, dial.relay.name, error, now);
        }
    }

    pub(super) fn dial_failed(&mut self, id: RelayId, relay: String, error: String, now: Now) {
        self.node.relay_closed(id, now);
        self.relay_failed(id, relay, error);
    }

    /// Says so, and keeps it for whoever asks how things are.
    pub(super) fn relay_failed(&mut self, id: RelayId, relay: String, error: String) {
        self.errors.insert(id, error.clone());
        (self.report)(Report::RelayFailed { relay, error });
    }

    /// Adds why relays are not there to a picture, where they have not said it themselves.
    pub(super) fn explain(&mut self, status: &mut NodeStatus) {
        self.errors.retain(|id, _| status.relays.iter().any(|relay| relay.id == *id));
        for relay in status.relays.iter_mut().filter(|relay| relay.state != "ready") {
            if relay.error.is_none() {
                relay.error = self.errors.get(&relay.id).cloned();
            }
        }
    }

    pub(super) fn start_dial(&mut self, relay: Relay, now: Now) {
        match self.targets(&relay) {
            Ok((targets, limit, ticket)) => {
                // Helpers keep the limit themselves.
                let deadline = now.instant + limit + Duration::from_millis(500);
                self.dials.push(Dial { ticket, relay, targets, deadline });
            }
            Err(error) => self.dial_failed(relay.id, relay.name, error, now),
        }
    }

    fn targets(&mut self, relay: &Relay) -> Result<(Vec<Target>, Duration, Ticket), String> {
        let mut targets = Vec::new();
        let mut wrong = None;
        for url in relay.data_url.iter().chain(&relay.more_urls).take(MAX_HOSTS) {
            match Target::parse(url) {
                Ok(target) => targets.push(target),
                Err(error) => wrong = Some(error),
            }
        }
        if targets.is_empty() {
            return Err(wrong.unwrap_or_else(|| "it has no address for nodes".to_owned()));
        }
        let hosts: Vec<_> = targets.iter().map(Target::host).collect();
        // A proxy has to connect as well before it answers.
        let proxied = hosts.iter().any(|host| self.outbound.is_proxied(host));
        let limit = self.limits.dial * if proxied { 2 } else { 1 };
        let ticket = self.helpers.dial(&self.outbound, hosts, limit).map_err(|error| error.to_string())?;
        Ok((targets, limit, ticket))
    }

    pub(super) fn open_link(&mut self, dial: Dial, connected: Connected, now: Now) -> Result<(), String> {
        let Dial { relay, mut targets, .. } = dial;
        if connected.host >= targets.len() {
            return Err("a connection to nobody who was dialled".to_owned());
        }
        let target = targets.swap_remove(connected.host);
        let (tls, identity) = if target.tls {
            let tls = self.tls_config(relay.id, relay.tls_pin.as_deref())?;
            (Some((Arc::clone(&tls.config), target.server_name()?)), Some(tls))
        } else {
            (None, None)
        };
        let options =
            ClientOptions { tls, host: target.authority, path: target.path, max_message: MAX_MESSAGE };
        let (mut upgrade_seed, mut mask_seed) = ([0; 16], [0; 32]);
        self.random.fill_bytes(&mut upgrade_seed);
        self.random.fill_bytes(&mut mask_seed);
        let connection =
            Connection::client(&options, &self.pool, upgrade_seed).map_err(|error| error.to_string())?;
        let token = self.driver.stream(connected.socket).map_err(|error| error.to_string())?;
        let outbox =
            Outbox::new(Role::Client, connection.framing(), self.limits.queue, &self.pool, mask_seed);
        let phase = Phase::Opening { deadline: now.instant + self.limits.upgrade };
        let (relay, name) = (relay.id, relay.name);
        self.links.insert(Link { relay, name, token, tls: identity, connection, outbox, phase });
        Ok(())
    }

    /// One for each relay: its tickets are of no use elsewhere, and what it asks for is its own.
    fn tls_config(&mut self, relay: RelayId, pin: Option<&str>) -> Result<ClientTls, String> {
        let pin = pin.map(parse_pin).transpose().map_err(|error| error.to_string())?;
        if let Some((known, tls)) = self.tls.get(&relay)
            && *known == pin
        {
            return Ok(tls.clone());
        }
        let tls = ClientTls::new(&self.outbound.roots, pin, self.outbound.certificate.as_ref());
        let tls = tls.map_err(|error| error.to_string())?;
        self.tls.insert(relay, (pin, tls.clone()));
        Ok(tls)
    }
}
