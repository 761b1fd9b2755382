//! Making the TCP connection of a mesh link: names are looked up and connections made on a thread per attempt, because both may block. TLS and
//! the upgrade happen in the worker that gets the socket.

use std::io;
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::engine::connection::ClientOptions;
use crate::engine::tls::{PinError, Roots, TlsError, client_config, parse_pin};
use crate::proto::id::RelayId;
use crate::proto::relay::mesh::Dial;
use crate::proto::wire::control::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Not `wss://host[:port]/path`.
    #[error("{0:?} is not a wss:// URL")]
    Url(String),
    /// `ws://` would show tokens to anyone on the way.
    #[error("{0:?}: ws:// without TLS is for loopback only")]
    Plain(String),
    /// The pin of the configuration.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// No trusted roots.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Name or network.
    #[error("cannot connect to {host}:{port}: {source}")]
    Connect {
        /// As in the URL.
        host: String,
        /// Of the URL, or the scheme's.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// A connected socket, and what to say on it.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) relay: RelayId,
    pub(super) token: Secret,
    pub(super) socket: OwnedFd,
    pub(super) address: IpAddr,
    pub(super) options: ClientOptions,
}

/// The parts of a WebSocket URL.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct WsUrl {
    /// `wss`
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Given, or the scheme's.
    pub port: u16,
    /// With query; at least `/`.
    pub path: String,
}

impl WsUrl {
    /// Reads `ws[s]://host[:port][/path]`.
    ///
    /// # Errors
    /// [`DialError::Url`]; [`DialError::Plain`] for `ws://` to anything but this machine.
    pub fn parse(url: &str) -> Result<Self, DialError> {
        let bad = || DialError::Url(url.chars().take(200).collect());
        let (tls, rest) = match (url.strip_prefix("wss://"), url.strip_prefix("ws://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(bad()),
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(bad)?)),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?,
        };
        let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '?' | '#' | '\\');
        if host.is_empty() || host.contains(odd) || path.chars().any(|c| c.is_whitespace() || c.is_control())
        {
            return Err(bad());
        }
        let url = Self { tls, host: host.to_owned(), port, path: path.to_owned() };
        if !tls && !url.is_loopback() {
            return Err(DialError::Plain(format!("ws://{authority}")));
        }
        Ok(url)
    }

    /// Whether it names this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    fn host_header(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// Blocks until connected, or not.
pub(super) fn dial(dial: Dial, roots: &Roots, max_message: usize) -> Result<Dialled, DialError> {
    let url = WsUrl::parse(&dial.url)?;
    let tls = if url.tls {
        let pin = dial.tls_pin.as_deref().map(parse_pin).transpose()?;
        let config = client_config(roots, pin)?;
        let name = ServerName::try_from(url.host.clone()).map_err(|_| DialError::Url(dial.url.clone()))?;
        Some((config, name))
    } else {
        None
    };
    let socket = connect(&url).map_err(|source| DialError::Connect {
        host: url.host.clone(),
        port: url.port,
        source,
    })?;
    let address = socket.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |address| address.ip());
    let options = ClientOptions { tls, host: url.host_header(), path: url.path.clone(), max_message };
    Ok(Dialled { relay: dial.relay, token: dial.token, socket: socket.into(), address, options })
}

fn connect(url: &WsUrl) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (url.host.as_str(), url.port).to_socket_addrs()?.take(MAX_ADDRESSES) {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_strictly() {
        let url =
            |tls, host: &str, port, path: &str| WsUrl { tls, host: host.into(), port, path: path.into() };
        for (text, want) in [
            ("wss://relay.example/ws/mesh", url(true, "relay.example", 443, "/ws/mesh")),
            ("wss://relay.example:8443", url(true, "relay.example", 8443, "/")),
            ("wss://[2001:db8::1]:1/ws?x=1", url(true, "2001:db8::1", 1, "/ws?x=1")),
            ("ws://127.0.0.1:80/ws/mesh", url(false, "127.0.0.1", 80, "/ws/mesh")),
        ] {
            assert_eq!(WsUrl::parse(text).unwrap(), want);
        }
        for text in [
            "https://a/",
            "wss://",
            "wss://a:0/",
            "wss://a:x/",
            "wss://a b/",
            "wss://u@a/",
            "wss://a/\r\nX: y",
        ] {
            assert!(matches!(WsUrl::parse(text), Err(DialError::Url(_))), "{text}");
        }
        assert!(matches!(WsUrl::parse("ws://relay.example/"), Err(DialError::Plain(_))));
        assert_eq!(WsUrl::parse("wss://[::1]:9/").unwrap().host_header(), "[::1]:9");
        assert_eq!(WsUrl::parse("wss://a:443/").unwrap().host_header(), "a");
    }
}
