//! Making a connection to a host: names looked up, addresses raced, proxies asked for a way through. What comes out carries the host's own bytes.
//!
//! ```text
//! hosts ─▶ ProxyRules: directly, or by the proxy ─▶ names on threads of their own ─▶ Race ─▶ attempts: TCP, [TLS to the proxy], [CONNECT or SOCKS5]
//!                                                                                     first one that is through wins; the others are closed
//! ```
//!
//! [`Outbound::connect`] blocks for as long as its limit says, so it is called on a thread that may wait; `getaddrinfo`, which keeps no limit, has threads
//! of its own that are left behind when they hang. The order is decided in [`crate::proto::dial`]; TLS to the host and everything above are the caller's.

mod attempt;
mod bridge;
mod lookup;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::engine::tls::{ClientCertificate, Roots, TlsError, proxy_config};
use crate::proto::dial::proxy::{ProxyRules, Scheme};
use crate::proto::dial::race::{Candidate, Race};
use crate::proto::dial::tunnel::TunnelError;
use crate::proto::time::Instant;
use attempt::{Attempt, Via, whom};
use lookup::Lookups;

/// Hosts of one call that are tried.
pub const MAX_HOSTS: usize = 8;
/// Failures that are told of; more of them say no more.
const MAX_TOLD: usize = 3;

/// How this machine reaches others: by which proxy, trusting whom, and showing what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outbound {
    /// Which hosts are behind a proxy.
    pub rules: ProxyRules,
    /// Whose certificates others may have, beside a pinned one; those of proxies too.
    pub roots: Roots,
    /// What is shown to those who ask; not to proxies.
    pub certificate: Option<ClientCertificate>,
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or address, without brackets.
    pub name: String,
    /// TCP.
    pub port: u16,
}

/// A connection that belongs to its host: nothing has been sent or received on it.
#[derive(Debug)]
pub struct Connected {
    /// Non-blocking. TCP, or a Unix socket when `bridged`.
    pub socket: OwnedFd,
    /// Which of the hosts was reached.
    pub host: usize,
    /// The other end of the TCP connection: the host's, or the proxy's.
    pub peer: SocketAddr,
    /// TLS to the proxy is done by a thread at the other end of a Unix socket.
    pub bridged: bool,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The resolver knows no address.
    #[error("cannot find the address of {whom}: {reason}")]
    Name {
        /// The host, or the proxy.
        whom: String,
        /// What the resolver said.
        reason: io::Error,
    },
    /// TCP.
    #[error("cannot connect to {whom}: {reason}")]
    Connect {
        /// Address, and whose proxy it is.
        whom: String,
        /// What the system said.
        reason: io::Error,
    },
    /// The proxy does not let us through.
    #[error("proxy {proxy}: {reason}")]
    Proxy {
        /// Its URL, without password.
        proxy: String,
        /// What it said.
        reason: TunnelError,
    },
    /// The connection to the proxy broke, or TLS to it failed.
    #[error("proxy {proxy}: the connection to it broke: {reason}")]
    ProxyBroke {
        /// Its URL, without password.
        proxy: String,
        /// What happened.
        reason: io::Error,
    },
    /// No trusted roots for TLS to the proxy.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody answered, or nobody to the end.
    #[error("no answer from {whom} within {} s", .limit.as_secs())]
    TimedOut {
        /// Those who were asked last.
        whom: String,
        /// How long was waited.
        limit: Duration,
    },
    /// One for each of several attempts; the most telling first.
    #[error("{}", told(.0))]
    Several(Vec<DialError>),
    /// The system has no thread or descriptor left.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl DialError {
    /// What a proxy says explains more than what happened to some address.
    const fn rank(&self) -> u8 {
        match self {
            Self::Proxy { .. } => 0,
            Self::ProxyBroke { .. } | Self::Tls(_) => 1,
            Self::Name { .. } => 2,
            _ => 3,
        }
    }

    /// One out of all; `None` of none.
    fn join(mut all: Vec<Self>) -> Option<Self> {
        all.sort_by_key(Self::rank);
        match all.len() {
            0 | 1 => all.pop(),
            _ => Some(Self::Several(all)),
        }
    }
}

fn told(errors: &[DialError]) -> String {
    let mut told: Vec<String> = Vec::new();
    for error in errors.iter().map(ToString::to_string) {
        // Two addresses of one proxy say the same.
        if !told.contains(&error) {
            told.push(error);
        }
    }
    let more = told.len().saturating_sub(MAX_TOLD);
    told.truncate(MAX_TOLD);
    let tail = if more == 0 { String::new() } else { format!("; and {more} more") };
    told.join("; ") + &tail
}

/// How a host is reached.
struct Route {
    host: Host,
    /// With what the attempts through it need.
    via: Option<Arc<Via>>,
}

impl Route {
    /// Whose address is looked up.
    fn first(&self) -> (&str, u16) {
        match &self.via {
            Some(via) => (&via.proxy.host, via.proxy.port),
            None => (&self.host.name, self.host.port),
        }
    }

    fn whom(&self, address: SocketAddr) -> String {
        whom(self.via.as_deref(), address)
    }
}

impl Outbound {
    /// Whether a proxy leads to `host`.
    pub fn is_proxied(&self, host: &Host) -> bool {
        self.rules.proxy_for(&host.name, host.port).is_some()
    }

    /// Connects to whichever of `hosts` (at most [`MAX_HOSTS`] are tried, the first is preferred a little) answers first. Blocks for `limit` at most.
    ///
    /// # Errors
    /// See [`DialError`].
    pub fn connect(&self, hosts: &[Host], limit: Duration) -> Result<Connected, DialError> {
        let routes = hosts.iter().take(MAX_HOSTS).map(|host| self.route(host));
        Dial::new(routes.collect::<Result<_, _>>()?)?.run(limit)
    }

    fn route(&self, host: &Host) -> Result<Route, DialError> {
        let via = match self.rules.proxy_for(&host.name, host.port) {
            None => None,
            Some(proxy) => {
                let tls = match proxy.scheme {
                    Scheme::Https => Some(proxy_config(&self.roots)?),
                    Scheme::Http | Scheme::Socks5 => None,
                };
                Some(Arc::new(Via { proxy: proxy.clone(), tls }))
            }
        };
        Ok(Route { host: host.clone(), via })
    }
}

/// One call of [`Outbound::connect`].
struct Dial {
    clock: std::time::Instant,
    routes: Vec<Route>,
    race: Race,
    lookups: Lookups,
    attempts: Vec<Attempt>,
    failures: Vec<DialError>,
}

impl Dial {
    fn new(routes: Vec<Route>) -> Result<Self, DialError> {
        let mut race = Race::new(routes.len());
        let mut lookups = Lookups::new()?;
        let mut failures = Vec::new();
        for (n, route) in routes.iter().enumerate() {
            let (name, port) = route.first();
            if let Ok(address) = name.parse::<IpAddr>() {
                race.handle_addresses(n, &[(address, port).into()]);
            } else if let Err(reason) = lookups.start(n, name, port) {
                race.handle_addresses(n, &[]);
                failures.push(DialError::Name { whom: name.to_owned(), reason });
            }
        }
        let clock = std::time::Instant::now();
        Ok(Self { clock, routes, race, lookups, attempts: Vec::new(), failures })
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn run(mut self, limit: Duration) -> Result<Connected, DialError> {
        let deadline = Instant::ZERO + limit;
        loop {
            self.handle_lookups();
            while let Some(candidate) = self.race.poll_attempt(self.now()) {
                self.start(candidate);
            }
            if self.race.is_lost() {
                let nobody = || DialError::System(io::Error::other("there is no host to connect to"));
                return Err(DialError::join(self.failures).unwrap_or_else(nobody));
            }
            let now = self.now();
            if now >= deadline {
                return Err(self.timed_out(limit));
            }
            let until = self.race.poll_timeout().map_or(deadline, |next| next.min(deadline));
            for n in self.wait(until.saturating_since(now))?.into_iter().rev() {
                if let Some(connected) = self.advance(n) {
                    return Ok(connected);
                }
            }
        }
    }

    fn handle_lookups(&mut self) {
        while let Some((n, addresses)) = self.lookups.poll() {
            let addresses = addresses.unwrap_or_else(|reason| {
                let whom = self.routes.get(n).map_or("", |route| route.first().0).to_owned();
                self.failures.push(DialError::Name { whom, reason });
                Vec::new()
            });
            self.race.handle_addresses(n, &addresses);
        }
    }

    fn start(&mut self, candidate: Candidate) {
        let Some(route) = self.routes.get(candidate.target) else { return };
        tracing::debug!(to = route.whom(candidate.address), host = route.host.name, "connecting");
        match Attempt::start(candidate, &route.host, route.via.clone()) {
            Ok(attempt) => self.attempts.push(attempt),
            Err(error) => self.failed(error),
        }
    }

    /// Takes the attempt at `n` a step further.
    fn advance(&mut self, n: usize) -> Option<Connected> {
        match self.attempts.get_mut(n)?.advance() {
            Ok(false) => {}
            Ok(true) => match self.attempts.swap_remove(n).finish() {
                Ok(connected) => return Some(connected),
                Err(error) => self.failed(error),
            },
            Err(error) => {
                self.attempts.swap_remove(n);
                self.failed(error);
            }
        }
        None
    }

    fn failed(&mut self, error: DialError) {
        tracing::debug!(%error, "an attempt to connect failed");
        self.failures.push(error);
        self.race.handle_failure(self.now());
    }

    /// Which attempts have something to do.
    fn wait(&self, timeout: Duration) -> Result<Vec<usize>, DialError> {
        let mut waiting = vec![PollFd::from_borrowed_fd(self.lookups.descriptor(), PollFlags::IN)];
        waiting.extend(
            self.attempts
                .iter()
                .map(|attempt| PollFd::from_borrowed_fd(attempt.socket(), attempt.interest())),
        );
        // Rounded up: a wait that ends a moment too early would be asked for again and again.
        let timeout = Timespec::try_from(timeout + Duration::from_micros(100)).ok();
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(DialError::System(error.into())),
        }
        let ready = waiting.iter().skip(1).enumerate().filter(|(_, entry)| !entry.revents().is_empty());
        Ok(ready.map(|(n, _)| n).collect())
    }

    fn timed_out(mut self, limit: Duration) -> DialError {
        let route = |n: usize| self.routes.get(n);
        let mut asked: Vec<String> = self
            .attempts
            .iter()
            .filter_map(|attempt| {
                route(attempt.candidate().target).map(|r| r.whom(attempt.candidate().address))
            })
            .collect();
        if asked.is_empty() {
            let names = self.lookups.missing().filter_map(route);
            asked = names.map(|route| format!("the resolver for {}", route.first().0)).collect();
        }
        self.failures.push(DialError::TimedOut { whom: asked.join(", "), limit });
        DialError::join(self.failures)
            .unwrap_or_else(|| DialError::System(io::Error::from(io::ErrorKind::TimedOut)))
    }
}
