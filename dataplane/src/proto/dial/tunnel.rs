//! The talk with a proxy, whatever it speaks: from the first byte to the moment when the connection belongs to the host behind it.

use std::fmt;

use zeroize::Zeroizing;

use super::proxy::{Proxy, Scheme};
use crate::proto::wire::connect::{Connect, ConnectError};
use crate::proto::wire::socks::{Socks, SocksError};

/// Why a proxy does not let us through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// An HTTP proxy.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A SOCKS5 proxy.
    #[error(transparent)]
    Socks(#[from] SocksError),
}

/// How far the talk is. `Debug` does not show what is to be sent: there may be a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Progress {
    /// Send this (it may be nothing), then push what comes.
    Send(Zeroizing<Vec<u8>>),
    /// What is sent from now on reaches the host, which has not said anything yet.
    Open,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(bytes) => write!(f, "Send({} bytes)", bytes.len()),
            Self::Open => f.write_str("Open"),
        }
    }
}

/// See the module's doc.
#[derive(Debug)]
pub enum Tunnel {
    /// HTTP CONNECT.
    Connect(Connect),
    /// SOCKS5.
    Socks(Socks),
}

impl Tunnel {
    /// To `host` (name or address, without brackets) at `port`; what to send first.
    ///
    /// # Errors
    /// A host that cannot stand in a request.
    pub fn new(proxy: &Proxy, host: &str, port: u16) -> Result<(Self, Zeroizing<Vec<u8>>), TunnelError> {
        let credentials = proxy.credentials.as_ref();
        Ok(match proxy.scheme {
            Scheme::Http | Scheme::Https => {
                let (connect, request) = Connect::new(host, port, credentials)?;
                (Self::Connect(connect), request)
            }
            Scheme::Socks5 => {
                let (socks, greeting) = Socks::new(host, port, credentials)?;
                (Self::Socks(socks), greeting)
            }
        })
    }

    /// Takes what the proxy has sent.
    ///
    /// # Errors
    /// The proxy refuses, or is none. Close the connection.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Progress, TunnelError> {
        match self {
            Self::Connect(connect) => {
                let open = connect.push(bytes)?;
                Ok(if open { Progress::Open } else { Progress::Send(Zeroizing::default()) })
            }
            Self::Socks(socks) => Ok(socks.push(bytes)?),
        }
    }
}
