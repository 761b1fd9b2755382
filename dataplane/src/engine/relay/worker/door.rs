//! How connections come in: listeners, and whose connection it is when a proxy passes it on (decided by [`crate::proto::wire::forwarded`]).
//!
//! A PROXY header is read here, before TLS; a header of the request when the upgrade is done. Until then a connection that came from a trusted
//! proxy is nobody's: no limit per address looks at it.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::{NODE_USER_TIMEOUT, Shell, conn_id, set_timeouts};
use crate::engine::connection::{Connection, ServerOptions};
use crate::engine::driver::{Driver, RecvBuffer, Token};
use crate::proto::relay::ConnId;
use crate::proto::relay::worker::Worker;
use crate::proto::time::Instant;
use crate::proto::wire::forwarded::Trust;
use crate::proto::wire::proxy::{Origin, Prelude, Progress};
use crate::proto::wire::upgrade::Request;
use crate::proto::wire::websocket::Role;

/// What holds for the connections of one listener.
#[derive(Debug)]
pub(in crate::engine::relay) struct Door {
    /// The listener once more: the driver has the other.
    pub(in crate::engine::relay) socket: OwnedFd,
    pub(in crate::engine::relay) server: ServerOptions,
    /// All who come are proxies, trusted or not.
    pub(in crate::engine::relay) behind_proxy: bool,
    pub(in crate::engine::relay) proxy_protocol: bool,
}

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub(super) struct Origins {
    /// The other end of the TCP connection.
    pub(super) peer: IpAddr,
    /// The same, or whom a PROXY header names: the one whose request headers count if it is trusted.
    pub(super) nearest: IpAddr,
    /// A PROXY header that is not whole.
    pub(super) prelude: Option<Box<Prelude>>,
}

impl<D: Driver> Shell<D> {
    /// Nobody listens here any more when this returns. Closing alone would not do: a ring lets go of a descriptor when its operations have ended,
    /// and until then the kernel gives connections to it that another process on the same port would take.
    pub(super) fn stop_listening(&mut self) {
        for (listener, door) in self.listeners.drain(..) {
            // If it does not work, closing does, a little later.
            let _ = rustix::net::shutdown(&door.socket, rustix::net::Shutdown::Read);
            self.driver.close(listener);
        }
    }

    pub(super) fn accept(&mut self, listener: Token, socket: OwnedFd, peer: IpAddr, now: Instant) {
        let Some((_, door)) = self.listeners.iter().find(|(token, _)| *token == listener) else { return };
        let peer = peer.to_canonical();
        let proxy = self.trust.covers(peer);
        if door.proxy_protocol && !proxy {
            return tracing::debug!(%peer, "connection refused: its PROXY header would not be trusted");
        }
        let shared = door.behind_proxy || proxy && (door.proxy_protocol || self.trust.header.is_some());
        let prelude = door.proxy_protocol.then(Box::default);
        set_timeouts(&socket, NODE_USER_TIMEOUT);
        let connection = match Connection::server(&door.server, &self.pool) {
            Ok(connection) => connection,
            Err(error) => return tracing::error!(%error, "cannot serve a connection"),
        };
        let token = match self.driver.newcomer(socket) {
            Ok(token) => token,
            Err(error) => return tracing::warn!(%error, "an accepted connection cannot be used"),
        };
        let conn = conn_id(token);
        let opened = if shared {
            self.machine.open_behind(conn, peer, now)
        } else {
            self.machine.open(conn, peer, now)
        };
        match opened {
            Ok(()) => {
                self.seat(token, connection, Role::Server, None, Origins { peer, nearest: peer, prelude });
            }
            Err(refusal) => {
                tracing::debug!(%peer, %refusal, "connection refused");
                self.driver.close(token);
            }
        }
    }

    /// Takes what belongs to a PROXY header; how many bytes that is. `None`: the connection is gone.
    pub(super) fn read_prelude(&mut self, token: Token, buffer: &RecvBuffer, now: Instant) -> Option<usize> {
        let Self { driver, peers, machine, .. } = self;
        let origins = &mut peers.get_mut(token.slot())?.as_mut()?.origins;
        let Some(prelude) = &mut origins.prelude else { return Some(0) };
        let (proxy, conn) = (origins.peer, conn_id(token));
        let error = match prelude.push(driver.bytes(buffer)) {
            Ok(Progress { taken, origin: None }) => return Some(taken),
            Ok(Progress { taken, origin: Some(origin) }) => {
                origins.prelude = None;
                if let Origin::Client(client) = origin {
                    origins.nearest = client.ip().to_canonical();
                }
                let client = origins.nearest;
                match machine.identified(conn, client, now) {
                    Ok(()) => return Some(taken),
                    Err(refusal) => format!("{client}: {refusal}"),
                }
            }
            Err(error) => error.to_string(),
        };
        tracing::debug!(%proxy, error, "connection refused");
        machine.closed(conn);
        driver.close(token);
        self.forget(token);
        None
    }
}

impl Origins {
    /// Takes what a request says of its sender. False when that one may not have another connection.
    pub(super) fn identify(
        &self,
        trust: &Trust,
        request: Option<&Request>,
        conn: ConnId,
        machine: &mut Worker,
        now: Instant,
    ) -> bool {
        let Some(client) = request.and_then(|request| trust.client_address(self.nearest, request)) else {
            return true;
        };
        let identified = machine.identified(conn, client, now);
        if let Err(refusal) = &identified {
            tracing::debug!(%client, proxy = %self.peer, %refusal, "connection refused");
        }
        identified.is_ok()
    }
}
