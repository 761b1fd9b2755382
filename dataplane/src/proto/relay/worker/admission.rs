//! Who gets a place: limits of all connections, of those that have not signed in, and of one address ([`crate::proto::relay::addresses`]).

use std::net::IpAddr;

use super::api::Command;
use super::{Conn, MAX_CONTROL, Refusal, Role, Worker};
use crate::proto::relay::ConnId;
use crate::proto::relay::error_limit::ErrorLimit;
use crate::proto::time::Instant;
use crate::proto::wire::reassembly::Reassembler;

impl Worker {
    /// A connection was accepted (or dialled). Its handshake time starts now.
    ///
    /// # Errors
    /// Which limit is reached: the shell closes it without a word, which costs it least.
    pub fn open(&mut self, conn: ConnId, peer: IpAddr, now: Instant) -> Result<(), Refusal> {
        self.admit_connection(conn, peer, false, now)
    }

    /// The same for one that we made: limits of addresses are for those who come.
    ///
    /// # Errors
    /// As for [`Worker::open`].
    pub fn open_dialled(&mut self, conn: ConnId, peer: IpAddr, now: Instant) -> Result<(), Refusal> {
        self.admit_connection(conn, peer, true, now)
    }

    /// The same for one that a proxy passes on: its address is nobody's, until [`Worker::identified`] says whose the connection is.
    ///
    /// # Errors
    /// As for [`Worker::open`].
    pub fn open_behind(&mut self, conn: ConnId, proxy: IpAddr, now: Instant) -> Result<(), Refusal> {
        self.admit_connection(conn, proxy, true, now)
    }

    /// Whose connection it is, as a trusted proxy says.
    ///
    /// # Errors
    /// A limit of that address is reached; the connection is to be closed.
    pub fn identified(&mut self, conn: ConnId, client: IpAddr, now: Instant) -> Result<(), Refusal> {
        if self.conn(conn).is_none_or(|state| state.peer == client && state.address.is_some()) {
            return Ok(());
        }
        let address = match self.addresses.arrive(client, &self.limits, now) {
            Ok(address) => address,
            Err(refusal) => {
                self.counters.refuse(refusal);
                self.closed(conn);
                return Err(refusal);
            }
        };
        let Some(state) = self.conn_mut(conn) else { return Ok(()) };
        state.peer = client;
        let (earlier, authenticated) = (state.address.replace(address), state.role.is_authenticated());
        if let Some(earlier) = earlier {
            self.addresses.leave(earlier, authenticated);
        }
        if authenticated {
            self.addresses.authenticated(address, true);
        }
        Ok(())
    }

    fn admit_connection(
        &mut self,
        conn: ConnId,
        peer: IpAddr,
        shared: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        let refused = if self.draining {
            Err(Refusal::Draining)
        } else if self.open >= self.limits.max_connections {
            Err(Refusal::Connections)
        } else if shared {
            Ok(None)
        } else {
            self.addresses.arrive(peer, &self.limits, now).map(Some)
        };
        // Only who may come at all makes another one go.
        let full = self.unauthenticated >= self.limits.max_unauthenticated;
        let admitted = refused.and_then(|address| {
            if full && !self.cut_oldest() {
                if let Some(address) = address {
                    self.addresses.leave(address, false);
                }
                return Err(Refusal::Unauthenticated);
            }
            Ok(address)
        });
        let address = match admitted {
            Ok(address) => address,
            Err(refusal) => {
                self.counters.refuse(refusal);
                return Err(refusal);
            }
        };
        self.closed(conn);
        let slot = conn.0 as usize;
        if slot >= self.conns.len() {
            self.conns.resize_with(slot + 1, || None);
        }
        self.conns[slot] = Some(Conn {
            role: Role::Opening,
            peer,
            address,
            accepted: now,
            timer: None,
            reassembler: Reassembler::with_limit(MAX_CONTROL),
            error_limit: ErrorLimit::default(),
        });
        self.open += 1;
        self.unauthenticated += 1;
        self.set_timer(conn, Some(now + self.limits.handshake_timeout));
        Ok(())
    }

    /// Cuts the connection that has had the most time to sign in, for one that may be quicker: silent ones do not lock newcomers out. Those that are
    /// signed in have timers later than these, but for a few.
    fn cut_oldest(&mut self) -> bool {
        let waits = |conn: &ConnId| self.conn(*conn).is_some_and(|state| !state.role.is_authenticated());
        let Some(oldest) = self.timers.iter().map(|&(_, conn)| conn).find(waits) else { return false };
        self.counters.refuse(Refusal::Displaced);
        self.cut(oldest);
        true
    }

    /// A connection has authenticated itself, or (`is` false) is no longer.
    pub(super) fn authenticated(&mut self, conn: ConnId, is: bool) {
        self.unauthenticated = if is { self.unauthenticated - 1 } else { self.unauthenticated + 1 };
        if let Some(address) = self.conn(conn).and_then(|state| state.address) {
            self.addresses.authenticated(address, is);
        }
        if is {
            self.commands.push_back(Command::Welcome { conn });
        }
    }
}
