//! One relay connection of the data thread, and the table of them.
//!
//! A [`Link`] is the bytes' side only (socket, TLS, WebSocket, what waits); whether the relay has let us in, how far away it is and when to
//! dial again is known to the machine. Links are found by the driver's slot number when bytes come and by relay id when a packet goes.

use rustls::pki_types::ServerName;

use crate::engine::connection::Connection;
use crate::engine::dial::Host;
use crate::engine::driver::Token;
use crate::engine::outbox::Outbox;
use crate::engine::tls::ClientTls;
use crate::proto::id::{IdMap, RelayId};
use crate::proto::time::Instant;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// TLS and upgrade, until the deadline.
    Opening {
        /// Given up then.
        deadline: Instant,
    },
    /// Carries frames.
    Open,
    /// On its way out: the machine has forgotten it; cut at the deadline.
    Closing {
        /// Cut then.
        deadline: Instant,
        /// No more will be sent.
        shut: bool,
    },
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pub relay: RelayId,
    /// For the log.
    pub name: String,
    pub token: Token,
    /// `None`: without TLS.
    pub tls: Option<ClientTls>,
    pub connection: Connection,
    pub outbox: Outbox,
    pub phase: Phase,
}

impl Link {
    /// When something has to be done about it if nothing happens.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Opening { deadline } | Phase::Closing { deadline, .. } => Some(deadline),
            Phase::Open => None,
        }
    }

    /// `what` went wrong, with what may be the reason.
    pub(super) fn explain(&self, what: String) -> String {
        let opening = matches!(self.phase, Phase::Opening { .. });
        if opening && self.tls.as_ref().is_some_and(ClientTls::lacks_certificate) {
            what + ". It asks for a client certificate: name one with client_cert and client_key"
        } else {
            what
        }
    }

    /// Whether the machine knows about it.
    pub(super) const fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Closing { .. })
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    by_slot: Vec<Option<Box<Link>>>,
    by_relay: IdMap<RelayId, Token>,
}

impl Links {
    pub(super) fn insert(&mut self, link: Link) {
        let slot = link.token.slot();
        if self.by_slot.len() <= slot {
            self.by_slot.resize_with(slot + 1, || None);
        }
        self.by_relay.insert(link.relay, link.token);
        self.by_slot[slot] = Some(Box::new(link));
    }

    pub(super) fn get(&mut self, token: Token) -> Option<&mut Link> {
        self.by_slot.get_mut(token.slot())?.as_deref_mut().filter(|link| link.token == token)
    }

    /// The live connection to `relay`.
    pub(super) fn of_relay(&mut self, relay: RelayId) -> Option<&mut Link> {
        let token = *self.by_relay.get(&relay)?;
        self.get(token)
    }

    /// The machine no longer knows of this connection; it stays in the table until it is [`Links::remove`]d.
    pub(super) fn forget(&mut self, token: Token) {
        if let Some(link) = self.by_slot.get(token.slot()).and_then(Option::as_ref)
            && self.by_relay.get(&link.relay) == Some(&token)
        {
            let relay = link.relay;
            self.by_relay.remove(&relay);
        }
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<Box<Link>> {
        self.forget(token);
        let place = self.by_slot.get_mut(token.slot())?;
        if place.as_ref().is_some_and(|link| link.token == token) { place.take() } else { None }
    }

    pub(super) fn iter(&mut self) -> impl Iterator<Item = &mut Link> {
        self.by_slot.iter_mut().filter_map(|link| link.as_deref_mut())
    }
}

/// Where a `data_url` leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    pub port: u16,
    /// As in the Host header.
    pub authority: String,
    pub path: String,
}

impl Target {
    /// Reads `wss://host[:port]/path`, or `ws://` to this same machine.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (tls, rest) = match (url.strip_prefix("wss://"), url.strip_prefix("ws://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(format!("{url:?} does not start with wss://")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = split_authority(authority)
            .ok_or_else(|| format!("{url:?} has no host and port that can be dialled"))?;
        // What goes into a request line and a header must not be able to end them.
        if !path.bytes().chain(authority.bytes()).all(|byte| byte.is_ascii_graphic())
            || authority.contains(['@', '?', '#'])
        {
            return Err(format!("{url:?} has characters that do not belong there"));
        }
        let loopback = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        if !tls && !loopback {
            return Err(format!("{url:?} is not encrypted, which is allowed to this same machine only"));
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.to_owned(),
            path: if path.is_empty() { "/ws/data" } else { path }.to_owned(),
        })
    }

    pub(super) fn host(&self) -> Host {
        Host { name: self.host.clone(), port: self.port }
    }

    pub(super) fn server_name(&self) -> Result<ServerName<'static>, String> {
        ServerName::try_from(self.host.clone()).map_err(|_| format!("{:?} is no host name", self.host))
    }
}

fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map(str::parse::<u16>).transpose().ok()?;
    (!host.is_empty() && port != Some(0)).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls_of_relays() {
        let target = Target::parse("wss://relay-1.example/ws/data").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.path.as_str()),
            ("relay-1.example", 443, "/ws/data")
        );
        let target = Target::parse("wss://[fd00::1]:8443").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.authority.as_str()),
            ("fd00::1", 8443, "[fd00::1]:8443")
        );
        assert!(!Target::parse("ws://127.0.0.1:9/x?y=1").unwrap().tls);
    }

    #[test]
    fn refuses_urls_that_could_smuggle_or_leak() {
        for url in [
            "",
            "http://x/",
            "wss://",
            "wss:///x",
            "wss://x:0",
            "wss://x:70000",
            "wss://a b/",
            "wss://a/\r\nX: y",
            "wss://u@h/",
            "ws://relay.example/",
            "wss://[::1",
            "wss://[::1]9",
        ] {
            assert!(Target::parse(url).is_err(), "{url:?}");
        }
    }
}
