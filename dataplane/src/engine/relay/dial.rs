//! Making the TCP connection of a mesh link ([`crate::engine::dial`]), on a thread per attempt because that may block. TLS and the upgrade happen in the
//! worker that gets the socket.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::engine::connection::ClientOptions;
use crate::engine::dial::{self, Host, Outbound};
use crate::engine::tls::{ClientTls, PinError, TlsError, parse_pin};
use crate::proto::id::RelayId;
use crate::proto::relay::mesh::Dial;
use crate::proto::wire::control::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Name, network or proxy.
    #[error(transparent)]
    Connect(#[from] dial::DialError),
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

    /// Where to connect.
    pub fn as_host(&self) -> Host {
        Host { name: self.host.clone(), port: self.port }
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
pub(super) fn dial(dial: Dial, outbound: &Outbound, max_message: usize) -> Result<Dialled, DialError> {
    let url = WsUrl::parse(&dial.url)?;
    let tls = if url.tls {
        let pin = dial.tls_pin.as_deref().map(parse_pin).transpose()?;
        let tls = ClientTls::new(&outbound.roots, pin, outbound.certificate.as_ref())?;
        let name = ServerName::try_from(url.host.clone()).map_err(|_| DialError::Url(dial.url.clone()))?;
        Some((tls.config, name))
    } else {
        None
    };
    let connected = outbound.connect(&[url.as_host()], CONNECT_TIMEOUT)?;
    let options = ClientOptions { tls, host: url.host_header(), path: url.path.clone(), max_message };
    Ok(Dialled {
        relay: dial.relay,
        token: dial.token,
        socket: connected.socket,
        address: connected.peer.ip(),
        options,
    })
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
